//! The last message of each command: what was done.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Message;
use super::human::{Bytes, Count, Name, Rate, Span, plural};
use super::listing::{Volume, VolumeKind, short};
use super::messages::Counters;
use crate::exit::Outcome;

/// Which engine moved the data, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Engine {
    pub(crate) name: String,
    pub(crate) reason: String,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

/// A row of a summary for people.
macro_rules! row {
    ($f:expr, $name:expr, $($text:tt)*) => {
        write!($f, "\n  {:9} {}", $name, format_args!($($text)*))
    };
}

fn per_second(bytes: u64, seconds: f64) -> Rate {
    Rate(bytes as f64 / seconds.max(1e-3))
}

fn span(seconds: f64) -> Span {
    Span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// `init`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Init {
    pub(crate) command: &'static str,
    pub(crate) repository: String,
    pub(crate) repository_id: String,
    pub(crate) slot: String,
    pub(crate) single_writer: bool,
}

impl Message for Init {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "created repository {} at {}", self.repository_id, self.repository)?;
        if self.single_writer {
            f.write_str("; for one writer at a time, because the store cannot create objects exclusively")?;
        }
        f.write_str("\nwithout its passphrase or key file nobody can restore from it: keep a copy elsewhere")
    }
}

/// `backup`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Backup {
    pub(crate) command: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) snapshot: Option<String>,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) kind: VolumeKind,
    pub(crate) parent: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) dry_run: bool,
    pub(crate) live: bool,
    pub(crate) counters: Counters,
    pub(crate) mounts: u64,
    pub(crate) engine: Engine,
    pub(crate) elapsed_seconds: f64,
}

impl Message for Backup {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Backup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counters;
        let volume = &self.volume;
        match &self.snapshot {
            Some(id) => write!(f, "snapshot {} of {volume}", short(id))?,
            None => write!(f, "dry run of {volume}: nothing was stored")?,
        }
        match &self.parent {
            Some(parent) => write!(f, ", after {}", short(parent))?,
            None => f.write_str(", without a parent")?,
        }
        let rate = per_second(c.done_bytes, self.elapsed_seconds);
        row!(f, "volume", "{} in {} ({rate})", Bytes(c.done_bytes), span(self.elapsed_seconds))?;
        row!(f, "read", "{}", Bytes(c.read_bytes))?;
        if c.hole_bytes > 0 {
            row!(f, "holes", "{}", Bytes(c.hole_bytes))?;
        }
        if c.reused_bytes > 0 {
            row!(f, "reused", "{}", Bytes(c.reused_bytes))?;
        }
        row!(f, "new", "{}", Bytes(c.new_bytes))?;
        if !self.dry_run {
            write!(f, ", stored as {} in {}", Bytes(c.stored_bytes), plural(c.packs, "pack", "packs"))?;
            row!(f, "uploaded", "{}", Bytes(c.uploaded_bytes))?;
        }
        if c.retries > 0 {
            row!(f, "retries", "{}", Count(c.retries))?;
        }
        if self.kind == VolumeKind::Tree {
            tree_rows(f, c)?;
        }
        if self.mounts > 0 {
            let mounts = plural(self.mounts, "mount point", "mount points");
            row!(f, "mounts", "{mounts} below the source not entered")?;
        }
        skipped_row(f, c.skipped)?;
        row!(f, "engine", "{}", self.engine)
    }
}

/// Directories and others, as numbers with their words.
fn besides_files(c: &Counters) -> (String, String) {
    (plural(c.directories, "directory", "directories"), plural(c.others, "other", "others"))
}

fn tree_rows(f: &mut fmt::Formatter<'_>, c: &Counters) -> fmt::Result {
    let (directories, others) = besides_files(c);
    row!(f, "files", "{} ({} unchanged)", Count(c.files), Count(c.files_unchanged))?;
    write!(f, ", {directories}, {others}")
}

fn skipped_row(f: &mut fmt::Formatter<'_>, skipped: u64) -> fmt::Result {
    if skipped > 0 {
        row!(f, "skipped", "{}", plural(skipped, "item", "items"))?;
    }
    Ok(())
}

/// `restore`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Restore {
    pub(crate) command: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) snapshot: String,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) kind: VolumeKind,
    pub(crate) target: String,
    pub(crate) counters: Counters,
    pub(crate) damages: u64,
    pub(crate) engine: Engine,
    pub(crate) elapsed_seconds: f64,
}

impl Message for Restore {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counters;
        let target = Name(self.target.as_bytes());
        write!(f, "restored snapshot {} of {} to {target}", short(&self.snapshot), self.volume)?;
        let rate = per_second(c.done_bytes, self.elapsed_seconds);
        row!(f, "volume", "{} in {} ({rate})", Bytes(c.done_bytes), span(self.elapsed_seconds))?;
        row!(f, "fetched", "{}", Bytes(c.fetched_bytes))?;
        row!(f, "written", "{}", Bytes(c.written_bytes))?;
        if self.kind == VolumeKind::Tree {
            let (directories, others) = besides_files(c);
            row!(f, "files", "{}, {directories}, {others}", Count(c.files))?;
        }
        if c.retries > 0 {
            row!(f, "retries", "{}", Count(c.retries))?;
        }
        skipped_row(f, c.skipped)?;
        if self.damages > 0 {
            row!(f, "damaged", "{}", plural(self.damages, "place", "places"))?;
        }
        row!(f, "engine", "{}", self.engine)
    }
}

/// `verify`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verify {
    pub(crate) command: &'static str,
    pub(crate) outcome: Outcome,
    pub(crate) mode: &'static str,
    pub(crate) sample: Option<f64>,
    pub(crate) snapshots: u64,
    pub(crate) packs: u64,
    pub(crate) packs_read: u64,
    pub(crate) chunks: u64,
    pub(crate) checked_bytes: u64,
    pub(crate) counters: Counters,
    pub(crate) damages: u64,
    pub(crate) elapsed_seconds: f64,
}

impl Message for Verify {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.damages {
            0 => f.write_str("no damage found")?,
            n => write!(f, "damage found in {}", plural(n, "place", "places"))?,
        }
        row!(f, "snapshots", "{}", Count(self.snapshots))?;
        row!(f, "packs", "{}", Count(self.packs))?;
        row!(f, "chunks", "{}", Count(self.chunks))?;
        match (self.mode, self.sample) {
            ("structure", _) => row!(f, "data", "not read; --read-data or --sample reads it")?,
            (_, Some(share)) => {
                row!(f, "data", "{} checked, a sample of {}%", Bytes(self.checked_bytes), share * 100.0)?;
            }
            _ => row!(f, "data", "{} checked, every byte", Bytes(self.checked_bytes))?,
        }
        let fetched = Bytes(self.counters.fetched_bytes);
        row!(f, "fetched", "{fetched} in {}", span(self.elapsed_seconds))
    }
}

/// `key add`, `remove`, `change`, `generate`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Key {
    pub(crate) command: &'static str,
    pub(crate) slot: Option<String>,
    pub(crate) file: Option<String>,
}

impl Message for Key {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.command {
            "key add" => "added",
            "key remove" => "removed",
            "key change" => "changed",
            _ => "created",
        };
        match (&self.slot, &self.file) {
            (Some(slot), _) => write!(f, "{what} key slot {slot}"),
            (_, Some(file)) => {
                write!(f, "{what} key file {}; keep a copy elsewhere", Name(file.as_bytes()))
            }
            _ => f.write_str(what),
        }
    }
}

/// `cat`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Cat {
    pub(crate) command: &'static str,
    pub(crate) snapshot: String,
    #[serde(flatten)]
    pub(crate) volume: Volume,
    pub(crate) written_bytes: u64,
}

impl Message for Cat {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Cat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wrote {} of snapshot {}", Bytes(self.written_bytes), short(&self.snapshot))
    }
}

/// `stats`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stats {
    pub(crate) command: &'static str,
    pub(crate) repository: String,
    pub(crate) repository_id: String,
    pub(crate) snapshots: u64,
    pub(crate) volumes: u64,
    pub(crate) volume_bytes: u64,
    pub(crate) packs: u64,
    pub(crate) pack_bytes: u64,
    pub(crate) index_segments: u64,
    pub(crate) index_bytes: u64,
    pub(crate) objects: u64,
    pub(crate) stored_bytes: u64,
}

impl Message for Stats {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "repository {} at {}", self.repository_id, self.repository)?;
        let volumes = plural(self.volumes, "volume", "volumes");
        row!(f, "snapshots", "{} of {volumes}, {} in all", Count(self.snapshots), Bytes(self.volume_bytes))?;
        row!(f, "packs", "{}, {}", Count(self.packs), Bytes(self.pack_bytes))?;
        row!(
            f,
            "index",
            "{}, {}",
            plural(self.index_segments, "segment", "segments"),
            Bytes(self.index_bytes)
        )?;
        row!(f, "objects", "{}, {}", Count(self.objects), Bytes(self.stored_bytes))
    }
}

/// `completions`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Completions {
    pub(crate) command: &'static str,
    pub(crate) shell: String,
    pub(crate) script: String,
}

impl Message for Completions {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Completions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.script.trim_end())
    }
}

/// `version`
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Version {
    pub(crate) command: &'static str,
    pub(crate) version: &'static str,
    pub(crate) pack_format: u16,
    pub(crate) architecture: &'static str,
    pub(crate) system: &'static str,
}

impl Message for Version {
    const TYPE: &'static str = "summary";
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, pack_format, architecture, system, .. } = self;
        write!(f, "tradewind {version} ({architecture}-{system}, pack format {pack_format})")
    }
}
