//! What the tests that cross crates stand on.
//!
//! - [`loops`]: loop devices and fresh file systems, for one test.
//! - [`proxy`]: a reverse proxy in front of a real S3 server that records what passes and injects faults.
//! - [`servers`]: the real S3 servers, started for one test and stopped with it.

pub mod loops;
pub mod proxy;
pub mod servers;
