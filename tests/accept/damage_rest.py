"""7-damage.py, the objects that are not packs, and what is refused."""

import hashlib
import os
import random

import harm

SEED = 8


def one_line(bed, run, what, codes):
    """Ends with one of `codes` and says why in one line, with a hint at most."""
    lines = [line for line in run.err.splitlines() if line]
    errors = [line for line in lines if line.startswith("tradewind: error: ")]
    others = [line for line in lines if not line.startswith(("tradewind: error: ", "hint: ", "tradewind: warning: "))]
    bed.check(run.code in codes and len(errors) == 1 and not others and not run.panicked(), what,
              f"exit code {run.code}{'' if run.code in codes else f' instead of {codes}'}, "
              f"{' / '.join(lines[:3]) or 'nothing said'}")  # fmt: skip


def warnings(run):
    return [w["message"] for w in run.of_type("warning")]


def second(original, volume):
    return [s for name, s in original.snapshots if name == volume][1]


def manifests_and_index(bed, original, case_of):
    rng = random.Random(SEED)
    for volume in ("image", "tree"):
        for state in (1, 2):
            key, snapshot = original.manifest(volume, state)
            which = f"{'last' if state == 2 else 'first'} manifest of the {volume}"
            case = case_of(bed, original, f"flipped bit, {which}", key)
            harm.flip(case.path, rng.randrange(case.path.stat().st_size), rng.randrange(8))
            case.found(case.verified())
            run = bed.tw("restore", snapshot, "--target", bed.work / "back")
            one_line(bed, run, f"{case.what}: its restore", (5,))
            bed.check(not (bed.work / "back").exists(), f"{case.what}: nothing written", "no target")
            if state == 2:
                run = bed.tw("restore", "latest", "--volume", volume, "--target", bed.work / "back")
                one_line(bed, run, f"{case.what}: `latest` does not quietly mean an older one", (5,))
            others(bed, original, case, snapshot)

            case = case_of(bed, original, f"deleted, {which}", key)
            case.path.unlink()
            run = case.verified()
            if state == 1:
                case.found(run, snapshot)
            else:
                bed.check(run.code == 0, f"{case.what}: has no successor that misses it", f"exit code {run.code}")
                run = case.verified("--expect", snapshot)
                bed.check(run.code == 5 and any(snapshot in f"{d['object']} {d['reason']}" for d in run.of_type("damage")),
                          f"{case.what}: verify --expect ID", f"exit code {run.code}, {run.said()}")  # fmt: skip
                sound = case.verified("--expect", next(s for _, s in original.snapshots))
                bed.check(sound.code == 0, f"{case.what}: --expect of one that is there", f"exit code {sound.code}")
            others(bed, original, case, snapshot)
    index(bed, original, case_of, rng)
    sessions(bed, original, case_of, rng)


def others(bed, original, case, lost):
    """All snapshots but one restore."""
    problems = []
    for name, snapshot in original.snapshots:
        if snapshot == lost:
            continue
        case.clear(bed.work / "back")
        run = bed.tw("restore", snapshot, "--target", bed.work / "back")
        if run.code or not case.equal(name, original.truth[snapshot], bed.work / "back"):
            problems.append(f"{name}: exit code {run.code}, {run.said()}")
    case.clear(bed.work / "back")
    count = len(original.snapshots) - 1
    bed.check(
        not problems, f"{case.what}: the others", "; ".join(problems) or f"{count} snapshots restore and are equal"
    )


def index(bed, original, case_of, rng):
    segments = sorted(key for key in original.objects() if key.startswith("index/"))
    harms = [("flipped bit in an index segment", segments[:1]), ("deleted index segment", segments[-1:]),
             ("deleted, all index segments", segments)]  # fmt: skip
    for what, keys in harms:
        case = case_of(bed, original, what, keys[0])
        for key in keys:
            path = case.repository / key
            if what.startswith("flipped"):
                harm.flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
            else:
                path.unlink()
        run = case.verified()
        said = [*warnings(run), *(d["reason"] for d in run.of_type("damage"))]
        bed.check(said and run.code == 5, f"{what}: verify reports it", f"exit code {run.code}: {'; '.join(said)}")
        bed.remove(bed.work / "cache")
        case.restores([])
        # The next backup of the volume whose segment it was rebuilds it and says so.
        bed.remove(bed.work / "cache")
        run = bed.tw("backup", original.tree, "--volume", "tree")
        rebuilt = [w for w in warnings(run) if "rebuilt" in w]
        bed.check(run.code == 0 and rebuilt, f"{what}: rebuilt and reported",
                  f"exit code {run.code}; {'; '.join(warnings(run)) or 'no warning'}")  # fmt: skip
        # A backup that can know what is there from the index alone: nothing is uploaded again, nothing is reported.
        bed.remove(bed.work / "cache")
        for source in (original.image, original.tree):
            run = bed.tw("backup", source, "--volume", f"another-{source.name}", "--parent", "none")
            new = run.summary.get("counters", {}).get("new_bytes")
            bed.check(run.code == 0 and new == 0 and not warnings(run), f"{what}: the index is whole, {source.name}",
                      f"exit code {run.code}, {new} bytes new; {'; '.join(warnings(run)) or 'no warning'}")  # fmt: skip
        bed.remove(bed.work / "cache")
        run = case.verified("--read-data")
        bed.check(
            run.code == 0, f"{what}: sound afterwards", f"exit code {run.code}, {'; '.join(warnings(run))} {run.said()}"
        )


def sessions(bed, original, case_of, rng):
    records = sorted(key for key in original.objects() if key.startswith("sessions/"))
    for what, damage in (("flipped bit in a session record", True), ("deleted session record", False)):
        case = case_of(bed, original, what, records[0])
        if damage:
            harm.flip(case.path, rng.randrange(case.path.stat().st_size), rng.randrange(8))
        else:
            case.path.unlink()
        # Nothing that a snapshot needs is in it.
        run = case.verified("--read-data")
        said = [*warnings(run), *(d["reason"] for d in run.of_type("damage"))]
        if damage:
            bed.check(case.key in f"{run.err} {run.lines}", f"{what}: verify names it",
                      f"exit code {run.code}: {'; '.join(said) or 'nothing'}")  # fmt: skip
        else:
            bed.check(run.code == 0, f"{what}: verify", f"exit code {run.code}; it has done its work: {said}")
        case.restores([])
        run = bed.tw("backup", original.image, "--volume", "image")
        bed.check(
            run.code == 0, f"{what}: the next backup", f"exit code {run.code} {'; '.join(warnings(run))} {run.said()}"
        )


def keys_and_config(bed, original, case_of):
    rng = random.Random(SEED)
    passphrase = {"TRADEWIND_KEY_FILE": None, "TRADEWIND_PASSWORD_FILE": original.password}
    for what in ("flipped bit in a key slot", "deleted key slot"):
        case = case_of(bed, original, what, original.key_slot)
        if what.startswith("flipped"):
            harm.flip(case.path, rng.randrange(case.path.stat().st_size), rng.randrange(8))
            run = bed.tw("snapshots", **passphrase)
            bed.check(run.code == 0 and case.key in run.err, f"{what}: named, and another opens",
                      f"exit code {run.code}: {run.said()}")  # fmt: skip
            run = bed.tw("snapshots")
            one_line(bed, run, f"{what}: its own key", (5,))
            bed.check(case.key in run.err, f"{what}: its own key is told which slot is damaged", run.said())
        else:
            case.path.unlink()
            run = bed.tw("snapshots", **passphrase)
            bed.check(run.code == 0, f"{what}: another opens", f"exit code {run.code}")
            one_line(bed, bed.tw("snapshots"), f"{what}: its own key", (4,))
        target = bed.work / "back"
        run = bed.tw("restore", second(original, "image"), "--target", target, **passphrase)
        equal = run.code == 0 and bed.same_blocks(original.truth[second(original, "image")], target)[0]
        bed.check(equal, f"{what}: restore with the other", f"exit code {run.code}")
        case.clear(target)
    case = case_of(bed, original, "deleted, all key slots", original.key_slot)
    for slot in (case.repository / "keys").iterdir():
        slot.unlink()
    one_line(bed, bed.tw("snapshots"), case.what, (4, 5, 7))

    size = (original.folder / "config").stat().st_size
    for where, byte in (("magic", 0), ("text", 40), ("checksum", size - 40), ("tag", size - 1)):
        case = case_of(bed, original, f"flipped bit in config's {where}", "config")
        harm.flip(case.path, byte, 2)
        for command in (("snapshots",), ("restore", "latest", "--volume", "tree", "--target", bed.work / "back"),
                        ("backup", original.tree)):  # fmt: skip
            one_line(bed, bed.tw(*command), f"{case.what}: {command[0]}", (5, 7))
        bed.check(not (bed.work / "back").exists(), f"{case.what}: nothing written", "no target")
    case = case_of(bed, original, "deleted config", "config")
    case.path.unlink()
    one_line(bed, bed.tw("snapshots"), case.what, (5, 7))
    run = bed.tw("init")
    one_line(bed, run, "init over what is left of a repository", (5, 7))


def state(folder):
    """Hash of all names and contents, to show that nothing was written."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def refusals(bed, original):
    where = original.copy()
    back, before = bed.work / "back", state(where)
    wrong = bed.work / "wrong"
    wrong.write_text("another passphrase\n")
    actions = (("snapshots",), ("backup", original.tree), ("restore", "latest", "--volume", "tree", "--target", back))
    password = {"TRADEWIND_KEY_FILE": None, "TRADEWIND_PASSWORD_FILE": wrong}
    for command in actions:
        one_line(bed, bed.tw(*command, **password), f"wrong passphrase: {command[0]}", (4,))
    bed.check(
        not back.exists() and state(where) == before, "wrong passphrase: nothing written", "repository and target"
    )

    # The config of another repository, whose key we do not have, beside our objects.
    other, other_key = bed.work / "other", bed.work / "other-key"
    bed.must("key", "generate", other_key)
    bed.must("init", TRADEWIND_REPOSITORY=other, TRADEWIND_KEY_FILE=other_key)
    for command in actions:
        one_line(bed, bed.tw(*command, TRADEWIND_REPOSITORY=other), f"somebody else's repository: {command[0]}", (4,))
    harm.replace(where / "config", (other / "config").read_bytes())
    for command in actions:
        one_line(bed, bed.tw(*command), f"another repository's config: {command[0]}", (4, 5, 7))
    harm.replace(where / "config", b'{"version":2,"id":"of another program","chunker_polynomial":"25b468838dcb75"}')
    one_line(bed, bed.tw("snapshots"), "another program's repository", (5, 7))

    where = original.copy()
    harm.newer(where / "config")
    before = state(where)
    for command in actions:
        one_line(bed, bed.tw(*command), f"newer repository: {command[0]}", (7,))
    bed.check(
        not back.exists() and state(where) == before, "newer repository: nothing written", "repository and target"
    )

    missing = bed.work / "nothing here"
    for command in actions:
        one_line(bed, bed.tw(*command, TRADEWIND_REPOSITORY=missing), f"missing repository: {command[0]}", (7,))
    bed.check(
        not missing.exists() and not back.exists(), "missing repository: nothing written", "neither folder is there"
    )
    before = state(original.folder)
    one_line(bed, bed.tw("init", TRADEWIND_REPOSITORY=original.folder), "init where a repository is", (7,))
    bed.check(state(original.folder) == before, "init where a repository is: untouched", "same names and contents")
    targets(bed, original)


def targets(bed, original):
    original.copy()
    full = bed.work / "full"
    full.mkdir()
    (full / "a file").write_text("somebody's")
    before = state(full)
    one_line(bed, bed.tw("restore", "latest", "--volume", "tree", "--target", full), "target directory not empty", (9,))
    one_line(
        bed, bed.tw("restore", "latest", "--volume", "image", "--target", full / "a file"), "target file exists", (9,)
    )
    one_line(bed, bed.tw("restore", "latest", "--volume", "image", "--target", full), "an image to a directory", (2, 9))
    one_line(
        bed, bed.tw("restore", "latest", "--volume", "tree", "--target", full / "a file"), "a tree to a file", (2, 9)
    )
    bed.check(state(full) == before, "refused targets are untouched", "same names and contents")
    if os.geteuid():
        bed.skip("target too small", "making a loop device needs root")
        return
    backing = bed.work / "small device"
    backing.write_bytes(b"\xa5" * ((4 << 20) + 4096))
    device = bed.loop_device(backing)
    for more in ((), ("--overwrite",)):
        run = bed.tw("restore", "latest", "--volume", "image", "--target", device, *more)
        one_line(bed, run, f"target too small {' '.join(more)}", (9,))
    with open(device, "rb") as file:
        data = file.read()
    bed.check(data == b"\xa5" * len(data), "a target that is too small is untouched", f"{len(data)} bytes of 0xA5")
