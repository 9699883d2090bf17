//! The driver's own life: starts, ends, kills, registration.

use std::fs;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tonic::Code;
use tonic::transport::Endpoint;

use crate::bed::{Bed, LIMIT, code, until};
use crate::csi;
use crate::registration::registration_client::RegistrationClient;
use crate::registration::{InfoRequest, RegistrationStatus};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_driver_finds_everything_again() {
    let Some(mut bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let dir = bed.file_system(&volume, "").await;
    fs::write(dir.join("file"), "content").unwrap();
    let snapshot = bed.snapshot("snapshot", &volume).await.unwrap();
    let copy = bed.create("copy", 0, Some(&snapshot)).await.unwrap();
    let list = async |bed: &Bed| {
        let volumes = bed.controller().list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
        let snapshots = bed.controller().list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
        (volumes.into_inner().entries, snapshots.into_inner().entries)
    };
    let before = list(&bed).await;
    bed.kill();
    // What a call leaves that was killed between image and record.
    let garbage = bed.image("vol-00000000000000ff");
    fs::write(&garbage, "half").unwrap();
    bed.start().await;
    assert_eq!(list(&bed).await, before);
    assert!(!garbage.exists());

    // The same calls again, and those that follow, are no different for the new driver.
    assert_eq!(bed.create("volume", 64, None).await.unwrap(), volume);
    assert_eq!(bed.create("copy", 0, Some(&snapshot)).await.unwrap(), copy);
    assert_eq!(bed.snapshot("snapshot", &volume).await.unwrap(), snapshot);
    assert_eq!(bed.file_system(&volume, "").await, dir);
    let in_use = csi::DeleteVolumeRequest { volume_id: volume.clone() };
    assert_eq!(code(&bed.controller().delete_volume(in_use).await), Code::FailedPrecondition);
    bed.unstage(&volume).await.unwrap();
    assert_eq!(bed.loops(), []);
    assert_eq!(fs::read_to_string(bed.file_system(&copy, "").await.join("file")).unwrap(), "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_frozen_is_thawed_at_the_next_start() {
    let Some(mut bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let dir = bed.file_system(&volume, "").await;
    bed.faults(r#"{"frozen": {"delay_seconds": 600}}"#);
    let request = csi::CreateSnapshotRequest { source_volume_id: volume.clone(), name: "one".to_owned() };
    let mut controller = bed.controller();
    let call = tokio::spawn(async move { controller.create_snapshot(request).await });

    // Writes until one takes longer than any would.
    let (sender, receiver) = mpsc::channel();
    let (mut number, mut waiting) = (0, false);
    let note = bed.dir.join("state/frozen").join(&volume);
    until("a write stops", || {
        if !waiting {
            number += 1;
            let (sender, file) = (sender.clone(), dir.join(number.to_string()));
            thread::spawn(move || sender.send(fs::write(file, "content")));
        }
        waiting = receiver.recv_timeout(Duration::from_millis(500)).is_err();
        waiting && note.exists()
    })
    .await;
    bed.kill();
    assert!(call.await.unwrap().is_err());
    assert!(note.exists() && receiver.try_recv().is_err(), "nobody has thawed it");

    bed.faults("{}");
    bed.start().await;
    receiver.recv_timeout(LIMIT).expect("the write ends once it is thawed").unwrap();
    assert!(!note.exists());
    assert!(bed.log().contains("thawed"), "{}", bed.log());
    let all = bed.controller().list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().entries, []);
    assert_eq!(fs::read_dir(bed.dir.join("state/snapshots")).unwrap().count(), 0, "half a snapshot is none");
    bed.snapshot("one", &volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_fails_thaws() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let dir = bed.file_system(&volume, "").await;
    bed.faults(r#"{"frozen": {"error": "INTERNAL", "times": 1}}"#);
    let failed = bed.snapshot("one", &volume).await;
    assert_eq!(code(&failed), Code::Internal, "{failed:?}");
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(fs::write(dir.join("file"), "content")));
    receiver.recv_timeout(LIMIT).expect("it is not frozen").unwrap();
    bed.snapshot("one", &volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminated_driver_ends_well() {
    let Some(mut bed) = Bed::new(&[]).await else { return };
    bed.terminate().await;
    let status = bed.ended().await;
    assert!(status.success(), "{status}: {}", bed.log());
    assert!(!bed.dir.join("csi.sock").exists());
    bed.start().await;
    bed.kill();
    assert!(bed.dir.join("csi.sock").exists(), "this one is stale");
    bed.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubelet_finds_the_driver_and_its_refusal_ends_it() {
    let Some(mut bed) = Bed::new(&[]).await else { return };
    bed.terminate().await;
    bed.ended().await;
    let driver = bed.command().args(["--registration", &bed.path("registry")]).spawn().unwrap();
    let socket = bed.dir.join("registry/reg@csi.tradewind.test.sock");
    bed.adopt(driver);
    until("the driver registers", || socket.exists()).await;
    let endpoint = Endpoint::try_from(format!("unix://{}", socket.display())).unwrap();
    let mut kubelet = RegistrationClient::new(endpoint.connect().await.unwrap());
    let info = kubelet.get_info(InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.r#type.as_str(), info.name.as_str()), ("CSIPlugin", "csi.tradewind.test"));
    assert_eq!(info.endpoint, bed.path("csi.sock"));
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let good = RegistrationStatus { plugin_registered: true, error: String::new() };
    kubelet.notify_registration_status(good).await.unwrap();
    let bad = RegistrationStatus { plugin_registered: false, error: "no such node".to_owned() };
    kubelet.notify_registration_status(bad).await.unwrap();
    drop(kubelet);
    assert!(!bed.ended().await.success());
    assert!(
        bed.log().contains("registered at the kubelet") && bed.log().contains("no such node"),
        "{}",
        bed.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_serve_is_refused() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let start = |state: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_csi-driver"))
            .args(["--node", "here", "--endpoint", &bed.path("other.sock"), "--state", state])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(start(&bed.path("state")).contains("in use by another driver"));
    let volume = bed.create("volume", 64, None).await.unwrap();
    let no_reflinks = bed.file_system(&volume, "ext4").await;
    let said = start(no_reflinks.to_str().unwrap());
    assert!(said.contains("FICLONE") && said.contains("put it on xfs"), "{said}");
}
