//! The copy of a volume as it is at one moment, also while it is written to: what a snapshot is.
//!
//! A file system is frozen for as long as the copy takes, so that all that was written is on disk and its log is empty;
//! a bare device has its cache written out. The copy itself shares the blocks of the image and is atomic.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};

use crate::faults::{Call, Faults};
use crate::mounts::{self, Mount};
use crate::state::{self, State, Volume};
use crate::{loops, program};

/// Copies the image of `volume` to `target`, an empty file.
pub(crate) fn copy(state: &State, faults: &Faults, volume: &Volume, target: &Path) -> Result<()> {
    let image = state.volumes.image(&volume.id);
    let mut frozen = Vec::new();
    for attached in loops::of(&image)? {
        match writable_mount(&attached.device)? {
            Some(mount) => frozen.push(Frozen::new(state, &volume.id, mount.target)?),
            None if attached.read_only => {}
            None => File::open(&attached.device)
                .and_then(|device| device.sync_all())
                .with_context(|| format!("writing out what is cached of {}", attached.device.display()))?,
        }
    }
    let copied = pause(faults, &frozen, volume).and_then(|()| state::clone_file(&image, target));
    // Thawing comes first, and its failure is the worse one.
    frozen.into_iter().try_for_each(Frozen::thaw)?;
    copied
}

/// Where the tests want a driver to be killed.
fn pause(faults: &Faults, frozen: &[Frozen<'_>], volume: &Volume) -> Result<()> {
    if frozen.is_empty() {
        return Ok(());
    }
    let is_about = |prefix: &str| volume.id.starts_with(prefix) || volume.name.starts_with(prefix);
    let fault =
        faults.strike(Call::Frozen, is_about).map_err(|status| anyhow::anyhow!("{}", status.message()))?;
    if let Some(fault) = fault {
        thread::sleep(fault.delay_seconds.0);
        ensure!(fault.error.is_none(), "fault on demand while the file system was frozen");
    }
    Ok(())
}

/// Thaws what a driver that was killed left frozen.
pub(crate) fn thaw_all(state: &State) -> Result<()> {
    for id in state.frozen()? {
        for attached in loops::of(&state.volumes.image(&id))? {
            let Some(mount) = writable_mount(&attached.device)? else { continue };
            // It fails on what is not frozen, and the driver may have died before or after that.
            match fsfreeze("--unfreeze", &mount.target) {
                Ok(()) => eprintln!("csi-driver: thawed {id}, left frozen by a driver that was killed"),
                Err(error) => eprintln!("csi-driver: {id} was probably not frozen: {error:#}"),
            }
        }
        state.note_thawed(&id)?;
    }
    Ok(())
}

/// A place where the device's file system is mounted for writing.
fn writable_mount(device: &Path) -> Result<Option<Mount>> {
    Ok(mounts::all()?.into_iter().find(|mount| mount.is_file_system_on(device) && !mount.all_read_only))
}

fn fsfreeze(how: &str, target: &Path) -> Result<()> {
    program::run("fsfreeze", &[how.as_ref(), target.as_os_str()]).map(drop)
}

/// A frozen file system; thawed when this is dropped. The note on disk comes first and goes last, so that a driver that
/// dies meanwhile thaws at its next start.
#[derive(Debug)]
struct Frozen<'a> {
    state: &'a State,
    id: String,
    target: PathBuf,
    thawed: bool,
}

impl<'a> Frozen<'a> {
    fn new(state: &'a State, id: &str, target: PathBuf) -> Result<Self> {
        state.note_frozen(id)?;
        if let Err(error) = fsfreeze("--freeze", &target) {
            state.note_thawed(id)?;
            return Err(error);
        }
        Ok(Self { state, id: id.to_owned(), target, thawed: false })
    }

    fn thaw(mut self) -> Result<()> {
        self.thawed = true;
        fsfreeze("--unfreeze", &self.target)?;
        self.state.note_thawed(&self.id)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if !self.thawed
            && let Err(error) = fsfreeze("--unfreeze", &self.target)
        {
            eprintln!("csi-driver: {} may still be frozen: {error:#}", self.target.display());
        }
    }
}
