"""Signs from 8 threads of one process: threads.py MODE SIGN OUT. Each attempt leaves NAME.msg, and NAME.sig or NAME.err."""
import os
import sys
import threading

MODE, SIGN, OUT = sys.argv[1:]
THREADS, TIMES = 8, 100


def whole(fd):
    parts = []
    while part := os.read(fd, 4096):
        parts.append(part)
    return b"".join(parts)


def sign(name, message):
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
