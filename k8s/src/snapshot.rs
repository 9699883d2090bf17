//! Snapshots of volumes, as Kubernetes' own API for them has them: what a mover reads and writes of it.
//!
//! Source: kubernetes-csi/external-snapshotter, `client/apis/volumesnapshot/v1/types.go`.

use kube::CustomResource;

use crate::object::object;

/// On a content: which snapshotter of several looks after it.
pub const MANAGED_BY: &str = "snapshot.storage.kubernetes.io/managed-by";

object! {
    /// What a snapshot is of: one of both.
    pub struct SnapshotSource {
        optional {
            /// A claim.
            persistent_volume_claim_name: String,
            /// A content that is there already.
            volume_snapshot_content_name: String,
        }
    }
}

object! {
    /// Why something does not succeed.
    pub struct SnapshotError {
        optional {
            /// In words.
            message: String,
        }
    }
}

object! {
    /// A snapshot of a volume, as its users see it.
    #[derive(CustomResource)]
    #[kube(
        group = "snapshot.storage.k8s.io", version = "v1", kind = "VolumeSnapshot", namespaced,
        status = "VolumeSnapshotStatus", schema = "disabled"
    )]
    pub struct VolumeSnapshotSpec {
        required {
            /// What it is of.
            source: SnapshotSource,
        }
        optional {
            /// How it is taken.
            volume_snapshot_class_name: String,
        }
    }
}

object! {
    /// What has become of a VolumeSnapshot.
    pub struct VolumeSnapshotStatus {
        optional {
            /// The content that it is bound to.
            bound_volume_snapshot_content_name: String,
            /// A volume can be made from it.
            ready_to_use: bool,
            /// The least size of such a volume, as a quantity.
            restore_size: String,
            /// What went wrong last.
            error: Option<SnapshotError>,
        }
    }
}

object! {
    /// What a content is: one of both.
    pub struct ContentSource {
        optional {
            /// The volume that it was taken of.
            volume_handle: String,
            /// The snapshot that was there.
            snapshot_handle: String,
        }
    }
}

object! {
    /// The snapshot of a content.
    pub struct SnapshotReference {
        optional {
            /// Its namespace.
            namespace: String,
            /// Its name.
            name: String,
            /// Its UID; nothing while there is none.
            uid: String,
        }
    }
}

object! {
    /// A snapshot of a volume, as the storage has it.
    #[derive(CustomResource)]
    #[kube(
        group = "snapshot.storage.k8s.io", version = "v1", kind = "VolumeSnapshotContent",
        status = "VolumeSnapshotContentStatus", schema = "disabled"
    )]
    pub struct VolumeSnapshotContentSpec {
        required {
            /// Whose it is.
            volume_snapshot_ref: SnapshotReference,
            /// `Delete` or `Retain`: what becomes of the storage's snapshot when this object is deleted.
            deletion_policy: String,
            /// The CSI driver.
            driver: String,
            /// What it is.
            source: ContentSource,
        }
        optional {
            /// How it was taken.
            volume_snapshot_class_name: String,
            /// `Filesystem` or `Block`.
            source_volume_mode: String,
        }
    }
}

object! {
    /// What has become of a VolumeSnapshotContent.
    pub struct VolumeSnapshotContentStatus {
        optional {
            /// The storage's name for it.
            snapshot_handle: String,
            /// A volume can be made from it.
            ready_to_use: bool,
            /// The least size of such a volume, in bytes.
            restore_size: i64,
            /// What went wrong last.
            error: Option<SnapshotError>,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_content_is_written_as_it_was_read() {
        let text = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "a"},
            "spec": {"deletionPolicy": "Retain", "driver": "d", "source": {"snapshotHandle": "s"},
                "volumeSnapshotRef": {"name": "v", "namespace": "n", "fieldPath": "x"}, "sourceVolumeMode": "Block"},
            "status": {"restoreSize": 5, "readyToUse": true, "creationTime": 7},
        });
        let content: VolumeSnapshotContent = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(content.status.as_ref().unwrap().restore_size, 5);
        assert_eq!(serde_json::to_value(&content).unwrap(), text);
    }
}
