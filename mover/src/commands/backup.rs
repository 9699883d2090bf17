//! `tradewind backup`

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
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
    let excludes = excludes(args)?;
    let context = Context::new(global, Limits::chosen(&args.engine), output)?;
    let repository = job::open(&context)?;
    let summary = context.watched("backup", || job::backup(&context, &repository, args, tags, excludes))?;
    output.report(&summary)?;
    Ok(summary.outcome)
}

/// Patterns of the flags and of the files, in this order. Bytes, as names are.
fn excludes(args: &BackupArgs) -> Result<Vec<Vec<u8>>> {
    let mut patterns: Vec<Vec<u8>> = args.excludes.iter().map(|p| p.as_bytes().to_vec()).collect();
    for file in &args.exclude_files {
        patterns.extend(patterns_of(file)?);
    }
    Ok(patterns)
}

/// One pattern a line; empty lines and lines that start with `#` do not count.
fn patterns_of(file: &Path) -> Result<Vec<Vec<u8>>> {
    let text =
        std::fs::read(file).map_err(|e| Error::Usage(format!("cannot read {}: {e}", file.display())))?;
    let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
    Ok(lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")).map(<[u8]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn pattern_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("excludes");
        std::fs::write(&file, "# caches\n*.o\n\n/proc/*  \n cache \n").unwrap();
        assert_eq!(patterns_of(&file).unwrap(), [&b"*.o"[..], b"/proc/*", b" cache"]);
        assert!(matches!(patterns_of(&dir.path().join("absent")), Err(Error::Usage(_))));
    }

    #[test]
    fn a_tag_has_one_value() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(tags(&[pair("a", "1"), pair("b", "2")]).unwrap().len(), 2);
        assert!(matches!(tags(&[pair("a", "1"), pair("a", "1")]), Err(Error::Usage(_))));
    }
}
