//! Making, opening, keys, damage; and fixed inputs that must give fixed bytes for ever.

use std::sync::Arc;

use super::config::{self, CONFIG_KEY, FORMAT_LEVEL};
use super::slots::{Slot, SlotDraft, slot_key};
use super::test_store::{TestStore, key_file};
use super::*;
use crate::error::Kind;
use crate::seal::Secret;
use crate::seal::keys::Kdf;

fn pass(text: &str) -> Secret {
    Secret::passphrase(text)
}

async fn kind_of_open(store: &Arc<TestStore>, secret: &Secret) -> (Kind, String) {
    match Repository::open(store.clone(), secret).await {
        Ok(_) => panic!("opened"),
        Err(e) => (e.kind(), e.to_string()),
    }
}

async fn kind_of_init(store: &Arc<TestStore>, secret: &Secret) -> (Kind, String) {
    match Repository::init(store.clone(), secret, InitOptions::default()).await {
        Ok(_) => panic!("made"),
        Err(e) => (e.kind(), e.to_string()),
    }
}

#[tokio::test]
async fn a_passphrase_opens_what_it_made_and_nothing_else_does() {
    let store = TestStore::new();
    let made = Repository::init(store.clone(), &pass("correct horse"), InitOptions::default()).await.unwrap();
    let (opened, report) = Repository::open(store.clone(), &pass("correct horse")).await.unwrap();
    assert_eq!(opened.master().expose(), made.master().expose());
    assert_eq!((opened.id(), opened.config()), (made.id(), made.config()));
    assert_eq!((report.slot.as_str(), report.bad_slots, report.barred), (made.slot(), vec![], vec![]));
    assert!(!opened.single_writer());

    let (kind, text) = kind_of_open(&store, &pass("correct horse ")).await;
    assert_eq!((kind, text.as_str()), (Kind::WrongKey, "memory:: no key slot opens with this passphrase"));
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::WrongKey);
    assert!(!format!("{opened:?} {report:?}", report = opened.config()).contains("correct"));
    assert_eq!(store.keys("").len(), 2, "config and one slot, nothing left of the probe");
}

#[tokio::test]
async fn a_location_that_is_taken_is_refused() {
    let (store, _) = TestStore::repository().await;
    let (kind, text) = kind_of_init(&store, &key_file(2)).await;
    assert_eq!((kind, text.as_str()), (Kind::Repository, "memory:: there is a repository here already"));

    let store = TestStore::new();
    store.put("photos/1.jpg", vec![1]);
    let (kind, text) = kind_of_init(&store, &key_file(2)).await;
    assert_eq!(kind, Kind::Repository);
    assert!(text.contains("photos/1.jpg"), "{text}");
    let (kind, text) = kind_of_open(&store, &key_file(2)).await;
    assert_eq!((kind, text.as_str()), (Kind::Repository, "memory:: there is no repository here"));

    // A repository that lost its config is not built over.
    let (store, _) = TestStore::repository().await;
    store.put("packs/00/x", vec![1]);
    store.remove(CONFIG_KEY);
    assert_eq!(kind_of_init(&store, &key_file(2)).await.0, Kind::Repository);
    let (kind, text) = kind_of_open(&store, &key_file(1)).await;
    assert_eq!(kind, Kind::Repository);
    assert!(text.contains("`config` is missing"), "{text}");
}

#[tokio::test]
async fn an_init_that_died_can_be_run_again() {
    let (store, _) = TestStore::repository().await;
    store.remove(CONFIG_KEY);
    let again = Repository::init(store.clone(), &key_file(1), InitOptions::default()).await.unwrap();
    let (opened, report) = Repository::open(store, &key_file(1)).await.unwrap();
    assert_eq!(opened.id(), again.id());
    assert_eq!(report.bad_slots.len(), 1);
    assert!(!report.bad_slots[0].damaged && report.bad_slots[0].what.contains("did not finish"));
}

#[tokio::test]
async fn a_lost_answer_to_the_last_write_of_init_is_success() {
    for kind in [StoreErrorKind::AlreadyExists, StoreErrorKind::Transient] {
        let store = TestStore::new();
        store.lose_answer(CONFIG_KEY, kind);
        store.lose_answer("keys/", kind);
        Repository::init(store.clone(), &key_file(1), InitOptions::default()).await.unwrap();
        Repository::open(store, &key_file(1)).await.unwrap();
    }
}

#[tokio::test]
async fn unacceptable_secrets_make_no_repository() {
    let store = TestStore::new();
    for text in ["", " \n", "static-passw0rd", "Static-Passw0rd\n", "password"] {
        assert_eq!(kind_of_init(&store, &pass(text)).await.0, Kind::Usage, "{text:?}");
    }
    let small = Secret::KeyFile(zeroize::Zeroizing::new(vec![7; 31]));
    assert_eq!(kind_of_init(&store, &small).await.0, Kind::Usage);
    assert!(Secret::key_file(vec![7; 31]).is_err() && Secret::key_file(vec![7; (64 << 10) + 1]).is_err());
    assert!(store.keys("").is_empty());

    assert!(pass("short").weakness().is_some() && pass("long enough for all").weakness().is_none());
    assert!(Secret::key_file(vec![7; 64]).unwrap().weakness().is_some() && key_file(1).weakness().is_none());
    let Secret::Passphrase(text) = Secret::passphrase_from_file(b"two\nlines\r\n".to_vec()) else { panic!() };
    assert_eq!(text.as_slice(), b"two\nlines");
}

#[tokio::test]
async fn a_store_without_create_if_absent_is_refused_or_marked() {
    let store = TestStore::new();
    store.careless();
    let (kind, text) = kind_of_init(&store, &key_file(1)).await;
    assert_eq!(kind, Kind::Repository);
    assert!(text.contains("only if it is absent (a second creation"), "{text}");
    assert!(store.keys("").is_empty());
    let options = InitOptions { accept_single_writer: true, ..InitOptions::default() };
    Repository::init(store.clone(), &key_file(1), options).await.unwrap();
    assert!(Repository::open(store, &key_file(1)).await.unwrap().0.single_writer());
}

#[tokio::test]
async fn slots_are_added_listed_changed_and_removed_but_never_the_last() {
    let (store, repository) = TestStore::repository().await;
    let first = repository.slot().to_owned();
    assert_eq!(repository.remove_key(&first).await.unwrap_err().kind(), Kind::Usage);

    let added = repository.add_key(&key_file(2), "for restores").await.unwrap();
    assert_eq!(repository.add_key(&key_file(3), "a\nb").await.unwrap_err().kind(), Kind::Usage);
    let (slots, bad) = repository.list_keys().await.unwrap();
    assert_eq!((slots.len(), bad.len()), (2, 0));
    assert!(slots.contains(&added) && added.label == "for restores" && added.kind == SlotKind::KeyFile);
    assert_eq!(added.created_ms, 1_800_000_000_000);

    let (mut by_second, report) = Repository::open(store.clone(), &key_file(2)).await.unwrap();
    assert_eq!(report.slot, added.name);
    let (changed, failed) = by_second.change_key(&pass("a longer passphrase"), Some("mine")).await.unwrap();
    assert!(failed.is_none() && by_second.slot() == changed.name && changed.kind == SlotKind::Passphrase);
    assert_eq!(kind_of_open(&store, &key_file(2)).await.0, Kind::WrongKey);
    Repository::open(store.clone(), &pass("a longer passphrase")).await.unwrap();

    assert_eq!(repository.remove_key("zz").await.unwrap_err().kind(), Kind::Usage);
    assert_eq!(repository.remove_key("").await.unwrap_err().kind(), Kind::Usage);
    repository.remove_key(&first[..12]).await.unwrap();
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::WrongKey);
    assert_eq!(store.keys("keys/"), [slot_key(&changed.name)]);
}

#[tokio::test]
async fn any_flipped_bit_of_a_slot_is_named_and_another_slot_opens() {
    let (store, repository) = TestStore::repository().await;
    repository.add_key(&key_file(2), "second").await.unwrap();
    let key = slot_key(repository.slot());
    let sound = store.get(&key);
    for bit in 0..sound.len() * 8 {
        store.flip(&key, bit);
        let (_, report) = Repository::open(store.clone(), &key_file(2)).await.unwrap();
        assert_eq!(report.bad_slots.len(), 1, "bit {bit}");
        assert_eq!(report.bad_slots[0].key, key);
        let error = Repository::open(store.clone(), &key_file(1)).await.unwrap_err();
        match error.kind() {
            Kind::Damage => assert!(error.to_string().contains(&key), "{error}"),
            // Only a later format is not called damage.
            Kind::WrongKey => assert!(report.bad_slots[0].what.contains("format"), "{:?}", report.bad_slots),
            other => panic!("bit {bit}: {other:?}"),
        }
        store.put(&key, sound.clone());
    }
    store.remove(&key);
    store.remove(&slot_key(&repository.list_keys().await.unwrap().0[0].name));
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::Damage, "no slot at all");
}

#[tokio::test]
async fn any_flipped_bit_of_config_is_an_error() {
    let (store, _) = TestStore::repository().await;
    let sound = store.get(CONFIG_KEY);
    for bit in 0..sound.len() * 8 {
        store.flip(CONFIG_KEY, bit);
        let (kind, text) = kind_of_open(&store, &key_file(1)).await;
        // Magic and format say what the object is: they cannot be told from a foreign or newer one.
        let expected = if bit < 80 { Kind::Repository } else { Kind::Damage };
        assert!(kind == expected && text.contains("config"), "bit {bit}: {text}");
        store.put(CONFIG_KEY, sound.clone());
    }
    for len in 0..sound.len() {
        store.put(CONFIG_KEY, sound.slice(..len));
        assert!(Repository::open(store.clone(), &key_file(1)).await.is_err());
    }
}

#[tokio::test]
async fn a_config_that_somebody_else_wrote_is_not_believed() {
    let (store, repository) = TestStore::repository().await;
    let mut other = repository.config().clone();
    other.parameters.block_chunk = 16 << 10;
    store.put(CONFIG_KEY, other.encode(&MasterKey::generate().unwrap()).unwrap());
    let (kind, text) = kind_of_open(&store, &key_file(1)).await;
    assert_eq!((kind, text.as_str()), (Kind::Damage, "damaged: config: authentication failed"));
}

#[tokio::test]
async fn what_a_newer_repository_allows_depends_on_the_operation() {
    let (store, repository) = TestStore::repository().await;
    let mut config = repository.config().clone();
    let write = |config: &Config| store.put(CONFIG_KEY, config.encode(repository.master()).unwrap());

    config.min_level = [FORMAT_LEVEL, FORMAT_LEVEL + 1, FORMAT_LEVEL];
    config.features.insert("shards".into(), vec!["gc".into(), "something later".into()]);
    write(&config);
    let (opened, report) = Repository::open(store.clone(), &key_file(1)).await.unwrap();
    opened.allow(Operation::Read).unwrap();
    let barred: Vec<Operation> = report.barred.iter().map(|b| b.0).collect();
    assert_eq!(barred, [Operation::Write, Operation::Gc]);
    assert!(report.barred[0].1.contains("level 2") && report.barred[1].1.contains("`shards`"));
    assert_eq!(opened.add_key(&key_file(2), "").await.unwrap_err().kind(), Kind::Repository);

    config.features.insert("shards".into(), vec!["read".into()]);
    write(&config);
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::Repository);
    config.features.clear();
    config.min_level[0] = FORMAT_LEVEL + 1;
    write(&config);
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::Repository);
}

#[test]
fn hostile_and_weak_parameters_are_refused_before_anything_is_allocated() {
    let refused = |memory_kib, passes, lanes| Kdf::Argon2id { memory_kib, passes, lanes }.check().is_err();
    assert!(refused(u32::MAX, 3, 4) && refused((1 << 20) + 1, 3, 4));
    assert!(refused(64 << 10, 17, 4) && refused(64 << 10, u32::MAX, 4));
    assert!(refused(64 << 10, 3, 17) && refused(64 << 10, 3, 0));
    assert!(refused((19 << 10) - 1, 3, 4) && refused(0, 3, 4) && refused(64 << 10, 1, 4));
    assert!(!refused(1 << 20, 16, 16) && !refused(19 << 10, 2, 1));
    Kdf::PASSPHRASE.check().unwrap();
}

#[tokio::test]
async fn too_many_slots_are_not_tried() {
    let (store, repository) = TestStore::repository().await;
    let slot = store.get(&slot_key(repository.slot()));
    store.remove(&slot_key(repository.slot()));
    for i in 0..70 {
        // The same slot under other names: sound to look at, and bound to another name.
        store.put(&slot_key(&format!("{i:016x}")), slot.clone());
    }
    assert_eq!(kind_of_open(&store, &key_file(1)).await.0, Kind::WrongKey);
    let (slots, bad) = repository.list_keys().await.unwrap();
    assert_eq!((slots.len(), bad.len()), (64, 1));
}

/// Master key of the vectors: 0, 1, 2, ... 31.
fn golden_master() -> MasterKey {
    MasterKey::from_bytes(std::array::from_fn(|i| u8::try_from(i).unwrap()))
}

fn golden_slot(secret: &Secret, kdf: Kdf) -> Slot {
    let draft = SlotDraft {
        repository: RepositoryId([0xA1; 16]),
        epoch: 1,
        name: "00112233445566aa",
        label: "vector",
        created_ms: 1_800_000_000_000,
        kdf,
        salt: std::array::from_fn(|i| u8::try_from(i).unwrap() + 100),
    };
    Slot::seal(&draft, secret, &golden_master()).unwrap()
}

fn golden(name: &str, found: &str) {
    let all = include_str!("vectors.txt");
    let expected = all.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
    assert_eq!(Some(found), expected, "{name}");
}

#[test]
fn golden_slots() {
    let argon = Kdf::Argon2id { memory_kib: 19 << 10, passes: 2, lanes: 1 };
    for (name, secret, kdf) in [
        ("slot passphrase", pass("correct horse battery staple"), argon),
        ("slot passphrase 64 MiB", pass("correct horse battery staple"), Kdf::PASSPHRASE),
        ("slot key file", Secret::key_file((0..=255).collect::<Vec<u8>>()).unwrap(), Kdf::Blake3 {}),
    ] {
        let slot = golden_slot(&secret, kdf);
        let bytes = slot.encode().unwrap();
        golden(name, std::str::from_utf8(&bytes).unwrap().trim_end());
        let read = Slot::decode("keys/00112233445566aa", &bytes, RepositoryId([0xA1; 16])).unwrap();
        let kek = read.kek(&secret).unwrap();
        let master = read.unwrap(&kek, "00112233445566aa").unwrap().unwrap();
        assert_eq!(master.expose(), golden_master().expose());
        assert!(read.unwrap(&kek, "00112233445566ab").unwrap().is_none(), "bound to its name");
    }
}

#[test]
fn golden_config() {
    let config = Config {
        min_level: [1, 1, 1],
        repository: RepositoryId([0xA1; 16]),
        epoch: 1,
        parameters: Parameters::default(),
        features: [("example".to_owned(), vec!["gc".to_owned()])].into(),
        single_writer: false,
        created_ms: 1_800_000_000_000,
        tool: "tradewind 0.1.0".into(),
    };
    let bytes = config.encode(&golden_master()).unwrap();
    golden("config", &hex::encode(&bytes));
    assert_eq!(Config::decode("here", &bytes).unwrap(), config);
    config::verify(&golden_master(), &bytes).unwrap();
}

#[test]
fn golden_keys() {
    use crate::hash::{Hasher, ObjectType};
    let master = golden_master();
    let derived = |purpose, input: &[u8]| hex::encode(master.derive(purpose, input));
    golden("key id data", &derived("tradewind v1 id", &[1]));
    golden("key config", &derived("tradewind v1 config", &[]));
    golden("id data abc", &hex::encode(Hasher::new(&master).id(ObjectType::Data, b"abc").0));
    golden("id extents abc", &hex::encode(Hasher::new(&master).id(ObjectType::Extents, b"abc").0));
    let mut volume = [0; 16];
    master.derive_into("tradewind v1 volume name", b"host:/srv/data", &mut volume);
    golden("volume host:/srv/data", &hex::encode(volume));
    let (id, session) = ([0xB2; 16], crate::pack::SessionId([0xC3; 12]));
    let input = [&1u32.to_le_bytes()[..], &id, &session.0].concat();
    golden("key pack", &derived("tradewind v1 pack", &input));
    let key = crate::seal::PackKey::derive(&master, 1, crate::pack::PackName { id, session }).unwrap();
    golden("commitment", &hex::encode(key.commitment));
    let input = [&1u32.to_le_bytes()[..], &[1], &[0xD4; 16]].concat();
    golden("key object", &derived("tradewind v1 object", &input));
}
