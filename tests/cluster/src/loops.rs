//! The loop devices of a cluster. The kernel keeps them, and the file system below them, when their processes are
//! killed: they are found again by the files behind them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{major, minor};
use serde::Deserialize;

use crate::command::run;

/// What `losetup --json` says of an attached device.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    /// For instance `/dev/loop3`.
    name: String,
    #[serde(rename = "back-ino")]
    inode: u64,
    /// `MAJOR:MINOR` of the device that the file behind it is on.
    #[serde(rename = "back-maj:min")]
    device: String,
}

#[derive(Default, Deserialize)]
struct List {
    loopdevices: Vec<Listed>,
}

/// The loop devices that stand on `image`: the one that it is attached to, those of files on the file system in it,
/// and those of such devices' own nodes (the kubelet makes one for each block volume). The last made first.
///
/// Names of files do not tell: outside of the namespaces, and after their end, they are not what they were.
///
/// # Errors
/// When `losetup` fails.
pub(crate) fn standing_on(image: &Path) -> Result<Vec<String>> {
    let Ok(file) = fs::metadata(image) else { return Ok(Vec::new()) };
    let said = run("losetup", &["--list", "--json", "--output", "NAME,BACK-INO,BACK-MAJ:MIN"])?;
    let all = parse(&said)?;
    let on = number(file.dev());
    let node = |name: &str| {
        let node = fs::metadata(name).ok()?;
        Some(Node { inode: node.ino(), on: number(node.dev()), is: number(node.rdev()) })
    };
    Ok(ours(&all, file.ino(), &on, node))
}

/// Reads what `losetup --json` prints: nothing at all when there is no device.
fn parse(said: &str) -> Result<Vec<Listed>> {
    if said.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut list: List = serde_json::from_str(said).context("reading what losetup printed")?;
    for listed in &mut list.loopdevices {
        listed.device = listed.device.trim().to_owned(); // it is set in a column, in JSON too
    }
    Ok(list.loopdevices)
}

/// The node of a loop device in /dev.
struct Node {
    inode: u64,
    /// The device that the node itself is on.
    on: String,
    /// The device that it is.
    is: String,
}

/// `MAJOR:MINOR` of a device's number.
fn number(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

/// As [`standing_on`], from a list, the image's inode and device, and what looks a node up.
fn ours(all: &[Listed], inode: u64, device: &str, node: impl Fn(&str) -> Option<Node>) -> Vec<String> {
    let mut found: Vec<&Listed> = all.iter().filter(|l| l.inode == inode && l.device == device).collect();
    loop {
        let nodes: Vec<Node> = found.iter().filter_map(|l| node(&l.name)).collect();
        // A file on one of ours, or the node of one of ours, wherever it is bound to.
        let stands = |l: &Listed| {
            nodes.iter().any(|node| l.device == node.is || (l.device == node.on && l.inode == node.inode))
        };
        let known: Vec<&str> = found.iter().map(|l| l.name.as_str()).collect();
        let more: Vec<&Listed> =
            all.iter().filter(|l| stands(l) && !known.contains(&l.name.as_str())).collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    found.iter().rev().map(|l| l.name.clone()).collect()
}

/// Detaches devices. One that is in use goes when its last user does.
///
/// # Errors
/// When `losetup` fails for another reason than that it is gone already.
pub(crate) fn detach(devices: &[String]) -> Result<()> {
    for device in devices {
        if let Err(e) = run("losetup", &["--detach", device])
            && !format!("{e:#}").contains("No such device")
        {
            return Err(e);
        }
    }
    Ok(())
}

/// Thaws the file system on `device`, if there is one that was frozen when all who knew it were killed: it holds its
/// device until it is mounted once more, at `place`, which the caller does not see.
pub(crate) fn thaw(device: &str, place: &Path) {
    let script = "mount \"$0\" \"$1\" && fsfreeze --unfreeze \"$1\"";
    let place = place.display().to_string();
    let limited =
        ["10", "unshare", "--mount", "--propagation", "private", "sh", "-c", script, device, &place];
    // Most are not frozen, or hold no file system: then this fails, and nothing is lost.
    let _ = run("timeout", &limited);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_losetup_prints_is_read() {
        let said = r#"{"loopdevices": [{"name": "/dev/loop1", "back-ino": 10461793, "back-maj:min": "     254:0  "}]}"#;
        let found = parse(said).unwrap();
        assert_eq!(
            (found[0].name.as_str(), found[0].inode, found[0].device.as_str()),
            ("/dev/loop1", 10_461_793, "254:0")
        );
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn devices_are_found_through_each_other() {
        let listed =
            |name: &str, inode, device: &str| Listed { name: name.into(), inode, device: device.into() };
        let all = [
            listed("/dev/loop0", 5, "254:0"),   // the image
            listed("/dev/loop1", 131, "7:0"),   // a volume on it
            listed("/dev/loop2", 1001, "0:6"),  // the kubelet's, on the node of loop1
            listed("/dev/loop3", 5, "254:16"),  // the same inode on another disk
            listed("/dev/loop5", 1001, "0:40"), // a file with that inode on a tmpfs
            listed("/dev/loop4", 1003, "0:6"),  // on the node of loop3
        ];
        let node = |name: &str| {
            let number = name.trim_start_matches("/dev/loop").parse::<u64>().unwrap();
            Some(Node { inode: 1000 + number, on: "0:6".into(), is: format!("7:{number}") })
        };
        assert_eq!(ours(&all, 5, "254:0", node), ["/dev/loop2", "/dev/loop1", "/dev/loop0"]);
        assert!(ours(&all, 6, "254:0", node).is_empty());
    }
}
