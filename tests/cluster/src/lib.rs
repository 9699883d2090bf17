//! A real Kubernetes for tests, on one machine and without a registry: etcd, API server, controllers, kubelet,
//! containers, volumes with snapshots and changed block tracking, an S3 server.
//!
//! From outside, in the order of a cluster's life:
//!
//! - [`folder`]: where it is, and how much of it there is ([`folder::Level`]);
//! - [`bed`]: started, entered, ended, cleaned up after;
//! - [`inside`]: its first process and its supervisor;
//! - [`components`], [`network`]: what runs, and at which addresses.
//!
//! For tests, inside:
//!
//! - [`cluster`]: a test inside of a cluster, its namespace and its pods;
//! - [`objects`]: Kubernetes objects applied, deleted, waited for;
//! - [`image`]: container images made from files;
//! - [`left`]: what tests have left.

pub mod bed;
pub mod cluster;
mod command;
pub mod components;
pub mod folder;
pub mod image;
pub mod inside;
pub mod left;
mod loops;
mod machine;
pub mod network;
pub mod objects;
mod pki;
mod state;
mod supervisor;
