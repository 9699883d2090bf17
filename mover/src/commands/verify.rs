//! `tradewind verify`

use std::sync::Arc;

use tradewind_pipeline::Result;

use crate::args::{Global, VerifyArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, args: &VerifyArgs, output: &Arc<Output>) -> Result<Outcome> {
    let context = Context::new(global, Limits::chosen(&args.engine), output)?;
    let repository = job::open(&context)?;
    let (summary, damages) = context.watched("verify", || job::verify(&context, &repository, args))?;
    output.damages(damages);
    output.report(&summary)?;
    Ok(summary.outcome)
}
