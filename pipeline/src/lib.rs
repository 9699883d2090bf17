//! The Tradewind data plane: volumes to object storage and back.
pub mod error;
pub mod io;
pub mod progress;
pub mod store;

pub use error::{Error, Kind, Result};
