//! Changed block tracking against what was really written.

use std::fs;
use std::os::unix::fs::FileExt as _;

use tonic::{Code, Status, Streaming};

use crate::bed::{Bed, MIB, code};
use crate::csi::{
    BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataDeltaRequest, GetMetadataResponse,
};

/// All of a stream: offsets and sizes, and how many messages they came in.
async fn collect(
    stream: Result<tonic::Response<Streaming<GetMetadataResponse>>, Status>,
    kind: BlockMetadataType,
) -> Result<(Vec<(u64, u64)>, usize), Status> {
    let mut stream = stream?.into_inner();
    let (mut all, mut messages) = (Vec::new(), 0);
    while let Some(message) = stream.message().await? {
        assert_eq!(message.block_metadata_type(), kind);
        assert_eq!(message.volume_capacity_bytes, 8 << 20);
        let tuple = |b: &crate::csi::BlockMetadata| {
            (u64::try_from(b.byte_offset).unwrap(), u64::try_from(b.size_bytes).unwrap())
        };
        all.extend(message.block_metadata.iter().map(tuple));
        messages += 1;
    }
    Ok((all, messages))
}

async fn allocated(
    bed: &Bed,
    id: &str,
    from: i64,
    max: i32,
    kind: BlockMetadataType,
) -> Result<(Vec<(u64, u64)>, usize), Status> {
    let request =
        GetMetadataAllocatedRequest { snapshot_id: id.to_owned(), starting_offset: from, max_results: max };
    collect(bed.metadata().get_metadata_allocated(request).await, kind).await
}

async fn delta(
    bed: &Bed,
    base: &str,
    target: &str,
    from: i64,
    kind: BlockMetadataType,
) -> Result<(Vec<(u64, u64)>, usize), Status> {
    let request = GetMetadataDeltaRequest {
        base_snapshot_id: base.to_owned(),
        target_snapshot_id: target.to_owned(),
        starting_offset: from,
        max_results: 0,
    };
    collect(bed.metadata().get_metadata_delta(request).await, kind).await
}

/// A volume and two snapshots: 300 blocks written from 1 MiB on; then two of them written again, ten made zero and one
/// more written.
async fn snapshots(bed: &Bed) -> (String, String, String) {
    let volume = bed.create("volume", 8, None).await.unwrap();
    let device = fs::File::options().write(true).open(bed.device(&volume).await).unwrap();
    device.write_all_at(&vec![1; 300 * 4096], MIB).unwrap();
    let base = bed.snapshot("base", &volume).await.unwrap();
    device.write_all_at(&[2; 2 * 4096], MIB + 3 * 4096).unwrap();
    device.write_all_at(&[0; 10 * 4096], MIB + 100 * 4096).unwrap();
    device.write_all_at(&[1; 4096], 7 * MIB).unwrap();
    let target = bed.snapshot("target", &volume).await.unwrap();
    (volume, base, target)
}

fn blocks(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    ranges.iter().flat_map(|(at, count)| (0..*count).map(move |i| (at + i * 4096, 4096))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_are_those_that_were_written() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let kind = BlockMetadataType::FixedLength;
    let (_, base, target) = snapshots(&bed).await;
    let written = blocks(&[(MIB, 300)]);
    assert_eq!(allocated(&bed, &base, 0, 0, kind).await.unwrap(), (written.clone(), 2), "256 a message");
    assert_eq!(allocated(&bed, &base, 0, 100, kind).await.unwrap(), (written.clone(), 3));
    assert_eq!(allocated(&bed, &base, 0, 100_000, kind).await.unwrap(), (written.clone(), 1));
    let changed = blocks(&[(MIB + 3 * 4096, 2), (MIB + 100 * 4096, 10), (7 * MIB, 1)]);
    assert_eq!(delta(&bed, &base, &target, 0, kind).await.unwrap(), (changed.clone(), 1));
    assert_eq!(delta(&bed, &target, &target, 0, kind).await.unwrap(), (Vec::new(), 1));

    // Going on where a stream broke off, within a block too.
    let mib = i64::try_from(MIB).unwrap();
    assert_eq!(allocated(&bed, &base, mib + 4096, 0, kind).await.unwrap().0, written[1..]);
    assert_eq!(allocated(&bed, &base, mib + 8191, 0, kind).await.unwrap().0, written[1..]);
    assert_eq!(delta(&bed, &base, &target, mib + 5 * 4096, kind).await.unwrap().0, changed[2..]);
    assert_eq!(delta(&bed, &base, &target, 8 * mib, kind).await.unwrap(), (Vec::new(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_can_be_of_any_length() {
    let Some(bed) = Bed::new(&["--block-length", "variable"]).await else { return };
    let kind = BlockMetadataType::VariableLength;
    let (_, base, target) = snapshots(&bed).await;
    assert_eq!(allocated(&bed, &base, 0, 0, kind).await.unwrap().0, [(MIB, 300 * 4096)]);
    let changed = [(MIB + 3 * 4096, 2 * 4096), (MIB + 100 * 4096, 10 * 4096), (7 * MIB, 4096)];
    assert_eq!(delta(&bed, &base, &target, 0, kind).await.unwrap().0, changed);
    assert_eq!(allocated(&bed, &base, 3 << 20, 0, kind).await.unwrap(), (Vec::new(), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let kind = BlockMetadataType::FixedLength;
    let (volume, base, target) = snapshots(&bed).await;
    let other = bed.create("other", 8, None).await.unwrap();
    let other = bed.snapshot("of another", &other).await.unwrap();
    let capacity = 8 << 20;
    assert_eq!(code(&allocated(&bed, "", 0, 0, kind).await), Code::InvalidArgument);
    assert_eq!(code(&allocated(&bed, "snap-0000000000000000", 0, 0, kind).await), Code::NotFound);
    assert_eq!(code(&allocated(&bed, &volume, 0, 0, kind).await), Code::NotFound);
    assert_eq!(code(&allocated(&bed, &base, -1, 0, kind).await), Code::OutOfRange);
    assert_eq!(code(&allocated(&bed, &base, capacity + 1, 0, kind).await), Code::OutOfRange);
    assert_eq!(code(&allocated(&bed, &base, 0, -1, kind).await), Code::InvalidArgument);
    assert_eq!(code(&delta(&bed, "", &target, 0, kind).await), Code::InvalidArgument);
    assert_eq!(code(&delta(&bed, "gone", &target, 0, kind).await), Code::NotFound);
    assert_eq!(code(&delta(&bed, &other, &target, 0, kind).await), Code::InvalidArgument);
    assert_eq!(code(&delta(&bed, &base, &target, capacity + 1, kind).await), Code::OutOfRange);
}
