#!/usr/bin/env python3
"""Damage: one flipped bit in each kind of object, and each kind of object deleted. It is found and named, with the
volume and byte range or path that it takes; nothing wrong is ever delivered; the rest comes back with --keep-going. An
index segment is rebuilt, a manifest is missed by its successor or by `verify --expect`, a key slot is named and another
one opens. Wrong keys, repositories that are not ours, and targets that will not do: one line, a code, nothing written.
"""

import os
import pathlib
import random
import subprocess
import sys

import harm
import objects
from bed import BLOCKS, TORTURE, Bed

SEED = 7


class Original:
    """A sound repository: two states of an image, two of a tree, two key slots."""

    def __init__(self, bed):
        self.bed, self.folder = bed, bed.work / "original"
        self.key, self.password = bed.work / "key", bed.work / "password"
        bed.must("key", "generate", self.key)
        self.password.write_text("a passphrase of the tests\n")
        bed.use(self.folder, self.key)
        bed.must("init")
        self.key_slot = next(key for key in self.objects() if key.startswith("keys/"))
        bed.must("key", "add", "--new-password-file", self.password)
        self.password_slot = next(k for k in self.objects() if k.startswith("keys/") and k != self.key_slot)
        self.image, self.tree = bed.work / "image", bed.work / "tree"
        self.snapshots, self.truth, self.brought = [], {}, {}
        bed.python(BLOCKS, "noise", self.image, 9 << 20, SEED)
        self.make_tree()
        for state in (1, 2):
            for name, source in (("image", self.image), ("tree", self.tree)):
                before = self.objects()
                run = bed.must("backup", source, "--volume", name)
                snapshot, truth = run.summary["snapshot"], bed.work / f"truth-{name}-{state}"
                self.snapshots.append((name, snapshot))
                self.brought[snapshot] = {k: v for k, v in self.objects().items() if k not in before}
                subprocess.run(["cp", "-a", source, truth], check=True)
                self.truth[snapshot] = truth
            if state == 1:
                bed.python(BLOCKS, "change", self.image, 8, SEED)
                bed.python(TORTURE, "mutate", self.tree, "--percent", 20)

    def make_tree(self):
        rng = random.Random(SEED)
        for n in range(120):
            folder = self.tree / f"folder-{n % 7}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"file-{n}").write_bytes(rng.randbytes(rng.randrange(1, 1 << rng.randrange(4, 18))))
        for n in range(3):
            (self.tree / f"large-{n}").write_bytes(rng.randbytes((2 << 20) + n))
        with open(self.tree / "sparse", "wb") as file:
            file.seek(3 << 20)
            file.write(b"the end")
        os.link(self.tree / "large-0", self.tree / "large-0-again")
        os.symlink("large-0", self.tree / "symlink")

    def objects(self):
        return objects.listed(self.folder)

    def copy(self):
        """Another one of the same contents, of hard links: harm replaces files, it does not write into them."""
        where = self.bed.work / "harmed"
        Bed.remove(where)
        Bed.remove(self.bed.work / "cache")
        subprocess.run(["cp", "-al", self.folder, where], check=True)
        self.bed.use(where, self.key)
        return where

    def pack(self, volume, state, kind):
        """A pack that the given backup brought."""
        snapshot = [s for name, s in self.snapshots if name == volume][state - 1]
        return next(k for k, (_, what) in sorted(self.brought[snapshot].items()) if what == kind)

    def manifest(self, volume, state):
        snapshot = [s for name, s in self.snapshots if name == volume][state - 1]
        return next(k for k in self.brought[snapshot] if k.startswith("snapshots/")), snapshot


def listed(run):
    """(path, offset, length) of the damage lines of a restore; without a range the whole file is meant."""
    return [(d["path"] or "", d["offset_bytes"] or 0, d["length_bytes"]) for d in run.of_type("damage")]


class Case:
    def __init__(self, bed, original, what, key):
        self.bed, self.original, self.what, self.key = bed, original, what, key
        self.repository = original.copy()
        self.path = self.repository / key

    def verified(self, *more):
        run = self.bed.tw("verify", *more)
        if run.panicked():
            self.bed.check(False, f"{self.what}: verify", f"panic: {run.said()}")
        return run

    def found(self, run, snapshot=None, located=False):
        """Damage must be found and named; where chunks are lost also with the snapshot and its range or path."""
        mine = [d for d in run.of_type("damage") if self.key in f"{d['object']} {d['reason']}"]
        sample = next((d for d in mine if d["length_bytes"]), mine[0] if mine else {})
        whole = f"{sample.get('object')}: {sample.get('reason')}; snapshot {sample.get('snapshot')}, path " \
                f"{sample.get('path')}, bytes {sample.get('offset_bytes')} + {sample.get('length_bytes')}"  # fmt: skip
        good = run.code == 5 and mine and (not located or any(d["length_bytes"] for d in mine))
        if snapshot:
            good = good and any(d["snapshot"] == snapshot for d in mine)
        shown = f"exit code {run.code}, {len(mine)} of {len(run.of_type('damage'))} damages name it"
        self.bed.check(good, f"{self.what}: {' '.join(run.command)} names it",
                       f"{shown}: {whole}" if mine else f"{shown}; {run.said()}")  # fmt: skip

    def restores(self, must_lose):
        """Restores everything both ways. `must_lose`: ids of snapshots that cannot be whole."""
        bed, back = self.bed, self.bed.work / "back"
        lost_in, problems = set(), []
        for name, snapshot in self.original.snapshots:
            truth = self.original.truth[snapshot]
            self.clear(back)
            run = bed.tw("restore", snapshot, "--target", back)
            problems += [f"{name}: panic: {run.said()}"] if run.panicked() else []
            problems += [f"{name}: wrong byte: {w}" for w in harm.wrong_bytes(truth, back)]
            equal = run.code == 0 and self.equal(name, truth, back)
            if run.code == 0 and not equal:
                problems.append(f"{name}: success, but not equal")
            if run.code not in (0, 5):
                problems.append(f"{name}: exit code {run.code}: {run.said()}")
            if name == "image":
                problems += self.stream(snapshot, truth)
            self.clear(back)
            going = bed.tw("restore", snapshot, "--target", back, "--keep-going")
            if going.code != run.code or going.panicked():
                problems.append(
                    f"{name}: --keep-going ended with {going.code}, without with {run.code}: {going.said()}"
                )
            if going.code == 5:
                lost_in.add(snapshot)
                problems += self.kept_going(name, truth, back, going)
            elif going.code == 0 and not self.equal(name, truth, back):
                problems.append(f"{name}: --keep-going succeeded, but not equal")
        self.clear(back)
        if lost_in != set(must_lose):
            names = [name for name, snapshot in self.original.snapshots if snapshot in lost_in]
            problems.append(f"lost in {names}, expected in {len(must_lose)} snapshots")
        bed.check(not problems, f"{self.what}: restores",
                  "; ".join(problems[:4]) if problems else f"{len(lost_in)} of {len(self.original.snapshots)} snapshots "
                  "lose something: code 5, no wrong byte; with --keep-going the rest is equal, what is lost is listed")  # fmt: skip

    def kept_going(self, name, truth, back, run):
        damages = listed(run)
        if not damages:
            return [f"{name}: nothing listed"]
        if not any(self.key.rsplit("/", 1)[-1] in f"{d['object']} {d['reason']}" for d in run.of_type("damage")):
            return [f"{name}: --keep-going does not name {self.key}: {run.of_type('damage')[0]['reason']}"]
        whole_tree = [d for d in damages if name == "tree" and d[0] == "" and d[2]]
        missed, lost = harm.lost_and_not_listed(truth, back, damages) if not whole_tree else ([], 1)
        problems = [f"{name}: lost but not listed: {m}" for m in missed]
        problems += [] if lost else [f"{name}: damage listed, but nothing is lost"]
        return problems + [f"{name}: wrong byte: {w}" for w in harm.wrong_bytes(truth, back)]

    def stream(self, snapshot, truth):
        out = self.bed.work / "stream"
        with open(out, "wb") as file:
            command = self.bed.command("restore", snapshot, "--target", "-")
            environment = {k: str(v) for k, v in self.bed.environment.items()}
            code = self.bed.ended(command, environment, file)[0]
        data, right = out.read_bytes(), pathlib.Path(truth).read_bytes()
        if not right.startswith(data) or (code == 0) != (data == right):
            return [f"standard output: code {code}, {len(data)} bytes, not a beginning of what is right"]
        return []

    def equal(self, name, truth, back):
        return self.bed.same_tree(truth, back)[0] if name == "tree" else self.bed.same_blocks(truth, back)[0]

    @staticmethod
    def clear(path):
        Bed.remove(path) if path.is_dir() else path.unlink(missing_ok=True)


def snapshots_of(original, volume, states=(1, 2)):
    mine = [s for name, s in original.snapshots if name == volume]
    return [mine[state - 1] for state in states]


def packs(bed, original):
    rng = random.Random(SEED)
    for volume in ("image", "tree"):
        for kind in ("data", "meta"):
            key = original.pack(volume, 2, kind)
            second = snapshots_of(original, volume, (2,))
            what = f"{'pages' if kind == 'meta' else 'data'} of the {volume}"
            for part, (start, end) in harm.pack_regions(original.folder / key).items():
                for _ in range(1 if bed.quick else 4):
                    case = Case(bed, original, f"flipped bit in a pack's {part}, {what}", key)
                    harm.flip(case.path, rng.randrange(start, end), rng.randrange(8))
                    in_frames = part == "frame"
                    case.found(case.verified("--read-data"), second[0] if in_frames else None, located=in_frames)
                    # Header, table and trailer are not what a restore reads: it goes by the locators.
                    case.restores(second if in_frames else [])
            case = Case(bed, original, f"deleted pack, {what}", key)
            case.path.unlink()
            case.found(case.verified(), second[0], located=True)
            case.found(case.verified("--read-data"), second[0], located=True)
            case.restores(second)


if __name__ == "__main__":
    from damage_rest import keys_and_config, manifests_and_index, refusals

    def body(bed):
        original = Original(bed)
        run = bed.tw("verify", "--read-data")
        bed.check(run.code == 0 and run.summary["damages"] == 0, "the repository before any harm",
                  f"{run.summary['snapshots']} snapshots, {run.summary['packs']} packs")  # fmt: skip
        packs(bed, original)
        manifests_and_index(bed, original, Case)
        keys_and_config(bed, original, Case)
        refusals(bed, original)

    BED = Bed(__doc__.split("\n\n", maxsplit=1)[0])
    sys.exit(BED.main(body))
