"""Signs until the daemon is gone, and tries to read by sendfile(2) wherever the file's size allows: sendfile.py SIGN"""
import errno
import os
import random
import sys
import tempfile

out = tempfile.TemporaryFile()
places = [0, 4096, 8192, 65536, 1 << 40, (1 << 40) + (1 << 22), (1 << 40) + 5 * (1 << 22)]
gone = (errno.ENOTCONN, errno.ECONNABORTED)


def sign():
    fd = os.open(sys.argv[1], os.O_RDWR)
    try:
        os.write(fd, b"x" * random.choice([1, 100, 4095, 4096, 8191, 20000]))
        for place in random.sample(places, 2):
            try:
                if os.sendfile(out.fileno(), fd, place, 1 << 20):
                    sys.exit("sendfile gave an answer")
            except OSError as e:
                if e.errno not in (errno.EINVAL, errno.EIO):
                    raise
        if not os.read(fd, 4096):
            sys.exit("an empty answer")
    finally:
        os.close(fd)


cut = False  # the kernel answers EIO, once, where the daemon is killed in the middle of its answer (fuse_dev_do_write)
while True:
    try:
        sign()
        if cut:
            sys.exit("EIO, and the daemon lives")
    except OSError as e:
        if e.errno in gone:
            break
        if e.errno != errno.EIO or cut:
            raise
        cut = True
