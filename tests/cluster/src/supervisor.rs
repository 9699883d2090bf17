//! The processes of a cluster, kept running: started once, started again when they end, until the cluster does.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::components::Component;
use crate::folder::Folder;

/// How long a component that ended stays away. Short enough for a test to wait for, long enough not to spin.
const REST: Duration = Duration::from_millis(500);

/// Runs components. One that ends before the cluster is ready is a failed start; later it is started again, as an init
/// system or the kubelet would.
pub(crate) struct Supervisor {
    folder: Folder,
    ready: Arc<AtomicBool>,
    ended: mpsc::UnboundedSender<(&'static str, ExitStatus)>,
    early: mpsc::UnboundedReceiver<(&'static str, ExitStatus)>,
}

impl Supervisor {
    /// Runs nothing yet. Components that end are started again once `ready` is set.
    pub(crate) fn new(folder: Folder, ready: Arc<AtomicBool>) -> Self {
        let (ended, early) = mpsc::unbounded_channel();
        Self { folder, ready, ended, early }
    }

    /// Starts a component and keeps it running.
    ///
    /// # Errors
    /// When there is no such program, or its log cannot be written.
    pub(crate) fn start(&self, component: Component) -> Result<()> {
        let log = self.folder.log(component.name);
        File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut child = spawn(&self.folder, &component)?;
        let (folder, ready, ended) = (self.folder.clone(), Arc::clone(&self.ready), self.ended.clone());
        tokio::spawn(async move {
            loop {
                let Ok(status) = child.wait().await else { return };
                if !ready.load(Ordering::Relaxed) {
                    let _ = ended.send((component.name, status));
                    return;
                }
                note(&format!("{} ended ({status}) and is started again", component.name));
                child = loop {
                    tokio::time::sleep(REST).await;
                    match spawn(&folder, &component) {
                        Ok(again) => break again,
                        Err(e) => note(&format!("{e:#}")),
                    }
                };
            }
        });
        Ok(())
    }

    /// Waits until `met` gives a value, asking again every few milliseconds.
    ///
    /// # Errors
    /// After `limit`, or as soon as a component has ended: with the end of the log of `who`, or of the one that ended.
    pub(crate) async fn until<T, F>(
        &mut self,
        who: &str,
        what: &str,
        limit: Duration,
        mut met: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let end = Instant::now() + limit;
        loop {
            let why = match tokio::time::timeout(limit, met()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(why)) => why,
                Err(_) => anyhow::anyhow!("no answer"),
            };
            self.all_run()?;
            if Instant::now() > end {
                bail!("waited {} s for {what}: {why:#}{}", limit.as_secs(), self.end_of_log(who));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Sees that no component has ended until now.
    ///
    /// # Errors
    /// Which has, and the end of its log.
    pub(crate) fn all_run(&mut self) -> Result<()> {
        match self.early.try_recv() {
            Ok((name, status)) => bail!("{name} ended while it started ({status}){}", self.end_of_log(name)),
            Err(_) => Ok(()),
        }
    }

    fn end_of_log(&self, name: &str) -> String {
        let log = self.folder.log(name);
        let lines = last_lines(&log, 12).unwrap_or_default();
        format!("; {} ends with:\n{lines}", log.display())
    }
}

/// Starts the program of a component with its output in its log, and notes its process id.
fn spawn(folder: &Folder, component: &Component) -> Result<Child> {
    let [program, arguments @ ..] = component.command.as_slice() else {
        bail!("{}: no command", component.name)
    };
    let log = folder.log(component.name);
    let log =
        File::options().append(true).open(&log).with_context(|| format!("opening {}", log.display()))?;
    let child = Command::new(program)
        .args(arguments)
        .envs(component.environment.iter().cloned().collect::<BTreeMap<_, _>>())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}: running {program}", component.name))?;
    let pid = child.id().with_context(|| format!("{} ended at once", component.name))?;
    fs::write(folder.pid(component.name), pid.to_string())?;
    Ok(child)
}

/// The last lines of a file that may be long.
pub(crate) fn last_lines(file: &Path, count: usize) -> Result<String> {
    const ENOUGH: u64 = 16 * 1024;
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(ENOUGH)))?;
    let mut end = Vec::new();
    file.take(ENOUGH).read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}

/// The supervisor's own log is its standard error.
fn note(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
