#!/usr/bin/env bash
# What a machine lacks is said in one line, with an exit code that is not 0, and nothing is left behind. Each case takes
# something away from a machine that has it, in namespaces of its own.

# shellcheck source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
require_root "taking things away"
: "${CARGO_TARGET_DIR:=$TW_CACHE/target}"
cluster=$CARGO_TARGET_DIR/debug/cluster
programs=$("$TW_REPO/tests/cluster/setup.sh" node)
work=$(work_dir)
# Not in the work directory: what a killed run left is ended by the next.
export TRADEWIND_CLUSTER=$TW_CACHE/cluster-refusals
mkdir -p "$TRADEWIND_CLUSTER"
"$cluster" down
# For whom nothing of ours is.
mkdir -m 0777 "$work/nobody"
install --mode=0755 "$cluster" "$work/nobody/cluster"

listener=
before_cleanup() {
    [ -z "$listener" ] || kill "$listener" 2>/dev/null || true
    "$cluster" down >/dev/null 2>&1
}

# refused WHAT TEXT COMMAND...: the command fails, says TEXT in its last line, and leaves nothing but logs and a lock.
refused() {
    local what=$1 text=$2 left
    shift 2
    if "$@" >"$work/said" 2>&1; then
        fail "$what: it was not refused"
    fi
    tail -n 1 "$work/said" | grep -qF -- "$text" || fail "$what: it said '$(tail -n 3 "$work/said")', and not '$text'"
    left=$(find "$TRADEWIND_CLUSTER" -mindepth 2 -not -path '*/log*' -not -name lock)
    [ -z "$left" ] || fail "$what: left $left"
    [ -z "$(losetup --list --noheadings --output BACK-FILE | grep -F "$TRADEWIND_CLUSTER" || true)" ] ||
        fail "$what: a loop device is left"
    echo "ok $what: $(tail -n 1 "$work/said")"
}

# without SETUP: starts a cluster after SETUP has taken something away in a mount namespace.
without() { unshare --mount sh -ec "$1; exec \"\$0\" up --programs \"\$1\"" "$cluster" "$programs"; }

refused "no root" "a node needs root" \
    setpriv --reuid=65534 --regid=65534 --clear-groups \
    env TRADEWIND_CLUSTER="$work/nobody" "$work/nobody/cluster" up --programs "$programs"
# shellcheck disable=SC2016 # for the other shell
refused "no loop devices" "no loop devices here" \
    without 'mount -t tmpfs tmpfs /dev; for n in 3:null 5:zero 9:urandom; do mknod /dev/${n#*:} c 1 ${n%:*}; done'
refused "cgroup v2" "the cgroup v1 hierarchy 'cpu' is missing" \
    without 'mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup'
refused "no containerd" "containerd is missing: apt-get install containerd" \
    without "mount --bind /dev/null $(command -v containerd)"
refused "no programs" "etcd is missing: run tests/cluster/setup.sh" \
    "$cluster" up --programs "$work"
refused "programs that are not seen inside" "are not seen inside, below /var/lib" \
    unshare --mount sh -ec "mount -t tmpfs tmpfs /var/lib; mkdir /var/lib/bin; mount --bind $TW_CACHE/bin /var/lib/bin; \
        exec $cluster up --programs '${programs//$TW_CACHE\/bin//var/lib/bin}'"
mkdir "$work/small"
refused "too little space" "too little space" \
    unshare --mount sh -ec "mount -t tmpfs -o size=64m tmpfs $work/small; \
        TRADEWIND_CLUSTER=$work/small exec $cluster up --programs '$programs'"
refused "too little space for the API server" "too little space" \
    unshare --mount sh -ec "mount -t tmpfs -o size=64m tmpfs $work/small; \
        TRADEWIND_CLUSTER=$work/small exec $cluster up --level api --programs '$programs'"
refused "a folder of somebody else's" "which is not ours" \
    env TRADEWIND_CLUSTER="$work/else" sh -c "mkdir -p '$work/else/node' && touch '$work/else/node/theses' && '$cluster' up --programs '$programs'"
[ -e "$work/else/node/theses" ] || fail "what was somebody else's is gone"

# A component that does not start.
mkdir "$work/bin"
printf '#!/bin/sh\necho "listen tcp 127.0.0.1:2379: bind: address already in use" >&2; exit 1\n' >"$work/bin/etcd"
chmod +x "$work/bin/etcd"
started=$SECONDS
refused "a component that ends at once" "bind: address already in use" "$cluster" up --programs "$work/bin:$programs"
grep -q 'etcd ended while it started' "$work/said" || fail "it is not said which: $(cat "$work/said")"
[ $((SECONDS - started)) -le 20 ] || fail "it took $((SECONDS - started)) s to be said"

# What is built.
copy=$work/copy
mkdir "$copy"
cp -r "$TW_REPO/tests" "$copy/tests"
echo 'this is no go.mod' >>"$copy/tests/cluster/go/kubernetes/go.mod"
export NEEDED_GIB=0 # the cache is in the work directory now
refused "a module that does not build" "could not be built" \
    env XDG_CACHE_HOME="$work/cache" "$copy/tests/cluster/setup.sh" api
refused "too little space to build" "too little space" \
    env XDG_CACHE_HOME="$work/cache" NEEDED_GIB=1000000 "$TW_REPO/tests/cluster/setup.sh" api
refused "no Go and no network" "could not be built" unshare --mount --net sh -ec \
    "for go in $(command -v go) /usr/local/go/bin/go; do [ ! -e \$go ] || mount --bind /dev/null \$go; done; \
     XDG_CACHE_HOME=$work/cache2 exec $TW_REPO/tests/cluster/setup.sh api"

# The API server alone needs no root. Where the programs are, nobody can see them.
# shellcheck disable=SC2016 # for the other shell
as_nobody='
    work=$0 programs=
    mkdir "$work/seen"
    mount -t tmpfs tmpfs "$work/seen"
    IFS=:
    for folder in $1; do
        at=$(mktemp -d "$work/seen/XXXXXX")
        mount --bind "$folder" "$at"
        programs+=$at:
    done
    nobody() {
        setpriv --reuid=65534 --regid=65534 --clear-groups env TRADEWIND_CLUSTER="$work/nobody" HOME="$work/nobody" \
            "$work/nobody/cluster" --level api "$@"
    }
    nobody up --programs "$programs"
    nobody in kubectl get namespaces >/dev/null
    nobody down'
unshare --mount bash -euc "$as_nobody" "$work" "$programs"
echo "ok nobody has an API server"

# Ports that others have on this machine are not those of the cluster.
python3 -c '
import signal, socket
taken = [socket.create_server(("0.0.0.0", port)) for port in (6443, 2379, 7070)]
signal.pause()' &
listener=$!
wait_for 10 "the listener" sh -c "grep -qi ':192B 00000000:0000 0A' /proc/net/tcp" # 6443, in state LISTEN
"$cluster" up --programs "$programs"
echo "ok taken ports are no matter"
refused_twice() { "$cluster" up --programs "$programs"; }
if refused_twice >"$work/said" 2>&1; then fail "a second start was not refused"; fi
grep -q "is up already" "$work/said" || fail "a second start says: $(cat "$work/said")"
echo "ok another one is up: $(tail -n 1 "$work/said")"
if TRADEWIND_CLUSTER=$work/other "$cluster" up --programs "$programs" >"$work/said" 2>&1; then
    fail "a second cluster elsewhere was not refused"
fi
grep -q "another cluster is up on this machine" "$work/said" || fail "a second cluster elsewhere says: $(cat "$work/said")"
echo "ok another one is up elsewhere: $(tail -n 1 "$work/said")"
"$cluster" down
