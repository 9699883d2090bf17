#!/usr/bin/env bash
# A block volume comes back identical at every awkward size, from and to files, loop devices with 512 and 4,096 byte
# sectors, standard input and output; with and without a parent, under both io engines. A device that was filled with
# 0xA5 is refused without --overwrite and exact with it. Holes are not read. An incremental backup after scattered
# 4 KiB writes uploads no more than the touched chunks and pages.

# shellcheck source=checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

# shellcheck disable=SC2317,SC2329 # given to check
quietly() { "$@" >"$W/found" 2>&1; }
blocks() { python3 "$ACCEPT/blocks.py" "$@"; }
# same WHAT FIGURES A B [--prefix]
same() {
    local found
    if found=$(blocks same "${@:3}" 2>&1); then ok "$1" "$found; $2"; else bad "$1" "$found; $2"; fi
}

# there_and_back WHAT VOLUME SOURCE TARGET ENGINE BACKUP-OPTIONS...: TARGET is a file or device
RESTORE=()
there_and_back() {
    local what=$1 volume=$2 source=$3 target=$4 engine=$5 backup prefix=()
    must "$what: backup" backup "$source" --volume "$volume" --engine "$engine" "${@:6}" || return 0
    backup="backup $(figures)"
    must "$what: restore" restore latest --volume "$volume" --target "$target" --engine "$engine" "${RESTORE[@]}" || return 0
    [ ! -b "$target" ] || prefix=(--prefix)
    same "$what" "$backup; restore $(figures)" "$source" "$target" "${prefix[@]}"
}

sizes() {
    local size engine file volume first
    for size in 0 1 511 512 4095 256K 256K+512 "$LARGE+512"; do
        file=$W/source-$size
        blocks make "$file" "$size" "$size" "${#size}" >/dev/null
        for engine in "${ENGINES[@]}"; do
            volume=$size-$engine
            there_and_back "$size, $engine, without a parent" "$volume" "$file" "$W/back" "$engine" --parent none
            rm -f "$W/back"
            first=$(must "$size: snapshots" snapshots --volume "$volume" && latest_id)
            [ "$size" = 0 ] || printf 'X' | dd of="$file" bs=1 seek="$(($(stat -c %s "$file") - 1))" conv=notrunc status=none
            there_and_back "$size, $engine, changed, with a parent" "$volume" "$file" "$W/back" "$engine" --parent "$first"
            rm -f "$W/back"
            # Streams: no seeking, no size known before.
            INPUT=$file
            if must "$size, $engine: backup -" backup - --volume "stream-$volume" --engine "$engine"; then
                STATUS=0
                limited "$BINARY" --quiet restore latest --volume "stream-$volume" --target - --engine "$engine" \
                    >"$W/back" 2>"$ERR" || STATUS=$?
                if [ $STATUS = 0 ]; then
                    same "$size, $engine, through standard input and output" "streams" "$file" "$W/back"
                else
                    bad "$size, $engine: restore --target -" "exit code $STATUS: $(said)"
                fi
            fi
            INPUT=/dev/null
            rm -f "$W/back"
        done
        rm "$file"
    done
}
latest_id() {
    python3 -c 'import json, sys; print(json.loads(sys.stdin.readlines()[-1])["snapshots"][-1]["id"])' <"$OUT"
}

devices() {
    local sector extra engine source target other found
    for sector in 512 4096; do
        extra=$sector
        blocks make "$W/source.img" "$LARGE+$extra" "$LARGE" "$sector" >/dev/null
        truncate -s "$(stat -c %s "$W/source.img")" "$W/target.img"
        source=$(loop_dev "$W/source.img" "$sector")
        target=$(loop_dev "$W/target.img" "$sector")
        for engine in "${ENGINES[@]}"; do
            blocks fill "$target" 0 >/dev/null
            there_and_back "device, $sector byte sectors, $engine, to a blank one" "dev-$sector-$engine" "$source" \
                "$target" "$engine" --parent none
            found=$(blocks fill "$target" 0xA5)
            refused "device with data is refused, $sector, $engine" 9 restore latest --volume "dev-$sector-$engine" \
                --target "$target" --engine "$engine"
            check "and is untouched, $sector, $engine" "$found" quietly blocks all "$target" 0 0xA5
            RESTORE=(--overwrite)
            there_and_back "device full of 0xA5, $sector, $engine, --overwrite, with a parent" "dev-$sector-$engine" \
                "$source" "$target" "$engine"
            RESTORE=()
        done
        # Volumes that end within a sector, to a device that is larger: what is beyond them is not theirs.
        blocks noise "$W/odd" 4095 9 >/dev/null
        blocks fill "$target" 0xA5 >/dev/null
        RESTORE=(--overwrite)
        there_and_back "4095 bytes to a device with $sector byte sectors" "odd-$sector" "$W/odd" "$target" auto
        RESTORE=()
        check "beyond its end nothing is written, $sector" "from byte 4095 on all 0xA5" \
            quietly blocks all "$target" 4095 0xA5
        loop_undo "$source"
        # To the device with the other sectors, which is not a multiple of this one's.
        truncate -s "$LARGE_BYTES" "$W/other.img"
        truncate -s "+$((2 * 4096))" "$W/other.img"
        other=$(loop_dev "$W/other.img" $((4608 - sector)))
        there_and_back "file to a larger device with $((4608 - sector)) byte sectors" "cross-$sector" "$W/source.img" \
            "$other" auto
        loop_undo "$other"
        loop_undo "$target"
        rm "$W/source.img" "$W/target.img" "$W/other.img"
    done
}

sparse() {
    local size data image=$W/sparse.img engine bytes chunks read traced
    read -r size data <<<"$(pick '4G 100M' '64G 3G')"
    blocks make "$image" "$size" "$data" 64 >"$W/made"
    read -r bytes chunks <<<"$(blocks data "$image" | tr '\n' ' ')"
    for engine in "${ENGINES[@]}"; do
        there_and_back "sparse image of $size with $data, $engine" "sparse-$engine" "$image" "$W/back" "$engine" --parent none
        check "holes stay holes, $engine" "$(stat -c %b "$W/back") blocks allocated, $(stat -c %b "$image") in the source" \
            test "$(($(stat -c %b "$W/back") * 512))" -le "$chunks"
        rm -f "$W/back"
        must "holes, $engine" backup "$image" --volume "holes-$engine" --engine "$engine" --parent none || continue
        read=$(field counters.read_bytes)
        check "holes are not read, $engine" "$read bytes read, $bytes in extents, $chunks in chunks with any" \
            test "$read" -le "$chunks" -a "$read" -gt 0
    done
    # The kernel's word for it. The other engine's reads are not system calls, so this one shows it.
    RUNNER=(strace -f -qq -o "$W/trace" -P "$image" -e "trace=read,pread64,preadv,preadv2")
    if strace -o /dev/null true 2>/dev/null; then
        if must "traced" backup "$image" --volume traced --engine pread --parent none; then
            traced=$(awk -F '= ' '$NF ~ /^[0-9]+$/ { sum += $NF } END { printf "%.0f", sum }' "$W/trace")
            check "holes are not read, seen by strace" "$traced bytes returned to pread, $chunks in chunks with any" \
                test "$traced" -le "$chunks" -a "$traced" -gt 0
        fi
    else
        skip "holes are not read, seen by strace" "tracing is not allowed here"
    fi
    RUNNER=()
    if full && is_root; then
        truncate -s "$size" "$W/target.img"
        local target
        target=$(loop_dev "$W/target.img" 4096)
        there_and_back "sparse image of $size to a device" sparse-device "$image" "$target" auto
        check "a blank device's backing stays sparse" "$(stat -c %b "$W/target.img") blocks" \
            test "$(($(stat -c %b "$W/target.img") * 512))" -le "$((chunks + (64 << 20)))"
        loop_undo "$target"
        rm "$W/target.img"
    fi
    rm "$image"
}

# A file system that compresses goes on to do so: an image is restored that fits in no other way.
compressing() {
    local place engine image=$W/text.img
    python3 -c 'for n in range(20 << 20): print(f"{n:015}")' >"$image"
    place=$(loop_fs btrfs 256M 512 compress=zstd)
    for engine in "${ENGINES[@]}"; do
        there_and_back "320 MiB that compress, to a btrfs of 256 MiB, $engine" "text-$engine" "$image" "$place/back" "$engine"
        rm -f "$place/back"
    done
    drop_fs "$place"
    rm "$image"
}

# Lists the objects of the repository: size, first bytes that tell packs of data from packs of pages, key.
objects() { python3 "$ACCEPT/objects.py" "$TRADEWIND_REPOSITORY"; }

incremental() {
    local engine image=$W/changing.img writes size chunks=1 leaves data meta other
    read -r size writes <<<"$(pick '512M 40' '2G 300')"
    new_repo "$W/incremental"
    blocks noise "$image" "$size" 5 >/dev/null
    for engine in "${ENGINES[@]}"; do
        must "incremental, $engine: first" backup "$image" --volume "inc-$engine" --engine "$engine" || return 0
        objects >"$W/before"
        must "unchanged, $engine" backup "$image" --volume "inc-$engine" --engine "$engine" || return 0
        objects >"$W/after"
        read -r data meta other <<<"$(python3 "$ACCEPT/objects.py" --new "$W/before" "$W/after")"
        check "nothing changed, $engine" "$data bytes of new data packs, $meta of page packs, $other of other objects" \
            test "$data" = 0 -a "$meta" = 0 -a "$other" -lt 65536
        read -r chunks leaves <<<"$(blocks change "$image" "$writes" "$chunks")"
        cp "$W/after" "$W/before"
        must "incremental, $engine: second" backup "$image" --volume "inc-$engine" --engine "$engine" || return 0
        objects >"$W/after"
        read -r data meta other <<<"$(python3 "$ACCEPT/objects.py" --new "$W/before" "$W/after")"
        # A chunk of noise is stored as it is, with a tag of 16 bytes and a record of 46; a page has up to 1,024 entries.
        check "$writes writes of 4 KiB, $engine: chunks" \
            "$chunks touched, $(field counters.chunks_new) new, $data bytes of new data packs" \
            test "$(field counters.chunks_new)" = "$chunks" -a "$data" -le "$((chunks * (262144 + 62) + 4096))"
        check "$writes writes of 4 KiB, $engine: pages" \
            "$leaves leaves touched, $meta bytes of new page packs, $other of other objects" \
            test "$meta" -le "$(((leaves + 1) * 98304))" -a "$other" -lt $((65536 + chunks * 128))
        must "incremental, $engine: restore" restore latest --volume "inc-$engine" --target "$W/back" || return 0
        same "incremental restores, $engine" "$(figures)" "$image" "$W/back"
        rm "$W/back"
    done
    rm "$image"
}

LARGE=$(pick 64M 1G)
LARGE_BYTES=$(pick 67108864 1073741824)
new_repo "$W/repo"
sizes
if is_root; then devices; else skip "loop devices as source and target" "making them needs root"; fi
sparse
if is_root; then compressing; else skip "a file system that compresses" "mounting it needs root"; fi
must "verify" verify --read-data &&
    ok "verify --read-data" "$(field snapshots) snapshots, $(field packs) packs, $(field checked_bytes) bytes"
rm -rf "$W/repo"
incremental
finish
