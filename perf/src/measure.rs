//! Runs one command and measures it: wall time, CPU seconds, peak memory, and how quiet the machine was meanwhile.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::tools::Step;

/// GNU time reads the resource usage of the whole process tree from wait4.
const TIME: &str = "/usr/bin/time";
/// Kernel clock ticks per second, as /proc/stat counts.
const TICKS: f64 = 100.0;
/// Above this share of busy processors the machine is not quiet.
const QUIET: f64 = 0.10;

/// What one command took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Seconds until the command ended and the file system was synced.
    pub(crate) wall: f64,
    /// The part of it that the sync took.
    pub(crate) sync: f64,
    /// CPU seconds in user mode, of the process and all its children.
    pub(crate) user: f64,
    /// CPU seconds in the kernel, likewise.
    pub(crate) system: f64,
    /// Peak resident memory in MiB, of the largest process of the tree.
    pub(crate) rss: f64,
    /// MiB read from block devices.
    pub(crate) read: f64,
    /// CPU seconds that the machine spent on anything else, kernel threads included.
    pub(crate) other: f64,
    /// CPU seconds that the hypervisor took away.
    pub(crate) steal: f64,
    /// Share of the processors that was busy just before.
    pub(crate) busy_before: f64,
    /// Was the page cache emptied before?
    pub(crate) cold: bool,
    /// The exit code.
    pub(crate) exit: i32,
}

impl Measured {
    /// CPU seconds, user and kernel.
    pub(crate) fn cpu(&self) -> f64 {
        self.user + self.system
    }
}

/// Fails early when what measures is not there.
pub(crate) fn check() -> Result<()> {
    if !Path::new(TIME).exists() {
        bail!("{TIME} is missing: apt-get install time");
    }
    Ok(())
}

/// Processor time of the machine since boot: (busy, steal) in seconds.
fn machine_time() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|t| t.parse().ok())
        .collect();
    let [user, nice, system, _idle, _wait, irq, softirq, steal, ..] = ticks[..] else {
        bail!("/proc/stat is not understood");
    };
    Ok(((user + nice + system + irq + softirq) / TICKS, steal / TICKS))
}

/// The number of processors.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Waits until the machine is quiet, `patience` at most; returns the share of the processors that is still busy.
fn settle(patience: Duration) -> Result<f64> {
    let start = Instant::now();
    loop {
        let (before, _) = machine_time()?;
        let sample = Instant::now();
        sleep(Duration::from_millis(if patience.is_zero() { 100 } else { 1000 }));
        let share = (machine_time()?.0 - before) / sample.elapsed().as_secs_f64() / processors() as f64;
        if share < QUIET || start.elapsed() >= patience {
            return Ok(share.clamp(0.0, 1.0));
        }
    }
}

/// Writes everything out and empties the page cache; false when that is not allowed.
fn empty_page_cache() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// Runs `step` with the environment `env` added, its output appended to `log`, and nothing measured.
pub(crate) fn run(step: &Step, env: &[(String, String)], log: &Path) -> Result<()> {
    let mut command = Command::new(&step.program);
    command.args(&step.args);
    let code = start(&mut command, step, env, log)?;
    accept(step, code, log)
}

/// Runs `step`, from an empty page cache when `cold`, and measures it; the sync of the file system of `target` is part of it.
pub(crate) fn measure(
    step: &Step,
    env: &[(String, String)],
    target: &Path,
    log: &Path,
    patience: Duration,
    cold: bool,
) -> Result<Measured> {
    let usage = log.with_extension("usage");
    let cold = cold && empty_page_cache();
    // Loading a program, and its interpreter, from the disk is not what is measured.
    let quiet = || Stdio::null();
    let _ =
        Command::new(&step.program).arg("--version").stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
    let busy_before = settle(patience)?;
    let folder = File::open(target)?;
    let before = machine_time()?;
    let mut command = Command::new(TIME);
    command.args(["-q", "-f", "%U %S %M %I", "-o"]).arg(&usage).arg(&step.program).args(&step.args);
    let begin = Instant::now();
    let exit = start(&mut command, step, env, log)?;
    let ended = Instant::now();
    rustix::fs::syncfs(&folder).context("syncing after the command")?;
    let wall = begin.elapsed().as_secs_f64();
    let sync = ended.elapsed().as_secs_f64();
    let after = machine_time()?;
    accept(step, exit, log)?;

    let text = fs::read_to_string(&usage)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [user, system, rss, blocks] = numbers[..] else { bail!("{TIME} wrote {text:?}") };
    Ok(Measured {
        wall,
        sync,
        user,
        system,
        rss: rss / 1024.0,
        read: blocks / 2048.0,
        other: (after.0 - before.0 - user - system).max(0.0),
        steal: after.1 - before.1,
        busy_before,
        cold,
        exit,
    })
}

fn start(command: &mut Command, step: &Step, env: &[(String, String)], log: &Path) -> Result<i32> {
    let output = OpenOptions::new().append(true).create(true).open(log)?;
    let status = command
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(&step.folder)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .with_context(|| format!("starting {}", step.program))?;
    Ok(status.code().unwrap_or(-1))
}

fn accept(step: &Step, code: i32, log: &Path) -> Result<()> {
    if step.accepted.contains(&code) {
        return Ok(());
    }
    let said = fs::read(log).unwrap_or_default();
    let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(600)..]).replace('\n', " | ");
    bail!("`{} {}` ended with {code}: ... {tail}", step.program, step.args.join(" "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(script: &str) -> Step {
        Step {
            program: "sh".to_owned(),
            args: vec!["-c".to_owned(), script.to_owned()],
            folder: "/".into(),
            accepted: vec![0, 3],
        }
    }

    #[test]
    fn children_are_counted() {
        if check().is_err() {
            return; // GNU time is not installed here
        }
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script =
            "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo \"$WORD\"'; sleep 0.3; exit 3";
        let env = [("WORD".to_owned(), "heard".to_owned())];
        let measured = measure(&step(script), &env, dir.path(), &log, Duration::ZERO, false).unwrap();
        assert_eq!(measured.exit, 3);
        assert!(measured.cpu() > 0.03, "{measured:?}");
        assert!(measured.wall >= 0.3 && measured.wall >= measured.sync, "{measured:?}");
        assert!(measured.rss > 0.5 && measured.rss < 100.0, "{measured:?}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "heard\n");
    }

    #[test]
    fn a_failed_command_says_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            run(&step("echo no such key; exit 1"), &[], &dir.path().join("log")).unwrap_err().to_string();
        assert!(error.contains("ended with 1") && error.contains("no such key"), "{error}");
    }
}
