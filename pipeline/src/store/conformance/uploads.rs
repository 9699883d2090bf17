//! Uploads in parts: invisible until finished, whole or not at all, never over something that exists.

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Bed, Outcome, doing, ensure, noise, refused};
use crate::store::{Body, OpenUpload, Part, StoreErrorKind as Kind};

/// The smallest part that S3 accepts in front of others.
const PART: usize = 5 << 20;

impl Bed<'_> {
    /// Sends part `number`, made of uneven slices.
    async fn part(&self, key: &str, id: &str, number: u32, data: &Bytes) -> Result<Part, String> {
        let cut = data.len() / 3;
        let body: Body = [data.slice(..cut), Bytes::new(), data.slice(cut..)].into_iter().collect();
        let offset = u64::from(number - 1) * PART as u64;
        let part = doing("upload_part", self.store.upload_part(key, id, number, offset, body).await)?;
        let sum = crate::store::crc64(std::slice::from_ref(data));
        ensure!(
            (part.number, part.size, part.crc64.unwrap_or(sum)) == (number, data.len() as u64, sum),
            "part {number} of {} bytes came back as {part:?}",
            data.len()
        );
        Ok(part)
    }

    /// Sends one small object in one part; returns what is left to do.
    async fn begun(&self, key: &str, data: &Bytes) -> Result<(String, Vec<Part>), String> {
        let id = doing("begin_upload", self.store.begin_upload(key).await)?;
        let part = self.part(key, &id, 1, data).await?;
        Ok((id, vec![part]))
    }

    async fn holds(&self, key: &str, want: &[u8]) -> Outcome {
        let found = doing("read_all", self.store.read_all(key, want.len() as u64).await)?;
        ensure!(
            found == want,
            "{key}: {} other bytes came back than the {} written",
            found.len(),
            want.len()
        );
        Ok(())
    }
}

pub(super) async fn parts_arrive_in_any_order(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/any-order");
    let data: Vec<Bytes> = [(1, PART), (2, PART), (3, PART), (4, 12_345)].map(|(s, n)| noise(s, n)).to_vec();
    let id = doing("begin_upload", bed.store.begin_upload(&key).await)?;
    let last = bed.part(&key, &id, 4, &data[3]).await?;
    let rest = join_all([3, 1, 2].map(|n: u32| bed.part(&key, &id, n, &data[n as usize - 1]))).await;
    let mut parts = rest.into_iter().collect::<Result<Vec<_>, _>>()?;
    parts.push(last);
    parts.sort_by_key(|p| p.number);
    doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
    bed.holds(&key, &data.concat()).await?;
    let across = PART as u64 - 5..PART as u64 + 5;
    let found = doing("read", bed.store.read(&key, across).await)?;
    ensure!(found == [&data[0][PART - 5..], &data[1][..5]].concat(), "bytes across two parts are wrong");
    let info = doing("stat", bed.store.stat(&key).await)?;
    ensure!(info.size == 3 * PART as u64 + 12_345, "stat says {info:?}");
    Ok(())
}

pub(super) async fn unfinished_is_invisible(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/invisible");
    let data = noise(5, 1000);
    let (id, parts) = bed.begun(&key, &data).await?;
    refused(bed.store.stat(&key).await, &[Kind::NotFound], "asking about an unfinished upload")?;
    refused(bed.store.read_all(&key, 10).await, &[Kind::NotFound], "reading an unfinished upload")?;
    let page = doing("list", bed.store.list(&key, None).await)?;
    ensure!(page.objects.is_empty(), "an unfinished upload is listed: {:?}", page.objects);
    doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
    let page = doing("list", bed.store.list(&key, None).await)?;
    ensure!(page.objects.len() == 1, "a finished upload is not listed");
    bed.holds(&key, &data).await
}

pub(super) async fn a_part_can_be_sent_again(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/again");
    let (one, two) = (noise(1, PART), noise(2, 4321));
    let id = doing("begin_upload", bed.store.begin_upload(&key).await)?;
    bed.part(&key, &id, 1, &noise(3, PART)).await?;
    bed.part(&key, &id, 2, &noise(4, 10_000)).await?;
    let parts = [bed.part(&key, &id, 1, &one).await?, bed.part(&key, &id, 2, &two).await?];
    doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
    bed.holds(&key, &[one, two].concat()).await
}

pub(super) async fn one_small_part_will_do(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/small");
    let data = noise(6, 1);
    let (id, parts) = bed.begun(&key, &data).await?;
    refused(bed.store.finish_upload(&key, &id, &[]).await, &[Kind::Other], "finishing without parts")?;
    let gap = Part { number: 2, ..parts[0].clone() };
    refused(bed.store.finish_upload(&key, &id, &[gap]).await, &[Kind::Other], "finishing without part 1")?;
    doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
    bed.holds(&key, &data).await
}

pub(super) async fn finishing_does_not_replace(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/exists");
    let (first, second) = (noise(1, 2000), noise(2, 3000));
    let (id, parts) = bed.begun(&key, &second).await?;
    doing("create", bed.store.create(&key, first.clone().into()).await)?;
    refused(
        bed.store.finish_upload(&key, &id, &parts).await,
        &[Kind::AlreadyExists],
        "finishing over an object",
    )?;
    bed.holds(&key, &first).await?;
    doing("abort_upload", bed.store.abort_upload(&key, &id).await)?;
    bed.holds(&key, &first).await?;
    // And the other way around.
    let key = bed.key("uploads/exists-too");
    let (id, parts) = bed.begun(&key, &second).await?;
    doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
    refused(
        bed.store.create(&key, first.into()).await,
        &[Kind::AlreadyExists],
        "creating over a finished upload",
    )?;
    bed.holds(&key, &second).await
}

pub(super) async fn finish_has_one_winner(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/race");
    let mut uploads = Vec::new();
    for n in 0..4 {
        uploads.push(bed.begun(&key, &noise(n, 5000)).await?);
    }
    let done = join_all(uploads.iter().map(|(id, parts)| bed.store.finish_upload(&key, id, parts))).await;
    let mut winners = Vec::new();
    for (n, outcome) in (0..).zip(done) {
        match outcome {
            Ok(()) => winners.push(n),
            other => refused(other, &[Kind::AlreadyExists, Kind::Transient], "a losing finish")?,
        }
    }
    for (id, _) in &uploads {
        // Whether a store keeps the uploads of losers is its own affair.
        let _ = bed.store.abort_upload(&key, id).await;
    }
    let &[winner] = &winners[..] else { return Err(format!("{} of 4 finishes won", winners.len())) };
    bed.holds(&key, &noise(winner, 5000)).await
}

pub(super) async fn aborting_forgets(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/aborted");
    let (id, parts) = bed.begun(&key, &noise(1, 2000)).await?;
    for _ in 0..2 {
        doing("abort_upload", bed.store.abort_upload(&key, &id).await)?;
    }
    refused(
        bed.store.finish_upload(&key, &id, &parts).await,
        &[Kind::NotFound],
        "finishing an aborted upload",
    )?;
    refused(bed.store.stat(&key).await, &[Kind::NotFound], "asking about an aborted upload")
}

pub(super) async fn begun_uploads_are_listed(bed: &Bed<'_>) -> Outcome {
    let (key, other) = (bed.key("uploads/open/a"), bed.key("uploads/other"));
    let (id, parts) = bed.begun(&key, &noise(1, 100)).await?;
    let (other_id, _) = bed.begun(&other, &noise(2, 100)).await?;
    let prefix = bed.key("uploads/open/");
    match bed.store.open_uploads(&prefix).await {
        // Not every store tells, and with some nothing outlasts its process.
        Err(e) if matches!(e.kind, Kind::Unsupported | Kind::Denied) => {}
        Ok(found) if found.is_empty() => {}
        found => {
            let found = doing("open_uploads", found)?;
            ensure!(found == [OpenUpload { key: key.clone(), upload: id.clone() }], "listed: {found:?}");
            doing("finish_upload", bed.store.finish_upload(&key, &id, &parts).await)?;
            let found = doing("open_uploads", bed.store.open_uploads(&prefix).await)?;
            ensure!(found.is_empty(), "listed after it was finished: {found:?}");
        }
    }
    doing("abort_upload", bed.store.abort_upload(&key, &id).await)?;
    doing("abort_upload", bed.store.abort_upload(&other, &other_id).await)
}

pub(super) async fn unknown_uploads_are_refused(bed: &Bed<'_>) -> Outcome {
    let key = bed.key("uploads/unknown");
    // The id of an upload that was, so that its form is right.
    let id = doing("begin_upload", bed.store.begin_upload(&key).await)?;
    doing("abort_upload", bed.store.abort_upload(&key, &id).await)?;
    let part = bed.store.upload_part(&key, &id, 1, 0, noise(1, 10).into()).await;
    refused(part, &[Kind::NotFound], "a part of an unknown upload")
}
