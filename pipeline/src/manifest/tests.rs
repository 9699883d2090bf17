use std::sync::Arc;

use super::catalog::{self, Filter, Listed, What};
use super::*;
use crate::entry::{ChunkRef, PageRef};
use crate::error::Kind;
use crate::hash::Id;
use crate::pack::{Location, PackName};
use crate::repository::test_store::{TestStore, volume};
use crate::seal::Codec;
use crate::session::{Committed, Session};

async fn commit(repository: &Arc<Repository>, name: &str, tags: &[(&str, &str)]) -> Box<Manifest> {
    let session = Session::open(repository, &volume(name)).await.unwrap();
    let mut manifest = Box::new(Manifest::new(volume(name), VolumeKind::Tree, None, 0));
    manifest.tags = tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    match session.commit(manifest).await.unwrap() {
        Committed::Done(manifest) => manifest,
        other @ Committed::Overtaken(_) => panic!("{other:?}"),
    }
}

fn at(repository: &Repository, manifest: &Manifest) -> SnapshotKey {
    SnapshotKey { volume: repository.volume_key(&manifest.volume), id: manifest.id }
}

fn of(name: &str) -> Filter {
    Filter { volume: Some(volume(name)), ..Filter::default() }
}

fn ids(listed: &[Listed]) -> Vec<SessionId> {
    let sound = listed.iter().filter(|l| matches!(l.what, What::Snapshot(_)));
    sound.filter_map(|l| l.at.map(|at| at.id)).collect()
}

#[test]
fn a_manifest_survives_json_with_names_that_are_no_text_and_fields_of_later_versions() {
    let pack = PackName { id: [0xAB; 16], session: SessionId([0xCD; 12]) };
    let hint = Location { pack, slot: 5, offset: 64, stored: 100, length: 4096, codec: Codec::Zstd };
    let chunk = ChunkRef { id: Id([0xEF; 32]), hint: Some(hint) };
    let root = PageRef { chunk, level: 2, len: 1 << 40 };
    let name = VolumeName::new(b"host:/\xFF\xFE".to_vec()).unwrap();
    let mut manifest = Manifest::new(name, VolumeKind::Block, Some(root), 1 << 40);
    manifest.source.path = Text(b"/dev/\xFF".to_vec());
    manifest.skipped_items = vec![SkippedItem { path: Text(vec![0xFF]), reason: "gone".into() }];
    manifest.excludes = vec![Text::from("*.tmp")];
    let record = Record::Snapshot(Box::new(manifest));
    let json = String::from_utf8(record.encode().unwrap()).unwrap();
    assert!(json.contains(r#"{"hex":"686f73743a2ffffe"}"#), "{json}");
    assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
    let later = json.replacen('{', r#"{"invented_later":[1,{"x":2}],"#, 1);
    assert_eq!(serde_json::from_str::<Record>(&later).unwrap(), record);
    let unknown = json.replace(r#""codec":1"#, r#""codec":9"#);
    assert!(serde_json::from_str::<Record>(&unknown).is_err());
}

#[test]
fn keys_are_parsed_in_one_spelling_only() {
    let key = SnapshotKey { volume: VolumeKey([0xAB; 16]), id: SessionId([0xCD; 12]) };
    assert_eq!(SnapshotKey::parse(&key.key()), Some((key, false)));
    assert_eq!(SnapshotKey::parse(&key.forgotten_key()), Some((key, true)));
    for other in [key.key().to_uppercase(), key.key() + "x", key.key() + ".forgotten.forgotten"] {
        assert_eq!(SnapshotKey::parse(&other), None, "{other}");
    }
    assert_eq!(SnapshotKey::parse(&key.key().replace("ab", "AB")), None);
}

#[test]
fn a_text_is_shown_without_control_characters() {
    assert_eq!(Text(b"a\n\x1b[2J\xFFz".to_vec()).to_string(), "a\\n\\u{1b}[2J\u{FFFD}z");
    assert!(VolumeName::new("").is_err() && VolumeName::new(vec![b'x'; MAX_VOLUME_NAME + 1]).is_err());
    let default = VolumeName::of_path("host", Path::new("/srv/data")).unwrap();
    assert_eq!(default.to_string(), "host:/srv/data");
}

#[tokio::test]
async fn snapshots_are_listed_by_volume_and_tag_and_found_by_id() {
    let (store, repository) = TestStore::repository().await;
    let mut made = Vec::new();
    for i in 0..5 {
        made.push(commit(&repository, "a", &[("n", if i % 2 == 0 { "even" } else { "odd" })]).await.id);
        commit(&repository, "b", &[]).await;
        store.advance(std::time::Duration::from_secs(1));
    }
    assert_eq!(ids(&catalog::list(&repository, &of("a")).await.unwrap()), made);
    let all = catalog::list(&repository, &Filter::default()).await.unwrap();
    assert_eq!(all.len(), 10);
    assert!(ids(&all).is_sorted());
    let odd = Filter { tags: [("n".to_owned(), "odd".to_owned())].into(), ..of("a") };
    assert_eq!(ids(&catalog::list(&repository, &odd).await.unwrap()), [made[1], made[3]]);
    assert_eq!(catalog::find(&repository, &odd, "latest").await.unwrap().id, made[3]);
    assert_eq!(catalog::find(&repository, &of("a"), "latest").await.unwrap().id, made[4]);

    let id = made[2].to_string();
    for text in [id.clone(), id.to_uppercase(), id[..20].to_owned(), made[2].short()] {
        assert_eq!(
            catalog::find(&repository, &Filter::default(), &text).await.unwrap().id,
            made[2],
            "{text}"
        );
    }
    let error = catalog::find(&repository, &of("a"), &id[..6]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(made.iter().all(|id| error.to_string().contains(&id.to_string())), "{error}");
    for text in ["", "nonsense", "000000000000000000000000", "0123456789abcdef0123456789"] {
        let error = catalog::find(&repository, &Filter::default(), text).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
    }
    let none = catalog::find(&repository, &of("c"), "latest").await.unwrap_err();
    assert_eq!(none.to_string(), "there is no snapshot of volume c");
}

#[tokio::test]
async fn latest_looks_further_back_than_one_window() {
    let (store, repository) = TestStore::repository().await;
    let tagged = commit(&repository, "a", &[("keep", "yes")]).await;
    for _ in 0..300 {
        store.advance(std::time::Duration::from_millis(5));
        commit(&repository, "a", &[]).await;
    }
    let filter = Filter { tags: tagged.tags.clone(), ..Filter::default() };
    let latest = catalog::latest(&repository, &filter).await.unwrap();
    assert_eq!(latest.snapshot, Some(tagged));
}

#[tokio::test]
async fn damaged_manifests_are_entries_and_hide_nothing() {
    let (store, repository) = TestStore::repository().await;
    let first = commit(&repository, "a", &[]).await;
    let second = commit(&repository, "a", &[]).await;
    let key = at(&repository, &second).key();
    let sound = store.get(&key);
    for bit in 0..sound.len() * 8 {
        store.flip(&key, bit);
        let listed = catalog::list(&repository, &of("a")).await.unwrap();
        assert_eq!(ids(&listed), [first.id]);
        assert!(listed.iter().any(|l| l.key == key && matches!(l.what, What::Damaged(_))), "bit {bit}");
        store.put(&key, sound.clone());
    }
    store.flip(&key, 400);
    let latest = catalog::latest(&repository, &of("a")).await.unwrap();
    assert_eq!((latest.snapshot.map(|m| m.id), latest.damaged.len()), (Some(first.id), 1));
    let error = catalog::find(&repository, &of("a"), "latest").await.unwrap_err();
    assert!(error.kind() == Kind::Damage && error.to_string().contains(&key), "{error}");
    let error = catalog::find(&repository, &of("a"), &second.id.to_string()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Damage);
    // Where it does not belong it does not open.
    store.put(&at(&repository, &first).key(), sound);
    assert_eq!(ids(&catalog::list(&repository, &of("a")).await.unwrap()), []);
    store.put("snapshots/stray", vec![1]);
    assert_eq!(catalog::list(&repository, &Filter::default()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_vanished_snapshot_is_noticed_and_a_forgotten_one_excused() {
    let (store, repository) = TestStore::repository().await;
    let mut made = Vec::new();
    for _ in 0..12 {
        made.push(commit(&repository, "a", &[]).await);
        commit(&repository, "b", &[]).await;
    }
    assert_eq!(made[0].predecessors, []);
    let recent: Vec<SessionId> = made[3..11].iter().rev().map(|m| m.id).collect();
    assert_eq!(made[11].predecessors, recent);
    let chain = catalog::check_chain(&repository, None).await.unwrap();
    assert_eq!((chain.snapshots, chain.missing.len(), chain.damaged.len()), (24, 0, 0));

    // Two in a row.
    store.remove(&at(&repository, &made[4]).key());
    store.remove(&at(&repository, &made[5]).key());
    for scope in [None, Some(&volume("a"))] {
        let chain = catalog::check_chain(&repository, scope).await.unwrap();
        let missing: Vec<_> = chain.missing.iter().map(|m| (m.missing.id, m.named_by)).collect();
        assert_eq!(missing, [(made[4].id, made[6].id), (made[5].id, made[6].id)]);
        assert_eq!(chain.missing[0].volume, volume("a"));
    }
    assert!(catalog::check_chain(&repository, Some(&volume("b"))).await.unwrap().missing.is_empty());

    let gone = at(&repository, &made[7]);
    assert!(forget(&repository, gone, "by hand").await.unwrap());
    assert!(!forget(&repository, gone, "again").await.unwrap());
    assert!(!ids(&catalog::list(&repository, &of("a")).await.unwrap()).contains(&made[7].id));
    assert_eq!(
        catalog::find(&repository, &of("a"), &made[7].id.to_string()).await.unwrap_err().kind(),
        Kind::Usage
    );
    // Also after garbage collection has taken the manifest and left the mark.
    store.remove(&gone.key());
    assert_eq!(catalog::check_chain(&repository, None).await.unwrap().missing.len(), 2);
    assert_eq!(forget(&repository, gone, "").await.unwrap_err().kind(), Kind::Usage);
}

#[tokio::test]
async fn a_mark_that_is_not_ours_hides_nothing() {
    let (store, repository) = TestStore::repository().await;
    let (first, second) = (commit(&repository, "a", &[]).await, commit(&repository, "a", &[]).await);
    let (one, two) = (at(&repository, &first), at(&repository, &second));
    forget(&repository, one, "").await.unwrap();
    store.put(&two.forgotten_key(), store.get(&one.forgotten_key()));
    let listed = catalog::list(&repository, &of("a")).await.unwrap();
    assert_eq!(ids(&listed), [second.id]);
    assert!(listed.iter().any(|l| l.key == two.forgotten_key() && matches!(l.what, What::Damaged(_))));
    assert_eq!(catalog::find(&repository, &of("a"), &second.id.to_string()).await.unwrap().id, second.id);
    // Removing the mark brings a snapshot back.
    store.remove(&one.forgotten_key());
    assert_eq!(ids(&catalog::list(&repository, &of("a")).await.unwrap()), [first.id, second.id]);
}

#[tokio::test]
async fn of_a_commit_and_a_fence_exactly_one_wins() {
    let (_, repository) = TestStore::repository().await;
    let done = commit(&repository, "a", &[]).await;
    let fenced = fence(&repository, at(&repository, &done), "too late").await.unwrap();
    assert_eq!(fenced, Commit::Snapshot(done.clone()));

    let session = Session::open(&repository, &volume("a")).await.unwrap();
    let Commit::Tombstone(stone) = fence(&repository, session.manifest_key(), "expired").await.unwrap()
    else {
        panic!("committed");
    };
    assert_eq!((stone.session, stone.reason.as_str()), (session.id(), "expired"));
    let again = fence(&repository, session.manifest_key(), "another").await.unwrap();
    assert_eq!(again, Commit::Tombstone(stone), "the first one stands");
    let manifest = Box::new(Manifest::new(volume("a"), VolumeKind::Tree, None, 0));
    let error = session.commit(manifest).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.to_string().contains("fenced (expired)"), "{error}");
    // A tombstone is neither listed nor in the way of later snapshots, nor missed by them.
    assert_eq!(ids(&catalog::list(&repository, &of("a")).await.unwrap()), [done.id]);
    let next = commit(&repository, "a", &[]).await;
    assert_eq!(next.predecessors.len(), 2);
    assert!(catalog::check_chain(&repository, None).await.unwrap().missing.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_and_a_fence_race_on_a_real_store() {
    use crate::repository::test_store::key_file;
    use crate::repository::{InitOptions, Repository};
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(crate::store::local::LocalStore::new(dir.path()).unwrap());
    Repository::init(store.clone(), &key_file(1), InitOptions::default()).await.unwrap();
    let repository = Arc::new(Repository::open(store, &key_file(1)).await.unwrap().0);
    let mut committed = 0;
    for _ in 0..40 {
        let session = Arc::new(Session::open(&repository, &volume("a")).await.unwrap());
        let at = session.manifest_key();
        let (writer, collector) = (session.clone(), repository.clone());
        let writer = tokio::spawn(async move {
            writer.commit(Box::new(Manifest::new(volume("a"), VolumeKind::Tree, None, 0))).await
        });
        let collector = tokio::spawn(async move {
            // A commit lists and asks for the time first: give it a head start of about that much.
            tokio::time::sleep(std::time::Duration::from_micros(u64::from(at.id.0[11]) * 8)).await;
            fence(&collector, at, "race").await
        });
        let (commit, fence) = (writer.await.unwrap(), collector.await.unwrap().unwrap());
        let stands = read(&repository, at).await.unwrap().unwrap();
        assert_eq!(fence, stands);
        match (commit, stands) {
            (Ok(Committed::Done(m)), Commit::Snapshot(s)) => {
                assert_eq!(m, s);
                committed += 1;
            }
            (Err(e), Commit::Tombstone(_)) => assert_eq!(e.kind(), Kind::Conflict),
            other => panic!("{other:?}"),
        }
    }
    let listed = catalog::list(&repository, &Filter::default()).await.unwrap();
    assert_eq!(ids(&listed).len(), committed);
}

#[tokio::test]
async fn chunk_sizes_that_no_buffer_can_be_made_for_are_damage() {
    let (_, repository) = TestStore::repository().await;
    let fine = CdcSizes { min: 128 << 10, average: 512 << 10, max: 2 << 20 };
    let cases = [
        (Some(256 << 10), None, true),
        (None, Some(fine), true),
        (Some(0), None, false),
        (Some(3 << 20), None, false),
        (Some(1 << 31), None, false),
        (None, Some(CdcSizes { max: 0, ..fine }), false),
        (None, Some(CdcSizes { max: u32::MAX, ..fine }), false),
        (None, Some(CdcSizes { min: 0, ..fine }), false),
    ];
    for (block_chunk, cdc, sound) in cases {
        let session = Session::open(&repository, &volume("v")).await.unwrap();
        let mut manifest = Box::new(Manifest::new(volume("v"), VolumeKind::Tree, None, 0));
        (manifest.block_chunk, manifest.cdc) = (block_chunk, cdc);
        let Committed::Done(manifest) = session.commit(manifest).await.unwrap() else { panic!("overtaken") };
        match read(&repository, at(&repository, &manifest)).await {
            Ok(Some(Commit::Snapshot(_))) => assert!(sound, "{block_chunk:?} {cdc:?}"),
            Err(error) => assert!(!sound && error.kind() == Kind::Damage, "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
