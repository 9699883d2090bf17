//! Changed blocks, asked of the real sidecar as a backup program does: over TLS, with a token for its audience.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use serde_json::json;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tradewind_cluster::cluster::{Cluster, inside};
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

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn changed_blocks_are_those_that_changed() {
    inside(Level::Node, async |cluster| {
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
        let expected = different(Some(&base), &target)?;
        ensure!(expected.len() == 16, "the test changed {} blocks", expected.len());
        let question = Delta {
            security_token: token.clone(),
            namespace: namespace.clone(),
            base_snapshot_id: base_id,
            target_snapshot_name: "target".to_owned(),
        };
        let changed =
            ask(cluster, "/snapshotmetadata.SnapshotMetadata/GetMetadataDelta", question.clone()).await?;
        ensure!(changed == expected, "changed: {changed:?}, but different: {expected:?}");

        let allocated = Allocated { security_token: token, namespace, snapshot_name: "target".to_owned() };
        let found =
            ask(cluster, "/snapshotmetadata.SnapshotMetadata/GetMetadataAllocated", allocated).await?;
        let expected = different(None, &target)?;
        ensure!(found == expected, "{} allocated, but {} not zero", found.len(), expected.len());

        let foreign = Delta { security_token: "nobody's".to_owned(), ..question };
        let refused = ask(cluster, "/snapshotmetadata.SnapshotMetadata/GetMetadataDelta", foreign).await;
        ensure!(refused.is_err(), "the sidecar answers without a token");
        Ok(())
    });
}
