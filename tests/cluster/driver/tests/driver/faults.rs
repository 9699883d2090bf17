//! Every fault that can be asked for, as a client sees it.

use std::time::{Duration, Instant};

use tonic::{Code, Request};

use crate::bed::{Bed, MIB, code, until};
use crate::csi;

/// Makes every call there is, with little in it; returns the names of the calls and how they ended.
async fn every_call(bed: &Bed) -> Vec<(&'static str, Code)> {
    let (mut identity, mut controller, mut node, mut metadata) =
        (bed.identity(), bed.controller(), bed.node(), bed.metadata());
    vec![
        ("get_plugin_info", code(&identity.get_plugin_info(csi::GetPluginInfoRequest {}).await)),
        (
            "get_plugin_capabilities",
            code(&identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await),
        ),
        ("probe", code(&identity.probe(csi::ProbeRequest {}).await)),
        ("create_volume", code(&controller.create_volume(csi::CreateVolumeRequest::default()).await)),
        ("delete_volume", code(&controller.delete_volume(csi::DeleteVolumeRequest::default()).await)),
        (
            "validate_volume_capabilities",
            code(
                &controller
                    .validate_volume_capabilities(csi::ValidateVolumeCapabilitiesRequest::default())
                    .await,
            ),
        ),
        ("list_volumes", code(&controller.list_volumes(csi::ListVolumesRequest::default()).await)),
        ("get_capacity", code(&controller.get_capacity(csi::GetCapacityRequest::default()).await)),
        (
            "controller_get_capabilities",
            code(&controller.controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {}).await),
        ),
        ("create_snapshot", code(&controller.create_snapshot(csi::CreateSnapshotRequest::default()).await)),
        ("delete_snapshot", code(&controller.delete_snapshot(csi::DeleteSnapshotRequest::default()).await)),
        ("list_snapshots", code(&controller.list_snapshots(csi::ListSnapshotsRequest::default()).await)),
        (
            "controller_expand",
            code(&controller.controller_expand_volume(csi::ControllerExpandVolumeRequest::default()).await),
        ),
        ("stage", code(&node.node_stage_volume(csi::NodeStageVolumeRequest::default()).await)),
        ("unstage", code(&node.node_unstage_volume(csi::NodeUnstageVolumeRequest::default()).await)),
        ("publish", code(&node.node_publish_volume(csi::NodePublishVolumeRequest::default()).await)),
        ("unpublish", code(&node.node_unpublish_volume(csi::NodeUnpublishVolumeRequest::default()).await)),
        (
            "get_volume_stats",
            code(&node.node_get_volume_stats(csi::NodeGetVolumeStatsRequest::default()).await),
        ),
        ("node_expand", code(&node.node_expand_volume(csi::NodeExpandVolumeRequest::default()).await)),
        (
            "node_get_capabilities",
            code(&node.node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await),
        ),
        ("node_get_info", code(&node.node_get_info(csi::NodeGetInfoRequest {}).await)),
        (
            "get_metadata_allocated",
            code(&metadata.get_metadata_allocated(csi::GetMetadataAllocatedRequest::default()).await),
        ),
        (
            "get_metadata_delta",
            code(&metadata.get_metadata_delta(csi::GetMetadataDeltaRequest::default()).await),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_fails_on_demand_and_alone() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let calls = every_call(&bed).await;
    assert!(calls.iter().all(|(_, code)| *code != Code::DataLoss), "{calls:?}");
    for (name, _) in &calls {
        bed.faults(&format!(r#"{{"{name}": {{"error": "DATA_LOSS"}}}}"#));
        for (other, code) in every_call(&bed).await {
            assert_eq!(code == Code::DataLoss, other == *name, "{name} is to fail, {other}: {code:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_fails_every_call() {
    let Some(bed) = Bed::new(&[]).await else { return };
    bed.faults(r#"{"stage": {"eror": "INTERNAL"}}"#);
    let calls = every_call(&bed).await;
    assert!(calls.iter().all(|(_, code)| *code == Code::Internal), "{calls:?}");
    let said = bed.identity().probe(csi::ProbeRequest {}).await.unwrap_err();
    assert!(said.message().contains("faults.json") && said.message().contains("`eror`"), "{said}");
    bed.faults("{}");
    assert_eq!(code(&bed.identity().probe(csi::ProbeRequest {}).await), Code::Ok);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_can_be_few_and_for_one_volume() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let (one, two) =
        (bed.create("pvc-1", 1, None).await.unwrap(), bed.create("pvc-2", 1, None).await.unwrap());
    bed.faults(
        r#"{"create_snapshot": {"error": "RESOURCE_EXHAUSTED", "volume": "pvc-1", "times": 2},
            "delete_snapshot": {"error": "ABORTED", "volume": "pvc-2"}}"#,
    );
    let (mut exhausted, mut fine) = (Vec::new(), Vec::new());
    for round in 0..3 {
        exhausted.push(code(&bed.snapshot(&format!("one-{round}"), &one).await));
        fine.push(bed.snapshot(&format!("two-{round}"), &two).await.unwrap());
    }
    assert_eq!(exhausted, [Code::ResourceExhausted, Code::ResourceExhausted, Code::Ok]);
    // A call about a snapshot is about its volume, whose name only the records have.
    let request = csi::DeleteSnapshotRequest { snapshot_id: fine[0].clone() };
    assert_eq!(code(&bed.controller().delete_snapshot(request).await), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_call_is_slow_and_ends_without_its_client() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("slow", 1, None).await.unwrap();
    bed.faults(r#"{"create_snapshot": {"delay_seconds": 0.5, "times": 1}}"#);
    let start = Instant::now();
    bed.snapshot("first", &volume).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());

    bed.faults(r#"{"create_snapshot": {"delay_seconds": 0.5, "times": 2}}"#);
    let request = csi::CreateSnapshotRequest { source_volume_id: volume, name: "second".to_owned() };
    let mut impatient = Request::new(request);
    impatient.set_timeout(Duration::from_millis(50));
    let given_up = bed.controller().create_snapshot(impatient).await;
    assert!([Code::Cancelled, Code::DeadlineExceeded].contains(&code(&given_up)), "{given_up:?}");
    until("the call ends", || bed.log().matches("create_snapshot second").count() == 1).await;
    let all = bed.controller().list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().entries.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_not_ready_as_long_as_asked() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 1, None).await.unwrap();
    bed.faults(r#"{"snapshot_never_ready": true}"#);
    let ready = async || {
        let request = csi::CreateSnapshotRequest { source_volume_id: volume.clone(), name: "one".to_owned() };
        let created = bed.controller().create_snapshot(request).await.unwrap().into_inner().snapshot.unwrap();
        let listed = bed.controller().list_snapshots(csi::ListSnapshotsRequest::default()).await.unwrap();
        let listed = listed.into_inner().entries.remove(0).snapshot.unwrap();
        assert_eq!(created, listed);
        created.ready_to_use
    };
    assert!(!ready().await);
    assert!(!ready().await);
    bed.faults("{}");
    assert!(ready().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_metadata_fail_in_every_way() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 4, None).await.unwrap();
    let base = bed.snapshot("base", &volume).await.unwrap();
    let device = bed.device(&volume).await;
    let file = std::fs::File::options().write(true).open(&device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 40 * 4096], MIB).unwrap();
    drop(file);
    let target = bed.snapshot("target", &volume).await.unwrap();

    // Offsets in blocks, counted from the first that was written; and how the stream ended.
    let stream = async |json: &str| {
        bed.faults(json);
        let request = csi::GetMetadataDeltaRequest {
            base_snapshot_id: base.clone(),
            target_snapshot_id: target.clone(),
            starting_offset: 0,
            max_results: 8,
        };
        let mut stream = bed.metadata().get_metadata_delta(request).await.unwrap().into_inner();
        let mut blocks = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    let mib = i64::try_from(MIB).unwrap();
                    blocks.extend(message.block_metadata.iter().map(|b| (b.byte_offset - mib) / 4096));
                }
                Ok(None) => return (blocks, Code::Ok),
                Err(status) => return (blocks, status.code()),
            }
        }
    };
    let first = |count| (0..count).collect::<Vec<i64>>();
    assert_eq!(stream("{}").await, (first(40), Code::Ok));
    assert_eq!(stream(r#"{"metadata": {"end_after": 11}}"#).await, (first(11), Code::Ok));
    assert_eq!(stream(r#"{"metadata": {"end_after": 0}}"#).await, (first(0), Code::Ok));
    assert_eq!(stream(r#"{"metadata": {"reset_after": 11}}"#).await, (first(11), Code::Unavailable));
    assert_eq!(stream(r#"{"metadata": {"reset_after": 100}}"#).await, (first(40), Code::Ok));
    let every_second = (0..40).step_by(2).collect::<Vec<i64>>();
    assert_eq!(stream(r#"{"metadata": {"wrong": true}}"#).await, (every_second, Code::Ok));
    assert_eq!(stream(r#"{"metadata": {"nothing_changed": true}}"#).await, (first(0), Code::Ok));
    let start = Instant::now();
    let slow = r#"{"metadata": {"delay_seconds_per_message": 0.1, "times": 1}}"#;
    assert_eq!(stream(slow).await, (first(40), Code::Ok));
    assert!(start.elapsed() >= Duration::from_millis(500), "five messages in {:?}", start.elapsed());
}
