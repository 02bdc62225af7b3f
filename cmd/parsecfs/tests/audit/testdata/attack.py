"""Somebody without a right to any key: attack.py UID PROVIDER KEY SOCKET SECONDS TIMES, until both are over. Prints how often
it did what."""
import json
import os
import socket
import sys
import time

uid, provider, key, control, seconds, times = sys.argv[1:]
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))


def transact(fd):
    os.write(fd, b"0\x06\x02\x01\x01\x02\x01\x01message")
    try:
        while os.read(fd, 4096):
            pass
    except OSError:  # the signature is wrong
        pass


# A socket's path has 107 bytes at most, and a test's directory may have more.
short = "/proc/self/fd/%d/%s" % (os.open(os.path.dirname(control), os.O_PATH), os.path.basename(control))


def turned_away():
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(short)
        except BlockingIOError:  # others stand in line
            return 0
        while s.recv(4096):
            pass
    return 1


hashing = os.open(provider + "/hash/sha256", os.O_RDWR)
verifying = os.open(key + "/verify", os.O_RDWR)
end = time.monotonic() + float(seconds)
did = {"hash": 0, "verify": 0, "connect": 0, "random": 0}
while time.monotonic() < end or did["hash"] < int(times):
    for _ in range(10):
        transact(hashing)
        transact(verifying)
    did["hash"] += 10
    did["verify"] += 10
    did["connect"] += turned_away()
    with open(provider + "/random", "rb", buffering=0) as f:
        f.read(1)
    did["random"] += 1
json.dump(did, sys.stdout)
