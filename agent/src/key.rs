//! The key of the repositories, when it was generated here: losing the cluster must not lose the backups, so this warns
//! until somebody has said that there is a copy elsewhere.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::core::PartialObjectMeta;
use kube::{Api, Resource as _, ResourceExt as _};
use kube_runtime::events::{Event, EventType};

use crate::agent::Agent;

/// On a Secret whose key was generated here: until somebody says `true`, nobody is known to have a copy of it.
pub(crate) const EXPORTED: &str = "tradewind-backup.github.io/exported";
/// How often to look. Events are kept for an hour by default.
const OFTEN: Duration = Duration::from_secs(60);
/// How often to warn, in looks.
const WARN: u32 = 30;

/// Warns again and again, while there is a reason.
pub(crate) async fn warn(agent: Arc<Agent>) {
    let mut looks = 0;
    loop {
        let secrets: Api<Secret> = agent.ours();
        match secrets.get_metadata_opt(&agent.options.key_secret).await {
            Ok(found) => {
                let reason = found.as_ref().filter(|secret| is_only_here(secret));
                agent.metrics.key_exported(reason.is_none());
                if let Some(secret) = reason.filter(|_| agent.leads()) {
                    if looks % WARN == 0 {
                        tell(&agent, secret).await;
                    }
                    looks += 1;
                }
            }
            Err(error) => tracing::debug!("looking at the key's Secret: {error}"),
        }
        tokio::time::sleep(OFTEN).await;
    }
}

fn is_only_here(secret: &PartialObjectMeta<Secret>) -> bool {
    secret.annotations().get(EXPORTED).is_some_and(|said| said != "true")
}

async fn tell(agent: &Agent, secret: &PartialObjectMeta<Secret>) {
    let (namespace, name) = (&agent.options.namespace, &agent.options.key_secret);
    let note = format!(
        "the key of all repositories is in this cluster only: keep a copy of Secret {namespace}/{name} elsewhere, then annotate it with {EXPORTED}=true"
    );
    tracing::warn!("{note}");
    let event = Event {
        type_: EventType::Warning,
        reason: "KeyNotExported".to_owned(),
        note: Some(note),
        action: "Keep".to_owned(),
        secondary: None,
    };
    let mut about = secret.object_ref(&());
    about.kind = Some("Secret".to_owned());
    about.api_version = Some("v1".to_owned());
    if let Err(error) = agent.recorder.publish(&event, &about).await {
        tracing::debug!("an event was not written: {error}");
    }
}
