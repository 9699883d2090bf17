#!/usr/bin/env bash
# Runs a command with the build folder that the checkouts of a user share ($CARGO_TARGET_DIR), one checkout at a time:
#
#   tests/with-builds.sh COMMAND...
#
# Dependencies are the same for all and are kept. Our own crates are not: Cargo names what it builds by the path below
# the checkout and decides by times whether it is fresh, so it would take another checkout's programs for this one's.
# They are thrown away when the checkout changes.
set -o errexit -o nounset -o pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
: "${CARGO_TARGET_DIR:=${XDG_CACHE_HOME:-$HOME/.cache}/tradewind/target}"
export CARGO_TARGET_DIR
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" && exit 2; }

if [ "${TRADEWIND_BUILDS_HELD:-}" != "$CARGO_TARGET_DIR" ]; then
    mkdir -p "$CARGO_TARGET_DIR"
    lock=$CARGO_TARGET_DIR/checkout.lock
    export TRADEWIND_BUILDS_HELD=$CARGO_TARGET_DIR
    if ! flock --nonblock "$lock" true; then
        echo "with-builds: another run uses $CARGO_TARGET_DIR, waiting for it (CARGO_TARGET_DIR=... to build apart)" >&2
    fi
    # Closed in the command: what it leaves running must not hold the lock.
    exec flock --close "$lock" "$root/tests/with-builds.sh" "$@"
fi

cd "$root"
this="$root $(stat --format '%i %W' .)"
if [ "$(cat "$CARGO_TARGET_DIR/checkout" 2>/dev/null)" != "$this" ]; then
    # Also the first time: nobody knows whose builds a folder without that file has.
    mapfile -t crates < <(find . -mindepth 2 -maxdepth 4 -name Cargo.toml -exec \
        sed -n 's/^name = "\(tradewind-[a-z0-9-]*\)"$/--package=\1/p' {} +)
    cargo clean --quiet "${crates[@]}"
    cargo clean --quiet --release "${crates[@]}"
    echo "$this" >"$CARGO_TARGET_DIR/checkout"
fi
exec "$@"
