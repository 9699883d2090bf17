//! Single objects: created once, read exactly, deleted for good.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Bed, Outcome, doing, ensure, noise, refused};
use crate::store::{Body, StoreErrorKind as Kind};

/// Clocks of stores and of the machine are no further apart than this in any test bed.
const SKEW: Duration = Duration::from_hours(1);

/// Times of stores may be whole seconds.
const GRAIN: Duration = Duration::from_secs(2);

pub(super) async fn contents_come_back(bed: &Bed<'_>) -> Outcome {
    let every_byte: Bytes = (0..=255).collect::<Vec<u8>>().into();
    let big = noise(1, (3 << 20) + 17);
    // Slices of odd lengths, empty ones between them, and more of them than one system call takes.
    let uneven = (0..3000).map(|i| noise(i, usize::try_from(i * 7 % 257).unwrap_or(0)));
    let bodies: [(&str, Body); 6] = [
        ("empty", Body::default()),
        ("empty-slices", [Bytes::new(), Bytes::new()].into_iter().collect()),
        ("bytes", every_byte.into()),
        ("big", big.clone().into()),
        ("uneven", uneven.collect()),
        (
            "unaligned",
            [big.slice(1..4098), big.slice(4098..1 << 20), big.slice(3..2_000_003)].into_iter().collect(),
        ),
    ];
    for (name, body) in bodies {
        let key = bed.key(&format!("contents/{name}"));
        let want = body.slices().concat();
        doing("create", bed.store.create(&key, body).await)?;
        let found = doing("read_all", bed.store.read_all(&key, want.len() as u64).await)?;
        ensure!(
            found == want,
            "{name}: {} other bytes came back than the {} written",
            found.len(),
            want.len()
        );
        let info = doing("stat", bed.store.stat(&key).await)?;
        ensure!(info.key == key && info.size == want.len() as u64, "{name}: stat says {info:?}");
    }
    Ok(())
}

pub(super) async fn create_refuses_what_exists(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("taken");
    let first = noise(1, 1000);
    doing("create", bed.store.create(&key, first.clone().into()).await)?;
    for second in [Body::default(), first.clone().into(), noise(2, 1000).into(), noise(3, 100_000).into()] {
        refused(bed.store.create(&key, second).await, &[Kind::AlreadyExists], "a second creation")?;
        let found = doing("read_all", bed.store.read_all(&key, 1000).await)?;
        ensure!(found == first, "a refused creation changed the object");
    }
    Ok(())
}

pub(super) async fn create_has_one_winner(bed: &Bed<'_>) -> Outcome {
    for (round, size) in [(0, 100), (1, 20_000), (2, 0x10_0000)] {
        let key = bed.key(&format!("race/{round}"));
        let done = join_all((0..16).map(|n| bed.store.create(&key, noise(n, size).into()))).await;
        let mut winners = Vec::new();
        for (n, outcome) in (0..).zip(done) {
            match outcome {
                Ok(()) => winners.push(n),
                // A server that refuses before it has read the body may cut the connection: the refusal is lost.
                other if size > 0x4_0000 => {
                    refused(
                        other,
                        &[Kind::AlreadyExists, Kind::Transient],
                        "a losing creation of a large object",
                    )?;
                }
                other => refused(other, &[Kind::AlreadyExists], "a losing creation")?,
            }
        }
        let &[winner] = &winners[..] else { return Err(format!("{} of 16 creations won", winners.len())) };
        let found = doing("read_all", bed.store.read_all(&key, size as u64).await)?;
        ensure!(found == noise(winner, size), "the object is not the winner's");
    }
    Ok(())
}

pub(super) async fn ranges_are_exact(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("ranges");
    let data = noise(7, 100_000);
    let size = data.len();
    doing("create", bed.store.create(&key, data.clone().into()).await)?;
    for (from, to) in [
        (0, 1),
        (0, size),
        (1, 2),
        (4095, 4097),
        (size - 1, size),
        (17, 65_553),
        (0, 0),
        (5, 5),
        (size, size),
    ] {
        let found = doing("read", bed.store.read(&key, from as u64..to as u64).await)?;
        ensure!(found == data[from..to], "bytes {from}..{to} came back as {} other ones", found.len());
    }
    let size = size as u64;
    let reversed = std::ops::Range { start: 5, end: 4 };
    for range in
        [0..size + 1, size - 1..size + 1, size..size + 1, size + 1..size + 2, size + 5..size + 5, reversed]
    {
        let text = format!("reading {range:?} of {size} bytes");
        refused(bed.store.read(&key, range).await, &[Kind::OutOfRange], &text)?;
    }
    let empty = bed.key("ranges-empty");
    doing("create", bed.store.create(&empty, Body::default()).await)?;
    let found = doing("read", bed.store.read(&empty, 0..0).await)?;
    ensure!(found.is_empty(), "nothing of nothing is {} bytes", found.len());
    refused(bed.store.read(&empty, 0..1).await, &[Kind::OutOfRange], "reading from an empty object")
}

pub(super) async fn whole_reads_have_a_limit(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("limit");
    doing("create", bed.store.create(&key, noise(8, 1000).into()).await)?;
    for limit in [1000, 1001, u64::MAX] {
        let found = doing("read_all", bed.store.read_all(&key, limit).await)?;
        ensure!(found.len() == 1000, "limit {limit}: {} bytes of 1000", found.len());
    }
    for limit in [0, 999] {
        refused(bed.store.read_all(&key, limit).await, &[Kind::OutOfRange], "reading more than the limit")?;
    }
    Ok(())
}

pub(super) async fn absence_is_told_apart(bed: &Bed<'_>) -> Outcome {
    absent(bed, &["nothing", "other/object"]).await
}

pub(super) async fn a_folder_is_no_object(bed: &Bed<'_>) -> Outcome {
    doing("create", bed.store.create(&bed.key("folder/object"), noise(9, 5).into()).await)?;
    absent(bed, &["folder", "folder/other"]).await?;
    ensure!(
        bed.store.stat(&bed.key("folder/object")).await.is_ok(),
        "deleting `folder` deleted what is in it"
    );
    Ok(())
}

async fn absent(bed: &Bed<'_>, names: &[&str]) -> Outcome {
    for name in names {
        let key = bed.key(name);
        refused(bed.store.read(&key, 0..1).await, &[Kind::NotFound], "reading what is not there")?;
        refused(bed.store.read(&key, 0..0).await, &[Kind::NotFound], "reading nothing of what is not there")?;
        refused(bed.store.read_all(&key, 10).await, &[Kind::NotFound], "reading all of what is not there")?;
        refused(bed.store.stat(&key).await, &[Kind::NotFound], "asking about what is not there")?;
        doing("deleting what is not there", bed.store.delete(&key).await)?;
    }
    Ok(())
}

pub(super) async fn bad_keys_are_refused(bed: &Bed<'_>) -> Outcome {
    let long = "x".repeat(2000);
    let mut bad: Vec<String> = ["", "/", "/etc/passwd", "..", "tmp", "tmp/x"].map(String::from).to_vec();
    bad.extend(
        ["..", "../x", "x/../../x", "./x", "x//y", "x/", "ü", "a b", "a\nb", &long].map(|k| bed.key(k)),
    );
    for key in &bad {
        let store = bed.store;
        let outcomes = [
            store.create(key, Body::default()).await.err(),
            store.read(key, 0..0).await.err(),
            store.read_all(key, 1).await.err(),
            store.stat(key).await.err(),
            store.delete(key).await.err(),
            store.begin_upload(key).await.err(),
            store.upload_part(key, "x", 1, 0, Body::default()).await.err(),
            store.finish_upload(key, "x", &[]).await.err(),
            store.abort_upload(key, "x").await.err(),
        ];
        for outcome in outcomes {
            ensure!(outcome.as_ref().is_some_and(|e| e.kind == Kind::Other), "key {key:?}: {outcome:?}");
        }
    }
    for prefix in ["..", "/", "x/../y", "x//"] {
        refused(bed.store.list(prefix, None).await, &[Kind::Other], "listing a bad prefix")?;
    }
    Ok(())
}

pub(super) async fn deleting_is_idempotent(bed: &Bed<'_>) -> Outcome {
    let (key, beside) = (bed.key("delete/me"), bed.key("delete/me-not"));
    for round in 0..2u8 {
        doing("create", bed.store.create(&key, vec![round].into()).await)?;
        if round == 0 {
            doing("create", bed.store.create(&beside, vec![9].into()).await)?;
        }
        for _ in 0..2 {
            doing("delete", bed.store.delete(&key).await)?;
            refused(bed.store.read_all(&key, 1).await, &[Kind::NotFound], "reading what was deleted")?;
        }
        let page = doing("list", bed.store.list(&bed.key("delete/"), None).await)?;
        ensure!(page.objects.iter().all(|o| o.key == beside), "listed after deletion: {:?}", page.objects);
    }
    let found = doing("read_all", bed.store.read_all(&beside, 1).await)?;
    ensure!(found == [9u8][..], "the neighbour changed");
    Ok(())
}

pub(super) async fn the_clock_is_sane(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("clock");
    let here = std::time::SystemTime::now();
    let before = doing("now", bed.store.now().await)?;
    doing("create", bed.store.create(&key, Body::default()).await)?;
    let modified = doing("stat", bed.store.stat(&key).await)?.modified;
    let after = doing("now", bed.store.now().await)?;
    ensure!(before <= after + GRAIN, "the clock goes backwards: {before:?}, {after:?}");
    ensure!(
        before <= modified + GRAIN && modified <= after + GRAIN,
        "written between {before:?} and {after:?}, but dated {modified:?}"
    );
    ensure!(before + SKEW > here && here + SKEW > before, "the clock says {before:?} at {here:?}");
    Ok(())
}
