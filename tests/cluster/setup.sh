#!/usr/bin/env bash
# Brings what a cluster is made of, and prints the folders with its programs, as in PATH: Debian's packages, and
# everything of Kubernetes from its Go modules (go/*/go.mod), built once and kept by version in
# ${XDG_CACHE_HOME:-~/.cache}/tradewind/bin. Does nothing, quickly, when all is there.
#
#   tests/cluster/setup.sh [can | api | node | velero]
#
# can      only says whether a node can be started on this machine at all
# api      etcd, kube-apiserver and what is built with it: some five minutes the first time
# node     (the default) api, Debian's packages, the sidecar for changed blocks, and an S3 server: two minutes more
# velero   node, and what its tests use: Velero with its plugin for S3, Helm, and the conformance suite of CSI drivers:
#          five minutes more

# shellcheck source=../build.sh
source "$(dirname "${BASH_SOURCE[0]}")/../build.sh"

MODULES=$TW_REPO/tests/cluster/go
NEEDED='containerd containerd
conntrack conntrack
/bin/busybox busybox-static
/usr/lib/cni/bridge containernetworking-plugins
curl curl
ip iproute2
iptables iptables
losetup mount
mkfs.btrfs btrfs-progs
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
nsenter util-linux
pgrep procps
python3 python3
runc runc
socat socat'
# Free space that building from nothing takes, in GiB: modules, Go's cache, programs. Asked before the largest part.
: "${NEEDED_GIB:=12}"

path=()

# programs FOLDER MODULE BUILDER: builds the tools of go/FOLDER unless they are there, kept by the version of MODULE and
# by all that go.mod, go.sum and BUILDER say.
programs() {
    local version sum
    version=$(sed -n "s,^[[:space:]]*$2 v\\([^ ]*\\).*,\\1,p" "$MODULES/$1/go.mod")
    sum=$( (cat "$MODULES/$1"/go.{mod,sum} && declare -f "$3") | sha256sum | cut -c1-8)
    [ "$1" != kubernetes ] || [ -d "$BIN/$1-$version-$sum" ] || enough_space
    built "$1" "$version-$sum" "$3"
    path+=("$BIN/$1-$version-$sum")
}

enough_space() {
    local free
    mkdir -p "$BIN"
    free=$(df --output=avail --block-size=1G "$BIN" | tail -n 1)
    [ "$free" -ge "$NEEDED_GIB" ] ||
        fail "too little space: $BIN has $((free)) GiB, building takes $NEEDED_GIB GiB; XDG_CACHE_HOME=/folder builds elsewhere"
}

build_kubernetes() { # VERSION OUTPUT
    local number=${1%-*} package=k8s.io/component-base/version snapshotter
    mkdir "$2"
    # Without these the programs say that they are v0.0.0, which confuses who parses it.
    go_tools "$MODULES/kubernetes" "$2" "-X $package.gitVersion=v$number -X $package.gitMajor=${number%%.*} \
        -X $package.gitMinor=$(cut -d. -f2 <<<"$number")"
    snapshotter=$(go_module_folder github.com/kubernetes-csi/external-snapshotter/client/v8)
    install -D --mode=0644 --target-directory="$2/crds" "$snapshotter"/config/crd/snapshot.storage.k8s.io_*.yaml
}
build_etcd() {
    mkdir "$2"
    go_tools "$MODULES/etcd" "$2"
    mv "$2/server" "$2/etcd"
}
build_snapshot_metadata() {
    local client
    mkdir "$2"
    go_tools "$MODULES/snapshot-metadata" "$2"
    client=$(go_module_folder github.com/kubernetes-csi/external-snapshot-metadata/client)
    install -D --mode=0644 --target-directory="$2/crds" "$client"/config/crd/*.yaml
}
build_csi_sanity() {
    mkdir "$2"
    go_tools "$MODULES/csi-sanity" "$2"
}
build_velero() {
    mkdir "$2"
    go_tools "$MODULES/velero" "$2" "-X github.com/vmware-tanzu/velero/pkg/buildinfo.Version=v${1%-*}"
    install -D --mode=0644 --target-directory="$2/velero-crds" \
        "$(go_module_folder github.com/vmware-tanzu/velero)"/config/crd/*/bases/*.yaml
}
build_helm() {
    mkdir "$2"
    go_tools "$MODULES/helm" "$2"
}

packages() {
    local need
    need=$(missing "$NEEDED")
    # In a container there is nothing that a program could be linked to.
    ! head --bytes=4096 /bin/busybox 2>/dev/null | grep --quiet --text /ld- || need+=" busybox-static"
    # shellcheck disable=SC2086 # a list of words
    [ -z "$need" ] || apt_install $need
}

api() {
    have ip || { is_root && apt_install iproute2; } || fail "ip is missing: apt-get install iproute2"
    programs kubernetes k8s.io/kubernetes build_kubernetes
    programs etcd go.etcd.io/etcd/server/v3 build_etcd
}

# What no package brings, asked before anything is built.
can() {
    local group
    require_root "a node"
    [ -c /dev/loop-control ] || fail "no loop devices here: there is no /dev/loop-control"
    for group in cpu cpuacct cpuset memory pids; do
        [ -e "/sys/fs/cgroup/$group/tasks" ] ||
            fail "the cgroup v1 hierarchy '$group' is missing: a node is started on machines with cgroup v1 only"
    done
    unshare --mount --pid --fork --net --uts --ipc true || fail "no namespaces of its own may be made here"
}

node() {
    can
    packages
    api
    programs snapshot-metadata github.com/kubernetes-csi/external-snapshot-metadata build_snapshot_metadata
    "$TW_REPO/tests/setup.sh" versitygw
    # Its file has its version in its name.
    mkdir -p "$BIN/s3"
    ln -sfn "$(printf '%s\n' "$BIN"/versitygw-[0-9]* | sort -V | tail -n 1)" "$BIN/s3/versitygw"
    path+=("$BIN/s3")
}

velero() {
    node
    programs csi-sanity github.com/kubernetes-csi/csi-test/v5 build_csi_sanity
    programs velero github.com/vmware-tanzu/velero build_velero
    programs helm helm.sh/helm/v3 build_helm
}

case ${1:-node} in
can)
    can
    exit
    ;;
api | node | velero) "${1:-node}" ;;
-h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit
    ;;
*) fail "unknown part '$1' (can, api, node, velero)" ;;
esac
(IFS=: && echo "${path[*]}")
