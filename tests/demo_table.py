#!/usr/bin/env python3
"""Figures of the demonstration (demo.sh): from tradewind's JSON to one line, and from lines to a table.

demo_table.py row NAME FILE     the summary in FILE, for people on standard error, as a row on standard output
demo_table.py table ROW...      all rows as a table
demo_table.py fill FILE MIB     writes that many MiB of half-compressible data to random places of FILE
"""

import json
import os
import random
import sys

COLUMNS = ("step", "seconds", "volume", "read", "new", "stored", "ratio", "volume/s")


def size(number):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000 or unit == "GiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024


def row(name, path):
    with open(path, encoding="utf-8") as file:
        messages = [json.loads(line) for line in file if line.strip()]
    for message in messages:
        kind = message["message_type"]
        if kind in ("skipped", "damage"):
            print(f"  {kind}: {message.get('path')}: {message['reason']}", file=sys.stderr)
        elif kind in ("warning", "error"):
            print(f"  {kind}: {message['message']}", file=sys.stderr)
    if not messages or messages[-1]["message_type"] != "summary":
        sys.exit(f"{name}: no summary")
    summary = messages[-1]
    counters, seconds = summary["counters"], summary["elapsed_seconds"]
    volume = summary.get("checked_bytes") or counters["done_bytes"]
    moved = {"backup": "read", "restore": "fetched", "verify": "fetched"}[summary["command"]]
    cells = [name, f"{seconds:.2f}", size(volume), size(counters[f"{moved}_bytes"])]
    if summary["command"] == "backup":
        new, stored = counters["new_bytes"], counters["stored_bytes"]
        cells += [size(new), size(stored), f"{new / stored:.2f}" if stored else "-"]
    else:
        cells += ["-"] * 3
    cells.append(size(volume / max(seconds, 1e-3)))
    said = f"{size(volume)} in {seconds:.2f} s, {moved} {cells[3]}"
    if summary["command"] == "backup":
        said += f", new {cells[4]}, stored as {cells[5]}"
        said += f", {counters['files_unchanged']} of {counters['files']} files unchanged" if counters["files"] else ""
    if engine := summary.get("engine"):
        said += f" ({engine['name']})"
    print(f"  {said}", file=sys.stderr)
    print("\t".join(cells))


def table(rows):
    lines = [COLUMNS] + [row.split("\t") for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    for number, line in enumerate(lines):
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))))
        if number == 0:
            print("  ".join("-" * w for w in widths))
    print("read: from the source; for restore and verify: fetched from the repository. ratio: new / stored.")


def fill(path, mib):
    with open(path, "r+b") as file:
        places = os.fstat(file.fileno()).st_size >> 20
        for place in random.sample(range(places), mib):
            file.seek(place << 20)
            file.write(b"".join(os.urandom(2048) + bytes(2048) for _ in range(256)))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["row", name, path]:
            row(name, path)
        case ["table", *rows]:
            table(rows)
        case ["fill", path, mib]:
            fill(path, int(mib))
        case _:
            sys.exit(__doc__)
