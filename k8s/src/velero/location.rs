//! Where backups and snapshots are.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::SecretKeySelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{Duration, Texts, object, word};

word! {
    /// What may be done with a location.
    pub enum AccessMode {
        /// All, and where nothing is said.
        ReadWrite = "ReadWrite",
        /// Nothing is written or deleted.
        ReadOnly = "ReadOnly",
    }
}

word! {
    /// Whether a location can be used.
    pub enum LocationPhase {
        /// It can.
        Available = "Available",
        /// It cannot.
        Unavailable = "Unavailable",
    }
}

object! {
    /// A part of a bucket.
    pub struct ObjectStorage {
        required {
            /// The bucket.
            bucket: String,
        }
        optional {
            /// Everything is below it.
            prefix: String,
            /// Certificates (PEM) that the store's is checked by. The older way.
            #[schemars(with = "Base64")]
            ca_cert: Option<ByteString>,
            /// The same in a Secret.
            #[schemars(with = "SecretKeySelector")]
            ca_cert_ref: Option<SecretKeySelector>,
        }
    }
}

/// The schema of bytes in a text.
struct Base64;

impl schemars::JsonSchema for Base64 {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Base64".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "byte"})
    }
}

object! {
    /// Where backups are.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "BackupStorageLocation", plural = "backupstoragelocations",
        shortname = "bsl", namespaced, status = "BackupStorageLocationStatus",
        printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Last Validated", type_ = "date", json_path = ".status.lastValidationTime"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default")
    )]
    pub struct BackupStorageLocationSpec {
        required {
            /// Kind of store: `aws`, `velero.io/aws`, ...
            provider: String,
            /// The bucket.
            object_storage: ObjectStorage,
        }
        optional {
            /// Settings of the provider.
            config: Texts,
            /// Who may use the bucket: the installation's own Secret where none is named.
            #[schemars(with = "SecretKeySelector")]
            credential: Option<SecretKeySelector>,
            /// Backups that name none go here.
            default: bool,
            /// What may be done.
            access_mode: AccessMode,
            /// How often backups of other clusters are looked for; 0 is never.
            backup_sync_period: Option<Duration>,
            /// How often it is tried; 0 is never.
            validation_frequency: Option<Duration>,
        }
    }
}

object! {
    /// What has become of a BackupStorageLocation.
    pub struct BackupStorageLocationStatus {
        optional {
            /// Whether it can be used; nothing while nobody has tried.
            #[schemars(with = "LocationPhase")]
            phase: Option<LocationPhase>,
            /// When backups were last looked for.
            last_synced_time: Option<Time>,
            /// When it was last tried.
            last_validation_time: Option<Time>,
            /// Why it cannot be used.
            message: String,
            /// No longer used.
            last_synced_revision: String,
            /// No longer used.
            #[schemars(with = "AccessMode")]
            access_mode: Option<AccessMode>,
        }
    }
}

object! {
    /// Where the snapshots of a plugin are.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "VolumeSnapshotLocation", plural = "volumesnapshotlocations",
        shortname = "vsl", namespaced, status = "VolumeSnapshotLocationStatus"
    )]
    pub struct VolumeSnapshotLocationSpec {
        required {
            /// Whose snapshots.
            provider: String,
        }
        optional {
            /// Settings of the provider.
            config: Texts,
            /// Who may take them: the installation's own Secret where none is named.
            #[schemars(with = "SecretKeySelector")]
            credential: Option<SecretKeySelector>,
        }
    }
}

object! {
    /// What has become of a VolumeSnapshotLocation.
    pub struct VolumeSnapshotLocationStatus {
        optional {
            /// Whether it can be used. Nobody tries.
            #[schemars(with = "LocationPhase")]
            phase: Option<LocationPhase>,
        }
    }
}
