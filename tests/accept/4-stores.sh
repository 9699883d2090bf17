#!/usr/bin/env bash
# The same jobs against a local directory and two independent S3 servers, one of them behind TLS with a private CA,
# uploads in parts included. What goes over the wire is recorded: over TLS payloads are unsigned and carry their
# CRC64NVME, which is computed again from what the server stored. Behind a proxy that drops the conditional headers
# `init` refuses, and leaves nothing that could be used.

# shellcheck source=checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

sources() {
    python3 "$FIDELITY/torture.py" "$W/tree" >"$W/made"
    # More noise than one pack holds, so that several are sent in parts, and a tail that is not aligned.
    python3 "$ACCEPT/blocks.py" noise "$W/image" "$(pick 80M+513 400M+513)" 11 >/dev/null
}

# jobs_at WHAT LOCATION [INIT-OPTIONS]: all of it once
jobs_at() {
    local what=$1
    new_repo "${@:2}"
    if must "$what: tree" backup "$W/tree" --volume tree --tag kind=tree; then
        ok "$what: backup of a tree" "$(figures)"
    fi
    if must "$what: image" backup "$W/image" --volume image; then
        ok "$what: backup of an image" "$(figures), $(field counters.packs) packs"
    fi
    if must "$what: again" backup "$W/image" --volume image; then
        check "$what: again, nothing is new" "$(field counters.new_bytes) bytes new, $(field counters.uploaded_bytes) uploaded" \
            test "$(field counters.new_bytes)" = 0
    fi
    if must "$what: restore tree" restore latest --volume tree --target "$W/back"; then
        same_tree "$what: tree" "$(figures)" "$W/tree" "$W/back"
    fi
    rm -rf "$W/back"
    if must "$what: restore image" restore latest --volume image --target "$W/back"; then
        check "$what: image" "cmp; $(figures)" cmp "$W/image" "$W/back"
    fi
    rm -rf "$W/back"
    if must "$what: verify" verify --read-data; then
        check "$what: verify --read-data" "$(field snapshots) snapshots, $(field packs) packs, $(field damages) damages" \
            test "$(field snapshots)" = 3 -a "$(field damages)" = 0
    fi
    # Another machine: nothing but the bucket and the key.
    rm -rf "$TRADEWIND_CACHE_DIR"
    if must "$what: snapshots" snapshots --tag kind=tree; then
        check "$what: found again by its tag" "$(grep -o '"volume":"tree"' "$OUT" | wc -l) snapshot" \
            test "$(grep -o '"volume":"tree"' "$OUT" | wc -l)" = 1
    fi
}

# wire WHAT LOG OPTIONS...: what the proxy saw
wire() {
    local verdict found
    while read -r verdict found; do
        if [ "$verdict" = ok ]; then ok "$1" "$found"; else bad "$1" "$found"; fi
    done < <(python3 "$ACCEPT/wire.py" "${@:2}" || echo "FAIL the log could not be read")
}

sources
jobs_at "directory" "$W/local"
rm -rf "$W/local"

# This server looks whether an object is there and writes it then: of several creations at the same time more than one
# may win. The probe races, and must notice; now and again such a server is lucky.
not_exclusive() {
    local try
    for try in {1..20}; do
        export TRADEWIND_REPOSITORY=s3://$S3_BUCKET/racing-$try
        tw init
        [ "$STATUS" = 0 ] || break
    done
    check "s3s-fs: init refuses a server on which two creations can win" \
        "exit code $STATUS at attempt $try of at most 20; $(said)" test "$STATUS" = 7
}

serve s3s-fs plain
not_exclusive
# The proxy hands on what it gets: quick runs go through it alone.
! full || jobs_at "s3s-fs, plain HTTP" "s3://$S3_BUCKET/some/prefix" --single-writer
proxy plain-proxy
jobs_at "s3s-fs, recorded" "s3://$S3_BUCKET/recorded" --single-writer
wire "s3s-fs" "$W/plain-proxy.log" --plain
stop_servers
rm -rf "$W/plain"

serve versitygw tls
! full || jobs_at "versitygw, TLS with a private CA" "s3://$S3_BUCKET/some/prefix"
wrong=("${STORE[@]}")
STORE=(--endpoint "$S3_ENDPOINT" --region "$AWS_REGION" --path-style)
refused "without the CA's certificate nobody is trusted" 6 snapshots
STORE=("${wrong[@]}")
proxy tls-proxy
jobs_at "versitygw, recorded" "s3://$S3_BUCKET/recorded"
wire "versitygw, TLS" "$W/tls-proxy.log" --stored "$W/tls/data"

# A server that accepts the conditional headers and ignores them: no two writers could be kept apart.
STORE=("${wrong[@]}")
proxy dropping --drop-conditional
export TRADEWIND_REPOSITORY=s3://$S3_BUCKET/unsafe
refused "init where create-if-absent is ignored" 7 init
left=$(find "$W/tls/data/$S3_BUCKET/unsafe" -type f 2>/dev/null | grep -v '/probe/' || true)
check "it leaves nothing that could be used" "$(find "$W/tls/data/$S3_BUCKET/unsafe" -type f 2>/dev/null | wc -l) objects" \
    test -z "$left"
refused "there is no repository then" 7 snapshots
if must "init --single-writer" init --single-writer; then
    check "unless one writer is accepted" "single_writer $(field single_writer)" test "$(field single_writer)" = True
fi
stop_servers
finish
