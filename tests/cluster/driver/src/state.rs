//! What is kept on disk: an image and a record for each volume and each snapshot.
//!
//! The records are the state; nothing is kept in memory, so a driver that was killed finds everything again. An image
//! is made before its record and removed after it: one without a record is what a killed call left, and is removed at
//! the start. The machine itself is not expected to crash: nothing is synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock, ioctl_ficlone};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What a volume was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    /// The snapshot with this id.
    Snapshot(String),
    /// The volume with this id.
    Volume(String),
}

/// The record of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    /// Its handle.
    pub(crate) id: String,
    /// What the call that made it named it.
    pub(crate) name: String,
    /// Bytes.
    pub(crate) capacity: u64,
    /// What it was made from, if anything.
    pub(crate) source: Option<Source>,
    /// As the call gave them; nothing depends on them.
    pub(crate) parameters: BTreeMap<String, String>,
}

/// The record of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// Its handle.
    pub(crate) id: String,
    /// What the call that made it named it.
    pub(crate) name: String,
    /// The volume it was taken of, which may be gone.
    pub(crate) volume: String,
    /// Bytes: the volume's capacity at that time.
    pub(crate) size: u64,
    /// When, since 1970.
    pub(crate) seconds: i64,
    /// The part of a second.
    pub(crate) nanos: i32,
}

/// What a [`Shelf`] keeps.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// First part of an id.
    const PREFIX: &'static str;

    /// Its id.
    fn id(&self) -> &str;

    /// Its name, which a second call to make it repeats.
    fn name(&self) -> &str;
}

impl Record for Volume {
    const PREFIX: &'static str = "vol";

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Record for Snapshot {
    const PREFIX: &'static str = "snap";

    fn id(&self) -> &str {
        &self.id
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// True for what [`Shelf::new_id`] makes. Ids come from outside and become file names.
pub(crate) fn is_id(text: &str) -> bool {
    [Volume::PREFIX, Snapshot::PREFIX].iter().any(|prefix| has_form(text, prefix))
}

fn has_form(id: &str, prefix: &str) -> bool {
    let digits = id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-'));
    digits
        .is_some_and(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// A folder with the images and records of one kind.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    dir: PathBuf,
    kind: PhantomData<fn() -> T>,
}

impl<T: Record> Shelf<T> {
    fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let shelf = Self { dir, kind: PhantomData };
        let kept: Vec<PathBuf> =
            shelf.all()?.iter().flat_map(|r| [shelf.record(r.id()), shelf.image(r.id())]).collect();
        for entry in fs::read_dir(&shelf.dir).with_context(|| format!("reading {}", shelf.dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            // Only what has a name of ours: the folder may be somebody else's.
            if name.starts_with(&format!("{}-", T::PREFIX)) && !kept.contains(&path) {
                fs::remove_file(&path)
                    .with_context(|| format!("removing {}, which no record names", path.display()))?;
                eprintln!("csi-driver: removed {}, left by a call that was killed", path.display());
            }
        }
        Ok(shelf)
    }

    fn record(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Where the image with this id is.
    pub(crate) fn image(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.img"))
    }

    /// Where something of this id may be made that is garbage if the driver dies meanwhile.
    pub(crate) fn scratch(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.scratch"))
    }

    /// A new id. Ids sort by the time they were made.
    pub(crate) fn new_id(&self) -> Result<String> {
        loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
            let id = format!("{}-{:016x}", T::PREFIX, now.as_nanos());
            // Whoever makes the file first has the id.
            match File::create_new(self.image(&id)) {
                Ok(_) => return Ok(id),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("making the image of {id}")),
            }
        }
    }

    /// The record with this id.
    pub(crate) fn get(&self, id: &str) -> Result<Option<T>> {
        if !has_form(id, T::PREFIX) {
            return Ok(None);
        }
        let path = self.record(id);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("reading {}", path.display()))?,
        };
        let record = serde_json::from_slice(&text)
            .with_context(|| format!("{} is no record of this version: remove the state", path.display()))?;
        Ok(Some(record))
    }

    /// All records, in the order of their ids.
    pub(crate) fn all(&self) -> Result<Vec<T>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| format!("reading {}", self.dir.display()))? {
            let name = entry?.file_name();
            // A record that goes meanwhile is none.
            if let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")) {
                all.extend(self.get(id)?);
            }
        }
        all.sort_by(|a: &T, b: &T| a.id().cmp(b.id()));
        Ok(all)
    }

    /// The record with this name.
    pub(crate) fn named(&self, name: &str) -> Result<Option<T>> {
        Ok(self.all()?.into_iter().find(|record| record.name() == name))
    }

    /// Writes a record, whole or not at all.
    pub(crate) fn put(&self, record: &T) -> Result<()> {
        write_whole(&self.record(record.id()), &serde_json::to_vec_pretty(record)?)
    }

    /// Removes a record and then its image. Either may be gone.
    pub(crate) fn remove(&self, id: &str) -> Result<()> {
        remove(&self.record(id))?;
        remove(&self.image(id))
    }
}

/// All that is on disk.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    /// The volumes.
    pub(crate) volumes: Shelf<Volume>,
    /// The snapshots.
    pub(crate) snapshots: Shelf<Snapshot>,
    /// Held as long as this lives: two drivers on one state would take each other's images for garbage.
    _lock: File,
}

impl State {
    /// Opens the folder, which must be on a file system with reflinks, and removes what killed calls left in it.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("frozen")).with_context(|| format!("making {}", dir.display()))?;
        // The kernel tells the files of loop devices by their real paths.
        let dir = dir.canonicalize().with_context(|| format!("looking for {}", dir.display()))?;
        let lock = File::create(dir.join("lock")).with_context(|| format!("locking {}", dir.display()))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("{} is in use by another driver: stop that one first", dir.display()))?;
        try_reflink(&dir)?;
        let volumes = Shelf::open(dir.join("volumes"))?;
        let snapshots = Shelf::open(dir.join("snapshots"))?;
        Ok(Self { dir, volumes, snapshots, _lock: lock })
    }

    /// The folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of the state's file system: free and all.
    pub(crate) fn space(&self) -> Result<(u64, u64)> {
        let stat =
            rustix::fs::statvfs(&self.dir).with_context(|| format!("statvfs {}", self.dir.display()))?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }

    /// Notes that the volume's file system is about to be frozen.
    pub(crate) fn note_frozen(&self, id: &str) -> Result<()> {
        write_whole(&self.dir.join("frozen").join(id), b"")
    }

    /// Notes that it is frozen no more.
    pub(crate) fn note_thawed(&self, id: &str) -> Result<()> {
        remove(&self.dir.join("frozen").join(id))
    }

    /// The volumes whose file systems may be frozen.
    pub(crate) fn frozen(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.dir.join("frozen"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        Ok(names.into_iter().filter(|name| is_id(name)).collect())
    }

    /// All that the given ids and names are known by: names of volumes and snapshots, sources of snapshots.
    pub(crate) fn known_as(&self, given: &[String]) -> Result<Vec<String>> {
        let mut all = given.to_vec();
        for id in given {
            if let Some(snapshot) = self.snapshots.get(id)? {
                all.extend([snapshot.name, snapshot.volume]);
            }
        }
        for id in all.clone() {
            all.extend(self.volumes.get(&id)?.map(|volume| volume.name));
        }
        Ok(all)
    }
}

/// Makes `to` hold what `from` holds at this moment, by sharing its blocks. `to` must exist.
pub(crate) fn clone_file(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).with_context(|| format!("opening {}", from.display()))?;
    let target = File::options().write(true).open(to).with_context(|| format!("opening {}", to.display()))?;
    ioctl_ficlone(&target, &source)
        .with_context(|| format!("FICLONE of {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Sets the length of a file, which may not exist yet. What it grows by is a hole.
pub(crate) fn set_length(path: &Path, length: u64) -> Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.and_then(|file| file.set_len(length))
        .with_context(|| format!("setting the length of {} to {length}", path.display()))
}

/// Removes a file, which may be gone.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("renaming {} to {}", new.display(), path.display()))
}

/// Tries what snapshots are made by.
fn try_reflink(dir: &Path) -> Result<()> {
    let (from, to) = (dir.join("reflink-from"), dir.join("reflink-to"));
    let tried = File::create(&from)
        .and_then(|mut file| file.write_all(&[1; 4096]))
        .and_then(|()| File::create(&to).map(drop))
        .with_context(|| format!("writing to {}", dir.display()))
        .and_then(|()| clone_file(&from, &to));
    remove(&from)?;
    remove(&to)?;
    if let Err(error) = tried {
        bail!(
            "{error:#}: {} must be on a file system with reflinks: put it on xfs or btrfs, for instance an image \
             with mkfs.xfs on a loop device",
            dir.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(id: &str, name: &str) -> Volume {
        let parameters = [("kind".to_owned(), "fast".to_owned())].into();
        let source = Some(Source::Snapshot("snap-1".to_owned()));
        Volume { id: id.to_owned(), name: name.to_owned(), capacity: 5 << 20, source, parameters }
    }

    #[test]
    fn records_are_found_again_and_garbage_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let shelf: Shelf<Volume> = Shelf::open(dir.path().to_path_buf()).unwrap();
        let (first, second, lost) =
            (shelf.new_id().unwrap(), shelf.new_id().unwrap(), shelf.new_id().unwrap());
        assert!(first < second && second < lost && is_id(&first));
        shelf.put(&volume(&second, "two")).unwrap();
        shelf.put(&volume(&first, "one")).unwrap();
        fs::write(shelf.scratch(&first), "half a file system").unwrap();
        fs::write(dir.path().join(format!("{first}.new")), "half a record").unwrap();
        fs::write(dir.path().join("notes.new"), "somebody's own").unwrap();

        let shelf: Shelf<Volume> = Shelf::open(dir.path().to_path_buf()).unwrap();
        assert_eq!(shelf.all().unwrap(), [volume(&first, "one"), volume(&second, "two")]);
        assert_eq!(shelf.named("two").unwrap(), Some(volume(&second, "two")));
        assert_eq!(shelf.get(&lost).unwrap(), None);
        assert!(shelf.image(&first).exists());
        assert!(dir.path().join("notes.new").exists(), "what has no name of the driver's stays");
        fs::remove_file(dir.path().join("notes.new")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "two images, two records");
        shelf.remove(&first).unwrap();
        shelf.remove(&first).unwrap();
        assert_eq!(shelf.all().unwrap(), [volume(&second, "two")]);
        assert!(!shelf.image(&first).exists());
    }

    #[test]
    fn what_is_no_id_names_no_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret.json"), "{}").unwrap();
        let shelf: Shelf<Volume> = Shelf::open(dir.path().join("volumes")).unwrap();
        for id in
            ["", "../secret", "vol-", "vol-../../../secret", "vol-00000000000000zz", "snap-0000000000000000"]
        {
            assert_eq!(shelf.get(id).unwrap(), None, "{id}");
        }
        assert!(!is_id("vol-0123456789ABCDEF"));
        assert!(is_id("snap-0123456789abcdef"));
    }

    #[test]
    fn a_broken_record_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let shelf: Shelf<Snapshot> = Shelf::open(dir.path().to_path_buf()).unwrap();
        let id = shelf.new_id().unwrap();
        fs::write(shelf.record(&id), "{").unwrap();
        let error = Shelf::<Snapshot>::open(dir.path().to_path_buf()).unwrap_err().to_string();
        assert!(error.contains(&id) && error.contains("no record"), "{error}");
    }
}
