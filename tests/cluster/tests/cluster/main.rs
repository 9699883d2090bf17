//! Tests of the cluster itself: that what Tradewind will be tested with behaves as the real thing does. All of them need
//! one: `make cluster-test`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod api;
mod beside_velero;
mod blocks;
mod claims;
mod faults;
mod helm;
mod images;
mod jobs;
mod snapshots;
mod velero;
mod volumes;
