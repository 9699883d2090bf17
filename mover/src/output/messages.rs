//! Messages about a run: progress, skipped items, damage, warnings, errors.

use std::fmt;

use serde::Serialize;
use tradewind_pipeline::Error;
use tradewind_pipeline::progress::{Counter, Progress, Skipped, Station};

use super::Message;
use super::human::{Bytes, Name};
use crate::exit::{self, Code};

/// Every counter of a run, by the name it has in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counters {
    pub(crate) done_bytes: u64,
    pub(crate) read_bytes: u64,
    pub(crate) hole_bytes: u64,
    pub(crate) reused_bytes: u64,
    pub(crate) new_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) uploaded_bytes: u64,
    pub(crate) fetched_bytes: u64,
    pub(crate) written_bytes: u64,
    pub(crate) chunks_new: u64,
    pub(crate) chunks_reused: u64,
    pub(crate) packs: u64,
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) others: u64,
    pub(crate) vanished: u64,
    pub(crate) files_unchanged: u64,
    pub(crate) skipped: u64,
    pub(crate) unprivileged: u64,
    pub(crate) retries: u64,
}

impl From<&Progress> for Counters {
    fn from(progress: &Progress) -> Self {
        let get = |counter| progress.get(counter);
        Self {
            done_bytes: get(Counter::Done),
            read_bytes: get(Counter::Read),
            hole_bytes: get(Counter::Holes),
            reused_bytes: get(Counter::Reused),
            new_bytes: get(Counter::New),
            stored_bytes: get(Counter::Stored),
            uploaded_bytes: get(Counter::Uploaded),
            fetched_bytes: get(Counter::Fetched),
            written_bytes: get(Counter::Written),
            chunks_new: get(Counter::ChunksNew),
            chunks_reused: get(Counter::ChunksReused),
            packs: get(Counter::Packs),
            files: get(Counter::Files),
            directories: get(Counter::Directories),
            others: get(Counter::Others),
            vanished: get(Counter::Vanished),
            files_unchanged: get(Counter::FilesUnchanged),
            skipped: get(Counter::Skips),
            unprivileged: get(Counter::Unprivileged),
            retries: get(Counter::Retries),
        }
    }
}

/// The name of a station.
pub(crate) fn station_name(station: Station) -> &'static str {
    match station {
        Station::Disk => "disk",
        Station::Cpu => "cpu",
        Station::Store => "store",
    }
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Going {
    pub(crate) command: &'static str,
    pub(crate) elapsed_seconds: f64,
    pub(crate) total_bytes: Option<u64>,
    pub(crate) eta_seconds: Option<f64>,
    pub(crate) done_bytes_per_second: f64,
    pub(crate) read_bytes_per_second: f64,
    pub(crate) uploaded_bytes_per_second: f64,
    pub(crate) fetched_bytes_per_second: f64,
    pub(crate) written_bytes_per_second: f64,
    pub(crate) bottleneck: Option<&'static str>,
    pub(crate) counters: Counters,
}

impl Message for Going {
    const TYPE: &'static str = "progress";
}

/// A path that need not be UTF-8, as JSON can hold it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Path {
    pub(crate) path: String,
    pub(crate) path_hex: Option<String>,
}

impl From<&[u8]> for Path {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(path) => Self { path: path.to_owned(), path_hex: None },
            Err(_) => {
                Self { path: String::from_utf8_lossy(bytes).into_owned(), path_hex: Some(hex::encode(bytes)) }
            }
        }
    }
}

/// An item that was left out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Skip {
    #[serde(flatten)]
    pub(crate) path: Path,
    pub(crate) reason: String,
    #[serde(skip)]
    shown: String,
}

impl From<&Skipped> for Skip {
    fn from(item: &Skipped) -> Self {
        Self {
            path: item.path.as_slice().into(),
            reason: item.reason.clone(),
            shown: Name(&item.path).to_string(),
        }
    }
}

impl Message for Skip {
    const TYPE: &'static str = "skipped";
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tradewind: skipped: {}: {}", self.shown, self.reason)
    }
}

/// Stored data that is not right, and what it takes away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Damage {
    /// What cannot be restored.
    #[serde(flatten)]
    pub(crate) lost: Lost,
    /// Key of the damaged object, when it is not part of the reason.
    pub(crate) object: Option<String>,
    /// Why, without contents.
    pub(crate) reason: String,
}

/// What damage takes away, as far as it is known; nothing when no snapshot needs the object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Lost {
    /// Snapshot, when it is known.
    pub(crate) snapshot: Option<String>,
    /// File of a tree.
    pub(crate) path: Option<String>,
    /// The same in hexadecimal digits when it is not UTF-8.
    pub(crate) path_hex: Option<String>,
    /// First byte of a stretch of a block volume or file.
    pub(crate) offset_bytes: Option<u64>,
    /// Length of that stretch.
    pub(crate) length_bytes: Option<u64>,
}

impl Message for Damage {
    const TYPE: &'static str = "damage";
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tradewind: damaged: ")?;
        if let Some(object) = &self.object {
            write!(f, "{}: ", Name(object.as_bytes()))?;
        }
        f.write_str(&self.reason)?;
        if let Some(path) = &self.lost.path {
            write!(f, "; lost: {}", Name(path.as_bytes()))?;
        }
        if let (Some(offset), Some(length)) = (self.lost.offset_bytes, self.lost.length_bytes) {
            let lost = if self.lost.path.is_some() { "" } else { "; lost:" };
            write!(f, "{lost} bytes {offset} to {} ({})", offset.saturating_add(length), Bytes(length))?;
        }
        if let Some(snapshot) = &self.lost.snapshot {
            write!(f, " of snapshot {snapshot}")?;
        }
        Ok(())
    }
}

/// A remark that deserves attention.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Warning {
    pub(crate) message: String,
}

impl Message for Warning {
    const TYPE: &'static str = "warning";
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tradewind: warning: {}", self.message)
    }
}

/// Why the command failed. The last line, instead of a summary.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) code: u8,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            code: Code::of(error.kind()) as u8,
            kind: exit::kind_name(error.kind()),
            message: exit::one_line(error),
            hint: error.hint().map(str::to_owned),
        }
    }
}

impl Message for Failure {
    const TYPE: &'static str = "error";
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tradewind: error: {}", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_utf8_is_not_lost() {
        assert_eq!(Path::from(&b"a/b"[..]), Path { path: "a/b".to_owned(), path_hex: None });
        let raw = Path::from(&b"a\xff"[..]);
        assert_eq!(raw.path, "a\u{fffd}");
        assert_eq!(raw.path_hex.as_deref(), Some("61ff"));
    }

    #[test]
    fn damage_names_object_and_loss() {
        let lost = Lost { path: Some("etc/passwd".to_owned()), ..Lost::default() };
        let damage = Damage { lost, object: Some("packs/aa/x".to_owned()), reason: "missing".to_owned() };
        assert_eq!(damage.to_string(), "tradewind: damaged: packs/aa/x: missing; lost: etc/passwd");
        let lost = Lost { offset_bytes: Some(512), length_bytes: Some(1024), ..Lost::default() };
        let damage = Damage { lost, ..damage };
        assert_eq!(
            damage.to_string(),
            "tradewind: damaged: packs/aa/x: missing; lost: bytes 512 to 1536 (1.00 KiB)"
        );
    }

    #[test]
    fn counters_come_from_their_own_counter() {
        let progress = Progress::default();
        progress.add(Counter::Done, 1);
        progress.add(Counter::Retries, 2);
        progress.add(Counter::Skips, 3);
        let counters = Counters::from(&progress);
        assert_eq!((counters.done_bytes, counters.retries, counters.skipped), (1, 2, 3));
    }
}
