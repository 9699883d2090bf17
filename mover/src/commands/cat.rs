//! `tradewind cat`

use std::io::ErrorKind;
use std::sync::Arc;

use tradewind_pipeline::{Error, Result};

use super::{data_output, tags};
use crate::args::{CatArgs, Global};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, args: &CatArgs, output: &Arc<Output>) -> Result<Outcome> {
    let tags = tags(&args.selection.tags)?;
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    match job::cat(&context, &repository, args, tags, &mut data_output()?) {
        Ok(summary) => {
            output.aside(&summary);
            Ok(Outcome::Done)
        }
        // Whoever read it has seen enough, as in `tradewind cat latest:log | head`.
        Err(Error::Target { source: Some(e), .. }) if e.kind() == ErrorKind::BrokenPipe => Ok(Outcome::Done),
        Err(error) => Err(error),
    }
}
