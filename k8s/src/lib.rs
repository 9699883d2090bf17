//! Velero's API for Kubernetes, as clusters have it: what its objects look like, how they are named and labelled, and the
//! rules by which a second implementation works beside the first or in its place.
//!
//! - [`velero`]: the custom resources;
//! - [`crd`]: their definitions, as a cluster is given them;
//! - [`labels`]: keys of labels and annotations, and how values are shortened;
//! - [`patch`](mod@patch): changing objects;
//! - [`node_agent`]: the configuration of node agents;
//! - [`bucket`]: what a storage location says about its bucket;
//! - [`snapshot`](mod@snapshot): snapshots of volumes;
//! - [`quantity`](mod@quantity): amounts.
//!
//! No bucket is opened and no byte moved: nothing here knows the pipeline. Facts are of Velero 1.18.3 unless a version is named.

pub mod bucket;
pub mod crd;
pub mod labels;
pub mod node_agent;
mod object;
pub mod patch;
pub mod quantity;
pub mod snapshot;
pub mod velero;
