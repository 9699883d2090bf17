//! A cluster in the hands of a test: entered (and started, when none is up), a namespace of the test's own, objects and
//! pods in it, and everything taken away at the end.
//!
//! ```no_run
//! use tradewind_cluster::cluster::inside;
//! use tradewind_cluster::folder::Level;
//!
//! #[test]
//! #[ignore = "needs a cluster: make cluster-test"]
//! fn a_config_map_is_kept() {
//!     inside(Level::Api, async |cluster| {
//!         let namespace = cluster.namespace("maps").await?;
//!         cluster.objects.apply(&format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a, namespace: {namespace}}}}}")).await
//!     });
//! }
//! ```

use std::fs;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, ServiceAccount};
use kube::api::{AttachParams, DeleteParams, ListParams, LogParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tradewind_tests::proxy::{self, Proxy};

use crate::bed;
use crate::command::output;
use crate::components::COMPONENTS;
use crate::folder::{Folder, Level};
use crate::image::{Image, built};
use crate::network::{NODE, S3_PORT};
use crate::objects::{Objects, client, wait};

/// How long one thing may take that a test waits for, where it says nothing else. Generous: what is slow is a worry, but
/// no failure.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A cluster, seen by a test inside.
pub struct Cluster {
    /// Where it is.
    pub folder: Folder,
    /// A client with all rights.
    pub client: Client,
    /// Objects of any kind.
    pub objects: Objects,
    namespaces: Mutex<Vec<String>>,
}

/// Runs `test` inside of a cluster of that level, which is started when none is up, and stays up for the next test.
/// Afterwards the namespaces that the test made are deleted and waited for.
///
/// Outside, the test binary runs itself once more inside, for the test of the calling thread's name: so a test is an
/// ordinary one for `cargo test`.
///
/// # Panics
/// When the test fails, with what it said and what its pods say; when no cluster can be started here.
pub fn inside(level: Level, test: impl AsyncFnOnce(&Cluster) -> Result<()>) {
    enter(level, FlockOperation::LockShared, test);
}

/// As [`inside`], while no other test runs in that cluster: for tests that break what all of them use, by faults of the
/// driver, or by killing and pausing components.
///
/// # Panics
/// As [`inside`].
pub fn alone(level: Level, test: impl AsyncFnOnce(&Cluster) -> Result<()>) {
    enter(level, FlockOperation::LockExclusive, test);
}

fn enter(level: Level, lock: FlockOperation, test: impl AsyncFnOnce(&Cluster) -> Result<()>) {
    let done = if std::env::var_os(bed::INSIDE).is_some_and(|inside| inside == level.name()) {
        run(level, lock, test)
    } else {
        run_again_inside(level)
    };
    if let Err(e) = done {
        panic!("{e:#}");
    }
}

fn run(level: Level, lock: FlockOperation, test: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<()> {
    let file = Folder::of(level)?.join("run/tests.lock");
    let held = fs::File::create(&file).with_context(|| format!("opening {}", file.display()))?;
    flock(&held, lock).with_context(|| format!("locking {}", file.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let folder = Folder::of(level)?;
        let client = client(&folder).await?;
        let objects = Objects::new(client.clone());
        let cluster = Cluster { folder, client, objects, namespaces: Mutex::default() };
        // A test that panics must not leave its namespaces, nor a component paused, to those that follow.
        let mut done = match AssertUnwindSafe(test(&cluster)).catch_unwind().await {
            Ok(done) => done,
            Err(_) => Err(anyhow!("it panicked")),
        };
        let repaired = match lock {
            FlockOperation::LockExclusive => cluster.repair(),
            _ => Ok(()),
        };
        if done.is_err() {
            done = done.with_context(|| "the test failed; what its namespaces show is above");
            cluster.show().await;
        }
        done.and(repaired).and(cluster.tidy().await)
    })
}

fn run_again_inside(level: Level) -> Result<()> {
    let folder = Folder::of(level)?;
    if !bed::is_up(&folder) {
        start(&folder)?;
    }
    let thread = std::thread::current();
    let name = thread.name().context("the calling thread has no name, so it is no test's")?;
    let program = std::env::current_exe()?.into_os_string();
    let words = [program, name.into(), "--exact".into(), "--include-ignored".into(), "--nocapture".into()];
    let output = bed::entering(&folder, &words)?.output().context("running the test inside")?;
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "inside, {name} failed:\n{errors}\n{said}");
    ensure!(said.contains("1 passed"), "inside, no test has the name {name}:\n{said}");
    say(errors.trim_end());
    Ok(())
}

/// True for the run of a test inside.
#[must_use]
pub fn is_inside() -> bool {
    std::env::var_os(bed::INSIDE).is_some()
}

/// Says something that shall be read even when the test passes: a time, a choice. Inside it goes outside with the
/// test's standard error, past the capture of a passing test's output.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Starts a cluster as `make cluster-up` does, with the program of this build; another test may do so at the same moment.
fn start(folder: &Folder) -> Result<()> {
    let setup = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.sh");
    let part = if folder.level == Level::Api { "api" } else { "velero" };
    let programs = output(Command::new(&setup).arg(part))?;
    let up = ["up", "--level", folder.level.name(), "--programs", programs.trim()];
    match output(Command::new(built("cluster")?).args(up)) {
        Err(_) if bed::is_up(folder) => Ok(()),
        started => started.map(drop).context("no cluster could be started"),
    }
}

impl Cluster {
    /// A new namespace whose name begins with `name`; deleted with all that is in it when the test ends.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn namespace(&self, name: &str) -> Result<String> {
        let all: Api<Namespace> = Api::all(self.client.clone());
        let wanted: Namespace =
            serde_json::from_value(serde_json::json!({"metadata": {"generateName": format!("{name}-")}}))?;
        let made =
            all.create(&PostParams::default(), &wanted).await.with_context(|| format!("namespace {name}"))?;
        let name = made.name_any();
        self.remember(&name);
        if self.folder.level == Level::Node {
            // Without it no pod is admitted.
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &name);
            let there = async || Ok(accounts.get_opt("default").await?.map(drop));
            self.until(&format!("the service account of {name}"), there).await?;
        }
        Ok(name)
    }

    /// Deletes the namespace `name` too when the test ends, for instance one that a restore has made.
    pub fn remember(&self, name: &str) {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// Waits until the pod runs.
    ///
    /// # Errors
    /// After [`LIMIT`]: the pod's status.
    pub async fn running(&self, namespace: &str, pod: &str) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let running = |pod: Option<&Pod>| phase(pod) == Some("Running");
        wait(&pods, pod, "to run", LIMIT, running).await.map(drop)
    }

    /// Waits until the pod has ended well, and returns what its first container printed.
    ///
    /// # Errors
    /// After [`LIMIT`], or when it failed: what its containers printed.
    pub async fn succeeded(&self, namespace: &str, pod: &str) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let ended = |pod: Option<&Pod>| matches!(phase(pod), Some("Succeeded" | "Failed"));
        let seen = wait(&pods, pod, "to end", LIMIT, ended).await?;
        if let Some(failed) = seen.filter(|seen| phase(Some(seen)) == Some("Failed")) {
            bail!("pod {namespace}/{pod} failed:\n{}", said(&pods, &failed).await);
        }
        Ok(pods.logs(pod, &LogParams::default()).await?)
    }

    /// Runs a command in a pod's first container, and returns what it printed.
    ///
    /// # Errors
    /// When it fails: its status, and what it wrote to standard error; when it has not ended after [`LIMIT`].
    pub async fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let run = async {
            let mut process = pods.exec(pod, command.iter().copied(), &AttachParams::default()).await?;
            let (mut said, mut errors) = (String::new(), String::new());
            let (out, err) = (process.stdout(), process.stderr());
            let status = process.take_status().context("no status of the process")?;
            tokio::try_join!(read(out, &mut said), read(err, &mut errors))?;
            let status = status.await.context("the connection ended before the process did")?;
            let message = status.message.unwrap_or_default();
            ensure!(status.status.as_deref() == Some("Success"), "{message}: {errors}");
            Ok(said)
        };
        let ended = tokio::time::timeout(LIMIT, run);
        ended
            .await
            .unwrap_or_else(|_| bail!("it has not ended after {} s", LIMIT.as_secs()))
            .with_context(|| format!("running {} in {namespace}/{pod}", command.join(" ")))
    }

    /// Gives the node an image.
    ///
    /// # Errors
    /// When it cannot be written, or containerd does not take it.
    pub fn import(&self, image: Image) -> Result<()> {
        let archive = tempfile::Builder::new().suffix(".tar").tempfile_in(self.folder.root())?;
        image.write(archive.path())?;
        crate::inside::import(&self.folder, archive.path())
    }

    /// The process id of a component, as seen inside; `None` while it is away.
    #[must_use]
    pub fn process(&self, component: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.folder.pid(component)).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        rustix::process::test_kill_process(pid).ok().map(|()| pid)
    }

    /// Sends a signal to a component: `STOP` pauses it, `CONT` lets it go on, `KILL` kills it (the supervisor starts it
    /// again).
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, component: &str, signal: Signal) -> Result<()> {
        let pid = self.process(component).with_context(|| format!("{component} does not run"))?;
        kill_process(pid, signal).with_context(|| format!("sending a signal to {component}"))
    }

    /// Kills a component and waits until the supervisor has started it again.
    ///
    /// # Errors
    /// When it does not run, or not again after [`LIMIT`].
    pub async fn restart(&self, component: &str) -> Result<()> {
        let before = self.process(component);
        self.signal(component, Signal::KILL)?;
        self.until(&format!("{component} to run again"), async || {
            let now = self.process(component);
            Ok((now.is_some() && now != before).then_some(()))
        })
        .await
    }

    /// Puts faults into the CSI driver, as its README documents them; `{}` takes them away. For tests that are
    /// [`alone`].
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn driver_faults(&self, faults: &serde_json::Value) -> Result<()> {
        let part = self.folder.join("faults.part");
        fs::write(&part, faults.to_string())?;
        Ok(fs::rename(&part, self.folder.join("faults.json"))?)
    }

    /// The cluster's S3 server behind a proxy with faults, for whoever uses the proxy's address; inside, and from pods.
    /// A rule is one of [`proxy::Rule`], for instance `GET,packs/,1,status=503`.
    ///
    /// # Errors
    /// When a rule cannot be understood.
    pub fn s3_faults(&self, rules: &[&str]) -> Result<Proxy> {
        Proxy::start(proxy::Config {
            listen: format!("{NODE}:0").parse()?,
            faults: rules.iter().map(|rule| rule.parse()).collect::<Result<_>>()?,
            ..proxy::Config::new(&format!("http://{NODE}:{S3_PORT}"))
        })
    }

    /// Takes away what a test that was [`alone`] may have done to what all use.
    fn repair(&self) -> Result<()> {
        for component in COMPONENTS {
            // One that is away at this moment is no longer paused.
            if let Some(pid) = self.process(component) {
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        self.driver_faults(&serde_json::json!({}))
    }

    /// Asks `met` again and again until it gives a value.
    ///
    /// # Errors
    /// After [`LIMIT`], or when `met` fails.
    pub async fn until<T>(&self, what: &str, met: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
        let asked = async {
            loop {
                if let Some(value) = met().await? {
                    return Ok(value);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(LIMIT, asked).await {
            Ok(value) => value,
            Err(_) => bail!("waited {} s for {what}", LIMIT.as_secs()),
        }
    }

    /// What a failed test leaves to be read: its pods and the events of its namespaces.
    async fn show(&self) {
        let namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for namespace in namespaces {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            for pod in pods.list(&ListParams::default()).await.into_iter().flatten() {
                let phase = phase(Some(&pod)).unwrap_or_default();
                say(&format!("pod {namespace}/{}: {phase}\n{}", pod.name_any(), said(&pods, &pod).await));
            }
            let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
            for event in events.list(&ListParams::default()).await.into_iter().flatten() {
                let about = event.involved_object;
                say(&format!(
                    "event {namespace}: {} {}: {}",
                    about.kind.unwrap_or_default(),
                    about.name.unwrap_or_default(),
                    event.message.unwrap_or_default()
                ));
            }
        }
    }

    /// Deletes the test's namespaces. The API level has no controller that would empty a namespace: it is
    /// left to end with the cluster.
    async fn tidy(&self) -> Result<()> {
        if self.folder.level == Level::Api {
            return Ok(());
        }
        let namespaces = std::mem::take(&mut *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner));
        let all: Api<Namespace> = Api::all(self.client.clone());
        for name in &namespaces {
            match all.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                done => drop(done.with_context(|| format!("deleting namespace {name}"))?),
            }
        }
        for name in &namespaces {
            wait(&all, name, "to be gone", LIMIT, |namespace: Option<&Namespace>| namespace.is_none())
                .await?;
        }
        Ok(())
    }
}

fn phase(pod: Option<&Pod>) -> Option<&str> {
    pod?.status.as_ref()?.phase.as_deref()
}

/// The last lines of what each of a pod's containers printed that has begun, and how it ended.
async fn said(pods: &Api<Pod>, pod: &Pod) -> String {
    let mut all = String::new();
    let Some(status) = &pod.status else { return all };
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers {
        let Some(state) = container.state.as_ref().filter(|state| state.waiting.is_none()) else { continue };
        let end =
            state.terminated.as_ref().map_or("runs".to_owned(), |t| format!("exit status {}", t.exit_code));
        let name = Some(container.name.clone());
        let last = LogParams { container: name, tail_lines: Some(20), ..LogParams::default() };
        let lines = pods.logs(&pod.name_any(), &last).await.unwrap_or_else(|e| format!("no log: {e}"));
        all += &format!("{} ({end}):\n{lines}\n", container.name);
    }
    all
}

async fn read(from: Option<impl tokio::io::AsyncRead + Unpin>, to: &mut String) -> Result<()> {
    if let Some(mut from) = from {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).await?;
        *to = String::from_utf8_lossy(&bytes).into_owned();
    }
    Ok(())
}
