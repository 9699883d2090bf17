#!/usr/bin/env bash
# What `make test` runs: installs what the tests need, then runs all of them, scaled down. What could not be tested on
# this machine is said at the end, with what failed.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TW_REPO" || exit 1

out=$(work_dir)/output
# Seconds that one step may take: what hangs is a failure, not a run that somebody has to stop.
LIMIT=3000
passed=0 failed=0 skipped=0
rows=() bad=()

# step NAME COUNTER COMMAND...: runs the command, shows what it prints, and counts by `COUNTER FILE`, which prints
# "passed failed skipped".
step() {
    local name=$1 counter=$2 started=$SECONDS status=0 p f s running shown
    shift 2
    printf '\n== %s\n' "$name"
    # Into a file, shown from there: were it a pipe, whatever a test left running could hold it open for ever.
    : >"$out"
    timeout --kill-after=60 "$LIMIT" "$@" </dev/null >"$out" 2>&1 &
    running=$!
    tail --follow --lines=+1 --sleep-interval=0.2 --pid=$running "$out" &
    shown=$!
    wait "$running" || status=$?
    wait "$shown" || true
    case $status in 124 | 137) log "$name did not end within $LIMIT s" ;; esac
    read -r p f s < <("$counter" "$out")
    # A program that died, or did not build, is a failure that nobody counted.
    [ "$status" = 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    rows+=("$(printf '%-34s %6d passed %4d failed %4d skipped %5d s' "$name" "$p" "$f" "$s" $((SECONDS - started)))")
    [ "$f" = 0 ] || bad+=("$name")
}

# "test result: ok. 12 passed; 0 failed; 1 ignored; ..." A test that cannot run here says "SKIPPED". Those that need a
# cluster have a command of their own.
count_cargo() {
    awk '/^test result:/ { p += $4; f += $6; s += $8 } /SKIPPED/ { s++ } / ignored, needs a cluster/ { s-- }
        END { print p + 0, f + 0, s + 0 }' "$1"
}

# "Ran 40 tests in 3s", "OK (skipped=1)", "FAILED (failures=1, errors=1, skipped=1)".
count_unittest() {
    awk '/^Ran / { n = $2 }
        /^(OK|FAILED)/ { gsub(/[(),]/, " "); for (i = 1; i <= NF; i++) if (split($i, a, "=") == 2) c[a[1]] += a[2] }
        END { f = c["failures"] + c["errors"]; s = c["skipped"] + 0; print n - f - s, f, s }' "$1"
}

# "# 2-tree: 12 ok, 0 FAIL, 1 SKIP", a line for each script.
count_accept() {
    awk '/^# [^ ]+: [0-9]+ ok, [0-9]+ FAIL, [0-9]+ SKIP/ { p += $3; f += $5; s += $7 }
        END { print p + 0, f + 0, s + 0 }' "$1"
}

tests/setup.sh packages servers
step "Rust" count_cargo cargo test --locked --workspace --no-fail-fast
step "the comparison itself" count_unittest python3 -m unittest discover --start-directory tests/fidelity
# With the programs that the first step has built.
step "what is promised, scaled down" count_accept tests/accept.sh --quick --binary "$CARGO_TARGET_DIR/debug/tradewind"

printf '\n'
printf '%s\n' "${rows[@]}"
echo "not here, since it takes longer: make cluster-test, a real Kubernetes"
is_root || echo "not root: tests that need loop devices, mounts or other owners were left out"
printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
[ ${#bad[@]} = 0 ] || fail "failed: $(printf '%s; ' "${bad[@]}" | sed 's/; $//')"
