//! What `build.rs` generates from `proto/`.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code; the program serves what the tests call"
)]

/// The Container Storage Interface.
pub(crate) mod csi {
    tonic::include_proto!("csi.v1");
}

/// The kubelet's registration of plugins.
pub(crate) mod registration {
    tonic::include_proto!("pluginregistration");
}
