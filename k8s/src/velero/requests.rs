//! What the command line asks of the server: to delete, to hand out, to say who it is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{object, word};

word! {
    /// How far a deletion is.
    pub enum DeletionPhase {
        /// Nobody has seen it.
        New = "New",
        /// It goes on.
        InProgress = "InProgress",
        /// It has ended: its errors say how.
        Processed = "Processed",
    }
}

object! {
    /// A backup is to be deleted, with its data.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "DeleteBackupRequest", plural = "deletebackuprequests",
        namespaced, status = "DeleteBackupRequestStatus",
        printcolumn(name = "BackupName", type_ = "string", json_path = ".spec.backupName"),
        printcolumn(name = "Status", type_ = "string", json_path = ".status.phase")
    )]
    pub struct DeleteBackupRequestSpec {
        required {
            /// The backup.
            backup_name: String,
        }
    }
}

object! {
    /// What has become of a DeleteBackupRequest.
    pub struct DeleteBackupRequestStatus {
        optional {
            /// How far it is.
            phase: DeletionPhase,
            /// What could not be deleted, and why.
            #[schemars(extend("nullable" = true))]
            errors: Vec<String>,
        }
    }
}

word! {
    /// What the bucket has of a backup or a restore.
    pub enum DownloadTargetKind {
        /// What happened.
        BackupLog = "BackupLog",
        /// Its objects.
        BackupContents = "BackupContents",
        /// Snapshots by plugins.
        BackupVolumeSnapshots = "BackupVolumeSnapshots",
        /// Moves and the like.
        BackupItemOperations = "BackupItemOperations",
        /// Names of its objects.
        BackupResourceList = "BackupResourceList",
        /// Warnings and errors.
        BackupResults = "BackupResults",
        /// What happened.
        RestoreLog = "RestoreLog",
        /// Warnings and errors.
        RestoreResults = "RestoreResults",
        /// Names of its objects, and what was done with each.
        RestoreResourceList = "RestoreResourceList",
        /// Moves and the like.
        RestoreItemOperations = "RestoreItemOperations",
        /// CSI snapshots, of backups before 1.17.
        CsiBackupVolumeSnapshots = "CSIBackupVolumeSnapshots",
        /// Their contents.
        CsiBackupVolumeSnapshotContents = "CSIBackupVolumeSnapshotContents",
        /// What was done with each volume.
        BackupVolumeInfos = "BackupVolumeInfos",
        /// What was done with each volume.
        RestoreVolumeInfo = "RestoreVolumeInfo",
    }
}

word! {
    /// How far a DownloadRequest is.
    pub enum DownloadPhase {
        /// Nobody has seen it.
        New = "New",
        /// It has an address.
        Processed = "Processed",
    }
}

object! {
    /// An object of the bucket.
    pub struct DownloadTarget {
        required {
            /// What.
            kind: DownloadTargetKind,
            /// Of which backup or restore.
            name: String,
        }
    }
}

object! {
    /// An address is wanted, from which an object of the bucket can be had.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "DownloadRequest", plural = "downloadrequests", namespaced,
        status = "DownloadRequestStatus"
    )]
    pub struct DownloadRequestSpec {
        required {
            /// What.
            target: DownloadTarget,
        }
    }
}

object! {
    /// What has become of a DownloadRequest.
    pub struct DownloadRequestStatus {
        optional {
            /// How far it is.
            phase: DownloadPhase,
            /// The address. Whoever knows it can read the object.
            #[serde(rename = "downloadURL")]
            download_url: String,
            /// Until when it is good.
            expiration: Option<Time>,
            /// Why there is none. Since 1.19.
            #[schemars(skip)]
            message: String,
        }
    }
}

word! {
    /// How far a ServerStatusRequest is.
    pub enum ServerStatusPhase {
        /// Nobody has seen it.
        New = "New",
        /// It is answered.
        Processed = "Processed",
    }
}

object! {
    /// Something that extends the server.
    pub struct Plugin {
        required {
            /// Its name.
            name: String,
            /// What it does, for instance `BackupItemActionV2`.
            kind: String,
        }
    }
}

object! {
    /// Who is the server?
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "ServerStatusRequest", plural = "serverstatusrequests",
        shortname = "ssr", namespaced, status = "ServerStatusRequestStatus"
    )]
    pub struct ServerStatusRequestSpec {}
}

object! {
    /// What the server says of itself.
    pub struct ServerStatusRequestStatus {
        optional {
            /// Whether it has.
            phase: ServerStatusPhase,
            /// When it did.
            processed_timestamp: Option<Time>,
            /// Its version, for instance `v1.18.3`.
            server_version: String,
            /// What extends it.
            #[schemars(extend("nullable" = true))]
            plugins: Vec<Plugin>,
        }
    }
}
