//! What is mounted where, by the kernel's table; mounting and unmounting.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::program;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where.
    pub(crate) target: PathBuf,
    /// Which part of the file system, as a path within it.
    root: PathBuf,
    /// Type of the file system.
    pub(crate) kind: String,
    /// The device, if it has one.
    source: PathBuf,
    /// Nothing can be written here.
    pub(crate) read_only: bool,
    /// Nor anywhere else that the file system is mounted.
    pub(crate) all_read_only: bool,
}

impl Mount {
    /// True when the file system on the device is mounted here.
    pub(crate) fn is_file_system_on(&self, device: &Path) -> bool {
        self.source == device && !self.is_of_nodes()
    }

    /// True when the device's own node is bound here.
    pub(crate) fn is_node_of(&self, device: &Path) -> bool {
        self.is_of_nodes() && self.root.file_name() == device.file_name()
    }

    /// What a `/dev` is.
    fn is_of_nodes(&self) -> bool {
        ["devtmpfs", "tmpfs"].contains(&self.kind.as_str())
    }
}

/// All mounts that this process sees, in the order they were made.
pub(crate) fn all() -> Result<Vec<Mount>> {
    let table = fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(table.split(|b| *b == b'\n').filter_map(parse).collect())
}

/// What is mounted at this path, last of all.
pub(crate) fn at(path: &Path) -> Result<Option<Mount>> {
    // The table has real paths. What does not exist is no mount.
    let Ok(path) = path.canonicalize() else { return Ok(None) };
    Ok(all()?.into_iter().rev().find(|mount| mount.target == path))
}

/// `36 35 98:0 /root /target rw,noatime master:1 - ext4 /dev/loop1 rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ');
    let (root, target, options) = (words.nth(3)?, words.next()?, words.next()?);
    words.find(|word| *word == b"-")?;
    let (kind, source, all_options) = (words.next()?, words.next()?, words.next()?);
    let is_read_only = |options: &[u8]| options.split(|b| *b == b',').any(|option| option == b"ro");
    Some(Mount {
        target: PathBuf::from(unescape(target)),
        root: PathBuf::from(unescape(root)),
        kind: String::from_utf8_lossy(kind).into_owned(),
        source: PathBuf::from(unescape(source)),
        read_only: is_read_only(options) || is_read_only(all_options),
        all_read_only: is_read_only(all_options),
    })
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescape(word: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                plain.push(byte);
                rest = &after[3..];
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Binds `from` to `target`, which exists.
pub(crate) fn bind(from: &Path, target: &Path, read_only: bool) -> Result<()> {
    program::run("mount", &["--bind".as_ref(), from.as_os_str(), target.as_os_str()])?;
    if read_only {
        // Takes a call of its own: a bind mount is first made as its source is.
        let remount = ["-o", "remount,bind,ro"].map(OsStr::new);
        let remounted = program::run("mount", &[remount[0], remount[1], target.as_os_str()]);
        if remounted.is_err() {
            unmount(target)?;
        }
        remounted?;
    }
    Ok(())
}

/// Unmounts whatever is mounted at this path; nothing may be.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    while at(path)?.is_some() {
        program::run("umount", &[path])?;
    }
    Ok(())
}

/// Removes a mount point, be it a file or an empty folder; it may be gone.
pub(crate) fn remove_target(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing the mount point {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn lines_of_the_table_are_read() {
        let line = br"36 35 7:3 / /mnt/a\040b\134c ro,noatime master:1 shared:2 - ext4 /dev/loop3 rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, Path::new(r"/mnt/a b\c"));
        assert!(mount.read_only && !mount.all_read_only);
        assert!(mount.is_file_system_on(Path::new("/dev/loop3")));
        assert!(!mount.is_node_of(Path::new("/dev/loop3")));

        let node = parse(b"40 35 0:6 /loop12 /pods/volume rw - devtmpfs udev rw,size=4k").unwrap();
        assert!(node.is_node_of(Path::new("/dev/loop12")));
        assert!(!node.is_node_of(Path::new("/dev/loop1")));
        assert!(!node.is_file_system_on(Path::new("/dev/loop12")));
        assert!(parse(b"").is_none());
        assert!(!all().unwrap().is_empty());
        assert!(at(Path::new("/proc")).unwrap().is_some());
        assert!(at(Path::new("/proc/no/such/path")).unwrap().is_none());
    }

    #[test]
    fn words_without_escapes_stay_as_they_are() {
        for word in ["", "plain", r"\", r"\04", r"\999", r"end\"] {
            assert_eq!(unescape(word.as_bytes()), OsStr::new(word));
        }
        assert_eq!(unescape(br"a\011b").as_bytes(), b"a\tb");
    }
}
