//! Who writes: enough to prove, on the same machine, that a writer is gone.

use rustix::process::{Pid, getpid, test_kill_process};
use serde::{Deserialize, Serialize};

/// The process that owns a session.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// Name of the machine, for people.
    pub host: String,
    /// The kernel's id of this boot; empty when unknown.
    pub boot_id: String,
    /// Inode of the PID namespace, in which alone `pid` means anything; 0 when unknown.
    pub pid_namespace: u64,
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot; 0 when unknown. Tells a reused `pid`.
    pub started: u64,
}

impl Owner {
    /// This process.
    pub fn current() -> Self {
        let pid = getpid().as_raw_nonzero().get().unsigned_abs();
        let (boot_id, pid_namespace) = place();
        Self {
            host: host_name(),
            boot_id,
            pid_namespace,
            pid,
            started: if proc_is_ours() { start_time(pid).unwrap_or(0) } else { 0 },
        }
    }

    /// True when the process certainly does not run any more: same boot, same PID namespace, and its id is free or
    /// somebody else's. A namespace's inode is reused only after all its processes have ended, so equal inodes mean
    /// the same namespace, or a dead one. Anything unknown is no proof.
    pub fn is_provably_dead(&self) -> bool {
        let (boot_id, pid_namespace) = place();
        let same = !self.boot_id.is_empty()
            && self.boot_id == boot_id
            && self.pid_namespace != 0
            && self.pid_namespace == pid_namespace;
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw).filter(|_| same) else {
            return false;
        };
        // Not by looking into /proc, which may be hidden or another namespace's.
        if test_kill_process(pid) == Err(rustix::io::Errno::SRCH) {
            return true;
        }
        match start_time(self.pid) {
            Some(started) if proc_is_ours() => self.started != 0 && started != self.started,
            _ => false,
        }
    }
}

/// Name of this machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn place() -> (String, u64) {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = rustix::fs::stat("/proc/self/ns/pid").map_or(0, |s| s.st_ino);
    (boot_id.trim().to_owned(), namespace)
}

/// True when /proc shows our own PID namespace.
fn proc_is_ours() -> bool {
    let pid = getpid().as_raw_nonzero().get().to_string();
    std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == pid.as_str())
}

/// Field 22 of /proc/<pid>/stat. The name in field 2 may contain anything, so fields count from its last `)`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = stat.iter().rposition(|b| *b == b')')?;
    std::str::from_utf8(&stat[end + 1..]).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_an_ended_one_is_dead() {
        let own = Owner::current();
        assert!(
            !own.host.is_empty() && own.pid != 0 && own.started != 0 && own.pid_namespace != 0,
            "{own:?}"
        );
        assert!(!own.is_provably_dead());
        assert!(Owner { started: own.started + 1, ..own.clone() }.is_provably_dead(), "a reused pid");

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let gone = Owner { pid, started: 1, ..own };
        assert!(gone.is_provably_dead());
        // From elsewhere nothing is provable.
        assert!(!Owner { boot_id: "another".into(), ..gone.clone() }.is_provably_dead());
        assert!(!Owner { boot_id: String::new(), ..gone.clone() }.is_provably_dead());
        assert!(!Owner { pid_namespace: gone.pid_namespace + 1, ..gone.clone() }.is_provably_dead());
        assert!(!Owner { pid: 0, ..gone }.is_provably_dead());
    }
}
