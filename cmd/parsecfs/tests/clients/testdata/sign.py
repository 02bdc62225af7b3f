"""Signs in one of Python's ways: sign.py HOW SIGN MESSAGE SIGNATURE"""
import os
import pathlib
import shutil
import sys

how, sign, message, signature = sys.argv[1:]
data = pathlib.Path(message).read_bytes()
if how in ("buffered", "unbuffered"):
    with open(sign, "r+b", buffering=0 if how == "unbuffered" else -1) as f:
        f.write(data)
        f.flush()
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
elif how == "shutil":  # copies by sendfile(2)
    shutil.copyfile(message, sign)
    shutil.copyfile(sign, signature)
    sys.exit()
elif how == "pathlib":
    pathlib.Path(sign).write_bytes(data)
    result = pathlib.Path(sign).read_bytes()
pathlib.Path(signature).write_bytes(result)
