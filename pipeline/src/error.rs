//! Errors of the data plane.
//!
//! Rules:
//! 1. An error names what failed and where (object key, path, offset), and keeps its source.
//! 2. Callers branch on [`Error::kind`], never on text; a binary turns a kind into an exit code in one table.
//! 3. What a user can do next is data ([`Error::hint`]) where the kind of error says it; a refusal that a flag would lift
//!    names the flag.
//! 4. Keys, passphrases, chunk ids and plaintext never appear in an error.
//! 5. Trouble with one file of a tree is not an error but a value: see [`crate::progress::Skipped`].

use std::io;
use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Result of everything in this crate that can fail as a whole.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller can act on it. One exit code each in the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request makes no sense: bad option, bad value, snapshot that does not exist.
    Usage,
    /// No key slot opens with the given passphrase or key file.
    WrongKey,
    /// Stored data is not what was written: a failed authentication, a missing object, a hash mismatch.
    Damage,
    /// The store did not answer within its deadlines, or refused the request.
    Store,
    /// There is no repository at the location, or one that this version does not read.
    Repository,
    /// The source cannot be read as asked.
    Source,
    /// The restore target is not acceptable or cannot be written.
    Target,
    /// The run was fenced or overtaken by another one; running it again is safe.
    Conflict,
    /// Cancelled by the user; running it again resumes.
    Cancelled,
    /// Anything else: local I/O of caches and temporary files, a broken invariant.
    Internal,
}

/// An error of the data plane.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A request that cannot be carried out as given.
    #[error("{0}")]
    Usage(String),
    /// No key slot opens with the given secret.
    #[error("{location}: no key slot opens with this {secret}")]
    WrongKey {
        /// Repository, as the user named it.
        location: String,
        /// `passphrase` or `key file`.
        secret: &'static str,
    },
    /// Stored bytes that cannot be trusted.
    #[error("damaged: {object}{}: {what}", at(*.offset))]
    Damaged {
        /// Key of the object in the store.
        object: String,
        /// Byte offset inside the object, when one place is to blame.
        offset: Option<u64>,
        /// What was expected and what was found, without contents.
        what: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No repository there, or not one of ours, or too new.
    #[error("{location}: {what}")]
    Repository {
        /// Repository, as the user named it.
        location: String,
        /// What is missing or unsupported.
        what: String,
        /// What to do next.
        hint: Option<&'static str>,
    },
    /// The source cannot be read.
    #[error("{}: {what}", path.display())]
    Source {
        /// Path of the source.
        path: PathBuf,
        /// What failed.
        what: String,
        /// The system's error, when there is one.
        source: Option<io::Error>,
    },
    /// The target of a restore was refused or could not be written.
    #[error("{}: {what}", path.display())]
    Target {
        /// Path of the target.
        path: PathBuf,
        /// What failed.
        what: String,
        /// The system's error, when there is one.
        source: Option<io::Error>,
    },
    /// Another run got in the way.
    #[error("{0}")]
    Conflict(String),
    /// Cancelled.
    #[error("interrupted")]
    Cancelled,
    /// Local I/O outside of source, target and store.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// An invariant did not hold. Always a bug.
    #[error("internal error: {0}")]
    Internal(String),
}

fn at(offset: Option<u64>) -> String {
    offset.map(|o| format!(" at byte {o}")).unwrap_or_default()
}

impl Error {
    /// The kind a caller branches on.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Usage(_) => Kind::Usage,
            Self::WrongKey { .. } => Kind::WrongKey,
            Self::Damaged { .. } => Kind::Damage,
            Self::Store(_) => Kind::Store,
            Self::Repository { .. } => Kind::Repository,
            Self::Source { .. } => Kind::Source,
            Self::Target { .. } => Kind::Target,
            Self::Conflict(_) => Kind::Conflict,
            Self::Cancelled => Kind::Cancelled,
            Self::Io { .. } | Self::Internal(_) => Kind::Internal,
        }
    }

    /// What the user can do next, when there is something.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::WrongKey { .. } => Some("check --password-file or --key-file"),
            // Nothing opens without them, `verify` neither.
            Self::Damaged { object, .. } if object == "config" || object.starts_with("keys/") => None,
            Self::Damaged { .. } => Some(
                "run `verify --read-data` to see everything that is affected; other snapshots may be intact",
            ),
            Self::Repository { hint, .. } => *hint,
            Self::Store(e) => e.hint(),
            Self::Conflict(_) => Some("run it again: what was uploaded is used again"),
            Self::Cancelled => Some("run it again: what was uploaded is used again"),
            _ => None,
        }
    }

    /// Damage in `object`, as a whole.
    pub fn damaged(object: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), offset: None, what: what.into() }
    }

    /// Damage in `object` at `offset` bytes.
    pub fn damaged_at(object: impl Into<String>, offset: u64, what: impl Into<String>) -> Self {
        Self::Damaged { object: object.into(), offset: Some(offset), what: what.into() }
    }

    /// A failed system call on the source.
    pub fn source_io(path: &Path, what: impl Into<String>, source: io::Error) -> Self {
        Self::Source { path: path.to_owned(), what: what.into(), source: Some(source) }
    }

    /// A failed system call on the target.
    pub fn target_io(path: &Path, what: impl Into<String>, source: io::Error) -> Self {
        Self::Target { path: path.to_owned(), what: what.into(), source: Some(source) }
    }

    /// A failed local file operation; for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

/// The first error of several threads: it wins, everyone else stops.
#[derive(Debug, Default)]
pub struct FirstError {
    failed: std::sync::atomic::AtomicBool,
    error: std::sync::Mutex<Option<Error>>,
}

impl FirstError {
    /// Records `error` unless one was recorded before.
    pub fn set(&self, error: Error) {
        if let Ok(mut slot) = self.error.lock() {
            slot.get_or_insert(error);
        }
        self.failed.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Fails with [`Error::Cancelled`] once an error was recorded: somebody else knows why.
    pub fn check(&self) -> Result<()> {
        if self.failed.load(std::sync::atomic::Ordering::Acquire) { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Records what `result` failed with, if it did, and returns its value.
    pub fn note<T>(&self, result: Result<T>) -> Option<T> {
        result.map_err(|e| self.set(e)).ok()
    }

    /// The recorded error; call when all threads have ended.
    pub fn take(&self) -> Result<()> {
        match self.error.lock() {
            Ok(mut slot) => slot.take().map_or(Ok(()), Err),
            Err(_) => Err(Error::Internal("error slot poisoned".into())),
        }
    }
}

/// Fails the run when the thread that holds it panics: others would wait for what it owes them for ever.
#[derive(Debug)]
pub(crate) struct FailOnPanic(pub(crate) std::sync::Arc<FirstError>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set(Error::Internal("a thread of the run panicked".into()));
        }
    }
}
