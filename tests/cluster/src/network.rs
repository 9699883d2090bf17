//! Addresses inside a cluster, and the few rules that make them work. Its network namespace has no way out: whatever a
//! component dials, nothing leaves the machine, and these addresses meet nobody else's.

use anyhow::Result;

use crate::command::run;
use crate::folder::Level;

/// The node: the API server, the S3 server and the sidecars listen here.
pub const NODE: &str = "10.99.0.1";
/// The node's name in Kubernetes.
pub const NODE_NAME: &str = "node1";
/// The service `kubernetes` of every cluster: pods find the API server here.
pub const API_SERVICE: &str = "10.96.0.1";
/// Port of the API server on [`NODE`] and on the loopback address.
pub const API_PORT: u16 = 6443;
/// Port of the S3 server on [`NODE`].
pub const S3_PORT: u16 = 7070;
/// Port of the snapshot-metadata sidecar on [`NODE`].
pub const METADATA_PORT: u16 = 7443;

/// Gives the network namespace of the calling process its addresses.
///
/// # Errors
/// The command that failed, and what it said.
pub(crate) fn set_up(level: Level) -> Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    if level == Level::Api {
        // The API server will not advertise a loopback address, whatever interface it is on.
        run("ip", &["address", "add", &format!("{NODE}/32"), "dev", "lo"])?;
        return Ok(());
    }
    run("ip", &["link", "add", "node0", "type", "bridge"])?;
    run("ip", &["address", "add", &format!("{NODE}/24"), "dev", "node0"])?;
    run("ip", &["link", "set", "node0", "up"])?;
    // Components ask for the default route to find their own address.
    run("ip", &["route", "add", "default", "dev", "node0"])?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    // All that kube-proxy would do here.
    for chain in ["PREROUTING", "OUTPUT"] {
        let to = format!("{NODE}:{API_PORT}");
        let service = format!("{API_SERVICE}/32");
        run(
            "iptables",
            &[
                "-t",
                "nat",
                "-A",
                chain,
                "-d",
                &service,
                "-p",
                "tcp",
                "--dport",
                "443",
                "-j",
                "DNAT",
                "--to-destination",
                &to,
            ],
        )?;
    }
    Ok(())
}
