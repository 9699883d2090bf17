#!/usr/bin/env bash
# Checks what is below deploy/ without a cluster: the chart is linted and rendered, with the defaults, in both modes and with
# everything turned on; values that make no sense are refused; nobody gets a privilege unasked.

# shellcheck source=../tests/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../tests/lib.sh"
cd "$TW_REPO/deploy" || exit 1

# Helm on the PATH, else the one that the tests' cluster built.
if ! have helm; then
    for helm in "$TW_CACHE"/bin/helm-*/helm; do
        if [ -x "$helm" ]; then PATH=$PATH:$(dirname "$helm"); fi
    done
fi
have helm || fail "helm is missing: put it on the PATH, or: tests/cluster/setup.sh velero"

dir=$(work_dir)
checks=0

render() { # NAME HELM-ARGUMENTS...: the manifests, in $dir/NAME.yaml
    local name=$1
    shift
    helm template tradewind chart --namespace velero "$@" >"$dir/$name.yaml" || fail "$name: is not rendered"
    checks=$((checks + 1))
}
has() { # NAME WORDS...: all of these lines are in there, wherever they begin
    local name=$1 words
    shift
    for words in "$@"; do
        grep -qF -- "$words" "$dir/$name.yaml" || fail "$name: lacks '$words'"
        checks=$((checks + 1))
    done
}
lacks() { # NAME PATTERN...: none of them is in there, comments aside
    local name=$1 pattern found
    shift
    for pattern in "$@"; do
        if found=$(grep -vE '^ *#' "$dir/$name.yaml" | grep -nE -- "$pattern"); then
            fail "$name: must not have '$pattern': $found"
        fi
        checks=$((checks + 1))
    done
}
refused() { # WHERE HELM-ARGUMENTS...: by the schema, with a message that names the place
    local where=$1 said
    shift
    if said=$(helm template tradewind chart --namespace velero "$@" 2>&1); then
        fail "accepted: $*"
    fi
    [[ $said == *"don't meet the specifications of the schema"* && $said == *"$where"* ]] ||
        fail "$*: refused, but not by the schema, or without naming $where: $said"
    checks=$((checks + 1))
}

# What nobody gets, whatever the values say.
never=('privileged: *true' 'host(PID|IPC|Network): *true' 'hostPort' 'SYS_ADMIN' 'Unconfined' 'Bidirectional'
    'kind: CustomResourceDefinition' '^ *-? *(name|role): "?node-agent"?$' 'resources: \["?\*' 'verbs: \["?\*'
    'cluster-admin' 'allowPrivilegeEscalation: *true')
# What nobody gets unasked.
unasked=('kubelet' 'podvolume' 'MKNOD' 'SETFCAP' 'serviceaccounts/token' 'snapshotmetadataservices' 'daemonsets'
    'type: Localhost' 'kind: PodMonitor' 'mountPropagation' 'node-agent')

helm lint --strict chart >"$dir/lint" 2>&1 || fail "helm lint: $(cat "$dir/lint")"

render defaults
has defaults 'kind: DaemonSet' 'kind: ServiceAccount' 'kind: Role' 'kind: RoleBinding' 'kind: ClusterRole' \
    'kind: ClusterRoleBinding' 'kind: ConfigMap' '- velero-mover' 'path: "/run/tradewind/velero"' 'drop: [ALL]' \
    'readOnlyRootFilesystem: true' 'allowPrivilegeEscalation: false' 'type: RuntimeDefault' 'memory: "256Mi"'
lacks defaults "${never[@]}" "${unasked[@]}"
[ "$(grep -c 'hostPath:' "$dir/defaults.yaml")" = 1 ] || fail "defaults: more of the node is mounted than the socket's folder"

render standalone --set mode=standalone
has standalone '- standalone' 'resourceNames: [node-agent]'
lacks standalone "${never[@]}" 'kubelet' 'MKNOD'

cat >"$dir/values.yaml" <<'EOF'
mode: standalone
image: {tag: 1.2.3}
imagePullSecrets: [{name: registry}]
nodeAgentConfigMap: node-agent-config
forgetting: {interval: 10m, grace: 48h}
restoreSpecialFiles: true
socketHostPath: /var/lib/tradewind
seccomp: {profile: ioUring}
monitoring: {podMonitor: {enabled: true, labels: {release: prometheus}}}
verbosity: 2
serviceAccount: {annotations: {eks.amazonaws.com/role-arn: arn}}
tolerations: [{operator: Exists}]
affinity: {nodeAffinity: {}}
priorityClassName: high
podAnnotations: {a: b}
podLabels: {team: storage}
extraEnv: [{name: HTTPS_PROXY, value: "http://proxy:3128"}]
updateStrategy: {type: OnDelete, rollingUpdate: null}
EOF
everything=(--values "$dir/values.yaml")
render everything "${everything[@]}"
has everything '"10m"' '"48h"' '- MKNOD' '- SETFCAP' \
    'localhostProfile: profiles/tradewind.json' 'kind: PodMonitor' \
    'image: "docker.io/tradewind/tradewind:1.2.3"' 'path: "/var/lib/tradewind"' 'eks.amazonaws.com/role-arn: arn' \
    '- "node-agent-config"'
lacks everything "${never[@]}"
helm lint --strict chart "${everything[@]}" >"$dir/lint" 2>&1 || fail "helm lint, everything: $(cat "$dir/lint")"

render identity --set credentials.secret=
lacks identity '--credentials-secret'

render account --set serviceAccount.create=false,serviceAccount.name=other
lacks account '^kind: ServiceAccount$' 'resourceNames: \[tradewind\]'
[ "$(grep -c '  name: other$' "$dir/account.yaml")" = 2 ] || fail "account: the bindings do not name it"

refused mode --set mode=both
refused verbosity --set verbosity=3
refused metricsPort --set metricsPort=0
refused imagee --set imagee.tag=1
refused repositori --set image.repositori=x
refused pullPolicy --set image.pullPolicy=Sometimes
refused memory --set limits.memory=lots
refused memory --set limits.memory=256MiB
refused workers --set limits.workers=2
refused uploadRate --set limits.uploadRate=-1
refused profile --set seccomp.profile=Unconfined
refused path --set seccomp.path=../../etc/profile.json
refused socketHostPath --set socketHostPath=run/tradewind
refused socketHostPath --set socketHostPath=/var/lib/kubelet/pods
refused socketHostPath --set socketHostPath=/run
refused socketHostPath --set socketHostPath=/run/../etc
refused grace --set forgetting.grace=1d
refused secret --set repositoryKey.secret=
refused secret --set credentials.secret=Cloud_Credentials
refused prepareTimeout --set prepareTimeout=soon
refused podLabels --set podLabels.role=node-agent
refused podLabels --set podLabels.name=node-agent
refused podLabels --set 'podLabels.app\.kubernetes\.io/name=other'
refused extraEnv --set 'extraEnv[0].name=TMPDIR,extraEnv[0].value=/'
refused maxSurge --set updateStrategy.rollingUpdate.maxSurge=1
refused securityContext --set securityContext.privileged=true

# The seccomp profile allows io_uring, and nothing that containerd's default would not.
have python3 || fail "python3 is missing"
python3 - seccomp/tradewind.json <<'EOF' || fail "seccomp/tradewind.json"
import json, sys

profile = json.load(open(sys.argv[1]))
names = [name for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]]
assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
missing = {"io_uring_setup", "io_uring_enter", "io_uring_register", "openat2", "recvmsg", "statx"} - set(names)
assert not missing, missing
forbidden = {"mount", "bpf", "setns", "unshare", "clone3", "open_by_handle_at", "init_module", "keyctl", "reboot"}
assert not forbidden & set(names), forbidden & set(names)
# These are allowed with some arguments only.
bare = [n for r in profile["syscalls"] if r["action"] == "SCMP_ACT_ALLOW" and "args" not in r for n in r["names"]]
assert not {"clone", "socket", "personality"} & set(bare)
assert len(bare) == len(set(bare)), "a call is named twice"
EOF
checks=$((checks + 1))

# The image is built by the Rust of the repository.
rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$TW_REPO/rust-toolchain.toml")
grep -q "^FROM rust:$rust-slim-" Dockerfile || fail "Dockerfile: not the Rust $rust of rust-toolchain.toml"
grep -q "^ENV RUSTUP_TOOLCHAIN=$rust$" Dockerfile || fail "Dockerfile: not the Rust $rust of rust-toolchain.toml"

# Every value is in the chart's README.
while IFS=: read -r value _; do
    grep -qE "^\| \`${value}[.\`]" chart/README.md || fail "chart/README.md: says nothing about the value $value"
done < <(grep -E '^[a-zA-Z]+:' chart/values.yaml)

echo "ok deploy: $checks checks"
