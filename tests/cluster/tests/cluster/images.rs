//! Images made from files of this machine.

use anyhow::{Context, ensure};
use serde_json::Value;
use tradewind_cluster::cluster::inside;
use tradewind_cluster::components::S3_KEYS;
use tradewind_cluster::folder::Level;
use tradewind_cluster::image::Image;
use tradewind_cluster::network::{NODE, S3_PORT};

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn tradewind_moves_a_pods_files_to_the_s3_server() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("image").await?;
        cluster.import(Image::tradewind(&cluster.folder)?)?;
        std::fs::create_dir_all(cluster.folder.join("s3/image"))?;
        let (access, secret) = S3_KEYS;
        // What it moves are files of the image itself: its libraries.
        let pod = format!(
            "apiVersion: v1
kind: Secret
metadata: {{name: key, namespace: {namespace}}}
stringData: {{password: correct horse}}
---
apiVersion: v1
kind: Pod
metadata: {{name: tradewind, namespace: {namespace}}}
spec:
  restartPolicy: Never
  volumes: [{{name: key, secret: {{secretName: key, defaultMode: 256}}}}]
  initContainers:
  - name: init
    image: tradewind.test/tradewind:1
    args: [init]
    env: &env
    - {{name: TRADEWIND_REPOSITORY, value: s3://image/repository}}
    - {{name: TRADEWIND_PASSWORD_FILE, value: /key/password}}
    - {{name: XDG_CACHE_HOME, value: /tmp}}
    - {{name: AWS_ACCESS_KEY_ID, value: {access}}}
    - {{name: AWS_SECRET_ACCESS_KEY, value: {secret}}}
    - {{name: AWS_REGION, value: us-east-1}}
    - {{name: AWS_ENDPOINT_URL, value: \"http://{NODE}:{S3_PORT}\"}}
    volumeMounts: &mounts [{{name: key, mountPath: /key, readOnly: true}}]
  - name: backup
    image: tradewind.test/tradewind:1
    args: [backup, /lib]
    env: *env
    volumeMounts: *mounts
  containers:
  - name: main
    image: tradewind.test/tradewind:1
    args: [verify, --read-data, --json]
    env: *env
    volumeMounts: *mounts
"
        );
        cluster.objects.apply(&pod).await?;
        let said = cluster.succeeded(&namespace, "tradewind").await?;
        let last = said.lines().last().context("it said nothing")?;
        let done: Value = serde_json::from_str(last).with_context(|| last.to_owned())?;
        ensure!(done["outcome"] == "done" && done["snapshots"] == 1, "{last}");
        ensure!(done["packs_read"].as_u64() > Some(0), "{last}");
        Ok(())
    });
}
