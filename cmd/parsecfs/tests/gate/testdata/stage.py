"""A stage of the gate's table: an opener with all its descriptors, and those who ask through them.

stage.py SPEC, as root. Each line on stdin is {"who": ..., "ways": [...], "names": {...}}, each line on stdout what came,
{way: "ok" or errno}. The first line on stdout, before any other, has what came at the opens.
"""
import ctypes
import json
import os
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
import ways as table  # noqa: E402

SPEC = json.loads(sys.argv[1])
LIBC = ctypes.CDLL(None, use_errno=True)
PLACE = table.Place(SPEC["provider"], SPEC["names"], SPEC["bound"], table.text(SPEC["pem"]), table.text(SPEC["chain"]))


def become(who):
    if who["cgroup"]:
        with open(who["cgroup"] + "/cgroup.procs", "w") as f:
            f.write(str(os.getpid()))
    os.setgroups(who["groups"])
    os.setresgid(who["gid"], who["gid"], who["gid"])
    os.setresuid(who["uid"], who["uid"], who["uid"])
    os.umask(0o022)
    if who["namespace"]:
        # A program that changed its uid is not dumpable, and its /proc files are root's.
        LIBC.prctl(4, 1, 0, 0, 0)
        if LIBC.unshare(0x10000000) != 0:  # CLONE_NEWUSER
            raise OSError(ctypes.get_errno(), "unshare")
        for path, text in (("setgroups", "deny"), ("uid_map", "0 %d 1" % who["uid"]), ("gid_map", "0 %d 1" % who["gid"])):
            with open("/proc/self/" + path, "w") as f:
                f.write(text)


def in_child(held, ways):
    """A child of the opener asks, with what it inherited."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, json.dumps(table.ask(PLACE, held, ways)).encode())
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f:
        told = json.loads(f.read())
    os.waitpid(pid, 0)
    return told


def in_setuid(held, ways):
    """root's setuid program asks, which the opener runs with its descriptors."""
    given = {way: held[way] for way in ways}
    spec = dict(SPEC, names=PLACE.names, held=given, ways=ways)
    fds = [fd for h in given.values() for fd in h.values()]
    done = subprocess.run([SPEC["setuid"], json.dumps(spec)], stdout=subprocess.PIPE, pass_fds=fds, check=True)
    return json.loads(done.stdout)


def serve(sock, held, modes):
    """An actor: asks as it is told to, until the stage ends."""
    with sock.makefile("rw") as f:
        for line in f:
            q = json.loads(line)
            PLACE.names = q["names"]
            f.write(json.dumps(modes[q["mode"]](held, q["ways"])) + "\n")
            f.flush()
    os._exit(0)


def himself(held, ways):
    return table.ask(PLACE, held, ways)


def main():
    whole, pids, socks = {}, [], {}

    def start(name, run):
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for s in [here, *socks.values()]:
                s.close()
            become(SPEC["actors"][name])
            run(there)
            os._exit(0)
        there.close()
        pids.append(pid)
        socks[name] = here

    def opener(sock):
        held, failed = {}, {}
        for way in SPEC["ways"]:
            try:
                held[way] = table.OPEN[way](PLACE)
            except OSError as e:
                failed[way] = repr(e)
        order = [(way, n) for way, h in held.items() for n in h]
        sock.sendall(json.dumps({"order": order, "failed": failed, "held": list(held)}).encode() + b"\n")
        for way, n in order:
            socket.send_fds(sock, [b"."], [held[way][n]])
        serve(sock, held, {"self": himself, "child": in_child, "setuid": in_setuid})

    start("opener", opener)
    sock, line = socks["opener"], b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    told = json.loads(line)
    held = {way: {} for way in told["held"]}
    for way, n in told["order"]:
        _, fds, _, _ = socket.recv_fds(sock, 1, 1)
        held[way][n] = fds[0]
    for name in SPEC["actors"]:
        if name != "opener":
            start(name, lambda sock: serve(sock, held, {"self": himself}))
    # What the stage itself holds would make every close another's.
    for h in held.values():
        for fd in h.values():
            os.close(fd)
    files = {name: s.makefile("rw") for name, s in socks.items()}
    modes = {"child": ("opener", "child"), "setuid": ("opener", "setuid"), "opener again": ("opener", "self")}
    print(json.dumps(told["failed"]), flush=True)
    for line in sys.stdin:
        q = json.loads(line)
        name, q["mode"] = modes.get(q["who"], (q["who"], "self"))
        files[name].write(json.dumps(q) + "\n")
        files[name].flush()
        sys.stdout.write(files[name].readline())
        sys.stdout.flush()
    for name in socks:
        files[name].close()
        socks[name].close()
    for pid in pids:
        os.waitpid(pid, 0)


main()
