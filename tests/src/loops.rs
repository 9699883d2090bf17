//! Loop devices and fresh file systems, by way of `tests/loops.sh`: made for one test, taken away with it, even if
//! the test is killed (the script undoes what it did when its standard input ends). Needs root.

use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// One loop device or file system. It goes when this is dropped.
#[derive(Debug)]
pub struct Loop {
    script: Child,
    _output: Lines<BufReader<ChildStdout>>,
    path: PathBuf,
}

impl Loop {
    /// A fresh file system (`ext4`, `xfs`, `btrfs`) of a size such as `1G`, mounted on a loop device.
    pub fn file_system(kind: &str, size: &str) -> Result<Self> {
        Self::make(&format!("fs:{kind}:{size}"))
    }

    /// A loop device with sectors of 512 or 4,096 bytes on an image file.
    pub fn device(image: &Path, sector: u32) -> Result<Self> {
        Self::make(&format!("dev:{}:{sector}", image.to_str().context("a path that is UTF-8")?))
    }

    fn make(item: &str) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("loops.sh");
        let mut child = Command::new(&script)
            .arg(item)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {}", script.display()))?;
        let mut output = BufReader::new(child.stdout.take().context("the script's output")?).lines();
        let Some(path) = output.next().transpose()? else {
            let status = child.wait()?;
            anyhow::bail!(
                "{item} could not be made ({status}); what loops.sh wrote to standard error says why"
            )
        };
        let path = PathBuf::from(path);
        ensure!(path.exists(), "loops.sh said {}, which does not exist", path.display());
        Ok(Self { script: child, _output: output, path })
    }

    /// Where the file system is mounted, or the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        drop(self.script.stdin.take()); // it undoes all and ends
        let _ = self.script.wait();
    }
}
