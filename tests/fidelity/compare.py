#!/usr/bin/env python3
"""Compares two directory trees, bit for bit and attribute for attribute. It shares no code with Tradewind.

    compare.py A B [--ignore KIND,...] [--exclude PATTERN] [--no-owner] [--no-privileged] [--one-file-system]

A is what was backed up, B what was restored. Links are never followed. Compared are, by these kinds:

    missing extra type     names that only one side has; what they are
    content size target    bytes of regular files (streamed), target of symbolic links
    mode owner mtime       of everything, directories and symbolic links too; mtime to the nanosecond
    rdev                   of device nodes
    xattr acl              every extended attribute that can be listed; those that hold POSIX ACLs
    links                  names that are one inode on one side are one inode on the other
    holes                  every hole of A of at least one file-system block is a hole in B (more holes are no
                           difference; the allocated sizes are reported)
    flags                  inode flags a user can set (chattr dASDai, on btrfs cC too), where both sides have them
    unreadable             what could not be read, on either side

Exit status: 0 identical, 1 different, 2 could not compare. Memory does not grow with the number of files: listings
are sorted on disk when they are long, hard links are kept in a temporary database. Paths are walked by descriptor, so
their length does not matter. Standard library only.
"""

import argparse
import collections
import errno
import fcntl
import fnmatch
import heapq
import json
import os
import sqlite3
import stat
import struct
import sys
import tempfile

BLOCK = 1 << 20  # read at a time
SPILL = 50_000  # names of one directory that are sorted in memory
KEEP_OPEN = 64  # directories of one path that stay open
KINDS = (
    "missing extra type content size target mode owner mtime rdev xattr acl links holes flags unreadable"
).split()
ACLS = ("system.posix_acl_access", "system.posix_acl_default")
FS_IOC_GETFLAGS = 0x80086601 if struct.calcsize("P") == 8 else 0x80046601
FLAGS = {"S": 0x8, "i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "D": 0x10000}
FLAGS_BTRFS = {"c": 0x4, "C": 0x800000}
TYPES = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket",
}  # fmt: skip


def show(path):
    """A path as one printable line, whatever its bytes are."""
    if len(path) > 400:
        return f"{show(path[:150])} ... {len(path) - 300} more ... {show(path[-150:])}"
    text = path.decode("utf-8", "surrogateescape") if isinstance(path, bytes) else path
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    escaped = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return '"' + "".join(c if c.isprintable() and c != '"' else repr(c)[1:-1] for c in escaped) + '"'


def sorted_names(fd):
    """The names in a directory as bytes, sorted; in bounded memory."""
    names, runs = [], []
    with os.scandir(fd) as entries:
        for entry in entries:
            names.append(os.fsencode(entry.name))
            if len(names) >= SPILL:
                runs.append(_spilled(names))
                names = []
    names.sort()
    return iter(names) if not runs else heapq.merge(names, *runs)


def _spilled(names):
    names.sort()
    run = tempfile.TemporaryFile()
    run.write(b"\0".join(names) + b"\0")
    run.seek(0)

    def read():
        rest = b""
        with run:
            while block := run.read(1 << 16):
                *whole, rest = (rest + block).split(b"\0")
                yield from whole

    return read()


def seek(fd, pos, how, size):
    """SEEK_DATA and SEEK_HOLE, where the end of the file counts as both."""
    try:
        return min(os.lseek(fd, pos, how), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # no such thing here: all is data
            return pos if how == os.SEEK_DATA else size
        raise


def pread(fd, length, pos):
    parts = []
    while length:
        part = os.pread(fd, length, pos)
        if not part:
            break
        parts.append(part)
        pos += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def mount_id(fd):
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    return None


class HardLinks:
    """Which inode of A stands for which of B; kept on disk, since there may be millions."""

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile(prefix="compare-", suffix=".sqlite")
        self.db = sqlite3.connect(self.file.name, isolation_level=None)
        for pragma in ("journal_mode=off", "synchronous=off", "locking_mode=exclusive", "cache_size=-16384"):
            self.db.execute("PRAGMA " + pragma)
        for side in "ab":
            self.db.execute(f"CREATE TABLE {side} (inode BLOB PRIMARY KEY, other BLOB, path BLOB) WITHOUT ROWID")
        self.db.execute("BEGIN")

    def pair(self, a, b, path):
        """Notes that path is inode a here and b there. Returns the earlier path that contradicts, with the side
        that links them, or (None, seen before)."""
        a, b = (struct.pack("QQ", s.st_dev, s.st_ino) for s in (a, b))
        seen = False
        for side, inode, other in (("a", a, b), ("b", b, a)):
            row = self.db.execute(f"SELECT other, path FROM {side} WHERE inode = ?", (inode,)).fetchone()
            if row is None:
                self.db.execute(f"INSERT INTO {side} VALUES (?, ?, ?)", (inode, other, path))
            elif row[0] != other:
                return (side.upper(), row[1]), False
            else:
                seen = True
        return None, seen


class Frame:
    """One directory that is being walked, on both sides."""

    __slots__ = ("path", "fds", "inodes", "names")

    def __init__(self, path, fds, names):
        self.path, self.fds, self.names = path, list(fds), names
        self.inodes = [_inode(fd) if fd is not None else None for fd in fds]


def _inode(fd):
    st = os.fstat(fd)
    return st.st_dev, st.st_ino


class Comparison:
    def __init__(self, options):
        self.options = options
        self.ignored = set(options.ignore)
        self.found = collections.Counter()
        self.notes = collections.Counter()
        self.entries = self.bytes = self.printed = 0
        self.allocated = [0, 0]
        self.links = HardLinks()
        self.roots = [None, None]  # mount id and device of each side

    def differ(self, kind, path, what):
        if kind in self.ignored:
            return
        self.found[kind] += 1
        if self.printed < self.options.limit:
            self.printed += 1
            print(f"{kind:<8} {show(path or b'.')}: {what}")
        elif self.printed == self.options.limit:
            self.printed += 1
            print(f"... more than {self.options.limit} differences, the rest is only counted (--limit)")

    def excluded(self, path, name):
        return any(fnmatch.fnmatchcase(path if b"/" in p else name, p) for p in self.options.exclude)

    # --- the walk

    def run(self, a, b):
        fds = [os.open(root, os.O_RDONLY | os.O_DIRECTORY) for root in (a, b)]
        self.roots = [(mount_id(fd), os.fstat(fd).st_dev) for fd in fds]
        self.block = max(os.fstatvfs(fd).f_bsize for fd in fds)
        stats = [os.fstat(fd) for fd in fds]
        self.entries += 1
        self.attributes(b"", stats, [f"/proc/self/fd/{fd}/." for fd in fds])
        self.flags(b"", fds)
        stack = [self.open_frame(b"", fds)]
        while stack:
            frame = stack[-1]
            pair = next(frame.names, None)
            if pair is None:
                self.leave(stack)
                continue
            child = self.entry(frame, *pair)
            if child:
                stack.append(child)
                if len(stack) > KEEP_OPEN:
                    self.close(stack[-KEEP_OPEN])

    def leave(self, stack):
        done = stack.pop()
        if stack and None in stack[-1].fds:  # it was closed on the way down
            parent = stack[-1]
            parent.fds = [os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd) for fd in done.fds]
            if [_inode(fd) for fd in parent.fds] != parent.inodes:
                raise OSError(errno.ESTALE, "the tree is being changed: it moved during the comparison", done.path)
        self.close(done)

    @staticmethod
    def close(frame):
        for side, fd in enumerate(frame.fds):
            if fd is not None:
                os.close(fd)
                frame.fds[side] = None

    def open_frame(self, path, fds):
        return Frame(path, fds, self.merged([self.names(side, fd) for side, fd in enumerate(fds)]))

    def names(self, side, fd):
        if self.options.one_file_system and (mount_id(fd), os.fstat(fd).st_dev) != self.roots[side]:
            self.notes[f"mount points in {'AB'[side]} (taken as empty directories)"] += 1
            return iter(())
        return sorted_names(fd)

    @staticmethod
    def merged(sides):
        """(name, in A, in B) in order."""
        a, b = (next(side, None) for side in sides)
        while a is not None or b is not None:
            if b is None or (a is not None and a < b):
                yield a, True, False
                a = next(sides[0], None)
            elif a is None or b < a:
                yield b, False, True
                b = next(sides[1], None)
            else:
                yield a, True, True
                a, b = (next(side, None) for side in sides)

    def entry(self, frame, name, in_a, in_b):
        """Compares one name; returns a frame if it is a directory on both sides."""
        path = frame.path + b"/" + name if frame.path else name
        if self.options.exclude and self.excluded(path, name):
            self.notes["excluded"] += 1
            return None
        self.entries += 1
        stats = [
            os.stat(name, dir_fd=fd, follow_symlinks=False) if there else None
            for fd, there in zip(frame.fds, (in_a, in_b))
        ]
        kinds = [TYPES.get(stat.S_IFMT(s.st_mode), "?") if s else None for s in stats]
        if not in_b and kinds[0].endswith("device") and self.options.no_privileged:
            self.notes["device nodes left out"] += 1
        elif not in_b:
            self.differ("missing", path, f"{kinds[0]}, only in A")
        elif not in_a:
            self.differ("extra", path, f"{kinds[1]}, only in B")
        elif kinds[0] != kinds[1]:
            self.differ("type", path, f"{kinds[0]} in A, {kinds[1]} in B")
        else:
            return self.same_type(frame, path, name, kinds[0], stats)
        return None

    def same_type(self, frame, path, name, kind, stats):
        near = [os.path.join(b"/proc/self/fd/%d" % fd, name) for fd in frame.fds]
        try:
            self.attributes(path, stats, near)
            again = False
            if kind != "directory":
                for side in (0, 1):
                    self.allocated[side] += stats[side].st_blocks * 512
                if stats[0].st_nlink > 1 or stats[1].st_nlink > 1:
                    again = self.hard_link(path, stats)
            if kind == "file" and not again:
                self.file(path, name, frame.fds, stats)
            elif kind == "symlink":
                targets = [os.readlink(name, dir_fd=fd) for fd in frame.fds]
                if targets[0] != targets[1]:
                    self.differ("target", path, f"to {show(targets[0])} in A, to {show(targets[1])} in B")
            elif kind.endswith("device") and stats[0].st_rdev != stats[1].st_rdev:
                numbers = [f"{os.major(s.st_rdev)}:{os.minor(s.st_rdev)}" for s in stats]
                self.differ("rdev", path, f"{numbers[0]} in A, {numbers[1]} in B")
            elif kind == "directory":
                fds = self.open_both(name, frame.fds, os.O_DIRECTORY)
                try:
                    self.flags(path, fds)
                    return self.open_frame(path, fds)
                except OSError:
                    for fd in fds:
                        os.close(fd)
                    raise
        except OSError as error:
            self.differ("unreadable", path, f"{kind}: {error.strerror}")
        return None

    @staticmethod
    def open_both(name, fds, extra):
        flags = os.O_RDONLY | os.O_NOFOLLOW | extra
        opened = []
        try:
            for fd in fds:
                try:
                    opened.append(os.open(name, flags | os.O_NOATIME, dir_fd=fd))
                except PermissionError:  # O_NOATIME is for the owner alone
                    opened.append(os.open(name, flags, dir_fd=fd))
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    # --- what is compared

    def attributes(self, path, stats, near):
        a, b = stats
        mask = 0o1777 if self.options.no_privileged else 0o7777
        if (a.st_mode ^ b.st_mode) & mask:
            self.differ("mode", path, f"{a.st_mode & mask:04o} in A, {b.st_mode & mask:04o} in B")
        if not self.options.no_owner and (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid):
            self.differ("owner", path, f"{a.st_uid}:{a.st_gid} in A, {b.st_uid}:{b.st_gid} in B")
        if a.st_mtime_ns != b.st_mtime_ns:
            times = ["%d.%09d" % divmod(s.st_mtime_ns, 10**9) for s in stats]
            self.differ("mtime", path, f"{times[0]} in A, {times[1]} in B")
        lists = [self.xattrs(where) for where in near]
        if lists[0] == lists[1]:
            return
        for key in sorted(lists[0].keys() | lists[1].keys()):
            values = [each.get(key) for each in lists]
            if values[0] != values[1]:
                texts = ["absent" if v is None else f"{len(v)} bytes {v[:24].hex()}" for v in values]
                self.differ("acl" if key in ACLS else "xattr", path, f"{show(key)} {texts[0]} in A, {texts[1]} in B")

    def xattrs(self, near):
        try:
            names = os.listxattr(near, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return {}
            raise
        found = {}
        for name in names:
            if self.options.no_privileged and name.startswith(("trusted.", "security.")):
                continue
            if not any(fnmatch.fnmatchcase(name, p) for p in self.options.ignore_xattr):
                found[name] = os.getxattr(near, name, follow_symlinks=False)
        return found

    def hard_link(self, path, stats):
        """Whether these very inodes were compared before."""
        clash, seen = self.links.pair(*stats, path)
        if clash:
            side, earlier = clash
            other = "B" if side == "A" else "A"
            self.differ("links", path, f"one inode with {show(earlier)} in {side}, not in {other}")
        return seen

    def flags(self, path, fds):
        if "flags" in self.ignored:
            return
        values = []
        for fd in fds:
            try:
                raw = fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8)
            except OSError:
                self.notes["without inode flags on one side or both"] += 1
                return
            values.append(struct.unpack("=I", raw[:4])[0])
        known = dict(FLAGS)
        if self.options.btrfs_flags:
            known.update(FLAGS_BTRFS)
        texts = ["".join(c for c, bit in known.items() if value & bit) or "none" for value in values]
        if texts[0] != texts[1]:
            self.differ("flags", path, f"{texts[0]} in A, {texts[1]} in B")

    def file(self, path, name, dirs, stats):
        sizes = [s.st_size for s in stats]
        fds = self.open_both(name, dirs, os.O_NONBLOCK)
        try:
            self.flags(path, fds)
            if sizes[0] != sizes[1]:
                self.differ("size", path, f"{sizes[0]} in A, {sizes[1]} in B")
            elif sizes[0]:
                self.content(path, fds, sizes[0])
                self.holes(path, fds, sizes[0])
        finally:
            for fd in fds:
                os.close(fd)

    def content(self, path, fds, size):
        if "content" in self.ignored:
            return
        self.bytes += size
        pos = 0
        while pos < size:
            # Where both have a hole there is nothing to read.
            pos = min(seek(fd, pos, os.SEEK_DATA, size) for fd in fds) if size > BLOCK else pos
            length = min(BLOCK, size - pos)
            a, b = (pread(fd, length, pos) for fd in fds)
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
                self.differ("content", path, f"first difference at byte {pos + at} of {size}")
                return
            pos += length

    def holes(self, path, fds, size):
        pos = seek(fds[0], 0, os.SEEK_HOLE, size)
        lost = lost_bytes = first = 0
        while pos < size:
            end = seek(fds[0], pos, os.SEEK_DATA, size)
            start = -(-pos // self.block) * self.block
            stop = end if end == size else end // self.block * self.block
            if end - pos >= self.block and start < stop:
                data = seek(fds[1], start, os.SEEK_DATA, size)
                if data < stop:
                    first = data if not lost else first
                    lost += 1
                    while data < stop:
                        upto = min(seek(fds[1], data, os.SEEK_HOLE, size), stop)
                        lost_bytes += upto - data
                        data = seek(fds[1], upto, os.SEEK_DATA, size)
            pos = seek(fds[0], end, os.SEEK_HOLE, size)
        if lost:
            self.differ("holes", path, f"{lost} holes of A are data in B, {lost_bytes} bytes, first at {first}")

    # --- the result

    def report(self):
        total = sum(self.found.values())
        if self.options.json:
            print(json.dumps({
                "identical": not total, "differences": total, "kinds": dict(self.found), "entries": self.entries,
                "bytes": self.bytes, "allocated": self.allocated, "notes": dict(self.notes),
            }))  # fmt: skip
            return
        print(f"compared {self.entries} entries, {self.bytes} bytes of content; "
              f"allocated {self.allocated[0]} in A, {self.allocated[1]} in B")  # fmt: skip
        for note, count in sorted(self.notes.items()):
            print(f"{note}: {count}")
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.found.most_common())
        print(f"DIFFERENT: {total} differences ({kinds})" if total else "identical")


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--ignore", metavar="KIND,...", action="append", default=[],
                        help="leave kinds of difference out; xattr:PATTERN for single attributes")  # fmt: skip
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[],
                        help="leave names out: a shell pattern for the name, or with / for the whole path")  # fmt: skip
    parser.add_argument("--no-owner", action="store_true", help="owners may differ")
    parser.add_argument("--no-privileged", action="store_true",
                        help="B was restored without root: owners, setuid and setgid, device nodes, trusted and "
                        "security attributes are left out")  # fmt: skip
    parser.add_argument("--one-file-system", action="store_true", help="mount points are taken as empty directories")
    parser.add_argument("--btrfs-flags", action="store_true", help="compare chattr's c and C, too")
    parser.add_argument("--limit", type=int, default=50, help="differences to print (default: 50)")
    parser.add_argument("--json", action="store_true", help="the summary as one JSON object, on the last line")
    options = parser.parse_args(argv)
    options.no_owner |= options.no_privileged
    ignore = [kind for each in options.ignore for kind in each.split(",")]
    options.ignore_xattr = [kind[len("xattr:") :] for kind in ignore if kind.startswith("xattr:")]
    options.ignore = [kind for kind in ignore if not kind.startswith("xattr:")]
    options.exclude = [os.fsencode(pattern) for pattern in options.exclude]
    if unknown := set(options.ignore) - set(KINDS):
        parser.error(f"--ignore: unknown kind {', '.join(sorted(unknown))} (known: {' '.join(KINDS)})")
    return options


def main(argv=None):
    options = arguments(argv)
    comparison = Comparison(options)
    try:
        comparison.run(options.a, options.b)
    except OSError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    comparison.report()
    return 1 if comparison.found else 0


if __name__ == "__main__":
    sys.exit(main())
