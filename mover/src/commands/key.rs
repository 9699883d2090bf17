//! `tradewind key`

use std::sync::Arc;

use tradewind_pipeline::Result;
use tradewind_pipeline::seal::Secret;

use super::done;
use crate::args::{Global, KeyCommand, NewKeyArgs};
use crate::context::Context;
use crate::exit::Outcome;
use crate::job::{self, Repository};
use crate::limits::Limits;
use crate::output::Output;
use crate::output::listing::Slots;
use crate::output::summaries::Key;
use crate::secret::{self, Ask};
use crate::settings::{NEW_KEY_FLAGS, new_key};

pub(super) fn run(global: &Global, command: &KeyCommand, output: &Arc<Output>) -> Result<Outcome> {
    let summary = match command {
        KeyCommand::List => {
            let (context, repository) = open(global, output)?;
            let slots = job::slots(&context, &repository)?;
            return output.result(&Slots { command: "key list", slots }).map(done);
        }
        KeyCommand::Add(args) => {
            let (context, repository) = open(global, output)?;
            let slot = job::add_slot(
                &context,
                &repository,
                &read_new(args, output)?,
                args.label.as_deref().unwrap_or_default(),
            )?;
            Key { command: "key add", slot: Some(slot), file: None }
        }
        KeyCommand::Change(args) => {
            let (context, repository) = open(global, output)?;
            let slot =
                job::change_slot(&context, repository, &read_new(args, output)?, args.label.as_deref())?;
            Key { command: "key change", slot: Some(slot), file: None }
        }
        KeyCommand::Remove(args) => {
            let (context, repository) = open(global, output)?;
            let slot = job::remove_slot(&context, &repository, &args.slot)?;
            Key { command: "key remove", slot: Some(slot), file: None }
        }
        KeyCommand::Generate(args) => {
            secret::generate(&args.file)?;
            let file = Some(args.file.to_string_lossy().into_owned());
            Key { command: "key generate", slot: None, file }
        }
    };
    output.report(&summary).map(done)
}

fn open(global: &Global, output: &Arc<Output>) -> Result<(Context, Repository)> {
    let context = Context::new(global, Limits::small(), output)?;
    let repository = job::open(&context)?;
    Ok((context, repository))
}

fn read_new(args: &NewKeyArgs, output: &Output) -> Result<Secret> {
    new_key(args)?.read(Ask::Twice, NEW_KEY_FLAGS, output)
}
