"""Signs from 8 threads of one process: threads.py MODE SIGN OUT. Each attempt leaves NAME.msg, and NAME.sig or NAME.err."""
import fcntl
import os
import struct
import sys
import threading

MODE, SIGN, OUT = sys.argv[1:]
THREADS, TIMES = 8, 100


def whole(fd):
    parts = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)


def ioctl(fd, message):
    call = bytearray(struct.pack("=II512s", len(message), 0, message))
    fcntl.ioctl(fd, 0xC000C701 | len(call) << 16, call)
    length = struct.unpack_from("=I", call, 4)[0]
    assert not any(call[8 + length:])
    return bytes(call[8:8 + length])


SHARED = os.open(SIGN, os.O_RDWR)
OWN = threading.local()


def sign(name, message):
    if MODE == "ioctl, shared":
        return ioctl(SHARED, message)
    if MODE.startswith("ioctl"):
        if not hasattr(OWN, "fd"):
            OWN.fd, OWN.times = os.open(SIGN, os.O_RDWR), 0
        OWN.times += 1
        if MODE == "ioctl" or OWN.times % 2:
            return ioctl(OWN.fd, message)
        os.write(OWN.fd, message)
        return whole(OWN.fd)
    if MODE == "descriptor":
        fd = os.open(SIGN, os.O_RDWR)
        try:
            os.write(fd, message)
            return whole(fd)
        finally:
            os.close(fd)
    path, made = SIGN, os.O_WRONLY
    if MODE == "slot":
        path, made = f"{SIGN}.d/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(path, made, 0o600)
    try:
        os.write(fd, message)
    finally:
        os.close(fd)
    fd = os.open(path, os.O_RDONLY)
    try:
        return whole(fd)
    finally:
        os.close(fd)
        if MODE == "slot":
            os.unlink(path)


def work(thread):
    for i in range(TIMES):
        name = f"py-{MODE}-{thread}-{i}"
        message = f"{name} {os.urandom(8).hex()}".encode()
        try:
            result, end = sign(name, message), "sig"
        except OSError as e:
            result, end = str(e).encode(), "err"
        with open(f"{OUT}/{name}.msg", "wb") as f:
            f.write(message)
        with open(f"{OUT}/{name}.{end}", "wb") as f:
            f.write(result)


threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
for t in threads:
    t.start()
for t in threads:
    t.join()
