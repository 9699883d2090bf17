//! The Tradewind data plane: volumes to object storage and back.
pub mod entry;
pub mod error;
pub mod hash;
pub mod index;
pub mod pack;
pub mod progress;
pub mod seal;
pub mod store;

pub use error::{Error, Kind, Result};
