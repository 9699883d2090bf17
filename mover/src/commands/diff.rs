//! `tradewind diff`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::{done, tags};
use crate::args::{DiffArgs, Global};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;
use crate::output::listing::Differed;

pub(super) fn run(global: &Global, args: &DiffArgs, output: &Arc<Output>) -> Result<Outcome> {
    let tags = tags(&args.selection.tags)?;
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    let mut total = Differed { command: "diff", ..Differed::default() };
    (total.from, total.to) = job::diff(&context, &repository, args, tags, &mut |change| {
        total.count(change.change);
        output.item(&change)
    })?;
    output.report(&total).map(done)
}
