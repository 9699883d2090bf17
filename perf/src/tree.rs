//! A tree of files as a data set: copy it, change 2 % of its files, take the change back.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::data::Scale;
use crate::pages::{self, Kind, PAGE};

/// Calls `visit` with each relative path below `root`, on the same file system, parents before children, names in
/// the order of their bytes. A folder that may not be listed counts as empty.
pub(crate) fn walk(root: &Path, visit: &mut dyn FnMut(&Path, &Metadata) -> Result<()>) -> Result<()> {
    fn below(
        root: &Path,
        relative: &Path,
        device: u64,
        visit: &mut dyn FnMut(&Path, &Metadata) -> Result<()>,
    ) -> Result<()> {
        let folder = root.join(relative);
        let names = fs::read_dir(&folder).and_then(|entries| {
            entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<BTreeSet<_>>>()
        });
        let names = match names {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => BTreeSet::new(),
            names => names.with_context(|| format!("listing {}", folder.display()))?,
        };
        for name in names {
            let path = relative.join(&name);
            let meta = fs::symlink_metadata(folder.join(&name))?;
            visit(&path, &meta)?;
            if meta.is_dir() && meta.dev() == device {
                below(root, &path, device, visit)?;
            }
        }
        Ok(())
    }
    below(root, Path::new(""), fs::metadata(root)?.dev(), visit)
}

/// Copies a share of the tree `from` with owners, modes, times, hard links and extended attributes.
pub(crate) fn copy(from: &Path, to: &Path, scale: Scale) -> Result<()> {
    copy_chosen(from, to, &mut |path, _| scale.takes(pages::path_number(path.as_os_str().as_bytes())))
}

/// Copies the entries that `choose` accepts, and the folders above them.
pub(crate) fn copy_chosen(
    from: &Path,
    to: &Path,
    choose: &mut dyn FnMut(&Path, &Metadata) -> bool,
) -> Result<()> {
    let everything = rustix::process::geteuid().is_root();
    let mut chosen: BTreeSet<PathBuf> = BTreeSet::new();
    walk(from, &mut |path, meta| {
        let readable = everything || !meta.is_file() || File::open(from.join(path)).is_ok();
        if readable && choose(path, meta) {
            chosen.extend(path.ancestors().filter(|p| !p.as_os_str().is_empty()).map(Path::to_path_buf));
        }
        Ok(())
    })?;
    fs::create_dir_all(to)?;
    let attributes = ["--xattrs", "--xattrs-include=*", "--acls"];
    let mut reader = Command::new("tar")
        .args(["--create", "--file=-", "--null", "--no-recursion", "--verbatim-files-from", "--files-from=-"])
        .args(attributes)
        .current_dir(from)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting tar")?;
    let (Some(mut list), Some(archive)) = (reader.stdin.take(), reader.stdout.take()) else {
        bail!("no pipes")
    };
    let mut writer = Command::new("tar")
        .args(["--extract", "--file=-", "--preserve-permissions"])
        .args(attributes)
        .current_dir(to)
        .stdin(archive)
        .spawn()
        .context("starting tar")?;
    for path in &chosen {
        list.write_all(path.as_os_str().as_bytes())?;
        list.write_all(b"\0")?;
    }
    drop(list);
    if !reader.wait()?.success() || !writer.wait()?.success() {
        bail!("copying {} to {} failed", from.display(), to.display());
    }
    Ok(())
}

/// One step of a change, with the path relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The file was written anew with a few bytes more in its middle.
    Replaced(PathBuf),
    /// The file is gone.
    Removed(PathBuf),
    /// The file is new.
    Added(PathBuf),
}

/// Changes 2 % of the files below `root`, the same ones every time: half of them written anew, a quarter removed, a
/// quarter added. Keeps what is needed to take it back in `undo`, on the same file system.
pub(crate) fn change(root: &Path, undo: Option<&Path>) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    walk(root, &mut |path, meta| {
        let number = pages::path_number(path.as_os_str().as_bytes());
        if meta.is_file() && meta.nlink() == 1 && number % 100 < 2 {
            steps.push(match number / 100 % 4 {
                0 => Step::Removed(path.to_path_buf()),
                1 => Step::Added(path.with_added_extension("new")),
                _ => Step::Replaced(path.to_path_buf()),
            });
        }
        Ok(())
    })?;
    let mut log = match undo {
        Some(undo) => {
            fs::create_dir_all(undo)?;
            Some(OpenOptions::new().append(true).create(true).open(undo.join("log"))?)
        }
        None => None,
    };
    for (number, step) in steps.iter().enumerate() {
        let (letter, path) = match step {
            Step::Replaced(path) | Step::Removed(path) => (b'k', path),
            Step::Added(path) => (b'a', path),
        };
        if let Some(log) = &mut log {
            log.write_all(&[&[letter], path.as_os_str().as_bytes(), b"\0"].concat())?;
        }
        apply(step, root, undo.map(|undo| undo.join(number.to_string())).as_deref())
            .with_context(|| format!("changing {}", path.display()))?;
    }
    Ok(steps)
}

fn apply(step: &Step, root: &Path, keep: Option<&Path>) -> io::Result<()> {
    match step {
        Step::Added(path) => {
            let mut text = vec![0; PAGE * 2];
            pages::fill(Kind::Database, 2, pages::path_number(path.as_os_str().as_bytes()) >> 40, &mut text);
            fs::write(root.join(path), text)
        }
        Step::Removed(path) => match keep {
            Some(keep) => fs::rename(root.join(path), keep),
            None => fs::remove_file(root.join(path)),
        },
        Step::Replaced(path) => {
            let path = root.join(path);
            let mut bytes = Vec::new();
            let meta = fs::metadata(&path)?;
            File::open(&path)?.read_to_end(&mut bytes)?;
            let middle = bytes.len() / 2;
            bytes.splice(middle..middle, *b"a few bytes that were not here before\n");
            match keep {
                Some(keep) => fs::rename(&path, keep)?,
                None => fs::remove_file(&path)?,
            }
            fs::write(&path, bytes)?;
            if rustix::process::geteuid().is_root() {
                chown(&path, Some(meta.uid()), Some(meta.gid()))?;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(meta.mode() & 0o7777))
        }
    }
}

/// Takes a change back, also one that was cut.
pub(crate) fn revert(root: &Path, undo: &Path) -> Result<()> {
    if !undo.exists() {
        return Ok(());
    }
    let log = fs::read(undo.join("log")).unwrap_or_default();
    for (number, line) in log.split(|b| *b == 0).enumerate() {
        let Some((letter, path)) = line.split_first() else { continue };
        let path = root.join(OsStr::from_bytes(path));
        let kept = undo.join(number.to_string());
        if *letter == b'a' && path.exists() {
            fs::remove_file(&path)?;
        } else if *letter == b'k' && kept.exists() {
            fs::rename(&kept, &path)?;
        }
    }
    fs::remove_dir_all(undo).context("removing what was kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(root: &Path) -> Vec<(PathBuf, u64, Vec<u8>)> {
        let mut all = Vec::new();
        walk(root, &mut |path, meta| {
            let bytes = if meta.is_file() { fs::read(root.join(path))? } else { Vec::new() };
            all.push((path.to_path_buf(), meta.ino(), bytes));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn two_percent_of_the_files_change_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let (root, undo) = (dir.path().join("tree"), dir.path().join("undo"));
        for number in 0..3000 {
            let folder = root.join(format!("{}", number % 17));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("file{number}")), format!("content {number}")).unwrap();
        }
        let before = listing(&root);
        let steps = change(&root, Some(&undo)).unwrap();
        assert!((30..90).contains(&steps.len()), "{}", steps.len());
        let kinds = |f: fn(&Step) -> bool| steps.iter().filter(|s| f(s)).count();
        assert!(kinds(|s| matches!(s, Step::Replaced(_))) > kinds(|s| matches!(s, Step::Removed(_))));
        assert!(kinds(|s| matches!(s, Step::Added(_))) > 0);
        assert!(before != listing(&root));
        revert(&root, &undo).unwrap();
        assert!(before == listing(&root));
        assert!(!undo.exists());
    }

    #[test]
    fn a_copy_has_the_chosen_share_with_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for number in 0..400 {
            fs::create_dir_all(from.join(format!("{}/deep", number % 7))).unwrap();
            fs::write(from.join(format!("{}/deep/{number}\n \\x", number % 7)), "x").unwrap();
        }
        copy(&from, &to, "1/4".parse().unwrap()).unwrap();
        let mut files = 0;
        walk(&to, &mut |path, meta| {
            files += u32::from(meta.is_file());
            assert_eq!(fs::symlink_metadata(from.join(path))?.mtime_nsec(), meta.mtime_nsec());
            Ok(())
        })
        .unwrap();
        assert!((60..140).contains(&files), "{files}");
    }
}
