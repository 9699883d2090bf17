#!/usr/bin/env bash
# Builds and starts, enters, tests and ends the Kubernetes of the tests (README.md beside this says more):
#
#   tests/cluster/cluster.sh up [node | api]     start one; what is missing is installed and built first
#   tests/cluster/cluster.sh in COMMAND...       run a command inside the node, for instance: kubectl get pods -A
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
    # The whole workspace's features, so that nothing is built once more for the tests.
    cargo build --quiet --locked --workspace --bin cluster --bin csi-driver --bin tradewind
}

up() { # LEVEL [SETUP]
    local programs
    programs=$(tests/cluster/setup.sh "${2:-$1}")
    build
    "$cluster" up --level "$1" --programs "$programs"
}

down() {
    [ -x "$cluster" ] || build
    "$cluster" down --level api
    ! is_root || "$cluster" down --level node
}

# Counts from what was printed: cargo's results, and the lines that begin with "ok" of the scripts. What cannot be tested
# on this machine says "SKIPPED".
count() {
    awk '/^test result:/ { p += $4; f += $6; s += $8 } /^ok / { p++ } /^[a-z]*: error: / { f++ } /SKIPPED/ { s++ }
        END { printf "cluster: %d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p == 0 }' "$1"
}

every_test() { # FILTER
    local status=0 building
    # While these wait for clusters to start, the rest is built.
    tests/cluster/setup.sh velero >/dev/null &
    building=$!
    if [ $# = 0 ]; then
        tests/cluster/refusals.sh || status=1
        tests/cluster/cycles.sh || status=1
    fi
    wait $building || return 1
    up node velero || return 1
    # Two at a time: volumes and pods are slow in turns, and the machine is small.
    PATH=$PATH:$("$cluster" in printenv PATH) \
        timeout --kill-after=60 "$LIMIT" cargo test --locked --workspace --no-fail-fast "${TESTS[@]}" -- \
        --include-ignored --test-threads=2 "$@" || status=1
    "$cluster" in "$cluster" left || status=1
    return $status
}

run_tests() { # FILTER
    local printed status=0 running shown
    require_root "a node"
    printed=$(work_dir)/printed
    before_cleanup() { down; }
    # Both at once: each has times in which it uses one core, or the network.
    tests/cluster/setup.sh node >"$printed" &
    running=$!
    build
    cargo test --quiet --locked --workspace --no-run "${TESTS[@]}"
    wait $running
    down
    # Into a file, shown from there: were it a pipe, the cluster that is left running would hold it open.
    every_test "$@" </dev/null >"$printed" 2>&1 &
    running=$!
    tail --follow --lines=+1 --sleep-interval=0.2 --pid=$running "$printed" &
    shown=$!
    wait "$running" || status=1
    wait "$shown" || true
    count "$printed" || status=1
    return $status
}

case ${1:-} in
up) up "${2:-node}" ;;
down) down ;;
in)
    shift
    exec "$cluster" in "$@"
    ;;
test)
    shift
    run_tests "$@"
    ;;
-h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
*) fail "unknown command '${1:-}' (up, down, in, test)" ;;
esac
