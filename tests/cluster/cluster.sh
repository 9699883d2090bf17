#!/usr/bin/env bash
# Builds and starts, enters, tests and ends the Kubernetes of the tests (README.md beside this says more):
#
#   tests/cluster/cluster.sh up [node | api]     start one; what is missing is installed and built first
#   tests/cluster/cluster.sh in COMMAND...       run a command inside, for instance: kubectl get pods -A
#   tests/cluster/cluster.sh down                end both levels; nothing is left but logs
#   tests/cluster/cluster.sh test [FILTER]       up, every test that needs a cluster, down

# shellcheck source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
cd "$TW_REPO" || exit 1
: "${CARGO_TARGET_DIR:=$TW_CACHE/target}"
export CARGO_TARGET_DIR
cluster=$CARGO_TARGET_DIR/debug/cluster
# Seconds that all tests together may take: what hangs is a failure, not a run that somebody has to stop.
LIMIT=2400
# What is tested in a cluster, or with its programs.
TESTS=(--test cluster --test driver --test k8s)

build() {
    have cargo || fail "cargo is missing: install Rust first (rustup)"
    have cc || tests/setup.sh packages
    # With the tests: the whole workspace's features and theirs, so that nothing is built once more for them.
    cargo build --quiet --locked --workspace --bin cluster --bin csi-driver --bin tradewind "${TESTS[@]}"
}

up() { # LEVEL
    local programs setup=$1
    # Whoever has a node wants to try things in it.
    [ "$setup" = api ] || setup=velero
    programs=$(tests/cluster/setup.sh "$setup")
    build
    "$cluster" up --level "$1" --programs "$programs"
}

down() {
    [ -x "$cluster" ] || build
    "$cluster" down --level api
    ! is_root || "$cluster" down --level node
}

# count FILE STATUS: counts from what was printed: cargo's results, and the lines that begin with "ok" of the scripts. What
# cannot be tested on this machine says "SKIPPED". What ended badly and said nothing is one that failed.
count() {
    awk -v status="$2" '
        /^test result:/ { p += $4; f += $6; s += $8 } /^ok / { p++ } /^[a-z]*: error: / { f++ } /SKIPPED/ { s++ }
        END { if ((status > 0 || p == 0) && f == 0) f = 1
            printf "cluster: %d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 }' "$1"
}

# background COMMAND...: runs it in a process group of its own, which ends with this script, also when that is interrupted.
groups=()
background() {
    set -o monitor
    "$@" &
    groups+=($!)
    set +o monitor
}
end_groups() {
    local group
    for group in "${groups[@]}"; do
        kill -TERM -- "-$group" 2>/dev/null || true
        wait "$group" 2>/dev/null || true
    done
}

every_test() { # FILTER
    local status=0 building
    # While these wait for clusters to start, the rest is built.
    tests/cluster/setup.sh velero >/dev/null &
    building=$! # in this group
    if [ $# = 0 ]; then
        tests/cluster/refusals.sh || status=1
        tests/cluster/cycles.sh || status=1
    fi
    wait $building || return 1
    up node || return 1
    # Two at a time: volumes and pods are slow in turns, and the machine is small.
    PATH=$PATH:$("$cluster" in printenv PATH) \
        timeout --foreground --kill-after=60 "$LIMIT" cargo test --locked --workspace --no-fail-fast "${TESTS[@]}" -- \
        --include-ignored --test-threads=2 "$@" || status=1
    "$cluster" in "$cluster" left || status=1
    if [ $# = 0 ]; then
        PATH=$PATH:$("$cluster" in printenv PATH) deploy/check.sh || status=1
    fi
    return $status
}

run_tests() { # FILTER
    local printed status=0 running shown
    tests/cluster/setup.sh can
    printed=$(work_dir)/printed
    before_cleanup() {
        end_groups
        down
    }
    # Both at once: each has times in which it uses one core, or the network.
    background tests/cluster/setup.sh node >"$printed"
    running=$!
    build
    wait $running
    down
    # Into a file, shown from there: were it a pipe, the cluster that is left running would hold it open.
    background every_test "$@" </dev/null >"$printed" 2>&1
    running=$!
    tail --follow --lines=+1 --sleep-interval=0.2 --pid=$running "$printed" &
    shown=$!
    wait "$running" || status=1
    wait "$shown" || true
    count "$printed" "$status"
}

case ${1:-} in
up) up "${2:-node}" ;;
down) down ;;
in)
    shift
    level=node
    [ -e "${TRADEWIND_CLUSTER:-$TW_CACHE/cluster}/node/ready" ] || level=api
    exec "$cluster" --level "$level" in "$@"
    ;;
test)
    shift
    run_tests "$@"
    ;;
-h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
*) fail "unknown command '${1:-}' (up, down, in, test)" ;;
esac
