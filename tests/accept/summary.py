#!/usr/bin/env python3
"""Values of the last JSON line that the program wrote: summary.py FILE NAME..., each on a line; null is empty.

Without names: what the run did, in few words.
"""

import json
import sys


def last(path):
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def size(value):
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return ""


def words(message):
    counters = message.get("counters", {})
    names = {"done": "volume", "read": "read", "reused": "reused", "new": "new", "uploaded": "uploaded",
             "fetched": "fetched", "written": "written"}  # fmt: skip
    parts = [f"{text} {size(counters[key + '_bytes'])}" for key, text in names.items() if counters.get(key + "_bytes")]
    if files := counters.get("files"):
        parts.append(f"{files} files")
    if message.get("engine"):
        parts.append(message["engine"]["name"])
    if "elapsed_seconds" in message:
        parts.append(f"{message['elapsed_seconds']:.1f} s")
    return ", ".join(parts)


def main(path, *names):
    message = last(path)
    for name in names:
        value = message
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        print("" if value is None else value)
    if not names:
        print(words(message))


if __name__ == "__main__":
    main(*sys.argv[1:])
