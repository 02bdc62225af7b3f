"""A user who does what a test says: user.py UID. Each line on stdin is an expression over the functions here, each line on
stdout what came of it: ok, what it gave, or an errno.
"""
import collections
import ctypes
import errno
import json
import os
import socket
import subprocess
import sys

HELD = {}


def hold(name, path, flags, at=None):
    HELD[name] = os.open(path, flags, dir_fd=HELD[at] if at else None)


def write(name, what):
    os.write(HELD[name], what if isinstance(what, bytes) else what.encode())


def read(name):
    if not os.read(HELD[name], 65536):
        return "nothing"


def flush(name):
    os.close(os.dup(HELD[name]))


def close(name):
    os.close(HELD.pop(name))


def transact(name):
    """One transaction over a descriptor, whatever is left of the one before: su(1) reads to the end of a line."""
    try:
        os.ftruncate(HELD[name], 0)
    except OSError:
        pass
    write(name, b"message")
    return read(name)


def signs(path):
    """One over a new one."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, b"message")
        if not os.read(fd, 65536):
            return "nothing"
    finally:
        os.close(fd)


def put(path, what):
    """What a shell's echo does."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(fd, what.encode())
    finally:
        os.close(fd)


def text(path):
    with open(path, encoding="utf-8") as f:
        return repr(f.read())


def run(*argv, stdin):
    """Runs a program with a descriptor that was opened here for its standard input; its own end says nothing."""
    subprocess.run(argv, stdin=HELD[stdin], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def watch(path):
    """Asks to be told of what happens in a directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    try:
        if libc.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")
    finally:
        os.close(fd)


def exchange(a, b):
    """Swaps two names."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def looks(directory, start, count):
    """Looks for so many names, and counts what came of it."""
    told = collections.Counter()
    for n in range(start, start + count):
        try:
            os.stat("%s/%d" % (directory, n))
            told["ok"] += 1
        except OSError as e:
            told[errno.errorcode[e.errno]] += 1
    return ", ".join("%d %s" % (n, what) for what, n in told.most_common())


def ask_socket(path, request):
    """Sends a line to the daemon's control socket, and gives the last error among the answers."""
    told = ""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
        s.sendall(request.encode() + b"\n")
        with s.makefile(encoding="utf-8") as f:
            for line in f:
                told = json.loads(line).get("error", told)
    return told


def spins(a, b, seconds):
    """renames a key to and fro until it is gone"""
    import time
    end = time.monotonic() + seconds
    gone = 0
    while time.monotonic() < end and gone < 2000:
        try:
            os.rename(a, b)
            gone = 0
            a, b = b, a
        except OSError:
            gone += 1


def main():
    uid = int(sys.argv[1])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.umask(0o022)
    for line in sys.stdin:
        try:
            told = eval(line) or "ok"
        except OSError as e:
            told = errno.errorcode[e.errno]
        except Exception as e:
            told = "failed: %r" % e
        print(told, flush=True)


main()
