"""One story of chmod, chown, setfacl, umask, rename and rmdir, told on a file system.

matrix.py real|parsecfs KEYS ALIASES [USER...] prints what each user may do after each step; the test compares the two.
With users named, only those live, and what the others would do is left out.
matrix.py real-short|parsecfs-short leaves the tables of modes and the aliases out.
matrix.py show KEYS ALIASES prints the rights of all that is there.
matrix.py closed KEYS ALIASES USER... prints how all users but those are shut out.
"""
import ctypes
import errno
import os
import platform
import queue
import struct
import sys
import threading
import time

FLAVOUR, KEYS, ALIASES = sys.argv[1:4]
FLAVOUR, _, SHORT = FLAVOUR.partition("-")
LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_FS, CLONE_NEWUSER = 0x200, 0x10000000
# setgroups, setresgid and setresuid, of the calling thread alone
CALLS = (116, 119, 117) if platform.machine() == "x86_64" else (159, 149, 147)

# name: uid, gid, supplementary groups, root of a user namespace of its own
USERS = {
    "root": (0, 0, [], False),
    "owner": (61001, 61001, [62001], False),
    "member": (61002, 62001, [], False),
    "extra": (61003, 61003, [62001], False),
    "named": (61004, 61004, [], False),
    "grouped": (61005, 61005, [62002], False),
    "stranger": (61006, 61006, [], False),
    "nsroot": (61007, 61007, [], True),
    "nsowner": (61001, 61001, [], True),
}
ONLY = sys.argv[4:] or list(USERS)
TAGS = {"u": 1, "U": 2, "g": 4, "G": 8, "m": 16, "o": 32}


def become(name, setgroups=os.setgroups, setresgid=os.setresgid, setresuid=os.setresuid):
    uid, gid, groups, namespace = USERS[name]
    setgroups(groups)
    setresgid(gid, gid, gid)
    setresuid(uid, uid, uid)
    if namespace:
        # A program that changed its uid is not dumpable, and its /proc files are root's.
        LIBC.prctl(4, 1, 0, 0, 0)
        if LIBC.unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        for path, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open("/proc/self/" + path, "w") as f:
                f.write(text)


def result(action):
    """Runs an action, and gives "ok", its text, or its errno."""
    try:
        os.umask(0)
        return action() or "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
    except BaseException as e:  # what is no answer must not look like one
        return "failed: %r" % e


def syscall(number, *args):
    if LIBC.syscall(number, *args) != 0:
        raise OSError(ctypes.get_errno(), "system call %d" % number)


class Thread:
    """A user: a thread, whose credentials and umask are its own, as the kernel has it; glibc and Python have it otherwise."""

    def __init__(self, name):
        self.name, self.asked, self.told = name, queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self.live, daemon=True).start()

    def live(self):
        if LIBC.unshare(CLONE_FS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        become(self.name, lambda groups: syscall(CALLS[0], len(groups), (ctypes.c_uint32 * len(groups))(*groups)),
               lambda *ids: syscall(CALLS[1], *ids), lambda *ids: syscall(CALLS[2], *ids))
        while True:
            self.told.put([result(action) for action in self.asked.get()])

    def do(self, *actions):
        self.asked.put(actions)
        return self.told.get()


class Process:
    """The root of a user namespace, which a thread beside others cannot make: a process for each request."""

    def __init__(self, name):
        self.name = name

    def do(self, *actions):
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            def become_and_act():
                become(self.name)
                return "\n".join(result(action) for action in actions)
            os.write(w, result(become_and_act).encode())
            os._exit(0)
        os.close(w)
        with os.fdopen(r) as f:
            told = f.read().split("\n")
        os.waitpid(pid, 0)
        return told if len(told) == len(actions) else told * len(actions)


LIVING = {}


def as_user(name, *actions):
    """Runs actions as a user, and gives the result of each."""
    if name not in LIVING:
        LIVING[name] = (Process if USERS[name][3] else Thread)(name)
    return LIVING[name].do(*actions)


def path(*parts):
    return os.path.join(KEYS, *parts)


FILES = {"sign": 0o600, "verify": 0o666, "attributes": 0o644, "public.pem": 0o444}


def make(key, umask=0o022, mode=0o777):
    """A key as parsecfs makes it, or what looks like one on another file system."""
    def action():
        # Nobody but its owner writes in a key's directory: the README says so.
        os.umask(umask if FLAVOUR == "parsecfs" else umask | 0o022)
        os.mkdir(path(key), mode)
        if FLAVOUR == "parsecfs":
            with open(path(key, "generate"), "w") as f:
                f.write("ed25519\n")
            return
        for name, bits in FILES.items():
            os.umask(0)
            os.close(os.open(path(key, name), os.O_CREAT | os.O_WRONLY, bits))
    return action


def acl(text):
    """An ACL's extended attribute from words like u:rw U61004:rw g:r m:rw o:-"""
    b = struct.pack("<I", 2)
    for word in text.split():
        who, _, perms = word.partition(":")
        perm = sum({"r": 4, "w": 2, "x": 1, "-": 0}[p] for p in perms)
        b += struct.pack("<HHI", TAGS[who[0]], perm, int(who[1:]) if who[1:] else 0xFFFFFFFF)
    return b


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def setfacl(key, text, name=ACCESS):
    return lambda: os.setxattr(path(*key), name, acl(text))


def removefacl(key, name=ACCESS):
    def action():
        try:
            os.removexattr(path(*key), name)
        except OSError as e:
            if e.errno != errno.ENODATA:
                raise
    return action


def opens(flags, *parts):
    def action():
        os.close(os.open(path(*parts), flags))
    return action


def shown(*parts):
    """What an inode looks like, to root or else to its owner."""
    return look(*parts) if "root" in ONLY else as_user("owner", lambda: look(*parts))[0]


def look(*parts):
    try:
        s = os.stat(path(*parts))
    except OSError as e:
        return errno.errorcode[e.errno]
    text = f"{s.st_mode & 0o7777:04o} {s.st_uid} {s.st_gid}"
    for name in (ACCESS, DEFAULT):
        try:
            text += " " + os.getxattr(path(*parts), name).hex()
        except OSError as e:
            text += " " + errno.errorcode[e.errno]
    return text


def probe(key):
    """What each user may do with a key."""
    print("  ", key, shown(key))
    for name in FILES:
        print("  ", name, shown(key, name))
    for who in ONLY:
        print("  ", who, *as_user(
            who,
            opens(os.O_RDWR, key, "sign"),
            opens(os.O_RDONLY, key, "sign"),
            opens(os.O_WRONLY, key, "sign"),
            opens(os.O_RDWR, key, "verify"),
            opens(os.O_WRONLY, key, "attributes"),
            opens(os.O_RDONLY, key, "public.pem"),
            lambda: os.listdir(path(key)) and "ok",
            lambda: ",".join(str(int(os.access(path(key, "sign"), m))) for m in (4, 2, 6)),
        ))


def step(who, what, action, *keys):
    if who not in ONLY:
        return
    print(who, what, *as_user(who, action))
    for key in keys:
        probe(key)


def getfacl(*parts):
    return lambda: os.getxattr(path(*parts), ACCESS).hex()


def chmod(mode, *parts):
    return lambda: os.chmod(path(*parts), mode)


def chown(uid, gid, *parts):
    return lambda: os.chown(path(*parts), uid, gid)


def rmdir(key):
    def action():
        try:
            os.rmdir(path(key))
        except OSError as e:
            # A real directory is not empty: whoever is told so was let in.
            if FLAVOUR == "parsecfs" or e.errno != errno.ENOTEMPTY:
                raise
    return action


def rename(old, new):
    return lambda: os.rename(path(old), path(new))


if FLAVOUR == "show":
    print(shown())
    for key in sorted(os.listdir(KEYS)):
        print(key, shown(key))
        for name in FILES:
            print("  ", key, name, shown(key, name))
    sys.exit()

if FLAVOUR == "closed":
    for who in USERS:
        if who not in ONLY:
            print(who, *as_user(who, lambda: os.stat(KEYS) and "ok", lambda: os.mkdir(path("x"))))
    sys.exit()

step("owner", "mkdir k", make("k"), "k")
for who in USERS:
    if who not in ("root", "owner", "nsowner"):
        step(who, "chmod sign", chmod(0o666, "k", "sign"))
        step(who, "chown sign", chown(USERS[who][0], -1, "k", "sign"))
        step(who, "setfacl sign", setfacl(("k", "sign"), "u:rw U61006:rw g:- m:rw o:-"))
        step(who, "chmod k", chmod(0o777, "k"))
        step(who, "default of k", setfacl(("k",), "u:rwx g:rwx o:rwx", DEFAULT))
        step(who, "utime", lambda: os.utime(path("k", "sign")))
        step(who, "utime verify", lambda: os.utime(path("k", "verify")))
        step(who, "utime verify then", lambda: os.utime(path("k", "verify"), (1, 1)))
probe("k")

for mode in (0o660, 0o640, 0o606, 0o066, 0o000, 0o600):
    step("owner", "chmod %o sign" % mode, chmod(mode, "k", "sign"), "k")
step("owner", "chgrp a group of theirs", chown(-1, 62001, "k", "sign"), "k")
step("owner", "chgrp another group", chown(-1, 62002, "k", "sign"))
step("owner", "chmod 660", chmod(0o660, "k", "sign"), "k")
step("owner", "give away", chown(61004, -1, "k", "sign"))
step("root", "give away", chown(61004, 61004, "k", "sign"), "k")
step("named", "chmod what is theirs now", chmod(0o606, "k", "sign"), "k")
step("owner", "chmod what was theirs", chmod(0o600, "k", "sign"))
step("root", "give back", chown(61001, 61001, "k", "sign"))
step("nsowner", "chmod as root of a namespace", chmod(0o640, "k", "sign"), "k")
step("nsowner", "chown as root of a namespace", chown(61006, -1, "k", "sign"))
step("owner", "chmod 600", chmod(0o600, "k", "sign"), "k")

for text in (
    "u:rw U61004:rw g:- m:rw o:-",
    "u:rw U61004:rw g:r G62002:rw m:rw o:-",
    "u:rw U61004:- g:rw m:rw o:rw",
    "u:rw U61004:rw g:rw G62001:r m:r o:-",
    "u:rw U61004:- g:- G62002:- m:- o:rw",
    "u:rw g:r o:r",
    "u:- U61004:rw g:- m:rw o:rw",
    "u:rw U61004:rw U61006:r g:- G62001:rw G62002:w m:rw o:-",
):
    step("owner", "setfacl " + text, setfacl(("k", "sign"), text), "k")
for mode in (0o600, 0o660, 0o644, 0o620):
    step("owner", "chmod %o under an ACL" % mode, chmod(mode, "k", "sign"), "k")
for bad in ("u:rw U61004:rw g:- o:-", "u:rw", "u:rw g:- g:- o:-", "U61004:rw u:rw g:- m:rw o:-", "u:rw U61005:r U61004:r g:- m:r o:-"):
    step("owner", "no ACL: " + bad, setfacl(("k", "sign"), bad))
step("owner", "default of a file", setfacl(("k", "sign"), "u:rw g:- o:-", DEFAULT))
step("owner", "chgrp under an ACL", chown(-1, 62001, "k", "sign"), "k")
step("owner", "setfacl -b", removefacl(("k", "sign")), "k")
step("owner", "chmod 600", chmod(0o600, "k", "sign"))
step("owner", "public.pem of theirs", setfacl(("k", "public.pem"), "u:r U61006:- g:r m:r o:r"), "k")

# ACLs from inside a user namespace, as xfstests' generic/318: its own ids are mapped, others refused or unknown.
step("nsowner", "setfacl for itself in a namespace", setfacl(("k", "sign"), "u:rw U0:r g:- m:r o:-"), "k")
step("nsowner", "setfacl for an unknown id in a namespace", setfacl(("k", "sign"), "u:rw U61004:rw g:- m:rw o:-"), "k")
step("nsowner", "getfacl in a namespace", getfacl("k", "sign"))
step("owner", "setfacl for another", setfacl(("k", "sign"), "u:rw U61004:rw g:- m:rw o:-"))
step("nsowner", "getfacl of another in a namespace", getfacl("k", "sign"))
step("nsroot", "setfacl as root of a namespace", setfacl(("k", "sign"), "u:rw U0:rw g:- m:rw o:-"))
step("owner", "setfacl -b", removefacl(("k", "sign")))
# generic/105: to read a directory by an ACL is not to search it.
step("owner", "setfacl r on k", setfacl(("k",), "u:rwx U61004:r g:r m:r o:r"), "k")
step("owner", "setfacl x on k", setfacl(("k",), "u:rwx U61004:x g:- m:rx o:-"), "k")
step("owner", "setfacl -b k", removefacl(("k",)))
for mode in (0o700, 0o750, 0o711, 0o000, 0o705, 0o755):
    step("owner", "chmod %o k" % mode, chmod(mode, "k"), "k")
step("owner", "setfacl k", setfacl(("k",), "u:rwx U61004:rx g:- G62002:x m:rx o:-"), "k")
step("owner", "chmod 711 k", chmod(0o711, "k"), "k")
step("owner", "setfacl -b k", removefacl(("k",)))
step("owner", "chmod 755 k", chmod(0o755, "k"))
step("owner", "default ACL of k", setfacl(("k",), "u:rwx U61004:rx g:- m:rx o:-", DEFAULT), "k")
step("root", "chown k", chown(61004, 62001, "k"), "k")
step("root", "chown k back", chown(61001, 61001, "k"))

for umask in (0o000, 0o022, 0o027, 0o077):
    step("owner", "mkdir under umask %03o" % umask, make("u%03o" % umask, umask), "u%03o" % umask)
step("root", "default ACL of keys", setfacl((), "u:rwx U61004:rx U61006:x g:rx G62002:rx m:rx o:-", DEFAULT))
for umask in (0o000, 0o077):
    key = "d%03o" % umask
    step("owner", "mkdir under a default ACL, umask %03o" % umask, make(key, umask), key)
    step("owner", "chmod 660 sign", chmod(0o660, key, "sign"), key)
step("owner", "mkdir -m 700 under a default ACL", make("d700", 0o022, 0o700), "d700")
step("owner", "chmod 755 d700", chmod(0o755, "d700"), "d700")
step("root", "short default ACL of keys", setfacl((), "u:rwx g:- o:-", DEFAULT))
step("owner", "mkdir under a short default ACL", make("short", 0o000), "short")
step("root", "no default ACL of keys", removefacl((), DEFAULT))
print(shown())

for who in ("member", "named", "stranger", "nsroot", "nsowner"):
    step(who, "rename", rename("u022", "stolen-" + who))
    step(who, "rmdir", rmdir("u022"))
step("owner", "rename", rename("u022", "mine"))
step("root", "rename", rename("mine", "theirs"))
step("owner", "rmdir of nothing", rmdir("mine"))
step("root", "chown d000", chown(61006, 61006, "d000"))
step("owner", "rmdir what is another's", rmdir("d000"))
step("stranger", "rmdir what is theirs now", rmdir("d000"))
step("root", "rmdir", rmdir("theirs"))

# unlink and link inside a key are refused to all on parsecfs, which says EPERM; a real one lets its owner.
for who in ("member", "stranger", "nsroot"):
    step(who, "rename onto another's", rename("d077", "u027"))
    step(who, "mkdir in another's key", lambda: os.mkdir(path("d077", "x")) and "made")
    step(who, "truncate another's", lambda: os.truncate(path("d077", "sign"), 0))
    step(who, "utime now", lambda: os.utime(path("d077")))
    step(who, "utime then", lambda: os.utime(path("d077"), (1, 1)))
step("owner", "utime then", lambda: os.utime(path("u027"), (1, 1)))
step("owner", "stat", lambda: str(os.stat(path("u027")).st_mtime))
step("owner", "truncate", lambda: os.truncate(path("u027", "sign"), 0))
step("owner", "chmod keys", chmod(0o777))
for mode in (0o1733, 0o1755, 0o0755, 0o0777, 0o1777):
    step("root", "chmod %o keys" % mode, chmod(mode))
    print(shown())
    for who in USERS:
        step(who, "list keys", lambda: "ok" if os.listdir(KEYS) else "empty")
        key = "by-" + who
        step(who, "mkdir", lambda: os.mkdir(path(key), 0o700))
        step("stranger", "rename of " + key, rename(key, key + "-moved"))
        step("stranger", "rename back", rename(key + "-moved", key))
        step("root", "rmdir", rmdir(key))
        step(who, "rmdir", rmdir(key))

if SHORT:
    sys.exit()

# What pjdfstest asks of chmod, chown, open, unlink and rename (tests/*/05 to 11): the table of modes, the way to a
# file, ownership, and sticky directories.
TRIED = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR, "trunc": os.O_RDONLY | os.O_TRUNC, "append": os.O_WRONLY | os.O_APPEND}


def table(what, *parts):
    for who in ("root", "owner", "extra", "stranger", "nsowner"):
        if who in ONLY:
            print("  ", what, who, *(name + "=" + told for name, told in zip(TRIED, as_user(who, *(opens(flags, *parts) for flags in TRIED.values())))))


step("owner", "mkdir j", make("j"))
step("owner", "chgrp", chown(-1, 62001, "j", "sign"))
for bits in range(8):
    for shift in (0, 3, 6):
        step("owner", "chmod %03o" % (bits << shift), chmod(bits << shift, "j", "sign"))
        table("%03o" % (bits << shift), "j", "sign")
step("owner", "chmod 660", chmod(0o660, "j", "sign"))


def creates(*parts):
    return lambda: os.close(os.open(path(*parts), os.O_CREAT | os.O_WRONLY, 0o600))


for mode in (0o000, 0o444, 0o500, 0o544, 0o600, 0o644, 0o666, 0o711, 0o755):
    step("owner", "chmod %03o j" % mode, chmod(mode, "j"))
    for who in ("owner", "extra", "stranger", "nsroot", "nsowner"):
        step(who, "lookup", lambda: os.stat(path("j", "sign")) and "ok")
        step(who, "chmod", chmod(0o660, "j", "sign"))
        step(who, "chown", chown(-1, -1, "j", "sign"))
        step(who, "chgrp", chown(-1, 62001, "j", "sign"))
        step(who, "open", opens(os.O_RDWR, "j", "sign"))
        step(who, "utime", lambda: os.utime(path("j", "sign")))
        step(who, "getxattr", lambda: os.getxattr(path("j", "sign"), "user.x") and "ok")
        # who may write in a key is told EPERM on parsecfs, where nobody makes or removes its files
        if who != "nsowner" and (who != "owner" or mode & 0o300 != 0o300):
            step(who, "unlink", lambda: os.unlink(path("j", "sign")))
            step(who, "create", creates("j", "new"))
            step(who, "symlink", lambda: os.symlink("x", path("j", "link")))
            step(who, "link", lambda: os.link(path("j", "sign"), path("j", "link")))
            step(who, "rename", lambda: os.rename(path("j", "sign"), path("j", "moved")))
step("owner", "chmod 755 j", chmod(0o755, "j"))
step("owner", "chgrp back", chown(-1, 61001, "j", "sign"))
for who in USERS:
    for uid, gid in ((-1, -1), (61001, -1), (-1, 61001), (61001, 61001), (61001, 62001), (-1, 62001), (-1, 62002), (61006, -1), (-1, 61006), (0, 0)):
        step(who, "chown %d %d" % (uid, gid), chown(uid, gid, "j", "sign"))
        if who in ONLY:
            print(shown("j", "sign"))
        step("root", "chown back", chown(61001, 61001, "j", "sign"))
        step("owner", "chgrp back", chown(-1, 61001, "j", "sign"))


def changed(action, *parts):
    """Whether a change moved an inode's ctime."""
    def timed():
        before = os.stat(path(*parts)).st_ctime_ns
        now = time.clock_gettime_ns(5)  # CLOCK_REALTIME_COARSE, which file systems take their times from
        while time.clock_gettime_ns(5) == now:
            pass
        result = "ok"
        try:
            action()
        except OSError as e:
            result = errno.errorcode[e.errno]
        return result + (" later" if os.stat(path(*parts)).st_ctime_ns > before else " same")
    return timed


for who in ("root", "owner", "extra", "stranger"):
    step(who, "chmod and ctime", changed(chmod(0o640, "j", "sign"), "j", "sign"))
    step(who, "chown and ctime", changed(chown(61001, 61001, "j", "sign"), "j", "sign"))
    step(who, "setfacl and ctime", changed(setfacl(("j", "sign"), "u:rw U61004:r g:- m:r o:-"), "j", "sign"))
    step(who, "utime and ctime", changed(lambda: os.utime(path("j", "sign"), (5, 5)), "j", "sign"))
    step(who, "rename and ctime", changed(rename("j", "j"), "j"))


def alias(name):
    return os.path.join(ALIASES, name)


def links(owner):
    """Two aliases of an owner's and one of another's, made by whoever may."""
    def action():
        for name, uid in (("a", owner), ("b", owner), ("c", 61006)):
            if os.path.lexists(alias(name)):
                os.unlink(alias(name))
            os.symlink("../x", alias(name))
            os.lchown(alias(name), uid, uid)
    return action


for directory in (0, 61001):
    for mode in (0o777, 0o1777, 0o755, 0o1755, 0o733, 0o1733, 0o700):
        step("root", "chown %d aliases" % directory, lambda: os.chown(ALIASES, directory, directory))
        step("root", "chmod %o aliases" % mode, lambda: os.chmod(ALIASES, mode))
        for owner in (61001, 61002):
            for who in ("root", "owner", "member", "stranger", "nsroot", "nsowner"):
                step("root", "links of %d" % owner, links(owner))
                step(who, "replace another's", lambda: os.rename(alias("b"), alias("c")))
                step(who, "rename", lambda: os.rename(alias("a"), alias("moved")))
                step(who, "unlink", lambda: os.unlink(alias("a")))
                step(who, "unlink another's", lambda: os.unlink(alias("c")))
                step(who, "symlink", lambda: os.symlink("x", alias("new-" + who)))
                step(who, "read", lambda: os.readlink(alias("b")))
                step("root", "names", lambda: " ".join(sorted(os.listdir(ALIASES))))
                for name in ("moved", "new-" + who):
                    step("root", "unlink " + name, lambda: os.unlink(alias(name)))
