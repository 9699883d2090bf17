//! The command line as it was typed. Parsing has no side effects: what values mean is decided in [`crate::settings`].

mod agent;
mod backup;
mod browse;
mod key;
mod restore;
mod run;
mod values;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub(crate) use agent::{AgentArgs, HoldArgs, Mode as AgentMode};
pub(crate) use backup::BackupArgs;
pub(crate) use browse::{CatArgs, DiffArgs, LsArgs, SnapshotsArgs};
pub(crate) use key::{KeyCommand, NewKeyArgs};
pub(crate) use restore::RestoreArgs;
pub(crate) use run::{Engine, EngineArgs, Privileged};
pub(crate) use values::{Parent, Place};
pub(crate) use verify::VerifyArgs;

use crate::{exit, output};

/// Moves large volumes to object storage and back
#[derive(Debug, Parser)]
#[command(name = "tradewind", version, max_term_width = 100, arg_required_else_help = true)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Repository: a directory, or s3://bucket/prefix [env: TRADEWIND_REPOSITORY]
    #[arg(long, short, global = true, value_name = "LOCATION")]
    pub(crate) repository: Option<String>,

    /// File with the passphrase; a newline at its end does not count [env: TRADEWIND_PASSWORD_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,

    /// File with a key instead of a passphrase [env: TRADEWIND_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,

    /// Open file descriptor to read the passphrase from
    #[arg(long, global = true, value_name = "FD")]
    pub(crate) password_fd: Option<u32>,

    /// S3: URL of the endpoint, when it is not Amazon's
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) endpoint: Option<String>,

    /// S3: region
    #[arg(long, global = true, value_name = "REGION")]
    pub(crate) region: Option<String>,

    /// S3: put the bucket into the path instead of the host name
    #[arg(long, global = true)]
    pub(crate) path_style: bool,

    /// PEM file with the certificates to trust, for a private certificate authority
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,

    /// Directory for caches, which may be deleted at any time [env: TRADEWIND_CACHE_DIR]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Write JSON lines, as documented in JSON.md
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Say nothing but results asked for, warnings and errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,

    /// Say more; twice for debugging
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a repository
    Init(InitArgs),
    /// Back up a directory, a block device, a file or standard input
    Backup(Box<BackupArgs>),
    /// Restore a snapshot, or a part of one
    Restore(Box<RestoreArgs>),
    /// List snapshots
    Snapshots(SnapshotsArgs),
    /// List what is in a snapshot
    Ls(LsArgs),
    /// Write a file of a snapshot, or a whole block volume, to standard output
    Cat(CatArgs),
    /// Show what differs between two snapshots
    Diff(DiffArgs),
    /// Check that everything is there and, if asked, that every byte is right
    Verify(Box<VerifyArgs>),
    /// Manage the keys that open the repository
    #[command(subcommand, arg_required_else_help = true)]
    Key(KeyCommand),
    /// Show what the repository holds
    Stats,
    /// Move the snapshots of a Kubernetes cluster, on one of its nodes
    Agent(Box<AgentArgs>),
    /// Hold a volume for the agent of this node
    #[command(hide = true)]
    Hold(HoldArgs),
    /// Print a shell's completion script
    Completions(CompletionsArgs),
    /// Print the version and what it can read and write
    Version,
}

/// `tradewind init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Accept a store that cannot create objects exclusively. Only one writer may use the repository then
    #[arg(long)]
    pub(crate) single_writer: bool,

    /// What to call the key slot
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) label: String,
}

/// `tradewind completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to write for
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// The parser with the help that is computed.
pub(crate) fn command() -> clap::Command {
    Cli::command().after_help(exit::help())
}

/// Why there is nothing to run.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Help or the version was asked for, or nothing at all.
    Shown(clap::Error),
    /// The command line makes no sense.
    Wrong {
        /// JSON was asked for.
        json: bool,
        /// Standard output was meant for data.
        raw: bool,
        /// What is wrong, on one line.
        message: String,
        /// What to do next.
        hint: String,
    },
}

impl Stopped {
    /// Writes it where it belongs.
    pub(crate) fn show(self) -> ExitCode {
        match self {
            Self::Shown(text) => {
                // A reader that went away is no reason to fail.
                let _ = text.print();
                if text.use_stderr() { exit::Code::Usage.into() } else { exit::Code::Done.into() }
            }
            Self::Wrong { json, raw, message, hint } => output::usage_error(json, raw, &message, &hint),
        }
    }
}

/// Parses a command line, program name first.
pub(crate) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Cli, Stopped> {
    let words: Vec<OsString> = words.into_iter().collect();
    let parsed = command().try_get_matches_from(&words).and_then(|m| Cli::from_arg_matches(&m));
    parsed.map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => Stopped::Shown(error),
        _ => {
            let options = || words.iter().take_while(|w| *w != "--");
            let json = options().any(|w| w == "--json");
            let (message, hint) = in_brief(&error.render().to_string());
            Stopped::Wrong { json, raw: means_data(options()), message, hint }
        }
    })
}

/// Would a command line that cannot be parsed have written data to standard output? As far as can be told from its
/// words: `cat`, or a restore to `-`.
fn means_data<'a>(mut words: impl Iterator<Item = &'a OsString>) -> bool {
    let mut target = false;
    words.any(|word| {
        let dash = (target && word == "-") || word == "-t-" || word == "--target=-";
        target = word == "-t" || word == "--target";
        dash || word == "cat"
    })
}

/// The parser's report as one line and a hint: its first paragraph, and its tip or the way to the help.
fn in_brief(report: &str) -> (String, String) {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = report.split("\n\n");
    let message = words(paragraphs.next().unwrap_or_default());
    let message = message.strip_prefix("error: ").map(str::to_owned).unwrap_or(message);
    let tip = paragraphs.clone().find_map(|p| p.trim_start().strip_prefix("tip: ")).map(words);
    let usage = paragraphs.find_map(|p| p.trim_start().strip_prefix("Usage: ")).map(words);
    let hint = tip.or(usage.map(|u| format!("usage: {u}")));
    (message, hint.unwrap_or_else(|| "`tradewind --help` shows all commands".to_owned()))
}

#[cfg(test)]
mod tests;
