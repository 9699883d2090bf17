use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use super::*;

fn store() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::new(dir.path().join("repo")).unwrap();
    (dir, store)
}

fn kind<T: std::fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorKind {
    result.unwrap_err().kind
}

#[tokio::test]
async fn nothing_is_made_before_the_first_creation() {
    let (_dir, s) = store();
    assert_eq!(kind(s.read_all("config", 10).await), StoreErrorKind::NotFound);
    assert!(s.list("", None).await.unwrap().objects.is_empty());
    s.delete("config").await.unwrap();
    s.abort_upload("config", "nothing").await.unwrap();
    assert!(!s.root().exists());
}

#[tokio::test]
async fn only_the_owner_can_read() {
    let (_dir, s) = store();
    s.create("packs/00/x", vec![1; 10].into()).await.unwrap();
    let mode = |p: &str| fs::metadata(s.root().join(p)).unwrap().permissions().mode() & 0o7777;
    assert_eq!([mode(""), mode("packs"), mode("packs/00"), mode("tmp")], [0o700; 4]);
    assert_eq!(mode("packs/00/x"), 0o600);
}

#[tokio::test]
async fn no_temporary_file_stays() {
    let (_dir, s) = store();
    let left = |s: &LocalStore| fs::read_dir(s.root().join("tmp")).unwrap().count();
    s.create("a", vec![1; 10].into()).await.unwrap();
    s.create("a", vec![1; 10].into()).await.unwrap_err();
    s.now().await.unwrap();
    assert_eq!(left(&s), 0);
    let upload = s.begin_upload("b").await.unwrap();
    s.upload_part("b", &upload, 1, 0, vec![1; 10].into()).await.unwrap();
    assert_eq!(left(&s), 1);
    // Another process may clean up after this one.
    LocalStore::new(s.root()).unwrap().abort_upload("b", &upload).await.unwrap();
    assert_eq!(left(&s), 0);
    s.abort_upload("b", &upload).await.unwrap();
    s.begin_upload("c").await.unwrap();
    assert_eq!(left(&s), 1);
    let root = s.root().to_owned();
    drop(s);
    assert_eq!(left(&LocalStore::new(root).unwrap()), 0);
}

#[tokio::test]
async fn leftovers_go_when_old_and_not_locked() {
    let (_dir, s) = store();
    let tmp = s.root().join("tmp");
    fs::create_dir_all(&tmp).unwrap();
    let put = |name: &str, age_hours: u64| {
        let path = tmp.join(name);
        let file = File::create(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(age_hours)).unwrap();
        (path, file)
    };
    let (dead, _) = put(&format!("{:032x}.upload", 1), 25);
    let (young, _) = put(&format!("{:032x}.upload", 2), 23);
    let (foreign, _) = put("notes.txt", 1000);
    let (alive, held) = put(&format!("{:032x}.object", 3), 1000);
    held.lock().unwrap();
    s.create("a", Body::default()).await.unwrap();
    assert!(!dead.exists());
    assert!(young.exists() && foreign.exists() && alive.exists());
}

#[tokio::test]
async fn parts_that_did_not_arrive_are_noticed() {
    let (_dir, s) = store();
    let upload = s.begin_upload("k").await.unwrap();
    let one = s.upload_part("k", &upload, 1, 0, vec![1; 100].into()).await.unwrap();
    let two = Part { number: 2, ..one.clone() };
    assert_eq!(kind(s.finish_upload("k", &upload, &[one.clone(), two]).await), StoreErrorKind::Other);
    // Part 2 at the wrong place would leave a hole.
    let two = s.upload_part("k", &upload, 2, 200, vec![2; 100].into()).await.unwrap();
    assert_eq!(kind(s.finish_upload("k", &upload, &[one.clone(), two]).await), StoreErrorKind::Other);
    let two = s.upload_part("k", &upload, 2, 100, vec![2; 50].into()).await.unwrap();
    s.finish_upload("k", &upload, &[one, two]).await.unwrap();
    assert_eq!(s.read_all("k", 1000).await.unwrap(), [[1u8; 100].as_slice(), &[2; 50]].concat());
}

#[test]
fn kinds_of_system_errors() {
    let kind = |e: rustix::io::Errno| kind_of(&e.into());
    use rustix::io::Errno as E;
    assert_eq!(kind(E::NOSPC), StoreErrorKind::Full);
    assert_eq!(kind(E::DQUOT), StoreErrorKind::Full);
    assert_eq!(kind(E::ACCESS), StoreErrorKind::Denied);
    assert_eq!(kind(E::ROFS), StoreErrorKind::Denied);
    // A failed sync: final.
    assert_eq!(kind(E::IO), StoreErrorKind::Other);
}
