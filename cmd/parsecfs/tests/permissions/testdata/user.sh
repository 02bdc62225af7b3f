#!/bin/sh -eu
# Tells the story of matrix.py on a tmpfs and under an ordinary user's daemon, in a mount namespace of its own where
# /dev/fuse is open to users as udev has it.
# user.sh PARSECFS UID FUSE_CONF [USER...], in a folder that everybody may search; leaves the files want.txt, got.txt and closed.txt.
parsecfs=$1 uid=$2 conf=$3
shift 3
matrix=$(dirname "$0")/matrix.py
# A copy of another test's mount would keep that one.
awk '$3 == "fuse.parsecfs" { print $2 }' /proc/mounts | xargs -r umount -l -c -i || true
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
echo "$conf" >fuse.conf
mount --bind fuse.conf /etc/fuse.conf
# fusermount3 asks for the user's name
{ cat /etc/passwd; echo "mounter:x:$uid:$uid::/:/bin/sh"; } >passwd
mount --bind passwd /etc/passwd
as() { setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"; }
mkdir real home
mount -t tmpfs -o mode=755 tmpfs real
mkdir -m 1777 real/keys
mkdir -m 755 real/aliases
chown "$uid:$uid" home real/*
as mkdir home/mnt
as "$parsecfs" mount --background --state-dir "$PWD/home/state" "$PWD/home/mnt"
trap 'as "$parsecfs" unmount "$PWD/home/mnt"; umount real' EXIT
python3 "$matrix" real real/keys real/aliases "$@" >want.txt
python3 "$matrix" parsecfs home/mnt/providers/default/keys home/mnt/keys "$@" >got.txt
python3 "$matrix" closed home/mnt/providers/default/keys home/mnt/keys "$@" >closed.txt
