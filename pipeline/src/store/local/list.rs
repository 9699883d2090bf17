//! Keys of a directory in byte order, a page at a time, one folder in memory per level.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

use crate::store::{Listing, ObjectInfo, key};

/// Objects per page.
pub(super) const PAGE: usize = 1000;

/// Keys below `root` that start with `prefix` and come after `after`: at most [`PAGE`].
pub(super) fn list(root: &Path, prefix: &str, after: Option<&str>) -> io::Result<Listing> {
    let mut walk = Walk { prefix, after: after.unwrap_or(""), page: Listing::default() };
    // Folders that the prefix spells out in full need no look at their siblings.
    let start = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    walk.folder(&root.join(start), start)?;
    Ok(walk.page)
}

struct Walk<'a> {
    prefix: &'a str,
    after: &'a str,
    page: Listing,
}

impl Walk<'_> {
    /// Lists the folder whose keys start with `base` (empty or ending with `/`). Returns false when the page is full.
    fn folder(&mut self, path: &Path, base: &str) -> io::Result<bool> {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            // Gone meanwhile, or the name is an object: no keys below it.
            Err(e) if is_absent(&e) => return Ok(true),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(name) = self.candidate(base, &entry)? {
                names.push(name);
            }
        }
        // With its slash a folder sorts among its siblings where its keys do: `a.b` comes before `a/x`.
        names.sort_unstable();
        for name in names {
            if name.ends_with('/') {
                if !self.folder(&path.join(&name), &format!("{base}{name}"))? {
                    return Ok(false);
                }
                continue;
            }
            let meta = match fs::metadata(path.join(&name)) {
                Ok(meta) => meta,
                Err(e) if is_absent(&e) => continue,
                Err(e) => return Err(e),
            };
            if self.page.objects.len() == PAGE {
                self.page.more = true;
                return Ok(false);
            }
            let object =
                ObjectInfo { key: format!("{base}{name}"), size: meta.len(), modified: meta.modified()? };
            self.page.objects.push(object);
        }
        Ok(true)
    }

    /// The entry's name, with a slash for folders, when keys of the listing can be at or below it.
    fn candidate(&self, base: &str, entry: &DirEntry) -> io::Result<Option<String>> {
        let Ok(mut name) = entry.file_name().into_string() else { return Ok(None) };
        let mut kind = entry.file_type()?;
        if kind.is_symlink() {
            // An owner may have moved a folder to another disk.
            match fs::metadata(entry.path()) {
                Ok(meta) => kind = meta.file_type(),
                Err(_) => return Ok(None),
            }
        }
        let mut full = format!("{base}{name}");
        // What is no key is not ours: `tmp`, the `lost+found` of a file system's root.
        if !key::is_key(&full) || !(kind.is_dir() || kind.is_file()) {
            return Ok(None);
        }
        let wanted = if kind.is_dir() {
            full.push('/');
            name.push('/');
            (full.starts_with(self.prefix) || self.prefix.starts_with(&full))
                && (full.as_str() > self.after || self.after.starts_with(&full))
        } else {
            full.starts_with(self.prefix) && full.as_str() > self.after
        };
        Ok(wanted.then_some(name))
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_whole_keys() {
        let dir = tempfile::tempdir().unwrap();
        let mut keys: Vec<String> =
            ["a/x", "a.b", "a-b/c", "a/y/z", "a0", "a/x0", "b", "A/z"].map(String::from).to_vec();
        keys.extend((0..40).map(|i| format!("many/{i:02}/k")));
        for k in &keys {
            let path = dir.path().join(k);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        for noise in ["tmp/x", "lost+found/x", "a/with space"] {
            fs::create_dir_all(dir.path().join(noise).parent().unwrap()).unwrap();
            fs::write(dir.path().join(noise), b"x").unwrap();
        }
        keys.sort();
        let all = |prefix: &str, after: Option<&str>| -> Vec<String> {
            list(dir.path(), prefix, after).unwrap().objects.into_iter().map(|o| o.key).collect()
        };
        assert_eq!(all("", None), keys);
        for prefix in ["a", "a/", "a/x", "many/1", "many/11/", "nothing/", "zz", "a/x/", "b/"] {
            let want: Vec<_> = keys.iter().filter(|k| k.starts_with(prefix)).cloned().collect();
            assert_eq!(all(prefix, None), want, "{prefix}");
        }
        for after in ["", "a", "a-b/c", "a/", "a/x", "a/y", "a/y/zz", "many/20/k", "zzz"] {
            let want: Vec<_> = keys.iter().filter(|k| k.as_str() > after).cloned().collect();
            assert_eq!(all("", Some(after)), want, "after {after}");
        }
        assert_eq!(all("many/", Some("many/37/k")), ["many/38/k", "many/39/k"]);
    }
}
