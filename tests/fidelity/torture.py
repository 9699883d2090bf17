#!/usr/bin/env python3
"""Makes a directory tree that holds everything a backup can get wrong, or changes a part of it.

    torture.py DIR [--seed N] [--scale small|full] [--immutable]     DIR absent or empty
    torture.py mutate DIR [--seed N] [--percent 2]                   DIR as made before, or any other tree

The same seed makes the same tree. As root it is complete; what cannot be made here (not root, or the file system does
not have it) is listed at the end. Scale small is about 3,000 entries and 25 MB; full about 20,000 and 250 MB.
Standard library only.
"""

import argparse
import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys

import mutate
from treekit import SECOND, Dir, Kit, acl, capability, content, near, raise_open_files, write_all

BASE = [("user_obj", 7), ("group_obj", 5), ("other", 0)]


def named_acl(uid=1234, gid=4321, mask=7):
    return acl(("user_obj", 6), ("user", 5, uid), ("user", 0, 65534), ("group_obj", 4), ("group", 2, gid),
               ("mask", mask), ("other", 1))  # fmt: skip


def owners(top, full):
    ids = [0, 1, 1000, 65534, 65536, 100000, 2**31 - 1, 2**31, 2**32 - 2]
    with top.dir(b"owners", owner=(1000, 1001)) as d:
        for uid in ids:
            d.file(b"file-%d" % uid, b"%d" % uid, owner=(uid, ids[-1 - ids.index(uid)]), mode=0o640)
            d.symlink(b"link-%d" % uid, b"file-%d" % uid, owner=(uid, 7))
            d.empty_dir(b"dir-%d" % uid, owner=(7, uid), mode=0o750)
        d.fifo(b"fifo", owner=(3, 4))
        d.socket(b"socket", owner=(5, 6))
        d.file(b"setuid-of-other", b"x", owner=(1000, 1000), mode=0o6755)


def modes(top, full):
    readable = [m for m in range(0o10000) if m & 0o400]
    with top.dir(b"modes") as d:
        chosen = {
            0o400,
            0o444,
            0o600,
            0o644,
            0o755,
            0o777,
            0o4755,
            0o2755,
            0o6755,
            0o1777,
            0o7777,
            0o4644,
            0o2644,
        }
        chosen |= set(d.rng.sample(readable, 40))
        for mode in sorted(chosen):
            d.file(b"file-%04o" % mode, b"%o" % mode, mode=mode)
        for mode in (0o700, 0o755, 0o1777, 0o2775, 0o3777, 0o7777, 0o6700, 0o500, 0o1555):
            with d.dir(b"dir-%04o" % mode, mode=mode) as inner:
                inner.file(b"file", b"in a directory of mode %o" % mode)
                inner.empty_dir(b"plain", mode=0o755)  # must not inherit the setgid bit when restored
        for mode in (0o000, 0o001, 0o010, 0o200, 0o111):
            if d.kit.needs_root("files and directories that their owner cannot read"):
                d.file(b"file-%04o" % mode, b"closed", mode=mode)
                with d.dir(b"dir-%04o" % mode, mode=mode) as inner:
                    inner.file(b"inside", b"in a closed directory", mode=mode)
                    inner.empty_dir(b"below", mode=mode)


def times(top, full):
    exact = {
        b"zero": 0, b"one": 1, b"before-1970": -1, b"1969": -12345 * SECOND - 1, b"1901": -(2**31) * SECOND,
        b"1901-ns": -(2**31) * SECOND + 999999999, b"ns-1": 1700000000 * SECOND + 1,
        b"ns-last": 1700000000 * SECOND + 999999999, b"2038": (2**31 - 1) * SECOND, b"2038-after": 2**31 * SECOND + 1,
        b"2106-after": 2**32 * SECOND + 5, b"2400": 13569465600 * SECOND + 123456789,
    }  # fmt: skip
    with top.dir(b"times", mtime=999999999) as d:
        for name, mtime in exact.items():
            d.file(b"file-" + name, name, mtime=mtime)
            d.symlink(b"link-" + name, b"file-" + name, mtime=mtime)
            with d.dir(b"dir-" + name, mtime=mtime) as inner:
                inner.file(b"child", b"must not touch its parent's time", mtime=mtime + 1)
            d.fifo(b"fifo-" + name, mtime=mtime)


def symlinks(top, full):
    with top.dir(b"symlinks") as d:
        for name, target in {
            b"dangling": b"nowhere/at/all", b"absolute": b"/etc/hostname", b"up": b"../../../..", b"self": b"self",
            b"loop-a": b"loop-b", b"loop-b": b"loop-a", b"dot": b".", b"slash": b"/", b"trailing": b"trailing/",
            b"to-dir": b"../times", b"newline": b"a\nb", b"bytes": b"\xff\xfe\x80", b"spaces": b"  ", b"quote": b"'\"\\",
            b"escape": b"../../../../../../../etc/passwd",
        }.items():  # fmt: skip
            d.symlink(name, target)
        for length in (1, 59, 60, 61, 255, 256, 1000, 1023, 1024, 4000, 4094, 4095):
            d.symlink(b"long-%d" % length, (b"t/" * length)[: length - 1] + b"x")
        d.symlink(b"with-attribute", b"dangling", xattrs={"trusted.on-a-symlink": b"yes"}, owner=(12, 34))


def hard_links(top, full):
    with top.dir(b"hard-links") as d:
        with d.dir(b"a") as a, d.dir(b"b") as b:
            d.file(b"plain", content(d.rng, 10000), xattrs={"user.shared": b"1"}, mode=0o4711, owner=(1000, 1000))
            d.link(b"plain", b"plain-again")
            d.link(b"plain", b"across", to=a)
            d.link(b"plain", b"across", to=b)
            d.file(b"empty")
            d.link(b"empty", b"empty-again", to=b)
            d.file(b"large", content(d.rng, (3 << 20) + 17))
            d.link(b"large", b"0-before-it-in-order", to=a)
            d.file(b"sparse", write=lambda fd: (os.truncate(fd, 1 << 20), write_all(fd, b"x" * 4096, 65536)))
            d.link(b"sparse", b"sparse", to=a)
            d.symlink(b"symlink", b"plain")
            d.link(b"symlink", b"symlink-again", to=b)
            d.fifo(b"fifo")
            d.link(b"fifo", b"fifo-again", to=a)
            d.socket(b"socket")
            d.link(b"socket", b"socket-again", to=a)
            d.device(b"device", stat.S_IFCHR, 1, 3)
            if os.path.lexists(near(d.fd, b"device")):
                d.link(b"device", b"device-again", to=b)
            # Equal bytes, but no link: must not become one.
            d.file(b"equal-1", b"the same bytes", mtime=SECOND)
            d.file(b"equal-2", b"the same bytes", mtime=SECOND)
            with d.dir(b"many") as many:
                many.file(b"name-0", b"one inode, many names")
                for i in range(1, 2000 if full else 100):
                    many.link(b"name-0", b"name-%d" % i, to=(a, many, b)[i % 3])


def sparse(top, full):
    size = 1 << 20

    def shape(length, *data):
        def write(fd):
            os.truncate(fd, length)
            for pos, count in data:
                write_all(fd, b"\x5a" * count, pos)

        return write

    def preallocated(fd):
        os.posix_fallocate(fd, 0, size)
        write_all(fd, b"\xa5" * 4096, 8192)

    with top.dir(b"sparse") as d:
        shapes = {
            b"leading": shape(size, (size - 4096, 4096)), b"trailing": shape(size, (0, 4096)),
            b"middle": shape(size, (0, 4096), (size - 4096, 4096)), b"hole-only": shape(size),
            b"hole-only-large": shape(1 << 34), b"hole-only-1": shape(1), b"hole-only-4095": shape(4095),
            b"hole-only-4097": shape(4097), b"tiny-tail": shape(5000, (4096, 904)), b"tiny-head": shape(5000, (0, 100)),
            b"unaligned": shape(size + 333, (5000, 3), (300000, 70000), (size + 332, 1)),
            b"far-apart": shape((1 << 33) + 512, (0, 1), (1 << 32, 4096), ((1 << 33) + 511, 1)),
            b"many-holes": shape(4 << 20, *((pos, 4096) for pos in range(0, 4 << 20, 8192))),
            b"many-small": shape(size, *((pos, 1) for pos in range(100, size, 16384))),
            b"long-holes": shape(64 << 20, *((pos, 65536) for pos in range(0, 64 << 20, 4 << 20))),
            b"preallocated": preallocated,
        }  # fmt: skip
        for name, write in shapes.items():
            with d.kit.attempt(f"a sparse file ({name.decode()})"):
                d.file(name, write=write)
        d.file(b"zeros-not-sparse", bytes(size))


def xattrs(top, full):
    with top.dir(b"xattrs", xattrs={"user.on-a-directory": b"d", "trusted.dir": b"\0\xff"}) as d:
        d.file(
            b"user",
            b"u",
            xattrs={
                "user.empty": b"",
                "user.text": b"value",
                "user.nul": b"\0a\0",
                "user.bin": bytes(range(256)),
            },
        )
        d.file(b"trusted", b"t", xattrs={"trusted.tradewind": b"only root sees this"})
        d.file(
            b"names",
            b"n",
            xattrs={
                "user." + "n" * 250: b"longest name",
                "user.sp ace\n": b"1",
                "user.\udcff\udc80": b"bytes",
            },
        )
        d.file(b"many", b"m", xattrs={f"user.attribute-{i:03}": b"v%d" % i for i in range(40)})
        for length in (255, 1024, 3000, 4096, 16000, 65536):  # one is too long almost everywhere
            d.file(b"value-%d" % length, b"v", xattrs={"user.value": content(d.rng, length)})
        d.file(b"read-only", b"r", mode=0o444, xattrs={"user.on-read-only": b"1"})
        d.file(b"empty-file", xattrs={"user.on-empty": b"1"})
        d.fifo(b"fifo", xattrs={"trusted.on-a-fifo": b"1"})
        d.device(b"device", stat.S_IFCHR, 1, 5, xattrs={"trusted.on-a-device": b"1"})
        net_bind, net_raw = 1 << 10, 1 << 13
        d.file(
            b"capability",
            b"#!",
            mode=0o755,
            owner=(1000, 1000),
            xattrs={"security.capability": capability(net_bind, True)},
        )
        d.file(
            b"capability-v3",
            b"#!",
            mode=0o755,
            xattrs={"security.capability": capability(net_raw, rootid=100000)},
        )
        d.file(b"setcap", b"#!", mode=0o755)
        tool = shutil.which("setcap", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if d.kit.needs_root("setcap") and tool:
            target = f"/proc/{os.getpid()}/fd/{d.fd}/setcap"
            done = subprocess.run([tool, "cap_net_raw,cap_chown=ep", target], capture_output=True, text=True)
            if done.returncode:
                d.kit.leave_out("setcap", done.stderr.strip())


def acls(top, full):
    default = acl(("user_obj", 7), ("user", 7, 1234), ("group_obj", 5), ("group", 5, 4321), ("mask", 7), ("other", 0))
    with top.dir(b"acls") as d:
        d.file(b"access", b"a", access=named_acl())
        d.file(b"mask-narrow", b"a", access=named_acl(mask=0))
        d.file(b"with-setuid", b"a", mode=0o4755, access=named_acl(mask=5))
        d.file(b"with-all", b"a", owner=(1000, 1000), access=named_acl(), xattrs={"user.too": b"1"})
        d.file(b"many", b"a", access=acl(("user_obj", 7), *(("user", i % 8, 5000 + i) for i in range(20)),
                                         ("group_obj", 1), ("mask", 7), ("other", 0)))  # fmt: skip
        d.empty_dir(b"default-only", default=default)
        d.empty_dir(b"default-minimal", default=acl(*BASE))
        d.empty_dir(b"both", access=named_acl(), default=default, mode=0o2770)
        with d.dir(b"default-with-children", default=default) as inner:
            # Made before the default ACL is there, so they have none; a restore must not let them inherit it.
            inner.file(b"file-without", b"plain")
            inner.empty_dir(b"dir-without")
            inner.fifo(b"fifo-without")
            inner.file(b"file-with", b"x", access=named_acl(uid=77))
        d.fifo(b"fifo", access=named_acl())


def special(top, full):
    with top.dir(b"special") as d:
        d.fifo(b"fifo")
        d.socket(b"socket")
        d.socket(b"sock\xffet\n")
        for major, minor in ((0, 0), (1, 3), (7, 200), (8, 1), (255, 255), (4095, 1048575)):
            d.device(b"char-%d-%d" % (major, minor), stat.S_IFCHR, major, minor, mode=0o666)
            d.device(b"block-%d-%d" % (major, minor), stat.S_IFBLK, major, minor, mode=0o660, owner=(0, 6))


def names(top, full):
    odd = [
        b"-", b"--", b"-rf", b"--help", b"...", b"..x", b".hidden", b" ", b" lead", b"trail ", b"new\nline", b"\n",
        b"tab\t", b"cr\r", b"quote'", b'double"', b"back\\slash", b"\\n", b"*", b"?", b"[a]", b"{a,b}", b"$(id)", b"`id`",
        b"$HOME", b"%s%n%d", b"~", b"#", b"&", b";", b"|", b"<>", b"!", b"\x7f", b"\x1b[31m", b"\xff\xfe", b"\xc3\x28",
        b"\xed\xa0\x80", "é".encode(), "e\u0301".encode(), "日本語".encode(), "\u202eabc".encode(), "😀".encode(), b"A", b"a",
        b"CON", b"nul.txt", b"x" * 255, b"\xfe" * 255, "é".encode() * 127, b"y" * 254 + b"\n", b"@GMT-2000", b"core", b"a:b",
    ]  # fmt: skip
    with top.dir(b"names") as d:
        for name in odd:
            with d.kit.attempt("some odd names", errno.EILSEQ):
                d.file(name, b"named " + name)
        with d.dir(b"every-byte") as each:
            for byte in range(1, 256):
                if byte != 0x2F and byte != 0x2E:
                    with d.kit.attempt("some names of one byte", errno.EILSEQ):
                        each.file(bytes([byte]), bytes([byte]))
        with d.dir(b"dirs") as dirs:
            for name in odd[:40:3] + [b"z" * 255]:
                with dirs.dir(name) as inner:
                    inner.file(name, b"in a directory of that name")
        with d.dir(b"order") as order:  # where '/' sorts among the bytes decides; components must be compared
            for name in (b"a", b"b", b"ab"):
                with order.dir(name) as inner:
                    inner.file(b"child", name)
            for name in (b"a!", b"a-", b"a.", b"a.b", b"a0", b"a b", b"aa", b"b\x01", b"b\xff"):
                order.file(name, name)


def deep(top, full):
    """Paths of 4,000 bytes below the root of the tree: of long names, and of one-byte names (2,000 directories)."""

    def descend(d, name, left):
        with contextlib.ExitStack() as stack:
            here, depth = d, 0
            while left > 256:
                here, depth = stack.enter_context(here.dir(name)), depth + 1
                left -= len(name) + 1
            here.file(b"f" * (left - 1), b"at the end of %d directories" % depth)
            here.symlink(b"s", b"up")
            here.empty_dir(b"e")

    with top.dir(b"deep") as d:
        descend(d, b"n" * 200, 4000 - len(b"deep"))
        if raise_open_files() > 2500:
            descend(d, b"d", 4000 - len(b"deep"))
        else:
            d.kit.leave_out("a path of 1,870 directories", "too few open files allowed")


def sizes(top, full):
    around = [512, 4096, 8192, 16384, 65536, 131072, 256 << 10, 512 << 10, 1 << 20, 4 << 20]
    all_sizes = {0, 1, 2, 100, 511, 513, 5 << 20, (256 << 10) + 512}
    for size in around:
        all_sizes |= {size - 1, size, size + 1}
    if not full:
        all_sizes -= {(4 << 20) - 1, (4 << 20) + 1}
    with top.dir(b"sizes") as d:
        for size in sorted(all_sizes):
            d.file(b"size-%d" % size, content(d.rng, size))


def contents(top, full):
    with top.dir(b"contents") as d:
        big = (64 << 20) + 1 if full else (2 << 20) + 1
        base = content(d.rng, 3 << 20)
        d.file(b"random", content(d.rng, big))
        d.file(b"text", content(d.rng, big // 2, "text"))
        d.file(b"zero", content(d.rng, 1 << 20, "zero"))
        d.file(b"original", base)
        d.file(b"duplicate", base)
        d.file(b"shifted", b"a few bytes before" + base)
        d.file(b"cut-and-joined", base[1 << 20 :] + base[: 1 << 20])
        d.file(b"one-byte-changed", base[:1500000] + bytes([base[1500000] ^ 1]) + base[1500001:])
        d.file(b"half-half", content(d.rng, 1 << 20) + content(d.rng, 1 << 20, "text"))
        with d.dir(b"small-files") as many:
            for i in range(60 if full else 8):
                with many.dir(b"dir-%02d" % i) as inner:
                    for j in range(60):
                        kind = ("random", "text")[j % 2]
                        inner.file(
                            b"f%d" % j,
                            content(inner.rng, inner.rng.randrange(1 << inner.rng.randrange(1, 15)), kind),
                        )
            many.empty_dir(b"empty")


def flags(top, full):
    with top.dir(b"flags") as d:
        for letter in "dAS" + ("ai" if top.kit.immutable else ""):
            if letter == "d" or d.kit.needs_root("inode flags that the owner may not set"):
                d.file(b"file-" + letter.encode(), b"flag", flags=letter)
                d.empty_dir(b"dir-" + letter.encode(), flags=letter)
        d.empty_dir(b"dir-D", flags="D")
        d.file(b"both", b"flag", flags="dA")
        d.file(b"nocow", b"", flags="C")
        d.empty_dir(b"dir-compressed", flags="c")


def many_names(top, full):
    with top.dir(b"many-names") as d:
        for i in range(10_000 if full else 500):
            d.file(b"%06x-%s" % (i * 2654435761 % 0xFFFFFF, b"n" * (i % 40)), b"" if i % 3 else b"%d" % i)


ITEMS = [owners, modes, times, symlinks, hard_links, sparse, xattrs, acls, special, names, deep, sizes, contents,
         flags, many_names]  # fmt: skip


def build(path, kit, full):
    os.makedirs(path, exist_ok=True)
    if os.listdir(path) not in ([], ["lost+found"]):
        raise SystemExit(f"torture: error: {path} is not empty")
    parent = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    top = Dir(kit, fd, b"")
    for item in ITEMS:
        item(top, full)
    top.empty_dir(b"empty-directory")
    above = Dir(kit, parent, b"")
    above.finish(os.fsencode(os.path.basename(os.path.abspath(path))), fd,
                 {"mode": 0o755, "mtime": 1234567890 * SECOND + 987654321, "xattrs": {"user.root-of-the-tree": b"1"}})  # fmt: skip
    os.close(fd)
    os.close(parent)
    os.sync()


def main(argv):
    if argv[:1] == ["mutate"]:
        return mutate.main(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--immutable", action="store_true", help="also files that are immutable or append-only")
    options = parser.parse_args(argv)
    os.umask(0)
    kit = Kit(options.seed, options.immutable)
    try:
        build(options.dir, kit, options.scale == "full")
    except OSError as error:
        print(f"torture: error: {error}", file=sys.stderr)
        return 2
    print(f"made {kit.made} entries in {options.dir} (seed {options.seed}, scale {options.scale})")
    for (what, why), count in sorted(kit.left_out.items()):
        print(f"left out: {what} ({why}){f', {count} times' if count > 1 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
