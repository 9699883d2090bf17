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

# Everything that a cluster could leave on the machine, in lines that do not change by themselves.
machine() {
    # By what they run and where: the programs of a cluster are nobody else's.
    pgrep --list-full --full "$TW_CACHE/(cluster|bin/(etcd|kubernetes|snapshot-metadata|s3))|containerd|kube|csi-" ||
        [ $? = 1 ] # none
    cut -d' ' -f1-3 /proc/mounts | sort
    losetup --list --noheadings --output NAME,BACK-FILE | sort
    find /sys/fs/cgroup -maxdepth 3 -type d | sort
    ip -oneline link | cut -d: -f2 | sort
    sysctl kernel.panic kernel.panic_on_oops vm.overcommit_memory vm.panic_on_oom kernel.keys.root_maxkeys \
        kernel.keys.root_maxbytes net.ipv4.ip_forward
    find /var/lib/kubelet /var/lib/cni /run/containerd /opt/cni 2>/dev/null || true
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

# Kills the first process: the kernel ends all others, nobody tidies up.
kill_first() {
    local first
    first=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "${TRADEWIND_CLUSTER:-$TW_CACHE/cluster}/node/first.json")
    kill -9 "$first"
    wait_for 30 "process $first to be gone" ended "$first"
}
ended() { ! grep -qs '^State:[[:space:]]*[^Z]' "/proc/$1/status"; }

before_cleanup() { "$cluster" down >/dev/null; }

have pgrep || fail "pgrep is missing: run tests/cluster/setup.sh"
"$cluster" down
machine >"$(work_dir)/before"
kills=0
for ((n = 1; n <= count; n++)); do
    how="ended"
    if ((n * killed / count > (n - 1) * killed / count)); then
        # In turn: while it starts, at different moments, or while a pod writes to its volumes; and the next start has to
        # tidy up, or an end.
        if ((kills % 2 == 0)); then
            "$cluster" up --programs "$programs" 2>/dev/null &
            starting=$!
            sleep "$((1 + kills)).$((n % 10))" # the moment of the kill
            kill -9 $starting 2>/dev/null || true
            wait $starting 2>/dev/null || true
            how="killed while it started"
        else
            up
            busy
            kill_first
            how="killed with a pod that writes"
        fi
        if ((kills % 4 < 2)); then
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
