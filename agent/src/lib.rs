//! The node agent: moves the snapshots of volumes inside a cluster to the bucket and back.
//!
//! ```text
//! DataUpload     snapshot taken over ─► claim ─► pod holds the volume ─► descriptor ─► pipeline ─► bucket
//! DataDownload   new volume ─► pod holds it ─► descriptor ─► pipeline fills it ─► it changes hands to the claim
//! ```
//! - `life`: what is done next with a job, decided from what is seen; `reconcile`: doing it;
//! - `upload`, `download`: the kinds of jobs;
//! - `pods`, `handover`, `holder`: volumes without privilege;
//! - `jobs`, `volumes`, `repository`, `budget`: the data;
//! - `forget`: what nobody needs any more; `key`: what must not be lost; `metrics`: what can be seen.
//!
//! One agent runs on each node, in the namespace of Velero. What an agent knows is in the cluster: it may be killed
//! anywhere, and the next one goes on.

mod agent;
mod budget;
mod download;
mod forget;
mod handover;
pub mod holder;
mod jobs;
mod key;
mod life;
mod metrics;
mod objects;
mod pods;
mod reconcile;
mod repository;
mod serve;
mod upload;
mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tradewind_pipeline::limits::Limits;

pub use serve::run;

/// What the agent serves. Never both on a cluster: each would take the other's jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Beside Velero and its own agent: jobs whose data mover is `tradewind`, and nothing else.
    VeleroMover,
    /// In the place of Velero's agent: also jobs that name its built-in data mover.
    Standalone,
}

/// What the agent is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// What it serves.
    pub mode: Mode,
    /// The node's name.
    pub node: String,
    /// The namespace of Velero and of this agent.
    pub namespace: String,
    /// Its own pod's name: the pods that it makes take after it.
    pub pod: String,
    /// ConfigMap with limits of its own, which is watched.
    pub config: Option<String>,
    /// ConfigMap with Velero's configuration of node agents.
    pub node_agent_config: Option<String>,
    /// Secret with credentials for locations that name none.
    pub credentials_secret: Option<String>,
    /// Secret with the key of the repositories.
    pub key_secret: String,
    /// Folder for the socket, as this process sees it.
    pub socket_directory: PathBuf,
    /// The same folder, as the node has it.
    pub socket_host_path: PathBuf,
    /// Where metrics and health are served.
    pub listen: SocketAddr,
    /// How long the volume of a job may take to be made.
    pub prepare_timeout: Duration,
    /// How often to look for snapshots whose backup is gone.
    pub forget_interval: Duration,
    /// How old such a snapshot must be: longer than any backup takes.
    pub forget_grace: Duration,
    /// Folder for index caches.
    pub cache_dir: PathBuf,
    /// What all jobs together may spend.
    pub limits: Limits,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no cluster to be reached from here.
    #[error("no cluster: {0}")]
    NoCluster(String),
    /// The cluster was asked in vain.
    #[error("{0}: {1}")]
    Cluster(String, #[source] kube::Error),
    /// What it was told cannot be done.
    #[error("{0}")]
    Refused(String),
    /// A file or a socket.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
}
