//! `tradewind snapshots`, `ls`, `cat` and `diff`

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use super::run::Selection;
use super::values::{self, Place};

/// Arguments of `snapshots`.
#[derive(Debug, Args)]
pub(crate) struct SnapshotsArgs {
    #[command(flatten)]
    pub(crate) selection: Selection,
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// `latest` or the beginning of a snapshot id; with :PATH only what is in that directory
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = OsStringValueParser::new().try_map(values::place))]
    pub(crate) place: Place,

    #[command(flatten)]
    pub(crate) selection: Selection,

    /// Mode, owner, size and time of each item
    #[arg(long, short)]
    pub(crate) long: bool,

    /// Everything below, not only one directory
    #[arg(long, short = 'R')]
    pub(crate) recursive: bool,
}

/// Arguments of `cat`.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// `latest` or the beginning of a snapshot id, and :PATH of a file unless it is a block volume
    #[arg(value_name = "SNAPSHOT[:PATH]", value_parser = OsStringValueParser::new().try_map(values::place))]
    pub(crate) place: Place,

    #[command(flatten)]
    pub(crate) selection: Selection,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The earlier snapshot
    #[arg(value_name = "FROM", value_parser = values::snapshot)]
    pub(crate) from: String,

    /// The later snapshot
    #[arg(value_name = "TO", value_parser = values::snapshot)]
    pub(crate) to: String,

    #[command(flatten)]
    pub(crate) selection: Selection,
}
