//! The driver as a program: on a real file system, with real loop devices, by way of its socket. Needs root; says
//! SKIPPED without.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test says what it did not do, and fails by panicking"
)]

mod bed;
mod consistency;
mod faults;
mod metadata;
mod node;
mod restart;
mod sanity;

/// The clients of the driver's and of the kubelet's services, generated like the driver's servers.
mod proto {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        reason = "generated code"
    )]
    pub(crate) mod csi {
        tonic::include_proto!("csi.v1");
    }
    pub(crate) mod registration {
        tonic::include_proto!("pluginregistration");
    }
}
use proto::{csi, registration};
