#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::page::join;
use crate::page::tests::{Pages, chunk, golden, location};

const CHUNK: u32 = 16 << 10;
const FIXED: Shape = Shape::Fixed { chunk: CHUNK };
/// Bytes of a full leaf.
const LEAF: u64 = CHUNK as u64 * 1024;

/// A stretch of a volume: chunks of `CHUNK` bytes with ascending numbers, or a hole.
#[derive(Debug, Clone, Copy)]
enum Run {
    Chunks(u64),
    Hole(u64),
}

/// Writes runs, then `tail` bytes: a last chunk that may be short.
fn write(shape: Shape, runs: &[Run], tail: u32, pages: &mut Pages) -> PageRef {
    let mut writer = ExtentWriter::new(shape);
    let mut number = 0;
    for run in runs {
        match run {
            Run::Chunks(n) => {
                for _ in 0..*n {
                    number += 1;
                    writer.chunk(chunk(number), CHUNK.into(), pages).unwrap();
                }
            }
            Run::Hole(len) => writer.hole(*len, pages).unwrap(),
        }
    }
    if tail > 0 {
        writer.chunk(chunk(u64::MAX), tail.into(), pages).unwrap();
    }
    writer.finish(pages).unwrap()
}

/// What the runs mean: offset and number of each chunk, and the size.
fn meaning(runs: &[Run], tail: u32) -> (Vec<(u64, Id)>, u64) {
    let (mut found, mut offset, mut number) = (vec![], 0, 0);
    for run in runs {
        match run {
            Run::Chunks(n) => {
                for _ in 0..*n {
                    number += 1;
                    found.push((offset, chunk(number).id));
                    offset += u64::from(CHUNK);
                }
            }
            Run::Hole(len) => offset += len,
        }
    }
    if tail > 0 {
        found.push((offset, chunk(u64::MAX).id));
    }
    (found, offset + u64::from(tail))
}

/// Reads a tree; checks that every page covers what its parent says. Chunks with their offsets, and the end.
fn read(pages: &Pages, root: &PageRef) -> (Vec<(u64, Id)>, u64) {
    fn below(
        pages: &Pages,
        level: u8,
        id: &Id,
        offset: &mut u64,
        found: &mut Vec<(u64, Id)>,
        leaves: &mut Vec<u64>,
    ) {
        let page = ExtentPage::decode(pages.page(ObjectType::Extents, id)).unwrap();
        assert_eq!(page.level, level);
        if level == 0 {
            leaves.push(page.len());
        }
        for item in &page.items {
            let start = *offset;
            match item.chunk {
                Some(child) if level > 0 => below(pages, level - 1, &child.id, offset, found, leaves),
                Some(child) => {
                    found.push((start, child.id));
                    *offset += item.len;
                }
                None => *offset += item.len,
            }
            assert_eq!(*offset - start, item.len, "an item covers what it says");
        }
    }
    let (mut found, mut offset, mut leaves) = (vec![], 0, vec![]);
    below(pages, root.level, &root.chunk.id, &mut offset, &mut found, &mut leaves);
    assert_eq!(offset, root.len);
    (found, offset)
}

fn runs() -> impl Strategy<Value = (Vec<Run>, u32)> {
    let run = prop_oneof![
        (1u64..3000).prop_map(Run::Chunks),
        (1u64..5000).prop_map(|n| Run::Hole(n * u64::from(CHUNK))),
        // Around whole leaves and whole nodes of leaves.
        (1u64..4, -1i64..2)
            .prop_map(|(n, more)| { Run::Hole((n * LEAF).saturating_add_signed(more * i64::from(CHUNK))) }),
        (1u64..4).prop_map(|n| Run::Hole(n * LEAF * 1024)),
    ];
    (prop::collection::vec(run, 0..6), 0..=CHUNK)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_block_volume_is_read_as_it_was_written((runs, tail) in runs()) {
        let mut pages = Pages::new();
        let root = write(FIXED, &runs, tail, &mut pages);
        prop_assert_eq!(read(&pages, &root), meaning(&runs, tail));
    }

    #[test]
    fn a_file_is_read_as_it_was_written((runs, tail) in runs()) {
        let mut pages = Pages::new();
        let root = write(Shape::ContentDefined, &runs, tail, &mut pages);
        prop_assert_eq!(read(&pages, &root), meaning(&runs, tail));
    }

    #[test]
    fn how_a_hole_is_told_does_not_matter((runs, tail) in runs(), piece in 1u64..2000) {
        let mut pages = Pages::new();
        let whole = write(FIXED, &runs, tail, &mut pages);
        let pieces: Vec<Run> = runs.iter().flat_map(|run| match run {
            Run::Chunks(_) => vec![*run],
            Run::Hole(len) => {
                // A few pieces are enough, and quicker than a million.
                let piece = piece * u64::from(CHUNK);
                let n = (len / piece).min(50);
                let mut all = vec![Run::Hole(piece); n as usize];
                all.push(Run::Hole(len - n * piece));
                all
            }
        }).collect();
        prop_assert_eq!(write(FIXED, &pieces, tail, &mut pages).chunk.id, whole.chunk.id);
    }

    #[test]
    fn hints_do_not_change_the_root((runs, tail) in runs()) {
        let mut pages = Pages::new();
        let one = write(FIXED, &runs, tail, &mut pages);
        pages.hints = Some(3);
        let other = write(FIXED, &runs, tail, &mut pages);
        prop_assert_eq!((one.chunk.id, one.level, one.len), (other.chunk.id, other.level, other.len));
    }

    #[test]
    fn changed_bytes_decode_or_are_refused(
        (runs, tail) in runs(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut pages = Pages::new();
        let root = write(FIXED, &runs, tail, &mut pages);
        let mut page = pages.page(ObjectType::Extents, &root.chunk.id).to_vec();
        for (at, to) in changes {
            let at = at.index(page.len());
            page[at] = to;
        }
        if let Ok(found) = ExtentPage::decode(&page) {
            // Whatever is accepted has one form.
            prop_assert_eq!(&found.encode()[..], crate::page::content(&page).unwrap());
        }
    }

    #[test]
    fn any_bytes_decode_or_are_refused(content in prop::collection::vec(any::<u8>(), 0..200), honest: bool) {
        let content = if honest { [&[1, 0][..], &content].concat() } else { content };
        let _ = ExtentPage::decode(&join(&content, &[]));
        let _ = ExtentPage::decode(&content);
    }
}

#[test]
fn every_leaf_covers_1024_chunks() {
    for count in [0u64, 1, 1023, 1024, 1025, 5000, 1024 * 1024, 1024 * 1024 + 1] {
        let mut pages = Pages::new();
        let root = write(FIXED, &[Run::Chunks(count)], 0, &mut pages);
        assert_eq!(root.len, count * u64::from(CHUNK));
        assert_eq!(
            root.level,
            [(1024, 0), (1 << 20, 1), (1 << 30, 2)].iter().find(|(n, _)| count <= *n).unwrap().1
        );
        let leaves = pages.stored.values().map(|p| ExtentPage::decode(p).unwrap()).filter(|p| p.level == 0);
        let mut short = 0;
        let mut seen = 0;
        for leaf in leaves {
            seen += 1;
            short += u64::from(leaf.len() != LEAF);
        }
        assert_eq!(seen, count.div_ceil(1024).max(1));
        assert!(short <= 1, "only the last leaf may be short");
    }
}

#[test]
fn an_empty_volume_is_a_leaf_without_items() {
    let mut pages = Pages::new();
    let root = write(FIXED, &[], 0, &mut pages);
    assert_eq!((root.level, root.len), (0, 0));
    let page = ExtentPage::decode(pages.page(ObjectType::Extents, &root.chunk.id)).unwrap();
    assert!(page.is_empty());
}

#[test]
fn huge_sparse_volumes_are_a_few_pages() {
    let size = 64u64 << 40;
    for chunk in [16 << 10, 256 << 10, 4 << 20] {
        let shape = Shape::Fixed { chunk };
        let mut pages = Pages::new();
        let root = write(shape, &[Run::Hole(size)], 0, &mut pages);
        assert_eq!((root.len, pages.stored.len()), (size, 1), "nothing but a hole");
        // Three chunks far apart: a leaf and its parents for each.
        let mut writer = ExtentWriter::new(shape);
        let mut pages = Pages::new();
        for n in 0..3 {
            writer.hole((20 << 40) - u64::from(chunk), &mut pages).unwrap();
            writer.chunk(super::super::tests::chunk(n), chunk.into(), &mut pages).unwrap();
        }
        writer.hole(4 << 40, &mut pages).unwrap();
        let root = writer.finish(&mut pages).unwrap();
        assert_eq!(root.len, size);
        assert!(pages.stored.len() <= 3 * usize::from(root.level) + 1, "{} pages", pages.stored.len());
        let found: Vec<u64> = read(&pages, &root).0.iter().map(|(at, _)| *at).collect();
        assert_eq!(found, [1u64, 2, 3].map(|n| n * (20 << 40) - u64::from(chunk)));
    }
}

#[test]
fn the_largest_volume_there_can_be_is_written() {
    let mut pages = Pages::new();
    let mut writer = ExtentWriter::new(FIXED);
    writer.chunk(chunk(1), CHUNK.into(), &mut pages).unwrap();
    writer.hole(u64::MAX - 2 * u64::from(CHUNK) + 1, &mut pages).unwrap();
    let root = writer.finish(&mut pages).unwrap();
    assert!(root.level <= MAX_LEVEL);
    assert_eq!(read(&pages, &root).1, u64::MAX - u64::from(CHUNK) + 1);
}

#[test]
fn a_changed_chunk_changes_one_leaf_and_its_parents() {
    let write = |changed: Option<u64>| {
        let mut pages = Pages::new();
        let mut writer = ExtentWriter::new(FIXED);
        for n in 0..(1 << 20) + 5000 {
            let n = if changed == Some(n) { u64::MAX } else { n };
            writer.chunk(chunk(n), CHUNK.into(), &mut pages).unwrap();
        }
        let root = writer.finish(&mut pages).unwrap();
        (root, pages)
    };
    let (root, before) = write(None);
    assert_eq!(root.level, 2);
    for changed in [0, 1023, 1024, 700_000, (1 << 20) + 4999] {
        let (_, after) = write(Some(changed));
        assert_eq!(after.beyond(&before), 3, "chunk {changed}");
    }
}

#[test]
fn an_inserted_chunk_moves_no_leaf_behind_it() {
    let write = |inserted: Option<u64>| {
        let mut pages = Pages::new();
        let mut writer = ExtentWriter::new(Shape::ContentDefined);
        for n in 0..40_000 {
            if inserted == Some(n) {
                writer.chunk(chunk(n + (1 << 40)), 500, &mut pages).unwrap();
            }
            writer.chunk(chunk(n), 1000 + n % 7, &mut pages).unwrap();
        }
        writer.finish(&mut pages).unwrap();
        pages
    };
    let before = write(None);
    let leaves = before.stored.len();
    assert!((40..160).contains(&leaves), "{leaves} pages of about 512 chunks");
    for inserted in (0..40_000).step_by(4001) {
        let after = write(Some(inserted));
        assert!(after.beyond(&before) <= 4, "{} pages changed", after.beyond(&before));
    }
}

#[test]
fn pages_of_files_are_bounded() {
    // No id that ends a page, and one at every chunk.
    for (last, expected) in [(1, 2048), (0, 256)] {
        let mut pages = Pages::new();
        let mut writer = ExtentWriter::new(Shape::ContentDefined);
        for n in 0..5000 {
            let mut chunk = chunk(n);
            chunk.id.0[31] = last;
            writer.chunk(chunk, 100, &mut pages).unwrap();
        }
        writer.finish(&mut pages).unwrap();
        let sizes: HashSet<usize> =
            pages.stored.values().map(|p| ExtentPage::decode(p).unwrap().items.len()).collect();
        assert!(sizes.contains(&expected), "{sizes:?}");
        assert!(sizes.iter().all(|n| *n <= expected), "{sizes:?}");
    }
}

#[test]
fn impossible_pages_are_refused() {
    let refuse = |content: &[u8]| ExtentPage::decode(&join(content, &[])).unwrap_err();
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert_eq!(refuse(&[2, 0, 0]), "extent page of a later version");
    assert_eq!(refuse(&[1, MAX_LEVEL + 1, 0]), "extent page too high");
    assert_eq!(refuse(&[1, 0, 1, 2, 1, 1]), "unknown extent");
    assert_eq!(refuse(&[1, 0, 1, 0, 2, 1]), "unknown extent");
    assert_eq!(refuse(&[1, 0, 1, 0, 0, 1]), "unknown extent");
    assert_eq!(refuse(&[1, 0, 1, 0, 1, 0]), "unknown extent");
    assert_eq!(refuse(&[1, 0, 2, 0, 1, 1, 0, 1, 1]), "extents that belong together");
    assert_eq!(refuse(&[1, 0, 0, 7]), "bytes after the end");
    // A number of items that overflows, alone and added to others; nothing is allocated for it.
    assert_eq!(refuse(&[&[1, 0, 1, 1][..], &huge, &[1]].concat()), "too many extents");
    assert_eq!(refuse(&[&[1, 0, 2, 1, 1, 2, 1][..], &huge, &[1]].concat()), "too many extents");
    assert_eq!(refuse(&[&[1, 0][..], &huge].concat()), "count too large");
    // Lengths that overflow.
    let page = ExtentPage {
        level: 0,
        items: [1, 2].map(|n| Item { len: u64::MAX - n, chunk: Some(chunk(n)) }).into(),
    };
    assert_eq!(ExtentPage::decode(&join(&page.encode(), &page.chunks())), Err("extents too long"));
}

#[test]
fn golden_extents() {
    let item =
        |n: u64, len| Item { len, chunk: Some(ChunkRef { id: Id([n as u8; 32]), hint: Some(location(n)) }) };
    let hole = |len| Item { len, chunk: None };
    let leaf = ExtentPage {
        level: 0,
        items: vec![item(1, 262_144), item(2, 262_144), hole(64 << 40), item(1, 262_144), item(3, 4096)],
    };
    assert_eq!(hex::encode(join(&leaf.encode(), &leaf.chunks())), golden("page extents"));
    assert_eq!(ExtentPage::decode(&hex::decode(golden("page extents")).unwrap()), Ok(leaf));
    let node = ExtentPage { level: 1, items: vec![item(9, 1 << 28), hole(1 << 28), item(8, 1000)] };
    assert_eq!(hex::encode(join(&node.encode(), &node.chunks())), golden("page extents node"));
}
