//! `tradewind completions`

use tradewind_pipeline::{Error, Result};

use super::done;
use crate::args::{self, CompletionsArgs};
use crate::exit::Outcome;
use crate::output::Output;
use crate::output::summaries::Completions;

pub(super) fn run(args: &CompletionsArgs, output: &Output) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "tradewind", &mut script);
    let script = String::from_utf8(script).map_err(|e| Error::Internal(format!("completion script: {e}")))?;
    output.result(&Completions { command: "completions", shell: args.shell.to_string(), script }).map(done)
}
