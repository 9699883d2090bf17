//! Passphrases and keys: from a file, a descriptor or a prompt, never from an argument or an environment value.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use tradewind_pipeline::seal::Secret;
use tradewind_pipeline::seal::keys::MAX_PASSPHRASE;
use tradewind_pipeline::{Error, Result};
use zeroize::Zeroizing;

use crate::output::Output;

/// Bytes of a generated key, before they are written as hexadecimal digits.
const KEY: usize = 32;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A passphrase in a file.
    PasswordFile(PathBuf),
    /// A passphrase behind an open descriptor.
    PasswordFd(u32),
    /// A key in a file.
    KeyFile(PathBuf),
    /// Ask on the terminal.
    Prompt,
}

/// How a prompt asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Once: a passphrase that exists.
    Once,
    /// Twice: a new one.
    Twice,
}

/// Flags that can name an origin, for texts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flags {
    /// The flag of a password file.
    pub(crate) password: &'static str,
    /// The flag of a key file.
    pub(crate) key: &'static str,
}

impl Origin {
    /// Reads the secret. A new one is asked for twice.
    pub(crate) fn read(&self, ask: Ask, flags: Flags, output: &Output) -> Result<Secret> {
        match self {
            Self::PasswordFile(path) => not_empty(Secret::passphrase_from_file(read_file(path, output)?)),
            Self::KeyFile(path) => not_empty(Secret::KeyFile(read_file(path, output)?)),
            Self::PasswordFd(fd) => not_empty(Secret::passphrase_from_file(read_descriptor(*fd)?)),
            Self::Prompt => prompt(ask, flags),
        }
    }
}

/// Creates `path`, readable by its owner alone, with a new random key.
pub(crate) fn generate(path: &Path) -> Result<()> {
    let mut key = Zeroizing::new([0; KEY]);
    getrandom::fill(&mut key[..]).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
    let mut text = Zeroizing::new(vec![0; 2 * KEY + 1]);
    hex::encode_to_slice(&key[..], &mut text[..2 * KEY])
        .map_err(|e| Error::Internal(format!("hexadecimal digits: {e}")))?;
    text[2 * KEY] = b'\n';
    let failed = |e| Error::target_io(path, "cannot create the key file", e);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)
}

fn read_file(path: &Path, output: &Output) -> Result<Zeroizing<Vec<u8>>> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).map_err(|e| Error::Usage(format!("{}: {e}", what())))?;
    let mode = file.metadata().map_err(|e| Error::Usage(format!("{}: {e}", what())))?.mode();
    if mode & 0o004 != 0 {
        output.warn(&format!("{} can be read by everyone on this machine", path.display()));
    }
    read_bounded(&mut file, &what)
}

/// Reads on from where the descriptor stands.
fn read_descriptor(fd: u32) -> Result<Zeroizing<Vec<u8>>> {
    let what = || format!("cannot read file descriptor {fd}");
    let mut file = duplicate(fd).map_err(|e| Error::Usage(format!("{}: {e}", what())))?;
    read_bounded(&mut file, &what)
}

/// A copy of an inherited descriptor, taken from this process by its number, which needs no trust in the number.
///
/// Where the system refuses that (Linux before 5.6, some filters of containers) it is opened again by its name in
/// `/proc`: good for pipes and files that this user may open, not for sockets, and a file begins at its start.
fn duplicate(fd: u32) -> io::Result<File> {
    let number = i32::try_from(fd).map_err(|_| Errno::BADF)?;
    let copy = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|this| pidfd_getfd(this, number, PidfdGetfdFlags::empty()));
    match copy {
        Ok(copy) => Ok(copy.into()),
        Err(Errno::BADF) => Err(Errno::BADF.into()),
        Err(_) => File::open(format!("/proc/self/fd/{fd}")),
    }
}

fn read_bounded(from: &mut impl Read, what: &dyn Fn() -> String) -> Result<Zeroizing<Vec<u8>>> {
    // The full size at once: a buffer that grew would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PASSPHRASE + 1));
    from.take(MAX_PASSPHRASE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::Usage(format!("{}: {e}", what())))?;
    if bytes.len() > MAX_PASSPHRASE {
        return Err(Error::Usage(format!("{}: more than 64 KiB is no passphrase or key", what())));
    }
    Ok(bytes)
}

fn not_empty(secret: Secret) -> Result<Secret> {
    match &secret {
        Secret::Passphrase(bytes) | Secret::KeyFile(bytes) if bytes.is_empty() => {
            Err(Error::Usage("the passphrase or key is empty".to_owned()))
        }
        _ => Ok(secret),
    }
}

fn prompt(ask: Ask, flags: Flags) -> Result<Secret> {
    if !io::stderr().is_terminal() {
        return Err(no_key(flags));
    }
    let text = match ask {
        Ask::Once => "Passphrase: ",
        Ask::Twice => "New passphrase: ",
    };
    let first = prompt_line(text, flags)?;
    if ask == Ask::Twice && *prompt_line("Again: ", flags)? != *first {
        return Err(Error::Usage("the two passphrases differ".to_owned()));
    }
    not_empty(Secret::Passphrase(first))
}

fn prompt_line(text: &str, flags: Flags) -> Result<Zeroizing<Vec<u8>>> {
    match rpassword::prompt_password(text) {
        Ok(line) => Ok(Zeroizing::new(line.into_bytes())),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(Error::Cancelled),
        Err(_) => Err(no_key(flags)),
    }
}

fn no_key(flags: Flags) -> Error {
    let Flags { password, key } = flags;
    Error::Usage(format!("no key given: use {password} FILE or {key} FILE"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    const FLAGS: Flags = Flags { password: "--password-file", key: "--key-file" };

    fn read(origin: &Origin) -> Result<Vec<u8>> {
        match origin.read(Ask::Once, FLAGS, &Output::silent())? {
            Secret::Passphrase(bytes) | Secret::KeyFile(bytes) => Ok(bytes.to_vec()),
        }
    }

    #[test]
    fn one_newline_at_the_end_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        for (text, expected) in
            [("a b", "a b"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), (" x ", " x ")]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&Origin::PasswordFile(path.clone())).unwrap(), expected.as_bytes());
        }
        std::fs::write(&path, "k\n").unwrap();
        assert_eq!(read(&Origin::KeyFile(path.clone())).unwrap(), b"k\n", "a key file is taken as it is");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass");
        for contents in [vec![], b"\n".to_vec(), vec![b'x'; (64 << 10) + 1]] {
            std::fs::write(&path, contents).unwrap();
            let error = read(&Origin::PasswordFile(path.clone())).unwrap_err();
            assert!(matches!(error, Error::Usage(_)), "{error}");
        }
        assert!(read(&Origin::KeyFile(dir.path().join("absent"))).is_err());
        assert!(read(&Origin::PasswordFd(999)).is_err());
    }

    #[test]
    fn a_generated_key_is_new_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        generate(&path).unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!(first.len(), 65);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(generate(&path).unwrap_err(), Error::Target { .. }));
        assert_eq!(std::fs::read(&path).unwrap(), first);
        generate(&dir.path().join("other")).unwrap();
        assert_ne!(std::fs::read(dir.path().join("other")).unwrap(), first);
    }
}
