//! One file per command: check what was asked, have it done, say what was done.

mod agent;
mod backup;
mod cat;
mod completions;
mod diff;
mod init;
mod key;
mod ls;
mod restore;
mod snapshots;
mod stats;
mod verify;
mod version;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tradewind_pipeline::{Error, Result};

use crate::args::{Cli, Command};
use crate::exit::Outcome;
use crate::output::{Output, log};

/// Runs a command and gives the exit status.
pub(crate) fn run(cli: &Cli) -> ExitCode {
    let output = Arc::new(Output::new(cli));
    // A program that runs for months says what it does.
    let remarks = u8::from(matches!(cli.command, Command::Agent(_)));
    log::start(cli.global.verbose + remarks, output.screen());
    let result = match &cli.command {
        Command::Init(args) => init::run(&cli.global, args, &output),
        Command::Backup(args) => backup::run(&cli.global, args, &output),
        Command::Restore(args) => restore::run(&cli.global, args, &output),
        Command::Snapshots(args) => snapshots::run(&cli.global, args, &output),
        Command::Ls(args) => ls::run(&cli.global, args, &output),
        Command::Cat(args) => cat::run(&cli.global, args, &output),
        Command::Diff(args) => diff::run(&cli.global, args, &output),
        Command::Verify(args) => verify::run(&cli.global, args, &output),
        Command::Key(command) => key::run(&cli.global, command, &output),
        Command::Agent(args) => agent::run(&cli.global, args),
        Command::Hold(args) => agent::hold(args),
        Command::Stats => stats::run(&cli.global, &output),
        Command::Completions(args) => completions::run(args, &output),
        Command::Version => version::run(&output),
    };
    output.finish(result, matches!(cli.command, Command::Backup(_)))
}

impl Command {
    /// True when standard output carries data and nothing else.
    pub(crate) fn writes_data(&self) -> bool {
        match self {
            Self::Cat(_) => true,
            Self::Restore(args) => args.is_stdout(),
            _ => false,
        }
    }
}

/// Tags as a map; the same key twice is a mistake.
fn tags(given: &[(String, String)]) -> Result<BTreeMap<String, String>> {
    let mut tags = BTreeMap::new();
    for (key, value) in given {
        if tags.insert(key.clone(), value.clone()).is_some() {
            return Err(Error::Usage(format!("tag {key} is given twice")));
        }
    }
    Ok(tags)
}

/// Standard output for raw data: unbuffered, and not shared with anything else.
fn data_output() -> Result<File> {
    let failed = |e| Error::target_io(Path::new("standard output"), "cannot be written", e);
    std::io::stdout().as_fd().try_clone_to_owned().map(File::from).map_err(failed)
}

/// The end of a command that can only succeed or fail.
fn done((): ()) -> Outcome {
    Outcome::Done
}
