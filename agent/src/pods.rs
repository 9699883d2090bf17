//! The pod that holds a job's volume, and the token by which the agent knows it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, HostPathVolumeSource, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeClaimVolumeSource, Pod, PodSecurityContext, PodSpec, PodStatus, ResourceRequirements,
    SeccompProfile, Secret, SecretVolumeSource, SecurityContext, Toleration, Volume, VolumeDevice,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::{Api, Resource};
use serde_json::json;
use tradewind_k8s::node_agent::Config;

use crate::agent::Agent;
use crate::handover::TOKEN;
use crate::objects::{self, HOLDER, ROLE, Uid, made_for};
use crate::reconcile::{Going, Move};

/// Where the volume is in the pod.
const PLACE: &str = "/volume";
/// Where the token is in the pod.
const TOKEN_FOLDER: &str = "/token";
/// Where the agent's socket is in the pod.
const SOCKET_FOLDER: &str = "/agent";
/// The key of the token's Secret.
const TOKEN_KEY: &str = "token";
/// Why a container waits in vain: nobody will bring the image.
const HOPELESS: [&str; 5] = [
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "RunContainerError",
];

/// How a volume is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Filesystem,
    Block,
}

impl Mode {
    /// What a claim says; nothing is a file system.
    pub(crate) fn of(text: &str) -> Self {
        if text == "Block" { Self::Block } else { Self::Filesystem }
    }
}

/// What is special about a job's pod.
#[derive(Debug, Clone)]
pub(crate) struct Holding<'a> {
    pub(crate) mode: Mode,
    /// The volume shall be written.
    pub(crate) write: bool,
    /// The storage class by which nodes are chosen.
    pub(crate) class: &'a str,
    /// The only node where it may be.
    pub(crate) node: Option<&'a str>,
}

/// What a job's pod is like, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Not there, or ended: why.
    Gone(String),
    /// It will not start: why.
    Hopeless(String),
    /// It is on its way: what it waits for.
    Pending(String),
    /// It runs on this node.
    Running(String),
}

/// What is to be said about a pod.
pub(crate) fn holder(pod: Option<&Pod>) -> Holder {
    let Some(pod) = pod else {
        return Holder::Gone("the pod that held the volume is not there any more".into());
    };
    let nothing = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&nothing);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let containers = status.container_statuses.iter().flatten();
    if pod.metadata.deletion_timestamp.is_some() {
        return Holder::Gone("the pod that held the volume was deleted".into());
    }
    match status.phase.as_deref() {
        Some("Running") => Holder::Running(node.unwrap_or_default()),
        Some("Failed" | "Succeeded") => {
            let said = containers
                .filter_map(|c| c.state.as_ref()?.terminated.as_ref())
                .map(|t| t.message.clone().unwrap_or_else(|| format!("exit code {}", t.exit_code)))
                .chain(status.message.clone())
                .chain(status.reason.clone())
                .next();
            Holder::Gone(format!(
                "the pod that held the volume has ended: {}",
                said.unwrap_or_default().trim()
            ))
        }
        _ => {
            let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()).find_map(|w| {
                let reason = w.reason.clone()?;
                Some((
                    HOPELESS.contains(&reason.as_str()),
                    format!("{reason}: {}", w.message.clone().unwrap_or_default()),
                ))
            });
            if let Some((true, why)) = waiting {
                return Holder::Hopeless(format!("the pod that should hold the volume cannot start: {why}"));
            }
            let condition =
                status.conditions.iter().flatten().find(|c| c.status == "False" && c.message.is_some());
            let why = condition.and_then(|c| c.message.clone()).or(waiting.map(|(_, why)| why));
            Holder::Pending(format!(
                "the pod that holds the volume to start: {}",
                why.unwrap_or_else(|| "it was made".into())
            ))
        }
    }
}

/// Makes the token and the pod of a job, where they are missing. The claim has the job's name.
///
/// # Errors
/// The API server's.
pub(crate) async fn make<K: Resource<DynamicType = ()>>(
    agent: &Agent,
    job: &K,
    uid: &Uid,
    holding: &Holding<'_>,
) -> Result<(), kube::Error> {
    let secrets: Api<Secret> = agent.ours();
    if secrets.get_metadata_opt(&uid.name()).await?.is_none() {
        let mut token = [0; TOKEN];
        // It never fails on Linux; were the token all zeros, nobody could know it either, for it is never used.
        if getrandom::fill(&mut token).is_err() {
            return Ok(());
        }
        let secret = Secret {
            metadata: made_for(job, uid),
            immutable: Some(true),
            string_data: Some([(TOKEN_KEY.to_owned(), hex::encode(token))].into()),
            ..Secret::default()
        };
        objects::create(&secrets, &secret).await?;
    }
    objects::create(&agent.ours(), &pod(agent, job, uid, holding)).await
}

/// The token of a job, if it has one.
pub(crate) async fn token(agent: &Agent, uid: &Uid) -> Option<[u8; TOKEN]> {
    let secrets: Api<Secret> = agent.ours();
    let secret =
        secrets.get_opt(&uid.name()).await.inspect_err(|e| tracing::warn!(%uid, "no token: {e}")).ok()??;
    let text = secret.data?.remove(TOKEN_KEY)?;
    let mut token = [0; TOKEN];
    hex::decode_to_slice(&text.0, &mut token).ok()?;
    Some(token)
}

/// Removes the pod, the token and the claim of a job, and the claim's volume where `volume` says so. True once they have
/// gone.
pub(crate) async fn removed(agent: &Agent, uid: &Uid, volume: bool) -> Result<bool, kube::Error> {
    let name = uid.name();
    let (pods, secrets): (Api<Pod>, Api<Secret>) = (agent.ours(), agent.ours());
    let pod = objects::delete(&pods, &name).await?;
    let secret = objects::delete(&secrets, &name).await?;
    if !(pod && secret) {
        return Ok(false);
    }
    let claims: Api<PersistentVolumeClaim> = agent.ours();
    let Some(claim) = claims.get_opt(&name).await? else { return Ok(true) };
    if volume
        && let Some(volume) = claim.spec.and_then(|spec| spec.volume_name).filter(|name| !name.is_empty())
    {
        // Where the class keeps volumes, this one would stay for ever.
        let volumes: Api<PersistentVolume> = agent.all();
        let deleted = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
        match objects::merge(&volumes, &volume, &deleted).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            done => drop(done?),
        }
    }
    objects::delete(&claims, &name).await
}

/// Makes the pod of a job that has its claim, and says how far that is.
pub(crate) async fn exposed<M: Move>(
    agent: &Agent,
    job: &M,
    uid: &Uid,
    holding: &Holding<'_>,
) -> Result<Going, kube::Error> {
    let pods: Api<Pod> = agent.ours();
    let Some(pod) = pods.get_opt(&uid.name()).await? else {
        make(agent, job, uid, holding).await?;
        return Ok(Going::On("the pod that holds the volume to start".to_owned()));
    };
    match holder(Some(&pod)) {
        Holder::Gone(why) | Holder::Hopeless(why) => Ok(Going::Nowhere(why)),
        Holder::Pending(why) => Ok(Going::On(why)),
        Holder::Running(node) => Ok(Going::On(format!("the agent of node {node} to take the volume"))),
    }
}

fn pod<K: Resource<DynamicType = ()>>(agent: &Agent, job: &K, uid: &Uid, holding: &Holding<'_>) -> Pod {
    let config = &agent.config;
    let mut metadata = made_for(job, uid);
    let labels = metadata.labels.get_or_insert_default();
    labels.extend(config.pod_labels.clone());
    labels.insert(ROLE.to_owned(), HOLDER.to_owned());
    labels.insert(objects::JOB.to_owned(), uid.to_string());
    metadata.annotations = Some(config.pod_annotations.clone()).filter(|all| !all.is_empty());
    let read_only = |name: &str, at: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: at.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut mounts = vec![read_only("token", TOKEN_FOLDER), read_only("agent", SOCKET_FOLDER)];
    let mut devices = Vec::new();
    match holding.mode {
        Mode::Block => {
            devices.push(VolumeDevice { name: "volume".into(), device_path: PLACE.into() });
        }
        Mode::Filesystem => mounts.push(VolumeMount {
            name: "volume".into(),
            mount_path: PLACE.into(),
            read_only: Some(!holding.write),
            ..VolumeMount::default()
        }),
    }
    let mut args = vec![
        "hold".to_owned(),
        format!("--job={uid}"),
        format!("--volume={PLACE}"),
        format!("--token-file={TOKEN_FOLDER}/{TOKEN_KEY}"),
        format!("--socket-directory={SOCKET_FOLDER}"),
    ];
    args.extend(holding.write.then(|| "--write".to_owned()));
    let container = Container {
        name: "hold".into(),
        image: Some(agent.own.image.clone()),
        image_pull_policy: agent.own.image_pull_policy.clone(),
        args: Some(args),
        volume_mounts: Some(mounts),
        volume_devices: Some(devices),
        resources: Some(resources(config)),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    };
    let volume = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    Pod {
        metadata,
        spec: Some(PodSpec {
            containers: vec![container],
            restart_policy: Some("Never".into()),
            termination_grace_period_seconds: Some(0),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            image_pull_secrets: agent.own.image_pull_secrets.clone(),
            tolerations: Some(tolerations(agent)),
            affinity: affinity(agent, holding),
            priority_class_name: Some(config.priority_class_name.clone()).filter(|name| !name.is_empty()),
            security_context: Some(PodSecurityContext {
                // A device can be opened by its owner only, who is root.
                run_as_user: Some(0),
                run_as_group: Some(0),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".into(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            volumes: Some(vec![
                Volume {
                    persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                        claim_name: uid.name(),
                        read_only: None,
                    }),
                    ..volume("volume")
                },
                Volume {
                    secret: Some(SecretVolumeSource {
                        secret_name: Some(uid.name()),
                        default_mode: Some(0o400),
                        ..SecretVolumeSource::default()
                    }),
                    ..volume("token")
                },
                Volume {
                    host_path: Some(HostPathVolumeSource {
                        path: agent.options.socket_host_path.display().to_string(),
                        // The agent has made it: a node without one has nobody to hand anything to.
                        type_: Some("Directory".into()),
                    }),
                    ..volume("agent")
                },
            ]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn resources(config: &Config) -> ResourceRequirements {
    let of = |cpu: &str, memory: &str, storage: &str| {
        let named = [("cpu", cpu), ("memory", memory), ("ephemeral-storage", storage)];
        let set: BTreeMap<String, Quantity> = named
            .into_iter()
            .filter(|(_, amount)| !amount.is_empty() && *amount != "0")
            .map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())))
            .collect();
        Some(set).filter(|set| !set.is_empty())
    };
    let p = &config.pod_resources;
    ResourceRequirements {
        requests: of(&p.cpu_request, &p.memory_request, &p.ephemeral_storage_request),
        limits: of(&p.cpu_limit, &p.memory_limit, &p.ephemeral_storage_limit),
        claims: None,
    }
}

/// Wherever an agent is, its pods may be.
fn tolerations(agent: &Agent) -> Vec<Toleration> {
    // What every pod of a DaemonSet tolerates by itself would keep this one on a node that is being drained.
    let by_itself =
        |t: &&Toleration| t.key.as_deref().is_some_and(|key| key.starts_with("node.kubernetes.io/"));
    agent.own.tolerations.iter().filter(|t| !by_itself(t)).cloned().collect()
}

fn affinity(agent: &Agent, holding: &Holding<'_>) -> Option<Affinity> {
    let mut terms = vec![requirement("kubernetes.io/os", "In", vec!["linux".to_owned()])];
    if let Some(selector) = agent.config.nodes(holding.class) {
        terms.extend(requirements(selector));
    }
    let match_fields =
        holding.node.map(|node| vec![requirement("metadata.name", "In", vec![node.to_owned()])]);
    let required = NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm { match_expressions: Some(terms), match_fields }],
    };
    Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(required),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    })
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> NodeSelectorRequirement {
    NodeSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values: Some(values) }
}

fn requirements(selector: &LabelSelector) -> impl Iterator<Item = NodeSelectorRequirement> {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    let plain = labels.map(|(key, value)| requirement(key, "In", vec![value.clone()]));
    let other = expressions.map(|LabelSelectorRequirement { key, operator, values }| {
        NodeSelectorRequirement { key: key.clone(), operator: operator.clone(), values: values.clone() }
    });
    plain.chain(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: &serde_json::Value) -> Holder {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [], "nodeName": "one"}, "status": status});
        holder(Some(&serde_json::from_value(pod).unwrap()))
    }

    #[test]
    fn a_pod_says_why_it_does_not_hold_its_volume() {
        assert_eq!(seen(&json!({"phase": "Running"})), Holder::Running("one".into()));
        assert!(matches!(holder(None), Holder::Gone(_)));
        let waiting = |reason: &str| {
            let state = json!({"waiting": {"reason": reason, "message": "no image"}});
            json!({"phase": "Pending", "containerStatuses": [{
                "name": "hold", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state}]})
        };
        assert!(
            matches!(seen(&waiting("ErrImageNeverPull")), Holder::Hopeless(why) if why.contains("no image"))
        );
        assert!(
            matches!(seen(&waiting("ContainerCreating")), Holder::Pending(why) if why.contains("no image"))
        );
        let unschedulable = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]});
        assert!(matches!(seen(&unschedulable), Holder::Pending(why) if why.contains("0/1 nodes")));
        let ended = json!({"phase": "Failed", "containerStatuses": [{
            "name": "hold", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": {"terminated": {"exitCode": 2, "message": "cannot open /volume"}}}]});
        assert!(matches!(seen(&ended), Holder::Gone(why) if why.ends_with("cannot open /volume")));
        let evicted =
            json!({"phase": "Failed", "reason": "Evicted", "message": "the node was low on memory"});
        assert!(matches!(seen(&evicted), Holder::Gone(why) if why.ends_with("low on memory")));
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert!(matches!(holder(Some(&serde_json::from_value(going).unwrap())), Holder::Gone(_)));
    }
}
