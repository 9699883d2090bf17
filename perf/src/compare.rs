//! Compares what was restored with its source, without trusting any tool: every byte of every file.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::tree;

/// Bytes that are compared at once.
const BLOCK: usize = 1 << 20;

/// The differences in metadata, by kind. Differences in content are errors.
pub(crate) type Differences = BTreeMap<String, u64>;

/// Compares a volume file or a tree. Fails when a byte, a name, a type or a link target differs.
pub(crate) fn compare(source: &Path, restored: &Path) -> Result<Differences> {
    if !restored.exists() {
        bail!("nothing was restored at {}", restored.display());
    }
    if source.is_dir() {
        trees(source, restored)
    } else {
        if let Some(offset) = first_difference(source, restored)? {
            bail!("the restored volume differs at byte {offset}");
        }
        Ok(Differences::new())
    }
}

/// The offset of the first byte that differs; the end of the shorter file counts.
fn first_difference(a: &Path, b: &Path) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut offset = 0;
    loop {
        let (n, m) = (read_full(&mut a, &mut left)?, read_full(&mut b, &mut right)?);
        if left[..n] != right[..m] {
            let same = left[..n].iter().zip(&right[..m]).take_while(|(x, y)| x == y).count();
            return Ok(Some(offset + same as u64));
        }
        if n == 0 {
            return Ok(None);
        }
        offset += n as u64;
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

fn listing(root: &Path) -> Result<BTreeMap<PathBuf, Metadata>> {
    let mut entries = BTreeMap::new();
    tree::walk(root, &mut |path, meta| {
        entries.insert(path.to_path_buf(), meta.clone());
        Ok(())
    })?;
    Ok(entries)
}

/// The first path of every group of hard links.
fn link_groups(entries: &BTreeMap<PathBuf, Metadata>) -> HashMap<u64, &Path> {
    let mut first = HashMap::new();
    for (path, meta) in entries.iter().filter(|(_, meta)| meta.is_file() && meta.nlink() > 1) {
        first.entry(meta.ino()).or_insert(path.as_path());
    }
    first
}

fn trees(source: &Path, restored: &Path) -> Result<Differences> {
    let (ours, theirs) = (listing(source)?, listing(restored)?);
    let mut wrong = Vec::new();
    wrong.extend(theirs.keys().filter(|p| !ours.contains_key(*p)).map(|p| format!("{} is new", p.display())));
    let (our_groups, their_groups) = (link_groups(&ours), link_groups(&theirs));
    let mut differences = Differences::new();
    for (path, meta) in &ours {
        let Some(other) = theirs.get(path) else {
            wrong.push(format!("{} is missing", path.display()));
            continue;
        };
        if let Some(what) = content_differs((source, meta), (restored, other), path)? {
            wrong.push(format!("{}: {what}", path.display()));
            continue;
        }
        let time = |meta: &Metadata| (meta.mtime(), meta.mtime_nsec());
        let link = meta.is_symlink();
        let group =
            |meta: &Metadata, groups: &HashMap<u64, &Path>| groups.get(&meta.ino()).map(|p| p.to_path_buf());
        for (kind, differs) in [
            ("mode", !link && meta.mode() != other.mode()),
            ("owner", (meta.uid(), meta.gid()) != (other.uid(), other.gid())),
            ("time of a symbolic link", link && time(meta) != time(other)),
            ("time of a folder", meta.is_dir() && time(meta) != time(other)),
            ("time", !link && !meta.is_dir() && time(meta) != time(other)),
            ("hard link", meta.is_file() && group(meta, &our_groups) != group(other, &their_groups)),
        ] {
            if differs {
                *differences.entry(kind.to_owned()).or_default() += 1;
            }
        }
    }
    if !wrong.is_empty() {
        let shown = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        bail!("the restored tree is wrong in {} places: {shown}", wrong.len());
    }
    Ok(differences)
}

fn content_differs(
    (source, meta): (&Path, &Metadata),
    (restored, other): (&Path, &Metadata),
    path: &Path,
) -> io::Result<Option<&'static str>> {
    let (source, restored) = (source.join(path), restored.join(path));
    Ok(if meta.file_type() != other.file_type() {
        Some("another type")
    } else if meta.is_symlink() {
        (fs::read_link(source)? != fs::read_link(restored)?).then_some("another target")
    } else if meta.is_file() {
        (meta.len() != other.len() || first_difference(&source, &restored)?.is_some())
            .then_some("other bytes")
    } else {
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn tree(root: &Path) {
        fs::create_dir_all(root.join("folder")).unwrap();
        fs::write(root.join("folder/file"), "content").unwrap();
        fs::hard_link(root.join("folder/file"), root.join("link")).unwrap();
        symlink("folder/file", root.join("symbolic")).unwrap();
        let mut find = std::process::Command::new("find");
        let status = find.arg(root).args(["-exec", "touch", "-hd", "@1", "{}", "+"]).status().unwrap();
        assert!(status.success());
    }

    fn after(change: impl Fn(&Path)) -> Result<Differences> {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        tree(&a);
        tree(&b);
        change(&b);
        compare(&a, &b)
    }

    #[test]
    fn equal_trees_are_equal() {
        assert!(after(|_| ()).unwrap().is_empty());
    }

    #[test]
    fn every_wrong_content_is_an_error() {
        let wrong = |change: &dyn Fn(&Path), words: &str| {
            let error = after(change).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        wrong(&|b| fs::write(b.join("link"), "CONTENT").unwrap(), "other bytes");
        wrong(&|b| fs::write(b.join("link"), "content and more").unwrap(), "other bytes");
        wrong(&|b| fs::remove_file(b.join("link")).unwrap(), "link is missing");
        wrong(&|b| fs::write(b.join("extra"), "").unwrap(), "extra is new");
        wrong(&|b| fs::remove_dir_all(b).unwrap(), "nothing was restored");
        let retarget = |b: &Path| {
            fs::remove_file(b.join("symbolic")).unwrap();
            symlink("elsewhere", b.join("symbolic")).unwrap();
        };
        wrong(&retarget, "another target");
    }

    #[test]
    fn metadata_is_counted() {
        let mode =
            |b: &Path| fs::set_permissions(b.join("folder"), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(after(mode).unwrap().into_iter().collect::<Vec<_>>(), [("mode".to_owned(), 1)]);
        let unlink = |b: &Path| {
            fs::remove_file(b.join("link")).unwrap();
            fs::copy(b.join("folder/file"), b.join("link")).unwrap();
        };
        let found = after(unlink).unwrap();
        assert_eq!(found.get("hard link"), Some(&2));
        assert_eq!(found.get("time"), Some(&1));
    }

    #[test]
    fn volumes_are_compared_to_the_last_byte() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let mut bytes = vec![7; BLOCK + 3];
        fs::write(&a, &bytes).unwrap();
        fs::write(&b, &bytes).unwrap();
        assert!(compare(&a, &b).unwrap().is_empty());
        bytes[BLOCK + 2] = 8;
        fs::write(&b, &bytes).unwrap();
        assert!(compare(&a, &b).unwrap_err().to_string().ends_with(&format!("at byte {}", BLOCK + 2)));
        fs::write(&b, &bytes[..BLOCK]).unwrap();
        assert!(compare(&a, &b).unwrap_err().to_string().ends_with(&format!("at byte {BLOCK}")));
    }
}
