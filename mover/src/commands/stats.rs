//! `tradewind stats`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::done;
use crate::args::Global;
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, output: &Arc<Output>) -> Result<Outcome> {
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    output.result(&job::stats(&context, &repository)?).map(done)
}
