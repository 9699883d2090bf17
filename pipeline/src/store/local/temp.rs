//! Files that are not objects yet.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::folders::Folders;
use super::output::Output;

/// What a dead process left is removed after this time, by the file system's clock. The lock already says that the
/// writer is gone; the wait is for file systems that keep locks to one machine.
const ABANDONED: Duration = Duration::from_hours(24);

/// The folder of unfinished files.
#[derive(Debug)]
pub(super) struct Temps {
    dir: PathBuf,
    sweep: Once,
}

/// An unfinished file. Dropping it removes the file unless it was [adopted](Temp::adopted).
#[derive(Debug)]
pub(super) struct Temp {
    id: String,
    path: PathBuf,
    output: Output,
    adopted: AtomicBool,
}

impl Temps {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, sweep: Once::new() }
    }

    /// A new file `<random>.<kind>`.
    pub(super) fn create(&self, folders: &Folders, kind: &str) -> io::Result<Temp> {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let id = hex::encode(random);
        let path = self.dir.join(format!("{id}.{kind}"));
        let output = match Output::create(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                folders.open(&self.dir)?;
                Output::create(&path)?
            }
            done => done?,
        };
        // Held until the file is closed; tells sweepers that it is alive. Without locks, only age protects it.
        let _ = output.file().try_lock();
        let temp = Temp { id, path, output, adopted: AtomicBool::new(false) };
        self.sweep.call_once(|| self.sweep(&temp));
        Ok(temp)
    }

    /// Removes the upload `id`, of this process or of one that is gone.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        if !is_id(id) {
            return Ok(());
        }
        match fs::remove_file(self.dir.join(format!("{id}.upload"))) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes what is old and not locked. Failures leave garbage, never more than that.
    fn sweep(&self, fresh: &Temp) {
        let Ok(now) = fresh.output.file().metadata().and_then(|m| m.modified()) else { return };
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let old = entry
                .metadata()
                .and_then(|m| m.modified())
                .is_ok_and(|modified| now.duration_since(modified).is_ok_and(|age| age > ABANDONED));
            let ours = entry.file_name().to_str().and_then(|n| n.split('.').next()).is_some_and(is_id);
            if ours && old && File::open(entry.path()).is_ok_and(|f| f.try_lock().is_ok()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())
}

impl Temp {
    /// The random part of the name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Where the file is now.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For writing.
    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Says that the file is no longer at [`Temp::path`].
    pub(super) fn adopted(&self) {
        self.adopted.store(true, Relaxed);
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.adopted.load(Relaxed) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
