# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
# Shared by the scripts of tests/accept: options, running the program, and one line for every check.
#
#     ok WHAT: FIGURES      the check passed
#     FAIL WHAT: FIGURES    it did not; the script goes on and ends with 1
#     SKIP WHAT: WHY        this machine cannot show it (no root, no kernel feature)
#
# A script ends with `finish`, whose line of sums says that it came to its end. Every run of the program has a time
# limit ($LIMIT seconds): one that hangs is a failure, with exit code 124.

ACCEPT=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export TMPDIR=${TMPDIR:-/var/tmp}
# shellcheck source=../lib.sh
source "$ACCEPT/../lib.sh"
# A script that stops short says where.
set -o errtrace
trap 'log "stopped at ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
FIDELITY=$TW_REPO/tests/fidelity
SERVERS=$TW_REPO/tests/servers/servers.sh

QUICK='' BINARY='' TOOLS='' GOOD=0 BAD=0 SKIPPED=0 STATUS=0
while [ $# -gt 0 ]; do
    case $1 in
    --quick) QUICK=1 ;;
    --binary) BINARY=$(realpath -- "$2") && shift ;;
    --tools) TOOLS=$(realpath -- "$2") && shift ;;
    *) fail "unknown option '$1' (--quick --binary --tools)" ;;
    esac
    shift
done
[ -x "$BINARY" ] || fail "--binary PATH is missing (tests/accept.sh builds and gives it)"
TOOLS=${TOOLS:-$(dirname "$BINARY")}

W=$(work_dir)
OUT=$W/out ERR=$W/err
export TRADEWIND_CACHE_DIR=$W/cache
unset TRADEWIND_REPOSITORY TRADEWIND_PASSWORD_FILE TRADEWIND_KEY_FILE
ENGINES=(uring pread)

full() { [ -z "$QUICK" ]; }
LIMIT=$(if full; then echo 5400; else echo 120; fi)
# limited COMMAND...: with the time limit; it also ends what the command started.
limited() { timeout --kill-after=10 "$LIMIT" "$@"; }
# pick QUICK FULL: what is right for this run.
pick() { if full; then echo "$2"; else echo "$1"; fi; }

ok() {
    GOOD=$((GOOD + 1))
    echo "ok $1: ${*:2}"
}
bad() {
    BAD=$((BAD + 1))
    echo "FAIL $1: ${*:2}"
}
skip() {
    SKIPPED=$((SKIPPED + 1))
    echo "SKIP $1: ${*:2}"
}
finish() {
    echo "# $TW_NAME: $GOOD ok, $BAD FAIL, $SKIPPED SKIP"
    [ "$BAD" = 0 ] && [ "$GOOD" -gt 0 ]
    exit
}
# check WHAT FIGURES COMMAND...: ok if COMMAND succeeds.
check() {
    if "${@:3}"; then ok "$1" "$2"; else bad "$1" "$2"; fi
}

# tw ARGUMENTS...: runs the program. STATUS is its exit code, $OUT and $ERR hold what it wrote. What is in RUNNER is put
# before it; it reads INPUT through a pipe. STORE holds the options that the repository's store needs.
RUNNER=() INPUT=/dev/null STORE=()
tw() {
    STATUS=0
    limited "${RUNNER[@]}" "$BINARY" --json --quiet "${STORE[@]}" "$@" >"$OUT" 2>"$ERR" < <(cat "$INPUT") || STATUS=$?
    case $STATUS in 124 | 137) echo "did not end within $LIMIT s: $*" >>"$ERR" ;; esac
}
said() { tail -n 3 "$ERR" | tr '\n' ' '; }
# must WHAT ARGUMENTS...: as tw; anything but success is a failed check, and status 1.
must() {
    tw "${@:2}"
    [ "$STATUS" = 0 ] && return 0
    bad "$1" "exit code $STATUS from '${*:2}': $(said)"
    return 1
}
# refused WHAT CODE ARGUMENTS...: the program must end with CODE and say why in one line (and a hint).
refused() {
    local lines
    tw "${@:3}"
    lines=$(grep -c '^tradewind: error: ' "$ERR" || true)
    if [ "$STATUS" = "$2" ] && [ "$lines" = 1 ] && ! grep -qv '^tradewind: error: \|^hint: ' "$ERR"; then
        ok "$1" "exit code $STATUS, $(head -n 1 "$ERR")"
    else
        bad "$1" "exit code $STATUS instead of $2, standard error: $(said)"
    fi
}
# field NAME...: values of the last JSON line, such as counters.read_bytes; empty for null.
field() { python3 "$ACCEPT/summary.py" "$OUT" "$@"; }
# figures: the last run in few words.
figures() { python3 "$ACCEPT/summary.py" "$OUT"; }

# new_repo DIR [INIT-OPTIONS]: a new repository there, opened by $W/key from now on.
new_repo() {
    if [ ! -f "$W/key" ]; then
        limited "$BINARY" --quiet key generate "$W/key"
    fi
    export TRADEWIND_KEY_FILE=$W/key TRADEWIND_REPOSITORY=$1
    tw init "${@:2}"
    [ "$STATUS" = 0 ] || fail "init of $1 failed with $STATUS: $(said)"
}

# same_tree WHAT FIGURES COMPARE-ARGUMENTS...
same_tree() {
    local status=0
    limited python3 "$FIDELITY/compare.py" "${@:3}" >"$W/compare" 2>&1 || status=$?
    if [ $status = 0 ]; then
        ok "$1" "$(head -n 1 "$W/compare"); identical${2:+; $2}"
    else
        bad "$1" "$(grep -v '^compared' "$W/compare" | tail -n 1); first: $(head -n 3 "$W/compare" | tr '\n' ' ')"
    fi
}

# serve KIND NAME [OPTIONS]: starts a server that ends with this script; sets the variables that servers.sh prints.
serve() {
    local kind=$1 dir=$W/$2 fd
    mkdir -p "$dir"
    exec {fd}> >(exec "$SERVERS" serve "$kind" "$dir" "${@:3}" >/dev/null)
    if ! wait_for 60 "$kind to start" test -s "$dir/env"; then fail "$kind did not start"; fi
    SERVED+=("$dir")
    # shellcheck disable=SC1091
    set -a && source "$dir/env" && set +a
    STORE=(--endpoint "$S3_ENDPOINT" --region "$AWS_REGION" --path-style)
    [ -z "$S3_CA_FILE" ] || STORE+=(--ca-file "$S3_CA_FILE")
}
SERVED=()
# proxy NAME OPTIONS...: puts a recording proxy in front of the server that was started last; clients see the same
# certificate. Its log is $W/NAME.log. Ends with this script.
proxy() {
    local name=$1 fd tls=()
    if [ -n "$S3_CA_FILE" ]; then
        tls=(--upstream-ca "$S3_CA_FILE" --cert "${S3_CA_FILE%/*}/server.pem" --key "${S3_CA_FILE%/*}/server.key")
    fi
    [ -x "$TOOLS/s3-proxy" ] || fail "s3-proxy is not in $TOOLS: cargo build --workspace --bins"
    exec {fd}> >(exec "$TOOLS/s3-proxy" --upstream "$S3_ENDPOINT" --until-stdin-ends --log "$W/$name.log" \
        "${tls[@]}" "${@:2}" >"$W/$name.env" 2>"$W/$name.err")
    wait_for 20 "s3-proxy to start" grep -q S3_PROXY_ENDPOINT "$W/$name.env" || fail "s3-proxy: $(cat "$W/$name.err")"
    STORE=(--endpoint "$(sed -n 's/^S3_PROXY_ENDPOINT=//p' "$W/$name.env")" --region "$AWS_REGION" --path-style)
    [ -z "$S3_CA_FILE" ] || STORE+=(--ca-file "$S3_CA_FILE")
}
before_cleanup() { stop_servers; }
stop_servers() {
    local dir
    for dir in "${SERVED[@]}"; do "$SERVERS" stop "$dir"; done
    SERVED=()
}

# drop_fs DIR: unmounts what loop_fs made and gives its space back. For many files it is much quicker than removing them.
drop_fs() {
    local dev image
    dev=$(findmnt --noheadings --nofsroot --output SOURCE "$1")
    image=$(losetup --noheadings --output BACK-FILE "$dev")
    tw_umount "$1"
    loop_undo "$dev"
    rm -f "$image"
}

# pick_tree LIMIT-KIB: the largest folder of the machine's programs that is not larger.
pick_tree() {
    { du -xsk /usr/share/* /usr/lib/* /usr/include /usr/share/perl/* 2>/dev/null || true; } |
        awk -v limit="$1" '$1 <= limit' | sort -n | tail -n 1 | cut -f 2
}
