//! Changed blocks, asked of the real sidecar as a backup program does: over TLS, with a token for its audience.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::json;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tradewind_cluster::cluster::{Cluster, LIMIT, alone, inside};
use tradewind_cluster::components::DRIVER;
use tradewind_cluster::folder::Level;
use tradewind_cluster::network::{METADATA_PORT, NODE};

use crate::claims::{Claim, Mode, content, pod, snapshot};

/// Messages of package `snapshotmetadata`, as external-snapshot-metadata 1.0.0 defines them (proto/schema.proto).
#[derive(Clone, PartialEq, prost::Message)]
struct Allocated {
    #[prost(string, tag = "1")]
    security_token: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    snapshot_name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Delta {
    #[prost(string, tag = "1")]
    security_token: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    base_snapshot_id: String,
    #[prost(string, tag = "4")]
    target_snapshot_name: String,
}

/// The answer to both.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    block_metadata_type: i32,
    #[prost(int64, tag = "2")]
    volume_capacity_bytes: i64,
    #[prost(message, repeated, tag = "3")]
    block_metadata: Vec<Block>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Block {
    #[prost(int64, tag = "1")]
    byte_offset: i64,
    #[prost(int64, tag = "2")]
    size_bytes: i64,
}

/// Asks the sidecar, and returns the blocks' offsets and sizes.
async fn ask<Q>(cluster: &Cluster, method: &'static str, question: Q) -> Result<Vec<(i64, i64)>>
where
    Q: prost::Message + Default + 'static,
{
    tokio::time::timeout(LIMIT, answers(cluster, method, question))
        .await
        .context("the sidecar does not end")?
}

async fn answers<Q>(cluster: &Cluster, method: &'static str, question: Q) -> Result<Vec<(i64, i64)>>
where
    Q: prost::Message + Default + 'static,
{
    let ca = Certificate::from_pem(std::fs::read(cluster.folder.join("pki/ca.crt"))?);
    let channel = Channel::from_shared(format!("https://{NODE}:{METADATA_PORT}"))?
        .tls_config(ClientTlsConfig::new().ca_certificate(ca))?
        .connect()
        .await
        .context("connecting to the sidecar")?;
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let codec = tonic_prost::ProstCodec::<Q, Answer>::default();
    let request = tonic::Request::new(question);
    let mut answers =
        client.server_streaming(request, PathAndQuery::from_static(method), codec).await?.into_inner();
    let mut blocks = Vec::new();
    while let Some(answer) = answers.message().await? {
        blocks.extend(answer.block_metadata.iter().map(|block| (block.byte_offset, block.size_bytes)));
    }
    Ok(blocks)
}

/// A token of a new service account that may read snapshots, for the sidecar's audience.
async fn token(cluster: &Cluster, namespace: &str) -> Result<String> {
    let rights = format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: reader, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: reader, namespace: {namespace}}}
rules: [{{apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots], verbs: [get]}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: reader, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}}
subjects: [{{kind: ServiceAccount, name: reader, namespace: {namespace}}}]
"
    );
    cluster.objects.apply(&rights).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let wanted: TokenRequest = serde_json::from_value(json!({"spec": {"audiences": [DRIVER]}}))?;
    let given = accounts.create_token_request("reader", &PostParams::default(), &wanted).await?;
    Ok(given.status.context("no token")?.token)
}

/// The driver's file of a snapshot.
async fn image(cluster: &Cluster, snapshot: &DynamicObject) -> Result<(String, PathBuf)> {
    let handle = content(cluster, snapshot).await?.data["status"]["snapshotHandle"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let image = cluster.folder.join("volumes/driver/snapshots").join(format!("{handle}.img"));
    Ok((handle, image))
}

/// Blocks of 4 KiB that are not equal in two files of one length; of one file, those that are not zero.
fn different(before: Option<&Path>, after: &Path) -> Result<Vec<(i64, i64)>> {
    const BLOCK: usize = 4096;
    let (before, after) = (before.map(File::open).transpose()?, File::open(after)?);
    let (mut old, mut new) = ([0; BLOCK], [0; BLOCK]);
    let mut found = Vec::new();
    for offset in (0..after.metadata()?.len()).step_by(BLOCK) {
        after.read_exact_at(&mut new, offset)?;
        if let Some(before) = &before {
            before.read_exact_at(&mut old, offset)?;
        }
        if old != new {
            found.push((i64::try_from(offset)?, 4096));
        }
    }
    Ok(found)
}

/// A volume with two snapshots, and what is needed to ask for what changed between them.
struct Two {
    /// The driver's files of the snapshots.
    base: PathBuf,
    target: PathBuf,
    question: Delta,
}

impl Two {
    /// Blocks 0, 3, 4 and so on were written between the snapshots, and nine became zeros.
    async fn new(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.namespace("changed").await?;
        let token = token(cluster, &namespace).await?;
        Claim::new("volume", Mode::Block, "64Mi").create(cluster, &namespace).await?;
        let volume = ("volume", Mode::Block);
        let fill = "head -c 20000000 /dev/urandom | dd of=/dev/data bs=64k seek=16 conv=fsync";
        pod(cluster, &namespace, "fills", volume, fill).await?;
        cluster.succeeded(&namespace, "fills").await?;
        let base = snapshot(cluster, &namespace, "base", "volume").await?;
        let change = "for n in 0 3 4 300 301 5000 16383; do \
                      head -c 4096 /dev/urandom | dd of=/dev/data bs=4096 seek=$n conv=notrunc,fsync; done; \
                      dd if=/dev/zero of=/dev/data bs=4096 seek=400 count=9 conv=notrunc,fsync";
        pod(cluster, &namespace, "changes", volume, change).await?;
        cluster.succeeded(&namespace, "changes").await?;
        let target = snapshot(cluster, &namespace, "target", "volume").await?;
        let ((base_id, base), (_, target)) = (image(cluster, &base).await?, image(cluster, &target).await?);
        let question = Delta {
            security_token: token,
            namespace,
            base_snapshot_id: base_id,
            target_snapshot_name: "target".to_owned(),
        };
        Ok(Self { base, target, question })
    }

    /// What the sidecar says has changed.
    async fn changed(&self, cluster: &Cluster) -> Result<Vec<(i64, i64)>> {
        ask(cluster, "/snapshotmetadata.SnapshotMetadata/GetMetadataDelta", self.question.clone()).await
    }

    /// What the sidecar says is not zero in the target.
    async fn allocated(&self, cluster: &Cluster) -> Result<Vec<(i64, i64)>> {
        let Delta { security_token, namespace, target_snapshot_name: snapshot_name, .. } =
            self.question.clone();
        let question = Allocated { security_token, namespace, snapshot_name };
        ask(cluster, "/snapshotmetadata.SnapshotMetadata/GetMetadataAllocated", question).await
    }
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn changed_blocks_are_those_that_changed() {
    inside(Level::Node, async |cluster| {
        let mut two = Two::new(cluster).await?;
        let expected = different(Some(&two.base), &two.target)?;
        ensure!(expected.len() == 16, "the test changed {} blocks", expected.len());
        let changed = two.changed(cluster).await?;
        ensure!(changed == expected, "changed: {changed:?}, but different: {expected:?}");

        let found = two.allocated(cluster).await?;
        let expected = different(None, &two.target)?;
        ensure!(found == expected, "{} allocated, but {} not zero", found.len(), expected.len());

        two.question.security_token = "nobody's".to_owned();
        ensure!(two.changed(cluster).await.is_err(), "the sidecar answers without a token");
        Ok(())
    });
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn faults_of_changed_blocks_come_through_the_sidecar() {
    alone(Level::Node, async |cluster| {
        let two = Two::new(cluster).await?;
        let (all, filled) = (two.changed(cluster).await?, two.allocated(cluster).await?);
        let faults = |metadata| cluster.driver_faults(&json!({ "metadata": metadata }));

        // A stream that ends early ends well: nothing tells the client but what is missing.
        faults(json!({"end_after": 5}))?;
        let (short, shorter) = (two.changed(cluster).await?, two.allocated(cluster).await?);
        ensure!(short == all[..5] && shorter == filled[..5], "short: {short:?} and {shorter:?}");

        faults(json!({"wrong": true}))?;
        let wrong = two.changed(cluster).await?;
        let every_second: Vec<_> = all.iter().copied().step_by(2).collect();
        ensure!(wrong == every_second, "wrong: {wrong:?} of {all:?}");

        faults(json!({"nothing_changed": true}))?;
        let nothing = two.changed(cluster).await?;
        ensure!(nothing.is_empty(), "nothing: {nothing:?}");

        faults(json!({"reset_after": 5, "times": 1}))?;
        let reset = two.changed(cluster).await;
        ensure!(reset.is_err(), "a stream that breaks off is an answer: {reset:?}");
        let again = two.changed(cluster).await?;
        ensure!(again == all, "the next one: {again:?}, but it is {all:?}");

        faults(json!({"delay_seconds_per_message": 2}))?;
        let begin = Instant::now();
        let late = two.changed(cluster).await?;
        ensure!(late == all && begin.elapsed() >= Duration::from_secs(2), "after {:?}", begin.elapsed());
        Ok(())
    });
}
