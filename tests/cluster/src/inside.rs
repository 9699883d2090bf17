//! A cluster seen from inside of its namespaces: its first process, and the one that starts everything and keeps it
//! running.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use k8s_openapi::api::storage::v1::CSINode;
use kube::{Api, Client};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{WaitOptions, wait};
use tokio::net::TcpStream;

use crate::command::run;
use crate::components::{self, CGROUP, DRIVER, DRIVER_SOCKET, REGISTRATION};
use crate::folder::{Folder, Level, OWN};
use crate::image::Image;
use crate::network::{METADATA_PORT, NODE, NODE_NAME, S3_PORT};
use crate::objects::{self, Objects};
use crate::state;
use crate::supervisor::Supervisor;

/// How long one step of a start may take. They take a second or some; a machine that does ten things at once needs
/// more.
const STEP: Duration = Duration::from_secs(60);

/// What the first process of the namespaces does: it starts the supervisor, buries whoever lost its parent (the
/// containers' shims), and ends with it, which ends everything else.
///
/// # Errors
/// When the machine's lock is taken or the supervisor cannot be started.
pub fn first(folder: &Folder) -> Result<()> {
    let _lock = if folder.level == Level::Node { Some(machine_lock()?) } else { None };
    state::record_first_process(folder)?;
    let supervisor = Command::new(std::env::current_exe()?)
        .args(["supervise", "--level", folder.level.name()])
        .spawn()
        .context("starting the supervisor")?;
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty())? else { continue };
        if pid.as_raw_nonzero().get().unsigned_abs() == supervisor.id() {
            bail!("the supervisor ended ({})", std::process::ExitStatus::from_raw(status.as_raw()));
        }
    }
}

/// There can be one node on a machine: pods' control groups, loop devices and kernel settings are the machine's. Held
/// by the first process, let go by the kernel when that ends, and nothing is left of it: it is on a folder that is there.
///
/// # Errors
/// When another has it.
pub(crate) fn machine_lock() -> Result<fs::File> {
    let run = fs::File::open("/run").context("opening /run")?;
    flock(&run, FlockOperation::NonBlockingLockExclusive)
        .context("another cluster is up on this machine: end it first")?;
    Ok(run)
}

/// Sets up the namespaces, starts everything, reports on standard output in one line of JSON (`"ready"` or
/// `{"failed": "why"}`), and keeps it running.
///
/// # Errors
/// What could not be started, and why.
pub fn supervise(folder: &Folder) -> Result<()> {
    let ready = Arc::new(AtomicBool::new(false));
    end_with_the_starter(Arc::clone(&ready));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut supervisor = Supervisor::new(folder.clone(), Arc::clone(&ready));
        match start(folder, &mut supervisor).await {
            Ok(()) => {
                ready.store(true, Ordering::Relaxed);
                report(&serde_json::json!("ready"))?;
                std::future::pending().await
            }
            Err(why) => {
                report(&serde_json::json!({"failed": format!("{why:#}")}))?;
                Err(why)
            }
        }
    })
}

/// Whoever started us holds the other end of our standard input until we are ready: if that is killed before, nothing
/// shall be left half-started.
fn end_with_the_starter(ready: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        if !ready.load(Ordering::Relaxed) {
            std::process::exit(1);
        }
    });
}

fn report(what: &serde_json::Value) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{what}")?;
    Ok(out.flush()?)
}

async fn start(folder: &Folder, supervisor: &mut Supervisor) -> Result<()> {
    if folder.level == Level::Node {
        mounts(folder)?;
    }
    crate::network::set_up(folder.level)?;
    supervisor.start(components::etcd(folder))?;
    supervisor.start(components::apiserver(folder))?;
    if folder.level == Level::Node {
        supervisor.start(components::containerd(folder))?;
        supervisor.start(components::s3(folder))?;
    }
    let client = objects::client(folder).await?;
    let ready = || async {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        Ok(client.request_text(request).await.map(drop)?)
    };
    supervisor.until("apiserver", "the API server to be ready", STEP, ready).await?;
    if folder.level == Level::Node {
        node(folder, supervisor, &client).await?;
    }
    supervisor.all_run()
}

/// The cluster's own view of the file system. Where programs have fixed places (/run, /var/lib, /var/log) they find
/// empty ones, so that the machine's stay as they are.
fn mounts(folder: &Folder) -> Result<()> {
    run("mount", &["--make-rprivate", "/"])?;
    let cgroups = folder.text("cgroup");
    run("mount", &["--rbind", "/sys/fs/cgroup", &cgroups])?;
    run("mount", &["-t", "proc", "proc", "/proc"])?;
    run("mount", &["-t", "sysfs", "sysfs", "/sys"])?;
    run("mount", &["--rbind", &cgroups, "/sys/fs/cgroup"])?;
    for own in OWN {
        run("mount", &["-t", "tmpfs", "tmpfs", own])?;
    }
    let hosts = format!("127.0.0.1 localhost\n{NODE} {NODE_NAME}\n");
    for (name, text) in [("hosts", hosts.as_str()), ("resolv.conf", "nameserver 127.0.0.1\n")] {
        fs::write(folder.join(name), text)?;
        let place = format!("/etc/{name}");
        // Often a link to where the machine's own /run was. Without it, programs ask nobody, which is as good.
        if Path::new(&place).exists() {
            run("mount", &["--bind", &folder.text(name), &place])?;
        }
    }
    fs::create_dir_all("/var/lib/kubelet")?;
    run("mount", &["--bind", &folder.text("kubelet"), "/var/lib/kubelet"])?;
    run("mount", &["--make-rshared", "/var/lib/kubelet"])?;
    run("mount", &["-o", "loop", &folder.text("volumes.img"), &folder.text("volumes")])?;
    fs::create_dir_all(folder.join("volumes/driver"))?;
    run("hostname", &[NODE_NAME])?;
    for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
        let group = hierarchy?.path().join(CGROUP.trim_start_matches('/'));
        // Not a hierarchy but a link to one, or a place where none can be made: the kubelet says what it misses.
        let _ = fs::create_dir(group);
    }
    Ok(())
}

async fn node(folder: &Folder, supervisor: &mut Supervisor, client: &Client) -> Result<()> {
    let socket = folder.join("run/containerd.sock");
    let exists =
        || async { if socket.exists() { Ok(()) } else { bail!("there is no {}", socket.display()) } };
    supervisor.until("containerd", "containerd", STEP, exists).await?;
    import(folder, &busybox(folder)?)?;

    supervisor.start(components::controller_manager(folder))?;
    supervisor.start(components::scheduler(folder))?;
    let registration = Path::new(REGISTRATION);
    for dir in [registration, Path::new(DRIVER_SOCKET).parent().unwrap_or(registration)] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    supervisor.start(components::kubelet(folder))?;

    let objects = Objects::new(client.clone());
    for crd in custom_resources()? {
        let text = fs::read_to_string(&crd).with_context(|| format!("reading {}", crd.display()))?;
        objects.apply(&text).await.with_context(|| format!("applying {}", crd.display()))?;
    }
    objects.established(STEP).await?;
    objects.apply(include_str!("../config/storage.yaml")).await.context("applying config/storage.yaml")?;
    objects.apply(&metadata_service(folder)?).await.context("applying the SnapshotMetadataService")?;
    for component in components::storage(folder) {
        supervisor.start(component)?;
        if !Path::new(DRIVER_SOCKET).exists() {
            let exists =
                || async { if Path::new(DRIVER_SOCKET).exists() { Ok(()) } else { bail!("no socket") } };
            supervisor.until("csi-driver", "the driver's socket", STEP, exists).await?;
        }
    }

    for (component, port) in [("s3", S3_PORT), ("snapshot-metadata", METADATA_PORT)] {
        let listens = || async { Ok(TcpStream::connect((NODE, port)).await.map(drop)?) };
        supervisor.until(component, &format!("{component} to listen"), STEP, listens).await?;
    }

    let nodes: Api<Node> = Api::all(client.clone());
    let ready = || async {
        let node = nodes.get(NODE_NAME).await?;
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        match conditions.iter().find(|condition| condition.type_ == "Ready") {
            Some(condition) if condition.status == "True" => Ok(()),
            Some(condition) => bail!("{}", condition.message.as_deref().unwrap_or("not ready")),
            None => bail!("the node says nothing of itself"),
        }
    };
    supervisor.until("kubelet", "the node to be ready", STEP, ready).await?;
    let drivers: Api<CSINode> = Api::all(client.clone());
    let registered = || async {
        let node = drivers.get(NODE_NAME).await?;
        if node.spec.drivers.iter().any(|driver| driver.name == DRIVER) {
            Ok(())
        } else {
            bail!("not registered")
        }
    };
    supervisor.until("kubelet", "the driver to be registered", STEP, registered).await?;
    // Without it no pod is admitted.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let account = || async { Ok(accounts.get("default").await.map(drop)?) };
    supervisor.until("controller-manager", "the default service account", STEP, account).await
}

/// Definitions of the custom resources, beside the programs that serve them.
fn custom_resources() -> Result<Vec<std::path::PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = Vec::new();
    for folder in std::env::split_paths(&path).map(|programs| programs.join("crds")).filter(|f| f.is_dir()) {
        for file in fs::read_dir(folder)? {
            found.push(file?.path());
        }
    }
    found.sort();
    if found.is_empty() {
        bail!("no definitions of custom resources beside the programs: run tests/cluster/setup.sh");
    }
    Ok(found)
}

/// Says where the changed blocks of our driver's snapshots are to be asked for.
fn metadata_service(folder: &Folder) -> Result<String> {
    use base64::Engine as _;
    let ca = fs::read(folder.join("pki/ca.crt")).context("reading the CA")?;
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    Ok(format!(
        "apiVersion: cbt.storage.k8s.io/v1beta1\n\
         kind: SnapshotMetadataService\n\
         metadata: {{name: {DRIVER}}}\n\
         spec: {{address: \"{NODE}:{METADATA_PORT}\", audience: {DRIVER}, caCert: {ca}}}\n"
    ))
}

/// The image of the pods that tests write, and of every pod's sandbox, which has nothing to do but to wait.
fn busybox(folder: &Folder) -> Result<std::path::PathBuf> {
    let file = folder.join("busybox.tar");
    let mut image =
        Image::new("tradewind.test/busybox:1").entrypoint(&["/bin/busybox", "sleep", "2147483647"]);
    image = image.program(Path::new("/bin/busybox"), "/bin/busybox")?.folder("/tmp")?;
    for applet in run("/bin/busybox", &["--list"])?.lines().filter(|applet| *applet != "busybox") {
        image = image.link(&format!("/bin/{applet}"), "busybox")?;
    }
    image.write(&file)?;
    Ok(file)
}

/// Gives the node an image.
///
/// # Errors
/// When containerd does not take it.
pub(crate) fn import(folder: &Folder, archive: &Path) -> Result<()> {
    let socket = folder.text("run/containerd.sock");
    run(
        "ctr",
        &["--address", &socket, "--namespace", "k8s.io", "images", "import", &archive.display().to_string()],
    )
    .map(drop)
}
