//! `tradewind backup`

use std::sync::Arc;

use tradewind_pipeline::{Error, Result};

use super::tags;
use crate::args::{BackupArgs, Global};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job;
use crate::limits::Limits;
use crate::output::Output;

pub(super) fn run(global: &Global, args: &BackupArgs, output: &Arc<Output>) -> Result<Outcome> {
    if args.is_stdin() && global.password_fd == Some(0) {
        return Err(Error::Usage("standard input cannot be both the volume and the passphrase".to_owned()));
    }
    let tags = tags(&args.tags)?;
    let excludes = job::excludes(args)?;
    let context = Context::new(global, Limits::chosen(&args.engine), output)?;
    let repository = job::open(&context)?;
    let summary = context.watched("backup", || job::backup(&context, &repository, args, tags, excludes))?;
    output.report(&summary)?;
    Ok(summary.outcome)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn a_tag_has_one_value() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(tags(&[pair("a", "1"), pair("b", "2")]).unwrap().len(), 2);
        assert!(matches!(tags(&[pair("a", "1"), pair("a", "1")]), Err(Error::Usage(_))));
    }
}
