//! The loop devices of a cluster. The kernel keeps them, and the file system below them, when their processes are
//! killed: they are found again by the files behind them.

use std::collections::BTreeSet;
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
    let on = format!("{}:{}", major(file.dev()), minor(file.dev()));
    let nodes = |name: &str| fs::metadata(name).map(|node| (node.ino(), node.rdev())).unwrap_or_default();
    Ok(ours(&all, file.ino(), &on, nodes))
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

/// As [`standing_on`], from a list, the image's inode and device, and what gives a node's inode and its device number.
fn ours(all: &[Listed], inode: u64, device: &str, node: impl Fn(&str) -> (u64, u64)) -> Vec<String> {
    let mut found: Vec<&Listed> = all.iter().filter(|l| l.inode == inode && l.device == device).collect();
    let mut names: BTreeSet<&str> = found.iter().map(|l| l.name.as_str()).collect();
    loop {
        let (mut inodes, mut devices) = (BTreeSet::new(), BTreeSet::new());
        for name in &names {
            let (inode, device) = node(name);
            inodes.insert(inode);
            devices.insert(format!("{}:{}", major(device), minor(device)));
        }
        let more: Vec<&Listed> = all
            .iter()
            // A file on one of ours, or the node of one of ours, wherever it is bound to. Nodes are not on disks: major 0.
            .filter(|l| {
                devices.contains(&l.device) || (l.device.starts_with("0:") && inodes.contains(&l.inode))
            })
            .filter(|l| !names.contains(l.name.as_str()))
            .collect();
        if more.is_empty() {
            break;
        }
        names.extend(more.iter().map(|l| l.name.as_str()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::makedev;

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
            listed("/dev/loop0", 5, "254:0"),  // the image
            listed("/dev/loop1", 131, "7:0"),  // a volume on it
            listed("/dev/loop2", 1001, "0:6"), // the kubelet's, on the node of loop1
            listed("/dev/loop3", 5, "254:16"), // the same inode on another disk
            listed("/dev/loop4", 1003, "0:6"), // on the node of loop3
        ];
        let node = |name: &str| {
            let number = name.trim_start_matches("/dev/loop").parse::<u32>().unwrap();
            (1000 + u64::from(number), makedev(7, number))
        };
        assert_eq!(ours(&all, 5, "254:0", node), ["/dev/loop2", "/dev/loop1", "/dev/loop0"]);
        assert!(ours(&all, 6, "254:0", node).is_empty());
    }
}
