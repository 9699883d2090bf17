//! What this crate says of Velero, held against Velero itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod definitions;
