//! `tradewind verify`

use clap::Args;

use super::run::EngineArgs;
use super::values;

/// Arguments of `verify`. Limits and engine are those of every run, so that scripts can give the same to each; what
/// is about disks has no effect here, and the help says so.
#[derive(Debug, Args)]
#[command(mut_arg("engine", |arg| arg.help("Accepted as for other runs, without effect: verify reads no disk")))]
#[command(mut_arg("read_rate", |arg| arg.help("Accepted as for other runs, without effect: verify reads no disk")))]
#[command(mut_arg("upload_rate", |arg| arg.help("Most bytes per second to fetch from the store, such as 50MiB")))]
pub(crate) struct VerifyArgs {
    /// Read and check every byte, not only that everything is there
    #[arg(long, conflicts_with = "sample")]
    pub(crate) read_data: bool,

    /// Read and check this share of the data, such as 10%; another share each time
    #[arg(long, value_name = "SHARE", value_parser = values::share)]
    pub(crate) sample: Option<f64>,

    /// Snapshot that must be there; may be given several times
    #[arg(long, value_name = "ID", value_parser = values::snapshot)]
    pub(crate) expect: Vec<String>,

    #[command(flatten)]
    pub(crate) engine: EngineArgs,
}
