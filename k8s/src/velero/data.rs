//! Moving a snapshot's data to the bucket and back: DataUpload and DataDownload.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{Duration, Texts, object, word};

word! {
    /// How far a move is; the same for volumes of pods. A move that has ended is `Completed`, `Failed` or `Canceled`.
    pub enum MovePhase {
        /// Nobody has taken it.
        New = "New",
        /// Somebody makes its volume.
        Accepted = "Accepted",
        /// Its volume is there.
        Prepared = "Prepared",
        /// Data moves.
        InProgress = "InProgress",
        /// It shall end early.
        Canceling = "Canceling",
        /// It ended early.
        Canceled = "Canceled",
        /// All has moved.
        Completed = "Completed",
        /// It could not be done: the message says why.
        Failed = "Failed",
    }
}

impl MovePhase {
    /// True once nothing will happen any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }
}

word! {
    /// Operating system of the node that a volume was on.
    pub enum NodeOs {
        /// Linux, and where nothing is said.
        Linux = "linux",
        /// Whatever there is.
        Auto = "auto",
        /// Windows.
        Windows = "windows",
    }
}

object! {
    /// How much has moved.
    pub struct MoveProgress {
        optional {
            /// In bytes; 0 while it is not known.
            total_bytes: i64,
            /// In bytes.
            bytes_done: i64,
        }
    }
}

object! {
    /// The snapshot that a DataUpload moves.
    pub struct CsiSnapshot {
        required {
            /// The VolumeSnapshot, in the claim's namespace.
            volume_snapshot: String,
            /// The claim's storage class.
            storage_class: String,
        }
        optional {
            /// The VolumeSnapshotClass.
            snapshot_class: String,
            /// The CSI driver.
            driver: String,
        }
    }
}

object! {
    /// A snapshot to be moved to the bucket.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v2alpha1", kind = "DataUpload", plural = "datauploads", namespaced,
        status = "DataUploadStatus",
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
        printcolumn(name = "Node", type_ = "string", json_path = ".status.node")
    )]
    pub struct DataUploadSpec {
        required {
            /// `CSI`: there is no other.
            snapshot_type: String,
            /// The claim.
            #[serde(rename = "sourcePVC")]
            source_pvc: String,
            /// The claim's namespace.
            source_namespace: String,
            /// The BackupStorageLocation that the data goes to.
            backup_storage_location: String,
            /// How long one operation of the snapshot's may take.
            operation_timeout: Duration,
        }
        optional {
            /// The snapshot.
            csi_snapshot: Option<CsiSnapshot>,
            /// Who moves it: nothing or `velero` are Velero's own.
            #[serde(rename = "datamover")]
            data_mover: String,
            /// Settings for the mover, for instance `ParallelFilesUpload`.
            #[schemars(extend("nullable" = true))]
            data_mover_config: Texts,
            /// Set by whoever wants it to end early.
            cancel: bool,
            /// The claim's file system. Since 1.19.
            #[serde(rename = "sourceFSType")]
            #[schemars(skip)]
            source_fs_type: String,
            /// The snapshot that it is compared with: the newest where nothing is said, `none` for none. Since 1.19.
            #[schemars(skip)]
            parent_snapshot: String,
        }
    }
}

object! {
    /// What has become of a DataUpload.
    pub struct DataUploadStatus {
        optional {
            /// How far it is.
            phase: MovePhase,
            /// Where the volume was seen.
            path: String,
            /// By which the data is found again: the only thing that a restore is told.
            #[serde(rename = "snapshotID")]
            snapshot_id: String,
            /// What else the mover says; it goes into the backup with this object.
            #[schemars(extend("nullable" = true))]
            data_mover_result: Texts,
            /// Why it is as it is. An upload that failed without a message counts as done.
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
            /// Where it runs.
            node: String,
            /// That node's system.
            #[serde(rename = "nodeOS")]
            node_os: NodeOs,
            /// Which agent took it.
            accepted_by_node: String,
            /// When that was.
            accepted_timestamp: Option<Time>,
        }
    }
}

object! {
    /// The claim that a DataDownload fills.
    pub struct TargetVolume {
        required {
            /// The claim; it may come later than this object.
            pvc: String,
            /// Its volume: nothing while there is none.
            pv: String,
            /// The claim's namespace.
            namespace: String,
        }
        optional {
            /// The file system that the volume had. Since 1.19.
            #[schemars(skip)]
            fs_type: String,
        }
    }
}

object! {
    /// A volume to be filled from the bucket.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v2alpha1", kind = "DataDownload", plural = "datadownloads", namespaced,
        status = "DataDownloadStatus",
        printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Started", type_ = "date", json_path = ".status.startTimestamp"),
        printcolumn(name = "Bytes Done", type_ = "integer", format = "int64", json_path = ".status.progress.bytesDone"),
        printcolumn(name = "Total Bytes", type_ = "integer", format = "int64", json_path = ".status.progress.totalBytes"),
        printcolumn(name = "Storage Location", type_ = "string", json_path = ".spec.backupStorageLocation"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Node", type_ = "string", json_path = ".status.node")
    )]
    pub struct DataDownloadSpec {
        required {
            /// What is filled.
            target_volume: TargetVolume,
            /// The BackupStorageLocation that the data comes from.
            backup_storage_location: String,
            /// What the DataUpload said.
            #[serde(rename = "snapshotID")]
            snapshot_id: String,
            /// The namespace of the claim that was backed up.
            source_namespace: String,
            /// How long one operation of the volume's may take.
            operation_timeout: Duration,
        }
        optional {
            /// Who moves it, as in the DataUpload.
            #[serde(rename = "datamover")]
            data_mover: String,
            /// Settings for the mover, for instance `WriteSparseFiles`.
            data_mover_config: Texts,
            /// Set by whoever wants it to end early.
            cancel: bool,
            /// System of the node that the volume was on.
            #[serde(rename = "nodeOS")]
            node_os: NodeOs,
            /// Size of the data, in bytes; 0 where it is not known.
            snapshot_size: i64,
        }
    }
}

object! {
    /// What has become of a DataDownload.
    pub struct DataDownloadStatus {
        optional {
            /// How far it is.
            phase: MovePhase,
            /// Why it is as it is. A download that failed without a message counts as done.
            message: String,
            /// When data began to move.
            start_timestamp: Option<Time>,
            /// When it ended.
            completion_timestamp: Option<Time>,
            /// How much has moved.
            #[schemars(with = "MoveProgress")]
            progress: Option<MoveProgress>,
            /// Where it runs.
            node: String,
            /// Which agent took it.
            accepted_by_node: String,
            /// When that was.
            accepted_timestamp: Option<Time>,
        }
    }
}
