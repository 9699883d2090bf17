//! Tests of the pipeline against real file systems and real servers, in one binary.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod bed;
mod block;
mod damage;
mod golden;
mod restore;
mod store;
mod stream;
mod tree;
mod volume;
