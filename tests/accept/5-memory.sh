#!/usr/bin/env bash
# Memory is a promise: the peak of resident memory, as /usr/bin/time -v measures it, is at most --memory plus 32 MiB,
# under 256 MiB with defaults and under 128 MiB with --memory 96MiB. For a 64 GiB sparse image, /usr, a million small
# files, a million names in one directory, half a million hard links, and the restore of each; with the repository in
# a directory and behind S3 over TLS; in the presence of an index of 10 million chunks of other volumes.

# shellcheck source=checks.sh
source "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

DEFAULT=192 # MiB, what the program takes when nobody says
SLACK=32
ROWS=()

[ -x /usr/bin/time ] || fail "/usr/bin/time is missing: run tests/setup.sh packages"
[ -x "$TOOLS/foreign-index" ] || fail "foreign-index is not in $TOOLS: cargo build --workspace --bins"
RUNNER=(/usr/bin/time -v -o "$W/time")

# A million files are gone at once with the file system that they are on; without root they are removed one by one.
PLACE=$W
new_place() {
    PLACE=$W
    ! is_root || PLACE=$(loop_fs xfs "$(pick 4G 80G)")
}
old_place() {
    if [ "$PLACE" = "$W" ]; then rm -rf "$W/source" "$W/back"; else drop_fs "$PLACE"; fi
}

make_source() { # CASE
    case $1 in
    image) python3 "$ACCEPT/blocks.py" make "$PLACE/source" "$(pick 4G 64G)" "$(pick 100M 3G)" 64 ;;
    files) python3 "$ACCEPT/many.py" files "$PLACE/source" "$(pick 50000 1000000)" ;;
    names) python3 "$ACCEPT/many.py" names "$PLACE/source" "$(pick 50000 1000000)" ;;
    links) python3 "$ACCEPT/many.py" links "$PLACE/source" "$(pick 25000 500000)" ;;
    usr) ln -s "$USR" "$PLACE/source" && echo "$USR" ;;
    esac
}

# measured WHAT MEMORY ARGUMENTS...: MEMORY in MiB or "default"; runs the program and judges its peak
measured() {
    local what=$1 memory=$2 limit bound options=() peak seconds
    shift 2
    if [ "$memory" = default ]; then
        limit=$DEFAULT bound=256
    else
        limit=$memory bound=128
        options=(--memory "${memory}MiB")
    fi
    [ $((limit + SLACK)) -ge $bound ] || bound=$((limit + SLACK))
    must "$what" "$@" "${options[@]}" || return 1
    peak=$(awk -F ': ' '/Maximum resident/ { printf "%.1f", $2 / 1024 }' "$W/time")
    seconds=$(field elapsed_seconds)
    ROWS+=("| $what | $memory | $peak | $bound | ${seconds%.*} s | $(figures) |")
    check "$what" "peak $peak MiB, at most $bound; $(figures)" \
        awk -v peak="$peak" -v bound="$bound" 'BEGIN { exit !(peak > 0 && peak <= bound) }'
}

count() { find "$1/" -xdev -printf x | wc -c; }

one_case() { # CASE STORE MEMORY
    local case=$1 what="$1, $2, memory $3" made back
    rm -rf "$TRADEWIND_CACHE_DIR"
    measured "$what: backup" "$3" backup "$(realpath "$PLACE/source")" --volume "$case" --parent none || return 0
    measured "$what: restore" "$3" restore latest --volume "$case" --target "$PLACE/back" || return 0
    if [ "$case" = image ]; then
        if python3 "$ACCEPT/blocks.py" same "$PLACE/source" "$PLACE/back" >"$W/same" 2>&1; then
            ok "$what: equal" "$(cat "$W/same")"
        else
            bad "$what: equal" "$(cat "$W/same")"
        fi
    else
        made=$(count "$PLACE/source") back=$(count "$PLACE/back")
        check "$what: complete" "$back entries, $made in the source" test "$made" = "$back"
        if [ "$case" = links ]; then
            check "$what: links" "$(find "$PLACE/back" -type f -links 2 -printf x | wc -c) names with two links" \
                test "$(find "$PLACE/back" -type f -links 2 -printf x | wc -c)" = "$(find "$PLACE/source/" -type f -printf x | wc -c)"
        fi
    fi
    rm -rf "$PLACE/back"
    measured "$what: incremental" "$3" backup "$(realpath "$PLACE/source")" --volume "$case" || return 0
}

repository() { # STORE MEMORY: a new one, with the foreign index in it
    STORE=()
    if [ "$1" = directory ]; then
        rm -rf "$W/repo"
        new_repo "$W/repo"
        S3_ENDPOINT='' "$TOOLS/foreign-index" "$FOREIGN" >"$W/foreign"
    else
        STORE=("${S3_STORE[@]}")
        new_repo "s3://$S3_BUCKET/memory-$2"
        "$TOOLS/foreign-index" "$FOREIGN" >"$W/foreign"
    fi
}

FOREIGN=$(pick 100000 10000000)
if full; then USR=/usr; else USR=$(pick_tree 150000); fi
serve versitygw tls
S3_STORE=("${STORE[@]}")
# Quick: half of the combinations, so that each store and each setting is there.
if full; then
    combinations=("directory default" "directory 96" "s3 default" "s3 96")
else
    combinations=("directory default" "s3 96")
fi
for combination in "${combinations[@]}"; do
    # shellcheck disable=SC2086 # two words
    repository $combination
    ok "index of other volumes' chunks, $combination" "$(cat "$W/foreign")"
    for case in image usr files names links; do
        new_place
        made=$(make_source "$case")
        echo "  $case: $made"
        # shellcheck disable=SC2086 # two words
        one_case "$case" $combination
        old_place
    done
    # shellcheck disable=SC2086 # two words
    set -- $combination
    measured "verify --read-data, $1, memory $2" "$2" verify --read-data || true
    rm -rf "$W/repo"
done
RUNNER=()
stop_servers
printf '\n| what | memory, MiB | peak, MiB | bound | took | |\n|---|---:|---:|---:|---:|---|\n'
printf '%s\n' "${ROWS[@]}"
echo
finish
