//! Reading and writing volumes: memory, descriptors, and the two engines that bring them together.
//!
//! ```text
//! Pool ──take──► Buf ──read/write──► Engine ──wait/poll──► Completion { buf, result }
//!   ▲                                  │ uring: one ring      │
//!   └────────── drop ◄── Bytes ◄─freeze┼ pread: threads   ◄───┘
//! ```
//!
//! **Memory.** A [`Pool`] is one mapping cut into equal buffers aligned to 4,096 bytes, and its user
//! has no other memory: when it is empty, the user waits. A [`Buf`] has one owner. It can be frozen into shared `Bytes`
//! without a copy, cut into chunks and handed on; when the last slice is dropped, the buffer is back in the pool.
//!
//! **Ownership.** An operation takes its buffer and a reference to its file by value and gives the buffer back with the
//! completion. Nothing can free or reuse memory that the kernel may still write to: not an error, not a cancelled run,
//! not dropping the engine, which waits.
//!
//! **Engines.** [`probe`] says which of the two works here, and why. Both carry the same operation type through the
//! same state machine (`transfer`), so short transfers, end of file, retries and unaligned tails have one meaning; both
//! run the same tests. Which errors are retried: `EIO` of a read 3 times, of a write never; interrupted calls always.
//!
//! **Past the page cache.** [`DirectFile`] pairs an O_DIRECT descriptor with a buffered one and picks for each call.
//! O_DIRECT is not durability: who writes syncs, and a failed sync is final.
//!
//! **Depth.** The number of operations in flight adapts to the device within the bound given (`depth`).
//!
//! Not known here: volumes, chunks, errors of whole runs. `unsafe` is confined to `buf` and `uring`.

mod buf;
mod depth;
mod direct;
mod engine;
mod pool;
mod pread;
mod probe;
mod transfer;
mod uring;

pub use buf::Buf;
pub use direct::{DirectFile, open_read, open_write};
pub use engine::{Engine, EngineChoice, EngineKind};
pub use pool::Pool;
pub use probe::{Probe, probe};
pub use transfer::{Completion, Payload};

#[cfg(test)]
mod tests;
