"""The ways in of the gate's table: what is opened before a right is lost, and what is asked through it afterwards.

A way has a function that opens what it needs (by name, in the opener), and one that asks, by descriptors that anybody may
have got. ways.py WAYS HELD NAMES asks the ways from a program of its own, which root's setuid program becomes.
"""
import errno
import fcntl
import json
import os
import struct
import sys

MESSAGE = b"message"
TEMPLATE = b'template = "ecdsa-p256-sha256"\n'


class Place:
    """The folders and names of a stage; names change when their owner renames them."""

    def __init__(self, provider, names, bound, import_pem, chain):
        self.provider, self.names, self.bound = provider, names, bound
        self.import_pem, self.chain = import_pem, chain

    def path(self, key, *parts):
        return os.path.join(self.provider, "keys", self.names[key], *parts)


def text(path):
    with open(path, "rb") as f:
        return f.read()


def begin_anew(fd):
    """What others left is dropped; whoever is refused this is refused what follows too, which is what counts."""
    try:
        os.ftruncate(fd, 0)
    except OSError:
        pass


def transact(fd):
    """One transaction on a descriptor that others had before."""
    begin_anew(fd)
    os.write(fd, MESSAGE)
    return os.read(fd, 4096)


def call(fd):
    """The same as one ioctl: docs/ioctl.md."""
    begin_anew(fd)
    whole = bytearray(struct.pack("=II512s", len(MESSAGE), 0, MESSAGE))
    fcntl.ioctl(fd, 0xC000C701 | len(whole) << 16, whole)
    return bytes(whole[8:8 + struct.unpack_from("=I", whole, 4)[0]])


def fresh(path, flags=os.O_RDWR, by=transact, **at):
    fd = os.open(path, flags, **at)
    try:
        return by(fd)
    finally:
        os.close(fd)


def staged(fd, what):
    begin_anew(fd)
    os.write(fd, what)
    os.close(os.dup(fd))  # a FLUSH
    return b"taken"


def parts(plaintext, ciphertext):
    begin_anew(plaintext)
    os.write(plaintext, MESSAGE)
    os.lseek(ciphertext, 0, os.SEEK_SET)
    return os.read(ciphertext, 4096)


def fresh_parts(open_part):
    plaintext = open_part("plaintext", os.O_WRONLY)
    ciphertext = open_part("ciphertext", os.O_RDONLY)
    try:
        return parts(plaintext, ciphertext)
    finally:
        os.close(plaintext)
        os.close(ciphertext)


def make_file_slot(place, name):
    os.close(os.open(place.path("k", "sign.d", name), os.O_CREAT | os.O_RDWR, 0o600))


def make_directory_slot(place, key, slots, name):
    os.mkdir(place.path(key, slots, name))
    return place.path(key, slots, name)


def written(path, what):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, what)
    os.close(fd)


def drop_written(place):
    written(place.path("k", "sign"), MESSAGE)
    return {"r": os.open(place.path("k", "sign"), os.O_RDONLY)}


def drop_unread(place):
    written(place.path("k", "sign_raw"), MESSAGE)
    return {}


def read_new(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def open_store(place):
    slot = make_directory_slot(place, "agree", "agree.d", "store")
    written(slot + "/kdf", b"hkdf-sha256")
    written(slot + "/peer", text(place.path("agree", "public.pem")))
    return {"store": os.open(slot + "/store", os.O_WRONLY), "secret": os.open(slot + "/secret", os.O_RDONLY)}


def ask_store(place, h):
    begin_anew(h["store"])
    os.write(h["store"], place.names["stored"].encode())
    os.lseek(h["secret"], 0, os.SEEK_SET)
    os.read(h["secret"], 4096)
    return b"stored"


def slot_of(place, name):
    make_file_slot(place, name)
    return {}


def directory(path):
    return os.open(path, os.O_PATH | os.O_DIRECTORY)


def slot_directory(place):
    make_file_slot(place, "at")
    return {"d": directory(place.path("k", "sign.d"))}


def open_parts(place):
    slot = make_directory_slot(place, "a", "encrypt.d", "held")
    return {"p": os.open(slot + "/plaintext", os.O_WRONLY), "c": os.open(slot + "/ciphertext", os.O_RDONLY)}


def new_slot(path, **at):
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, **at)
    try:
        return transact(fd)
    finally:
        os.close(fd)
        os.unlink(path, **at)


def create_with(flags):
    """A write-only open of a staged text, appending, so that every holder's bytes follow."""
    return os.O_WRONLY | os.O_APPEND | flags


def open_chain(place):
    fd = os.open(place.path("k", "certificate"), create_with(0))
    os.write(fd, place.chain)
    return {"f": fd}


def ask_flush(place, h):
    os.close(os.dup(h["f"]))
    return b"flushed"


OPEN = {
    # through what was opened before
    "file": lambda p: {"f": os.open(p.path("k", "sign"), os.O_RDWR)},
    "ioctl": lambda p: {"f": os.open(p.path("k", "sign"), os.O_RDWR)},
    "ioctl of a slot": lambda p: slot_of(p, "called") or {"f": os.open(p.path("k", "sign.d", "called"), os.O_RDWR)},
    "slot": lambda p: slot_of(p, "held") or {"f": os.open(p.path("k", "sign.d", "held"), os.O_RDWR)},
    "part": open_parts,
    "part at": lambda p: {"d": directory(make_directory_slot(p, "a", "encrypt.d", "at"))},
    "random": lambda p: {"f": os.open(p.provider + "/random", os.O_RDONLY)},
    "hash": lambda p: {"f": os.open(p.provider + "/hash/sha256", os.O_RDWR)},
    "hash by path": lambda p: {},
    "attributes": lambda p: {"f": os.open(p.path("text", "attributes"), create_with(0))},
    "certificate": lambda p: {"f": os.open(p.path("k", "certificate"), create_with(0))},
    "certificate, written before": open_chain,
    "import": lambda p: {"f": os.open(p.path("imported", "import"), create_with(0))},
    "generate": lambda p: {"f": os.open(p.path("generated", "generate"), create_with(0))},
    "drop box": drop_written,
    # names in bytes
    "copy": lambda p: {"f": os.open(p.path("copy", "copy"), create_with(0))},
    "store": open_store,
    # a new open, or what was made before and is opened anew
    "slot by path": lambda p: slot_of(p, "path"),
    "slot at": slot_directory,
    "part by path": lambda p: make_directory_slot(p, "a", "encrypt.d", "path") and {},
    "path": lambda p: {},
    "ioctl by path": lambda p: {},
    "O_PATH": lambda p: {"f": os.open(p.path("k", "sign"), os.O_PATH)},
    "openat": lambda p: {"d": directory(p.path("k"))},
    "openat keys": lambda p: {"d": directory(p.provider + "/keys")},
    "bind": lambda p: {},
    "new slot": lambda p: {},
    "new slot at": lambda p: {"d": directory(p.path("k", "sign.d"))},
    "random by path": lambda p: {},
    "attributes by path": lambda p: {},
    "attributes, O_PATH": lambda p: {"f": os.open(p.path("text", "attributes"), os.O_PATH)},
    "drop box by path": drop_unread,
}

ASK = {
    "file": lambda p, h: transact(h["f"]),
    "ioctl": lambda p, h: call(h["f"]),
    "ioctl of a slot": lambda p, h: call(h["f"]),
    "slot": lambda p, h: transact(h["f"]),
    "part": lambda p, h: parts(h["p"], h["c"]),
    "part at": lambda p, h: fresh_parts(lambda name, flags: os.open(name, flags, dir_fd=h["d"])),
    "random": lambda p, h: os.read(h["f"], 16),
    "hash": lambda p, h: transact(h["f"]),
    "hash by path": lambda p, h: fresh(p.provider + "/hash/sha256"),
    "attributes": lambda p, h: staged(h["f"], TEMPLATE),
    "certificate": lambda p, h: staged(h["f"], p.chain),
    "certificate, written before": ask_flush,
    "import": lambda p, h: staged(h["f"], p.import_pem),
    "generate": lambda p, h: staged(h["f"], b"ecdsa-p256-sha256\n"),
    "drop box": lambda p, h: os.read(h["r"], 4096),
    "copy": lambda p, h: staged(h["f"], p.names["k"].encode() + b"\n"),
    "store": ask_store,
    "slot by path": lambda p, h: fresh(p.path("k", "sign.d", "path")),
    "slot at": lambda p, h: fresh("at", dir_fd=h["d"]),
    "part by path": lambda p, h: fresh_parts(lambda name, flags: os.open(p.path("a", "encrypt.d", "path", name), flags)),
    "path": lambda p, h: fresh(p.path("k", "sign")),
    "ioctl by path": lambda p, h: fresh(p.path("k", "sign"), by=call),
    "O_PATH": lambda p, h: fresh("/proc/self/fd/%d" % h["f"]),
    "openat": lambda p, h: fresh("sign", dir_fd=h["d"]),
    "openat keys": lambda p, h: fresh(p.names["k"] + "/sign", dir_fd=h["d"]),
    "bind": lambda p, h: fresh(p.bound),
    "new slot": lambda p, h: new_slot(p.path("k", "sign.d", "new")),
    "new slot at": lambda p, h: new_slot("new", dir_fd=h["d"]),
    "random by path": lambda p, h: read_new(p.provider + "/random"),
    "attributes by path": lambda p, h: written(p.path("text", "attributes"), TEMPLATE) or b"taken",
    "attributes, O_PATH": lambda p, h: written("/proc/self/fd/%d" % h["f"], TEMPLATE) or b"taken",
    "drop box by path": lambda p, h: read_new(p.path("k", "sign_raw")),
}


def ask(place, held, ways):
    """What came, for each way: ok or an errno; what is no answer does not look like one."""
    results = {}
    for way in ways:
        try:
            results[way] = "ok" if ASK[way](place, held[way]) else "nothing"
        except OSError as e:
            results[way] = errno.errorcode[e.errno]
        except Exception as e:
            results[way] = "failed: %r" % e
    return results


def main():
    spec = json.loads(sys.argv[1])
    place = Place(spec["provider"], spec["names"], spec["bound"], text(spec["pem"]), text(spec["chain"]))
    print(json.dumps(ask(place, spec["held"], spec["ways"])))


if __name__ == "__main__":
    main()
