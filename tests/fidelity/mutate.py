"""torture.py mutate DIR: changes a small part of a tree, the same part for the same seed.

Every kind of change happens at least once where the tree has something for it; the rest is spread evenly. Deepest
paths come first, so that a renamed directory does not hide what is still to be changed below it.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import math
import os
import stat
import sys

from treekit import Kit, content, near, open_dir, raise_open_files, write_all

RENAME_NOREPLACE = 1
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2
COPY_LIMIT = 64 << 20  # larger files are not copied
LIBC = ctypes.CDLL(None, use_errno=True)

Entry = collections.namedtuple("Entry", "path name kind size links empty")


class Place:
    """One entry, with its directory open."""

    def __init__(self, fd, entry, rng, dirs, root):
        self.fd, self.entry, self.rng, self.dirs, self.root = fd, entry, rng, dirs, root
        self.name, self.near = entry.name, near(fd, entry.name)

    @contextlib.contextmanager
    def opened(self, flags=os.O_RDWR):
        fd = os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def new(self, name, data, mode=0o644):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=self.fd)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    def fresh(self):
        return b"mutated-%08x" % self.rng.getrandbits(32)

    @contextlib.contextmanager
    def elsewhere(self):
        """Another directory of the tree that is still where it was."""
        fd = open_dir(self.root, self.rng.choice(self.dirs))
        try:
            yield fd
        finally:
            os.close(fd)

    def rename(self, to_fd, to):
        """Never over something that is there."""
        done = LIBC.renameat2(self.fd, self.name, to_fd, to, RENAME_NOREPLACE)
        if done:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def overwrite(at):
    with at.opened() as fd:
        length = min(4096, at.entry.size)
        write_all(fd, at.rng.randbytes(length), at.rng.randrange(at.entry.size - length + 1))


def overwrite_quietly(at):
    before = os.stat(at.name, dir_fd=at.fd, follow_symlinks=False)
    overwrite(at)
    os.utime(at.name, ns=(before.st_atime_ns, before.st_mtime_ns), dir_fd=at.fd, follow_symlinks=False)


def append(at):
    with at.opened() as fd:
        write_all(fd, at.rng.randbytes(at.rng.randrange(1, 20000)), at.entry.size)


def truncate(at):
    with at.opened() as fd:
        os.truncate(fd, at.rng.randrange(at.entry.size))


def punch(at):
    with at.opened() as fd:
        offset = at.rng.randrange(at.entry.size // 2) // 4096 * 4096
        call = LIBC.fallocate
        call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if call(fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, offset, 16384):
            raise OSError(ctypes.get_errno(), "punching a hole")


def replace(at):
    name = at.fresh()
    at.new(name, at.rng.randbytes(min(at.entry.size, COPY_LIMIT) + 1))
    os.rename(name, at.name, src_dir_fd=at.fd, dst_dir_fd=at.fd)


def chmod(at):
    os.chmod(at.near, stat.S_IMODE(os.stat(at.name, dir_fd=at.fd).st_mode) ^ 0o011)


def chown(at):
    os.chown(at.name, at.rng.randrange(1, 70000), at.rng.randrange(1, 70000), dir_fd=at.fd, follow_symlinks=False)


def touch(at):
    ns = at.rng.randrange(2**31 * 10**9)
    os.utime(at.name, ns=(ns, ns), dir_fd=at.fd, follow_symlinks=False)


def set_attribute(at):
    os.setxattr(at.near, "user.mutated", at.rng.randbytes(20), follow_symlinks=False)


def rename(at):
    at.rename(at.fd, at.fresh())


def move(at):
    with at.elsewhere() as to:
        at.rename(to, at.fresh())


def delete(at):
    os.unlink(at.name, dir_fd=at.fd)


def file_to_directory(at):
    os.unlink(at.name, dir_fd=at.fd)
    os.mkdir(at.name, 0o755, dir_fd=at.fd)
    fd = os.open(at.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at.fd)
    try:
        Place(fd, at.entry, at.rng, at.dirs, at.root).new(b"inside", b"was a file before")
    finally:
        os.close(fd)


def file_to_symlink(at):
    os.unlink(at.name, dir_fd=at.fd)
    os.symlink(b"was-a-file", at.name, dir_fd=at.fd)


def directory_to_file(at):
    os.rmdir(at.name, dir_fd=at.fd)
    at.new(at.name, b"was a directory before")


def break_link(at):
    with at.opened(os.O_RDONLY) as fd:
        data = os.pread(fd, at.entry.size, 0)
    name = at.fresh()
    at.new(name, data)
    os.rename(name, at.name, src_dir_fd=at.fd, dst_dir_fd=at.fd)


def new_link(at):
    with at.elsewhere() as to:
        os.link(at.name, at.fresh(), src_dir_fd=at.fd, dst_dir_fd=to, follow_symlinks=False)


def retarget(at):
    os.unlink(at.name, dir_fd=at.fd)
    os.symlink(b"mutated/target-%d" % at.rng.randrange(1000), at.name, dir_fd=at.fd)


def new_file(at):
    with at.opened(os.O_RDONLY | os.O_DIRECTORY) as fd:
        Place(fd, at.entry, at.rng, at.dirs, at.root).new(at.fresh(), content(at.rng, at.rng.randrange(50000)))


def new_directory(at):
    with at.opened(os.O_RDONLY | os.O_DIRECTORY) as fd:
        name = at.fresh()
        os.mkdir(name, 0o2750, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        try:
            Place(inner, at.entry, at.rng, at.dirs, at.root).new(b"new", b"in a new directory")
        finally:
            os.close(inner)


# Each change, and what it can be done to.
FILE, FILLED = (lambda e: e.kind == "file"), (lambda e: e.kind == "file" and e.size > 0)
DIRECTORY, SYMLINK, ANY = (lambda e: e.kind == "dir"), (lambda e: e.kind == "symlink"), (lambda e: True)
COPYABLE = lambda e: e.kind == "file" and e.size <= COPY_LIMIT
CHANGES = [
    (overwrite, FILLED), (overwrite_quietly, FILLED), (append, COPYABLE), (truncate, FILLED), (replace, COPYABLE),
    (punch, lambda e: e.kind == "file" and e.size >= 65536), (chmod, lambda e: e.kind != "symlink"), (chown, ANY),
    (touch, ANY), (set_attribute, lambda e: e.kind in ("file", "dir")), (rename, ANY),
    (move, lambda e: e.kind != "dir"), (delete, lambda e: e.kind != "dir"), (file_to_directory, FILE),
    (file_to_symlink, FILE), (directory_to_file, lambda e: e.kind == "dir" and e.empty),
    (break_link, lambda e: COPYABLE(e) and e.links > 1), (new_link, lambda e: e.kind != "dir"), (retarget, SYMLINK),
    (new_file, DIRECTORY), (new_directory, DIRECTORY),
]  # fmt: skip


def listing(root, kit):
    """All entries below the descriptor root, deepest last."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink"}
    found = []
    stack = [(os.dup(root), b"", None)]
    while stack:
        fd, path, below = stack.pop()
        if below is None:
            below = []
            for name in sorted(map(os.fsencode, os.listdir(fd))):
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                kind = kinds.get(stat.S_IFMT(st.st_mode), "other")
                empty = False
                if kind == "dir":
                    try:
                        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                    except PermissionError:
                        kit.leave_out("directories that cannot be read", "permission denied")
                        continue
                    empty = not os.listdir(inner)
                    os.close(inner)
                    below.append(name)
                found.append(Entry(path, name, kind, st.st_size, st.st_nlink, empty))
        if below:
            name = below.pop()
            stack.append((fd, path, below))
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            stack.append((inner, path + b"/" + name, None))
        else:
            os.close(fd)
    return found


def choose(entries, kit, percent):
    """Pairs of a change and an entry, at most one change for each entry."""
    rng = kit.rng("choose")
    count = max(math.ceil(len(entries) * percent / 100), len(CHANGES))
    order = rng.sample(entries, len(entries))
    used, chosen = set(), []
    cursors = [iter(order) for _ in CHANGES]
    idle = 0
    while len(chosen) < count and idle < len(CHANGES):
        for (change, fits), cursor in zip(CHANGES, cursors):
            entry = next((e for e in cursor if fits(e) and (e.path, e.name) not in used), None)
            idle = idle + 1 if entry is None else 0
            if entry is not None:
                used.add((entry.path, entry.name))
                chosen.append((change, entry))
            if len(chosen) >= count or idle >= len(CHANGES):
                break
    return sorted(chosen, key=lambda pair: (-pair[1].path.count(b"/"), pair[1].path, pair[1].name))


def mutate(path, kit, percent, verbose):
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    entries = listing(root, kit)
    dirs = sorted({e.path for e in entries if len(e.path) < 1000})
    done = collections.Counter()
    for change, entry in choose(entries, kit, percent):
        what = change.__name__.replace("_", " ")
        if change is chown and not kit.needs_root("chown"):
            continue
        # An entry may be gone by an earlier change, or its directory moved: counted, not an error.
        with kit.attempt(what, errno.ENOENT, errno.EEXIST, errno.ENOTDIR):
            fd = open_dir(root, entry.path)
            try:
                change(Place(fd, entry, kit.rng((entry.path, entry.name)), dirs, root))
            finally:
                os.close(fd)
            done[what] += 1
            if verbose:
                print(what, repr(entry.path + b"/" + entry.name)[2:-1])
    os.close(root)
    os.sync()
    return done, len(entries)


def main(argv):
    parser = argparse.ArgumentParser(prog="torture.py mutate", description=__doc__)
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--percent", type=float, default=2.0, help="of the entries (default: 2)")
    parser.add_argument("--verbose", action="store_true", help="print every change")
    options = parser.parse_args(argv)
    os.umask(0)
    raise_open_files()
    kit = Kit(options.seed)
    try:
        done, total = mutate(options.dir, kit, options.percent, options.verbose)
    except OSError as error:
        print(f"torture: error: {error}", file=sys.stderr)
        return 2
    print(f"changed {sum(done.values())} of {total} entries in {options.dir} (seed {options.seed}): "
          + ", ".join(f"{what} {count}" for what, count in sorted(done.items())))  # fmt: skip
    for (what, why), count in sorted(kit.left_out.items()):
        print(f"left out: {what} ({why}){f', {count} times' if count > 1 else ''}")
    return 0
