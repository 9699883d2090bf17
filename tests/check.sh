#!/usr/bin/env bash
# What `make check` runs: format, lints, dependencies, scripts, and the style of the tree. All of them, then the verdict.

# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TW_REPO" || exit 1

failed=()
check() { # NAME COMMAND...
    local name=$1 started=$SECONDS
    shift
    if "$@"; then
        log "$name: ok ($((SECONDS - started)) s)"
    else
        log "$name: FAILED"
        failed+=("$name")
    fi
}

# Licences, banned crates and origins need nothing but Cargo.lock. Known vulnerabilities are in a database on GitHub.
dependencies() {
    local deny parts=(bans licenses sources)
    deny=$TW_CACHE/bin/cargo-deny-$(sed -n 's/^CARGO_DENY=//p' tests/setup.sh)
    if timeout 120 "$deny" --all-features fetch db >/dev/null 2>&1; then
        parts+=(advisories)
    else
        log "*** ADVISORIES NOT CHECKED: the RustSec database cannot be fetched from here. Everything else is. ***"
    fi
    "$deny" --locked --all-features check --hide-inclusion-graph "${parts[@]}"
}

scripts() {
    local files
    mapfile -t files < <(git ls-files '*.sh' .ci/run)
    if have shellcheck; then
        shellcheck --external-sources --source-path=SCRIPTDIR "${files[@]}"
    else
        log "*** SCRIPTS NOT CHECKED: shellcheck is missing and cannot be installed without root. ***"
    fi
}

tests/setup.sh checks
check "format" cargo fmt --all --check
check "lints" cargo clippy --quiet --locked --workspace --all-targets -- --deny warnings
check "dependencies" dependencies
check "scripts" scripts
# Of the whole workspace, so that it is built with the features of `make test` and not once more.
check "style" cargo test --quiet --locked --workspace --test tidy
[ ${#failed[@]} = 0 ] || fail "$(printf '%s, ' "${failed[@]}" | sed 's/, $//') failed"
log "all good"
