#!/usr/bin/env python3
"""The objects of a repository in a directory (or of a bucket on a test server's disk).

objects.py DIR                  one line each: size, class (data, meta, other), key
objects.py --new BEFORE AFTER   bytes of what is only in the second list: data packs, page packs, all else
"""

import os
import sys

NOT_OBJECTS = ("tmp", ".sgwtmp")


def kind(path, key):
    """A pack says in its clear header what it holds."""
    if not key.startswith("packs/"):
        return "other"
    with open(path, "rb") as file:
        header = file.read(11)
    return "meta" if header[:8] == b"TWINDPAK" and header[10] == 2 else "data"


def listed(top):
    """{key: (size, class)} of all objects below `top`."""
    found = {}
    for folder, folders, files in os.walk(top):
        if folder == top:
            folders[:] = [name for name in folders if name not in NOT_OBJECTS]
        for name in files:
            path = os.path.join(folder, name)
            key = os.path.relpath(path, top)
            found[key] = (os.stat(path).st_size, kind(path, key))
    return found


def new(before, after):
    """Bytes of data packs, page packs and other objects that came."""
    sums = {"data": 0, "meta": 0, "other": 0}
    for key in after.keys() - before.keys():
        size, what = after[key]
        sums[what] += size
    return sums["data"], sums["meta"], sums["other"]


def read(path):
    with open(path, encoding="utf-8") as file:
        rows = (line.rstrip("\n").split(" ", 2) for line in file)
        return {key: (int(size), what) for size, what, key in rows}


if __name__ == "__main__":
    if sys.argv[1] == "--new":
        print(*new(read(sys.argv[2]), read(sys.argv[3])))
    else:
        for key, (size, what) in sorted(listed(sys.argv[1]).items()):
            print(size, what, key)
