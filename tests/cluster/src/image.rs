//! Container images without a registry: an OCI image layout in a tar archive, with one layer, made from files of this
//! machine, for `ctr images import`.
//!
//! Format: OCI Image Layout Specification 1.0 and OCI Image Format Specification 1.1.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use crate::command::run;
use crate::folder::Folder;

/// A program of the build that the calling program is of.
///
/// # Errors
/// When it has not been built.
pub(crate) fn built(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("asking for our own name")?;
    // A test is in `deps`, below the programs.
    let found =
        own.ancestors().skip(1).take(2).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| {
        format!("there is no program {program} beside {}: build the workspace first", own.display())
    })
}

/// The program `tradewind` of the build that the calling program is of.
///
/// # Errors
/// When it has not been built.
pub fn tradewind() -> Result<PathBuf> {
    built("tradewind")
}

/// An image in the making.
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    layer: tar::Builder<Vec<u8>>,
    folders: BTreeSet<PathBuf>,
}

impl Image {
    /// An empty image, for instance `tradewind.test/agent:1`: a tag other than `latest`, so that nobody tries to pull
    /// it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let layer = tar::Builder::new(Vec::new());
        Self { name: name.to_owned(), entrypoint: Vec::new(), layer, folders: BTreeSet::new() }
    }

    /// The image `tradewind.test/tradewind:1` with the program `tradewind` of this build, for the node's agent. It trusts
    /// the CA of the cluster in `folder`, and no other.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn tradewind(folder: &Folder) -> Result<Self> {
        let ca = folder.join("pki/ca.crt");
        let ca = std::fs::read_to_string(&ca).with_context(|| format!("reading {}", ca.display()))?;
        let program = tradewind()?;
        Self::new("tradewind.test/tradewind:1")
            .entrypoint(&["/bin/tradewind"])
            .folder("/tmp")?
            .text("/etc/ssl/certs/ca-certificates.crt", &ca)?
            .linked_program(&program, "/bin/tradewind")
    }

    /// What runs when a pod names no command.
    #[must_use]
    pub fn entrypoint(mut self, words: &[&str]) -> Self {
        self.entrypoint = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The file `from` of this machine as `to` in the image, executable.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn program(mut self, from: &Path, to: &str) -> Result<Self> {
        let mut file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
        let size = file.metadata()?.len();
        self.entry(to, size, 0o755, &mut file).with_context(|| format!("reading {}", from.display()))?;
        Ok(self)
    }

    /// A program with the shared libraries that it needs, at the same paths as here, and the loader that finds them.
    ///
    /// # Errors
    /// When a file cannot be read, or a library is missing.
    pub fn linked_program(mut self, from: &Path, to: &str) -> Result<Self> {
        self = self.program(from, to)?;
        for library in libraries(&run("ldd", &[&from.display().to_string()])?)? {
            let at = library.display().to_string();
            if !self.folders.contains(&library) {
                self = self.program(&library, &at)?;
                self.folders.insert(library);
            }
        }
        Ok(self)
    }

    /// A symbolic link `at` in the image.
    ///
    /// # Errors
    /// When a path is too long for the archive.
    pub fn link(mut self, at: &str, to: &str) -> Result<Self> {
        self.parents(at)?;
        let mut header = header(0, 0o777);
        header.set_entry_type(tar::EntryType::Symlink);
        self.layer.append_link(&mut header, at.trim_start_matches('/'), to)?;
        Ok(self)
    }

    /// A text file.
    ///
    /// # Errors
    /// When a path is too long for the archive.
    pub fn text(mut self, at: &str, text: &str) -> Result<Self> {
        self.entry(at, text.len() as u64, 0o644, &mut text.as_bytes())?;
        Ok(self)
    }

    /// An empty folder that everyone may write to.
    ///
    /// # Errors
    /// When a path is too long for the archive.
    pub fn folder(mut self, at: &str) -> Result<Self> {
        self.parents(&format!("{at}/x"))?;
        Ok(self)
    }

    /// Writes the archive to `file`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(self, file: &Path) -> Result<()> {
        let layer = self.layer.into_inner()?;
        let config = json!({
            "architecture": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
            "os": "linux",
            "config": {
                "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"],
                "Entrypoint": self.entrypoint,
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
        })
        .to_string()
        .into_bytes();
        let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        // containerd takes the name of an imported image from here.
        listed["annotations"] = json!({"io.containerd.image.name": self.name});
        let index = json!({"schemaVersion": 2, "manifests": [listed]}).to_string().into_bytes();

        let out = File::create(file).with_context(|| format!("writing {}", file.display()))?;
        let mut archive = tar::Builder::new(out);
        let mut put = |name: &str, bytes: &[u8]| {
            let mut header = header(bytes.len() as u64, 0o644);
            archive.append_data(&mut header, name, bytes)
        };
        put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put("index.json", &index)?;
        for blob in [&config, &manifest, &layer] {
            put(&format!("blobs/sha256/{}", hash(blob)), blob)?;
        }
        archive.finish().with_context(|| format!("writing {}", file.display()))
    }

    fn entry(&mut self, at: &str, size: u64, mode: u32, bytes: &mut dyn Read) -> Result<()> {
        self.parents(at)?;
        let mut header = header(size, mode);
        Ok(self.layer.append_data(&mut header, at.trim_start_matches('/'), bytes)?)
    }

    /// The folders above `at`, each once.
    fn parents(&mut self, at: &str) -> Result<()> {
        let at = Path::new(at.trim_start_matches('/'));
        let mut above: Vec<&Path> = at.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        above.reverse();
        for folder in above {
            if self.folders.insert(folder.to_owned()) {
                let mut header = header(0, 0o777);
                header.set_entry_type(tar::EntryType::Directory);
                self.layer.append_data(&mut header, folder, std::io::empty())?;
            }
        }
        Ok(())
    }
}

/// The same archive for the same content: no owner, no time.
fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn hash(bytes: &[u8]) -> String {
    hex::encode(digest(&SHA256, bytes))
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hash(bytes))
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": sha256(bytes), "size": bytes.len()})
}

/// The files that `ldd` names: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2
/// (0x...)`. What has no path is the kernel's own.
fn libraries(ldd: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in ldd.lines().map(str::trim) {
        if line.ends_with("not found") {
            bail!("a library is missing: {line}");
        }
        let path = line.split_once(" => ").map_or(line, |(_, path)| path);
        let path = path.split(" (0x").next().unwrap_or_default();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        let said = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t\
                    /lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = libraries(said).unwrap();
        assert_eq!(
            found,
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        assert!(libraries("\tstatically linked\n").unwrap().is_empty());
        assert!(libraries("\tlibx.so => not found\n").unwrap_err().to_string().contains("libx.so"));
    }

    #[test]
    fn the_same_files_give_the_same_image() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let file = dir.path().join(name);
            let image = Image::new("tradewind.test/t:1").entrypoint(&["/a/b"]);
            image.text("/a/b/c", "text").unwrap().link("/a/l", "b/c").unwrap().write(&file).unwrap();
            std::fs::read(file).unwrap()
        };
        let image = make("1");
        assert_eq!(image, make("2"));
        let mut archive = tar::Archive::new(image.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(wanted) = name.strip_prefix("blobs/sha256/") {
                assert_eq!(hash(&bytes), wanted);
            }
            names.push(name);
        }
        assert_eq!(names.len(), 5, "{names:?}");
        assert!(names.starts_with(&["oci-layout".to_owned(), "index.json".to_owned()]), "{names:?}");
    }
}
