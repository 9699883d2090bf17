//! Deterministic content for volumes, made of 8 KiB pages: incompressible bytes, or rows of a database table.
//!
//! Every page is a pure function of its kind, its generation and its number, so a change of 2 % is written in
//! place by asking for generation 1, and taken back by asking for generation 0 again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Size of one page in bytes.
pub(crate) const PAGE: usize = 8192;
/// Bytes that are generated before they are written.
const BATCH: usize = 1 << 20;
/// One changed run lies in every slot of this many pages.
const SLOT: u64 = 1600;
/// Longest changed run in pages; lengths are uniform from 1, so the mean is 32 pages: 2 % of a slot.
const LONGEST: u64 = 63;

/// What the pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Bytes that no codec makes smaller.
    Random,
    /// Slotted pages of a table: header, line pointers, rows with numbers, names, words and some random tokens.
    Database,
}

/// SplitMix64: small, fixed for good, and random enough that no codec finds a pattern.
struct Rng(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Rng {
    fn new(stream: u64, generation: u64, number: u64) -> Self {
        Self(mix(mix(mix(stream.wrapping_add(1)) ^ generation) ^ number))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A number below `bound` that is small much more often than large, as keys of popular rows are.
    fn skewed(&mut self, bound: u64) -> u64 {
        let widest = self.below(bound) + 1;
        self.below(widest)
    }
}

/// A number that decides about a path; the same on every machine.
pub(crate) fn path_number(path: &[u8]) -> u64 {
    mix(path.iter().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3)))
}

/// Fills `out`, whole pages, with the pages that start at `first`.
pub(crate) fn fill(kind: Kind, generation: u64, first: u64, out: &mut [u8]) {
    for (number, page) in (first..).zip(out.chunks_exact_mut(PAGE)) {
        match kind {
            Kind::Random => {
                let mut rng = Rng::new(1, generation, number);
                for word in page.chunks_exact_mut(8) {
                    word.copy_from_slice(&rng.next().to_le_bytes());
                }
            }
            Kind::Database => database_page(generation, number, page),
        }
    }
}

const SYLLABLES: [&str; 32] = [
    "ra", "ten", "mo", "sil", "ka", "dor", "ve", "lin", "pas", "o", "cer", "thi", "ban", "nu", "gre", "el",
    "fo", "mir", "sa", "que", "ton", "ar", "ji", "blo", "wen", "u", "hal", "pi", "stro", "de", "xan", "ly",
];
const STATES: [&str; 5] = ["open", "paid", "shipped", "returned", "cancelled"];
const CITIES: [&str; 12] = [
    "Rotterdam",
    "Singapore",
    "Valparaiso",
    "Lisbon",
    "Zanzibar",
    "Hamburg",
    "Kochi",
    "Boston",
    "Osaka",
    "Fremantle",
    "Genoa",
    "Bergen",
];

/// One word of a vocabulary of 32,768, the frequent ones first.
fn word(rng: &mut Rng, row: &mut Vec<u8>) {
    let number = rng.skewed(32_768);
    for shift in [0, 5, 10] {
        let syllable = usize::try_from(number >> shift & 31).unwrap_or_default();
        row.extend_from_slice(SYLLABLES[syllable].as_bytes());
        if number >> shift < 32 {
            break;
        }
    }
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[usize::try_from(rng.below(from.len() as u64)).unwrap_or_default()]
}

fn text(row: &mut Vec<u8>, value: &str) {
    row.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
    row.extend_from_slice(value.as_bytes());
}

/// One row of an order table, padded to 8 bytes.
fn row(rng: &mut Rng, number: u64, slot: u64, row: &mut Vec<u8>) {
    let id = number.wrapping_mul(48).wrapping_add(slot);
    row.clear();
    row.extend_from_slice(&(900_000 + number / 64).to_le_bytes()); // the transactions that wrote and deleted it
    row.extend_from_slice(&number.to_le_bytes()[..4]);
    row.extend_from_slice(&slot.to_le_bytes()[..2]);
    row.extend_from_slice(&[0x0b, 0, 2, 9, 24, 0]);
    row.extend_from_slice(&id.to_le_bytes());
    row.extend_from_slice(&rng.skewed(2_000_000).to_le_bytes()); // the customer
    row.extend_from_slice(&(760_000_000_000_000 + id * 1_500_000 + rng.below(1_500_000)).to_le_bytes()); // microseconds
    row.extend_from_slice(&rng.skewed(500_000).to_le_bytes()[..4]); // cents
    text(row, pick(rng, &STATES));
    text(row, pick(rng, &CITIES));
    word(rng, row);
    row.push(b'.');
    word(rng, row);
    row.extend_from_slice(b"@example.com");
    if rng.below(2) == 0 {
        row.extend_from_slice(&rng.next().to_le_bytes());
        row.extend_from_slice(&rng.next().to_le_bytes());
    }
    for _ in 0..4 + rng.below(9) {
        word(rng, row);
        row.push(b' ');
    }
    row.resize(row.len().next_multiple_of(8), 0);
}

/// Header of 24 bytes, line pointers from the front, rows from the back, about 6 % free between them.
fn database_page(generation: u64, number: u64, page: &mut [u8]) {
    const FREE: usize = 512;
    let mut rng = Rng::new(2, generation, number);
    page.fill(0);
    let mut tuple = Vec::with_capacity(256);
    let (mut lower, mut upper, mut slot) = (24, PAGE, 0);
    loop {
        row(&mut rng, number, slot, &mut tuple);
        if lower + 4 + FREE + tuple.len() > upper {
            break;
        }
        upper -= tuple.len();
        page[upper..upper + tuple.len()].copy_from_slice(&tuple);
        let pointer = (upper as u64) | 1 << 15 | (tuple.len() as u64) << 17;
        page[lower..lower + 4].copy_from_slice(&pointer.to_le_bytes()[..4]);
        lower += 4;
        slot += 1;
    }
    page[..8].copy_from_slice(&(0x16_0000_0000 + number * PAGE as u64 + generation).to_le_bytes());
    page[8..10].copy_from_slice(&rng.next().to_le_bytes()[..2]);
    page[12..14].copy_from_slice(&(lower as u64).to_le_bytes()[..2]);
    page[14..16].copy_from_slice(&(upper as u64).to_le_bytes()[..2]);
    page[16..18].copy_from_slice(&(PAGE as u64).to_le_bytes()[..2]);
}

/// Writes a file of `length` bytes (whole pages) of generation 0.
pub(crate) fn create(kind: Kind, path: &Path, length: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut batch = vec![0; BATCH];
    let mut done = 0;
    while done < length {
        let part = usize::try_from(length - done).unwrap_or(BATCH).min(BATCH);
        fill(kind, 0, done / PAGE as u64, &mut batch[..part]);
        file.write_all(&batch[..part])?;
        done += part as u64;
    }
    file.sync_all()
}

/// The changed 2 % of a file of `length` bytes: (first page, pages). One run in every 12.5 MiB, of 8 to 504 KiB,
/// at any page, so that no tool's chunk size is favoured.
pub(crate) fn changed_runs(length: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..length / PAGE as u64 / SLOT).map(|slot| {
        let mut rng = Rng::new(3, 0, slot);
        let pages = 1 + rng.below(LONGEST);
        (slot * SLOT + rng.below(SLOT - pages), pages)
    })
}

/// Hands the pages of the changed 2 % to `write` (offset, bytes); returns the number of bytes.
pub(crate) fn rewrite_with(
    kind: Kind,
    length: u64,
    generation: u64,
    mut write: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<u64> {
    let mut bytes = 0;
    for (first, pages) in changed_runs(length) {
        let mut run = vec![0; usize::try_from(pages).unwrap_or_default() * PAGE];
        fill(kind, generation, first, &mut run);
        write(first * PAGE as u64, &run)?;
        bytes += run.len() as u64;
    }
    Ok(bytes)
}

/// Overwrites the changed 2 % of a file in place: generation 1 to change it, generation 0 to take it back.
pub(crate) fn rewrite(kind: Kind, path: &Path, generation: u64) -> io::Result<u64> {
    let file = OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    let bytes = rewrite_with(kind, length, generation, |offset, run| file.write_all_at(run, offset))?;
    file.sync_all()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fnv(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01B3))
    }

    fn first_mib(kind: Kind, generation: u64) -> Vec<u8> {
        let mut out = vec![0; 1 << 20];
        fill(kind, generation, 0, &mut out);
        out
    }

    #[test]
    fn the_content_never_changes() {
        let golden = |kind, generation| format!("{:016x}", fnv(&first_mib(kind, generation)));
        let all = [(Kind::Random, 0), (Kind::Random, 1), (Kind::Database, 0), (Kind::Database, 1)];
        let found = all.map(|(kind, generation)| golden(kind, generation));
        assert_eq!(found, ["fbf501374109df38", "b4ce585ddf9d12f8", "98e3d5d3e4417c39", "2c7e2b26be5335e6"]);
    }

    #[test]
    fn database_pages_are_full_of_rows() {
        for page in first_mib(Kind::Database, 0).chunks_exact(PAGE) {
            let lower = usize::from(u16::from_le_bytes([page[12], page[13]]));
            let upper = usize::from(u16::from_le_bytes([page[14], page[15]]));
            assert!(lower > 24 + 4 * 20 && upper - lower < 1024, "lower {lower} upper {upper}");
            assert!(page[lower..upper].iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn two_percent_change_without_overlap() {
        let length = 4 << 30;
        let mut end = 0;
        let mut pages = 0;
        for (first, count) in changed_runs(length) {
            assert!(first >= end && count >= 1);
            end = first + count;
            pages += count;
        }
        assert!(end <= length / PAGE as u64);
        let percent = pages as f64 * PAGE as f64 / length as f64 * 100.0;
        assert!((1.9..2.1).contains(&percent), "{percent}");
    }

    #[test]
    fn a_change_is_taken_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volume");
        for kind in [Kind::Random, Kind::Database] {
            create(kind, &path, 26 << 20).unwrap();
            let before = std::fs::read(&path).unwrap();
            let bytes = rewrite(kind, &path, 1).unwrap();
            let after = std::fs::read(&path).unwrap();
            let pages =
                |a: &[u8], b: &[u8]| a.chunks(PAGE).zip(b.chunks(PAGE)).filter(|(a, b)| a != b).count();
            assert_eq!(pages(&before, &after) as u64 * PAGE as u64, bytes);
            rewrite(kind, &path, 0).unwrap();
            assert!(before == std::fs::read(&path).unwrap());
        }
    }
}
