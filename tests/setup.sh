#!/usr/bin/env bash
# Installs what the tests need; does nothing, quickly, when all is there.
#
#   tests/setup.sh [packages] [servers] [peers] [checks] [all]      (all = packages + servers; the default)
#
# packages   Debian packages, by apt-get (as root, or with sudo)
# servers    two real S3 servers, built from source and kept by version in ${XDG_CACHE_HOME:-~/.cache}/tradewind/bin:
#            versitygw (Go) and s3s-fs (Rust); `versitygw` builds that one alone
# peers      what Tradewind is measured against: restic and borg (Debian), kopia (Go)
# checks     what `make check` needs beyond Rust: shellcheck (Debian), cargo-deny (from source)
#
# Runs at the same time are safe: each build holds a lock. What a build printed is in .../tradewind/log.

# shellcheck source=build.sh
source "$(dirname "${BASH_SOURCE[0]}")/build.sh"

VERSITYGW=1.8.0
S3S_FS=0.14.1
KOPIA=0.23.1
CARGO_DENY=0.20.2
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

go_module_version_is() { # DIRECTORY MODULE VERSION
    grep -q "$2 v$3 " "$1/go.mod" || { echo "$1/go.mod does not name $2 v$3" && false; }
}
build_versitygw() {
    go_module_version_is "$TW_REPO/tests/servers/versitygw" github.com/versity/versitygw "$1"
    go_tools "$TW_REPO/tests/servers/versitygw" "$2"
}
build_kopia() {
    go_module_version_is "$TW_REPO/tests/peers/kopia" github.com/kopia/kopia "$1"
    go_tools "$TW_REPO/tests/peers/kopia" "$2"
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

versitygw() {
    have python3 || packages
    built versitygw "$VERSITYGW" build_versitygw
}

servers() {
    have cargo || fail "cargo is missing: install Rust first (rustup)"
    versitygw
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
    packages | servers | versitygw | peers | checks) "$part" ;;
    all)
        packages
        servers
        ;;
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    *) fail "unknown part '$part' (packages, servers, versitygw, peers, checks, all)" ;;
    esac
done
