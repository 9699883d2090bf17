//! `tradewind restore`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::{data_output, tags};
use crate::args::{Global, RestoreArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, args: &RestoreArgs, output: &Arc<Output>) -> Result<Outcome> {
    let tags = tags(&args.selection.tags)?;
    let context = Context::new(global, Limits::chosen(&args.engine), output)?;
    let repository = job::open(&context)?;
    let stdout = args.is_stdout().then(data_output).transpose()?;
    let (summary, damages) =
        context.watched("restore", || job::restore(&context, &repository, args, tags, stdout))?;
    output.damages(damages);
    output.report(&summary)?;
    Ok(summary.outcome)
}
