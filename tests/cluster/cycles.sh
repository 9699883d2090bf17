#!/usr/bin/env bash
# Starts and ends the cluster many times, kills it in the middle at some of them, and sees that nothing is left: no
# process, mount, loop device, control group, network interface, and no kernel setting that is not what it was.
#
#   tests/cluster/cycles.sh [COUNT] [KILLED]      default: 20, of which 5 are killed hard

# shellcheck source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
require_root "a node"
count=${1:-20} killed=${2:-5}
: "${CARGO_TARGET_DIR:=$TW_CACHE/target}"
cluster=$CARGO_TARGET_DIR/debug/cluster
programs=$("$TW_REPO/tests/cluster/setup.sh" node)
folder=${TRADEWIND_CLUSTER:-$TW_CACHE/cluster}/node
# Not in the work directory: what a killed run left is ended by the next.
elsewhere=$TW_CACHE/cluster-elsewhere

# Everything that a cluster could leave on the machine, in lines that do not change by themselves.
machine() {
    processes
    cut -d' ' -f1-3 /proc/mounts | grep -vE ' (/run/user/|/var/lib/docker)' | sort
    losetup --list --noheadings --output NAME,BACK-FILE | sort
    find /sys/fs/cgroup -maxdepth 3 -type d | sed -nE '/tradewind|kube|k8s/p' | sort
    # What others' containers come and go with is not ours.
    ip -oneline link | cut -d: -f2 | grep -vE '^ (veth|docker|br-)' | sort
    # All settings but those that are counters, or new at each reading.
    sysctl --all 2>/dev/null |
        grep -vE '^(fs\.(aio-nr|dentry-state|file-nr|inode-nr|inode-state|quota)|kernel\.(ns_last_pid|perf_event_max_sample_rate|pty\.nr|random|sched_domain)|net\.netfilter\.nf_conntrack_count)' |
        sort
    find /var/lib/kubelet /var/lib/cni /run/containerd /run/tradewind-cluster /opt/cni 2>/dev/null || true
}

# A cluster's processes inherit a variable from its first, but for those of pods, which are in its control group. Not by
# their names: others may be called the same.
processes() {
    local process
    for process in /proc/[0-9]*; do
        if grep --quiet --null-data --no-messages '^TRADEWIND_CLUSTER_INSIDE=' "$process/environ" ||
            grep --quiet --no-messages ':/tradewind-cluster' "$process/cgroup"; then
            echo "process ${process#/proc/}: $(tr '\0' ' ' <"$process/cmdline")"
        fi
    done 2>/dev/null
}

up() { "$cluster" up --programs "$programs"; }

# A pod that holds a volume of each mode: what a kill leaves behind most easily.
busy() {
    "$cluster" in kubectl apply -f - >/dev/null <<'YAML'
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: blocks, namespace: default},
 spec: {accessModes: [ReadWriteOnce], volumeMode: Block, resources: {requests: {storage: 64Mi}}}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: files, namespace: default},
 spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: busy, namespace: default}, spec: {containers: [{name: main,
 image: "tradewind.test/busybox:1", command: [/bin/sh, -c, "while :; do date > /data/date; sync; done"],
 volumeDevices: [{name: blocks, devicePath: /dev/data}], volumeMounts: [{name: files, mountPath: /data}]}],
 volumes: [{name: blocks, persistentVolumeClaim: {claimName: blocks}}, {name: files, persistentVolumeClaim: {claimName: files}}]}}
YAML
    "$cluster" in kubectl wait --for=condition=Ready pod/busy --timeout=120s >/dev/null
}

# A snapshot that the driver does not get beyond the freezing of: the kernel keeps a frozen file system and its device.
freeze() {
    echo '{"frozen": {"delay_seconds": 600}}' >"$folder/faults.json"
    "$cluster" in kubectl apply -f - >/dev/null <<'YAML'
{apiVersion: snapshot.storage.k8s.io/v1, kind: VolumeSnapshot, metadata: {name: frozen, namespace: default},
 spec: {volumeSnapshotClassName: snapshots, source: {persistentVolumeClaimName: files}}}
YAML
    wait_for 60 "a frozen file system" frozen
}
frozen() { [ -n "$("$cluster" in ls "$folder/volumes/driver/frozen")" ]; }

# Kills the first process: the kernel ends all others (but who writes to a frozen file system), nobody tidies up.
kill_first() {
    local first
    first=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$folder/first.json")
    kill -9 "$first"
}

before_cleanup() {
    TRADEWIND_CLUSTER=$elsewhere "$cluster" down >/dev/null 2>&1
    "$cluster" down >/dev/null
}

TRADEWIND_CLUSTER=$elsewhere "$cluster" down
"$cluster" down
machine >"$(work_dir)/before"
kills=0
for ((n = 1; n <= count; n++)); do
    how="ended"
    if ((n * killed / count > (n - 1) * killed / count)); then
        # In turn: while it starts, at different moments, or while a pod writes to its volumes; and the next start has to
        # tidy up, or an end.
        case $((kills % 5)) in
        0 | 2 | 4)
            "$cluster" up --programs "$programs" 2>/dev/null &
            starting=$!
            sleep "$((1 + kills % 5 / 2)).$((n % 10))" # the moment of the kill
            kill -9 $starting || fail "cycle $n: it was not killed, it had ended before"
            wait $starting 2>/dev/null || true
            how="killed while it started"
            ;;
        1)
            up
            busy
            kill_first
            TRADEWIND_CLUSTER=$elsewhere up
            TRADEWIND_CLUSTER=$elsewhere "$cluster" down
            how="killed with a pod that writes, started in another folder"
            ;;
        3)
            up
            busy
            freeze
            kill_first
            how="killed with a pod that writes to a frozen file system"
            ;;
        esac
        if ((kills % 5 == 0 || kills % 5 == 3)); then
            up
            how+=", started again"
        fi
        kills=$((kills + 1))
    else
        up
        ((n % 3)) || busy
    fi
    "$cluster" down
    machine >"$(work_dir)/after"
    if ! diff "$(work_dir)/before" "$(work_dir)/after"; then
        fail "cycle $n ($how) has left something: < was there before, > is there now"
    fi
    echo "ok cycle $n: $how"
done
