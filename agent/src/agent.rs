//! What every part of the agent knows: the cluster, itself, its configuration, and the jobs of this node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{LocalObjectReference, Pod, Toleration};
use kube::{Api, Client, Resource};
use kube_runtime::events::Recorder;
use kube_runtime::reflector::Store;
use tradewind_k8s::node_agent::Config;

use crate::budget::Budget;
use crate::handover::Handover;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::objects::{AGENT, HOLDER, ROLE, Uid};
use crate::repository::Keys;
use crate::{Mode, Options};

/// Who moves the data, as backups say it.
const DATA_MOVER: &str = "tradewind";
/// Names of Velero's own data mover; the last since 1.19.
const BUILT_IN: [&str; 3] = ["", "velero", "velero-fs"];

/// What the agent's own pod is like: the pods that it makes take after it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Own {
    pub(crate) image: String,
    pub(crate) image_pull_policy: Option<String>,
    pub(crate) image_pull_secrets: Option<Vec<LocalObjectReference>>,
    pub(crate) tolerations: Vec<Toleration>,
}

impl Own {
    /// What a pod says of itself.
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let container = spec.containers.iter().find(|c| c.name == "agent").or(spec.containers.first())?;
        Some(Self {
            image: container.image.clone()?,
            image_pull_policy: container.image_pull_policy.clone(),
            image_pull_secrets: spec.image_pull_secrets.clone(),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
        })
    }
}

/// The agent of a node.
pub(crate) struct Agent {
    pub(crate) client: Client,
    pub(crate) options: Options,
    pub(crate) own: Own,
    /// Velero's configuration of node agents.
    pub(crate) config: Config,
    pub(crate) handover: Handover,
    pub(crate) jobs: Jobs,
    pub(crate) metrics: Arc<Metrics>,
    /// Tells what happened to a job, where `kubectl describe` shows it.
    pub(crate) recorder: Recorder,
    pub(crate) keys: Keys,
    /// What its jobs may spend.
    pub(crate) budget: Budget,
    /// The pods of this installation: agents and holders.
    pub(crate) pods: Store<Pod>,
}

impl Agent {
    /// Objects in the namespace of this installation.
    pub(crate) fn ours<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.options.namespace)
    }

    /// Objects in another namespace.
    pub(crate) fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Objects that belong to no namespace.
    pub(crate) fn all<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>,
    {
        Api::all(self.client.clone())
    }

    /// The pod that holds a job's volume.
    pub(crate) fn holder(&self, job: &Uid) -> Option<Arc<Pod>> {
        let name = job.name();
        self.pods.find(|pod| pod.metadata.name.as_deref() == Some(&name) && has_role(pod, HOLDER))
    }

    /// True when a job with this data mover is this agent's kind.
    pub(crate) fn serves(&self, data_mover: &str) -> bool {
        data_mover == DATA_MOVER || (self.options.mode == Mode::Standalone && BUILT_IN.contains(&data_mover))
    }

    /// True when a node has an agent that could do its work.
    pub(crate) fn has_agent(&self, node: &str) -> bool {
        let is_there = |pod: &Pod| {
            has_role(pod, AGENT)
                && pod.metadata.deletion_timestamp.is_none()
                && pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
        };
        node == self.options.node || self.pods.find(is_there).is_some()
    }

    /// True for one agent of the installation: the one on the node whose name comes first. Two may think so for a while.
    pub(crate) fn leads(&self) -> bool {
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let agents = self.pods.state();
        let others = agents.iter().filter(|pod| has_role(pod, AGENT) && is_ready(pod));
        others.filter_map(|pod| node(pod)).all(|other| self.options.node <= other)
    }

    /// How long a volume may take.
    pub(crate) fn prepare_timeout(&self) -> Duration {
        self.options.prepare_timeout
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_role(pod: &Pod, role: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(ROLE)).is_some_and(|found| found == role)
}
