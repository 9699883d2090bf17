//! A cluster seen from outside: started, entered, ended, and cleaned up after whatever happened to it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::command::run;
use crate::components::CGROUP;
use crate::folder::{Folder, Level};
use crate::inside::machine_lock;
use crate::state::{self, Process, State};
use crate::{loops, machine, pki};

/// How long what was killed may take to go.
const END: Duration = Duration::from_secs(30);
/// How long devices may take to go before their file systems are taken to be frozen.
const FROZEN: Duration = Duration::from_secs(2);
/// How long the supervisor may take to say whether the cluster is ready: more than all its steps together.
const START: Duration = Duration::from_secs(600);
/// Names the folder of the last node, until its end: for those who start the next in another one.
const LAST: &str = "/run/tradewind-cluster";
/// Size of the file system that holds volumes and snapshots, in bytes: sparse, and large enough for some of 10 GiB.
const VOLUMES: u64 = 40 << 30;
/// What stays in the folder after the end; the state is removed last, by itself.
const KEPT: [&str; 4] = ["log", "lock", "state.json", "state.part"];
/// Set in the environment of what runs inside: the level.
pub(crate) const INSIDE: &str = "TRADEWIND_CLUSTER_INSIDE";

/// What the supervisor says once.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Ready,
    Failed(String),
}

/// Starts a cluster with the programs of `programs` (folders as in PATH), and returns how long it took. What a killed
/// one left is cleaned up first.
///
/// # Errors
/// When the machine lacks something, one is up already, or a component did not start: which, and its log's end.
/// Nothing is left then but logs.
pub fn up(folder: &Folder, programs: &str) -> Result<Duration> {
    let begin = Instant::now();
    let _lock = lock(folder)?;
    if is_up(folder) {
        bail!(
            "a cluster ({}) is up already: use it, or end it with `make cluster-down`",
            folder.level.name()
        );
    }
    clean(folder)?;
    machine::check(folder, programs)?;
    if folder.level == Level::Node {
        clean_elsewhere(folder)?;
    }
    let started = prepare(folder, programs).and_then(|()| start(folder));
    match started {
        Ok(()) => Ok(begin.elapsed()),
        Err(why) => {
            if let Err(more) = clean(folder) {
                bail!("{why:#}; and cleaning up failed too: {more:#}");
            }
            Err(why)
        }
    }
}

/// Ends the cluster and takes away everything that it left, of an earlier one too. Logs stay. Returns whether there was
/// one.
///
/// # Errors
/// What could not be taken away.
pub fn down(folder: &Folder) -> Result<bool> {
    let _lock = lock(folder)?;
    clean(folder)
}

/// True while the cluster's first process runs.
#[must_use]
pub fn is_up(folder: &Folder) -> bool {
    // Between the first process and the end of the start nobody else looks: `up` holds the lock.
    folder.join("ready").exists() && state::first_process(folder).is_some_and(|first| !first.is_ending())
}

/// Runs a command inside, in place of this process.
///
/// # Errors
/// When none is up, or the command cannot be run; otherwise it does not return.
pub fn enter(folder: &Folder, command: &[OsString]) -> Result<std::convert::Infallible> {
    let why = entering(folder, command)?.exec();
    Err(why).context("running nsenter")
}

/// A command that runs `command` inside: in the cluster's namespaces, with its programs in PATH and `KUBECONFIG` set.
///
/// # Errors
/// When none is up.
pub fn entering(folder: &Folder, command: &[impl AsRef<OsStr>]) -> Result<Command> {
    let (Some(state), Some(first)) = (State::load(folder)?, state::first_process(folder)) else {
        bail!("no cluster ({}) is up: `make cluster-up` starts one", folder.level.name());
    };
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["--target", &first.pid.to_string(), "--mount", "--pid", "--net", "--uts", "--ipc"]);
    if !rustix::process::geteuid().is_root() {
        nsenter.args(["--user", "--preserve-credentials"]);
    }
    // The working directory is lost with the mount namespace.
    let mut here = OsString::from("--wd=");
    here.push(std::env::current_dir().unwrap_or_else(|_| "/".into()));
    nsenter.arg(here).arg("--").args(command);
    without_proxies(nsenter.env("PATH", path(&state.programs)).env(INSIDE, folder.level.name()));
    nsenter.env("KUBECONFIG", folder.join("pki/admin.kubeconfig"));
    nsenter.env("CONTAINERD_ADDRESS", folder.join("run/containerd.sock"));
    Ok(nsenter)
}

/// One `up` or `down` at a time.
fn lock(folder: &Folder) -> Result<fs::File> {
    fs::create_dir_all(folder.root()).with_context(|| format!("making {}", folder.root().display()))?;
    let file = folder.join("lock");
    let lock = fs::File::create(&file).with_context(|| format!("opening {}", file.display()))?;
    flock(&lock, FlockOperation::LockExclusive).with_context(|| format!("locking {}", file.display()))?;
    Ok(lock)
}

fn path(programs: &str) -> String {
    format!("{programs}:{}", std::env::var("PATH").unwrap_or_default())
}

/// Inside there is no way to the machine's proxies, and nothing to ask them for.
fn without_proxies(command: &mut Command) {
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
}

/// Everything that must be there before the first process.
fn prepare(folder: &Folder, programs: &str) -> Result<()> {
    for entry in fs::read_dir(folder.root()).with_context(|| folder.root().display().to_string())? {
        let name = entry?.file_name();
        if !KEPT.iter().any(|kept| name == *kept) {
            // All of it would be deleted at the end.
            bail!(
                "{} has '{}', which is not ours: TRADEWIND_CLUSTER=/folder names another",
                folder.root().display(),
                name.display()
            );
        }
    }
    let programs = format!("{}:{programs}", folder.text("bin"));
    let state = State { boot: state::boot()?, programs, settings: machine::settings()? };
    state.save(folder)?;
    if folder.level == Level::Node {
        fs::write(LAST, root_bytes(folder)).with_context(|| format!("writing {LAST}"))?;
    }
    for name in ["bin", "run", "log", "etcd", "pki"] {
        make(&folder.join(name))?;
    }
    own_programs(folder)?;
    pki::make(folder)?;
    if folder.level == Level::Api {
        return Ok(());
    }
    for name in ["cgroup", "kubelet", "volumes", "s3", "net.d"] {
        make(&folder.join(name))?;
    }
    let own = |text: &str| {
        text.replace("@FOLDER@", &folder.root().display().to_string()).replace("@CGROUP@", CGROUP)
    };
    for (name, text) in [
        ("containerd.toml", include_str!("../config/containerd.toml")),
        ("kubelet.yaml", include_str!("../config/kubelet.yaml")),
        ("net.d/10-cluster.conflist", include_str!("../config/cni.json")),
    ] {
        fs::write(folder.join(name), own(text)).with_context(|| format!("writing {name}"))?;
    }
    let volumes = folder.join("volumes.img");
    fs::File::create(&volumes)
        .and_then(|image| image.set_len(VOLUMES))
        .with_context(|| format!("writing {}", volumes.display()))?;
    run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", &volumes.display().to_string()]).map(drop)
}

/// Copies our own programs, which a build may replace at any time, to where the cluster finds them.
fn own_programs(folder: &Folder) -> Result<()> {
    let own = std::env::current_exe().context("asking for our own name")?;
    let mut names = vec!["cluster"];
    if folder.level == Level::Node {
        names.push("csi-driver");
    }
    for name in names {
        let (from, to) = (own.with_file_name(name), folder.join("bin").join(name));
        fs::copy(&from, &to)
            .with_context(|| format!("copying {}: build the workspace first", from.display()))?;
    }
    Ok(())
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))
}

/// Starts the first process and waits for the supervisor's word.
fn start(folder: &Folder) -> Result<()> {
    let programs = State::load(folder)?.context("the state that was just written")?.programs;
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL"]);
    unshare.args(["--net", "--uts", "--ipc"]);
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let log = folder.log("supervisor");
    unshare.arg(folder.join("bin/cluster")).args(["first", "--level", folder.level.name()]);
    without_proxies(unshare.env("PATH", path(&programs)).env(INSIDE, folder.level.name()));
    unshare.stdin(Stdio::piped()).stdout(Stdio::piped());
    unshare.stderr(fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?);
    unshare.current_dir("/").process_group(0); // a Ctrl-C is for us, not for the cluster
    let mut first = unshare.spawn().context("running unshare")?;

    // Open until it is ready: the supervisor takes its end for ours.
    let held = first.stdin.take();
    let out = first.stdout.take().context("no pipe from the supervisor")?;
    let (says, listens) = mpsc::channel();
    std::thread::spawn(move || {
        let mut said = String::new();
        let _ = says.send(BufReader::new(out).read_line(&mut said).map(|_| said));
    });
    let Ok(said) = listens.recv_timeout(START) else {
        bail!("the supervisor has said nothing for {} s: {} may say why", START.as_secs(), log.display());
    };
    match serde_json::from_str(&said.context("listening to the supervisor")?) {
        Ok(Report::Ready) => {
            fs::write(folder.join("ready"), "")?;
            drop(held);
            Ok(())
        }
        Ok(Report::Failed(why)) => bail!("{why}"),
        Err(_) => {
            let end = crate::supervisor::last_lines(&log, 5).unwrap_or_default();
            bail!("the cluster's first process ended: {}", end.trim())
        }
    }
}

/// Cleans up after a node that was killed in another folder: what it changed of the machine would be taken for what the
/// machine was like.
fn clean_elsewhere(folder: &Folder) -> Result<()> {
    let last = match fs::read(LAST) {
        Ok(last) => PathBuf::from(OsString::from_vec(last)),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("reading {LAST}")),
    };
    if last == folder.root() || !last.is_dir() {
        return Ok(());
    }
    // Nobody can start it meanwhile.
    let _machine = machine_lock()?;
    let last = Folder::at(last);
    let _lock = lock(&last)?;
    clean(&last).map(drop).with_context(|| format!("cleaning up the cluster in {}", last.root().display()))
}

/// Ends what runs and takes away what is left, the last made first.
fn clean(folder: &Folder) -> Result<bool> {
    let Some(state) = State::load(folder)? else {
        // Nothing was changed: the record is written before anything is.
        return Ok(false);
    };
    let image = folder.join("volumes.img");
    let same_boot = state.boot == state::boot()?;
    if same_boot && let Some(first) = state::first_process(folder) {
        if folder.level == Level::Node
            && let Err(e) = loops::standing_on(&image).and_then(|devices| loops::detach(&devices))
        {
            // Tried again below, when nobody uses them; then it counts.
            crate::cluster::say(&format!("cluster: {e:#}"));
        }
        kill(&first)?;
        until_gone(folder, || Ok(if first.runs() { Err(format!("process {}", first.pid)) } else { Ok(()) }))?;
    }
    if folder.level == Level::Node && same_boot {
        let gone = || {
            let left = loops::standing_on(&image)?;
            loops::detach(&left)?;
            Ok(left.is_empty().then_some(()).ok_or_else(|| format!("loop devices {}", left.join(", "))))
        };
        until_gone(folder, gone)?;
        until_gone(folder, || Ok(remove_groups()))?;
        machine::restore_settings(&state.settings)?;
    }
    if folder.level == Level::Node && fs::read(LAST).is_ok_and(|last| last == root_bytes(folder)) {
        fs::remove_file(LAST).with_context(|| format!("removing {LAST}"))?;
    }
    for entry in fs::read_dir(folder.root()).with_context(|| folder.root().display().to_string())? {
        let entry = entry?;
        if KEPT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        let path = entry.path();
        let removed =
            if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("removing {}", path.display()))?;
    }
    State::forget(folder)?;
    Ok(true)
}

fn root_bytes(folder: &Folder) -> &[u8] {
    folder.root().as_os_str().as_bytes()
}

/// Kills the first process of the namespaces, with which the kernel ends all others.
fn kill(first: &Process) -> Result<()> {
    if let Some(pid) = i32::try_from(first.pid).ok().and_then(Pid::from_raw)
        && first.runs()
    {
        match kill_process(pid, Signal::KILL) {
            Err(e) if e != rustix::io::Errno::SRCH => {
                return Err(e).context("killing the cluster's first process");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Calls `gone` until it says that nothing is left. What takes long may wait for a file system that was frozen when its
/// driver was killed: processes that write to it cannot even be killed.
fn until_gone(folder: &Folder, mut gone: impl FnMut() -> Result<Result<(), String>>) -> Result<()> {
    let begin = Instant::now();
    while let Err(left) = gone()? {
        if begin.elapsed() > END {
            bail!("still there {} s after the end: {left}", END.as_secs());
        }
        if begin.elapsed() > FROZEN && folder.level == Level::Node {
            for device in loops::standing_on(&folder.join("volumes.img"))? {
                loops::thaw(&device, &folder.join("volumes"));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Removes the pods' control groups, in every hierarchy. Busy ones still have processes that are ending.
fn remove_groups() -> Result<(), String> {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return Ok(()) };
    for hierarchy in hierarchies.flatten() {
        let group = hierarchy.path().join(CGROUP.trim_start_matches('/'));
        remove_group(&group).map_err(|e| format!("control group {}: {e}", group.display()))?;
    }
    Ok(())
}

fn remove_group(group: &Path) -> std::io::Result<()> {
    let below = match fs::read_dir(group) {
        Ok(below) => below,
        Err(e) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&e.kind()) => return Ok(()),
        Err(e) => return Err(e),
    };
    for entry in below {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
