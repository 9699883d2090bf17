//! A sparse ext4 image as a data set: system files, a database and incompressible media in a file system that is
//! mostly empty. Made and changed through a loop mount as root, with `mkfs.ext4 -d` and `debugfs` otherwise.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::data::Scale;
use crate::pages::{self, Kind};
use crate::tree::{self, Step};

const MIB: u64 = 1 << 20;
const DATABASE: &str = "db/base";
const MEDIA: &str = "db/media";
/// Block size of the file system.
const BLOCK: usize = 4096;

fn done(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// A loop mount that ends with its scope.
struct Mount(PathBuf);

impl Mount {
    fn new(image: &Path, at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        // Without lazy initialisation: the kernel would write zeros in the background, more or less of them each time.
        done(Command::new("mount").args(["-o", "loop,noatime,noinit_itable"]).arg(image).arg(at))?;
        Ok(Self(at.to_path_buf()))
    }

    fn end(self) -> Result<()> {
        done(Command::new("umount").arg(&self.0))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Ends the mount of a run that was killed while it made the image.
pub(crate) fn unmount_leftover(home: &Path) {
    let staging = home.join("staging");
    if staging.exists() {
        let _ = Command::new("umount").arg(&staging).stderr(Stdio::null()).status();
    }
}

fn make_file_system(image: &Path, size: u64, content: Option<&Path>) -> Result<()> {
    File::create(image)?.set_len(size)?;
    let mut mkfs = Command::new("/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=1,nodiscard"]);
    mkfs.args(["-U", "3b7c2d52-6a0e-4f0b-9f0a-5b1d1c8a7e11"]);
    if let Some(content) = content {
        mkfs.arg("-d").arg(content);
    }
    done(mkfs.arg(image))
}

/// Fills `root` with 1.2 GiB of system files, 1 GiB of database pages and 0.5 GiB of media, or a share of that.
fn populate(root: &Path, scale: Scale) -> Result<()> {
    let mut left = scale.of(1200 * MIB);
    // Everything that comes first in the order of the names would be of one kind: take one file in four.
    tree::copy_chosen(Path::new("/usr"), &root.join("usr"), &mut |path, meta| {
        let wanted = meta.is_file()
            && meta.nlink() == 1
            && pages::path_number(path.as_os_str().as_encoded_bytes()).is_multiple_of(4)
            && left >= meta.len().max(4096);
        if wanted {
            left -= meta.len().max(4096);
        }
        wanted
    })?;
    fs::create_dir_all(root.join("db"))?;
    pages::create(Kind::Database, &root.join(DATABASE), scale.of(1024 * MIB))?;
    pages::create(Kind::Random, &root.join(MEDIA), scale.of(512 * MIB))?;
    Ok(())
}

/// Makes the image at `entry`, and its changed version beside it, in `home`.
pub(crate) fn create(entry: &Path, home: &Path, size: u64, scale: Scale) -> Result<()> {
    let staging = home.join("staging");
    let changed = home.join("changed.img");
    let clone =
        || done(Command::new("cp").args(["--sparse=always", "--reflink=never"]).arg(entry).arg(&changed));
    if rustix::process::geteuid().is_root() {
        make_file_system(entry, size, None)?;
        let mount = Mount::new(entry, &staging)?;
        populate(&mount.0, scale)?;
        mount.end()?;
        clone()?;
        let mount = Mount::new(&changed, &staging)?;
        tree::change(&mount.0.join("usr"), None)?;
        pages::rewrite(Kind::Database, &mount.0.join(DATABASE), 1)?;
        pages::rewrite(Kind::Random, &mount.0.join(MEDIA), 1)?;
        mount.end()?;
    } else {
        populate(&staging, scale)?;
        make_file_system(entry, size, Some(&staging))?;
        clone()?;
        let steps = tree::change(&staging.join("usr"), None)?;
        change_by_debugfs(&changed, &staging, &steps)?;
        overwrite_blocks(&changed, &staging, DATABASE, Kind::Database)?;
        overwrite_blocks(&changed, &staging, MEDIA, Kind::Random)?;
    }
    fs::remove_dir_all(&staging).context("removing the staging folder")
}

/// Brings the changes below `staging/usr` into the image.
fn change_by_debugfs(image: &Path, staging: &Path, steps: &[Step]) -> Result<()> {
    let mut debugfs = Command::new("/sbin/debugfs")
        .args(["-w", "-f", "-"])
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting debugfs")?;
    let mut script = String::new();
    for step in steps {
        let (Step::Replaced(path) | Step::Removed(path) | Step::Added(path)) = step;
        let path = path.display().to_string();
        if path.contains(|c: char| c.is_whitespace() || c == '"' || c == char::REPLACEMENT_CHARACTER) {
            continue;
        }
        if !matches!(step, Step::Added(_)) {
            script.push_str(&format!("rm /usr/{path}\n"));
        }
        if !matches!(step, Step::Removed(_)) {
            script.push_str(&format!("write {}/usr/{path} /usr/{path}\n", staging.display()));
        }
    }
    if let Some(mut input) = debugfs.stdin.take() {
        input.write_all(script.as_bytes())?;
    }
    if !debugfs.wait()?.success() {
        bail!("debugfs failed");
    }
    Ok(())
}

/// Overwrites 2 % of a file inside the image, block by block, where `debugfs` says that they are.
fn overwrite_blocks(image: &Path, staging: &Path, name: &str, kind: Kind) -> Result<()> {
    let output =
        Command::new("/sbin/debugfs").args(["-R", &format!("blocks /{name}")]).arg(image).output()?;
    let blocks: Vec<u64> =
        String::from_utf8_lossy(&output.stdout).split_whitespace().map_while(|b| b.parse().ok()).collect();
    let length = fs::metadata(staging.join(name))?.len();
    let file = OpenOptions::new().write(true).open(image)?;
    let bytes = pages::rewrite_with(kind, length, 1, |offset, run| {
        for (index, part) in (offset / BLOCK as u64..).zip(run.chunks(BLOCK)) {
            let block = usize::try_from(index).ok().and_then(|index| blocks.get(index));
            let block = block.ok_or_else(|| std::io::Error::other("debugfs did not list every block"))?;
            file.write_all_at(part, block * BLOCK as u64)?;
        }
        Ok(())
    })?;
    if bytes == 0 && length >= 16 * MIB {
        bail!("nothing of {name} was changed");
    }
    Ok(())
}

/// Puts the changed image at the place of the first one (`to_changed`), or back; harmless when it is there already.
pub(crate) fn swap(entry: &Path, home: &Path, to_changed: bool) -> Result<()> {
    let (mine, other) = (home.join("changed.img"), home.join("base.img"));
    let (take, leave) = if to_changed { (&mine, &other) } else { (&other, &mine) };
    if take.exists() {
        if entry.exists() {
            fs::rename(entry, leave)?;
        }
        fs::rename(take, entry)?;
    }
    Ok(())
}
