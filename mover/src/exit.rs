//! The one table from what went wrong to what a script sees. The numbers are frozen: scripts branch on them.

use std::error::Error as _;
use std::fmt::Write as _;
use std::process::ExitCode;

use tradewind_pipeline::{Error, Kind};

/// Exit status of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Everything was done.
    Done = 0,
    /// A bug, or a failure of this machine outside of source, target and store.
    Internal = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Done, but something was skipped.
    Skipped = 3,
    /// No key slot opens.
    WrongKey = 4,
    /// Stored data is damaged or missing.
    Damage = 5,
    /// The store cannot be reached or refuses.
    Store = 6,
    /// No repository, or not one that this version reads.
    Repository = 7,
    /// The source cannot be read.
    Source = 8,
    /// The target is refused or cannot be written.
    Target = 9,
    /// Another run got in the way.
    Conflict = 10,
    /// Stopped by a signal.
    Interrupted = 130,
}

impl Code {
    /// All codes, in ascending order.
    pub(crate) const ALL: [Self; 12] = [
        Self::Done,
        Self::Internal,
        Self::Usage,
        Self::Skipped,
        Self::WrongKey,
        Self::Damage,
        Self::Store,
        Self::Repository,
        Self::Source,
        Self::Target,
        Self::Conflict,
        Self::Interrupted,
    ];

    /// One line for people.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Internal => "internal error, or local I/O outside of source, target and store",
            Self::Usage => "bad usage: option, value or snapshot that makes no sense",
            Self::Skipped => "done, but something was skipped; each item was named",
            Self::WrongKey => "wrong key: no key slot opens with this passphrase or key file",
            Self::Damage => "damage: stored data is missing or not what was written",
            Self::Store => "the store could not be reached, or refused",
            Self::Repository => {
                "no repository there, not readable by this version, or none can be made there"
            }
            Self::Source => "the source cannot be read as asked",
            Self::Target => "the target is not acceptable or cannot be written",
            Self::Conflict => "overtaken by another run; running it again is safe",
            Self::Interrupted => "interrupted; the next backup resumes",
        }
    }

    /// The code of an error.
    pub(crate) fn of(kind: Kind) -> Self {
        match kind {
            Kind::Usage => Self::Usage,
            Kind::WrongKey => Self::WrongKey,
            Kind::Damage => Self::Damage,
            Kind::Store => Self::Store,
            Kind::Repository => Self::Repository,
            Kind::Source => Self::Source,
            Kind::Target => Self::Target,
            Kind::Conflict => Self::Conflict,
            Kind::Cancelled => Self::Interrupted,
            Kind::Internal => Self::Internal,
        }
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// How a command that came to its end ended. Errors are the other way to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// Everything was done.
    Done,
    /// Done, but something was skipped.
    Skipped,
    /// Damage was found; everything else was done.
    Damaged,
}

impl Outcome {
    /// The outcome of a run with so many damaged places and skipped items.
    pub(crate) fn of(damages: u64, skipped: u64) -> Self {
        match (damages, skipped) {
            (0, 0) => Self::Done,
            (0, _) => Self::Skipped,
            _ => Self::Damaged,
        }
    }

    /// The exit status.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Done => Code::Done,
            Self::Skipped => Code::Skipped,
            Self::Damaged => Code::Damage,
        }
    }
}

/// The name of a kind in JSON.
pub(crate) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Usage => "usage",
        Kind::WrongKey => "wrong_key",
        Kind::Damage => "damage",
        Kind::Store => "store",
        Kind::Repository => "repository",
        Kind::Source => "source",
        Kind::Target => "target",
        Kind::Conflict => "conflict",
        Kind::Cancelled => "interrupted",
        Kind::Internal => "internal",
    }
}

/// The error and its causes on one line, each text once.
pub(crate) fn one_line(error: &Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let text = e.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = e.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The table as `--help` shows it.
pub(crate) fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for code in Code::ALL {
        let _ = writeln!(text, "  {:>3}  {}", code as u8, code.meaning());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_frozen() {
        let numbers: Vec<u8> = Code::ALL.iter().map(|c| *c as u8).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 130]);
    }

    #[test]
    fn kinds_keep_their_numbers_and_names() {
        let table = [
            (Kind::Usage, 2, "usage"),
            (Kind::WrongKey, 4, "wrong_key"),
            (Kind::Damage, 5, "damage"),
            (Kind::Store, 6, "store"),
            (Kind::Repository, 7, "repository"),
            (Kind::Source, 8, "source"),
            (Kind::Target, 9, "target"),
            (Kind::Conflict, 10, "conflict"),
            (Kind::Cancelled, 130, "interrupted"),
            (Kind::Internal, 1, "internal"),
        ];
        for (kind, number, name) in table {
            assert_eq!((Code::of(kind) as u8, kind_name(kind)), (number, name), "{kind:?}");
        }
    }

    #[test]
    fn damage_outranks_skips() {
        assert_eq!(Outcome::of(0, 0).code(), Code::Done);
        assert_eq!(Outcome::of(0, 2).code(), Code::Skipped);
        assert_eq!(Outcome::of(1, 2).code(), Code::Damage);
    }

    #[test]
    fn the_readme_has_the_table() {
        let readme = include_str!("../README.md");
        for code in Code::ALL {
            let row = format!("| {} | {} |", code as u8, code.meaning());
            assert!(readme.contains(&row), "README.md lacks {row}");
        }
    }

    #[test]
    fn errors_are_one_line_and_keep_their_cause() {
        let denied = std::io::Error::from_raw_os_error(13);
        let error = Error::source_io(std::path::Path::new("/srv"), "cannot be\nopened", denied);
        assert_eq!(one_line(&error), "/srv: cannot be opened: Permission denied (os error 13)");
    }
}
