# Has the kernel refuse a system call to a program: refuse.py CALL ERRNO PROGRAM [ARGUMENT...]
import ctypes
import errno
import os
import struct
import sys

CALLS = {"io_uring_setup": 425, "io_uring_enter": 426}  # the same on all architectures
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def statement(code, jt, jf, k):
    return struct.pack("HBBI", code, jt, jf, k)


program = b"".join((
    statement(LOAD, 0, 0, 0),
    statement(JUMP_EQUAL, 0, 1, CALLS[sys.argv[1]]),
    statement(RETURN, 0, 0, REFUSE | getattr(errno, sys.argv[2])),
    statement(RETURN, 0, 0, ALLOW),
))
code = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter, 0, 0):
    sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[3], sys.argv[3:])
