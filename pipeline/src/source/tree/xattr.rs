//! Extended attributes of the source: which are kept, and how they are read without following links.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;

/// The kernel's own limit for one value and for the list of names, in bytes.
const LIMIT: usize = 64 * 1024;
/// All attributes of one file together may have this many bytes. File systems allow more; nobody was seen to use it,
/// and without a limit one file could fill the memory.
const TOTAL: usize = 1024 * 1024;

/// The file whose attributes are wanted.
pub(super) enum Place<'a> {
    /// Open for reading.
    Fd(BorrowedFd<'a>),
    /// A name in a directory; a link is not followed.
    Name(BorrowedFd<'a>, &'a [u8]),
}

/// Reads attributes; keeps its buffers.
pub(super) struct Xattrs {
    privileged: bool,
    names: Vec<u8>,
    value: Vec<u8>,
    path: Vec<u8>,
}

/// Attributes in byte order of names, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) pairs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) warnings: Vec<String>,
}

impl Xattrs {
    /// `privileged`: with `trusted` attributes.
    pub(super) fn new(privileged: bool) -> Self {
        let buffer = || Vec::with_capacity(LIMIT);
        Self { privileged, names: buffer(), value: buffer(), path: Vec::new() }
    }

    /// Reads all attributes that are kept.
    pub(super) fn read(&mut self, place: &Place<'_>) -> Read {
        let mut read = Read::default();
        if let Place::Name(dir, name) = place {
            // There is no `llistxattrat` before Linux 6.13. Through the directory's descriptor the path stays short,
            // however deep the tree, and only the last component can be a link, which is not followed.
            self.path.clear();
            self.path.extend_from_slice(format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes());
            self.path.extend_from_slice(name);
        }
        self.names.clear();
        let listed = match place {
            Place::Fd(fd) => flistxattr(fd, spare_capacity(&mut self.names)),
            Place::Name(..) => llistxattr(&*self.path, spare_capacity(&mut self.names)),
        };
        match listed {
            Ok(_) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => read.warnings.push(format!("extended attributes cannot be listed: {errno}")),
        }
        let mut total = 0;
        for name in self.names.split(|b| *b == 0).filter(|n| is_kept(n, self.privileged)) {
            self.value.clear();
            let got = match place {
                Place::Fd(fd) => fgetxattr(fd, name, spare_capacity(&mut self.value)),
                Place::Name(..) => lgetxattr(&*self.path, name, spare_capacity(&mut self.value)),
            };
            total += name.len() + self.value.len();
            match got {
                Ok(_) if total <= TOTAL => read.pairs.push((name.to_vec(), self.value.clone())),
                // Removed since it was listed.
                Err(Errno::NODATA) => {}
                Ok(_) => read.warnings.push(format!("{} left out: over 1 MiB of attributes", shown(name))),
                Err(errno) => read.warnings.push(format!("{} cannot be read: {errno}", shown(name))),
            }
        }
        read.pairs.sort_unstable();
        read
    }
}

fn shown(name: &[u8]) -> String {
    format!("extended attribute {}", name.escape_ascii())
}

/// `security.evm` is a signature over this very inode and cannot be valid on another one; `system` holds views of
/// other metadata apart from the ACLs.
fn is_kept(name: &[u8], privileged: bool) -> bool {
    name.starts_with(b"user.")
        || (name.starts_with(b"security.") && name != b"security.evm")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default"
        || (privileged && name.starts_with(b"trusted."))
}
