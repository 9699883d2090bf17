//! What is restored, and what has become of it.

use k8s_openapi::api::core::v1::TypedLocalObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::CustomResource;

use super::{Duration, HookStatus, RestoreHooks, Texts, object, word};

word! {
    /// How far a restore is.
    pub enum RestorePhase {
        /// Nobody has seen it.
        New = "New",
        /// What is asked for makes no sense: nothing was done.
        FailedValidation = "FailedValidation",
        /// Objects are made.
        InProgress = "InProgress",
        /// Objects are there; volumes still move.
        WaitingForPluginOperations = "WaitingForPluginOperations",
        /// The same, with errors so far.
        WaitingForPluginOperationsPartiallyFailed = "WaitingForPluginOperationsPartiallyFailed",
        /// All is there.
        Completed = "Completed",
        /// Some is there.
        PartiallyFailed = "PartiallyFailed",
        /// It could not be done.
        Failed = "Failed",
        /// Volumes are given what they had, and hooks are waited for.
        Finalizing = "Finalizing",
        /// The same, with errors so far.
        FinalizingPartiallyFailed = "FinalizingPartiallyFailed",
    }
}

object! {
    /// Whose status is restored too: nobody's where there is no such object.
    pub struct RestoreStatusOf {
        optional {
            /// Of these resources: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_resources: Vec<String>,
            /// Not of these.
            #[schemars(extend("nullable" = true))]
            excluded_resources: Vec<String>,
        }
    }
}

object! {
    /// How files are written.
    pub struct UploaderForRestore {
        optional {
            /// Zeros become holes.
            write_sparse_files: Option<bool>,
            /// How many at once; 0 leaves it to the uploader.
            parallel_files_download: i64,
        }
    }
}

object! {
    /// A restore of what a backup has.
    #[derive(CustomResource)]
    #[kube(
        group = "velero.io", version = "v1", kind = "Restore", plural = "restores", namespaced,
        status = "RestoreStatus"
    )]
    pub struct RestoreSpec {
        optional {
            /// The backup, or else the schedule.
            backup_name: String,
            /// The schedule whose newest backup it is.
            schedule_name: String,
            /// Namespaces as they were, also as patterns: all where none is named.
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
            /// From a namespace as it was to the one that it becomes.
            namespace_mapping: Texts,
            /// Labels that an object must have.
            label_selector: Option<LabelSelector>,
            /// One of these is enough. Not beside the other.
            #[schemars(extend("nullable" = true))]
            or_label_selectors: Vec<LabelSelector>,
            /// Volumes: yes where nothing is said.
            #[serde(rename = "restorePVs")]
            restore_pvs: Option<bool>,
            /// Whose status is restored too.
            restore_status: Option<RestoreStatusOf>,
            /// Services keep their node ports.
            preserve_node_ports: Option<bool>,
            /// Objects without a namespace: those that belong to what is restored where nothing is said.
            include_cluster_resources: Option<bool>,
            /// Commands in pods.
            #[schemars(with = "RestoreHooks")]
            hooks: Option<RestoreHooks>,
            /// What happens to objects that are there: `none`, or `update`.
            #[schemars(extend("nullable" = true))]
            existing_resource_policy: String,
            /// How long the move of a volume may take, waiting included.
            #[schemars(with = "Duration")]
            item_operation_timeout: Option<Duration>,
            /// A ConfigMap with changes to objects.
            resource_modifier: Option<TypedLocalObjectReference>,
            /// A ConfigMap with finer filters.
            resource_policy: Option<TypedLocalObjectReference>,
            /// How files are written.
            uploader_config: Option<UploaderForRestore>,
            /// The server's own changes to objects are left out. Since 1.19.
            #[schemars(skip)]
            skip_default_resource_modifier: Option<bool>,
        }
    }
}

object! {
    /// How much of a restore is done.
    pub struct RestoreProgress {
        optional {
            /// Objects that are known of; it grows.
            total_items: i64,
            /// Objects that are there.
            items_restored: i64,
        }
    }
}

object! {
    /// What has become of a restore.
    pub struct RestoreStatus {
        optional {
            /// How far it is.
            phase: RestorePhase,
            /// What makes no sense in what was asked for.
            #[schemars(extend("nullable" = true))]
            validation_errors: Vec<String>,
            /// How many warnings its log has.
            warnings: i64,
            /// How many errors.
            errors: i64,
            /// Why it failed.
            failure_reason: String,
            /// When it began.
            start_timestamp: Option<Time>,
            /// When it ended.
            completion_timestamp: Option<Time>,
            /// How much is done.
            progress: Option<RestoreProgress>,
            /// Moves and the like that were begun.
            restore_item_operations_attempted: i64,
            /// Those that are done.
            restore_item_operations_completed: i64,
            /// Those that failed.
            restore_item_operations_failed: i64,
            /// What became of its hooks.
            hook_status: Option<HookStatus>,
        }
    }
}
