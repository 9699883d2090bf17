//! `tradewind restore`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use super::run::{EngineArgs, Privileged, Selection};
use super::values::{self, Place};

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// `latest` or the beginning of a snapshot id; with :PATH only what is below that path
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = OsStringValueParser::new().try_map(values::place))]
    pub(crate) place: Place,

    /// A directory for a tree; a file, a device or - (standard output) for a block volume
    #[arg(long, short, value_name = "PATH")]
    pub(crate) target: PathBuf,

    #[command(flatten)]
    pub(crate) selection: Selection,

    /// Only what matches this pattern, and the directories above it; may be given several times
    #[arg(long = "include", value_name = "PATTERN")]
    pub(crate) includes: Vec<OsString>,

    /// Write into a directory that is not empty, over a file, or over a device that is not blank
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Restore what can be restored of a damaged snapshot, and name the rest
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Restore owners, device nodes, setuid bits, and trusted and security attributes
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) privileged_metadata: Privileged,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}

impl RestoreArgs {
    /// True when standard output is the target.
    pub(crate) fn is_stdout(&self) -> bool {
        self.target.as_os_str() == "-"
    }
}
