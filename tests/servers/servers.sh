#!/usr/bin/env bash
# Starts and stops the real S3 servers of the tests (tests/setup.sh servers builds them).
#
#   servers.sh start KIND DIR [OPTIONS]   starts one, waits until it answers, prints how to reach it
#   servers.sh stop DIR                   stops it and waits until it is gone; what it stored stays
#   servers.sh serve KIND DIR [OPTIONS]   as start, and stops it when standard input ends: for a test program that
#                                         holds the other end of a pipe, so that the server goes when the test does
#   servers.sh ca DIR                     makes a CA and a server's certificate in DIR/tls, nothing else
#
# KIND: versitygw (TLS with a CA of its own, unless --plain) or s3s-fs (plain HTTP).
# DIR:  everything of this server: data/BUCKET/, tls/, log, pid, env. Used again when it is there.
#
#   --bucket NAME     a bucket that shall exist (may be repeated; default: tradewind)
#   --plain           versitygw without TLS
#   --versioning      versitygw keeps versions (in DIR/versions); a bucket still has to enable it
#   --port N          default: a free one
#
# What is printed (and kept in DIR/env) is lines for `eval` or `source`:
#   S3_KIND S3_ENDPOINT S3_BUCKET S3_DATA S3_CA_FILE AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_REGION
# S3_CA_FILE is empty for plain HTTP. The keys are of this test server alone.

# shellcheck source=../lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

READY_SECONDS=30
ACCESS_KEY=tradewind-test
REGION=us-east-1

program() { # KIND: prints the newest cached build
    local found
    found=$(printf '%s\n' "$TW_CACHE/bin/$1"-[0-9]* | grep -v '\.part' | sort -V | tail -n 1)
    [ -x "$found" ] || fail "$1 is not there: run tests/setup.sh servers"
    echo "$found"
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# A CA and one certificate for 127.0.0.1, ::1 and localhost; made once per DIR.
make_ca() { # DIR
    local tls=$1/tls
    [ ! -f "$tls/server.pem" ] || return 0
    rm -rf "$tls.part"
    mkdir -p "$tls.part"
    (
        cd "$tls.part"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 3650 \
            -subj "/CN=Tradewind test CA" -addext "basicConstraints=critical,CA:TRUE" \
            -addext "keyUsage=critical,keyCertSign,cRLSign"
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout server.key -out server.csr \
            -subj "/CN=localhost"
        printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
            "extendedKeyUsage=serverAuth" "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1" >server.ext
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 825 -sha256 \
            -extfile server.ext -out server.pem
        chmod 0600 ./*.key
    ) >"$1/tls.log" 2>&1 || fail "openssl could not make the certificates: $(tail -n 1 "$1/tls.log")"
    mv "$tls.part" "$tls"
}

# A process is known by "PID START-TIME", so that one with a number used again is never taken for ours.
alive() { # PID START-TIME
    [ -n "${2:-}" ] && [ "$(tw_start_time "$1")" = "$2" ] && ! grep -q '^State:	Z' "/proc/$1/status" 2>/dev/null
}
dead() { ! alive "$@"; }
running() { # DIR
    local pid start
    [ -f "$1/pid" ] && read -r pid start <"$1/pid" && alive "$pid" "$start"
}
gone() { ! running "$1"; }

# Whether the server of DIR itself listens on PORT: another program that has the port would answer as well.
listens() { # DIR PORT
    local pid inode
    read -r pid _ <"$1/pid"
    inode=$(awk -v port="$(printf ':%04X$' "$2")" '$4 == "0A" && $2 ~ port { print $10 }' /proc/net/tcp /proc/net/tcp6)
    [ -n "$inode" ] && find "/proc/$pid/fd" -lname "socket:\[$inode\]" 2>/dev/null | grep -q .
}

answers() { # DIR PORT SCHEME CA: any HTTP answer will do; a server that died is noticed at once
    if gone "$1"; then return 0; fi
    listens "$1" "$2" && curl --silent --output /dev/null --max-time 2 ${4:+--cacert "$4"} "$3://127.0.0.1:$2/"
}

start() {
    local kind=$1 dir=$2 buckets=() plain='' versioning='' port='' ca='' scheme secret attempt chosen
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
        --bucket | --port) [ $# -gt 1 ] || fail "$1 needs a value" ;;&
        --bucket) buckets+=("$2") && shift ;;
        --port) port=$2 && shift ;;
        --plain) plain=1 ;;
        --versioning) versioning=1 ;;
        *) fail "unknown option '$1'" ;;
        esac
        shift
    done
    [ ${#buckets[@]} -gt 0 ] || buckets=(tradewind)
    case $kind in
    versitygw) scheme=https ;;
    s3s-fs) scheme=http plain=1 ;;
    *) fail "unknown server '$kind' (versitygw, s3s-fs)" ;;
    esac
    local program
    program=$(program "$kind")
    mkdir -p "$dir"
    dir=$(realpath "$dir")
    ! running "$dir" || fail "a server is running in $dir (servers.sh stop $dir)"
    local bucket
    for bucket in "${buckets[@]}"; do mkdir -p "$dir/data/$bucket"; done
    [ -f "$dir/secret" ] || (umask 077 && openssl rand -hex 20 >"$dir/secret")
    secret=$(cat "$dir/secret")
    if [ -z "$plain" ]; then
        make_ca "$dir"
        ca=$dir/tls/ca.pem
    else
        scheme=http
    fi

    # Between choosing a free port and binding it someone else may take it: then once more with another.
    for attempt in 1 2 3 4 5; do
        chosen=${port:-$(free_port)}
        launch "$kind" "$program" "$dir" "$chosen" "$secret" "$ca" "$versioning"
        wait_for $READY_SECONDS "$kind to answer at $scheme://127.0.0.1:$chosen" \
            answers "$dir" "$chosen" "$scheme" "$ca" || break
        if running "$dir"; then
            printf '%s=%q\n' S3_KIND "$kind" S3_ENDPOINT "$scheme://127.0.0.1:$chosen" S3_BUCKET "${buckets[0]}" \
                S3_DATA "$dir/data" S3_CA_FILE "$ca" AWS_ACCESS_KEY_ID "$ACCESS_KEY" \
                AWS_SECRET_ACCESS_KEY "$secret" AWS_REGION "$REGION" | tee "$dir/env"
            return
        fi
        if [ -n "$port" ] || ! grep -qi 'address already in use\|AddrInUse' "$dir/log"; then break; fi
        log "$kind: port $chosen was taken meanwhile, trying another (attempt $attempt)"
    done
    tail -n 20 "$dir/log" | sed 's/^/    /' >&2
    stop "$dir"
    fail "$kind did not start; the end of its log is above, all of it in $dir/log"
}

launch() { # KIND PROGRAM DIR PORT SECRET CA VERSIONING
    local kind=$1 program=$2 dir=$3 port=$4 secret=$5 ca=$6 versioning=$7 command
    case $kind in
    versitygw)
        command=("$program" --port "127.0.0.1:$port" --region "$REGION" --keep-alive --quiet)
        [ -z "$ca" ] || command+=(--cert "$dir/tls/server.pem" --key "$dir/tls/server.key")
        command+=(posix)
        if [ -n "$versioning" ]; then
            mkdir -p "$dir/versions"
            command+=(--versioning-dir "$dir/versions")
        fi
        command+=("$dir/data")
        ;;
    s3s-fs)
        # The secret is an argument here: the server knows no other way. It is worth nothing elsewhere.
        command=("$program" --host 127.0.0.1 --port "$port" --access-key "$ACCESS_KEY" --secret-key "$secret" "$dir/data")
        ;;
    esac
    # Whoever started this may wait for the end of a pipe: the server must hold nothing of theirs.
    (
        export ROOT_ACCESS_KEY=$ACCESS_KEY ROOT_SECRET_KEY=$secret RUST_LOG=${RUST_LOG:-s3s_fs=info,s3s=info}
        for fd in "/proc/$BASHPID/fd"/*; do
            fd=${fd##*/}
            [ "$fd" -le 2 ] || exec {fd}>&-
        done
        exec setsid "${command[@]}"
    ) </dev/null >"$dir/log" 2>&1 &
    echo "$! $(tw_start_time $!)" >"$dir/pid"
    disown
}

end() { # PID START-TIME
    alive "$@" || return 0
    kill -TERM "$1" 2>/dev/null || true
    if ! wait_for 10 "server $1 to end" dead "$@"; then
        kill -KILL "$1" 2>/dev/null || true
        wait_for 10 "server $1 to be killed" dead "$@" || fail "process $1 does not end"
    fi
}

stop() { # DIR
    local pid start
    if [ -f "$1/pid" ] && read -r pid start <"$1/pid"; then end "$pid" "$start"; fi
    rm -f "$1/pid"
}

serve() { # as start
    SERVED=$2
    trap 'stop "$SERVED"; tw_exit' EXIT
    start "$@"
    # From here on known by number: whoever made the directory may take it away before standard input ends.
    local pid start
    read -r pid start <"$SERVED/pid"
    # shellcheck disable=SC2064 # the values of now
    trap "end $pid $start; tw_exit" EXIT
    # A builtin, so that a signal ends it at once.
    while read -r _; do :; done
}

# Sourced, it only defines the functions.
if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    action=${1:-}
    case $action in
    start | serve)
        [ $# -ge 3 ] || fail "usage: servers.sh $action KIND DIR [OPTIONS]"
        shift
        "$action" "$@"
        ;;
    stop)
        [ $# = 2 ] || fail "usage: servers.sh stop DIR"
        stop "$2"
        ;;
    ca)
        [ $# = 2 ] || fail "usage: servers.sh ca DIR"
        mkdir -p "$2"
        make_ca "$(realpath "$2")"
        ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
    esac
fi
