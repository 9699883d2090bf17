#!/usr/bin/env bash
# Holds loop devices and file systems for a test program: makes them, prints one line for each, and takes all of them
# away when standard input ends (the program holds the other end of a pipe, so they go when it does).
#
#   loops.sh ITEM...
#       fs:KIND:SIZE[:SECTOR[:MOUNT-OPTIONS]]   a fresh ext4, xfs or btrfs; prints where it is mounted
#       dev:FILE[:SECTOR]                       a loop device on FILE (direct I/O); prints /dev/loopN
#
# For instance: loops.sh fs:xfs:1G fs:ext4:2G:4096 dev:/tmp/image.raw:4096

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ $# = 0 ] || [ "$1" = --help ]; then
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
fi
require_root "making loop devices"
for item in "$@"; do
    IFS=: read -r what first second third fourth <<<"$item"
    case $what in
    fs) loop_fs "$first" "${second:?$item: no size}" "${third:-512}" "${fourth:-defaults}" ;;
    dev) loop_dev "$first" "${second:-512}" ;;
    *) fail "'$item' is neither fs:KIND:SIZE nor dev:FILE" ;;
    esac
done
# A builtin, so that a signal ends it at once.
while read -r _; do :; done
