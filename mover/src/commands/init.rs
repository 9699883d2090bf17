//! `tradewind init`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::done;
use crate::args::{Global, InitArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;
use crate::secret::Ask;

pub(super) fn run(global: &Global, args: &InitArgs, output: &Arc<Output>) -> Result<Outcome> {
    let context = Context::new(global, Limits::small(), output)?;
    // Before anything is asked of the store: a repository never exists without a key of the user's own.
    let secret = context.secret(Ask::Twice)?;
    let summary = job::init(&context, args, &secret)?;
    output.report(&summary).map(done)
}
