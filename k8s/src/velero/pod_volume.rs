//! Volumes of pods, read and written as files while the pods run: PodVolumeBackup and PodVolumeRestore.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{MovePhase, MoveProgress, Texts, object, word};

word! {
    /// Whose format the data has.
    pub enum Uploader {
        /// Not said.
        Unset = "",
        /// kopia's.
        Kopia = "kopia",
        /// restic's, of old.
        Restic = "restic",
    }
}

object! {
    /// A pod's volume to be read.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "PodVolumeBackup", plural = "podvolumebackups", namespaced,
        status = "PodVolumeBackupStatus",
        printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Started", type_ = "date", json_path = ".status.startTimestamp"),
        printcolumn(name = "Bytes Done", type_ = "integer", format = "int64", json_path = ".status.progress.bytesDone"),
        printcolumn(name = "Total Bytes", type_ = "integer", format = "int64", json_path = ".status.progress.totalBytes"),
        printcolumn(
            name = "Incremental Bytes", type_ = "integer", format = "int64", priority = 10,
            json_path = ".status.incrementalBytes"
        ),
        printcolumn(name = "Storage Location", type_ = "string", json_path = ".spec.backupStorageLocation"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
        printcolumn(name = "Uploader", type_ = "string", json_path = ".spec.uploaderType")
    )]
    pub struct PodVolumeBackupSpec {
        required {
            /// Where the pod runs.
            node: String,
            /// The pod.
            pod: ObjectReference,
            /// The volume's name in the pod.
            volume: String,
            /// The BackupStorageLocation that the data goes to.
            backup_storage_location: String,
            /// Of the repository: empty.
            repo_identifier: String,
        }
        optional {
            /// Whose format.
            uploader_type: Uploader,
            /// What the snapshot is labelled with.
            tags: Texts,
            /// Settings for the uploader.
            #[schemars(extend("nullable" = true))]
            uploader_settings: Texts,
            /// Set by whoever wants it to end early.
            cancel: bool,
            /// The snapshot that it is compared with: the newest where nothing is said, `none` for none. Since 1.19.
            #[schemars(skip)]
            parent_snapshot: String,
        }
    }
}

object! {
    /// What has become of a PodVolumeBackup.
    pub struct PodVolumeBackupStatus {
        optional {
            /// How far it is.
            phase: MovePhase,
            /// Where the volume was seen.
            path: String,
            /// By which the data is found again.
            #[serde(rename = "snapshotID")]
            snapshot_id: String,
            /// Why it is as it is.
            message: String,
            /// When data began to move.
            start_timestamp: Option<Time>,
            /// When it ended.
            completion_timestamp: Option<Time>,
            /// How much has moved.
            #[schemars(with = "MoveProgress")]
            progress: Option<MoveProgress>,
            /// Bytes that were not in the bucket before.
            incremental_bytes: i64,
            /// When somebody took it.
            accepted_timestamp: Option<Time>,
        }
    }
}

object! {
    /// A pod's volume to be filled, before its containers run.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "PodVolumeRestore", plural = "podvolumerestores", namespaced,
        status = "PodVolumeRestoreStatus",
        printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Started", type_ = "date", json_path = ".status.startTimestamp"),
        printcolumn(name = "Bytes Done", type_ = "integer", format = "int64", json_path = ".status.progress.bytesDone"),
        printcolumn(name = "Total Bytes", type_ = "integer", format = "int64", json_path = ".status.progress.totalBytes"),
        printcolumn(name = "Storage Location", type_ = "string", json_path = ".spec.backupStorageLocation"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
        printcolumn(name = "Uploader Type", type_ = "string", json_path = ".spec.uploaderType")
    )]
    pub struct PodVolumeRestoreSpec {
        required {
            /// The pod.
            pod: ObjectReference,
            /// The volume's name in the pod.
            volume: String,
            /// The BackupStorageLocation that the data comes from.
            backup_storage_location: String,
            /// Of the repository: empty.
            repo_identifier: String,
            /// What the PodVolumeBackup said.
            #[serde(rename = "snapshotID")]
            snapshot_id: String,
            /// The namespace of the pod that was backed up.
            source_namespace: String,
        }
        optional {
            /// Whose format.
            uploader_type: Uploader,
            /// Settings for the uploader.
            #[schemars(extend("nullable" = true))]
            uploader_settings: Texts,
            /// Set by whoever wants it to end early.
            cancel: bool,
            /// Size of the data, in bytes; 0 where it is not known.
            snapshot_size: i64,
        }
    }
}

object! {
    /// What has become of a PodVolumeRestore.
    pub struct PodVolumeRestoreStatus {
        optional {
            /// How far it is.
            phase: MovePhase,
            /// Why it is as it is.
            message: String,
            /// When data began to move.
            start_timestamp: Option<Time>,
            /// When it ended.
            completion_timestamp: Option<Time>,
            /// How much has moved.
            #[schemars(with = "MoveProgress")]
            progress: Option<MoveProgress>,
            /// When somebody took it.
            accepted_timestamp: Option<Time>,
            /// Where it runs.
            node: String,
        }
    }
}
