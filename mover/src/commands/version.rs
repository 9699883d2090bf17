//! `tradewind version`

use tradewind_pipeline::{Result, pack};

use super::done;
use crate::exit::Outcome;
use crate::output::Output;
use crate::output::summaries::Version;

pub(super) fn run(output: &Output) -> Result<Outcome> {
    let version = Version {
        command: "version",
        version: env!("CARGO_PKG_VERSION"),
        pack_format: pack::FORMAT,
        architecture: std::env::consts::ARCH,
        system: std::env::consts::OS,
    };
    output.result(&version).map(done)
}
