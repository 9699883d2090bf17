//! What is accepted, what is refused, and with which words.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use super::*;

fn words(line: &str) -> impl Iterator<Item = OsString> + '_ {
    std::iter::once("tradewind").chain(line.split_whitespace()).map(OsString::from)
}

fn wrong(line: &str) -> (bool, String, String) {
    match parse(words(line)) {
        Err(Stopped::Wrong { json, message, hint, .. }) => (json, message, hint),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}

#[test]
fn lines_that_scripts_count_on() {
    for line in [
        "init",
        "backup /srv/data",
        "backup /dev/sdb",
        "backup - --volume stdin",
        "backup /srv/data --volume NAME --tag k=v --parent 0123abcd --json",
        "backup /srv/data --parent none --exclude *.o --exclude-file /etc/excludes --dry-run --live",
        "backup / --one-file-system --cross-file-systems --compression -3 --chunk-size 1MiB",
        "backup / --checkpoint-interval 2s --privileged-metadata off",
        "snapshots --json",
        "restore latest --volume NAME --target PATH",
        "restore 0123abcd:etc/passwd --target out --include *.conf --overwrite --keep-going",
        "restore latest --target -",
        "verify",
        "backup / --engine auto --memory 64MiB --workers 2 --read-rate 1MiB --upload-rate 1MiB",
        "restore latest -t out --engine uring --memory 64MiB --workers 2 --read-rate 1MiB --upload-rate 1MiB",
        "verify --engine pread --memory 64MiB --workers 2 --read-rate 1MiB --upload-rate 1MiB",
        "verify --read-data",
        "verify --sample 10%",
        "verify --expect 0123abcd --expect 4567cdef",
        "key list",
        "key add --new-key-file k",
        "key change --new-password-file p",
        "key remove 1",
        "stats",
        "completions bash",
        "version",
    ] {
        assert!(parse(words(line)).is_ok(), "{line}");
        let global = "--repository r --password-file p --endpoint https://e --region x --path-style \
                      --ca-file c --cache-dir d --json --quiet";
        let line = line.replace(" --json", "");
        assert!(parse(words(&format!("{global} {line}"))).is_ok(), "{line}");
        assert!(parse(words(&format!("{line} --key-file k --password-fd 3 -v"))).is_ok(), "{line}");
    }
    for command in ["backup /x", "restore latest --target y", "verify"] {
        let limits = "--engine pread --memory 96MiB --workers 2 --read-rate 1GiB --upload-rate 50MiB";
        assert!(parse(words(&format!("{command} {limits}"))).is_ok(), "{command}");
    }
}

#[test]
fn the_last_of_contrary_flags_counts() {
    let cli = parse(words("backup / --cross-file-systems --one-file-system")).unwrap();
    let Command::Backup(args) = cli.command else { panic!("not a backup") };
    assert!(args.one_file_system && !args.cross_file_systems);
}

#[test]
fn mistakes_are_one_line_with_a_hint() {
    let (json, message, hint) = wrong("backup / --memory 1XB");
    assert!(!json);
    assert!(message.starts_with("invalid value '1XB' for '--memory <SIZE>'"), "{message}");
    assert!(message.contains("96MiB"), "{message}");
    assert!(!message.contains('\n') && !hint.contains('\n'));

    let (_, message, hint) = wrong("backup / --volumes x");
    assert!(message.starts_with("unexpected argument '--volumes' found"), "{message}");
    assert!(hint.contains("'--volume'"), "{hint}");

    let (_, message, _) = wrong("restore latest");
    assert!(message.contains("--target <PATH>"), "{message}");

    let (json, _, _) = wrong("verify --read-data --sample 10% --json");
    assert!(json);
    let (json, _, _) = wrong("verify --bad -- --json");
    assert!(!json);
}

#[test]
fn limits_belong_to_runs_only() {
    for line in ["snapshots --memory 1GiB", "ls latest --engine pread", "verify --sample 10", "key remove"] {
        wrong(line);
    }
}
