# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
# Shared by the test scripts: messages, a private work directory, loop devices, file systems, and a teardown that
# undoes what was done here and nothing else. Source it; it sets a trap on EXIT:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#     require_root
#     dir=$(loop_fs xfs 1G)            # a fresh file system, mounted; prints where
#     dev=$(loop_dev image.raw 4096)   # a loop device with 4,096-byte sectors; prints /dev/loopN
#
# Functions are called in $( ), that is in sub-shells, so what must be undone is kept in a file, not in variables.
# A run that was killed with SIGKILL leaves its work directory behind; the next run finds it and tears it down.

set -o errexit -o nounset -o pipefail
shopt -s inherit_errexit
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

TW_NAME=$(basename "$0" .sh)
TW_REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TW_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/tradewind
TW_TMP=${TMPDIR:-/tmp}

log() { printf '%s: %s\n' "$TW_NAME" "$*" >&2; }
fail() {
    printf '%s: error: %s\n' "$TW_NAME" "$*" >&2
    exit 1
}
is_root() { [ "$(id -u)" = 0 ]; }
require_root() { is_root || fail "${1:-this} needs root: run it as root or with sudo"; }
have() { command -v "$1" >/dev/null 2>&1; }

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds; status 1 and a message when the time is over.
wait_for() {
    local limit=$1 what=$2 end
    shift 2
    end=$((SECONDS + limit))
    until "$@"; do
        if [ "$SECONDS" -ge "$end" ]; then
            log "waited ${limit} s for $what"
            return 1
        fi
        sleep 0.05
    done
}

# A process is told from a later one with the same number by its start time.
tw_start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# work_dir: the private directory of this run; made at the first call, removed with everything in it at the end.
work_dir() {
    if [ ! -d "$TW_WORK" ]; then
        mkdir -m 0755 "$TW_WORK"
        echo "$TW_OWNER $(tw_start_time "$TW_OWNER")" >"$TW_WORK/owner"
        : >"$TW_WORK/undo"
    fi
    echo "$TW_WORK"
}
tw_undo_later() { echo "$*" >>"$(work_dir)/undo"; }

# loop_dev FILE [SECTOR]: attaches FILE to a free loop device with direct I/O; prints the device.
loop_dev() {
    local file sector=${2:-512} dev try
    require_root "loop_dev"
    [ -f "$1" ] || fail "loop_dev: $1 is no file"
    file=$(realpath -- "$1")
    for try in 1 2 3 4 5 6 7 8 9 10; do
        dev=$(losetup --find 2>/dev/null) || fail "no loop devices here (is /dev/loop-control missing?)"
        # Containers without devtmpfs have the first few nodes only.
        [ -b "$dev" ] || mknod "$dev" b 7 "${dev#/dev/loop}" || true
        if losetup --sector-size "$sector" "$dev" "$file" 2>/dev/null; then
            tw_undo_later "loop $dev $file"
            losetup --direct-io=on "$dev" 2>/dev/null || log "$dev: direct I/O is not possible on $file, going on without"
            echo "$dev"
            return
        fi
        # Another process may have taken the device between the two calls.
        sleep "0.0$try"
    done
    fail "no loop device for $file with sectors of $sector bytes: $(losetup --sector-size "$sector" "$dev" "$file" 2>&1)"
}

# loop_undo DEVICE: detaches a device that loop_dev attached, before the end of the run.
loop_undo() { losetup --detach "$1" && sed -i "\\,^loop $1 ,d" "$(work_dir)/undo"; }

# loop_fs KIND SIZE [SECTOR] [MOUNT-OPTIONS]: makes a file system (ext4, xfs, btrfs) in a sparse image; prints where
# it is mounted.
loop_fs() {
    local kind=$1 size=$2 sector=${3:-512} options=${4:-defaults} work image dev dir out
    require_root "loop_fs"
    have "mkfs.$kind" || fail "mkfs.$kind is missing: run tests/setup.sh packages"
    work=$(work_dir)
    image=$(mktemp -p "$work" "$kind.XXXXXX.img")
    truncate -s "$size" "$image"
    dev=$(loop_dev "$image" "$sector")
    case $kind in
    ext4) out=$(mkfs.ext4 -q -F -E lazy_itable_init=1,lazy_journal_init=1 "$dev" 2>&1) ;;
    xfs) out=$(mkfs.xfs -q -f "$dev" 2>&1) ;;
    btrfs) out=$(mkfs.btrfs -q -f "$dev" 2>&1) ;;
    *) fail "loop_fs: unknown kind '$kind' (ext4, xfs, btrfs)" ;;
    esac || fail "mkfs.$kind on $dev ($size): ${out%%$'\n'*}"
    dir=$(mktemp -d -p "$work" "$kind.XXXXXX")
    mount_at "$dir" -o "$options" "$dev"
    chmod 0755 "$dir"
    echo "$dir"
}

# mount_at DIR MOUNT-ARGUMENTS...: mounts at DIR and unmounts it at the end.
mount_at() {
    local dir=$1
    shift
    tw_undo_later "umount $dir"
    mount "$@" "$dir" || fail "mount $* $dir"
}

tw_umount() {
    mountpoint -q "$1" || return 0
    # Busy for a moment is usual: a killed process is still closing its files.
    wait_for 20 "$1 to be unmounted" umount --recursive "$1" 2>/dev/null || umount --recursive "$1"
}
tw_detach() {
    local now
    now=$(losetup --noheadings --output BACK-FILE "$1" 2>/dev/null) || return 0
    [ "${now% (deleted)}" = "$2" ] || return 0 # it serves someone else by now
    losetup --detach "$1"
}

# Undoes, last first, what the work directory $1 says; removes the directory only if all went well.
tw_teardown() {
    local work=$1 bad=0 what first second
    while read -r what first second; do
        case $what in
        umount) tw_umount "$first" || bad=1 ;;
        loop) tw_detach "$first" "$second" || bad=1 ;;
        esac
    done < <(tac "$work/undo")
    if [ $bad = 0 ]; then
        rm -rf --one-file-system "$work"
    else
        log "left behind: $work (see the messages above; its file 'undo' lists what is to be undone)"
        return 1
    fi
}

# cleanup: called by the trap; may be called earlier.
cleanup() {
    [ -f "$TW_WORK/undo" ] || return 0
    tw_teardown "$TW_WORK"
}

# Tears down what killed runs of the same user left behind.
tw_sweep() {
    local work pid start
    for work in "$TW_TMP"/tradewind-test.*; do
        if ! [ -f "$work/owner" ] || ! [ -O "$work/owner" ]; then continue; fi
        read -r pid start <"$work/owner" || continue
        [ "$(tw_start_time "$pid")" = "$start" ] && continue
        log "tearing down what a killed run left in $work"
        # shellcheck disable=SC2094 # the directory is opened for its lock alone
        (flock --nonblock 9 && tw_teardown "$work") 9<"$work" || true
    done
}

TW_OWNER=$$
TW_WORK=$TW_TMP/tradewind-test.$$.$RANDOM$RANDOM
# Whoever sources this may define before_cleanup: what must have ended before its directory goes.
tw_exit() {
    local status=$?
    trap - EXIT
    if declare -F before_cleanup >/dev/null; then before_cleanup || status=1; fi
    cleanup || status=1
    exit $status
}
trap tw_exit EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
tw_sweep
