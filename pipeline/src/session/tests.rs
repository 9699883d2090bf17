use std::collections::BTreeSet;

use super::*;
use crate::error::Kind;
use crate::gc::{Phase, write_list};
use crate::manifest::{SkippedItem, VolumeKind};
use crate::pack::PackName;
use crate::repository::test_store::{TestStore, volume};
use crate::store::{OpenUpload, Store};

fn blank(name: &str) -> Box<Manifest> {
    Box::new(Manifest::new(volume(name), VolumeKind::Block, None, 0))
}

async fn done(session: &Session) -> Box<Manifest> {
    match session.commit(blank("ignored")).await.unwrap() {
        Committed::Done(manifest) => manifest,
        other @ Committed::Overtaken(_) => panic!("{other:?}"),
    }
}

fn names(store: &TestStore) -> Vec<String> {
    let keys = store.keys(SESSIONS_PREFIX);
    keys.iter().map(|k| k.rsplit('/').next().unwrap().to_owned()).collect()
}

/// Makes the owner of `session` look like a process of another machine, or one that is gone.
async fn disown(store: &TestStore, session: &Session, owner: Owner) {
    let key = record_key(session.at.volume, session.at.id, 0, record::RecordKind::Open);
    let Some(Record::Open(mut opened)) = read_record(&session.repository, &key).await.unwrap() else {
        panic!()
    };
    opened.owner = owner;
    let plain = serde_json::to_vec(&Record::Open(opened)).unwrap();
    store.put(&key, session.repository.seal(ObjectClass::Session, &key, &plain).unwrap());
}

#[tokio::test]
async fn a_session_leaves_its_records_in_order_and_its_manifest() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    session.checkpoint(&Checkpoint::default()).await.unwrap();
    session.tick().await.unwrap();
    session.checkpoint(&Checkpoint::default()).await.unwrap();
    let manifest = done(&session).await;
    assert_eq!(
        names(&store),
        ["00000000-open", "00000001-checkpoint", "00000002-checkpoint", "00000003-end"]
    );
    assert_eq!(session.commit(blank("a")).await.unwrap_err().kind(), Kind::Internal);
    session.end(Outcome::Failed).await.unwrap();
    assert_eq!(names(&store).len(), 4, "nothing after the end");

    assert_eq!((manifest.id, &manifest.volume), (session.id(), session.volume()));
    assert_eq!((manifest.epoch, manifest.tool.as_str()), (1, crate::TOOL));
    assert_eq!(manifest.started_ms, 1_800_000_000_000);
    let read = manifest::read(&repository, session.manifest_key()).await.unwrap();
    assert_eq!(read, Some(Commit::Snapshot(manifest)));
    assert!(leftovers(&repository, &volume("a"), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn signs_of_life_are_written_when_due() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    session.state.lock().await.written = Instant::now().checked_sub(RENEW_EVERY).unwrap();
    session.tick().await.unwrap();
    session.tick().await.unwrap();
    assert_eq!(names(&store), ["00000000-open", "00000001-renew"]);
}

#[tokio::test]
async fn ids_follow_the_store_and_never_go_back() {
    let (store, repository) = TestStore::repository().await;
    let first = Session::open(&repository, &volume("a")).await.unwrap();
    assert_eq!(first.id().millis(), 1_800_000_000_000);
    done(&first).await;
    store.set_now_ms(1_700_000_000_000);
    let second = Session::open(&repository, &volume("a")).await.unwrap();
    assert_eq!(second.id().millis(), 1_800_000_000_001);
    assert!(second.id() > first.id());
    let other = Session::open(&repository, &volume("b")).await.unwrap();
    assert_eq!(other.id().millis(), 1_700_000_000_000);
    let id = SessionId::new(0x0123_4567_89AB, [0xCD; 6]);
    assert_eq!((id.to_string().as_str(), id.short().as_str()), ("0123456789abcdcdcdcdcdcd", "cdcdcdcd"));
}

#[tokio::test]
async fn sessions_of_one_volume_commit_at_the_same_time() {
    let (_, repository) = TestStore::repository().await;
    let a = Session::open(&repository, &volume("a")).await.unwrap();
    let b = Session::open(&repository, &volume("a")).await.unwrap();
    let (first, second) = tokio::join!(done(&b), done(&a));
    assert_ne!(first.id, second.id);
    let named: BTreeSet<SessionId> = first.predecessors.iter().chain(&second.predecessors).copied().collect();
    assert_eq!(named.len(), 1, "the later of the two names the earlier");
    let next = done(&Session::open(&repository, &volume("a")).await.unwrap()).await;
    assert_eq!(next.predecessors.len(), 2, "and the next names both");
    assert_eq!(catalog::list(&repository, &catalog::Filter::default()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_lost_answer_to_the_commit_is_a_commit() {
    for kind in [StoreErrorKind::AlreadyExists, StoreErrorKind::Transient] {
        let (store, repository) = TestStore::repository().await;
        let session = Session::open(&repository, &volume("a")).await.unwrap();
        store.lose_answer("snapshots/", kind);
        store.lose_answer("sessions/", kind);
        let manifest = done(&session).await;
        assert_eq!(
            catalog::find(&repository, &catalog::Filter::default(), "latest").await.unwrap(),
            manifest
        );
        assert!(names(&store).contains(&"00000001-end".to_owned()));
    }
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    store.lose_answer("snapshots/", StoreErrorKind::Denied);
    assert_eq!(session.commit(blank("a")).await.unwrap_err().kind(), Kind::Store, "not one to second-guess");
}

#[tokio::test]
async fn another_manifest_at_our_key_is_a_conflict() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    let key = session.manifest_key().key();
    let other = Manifest { id: session.id(), ..*blank("a") };
    let plain = manifest::Record::Snapshot(Box::new(other)).encode().unwrap();
    store.put(&key, repository.seal(ObjectClass::Manifest, &key, &plain).unwrap());
    assert_eq!(session.commit(blank("a")).await.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn packs_condemned_meanwhile_hold_a_commit_back() {
    let (_, repository) = TestStore::repository().await;
    let pack = |n| PackName { id: [n; 16], session: SessionId([1; 12]) };
    write_list(&repository, 1, Phase::Condemned, [pack(1)]).await.unwrap();
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    assert_eq!(session.generation(), 1);
    write_list(&repository, 2, Phase::Condemned, [pack(2)]).await.unwrap();
    let Committed::Overtaken(mut manifest) = session.commit(blank("a")).await.unwrap() else { panic!() };
    assert!(!is_decided(&repository, session.manifest_key()).await.unwrap());
    let mut new = Vec::new();
    manifest.generation =
        gc::visit_unusable(&repository, manifest.generation, &mut |p| new.push(p)).await.unwrap();
    assert_eq!((manifest.generation, new), (2, vec![pack(2)]));
    assert!(matches!(session.commit(manifest).await.unwrap(), Committed::Done(m) if m.generation == 2));
}

#[tokio::test]
async fn what_a_dead_session_had_done_is_found_cleared_and_superseded() {
    let (store, repository) = TestStore::repository().await;
    let dead = Session::open(&repository, &volume("a")).await.unwrap();
    let upload = store.begin_upload("packs/00/x").await.unwrap();
    let newest = Checkpoint {
        segments: vec!["index/1".into(), "index/2".into()],
        position: serde_json::json!({ "offset": 4096 }),
        uploads: vec![OpenUpload { key: "packs/00/x".into(), upload }],
        ..Checkpoint::default()
    };
    dead.checkpoint(&Checkpoint::default()).await.unwrap();
    dead.checkpoint(&newest).await.unwrap();
    // Begun later: only the store knows of it. And one of somebody else.
    let later = PackName { id: [1; 16], session: dead.id() };
    store.begin_upload(&later.key()).await.unwrap();
    let foreign = PackName { id: [2; 16], session: SessionId([9; 12]) };
    store.begin_upload(&foreign.key()).await.unwrap();
    done(&Session::open(&repository, &volume("b")).await.unwrap()).await;

    // Its owner, this process, lives.
    let own = Session::open(&repository, &volume("a")).await.unwrap();
    let open = open_uploads(&repository).await;
    let alive = leftovers(&repository, &volume("a"), Some(own.id())).await.unwrap();
    assert_eq!(alive.len(), 1);
    assert_eq!((alive[0].liveness, alive[0].checkpoint.as_ref()), (Liveness::Alive, Some(&newest)));
    assert_eq!(abort_uploads(&repository, &alive[0], &open).await.0, 0);
    assert_eq!(supersede(&repository, &alive[0]).await.unwrap_err().kind(), Kind::Conflict);
    assert_eq!(store.uploads(), 3);

    disown(&store, &dead, Owner { started: 1, ..Owner::current() }).await;
    let found = leftovers(&repository, &volume("a"), Some(own.id())).await.unwrap();
    assert_eq!((found[0].liveness, found[0].session), (Liveness::Dead, dead.id()));
    let (tried, failed) = abort_uploads(&repository, &found[0], &open).await;
    assert_eq!((tried, failed.len()), (2, 0));
    let left = store.open_uploads("").await.unwrap();
    assert_eq!(left.iter().map(|u| &u.key).collect::<Vec<_>>(), [&foreign.key()]);
    assert!(supersede(&repository, &found[0]).await.unwrap());
    assert!(supersede(&repository, &found[0]).await.unwrap(), "twice does no harm");
    assert!(leftovers(&repository, &volume("a"), Some(own.id())).await.unwrap().is_empty());
    assert_eq!(dead.commit(blank("a")).await.unwrap_err().kind(), Kind::Conflict);
    done(&own).await;
}

#[tokio::test]
async fn on_another_machine_only_the_lease_counts_and_by_the_store() {
    let (store, repository) = TestStore::repository().await;
    let far = Session::open(&repository, &volume("a")).await.unwrap();
    disown(&store, &far, Owner { boot_id: "elsewhere".into(), ..Owner::current() }).await;
    let liveness = async || leftovers(&repository, &volume("a"), None).await.unwrap()[0].liveness;
    store.advance(LEASE);
    assert_eq!(liveness().await, Liveness::Alive);
    store.advance(Duration::from_millis(1));
    assert_eq!(liveness().await, Liveness::Expired);
    far.checkpoint(&Checkpoint::default()).await.unwrap();
    assert_eq!(liveness().await, Liveness::Alive);
}

#[tokio::test]
async fn a_session_that_stopped_is_gone_on_from_and_a_decided_one_is_not() {
    for outcome in [Outcome::Cancelled, Outcome::Failed] {
        let (store, repository) = TestStore::repository().await;
        let stopped = Session::open(&repository, &volume("a")).await.unwrap();
        let checkpoint = Checkpoint { done: 7, ..Checkpoint::default() };
        stopped.checkpoint(&checkpoint).await.unwrap();
        stopped.end(outcome).await.unwrap();
        assert_eq!(names(&store).last().unwrap(), "00000002-stop");
        let found = leftovers(&repository, &volume("a"), None).await.unwrap();
        assert_eq!((found[0].liveness, found[0].checkpoint.as_ref()), (Liveness::Dead, Some(&checkpoint)));
        assert!(supersede(&repository, &found[0]).await.unwrap());
        assert!(leftovers(&repository, &volume("a"), None).await.unwrap().is_empty());
    }
    // Committed, and died before it could say so.
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    done(&session).await;
    store.remove(store.keys(SESSIONS_PREFIX).last().unwrap());
    assert_eq!(names(&store), ["00000000-open"]);
    assert!(leftovers(&repository, &volume("a"), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn damaged_records_are_values_and_an_older_checkpoint_is_taken() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    let older = Checkpoint { done: 1, ..Checkpoint::default() };
    session.checkpoint(&older).await.unwrap();
    session.checkpoint(&Checkpoint { done: 2, ..Checkpoint::default() }).await.unwrap();
    let keys = store.keys(SESSIONS_PREFIX);
    store.flip(&keys[2], 300);
    let found = leftovers(&repository, &volume("a"), None).await.unwrap();
    assert_eq!((found[0].checkpoint.as_ref(), found[0].damaged.len()), (Some(&older), 1));
    assert!(found[0].damaged[0].contains(&keys[2]));
    // Without its first record nobody is proven dead.
    store.flip(&keys[0], 300);
    let found = leftovers(&repository, &volume("a"), None).await.unwrap();
    assert_eq!((found[0].opened.as_ref(), found[0].liveness), (None, Liveness::Alive));
}

#[test]
fn futures_can_move_between_threads() {
    fn is_send<T: Send>(_: &T) {}
    fn check(repository: &Arc<Repository>, session: &Session, leftover: &Leftover, store: Arc<dyn Store>) {
        let secret = crate::seal::Secret::passphrase("");
        is_send(&Repository::open(Arc::clone(&store), &secret));
        is_send(&Repository::init(store, &secret, crate::repository::InitOptions::default()));
        is_send(&Session::open(repository, session.volume()));
        is_send(&session.commit(blank("a")));
        is_send(&leftovers(repository, session.volume(), None));
        is_send(&supersede(repository, leftover));
        is_send(&open_uploads(repository));
        is_send(&abort_uploads(repository, leftover, &[]));
        is_send(&catalog::list(repository, &catalog::Filter::default()));
        is_send(&catalog::find(repository, &catalog::Filter::default(), "latest"));
        is_send(&catalog::check_chain(repository, None));
        is_send(&gc::visit_unusable(repository, 0, &mut |_| {}));
    }
    let _ = check;
}

#[tokio::test]
async fn a_manifest_that_nobody_could_read_is_not_committed() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    let mut manifest = blank("a");
    // Nothing that compresses would be too large.
    let mut rng = fastrand::Rng::with_seed(1);
    let noise: String = std::iter::repeat_with(|| rng.alphanumeric()).take(24 << 20).collect();
    manifest.tags.insert("long".into(), noise);
    let error = session.commit(manifest).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Usage, "{error}");
    assert!(store.keys(manifest::SNAPSHOTS_PREFIX).is_empty());
    // It can still say that it failed.
    session.end(Outcome::Failed).await.unwrap();
}

#[tokio::test]
async fn many_long_skipped_items_leave_a_manifest_that_can_be_read() {
    let (store, repository) = TestStore::repository().await;
    let session = Session::open(&repository, &volume("a")).await.unwrap();
    let mut manifest = blank("a");
    let mut rng = fastrand::Rng::with_seed(1);
    let mut item = || SkippedItem {
        path: std::iter::repeat_with(|| rng.u8(128..)).take(17_000).collect::<Vec<u8>>().into(),
        reason: "permission denied".into(),
    };
    manifest.skipped_items = (0..700).map(|_| item()).collect();
    manifest.skipped = 700;
    assert!(matches!(session.commit(manifest).await.unwrap(), Committed::Done(_)));
    let Some(Commit::Snapshot(read)) = manifest::read(&repository, session.manifest_key()).await.unwrap()
    else {
        panic!()
    };
    assert_eq!(read.skipped, 700);
    assert!(read.skipped_items.len() > 100, "{}", read.skipped_items.len());
    let stored = store.stat(&session.manifest_key().key()).await.unwrap().size;
    assert!(stored < 2 << 20, "{stored}");
}

#[tokio::test]
async fn a_session_is_renewed_for_as_long_as_it_is_kept_alive() {
    let (store, repository) = TestStore::repository().await;
    let session = Arc::new(Session::open(&repository, &volume("a")).await.unwrap());
    let runtime = tokio::runtime::Handle::current();
    let overdue = async || {
        session.state.lock().await.written = Instant::now().checked_sub(RENEW_EVERY).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        names(&store).len()
    };
    let alive = Alive::every(&runtime, &session, Duration::from_millis(5));
    assert_eq!((overdue().await, overdue().await), (2, 3));
    drop(alive);
    assert_eq!(overdue().await, 3);
}
