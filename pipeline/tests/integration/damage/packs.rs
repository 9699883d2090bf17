//! Packs: data and pages.

use std::fs;
use std::path::Path;

use tradewind_pipeline::backup::ParentChoice;
use tradewind_pipeline::manifest::VolumeName;
use tradewind_pipeline::verify::Mode;

use super::harm::{Opened, Original, Taken, contents, cut, delete, flip};

/// Bytes of a pack's header and of its trailer.
const HEADER: usize = 64;
const TRAILER: usize = 16;

/// Parts of a pack: where its table begins, and how long it is.
fn table(pack: &[u8]) -> (usize, usize) {
    let word = |at: usize| u32::from_le_bytes(pack[at..at + 4].try_into().unwrap()) as usize;
    (pack.len() - TRAILER - word(pack.len() - TRAILER), pack.len())
}

/// Each pack that the second snapshots brought: data and pages of the image, data and pages of the tree.
fn each(original: &Original, mut with: impl FnMut(&Taken, usize, &str)) {
    for (n, taken) in original.taken.iter().enumerate().skip(2) {
        for class in [1, 2] {
            with(taken, n, taken.packs(&original.bed, class)[0]);
        }
    }
}

/// The damages name the pack, the snapshot that needs it, and a path or range of bytes.
fn named(opened: &Opened<'_>, taken: &Taken, mode: Mode) {
    let report = opened.verify(mode);
    let mine: Vec<_> = report.damages.iter().filter(|d| d.snapshot == Some(taken.manifest.id)).collect();
    assert!(mine.iter().any(|d| d.object == opened.key && d.len > 0), "{}: {:?}", opened.key, report.damages);
    // Nothing else is accused, and no other snapshot.
    for damage in &report.damages {
        assert_eq!(damage.object, opened.key, "{damage:?}");
        assert!(damage.snapshot.is_none_or(|id| id == taken.manifest.id), "{damage:?}");
    }
}

/// Which snapshots lost something when only the one numbered `n` may have.
fn only(n: usize) -> [bool; 4] {
    std::array::from_fn(|i| i == n)
}

#[test]
fn a_flipped_bit_in_a_frame_takes_what_is_in_the_frame() {
    let original = Original::new();
    each(&original, |taken, n, key| {
        let pack = fs::read(original.bed.path("repo").join(key)).unwrap();
        let (end, _) = table(&pack);
        for at in [HEADER, HEADER + 20, (HEADER + end) / 2, end - 1] {
            let opened = original.harmed(key, |path| flip(path, at)).open();
            named(&opened, taken, Mode::ReadData);
            assert_eq!(opened.restores(), only(n), "byte {at} of {key}");
        }
    });
}

#[test]
fn a_flipped_bit_beside_the_frames_takes_nothing() {
    let original = Original::new();
    each(&original, |_, _, key| {
        let pack = fs::read(original.bed.path("repo").join(key)).unwrap();
        let (table, end) = table(&pack);
        for at in [0, 9, 20, 45, 50, table, table + 30, end - 16, end - 10, end - 1] {
            let opened = original.harmed(key, |path| flip(path, at)).open();
            let damages = opened.only_damage();
            assert_eq!((damages.len(), damages[0].snapshot), (1, None), "byte {at}: {damages:?}");
            if [20, end - 1].contains(&at) {
                opened.all_restore();
                assert_eq!(opened.backs_up(), [""; 0]);
            }
        }
    });
}

#[test]
fn a_pack_that_is_cut_or_gone_takes_what_was_behind() {
    let original = Original::new();
    each(&original, |taken, n, key| {
        let size = fs::metadata(original.bed.path("repo").join(key)).unwrap().len();
        let harms: [&dyn Fn(&Path); 5] =
            [&|p| cut(p, 0), &|p| cut(p, 40), &|p| cut(p, 70), &|p| cut(p, size / 2), &|p| delete(p)];
        for harm in harms {
            for mode in [Mode::Structure, Mode::ReadData] {
                named(&original.harmed(key, harm).open(), taken, mode);
            }
            assert_eq!(original.harmed(key, harm).open().restores(), only(n), "{key}");
        }
        // The table is not whole, the frames are.
        let opened = original.harmed(key, |p| cut(p, size - 1)).open();
        assert_eq!(opened.only_damage().len(), 1);
        opened.all_restore();
    });
}

#[test]
fn a_lost_page_says_what_it_listed_and_a_lost_chunk_where_it_belongs() {
    let original = Original::new();
    let (image, tree) = (&original.taken[2], &original.taken[3]);
    // 300,000 lies in the second chunk of 256 KiB, the only one that the second snapshot stored.
    let key = image.packs(&original.bed, 1)[0];
    let opened = original.harmed(key, |p| flip(p, HEADER)).open();
    let damages = opened.only_damage();
    let range = damages.iter().map(|d| (d.path.clone(), d.offset, d.len)).collect::<Vec<_>>();
    assert_eq!(range, [(None, 256 << 10, 256 << 10)]);
    // The page of the image is all of it.
    let key = image.packs(&original.bed, 2)[0];
    let damages = original.harmed(key, delete).open().only_damage();
    assert_eq!((damages[0].offset, damages[0].len), (0, image.manifest.size));
    // A file that was changed, by path; one that was not is in no pack of this snapshot.
    let paths_in = |key: &&str| -> Vec<Vec<u8>> {
        original.harmed(key, delete).open().only_damage().into_iter().filter_map(|d| d.path).collect()
    };
    let paths = tree.packs(&original.bed, 1).iter().flat_map(paths_in).collect::<Vec<_>>();
    assert!(paths.contains(&b"folder-1/file-5".to_vec()), "{paths:?}");
    assert!(!paths.contains(&b"large".to_vec()), "{paths:?}");
}

#[test]
fn a_backup_goes_on_without_a_parent_that_cannot_be_read_and_heals_its_pages() {
    let original = Original::new();
    for (n, volume) in [(2, "image"), (3, "tree")] {
        let key = original.taken[n].packs(&original.bed, 2)[0];
        let opened = original.harmed(key, delete).open();
        let report = opened.bed.volume(volume, &original.bed.path(volume)).unwrap();
        assert!(report.warnings.iter().any(|w| w.contains(key)), "{volume}: {:?}", report.warnings);
        let target = opened.bed.path("healed");
        opened.bed.restore(&report.manifest.unwrap(), &target);
        assert_eq!(contents(&original.bed.path(volume)), contents(&target), "{volume}");
    }
}

#[test]
fn a_backup_stores_again_what_was_in_packs_that_are_gone() {
    let original = Original::new();
    for n in [0, 1, 2, 3] {
        let volume = ["image", "tree"][n % 2];
        for key in original.taken[n].packs(&original.bed, 1) {
            let opened = original.harmed(key, delete).open();
            let report = opened.bed.volume(volume, &original.bed.path(volume)).unwrap();
            assert!(report.warnings.iter().any(|w| w.contains(key)), "{volume}: {:?}", report.warnings);
            let target = opened.bed.path("healed");
            opened.bed.restore(&report.manifest.unwrap(), &target);
            assert_eq!(contents(&original.bed.path(volume)), contents(&target), "{volume}");
        }
    }
}

/// Removes the packs `lost` together with the whole index, which named them.
fn without_index<'a>(original: &'a Original, lost: &[&str]) -> Opened<'a> {
    original
        .harmed("index", |index| {
            fs::remove_dir_all(index).unwrap();
            lost.iter().for_each(|key| delete(&index.parent().unwrap().join(key)));
        })
        .open()
}

/// Backs up `volume`, and what was backed up restores. Returns the warnings.
fn backs_up(opened: &Opened<'_>, volume: &str) -> Vec<String> {
    let report = opened.bed.volume(volume, &opened.original.bed.path(volume)).unwrap();
    let target = opened.bed.path(&format!("back-{}", report.manifest.as_ref().unwrap().id));
    opened.bed.restore(&report.manifest.unwrap(), &target);
    assert_eq!(contents(&opened.original.bed.path(volume)), contents(&target), "{volume}");
    report.warnings
}

/// A file of so many pieces that pages list them, in a tree of its own.
fn in_pieces(original: &Original) {
    use std::os::unix::fs::FileExt;
    let tree = original.bed.path("tree");
    let file = fs::File::create(tree.join("pieces")).unwrap();
    for n in 0..100u8 {
        file.write_all_at(&crate::bed::noise(4096, u64::from(n) + 1000), u64::from(n) << 16).unwrap();
    }
}

#[test]
fn packs_that_are_lost_together_with_the_index_are_missed_all_the_same() {
    let original = Original::new();
    in_pieces(&original);
    // Twice: what was written just before a backup is read again by the next.
    for _ in 0..2 {
        std::thread::sleep(std::time::Duration::from_millis(2_100));
        original.bed.volume("tree", &original.bed.path("tree")).unwrap();
    }
    let tree = original.bed.path("tree");
    let unchanged = original.bed.volume("tree", &tree).unwrap().manifest.unwrap().statistics.files_unchanged;
    assert!(unchanged > 30, "{unchanged}");
    let keys = original.keys();
    let is_data = |key: &&str| {
        key.starts_with("packs/") && fs::read(original.bed.path("repo").join(key)).unwrap()[10] == 1
    };
    let data: Vec<&str> = keys.iter().map(String::as_str).filter(is_data).collect();
    assert!(data.len() > 3, "{data:?}");
    for (n, key) in data.iter().enumerate() {
        let opened = without_index(&original, &[key]);
        // Who comes first rebuilds the index; the other one has a parent that is older than that.
        for volume in [["tree", "image"], ["image", "tree"]][n % 2] {
            backs_up(&opened, volume);
        }
    }
    let opened = without_index(&original, &data);
    for volume in ["image", "tree"] {
        let warnings = backs_up(&opened, volume);
        let told = |w: &String| w.contains("parent snapshot names") && data.iter().any(|key| w.contains(key));
        assert!(warnings.iter().any(told), "{volume}: {warnings:?}");
    }
    // From now on nothing is amiss.
    for volume in ["image", "tree"] {
        assert_eq!(backs_up(&opened, volume), [""; 0], "{volume}");
    }
    let is_older = |id: &str| keys.iter().any(|k| k.starts_with("snapshots/") && k.ends_with(id));
    for damage in opened.verify(Mode::ReadData).damages {
        assert!(damage.snapshot.is_some_and(|id| is_older(&id.to_string())), "{damage:?}");
    }
}

#[test]
fn a_pack_that_was_cut_is_not_referred_to_again() {
    let original = Original::new();
    for n in [0, 1] {
        let volume = ["image", "tree"][n];
        // Of all packs together: one may hold nothing but what has changed since.
        let mut stored = 0;
        for key in original.taken[n].packs(&original.bed, 1) {
            let size = fs::metadata(original.bed.path("repo").join(key)).unwrap().len();
            for parent in [ParentChoice::Auto, ParentChoice::None] {
                let opened = original.harmed(key, |p| cut(p, size - 1)).open();
                let mut options = opened.bed.options(&original.bed.path(volume));
                (options.volume, options.parent) = (Some(VolumeName::new(volume).unwrap()), parent);
                let report = opened.bed.backup_with(&options).unwrap();
                let told = |w: &String| w.contains(key) && w.contains("another size");
                assert!(report.warnings.iter().any(told), "{volume}: {:?}", report.warnings);
                stored += report.statistics.new;
                // Sound without the pack that was cut.
                delete(&opened.bed.path("repo").join(key));
                let target = opened.bed.path("healed");
                opened.bed.restore(&report.manifest.unwrap(), &target);
                assert_eq!(contents(&original.bed.path(volume)), contents(&target), "{volume}");
            }
        }
        assert!(stored > 0, "{volume}: nothing was stored again");
    }
}
