//! `tradewind key`

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What to do with the keys. The key that opens the repository is given as everywhere.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// List the key slots
    List,
    /// Add a slot with another passphrase or key file; prompts when none is given
    Add(NewKeyArgs),
    /// Remove a slot; never the last one
    Remove(SlotArgs),
    /// Replace the passphrase or key file of the slot that opens the repository
    Change(NewKeyArgs),
    /// Create a file with a new random key, to be used with --key-file
    Generate(GenerateArgs),
}

/// The new secret.
#[derive(Debug, Args)]
pub(crate) struct NewKeyArgs {
    /// File with the new passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) new_password_file: Option<PathBuf>,

    /// File with the new key
    #[arg(long, value_name = "FILE")]
    pub(crate) new_key_file: Option<PathBuf>,

    /// Open file descriptor to read the new passphrase from
    #[arg(long, value_name = "FD")]
    pub(crate) new_password_fd: Option<u32>,

    /// What to call the slot [default: nothing; with `change`, as before]
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
}

/// Which slot.
#[derive(Debug, Args)]
pub(crate) struct SlotArgs {
    /// Slot as `key list` shows it, or the beginning of its name
    #[arg(value_name = "SLOT")]
    pub(crate) slot: String,
}

/// Where to create a key.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// File to create; it must not exist
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}
