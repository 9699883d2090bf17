#!/usr/bin/env python3
"""Trees that are large by their number of names: many.py files|names|links DIR COUNT [SEED]

    files   COUNT small files, 250 in a directory, 250 directories in a directory
    names   COUNT files in one directory
    links   COUNT names, every two of them one file, in different directories

Printed is what was made.
"""

import os
import random
import sys

PER_DIRECTORY = 250


def write(name, data, dir_fd):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=dir_fd)
    os.write(fd, data)
    os.close(fd)


def folders(top, count):
    """(descriptor, first number) of as many directories as COUNT names take."""
    for first in range(0, count, PER_DIRECTORY):
        number = first // PER_DIRECTORY
        path = os.path.join(top, f"{number // PER_DIRECTORY:03}", f"{number % PER_DIRECTORY:03}")
        os.makedirs(path)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        yield fd, first
        os.close(fd)


def contents(rng):
    """Mostly small, none empty, every one another."""
    noise = rng.randbytes(4096)
    number = 0
    while True:
        number += 1
        start, length = rng.randrange(3000), rng.randrange(1, 1 << rng.randrange(4, 11))
        yield b"%d " % number + noise[start : start + length]


def files(top, count, data):
    for fd, first in folders(top, count):
        for n in range(first, min(first + PER_DIRECTORY, count)):
            write(f"file-{n}", next(data), fd)


def names(top, count, data):
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for n in range(count):
        # In no order that a file system or an index would like.
        write(f"{n * 2654435761 % 2**32:08x}-a-name-of-usual-length-{n}", next(data), fd)
    os.close(fd)


def links(top, count, data):
    half = count // 2
    for fd, first in folders(os.path.join(top, "first"), half):
        for n in range(first, min(first + PER_DIRECTORY, half)):
            write(f"file-{n}", next(data), fd)
    # The second names come in another order, and far from the first.
    for fd, first in folders(os.path.join(top, "second"), half):
        for n in range(first, min(first + PER_DIRECTORY, half)):
            other = half - 1 - n
            number = other // PER_DIRECTORY
            source = f"first/{number // PER_DIRECTORY:03}/{number % PER_DIRECTORY:03}/file-{other}"
            os.link(os.path.join(top, source), f"link-{n}", dst_dir_fd=fd)


def main(what, top, count, seed="1"):
    os.makedirs(top)
    {"files": files, "names": names, "links": links}[what](top, int(count), contents(random.Random(int(seed))))
    print(f"{count} {what} in {top}")


if __name__ == "__main__":
    main(*sys.argv[1:])
