//! Backups again and again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;

use super::{BackupSpec, object, word};

word! {
    /// Whether a schedule works.
    pub enum SchedulePhase {
        /// Nobody has seen it.
        New = "New",
        /// It does.
        Enabled = "Enabled",
        /// It makes no sense.
        FailedValidation = "FailedValidation",
    }
}

object! {
    /// A backup again and again.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "Schedule", plural = "schedules", namespaced,
        status = "ScheduleStatus",
        printcolumn(name = "Status", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
        printcolumn(name = "LastBackup", type_ = "date", json_path = ".status.lastBackup"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused")
    )]
    pub struct ScheduleSpec {
        required {
            /// Each of the backups.
            template: BackupSpec,
            /// When, as in cron.
            schedule: String,
        }
        optional {
            /// Its backups go with it.
            use_owner_references_in_backup: Option<bool>,
            /// No backup is made.
            paused: bool,
            /// The backup that was missed is not made at once: as the server is set where nothing is said.
            #[schemars(with = "bool")]
            skip_immediately: Option<bool>,
        }
    }
}

object! {
    /// What has become of a schedule.
    pub struct ScheduleStatus {
        optional {
            /// Whether it works.
            phase: SchedulePhase,
            /// When its last backup was made.
            last_backup: Option<Time>,
            /// When one was left out.
            last_skipped: Option<Time>,
            /// What makes no sense.
            validation_errors: Vec<String>,
        }
    }
}
