//! The conformance suite of CSI.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::bed::{Bed, say, until};

/// csi-sanity by the environment, or else by the PATH.
fn program() -> Option<PathBuf> {
    if let Some(program) = env::var_os("CSI_SANITY") {
        return Some(program.into());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join("csi-sanity")).find(|program| program.is_file())
}

async fn passes(access: &str) {
    let Some(program) = program() else {
        say("SKIPPED: no csi-sanity in CSI_SANITY or on PATH: make cluster-test brings it");
        return;
    };
    let Some(bed) = Bed::new(&[]).await else { return };
    let output = bed.dir.join("sanity.log");
    let file = fs::File::create(&output).unwrap();
    let mut suite = Command::new(&program)
        .arg(format!("--csi.endpoint=unix://{}", bed.path("csi.sock")))
        .arg(format!("--csi.mountdir={}", bed.path("target")))
        .arg(format!("--csi.stagingdir={}", bed.path("staging")))
        .arg(format!("--csi.testvolumeaccesstype={access}"))
        .args(["--csi.testvolumesize=1073741824", "--csi.testvolumeexpandsize=2147483648"])
        .args(["--ginkgo.no-color", "--ginkgo.timeout=110s"])
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut status = None;
    until("csi-sanity ends", || {
        status = suite.try_wait().unwrap();
        status.is_some()
    })
    .await;
    let said = fs::read_to_string(&output).unwrap();
    let summary = said.lines().filter(|line| line.contains(" Passed |") || line.starts_with("Ran "));
    say(&format!("csi-sanity, {access}: {}", summary.collect::<Vec<_>>().join(" ")));
    assert!(status.unwrap().success(), "csi-sanity, {access}:\n{said}");
    assert!(said.contains("| 0 Failed |"), "csi-sanity, {access}:\n{said}");
    // A service that the driver no longer offers is skipped by the suite, and not missed.
    let passed =
        said.lines().find_map(|line| line.split(" Passed |").next()?.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(passed >= Some(68), "csi-sanity, {access}: {passed:?} passed, of 68:\n{said}");
    assert_eq!(bed.loops(), [], "the suite leaves nothing attached");
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_passes_with_file_systems() {
    passes("mount").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn csi_sanity_passes_with_devices() {
    passes("block").await;
}
