//! Makes the next golden repository. Released ones are never made again: that would test a version with itself.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat, setxattr};
use tradewind_pipeline::gc::{self, Phase};
use tradewind_pipeline::manifest::{self, VolumeName};
use tradewind_pipeline::pack::{PackName, SessionId};
use tradewind_pipeline::repository::{CdcSizes, InitOptions, Parameters, Repository};
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::seal::object::ObjectClass;
use tradewind_pipeline::session::{Checkpoint, Outcome, Session};
use tradewind_pipeline::store::OpenUpload;
use tradewind_pipeline::store::local::LocalStore;

use super::listing::list;
use super::{Expected, Snapshot, repositories};
use crate::bed::{Bed, engines, noise};

/// When the format changes: run as root with
/// `cargo test --workspace --test integration -- --ignored golden::make`, rename `tests/data/repositories/next` to the
/// version's name, and write its `README.md`.
#[test]
#[ignore = "makes the repository of a new version of the format, see its documentation"]
fn next() {
    assert!(rustix::process::geteuid().is_root(), "only root makes everything that a tree can have");
    let folder = repositories().join("next");
    fs::create_dir_all(repositories()).unwrap();
    fs::create_dir(&folder).unwrap();
    let passphrase = b"a passphrase that is no secret\n";
    fs::write(folder.join("passphrase"), passphrase).unwrap();
    fs::write(folder.join("key-file"), noise(64, 64)).unwrap();
    let bed = init(&folder, &Secret::passphrase_from_file(passphrase.to_vec()), noise(64, 64));

    let (image, tree) = (bed.path("image"), bed.path("tree"));
    plant_image(&image);
    plant_tree(&tree);
    let mut expected = Expected { snapshots: vec![], forgotten: vec![], tombstones: vec![] };
    for (volume, source) in [("image", &image), ("tree", &tree)] {
        expected.snapshots.push(backup(&bed, volume, source));
    }
    let gone = bed.path("gone");
    fs::write(&gone, b"a snapshot that is forgotten").unwrap();
    let forgotten = backup(&bed, "gone", &gone).id;
    forget(&bed, &forgotten);
    expected.forgotten.push(forgotten);
    interrupt(&bed);
    expected.tombstones.push(fence(&bed));
    condemn(&bed);
    change_image(&image);
    change_tree(&tree);
    for (volume, source) in [("image", &image), ("tree", &tree)] {
        expected.snapshots.push(backup(&bed, volume, source));
    }
    assert_eq!(bed.runtime.block_on(bed.repository.list_keys()).unwrap().0.len(), 2);
    write_down(&folder, &expected);
}

/// Small chunks, so that small files have several.
fn init(folder: &Path, passphrase: &Secret, key_file: Vec<u8>) -> Bed {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Arc::new(LocalStore::new(folder.join("repository")).unwrap());
    let cdc = CdcSizes { min: 4 << 10, average: 16 << 10, max: 64 << 10 };
    let options = InitOptions {
        parameters: Parameters { block_chunk: 16 << 10, cdc, ..Parameters::default() },
        label: "golden passphrase".into(),
        ..InitOptions::default()
    };
    let repository = runtime.block_on(Repository::init(store, passphrase, options)).unwrap();
    let key_file = Secret::key_file(key_file).unwrap();
    runtime.block_on(repository.add_key(&key_file, "golden key file")).unwrap();
    Bed { dir: tempfile::tempdir().unwrap(), runtime, repository: Arc::new(repository), engine: engines()[0] }
}

fn backup(bed: &Bed, volume: &str, source: &Path) -> Snapshot {
    let mut options = bed.options(source);
    options.volume = Some(VolumeName::new(volume).unwrap());
    options.tags = [("golden".to_owned(), volume.to_owned())].into();
    let report = bed.backup_with(&options).unwrap();
    assert_eq!((report.skipped, report.warnings), (0, vec![]));
    let manifest = report.manifest.unwrap();
    let root = manifest.root.unwrap();
    assert!(root.level > 0 || volume == "gone", "{volume} has pages of one level only");
    // Listed after the backup: looking at a file may be noted in it, changing it not.
    let items = list(source);
    Snapshot {
        id: manifest.id.to_string(),
        volume: volume.into(),
        parent: manifest.parent.map(|id| id.to_string()),
        items,
    }
}

/// Bytes that compress to about a quarter, the same for the same seed.
fn letters(len: usize, seed: u64) -> Vec<u8> {
    noise(len, seed).into_iter().map(|b| b"acgt"[usize::from(b % 4)]).collect()
}

/// 40 MiB and 512 bytes: data that compresses, data that does not, a repeated chunk, zeros, and holes, one of them a
/// whole page wide.
fn plant_image(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len((40 << 20) + 512).unwrap();
    file.write_all_at(&noise(20_000, 1), 0).unwrap();
    file.write_all_at(&letters(30_000, 2), 1 << 20).unwrap();
    file.write_all_at(&letters(16 << 10, 3), 2 << 20).unwrap();
    file.write_all_at(&letters(16 << 10, 3), 3 << 20).unwrap();
    file.write_all_at(&[0; 64 << 10], 4 << 20).unwrap();
    file.write_all_at(b"beyond a page of holes", (38 << 20) + 5000).unwrap();
    file.write_all_at(b"the end", (40 << 20) + 505).unwrap();
}

fn change_image(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"changed in place", 10_000).unwrap();
    file.write_all_at(&[0; 16 << 10], 2 << 20).unwrap();
    file.write_all_at(b"where a page of holes was", 20 << 20).unwrap();
}

fn plant_tree(root: &Path) {
    let make = |name: &[u8]| root.join(std::ffi::OsStr::from_bytes(name));
    fs::create_dir_all(root.join("small/deep/er")).unwrap();
    fs::create_dir(root.join("empty directory")).unwrap();
    fs::write(root.join("empty file"), b"").unwrap();
    for n in 0..40u64 {
        let len = usize::try_from(n * n * 3).unwrap();
        fs::write(root.join(format!("small/file-{n:02}")), letters(len, n)).unwrap();
    }
    fs::write(root.join("small/deep/er/one"), b"deep").unwrap();
    // Names that are not text, or that a careless program takes for something else.
    for name in [
        &b"not utf-8 \xff\xfe"[..],
        b"line\nfeed",
        b" leading blank",
        b"-rf",
        b"back\\slash",
        b"\x01",
        b"\xf0\x9f\x9a\xa2",
    ] {
        fs::write(make(name), name).unwrap();
    }
    // Several content-defined chunks, some compressed and some not.
    fs::write(root.join("large"), [letters(170_000, 100), noise(20_000, 101)].concat()).unwrap();
    fs::hard_link(root.join("large"), root.join("small/large again")).unwrap();
    // More extents than an entry holds: they have a page of their own.
    let scattered = File::create(root.join("scattered")).unwrap();
    for n in 0..40u64 {
        scattered.write_all_at(&n.to_le_bytes().repeat(512), n << 16).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 50_000).unwrap();
    sparse.set_len(3 << 20).unwrap();
    symlink("large", root.join("link")).unwrap();
    symlink(std::ffi::OsStr::from_bytes(b"../gone \xff"), root.join("dangling link")).unwrap();
    // Entries of 4 KB that compress well: enough for two pages and a node.
    for n in 0..80 {
        symlink(format!("{n:02}/").repeat(1333), root.join(format!("small/link-{n:02}"))).unwrap();
    }
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o620), 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
    let null = makedev(1, 3);
    mknodat(CWD, root.join("character device"), FileType::CharacterDevice, Mode::from_raw_mode(0o600), null)
        .unwrap();
    mknodat(
        CWD,
        root.join("block device"),
        FileType::BlockDevice,
        Mode::from_raw_mode(0o600),
        makedev(259, 70_000),
    )
    .unwrap();
    let xattr = |path: &Path, name: &str, value: &[u8]| {
        setxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    xattr(&root.join("large"), "user.origin", b"golden");
    xattr(&root.join("large"), "user.bytes", &[0, 1, 0xff]);
    xattr(&root.join("empty directory"), "user.empty", b"");
    std::os::unix::fs::chown(root.join("small/file-07"), Some(1000), Some(100)).unwrap();
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("small/file-08", 0o4750);
    mode("small/deep", 0o1777);
    let old = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::new(86_400, 250_000_000);
    File::open(root.join("small/file-09")).unwrap().set_modified(old).unwrap();
}

fn change_tree(root: &Path) {
    fs::write(root.join("small/file-20"), b"changed").unwrap();
    fs::remove_file(root.join("small/file-21")).unwrap();
    fs::rename(root.join("-rf"), root.join("renamed")).unwrap();
    fs::write(root.join("added"), letters(700, 200)).unwrap();
    // An insertion: the chunks behind it are known.
    let large = fs::read(root.join("large")).unwrap();
    fs::write(root.join("large"), [&large[..60_000], b"inserted", &large[60_000..]].concat()).unwrap();
}

fn volume(name: &str) -> VolumeName {
    VolumeName::new(name).unwrap()
}

/// A session that stopped after a checkpoint; the next backup of `tree` supersedes it.
fn interrupt(bed: &Bed) {
    bed.runtime.block_on(async {
        let session = Session::open(&bed.repository, &volume("tree")).await.unwrap();
        let uploads = vec![OpenUpload { key: "packs/none".into(), upload: "nothing".into() }];
        let position = serde_json::json!({"somewhere": 1});
        let checkpoint = Checkpoint { uploads, position, done: 4711, ..Checkpoint::default() };
        session.checkpoint(&checkpoint).await.unwrap();
        session.end(Outcome::Failed).await.unwrap();
    });
}

/// A session that showed once that it lives, and was fenced.
fn fence(bed: &Bed) -> String {
    bed.runtime.block_on(async {
        let repository = &bed.repository;
        let session = Session::open(repository, &volume("image")).await.unwrap();
        let at = session.manifest_key();
        // By hand, because a session writes one after ten minutes.
        let key = format!("sessions/{}/{}/00000001-renew", at.volume, at.id);
        repository.put(ObjectClass::Session, &key, br#"{"what":"renew"}"#).await.unwrap();
        manifest::fence(repository, at, "golden").await.unwrap();
        at.id.to_string()
    })
}

/// Generation 1 condemned packs 1 and 2 and deleted 1, generation 2 condemns 3 and 4. None of them exists.
fn condemn(bed: &Bed) {
    let pack = |n: u8| PackName { id: [n; 16], session: SessionId([n; 12]) };
    bed.runtime.block_on(async {
        for (generation, phase, packs) in [
            (1, Phase::Condemned, vec![pack(1), pack(2)]),
            (1, Phase::Deleted, vec![pack(1)]),
            (2, Phase::Condemned, vec![pack(3), pack(4)]),
        ] {
            gc::write_list(&bed.repository, generation, phase, packs).await.unwrap();
        }
    });
}

fn forget(bed: &Bed, id: &str) {
    let name = bed.repository.volume_key(&volume("gone"));
    let at = manifest::SnapshotKey { volume: name, id: id.parse().unwrap() };
    assert!(bed.runtime.block_on(manifest::forget(&bed.repository, at, "golden")).unwrap());
}

/// One item a line.
fn write_down(folder: &Path, expected: &Expected) {
    let line = |item| serde_json::to_string(item).unwrap();
    let snapshots: Vec<String> = expected
        .snapshots
        .iter()
        .map(|s| {
            let items: Vec<String> = s.items.iter().map(line).collect();
            let head = serde_json::json!({"id": s.id, "volume": s.volume, "parent": s.parent}).to_string();
            format!("{},\"items\":[\n{}\n]}}", head.trim_end_matches('}'), items.join(",\n"))
        })
        .collect();
    let others = serde_json::json!({"forgotten": expected.forgotten, "tombstones": expected.tombstones});
    let text = format!(
        "{},\n\"snapshots\":[\n{}\n]}}\n",
        others.to_string().trim_end_matches('}'),
        snapshots.join(",\n")
    );
    serde_json::from_str::<Expected>(&text).unwrap();
    fs::write(folder.join("expected.json"), text).unwrap();
}
