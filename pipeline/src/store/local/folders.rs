//! Folders that survive a power cut, and names in them that are given once.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
use rustix::io::Errno;

use super::locked;
use super::temp::Temp;

/// How often a folder may vanish under a creation (removed as empty by a deletion) before that is an error.
const ATTEMPTS: usize = 16;

/// The folders below one root.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    /// Device and inode of folders whose own name, and those of the folders above, are known to be durable.
    durable: Mutex<HashSet<(u64, u64)>>,
}

impl Folders {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, durable: Mutex::default() }
    }

    /// Opens a folder at or below the root, making it and its parents when needed. Its name is durable afterwards.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        // The root and what is above it are the user's when they exist: taken as they are.
        let ours = path.starts_with(&self.root) && path != self.root;
        match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Ok(folder) if !ours || locked(&self.durable).contains(&identity(&folder)?) => return Ok(folder),
            // Another process may have made it a moment ago, and not have synced it yet.
            Ok(_) => {}
            Err(e) => return Err(e),
        }
        let parent = self.open(path.parent().ok_or(io::ErrorKind::NotFound)?)?;
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => parent.sync_all()?,
        }
        let folder = File::open(path)?;
        locked(&self.durable).insert(identity(&folder)?);
        Ok(folder)
    }

    /// Gives the finished, synced file its name. Fails with [`io::ErrorKind::AlreadyExists`] when the name is taken;
    /// then the name is durable too, because callers act on that answer.
    pub(super) fn adopt(&self, temp: &Temp, target: &Path) -> io::Result<()> {
        let parent = target.parent().ok_or(io::ErrorKind::NotFound)?;
        for _ in 0..ATTEMPTS {
            let folder = self.open(parent)?;
            match give_name(temp, target) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && temp.path().exists() => {}
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                outcome => return folder.sync_all().and(outcome),
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "the folder vanishes again and again"))
    }

    /// Removes a file, durably, and its folder when that is empty and not one of the top folders. A file that is not
    /// there is no error.
    pub(super) fn delete(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            // A folder of that name holds keys; there is no such object.
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => return Ok(()),
            done => done?,
        }
        let parent = path.parent().ok_or(io::ErrorKind::NotFound)?;
        let folder = match File::open(parent) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            folder => folder?,
        };
        folder.sync_all()?;
        if parent != self.root && parent.parent() != Some(&self.root) {
            locked(&self.durable).remove(&identity(&folder)?);
            // It fails when somebody else put a file there: fine.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn identity(folder: &File) -> io::Result<(u64, u64)> {
    let meta = folder.metadata()?;
    Ok((meta.dev(), meta.ino()))
}

/// Moves the file to `target` unless that exists.
fn give_name(temp: &Temp, target: &Path) -> io::Result<()> {
    match renameat_with(CWD, temp.path(), CWD, target, RenameFlags::NOREPLACE) {
        // NFS and FUSE do not know the flag; most of those have hard links.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => link_name(temp, target),
        Err(e) => Err(e.into()),
        Ok(()) => {
            temp.adopted();
            Ok(())
        }
    }
}

fn link_name(temp: &Temp, target: &Path) -> io::Result<()> {
    match linkat(CWD, temp.path(), CWD, target, AtFlags::empty()) {
        // The temporary name goes when `temp` is dropped.
        Ok(()) => Ok(()),
        // NFS repeats a request whose answer was lost, and then finds its own link.
        Err(Errno::EXIST) if is_same(temp, target) => Ok(()),
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this file system can neither rename without replacing nor make hard links",
        )),
        Err(e) => Err(e.into()),
    }
}

fn is_same(temp: &Temp, target: &Path) -> bool {
    match (identity(temp.output().file()), fs::metadata(target)) {
        (Ok(ours), Ok(there)) => ours == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::temp::Temps;
    use super::*;

    /// Where renaming without replacing is missing, hard links must give the same guarantee.
    #[test]
    fn links_give_a_name_once() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path().join("deep/root"));
        let temps = Temps::new(dir.path().join("deep/root/tmp"));
        let target = dir.path().join("deep/root/object");
        let first = temps.create(&folders, "object").unwrap();
        link_name(&first, &target).unwrap();
        link_name(&first, &target).unwrap();
        let second = temps.create(&folders, "object").unwrap();
        assert_eq!(link_name(&second, &target).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop((first, second));
        assert!(target.exists());
        assert_eq!(fs::read_dir(dir.path().join("deep/root/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn deleting_removes_empty_folders_but_not_the_top_ones() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path().to_owned());
        let temps = Temps::new(dir.path().join("tmp"));
        let put =
            |name: &str| folders.adopt(&temps.create(&folders, "object").unwrap(), &dir.path().join(name));
        for round in 0..3 {
            put("sessions/s1/0").unwrap();
            put("sessions/s1/1").unwrap();
            assert_eq!(put("sessions/s1/1").unwrap_err().kind(), io::ErrorKind::AlreadyExists, "{round}");
            folders.delete(&dir.path().join("sessions/s1/0")).unwrap();
            assert!(dir.path().join("sessions/s1").exists());
            folders.delete(&dir.path().join("sessions/s1/1")).unwrap();
            assert!(!dir.path().join("sessions/s1").exists());
            assert!(dir.path().join("sessions").exists());
        }
    }
}
