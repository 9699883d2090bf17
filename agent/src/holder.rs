//! The process of a holding pod: opens the volume, hands it over, and waits until it is not needed any more. It has no
//! capability, no account, and reads nothing but its token.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode as Bits, OFlags, openat};
use zeroize::Zeroizing;

use crate::handover::{self, DONE, SOCKET, TOKEN};
use crate::objects::Uid;

/// How long to wait before the agent is called again.
const AGAIN: Duration = Duration::from_millis(200);

/// What a holding pod is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the volume is: the root of a file system, or a block device.
    pub volume: PathBuf,
    /// The volume shall be written.
    pub write: bool,
    /// UID of the job.
    pub job: String,
    /// File with the job's token.
    pub token_file: PathBuf,
    /// The folder with the agent's socket.
    pub socket_directory: PathBuf,
}

/// Why a volume cannot be held.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// Opens the volume and gives it to the agent, again and again, until that says that it is done.
///
/// # Errors
/// When the volume cannot be opened, or the token cannot be read.
pub fn run(options: &Options) -> Result<(), Error> {
    let job =
        Uid::parse(options.job.as_bytes()).ok_or_else(|| Error(format!("'{}' is no UID", options.job)))?;
    let token = token(&options.token_file)?;
    let volume = open(&options.volume, options.write)?;
    let volume: Vec<_> = volume.iter().map(AsFd::as_fd).collect();
    let socket = options.socket_directory.join(SOCKET);
    loop {
        // The agent may not have come yet, or it is being restarted: whoever runs this pod ends it.
        if let Ok(mut connection) = UnixStream::connect(&socket)
            && handover::send(&connection, &job, &token, &volume).is_ok()
        {
            let mut said = Vec::new();
            let end = (&mut connection).take(DONE.len() as u64).read_to_end(&mut said);
            if end.is_ok() && said == DONE {
                return Ok(());
            }
        }
        std::thread::sleep(AGAIN);
    }
}

fn token(file: &Path) -> Result<Zeroizing<[u8; TOKEN]>, Error> {
    let refused = |what: &str| Error(format!("the token in {}: {what}", file.display()));
    let open = File::open(file).map_err(|e| refused(&e.to_string()))?;
    let mut text = Zeroizing::new(Vec::with_capacity(2 * TOKEN + 2));
    open.take(2 * TOKEN as u64 + 1).read_to_end(&mut text).map_err(|e| refused(&e.to_string()))?;
    let mut token = Zeroizing::new([0; TOKEN]);
    hex::decode_to_slice(text.as_slice(), token.as_mut_slice()).map_err(|_| refused("is none"))?;
    Ok(token)
}

/// The descriptors of a volume, as [`crate::handover`] says.
fn open(volume: &Path, write: bool) -> Result<Vec<OwnedFd>, Error> {
    let failed = |e: rustix::io::Errno| Error(format!("cannot open {}: {e}", volume.display()));
    let kind = rustix::fs::stat(volume).map_err(failed)?.st_mode;
    if rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Directory {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        return Ok(vec![openat(CWD, volume, flags, Bits::empty()).map_err(failed)?]);
    }
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY } | OFlags::CLOEXEC;
    let buffered = openat(CWD, volume, access, Bits::empty()).map_err(failed)?;
    let direct = openat(CWD, volume, access | OFlags::DIRECT, Bits::empty()).ok();
    Ok([buffered].into_iter().chain(direct).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_exactly_that() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            token(&file)
        };
        assert_eq!(*read(&"07".repeat(TOKEN)).unwrap(), [7; TOKEN]);
        for bad in ["", "07", &"07".repeat(TOKEN + 1), &"x7".repeat(TOKEN)] {
            let refused = read(bad).unwrap_err().to_string();
            assert!(refused.ends_with(": is none") && !refused.contains("07"), "{refused}");
        }
        assert!(token(&folder.path().join("missing")).unwrap_err().to_string().contains("missing"));
    }

    #[test]
    fn a_directory_needs_no_right_to_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let opened = open(folder.path(), true).unwrap();
        let flags = rustix::fs::fcntl_getfl(&opened[0]).unwrap();
        assert!(opened.len() == 1 && flags.contains(OFlags::PATH));
        // And the agent opens it with its own.
        let again = openat(&opened[0], c".", OFlags::RDONLY | OFlags::DIRECTORY, Bits::empty()).unwrap();
        assert!(rustix::fs::fstat(&again).is_ok());
    }

    #[test]
    fn a_file_is_opened_twice() {
        // Where there is O_DIRECT: not in every place for temporary files.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = folder.path().join("volume");
        std::fs::write(&file, "x").unwrap();
        let direct = |fd: &OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::DIRECT);
        let opened = open(&file, true).unwrap();
        assert_eq!(opened.iter().map(direct).collect::<Vec<_>>(), [false, true]);
        assert!(rustix::fs::fcntl_getfl(&opened[1]).unwrap().contains(OFlags::RDWR));
        assert!(!rustix::fs::fcntl_getfl(&open(&file, false).unwrap()[0]).unwrap().contains(OFlags::RDWR));
    }
}
