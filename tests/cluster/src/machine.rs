//! What a machine must have, asked before anything is changed, and the settings that are given back at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::run;
use crate::folder::{Folder, Level, hidden};
use crate::inside::machine_lock;

/// Free space that a node needs to start, in bytes: images, logs, and the volumes of a few tests. The image of the
/// volumes is sparse.
const NODE_SPACE: u64 = 4 << 30;
/// The same for the API server alone, in bytes: etcd's log takes 64 MiB pieces before they are needed.
const API_SPACE: u64 = 512 << 20;

/// Programs of the machine, and the Debian package of each. The API server needs the first.
const NEEDED_PROGRAMS: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("losetup", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("nsenter", "util-linux"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// Hierarchies that the kubelet insists on.
const NEEDED_CGROUPS: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];

/// Settings that a kubelet changes for the whole machine.
const SETTINGS: [&str; 6] = [
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
];

/// Asks whether a cluster can be started here.
///
/// # Errors
/// The first thing that is missing, and what to do.
pub(crate) fn check(folder: &Folder, programs: &str) -> Result<()> {
    let root = rustix::process::geteuid().is_root();
    if folder.level == Level::Node && !root {
        bail!("a node needs root: run it as root, or only the API server (--level api)");
    }
    let mut namespaces = vec!["--mount", "--pid", "--fork", "--net", "--uts", "--ipc"];
    if !root {
        namespaces.extend(["--user", "--map-root-user"]);
    }
    namespaces.push("true");
    run("unshare", &namespaces).context("no namespaces of its own may be made here")?;
    for program in ["etcd", "kube-apiserver"] {
        find(program, programs)
            .with_context(|| format!("{program} is missing: run tests/cluster/setup.sh"))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let needed = match folder.level {
        Level::Api => &NEEDED_PROGRAMS[..1],
        Level::Node => &NEEDED_PROGRAMS[..],
    };
    for (program, package) in needed {
        find(program, &path).with_context(|| format!("{program} is missing: apt-get install {package}"))?;
    }
    let needed = match folder.level {
        Level::Api => API_SPACE,
        Level::Node => NODE_SPACE,
    };
    let stat = rustix::fs::statvfs(folder.root())
        .with_context(|| format!("asking about {}", folder.root().display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    if free < needed {
        bail!(
            "too little space: {} has {} MiB, a cluster needs {} MiB; TRADEWIND_CLUSTER=/folder puts it elsewhere",
            folder.root().display(),
            free >> 20,
            needed >> 20
        );
    }
    if folder.level == Level::Api {
        return Ok(());
    }
    fs::File::open("/dev/loop-control").context("no loop devices here: opening /dev/loop-control")?;
    if is_linked("/bin/busybox")? {
        bail!("/bin/busybox needs libraries, which no container here has: apt-get install busybox-static");
    }
    for programs in std::env::split_paths(programs) {
        if let Some(hidden) = hidden(&programs) {
            bail!(
                "the programs in {} are not seen inside, below {hidden}: XDG_CACHE_HOME=/folder builds them elsewhere",
                programs.display()
            );
        }
    }
    for group in NEEDED_CGROUPS {
        if !Path::new("/sys/fs/cgroup").join(group).join("tasks").exists() {
            bail!(
                "the cgroup v1 hierarchy '{group}' is missing: a node is started on machines with cgroup v1 only"
            );
        }
    }
    machine_lock().map(drop)
}

/// True for a program that names a loader of shared libraries, which stands near its beginning.
fn is_linked(program: &str) -> Result<bool> {
    let mut beginning = Vec::new();
    fs::File::open(program)
        .and_then(|file| file.take(4096).read_to_end(&mut beginning))
        .with_context(|| format!("reading {program}"))?;
    Ok(beginning.windows(4).any(|bytes| bytes == b"/ld-"))
}

/// A program by its path, or by its name in `path`.
fn find(program: &str, path: &str) -> Result<PathBuf> {
    let candidates: Vec<PathBuf> = if program.starts_with('/') {
        vec![program.into()]
    } else {
        std::env::split_paths(path).map(|folder| folder.join(program)).collect()
    };
    candidates.into_iter().find(|file| file.is_file()).with_context(|| format!("no {program} in {path}"))
}

/// The settings as they are now. What this kernel does not have is left out.
///
/// # Errors
/// When one cannot be read.
pub(crate) fn settings() -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for name in SETTINGS {
        let file = Path::new("/proc/sys").join(name);
        match fs::read_to_string(&file) {
            Ok(value) => drop(found.insert(name.into(), value.trim().to_owned())),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }
    Ok(found)
}

/// Gives settings back their values.
///
/// # Errors
/// When one cannot be written.
pub(crate) fn restore_settings(before: &BTreeMap<PathBuf, String>) -> Result<()> {
    for (name, value) in before {
        let file = Path::new("/proc/sys").join(name);
        let now = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        if now.trim() != value {
            fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
        }
    }
    Ok(())
}
