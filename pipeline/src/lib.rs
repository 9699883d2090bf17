//! The Tradewind data plane: volumes to object storage and back.
pub mod entry;
pub mod error;
pub mod hash;
pub mod pack;
pub mod progress;
pub mod restore;
pub mod seal;
pub mod source;
pub mod store;

pub use error::{Error, Kind, Result};
