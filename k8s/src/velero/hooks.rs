//! Commands that run in pods before and after they are backed up or restored.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::{Duration, object, word};

word! {
    /// What a command that fails does to the backup or restore.
    pub enum HookErrorMode {
        /// It goes on, with an error in it.
        Continue = "Continue",
        /// It goes on no further with this item.
        Fail = "Fail",
    }
}

object! {
    /// The hooks of a backup.
    pub struct BackupHooks {
        optional {
            /// For which items which.
            #[schemars(extend("nullable" = true))]
            resources: Vec<BackupHookSpec>,
        }
    }
}

object! {
    /// Which items have which hooks.
    pub struct BackupHookSpec {
        required {
            /// Of the set.
            name: String,
        }
        optional {
            /// Namespaces that it is for: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_namespaces: Vec<String>,
            /// Namespaces that it is not for.
            #[schemars(extend("nullable" = true))]
            excluded_namespaces: Vec<String>,
            /// Resources that it is for: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_resources: Vec<String>,
            /// Resources that it is not for.
            #[schemars(extend("nullable" = true))]
            excluded_resources: Vec<String>,
            /// Labels of the items that it is for.
            label_selector: Option<LabelSelector>,
            /// Before the item is backed up.
            #[serde(rename = "pre")]
            before: Vec<BackupHook>,
            /// After it.
            #[serde(rename = "post")]
            after: Vec<BackupHook>,
        }
    }
}

object! {
    /// One hook of a backup.
    pub struct BackupHook {
        required {
            /// The command.
            exec: ExecHook,
        }
    }
}

object! {
    /// A command in a pod.
    pub struct ExecHook {
        required {
            /// Program and arguments.
            #[schemars(length(min = 1))]
            command: Vec<String>,
        }
        optional {
            /// Where: the first container where none is named.
            container: String,
            /// If it fails: it continues where nothing is said.
            #[schemars(with = "HookErrorMode")]
            on_error: Option<HookErrorMode>,
            /// How long it may take.
            #[schemars(with = "Duration")]
            timeout: Option<Duration>,
        }
    }
}

object! {
    /// The hooks of a restore.
    pub struct RestoreHooks {
        optional {
            /// For which items which.
            resources: Vec<RestoreHookSpec>,
        }
    }
}

object! {
    /// Which restored items have which hooks.
    pub struct RestoreHookSpec {
        required {
            /// Of the set.
            name: String,
        }
        optional {
            /// Namespaces that it is for: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_namespaces: Vec<String>,
            /// Namespaces that it is not for.
            #[schemars(extend("nullable" = true))]
            excluded_namespaces: Vec<String>,
            /// Resources that it is for: all where none is named.
            #[schemars(extend("nullable" = true))]
            included_resources: Vec<String>,
            /// Resources that it is not for.
            #[schemars(extend("nullable" = true))]
            excluded_resources: Vec<String>,
            /// Labels of the items that it is for.
            label_selector: Option<LabelSelector>,
            /// After the item is restored.
            post_hooks: Vec<RestoreHook>,
        }
    }
}

object! {
    /// One hook of a restore: a command, or containers that run before the pod's own.
    pub struct RestoreHook {
        optional {
            /// A command in the restored pod.
            #[schemars(with = "ExecRestoreHook")]
            exec: Option<ExecRestoreHook>,
            /// Containers that run before the pod's.
            #[schemars(with = "InitRestoreHook")]
            init: Option<InitRestoreHook>,
        }
    }
}

object! {
    /// A command in a restored pod.
    pub struct ExecRestoreHook {
        required {
            /// Program and arguments.
            #[schemars(length(min = 1))]
            command: Vec<String>,
        }
        optional {
            /// Where: the first container where none is named.
            container: String,
            /// If it fails: it continues where nothing is said.
            #[schemars(with = "HookErrorMode")]
            on_error: Option<HookErrorMode>,
            /// How long it may take.
            #[schemars(with = "Duration")]
            exec_timeout: Option<Duration>,
            /// How long the container may take to run.
            #[schemars(with = "Duration")]
            wait_timeout: Option<Duration>,
            /// It waits until the container is ready, not only runs.
            wait_for_ready: Option<bool>,
        }
    }
}

object! {
    /// Containers that run before those of a restored pod.
    pub struct InitRestoreHook {
        optional {
            /// The containers, as in a pod.
            #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
            #[schemars(with = "Vec<Anything>")]
            init_containers: Vec<Value>,
            /// How long they may take.
            #[schemars(with = "Duration")]
            timeout: Option<Duration>,
        }
    }
}

/// The schema of an object of any kind.
struct Anything;

impl schemars::JsonSchema for Anything {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Anything".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
    }
}
