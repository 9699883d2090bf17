//! What all jobs of a node together may spend, as a ConfigMap says it. Rates change while jobs run; memory and processors
//! count for jobs that start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube_runtime::{WatchStreamExt as _, watcher};
use tradewind_k8s::quantity;
use tradewind_pipeline::limits::{Limits, MIN_MEMORY};

/// The budget of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Where nothing is said.
    machine: Limits,
    now: Arc<Mutex<Limits>>,
    slots: usize,
}

impl Budget {
    /// `machine` for `slots` jobs.
    pub(crate) fn new(machine: Limits, slots: usize) -> Self {
        Self { now: Arc::new(Mutex::new(machine.clone())), machine, slots }
    }

    /// How many jobs may run at once: as many as was asked for, but no more than there is memory for.
    pub(crate) fn at_once(&self) -> usize {
        let memory = self.now.lock().unwrap_or_else(PoisonError::into_inner).memory;
        usize::try_from(memory / MIN_MEMORY).unwrap_or(usize::MAX).clamp(1, self.slots.max(1))
    }

    /// What one job may spend: its part of the memory, and together with the others the rates.
    pub(crate) fn for_one(&self) -> Limits {
        let parts = self.at_once() as u64;
        let all = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Limits { memory: (all.memory / parts).max(MIN_MEMORY), ..all }
    }

    /// Takes over what a ConfigMap says; gives what is not understood, which changes nothing.
    pub(crate) fn set(&self, data: &BTreeMap<String, String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut amount = |name: &str| {
            let text = data.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())?;
            let read = quantity::bytes(text);
            if read.is_none() {
                wrong.push(format!("{name}: '{text}' is no amount such as 256Mi"));
            }
            read.filter(|amount| *amount > 0)
        };
        let (memory, workers) = (amount("memory"), amount("workers"));
        let (read_rate, upload_rate) = (amount("read-rate"), amount("upload-rate"));
        if !wrong.is_empty() {
            return wrong;
        }
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.memory = memory.unwrap_or(self.machine.memory);
        now.workers = workers.and_then(|n| usize::try_from(n).ok()).unwrap_or(self.machine.workers);
        now.read_rate.set(read_rate.unwrap_or(0));
        now.upload_rate.set(upload_rate.unwrap_or(0));
        let known = ["memory", "workers", "read-rate", "upload-rate"];
        let unknown = data.keys().filter(|name| !known.contains(&name.as_str()));
        unknown.map(|name| format!("there is no limit '{name}'")).collect()
    }

    /// Follows a ConfigMap for ever. Where there is none, the machine decides.
    pub(crate) async fn follow(self, maps: Api<ConfigMap>, name: String) {
        let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = std::pin::pin!(watcher(maps, one).default_backoff());
        while let Some(change) = changes.next().await {
            let data = match change {
                Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) => {
                    map.data.unwrap_or_default()
                }
                Ok(watcher::Event::Delete(_)) => BTreeMap::new(),
                Ok(watcher::Event::Init | watcher::Event::InitDone) => continue,
                Err(error) => {
                    tracing::warn!("watching ConfigMap {name}: {error}");
                    continue;
                }
            };
            for wrong in self.set(&data) {
                tracing::warn!("ConfigMap {name}: {wrong}");
            }
            let now = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (read_rate, upload_rate) = (now.read_rate.get(), now.upload_rate.get());
            tracing::info!(memory = now.memory, workers = now.workers, read_rate, upload_rate, "limits");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(budget: &Budget, text: &[(&str, &str)]) -> Vec<String> {
        budget.set(&text.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn what_is_said_counts_and_the_rest_is_the_machines() {
        let machine = Limits { memory: 512 << 20, workers: 8, ..Limits::default() };
        let budget = Budget::new(machine, 4);
        let running = budget.for_one();
        assert_eq!((running.memory, running.workers), (128 << 20, 8));
        let all = [("memory", "1Gi"), ("workers", "2"), ("read-rate", "0"), ("upload-rate", "50M")];
        assert!(set(&budget, &all).is_empty());
        let next = budget.for_one();
        assert_eq!((next.memory, next.workers), (256 << 20, 2));
        // A job that runs sees the rates, and nothing else.
        assert_eq!((running.upload_rate.get(), running.read_rate.get()), (50_000_000, 0));
        assert_eq!(running.memory, 128 << 20);
        // Rather fewer at once than less than a run needs.
        assert!(set(&budget, &[("memory", "200Mi")]).is_empty());
        assert_eq!((budget.at_once(), budget.for_one().memory), (3, (200 << 20) / 3));
        assert!(set(&budget, &[("memory", "1Mi")]).is_empty());
        assert_eq!((budget.at_once(), budget.for_one().memory), (1, MIN_MEMORY));
        assert!(set(&budget, &[]).is_empty());
        assert_eq!((budget.for_one().memory, running.upload_rate.get()), (128 << 20, 0));
    }

    #[test]
    fn what_is_not_understood_changes_nothing() {
        let budget = Budget::new(Limits::default(), 1);
        set(&budget, &[("upload-rate", "5M")]);
        let wrong = set(&budget, &[("upload-rate", "fast"), ("memory", "1Gi")]);
        assert_eq!(wrong, ["upload-rate: 'fast' is no amount such as 256Mi"]);
        assert_eq!(budget.for_one().upload_rate.get(), 5_000_000);
        assert_eq!(budget.for_one().memory, Limits::default().memory);
        assert_eq!(set(&budget, &[("rate", "5M")]), ["there is no limit 'rate'"]);
    }
}
