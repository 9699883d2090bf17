//! The JSON schema is frozen: what `JSON.md` documents is what is written, field by field.
#![allow(clippy::unwrap_used, reason = "a failed test may panic")]

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use tradewind_pipeline::progress::Skipped;

use super::listing::{
    Change, ChangeKind, Differed, Entry, EntryKind, Listed, Slot, Slots, Snapshot, Snapshots, VolumeKind,
};
use super::messages::{Counters, Damage, Failure, Going, Lost, Skip, Warning};
use super::summaries::{Backup, Cat, Completions, Engine, Init, Key, Restore, Stats, Verify, Version};
use super::{Line, Message, SCHEMA_VERSION, human::Moment};
use crate::exit::Outcome;

const DOCUMENT: &str = include_str!("../../JSON.md");

type Fields = BTreeSet<String>;

/// Fields of each section of the document, by its heading.
fn documented() -> BTreeMap<String, Fields> {
    let mut sections: BTreeMap<String, Fields> = BTreeMap::new();
    let mut heading = String::new();
    for line in DOCUMENT.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut heading);
            sections.entry(heading.clone()).or_default();
        } else if let Some(field) = line.strip_prefix("| `").and_then(|l| l.split('`').next()) {
            assert!(sections.get_mut(&heading).unwrap().insert(field.to_owned()), "{heading}: {field} twice");
        }
    }
    sections
}

/// Checks messages and objects against the document, and in the end that nothing in it was left out.
struct Checker(BTreeMap<String, Fields>);

impl Checker {
    fn message<M: Message>(&mut self, heading: &str, message: &M) {
        let line = Line { message_type: M::TYPE, schema_version: SCHEMA_VERSION, message };
        let mut value = serde_json::to_value(line).unwrap();
        let object = value.as_object_mut().unwrap();
        assert_eq!(object.remove("message_type"), Some(M::TYPE.into()));
        assert_eq!(object.remove("schema_version"), Some(1.into()));
        assert!(heading == M::TYPE || heading.starts_with("summary: ") && M::TYPE == "summary", "{heading}");
        if let Some(command) = heading.strip_prefix("summary: ") {
            assert!(object["command"].as_str().unwrap().starts_with(command), "{heading}");
        }
        self.fields(heading, &value);
    }

    fn object(&mut self, heading: &str, object: &impl Serialize) {
        self.fields(heading, &serde_json::to_value(object).unwrap());
    }

    fn fields(&mut self, heading: &str, value: &Value) {
        let written: Fields = value.as_object().unwrap().keys().cloned().collect();
        let documented = self.0.remove(heading).unwrap_or_else(|| panic!("JSON.md lacks `## {heading}`"));
        assert_eq!(written, documented, "{heading}: written (left) and documented (right) differ");
    }
}

fn snapshot() -> Snapshot {
    let moment = Moment { seconds: 0, nanos: 0 };
    Snapshot {
        id: String::new(),
        volume: b"v"[..].into(),
        kind: VolumeKind::Tree,
        time: moment,
        started: moment,
        parent: None,
        size_bytes: 0,
        stored_bytes: 0,
        files: 0,
        directories: 0,
        others: 0,
        skipped: 0,
        mounts: 0,
        live: false,
        tags: BTreeMap::new(),
    }
}

#[test]
fn what_is_documented_is_what_is_written() {
    let mut check = Checker(documented());
    let moment = Moment { seconds: 0, nanos: 0 };
    let (counters, engine) = (Counters::default(), Engine { name: String::new(), reason: String::new() });

    check.object("object: counters", &counters);
    check.object("object: engine", &engine);
    check.object("object: snapshot", &snapshot());
    let slot =
        Slot { slot: String::new(), kind: "passphrase", label: String::new(), created: moment, opened: true };
    check.object("object: slot", &slot);

    check.message(
        "progress",
        &Going {
            command: "backup",
            elapsed_seconds: 0.0,
            total_bytes: None,
            eta_seconds: None,
            done_bytes_per_second: 0.0,
            read_bytes_per_second: 0.0,
            uploaded_bytes_per_second: 0.0,
            fetched_bytes_per_second: 0.0,
            written_bytes_per_second: 0.0,
            bottleneck: None,
            counters,
        },
    );
    check.message("skipped", &Skip::from(&Skipped { path: b"a".to_vec(), reason: String::new() }));
    let damage = Damage { lost: Lost::default(), object: None, reason: String::new() };
    check.message("damage", &damage);
    check.message("warning", &Warning { message: String::new() });
    check.message("error", &Failure { code: 1, kind: "internal", message: String::new(), hint: None });
    check.message(
        "entry",
        &Entry {
            path: b"a"[..].into(),
            kind: EntryKind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            size_bytes: 0,
            mtime: moment,
            links: 1,
            target: None,
            target_hex: None,
            mount: false,
            long: false,
            raw: Vec::new(),
            raw_target: None,
        },
    );
    check.message(
        "change",
        &Change {
            change: ChangeKind::Added,
            path: None,
            path_hex: None,
            offset_bytes: None,
            length_bytes: None,
            size_before_bytes: None,
            size_after_bytes: None,
            raw: Vec::new(),
        },
    );
    runs(&mut check, counters, engine);
    listings(&mut check, slot);
    assert_eq!(check.0.keys().collect::<Vec<_>>(), Vec::<&String>::new(), "documented, and never written");
}

fn runs(check: &mut Checker, counters: Counters, engine: Engine) {
    check.message(
        "summary: init",
        &Init {
            command: "init",
            repository: String::new(),
            repository_id: String::new(),
            slot: String::new(),
            single_writer: false,
        },
    );
    check.message(
        "summary: backup",
        &Backup {
            command: "backup",
            outcome: Outcome::Done,
            snapshot: None,
            volume: b"v"[..].into(),
            kind: VolumeKind::Block,
            parent: None,
            tags: BTreeMap::new(),
            dry_run: false,
            live: false,
            counters,
            mounts: 0,
            engine: engine.clone(),
            elapsed_seconds: 0.0,
        },
    );
    check.message(
        "summary: restore",
        &Restore {
            command: "restore",
            outcome: Outcome::Skipped,
            snapshot: String::new(),
            volume: b"v"[..].into(),
            kind: VolumeKind::Block,
            target: String::new(),
            counters,
            damages: 0,
            engine,
            elapsed_seconds: 0.0,
        },
    );
    check.message(
        "summary: verify",
        &Verify {
            command: "verify",
            outcome: Outcome::Damaged,
            mode: "sample",
            sample: None,
            snapshots: 0,
            packs: 0,
            packs_read: 0,
            chunks: 0,
            checked_bytes: 0,
            counters,
            damages: 0,
            elapsed_seconds: 0.0,
        },
    );
}

fn listings(check: &mut Checker, slot: Slot) {
    let snapshots =
        Snapshots { command: "snapshots", repository: String::new(), snapshots: vec![snapshot()] };
    check.message("summary: snapshots", &snapshots);
    let listed = Listed { command: "ls", snapshot: String::new(), volume: b"v"[..].into(), entries: 0 };
    check.message("summary: ls", &listed);
    check.message("summary: diff", &Differed { command: "diff", ..Differed::default() });
    let cat = Cat { command: "cat", snapshot: String::new(), volume: b"v"[..].into(), written_bytes: 0 };
    check.message("summary: cat", &cat);
    check.message("summary: key", &Key { command: "key add", slot: None, file: None });
    check.message("summary: key list", &Slots { command: "key list", slots: vec![slot] });
    check.message(
        "summary: stats",
        &Stats {
            command: "stats",
            repository: String::new(),
            repository_id: String::new(),
            snapshots: 0,
            volumes: 0,
            volume_bytes: 0,
            packs: 0,
            pack_bytes: 0,
            index_segments: 0,
            index_bytes: 0,
            objects: 0,
            stored_bytes: 0,
        },
    );
    let completions = Completions { command: "completions", shell: String::new(), script: String::new() };
    check.message("summary: completions", &completions);
    check.message(
        "summary: version",
        &Version { command: "version", version: "0", pack_format: 1, architecture: "", system: "" },
    );
}

#[test]
fn words_of_the_schema_are_frozen() {
    assert_eq!([Outcome::Done, Outcome::Skipped, Outcome::Damaged].map(word), ["done", "skipped", "damaged"]);
    assert_eq!([VolumeKind::Tree, VolumeKind::Block].map(word), ["tree", "block"]);
    let kinds = [
        EntryKind::File,
        EntryKind::Directory,
        EntryKind::Symlink,
        EntryKind::BlockDevice,
        EntryKind::CharDevice,
        EntryKind::Fifo,
        EntryKind::Socket,
    ];
    let words = ["file", "directory", "symlink", "block_device", "char_device", "fifo", "socket"];
    assert_eq!(kinds.map(word), words);
    let changes = [ChangeKind::Added, ChangeKind::Removed, ChangeKind::Modified, ChangeKind::Metadata];
    assert_eq!(changes.map(word), ["added", "removed", "modified", "metadata"]);
}

/// A value that is one word in JSON.
fn word(value: impl Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}
