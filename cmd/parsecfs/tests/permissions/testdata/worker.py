"""Signs over one descriptor until it is refused or its standard input ends.

worker.py UID FILE prints "<start of the READ, CLOCK_MONOTONIC in ns> ok|ERRNO" for each signature.
"""
import errno
import os
import select
import sys
import time

uid, path = int(sys.argv[1]), sys.argv[2]
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
fd = os.open(path, os.O_RDWR)
while not select.select([0], [], [], 0)[0]:
    start = time.monotonic_ns()
    try:
        os.write(fd, b"a message")
        start = time.monotonic_ns()
        result = "ok" if os.read(fd, 4096) else "empty"
        if os.read(fd, 1):
            result = "long"
    except OSError as e:
        result = errno.errorcode[e.errno]
    print(start, result, flush=True)
    if result != "ok":
        break
