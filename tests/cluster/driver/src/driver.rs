//! What all services share, and how every call runs: fault, work, log line.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Response, Status};

use crate::blocks::BlockLength;
use crate::faults::{Call, CodeName, Faults};
use crate::locks::Locks;
use crate::proto::csi::Topology;
use crate::proto::csi::VolumeCapability;
use crate::proto::csi::volume_capability::AccessType;
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::state::{State, Volume};

/// The driver.
#[derive(Debug)]
pub(crate) struct Driver {
    /// What it calls itself.
    pub(crate) name: String,
    /// The node it runs on, the only one there is.
    pub(crate) node: String,
    /// What is on disk.
    pub(crate) state: State,
    /// What is to go wrong.
    pub(crate) faults: Faults,
    /// Who is at work on what.
    pub(crate) locks: Locks,
    /// How changed blocks are reported.
    pub(crate) block_length: BlockLength,
}

/// One for all CSI services: each of the service's modules adds its part.
#[derive(Debug, Clone)]
pub(crate) struct Services(pub(crate) Arc<Driver>);

impl Services {
    /// Runs a call about the volumes and snapshots with these ids or names. It runs to its end, and is logged, even if
    /// the client does not wait so long.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: Call,
        about: &[&str],
        work: impl FnOnce(&Driver) -> Result<T, Status> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let driver = Arc::clone(&self.0);
        let about: Vec<String> = about.iter().map(|&word| word.to_owned()).collect();
        let task = tokio::spawn(async move {
            let start = Instant::now();
            let result = attempt(&driver, call, &about, work).await;
            log(call, &about.join(" "), start, result.as_ref().err(), "");
            result
        });
        let result = task.await.map_err(|error| Status::internal(format!("{call} ended early: {error}")))?;
        result.map(Response::new)
    }
}

async fn attempt<T: Send + 'static>(
    driver: &Arc<Driver>,
    call: Call,
    about: &[String],
    work: impl FnOnce(&Driver) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let known = driver.state.known_as(about).map_err(internal)?;
    let is_about = |prefix: &str| known.iter().any(|word| word.starts_with(prefix));
    if let Some(fault) = driver.faults.strike(call, is_about)? {
        tokio::time::sleep(fault.delay_seconds.0).await;
        if let Some(CodeName(code)) = fault.error {
            return Err(Status::new(code, format!("fault on demand: {call} is to fail")));
        }
    }
    let driver = Arc::clone(driver);
    tokio::task::spawn_blocking(move || work(&driver))
        .await
        .map_err(|error| Status::internal(format!("{call} ended early: {error}")))?
}

/// One line for each call.
pub(crate) fn log(call: Call, about: &str, start: Instant, error: Option<&Status>, more: &str) {
    let seconds = start.elapsed().as_secs_f64();
    match error {
        None => eprintln!("csi-driver: {call} {about}: ok after {seconds:.3} s{more}"),
        Some(status) => eprintln!(
            "csi-driver: {call} {about}: {} after {seconds:.3} s{more}: {}",
            CodeName(status.code()),
            status.message()
        ),
    }
}

/// The answer to a call that failed for a reason of the driver's own.
#[allow(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn internal(error: anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

/// The number as the protocol writes sizes.
pub(crate) fn signed(bytes: u64) -> Result<i64, Status> {
    i64::try_from(bytes)
        .map_err(|_| Status::internal(format!("{bytes} bytes are more than the protocol can say")))
}

/// Refuses a field that is empty.
pub(crate) fn needed<'a>(name: &str, value: &'a str) -> Result<&'a str, Status> {
    match value {
        "" => Err(Status::invalid_argument(format!("{name} is missing"))),
        value => Ok(value),
    }
}

/// How a volume is to be used.
pub(crate) fn access(capability: Option<&VolumeCapability>) -> Result<(&AccessType, Mode), Status> {
    let missing = |what| Status::invalid_argument(format!("volume_capability: {what} is missing"));
    let capability = capability.ok_or_else(|| missing("all of it"))?;
    let access = capability.access_type.as_ref().ok_or_else(|| missing("block or mount"))?;
    match capability.access_mode.as_ref().map(crate::proto::csi::volume_capability::AccessMode::mode) {
        None | Some(Mode::Unknown) => Err(missing("access_mode")),
        // There is one node; what several need is not pretended.
        Some(mode @ (Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter)) => {
            Err(Status::invalid_argument(format!(
                "access mode {}: volumes live on one node and cannot be written from several",
                mode.as_str_name()
            )))
        }
        Some(mode) => Ok((access, mode)),
    }
}

impl Driver {
    /// The volume with this id.
    pub(crate) fn volume(&self, id: &str) -> Result<Volume, Status> {
        let volume = self.state.volumes.get(needed("volume_id", id)?).map_err(internal)?;
        volume.ok_or_else(|| Status::not_found(format!("there is no volume {id}")))
    }

    /// Where the volumes are.
    pub(crate) fn topology(&self) -> Topology {
        Topology { segments: [(format!("topology.{}/node", self.name), self.node.clone())].into() }
    }
}
