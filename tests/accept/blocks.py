#!/usr/bin/env python3
"""Block images for the tests, and what is in them. Standard library only; shares nothing with Tradewind.

    blocks.py make FILE SIZE DATA SEED    a sparse image with DATA bytes of noise, text and zeros in scattered extents
    blocks.py noise FILE SIZE SEED        incompressible from end to end
    blocks.py change FILE COUNT SEED      COUNT aligned 4 KiB writes at random places
    blocks.py fill PATH BYTE              a file or device, all of it, with one value
    blocks.py all PATH FROM BYTE          are all bytes from FROM on of this value?
    blocks.py same A B [--prefix]         are they equal? With --prefix B may be longer
    blocks.py data FILE                   bytes in extents, and in chunks that have any

Sizes are written 512, 4K, 64M+512. What is printed is one line of figures.
"""

import os
import random
import stat
import sys

CHUNK = 256 << 10
LEAF = 1024  # chunks that one page of a block volume describes
STEP = 4 << 20


def number(text):
    units = {"K": 10, "M": 20, "G": 30}
    parts = (part.strip() for part in text.split("+"))
    return sum(int(p[:-1]) << units[p[-1]] if p[-1] in units else int(p) for p in parts)


def length(fd):
    return os.lseek(fd, 0, os.SEEK_END)


def extents(fd, size):
    """(start, end) of what is not a hole. A device has no holes that could be seen."""
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        yield 0, size
        return
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        yield start, at


def stuff(rng, count):
    """Half noise, a quarter text-like, a quarter zeros that are stored as data."""
    kind = rng.randrange(4)
    if kind < 2:
        return rng.randbytes(count)
    if kind == 2:
        line = b"%016x a line of text that repeats itself\n" % rng.getrandbits(60)
        return (line * (count // len(line) + 1))[:count]
    return bytes(count)


def make(path, size, data, seed):
    size, data, rng = number(size), number(data), random.Random(int(seed))
    with open(path, "wb") as file:
        file.truncate(size)
        if data >= size:
            spots = [(at, min(1 << 20, size - at)) for at in range(0, size, 1 << 20)]
        else:
            # One extent in each of as many equal fields, at an unaligned place: together DATA bytes, the ends included.
            count = max(2, data // (3 << 20))
            field, each = size // count, data // count
            spots = [(i * field + rng.randrange(max(1, field - each)), each) for i in range(1, count - 1)]
            spots += [(0, each), (size - each, each)]
        for at, count in spots:
            done = 0
            while done < count:
                part = min(1 << 20, count - done)
                os.pwrite(file.fileno(), stuff(rng, part), at + done)
                done += part
        os.fsync(file.fileno())
    print(f"{size} bytes, {os.stat(path).st_blocks * 512} allocated")


def noise(path, size, seed):
    size, rng = number(size), random.Random(int(seed))
    with open(path, "wb") as file:
        file.writelines(rng.randbytes(min(STEP, size - at)) for at in range(0, size, STEP))
    print(f"{size} bytes of noise")


def change(path, count, seed):
    rng = random.Random(int(seed))
    fd = os.open(path, os.O_RDWR)
    blocks = length(fd) // 4096
    places = {rng.randrange(blocks) for _ in range(int(count))}
    for place in places:
        os.pwrite(fd, rng.randbytes(4096), place * 4096)
    os.fsync(fd)
    os.close(fd)
    chunks = {place * 4096 // CHUNK for place in places}
    print(len(chunks), len({chunk // LEAF for chunk in chunks}))


def fill(path, value):
    fd = os.open(path, os.O_WRONLY)
    size, block = length(fd), bytes([int(value, 0)]) * STEP
    for at in range(0, size, STEP):
        os.pwrite(fd, block[: min(STEP, size - at)], at)
    os.fsync(fd)
    os.close(fd)
    print(f"{size} bytes of {value}")


def all_of(path, start, value):
    fd = os.open(path, os.O_RDONLY)
    size, block = length(fd), bytes([int(value, 0)]) * STEP
    for at in range(number(start), size, STEP):
        part = os.pread(fd, min(STEP, size - at), at)
        if part != block[: len(part)]:
            bad = next(i for i, byte in enumerate(part) if byte != block[0])
            sys.exit(f"byte {at + bad} is {part[bad]:#x}, not {value}")
    print(f"{size - number(start)} bytes of {value}")


def same(a, b, prefix=None):
    fds = [os.open(path, os.O_RDONLY) for path in (a, b)]
    sizes = [length(fd) for fd in fds]
    if sizes[0] != sizes[1] and not (prefix and sizes[1] > sizes[0]):
        sys.exit(f"sizes differ: {sizes[0]} and {sizes[1]}")
    size, read, at = sizes[0], 0, 0
    walks = [extents(fd, size) for fd in fds]
    heads = [next(walk, None) for walk in walks]
    while any(heads):
        # What is a hole on both sides is zero on both sides.
        start = max(at, min(head[0] for head in heads if head))
        at = max(start, min(head[1] for head in heads if head))
        for pos in range(start, at, STEP):
            parts = [os.pread(fd, min(STEP, at - pos), pos) for fd in fds]
            read += len(parts[0])
            if parts[0] != parts[1]:
                bad = next((i for i, (x, y) in enumerate(zip(*parts)) if x != y), min(map(len, parts)))
                sys.exit(f"first difference at byte {pos + bad} of {size}")
        for side in (0, 1):
            while heads[side] and heads[side][1] <= at:
                heads[side] = next(walks[side], None)
    print(f"{size} bytes equal, {read} of them read")


def data(path):
    fd = os.open(path, os.O_RDONLY)
    size, total, chunks, last = length(fd), 0, 0, -1
    for start, end in extents(fd, size):
        total += end - start
        first = max(start // CHUNK, last + 1)
        last = (end - 1) // CHUNK
        chunks += last - first + 1
    print(total, chunks * CHUNK)


if __name__ == "__main__":
    COMMANDS = {"make": make, "noise": noise, "change": change, "fill": fill, "all": all_of, "same": same, "data": data}
    COMMANDS[sys.argv[1]](*sys.argv[2:])
