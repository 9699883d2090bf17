//! What was asked for, opened, and the name of its volume.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{BackupOptions, Source};
use crate::error::{Error, Result};
use crate::manifest::{VolumeKind, VolumeName};
use crate::session::host_name;
use crate::source::block::BlockSource;
use crate::source::{Volume, tree};

/// An opened source.
pub(super) enum Opened {
    Tree {
        root: Arc<OwnedFd>,
        /// For messages.
        shown: PathBuf,
    },
    Block(BlockSource),
    Stdin,
}

impl Opened {
    pub(super) fn kind(&self) -> VolumeKind {
        match self {
            Self::Tree { .. } => VolumeKind::Tree,
            Self::Block(_) | Self::Stdin => VolumeKind::Block,
        }
    }

    /// Where it is, or what messages call it.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Tree { shown, .. } => shown,
            Self::Block(source) => source.path(),
            Self::Stdin => Path::new("-"),
        }
    }
}

/// Opens the source of `options`.
///
/// # Errors
/// [`Error::Source`] when it cannot be opened or must not be read, [`Error::Usage`] when the options do not fit it.
pub(super) fn open(options: &BackupOptions) -> Result<(VolumeName, Opened)> {
    let opened = match &options.source {
        Source::Stdin if is_null_device(std::io::stdin()) => {
            // What a process without standard input gets in its place: a backup of it would look like a success.
            let what = "is closed or the null device: there is nothing to back up".into();
            return Err(Error::Source { path: "standard input".into(), what, source: None });
        }
        Source::Stdin => Opened::Stdin,
        Source::Path(path) => {
            let path = path.canonicalize().map_err(|e| Error::source_io(path, "cannot open", e))?;
            if path.is_dir() {
                Opened::Tree { root: Arc::new(tree::open(&path)?), shown: path }
            } else {
                Opened::Block(BlockSource::open(&path, options.live)?)
            }
        }
        Source::Volume(Volume::Tree(root)) => {
            Opened::Tree { root: Arc::clone(root), shown: Volume::shown().to_owned() }
        }
        Source::Volume(Volume::Block { direct, buffered }) => {
            Opened::Block(BlockSource::handed_over(direct.clone(), Arc::clone(buffered))?)
        }
    };
    if opened.kind() == VolumeKind::Block && !options.excludes.is_empty() {
        return Err(Error::Usage("a block volume has no paths to exclude".into()));
    }
    let volume = match (&options.volume, &options.source) {
        (Some(name), _) => name.clone(),
        (None, Source::Stdin) => {
            return Err(Error::Usage("standard input needs a name: give --volume".into()));
        }
        (None, Source::Volume(_)) => {
            return Err(Error::Usage("a volume without a path needs a name: give --volume".into()));
        }
        (None, Source::Path(_)) => VolumeName::of_path(&host_name(), opened.path())?,
    };
    Ok((volume, opened))
}

fn is_null_device(file: impl AsFd) -> bool {
    // Character device 1:3, see Linux's Documentation/admin-guide/devices.txt.
    rustix::fs::fstat(file).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}
