//! Everything but packs: config, key slots, index, manifests, records of sessions and of collection.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tradewind_pipeline::backup;
use tradewind_pipeline::gc::{self, Phase};
use tradewind_pipeline::manifest::catalog::{self, Filter, What};
use tradewind_pipeline::manifest::{self, SnapshotKey, VolumeName};
use tradewind_pipeline::pack::{PackName, SessionId};
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::repository::Repository;
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::session::{Checkpoint, Outcome, Session};
use tradewind_pipeline::store::fault::{Effect, Fault, Faulty};
use tradewind_pipeline::store::local::LocalStore;
use tradewind_pipeline::store::record::Operation;
use tradewind_pipeline::store::{OpenUpload, StoreErrorKind};
use tradewind_pipeline::verify::{self, Mode, VerifyOptions};
use tradewind_pipeline::{Error, Kind};

use super::harm::{Opened, Original, cut, delete, flip};
use crate::bed::{Bed, engines, noise, secret};

/// Does something to the object at a path.
type Harm<'a> = Box<dyn Fn(&Path) + 'a>;

/// Flipped bits all over an object, cuts, and more of it than any reader takes.
fn harms(path: &Path) -> Vec<Harm<'static>> {
    let size = usize::try_from(fs::metadata(path).unwrap().len()).unwrap();
    let mut all: Vec<Harm<'static>> = vec![];
    for at in [0, 9, 11, 14, 25, size / 2, size - 17, size - 1] {
        all.push(Box::new(move |p| flip(p, at)));
    }
    for to in [0, 10, size / 2, size - 1, TOO_LARGE] {
        all.push(Box::new(move |p| cut(p, to as u64)));
    }
    all
}

/// More than readers take of any record.
const TOO_LARGE: usize = 17 << 20;

fn second() -> Secret {
    Secret::KeyFile(vec![8; 64].into())
}

fn at(repository: &Repository, volume: &str, id: SessionId) -> SnapshotKey {
    SnapshotKey { volume: repository.volume_key(&VolumeName::new(volume).unwrap()), id }
}

#[test]
fn a_damaged_config_is_named_and_nothing_is_guessed() {
    let original = Original::new();
    let key = "config";
    for harm in harms(&original.bed.path("repo/config")) {
        match original.harmed(key, harm).try_open(&secret()) {
            Err(e) => {
                assert!(matches!(e.kind(), Kind::Damage | Kind::Repository), "{e}");
                assert!(e.to_string().contains("config"), "{e}");
            }
            Ok(_) => panic!("opened"),
        }
    }
    match original.harmed(key, delete).try_open(&secret()) {
        Err(e) => assert!(e.to_string().contains("config"), "{e}"),
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn a_damaged_key_slot_is_named_and_another_one_opens() {
    let original = Original::new();
    let first = format!("keys/{}", original.bed.repository.slot());
    original.bed.runtime.block_on(original.bed.repository.add_key(&second(), "second")).unwrap();
    for harm in harms(&original.bed.path("repo").join(&first)) {
        let (opened, report) = original.harmed(&first, &harm).try_open(&second()).unwrap();
        assert_eq!(report.bad_slots.iter().map(|b| &b.key).collect::<Vec<_>>(), [&first]);
        assert_eq!(opened.verify(Mode::Structure).damages, []);
        match original.harmed(&first, harm).try_open(&secret()) {
            Err(Error::Damaged { object, .. }) => assert_eq!(object, first),
            Err(e) => assert_eq!(e.kind(), Kind::WrongKey, "a slot of another format is no damage: {e}"),
            Ok(_) => panic!("opened"),
        }
    }
    let (_, report) = original.harmed(&first, delete).try_open(&second()).unwrap();
    assert_eq!(report.bad_slots, []);
    let error = original.harmed(&first, delete).try_open(&secret()).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::WrongKey);
}

#[test]
fn a_damaged_index_segment_is_rebuilt_and_reported() {
    let original = Original::new();
    let taken = &original.taken[1];
    let key = taken.object("index/");
    for harm in harms(&original.bed.path("repo").join(key)) {
        let opened = original.harmed(key, harm).open();
        let damages = opened.only_damage();
        assert!(damages[0].why.contains("rebuilds"), "{damages:?}");
        let restore = opened.bed.restore(&taken.manifest, &opened.bed.path("restored"));
        assert!(restore.warnings.iter().any(|w| w.contains(key)), "{:?}", restore.warnings);
        let warnings = opened.backs_up();
        assert!(warnings.iter().any(|w| w.contains(key)), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.contains("rebuilt the index of")), "{warnings:?}");
        assert!(!opened.bed.path("repo").join(key).exists(), "its packs are in another one");
        assert_eq!(opened.verify(Mode::ReadData).damages, []);
    }
}

#[test]
fn a_lost_index_is_missed_and_rebuilt_and_no_restore_needs_it() {
    let original = Original::new();
    // A session that was fenced owes no segment.
    original.bed.runtime.block_on(async {
        let session =
            Session::open(&original.bed.repository, &VolumeName::new("tree").unwrap()).await.unwrap();
        manifest::fence(&original.bed.repository, session.manifest_key(), "a test").await.unwrap();
    });
    assert_eq!(original.harmed("config", |_| {}).open().verify(Mode::ReadData).damages, []);
    let all = |path: &Path| fs::remove_dir_all(path).unwrap();
    let cases: [(&str, Harm<'_>, usize); 2] =
        [("index", Box::new(all), 4), (original.taken[1].object("index/"), Box::new(delete), 1)];
    for (key, harm, segments) in cases {
        let opened = original.harmed(key, harm).open();
        let damages = opened.verify(Mode::ReadData).damages;
        assert_eq!(damages.len(), segments, "{damages:?}");
        assert!(
            damages.iter().all(|d| d.object.starts_with("index/") && d.snapshot.is_none()),
            "{damages:?}"
        );
        opened.all_restore();
        let warnings = opened.backs_up();
        assert!(warnings.iter().any(|w| w.contains("rebuilt the index of")), "{warnings:?}");
        assert_eq!(opened.verify(Mode::ReadData).damages, []);
    }
}

/// How the manifests are listed: ids of the sound ones, keys of the others.
fn listed(opened: &Opened<'_>) -> (Vec<SessionId>, Vec<String>) {
    let all = opened.bed.runtime.block_on(catalog::list(&opened.bed.repository, &Filter::default())).unwrap();
    let damaged = all.iter().filter(|l| matches!(l.what, What::Damaged(_))).map(|l| l.key.clone()).collect();
    let sound = all.iter().filter_map(|l| match &l.what {
        What::Snapshot(m) => Some(m.id),
        What::Damaged(_) => None,
    });
    (sound.collect(), damaged)
}

#[test]
fn a_damaged_manifest_is_named_and_the_others_are_there() {
    let original = Original::new();
    for (n, taken) in original.taken.iter().enumerate() {
        let key = taken.object("snapshots/");
        for (round, harm) in harms(&original.bed.path("repo").join(key)).into_iter().enumerate() {
            let opened = original.harmed(key, harm).open();
            let (sound, damaged) = listed(&opened);
            let others = original.taken.iter().map(|t| t.manifest.id).filter(|id| *id != taken.manifest.id);
            assert_eq!((sound, damaged), (others.collect(), vec![key.to_owned()]));
            let damages = opened.only_damage();
            assert_eq!(damages[0].snapshot, Some(taken.manifest.id));
            let (filter, id) = (Filter::default(), taken.manifest.id.to_string());
            let found = catalog::find(&opened.bed.repository, &filter, &id);
            match opened.bed.runtime.block_on(found) {
                Err(Error::Damaged { object, .. }) => assert_eq!(object, key),
                other => panic!("{other:?}"),
            }
            // The next backup has an older parent, and says so.
            if round == 0 {
                let warnings = opened.backs_up();
                assert_eq!(warnings.iter().any(|w| w.contains(key)), n >= 2, "{warnings:?}");
            }
        }
    }
}

#[test]
fn a_deleted_manifest_is_missed_by_its_successor_or_by_who_expects_it() {
    let original = Original::new();
    for (n, taken) in original.taken.iter().enumerate() {
        let key = taken.object("snapshots/");
        let id = taken.manifest.id;
        let opened = original.harmed(key, delete).open();
        if n < 2 {
            let damages = opened.only_damage();
            assert_eq!((damages.len(), damages[0].snapshot), (1, Some(id)));
            assert!(damages[0].why.contains(&original.taken[n + 2].manifest.id.to_string()), "{damages:?}");
        } else {
            assert_eq!(opened.verify(Mode::ReadData).damages, [], "nobody names the last one");
        }
        let options = VerifyOptions {
            mode: Mode::Structure,
            expect: original.taken.iter().map(|t| t.manifest.id.to_string()).collect(),
            limits: Default::default(),
            cache_dir: None,
        };
        let bed = &opened.bed;
        let report =
            verify::run(bed.runtime.handle(), &bed.repository, &options, &Default::default()).unwrap();
        let missed = report.damages.iter().filter(|d| d.object == format!("snapshots/{id}")).count();
        assert_eq!(missed, 1, "{:?}", report.damages);
        // What it shared is found again.
        opened.backs_up();
    }
}

#[test]
fn a_damaged_mark_forgets_nothing() {
    let original = Original::new();
    let bed = &original.bed;
    let snapshot = at(&bed.repository, "image", original.taken[0].manifest.id);
    assert!(bed.runtime.block_on(manifest::forget(&bed.repository, snapshot, "a test")).unwrap());
    let key = snapshot.forgotten_key();
    let opened = original.harmed("config", |_| {}).open();
    assert_eq!(listed(&opened).0.len(), 3);
    for harm in harms(&bed.path("repo").join(&key)) {
        let opened = original.harmed(&key, harm).open();
        let (sound, damaged) = listed(&opened);
        assert_eq!((sound.len(), damaged), (4, vec![key.clone()]));
        opened.only_damage();
    }
    // And when it is gone, the snapshot is back.
    let opened = original.harmed(&key, delete).open();
    assert_eq!((listed(&opened).0.len(), opened.verify(Mode::ReadData).damages), (4, vec![]));
}

#[test]
fn records_of_sessions_hold_nothing_that_a_snapshot_needs() {
    let original = Original::new();
    let bed = &original.bed;
    // One that stopped after a checkpoint, and one that was fenced, so that there is one of each kind.
    let tombstone = bed.runtime.block_on(async {
        let name = |volume| VolumeName::new(volume).unwrap();
        let stopped = Session::open(&bed.repository, &name("image")).await.unwrap();
        stopped.checkpoint(&Checkpoint::default()).await.unwrap();
        stopped.end(Outcome::Failed).await.unwrap();
        let fenced = Session::open(&bed.repository, &name("tree")).await.unwrap();
        manifest::fence(&bed.repository, fenced.manifest_key(), "a test").await.unwrap();
        fenced.manifest_key().key()
    });
    let keys = original.keys();
    for kind in ["-open", "-checkpoint", "-stop", "-end"] {
        let key = keys.iter().rfind(|k| k.starts_with("sessions/") && k.ends_with(kind)).unwrap();
        for (n, harm) in harms(&bed.path("repo").join(key)).into_iter().enumerate() {
            let opened = original.harmed(key, harm).open();
            opened.only_damage();
            // The same for each way to be damaged: a sealed object opens or it does not.
            if n == 0 {
                opened.all_restore();
                let warnings = opened.backs_up();
                // Of what is read of a run that stopped.
                let told = warnings.iter().any(|w| w.contains(key.as_str()));
                assert!(told || kind != "-checkpoint", "{key}: {warnings:?}");
            }
        }
        let opened = original.harmed(key, delete).open();
        assert_eq!(opened.verify(Mode::ReadData).damages, []);
        opened.all_restore();
        opened.backs_up();
    }
    for harm in harms(&bed.path("repo").join(&tombstone)) {
        original.harmed(&tombstone, harm).open().only_damage();
    }
    original.harmed(&tombstone, |p| flip(p, 40)).open().backs_up();
    let opened = original.harmed(&tombstone, delete).open();
    assert_eq!(opened.verify(Mode::ReadData).damages, []);
    opened.backs_up();
}

#[test]
fn damaged_lists_of_condemned_packs_stop_writers_and_not_readers() {
    let original = Original::new();
    let bed = &original.bed;
    let pack = PackName { id: [1; 16], session: SessionId([1; 12]) };
    bed.runtime.block_on(gc::write_list(&bed.repository, 1, Phase::Condemned, [pack])).unwrap();
    assert_eq!(original.harmed("config", |_| {}).open().backs_up(), [""; 0]);
    for key in ["gc/00000001/condemned", "gc/00000001/condemned-00000000"] {
        for harm in harms(&bed.path("repo").join(key)) {
            let opened = original.harmed(key, harm).open();
            opened.only_damage();
            opened.does_not_back_up();
        }
        let opened = original.harmed(key, |p| flip(p, 40)).open();
        opened.all_restore();
    }
    // Without its part the list is not whole. Without its head it is none: that is how lists are cleared away.
    let opened = original.harmed("gc/00000001/condemned-00000000", delete).open();
    opened.does_not_back_up();
    opened.all_restore();
    assert_eq!(original.harmed("gc/00000001/condemned", delete).open().backs_up(), [""; 0]);
}

#[test]
fn garbage_in_a_manifests_place_stops_nobody() {
    let original = Original::new();
    let volume = VolumeName::new("another").unwrap();
    let own = VolumeName::new("tree").unwrap();
    for (volume, id) in [(volume, 0xFF), (own, 0x01)] {
        let at = SnapshotKey { volume: original.bed.repository.volume_key(&volume), id: SessionId([id; 12]) };
        for size in [100_000, TOO_LARGE] {
            let opened = original.harmed("config", |_| {}).open();
            let path = opened.bed.path("repo").join(at.key());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, vec![0xA5; size]).unwrap();
            opened.all_restore();
            let warnings = opened.backs_up();
            assert!(warnings.is_empty(), "{size} bytes: {warnings:?}");
            assert_eq!(listed(&opened).1, [at.key()]);
            let damages = opened.verify(Mode::Structure).damages;
            assert_eq!(damages.iter().map(|d| d.object.clone()).collect::<Vec<_>>(), [at.key()]);
        }
    }
}

#[test]
fn tables_of_packs_are_read_many_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Faulty::new(Arc::new(LocalStore::new(dir.path().join("repo")).unwrap())));
    let bed = Bed::over(dir, store.clone(), engines()[0]);
    let image = bed.path("image");
    for seed in 0..8 {
        fs::write(&image, noise(300_000, seed)).unwrap();
        bed.backup(&image);
    }
    fs::remove_dir_all(bed.path("repo/index")).unwrap();
    store.add(Fault::new(Operation::Read, Effect::Delay(Duration::from_millis(250))).prefix("packs/"));
    let before = Instant::now();
    let report = bed.backup(&image);
    assert!(report.warnings.iter().any(|w| w.contains("rebuilt the index of")), "{:?}", report.warnings);
    // At least sixteen packs with two reads each: eight seconds, one after the other.
    assert!(before.elapsed() < Duration::from_secs(5), "{:?}", before.elapsed());
}

#[test]
fn warnings_reach_the_user_of_a_run_that_fails_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Faulty::new(Arc::new(LocalStore::new(dir.path().join("repo")).unwrap())));
    let bed = Bed::over(dir, store.clone(), engines()[0]);
    let image = bed.path("image");
    fs::write(&image, noise(300_000, 1)).unwrap();
    let first = bed.backup(&image).manifest.unwrap();
    let manifest = at(&bed.repository, "v", first.id).key();
    flip(&bed.path("repo").join(&manifest), 40);
    bed.runtime.block_on(async {
        let stopped = Session::open(&bed.repository, &VolumeName::new("v").unwrap()).await.unwrap();
        let upload = OpenUpload { key: "packs/00/a".into(), upload: "b".into() };
        let checkpoint = Checkpoint { uploads: vec![upload], ..Checkpoint::default() };
        stopped.checkpoint(&checkpoint).await.unwrap();
        stopped.end(Outcome::Failed).await.unwrap();
    });
    let run = || {
        let progress = Arc::new(Progress::default());
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let sink = Arc::clone(&told);
        progress.on_warning(move |text| sink.lock().unwrap().push(text.to_owned()));
        let result = backup::run(bed.runtime.handle(), &bed.repository, &bed.options(&image), &progress);
        (result, told.lock().unwrap().clone())
    };
    for operation in [Operation::Create, Operation::List] {
        let prefix = if operation == Operation::Create { "snapshots/" } else { "packs/" };
        store.add(Fault::new(operation, Effect::Fail(StoreErrorKind::Denied)).prefix(prefix));
        let (failed, told) = run();
        assert_eq!(failed.unwrap_err().kind(), Kind::Store);
        assert!(told.iter().any(|w| w.contains(&manifest)), "{told:?}");
        assert!(told.iter().any(|w| w.contains("1 uploads")), "{told:?}");
        store.clear();
    }
    let (done, told) = run();
    assert!(done.unwrap().warnings.iter().any(|w| w.contains(&manifest)));
    assert_eq!(told, [""; 0], "they are in the report");
}
