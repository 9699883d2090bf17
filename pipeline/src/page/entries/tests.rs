#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::page::join;
use crate::page::tests::{Pages, chunk, golden, golden_master, location};

/// An entry without anything special about it.
fn plain(path: &[u8], kind: EntryKind) -> Entry {
    let time = |seconds| Time { seconds, nanos: 123_456_789 };
    Entry {
        path: path.to_vec(),
        kind,
        mode: 0o644,
        uid: 1000,
        gid: 100,
        mtime: time(1_700_000_000),
        ctime: time(-1),
        size: 0,
        inode: 77,
        device: 0xfd01,
        links: 1,
        flags: 0,
        xattrs: vec![],
        content: Content::Empty,
    }
}

/// A file of one slice of a bundle.
fn file(path: &[u8], n: u64) -> Entry {
    let len = 1 + (n % 5000) as u32;
    let extent = Extent::Chunk { chunk: chunk(n / 20), skip: (n % 20) as u32 * 5000, len };
    Entry { size: len.into(), content: Content::Extents(vec![extent]), ..plain(path, EntryKind::File) }
}

fn write(entries: &[Entry], pages: &mut Pages) -> PageRef {
    let mut writer = EntryWriter::new(&golden_master());
    entries.iter().for_each(|e| writer.push(e, pages).unwrap());
    writer.finish(pages).unwrap()
}

/// All entries below a page; checks what its parents say.
fn read(pages: &Pages, level: u8, id: &Id) -> Vec<Entry> {
    let page = pages.page(kind(level), id);
    if level == 0 {
        return decode_page(page).unwrap();
    }
    let (found, children) = decode_node(page).unwrap();
    assert_eq!(found, level);
    let mut all = vec![];
    for child in children {
        let below = read(pages, level - 1, &child.chunk.id);
        assert_eq!((&below[0].path, &below[below.len() - 1].path), (&child.first, &child.last));
        assert_eq!((below.len() as u64, below.iter().map(|e| e.size).sum()), (child.entries, child.bytes));
        all.extend(below);
    }
    all
}

fn some_bytes(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), len)
}

/// A name of a file: any bytes but NUL and `/`.
fn name() -> impl Strategy<Value = Vec<u8>> {
    some_bytes(1..40).prop_map(|n| n.iter().map(|b| if matches!(b, 0 | b'/') { 0xff } else { *b }).collect())
}

fn some_chunk() -> impl Strategy<Value = ChunkRef> {
    (0u64..50, any::<bool>())
        .prop_map(|(n, known)| ChunkRef { hint: chunk(n).hint.filter(|_| known), ..chunk(n) })
}

fn content() -> impl Strategy<Value = Content> {
    let extent = prop_oneof![
        (1u64..1 << 50).prop_map(|len| Extent::Hole { len }),
        (some_chunk(), any::<u32>(), 1u32..).prop_map(|(chunk, skip, len)| Extent::Chunk {
            chunk,
            skip,
            len
        }),
    ];
    prop_oneof![
        Just(Content::Empty),
        prop::collection::vec(extent, 1..20).prop_map(Content::Extents),
        (some_chunk(), 0u8..6, 1u64..1 << 60)
            .prop_map(|(chunk, level, len)| Content::Paged(Box::new(PageRef { chunk, level, len }))),
    ]
}

fn entry_kind() -> impl Strategy<Value = (EntryKind, Content)> {
    let without = |kind| (kind, Content::Empty);
    prop_oneof![
        4 => content().prop_map(|content| (EntryKind::File, content)),
        1 => any::<bool>().prop_map(move |mount| without(EntryKind::Directory { mount })),
        1 => some_bytes(0..300).prop_map(move |target| without(EntryKind::Symlink { target })),
        1 => any::<u64>().prop_map(move |rdev| without(EntryKind::BlockDevice { rdev })),
        1 => any::<u64>().prop_map(move |rdev| without(EntryKind::CharDevice { rdev })),
        1 => Just(without(EntryKind::Fifo)),
        1 => Just(without(EntryKind::Socket)),
    ]
}

prop_compose! {
    fn entry()(
        (kind, content) in entry_kind(),
        mode in 0u32..0o10000,
        (uid, gid, links, flags) in any::<(u32, u32, u32, u32)>(),
        (inode, device, mtime, ctime) in any::<(u64, u64, i64, i64)>(),
        nanos in 0u32..1_000_000_000,
        xattrs in prop::collection::btree_map(some_bytes(1..30), some_bytes(0..100), 0..4),
    ) -> Entry {
        let size = match &content {
            Content::Empty => 0,
            Content::Extents(extents) => extents.iter().map(Extent::len).sum(),
            Content::Paged(root) => root.len,
        };
        let (mtime, ctime) = (Time { seconds: mtime, nanos }, Time { seconds: ctime, nanos: 999_999_999 - nanos });
        let xattrs = xattrs.into_iter().collect();
        let path = vec![];
        Entry { path, kind, mode, uid, gid, mtime, ctime, size, inode, device, links, flags, xattrs, content }
    }
}

/// Entries in order, the paths one to four names deep.
fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let path = prop::collection::vec(name(), 0..4).prop_map(|names| names.join(&b'/'));
    prop::collection::btree_map(path, entry(), 1..40).prop_map(|map| {
        let mut all: Vec<Entry> = map.into_iter().map(|(path, entry)| Entry { path, ..entry }).collect();
        all.sort_by(|a, b| compare(&a.path, &b.path));
        all
    })
}

/// The same entries with other hints.
fn elsewhere(entries: &[Entry]) -> Vec<Entry> {
    let mut entries = entries.to_vec();
    for entry in &mut entries {
        match &mut entry.content {
            Content::Extents(extents) => {
                for extent in extents {
                    if let Extent::Chunk { chunk, .. } = extent {
                        chunk.hint = Some(location(4711));
                    }
                }
            }
            Content::Paged(root) => root.chunk.hint = None,
            Content::Empty => {}
        }
    }
    entries
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in entries()) {
        let mut pages = Pages::new();
        let root = write(&entries, &mut pages);
        let mut found = read(&pages, root.level, &root.chunk.id);
        // A chunk that is named twice in a page has the hint it was first named with.
        let without = |e: &mut Entry| *e = elsewhere(std::slice::from_ref(e)).remove(0);
        let mut expected = entries;
        expected.iter_mut().chain(&mut found).for_each(without);
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn hints_do_not_change_the_root(entries in entries()) {
        let mut pages = Pages::new();
        let one = write(&entries, &mut pages).chunk.id;
        pages.hints = Some(9);
        prop_assert_eq!(write(&elsewhere(&entries), &mut pages).chunk.id, one);
    }

    #[test]
    fn changed_bytes_decode_or_are_refused(
        entries in entries(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
    ) {
        let mut pages = Pages::new();
        let root = write(&entries, &mut pages);
        let mut page = pages.page(kind(root.level), &root.chunk.id).to_vec();
        for (at, to) in changes {
            let at = at.index(page.len());
            page[at] = to;
        }
        if let Ok(found) = decode_page(&page) {
            prop_assert!(found.windows(2).all(|w| compare(&w[0].path, &w[1].path) == Ordering::Less));
        }
        let _ = decode_node(&page);
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in some_bytes(0..300), honest: bool) {
        let content = if honest { [&[1, 1][..], &bytes].concat() } else { bytes };
        let page = join(&content, &[]);
        let _ = (decode_page(&page), decode_node(&page), decode_page(&content), decode_node(&content));
    }
}

/// A tree of `count` files in directories of 100, in order.
fn forest(count: u64) -> Vec<Entry> {
    let mut all = vec![plain(b"", EntryKind::Directory { mount: false })];
    for n in 0..count {
        let directory = format!("directory-{:05}", n / 100);
        if n % 100 == 0 {
            all.push(plain(directory.as_bytes(), EntryKind::Directory { mount: false }));
        }
        all.push(file(format!("{directory}/file-{n:07}.txt").as_bytes(), n));
    }
    all
}

#[test]
fn an_inserted_file_changes_a_page_and_its_parents() {
    let all = forest(40_000);
    let mut before = Pages::new();
    let root = write(&all, &mut before);
    assert_eq!(read(&before, root.level, &root.chunk.id).len(), all.len());
    assert!(root.level >= 1);
    let leaves = before.stored.keys().filter(|(k, _)| *k == ObjectType::Entries).count();
    assert!((30..300).contains(&leaves), "{leaves} pages");
    let (mut changed, rounds) = (0, 30);
    for n in 0..rounds {
        let at = 1 + n * all.len() / rounds;
        let mut path = all[at].path.clone();
        path.extend_from_slice(b"-inserted");
        let mut more = all.clone();
        more.push(file(&path, 1 << 40));
        more.sort_by(|a, b| compare(&a.path, &b.path));
        let mut after = Pages::new();
        write(&more, &mut after);
        let fresh = after.beyond(&before);
        assert!(fresh <= 2 * (usize::from(root.level) + 1) + 1, "{fresh} pages changed");
        changed += fresh;
    }
    // One of each level, but for the rare insertion that ends a page.
    assert!(changed <= rounds * (usize::from(root.level) + 1) * 3 / 2, "{changed} pages in {rounds} rounds");
}

#[test]
fn pages_are_bounded() {
    let mut pages = Pages::new();
    // Every entry brings attributes, and names that share nothing.
    let entries: Vec<Entry> = (0..3000u32)
        .map(|n| Entry {
            xattrs: vec![(b"user.a".to_vec(), vec![1; 1000])],
            ..file(hex::encode(n.to_be_bytes().repeat(20)).as_bytes(), n.into())
        })
        .collect();
    let root = write(&entries, &mut pages);
    assert_eq!(read(&pages, root.level, &root.chunk.id), entries);
    let largest = pages.stored.values().map(Vec::len).max().unwrap();
    assert!(largest < (256 << 10) + (64 << 10), "{largest} bytes");
    assert!(pages.stored.len() > 10);
}

#[test]
fn deep_paths_do_not_make_pages_grow_in_memory() {
    let deep = vec![b"d".repeat(250); 120].join(&b'/');
    let entries: Vec<Entry> =
        (0..500u64).map(|n| file(&[&deep[..], format!("/{n:04}").as_bytes()].concat(), n)).collect();
    let mut pages = Pages::new();
    let root = write(&entries, &mut pages);
    assert_eq!(read(&pages, root.level, &root.chunk.id), entries);
    for ((kind, _), page) in &pages.stored {
        if *kind == ObjectType::Entries {
            let paths: usize = decode_page(page).unwrap().iter().map(|e| e.path.len()).sum();
            assert!(paths <= PATH_BYTES + MAX_PATH);
        }
    }
    // The same as one page, as only a program that means harm makes it.
    let mut out = Writer::default();
    let mut ids = Ids::default();
    let long = [&deep[..], b"/", &deep].concat();
    encode_entry(&mut out, &plain(&long, EntryKind::Fifo), 0, &mut ids);
    for n in 1..200u64 {
        encode_entry(
            &mut out,
            &plain(&[&long[..], &[n as u8]].concat(), EntryKind::Fifo),
            long.len(),
            &mut ids,
        );
    }
    let content = [&[VERSION, 0xc8, 0x01][..], &out.into_vec(), &[0]].concat();
    assert_eq!(decode_page(&join(&content, &[])).unwrap_err(), "paths too long");
}

#[test]
fn disorder_is_an_error() {
    let mut pages = Pages::new();
    let mut writer = EntryWriter::new(&golden_master());
    writer.push(&file(b"b", 1), &mut pages).unwrap();
    assert!(writer.push(&file(b"b", 1), &mut pages).is_err());
    assert!(writer.push(&file(b"a", 1), &mut pages).is_err());
    assert!(EntryWriter::new(&golden_master()).finish(&mut pages).is_err());

    let refuse = |entries: &[Entry]| {
        let (mut out, mut ids) = (Writer::default(), Ids::default());
        entries.iter().for_each(|e| encode_entry(&mut out, e, 0, &mut ids));
        let mut content =
            [&[VERSION, entries.len() as u8][..], &out.into_vec(), &[ids.list.len() as u8]].concat();
        ids.list.iter().for_each(|c| content.extend_from_slice(&c.id.0));
        decode_page(&join(&content, &ids.list)).map(|e| e.len())
    };
    assert_eq!(refuse(&[file(b"a", 1), file(b"b", 2)]), Ok(2));
    assert_eq!(refuse(&[file(b"b", 1), file(b"a", 2)]), Err("entries out of order"));
    assert_eq!(refuse(&[file(b"a", 1), file(b"a", 1)]), Err("entries out of order"));
    assert_eq!(refuse(&[]), Err("entry page without entries"));
    assert_eq!(refuse(&[Entry { size: 4, ..file(b"a", 1) }]), Err("content does not cover the file"));
    assert_eq!(refuse(&[Entry { mode: 0o10000, ..file(b"a", 1) }]), Err("mode"));
    let late = Time { seconds: 0, nanos: 1_000_000_000 };
    assert_eq!(refuse(&[Entry { mtime: late, ..file(b"a", 1) }]), Err("time"));

    let child = |first: &[u8], last: &[u8]| Child {
        first: first.to_vec(),
        last: last.to_vec(),
        entries: 1,
        bytes: 1,
        chunk: ChunkRef { id: Id([1; 32]), hint: None },
    };
    let refuse = |level, children: &[Child]| {
        let refs: Vec<ChunkRef> = children.iter().map(|c| c.chunk).collect();
        decode_node(&join(&encode_node(level, children), &refs)).map(|(_, c)| c.len())
    };
    assert_eq!(refuse(1, &[child(b"a", b"b"), child(b"c", b"c")]), Ok(2));
    assert_eq!(refuse(1, &[child(b"a", b"b"), child(b"b", b"c")]), Err("children out of order"));
    assert_eq!(refuse(1, &[child(b"b", b"a")]), Err("children out of order"));
    assert_eq!(refuse(1, &[]), Err("entry node without children"));
    assert_eq!(refuse(0, &[child(b"a", b"b")]), Err("entry node level"));
    assert_eq!(refuse(MAX_LEVEL + 1, &[child(b"a", b"b")]), Err("entry node level"));
}

#[test]
fn exabytes_of_holes_do_not_overflow() {
    let size = i64::MAX as u64;
    let content = Content::Extents(vec![Extent::Hole { len: size }]);
    let entries: Vec<Entry> = (0..4000u32)
        .map(|n| Entry {
            size,
            content: content.clone(),
            ..plain(format!("{n:09}").as_bytes(), EntryKind::File)
        })
        .collect();
    let root = write(&entries, &mut Pages::new());
    assert_eq!((root.level, root.len), (1, u64::MAX));
}

/// One entry of each kind.
fn one_of_each() -> Vec<Entry> {
    let with_xattrs = |mut entry: Entry| {
        entry.xattrs =
            vec![(b"security.capability".to_vec(), vec![1, 2]), (b"user.x".to_vec(), vec![0xff; 3])];
        entry
    };
    let hole = Extent::Hole { len: 1 << 40 };
    let slice = |n: u64, skip, len| Extent::Chunk {
        chunk: ChunkRef { id: Id([n as u8; 32]), hint: Some(location(n)) },
        skip,
        len,
    };
    let paged = PageRef { chunk: ChunkRef { id: Id([7; 32]), hint: None }, level: 1, len: 1 << 33 };
    let mut all = vec![
        Entry { mode: 0o1777, ..plain(b"", EntryKind::Directory { mount: false }) },
        Entry { mode: 0o4755, flags: 0x10, ..plain(b"a", EntryKind::File) },
        Entry {
            size: (1 << 40) + 300,
            links: 2,
            content: Content::Extents(vec![slice(1, 0, 100), hole, slice(2, 5000, 200)]),
            ..with_xattrs(plain(b"a\xff\xfe", EntryKind::File))
        },
        Entry { size: 1 << 33, content: Content::Paged(Box::new(paged)), ..plain(b"ab", EntryKind::File) },
        plain(b"abc", EntryKind::BlockDevice { rdev: 0x801 }),
        plain(b"abd", EntryKind::CharDevice { rdev: 0x103 }),
        plain(b"dir", EntryKind::Directory { mount: true }),
        plain(b"fifo", EntryKind::Fifo),
        Entry {
            size: 50,
            content: Content::Extents(vec![slice(1, 100, 50)]),
            ..plain(b"file", EntryKind::File)
        },
        plain(b"link", EntryKind::Symlink { target: b"../gone\xff".to_vec() }),
        plain(b"socket", EntryKind::Socket),
    ];
    all.sort_by(|a, b| compare(&a.path, &b.path));
    all
}

#[test]
fn golden_entries() {
    let mut pages = Pages::new();
    let all = one_of_each();
    let root = write(&all, &mut pages);
    assert_eq!(root.level, 0);
    assert_eq!(hex::encode(pages.page(ObjectType::Entries, &root.chunk.id)), golden("page entries"));
    assert_eq!(decode_page(&hex::decode(golden("page entries")).unwrap()).unwrap(), all);
    assert_eq!(hex::encode(root.chunk.id.0), golden("id page entries"));

    let child = |first: &[u8], last: &[u8], n: u64| Child {
        first: first.to_vec(),
        last: last.to_vec(),
        entries: 100 * n,
        bytes: n << 40,
        chunk: ChunkRef { id: Id([n as u8; 32]), hint: Some(location(n)) },
    };
    let children = vec![child(b"", b"dir/a\xff", 1), child(b"dir/b", b"z", 200)];
    let refs: Vec<ChunkRef> = children.iter().map(|c| c.chunk).collect();
    let page = join(&encode_node(1, &children), &refs);
    assert_eq!(hex::encode(&page), golden("page entry node"));
    assert_eq!(decode_node(&page), Ok((1, children)));
}

#[test]
fn golden_path_hash() {
    let key = boundary_key(&golden_master());
    assert_eq!(path_hash(&key, b"usr/share/doc").to_string(), golden("path hash usr/share/doc"));
}
