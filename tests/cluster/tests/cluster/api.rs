//! The API level: objects are kept, and nothing else happens.

use std::time::Instant;

use anyhow::ensure;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tradewind_cluster::cluster::{inside, is_inside, say};
use tradewind_cluster::folder::Level;

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn objects_are_kept_by_the_api_level() {
    let begin = Instant::now();
    inside(Level::Api, async |cluster| {
        let namespace = cluster.namespace("kept").await?;
        let map = format!(
            "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a, namespace: {namespace}}}, data: {{key: value}}}}"
        );
        cluster.objects.apply(&map).await?;
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
        let data = maps.get("a").await?.data.unwrap_or_default();
        ensure!(data["key"] == "value", "{data:?}");
        cluster.objects.delete(&map).await?;
        ensure!(maps.get_opt("a").await?.is_none(), "it is there after its deletion");
        Ok(())
    });
    if !is_inside() {
        say(&format!(
            "a test of the API level took {:.1} s, the start included",
            begin.elapsed().as_secs_f64()
        ));
    }
}
