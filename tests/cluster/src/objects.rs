//! Kubernetes objects of any kind: applied from YAML, waited for, deleted.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::TypeMeta;
use kube::discovery::{ApiCapabilities, Scope, pinned_kind};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, Config, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::folder::Folder;

/// A client of the cluster in `folder`, as its administrator. Works inside of its network only.
///
/// # Errors
/// When the cluster has no certificates yet.
pub async fn client(folder: &Folder) -> Result<Client> {
    let file = folder.join("pki/admin.kubeconfig");
    let kubeconfig = Kubeconfig::read_from(&file).with_context(|| format!("reading {}", file.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Objects by their YAML, whatever their kind.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    kinds: Arc<Mutex<HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>>>,
}

impl Objects {
    /// Those of the cluster that `client` knows.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, kinds: Arc::default() }
    }

    /// Creates or changes every object of `yaml` (documents separated by `---`) by server-side apply.
    ///
    /// # Errors
    /// When it is no YAML, or the API server refuses an object: which, and why.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let owner = PatchParams::apply("tradewind-tests").force();
        for value in parse(yaml)? {
            let object: DynamicObject = serde_json::from_value(value.clone()).context("this is no object")?;
            let api = self.api(&object).await?;
            let name = object.name_any();
            api.patch(&name, &owner, &Patch::Apply(&value))
                .await
                .with_context(|| format!("applying {}", of(&object)))?;
        }
        Ok(())
    }

    /// Deletes every object of `yaml` that is there. Does not wait until it is gone.
    ///
    /// # Errors
    /// As [`Objects::apply`].
    pub async fn delete(&self, yaml: &str) -> Result<()> {
        for value in parse(yaml)? {
            let object: DynamicObject = serde_json::from_value(value).context("this is no object")?;
            let api = self.api(&object).await?;
            match api.delete(&object.name_any(), &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                done => drop(done.with_context(|| format!("deleting {}", of(&object)))?),
            }
        }
        Ok(())
    }

    /// Waits until every definition of a custom resource is served.
    ///
    /// # Errors
    /// After `limit`: which is not.
    pub async fn established(&self, limit: Duration) -> Result<()> {
        let all: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for crd in all.list(&ListParams::default()).await? {
            let served = kube::runtime::conditions::is_crd_established();
            wait(&all, &crd.name_any(), "to be established", limit, served).await?;
        }
        Ok(())
    }

    async fn api(&self, object: &DynamicObject) -> Result<Api<DynamicObject>> {
        let types = object.types.as_ref().with_context(|| format!("{} has no kind", object.name_any()))?;
        let (resource, capabilities) = self.kind(types).await?;
        Ok(match (&capabilities.scope, object.namespace()) {
            (Scope::Namespaced, Some(namespace)) => {
                Api::namespaced_with(self.client.clone(), &namespace, &resource)
            }
            (Scope::Namespaced, None) => bail!("{} has no namespace", of(object)),
            (Scope::Cluster, _) => Api::all_with(self.client.clone(), &resource),
        })
    }

    async fn kind(&self, types: &TypeMeta) -> Result<(ApiResource, ApiCapabilities)> {
        let kind = GroupVersionKind::try_from(types.clone())?;
        let known = |kinds: &HashMap<_, _>| kinds.get(&kind).cloned();
        if let Some(found) = known(&self.kinds.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        // A definition that was applied a moment ago is served a moment later.
        let end = Instant::now() + Duration::from_secs(20);
        let found = loop {
            match pinned_kind(&self.client, &kind).await {
                Ok(found) => break found,
                Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(e) => {
                    return Err(e).with_context(|| {
                        format!("the cluster serves no {} {}", types.api_version, types.kind)
                    });
                }
            }
        };
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, found.clone());
        Ok(found)
    }
}

/// The objects of a YAML text: its documents, and the items of those that are lists. Empty documents are none.
fn parse(yaml: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("parsing YAML")?;
    let mut objects = Vec::new();
    for mut document in documents.into_iter().filter(|document| !document.is_null()) {
        if document["kind"] == "List"
            && let Some(items) = document["items"].as_array_mut()
        {
            objects.append(items);
        } else {
            objects.push(document);
        }
    }
    Ok(objects)
}

/// "Kind namespace/name".
fn of(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    let namespace = object.namespace().map(|namespace| format!("{namespace}/")).unwrap_or_default();
    format!("{kind} {namespace}{}", object.name_any())
}

/// Waits until the object `name` meets `condition`, and returns it (`None` where the condition was that it is gone).
///
/// # Errors
/// After `limit`: what was waited for, and the object's status then.
pub async fn wait<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    condition: impl Condition<K>,
) -> Result<Option<K>>
where
    K: Clone + Debug + Send + DeserializeOwned + serde::Serialize + Resource<DynamicType: Default> + 'static,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    match tokio::time::timeout(limit, await_condition(api.clone(), name, condition)).await {
        Ok(met) => met.with_context(|| format!("watching {kind} {name}")),
        Err(_) => {
            let status = match api.get_opt(name).await? {
                Some(object) => serde_json::to_value(object)?
                    .get("status")
                    .map_or("has no status".to_owned(), |s| format!("has the status {s}")),
                None => "is not there".to_owned(),
            };
            bail!("waited {} s for {kind} {name} {what}: it {status}", limit.as_secs())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_an_object_and_every_item_of_a_list() {
        let found =
            parse("---\n# nothing\n---\nkind: A\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n").unwrap();
        let kinds: Vec<&str> = found.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert!(parse("a: [").is_err());
    }
}
