//! The ConfigMap that tells node agents what they may spend and how the pods look that hold volumes for them. Its name is
//! a flag of Velero's agent; it has one key, whatever it is called, with JSON.
//!
//! Source: Velero 1.18.3, `pkg/types/node_agent.go`, `pkg/nodeagent/node_agent.go`, `pkg/util/kube/pod.go`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};
use serde_json::Value;

use crate::object::object;
use crate::velero::Texts;

/// Why a ConfigMap is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Which of its keys would be meant?
    #[error("it has {0} keys, and must have one")]
    Keys(usize),
    /// The text is none.
    #[error("its key '{key}' is no configuration of a node agent: {source}")]
    Json {
        /// The key.
        key: String,
        /// Where, and what is wrong there.
        source: serde_json::Error,
    },
}

object! {
    /// What node agents may spend, and how their pods look.
    pub struct Config {
        optional {
            /// How many volumes at once.
            load_concurrency: LoadConcurrency,
            /// Where pods may be placed.
            load_affinity: Vec<LoadAffinity>,
            /// By the storage class of the claim that is backed up: how the volume is made that is read.
            #[serde(rename = "backupPVC")]
            backup_pvc: BTreeMap<String, BackupVolume>,
            /// How the volume is made that is filled.
            #[serde(rename = "restorePVC")]
            restore_pvc: RestoreVolume,
            /// What a pod may use.
            pod_resources: PodResources,
            /// Its priority class.
            priority_class_name: String,
            /// Pods that read other pods' volumes are privileged.
            privileged_fs_backup: bool,
            /// Volumes for caches of restores.
            #[serde(rename = "cachePVC")]
            cache_pvc: Option<CacheVolume>,
            /// What pods are annotated with.
            pod_annotations: Texts,
            /// What pods are labelled with.
            pod_labels: Texts,
        }
    }
}

object! {
    /// How many volumes at once.
    pub struct LoadConcurrency {
        optional {
            /// On a node without a rule of its own; 1 where it is not above 0.
            global_config: i64,
            /// Rules for nodes.
            per_node_config: Vec<NodeRule>,
            /// How many volumes may be in preparation in the whole cluster; 0 is no limit.
            prepare_queue_length: i64,
        }
    }
}

object! {
    /// A number for some nodes.
    pub struct NodeRule {
        optional {
            /// Which: all where nothing is said.
            node_selector: LabelSelector,
            /// How many volumes at once; the rule is void where it is not above 0.
            number: i64,
        }
    }
}

object! {
    /// Nodes for some volumes.
    pub struct LoadAffinity {
        optional {
            /// The nodes: all where nothing is said.
            node_selector: LabelSelector,
            /// For volumes of this storage class: for those without an entry of their own where none is named.
            storage_class: String,
        }
    }
}

object! {
    /// How a volume is made that is read.
    pub struct BackupVolume {
        optional {
            /// Another storage class than the claim's.
            storage_class: String,
            /// It is read by many and written by none.
            read_only: bool,
            /// SELinux labels of its files stay (`spc_t`). With `read_only` alone.
            spc_no_relabeling: bool,
            /// What its claim is annotated with.
            annotations: Texts,
            /// Secrets of the claim's namespace that its driver needs.
            secret_names: Vec<String>,
            /// ConfigMaps of the claim's namespace that its driver needs.
            config_map_names: Vec<String>,
        }
    }
}

object! {
    /// How a volume is made that is filled.
    pub struct RestoreVolume {
        optional {
            /// It does not wait for the pod that will use it.
            ignore_delay_binding: bool,
            /// Secrets of the target's namespace that its driver needs.
            secret_names: Vec<String>,
            /// ConfigMaps of the target's namespace that its driver needs.
            config_map_names: Vec<String>,
        }
    }
}

object! {
    /// A volume for the cache of a restore.
    pub struct CacheVolume {
        optional {
            /// Its storage class.
            storage_class: String,
            /// Data of less than this, in megabytes, needs none.
            #[serde(rename = "residentThresholdInMB")]
            resident_threshold_in_mb: i64,
        }
    }
}

object! {
    /// What a pod may use, as Kubernetes writes quantities; nothing is no limit.
    pub struct PodResources {
        optional {
            /// Processors that it is given.
            cpu_request: String,
            /// Processors that it may use.
            cpu_limit: String,
            /// Memory that it is given.
            memory_request: String,
            /// Memory that it may use.
            memory_limit: String,
            /// Space on the node that it is given.
            ephemeral_storage_request: String,
            /// Space on the node that it may use.
            ephemeral_storage_limit: String,
        }
    }
}

impl Config {
    /// Reads the data of a ConfigMap.
    ///
    /// # Errors
    /// When it has not one key, or that has no JSON of the right types.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut keys = data.iter();
        let (Some((key, text)), None) = (keys.next(), keys.next()) else {
            return Err(Error::Keys(data.len()));
        };
        serde_json::from_str(text).map_err(|source| Error::Json { key: key.clone(), source })
    }

    /// How many volumes at once on a node with these labels: the smallest number of all rules that match, else the number
    /// for all nodes. Rules that say nothing are left out, and named by their place in `void`.
    #[must_use]
    pub fn parallel(&self, labels: &Texts, void: &mut Vec<usize>) -> usize {
        let matching = |(n, rule): (usize, &NodeRule)| {
            let number = usize::try_from(rule.number).ok().filter(|number| *number > 0);
            let (Some(number), Ok(selector)) = (number, Selector::try_from(rule.node_selector.clone()))
            else {
                void.push(n);
                return None;
            };
            selector.matches(labels).then_some(number)
        };
        let smallest = self.load_concurrency.per_node_config.iter().enumerate().filter_map(matching).min();
        let global = usize::try_from(self.load_concurrency.global_config).ok().filter(|number| *number > 0);
        smallest.or(global).unwrap_or(1)
    }

    /// The nodes where volumes of this storage class may be: of its own entry, else of the first that is for all.
    #[must_use]
    pub fn nodes(&self, storage_class: &str) -> Option<&LabelSelector> {
        let of = |class: &str| self.load_affinity.iter().find(|entry| entry.storage_class == class);
        of(storage_class).or_else(|| of("")).map(|entry| &entry.node_selector)
    }

    /// Settings that are not known here, as paths like `backupPVC.gold.readonly`, for whoever wrote them to be told. Velero
    /// takes names in any case; here they are as documented.
    #[must_use]
    pub fn unknown(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut in_part = |place: &str, other: &BTreeMap<String, Value>| {
            found.extend(other.keys().map(|name| format!("{place}{name}")));
        };
        in_part("", &self.other);
        in_part("loadConcurrency.", &self.load_concurrency.other);
        for (n, rule) in self.load_concurrency.per_node_config.iter().enumerate() {
            in_part(&format!("loadConcurrency.perNodeConfig[{n}]."), &rule.other);
        }
        for (n, affinity) in self.load_affinity.iter().enumerate() {
            in_part(&format!("loadAffinity[{n}]."), &affinity.other);
        }
        for (class, volume) in &self.backup_pvc {
            in_part(&format!("backupPVC.{class}."), &volume.other);
        }
        in_part("restorePVC.", &self.restore_pvc.other);
        in_part("podResources.", &self.pod_resources.other);
        if let Some(cache) = &self.cache_pvc {
            in_part("cachePVC.", &cache.other);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::read(&[("whatever".to_owned(), text.to_owned())].into()).unwrap()
    }

    fn labels(text: &str) -> Texts {
        text.split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn one_key_with_json() {
        assert!(matches!(Config::read(&BTreeMap::new()), Err(Error::Keys(0))));
        let two = [("a".to_owned(), "{}".to_owned()), ("b".to_owned(), "{}".to_owned())];
        assert!(matches!(Config::read(&two.into()), Err(Error::Keys(2))));
        let bad =
            Config::read(&[("a".to_owned(), r#"{"loadConcurrency": 3}"#.to_owned())].into()).unwrap_err();
        assert!(bad.to_string().starts_with("its key 'a' is no configuration"), "{bad}");
        assert_eq!(config("{}"), Config::default());
        let config = config(
            r#"{"loadConcurency": {}, "backupPVC": {"gold": {"readonly": true}}, "loadAffinity": [{"storageclass": "a"}]}"#,
        );
        assert_eq!(
            config.unknown(),
            ["loadConcurency", "loadAffinity[0].storageclass", "backupPVC.gold.readonly"]
        );
    }

    #[test]
    fn the_smallest_number_that_matches() {
        let config = config(
            r#"{"loadConcurrency": {"globalConfig": 5, "perNodeConfig": [
                {"nodeSelector": {"matchLabels": {"disk": "fast"}}, "number": 3},
                {"nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}, "number": 2},
                {"nodeSelector": {}, "number": 0},
                {"nodeSelector": {"matchExpressions": [{"key": "zone", "operator": "Near"}]}, "number": 1}
            ]}}"#,
        );
        let parallel = |text: &str| {
            let mut void = Vec::new();
            let parallel = config.parallel(&labels(text), &mut void);
            assert_eq!(void, [2, 3], "{text}");
            parallel
        };
        assert_eq!(parallel("disk=fast"), 3);
        assert_eq!(parallel("disk=fast,zone=b"), 2);
        assert_eq!(parallel("disk=slow,zone=c"), 5);
        assert_eq!(Config::default().parallel(&labels("disk=fast"), &mut Vec::new()), 1);
    }

    #[test]
    fn a_storage_class_has_its_own_nodes() {
        let config = config(
            r#"{"loadAffinity": [
                {"nodeSelector": {"matchLabels": {"for": "gold"}}, "storageClass": "gold"},
                {"nodeSelector": {"matchLabels": {"for": "all"}}},
                {"nodeSelector": {"matchLabels": {"for": "nobody"}}}
            ]}"#,
        );
        let label = |class| config.nodes(class).unwrap().match_labels.as_ref().unwrap()["for"].clone();
        assert_eq!((label("gold"), label("silver")), ("gold".to_owned(), "all".to_owned()));
        assert_eq!(Config::default().nodes("gold"), None);
    }

    #[test]
    fn all_settings_are_read() {
        let text = r#"{"backupPVC": {"gold": {"storageClass": "copy", "readOnly": true, "spcNoRelabeling": true,
                "annotations": {"a": "b"}, "secretNames": ["s"], "configMapNames": ["c"]}},
            "restorePVC": {"ignoreDelayBinding": true}, "priorityClassName": "low", "privilegedFsBackup": true,
            "podResources": {"cpuRequest": "1", "memoryLimit": "1Gi", "ephemeralStorageLimit": "1Gi"},
            "cachePVC": {"storageClass": "scratch", "residentThresholdInMB": 100},
            "podAnnotations": {"x": "y"}, "podLabels": {"l": "m"}}"#;
        let read = config(text);
        let volume = &read.backup_pvc["gold"];
        assert!(volume.read_only && volume.spc_no_relabeling && read.restore_pvc.ignore_delay_binding);
        assert_eq!(read.pod_resources.ephemeral_storage_limit, "1Gi");
        assert_eq!(read.cache_pvc.as_ref().unwrap().resident_threshold_in_mb, 100);
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::from_str::<Value>(text).unwrap());
        assert!(read.unknown().is_empty());
    }
}
