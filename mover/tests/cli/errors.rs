//! Mistakes of the command line: code 2, one line and a hint on standard error, JSON on standard output.

use std::os::unix::fs::PermissionsExt as _;

use crate::{json, ran, run, tradewind};

#[test]
fn bad_usage_is_two_lines_and_code_2() {
    for (words, text) in [
        (&["backup"][..], "required arguments were not provided: <SOURCE>"),
        (&["backup", "/", "--memory", "lots"], "invalid value 'lots' for '--memory <SIZE>'"),
        (&["backup", "/", "--tag", "x"], "write a tag as key=value"),
        (&["backup", "/", "--chunk-size", "100KiB"], "must be a power of two from 16KiB to 4MiB"),
        (&["restore", "latest"], "--target <PATH>"),
        (&["restore", "newest", "--target", "x"], "write `latest` or the beginning of a snapshot id"),
        (&["verify", "--sample", "10"], "write a share like 10%"),
        (&["verify", "--sample", "10%", "--read-data"], "cannot be used with"),
        (&["snapshots", "--quiet", "--verbose"], "cannot be used with"),
        (&["key", "remove"], "required arguments were not provided: <SLOT>"),
        (&["sync"], "unrecognized subcommand 'sync'"),
    ] {
        let ran = run(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{words:?}: {}", ran.stderr);
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{words:?}: {}", ran.stderr);
        assert!(
            lines[0].starts_with("tradewind: error: ") && lines[0].contains(text),
            "{words:?}: {}",
            lines[0]
        );
        assert!(lines[1].starts_with("hint: "), "{words:?}: {}", lines[1]);
    }
}

#[test]
fn bad_usage_in_json() {
    let ran = run(&["backup", "/", "--memory", "lots", "--json"]);
    let error = json(&ran.stdout);
    assert_eq!(ran.code, 2);
    assert_eq!(error["message_type"], "error");
    assert_eq!(error["schema_version"], 1);
    assert_eq!(error["code"], 2);
    assert_eq!(error["kind"], "usage");
    assert!(error["message"].as_str().unwrap().contains("lots"));
    assert!(error["hint"].is_string());
}

#[test]
fn a_repository_must_be_named() {
    for words in [&["init"][..], &["backup", "/x"], &["snapshots"], &["verify"], &["key", "list"], &["stats"]]
    {
        let ran = run(words);
        assert_eq!(ran.code, 2, "{words:?}");
        assert!(ran.stderr.contains("--repository or set TRADEWIND_REPOSITORY"), "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn without_a_key_nothing_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("repo");
    let ran = ran(tradewind(&["init"]).env("TRADEWIND_REPOSITORY", &repository));
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("--password-file") && ran.stderr.contains("--key-file"), "{}", ran.stderr);
    assert!(!repository.exists());
}

#[test]
fn one_key_only() {
    let words = ["snapshots", "-r", "x", "--password-file", "p", "--key-file", "k"];
    let ran = run(&words);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("give only one of"), "{}", ran.stderr);
}

#[test]
fn an_unreadable_password_file_is_named() {
    let ran = run(&["init", "-r", "/nonexistent/repo", "--password-file", "/nonexistent/pass"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("cannot read /nonexistent/pass"), "{}", ran.stderr);
}

#[test]
fn a_password_file_for_everyone_is_remarked_upon() {
    let dir = tempfile::tempdir().unwrap();
    let pass = dir.path().join("pass");
    std::fs::write(&pass, "correct horse\n").unwrap();
    let remark = "can be read by everyone";
    for (mode, remarked) in [(0o644, true), (0o600, false)] {
        std::fs::set_permissions(&pass, std::fs::Permissions::from_mode(mode)).unwrap();
        let words =
            ["snapshots", "--json", "-r", "/nonexistent/repo", "--password-file", pass.to_str().unwrap()];
        let ran = run(&words);
        assert_eq!(ran.stderr.contains(remark), remarked, "{}", ran.stderr);
        assert_eq!(ran.stdout.contains("\"message_type\":\"warning\""), remarked, "{}", ran.stdout);
    }
}

#[test]
fn standard_input_serves_one_purpose() {
    let ran = run(&["backup", "-", "-r", "x", "--password-fd", "0"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("standard input cannot be both"), "{}", ran.stderr);
}

#[test]
fn a_tag_twice_is_a_mistake() {
    let ran = run(&["backup", "/x", "-r", "x", "--tag", "a=1", "--tag", "a=2"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("tag a is given twice"), "{}", ran.stderr);
}

#[test]
fn errors_stay_out_of_raw_data() {
    for words in [
        &["cat", "latest:file", "--json", "-r", "/nonexistent/repo"][..],
        &["restore", "latest", "--target", "-", "--json", "-r", "/nonexistent/repo"],
        &["cat", "--json", "nonsense", "more"],
        &["restore", "--target=-", "--json"],
    ] {
        let ran = run(words);
        assert_eq!(ran.code, 2, "{words:?}");
        assert_eq!(ran.stdout, "", "{words:?}");
        assert_eq!(json(&ran.stderr)["message_type"], "error", "{words:?}: JSON and nothing else");
    }
}
