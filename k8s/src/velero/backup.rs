//! What is backed up, and what has become of it.

use k8s_openapi::api::core::v1::TypedLocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::CustomResource;

use super::{BackupHooks, Duration, Texts, object, word};

word! {
    /// How far a backup is.
    pub enum BackupPhase {
        /// Nobody has seen it.
        New = "New",
        /// Others come first.
        Queued = "Queued",
        /// It is next.
        ReadyToStart = "ReadyToStart",
        /// What is asked for makes no sense: nothing was done.
        FailedValidation = "FailedValidation",
        /// Objects are collected.
        InProgress = "InProgress",
        /// Objects are there; volumes still move.
        WaitingForPluginOperations = "WaitingForPluginOperations",
        /// The same, with errors so far.
        WaitingForPluginOperationsPartiallyFailed = "WaitingForPluginOperationsPartiallyFailed",
        /// What the volumes' moves said is put into the backup.
        Finalizing = "Finalizing",
        /// The same, with errors so far.
        FinalizingPartiallyFailed = "FinalizingPartiallyFailed",
        /// All is there.
        Completed = "Completed",
        /// Some is there.
        PartiallyFailed = "PartiallyFailed",
        /// Nothing that could be restored.
        Failed = "Failed",
        /// It is being deleted, with its data.
        Deleting = "Deleting",
    }
}

object! {
    /// What the backups of a schedule are given.
    pub struct BackupMetadata {
        optional {
            /// Labels.
            labels: Texts,
            /// Annotations. Since 1.19.
            #[schemars(skip)]
            annotations: Texts,
        }
    }
}

object! {
    /// How files are read.
    pub struct UploaderForBackup {
        optional {
            /// How many at once; 0 leaves it to the uploader.
            parallel_files_upload: i64,
        }
    }
}

object! {
    /// A backup of objects and volumes.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "Backup", plural = "backups", namespaced, status = "BackupStatus"
    )]
    pub struct BackupSpec {
        optional {
            /// What backups made of this template are given.
            #[schemars(with = "BackupMetadata")]
            metadata: Option<BackupMetadata>,
            /// Namespaces, also as patterns: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_namespaces: Vec<String>,
            /// Namespaces that are left out.
            #[schemars(extend("nullable" = true))]
            excluded_namespaces: Vec<String>,
            /// Resources: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_resources: Vec<String>,
            /// Resources that are left out.
            #[schemars(extend("nullable" = true))]
            excluded_resources: Vec<String>,
            /// Resources without a namespace. Not beside the three older filters.
            #[schemars(extend("nullable" = true))]
            included_cluster_scoped_resources: Vec<String>,
            /// Those that are left out.
            #[schemars(extend("nullable" = true))]
            excluded_cluster_scoped_resources: Vec<String>,
            /// Resources in namespaces.
            #[schemars(extend("nullable" = true))]
            included_namespace_scoped_resources: Vec<String>,
            /// Those that are left out.
            #[schemars(extend("nullable" = true))]
            excluded_namespace_scoped_resources: Vec<String>,
            /// Objects without a namespace: those that belong to what is backed up where nothing is said.
            include_cluster_resources: Option<bool>,
            /// Labels that an object must have.
            label_selector: Option<LabelSelector>,
            /// One of these is enough. Not beside the other.
            #[schemars(extend("nullable" = true))]
            or_label_selectors: Vec<LabelSelector>,
            /// Volumes: yes where nothing is said.
            snapshot_volumes: Option<bool>,
            /// How long it is kept.
            #[schemars(with = "Duration")]
            ttl: Option<Duration>,
            /// Label of claims that are snapshotted together.
            volume_group_snapshot_label_key: String,
            /// Commands in pods.
            #[schemars(with = "BackupHooks")]
            hooks: Option<BackupHooks>,
            /// The BackupStorageLocation.
            storage_location: String,
            /// The VolumeSnapshotLocations.
            volume_snapshot_locations: Vec<String>,
            /// The older name of the next.
            default_volumes_to_restic: Option<bool>,
            /// Pods' volumes are read as files where they do not say otherwise.
            default_volumes_to_fs_backup: Option<bool>,
            /// By resource, which objects come first.
            #[schemars(extend("nullable" = true))]
            ordered_resources: Texts,
            /// How long a CSI snapshot may take.
            #[schemars(with = "Duration")]
            csi_snapshot_timeout: Option<Duration>,
            /// How long the move of a volume may take, waiting included.
            #[schemars(with = "Duration")]
            item_operation_timeout: Option<Duration>,
            /// A ConfigMap with rules for volumes.
            #[schemars(with = "TypedLocalObjectReference")]
            resource_policy: Option<TypedLocalObjectReference>,
            /// The data of snapshots is moved to the bucket.
            snapshot_move_data: Option<bool>,
            /// Who moves it: nothing or `velero` are Velero's own.
            #[serde(rename = "datamover")]
            data_mover: String,
            /// How files are read.
            uploader_config: Option<UploaderForBackup>,
            /// `Full`, or `Incremental`. Since 1.19.
            #[schemars(skip)]
            backup_type: String,
        }
    }
}

object! {
    /// How much of a backup is done.
    pub struct BackupProgress {
        optional {
            /// Objects that are known of; it grows.
            total_items: i64,
            /// Objects that are in it.
            items_backed_up: i64,
        }
    }
}

object! {
    /// What became of hooks.
    pub struct HookStatus {
        optional {
            /// How many ran.
            hooks_attempted: i64,
            /// How many of these failed.
            hooks_failed: i64,
        }
    }
}

object! {
    /// What has become of a backup.
    pub struct BackupStatus {
        optional {
            /// The older number of its format: 1.
            version: i64,
            /// Its format: `1.1.0`.
            format_version: String,
            /// When it may go.
            expiration: Option<Time>,
            /// How far it is.
            phase: BackupPhase,
            /// Place in the queue, from 1.
            queue_position: i64,
            /// What makes no sense in what was asked for.
            #[schemars(extend("nullable" = true))]
            validation_errors: Vec<String>,
            /// When it began.
            start_timestamp: Option<Time>,
            /// When it ended.
            completion_timestamp: Option<Time>,
            /// Snapshots by plugins that were begun.
            volume_snapshots_attempted: i64,
            /// Those that are there.
            volume_snapshots_completed: i64,
            /// Why it failed.
            failure_reason: String,
            /// How many warnings its log has.
            warnings: i64,
            /// How many errors.
            errors: i64,
            /// How much is done.
            progress: Option<BackupProgress>,
            /// CSI snapshots that were begun.
            csi_volume_snapshots_attempted: i64,
            /// Those that are there.
            csi_volume_snapshots_completed: i64,
            /// Moves and the like that were begun.
            backup_item_operations_attempted: i64,
            /// Those that are done.
            backup_item_operations_completed: i64,
            /// Those that failed.
            backup_item_operations_failed: i64,
            /// What became of its hooks.
            hook_status: Option<HookStatus>,
        }
    }
}
