//! Stands in for [`crate::job`] while the data plane's entry points are not part of the library: no repository can be
//! opened, and the compiler knows that nothing else can be asked then.
#![expect(clippy::needless_pass_by_value, reason = "the shape of the functions it stands in for")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;

use tradewind_pipeline::{Error, Result};

use crate::args::{BackupArgs, CatArgs, DiffArgs, InitArgs, LsArgs, RestoreArgs, VerifyArgs};
use crate::context::Context;
use crate::output::listing::{Change, Entry, Listed, Slot, Snapshot};
use crate::output::messages::Damage;
use crate::output::summaries::{Backup, Cat, Init, Restore, Stats, Verify};
use crate::secret::{Ask, Secret};

type Tags = BTreeMap<String, String>;

/// What a backup leaves out.
pub(crate) struct Excludes;

/// No value of this type exists.
pub(crate) enum Repository {}

fn absent() -> Error {
    Error::Internal("this build has no data plane".to_owned())
}

pub(crate) fn excludes(_: &BackupArgs) -> Result<Excludes> {
    Ok(Excludes)
}

pub(crate) fn init(_: &Context, _: &InitArgs, _: Secret) -> Result<Init> {
    Err(absent())
}

pub(crate) fn open(context: &Context) -> Result<Repository> {
    context.secret(Ask::Once).and_then(|_| Err(absent()))
}

pub(crate) fn backup(_: &Context, r: &Repository, _: &BackupArgs, _: Tags, _: Excludes) -> Result<Backup> {
    match *r {}
}

pub(crate) fn restore(
    _: &Context,
    r: &Repository,
    _: &RestoreArgs,
    _: Tags,
    _: Option<std::fs::File>,
) -> Result<(Restore, Vec<Damage>)> {
    match *r {}
}

pub(crate) fn verify(_: &Context, r: &Repository, _: &VerifyArgs) -> Result<(Verify, Vec<Damage>)> {
    match *r {}
}

pub(crate) fn snapshots(
    _: &Context,
    r: &Repository,
    _: Option<&OsStr>,
    _: Tags,
) -> Result<(Vec<Snapshot>, Vec<Damage>)> {
    match *r {}
}

pub(crate) fn ls(
    _: &Context,
    r: &Repository,
    _: &LsArgs,
    _: Tags,
    _: &mut dyn FnMut(Entry) -> Result<()>,
) -> Result<Listed> {
    match *r {}
}

pub(crate) fn cat(_: &Context, r: &Repository, _: &CatArgs, _: Tags, _: &mut dyn Write) -> Result<Cat> {
    match *r {}
}

pub(crate) fn diff(
    _: &Context,
    r: &Repository,
    _: &DiffArgs,
    _: Tags,
    _: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<(String, String)> {
    match *r {}
}

pub(crate) fn slots(_: &Context, r: &Repository) -> Result<Vec<Slot>> {
    match *r {}
}

pub(crate) fn add_slot(_: &Context, r: &Repository, _: Secret, _: &str) -> Result<String> {
    match *r {}
}

pub(crate) fn change_slot(_: &Context, r: Repository, _: Secret, _: &str) -> Result<String> {
    match r {}
}

pub(crate) fn remove_slot(_: &Context, r: &Repository, _: &str) -> Result<String> {
    match *r {}
}

pub(crate) fn stats(_: &Context, r: &Repository) -> Result<Stats> {
    match *r {}
}
