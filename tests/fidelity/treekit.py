"""What torture.py and mutate.py build with: entries made beneath a directory descriptor, with every attribute.

Paths are never handed to the kernel whole, so neither depth nor bytes of a name matter. What this machine or file
system cannot do is noted in Kit.left_out and printed at the end, never passed over in silence.
"""

import contextlib
import errno
import fcntl
import os
import random
import resource
import socket
import struct

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = (0x80086601, 0x40086602) if struct.calcsize("P") == 8 else (0x80046601, 0x40046602)
FLAGS = {"c": 0x4, "S": 0x8, "i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "D": 0x10000, "C": 0x800000}
SECOND = 10**9
# What "cannot be done here" looks like. Anything else (a full disk above all) is an error.
CANNOT = {
    errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.E2BIG, errno.ENAMETOOLONG,
    errno.ERANGE, errno.ENOTTY, errno.EOVERFLOW, errno.EMLINK, errno.EFBIG,
}  # fmt: skip


def near(fd, name):
    """A path of a few bytes for calls that take no directory descriptor; use it without following links."""
    return b"/proc/self/fd/%d/%s" % (fd, name)


def open_dir(root, path):
    """Opens a directory of any depth, path in bytes below the descriptor root."""
    fd = os.dup(root)
    for part in path.split(b"/"):
        if part:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
    return fd


def raise_open_files():
    """As many open files as are allowed: one for each directory of a deep path."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


def acl(*entries):
    """The bytes of a POSIX ACL attribute; entries are (tag, permissions) or (tag, permissions, id)."""
    tags = {"user_obj": 0x01, "user": 0x02, "group_obj": 0x04, "group": 0x08, "mask": 0x10, "other": 0x20}
    out = [struct.pack("<I", 2)]
    for tag, perm, *who in entries:
        out.append(struct.pack("<HHI", tags[tag], perm, who[0] if who else 0xFFFFFFFF))
    return b"".join(out)


def capability(permitted, effective=False, rootid=None):
    """The bytes of security.capability: version 2, or 3 with the root id of a user namespace."""
    head = (0x02000000 if rootid is None else 0x03000000) | bool(effective)
    value = struct.pack("<IIIII", head, permitted & 0xFFFFFFFF, 0, permitted >> 32, 0)
    return value if rootid is None else value + struct.pack("<I", rootid)


def set_flags(fd, letters):
    value = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, b"\0" * 8)[:4])[0]
    for letter in letters:
        value |= FLAGS[letter]
    fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", value) + b"\0" * 4)


def write_all(fd, data, pos=0):
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, pos)
        view, pos = view[done:], pos + done


def content(rng, size, kind="random"):
    if kind == "random":
        return rng.randbytes(size)
    if kind == "zero":
        return bytes(size)
    if kind == "text":
        words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(400)]
        parts, length = [], 0
        while length < size:
            line = b" ".join(rng.choices(words, k=12)) + b"\n"
            parts.append(line)
            length += len(line)
        return b"".join(parts)[:size]
    raise ValueError(kind)


class Kit:
    """The seed, what was made and what was left out."""

    def __init__(self, seed, immutable=False):
        self.seed = seed
        self.immutable = immutable
        self.root = os.geteuid() == 0
        self.left_out = {}
        self.made = 0

    def rng(self, label):
        return random.Random(f"{self.seed}/{label!r}")

    def leave_out(self, what, why):
        self.left_out.setdefault((what, why), 0)
        self.left_out[what, why] += 1

    @contextlib.contextmanager
    def attempt(self, what, *also):
        """Runs what may be impossible here; if it is, it is left out."""
        try:
            yield
        except OSError as error:
            if error.errno not in CANNOT and error.errno not in also:
                raise
            self.leave_out(what, os.strerror(error.errno))

    def needs_root(self, what):
        if not self.root:
            self.leave_out(what, "not root")
        return self.root


class Dir:
    """A directory that is being filled."""

    def __init__(self, kit, fd, path):
        self.kit, self.fd, self.path = kit, fd, path
        self.rng = kit.rng(path)

    @contextlib.contextmanager
    def dir(self, name, **attributes):
        """Makes a directory; its attributes are set when the block ends, after its children."""
        os.mkdir(name, 0o700, dir_fd=self.fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            child = Dir(self.kit, fd, self.path + b"/" + name)
            yield child
            self.finish(name, fd, {"mode": 0o755, **attributes})
        finally:
            os.close(fd)

    def empty_dir(self, name, **attributes):
        with self.dir(name, **attributes):
            pass

    def file(self, name, data=b"", write=None, **attributes):
        """A regular file with data, or with what write(fd) puts into it."""
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self.fd)
        try:
            if write:
                write(fd)
            else:
                write_all(fd, data)
            self.finish(name, fd, {"mode": 0o644, **attributes})
        finally:
            os.close(fd)

    def symlink(self, name, target, **attributes):
        with self.kit.attempt(f"symlinks with targets of {len(target)} bytes"):
            os.symlink(target, name, dir_fd=self.fd)
            self.finish(name, None, attributes)

    def fifo(self, name, **attributes):
        os.mkfifo(name, 0o600, dir_fd=self.fd)
        self.finish(name, None, {"mode": 0o644, **attributes})

    def device(self, name, kind, major, minor, **attributes):
        if not self.kit.needs_root("device nodes"):
            return
        with self.kit.attempt("device nodes"):
            os.mknod(name, 0o600 | kind, os.makedev(major, minor), dir_fd=self.fd)
            self.finish(name, None, {"mode": 0o644, **attributes})

    def socket(self, name, **attributes):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(near(self.fd, name))
        self.finish(name, None, {"mode": 0o644, **attributes})

    def link(self, source, name, to=None):
        """A hard link of source (here) called name, in the directory `to` (default: here)."""
        with self.kit.attempt("hard links of this kind"):
            os.link(source, name, src_dir_fd=self.fd, dst_dir_fd=(to or self).fd, follow_symlinks=False)
            self.kit.made += 1

    def finish(self, name, fd, attributes):
        """Sets the attributes in the one order that keeps them: owner, extended, mode, ACLs, flags, times."""
        kit, where = self.kit, near(self.fd, name)
        a = dict(attributes)
        if "owner" in a:
            owner = a.pop("owner")
            if kit.needs_root("owners"):
                with kit.attempt("owners"):
                    os.chown(name, *owner, dir_fd=self.fd, follow_symlinks=False)
        for key, value in a.pop("xattrs", {}).items():
            what = f"{key.split('.')[0]} attributes"
            if not key.startswith("user.") and not kit.needs_root(what):
                continue
            if len(value) > 2048 or len(key) > 200:
                what += f" with a name of {len(key)} and a value of {len(value)} bytes"
            with kit.attempt(what, errno.ENOSPC):
                os.setxattr(where, key, value, follow_symlinks=False)
        if "mode" in a:
            with kit.attempt("modes"):
                os.chmod(where, a.pop("mode"))
        for key in ("access", "default"):
            if key in a:
                with kit.attempt("ACLs"):
                    os.setxattr(where, f"system.posix_acl_{key}", a.pop(key), follow_symlinks=False)
            a.pop(key, None)
        letters = a.pop("flags", "")
        late = "".join(letter for letter in letters if letter in "ai")
        self._flags(fd, "".join(letter for letter in letters if letter not in "ai"))
        mtime = a.pop("mtime", None)
        if mtime is None:
            mtime = kit.rng(self.path + b"/" + name).randrange(315532800 * SECOND, 2145916800 * SECOND)
        os.utime(name, ns=(mtime, mtime), dir_fd=self.fd, follow_symlinks=False)
        if os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mtime_ns != mtime:
            kit.leave_out("exact times", f"the file system does not keep {mtime // SECOND} s")
        self._flags(fd, late)
        if a:
            raise TypeError(f"unknown attributes {a}")
        kit.made += 1

    def _flags(self, fd, letters):
        for letter in letters:
            with self.kit.attempt(f"inode flag {letter}"):
                set_flags(fd, letter)
