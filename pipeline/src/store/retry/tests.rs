use super::*;
use crate::store::crc64;
use crate::store::fault::{Effect, Fault, Faulty};
use crate::store::local::LocalStore;
use crate::store::record::{Operation, Recorder};

struct Bed {
    _dir: tempfile::TempDir,
    recorder: Arc<Recorder>,
    faulty: Arc<Faulty>,
    progress: Arc<Progress>,
    store: Retry,
}

/// A retrying store over faults over a directory.
fn bed() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(Arc::new(LocalStore::new(dir.path()).unwrap())));
    let faulty = Arc::new(Faulty::new(recorder.clone()));
    let progress = Arc::new(Progress::default());
    let policy = Policy {
        attempts: 5,
        elapsed: Duration::from_secs(10),
        shortest: Duration::from_millis(1),
        longest: Duration::from_millis(5),
    };
    let store = Retry::new(faulty.clone(), policy, progress.clone());
    Bed { _dir: dir, recorder, faulty, progress, store }
}

const LOST: Effect = Effect::FailAfter(Kind::Transient);
const FAIL: Effect = Effect::Fail(Kind::Transient);

fn rope(pieces: &[&'static [u8]]) -> Body {
    pieces.iter().map(|p| Bytes::from_static(p)).collect()
}

#[tokio::test]
async fn transient_failures_pass() {
    let b = bed();
    b.faulty.add(Fault::new(Operation::Create, FAIL).times(3));
    b.faulty.add(Fault::new(Operation::ReadAll, Effect::Fail(Kind::Checksum)).times(4));
    b.store.create("a", vec![1; 3].into()).await.unwrap();
    assert_eq!(b.store.read_all("a", 3).await.unwrap().as_ref(), [1; 3]);
    assert_eq!(b.progress.get(Counter::Retries), 7);
}

#[tokio::test]
async fn attempts_are_counted() {
    let b = bed();
    b.faulty.add(Fault::new(Operation::Stat, FAIL));
    assert_eq!(b.store.stat("a").await.unwrap_err().kind, Kind::Transient);
    assert_eq!(b.progress.get(Counter::Retries), 4);
}

#[tokio::test]
async fn time_is_limited() {
    let mut b = bed();
    b.store.policy = Policy {
        attempts: u32::MAX,
        elapsed: Duration::from_millis(200),
        shortest: Duration::from_millis(50),
        longest: Duration::from_millis(50),
    };
    b.faulty.add(Fault::new(Operation::Stat, FAIL));
    let start = Instant::now();
    b.store.stat("a").await.unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!((1..=4).contains(&b.progress.get(Counter::Retries)));
}

#[tokio::test]
async fn what_cannot_pass_is_not_tried_again() {
    for kind in [Kind::Denied, Kind::NotFound, Kind::Full, Kind::Other, Kind::Unsupported, Kind::OutOfRange] {
        let b = bed();
        b.faulty.add(Fault::new(Operation::Create, Effect::Fail(kind)));
        assert_eq!(b.store.create("a", Body::default()).await.unwrap_err().kind, kind);
        assert_eq!(b.progress.get(Counter::Retries), 0);
    }
}

#[tokio::test]
async fn an_outage_is_ridden_out_and_a_wrong_address_is_not() {
    let b = bed();
    b.faulty.add(Fault::new(Operation::Stat, Effect::Fail(Kind::Unreachable)).times(2));
    assert_eq!(b.store.stat("a").await.unwrap_err().kind, Kind::Unreachable);
    assert_eq!(b.progress.get(Counter::Retries), 0);
    b.store.create("a", Body::default()).await.unwrap();
    b.store.stat("a").await.unwrap();
    assert_eq!(b.progress.get(Counter::Retries), 1);
}

#[tokio::test]
async fn cancelling_stops_retries_at_once() {
    let mut b = bed();
    b.store.policy.longest = Duration::from_secs(60);
    b.store.policy.shortest = Duration::from_secs(60);
    b.store.policy.elapsed = Duration::from_secs(600);
    b.faulty.add(Fault::new(Operation::Stat, FAIL));
    let progress = b.progress.clone();
    let start = Instant::now();
    let cancel = async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        progress.cancel();
    };
    let (done, ()) = tokio::join!(b.store.stat("a"), cancel);
    assert_eq!(done.unwrap_err().kind, Kind::Transient);
    assert!(start.elapsed() < Duration::from_secs(5));
    // Cleaning up afterwards still works.
    b.store.delete("a").await.unwrap();
}

#[tokio::test]
async fn the_store_may_ask_for_a_longer_pause() {
    let e = StoreError {
        retry_after: Some(Duration::from_millis(300)),
        ..StoreError::new(Kind::Transient, "t", "k", "")
    };
    let b = bed();
    let start = Instant::now();
    assert!(b.store.attempts().another(&e).await);
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_create_whose_answer_was_lost_is_recognised() {
    let b = bed();
    b.faulty.add(Fault::new(Operation::Create, LOST).times(1));
    b.store.create("a", rope(&[b"ab", b"", b"cde"])).await.unwrap();
    assert_eq!(b.recorder.count(Operation::Create), 2);
    // Without a lost answer a taken key is taken, whatever it holds.
    assert_eq!(b.store.create("a", rope(&[b"abcde"])).await.unwrap_err().kind, Kind::AlreadyExists);
    // After one that did not arrive, somebody else's object is somebody else's.
    for other in [&b"abcdf"[..], b"abcd", b"abcdef", b""] {
        b.faulty.add(Fault::new(Operation::Create, FAIL).times(1));
        let lost = b.store.create("a", rope(&[other])).await;
        assert_eq!(lost.unwrap_err().kind, Kind::AlreadyExists);
    }
}

#[tokio::test]
async fn large_objects_are_compared_to_the_last_byte() {
    let b = bed();
    let pieces: Vec<Bytes> = (0..40u8).map(|i| vec![i; 100_001].into()).collect();
    b.faulty.add(Fault::new(Operation::Create, LOST).times(1));
    b.store.create("a", pieces.iter().cloned().collect()).await.unwrap();
    let mut other = pieces;
    let mut last = Vec::from(other.pop().unwrap());
    *last.last_mut().unwrap() ^= 1;
    other.push(last.into());
    b.faulty.add(Fault::new(Operation::Create, FAIL).times(1));
    let lost = b.store.create("a", other.into_iter().collect()).await;
    assert_eq!(lost.unwrap_err().kind, Kind::AlreadyExists);
}

#[tokio::test]
async fn a_finish_whose_answer_was_lost_is_recognised() {
    const PART: usize = 5 << 20;
    let b = bed();
    let bodies: Vec<Bytes> = [vec![1u8; PART], vec![2; PART], vec![3; 7]].map(Bytes::from).to_vec();
    let send = async || {
        let id = b.store.begin_upload("a").await.unwrap();
        let mut parts = Vec::new();
        for (i, body) in bodies.iter().enumerate() {
            let number = u32::try_from(i).unwrap() + 1;
            let part = b.store.upload_part("a", &id, number, (i * PART) as u64, body.clone().into()).await;
            // As stores do that lose answers.
            parts.push(Part { crc64: Some(crc64(std::slice::from_ref(body))), ..part.unwrap() });
        }
        (id, parts)
    };
    let (id, parts) = send().await;
    b.faulty.add(Fault::new(Operation::FinishUpload, LOST).times(1));
    b.store.finish_upload("a", &id, &parts).await.unwrap();
    assert_eq!(b.recorder.count(Operation::FinishUpload), 2);

    // The same finish again, first answer lost: the object is there, but so it was before.
    let (id, mut parts) = send().await;
    b.faulty.add(Fault::new(Operation::FinishUpload, FAIL).times(1));
    b.store.finish_upload("a", &id, &parts).await.unwrap();
    parts[1].crc64 = parts[1].crc64.map(|sum| sum ^ 1);
    b.faulty.add(Fault::new(Operation::FinishUpload, FAIL).times(1));
    assert_eq!(b.store.finish_upload("a", &id, &parts).await.unwrap_err().kind, Kind::NotFound);
}
