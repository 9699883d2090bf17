//! What a run may use, when nobody said: memory and processors of this machine as the cgroup allows them.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tradewind_pipeline::limits::{DEFAULT_MEMORY, MIN_MEMORY};

use crate::args::EngineArgs;

/// Cgroup v1 says "no limit" with a number near 2^63.
const UNLIMITED: u64 = 1 << 60;

/// Limits of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of all buffers together.
    pub(crate) memory: u64,
    /// CPU workers.
    pub(crate) workers: usize,
    /// Bytes per second from the source or to the target; 0 is no limit.
    pub(crate) read_rate: u64,
    /// Bytes per second to or from the store; 0 is no limit.
    pub(crate) upload_rate: u64,
}

impl Limits {
    /// What was asked for, and the machine's share for the rest.
    pub(crate) fn chosen(args: &EngineArgs) -> Self {
        Self {
            memory: args.memory.unwrap_or_else(default_memory),
            workers: args.workers.unwrap_or_else(processors),
            read_rate: args.read_rate.unwrap_or(0),
            upload_rate: args.upload_rate.unwrap_or(0),
        }
    }

    /// For commands that move little.
    pub(crate) fn small() -> Self {
        Self { memory: default_memory(), workers: processors(), read_rate: 0, upload_rate: 0 }
    }
}

/// Sets up this process before anything runs.
pub(crate) fn apply() {
    raise_open_files();
    refuse_huge_pages();
}

/// Takes as many descriptors as the system lets this process have. The soft limit is 1,024 in most places for the sake
/// of programs that call `select`, which this one does not.
fn raise_open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Where a sandbox forbids it, runs make do with what they have.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Keeps memory to what is used. Where every large allocation gets huge pages unasked, the few kilobytes in use of each
/// would count in full, so this process has none then. Otherwise only buffers ask for them, which are used whole.
fn refuse_huge_pages() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if unasked(&enabled.unwrap_or_default()) {
        // A hint: where it is not allowed, more memory is resident than was meant.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
    }
}

/// "[always] madvise never", the setting in force in brackets.
fn unasked(enabled: &str) -> bool {
    enabled.contains("[always]")
}

/// Processors that this process may use: the standard library minds affinity and the quotas of both cgroup versions.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Half of what the cgroup allows, because the page cache and the rest of the process live there too; at most
/// [`DEFAULT_MEMORY`].
fn default_memory() -> u64 {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_for(cgroup_memory(&groups, Path::new("/sys/fs/cgroup")))
}

fn memory_for(limit: Option<u64>) -> u64 {
    limit.map_or(DEFAULT_MEMORY, |l| (l / 2).clamp(MIN_MEMORY, DEFAULT_MEMORY))
}

/// The tightest memory limit on the way from this process's cgroup to the root, in bytes. `groups` is
/// `/proc/self/cgroup`, `mount` where the hierarchies are mounted.
fn cgroup_memory(groups: &str, mount: &Path) -> Option<u64> {
    let lines = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    lines
        .filter_map(|(controllers, group)| match controllers {
            "" => tightest(mount, group, "memory.max").or_else(|| {
                // Version 2 beside version 1 has a mount of its own.
                tightest(&mount.join("unified"), group, "memory.max")
            }),
            c if c.split(',').any(|c| c == "memory") => {
                tightest(&mount.join("memory"), group, "memory.limit_in_bytes")
            }
            _ => None,
        })
        .min()
}

/// The smallest number in `file` from `group` up to the root of a hierarchy. Inside a container the group's path may
/// be the host's and lead nowhere: then the root, which is the container's, is all there is.
fn tightest(hierarchy: &Path, group: &str, file: &str) -> Option<u64> {
    let group: PathBuf = hierarchy.join(group.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(hierarchy))
        .filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok())
        .filter_map(|text| text.trim().parse().ok())
        .filter(|limit| *limit < UNLIMITED)
        .min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn huge_pages_are_refused_where_they_come_unasked() {
        assert!(unasked("[always] madvise never\n"));
        assert!(!unasked("always [madvise] never\n"));
        assert!(!unasked(""));
        // What the call does, whatever is set here.
        assert!(!rustix::thread::transparent_huge_pages_are_disabled().unwrap());
        rustix::thread::disable_transparent_huge_pages(true).unwrap();
        assert!(rustix::thread::transparent_huge_pages_are_disabled().unwrap());
        rustix::thread::disable_transparent_huge_pages(false).unwrap();
    }

    #[test]
    fn descriptors_are_raised_to_what_is_allowed() {
        let before = getrlimit(Resource::Nofile);
        let few = before.maximum.unwrap_or(1 << 20).min(512);
        setrlimit(Resource::Nofile, Rlimit { current: Some(few), ..before }).unwrap();
        raise_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
        setrlimit(Resource::Nofile, before).unwrap();
    }

    fn hierarchy(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn version_2_takes_the_tightest_ancestor() {
        let dir = hierarchy(&[
            ("a/memory.max", "104857600\n"),
            ("a/b/memory.max", "max\n"),
            ("a/b/c/memory.max", "209715200\n"),
        ]);
        assert_eq!(cgroup_memory("0::/a/b/c\n", dir.path()), Some(100 << 20));
        assert_eq!(cgroup_memory("0::/\n", dir.path()), None);
    }

    #[test]
    fn version_1_and_hybrid() {
        let dir = hierarchy(&[
            ("memory/docker/x/memory.limit_in_bytes", "67108864\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let groups = "12:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/docker/x\n";
        assert_eq!(cgroup_memory(groups, dir.path()), Some(64 << 20));
    }

    #[test]
    fn a_path_of_the_host_falls_back_to_the_container() {
        let dir = hierarchy(&[("memory.max", "134217728\n")]);
        assert_eq!(cgroup_memory("0::/kubepods/pod1/c1\n", dir.path()), Some(128 << 20));
    }

    #[test]
    fn nonsense_is_no_limit() {
        let dir = hierarchy(&[("memory.max", "much\n")]);
        for groups in ["", "0", "0::", "x:y", "0::/\n"] {
            assert_eq!(cgroup_memory(groups, dir.path()), None, "{groups}");
        }
    }

    #[test]
    fn memory_is_half_within_bounds() {
        assert_eq!(memory_for(None), 192 << 20);
        assert_eq!(memory_for(Some(1 << 40)), 192 << 20);
        assert_eq!(memory_for(Some(256 << 20)), 128 << 20);
        assert_eq!(memory_for(Some(16 << 20)), 64 << 20);
    }
}
