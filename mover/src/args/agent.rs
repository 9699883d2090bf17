//! `tradewind agent` and `tradewind hold`: what runs in a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values;

/// Which jobs the agent serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Those whose data mover is `tradewind`, beside Velero's own agent
    VeleroMover,
    /// Also those of Velero's built-in data mover, in the place of its agent
    Standalone,
}

/// `tradewind agent`
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Which jobs to serve
    #[arg(long, value_name = "MODE", default_value = "velero-mover")]
    pub(crate) mode: Mode,

    /// Name of this node
    #[arg(long, value_name = "NAME")]
    pub(crate) node: String,

    /// Namespace of Velero and of this agent
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: String,

    /// Name of this pod
    #[arg(long, value_name = "NAME")]
    pub(crate) pod: String,

    /// `ConfigMap` with the limits of this agent, looked at again when it changes
    #[arg(long, value_name = "NAME")]
    pub(crate) config: Option<String>,

    /// `ConfigMap` with Velero's configuration of node agents
    #[arg(long, value_name = "NAME")]
    pub(crate) node_agent_config: Option<String>,

    /// Secret with the credentials of storage locations that name none
    #[arg(long, value_name = "NAME")]
    pub(crate) credentials_secret: Option<String>,

    /// Secret with the key of the repositories
    #[arg(long, value_name = "NAME", default_value = "tradewind-repository-key")]
    pub(crate) key_secret: String,

    /// Folder for the socket that volumes are handed over by
    #[arg(long, value_name = "DIRECTORY", default_value = "/run/tradewind")]
    pub(crate) socket_directory: PathBuf,

    /// The same folder, as the node has it
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) socket_host_path: PathBuf,

    /// Address of metrics and health
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "[::]:8085")]
    pub(crate) listen: SocketAddr,

    /// How long a volume may take until it can be read or written
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = values::duration)]
    pub(crate) prepare_timeout: Duration,

    /// How often to look for snapshots whose backup is not in the bucket any more
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = values::duration)]
    pub(crate) forget_interval: Duration,

    /// How old such a snapshot must be, at least as old as the backup's operations may take
    #[arg(long, value_name = "TIME", default_value = "72h", value_parser = values::duration)]
    pub(crate) forget_grace: Duration,
}

/// `tradewind hold`
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    /// Where the volume is
    #[arg(long, value_name = "PATH")]
    pub(crate) volume: PathBuf,

    /// Open it for writing
    #[arg(long)]
    pub(crate) write: bool,

    /// UID of the job
    #[arg(long, value_name = "UID")]
    pub(crate) job: String,

    /// File with the token of the job
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: PathBuf,

    /// Folder with the agent's socket
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) socket_directory: PathBuf,
}
