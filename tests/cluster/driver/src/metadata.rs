//! Changed block tracking: CSI's SnapshotMetadata service.
//!
//! A stream is computed as fast as the client takes it. What a base shorter than its target lacks counts as zeros.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use futures_util::Stream;
use futures_util::stream::poll_fn;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::blocks::{BlockLength, Blocks, Range};
use crate::driver::{Driver, Services, internal, log, needed, signed};
use crate::faults::{self, Call};
use crate::proto::csi::snapshot_metadata_server::SnapshotMetadata;
use crate::proto::csi::{
    BlockMetadata, BlockMetadataType, GetMetadataAllocatedRequest, GetMetadataDeltaRequest,
    GetMetadataResponse,
};
use crate::state::Snapshot;

/// Tuples of a message when the client does not say.
const DEFAULT_RESULTS: usize = 256;

/// Tuples of a message at most, whatever the client says: fits into the 4 MiB that clients accept.
const MAX_RESULTS: usize = 1 << 16;

/// What a stream is computed from.
struct Plan {
    blocks: Blocks,
    kind: BlockMetadataType,
    capacity: i64,
    results: usize,
    fault: faults::Metadata,
    delta: bool,
}

type Answers = Pin<Box<dyn Stream<Item = Result<GetMetadataResponse, Status>> + Send>>;

impl Driver {
    fn plan(&self, base: Option<&str>, target: &str, start: i64, results: i32) -> Result<Plan, Status> {
        let target = self.snapshot(target)?;
        let base = base.map(|id| self.snapshot(id)).transpose()?;
        if let Some(base) = base.as_ref().filter(|base| base.volume != target.volume) {
            return Err(Status::invalid_argument(format!(
                "{} is a snapshot of volume {}, and {} of volume {}: they must be of one volume",
                base.id, base.volume, target.id, target.volume
            )));
        }
        let start = u64::try_from(start).ok().filter(|start| *start <= target.size).ok_or_else(|| {
            Status::out_of_range(format!(
                "starting_offset is {start}: the snapshot has bytes 0 to {}",
                target.size
            ))
        })?;
        let results = match usize::try_from(results) {
            Ok(0) => DEFAULT_RESULTS,
            Ok(results) => results.min(MAX_RESULTS),
            Err(_) => {
                return Err(Status::invalid_argument(format!("max_results is {results}: give 0 or more")));
            }
        };
        let open = |snapshot: &Snapshot| {
            let image = self.state.snapshots.image(&snapshot.id);
            File::open(&image).with_context(|| format!("opening {}", image.display())).map_err(internal)
        };
        let delta = base.is_some();
        let base = base.as_ref().map(open).transpose()?;
        let blocks = Blocks::new(open(&target)?, base, self.block_length, start)
            .context("reading the snapshot")
            .map_err(internal)?;
        let kind = match self.block_length {
            BlockLength::Fixed(_) => BlockMetadataType::FixedLength,
            BlockLength::Variable => BlockMetadataType::VariableLength,
        };
        let capacity = signed(target.size)?;
        let fault = self.faults.strike_metadata()?;
        Ok(Plan { blocks, kind, capacity, results, fault, delta })
    }
}

impl Plan {
    /// Sends the messages; returns how many tuples there were. Ends early when the client is gone.
    fn send(self, sender: &mpsc::Sender<Result<GetMetadataResponse, Status>>) -> Result<u64, Status> {
        let Self { blocks, kind, capacity, results, fault, delta } = self;
        let message = |tuples: Vec<BlockMetadata>| {
            thread::sleep(fault.delay_seconds_per_message.0);
            let message = GetMetadataResponse {
                block_metadata_type: kind.into(),
                volume_capacity_bytes: capacity,
                block_metadata: tuples,
            };
            sender.blocking_send(Ok(message)).map_err(|_| Status::cancelled("the client left"))
        };
        let (mut tuples, mut count) = (Vec::new(), 0);
        let mut blocks = blocks.step_by(if fault.wrong { 2 } else { 1 });
        let broken_off = loop {
            if fault.reset_after == Some(count) {
                break true;
            }
            if fault.end_after == Some(count) || (delta && fault.nothing_changed) {
                break false;
            }
            let Some(range) = blocks.next() else { break false };
            let Range { offset, length } = range.context("reading the snapshot").map_err(internal)?;
            tuples.push(BlockMetadata { byte_offset: signed(offset)?, size_bytes: signed(length)? });
            count += 1;
            if tuples.len() == results {
                message(std::mem::take(&mut tuples))?;
            }
        };
        // A stream without any tuple says at least how large the volume is.
        if !tuples.is_empty() || count == 0 {
            message(tuples)?;
        }
        if broken_off {
            return Err(Status::unavailable(format!(
                "fault on demand: the stream breaks off after {count} tuples"
            )));
        }
        Ok(count)
    }
}

impl Services {
    async fn stream(
        &self,
        call: Call,
        about: &[&str],
        plan: impl FnOnce(&Driver) -> Result<Plan, Status> + Send + 'static,
    ) -> Result<Response<Answers>, Status> {
        let plan = self.run(call, about, plan).await?.into_inner();
        let about = about.join(" ");
        let (sender, mut receiver) = mpsc::channel(2);
        let driver = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || {
            // As long as a stream runs, so does the driver.
            let _driver = driver;
            let start = Instant::now();
            match plan.send(&sender) {
                Ok(count) => log(call, &about, start, None, &format!(" ({count} tuples)")),
                Err(status) => {
                    log(call, &about, start, Some(&status), "");
                    // Nobody receives it when the client is gone.
                    let _ = sender.blocking_send(Err(status));
                }
            }
        });
        Ok(Response::new(Box::pin(poll_fn(move |context| receiver.poll_recv(context)))))
    }
}

#[tonic::async_trait]
impl SnapshotMetadata for Services {
    type GetMetadataAllocatedStream = Answers;
    type GetMetadataDeltaStream = Answers;

    async fn get_metadata_allocated(
        &self,
        request: Request<GetMetadataAllocatedRequest>,
    ) -> Result<Response<Answers>, Status> {
        let request = request.into_inner();
        let id = request.snapshot_id.clone();
        self.stream(Call::GetMetadataAllocated, &[&id], move |driver| {
            driver.plan(None, &request.snapshot_id, request.starting_offset, request.max_results)
        })
        .await
    }

    async fn get_metadata_delta(
        &self,
        request: Request<GetMetadataDeltaRequest>,
    ) -> Result<Response<Answers>, Status> {
        let request = request.into_inner();
        let about = [request.base_snapshot_id.clone(), request.target_snapshot_id.clone()];
        self.stream(Call::GetMetadataDelta, &about.each_ref().map(String::as_str), move |driver| {
            let base = needed("base_snapshot_id", &request.base_snapshot_id)?;
            let target = needed("target_snapshot_id", &request.target_snapshot_id)?;
            driver.plan(Some(base), target, request.starting_offset, request.max_results)
        })
        .await
    }
}
