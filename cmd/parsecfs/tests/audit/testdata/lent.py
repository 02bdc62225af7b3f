"""What a setuid program does that was given a file which somebody else opened: lent.py UID KEY TIMES. Prints how often it was
refused, and how often not."""
import os
import sys

uid, key, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
told = {"refused": 0, "taken": 0}
for i in range(times):
    os.seteuid(uid)
    fd = os.open(key + "/attributes", os.O_WRONLY)
    os.seteuid(0)
    try:
        os.write(fd, b"allow_destroy = true\n" if i % 2 else b"no such thing = 1\n")
        told["taken"] += 1
    except OSError:
        told["refused"] += 1
    try:
        os.close(fd)
    except OSError:
        pass
print(told)
