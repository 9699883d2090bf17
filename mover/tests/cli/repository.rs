//! Commands on a real repository in a directory: keys, errors, and what programs read.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{Ran, json, ran, tradewind};

/// A repository and its passphrase.
pub(crate) struct Bed {
    dir: TempDir,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let bed = Self { dir: tempfile::tempdir().unwrap() };
        bed.secret("pass", "correct horse battery\n");
        let made = bed.run(&["init", "--label", "first"]);
        assert_eq!(made.code, 0, "{}", made.stderr);
        bed
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn secret(&self, name: &str, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A command with the repository, a passphrase and a cache of its own.
    pub(crate) fn command(&self, pass: &Path, words: &[&str]) -> Command {
        let mut command = tradewind(words);
        command
            .env("TRADEWIND_REPOSITORY", self.path("repo"))
            .env("TRADEWIND_PASSWORD_FILE", pass)
            .env("TRADEWIND_CACHE_DIR", self.path("cache"));
        command
    }

    fn run_with(&self, pass: &Path, words: &[&str]) -> Ran {
        ran(&mut self.command(pass, words))
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ran {
        self.run_with(&self.path("pass"), words)
    }
}

#[test]
fn a_repository_is_created_once() {
    let bed = Bed::new();
    let again = bed.run(&["init", "--json"]);
    assert_eq!(again.code, 7);
    assert_eq!(json(&again.stdout)["kind"], "repository");
    let none = bed.run(&["snapshots"]);
    assert_eq!((none.code, none.stdout.as_str()), (0, "no snapshots\n"), "{}", none.stderr);
    let list = json(&bed.run(&["snapshots", "--json"]).stdout);
    assert_eq!(list["command"], "snapshots");
    assert_eq!(list["snapshots"].as_array().map(Vec::len), Some(0));
}

#[test]
fn nothing_there_is_code_7() {
    let bed = Bed::new();
    let elsewhere = bed.path("elsewhere");
    let ran = bed.run(&["snapshots", "--repository", elsewhere.to_str().unwrap()]);
    assert_eq!(ran.code, 7, "{}", ran.stderr);
    assert!(!elsewhere.exists());
}

#[test]
fn a_wrong_passphrase_is_code_4() {
    let bed = Bed::new();
    bed.secret("wrong", "incorrect horse\n");
    let ran = bed.run_with(&bed.path("wrong"), &["snapshots"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (4, ""));
    assert!(
        ran.stderr.starts_with("tradewind: error: ") && ran.stderr.contains("\nhint: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_snapshot_that_is_not_there_is_code_2() {
    let bed = Bed::new();
    for words in
        [&["ls", "latest"][..], &["cat", "0123:a"], &["restore", "latest", "--target", "/nonexistent/x"]]
    {
        let ran = bed.run(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{words:?}: {}", ran.stderr);
    }
}

#[test]
fn a_missing_source_is_code_8() {
    let bed = Bed::new();
    let ran = bed.run(&["backup", "/nonexistent/source"]);
    assert_eq!(ran.code, 8, "{}", ran.stderr);
}

#[test]
fn keys_come_and_go() {
    let bed = Bed::new();
    let key = bed.path("key");
    let key = key.to_str().unwrap();
    assert_eq!(bed.run(&["key", "generate", key]).code, 0);
    let added = json(&bed.run(&["key", "add", "--new-key-file", key, "--label", "safe", "--json"]).stdout);
    assert_eq!(added["command"], "key add");

    let by_file = bed.run(&["key", "list", "--key-file", key, "--json"]);
    let slots = json(&by_file.stdout)["slots"].clone();
    let slots = slots.as_array().unwrap();
    assert_eq!(slots.len(), 2);
    let opened: Vec<_> = slots.iter().filter(|s| s["opened"] == true).collect();
    assert_eq!(opened.len(), 1);
    assert_eq!((&opened[0]["kind"], &opened[0]["label"]), (&"key file".into(), &"safe".into()));

    let new = bed.secret("new", "another horse battery\n");
    assert_eq!(bed.run(&["key", "change", "--new-password-file", &new]).code, 0);
    assert_eq!(bed.run(&["snapshots"]).code, 4, "the old passphrase is gone");
    assert_eq!(bed.run_with(Path::new(&new), &["snapshots"]).code, 0);
    let slots = json(&bed.run_with(Path::new(&new), &["key", "list", "--json"]).stdout)["slots"].clone();
    let opened = slots.as_array().unwrap().iter().find(|s| s["opened"] == true).unwrap();
    assert_eq!(opened["label"], "first", "the slot keeps its label");

    let slot = added["slot"].as_str().unwrap();
    let removed = json(&bed.run_with(Path::new(&new), &["key", "remove", slot, "--json"]).stdout);
    assert_eq!(removed["slot"], slot);
    assert_eq!(bed.run(&["snapshots", "--key-file", key]).code, 4, "the key file is gone");
    let list = json(&bed.run_with(Path::new(&new), &["key", "list", "--json"]).stdout);
    let last = list["slots"][0]["slot"].as_str().unwrap();
    assert_eq!(bed.run_with(Path::new(&new), &["key", "remove", last]).code, 2, "never the last one");
}

#[test]
fn an_exclude_file_must_exist() {
    let bed = Bed::new();
    let ran = bed.run(&["backup", "/nonexistent/source", "--exclude-file", "/nonexistent/excludes"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("cannot read /nonexistent/excludes"), "{}", ran.stderr);
}
