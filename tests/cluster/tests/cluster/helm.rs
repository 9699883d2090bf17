//! Helm, as users install charts with it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use tradewind_cluster::cluster::inside;
use tradewind_cluster::folder::Level;

pub(crate) fn helm(arguments: &[&str]) -> Result<String> {
    let done =
        Command::new("timeout").args(["120", "helm"]).args(arguments).output().context("running helm")?;
    let errors = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "helm {}: {errors}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
#[ignore = "needs a cluster: make cluster-test"]
fn a_chart_is_installed_upgraded_and_removed() {
    inside(Level::Node, async |cluster| {
        let namespace = cluster.namespace("chart").await?;
        let chart = tempfile::tempdir()?;
        let at = chart.path();
        fs::create_dir(at.join("templates"))?;
        fs::write(at.join("Chart.yaml"), "apiVersion: v2\nname: greeting\nversion: 1.0.0\n")?;
        fs::write(at.join("values.yaml"), "text: hello\n")?;
        let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: greeting}\ndata: {text: {{ .Values.text | quote }}}\n";
        fs::write(at.join("templates/map.yaml"), map)?;
        let at = at.display().to_string();
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &namespace);
        let text = async || anyhow::Ok(maps.get("greeting").await?.data.unwrap_or_default().remove("text"));

        helm(&["install", "release", &at, "--namespace", &namespace, "--wait"])?;
        ensure!(text().await?.as_deref() == Some("hello"), "{:?}", text().await?);
        helm(&["upgrade", "release", &at, "--namespace", &namespace, "--wait", "--set=text=goodbye"])?;
        ensure!(text().await?.as_deref() == Some("goodbye"), "{:?}", text().await?);
        helm(&["uninstall", "release", "--namespace", &namespace, "--wait"])?;
        ensure!(maps.get_opt("greeting").await?.is_none(), "it is there after the release has gone");
        Ok(())
    });
}
