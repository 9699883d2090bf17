//! The names of one directory in byte order, in bounded memory.
//!
//! Names are collected and sorted in memory up to a limit; beyond it they go to disk as sorted runs which are merged
//! while they are read. A directory deep in the tree keeps every directory above it waiting half read: those can be
//! [parked](Listing::park), which leaves a few bytes of each.

use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, RawDir};
use rustix::io::Errno;

use super::spill::{Run, Spill};
use crate::error::Result;

/// Bytes of directory entries fetched from the kernel at a time.
const GETDENTS: usize = 32 * 1024;
/// Runs merged at a time; more are first merged into longer ones.
const FAN_IN: usize = 32;
/// Lists smaller than this many bytes stay in memory when they are parked.
const SMALL: usize = 512;

/// What the directory says about a name; the file behind it may have changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Hint {
    Unknown,
    File,
    Directory,
    Other,
}

impl Hint {
    pub(super) fn from_code(code: u8) -> Self {
        [Self::Unknown, Self::File, Self::Directory, Self::Other]
            .into_iter()
            .find(|h| *h as u8 == code)
            .unwrap_or(Self::Unknown)
    }

    pub(super) fn of(kind: FileType) -> Self {
        match kind {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Unknown => Self::Unknown,
            _ => Self::Other,
        }
    }
}

/// Where a name is in the arena.
#[derive(Clone, Copy)]
struct Slot {
    start: u32,
    len: u16,
    hint: Hint,
}

/// Names in memory.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
}

impl Arena {
    fn name(&self, slot: Slot) -> &[u8] {
        &self.bytes[slot.start as usize..slot.start as usize + usize::from(slot.len)]
    }

    fn push(&mut self, name: &[u8], hint: Hint) {
        // Both fit: an arena is spilled long before 4 GiB, and a name has at most 255 bytes.
        let (Ok(start), Ok(len)) = (u32::try_from(self.bytes.len()), u16::try_from(name.len())) else {
            return;
        };
        self.slots.push(Slot { start, len, hint });
        self.bytes.extend_from_slice(name);
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |s: &Slot| &bytes[s.start as usize..s.start as usize + usize::from(s.len)];
        self.slots.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    }

    fn used(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>()
    }

    fn resident(&self) -> usize {
        self.bytes.capacity() + self.slots.capacity() * size_of::<Slot>()
    }

    fn spill(&self, from: usize, spill: &mut Spill) -> Result<Run> {
        let mut run = spill.writer()?;
        for slot in &self.slots[from..] {
            run.push(self.name(*slot), slot.hint, spill)?;
        }
        run.finish(spill)
    }
}

enum Names {
    Memory {
        arena: Arena,
        next: usize,
    },
    /// `least`: the run whose head was shown last.
    Runs {
        runs: Vec<Run>,
        least: usize,
    },
}

/// The names of a directory, to be taken in byte order, each once.
pub(super) struct Listing {
    names: Names,
    last: Vec<u8>,
}

/// Collects names until they are sorted.
pub(super) struct Collector {
    limit: usize,
    arena: Arena,
    runs: Vec<Run>,
}

impl Collector {
    /// Will hold at most about `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        // Vectors grow by doubling, so half of what is allowed may be in use when the other half is slack.
        Self { limit: limit / 2, arena: Arena::default(), runs: Vec::new() }
    }

    pub(super) fn push(&mut self, name: &[u8], hint: Hint, spill: &mut Spill) -> Result<()> {
        if self.arena.used() + name.len() + size_of::<Slot>() > self.limit && !self.arena.slots.is_empty() {
            self.arena.sort();
            self.runs.push(self.arena.spill(0, spill)?);
            self.arena.bytes.clear();
            self.arena.slots.clear();
        }
        self.arena.push(name, hint);
        Ok(())
    }

    pub(super) fn finish(mut self, spill: &mut Spill) -> Result<Listing> {
        self.arena.sort();
        if self.runs.is_empty() {
            self.arena.bytes.shrink_to_fit();
            self.arena.slots.shrink_to_fit();
            return Ok(Listing { names: Names::Memory { arena: self.arena, next: 0 }, last: Vec::new() });
        }
        self.runs.push(self.arena.spill(0, spill)?);
        drop(self.arena);
        let mut runs = self.runs;
        while runs.len() > FAN_IN {
            let rest = runs.split_off(FAN_IN);
            let merged = merge(runs, spill)?;
            runs = rest;
            runs.push(merged);
        }
        Ok(Listing { names: Names::Runs { runs, least: 0 }, last: Vec::new() })
    }
}

/// Writes the names of several runs as one.
fn merge(runs: Vec<Run>, spill: &mut Spill) -> Result<Run> {
    let mut merged = spill.writer()?;
    let mut listing = Listing { names: Names::Runs { runs, least: 0 }, last: Vec::new() };
    while let Some((name, hint)) = listing.next(spill)? {
        merged.push(name, hint, spill)?;
    }
    merged.finish(spill)
}

impl Listing {
    /// All names of a directory but `.` and `..`; at most about `limit` bytes of them in memory. When the directory
    /// cannot be read to its end, what was read is returned with the error.
    pub(super) fn read(
        dir: BorrowedFd<'_>,
        limit: usize,
        buffer: &mut Vec<u8>,
        spill: &mut Spill,
    ) -> Result<(Self, Option<Errno>)> {
        let mut names = Collector::new(limit);
        buffer.clear();
        buffer.reserve_exact(GETDENTS);
        let mut failed = None;
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) => {
                    let name = entry.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        names.push(name, Hint::of(entry.file_type()), spill)?;
                    }
                }
                Err(Errno::INTR) => {}
                // The directory itself was removed: it is empty.
                Err(Errno::NOENT) => break,
                Err(errno) => {
                    failed = Some(errno);
                    break;
                }
            }
        }
        Ok((names.finish(spill)?, failed))
    }

    /// The next name.
    pub(super) fn next(&mut self, spill: &mut Spill) -> Result<Option<(&[u8], Hint)>> {
        // A directory that changes while it is listed can show a name twice.
        let hint = loop {
            let Some((name, hint)) = self.names.peek(spill)? else { return Ok(None) };
            let repeated = !self.last.is_empty() && self.last == name;
            if !repeated {
                self.last.clear();
                self.last.extend_from_slice(name);
            }
            self.names.advance();
            if !repeated {
                break hint;
            }
        };
        Ok(Some((&self.last, hint)))
    }

    /// Bytes of memory held.
    pub(super) fn resident(&self) -> usize {
        match &self.names {
            Names::Memory { arena, .. } => arena.resident(),
            Names::Runs { runs, .. } => runs.iter().map(Run::resident).sum(),
        }
    }

    /// Gives the memory back until the listing is read on.
    pub(super) fn park(&mut self, spill: &mut Spill) -> Result<()> {
        match &mut self.names {
            Names::Memory { arena, next } => {
                if arena.resident() > SMALL {
                    let run = arena.spill(*next, spill)?;
                    self.names = Names::Runs { runs: vec![run], least: 0 };
                }
            }
            Names::Runs { runs, .. } => runs.iter_mut().for_each(Run::park),
        }
        Ok(())
    }

    /// Gives back the space on disk of a listing that is not read to its end.
    pub(super) fn discard(self, spill: &mut Spill) {
        if let Names::Runs { runs, .. } = self.names {
            runs.into_iter().for_each(|run| run.free(spill));
        }
    }
}

impl Names {
    /// The smallest name that is left, without taking it.
    fn peek(&mut self, spill: &mut Spill) -> Result<Option<(&[u8], Hint)>> {
        match self {
            Self::Memory { arena, next } => {
                Ok(arena.slots.get(*next).map(|slot| (arena.name(*slot), slot.hint)))
            }
            Self::Runs { runs, least } => {
                let mut i = 0;
                while let Some(run) = runs.get_mut(i) {
                    if run.load(spill)? {
                        i += 1;
                    } else {
                        runs.swap_remove(i).free(spill);
                    }
                }
                // At most FAN_IN runs: looking at all of them is as quick as a heap, and simpler.
                let smallest = runs.iter().enumerate().min_by(|a, b| a.1.head().0.cmp(b.1.head().0));
                Ok(smallest.map(|(i, run)| {
                    *least = i;
                    run.head()
                }))
            }
        }
    }

    /// Takes the name that [`Names::peek`] has shown.
    fn advance(&mut self) {
        match self {
            Self::Memory { next, .. } => *next += 1,
            Self::Runs { runs, least } => runs[*least].advance(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spill() -> Spill {
        Spill::new(std::env::temp_dir())
    }

    fn collect(names: &[Vec<u8>], limit: usize, spill: &mut Spill) -> Listing {
        let mut collector = Collector::new(limit);
        for name in names {
            collector.push(name, Hint::File, spill).unwrap();
        }
        collector.finish(spill).unwrap()
    }

    fn rest(listing: &mut Listing, spill: &mut Spill) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some((name, hint)) = listing.next(spill).unwrap() {
            assert_eq!(hint, Hint::File);
            out.push(name.to_vec());
        }
        out
    }

    fn random_names(n: usize) -> Vec<Vec<u8>> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..n)
            .map(|i| {
                let mut name: Vec<u8> = (0..random.usize(0..40)).map(|_| random.u8(1..=255)).collect();
                name.extend_from_slice(format!("-{i}").as_bytes());
                name
            })
            .collect()
    }

    #[test]
    fn sorting_on_disk_is_sorting() {
        let names = random_names(20_000);
        let mut sorted = names.clone();
        sorted.sort();
        // In memory; a few runs; and so many runs that they are merged in several passes.
        for limit in [usize::MAX, 200_000, 4_000] {
            let mut spill = spill();
            let mut listing = collect(&names, limit, &mut spill);
            assert_eq!(spill.live() > 0, limit != usize::MAX);
            assert!(spill.live() <= FAN_IN);
            assert_eq!(rest(&mut listing, &mut spill), sorted);
            assert_eq!(spill.live(), 0, "runs that are read to their end give their space back");
            assert!(limit == usize::MAX || listing.resident() <= limit.max(FAN_IN * 8 * 1024));
        }
    }

    #[test]
    fn parked_listings_go_on_where_they_were() {
        let names = random_names(5_000);
        let mut sorted = names.clone();
        sorted.sort();
        for limit in [usize::MAX, 30_000] {
            let mut spill = spill();
            let mut listing = collect(&names, limit, &mut spill);
            let mut other = collect(&names, 10_000, &mut spill);
            let mut got = Vec::new();
            for i in 0..sorted.len() {
                if i % 701 == 0 {
                    listing.park(&mut spill).unwrap();
                    assert_eq!(listing.resident(), 0);
                }
                got.push(listing.next(&mut spill).unwrap().unwrap().0.to_vec());
            }
            assert!(listing.next(&mut spill).unwrap().is_none());
            assert_eq!(got, sorted);
            assert_eq!(other.next(&mut spill).unwrap().unwrap().0, sorted[0]);
            other.discard(&mut spill);
            assert_eq!(spill.live(), 0);
        }
    }

    #[test]
    fn names_seen_twice_come_once() {
        let names: Vec<Vec<u8>> = [b"b", b"a", b"b", b"a", b"c"].iter().map(|n| n.to_vec()).collect();
        for limit in [usize::MAX, 1] {
            let mut spill = spill();
            let mut listing = collect(&names, limit, &mut spill);
            assert_eq!(rest(&mut listing, &mut spill), [b"a", b"b", b"c"]);
        }
    }

    #[test]
    fn the_temporary_file_does_not_grow_with_every_directory() {
        let names = random_names(2_000);
        let mut spill = spill();
        let held = collect(&names, 10_000, &mut spill);
        for _ in 0..50 {
            let mut listing = collect(&names, 10_000, &mut spill);
            rest(&mut listing, &mut spill);
        }
        // Either cut off or punched out.
        assert!(spill.allocated() < 1_000_000, "{} bytes", spill.allocated());
        held.discard(&mut spill);
        assert_eq!(spill.allocated(), 0);
    }
}
