//! The agent as a process: starts everything, and runs until it is told to end.

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod};
use kube::core::DeserializeGuard;
use kube::{Api, Client, Resource as _, ResourceExt as _};
use kube_runtime::events::{Recorder, Reporter};
use kube_runtime::reflector::{ObjectRef, Store, store};
use kube_runtime::{Controller, WatchStreamExt as _, reflector, watcher};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tradewind_k8s::node_agent::Config;
use tradewind_k8s::snapshot::VolumeSnapshot;
use tradewind_k8s::velero::{DataDownload, DataUpload};

use crate::agent::{Agent, Own};
use crate::budget::Budget;
use crate::handover::{Handover, TOKEN};
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::objects::{JOB, ROLE, Uid};
use crate::reconcile::{Move, again, reconcile};
use crate::repository::{Keys, private_folder};
use crate::{Error, Mode, Options, forget, key, pods};

/// The DaemonSet of Velero's own agent.
const VELEROS: &str = "node-agent";
/// How many jobs are looked at at the same time.
const AT_ONCE: u16 = 16;

/// Runs the agent of a node until `end` is ready.
///
/// # Errors
/// When there is no cluster, it refuses what the agent needs to start, or a socket cannot be made. Later errors are
/// reported, and tried again.
pub async fn run(options: Options, end: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
    let client = Client::try_default().await.map_err(|e| Error::NoCluster(e.to_string()))?;
    let listen = options.listen;
    let listener =
        TcpListener::bind(listen).await.map_err(|e| Error::Io(format!("cannot listen on {listen}"), e))?;
    let (woken, wake) = mpsc::unbounded_channel();
    let private =
        private_folder().map_err(|e| Error::Io("cannot make a folder for secrets".to_owned(), e))?;
    let agent = Arc::new(start(client, options, woken, private.path()).await?);
    let folder = agent.options.socket_directory.clone();
    let listens = agent.handover.clone().listen(&folder, Waiting(Arc::clone(&agent)));
    let (uploads, downloads) = share(wake);
    tokio::select! {
        done = listens => {
            let why = done.err().unwrap_or_else(|| std::io::Error::other("it ended"));
            Err(Error::Io(format!("the socket in {}", folder.display()), why))
        }
        done = serve(listener, Arc::clone(&agent)) => Err(Error::Io("metrics and health".to_owned(), done)),
        () = control::<DataUpload>(&agent, uploads) => Ok(()),
        () = control::<DataDownload>(&agent, downloads) => Ok(()),
        () = forget::run(Arc::clone(&agent)) => Ok(()),
        () = key::warn(Arc::clone(&agent)) => Ok(()),
        () = end => Ok(()),
    }
}

async fn start(
    client: Client,
    options: Options,
    woken: mpsc::UnboundedSender<Uid>,
    private: &std::path::Path,
) -> Result<Agent, Error> {
    let failed = |what: String| move |e| Error::Cluster(what, e);
    if options.mode == Mode::Standalone {
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &options.namespace);
        let found = sets.get_metadata_opt(VELEROS).await;
        if found.map_err(failed(format!("looking for DaemonSet {VELEROS}")))?.is_some() {
            return Err(Error::Refused(format!(
                "Velero's own agent is here (DaemonSet {}/{VELEROS}): remove it, or use mode velero-mover",
                options.namespace
            )));
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), &options.namespace);
    let pod = pods.get(&options.pod).await.map_err(failed(format!("reading pod {}", options.pod)))?;
    let own = Own::of(&pod).ok_or_else(|| Error::Refused(format!("pod {} has no container", options.pod)))?;
    let config = config(&client, &options).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(&options.node).await.map_err(failed(format!("reading node {}", options.node)))?;
    let mut void = Vec::new();
    let slots = config.parallel(node.labels(), &mut void);
    for rule in void {
        tracing::warn!(
            "loadConcurrency.perNodeConfig[{rule}] says nothing: a number above 0 and a selector are needed"
        );
    }
    tracing::info!(node = options.node, slots, "tradewind agent");
    let budget = Budget::new(options.limits.clone(), slots);
    if let Some(name) = options.config.clone() {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
        tokio::spawn(budget.clone().follow(maps, name));
    }
    let keys = Keys {
        client: client.clone(),
        namespace: options.namespace.clone(),
        credentials: options.credentials_secret.clone(),
        key: options.key_secret.clone(),
        private: private.to_owned(),
    };
    let pods = reflect(&pods).await;
    let metrics = Arc::new(Metrics::new(&options.node));
    let reporter = Reporter { controller: "tradewind-agent".to_owned(), instance: Some(options.pod.clone()) };
    Ok(Agent {
        recorder: Recorder::new(client.clone(), reporter),
        jobs: Jobs::new(budget.clone(), Arc::clone(&metrics), woken),
        handover: Handover::default(),
        metrics,
        client,
        options,
        own,
        config,
        keys,
        budget,
        pods,
    })
}

/// Velero's configuration of node agents; what it says and is not known is said.
async fn config(client: &Client, options: &Options) -> Result<Config, Error> {
    let Some(name) = &options.node_agent_config else { return Ok(Config::default()) };
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
    let map = maps.get(name).await.map_err(|e| Error::Cluster(format!("reading ConfigMap {name}"), e))?;
    let config = Config::read(&map.data.unwrap_or_default())
        .map_err(|e| Error::Refused(format!("ConfigMap {}/{name}: {e}", options.namespace)))?;
    for setting in config.unknown() {
        tracing::warn!("ConfigMap {name}: there is no setting {setting}");
    }
    for (class, volume) in &config.backup_pvc {
        if volume.spc_no_relabeling || !volume.secret_names.is_empty() || !volume.config_map_names.is_empty()
        {
            tracing::warn!(
                "ConfigMap {name}: backupPVC.{class}: spcNoRelabeling, secretNames and configMapNames are not supported"
            );
        }
    }
    if config.cache_pvc.is_some() {
        tracing::warn!("ConfigMap {name}: cachePVC is not used: restores need no cache of their size");
    }
    Ok(config)
}

/// Keeps the pods of this installation in memory.
async fn reflect(pods: &Api<Pod>) -> Store<Pod> {
    let (reader, writer) = store();
    let ours = watcher::Config::default().labels(ROLE);
    let stream = reflector(writer, watcher(pods.clone(), ours)).default_backoff().touched_objects();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                tracing::warn!("watching pods: {error}");
            }
        }
    });
    // The writer lives as long as the task.
    let _ = reader.wait_until_ready().await;
    reader
}

/// Tells both controllers of every job that should be looked at.
fn share(mut wake: mpsc::UnboundedReceiver<Uid>) -> (broadcast::Receiver<Uid>, broadcast::Receiver<Uid>) {
    let (sender, uploads) = broadcast::channel(1024);
    let downloads = sender.subscribe();
    tokio::spawn(async move {
        while let Some(job) = wake.recv().await {
            if sender.send(job).is_err() {
                return;
            }
        }
    });
    (uploads, downloads)
}

/// Looks at every job of a kind whenever something about it changes.
async fn control<M: Move>(agent: &Arc<Agent>, wake: broadcast::Receiver<Uid>) {
    let all = watcher::Config::default();
    let ours = || watcher::Config::default().labels(JOB);
    let jobs: Api<DeserializeGuard<M>> = agent.ours();
    let controller = Controller::new(jobs, all)
        .owns(agent.ours::<Pod>(), ours())
        .owns(agent.ours::<PersistentVolumeClaim>(), ours());
    let known = controller.store();
    let controller = controller
        .watches(agent.ours::<VolumeSnapshot>(), ours(), {
            let known = known.clone();
            move |snapshot: VolumeSnapshot| find(&known, snapshot.labels().get(JOB).map(String::as_str))
        })
        .reconcile_on(named(wake, known))
        .with_config(kube::runtime::controller::Config::default().concurrency(AT_ONCE));
    controller.run(reconcile::<M>, again::<M>, Arc::clone(agent)).for_each(|_| async {}).await;
}

fn find<M: Move>(
    known: &Store<DeserializeGuard<M>>,
    uid: Option<&str>,
) -> Option<ObjectRef<DeserializeGuard<M>>> {
    let uid = uid?;
    known.find(|job| job.meta().uid.as_deref() == Some(uid)).map(|job| ObjectRef::from_obj(&*job))
}

fn named<M: Move>(
    wake: broadcast::Receiver<Uid>,
    known: Store<DeserializeGuard<M>>,
) -> impl Stream<Item = ObjectRef<DeserializeGuard<M>>> + Send + 'static {
    futures_util::stream::unfold((wake, known), |(mut wake, known)| async move {
        loop {
            match wake.recv().await {
                Ok(job) => {
                    if let Some(found) = find(&known, Some(job.as_str())) {
                        return Some((found, (wake, known)));
                    }
                }
                // Jobs are looked at now and then anyway.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    })
}

/// What the handover asks about jobs.
#[derive(Clone)]
struct Waiting(Arc<Agent>);

impl crate::handover::Jobs for Waiting {
    async fn token(&self, job: &Uid) -> Option<[u8; TOKEN]> {
        pods::token(&self.0, job).await
    }

    fn changed(&self, job: &Uid) {
        self.0.jobs.wake(job);
    }
}

/// Health, for the kubelet, and figures, for Prometheus.
async fn serve(listener: TcpListener, agent: Arc<Agent>) -> std::io::Error {
    let fine = || async { (StatusCode::OK, "ok\n") };
    let figures = move || async move {
        let kind = [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        match agent.metrics.text() {
            Ok(text) => (StatusCode::OK, kind, text),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, kind, error.to_string()),
        }
    };
    let router =
        Router::new().route("/livez", get(fine)).route("/readyz", get(fine)).route("/metrics", get(figures));
    match axum::serve(listener, router).await {
        Ok(()) => std::io::Error::other("it ended"),
        Err(error) => error,
    }
}
