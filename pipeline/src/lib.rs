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
//! Each station is a module; a test fixes which others it may name. [`backup::run`] drives them from left to right,
//! [`restore::run`] back again, [`verify::run`] checks what is stored and [`browse`] looks inside, all on a
//! [`repository::Repository`]. Shared by the stations: [`hash`] defines identity, [`entry`] describes a file, [`page`]
//! lists a snapshot's entries and chunks, [`session`] and [`gc`] hold the protocol between concurrent runs. Around
//! them: [`limits`] (what a run may use), [`progress`] (what it counts), [`error`] (how it fails).
//!
//! Calls block and may be made from any thread; requests to the store run on the Tokio runtime that is handed in.
//! `FORMAT.md` specifies what is stored; the repository's `ARCHITECTURE.md` explains the design.

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
