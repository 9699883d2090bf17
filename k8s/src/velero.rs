//! Velero's custom resources, of group `velero.io`.
//!
//! Every object keeps the fields that it does not know (`other`) and gives them back when it is written: a server or a
//! client that is newer than this crate loses nothing. A field that is missing, `null` or empty is the same to Velero and
//! is the same here: its type's default, which is not written. Only where nothing and the default mean two things it is an
//! `Option`.
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

use serde::{Deserialize, Deserializer, Serialize};

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

/// A part of an object: `required` fields are always written, `optional` ones unless they are their type's default.
macro_rules! object {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(required { $($(#[$required_meta:meta])* $required:ident: $required_type:ty,)+ })?
            $(optional { $($(#[$optional_meta:meta])* $optional:ident: $optional_type:ty,)+ })?
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        $(#[$meta])*
        pub struct $name {
            $($($(#[$required_meta])* pub $required: $required_type,)+)?
            $($(
                $(#[$optional_meta])*
                #[serde(
                    default,
                    deserialize_with = "crate::velero::null_is_default",
                    skip_serializing_if = "crate::velero::is_default"
                )]
                pub $optional: $optional_type,
            )+)?
            /// Fields that are not known here, as they were read.
            #[serde(flatten)]
            #[schemars(skip)]
            pub other: std::collections::BTreeMap<String, serde_json::Value>,
        }
    };
}

/// One of several words. The first is the default; a word that is not known is kept.
macro_rules! word {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $(#[$first_meta:meta])* $first:ident = $first_word:literal,
            $($(#[$variant_meta:meta])* $variant:ident = $variant_word:literal,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub enum $name {
            $(#[$first_meta])*
            #[default]
            $first,
            $($(#[$variant_meta])* $variant,)*
            /// A word of a later version.
            Other(String),
        }

        impl $name {
            /// The word that is written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    Self::$first => $first_word,
                    $(Self::$variant => $variant_word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word: String = serde::Deserialize::deserialize(deserializer)?;
                Ok(match word.as_str() {
                    $first_word => Self::$first,
                    $($variant_word => Self::$variant,)*
                    _ => Self::Other(word),
                })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "enum": [$first_word, $($variant_word),*]})
            }
        }
    };
}

use {object, word};

/// A field that is `null` is one that is not there.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What need not be written.
fn is_default<T: Default + PartialEq + Serialize>(value: &T) -> bool {
    *value == T::default()
}

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
