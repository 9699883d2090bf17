#!/usr/bin/env bash
# Shows Tradewind at work on this machine's own data: a directory tree and a file-system image go into a repository in
# a temporary directory, change, go in again, come back, and are compared with what they were, byte for byte and
# attribute for attribute, by a program that shares no code with Tradewind.
#
#   tests/demo.sh [DIRECTORY]        (`make demo`; the directory is /usr/share, or a part of it when it is over 4 GiB)
#
# As root the image is on a loop device, mounted, filled and restored to a second device; without root it is a file.
# Everything is in one temporary directory ($TMPDIR, /var/tmp) and gone at the end. Builds for release first.

TMPDIR=${TMPDIR:-/var/tmp}
export TMPDIR
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TW_REPO" || exit 1

LIMIT=$((4 << 30)) # bytes of the tree at most
IMAGE=$((1 << 30)) # bytes of the image

# The few things a demonstration needs; the tests' packages and servers are not among them.
needed=(cc python3 cmp)
is_root && needed+=(losetup mkfs.ext4)
for command in "${needed[@]}"; do
    have "$command" || { tests/setup.sh packages && break; }
done
have cargo || fail "cargo is missing: install Rust first (rustup)"
log "building for release, without tests (a few minutes the first time)"
# For the whole workspace, as everywhere: for one package alone dependencies get other features and are built again.
cargo build --release --locked --workspace --bin tradewind
tradewind=${CARGO_TARGET_DIR:-$TW_REPO/target}/release/tradewind

trap 'log "stopped at line $LINENO of $0: $BASH_COMMAND"' ERR
work=$(work_dir)
rows=()
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# run NAME ARGUMENTS...: runs tradewind, shows its summary, keeps its figures for the table. Exit code 3 (done, but
# something was skipped) is part of the demonstration: what was skipped is named, and the comparison has to see it.
run() {
    local name=$1 status=0
    shift
    printf '$ tradewind %s\n' "$*"
    "$tradewind" --json "$@" >"$work/json" || status=$?
    rows+=("$(python3 tests/demo_table.py row "$name" "$work/json")")
    [ $status = 0 ] || [ $status = 3 ] || fail "tradewind $1 ended with $status"
}

same_tree() { # SOURCE TARGET OPTIONS...
    printf '$ tests/fidelity/compare.py %s\n' "$*"
    python3 tests/fidelity/compare.py "$@" || fail "the restored tree differs"
}

# some_files DIRECTORY NUMBER: the first files there that are not large. `find` is cut off by `head`, and may be.
some_files() {
    { find "$1" -type f -size -4M -print0 || true; } 2>/dev/null | head --zero-terminated --lines="$2"
}

# -- what to back up -------------------------------------------------------------------------------------------------
tree=${1:-/usr/share}
[ -d "$tree" ] || fail "$tree is no directory"
# What this user may not read is not counted, and no failure.
sizes() { du --block-size=1 --one-file-system "$@" 2>/dev/null || true; }
bytes() { sizes --summarize "$1" | cut -f1; }
if [ "$(bytes "$tree")" -gt $LIMIT ]; then
    # Its largest directory that fits.
    whole=$tree
    tree=$(sizes --max-depth=1 "$whole" | sort --numeric-sort |
        awk -v limit=$LIMIT -v whole="$whole" '$1 <= limit && $2 != whole { found = $2 } END { print found }')
    [ -n "$tree" ] || fail "nothing below $whole fits into $LIMIT bytes"
    log "$whole is over 4 GiB: taking $tree"
fi
room=$(df --output=avail --block-size=1 "$TMPDIR" | tail -n 1)
need=$(($(bytes "$tree") * 3 + IMAGE * 3))
[ "$room" -gt $need ] || fail "$TMPDIR has too little room: $((need >> 20)) MiB are needed (set TMPDIR)"

export TRADEWIND_REPOSITORY=$work/repository TRADEWIND_PASSWORD_FILE=$work/passphrase TRADEWIND_CACHE_DIR=$work/cache
(umask 077 && head -c 24 /dev/urandom | base64 >"$TRADEWIND_PASSWORD_FILE")

say "a repository, with a passphrase of its own"
"$tradewind" init

# -- a tree ----------------------------------------------------------------------------------------------------------
# A copy, so that something can change without touching the machine.
say "a copy of $tree, to be backed up and changed"
mkdir "$work/tree"
cp --archive --sparse=auto --one-file-system --reflink=auto "$tree/." "$work/tree/" 2>"$work/cp" ||
    log "some of it is not readable for this user and left out of the copy ($(wc -l <"$work/cp") lines)"
privileges=()
is_root || privileges=(--no-owner --no-privileged)

# A file that changed less than a second before a backup is read again by the next one, and these are new.
sleep 2
say "the tree: first backup"
run "tree: first backup" backup "$work/tree" --volume demo-tree
say "the tree: nothing has changed"
run "tree: nothing changed" backup "$work/tree" --volume demo-tree
say "the tree: files appended to, replaced, removed, renamed, added"
python3 tests/fidelity/torture.py mutate "$work/tree" --seed 1
run "tree: after changes" backup "$work/tree" --volume demo-tree
say "the tree: restored, and compared with what was backed up"
run "tree: restore" restore latest --volume demo-tree --target "$work/tree-restored"
same_tree "$work/tree" "$work/tree-restored" "${privileges[@]}"

# -- a block volume --------------------------------------------------------------------------------------------------
say "an image of a file system: $((IMAGE >> 20)) MiB, sparse"
truncate --size $IMAGE "$work/image"
if is_root; then
    device=$(loop_dev "$work/image")
    mkfs.ext4 -q "$device"
    mkdir "$work/mnt"
    mount_at "$work/mnt" "$device"
    some_files "$work/tree" 4000 | xargs -0 cp --parents -t "$work/mnt" --
    umount "$work/mnt"
    volume=$device
else
    log "not root: no loop device, no file system on it, no restore to a device; an image file instead"
    python3 tests/demo_table.py fill "$work/image" 300
    volume=$work/image
fi
change_volume() {
    if is_root; then
        mount_at "$work/mnt" "$volume"
        head -c 8M /dev/urandom >"$work/mnt/new-file"
        some_files "$work/mnt" 50 | xargs -0 rm --
        umount "$work/mnt"
    else
        python3 tests/demo_table.py fill "$work/image" 8
    fi
}

say "the volume: first backup"
run "volume: first backup" backup "$volume" --volume demo-volume
say "the volume: some of it changes"
change_volume
run "volume: after changes" backup "$volume" --volume demo-volume
say "the volume: restored to a file, and compared"
run "volume: restore to a file" restore latest --volume demo-volume --target "$work/image-restored"
cmp "$volume" "$work/image-restored" || fail "the restored image differs"
echo "identical: $(stat --format %s "$work/image-restored") bytes, $(du --block-size=1M "$work/image-restored" | cut -f1) MiB on disk"
if is_root; then
    say "the volume: restored over a used device, and compared"
    # Filled with 0xA5: what is a hole in the volume must really become zeros.
    head -c $IMAGE /dev/zero | tr '\0' '\245' >"$work/used"
    used=$(loop_dev "$work/used")
    run "volume: restore to a device" restore latest --volume demo-volume --target "$used" --overwrite
    cmp "$volume" "$used" || fail "the restored device differs"
    echo "identical"
fi

# -- the repository --------------------------------------------------------------------------------------------------
say "what is there"
"$tradewind" snapshots
say "every byte of the repository, read and checked"
run "verify, every byte" verify --read-data

say "what happened"
python3 tests/demo_table.py table "${rows[@]}"
printf '\nrepository: %s MiB on disk for 5 snapshots\n' "$(du --summarize --block-size=1M "$TRADEWIND_REPOSITORY" | cut -f1)"
is_root || echo "left out without root: loop devices and mounts, restoring to a device, owners of others"
echo "All comparisons were identical."
