//! Restore: the way back, from stored chunks to a device, a file or a directory.

pub mod target;
