//! What a restore lost, in bounded memory.
//!
//! A lost pack takes hundreds of thousands of chunks with it. Neighbours that share a reason are one place; places are
//! listed as long as there is room, then there is one summary for each file, and in the end only a count.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Damage;
use crate::entry::Entry;
use crate::error::{Error, Result};

/// Bytes of memory for places that are listed: several thousand.
const PLACES: usize = 2 << 20;

/// Bytes of memory for those and for the summaries of files.
const ALL: usize = 3 << 20;

/// Bytes that a place or a file takes beside its texts.
const FIXED: usize = 160;

/// Damages, collected by all workers.
#[derive(Debug, Clone)]
pub(crate) struct Damages {
    list: Arc<Mutex<List>>,
    keep_going: bool,
}

/// Why something is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reason {
    /// The damaged object, when it is known, and where in it.
    object: Option<String>,
    at: Option<u64>,
    what: String,
}

impl Reason {
    fn of(error: Error) -> Self {
        match error {
            Error::Damaged { object, offset, what } => Self { object: Some(object), at: offset, what },
            other => Self { object: None, at: None, what: other.to_string() },
        }
    }

    /// True when both are the same but for the place in the object.
    fn is_shared(&self, other: &Self) -> bool {
        (&self.object, &self.what) == (&other.object, &other.what)
    }

    fn weight(&self) -> usize {
        FIXED + self.object.as_ref().map_or(0, String::len) + self.what.len()
    }

    fn text(self) -> String {
        match self.object {
            Some(object) => Error::Damaged { object, offset: self.at, what: self.what }.to_string(),
            None => self.what,
        }
    }
}

/// A stretch that is lost; its offset is its key.
#[derive(Debug, Clone)]
struct Place {
    len: u64,
    why: Reason,
}

/// Places of a file for which there was no room.
#[derive(Debug, Clone)]
struct Summary {
    start: u64,
    end: u64,
    places: u64,
    bytes: u64,
    /// Of the first of them.
    why: Reason,
}

/// What is lost of a file or volume.
#[derive(Debug, Default)]
struct Lost {
    places: BTreeMap<u64, Place>,
    rest: Option<Summary>,
}

impl Lost {
    /// Makes a place longer that ends or begins where the new one begins or ends and has the same reason. Gives back
    /// the place that is none of its own any more, or the new one when there is no such neighbour.
    fn merge(&mut self, offset: u64, new: Place) -> Merged {
        let end = offset.saturating_add(new.len);
        let after = self.places.get(&end).is_some_and(|next| new.len > 0 && next.why.is_shared(&new.why));
        if let Some((start, before)) = self.places.range_mut(..=offset).next_back()
            && (*start == offset
                || start.saturating_add(before.len) == offset && before.why.is_shared(&new.why))
        {
            if *start == offset {
                // Lost for two reasons: the first one stands for both.
                before.len = before.len.max(new.len);
                return Merged::Whole;
            }
            before.len += new.len;
            let next = if after { self.places.remove(&end) } else { None };
            let Some(next) = next else { return Merged::Whole };
            if let Some((_, before)) = self.places.range_mut(..=offset).next_back() {
                before.len += next.len;
            }
            return Merged::Freed(next.why.weight());
        }
        if !after {
            return Merged::Not(new);
        }
        let next = self.places.remove(&end);
        let freed = next.as_ref().map_or(0, |next| next.why.weight());
        let len = new.len + next.map_or(0, |next| next.len);
        let weight = new.why.weight();
        self.places.insert(offset, Place { len, ..new });
        Merged::Moved { freed, weight }
    }
}

/// What became of a new place.
enum Merged {
    /// It is part of another.
    Whole,
    /// It joined two others; one of them took so many bytes.
    Freed(usize),
    /// It took the place of another.
    Moved { freed: usize, weight: usize },
    /// It has no neighbour.
    Not(Place),
}

#[derive(Debug, Default)]
struct List {
    files: BTreeMap<Vec<u8>, Lost>,
    /// Paths of damaged files with several names, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// Bytes of memory that all of this takes, roughly.
    bytes: usize,
    /// Places that are not in `files`, and bytes lost with them.
    more: (u64, u64),
}

impl List {
    fn push(&mut self, path: &[u8], offset: u64, place: Place) {
        let mut place = place;
        if let Some(lost) = self.files.get_mut(path) {
            match lost.merge(offset, place) {
                Merged::Whole => return,
                Merged::Freed(bytes) => {
                    self.bytes = self.bytes.saturating_sub(bytes);
                    return;
                }
                Merged::Moved { freed, weight } => {
                    self.bytes = (self.bytes + weight).saturating_sub(freed);
                    return;
                }
                Merged::Not(back) => place = back,
            }
        }
        let file = if self.files.contains_key(path) { 0 } else { FIXED + path.len() };
        let weight = file + place.why.weight();
        if self.bytes + weight <= PLACES {
            self.bytes += weight;
            self.files.entry(path.to_vec()).or_default().places.insert(offset, place);
        } else {
            self.summarize(path, offset, place, weight);
        }
    }

    fn summarize(&mut self, path: &[u8], offset: u64, place: Place, weight: usize) {
        let end = offset.saturating_add(place.len);
        if let Some(rest) = self.files.get_mut(path).and_then(|lost| lost.rest.as_mut()) {
            (rest.start, rest.end) = (rest.start.min(offset), rest.end.max(end));
            rest.places += 1;
            rest.bytes = rest.bytes.saturating_add(place.len);
        } else if self.bytes + weight <= ALL {
            self.bytes += weight;
            let rest = Summary { start: offset, end, places: 1, bytes: place.len, why: place.why };
            self.files.entry(path.to_vec()).or_default().rest = Some(rest);
        } else {
            self.more = (self.more.0 + 1, self.more.1.saturating_add(place.len));
        }
    }

    fn link(&mut self, file: &Entry) {
        let key = (file.device, file.inode);
        let weight = FIXED + file.path.len();
        if !self.linked.contains_key(&key) && self.bytes + weight <= ALL {
            self.bytes += weight;
            self.linked.insert(key, file.path.clone());
        }
    }
}

impl Damages {
    /// An empty list; without `keep_going` the first damage ends the run.
    pub(crate) fn new(keep_going: bool) -> Self {
        Self { list: Arc::default(), keep_going }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes damage.
    ///
    /// # Errors
    /// `why` itself when the run is not to go on.
    pub(crate) fn note(&self, path: &[u8], offset: u64, len: u64, why: Error) -> Result<()> {
        if !self.keep_going {
            return Err(why);
        }
        self.list().push(path, offset, Place { len, why: Reason::of(why) });
        Ok(())
    }

    /// Notes damage to a file, which may have several names.
    ///
    /// # Errors
    /// As [`Damages::note`].
    pub(crate) fn note_file(&self, file: &Entry, offset: u64, len: u64, why: Error) -> Result<()> {
        self.note(&file.path, offset, len, why)?;
        if file.links > 1 {
            self.list().link(file);
        }
        Ok(())
    }

    /// Notes what was noted for another name of the same file.
    pub(crate) fn note_link(&self, name: &Entry) {
        let mut list = self.list();
        let first = list.linked.get(&(name.device, name.inode)).filter(|path| **path != name.path);
        let Some(lost) = first.and_then(|path| list.files.get(path)) else { return };
        let rest = lost.rest.iter().map(|r| (r.start, Place { len: r.end - r.start, why: r.why.clone() }));
        let places: Vec<(u64, Place)> =
            lost.places.iter().map(|(at, place)| (*at, place.clone())).chain(rest).collect();
        for (offset, place) in places {
            list.push(&name.path, offset, place);
        }
    }

    /// Everything, by path and offset; what was only counted comes last.
    pub(super) fn take(&self) -> Vec<Damage> {
        let List { files, more, .. } = std::mem::take(&mut *self.list());
        let mut all = Vec::new();
        for (path, Lost { places, rest }) in files {
            for (offset, Place { len, why }) in places {
                all.push(Damage { path: path.clone(), offset, len, why: why.text() });
            }
            if let Some(Summary { start, end, places, bytes, why }) = rest {
                let why = match places {
                    1 => why.text(),
                    n => format!(
                        "{}; this is the first of {n} more places in this range, of {bytes} bytes together",
                        why.text()
                    ),
                };
                all.push(Damage { path, offset: start, len: end - start, why });
            }
        }
        if let (places @ 1.., bytes) = more {
            let why = format!("{places} more places, of {bytes} bytes together, are too many to be named");
            all.push(Damage { path: Vec::new(), offset: 0, len: 0, why });
        }
        all
    }
}

#[cfg(test)]
mod tests;
