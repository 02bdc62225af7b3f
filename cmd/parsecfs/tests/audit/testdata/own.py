"""Somebody with a key of their own, who changes its mode over and over, and is kept from destroying it: own.py UID KEYS NAME
TIMES."""
import os
import sys

uid, keys, name, times = sys.argv[1:]
os.setgroups([])
os.setresgid(int(uid), int(uid), int(uid))
os.setresuid(int(uid), int(uid), int(uid))
key = keys + "/" + name
os.mkdir(key)
with open(key + "/generate", "w", encoding="utf-8") as f:
    f.write("ed25519\n")
with open(key + "/attributes", "w", encoding="utf-8") as f:
    f.write("allow_destroy = false\n")
for i in range(int(times)):
    os.chmod(key + "/sign", 0o600 + i % 2 * 0o60)
    try:
        os.rmdir(key)
    except PermissionError:
        continue
    raise SystemExit("the key was destroyed")
