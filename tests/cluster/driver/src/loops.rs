//! Loop devices on images.
//!
//! Which device serves an image is asked of the kernel every time, so that nothing is lost with the driver.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::io::Errno;

use crate::program;

/// How often another process may take the device that was free a moment ago.
const ATTEMPTS: u64 = 20;

/// A loop device that is attached to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Loop {
    /// As in `/dev/loop7`.
    pub(crate) device: PathBuf,
    /// Nothing can be written to it.
    pub(crate) read_only: bool,
}

/// The devices that are attached to the image.
pub(crate) fn of(image: &Path) -> Result<Vec<Loop>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("reading /sys/block")? {
        let folder = entry?.path();
        // Devices come and go meanwhile; those that are free have no such file.
        let Ok(file) = fs::read_to_string(folder.join("loop/backing_file")) else { continue };
        let (Some(name), true) = (folder.file_name(), Path::new(file.trim_end_matches('\n')) == image) else {
            continue;
        };
        let read_only = fs::read_to_string(folder.join("ro")).is_ok_and(|text| text.trim() == "1");
        found.push(Loop { device: Path::new("/dev").join(name), read_only });
    }
    Ok(found)
}

/// Attaches a free device to the image, with direct I/O where that is possible.
pub(crate) fn attach(image: &Path, read_only: bool) -> Result<Loop> {
    let mut attempt = 0;
    let device = loop {
        let device =
            PathBuf::from(program::run("losetup", &["--find"]).context("looking for a free loop device")?);
        make_node(&device)?;
        let mode = if read_only { ["--read-only"].as_slice() } else { &[] };
        let arguments =
            mode.iter().map(AsRef::as_ref).chain([device.as_os_str(), image.as_os_str()]).collect::<Vec<_>>();
        match program::run("losetup", &arguments) {
            Ok(_) => break device,
            Err(error) if attempt == ATTEMPTS => {
                return Err(error).context("another process took every loop device that was free: try again");
            }
            // Most often another process was faster.
            Err(_) => thread::sleep(Duration::from_millis(10 * attempt)),
        }
        attempt += 1;
    };
    let direct = ["--direct-io=on".as_ref(), device.as_os_str()];
    if let Err(error) = program::run("losetup", &direct) {
        eprintln!("csi-driver: {}: going on without direct I/O: {error:#}", device.display());
    }
    Ok(Loop { device, read_only })
}

/// Detaches all devices from the image.
pub(crate) fn detach_all(image: &Path) -> Result<()> {
    for attached in of(image)? {
        program::run("losetup", &["--detach".as_ref(), attached.device.as_os_str()])?;
    }
    Ok(())
}

/// Lets the device have the size that its image has now.
pub(crate) fn resize(device: &Path) -> Result<()> {
    program::run("losetup", &["--set-capacity".as_ref(), device.as_os_str()]).map(drop)
}

/// Containers without devtmpfs have the first few nodes only.
fn make_node(device: &Path) -> Result<()> {
    if device.exists() {
        return Ok(());
    }
    let number = device.to_str().and_then(|d| d.strip_prefix("/dev/loop")).and_then(|n| n.parse().ok());
    let Some(number) = number else {
        bail!("losetup --find named {}, which is no loop device", device.display())
    };
    match mknodat(CWD, device, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, makedev(7, number)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("making the node {}", device.display())),
    }
}
