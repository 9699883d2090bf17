//! The data sets: each in a folder of its own, made once, changed by 2 % in place, and taken back.
//!
//! The tools see `SET/source/` with one entry, a volume file or a tree, at the same path before and after the change.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::pages::Kind;
use crate::{image, pages, tree};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// Goes up when a generator changes, so that old data is made again.
const REVISION: u32 = 1;

/// What is backed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Set {
    /// One file of 4 GiB that no codec makes smaller.
    Random,
    /// One file of 4 GiB of database-like pages of 8 KiB.
    Database,
    /// A copy of /usr.
    Usr,
    /// A sparse ext4 image of 20 GiB with about 2.7 GiB of data.
    Image,
}

impl Set {
    /// Every set, in the order of the report.
    pub(crate) const ALL: [Self; 4] = [Self::Random, Self::Database, Self::Usr, Self::Image];

    /// Is it backed up as one block volume, or as a tree?
    pub(crate) fn is_volume(self) -> bool {
        self != Self::Usr
    }

    /// The name of the entry in the source folder.
    pub(crate) fn entry(self) -> &'static str {
        if self.is_volume() { "volume.img" } else { "tree" }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Database => "database",
            Self::Usr => "usr",
            Self::Image => "image",
        })
    }
}

/// A share of the full size, such as `1/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale(u64, u64);

impl Scale {
    /// This share of `bytes`, in whole MiB and at least one.
    pub(crate) fn of(self, bytes: u64) -> u64 {
        (bytes / MIB * self.0 / self.1).max(1) * MIB
    }

    /// Is it everything?
    pub(crate) fn is_whole(self) -> bool {
        self.0 == self.1
    }

    /// Does the share include the thing that `number` stands for?
    pub(crate) fn takes(self, number: u64) -> bool {
        number % self.1 < self.0
    }
}

impl FromStr for Scale {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (share, whole) = text.split_once('/').unwrap_or((text, "1"));
        let (share, whole) = (share.trim().parse()?, whole.trim().parse()?);
        if share == 0 || share > whole {
            bail!("a scale is a share between 0 and 1, such as 1/16");
        }
        Ok(Self(share, whole))
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1 == 1 { write!(f, "{}", self.0) } else { write!(f, "{}/{}", self.0, self.1) }
    }
}

/// How large a set is: bytes a reader sees, bytes allocated on disk, files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Extent {
    pub(crate) logical: u64,
    pub(crate) allocated: u64,
    pub(crate) files: u64,
}

/// One data set on disk.
pub(crate) struct Source {
    pub(crate) set: Set,
    scale: Scale,
    home: PathBuf,
}

impl Source {
    /// The set below `dir`; nothing is made yet.
    pub(crate) fn new(dir: &Path, set: Set, scale: Scale) -> Self {
        Self { set, scale, home: dir.join("data").join(set.to_string()) }
    }

    /// The folder that holds the one entry and nothing else.
    pub(crate) fn folder(&self) -> PathBuf {
        self.home.join("source")
    }

    /// The volume file or the tree.
    pub(crate) fn entry(&self) -> PathBuf {
        self.folder().join(self.set.entry())
    }

    /// Makes the set unless it is there with the same parameters; leaves it unchanged (generation 0).
    pub(crate) fn prepare(&self) -> Result<()> {
        match fs::read_to_string(self.state_file()).unwrap_or_default() {
            state if state == self.state("base") => return Ok(()),
            state if state == self.state("changed") => return self.revert(),
            _ => {}
        }
        if self.home.exists() {
            image::unmount_leftover(&self.home);
            fs::remove_dir_all(&self.home).with_context(|| format!("removing {}", self.home.display()))?;
        }
        fs::create_dir_all(self.folder())?;
        let size = self.scale.of(4 * GIB);
        match self.set {
            Set::Random => pages::create(Kind::Random, &self.entry(), size)?,
            Set::Database => pages::create(Kind::Database, &self.entry(), size)?,
            Set::Usr => tree::copy(Path::new("/usr"), &self.entry(), self.scale)?,
            Set::Image => image::create(&self.entry(), &self.home, self.scale.of(20 * GIB), self.scale)?,
        }
        self.mark("base")
    }

    /// Changes 2 % of it in place.
    pub(crate) fn change(&self) -> Result<()> {
        self.mark("changed")?;
        match self.set {
            Set::Random => drop(pages::rewrite(Kind::Random, &self.entry(), 1)?),
            Set::Database => drop(pages::rewrite(Kind::Database, &self.entry(), 1)?),
            Set::Usr => drop(tree::change(&self.entry(), Some(&self.home.join("undo")))?),
            Set::Image => image::swap(&self.entry(), &self.home, true)?,
        }
        Ok(())
    }

    /// Takes the change back; harmless when it was made only in part.
    pub(crate) fn revert(&self) -> Result<()> {
        match self.set {
            Set::Random => drop(pages::rewrite(Kind::Random, &self.entry(), 0)?),
            Set::Database => drop(pages::rewrite(Kind::Database, &self.entry(), 0)?),
            Set::Usr => tree::revert(&self.entry(), &self.home.join("undo"))?,
            Set::Image => image::swap(&self.entry(), &self.home, false)?,
        }
        self.mark("base")
    }

    /// How large it is now.
    pub(crate) fn extent(&self) -> Result<Extent> {
        let mut extent = Extent { logical: 0, allocated: 0, files: 0 };
        tree::walk(&self.folder(), &mut |_, meta| {
            use std::os::unix::fs::MetadataExt;
            if meta.is_file() {
                extent.logical += meta.len();
                extent.allocated += meta.blocks() * 512;
                extent.files += 1;
            }
            Ok(())
        })?;
        Ok(extent)
    }

    fn state_file(&self) -> PathBuf {
        self.home.join("state")
    }

    fn state(&self, which: &str) -> String {
        format!("{} revision {REVISION} scale {} {which}\n", self.set, self.scale)
    }

    fn mark(&self, which: &str) -> Result<()> {
        fs::write(self.state_file(), self.state(which)).context("noting the state of the data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_shares() {
        let scale: Scale = "1/16".parse().unwrap();
        assert_eq!(scale.of(4 * GIB), 256 * MIB);
        assert_eq!(scale.to_string(), "1/16");
        assert_eq!((0..1600).filter(|n| scale.takes(*n)).count(), 100);
        let whole: Scale = "1".parse().unwrap();
        assert_eq!((whole.of(4 * GIB), whole.to_string()), (4 * GIB, "1".to_owned()));
        assert!(["0", "2", "17/16", "x", "1/0"].iter().all(|bad| bad.parse::<Scale>().is_err()));
    }

    #[test]
    fn data_is_kept_and_a_cut_change_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::new(dir.path(), Set::Random, "1/64".parse().unwrap());
        source.prepare().unwrap();
        assert_eq!(source.extent().unwrap().logical, 64 * MIB);
        let before = fs::read(source.entry()).unwrap();
        let made = fs::metadata(source.entry()).unwrap().modified().unwrap();
        source.prepare().unwrap();
        assert_eq!(fs::metadata(source.entry()).unwrap().modified().unwrap(), made);
        source.change().unwrap();
        assert!(before != fs::read(source.entry()).unwrap());
        source.prepare().unwrap(); // as after a run that was cut here
        assert!(before == fs::read(source.entry()).unwrap());
    }
}
