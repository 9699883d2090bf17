//! Repositories of Velero's own movers, one for each namespace and location.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{Duration, Texts, Uploader, object, word};

word! {
    /// Whether a repository can be used.
    pub enum RepositoryPhase {
        /// Nobody has seen it.
        New = "New",
        /// It can.
        Ready = "Ready",
        /// It cannot.
        NotReady = "NotReady",
    }
}

word! {
    /// How a maintenance ended.
    pub enum MaintenanceResult {
        /// Well.
        Succeeded = "Succeeded",
        /// Its message says why.
        Failed = "Failed",
    }
}

object! {
    /// A repository.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "BackupRepository", plural = "backuprepositories", namespaced,
        status = "BackupRepositoryStatus",
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Repository Type", type_ = "string", json_path = ".spec.repositoryType")
    )]
    pub struct BackupRepositorySpec {
        required {
            /// The namespace whose volumes are in it.
            volume_namespace: String,
            /// The BackupStorageLocation that it is in.
            backup_storage_location: String,
            /// How often it is maintained.
            maintenance_frequency: Duration,
        }
        optional {
            /// Whose format.
            repository_type: Uploader,
            /// Of restic, of old.
            restic_identifier: String,
            /// Settings of the format.
            #[schemars(extend("nullable" = true))]
            repository_config: Texts,
        }
    }
}

object! {
    /// One maintenance.
    pub struct Maintenance {
        optional {
            /// How it ended.
            #[schemars(with = "MaintenanceResult")]
            result: Option<MaintenanceResult>,
            /// When it began.
            start_timestamp: Option<Time>,
            /// When it ended.
            complete_timestamp: Option<Time>,
            /// Why it failed.
            message: String,
        }
    }
}

object! {
    /// What has become of a repository.
    pub struct BackupRepositoryStatus {
        optional {
            /// Whether it can be used.
            phase: RepositoryPhase,
            /// Why it cannot be.
            message: String,
            /// When it was last maintained.
            last_maintenance_time: Option<Time>,
            /// The last of them.
            recent_maintenance: Vec<Maintenance>,
        }
    }
}
