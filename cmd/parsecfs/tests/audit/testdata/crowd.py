"""Root as one user after another, each of whom hashes once: crowd.py HASH FIRST COUNT."""
import os
import sys

path, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for uid in range(first, first + count):
    os.seteuid(uid)
    fd = os.open(path, os.O_RDWR)
    os.write(fd, b"message")
    os.read(fd, 4096)
    os.close(fd)
    os.seteuid(0)
