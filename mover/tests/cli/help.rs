//! The help is an interface too: a snapshot of it is part of the tree. `UPDATE_HELP=1` writes it anew.

use crate::{run, tradewind};

const COMMANDS: &[&[&str]] = &[
    &[],
    &["init"],
    &["backup"],
    &["restore"],
    &["snapshots"],
    &["ls"],
    &["cat"],
    &["diff"],
    &["verify"],
    &["key"],
    &["key", "list"],
    &["key", "add"],
    &["key", "remove"],
    &["key", "change"],
    &["key", "generate"],
    &["stats"],
    &["completions"],
    &["version"],
];

#[test]
fn help_is_what_the_snapshot_says() {
    let mut all = String::new();
    for words in COMMANDS {
        let ran = run(&[*words, &["--help"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        let title = [&["tradewind"], *words, &["--help"]].concat().join(" ");
        // The global options are the same everywhere: once is enough.
        let globals = if words.is_empty() { "\0" } else { "Global options:" };
        let own = ran.stdout.split(globals).next().unwrap_or_default();
        let own: Vec<&str> = own.trim_end().lines().map(str::trim_end).collect();
        all += &format!("$ {title}\n{}\n\n", own.join("\n"));
    }
    let snapshot = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/help.txt");
    if std::env::var_os("UPDATE_HELP").is_some() {
        std::fs::write(snapshot, &all).unwrap();
    }
    let expected = std::fs::read_to_string(snapshot).unwrap();
    let differs = all.lines().zip(expected.lines()).find(|(now, then)| now != then);
    assert!(all == expected, "help changed, at first: {differs:?}; UPDATE_HELP=1 accepts it");
}

#[test]
fn help_documents_every_exit_code() {
    let help = run(&["--help"]).stdout;
    for code in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{code}");
    }
}

#[test]
fn no_command_shows_the_help_and_fails() {
    let ran = run(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("Usage: tradewind"), "{}", ran.stderr);
}

#[test]
fn help_to_a_closed_pipe_is_no_panic() {
    let mut child = tradewind(&["--help"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}
