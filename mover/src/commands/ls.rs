//! `tradewind ls`

use std::sync::Arc;

use tradewind_pipeline::Result;

use super::tags;
use crate::args::{Global, LsArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, args: &LsArgs, output: &Arc<Output>) -> Result<Outcome> {
    let tags = tags(&args.selection.tags)?;
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    let listed = job::ls(&context, &repository, args, tags, &mut |mut entry| {
        entry.long = args.long;
        output.item(&entry)
    })?;
    output.aside(&listed);
    Ok(Outcome::Done)
}
