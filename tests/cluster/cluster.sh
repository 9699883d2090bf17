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

build() {
    have cargo || fail "cargo is missing: install Rust first (rustup)"
    # The whole workspace's features, so that nothing is built once more for the tests.
    cargo build --quiet --locked --workspace --bin cluster --bin csi-driver
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

run_tests() { # FILTER
    before_cleanup() { down; }
    down
    up node velero
    CSI_SANITY=$("$cluster" in sh -c 'command -v csi-sanity') \
        cargo test --locked --workspace --no-fail-fast --test cluster --test driver -- \
        --include-ignored --test-threads=2 "$@"
    "$cluster" in "$cluster" left
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
