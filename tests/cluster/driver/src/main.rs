//! A small CSI driver for tests: volumes are files on a file system with reflinks, snapshots are atomic copies of them,
//! changed blocks are found by comparing, and whatever a driver can do wrong it does on demand.
//!
//! Flags, faults and limits: `README.md` in this folder.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use futures_util::Stream;
use futures_util::stream::unfold;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::transport::Server;

use crate::blocks::BlockLength;
use crate::driver::{Driver, Services};
use crate::faults::Faults;
use crate::locks::Locks;
use crate::proto::csi::controller_server::ControllerServer;
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;
use crate::proto::csi::snapshot_metadata_server::SnapshotMetadataServer;
use crate::proto::registration::registration_server::RegistrationServer;
use crate::registration::Registrar;
use crate::state::State;

mod blocks;
mod capacity;
mod controller;
mod driver;
mod faults;
mod filesystem;
mod identity;
mod locks;
mod loops;
mod metadata;
mod moment;
mod mounts;
mod node;
mod paging;
mod program;
mod proto;
mod registration;
mod state;

/// How long calls that are under way at the end may still take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A small CSI driver for tests.
#[derive(Debug, Parser)]
#[command(name = "csi-driver", version)]
struct Args {
    /// Unix socket to serve CSI on
    #[arg(long, value_name = "PATH")]
    endpoint: PathBuf,
    /// The kubelet's plugins_registry: serve registration there
    #[arg(long, value_name = "DIR")]
    registration: Option<PathBuf>,
    /// Where volumes and snapshots are kept: on a file system with reflinks
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Name of the node
    #[arg(long, value_name = "NAME")]
    node: String,
    /// Name of the driver
    #[arg(long, value_name = "NAME", default_value = "csi.tradewind.test")]
    name: String,
    /// JSON file with faults, read anew at each call; need not exist
    #[arg(long, value_name = "FILE")]
    faults: Option<PathBuf>,
    /// How changed blocks are reported: fixed:N or variable
    #[arg(long, value_name = "KIND", default_value = "fixed:4096")]
    block_length: BlockLength,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(args));
    // A call that is still at work is not waited for without end; what it had frozen is thawed at the next start.
    runtime.shutdown_timeout(PATIENCE);
    result
}

async fn serve(args: Args) -> Result<()> {
    let state = State::open(&args.state)?;
    moment::thaw_all(&state)?;
    let endpoint = std::path::absolute(&args.endpoint)?;
    let registration = args.registration.map(|folder| registration::socket(&folder, &args.name));
    let (refused, mut refusal) = mpsc::channel(1);
    let registrar = Registrar { name: args.name.clone(), endpoint: endpoint.clone(), refused };
    let driver = Services(Arc::new(Driver {
        name: args.name,
        node: args.node,
        state,
        faults: Faults::new(args.faults),
        locks: Locks::default(),
        block_length: args.block_length,
    }));

    let (stop, stopped) = watch::channel(false);
    let wait = |mut stopped: watch::Receiver<bool>| async move {
        // The sender lives longer than the servers.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let csi = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()))
        .add_service(SnapshotMetadataServer::new(driver))
        .serve_with_incoming_shutdown(connections(&endpoint)?, wait(stopped.clone()));
    let mut csi = tokio::spawn(csi);
    // Only now, with CSI being served, may the kubelet find it.
    let register = match &registration {
        None => None,
        Some(socket) => {
            let server = Server::builder().add_service(RegistrationServer::new(registrar));
            Some(tokio::spawn(server.serve_with_incoming_shutdown(connections(socket)?, wait(stopped))))
        }
    };
    eprintln!("csi-driver: serving on {}", endpoint.display());

    let (mut terminated, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let result = tokio::select! {
        _ = terminated.recv() => Ok(()),
        _ = interrupted.recv() => Ok(()),
        ended = &mut csi => match ended? {
            Ok(()) => bail!("the server ended by itself"),
            Err(error) => Err(error).context("serving CSI"),
        },
        Some(said) = refusal.recv() => bail!("the kubelet refused the registration: {said}"),
    };
    eprintln!("csi-driver: ending");
    let _ = stop.send(true);
    let servers = async {
        let _ = csi.await;
        if let Some(register) = register {
            let _ = register.await;
        }
    };
    if tokio::time::timeout(PATIENCE, servers).await.is_err() {
        eprintln!("csi-driver: ending without the calls that are still under way");
    }
    for socket in [Some(&endpoint), registration.as_ref()].into_iter().flatten() {
        state::remove(socket)?;
    }
    result
}

/// Listens at a path, instead of whoever did before.
fn connections(path: &Path) -> Result<impl Stream<Item = io::Result<UnixStream>> + use<>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => state::remove(path)?,
        Ok(_) => bail!("{} exists and is no socket: remove it, or choose another path", path.display()),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    Ok(unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    }))
}
