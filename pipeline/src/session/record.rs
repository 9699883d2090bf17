//! What a session writes about itself.

use serde::{Deserialize, Serialize};

use super::owner::Owner;
use crate::entry::PageRef;
use crate::manifest::{VolumeKey, VolumeName, json};
use crate::pack::SessionId;
use crate::store::OpenUpload;

/// Prefix of all session records' keys.
pub const SESSIONS_PREFIX: &str = "sessions/";

/// The first record: who, what, and where the commit will be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The writer.
    pub owner: Owner,
    /// What it backs up.
    pub volume: VolumeName,
    /// Key of the manifest it will create, and nothing else.
    pub manifest: String,
    /// Newest generation of condemned packs when it opened. It may honour a newer one, never an older.
    pub generation: u32,
    /// Name and version of the program.
    pub tool: String,
    /// When, by the store's clock, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// How far a session has got: everything that the next run needs in order not to send it again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// Keys of the index segments of its finished packs, all of them.
    pub segments: Vec<String>,
    /// Root over what is finished: a second parent for the next run.
    #[serde(with = "json::page")]
    pub partial: Option<PageRef>,
    /// Where the source stood; the source's own business.
    pub position: serde_json::Value,
    /// Uploads that were going on.
    pub uploads: Vec<OpenUpload>,
    /// Bytes of the volume dealt with, for messages.
    pub done: u64,
}

/// How a session ended. After [`Outcome::Cancelled`] and [`Outcome::Failed`] the next run of the volume goes on from
/// its last checkpoint; after the others there is nothing to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its manifest is there.
    Committed,
    /// The user stopped it.
    Cancelled,
    /// It ended with an error.
    Failed,
    /// It stopped or died, and a later run of the volume has taken over what it had done.
    Superseded,
}

impl Outcome {
    /// True when a later run can go on from the session's last checkpoint.
    pub fn can_resume(self) -> bool {
        matches!(self, Self::Cancelled | Self::Failed)
    }
}

/// One object below `sessions/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// Number 0.
    Open(Opened),
    /// Still alive.
    Renew,
    /// Still alive, and this far.
    Checkpoint(Checkpoint),
    /// The writer's last: it will not commit any more, or has.
    End {
        /// How.
        outcome: Outcome,
    },
}

/// What a record's key says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Open,
    Renew,
    Checkpoint,
    /// An end that a later run can go on from.
    Stop,
    /// Any other end.
    End,
}

impl RecordKind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Open, "open"),
        (Self::Renew, "renew"),
        (Self::Checkpoint, "checkpoint"),
        (Self::Stop, "stop"),
        (Self::End, "end"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl Record {
    pub(crate) fn kind(&self) -> RecordKind {
        match self {
            Self::Open(_) => RecordKind::Open,
            Self::Renew => RecordKind::Renew,
            Self::Checkpoint(_) => RecordKind::Checkpoint,
            Self::End { outcome } if outcome.can_resume() => RecordKind::Stop,
            Self::End { .. } => RecordKind::End,
        }
    }
}

/// `sessions/<volume>/<session>/<n>-<what>`: by volume, so that one volume's sessions are found among millions; with
/// what it is, so that a listing tells who has ended.
pub(crate) fn record_key(volume: VolumeKey, session: SessionId, n: u32, kind: RecordKind) -> String {
    format!("{SESSIONS_PREFIX}{volume}/{session}/{n:08x}-{}", kind.name())
}

/// The parts of a record's key, if it is one.
pub(crate) fn parse_record_key(key: &str) -> Option<(VolumeKey, SessionId, u32, RecordKind)> {
    let mut parts = key.strip_prefix(SESSIONS_PREFIX)?.split('/');
    let volume = VolumeKey::parse(parts.next()?)?;
    let session = parts.next()?.parse().ok()?;
    let (n, what) = parts.next()?.split_once('-')?;
    let n = u32::from_str_radix(n, 16).ok()?;
    let kind = RecordKind::ALL.into_iter().find(|(_, name)| *name == what)?.0;
    (record_key(volume, session, n, kind) == key).then_some((volume, session, n, kind))
}
