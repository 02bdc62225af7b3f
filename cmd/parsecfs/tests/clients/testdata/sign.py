"""Signs in one of Python's ways: sign.py HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7."""
import concurrent.futures
import fcntl
import mmap
import multiprocessing
import os
import pathlib
import shutil
import struct
import sys
import threading

how, sign, message, signature = sys.argv[1:]


def descriptor(message, signature):
    with open(sign, "r+b") as f:
        f.write(pathlib.Path(message).read_bytes())
        f.flush()
        result = f.read()
    pathlib.Path(signature).write_bytes(result)


def files(message, signature, between=lambda: None):
    pathlib.Path(sign).write_bytes(pathlib.Path(message).read_bytes())
    between()
    pathlib.Path(signature).write_bytes(pathlib.Path(sign).read_bytes())


def slot(message, signature):
    path = pathlib.Path(f"{sign}.d/{os.path.basename(signature)}")
    path.write_bytes(pathlib.Path(message).read_bytes())
    pathlib.Path(signature).write_bytes(path.read_bytes())
    path.unlink()


def ioctl(message, signature):
    data = pathlib.Path(message).read_bytes()
    call = bytearray(struct.pack("=II1000s", len(data), 0, data))
    with open(sign, "r+b") as f:
        fcntl.ioctl(f, 0xC000C701 | len(call) << 16, call)
    pathlib.Path(signature).write_bytes(call[8:8 + struct.unpack_from("=I", call, 4)[0]])


def eight(work):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: work(f"{message}.{n}", f"{signature}.{n}"), range(8)))


data = pathlib.Path(message).read_bytes()
result = None
if how == "descriptor":
    descriptor(message, signature)
elif how == "unbuffered":
    with open(sign, "r+b", buffering=0) as f:
        f.write(data)
        result = f.read()
elif how == "seek":
    with open(sign, "r+b") as f:
        f.write(data)
        f.seek(0)
        result = f.read()
elif how == "w+b":
    with open(sign, "w+b") as f:
        f.write(data)
        f.seek(0)
        result = f.read()
elif how == "os.read":
    fd = os.open(sign, os.O_RDWR)
    os.write(fd, data)
    result = os.read(fd, 8192)
    assert os.read(fd, 8192) == b""
    os.close(fd)
elif how == "os.pread":
    fd = os.open(sign, os.O_RDWR)
    os.pwrite(fd, data, 0)
    result = os.pread(fd, 8192, 0)
    assert os.pread(fd, 8192, len(result)) == b""
    assert os.pread(fd, 10, 5) == result[5:15]
    os.close(fd)
elif how == "pathlib":
    files(message, signature)
elif how == "copyfile":  # copies by sendfile(2)
    shutil.copyfile(message, sign)
    shutil.copyfile(sign, signature)
elif how == "copyfileobj":
    with open(message, "rb") as a, open(sign, "r+b") as f, open(signature, "wb") as b:
        shutil.copyfileobj(a, f)
        f.flush()
        shutil.copyfileobj(f, b)
elif how == "slot":
    slot(message, signature)
elif how == "ioctl":
    ioctl(message, signature)
elif how == "eight":
    eight(descriptor)
elif how == "eight-slots":
    eight(slot)
elif how == "eight-ioctls":
    eight(ioctl)
elif how == "eight-processes":
    workers = [multiprocessing.Process(target=files, args=(f"{message}.{n}", f"{signature}.{n}")) for n in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    sys.exit(max(w.exitcode for w in workers))
elif how == "eight-files":
    eight(lambda message, signature, all=threading.Barrier(8, timeout=30): files(message, signature, all.wait))
elif how == "mmap":
    with open(sign, "r+b", buffering=0) as f:
        f.write(data)
        result = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)[:]
else:
    sys.exit("no such way: " + how)
if result is not None:
    pathlib.Path(signature).write_bytes(result)
