//! Velero's custom resources, of group `velero.io`.
//!
//! A spec, a status and their parts keep the fields that they do not know (`other`) and give them back when they are
//! written. Kubernetes' own types within (references, selectors) do not, and times lose their fractions of a second.
//! So change an object with a [patch](crate::patch::patch), which carries what has changed and nothing else.
//!
//! An optional field that is missing, `null` or empty is its type's default, which is not written. It is an `Option` where
//! nothing and the default may differ. For durations, `0s` says nothing too ([`Duration::set`]).
//!
//! API servers hold new objects to the schema, not those that older versions have left. A list or a watch that shall
//! survive one of them has [`kube::core::DeserializeGuard`] of a kind as its items.
//!
//! **No kind has a status subresource**: the status is written with the object.

mod backup;
mod data;
mod duration;
mod hooks;
mod location;
mod pod_volume;
mod repository;
mod requests;
mod restore;
mod schedule;

use std::collections::BTreeMap;

use crate::object::{object, word};

pub use backup::{
    Backup, BackupMetadata, BackupPhase, BackupProgress, BackupSpec, BackupStatus, HookStatus,
    UploaderForBackup,
};
pub use data::{
    CsiSnapshot, DataDownload, DataDownloadSpec, DataDownloadStatus, DataUpload, DataUploadSpec,
    DataUploadStatus, MovePhase, MoveProgress, NodeOs, TargetVolume,
};
pub use duration::Duration;
pub use hooks::{
    BackupHook, BackupHookSpec, BackupHooks, ExecHook, ExecRestoreHook, HookErrorMode, InitRestoreHook,
    RestoreHook, RestoreHookSpec, RestoreHooks,
};
pub use location::{
    AccessMode, BackupStorageLocation, BackupStorageLocationSpec, BackupStorageLocationStatus, LocationPhase,
    ObjectStorage, VolumeSnapshotLocation, VolumeSnapshotLocationSpec, VolumeSnapshotLocationStatus,
};
pub use pod_volume::{
    PodVolumeBackup, PodVolumeBackupSpec, PodVolumeBackupStatus, PodVolumeRestore, PodVolumeRestoreSpec,
    PodVolumeRestoreStatus, Uploader,
};
pub use repository::{
    BackupRepository, BackupRepositorySpec, BackupRepositoryStatus, Maintenance, MaintenanceResult,
    RepositoryPhase,
};
pub use requests::{
    DeleteBackupRequest, DeleteBackupRequestSpec, DeleteBackupRequestStatus, DeletionPhase, DownloadPhase,
    DownloadRequest, DownloadRequestSpec, DownloadRequestStatus, DownloadTarget, DownloadTargetKind, Plugin,
    ServerStatusPhase, ServerStatusRequest, ServerStatusRequestSpec, ServerStatusRequestStatus,
};
pub use restore::{
    Restore, RestorePhase, RestoreProgress, RestoreSpec, RestoreStatus, RestoreStatusOf, UploaderForRestore,
};
pub use schedule::{Schedule, SchedulePhase, ScheduleSpec, ScheduleStatus};

/// Text by text.
pub type Texts = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn what_is_not_known_is_kept() {
        let text = json!({
            "apiVersion": "velero.io/v2alpha1",
            "kind": "DataUpload",
            "metadata": {"name": "a", "namespace": "velero"},
            "spec": {
                "snapshotType": "CSI",
                "csiSnapshot": {"volumeSnapshot": "s", "storageClass": "c", "later": [1]},
                "sourcePVC": "p",
                "datamover": "tradewind",
                "backupStorageLocation": "default",
                "sourceNamespace": "app",
                "operationTimeout": "10m0s",
                "sourceFSType": "ext4",
                "laterSetting": 7,
            },
            "status": {"phase": "Pondering", "progress": {"bytesDone": 1}, "reason": {"of": "a later version"}},
        });
        let upload: DataUpload = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(
            (upload.spec.source_fs_type.as_str(), &upload.spec.other["laterSetting"]),
            ("ext4", &json!(7))
        );
        assert_eq!(upload.status.as_ref().unwrap().phase, MovePhase::Other("Pondering".to_owned()));
        assert_eq!(serde_json::to_value(&upload).unwrap(), text);
    }

    #[test]
    fn one_bad_object_does_not_hide_the_others() {
        use kube::core::{DeserializeGuard, ObjectList};
        let good = json!({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "metadata": {"name": "good"}, "spec": {}});
        let bad =
            json!({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "metadata": {"name": "bad"}});
        let list = json!({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequestList", "metadata": {}, "items": [bad, good]});
        let read: ObjectList<DeserializeGuard<ServerStatusRequest>> = serde_json::from_value(list).unwrap();
        let [bad, good] = read.items.as_slice() else { panic!("two items") };
        assert_eq!(bad.0.as_ref().unwrap_err().metadata.name.as_deref(), Some("bad"));
        assert!(good.0.is_ok());
    }

    #[test]
    fn an_empty_word_says_nothing() {
        let hook: ExecHook = serde_json::from_value(json!({"command": ["a"], "onError": ""})).unwrap();
        assert_eq!(hook.on_error, None);
        let mode = json!({"provider": "aws", "objectStorage": {"bucket": "b"}, "accessMode": ""});
        let location: BackupStorageLocationSpec = serde_json::from_value(mode).unwrap();
        assert_eq!(location.access_mode, AccessMode::ReadWrite);
    }

    #[test]
    fn null_empty_and_missing_are_the_same() {
        let read = |spec: Value| serde_json::from_value::<BackupSpec>(spec).unwrap();
        let null = read(
            json!({"includedNamespaces": null, "ttl": null, "snapshotVolumes": null, "labelSelector": null}),
        );
        assert_eq!(null, read(json!({})));
        assert_eq!(null, read(json!({"includedNamespaces": []})));
        assert_eq!(serde_json::to_value(null).unwrap(), json!({}));
        assert_eq!(read(json!({"snapshotVolumes": false})).snapshot_volumes, Some(false));
    }
}
