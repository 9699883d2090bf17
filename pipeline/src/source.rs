//! Sources: what a backup reads.
//!
//! A source delivers bytes and what they belong to, in a fixed order, and says what it could not read. It knows
//! nothing about chunks, packs or stores.

pub mod block;
pub mod tree;
mod volume;

pub use volume::Volume;
