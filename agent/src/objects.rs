//! Names, labels and marks of what the agent makes in a cluster; and the small things that it does to any object.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// On everything that is made for a job: the job's UID.
pub(crate) const JOB: &str = "tradewind-backup.github.io/job";
/// On pods of ours: [`AGENT`] or [`HOLDER`].
pub(crate) const ROLE: &str = "tradewind-backup.github.io/role";
/// A pod of the agent's DaemonSet.
pub(crate) const AGENT: &str = "agent";
/// A pod that holds a volume.
pub(crate) const HOLDER: &str = "holder";
/// Keeps a job's object until nothing is left of what was made for it. It goes when the job has ended.
pub(crate) const FINALIZER: &str = "tradewind-backup.github.io/clean-up";
/// On a job, as an annotation: the node where its data moves. The status has a field for that, but Velero's own agent takes
/// every running job over that names its node there.
pub(crate) const NODE: &str = "tradewind-backup.github.io/node";
/// On a job, as an annotation: the volume that is being given to the claim. All its data is there.
pub(crate) const VOLUME: &str = "tradewind-backup.github.io/volume";
/// On a volume, as an annotation: what is to become of it once the claim has it.
pub(crate) const RECLAIM: &str = "tradewind-backup.github.io/reclaim-policy";
/// On the content of a snapshot that was taken over, as an annotation: the content that it was taken over from.
pub(crate) const TAKEN_FROM: &str = "tradewind-backup.github.io/taken-from";

/// UID of an object, as the API server makes them: 36 digits and dashes. Part of names and messages, so it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Uid(String);

impl Uid {
    /// Bytes of a UID (RFC 9562, section 4).
    pub(crate) const LEN: usize = 36;

    /// Reads one; nothing for what is none.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let legal = |c: &u8| c.is_ascii_digit() || matches!(c, b'a'..=b'f' | b'-');
        (text.len() == Self::LEN && text.iter().all(legal))
            .then(|| Self(text.iter().map(|c| char::from(*c)).collect()))
    }

    /// The UID of an object.
    pub(crate) fn of(object: &impl kube::ResourceExt) -> Option<Self> {
        object.meta().uid.as_deref().and_then(|uid| Self::parse(uid.as_bytes()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of everything that is made for the job with this UID. Not that of the job's object: Velero's own agent looks for
    /// pods that are named like its jobs.
    pub(crate) fn name(&self) -> String {
        format!("tradewind-{}", self.0)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an annotation says of this very job: one that came along with a copy of another's object says nothing.
pub(crate) fn mark(uid: &Uid, text: &str) -> String {
    format!("{uid}/{text}")
}

/// What [`mark`] wrote.
pub(crate) fn marked<'a>(job: &'a impl kube::ResourceExt, key: &str, uid: &Uid) -> Option<&'a str> {
    job.annotations().get(key)?.strip_prefix(uid.as_str())?.strip_prefix('/')
}

/// The metadata of what is made for a job: its name, the job's UID as a label, and the job as its owner, so that it goes with
/// the job whatever happens to this agent.
pub(crate) fn made_for<K: Resource<DynamicType = ()>>(job: &K, uid: &Uid) -> ObjectMeta {
    ObjectMeta {
        name: Some(uid.name()),
        labels: Some([(JOB.to_owned(), uid.to_string())].into()),
        owner_references: Some(vec![OwnerReference {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: job.name_any(),
            uid: uid.to_string(),
            controller: Some(true),
            block_owner_deletion: None,
        }]),
        ..ObjectMeta::default()
    }
}

/// Creates an object, unless it is there.
pub(crate) async fn create<K>(api: &Api<K>, object: &K) -> Result<(), kube::Error>
where
    K: Clone + fmt::Debug + Serialize + DeserializeOwned,
{
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        done => done.map(drop),
    }
}

/// Deletes an object; true once it is not there.
pub(crate) async fn delete<K>(api: &Api<K>, name: &str) -> Result<bool, kube::Error>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(true),
        done => done.map(|_| false),
    }
}

/// Changes an object as [`tradewind_k8s::patch::patch`] does: only if nobody was faster.
pub(crate) async fn change<K>(api: &Api<K>, before: &K, after: &K) -> Result<K, kube::Error>
where
    K: Resource + Clone + fmt::Debug + Serialize + DeserializeOwned,
{
    let patch = tradewind_k8s::patch::patch(before, after).map_err(kube::Error::SerdeError)?;
    api.patch(&before.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await
}

/// Changes single fields of an object.
pub(crate) async fn merge<K>(api: &Api<K>, name: &str, fields: &serde_json::Value) -> Result<K, kube::Error>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(fields)).await
}

/// True when the API server does not want the object, whenever it is asked: trying again is no use. Not where it forbids
/// something (403): it does so for a moment after its start, and while a quota is used up.
pub(crate) fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 422))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_for_its_own_job() {
        let [one, other] = [b'0', b'1'].map(|first| {
            let mut text = *b"01234567-89ab-cdef-0123-456789abcdef";
            text[0] = first;
            Uid::parse(&text).unwrap()
        });
        let mut job = k8s_openapi::api::core::v1::Pod::default();
        job.annotations_mut().insert(VOLUME.to_owned(), mark(&one, "pv-1"));
        assert_eq!((marked(&job, VOLUME, &one), marked(&job, VOLUME, &other)), (Some("pv-1"), None));
        assert_eq!(marked(&job, NODE, &one), None);
        job.annotations_mut().insert(VOLUME.to_owned(), "pv-1".to_owned());
        assert_eq!(marked(&job, VOLUME, &one), None);
    }

    #[test]
    fn uids_cannot_smuggle_anything_into_names() {
        let uid = Uid::parse(b"01234567-89ab-cdef-0123-456789abcdef").unwrap();
        assert_eq!(uid.name(), "tradewind-01234567-89ab-cdef-0123-456789abcdef");
        for bad in [
            "01234567-89ab-cdef-0123-456789abcde",
            "01234567-89ab-cdef-0123-456789abcdeF",
            "01234567-89ab-cdef-0123-456789abcd/.",
            "",
        ] {
            assert_eq!(Uid::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
