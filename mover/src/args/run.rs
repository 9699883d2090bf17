//! What several commands share: limits and engine of a run, and how a snapshot is picked.

use std::ffi::OsString;

use clap::{Args, ValueEnum};

use super::values;

/// Limits and engine of `backup`, `restore` and `verify`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(crate) struct EngineArgs {
    /// How to read and write disks
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub(crate) engine: Engine,

    /// Memory for all buffers together, such as 96MiB [default: 192MiB, or half of what the cgroup allows]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) memory: Option<u64>,

    /// Threads that hash, compress and encrypt [default: as many as there are processors]
    #[arg(long, value_name = "N", value_parser = workers)]
    pub(crate) workers: Option<usize>,

    /// Most bytes per second to read from the source, or to write to the target, such as 200MiB
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub(crate) read_rate: Option<u64>,

    /// Most bytes per second to send to the store, or to fetch from it, such as 50MiB
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub(crate) upload_rate: Option<u64>,
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        _ => Err("must be a number from 1 to 1024".to_owned()),
    }
}

/// How to read and write disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// `uring` where the kernel and the sandbox allow it, else `pread`
    Auto,
    /// `io_uring`, or fail
    Uring,
    /// A pool of threads with plain system calls
    Pread,
}

/// What only root may do: device nodes, setuid, owners, trusted attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Privileged {
    /// On for root
    Auto,
    /// Try, and report what fails
    On,
    /// Leave it out
    Off,
}

/// Which snapshots count, for `latest` and for lists.
#[derive(Debug, Args)]
pub(crate) struct Selection {
    /// Only snapshots of this volume
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<OsString>,

    /// Only snapshots with this tag; all of them when given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = values::tag)]
    pub(crate) tags: Vec<(String, String)>,
}
