#!/usr/bin/env bash
# What `make test` runs: installs what the tests need, then runs all of them, scaled down. What could not be tested on
# this machine is said at the end, with what failed.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TW_REPO" || exit 1

out=$(work_dir)/output
passed=0 failed=0 skipped=0
rows=() bad=()

# step NAME COUNTER COMMAND...: runs the command, shows what it prints, and counts by `COUNTER FILE`, which prints
# "passed failed skipped".
step() {
    local name=$1 counter=$2 started=$SECONDS status=0 p f s
    shift 2
    printf '\n== %s\n' "$name"
    "$@" 2>&1 | tee "$out" || status=${PIPESTATUS[0]}
    read -r p f s < <("$counter" "$out")
    # A program that died, or did not build, is a failure that nobody counted.
    [ "$status" = 0 ] || [ "$f" -gt 0 ] || f=1
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    rows+=("$(printf '%-34s %6d passed %4d failed %4d skipped %5d s' "$name" "$p" "$f" "$s" $((SECONDS - started)))")
    [ "$f" = 0 ] || bad+=("$name")
}

# "test result: ok. 12 passed; 0 failed; 1 ignored; ..." A test that cannot run here says "SKIPPED".
count_cargo() {
    awk '/^test result:/ { p += $4; f += $6; s += $8 } /SKIPPED/ { s++ } END { print p + 0, f + 0, s + 0 }' "$1"
}

# "Ran 40 tests in 3s", "OK (skipped=1)", "FAILED (failures=1, errors=1, skipped=1)".
count_unittest() {
    awk '/^Ran / { n = $2 }
        /^(OK|FAILED)/ { gsub(/[(),]/, " "); for (i = 1; i <= NF; i++) if (split($i, a, "=") == 2) c[a[1]] += a[2] }
        END { f = c["failures"] + c["errors"]; s = c["skipped"] + 0; print n - f - s, f, s }' "$1"
}

# One line "ok NAME", "FAILED NAME" or "skipped NAME" for each.
count_lines() {
    awk '/^ok / { p++ } /^FAILED / { f++ } /^skipped / { s++ } END { print p + 0, f + 0, s + 0 }' "$1"
}

tests/setup.sh packages servers
step "Rust" count_cargo cargo test --locked --workspace --no-fail-fast
step "the comparison itself" count_unittest python3 -m unittest discover --start-directory tests/fidelity
if [ -x tests/accept.sh ]; then
    # With the programs that the step before has built: cargo test builds those of all crates.
    step "acceptance, scaled down" count_lines tests/accept.sh --quick
fi

printf '\n'
printf '%s\n' "${rows[@]}"
is_root || echo "not root: tests that need loop devices, mounts or other owners were left out"
printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
[ ${#bad[@]} = 0 ] || fail "failed: $(printf '%s; ' "${bad[@]}" | sed 's/; $//')"
