//! `tradewind snapshots`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::tags;
use crate::args::{Global, SnapshotsArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;
use crate::output::listing::Snapshots;

pub(super) fn run(global: &Global, args: &SnapshotsArgs, output: &Arc<Output>) -> Result<Outcome> {
    let tags = tags(&args.selection.tags)?;
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    let (snapshots, damages) = job::snapshots(&context, &repository, args.selection.volume.as_deref(), tags)?;
    let lost = damages.len() as u64;
    output.damages(damages);
    let repository = context.settings.repository.clone();
    output.result(&Snapshots { command: "snapshots", repository, snapshots })?;
    Ok(Outcome::of(lost, 0))
}
