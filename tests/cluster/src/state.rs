//! What is known of a cluster from outside: which processes it is, and what it changed of the machine. Written before
//! anything is changed, so that the next run finds what a killed one left.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::folder::Folder;

/// A process, told from a later one with the same number by its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number in the machine's own namespace.
    pub(crate) pid: u32,
    /// When it started, in clock ticks since the machine did.
    pub(crate) started: u64,
}

impl Process {
    /// The process `pid` that runs now, if there is one.
    #[must_use]
    pub(crate) fn running(pid: u32) -> Option<Self> {
        Self::look(pid).map(|(process, _)| process)
    }

    /// As [`Process::running`], with the size of its memory in bytes.
    fn look(pid: u32) -> Option<(Self, u64)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Fields 22 and 23, counted after the name, which may contain anything. A zombie has ended.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let zombie = fields.next()? == "Z";
        let started = fields.nth(18)?.parse().ok()?;
        let memory = fields.next()?.parse().ok()?;
        (!zombie).then_some((Self { pid, started }, memory))
    }

    /// True if it was killed, and cannot go before those whose first process it is: it has no memory any more.
    #[must_use]
    pub(crate) fn is_ending(&self) -> bool {
        Self::look(self.pid).is_some_and(|(_, memory)| memory == 0)
    }

    /// True until it is gone.
    #[must_use]
    pub(crate) fn runs(&self) -> bool {
        Self::running(self.pid).as_ref() == Some(self)
    }
}

/// The record of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// The machine's start: after another one nothing of the cluster is there but its files.
    pub(crate) boot: String,
    /// Folders with its programs, as in PATH.
    pub(crate) programs: String,
    /// Kernel settings by their file below /proc/sys, as they were before.
    pub(crate) settings: BTreeMap<PathBuf, String>,
}

impl State {
    /// The file in which it is kept.
    fn file(folder: &Folder) -> PathBuf {
        folder.join("state.json")
    }

    /// What an earlier run left: `None` where there was none, or where it cleaned up.
    ///
    /// # Errors
    /// When the file cannot be read or is not ours.
    pub(crate) fn load(folder: &Folder) -> Result<Option<Self>> {
        let file = Self::file(folder);
        match fs::read(&file) {
            Ok(text) => Ok(Some(
                serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))?,
            )),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }

    /// Keeps it, before anything is changed.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save(&self, folder: &Folder) -> Result<()> {
        let part = folder.join("state.part");
        fs::write(&part, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&part, Self::file(folder)))
            .with_context(|| format!("writing {}", part.display()))
    }

    /// Forgets it: nothing is left.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(crate) fn forget(folder: &Folder) -> Result<()> {
        match fs::remove_file(Self::file(folder)) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {}", Self::file(folder).display()))
            }
            _ => Ok(()),
        }
    }
}

/// Names this start of the machine.
///
/// # Errors
/// When /proc is not mounted.
pub(crate) fn boot() -> Result<String> {
    let file = Path::new("/proc/sys/kernel/random/boot_id");
    Ok(fs::read_to_string(file).with_context(|| file.display().to_string())?.trim().to_owned())
}

/// The first process of the cluster in `folder`, if it runs: the one whose end ends everything.
#[must_use]
pub(crate) fn first_process(folder: &Folder) -> Option<Process> {
    let text = fs::read(folder.join("first.json")).ok()?;
    let process: Process = serde_json::from_slice(&text).ok()?;
    process.runs().then_some(process)
}

/// Records the calling process as the first of the cluster. `/proc` must still be the machine's.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn record_first_process(folder: &Folder) -> Result<()> {
    let pid = fs::read_link("/proc/self").context("reading /proc/self")?;
    let pid = pid.to_string_lossy().parse().context("/proc/self is no number")?;
    let process = Process::running(pid).context("reading our own /proc/PID/stat")?;
    let part = folder.join("first.part");
    fs::write(&part, serde_json::to_vec(&process)?)
        .and_then(|()| fs::rename(&part, folder.join("first.json")))
        .with_context(|| format!("writing {}", part.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let own = Process::running(std::process::id()).unwrap();
        assert!(own.runs() && !own.is_ending());
        assert!(!Process { started: own.started + 1, ..own }.runs());
        assert_eq!(Process::running(u32::MAX), None);
    }
}
