//! The Tradewind data plane: volumes to object storage and back.
pub mod backup;
pub mod browse;
pub mod chunk;
pub mod entry;
pub mod error;
pub mod gc;
pub mod hash;
pub mod index;
pub mod io;
pub mod limits;
pub mod manifest;
pub mod pack;
pub mod page;
pub mod progress;
pub mod repository;
pub mod restore;
pub mod seal;
pub mod session;
pub mod source;
pub mod stats;
pub mod store;
pub mod verify;

pub use error::{Error, Kind, Result};

/// Name and version of this program, as it is recorded in what it writes.
pub const TOOL: &str = concat!("tradewind ", env!("CARGO_PKG_VERSION"));
