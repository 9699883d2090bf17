#!/usr/bin/env python3
"""kill -9 at random moments of a backup that is slowed down to take a while, with a checkpoint every 2 seconds; each
kill is followed by a rerun. Every snapshot that was committed verifies to the last byte, the restore is equal, and what
the rerun uploads again, counted at the store, is at most what was sent since the last checkpoint plus the open packs.
What the dead run left behind is taken away where the store keeps it hidden, or no more than the packs that were open.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import objects
from bed import TORTURE, Bed, size

INTERVAL = 2
SEED = 20
# What a run writes besides chunks: page packs are counted apart, records and segments are small.
SLACK = 1 << 20
# Seconds from the decision what is in a segment to the time of its file.
MOMENT = 0.2


class Place:
    """A repository whose files can be looked at: in a directory, or in a test server's bucket."""

    def __init__(self, location, folder, hidden):
        self.location, self.folder, self.hidden = location, folder, hidden

    def packs(self):
        """{key: (size, completed)} of complete packs of data."""
        found = {}
        for key, (length, what) in objects.listed(self.folder).items():
            if what == "data":
                # The time of its renaming: when it was complete.
                found[key] = (length, (self.folder / key).stat().st_ctime)
        return found

    def unfinished(self):
        """Bytes of uploads that were begun and not completed."""
        files = [path for path in self.hidden.rglob("*") if path.is_file()] if self.hidden.exists() else []
        return sum(path.stat().st_size for path in files), len(files)

    def checkpointed(self):
        """When the segments of the newest checkpoint were written: packs that came later are not in it."""
        marks = [p.stat().st_mtime for p in self.folder.glob("sessions/*/*/*-checkpoint")]
        segments = [p.stat().st_mtime for p in self.folder.glob("index/**/*") if p.is_file()]
        return max((s for s in segments if marks and s <= max(marks)), default=0.0) - MOMENT, len(marks)


class Round:
    def __init__(self, bed, number, kind, source, place, rate, full):
        self.bed, self.number, self.kind, self.source, self.place = bed, number, kind, source, place
        self.rate, self.full = rate, full
        self.what = f"kill {number}, {kind}"

    def arguments(self, *more):
        return ("backup", self.source, "--volume", "v", "--checkpoint-interval", f"{INTERVAL}s", *self.bed.small, *more)

    def killed_after(self, seconds):
        """Starts the backup and kills it; True if it was still running."""
        environment = {k: str(v) for k, v in self.bed.environment.items()}
        command = self.bed.command(*self.arguments("--upload-rate", self.rate))
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:  # fmt: skip
            time.sleep(seconds)
            running = process.poll() is None
            process.send_signal(signal.SIGKILL)
        return running

    def run(self, after):
        bed, place = self.bed, self.place
        before = place.packs()
        running = self.killed_after(after)
        listed = bed.tw("snapshots")
        bed.check(listed.code == 0 and len(listed.summary["snapshots"]) == (1 if running else 2),
                  f"{self.what}: after {after:.1f} s", f"{'killed' if running else 'had finished'}, snapshots "
                  f"listed: {len(listed.summary.get('snapshots', []))}, exit code {listed.code}")  # fmt: skip
        there = place.packs()
        sent = {key: value for key, value in there.items() if key not in before}
        open_bytes, open_files = place.unfinished()
        mark, checkpoints = place.checkpointed()
        since = sum(length for length, completed in sent.values() if completed > mark)

        # Records wait for their turn behind packs, as the rate is one for all.
        bed.check(checkpoints >= after // INTERVAL - 1, f"{self.what}: checkpoints", f"{checkpoints} in {after:.1f} s")

        again = bed.tw(*self.arguments())
        if not bed.check(again.code == 0, f"{self.what}: rerun", f"exit code {again.code} {again.said()}"):
            return
        came = sum(length for key, (length, _) in place.packs().items() if key not in there)
        complete = sum(length for length, _ in sent.values())
        twice = complete + open_bytes + came - self.full
        bound = since + open_bytes
        self.bed.spared += max(0, complete + open_bytes - max(bound, twice))
        bed.check(not running or twice <= bound + SLACK, f"{self.what}: uploaded again",
                  f"{size(max(0, twice))}, at most {size(bound)} ({size(since)} in packs since the last of {checkpoints} "
                  f"checkpoints, {size(open_bytes)} in {open_files} open); sent before {size(complete + open_bytes)}, "
                  f"by the rerun {size(came)}, without a kill {size(self.full)}")  # fmt: skip
        self.sound()
        left, files = place.unfinished()
        bed.check(left <= open_bytes, f"{self.what}: leftovers", f"{files} unfinished files, {size(left)}; "
                  f"{open_files}, {size(open_bytes)} after the kill")  # fmt: skip

    def sound(self):
        bed = self.bed
        verified = bed.tw("verify", "--read-data")
        counts = verified.summary
        bed.check(verified.code == 0 and counts.get("damages") == 0 and counts.get("snapshots", 0) >= 2,
                  f"{self.what}: verify --read-data", f"{counts.get('snapshots')} snapshots, {counts.get('packs')} "
                  f"packs, {counts.get('damages')} damages {verified.said()}")  # fmt: skip
        back = bed.work / "back"
        restored = bed.tw("restore", "latest", "--volume", "v", "--target", back)
        if self.kind.endswith("tree"):
            same, said = bed.same_tree(self.source, back)
            said = said.strip().splitlines()[-1] if said else ""
        else:
            same, said = bed.same_blocks(self.source, back)
        bed.check(restored.code == 0 and same, f"{self.what}: restore", f"{said} {restored.said()}")
        bed.remove(back)


def sources(bed):
    """An image, and a tree: noise without repetitions, so that every run stores the same number of bytes."""
    total = (120 if bed.quick else 1200) << 20
    image, tree = bed.work / "image", bed.work / "tree"
    bed.python(TORTURE.parent.parent / "accept" / "blocks.py", "noise", image, total, SEED)
    rng = random.Random(SEED)
    left, number = total, 0
    while left > 0:
        length = min(left, rng.randrange(1, 1 << rng.randrange(12, 25)))
        folder = tree / f"folder-{number % 40}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(rng.randbytes(length))
        if number % 9 == 0:
            os.link(folder / f"file-{number}", tree / f"link-{number}")
            os.symlink(f"file-{number}", folder / f"symlink-{number}")
        left, number = left - length, number + 1
    return {"image": image, "tree": tree}, total


def main(bed):
    kinds, total = sources(bed)
    seconds = 12 if bed.quick else 62
    # Little memory keeps packs small, so that a short run has some that are finished long before it ends.
    bed.small = ("--memory", "64MiB") if bed.quick else ()
    bed.spared = 0
    rate = total // seconds
    key = bed.work / "key"
    bed.must("key", "generate", key)
    rounds = 4 if bed.quick else 30
    rng = random.Random(SEED)
    # Every third round in a bucket: there parts are objects of the server until an upload is completed.
    server = bed.server("versitygw")
    bucket = pathlib.Path(server["S3_DATA"]) / server["S3_BUCKET"]
    s3 = bed.store
    prepared = {}
    for number in range(1, rounds + 1):
        kind = ("image", "tree")[number % 2]
        in_bucket = number % 3 == 0
        name = f"repo-{number}"
        if in_bucket:
            place = Place(f"s3://{server['S3_BUCKET']}/{name}", bucket / name, bucket / ".sgwtmp")
        else:
            place = Place(bed.work / name, bed.work / name, bed.work / name / "tmp")
        bed.store = s3 if in_bucket else []
        bed.use(place.location, key)
        bed.remove(bed.work / "cache")
        bed.must("init")
        bed.must("backup", TORTURE.parent, "--volume", "another")
        if kind not in prepared:
            prepared[kind] = clean_run(bed, kinds[kind], key, rate, seconds)
            bed.use(place.location, key)
            bed.store = s3 if in_bucket else []
        spread = seconds / rounds
        after = (number - 1) * spread + rng.random() * spread  # random, and all of the run's parts get their turn
        Round(bed, number, f"{'s3 ' if in_bucket else ''}{kind}", kinds[kind], place, rate, prepared[kind]).run(after)
        bed.remove(place.folder)
    # Were there only rounds in which the bound is all that was sent, nothing would have been shown.
    bed.check(bed.spared > total // 4, "what the checkpoints have spared", f"{size(bed.spared)} in {rounds} reruns")


def clean_run(bed, source, key, rate, seconds):
    """Bytes of data packs that this source takes without a kill; shows that the rate makes it long enough."""
    store, bed.store = bed.store, []
    place = Place(bed.work / "clean", bed.work / "clean", bed.work / "clean" / "tmp")
    bed.use(place.location, key)
    bed.must("init")
    bed.must("backup", TORTURE.parent, "--volume", "another")
    before = place.packs()
    run = bed.must("backup", source, "--volume", "v", "--checkpoint-interval", f"{INTERVAL}s", *bed.small,
                   "--upload-rate", rate)  # fmt: skip
    full = sum(length for name, (length, _) in place.packs().items() if name not in before)
    took = run.summary["elapsed_seconds"]
    bed.check(took >= seconds * 0.8, f"{os.path.basename(source)} without a kill",
              f"{took:.1f} s at {size(rate)}/s, {size(full)} of data packs")  # fmt: skip
    bed.remove(place.folder)
    bed.store = store
    return full


if __name__ == "__main__":
    BED = Bed(__doc__.split("\n\n", maxsplit=1)[0])
    sys.exit(BED.main(main))
