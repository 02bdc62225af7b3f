"""Signs as a user until its stdin ends: signer.py UID GID SIGN. Over a descriptor of its own, and by the drop box.
Prints the uid, how often, and the longest time of a signature in milliseconds.
"""
import os
import select
import sys
import time

uid, gid, sign = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.setgroups([])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
count, worst = 0, 0.0
while True:
    begun = time.monotonic()
    fd = os.open(sign, os.O_RDWR)
    os.write(fd, b"message")
    if not os.read(fd, 4096):
        sys.exit("no signature")
    os.close(fd)
    fd = os.open(sign, os.O_WRONLY)
    os.write(fd, b"message")
    os.close(fd)
    fd = os.open(sign, os.O_RDONLY)
    if not os.read(fd, 4096):
        sys.exit("no signature from the drop box")
    os.close(fd)
    count, worst = count + 1, max(worst, time.monotonic() - begun)
    if select.select([sys.stdin], [], [], 0.01)[0]:
        break
print(uid, count, int(worst * 1000))
