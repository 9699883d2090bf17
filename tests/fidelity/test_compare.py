#!/usr/bin/env python3
"""Proves that compare.py finds every kind of difference, and that equal trees are found equal.

    python3 tests/fidelity/test_compare.py

Each case makes two equal trees, changes one thing in the second, and asks for exactly that kind. What needs root or a
certain file system is skipped where it is not there.
"""

import contextlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import compare  # noqa: E402
from treekit import Kit, acl, near, set_flags  # noqa: E402
from treekit import Dir as TreeDir  # noqa: E402

ROOT = os.geteuid() == 0
needs_root = unittest.skipUnless(ROOT, "needs root")


def run(a, b, *options):
    """Exit status, summary and the lines printed before it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = compare.main([os.fsdecode(a), os.fsdecode(b), "--json", *options])
    *lines, summary = out.getvalue().splitlines()
    return status, json.loads(summary), lines


class Trees(unittest.TestCase):
    def setUp(self):
        self.work = tempfile.mkdtemp(prefix="compare-test-")
        self.addCleanup(shutil.rmtree, self.work, ignore_errors=True)
        self.a, self.b = self.work + "/a", self.work + "/b"

    def both(self, build):
        for root in (self.a, self.b):
            os.mkdir(root)
            fd = os.open(root, os.O_RDONLY)
            try:
                build(TreeDir(Kit(7), fd, b""))
            finally:
                os.close(fd)
            os.utime(root, ns=(0, 0))

    def standard(self, top):
        top.file(b"file", b"x" * 10000)
        top.file(b"empty")
        top.file(b"linked", b"linked")
        top.link(b"linked", b"linked-too")
        top.file(b"alone", b"linked")
        top.symlink(b"symlink", b"target")
        top.fifo(b"fifo")
        top.socket(b"socket")
        with top.dir(b"dir") as d:
            d.file(b"inner \xff\n", b"inner")
            d.empty_dir(b"empty")

    def inside(self, path, change, *args, **kwargs):
        """Changes something in B and puts the times of its directory back."""
        parent = os.path.dirname(os.path.join(self.b, path))
        before = os.stat(parent)
        change(os.path.join(self.b, path), *args, **kwargs)
        os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))

    def expect(self, kinds, *options):
        status, summary, lines = run(self.a, self.b, *options)
        self.assertEqual(summary["kinds"], kinds, "\n".join(lines))
        self.assertEqual(status, 1 if kinds else 0)
        self.assertEqual(summary["identical"], not kinds)
        return lines


def keeping_mtime(change):
    def wrapped(path, *args):
        before = os.lstat(path)
        change(path, *args)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)

    return wrapped


@keeping_mtime
def poke(path, offset, data):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, offset)
    os.close(fd)


def move_time(path, by):
    before = os.lstat(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + by), follow_symlinks=False)


@keeping_mtime
def retarget(path, target):
    os.unlink(path)
    os.symlink(target, path)


class Finds(Trees):
    def setUp(self):
        super().setUp()
        self.both(self.standard)

    def test_nothing_in_equal_trees(self):
        self.expect({})
        self.assertEqual(run(self.a, self.b)[1]["entries"], 12)

    def test_missing(self):
        self.inside("file", os.unlink)
        self.assertIn('"file"', self.expect({"missing": 1})[0])

    def test_missing_directory_once(self):
        self.inside("dir", shutil.rmtree)
        self.expect({"missing": 1})

    def test_extra(self):
        self.inside("zz", lambda path: os.mkdir(path))
        self.expect({"extra": 1})

    def test_extra_by_one_byte_of_the_name(self):
        self.inside("dir/inner \udcff\n", lambda path: os.rename(path, path[:-1]))
        self.expect({"missing": 1, "extra": 1})

    def test_type(self):
        self.inside("empty", lambda path: (os.unlink(path), os.mkdir(path)))
        self.expect({"type": 1})

    def test_fifo_against_socket(self):
        self.inside("fifo", lambda path: (os.unlink(path), os.mknod(path, stat.S_IFSOCK | 0o644)))
        self.expect({"type": 1})

    def test_content_every_position(self):
        for offset in (0, 1, 4095, 9999):
            with self.subTest(offset=offset):
                poke(self.b + "/file", offset, b"y")
                self.assertIn(f"byte {offset} ", self.expect({"content": 1})[0])
                poke(self.b + "/file", offset, b"x")
        self.expect({})

    def test_size(self):
        keeping_mtime(os.truncate)(self.b + "/file", 9999)
        self.expect({"size": 1})
        keeping_mtime(os.truncate)(self.b + "/file", 10001)
        self.expect({"size": 1})

    def test_target(self):
        self.inside("symlink", retarget, "tarGet")
        self.expect({"target": 1})

    def test_mode(self):
        for path, mode in (("file", 0o645), ("dir", 0o1755), ("fifo", 0o600), ("socket", 0o777)):
            os.chmod(os.path.join(self.b, path), mode)
        self.expect({"mode": 4})

    def test_setuid_and_setgid(self):
        os.chmod(self.b + "/file", 0o4644)
        os.chmod(self.b + "/empty", 0o2644)
        self.expect({"mode": 2})
        self.expect({}, "--no-privileged")

    def test_mode_of_the_root(self):
        os.chmod(self.b, 0o700)
        os.chmod(self.a, 0o750)
        self.expect({"mode": 1})

    @needs_root
    def test_owner(self):
        for path in ("file", "symlink", "dir", "fifo"):
            os.chown(os.path.join(self.b, path), 12, -1, follow_symlinks=False)
        os.chown(self.b + "/socket", -1, 34)
        self.expect({"owner": 5})
        self.expect({}, "--no-owner")
        self.expect({}, "--ignore", "owner")

    def test_mtime_by_a_nanosecond(self):
        for path in ("file", "symlink", "dir", "dir/empty", "fifo", "socket", "."):
            move_time(os.path.join(self.b, path), 1)
        self.expect({"mtime": 7})

    def test_times_before_1970(self):
        for root in (self.a, self.b):
            os.utime(root + "/file", ns=(0, -1500000000))
        self.expect({})
        os.utime(self.b + "/file", ns=(0, -1500000001))
        self.expect({"mtime": 1})

    def test_link_lost(self):
        self.inside(
            "linked-too",
            lambda path: (os.rename(path, path + "x"), shutil.copy2(path + "x", path), os.unlink(path + "x")),
        )
        lines = self.expect({"links": 1})
        self.assertIn("in A, not in B", lines[0])

    def test_link_made_up(self):
        self.inside("alone", lambda path: (os.unlink(path), os.link(self.b + "/linked", path)))
        before = os.stat(self.a + "/linked")
        os.utime(self.a + "/alone", ns=(before.st_atime_ns, before.st_mtime_ns))
        # Both names of the pair that A has come later in order, and both contradict.
        self.assertIn("in B, not in A", self.expect({"links": 2})[0])

    def test_link_to_the_outside_is_none(self):
        os.link(self.a + "/alone", self.work + "/outside")
        self.expect({})

    def test_exclude(self):
        self.inside("dir/empty", os.rmdir)
        self.inside("file", os.unlink)
        self.expect({}, "--exclude", "dir/em*", "--exclude", "fil?")
        self.expect({"missing": 1}, "--exclude", "fil?")

    def test_limit_and_total(self):
        for i in range(20):
            self.inside(f"more-{i}", os.mkdir)
        lines = self.expect({"extra": 20}, "--limit", "5")
        self.assertEqual(len(lines), 6)

    def test_ignore(self):
        poke(self.b + "/file", 5, b"z")
        move_time(self.b + "/dir", 1)
        self.expect({}, "--ignore", "content,mtime")
        self.expect({"content": 1}, "--ignore", "mtime")

    def test_usage_and_errors(self):
        with contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(compare.main([self.a, self.work + "/nowhere"]), 2)
            with self.assertRaises(SystemExit):
                compare.main([self.a, self.b, "--ignore", "everything"])


class FindsAttributes(Trees):
    def setUp(self):
        super().setUp()
        self.both(self.standard)
        try:
            os.setxattr(self.a + "/file", "user.probe", b"")
            os.removexattr(self.a + "/file", "user.probe")
        except OSError:
            self.skipTest("no user attributes on this file system")

    def test_xattr_value_missing_and_extra(self):
        for root, value in ((self.a, b"1"), (self.b, b"2")):
            os.setxattr(root + "/file", "user.value", value)
        os.setxattr(self.a + "/dir", "user.gone", b"")
        os.setxattr(self.b + "/empty", "user.new", b"\0")
        self.expect({"xattr": 3})
        self.expect({"xattr": 1}, "--ignore", "xattr:user.gone,xattr:user.n*")
        self.expect({}, "--ignore", "xattr")

    @needs_root
    def test_trusted_and_capability(self):
        os.setxattr(self.a + "/file", "trusted.t", b"1")
        os.setxattr(self.a + "/symlink", "trusted.t", b"1", follow_symlinks=False)
        os.setxattr(self.a + "/fifo", "trusted.t", b"1")
        os.setxattr(
            self.a + "/empty",
            "security.capability",
            bytes.fromhex("0100000200200000000000000000000000000000"),
        )
        self.expect({"xattr": 4})
        self.expect({}, "--no-privileged")

    def test_acl(self):
        value = acl(("user_obj", 6), ("user", 4, 77), ("group_obj", 4), ("mask", 4), ("other", 4))
        default = acl(("user_obj", 7), ("group_obj", 5), ("other", 5))
        try:
            os.setxattr(self.b + "/file", "system.posix_acl_access", value)
            os.setxattr(self.b + "/dir", "system.posix_acl_default", default)
        except OSError:
            self.skipTest("no ACLs on this file system")
        self.expect({"acl": 2})
        os.setxattr(self.a + "/dir", "system.posix_acl_default", default)
        self.expect({"acl": 1})

    def test_flags(self):
        fd = os.open(self.b + "/file", os.O_RDONLY)
        try:
            set_flags(fd, "d")
        except OSError:
            self.skipTest("no inode flags on this file system")
        finally:
            os.close(fd)
        self.expect({"flags": 1})
        self.expect({}, "--ignore", "flags")

    @needs_root
    def test_devices(self):
        for root, minor in ((self.a, 3), (self.b, 5)):
            try:
                os.mknod(root + "/null", stat.S_IFCHR | 0o600, os.makedev(1, minor))
            except PermissionError:
                self.skipTest("device nodes are not allowed here")
            os.utime(root + "/null", ns=(0, 0))
            os.utime(root, ns=(0, 0))
        self.expect({"rdev": 1})
        self.inside("null", os.unlink)
        self.expect({"missing": 1})
        self.expect({}, "--no-privileged")


class FindsHoles(Trees):
    SIZE = 3 << 20

    def build(self, *filled):
        def make(top):
            for name, ranges in filled:
                top.file(name, write=lambda fd, r=ranges: self.fill(fd, r))

        self.both(make)
        fd = os.open(self.a + "/" + os.fsdecode(filled[0][0]), os.O_RDONLY)
        try:
            if compare.seek(fd, 0, os.SEEK_DATA, self.SIZE) == 0:
                self.skipTest("no holes on this file system")
        finally:
            os.close(fd)

    def fill(self, fd, ranges):
        os.truncate(fd, self.SIZE)
        for start, length in ranges:
            os.pwrite(fd, b"d" * length, start)

    def test_every_hole_that_is_filled(self):
        self.build((b"sparse", [(1 << 20, 65536), (2 << 20, 65536)]))
        self.expect({})
        for offset in (0, (1 << 20) - 1, (1 << 20) + 65536, (2 << 20) - 4096, self.SIZE - 1):
            with self.subTest(offset=offset):
                poke(self.b + "/sparse", offset, b"\0")
                self.assertIn("holes of A are data in B", self.expect({"holes": 1})[0])
                self.again()
        self.expect({}, "--ignore", "holes")

    def again(self):
        fd = os.open(self.b + "/sparse", os.O_RDWR)
        before = os.stat(self.a + "/sparse")
        os.truncate(fd, 0)
        self.fill(fd, [(1 << 20, 65536), (2 << 20, 65536)])
        os.close(fd)
        os.utime(self.b + "/sparse", ns=(before.st_atime_ns, before.st_mtime_ns))

    def test_hole_only(self):
        self.build((b"sparse", []))
        poke(self.b + "/sparse", 123456, b"\0")
        self.expect({"holes": 1})

    def test_more_holes_are_no_difference(self):
        self.build((b"sparse", [(4096, 4096)]))
        poke(self.a + "/sparse", 1 << 20, bytes(1 << 16))
        self.expect({})
        allocated = run(self.a, self.b)[1]["allocated"]
        self.assertGreater(allocated[0], allocated[1])

    def test_content_behind_holes(self):
        self.build((b"sparse", [((2 << 20) + 5, 10)]))
        poke(self.b + "/sparse", (2 << 20) + 14, b"e")
        self.assertIn(f"byte {(2 << 20) + 14} ", self.expect({"content": 1})[0])

    def test_data_where_a_has_a_hole(self):
        self.build((b"sparse", [(1 << 20, 1)]))
        poke(self.b + "/sparse", (2 << 20) + 4096, b"e")
        self.expect({"content": 1, "holes": 1})


class Scale(Trees):
    def test_long_listings_are_merged_from_disk(self):
        self.both(lambda top: [top.file(b"%d" % (i * 7919 % 1000)) for i in range(1000)])
        self.addCleanup(setattr, compare, "SPILL", compare.SPILL)
        compare.SPILL = 64
        self.expect({})
        self.inside("500", os.unlink)
        self.inside("0500", os.mkdir)
        self.expect({"missing": 1, "extra": 1})

    def test_deep_paths(self):
        def build(top):
            fd, depth = os.dup(top.fd), 0
            while depth < 300:
                name = b"n" * 40
                os.mkdir(name, dir_fd=fd)
                below = os.open(name, os.O_RDONLY, dir_fd=fd)
                os.close(fd)
                fd, depth = below, depth + 1
            TreeDir(Kit(1), fd, b"").file(b"end", b"of the path")
            os.close(fd)

        self.both(build)
        status, summary, lines = run(self.a, self.b, "--ignore", "mtime")
        self.assertEqual((status, summary["entries"]), (0, 302), lines)
        # 12,000 bytes of path: the change, too, goes by descriptors.
        fd = os.open(self.b, os.O_RDONLY)
        for _ in range(300):
            below = os.open(b"n" * 40, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.truncate(near(fd, b"end"), 3)
        os.close(fd)
        lines = self.expect({"size": 1}, "--ignore", "mtime")
        self.assertLess(len(lines[0]), 800)

    def test_memory_does_not_grow_with_names_and_links(self):
        os.mkdir(self.a)
        for i in range(30_000):
            os.close(os.open(f"{self.a}/a-rather-long-name-to-make-it-count-{i}", os.O_WRONLY | os.O_CREAT))
            if i % 2:
                os.link(f"{self.a}/a-rather-long-name-to-make-it-count-{i}", f"{self.a}/link-{i}")
        program = (
            "import resource, sys; sys.path.insert(0, sys.argv[1]); import compare; compare.SPILL = 2000;"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; status = compare.main(sys.argv[2:]);"
            "sys.exit(status or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 24 << 10)"
        )
        here = os.path.dirname(os.path.abspath(compare.__file__))
        done = subprocess.run([sys.executable, "-c", program, here, self.a, self.a], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("compared 45001 entries", done.stdout)


@needs_root
class Mounts(Trees):
    def test_mount_points_are_empty_directories(self):
        self.both(self.standard)
        inner = self.a + "/dir/empty"
        done = subprocess.run(["mount", "-t", "tmpfs", "none", inner], capture_output=True)
        if done.returncode:
            self.skipTest("mounting is not allowed here")
        self.addCleanup(subprocess.run, ["umount", inner], check=True)
        with open(inner + "/only-there", "w"):
            pass
        self.assertEqual(run(self.a, self.b, "--ignore", "mtime,mode")[1]["kinds"], {"missing": 1})
        self.expect({}, "--one-file-system", "--ignore", "mtime,mode")


@unittest.skipIf(ROOT, "root can read everything")
class Unreadable(Trees):
    def test_it_is_said(self):
        self.both(self.standard)
        os.chmod(self.b + "/file", 0)
        os.chmod(self.a + "/file", 0)
        self.expect({"unreadable": 1})


if __name__ == "__main__":
    unittest.main()
