"""Harm done to a repository in a directory, and what may then be in a target: for 7-damage.py."""

import os
import stat
import struct

BLOCK = 512


def flip(path, byte, bit=0):
    """Flips one bit of a file, in a copy of its own: the repository may be made of hard links."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    replace(path, bytes(data))


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def pack_regions(path):
    """Byte ranges of a pack's parts, from the format: header 64; frames; table; trailer 16."""
    data = path.read_bytes()
    table, _frames = struct.unpack("<II", data[-16:-8])
    assert data[:8] == b"TWINDPAK" and data[-8:] == b"TWINDEND", path
    end = len(data) - 16
    return {"header": (0, 64), "frame": (64, end - table), "table": (end - table, end), "trailer": (end, len(data))}


def _rotate(value, count):
    return (value >> count | value << (32 - count)) & 0xFFFFFFFF


def _mix(v, a, b, c, d, x, y):
    for word, first, second in ((x, 16, 12), (y, 8, 7)):
        v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
        v[d] = _rotate(v[d] ^ v[a], first)
        v[c] = (v[c] + v[d]) & 0xFFFFFFFF
        v[b] = _rotate(v[b] ^ v[c], second)


IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
ROUND = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
         (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))  # fmt: skip


def blake3(data):
    """BLAKE3 of at most 1,024 bytes (one chunk), written from its specification."""
    assert len(data) <= 1024
    chain, last = list(IV), max(0, (len(data) - 1) // 64)
    for number in range(last + 1):
        block = data[number * 64 : number * 64 + 64]
        flags = (1 if number == 0 else 0) | (2 | 8 if number == last else 0)  # start, end and root
        words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
        v = chain + list(IV[:4]) + [0, 0, len(block), flags]
        for turn in range(7):
            for n, places in enumerate(ROUND):
                _mix(v, *places, words[2 * n], words[2 * n + 1])
            words = [words[i] for i in ORDER] if turn < 6 else words
        chain = [v[i] ^ v[i + 8] for i in range(8)]
    return struct.pack("<8I", *chain)


assert blake3(b"abc").hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


def newer(path):
    """Makes `config` say that only a later version may read; its checksum is right, so this is no damage."""
    data = path.read_bytes()
    head = data[:10] + struct.pack("<HHH", 999, 999, 999) + data[16:-48]
    replace(path, head + blake3(head)[:16] + data[-32:])


def wrong_ranges(truth, back):
    """Ranges in which two files differ, in blocks; the rest of the longer one is a difference, too."""
    ranges = []
    with open(truth, "rb") as a, open(back, "rb") as b:
        at = 0
        while True:
            x, y = a.read(BLOCK), b.read(BLOCK)
            if not x and not y:
                return ranges
            if x != y:
                # What is lost begins and ends anywhere: each byte is right, or zero because it was not written.
                zeros = len(x) == len(y) and all(w in (0, v) for v, w in zip(x, y, strict=True))
                if ranges and ranges[-1][1] == at and ranges[-1][2] == zeros:
                    ranges[-1] = (ranges[-1][0], at + BLOCK, zeros)
                else:
                    ranges.append((at, at + BLOCK, zeros))
            at += BLOCK


def files(top):
    """{relative path: size} of the regular files of a tree."""
    found = {}
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                found[os.path.relpath(path, top)] = status.st_size
    return found


def wrong_bytes(truth, back):
    """What a target holds that is neither right nor simply not written: a list, empty when all is well."""
    if not os.path.lexists(back):
        return []
    if os.path.isfile(back):
        pairs = [("", truth, back)]
    else:
        there = files(truth)
        found = files(back)
        extra = [f"{name} is not in the source" for name in found.keys() - there.keys()]
        if extra:
            return extra
        pairs = [(name, os.path.join(truth, name), os.path.join(back, name)) for name in found]
    wrong = []
    for name, a, b in pairs:
        if os.path.getsize(b) not in (os.path.getsize(a), 0):
            wrong.append(f"{name}: size {os.path.getsize(b)}")
        elif os.path.getsize(b):
            wrong += [f"{name}: bytes {start} to {end}" for start, end, zeros in wrong_ranges(a, b) if not zeros]
    return wrong


def joined(ranges):
    """(first, last) of what (offset, length) ranges cover together."""
    whole = []
    for offset, length in sorted(ranges):
        if whole and offset <= whole[-1][1]:
            whole[-1][1] = max(whole[-1][1], offset + length)
        else:
            whole.append([offset, offset + length])
    return whole


def lost_and_not_listed(truth, back, listed):
    """What is missing in a target although no damage was listed for it. `listed`: (path, offset, length); a length of
    None is the whole file."""
    if os.path.isfile(truth):
        pairs = [("", truth, back)]
    else:
        pairs = [(name, os.path.join(truth, name), os.path.join(back, name)) for name in files(truth)]
    missed, lost = [], 0
    for name, a, b in pairs:
        mine = [(offset, length) for path, offset, length in listed if (path or "") == name]
        if any(length is None for _, length in mine):
            lost += 1
            continue
        if not os.path.exists(b):
            # A file of which nothing is left is not made; then all of it must be listed.
            if any(offset == 0 and length >= os.path.getsize(a) for offset, length in mine):
                lost += 1
            else:
                missed.append(f"{name} is not there")
            continue
        for start, end, _ in wrong_ranges(a, b):
            lost += 1
            # Differences are found in blocks; the listed range may begin or end within one.
            if not any(first - BLOCK < start and end < last + BLOCK for first, last in joined(mine)):
                missed.append(f"{name}: bytes {start} to {end}, listed: {mine}")
    return missed, lost
