//! The whole harness with a tradewind that is a shell script: figures only for what was restored right.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A "backup tool" that copies. `DAMAGE` runs on what was restored.
const SCRIPT: &str = r#"#!/bin/sh
set -e
case $1 in
version) echo "tradewind 0.0.0 (a copy)" ;;
--version) ;;
init) [ -s "$TRADEWIND_PASSWORD_FILE" ]; mkdir "$TRADEWIND_REPOSITORY" ;;
backup) rm -rf "$TRADEWIND_REPOSITORY/$4"; cp -a --sparse=always "$2" "$TRADEWIND_REPOSITORY/$4" ;;
restore) cp -a --sparse=always "$TRADEWIND_REPOSITORY/$4" "$6"; DAMAGE ;;
*) exit 2 ;;
esac
"#;

fn run(dir: &Path, damage: &str, extra: &[&str]) -> io::Result<Output> {
    let tool = dir.join("tradewind");
    fs::write(&tool, SCRIPT.replace("DAMAGE", damage))?;
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
    Command::new(env!("CARGO_BIN_EXE_perf"))
        .args(["run", "--scale", "1/1024", "--tools", "tradewind", "--settle", "0", "--warm", "--dir"])
        .arg(dir.join("perf"))
        .arg("--tradewind")
        .arg(&tool)
        .args(extra)
        .output()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn only_right_restores_give_figures() {
    if !Path::new("/usr/bin/time").exists() {
        return; // GNU time is not installed here
    }
    let dir = tempfile::tempdir().unwrap();
    let sets = ["--only", "random,usr", "--repeat", "2"];
    let good = run(dir.path(), "true", &sets).unwrap();
    assert!(good.status.success(), "{}{}", text(&good.stdout), text(&good.stderr));
    let raw = fs::read_to_string(dir.path().join("perf/results.jsonl")).unwrap();
    assert_eq!(raw.lines().filter(|line| line.starts_with("{\"run\"")).count(), 2 * 2 * 3, "{raw}");
    let report = fs::read_to_string(dir.path().join("perf/BENCHMARKS.md")).unwrap();
    assert!(report.contains("Scale 1/1024") && report.contains("tradewind 0.0.0 (a copy)"), "{report}");
    assert!(!report.contains(&*dir.path().to_string_lossy()), "no path of this machine: {report}");

    let again = run(dir.path(), "true", &["--only", "random", "--repeat", "3", "--resume"]).unwrap();
    assert!(again.status.success());
    assert_eq!(text(&again.stdout).matches("restore").count(), 1, "two of three rounds were there already");

    let bytes = r#"printf x | dd of="$6" bs=1 seek=70000 conv=notrunc 2>/dev/null"#;
    let wrong = run(dir.path(), bytes, &["--only", "random", "--repeat", "1"]).unwrap();
    assert!(!wrong.status.success());
    let said = text(&wrong.stderr);
    assert!(
        said.contains("random tradewind round 1 FAILED: WRONG RESTORE") && said.contains("byte 70000"),
        "{said}"
    );

    let wrong = run(dir.path(), r#"chmod 700 "$6"/lib"#, &["--only", "usr", "--repeat", "1"]).unwrap();
    assert!(text(&wrong.stderr).contains("metadata differs"), "{}", text(&wrong.stderr));

    let missing = run(dir.path(), "true", &["--tradewind", "/nonexistent"]).unwrap();
    assert!(!missing.status.success());
}
