//! Commands that need no repository.

use std::os::unix::fs::PermissionsExt as _;

use crate::repository::Bed;
use crate::{json, ran, run, tradewind};

#[test]
fn version() {
    let ran = run(&["version"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with(concat!("tradewind ", env!("CARGO_PKG_VERSION"))), "{}", ran.stdout);
    let version = json(&run(&["version", "--json"]).stdout);
    assert_eq!(version["message_type"], "summary");
    assert_eq!(version["command"], "version");
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let ran = run(&["--version"]);
    assert_eq!((ran.code, ran.stdout), (0, format!("tradewind {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn completions() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.code, 0, "{shell}");
        assert!(ran.stdout.contains("checkpoint-interval"), "{shell}");
    }
    let script = json(&run(&["completions", "bash", "--json"]).stdout);
    assert_eq!(script["shell"], "bash");
    assert!(script["script"].as_str().unwrap().contains("tradewind"));
}

#[test]
fn a_list_into_a_closed_pipe_ends_quietly() {
    let mut child = tradewind(&["completions", "bash"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_key_file_is_made_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let words = ["key", "generate", file.to_str().unwrap(), "--json"];
    let made = json(&run(&words).stdout);
    assert_eq!(made["command"], "key generate");
    assert_eq!(made["file"], file.to_str().unwrap());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = run(&words);
    assert_eq!(again.code, 9, "{}", again.stderr);
}

#[test]
fn secrets_are_not_dumped() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // It waits for its passphrase, and meanwhile nobody else of this user may look into it.
    let words = ["snapshots", "-r", "x", "--password-file", pipe.to_str().unwrap()];
    let mut child = tradewind(&words).stderr(std::process::Stdio::null()).spawn().unwrap();
    let limits = format!("/proc/{}/limits", child.id());
    let zero = |text: &str| {
        let line = text.lines().find(|l| l.starts_with("Max core file size"));
        line.is_some_and(|l| l.split_whitespace().skip(4).take(2).all(|n| n == "0"))
    };
    let off = (0..200).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        std::fs::read_to_string(&limits).is_ok_and(|text| zero(&text))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(off, "core dumps are off");
}

#[test]
fn a_passphrase_behind_a_descriptor() {
    // The shell opens descriptor 3; the run gets as far as the repository, which is not there.
    let binary = env!("CARGO_BIN_EXE_tradewind");
    let line = format!(
        "printf 'correct horse\\n' | {binary} snapshots -r /nonexistent/repo --password-fd 3 3<&0 </dev/null"
    );
    let mut shell = std::process::Command::new("sh");
    let ran = ran(shell.arg("-c").arg(line).env_clear());
    assert!(!ran.stderr.contains("file descriptor"), "{}", ran.stderr);
    assert_ne!(ran.code, 2, "{}", ran.stderr);
}

#[test]
fn a_descriptor_is_read_on_from_where_it_stands() {
    // A file that may not be opened any more and whose first line was read already; a socket, which has no name.
    let bed = Bed::new();
    let secrets = bed.path("secrets");
    std::fs::write(&secrets, "a header\ncorrect horse\n").unwrap();
    let repository = bed.path("other");
    let binary = env!("CARGO_BIN_EXE_tradewind");
    let shell = |line: &str| {
        let mut shell = std::process::Command::new("sh");
        let env = [("R", repository.as_os_str()), ("S", secrets.as_os_str()), ("T", binary.as_ref())];
        ran(shell.arg("-c").arg(line).env_clear().envs(env).env("PATH", "/usr/bin:/bin"))
    };
    let made = shell("exec 3<$S; rm $S; read -r _ <&3; $T init -r $R --password-fd 3 </dev/null");
    assert_eq!(made.code, 0, "{}", made.stderr);
    let opened = shell("printf 'correct horse' | $T snapshots -r $R --password-fd 0");
    assert_eq!(opened.code, 0, "{}", opened.stderr);
    let closed = shell("$T snapshots -r $R --password-fd 99");
    assert_eq!(closed.code, 2, "{}", closed.stderr);
    assert!(closed.stderr.contains("file descriptor 99: Bad file descriptor"), "{}", closed.stderr);
}
