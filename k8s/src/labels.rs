//! Keys of labels and annotations, and how a value becomes a label's.
//!
//! Source: Velero 1.18.3, `pkg/apis/velero/v1/labels_annotations.go` and `pkg/label/label.go`.

use aws_lc_rs::digest::{SHA256, digest};

/// On everything that belongs to a backup: its name, [shortened](value).
pub const BACKUP_NAME: &str = "velero.io/backup-name";
/// On everything that belongs to a backup: its UID.
pub const BACKUP_UID: &str = "velero.io/backup-uid";
/// On everything that belongs to a restore: its name, [shortened](value).
pub const RESTORE_NAME: &str = "velero.io/restore-name";
/// On everything that belongs to a restore: its UID.
pub const RESTORE_UID: &str = "velero.io/restore-uid";
/// On a backup: the schedule that made it, not shortened.
pub const SCHEDULE_NAME: &str = "velero.io/schedule-name";
/// On backups and repositories: their storage location, [shortened](value).
pub const STORAGE_LOCATION: &str = "velero.io/storage-location";
/// On a DataUpload, and on what moves a pod's volume that is a claim's: the claim's UID. A DataDownload has none.
pub const PVC_UID: &str = "velero.io/pvc-uid";
/// On a PodVolumeRestore: the pod's UID. A PodVolumeBackup has it in its tags.
pub const POD_UID: &str = "velero.io/pod-uid";
/// On a DataUpload (`du-BACKUP.PVC`) or a DataDownload (`dd-RESTORE.PVC`, both of UIDs, [shortened](value)): by which the
/// server finds it again.
pub const ASYNC_OPERATION_ID: &str = "velero.io/async-operation-id";
/// In the selector of a claim that is being restored, and on the volume that it shall get.
pub const DYNAMIC_PV_RESTORE: &str = "velero.io/dynamic-pv-restore";

/// The longest value that a label may have, in bytes.
const LONGEST: usize = 63;
/// How much of the hash stands at the end of a shortened one, in hexadecimal digits.
const HASH: usize = 6;

/// The value of a label for `text`: itself, or where it is too long its beginning and a hash of it. Both sides of a
/// selector go through this.
#[must_use]
pub fn value(text: &str) -> String {
    if text.len() <= LONGEST {
        return text.to_owned();
    }
    // Names in Kubernetes are ASCII; anything else is cut where a character begins.
    let beginning = &text[..text.floor_char_boundary(LONGEST - HASH)];
    let hash = hex::encode(digest(&SHA256, text.as_bytes()));
    format!("{beginning}{}", &hash[..HASH])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_keep_their_beginning() {
        let longest = "a".repeat(63);
        assert_eq!(value(&longest), longest);
        // printf 'a%.0s' {1..64} | sha256sum
        assert_eq!(value(&"a".repeat(64)), format!("{}ffe054", "a".repeat(57)));
        assert_eq!(value(""), "");
    }

    #[test]
    fn a_value_is_cut_between_characters() {
        let text = format!("{}é{}", "a".repeat(56), "b".repeat(20));
        assert!(value(&text).starts_with(&"a".repeat(56)) && value(&text).len() == 62);
    }
}
