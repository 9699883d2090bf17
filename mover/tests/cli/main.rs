//! The binary from outside: exit codes, what is on standard output and what on standard error. One integration binary;
//! a new file of tests is declared here.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

mod errors;
mod help;
mod plain;
mod repository;
mod volumes;

use std::process::{Command, Output, Stdio};

/// `tradewind` in an environment without variables, settings or a terminal.
fn tradewind(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tradewind"));
    command.args(words).env_clear().stdin(Stdio::null());
    command
}

/// What a run left.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn ran(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran {
        code: status.code().unwrap(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

fn run(words: &[&str]) -> Ran {
    ran(&mut tradewind(words))
}

/// The only JSON line of `text`.
fn json(text: &str) -> serde_json::Value {
    assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
    serde_json::from_str(text).unwrap()
}
