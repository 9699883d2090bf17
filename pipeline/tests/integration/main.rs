//! The pipeline from end to end, in one binary.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bed;
mod block;
