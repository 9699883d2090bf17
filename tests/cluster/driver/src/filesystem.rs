//! File systems on volumes: made, mounted, grown.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::mounts::Mount;
use crate::{blocks, program, state};

/// What a volume gets when nobody says which.
const DEFAULT: &str = "ext4";

/// The file systems that can be made.
const KINDS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Sees to it that the image holds a file system and returns its type.
///
/// One is made only on an image that is all zeros: what holds anything else is never overwritten. It is made in
/// `scratch` and put in place by sharing its blocks, so that a driver that dies meanwhile leaves zeros behind, not half
/// a file system that nobody may touch. `wanted` is empty when any type will do.
pub(crate) fn ensure(image: &Path, scratch: &Path, wanted: &str, read_only: bool) -> Result<String> {
    if let Some(found) = probe(image)? {
        if !wanted.is_empty() && wanted != found {
            bail!("the volume holds {found}, not {wanted}: ask for {found}, or for no type");
        }
        return Ok(found);
    }
    let file = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    let size = file.metadata()?.len();
    if !blocks::is_blank(file).with_context(|| format!("reading {}", image.display()))? {
        bail!("the volume holds data, but no file system that blkid knows: use it in block mode");
    }
    if read_only {
        bail!("the volume is empty, and no file system can be made for a reader: use it with a writer first");
    }
    let kind = if wanted.is_empty() { DEFAULT } else { wanted };
    let options: &[&str] = match kind {
        "ext4" => &["-q", "-F"],
        _ if KINDS.contains(&kind) => &["-q", "-f"],
        _ => {
            bail!("{kind} is no type of file system that can be made here: take one of {}", KINDS.join(", "))
        }
    };
    state::remove(scratch)?;
    state::set_length(scratch, size)?;
    let arguments: Vec<_> = options.iter().map(AsRef::as_ref).chain([scratch.as_os_str()]).collect();
    let made =
        program::run(&format!("mkfs.{kind}"), &arguments).and_then(|_| state::clone_file(scratch, image));
    state::remove(scratch)?;
    made.map(|()| kind.to_owned())
}

/// The type of the file system that an image holds.
fn probe(image: &Path) -> Result<Option<String>> {
    let arguments = ["-p", "-s", "TYPE", "-o", "value"].map(AsRef::as_ref);
    let arguments: Vec<_> = arguments.into_iter().chain([image.as_os_str()]).collect();
    let output = program::output("blkid", &arguments).context("running blkid: is it installed?")?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(Some(found).filter(|found| !found.is_empty())),
        // Nothing found.
        Some(2) => Ok(None),
        _ => bail!(
            "blkid cannot tell what {} holds ({}): {}",
            image.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

/// Mounts the file system on the device.
///
/// A reader's device cannot be written to, so its log is not replayed, which would be the first thing a mount does, also
/// a read-only one: the file system is seen as it is on disk. After a snapshot of a file system that was mounted here,
/// and so frozen, that is all of it; after one of a block volume in use it may lack what only the log had.
pub(crate) fn mount(
    device: &Path,
    kind: &str,
    target: &Path,
    flags: &[String],
    read_only: bool,
) -> Result<()> {
    let mut options: Vec<&str> = match (kind, read_only) {
        // A clone has the identity of its source, which may be mounted on this node too.
        ("xfs", false) => vec!["nouuid"],
        ("xfs", true) => vec!["nouuid", "ro", "norecovery"],
        ("ext4", true) => vec!["ro", "noload"],
        ("btrfs", true) => vec!["ro", "rescue=nologreplay"],
        (_, true) => vec!["ro"],
        (_, false) => vec!["rw"],
    };
    options.extend(flags.iter().map(String::as_str));
    let options = options.join(",");
    let arguments = [
        "-t".as_ref(),
        kind.as_ref(),
        "-o".as_ref(),
        options.as_ref(),
        device.as_os_str(),
        target.as_os_str(),
    ];
    program::run("mount", &arguments).map(drop)
}

/// Lets a file system fill the device that it is not yet mounted from: a volume may be larger than what it was made
/// from, or have grown while ext4 could not. Others grow once they are mounted.
pub(crate) fn grow_unmounted(device: &Path, kind: &str, size: u64) -> Result<()> {
    if kind != "ext4" || ext4_size(device)? >= size {
        return Ok(());
    }
    // resize2fs insists on a check. This one only repairs what needs no answer, and replays the log as a mount would.
    let checked = program::output("e2fsck", &["-f".as_ref(), "-p".as_ref(), device.as_os_str()])
        .context("running e2fsck: is it installed?")?;
    if !matches!(checked.status.code(), Some(0 | 1)) {
        bail!(
            "the file system has errors ({}): {}",
            checked.status,
            String::from_utf8_lossy(&checked.stdout).trim()
        );
    }
    program::run("resize2fs", &[device]).map(drop)
}

/// Bytes of an ext4.
fn ext4_size(device: &Path) -> Result<u64> {
    let said = program::run("dumpe2fs", &["-h".as_ref(), device.as_os_str()])?;
    let field = |name: &str| -> Option<u64> {
        said.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
    };
    let size = field("Block count:").zip(field("Block size:")).map(|(count, size)| count * size);
    size.with_context(|| format!("dumpe2fs does not say how large the ext4 on {} is", device.display()))
}

/// Lets a mounted file system fill its device, which may have grown.
pub(crate) fn grow(device: &Path, mount: &Mount) -> Result<()> {
    let target = mount.target.as_os_str();
    match mount.kind.as_str() {
        "ext4" if ext4_size(device)? >= size_of(device)? => return Ok(()),
        "ext4" => program::run("resize2fs", &[device]).context(
            "ext4 grows while it is mounted only for who has CAP_SYS_RESOURCE; else when it is staged next",
        ),
        "xfs" => program::run("xfs_growfs", &[target]),
        "btrfs" => program::run("btrfs", &["filesystem".as_ref(), "resize".as_ref(), "max".as_ref(), target]),
        // Others are used as they came.
        _ => return Ok(()),
    }
    .map(drop)
}

fn size_of(device: &Path) -> Result<u64> {
    let said = program::run("blockdev", &["--getsize64".as_ref(), device.as_os_str()])?;
    said.parse().with_context(|| format!("blockdev says that {} has {said:?} bytes", device.display()))
}
