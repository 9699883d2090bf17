//! A volume that somebody else has opened.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// A volume handed over as open descriptors. There is no way to it but these: it may be mounted in another mount
/// namespace, and a device may be one that this process must not open. Clones share the descriptors.
///
/// Whoever hands it over answers for it: that nobody else writes to it, and that it may be overwritten.
#[derive(Debug, Clone)]
pub enum Volume {
    /// The directory at the top of a tree.
    Tree(Arc<OwnedFd>),
    /// A block device, or a regular file in place of one.
    Block {
        /// Open with O_DIRECT; without it everything goes through the page cache.
        direct: Option<Arc<File>>,
        /// Open without.
        buffered: Arc<File>,
    },
}

impl Volume {
    /// A tree, by its top directory.
    pub fn tree(root: OwnedFd) -> Self {
        Self::Tree(Arc::new(root))
    }

    /// A block volume, by one descriptor with O_DIRECT, if there is one, and one without; both for reading, or for
    /// reading and writing where it is a target.
    pub fn block(direct: Option<OwnedFd>, buffered: OwnedFd) -> Self {
        Self::Block {
            direct: direct.map(|fd| Arc::new(File::from(fd))),
            buffered: Arc::new(File::from(buffered)),
        }
    }

    /// What messages call any of them.
    pub(crate) fn shown() -> &'static Path {
        Path::new("the volume")
    }
}
