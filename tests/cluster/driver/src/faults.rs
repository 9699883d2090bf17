//! Faults on demand, read anew from a JSON file at every call.
//!
//! The file is one object; without a file there are no faults. Every key is optional:
//!
//! - the name of a call (see [`Call`]): `{"delay_seconds": 1.5, "error": "UNAVAILABLE", "times": 2, "volume": "pvc-1"}`.
//!   The call first waits, then fails if there is an error, a gRPC code by its name, or else does its work. `times`: the first so many calls only (absent: all); `volume`: only
//!   calls about a volume, or a snapshot of one, whose id or name begins like this.
//! - `"snapshot_never_ready": true`: every snapshot is reported as not ready as long as this is set.
//! - `"metadata"`: what goes wrong within the streams of changed block tracking, see [`Metadata`].
//!
//! Counts are kept in memory and begin anew when the file is written anew. A file that cannot be understood is an error
//! of every call.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tonic::{Code, Status};

/// A call by the name that the file and the log use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Call {
    GetPluginInfo,
    GetPluginCapabilities,
    Probe,
    CreateVolume,
    DeleteVolume,
    ValidateVolumeCapabilities,
    ListVolumes,
    GetCapacity,
    ControllerGetCapabilities,
    CreateSnapshot,
    DeleteSnapshot,
    ListSnapshots,
    ControllerExpand,
    Stage,
    Unstage,
    Publish,
    Unpublish,
    GetVolumeStats,
    NodeExpand,
    NodeGetCapabilities,
    NodeGetInfo,
    GetMetadataAllocated,
    GetMetadataDelta,
    /// No call of its own: the time between freezing a file system and thawing it, within `create_snapshot` and the
    /// cloning of a volume.
    Frozen,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A fault of one call.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    /// How long the call waits first.
    #[serde(default)]
    pub(crate) delay_seconds: Seconds,
    /// How it fails then.
    pub(crate) error: Option<CodeName>,
    times: Option<u64>,
    volume: Option<String>,
}

/// Faults within the streams of changed block tracking.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Metadata {
    /// The stream ends as if it were complete after so many tuples.
    pub(crate) end_after: Option<u64>,
    /// The stream breaks off with UNAVAILABLE after so many tuples.
    pub(crate) reset_after: Option<u64>,
    /// Each message comes this late.
    pub(crate) delay_seconds_per_message: Seconds,
    /// Every second tuple is left out.
    pub(crate) wrong: bool,
    /// A delta is empty whatever has changed.
    pub(crate) nothing_changed: bool,
    /// The first so many streams only (absent: all).
    times: Option<u64>,
}

/// A duration, written as a number of seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Seconds(pub(crate) Duration);

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|error| format!("{seconds} seconds: {error}"))
    }
}

/// A gRPC code, written by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct CodeName(pub(crate) Code);

/// The names of the codes, in the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

impl TryFrom<String> for CodeName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let found = (1..).zip(&CODES[1..]).find(|(_, known)| **known == name);
        found.map(|(number, _)| Self(Code::from_i32(number))).ok_or_else(|| {
            format!("{name} is no gRPC code that means failure; these are: {}", CODES[1..].join(", "))
        })
    }
}

impl fmt::Display for CodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CODES.get(self.0 as usize).copied().unwrap_or("UNKNOWN"))
    }
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "BTreeMap<String, Value>")]
struct File {
    calls: BTreeMap<Call, Fault>,
    snapshot_never_ready: bool,
    metadata: Metadata,
}

impl TryFrom<BTreeMap<String, Value>> for File {
    type Error = String;

    fn try_from(keys: BTreeMap<String, Value>) -> Result<Self, Self::Error> {
        let mut file = Self::default();
        for (key, value) in keys {
            let said = |error: serde_json::Error| format!("{key}: {error}");
            match key.as_str() {
                "snapshot_never_ready" => {
                    file.snapshot_never_ready = serde_json::from_value(value).map_err(said)?;
                }
                "metadata" => file.metadata = serde_json::from_value(value).map_err(said)?,
                _ => {
                    let call = serde_json::from_value(Value::String(key.clone())).map_err(said)?;
                    file.calls.insert(call, serde_json::from_value(value).map_err(said)?);
                }
            }
        }
        Ok(file)
    }
}

/// The file with the faults, and how often each has struck.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    path: Option<PathBuf>,
    struck: Mutex<Struck>,
}

/// Counts, good for one text written at one time. The metadata's count is under no call.
#[derive(Debug, Default)]
struct Struck {
    of: (Vec<u8>, Option<std::time::SystemTime>),
    counts: HashMap<Option<Call>, u64>,
}

impl Struck {
    /// Counts one more, unless there were `times` of them.
    fn one_more(&mut self, of: Option<Call>, times: Option<u64>) -> bool {
        let count = self.counts.entry(of).or_default();
        let strikes = times.is_none_or(|times| *count < times);
        *count += u64::from(strikes);
        strikes
    }
}

impl Faults {
    /// Faults as the file says, which need not exist.
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path, struck: Mutex::default() }
    }

    /// The fault that strikes this call now. `is_about`: whether the call is about a volume whose id or name begins so.
    pub(crate) fn strike(
        &self,
        call: Call,
        is_about: impl Fn(&str) -> bool,
    ) -> Result<Option<Fault>, Status> {
        self.read(|file, struck| {
            let fault = file.calls.get(&call)?;
            let meant = fault.volume.as_deref().is_none_or(is_about);
            (meant && struck.one_more(Some(call), fault.times)).then(|| fault.clone())
        })
    }

    /// The fault of a stream of changed block tracking that begins now.
    pub(crate) fn strike_metadata(&self) -> Result<Metadata, Status> {
        self.read(|file, struck| {
            let none = file.metadata == Metadata::default();
            if !none && struck.one_more(None, file.metadata.times) {
                file.metadata.clone()
            } else {
                Metadata::default()
            }
        })
    }

    /// Whether snapshots are to be reported as not ready.
    pub(crate) fn snapshots_are_never_ready(&self) -> Result<bool, Status> {
        self.read(|file, _| file.snapshot_never_ready)
    }

    fn read<T>(&self, look: impl FnOnce(&File, &mut Struck) -> T) -> Result<T, Status> {
        let Some(path) = &self.path else { return Ok(look(&File::default(), &mut Struck::default())) };
        let failed = |error: &dyn fmt::Display| {
            Status::internal(format!(
                "the file with the faults, {}: {error}: correct or remove it",
                path.display()
            ))
        };
        let (text, written) = match fs::read(path) {
            Ok(text) => (text, fs::metadata(path).and_then(|m| m.modified()).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (b"{}".to_vec(), None),
            Err(error) => return Err(failed(&error)),
        };
        let file: File = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        let mut struck = self.struck.lock().unwrap_or_else(PoisonError::into_inner);
        if struck.of != (text.clone(), written) {
            *struck = Struck { of: (text, written), counts: HashMap::new() };
        }
        Ok(look(&file, &mut struck))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> (tempfile::TempDir, Faults) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.json");
        fs::write(&path, text).unwrap();
        (dir, Faults::new(Some(path)))
    }

    #[test]
    fn a_fault_strikes_as_often_as_it_says() {
        let (dir, faults) =
            faults(r#"{"stage": {"error": "UNAVAILABLE", "times": 2}, "probe": {"delay_seconds": 0.5}}"#);
        let strike = || faults.strike(Call::Stage, |_| true).unwrap().and_then(|fault| fault.error);
        assert_eq!(strike().map(|e| e.0), Some(Code::Unavailable));
        assert!(faults.strike(Call::Publish, |_| true).unwrap().is_none());
        assert!(strike().is_some());
        assert!(strike().is_none());
        for _ in 0..3 {
            let fault = faults.strike(Call::Probe, |_| true).unwrap().unwrap();
            assert_eq!(fault.delay_seconds.0, Duration::from_millis(500));
            assert!(fault.error.is_none());
        }
        let path = dir.path().join("faults.json");
        fs::write(&path, r#"{"stage": {"error": "INTERNAL", "times": 1}}"#).unwrap();
        assert_eq!(strike().map(|e| e.to_string()), Some("INTERNAL".to_owned()));
        assert!(strike().is_none());
        fs::remove_file(&path).unwrap();
        assert!(strike().is_none());
    }

    #[test]
    fn a_fault_can_be_for_one_volume() {
        let (_dir, faults) =
            faults(r#"{"create_volume": {"error": "INTERNAL", "volume": "pvc-1", "times": 1}}"#);
        let strike =
            |name: &str| faults.strike(Call::CreateVolume, |prefix| name.starts_with(prefix)).unwrap();
        assert!(strike("pvc-2").is_none());
        assert!(strike("pvc-17").is_some());
        assert!(strike("pvc-17").is_none());
    }

    #[test]
    fn metadata_and_readiness_are_read() {
        let (_dir, faults) = faults(
            r#"{"snapshot_never_ready": true, "metadata": {"reset_after": 3, "delay_seconds_per_message": 1, "times": 1}}"#,
        );
        assert!(faults.snapshots_are_never_ready().unwrap());
        let first = faults.strike_metadata().unwrap();
        assert_eq!(first.reset_after, Some(3));
        assert_eq!(first.delay_seconds_per_message.0, Duration::from_secs(1));
        assert_eq!(faults.strike_metadata().unwrap(), Metadata::default());
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        for (text, says) in [
            ("{", "EOF"),
            (
                r#"{"create_volumes": {}}"#,
                "unknown variant `create_volumes`, expected one of `get_plugin_info`",
            ),
            (r#"{"stage": {"error": "EIO"}}"#, "EIO is no gRPC code"),
            (r#"{"stage": {"error": "OK"}}"#, "OK is no gRPC code"),
            (r#"{"stage": {"delay": 1}}"#, "unknown field `delay`"),
            (r#"{"stage": {"delay_seconds": -1}}"#, "-1 seconds"),
            (r#"{"metadata": {"short": 1}}"#, "unknown field `short`"),
            (r#"{"snapshot_never_ready": 1}"#, "snapshot_never_ready: invalid type"),
        ] {
            let (_dir, faults) = faults(text);
            for status in [
                faults.strike(Call::Probe, |_| true).unwrap_err(),
                faults.strike_metadata().unwrap_err(),
                faults.snapshots_are_never_ready().unwrap_err(),
            ] {
                assert_eq!(status.code(), Code::Internal);
                assert!(status.message().contains(says), "{text}: {}", status.message());
                assert!(status.message().contains("faults.json"), "{}", status.message());
            }
        }
    }

    #[test]
    fn calls_are_written_as_the_file_names_them() {
        assert_eq!(Call::CreateVolume.to_string(), "create_volume");
        assert_eq!(Call::Frozen.to_string(), "frozen");
        for number in 1..17 {
            let name = CodeName(Code::from_i32(number)).to_string();
            assert_eq!(CodeName::try_from(name).unwrap().0 as i32, number);
        }
    }
}
