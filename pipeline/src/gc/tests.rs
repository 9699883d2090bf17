use super::*;
use crate::error::Kind;
use crate::repository::test_store::TestStore;

fn packs(range: std::ops::Range<u32>) -> impl Iterator<Item = PackName> + Send {
    range.map(|i| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&i.to_be_bytes());
        PackName { id, session: SessionId([7; 12]) }
    })
}

async fn unusable(repository: &Repository, after: u32) -> Result<(u32, Vec<PackName>)> {
    let mut seen = Vec::new();
    let newest = visit_unusable(repository, after, &mut |p| seen.push(p)).await?;
    Ok((newest, seen))
}

#[tokio::test]
async fn condemned_packs_are_off_limits_until_it_is_known_which_were_deleted() {
    let (_, repository) = TestStore::repository().await;
    assert_eq!(unusable(&repository, 0).await.unwrap(), (0, vec![]));
    write_list(&repository, 1, Phase::Condemned, packs(0..3)).await.unwrap();
    write_list(&repository, 2, Phase::Condemned, packs(3..5)).await.unwrap();
    assert_eq!(unusable(&repository, 0).await.unwrap(), (2, packs(0..5).collect()));
    assert_eq!(unusable(&repository, 1).await.unwrap(), (2, packs(3..5).collect()));
    assert_eq!(unusable(&repository, 2).await.unwrap(), (2, vec![]));

    write_list(&repository, 1, Phase::Deleted, packs(1..2)).await.unwrap();
    assert_eq!(unusable(&repository, 0).await.unwrap().1, packs(1..2).chain(packs(3..5)).collect::<Vec<_>>());
    let expected =
        [(1, Phase::Deleted), (2, Phase::Condemned)].map(|(number, phase)| Generation { number, phase });
    assert_eq!(generations(&repository, 0).await.unwrap(), expected);
}

#[tokio::test]
async fn a_list_without_its_head_does_not_exist_and_its_number_is_taken() {
    let (store, repository) = TestStore::repository().await;
    let head = write_list(&repository, 1, Phase::Condemned, packs(0..(1 << 16) + 1)).await.unwrap();
    assert_eq!((head.parts, head.packs), (2, (1 << 16) + 1));
    assert_eq!(unusable(&repository, 0).await.unwrap().1.len(), (1 << 16) + 1);
    store.remove(&head_key(1, Phase::Condemned));
    assert_eq!(unusable(&repository, 0).await.unwrap(), (0, vec![]));
    let again = write_list(&repository, 1, Phase::Condemned, packs(0..1)).await.unwrap_err();
    assert_eq!(again.kind(), Kind::Conflict);
}

#[tokio::test]
async fn a_list_that_is_not_whole_is_damage_not_a_shorter_list() {
    let (store, repository) = TestStore::repository().await;
    write_list(&repository, 1, Phase::Condemned, packs(0..3)).await.unwrap();
    for key in store.keys(GC_PREFIX) {
        let sound = store.get(&key);
        for bit in 0..sound.len() * 8 {
            store.flip(&key, bit);
            let error = unusable(&repository, 0).await.unwrap_err();
            assert!(error.kind() == Kind::Damage && error.to_string().contains(&key), "{error}");
            store.put(&key, sound.clone());
        }
    }
    store.remove(&part_key(1, Phase::Condemned, 0));
    assert_eq!(unusable(&repository, 0).await.unwrap_err().kind(), Kind::Damage);
}

#[tokio::test]
async fn records_that_are_being_cleared_away_are_no_damage() {
    let (store, repository) = TestStore::repository().await;
    write_list(&repository, 1, Phase::Condemned, packs(0..3)).await.unwrap();
    write_list(&repository, 1, Phase::Deleted, packs(0..2)).await.unwrap();
    store.remove(&head_key(1, Phase::Deleted));
    assert_eq!(unusable(&repository, 0).await.unwrap().1.len(), 3, "falls back to more");
    store.remove(&head_key(1, Phase::Condemned));
    assert_eq!(unusable(&repository, 0).await.unwrap(), (0, vec![]));
}

#[test]
fn only_canonical_keys_are_heads() {
    assert_eq!(parse_head("gc/0000000a/condemned"), Some((10, Phase::Condemned)));
    for other in
        ["gc/0000000A/condemned", "gc/a/condemned", "gc/0000000a/condemned-00000000", "gc/0000000a/x"]
    {
        assert_eq!(parse_head(other), None, "{other}");
    }
}
