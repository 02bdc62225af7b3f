"""Asks SIGN by the ioctl of docs/ioctl.md, once with a signal that its process lives on after, and says what came, a line each.

interrupted.py SIGN: each word on stdin is a message; "!" in front of one sends the signal 100 ms after the call began.
"""
import ctypes
import errno
import os
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SIZE = 8 + 512
NUMBER = 0xC000C701 | SIZE << 16

signal.signal(signal.SIGALRM, lambda *_: None)
fd = os.open(sys.argv[1], os.O_RDWR)
for line in sys.stdin:
    word = line.strip()
    message = word.lstrip("!").encode()
    call = ctypes.create_string_buffer(struct.pack("=II512s", len(message), 0, message), SIZE)
    if word.startswith("!"):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    failed = LIBC.ioctl(fd, ctypes.c_ulong(NUMBER), call) != 0
    if failed:
        print(errno.errorcode[ctypes.get_errno()], flush=True)
    else:
        print(call.raw[8:8 + struct.unpack_from("=I", call.raw, 4)[0]].hex(), flush=True)
