#!/usr/bin/env bash
# Shows what Tradewind promises by doing it: one script per promise, each check with its figures, and a report.
#
#   tests/accept.sh [--quick] [--only LINE,...] [--binary PATH] [--out DIR]
#
# --quick    scaled-down sizes: minutes instead of hours
# --only     some of the lines: 2 trees, 3 block volumes, 4 stores, 5 memory, 6 kill -9, 7 damage
# --binary   the program to test (default: built here, for release; with --quick as `make test` builds it)
# --out      where report.md and the output of every script go (default: ~/.cache/tradewind/accept, or .../accept-quick)
#
# Root is needed for file systems, devices and owners; without it what needs it is skipped, and said. Big data goes to
# $TMPDIR (/var/tmp): up to 40 GB, with --quick 3 GB. Ends with 0 only if every check of every script passed.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
export TMPDIR=${TMPDIR:-/var/tmp}

declare -A SCRIPT=([2]=2-tree.sh [3]=3-block.sh [4]=4-stores.sh [5]=5-memory.sh [6]=6-kill.py [7]=7-damage.py)
quick='' only=2,3,4,5,6,7 binary='' out=''
while [ $# -gt 0 ]; do
    case $1 in
    --only | --binary | --out) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
    --quick) quick=--quick ;;
    --only) only=$2 && shift ;;
    --binary) binary=$(realpath -- "$2") && shift ;;
    --out) out=$2 && shift ;;
    -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *) fail "unknown option '$1' (--quick --only --binary --out)" ;;
    esac
    shift
done
out=${out:-$TW_CACHE/accept${quick:+-quick}}
mkdir -p "$out"
out=$(realpath "$out")

# The program, and the programs of the tests: taken from beside it, or built.
tools=${binary:+$(dirname "$binary")}
if [ -z "$binary" ] || ! [ -x "$tools/s3-proxy" ] || ! [ -x "$tools/foreign-index" ]; then
    profile=${quick:+dev}
    profile=${profile:-release}
    # All of the workspace, as everywhere: for one package alone dependencies get other features and are built again.
    build=(cargo build --locked --profile "$profile" --workspace --bins)
    log "building (${build[*]})"
    (cd "$TW_REPO" && "${build[@]}") || fail "the build failed"
    tools=$(cd "$TW_REPO" && cargo metadata --format-version 1 --no-deps --offline |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/${profile/dev/debug}
    binary=${binary:-$tools/tradewind}
fi
[ -x "$binary" ] || fail "$binary is no program"

report=$out/report.md
{
    echo "# Acceptance${quick:+, quick (scaled-down sizes)}"
    echo
    echo "- $("$binary" version 2>/dev/null | head -n 1 || echo "version unknown")"
    echo "- $(date -u '+%Y-%m-%d %H:%M UTC'); Linux $(uname -r) $(uname -m), $(nproc) processors," \
        "$(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo) of memory; user $(id -un)"
} >"$report"

# A script that hangs is a failure, not a run that somebody has to stop. Stopped, it takes its script along.
limit=21600 running=''
[ -z "$quick" ] || limit=900
# shellcheck disable=SC2317,SC2329 # lib.sh calls it
before_cleanup() { [ -z "$running" ] || { kill -TERM "$running" && wait "$running"; } || true; }

failed=0 started=$SECONDS table=''
for line in ${only//,/ }; do
    script=${SCRIPT[$line]:-}
    [ -n "$script" ] || fail "there is no line '$line' (${!SCRIPT[*]})"
    name=${script%.*} began=$SECONDS status=0
    log "$name${quick:+ --quick} ..."
    # Into files, shown from there: were it a pipe, whatever a script left running could hold it open for ever.
    : >"$out/$name.out" >"$out/$name.err"
    timeout --kill-after=60 "$limit" "$TW_REPO/tests/accept/$script" $quick --binary "$binary" --tools "$tools" \
        </dev/null >"$out/$name.out" 2>"$out/$name.err" &
    running=$!
    tail --quiet --follow --lines=+1 --sleep-interval=0.2 --pid=$running "$out/$name.out" "$out/$name.err" &
    shown=$!
    wait "$running" || status=$?
    running=''
    wait "$shown" || true
    case $status in 124 | 137) log "$name did not end within $limit s" ;; esac
    # A script that died half-way has no last line with its sums; it must not look as if all had passed.
    sums=$(grep -m1 '^# .* ok, .* FAIL, .* SKIP' "$out/$name.out" || echo "# $name: did not come to its end")
    if [ $status != 0 ] || [[ $sums == *"not come to its end"* ]]; then failed=1; fi
    table+="| $line | ${sums#\# } | $((SECONDS - began)) s | $([ $status = 0 ] && echo passed || echo "FAILED ($status)") |"$'\n'
    {
        echo
        echo "## $name"
        echo
        sed -n '2,/^$/{s/^# \{0,1\}//p;s/^"""//p}' "$TW_REPO/tests/accept/$script" | sed '/^$/,$d'
        echo
        echo "    tests/accept/$script${quick:+ $quick}"
        echo
        echo '```text'
        cat "$out/$name.out"
        echo '```'
        if [ $status != 0 ]; then
            printf '\nExit code %s. The end of what it said besides:\n\n```text\n' "$status"
            tail -n 20 "$out/$name.err"
            echo '```'
        fi
    } >>"$report"
done
{
    printf '\n## All\n\n| line | checks | took | |\n|---|---|---|---|\n%s\n' "$table"
    skipped=$(grep -h '^SKIP ' "$out"/*.out || true)
    [ -z "$skipped" ] || printf 'Skipped, and so not shown:\n\n%s\n' "${skipped//SKIP /- }"
} | tee -a "$report"
log "$((SECONDS - started)) s; the report: $report"
exit $failed
