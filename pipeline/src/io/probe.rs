//! Which engine works here, and why.
//!
//! Container runtimes' default seccomp profiles forbid io_uring, so do some distributions by sysctl, and a kernel may
//! be too old. The probe does not guess from versions: it makes a ring as the engine would, registers a buffer, writes
//! and reads back through it. What it finds is a value, for the log line, the metric and the status.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::direct::DirectFile;
use super::engine::{EngineChoice, EngineKind};
use super::pool::Pool;
use super::transfer::{Completion, Op};
use super::uring::Ring;
use crate::error::{Error, Result};

/// The engine to use and the reason, in words for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The engine to use.
    pub kind: EngineKind,
    /// Why this one, without a full stop at the end. When `auto` fell back: what to change.
    pub why: String,
}

/// Picks the engine for `choice`.
///
/// # Errors
/// [`Error::Usage`] with the reason when io_uring is asked for and does not work here.
pub fn probe(choice: EngineChoice) -> Result<Probe> {
    if choice == EngineChoice::Pread {
        return Ok(Probe { kind: EngineKind::Pread, why: "asked for".to_owned() });
    }
    match (try_uring(), choice) {
        (Ok(why), _) => Ok(Probe { kind: EngineKind::Uring, why }),
        (Err(why), EngineChoice::Uring) => Err(Error::Usage(format!("io_uring does not work here: {why}"))),
        (Err(why), _) => {
            Ok(Probe { kind: EngineKind::Pread, why: format!("io_uring does not work here: {why}") })
        }
    }
}

/// Goes all the way through a small ring. What works, or what is in the way.
fn try_uring() -> std::result::Result<String, String> {
    let pool = Pool::new(4096, 2).map_err(|e| e.to_string())?;
    let mut ring = Ring::new(2, Some(&pool)).map_err(|e| explain(&e, &Surroundings::look()))?;
    let file =
        memfd_create("tradewind-probe", MemfdFlags::CLOEXEC).map_err(|e| format!("memfd_create: {e}"))?;
    let file = DirectFile::buffered(Arc::new(File::from(file)));
    let mut sent = pool.take();
    sent.fill_from(b"through the ring");
    let mut run = |op: std::result::Result<Op, Completion>| {
        ring.submit(op.map_err(|_| "it cannot be tried".to_owned())?);
        match ring.reap(true) {
            Some((op, Ok(n))) => Ok(op.complete(Ok(n))),
            Some((_, Err(e))) => Err(explain(&e, &Surroundings::look())),
            None => Err("it lost an operation".to_owned()),
        }
    };
    run(Op::write(file.clone(), 0, sent.into(), 0))?;
    let back = run(Op::read(file, 0, 4096, pool.take(), 1))?;
    if back.buf.as_ref() != b"through the ring" {
        return Err("it read back other bytes than it wrote".to_owned());
    }
    let registered = match (ring.registered(), memlock()) {
        (0, limit) => format!("no registered buffers, RLIMIT_MEMLOCK is {limit}"),
        (_, limit) => format!("buffers registered up to RLIMIT_MEMLOCK, {limit}"),
    };
    Ok(format!("io_uring works ({}; {registered})", ring.flavour().describe()))
}

/// The limit on locked memory, for people.
fn memlock() -> String {
    match getrlimit(Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".to_owned(),
    }
}

/// What of the process's surroundings decides about io_uring.
#[derive(Debug, Clone, Copy, Default)]
struct Surroundings {
    /// `kernel.io_uring_disabled`, if this kernel has it.
    disabled: Option<u8>,
    /// Mode in `/proc/self/status`: 2 is a filter.
    seccomp: Option<u8>,
}

impl Surroundings {
    fn look() -> Self {
        let number = |s: &str| s.trim().parse().ok();
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let seccomp = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
        Self { disabled: disabled.as_deref().and_then(number), seccomp: seccomp.and_then(number) }
    }
}

/// An error of the set-up in terms of the knob to turn.
fn explain(error: &io::Error, around: &Surroundings) -> String {
    match (Errno::from_io_error(error), around.disabled, around.seccomp) {
        (Some(Errno::PERM), Some(2), _) => {
            "sysctl kernel.io_uring_disabled is 2, which forbids it to everyone; 0 allows it".to_owned()
        }
        (Some(Errno::PERM), Some(1), _) => {
            "sysctl kernel.io_uring_disabled is 1, which allows it to CAP_SYS_ADMIN and the group in \
             kernel.io_uring_group; join that group, or set it to 0"
                .to_owned()
        }
        (Some(Errno::PERM | Errno::NOSYS), _, Some(2)) => {
            "a seccomp filter forbids it (container runtimes' default profile does); use a profile that allows \
             io_uring_setup, io_uring_enter and io_uring_register"
                .to_owned()
        }
        (Some(Errno::PERM | Errno::ACCESS), ..) => {
            format!("a security module forbids it ({error}); look at its audit log")
        }
        (Some(Errno::NOSYS), ..) => "this kernel is older than 5.10 or built without it".to_owned(),
        (Some(Errno::INVAL), ..) => "this kernel is older than 5.10".to_owned(),
        (Some(Errno::NOMEM), ..) => {
            format!("no memory for a ring; RLIMIT_MEMLOCK is {}: raise it (ulimit -l)", memlock())
        }
        (Some(Errno::MFILE | Errno::NFILE), ..) => {
            format!("too many open files ({error}); raise RLIMIT_NOFILE (ulimit -n)")
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errno: Errno, disabled: Option<u8>, seccomp: Option<u8>) -> String {
        explain(&errno.into(), &Surroundings { disabled, seccomp })
    }

    #[test]
    fn every_refusal_names_its_knob() {
        assert!(said(Errno::PERM, Some(2), Some(0)).contains("io_uring_disabled is 2"));
        assert!(said(Errno::PERM, Some(2), Some(2)).contains("io_uring_disabled is 2"), "the sysctl decides");
        assert!(said(Errno::PERM, Some(1), Some(0)).contains("io_uring_group"));
        assert!(said(Errno::PERM, Some(0), Some(2)).contains("seccomp"));
        assert!(said(Errno::PERM, None, Some(2)).contains("seccomp"));
        assert!(said(Errno::NOSYS, None, Some(2)).contains("seccomp"), "some runtimes answer ENOSYS");
        assert!(said(Errno::NOSYS, None, Some(0)).contains("kernel"));
        assert!(said(Errno::PERM, Some(0), Some(0)).contains("security module"));
        assert!(said(Errno::NOMEM, Some(0), Some(0)).contains("RLIMIT_MEMLOCK"));
        assert!(said(Errno::MFILE, Some(0), Some(0)).contains("RLIMIT_NOFILE"));
    }

    #[test]
    fn pread_is_given_to_whoever_asks_for_it() {
        assert_eq!(probe(EngineChoice::Pread).unwrap().kind, EngineKind::Pread);
    }

    #[test]
    fn auto_always_finds_one_and_asking_for_uring_agrees_with_it() {
        let auto = probe(EngineChoice::Auto).unwrap();
        assert!(auto.why.contains("io_uring"), "{auto:?}");
        match probe(EngineChoice::Uring) {
            Ok(uring) => assert_eq!(uring, auto),
            Err(e) => {
                assert_eq!(e.kind(), crate::Kind::Usage);
                assert_eq!(auto.kind, EngineKind::Pread);
                assert_eq!(e.to_string(), auto.why);
            }
        }
    }
}
