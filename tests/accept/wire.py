#!/usr/bin/env python3
"""What an S3 client asked, from the log of s3-proxy: wire.py LOG [--plain] [--stored DIR]

Prints one line of "ok" or "FAIL" for each thing that must be so. Over TLS every PUT and every part must have an unsigned payload and a
CRC64NVME; with --stored the checksums of small objects are computed again from what the server has in DIR/BUCKET/KEY.
"""

import argparse
import base64
import collections
import json
import os

SMALL = 256 << 10  # in plain Python about a second for each MB
POLYNOMIAL = 0x9A6C9329AC4BC9B5  # CRC64NVME, reflected


def table():
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        rows.append(value)
    return rows


ROWS = table()


def crc64nvme(data):
    value = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        value = ROWS[(value ^ byte) & 255] ^ value >> 8
    return base64.b64encode((value ^ 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")).decode()


def verdict(good, what, figures):
    print(f"{'ok' if good else 'FAIL'} {what}: {figures}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--stored")
    options = parser.parse_args()
    with open(options.log, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    operations = collections.Counter(r["operation"] for r in records)
    sent = [r for r in records if r["operation"] in ("PutObject", "UploadPart")]
    done = operations["CompleteMultipartUpload"]
    verdict(done >= 1 and operations["UploadPart"] >= 2 * done, "uploads in parts",
            f"{operations['UploadPart']} parts in {done} uploads, {operations['PutObject']} single")  # fmt: skip
    unsigned = sum(r["headers"].get("x-amz-content-sha256") == "UNSIGNED-PAYLOAD" for r in sent)
    summed = sum(bool(r["headers"].get("x-amz-checksum-crc64nvme")) for r in sent)
    if not options.plain:
        verdict(sent and unsigned == len(sent), "payloads are unsigned", f"{unsigned} of {len(sent)} bodies")
    verdict(sent and summed == len(sent), "bodies carry x-amz-checksum-crc64nvme", f"{summed} of {len(sent)} bodies")
    verdict(all(r["signed"] for r in records), "every request is signed", f"{len(records)} requests")
    creating = [r for r in records if r["operation"] in ("PutObject", "CompleteMultipartUpload")]
    conditional = sum(r["headers"].get("if-none-match") == "*" for r in creating)
    verdict(creating and conditional == len(creating), "objects are created only if absent",
            f"{conditional} of {len(creating)} have If-None-Match: *")  # fmt: skip
    if options.stored:
        recomputed(records, options.stored)


def recomputed(records, top):
    right = wrong = 0
    for r in records:
        path = os.path.join(top, r["bucket"], r["key"])
        if (
            r["operation"] != "PutObject"
            or r["status"] != 200
            or r["request_bytes"] > SMALL
            or not os.path.isfile(path)
        ):
            continue
        with open(path, "rb") as file:
            data = file.read()
        if len(data) == r["request_bytes"]:
            same = crc64nvme(data) == r["headers"].get("x-amz-checksum-crc64nvme")
            right, wrong = right + same, wrong + (not same)
    verdict(right and not wrong, "checksums computed again from what is stored", f"{right} right, {wrong} wrong")


if __name__ == "__main__":
    assert crc64nvme(b"123456789") == base64.b64encode(0xAE8B14860A799888.to_bytes(8, "big")).decode()
    main()
