//! `tradewind backup`

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tradewind_pipeline::seal::Level;

use super::run::{EngineArgs, Privileged};
use super::values::{self, Parent};

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Directory, block device or regular file; - reads standard input as one block volume
    #[arg(value_name = "SOURCE")]
    pub(crate) source: PathBuf,

    /// Name of the volume; `-` needs it [default: host:path]
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<OsString>,

    /// Tag of the snapshot; may be given several times
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = values::tag)]
    pub(crate) tags: Vec<(String, String)>,

    /// Snapshot to compare with, or none to read everything [default: the volume's latest]
    #[arg(long, value_name = "ID|none", value_parser = values::parent)]
    pub(crate) parent: Option<Parent>,

    /// Leave out what matches this pattern, as in .gitignore: NAME anywhere, /PATH from the source's root; may be given
    /// several times
    #[arg(long = "exclude", value_name = "PATTERN")]
    pub(crate) excludes: Vec<OsString>,

    /// Leave out what matches a pattern of this file: one a line, # starts a comment
    #[arg(long = "exclude-file", value_name = "FILE")]
    pub(crate) exclude_files: Vec<PathBuf>,

    /// Stay on one file system: mount points below the source are stored as empty directories. The default
    #[arg(long, overrides_with = "cross_file_systems")]
    pub(crate) one_file_system: bool,

    /// Enter the file systems that are mounted below the source
    #[arg(long, overrides_with = "one_file_system")]
    pub(crate) cross_file_systems: bool,

    /// Accept a device that is mounted read-write; the snapshot says so
    #[arg(long)]
    pub(crate) live: bool,

    /// Read and compare, but store nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// off, auto, or a zstd level
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "auto",
        value_parser = values::compression,
        allow_hyphen_values = true
    )]
    pub(crate) compression: Level,

    /// Size of a block volume's chunks, a power of two from 16KiB to 4MiB [default: the volume's, or 256KiB]
    #[arg(long, value_name = "SIZE", value_parser = values::chunk_size)]
    pub(crate) chunk_size: Option<u32>,

    /// How often to record what is uploaded, so that a run that dies there resumes there
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = values::duration)]
    pub(crate) checkpoint_interval: Duration,

    /// Read trusted attributes, which only root can; owners, devices and setuid bits are always recorded
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) privileged_metadata: Privileged,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

impl BackupArgs {
    /// True when the volume is read from standard input.
    pub(crate) fn is_stdin(&self) -> bool {
        self.source.as_os_str() == "-"
    }
}
