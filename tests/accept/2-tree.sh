#!/usr/bin/env bash
# A tree comes back identical by an independent comparison (contents, metadata, attributes, ACLs, hard links, holes):
# /usr, and a tree with everything a backup can get wrong, on ext4, xfs and btrfs, with both io engines. Mount points
# and subvolumes below the root are reported, and nothing below them is taken. An incremental backup is exact as well,
# and so is what somebody without privileges can make and restore.

# shellcheck source=checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

# torture_tree DIR: the tree, a mount point and, on btrfs, a subvolume in it. Sets MOUNTS to their number.
torture_tree() {
    python3 "$FIDELITY/torture.py" "$1" --scale "$(pick small full)" --seed 7 >"$W/made"
    ! grep 'left out' "$W/made" || true
    MOUNTS=1
    mkdir "$1/mount point"
    mount_at "$1/mount point" -t tmpfs tmpfs
    echo "must not be taken" >"$1/mount point/file"
    if [ "$2" = btrfs ]; then
        btrfs subvolume create "$1/subvolume" >/dev/null
        echo "must not be taken" >"$1/subvolume/file"
        MOUNTS=2
    fi
}

# round_trip WHAT VOLUME SOURCE TARGET ENGINE COMPARE-OPTIONS...: PARENT, if set, is what to give as --parent
PARENT=()
round_trip() {
    local what=$1 volume=$2 source=$3 target=$4 engine=$5 backup
    must "$what: backup" backup "$source" --volume "$volume" --engine "$engine" "${PARENT[@]}" || return 0
    cp "$OUT" "$W/backup.json"
    backup="backup $(figures)"
    must "$what: restore" restore latest --volume "$volume" --target "$target" --engine "$engine" || return 0
    same_tree "$what" "$backup; restore $(figures)" "$source" "$target" "${@:6}"
}

on_file_system() { # KIND
    local kind=$1 dir engine parent seed=1
    dir=$(loop_fs "$kind" "$(pick 1G 4G)")
    torture_tree "$dir/source" "$kind"
    sleep 2 # what changed in the second before a backup is read again by the next one
    for engine in "${ENGINES[@]}"; do
        PARENT=(--parent none)
        round_trip "torture tree on $kind, $engine" "$kind-$engine" "$dir/source" "$dir/back" "$engine" --one-file-system
        check "mount points below the root, $kind, $engine" "$(in_backup mounts) reported, $MOUNTS there" \
            [ "$(in_backup mounts)" = "$MOUNTS" ]
        must "ls, $kind" ls latest --volume "$kind-$engine" || true
        check "ls marks them, $kind, $engine" "$(grep -c '"mount":true' "$OUT" || true) entries" \
            [ "$(grep -c '"mount":true' "$OUT")" = "$MOUNTS" ]
        check "nothing below them came back, $kind, $engine" "'mount point' is empty" \
            test -z "$(find "$dir/back/mount point" "$dir/back/subvolume" -mindepth 1 2>/dev/null || true)"
        rm -rf --one-file-system "$dir/back"
        # Incremental: a part of the tree changes, in every way a tree can.
        parent=$(in_backup snapshot)
        python3 "$FIDELITY/torture.py" mutate "$dir/source" --seed "$((++seed))" >"$W/mutated" 2>&1 ||
            bad "mutate on $kind" "$(tail -n 1 "$W/mutated")"
        PARENT=()
        round_trip "changed tree on $kind, $engine, incremental" "$kind-$engine" "$dir/source" "$dir/back" "$engine" \
            --one-file-system
        check "incremental on $kind, $engine" \
            "$(in_backup counters.files_unchanged) of $(in_backup counters.files) files not opened, parent $(in_backup parent)" \
            test "$(in_backup parent)" = "$parent" -a "$(in_backup counters.files_unchanged)" -gt 0
        rm -rf --one-file-system "$dir/back"
    done
    must "$kind: verify" verify --read-data && ok "verify --read-data after $kind" \
        "$(field snapshots) snapshots, $(field packs) packs, $(field damages) damages"
    tw_umount "$dir/source/mount point"
    drop_fs "$dir"
}
in_backup() { python3 "$ACCEPT/summary.py" "$W/backup.json" "$1"; }

# The machine's programs go from one file system to the next, each time by a backup and a restore; every copy is
# compared with the original, so that each file system is source and target.
chain() { # ENGINE-OF-ODD-LINKS ENGINE-OF-EVEN-LINKS
    local from=$1 engine link=0 source=$2 kind dir before=''
    for kind in ext4 xfs btrfs ext4; do
        engine=${CHAIN[$((link % 2))]}
        dir=$(loop_fs "$kind" "$SPACE")
        what="$from, link $link: ${before:-here} to $kind, $engine"
        if must "$what: backup" backup "$source" --volume "chain-$link-${CHAIN[0]}" --engine "$engine" --parent none; then
            cp "$OUT" "$W/backup.json"
            if must "$what: restore" restore latest --volume "chain-$link-${CHAIN[0]}" --target "$dir/copy" --engine "$engine"; then
                same_tree "$what" "backup $(python3 "$ACCEPT/summary.py" "$W/backup.json"); restore $(figures)" \
                    "$from" "$dir/copy" --one-file-system
            fi
        fi
        [ -z "$before" ] || drop_fs "${source%/copy}"
        source=$dir/copy before=$kind link=$((link + 1))
        [ -d "$source" ] || return 0
    done
    drop_fs "$dir"
}

# Without privileges: as nobody, or as who runs this when that is not root.
unprivileged() {
    local dir=$W/unprivileged
    mkdir -m 0755 "$dir"
    cp "$BINARY" "$dir/tradewind"
    limited "$BINARY" --quiet key generate "$dir/key"
    if is_root; then
        RUNNER=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
        chmod 0644 "$dir/key"
        chown -R nobody:nogroup "$dir"
    fi
    local binary=$BINARY key=$TRADEWIND_KEY_FILE repository=$TRADEWIND_REPOSITORY cache=$TRADEWIND_CACHE_DIR
    BINARY=$dir/tradewind
    export TRADEWIND_KEY_FILE=$dir/key TRADEWIND_REPOSITORY=$dir/repo TRADEWIND_CACHE_DIR=$dir/cache
    # Neither this clone nor the Python of whoever runs this need be theirs to read.
    cp -r "$FIDELITY" "$dir/fidelity"
    chmod -R a+rX "$dir/fidelity"
    "${RUNNER[@]}" env PATH=/usr/local/bin:/usr/bin:/bin python3 "$dir/fidelity/torture.py" "$dir/source" >"$W/made"
    if must "without privileges: init" init; then
        round_trip "a tree of nobody's, by nobody" nobody "$dir/source" "$dir/back" auto --no-privileged
    fi
    BINARY=$binary
    if is_root; then
        # What root saved, restored by nobody: all that nobody may have.
        RUNNER=()
        export TRADEWIND_CACHE_DIR=$cache
        python3 "$FIDELITY/torture.py" "$dir/of-root" --seed 3 >"$W/made"
        must "root saves for nobody" backup "$dir/of-root" --volume of-root || true
        chown -R nobody:nogroup "$dir/repo"
        RUNNER=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
        BINARY=$dir/tradewind
        export TRADEWIND_CACHE_DIR=$dir/cache
        tw restore latest --volume of-root --target "$dir/by-nobody" --privileged-metadata off
        RUNNER=()
        # Devices are left out, each with a line, and nothing else is.
        local made left other
        made=$(find "$dir/of-root" \( -type b -o -type c \) -printf x | wc -c)
        left=$(grep -c '"message_type":"skipped".*device left out' "$OUT" || true)
        other=$(grep '"message_type":"skipped"' "$OUT" | grep -vc 'device left out' || true)
        check "nobody restores what root saved" "exit code $STATUS, $left of $made devices left out, $other others; $(said)" \
            test "$STATUS" = 3 -a "$left" = "$made" -a "$made" -gt 0 -a "$other" = 0
        if [ "$STATUS" = 3 ]; then
            same_tree "root's tree, restored by nobody with --privileged-metadata off" "$(figures)" \
                "$dir/of-root" "$dir/by-nobody" --no-privileged
        fi
    fi
    RUNNER=() BINARY=$binary
    export TRADEWIND_KEY_FILE=$key TRADEWIND_REPOSITORY=$repository TRADEWIND_CACHE_DIR=$cache
}

new_repo "$W/repo"
if is_root; then
    for kind in ext4 xfs btrfs; do on_file_system "$kind"; done
    if full; then tree=/usr SPACE=24G; else tree=$(pick_tree 150000) SPACE=2G; fi
    CHAIN=(uring pread) && chain "$tree" "$tree"
    if full; then CHAIN=(pread uring) && chain "$tree" "$tree"; fi
else
    skip "torture tree and /usr on ext4, xfs and btrfs" "making file systems needs root"
    python3 "$FIDELITY/torture.py" "$W/source" >"$W/made"
    for engine in "${ENGINES[@]}"; do
        round_trip "torture tree, $engine" "here-$engine" "$W/source" "$W/back-$engine" "$engine" --no-privileged
    done
fi
unprivileged
finish
