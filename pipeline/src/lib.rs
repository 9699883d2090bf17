//! The Tradewind data plane: volumes to object storage and back. Bytes and buckets; no terminal, no cluster.
//!
//! ```text
//! source ─► io ─► chunk ─► index ─► seal ─► pack ─► store ─► manifest
//! what to   read  cut      seen     zstd    group   objects, commit: the last
//! read      into  ranges   before?  + AEAD  sealed  parts in write makes the
//! (tree or  pooled         (skip)           chunks  parallel snapshot exist
//!  block)   buffers
//! ```
//!
//! Each station is a module, and knows none to its right. Who runs them all: [`backup::run`] from left to right,
//! [`restore::run`] back again, [`verify::run`] to see that what is there is right, [`browse`] to look inside, all on a
//! [`repository::Repository`]. What is between the stations: [`hash`] says when chunks are the same, [`entry`] what
//! a file is, [`page`] how a snapshot lists both; [`session`] and [`gc`] are what concurrent runs owe each other.
//! What is around them: [`limits`] for what a run may spend, [`progress`] for what it counts, [`error`] for how it
//! fails.
//!
//! The calls block and may be made from any thread; the store's requests run on the Tokio runtime that is handed in.
//! What is stored is specified in `FORMAT.md`, why all this is as it is in the repository's `ARCHITECTURE.md`.

pub mod backup;
pub mod browse;
pub mod chunk;
pub mod entry;
pub mod error;
pub mod gc;
pub mod hash;
pub mod heap;
pub mod index;
pub mod io;
pub mod limits;
pub mod manifest;
pub mod pack;
pub mod page;
pub mod patterns;
pub mod progress;
pub mod repository;
pub mod restore;
pub mod seal;
pub mod session;
pub mod source;
pub mod stats;
pub mod store;
mod temp;
pub mod verify;

pub use error::{Error, Kind, Result};
pub use limits::Limits;
pub use progress::Progress;
pub use repository::Repository;

/// Name and version of this program, as it is recorded in what it writes.
pub const TOOL: &str = concat!("tradewind ", env!("CARGO_PKG_VERSION"));
