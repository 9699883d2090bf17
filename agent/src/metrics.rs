//! Figures for Prometheus. Where Velero's node agent has one, it has the same name here (Velero 1.18.3,
//! `pkg/metrics/metrics.go`); the rest begins with `tradewind_`. Bytes and seconds unless said otherwise.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter as Total;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tradewind_k8s::velero::MovePhase;
use tradewind_pipeline::progress::{Counter, Progress};

/// What the data plane counts, by name.
const COUNTED: [(Counter, &str); 10] = [
    (Counter::Done, "done"),
    (Counter::Read, "read"),
    (Counter::Holes, "holes"),
    (Counter::Reused, "reused"),
    (Counter::New, "new"),
    (Counter::Stored, "stored"),
    (Counter::Uploaded, "uploaded"),
    (Counter::Fetched, "fetched"),
    (Counter::Written, "written"),
    (Counter::Retries, "retries"),
];
/// What is waited for, in the order of [`tradewind_pipeline::progress::Station`].
const STATIONS: [&str; 3] = ["disk", "cpu", "store"];

type Labels = Vec<(&'static str, String)>;

/// The figures of an agent.
pub(crate) struct Metrics {
    registry: Registry,
    node: String,
    /// By kind and phase of a job that has ended.
    ended: [(&'static str, MovePhase, Family<Labels, Total>); 6],
    moved: Family<Labels, Total>,
    retries: Total,
    waited: Family<Labels, Total<f64, AtomicU64>>,
    running: Gauge,
    waiting: Gauge,
    forgotten: Total,
    key_not_exported: Gauge,
    engines: Family<Labels, Total>,
}

/// What a job had counted when it was last looked at.
#[derive(Debug, Default)]
pub(crate) struct Last {
    counted: [u64; COUNTED.len()],
    waited: [u64; STATIONS.len()],
}

impl Metrics {
    pub(crate) fn new(node: &str) -> Self {
        let mut registry = Registry::default();
        let mut this = Self {
            node: node.to_owned(),
            ended: [
                ("DataUpload", MovePhase::Completed, Family::default()),
                ("DataUpload", MovePhase::Failed, Family::default()),
                ("DataUpload", MovePhase::Canceled, Family::default()),
                ("DataDownload", MovePhase::Completed, Family::default()),
                ("DataDownload", MovePhase::Failed, Family::default()),
                ("DataDownload", MovePhase::Canceled, Family::default()),
            ],
            moved: Family::default(),
            retries: Total::default(),
            waited: Family::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            forgotten: Total::default(),
            key_not_exported: Gauge::default(),
            engines: Family::default(),
            registry: Registry::default(),
        };
        let velero = registry.sub_registry_with_prefix("podVolume");
        let names = [
            ("data_upload_success", "Uploads that are complete"),
            ("data_upload_failure", "Uploads that failed"),
            ("data_upload_cancel", "Uploads that were canceled"),
            ("data_download_success", "Downloads that are complete"),
            ("data_download_failure", "Downloads that failed"),
            ("data_download_cancel", "Downloads that were canceled"),
        ];
        for ((name, help), (_, _, family)) in names.into_iter().zip(&this.ended) {
            // So that it is there, as 0, before the first.
            let _ = family.get_or_create(&this.labels());
            velero.register(name, help, family.clone());
        }
        let own = registry.sub_registry_with_prefix("tradewind");
        own.register_with_unit(
            "moved",
            "What has become of the bytes of volumes",
            Unit::Bytes,
            this.moved.clone(),
        );
        own.register("retries", "Requests to stores that were tried again", this.retries.clone());
        own.register_with_unit(
            "waited",
            "Time that others stood still for a part of the data plane: the bottleneck grows fastest",
            Unit::Seconds,
            this.waited.clone(),
        );
        own.register("jobs_running", "Volumes whose data moves now", this.running.clone());
        own.register("jobs_waiting", "Volumes that are ready and wait for their turn", this.waiting.clone());
        own.register("snapshots_forgotten", "Snapshots whose backup is gone", this.forgotten.clone());
        own.register(
            "key_not_exported",
            "1 while nobody has said that there is a copy of the key that was generated",
            this.key_not_exported.clone(),
        );
        own.register(
            "runs",
            "Runs of the data plane by the way they read and wrote disks",
            this.engines.clone(),
        );
        this.registry = registry;
        this
    }

    fn labels(&self) -> Labels {
        vec![("node", self.node.clone())]
    }

    /// The text that Prometheus reads.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map(|()| text)
    }

    /// A job has ended.
    pub(crate) fn ended(&self, kind: &str, phase: &MovePhase) {
        if let Some((.., family)) = self.ended.iter().find(|(k, p, _)| *k == kind && p == phase) {
            family.get_or_create(&self.labels()).inc();
        }
    }

    /// Adds what a run has counted since it was last looked at.
    pub(crate) fn add(&self, progress: &Progress, last: &mut Last) {
        for ((counter, name), before) in COUNTED.iter().zip(&mut last.counted) {
            let now = progress.get(*counter);
            let more = now.saturating_sub(std::mem::replace(before, now));
            match counter {
                Counter::Retries => self.retries.inc_by(more),
                _ => self.moved.get_or_create(&vec![("what", (*name).to_owned())]).inc_by(more),
            };
        }
        for ((name, now), before) in STATIONS.iter().zip(progress.waits()).zip(&mut last.waited) {
            let nanoseconds = now.saturating_sub(std::mem::replace(before, now));
            let seconds = std::time::Duration::from_nanos(nanoseconds).as_secs_f64();
            self.waited.get_or_create(&vec![("station", (*name).to_owned())]).inc_by(seconds);
        }
    }

    /// How many jobs move data, and how many wait for their turn.
    pub(crate) fn jobs(&self, running: usize, waiting: usize) {
        self.running.set(i64::try_from(running).unwrap_or(i64::MAX));
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    /// A snapshot was forgotten.
    pub(crate) fn forgot(&self) {
        self.forgotten.inc();
    }

    /// Whether somebody has said that there is a copy of the key.
    pub(crate) fn key_exported(&self, exported: bool) {
        self.key_not_exported.set(i64::from(!exported));
    }

    /// A run has used an engine.
    pub(crate) fn used(&self, engine: &str) {
        self.engines.get_or_create(&vec![("engine", engine.to_owned())]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_names_that_dashboards_know() {
        let metrics = Metrics::new("one");
        metrics.ended("DataUpload", &MovePhase::Completed);
        metrics.ended("DataDownload", &MovePhase::Canceled);
        metrics.ended("Something", &MovePhase::Completed);
        let (progress, mut last) = (Progress::default(), Last::default());
        progress.add(Counter::Read, 5);
        metrics.add(&progress, &mut last);
        progress.add(Counter::Read, 2);
        metrics.add(&progress, &mut last);
        metrics.key_exported(false);
        metrics.jobs(2, 1);
        metrics.used("pread");
        let text = metrics.text().unwrap();
        for line in [
            r#"podVolume_data_upload_success_total{node="one"} 1"#,
            r#"podVolume_data_upload_failure_total{node="one"} 0"#,
            r#"podVolume_data_download_cancel_total{node="one"} 1"#,
            r#"tradewind_moved_bytes_total{what="read"} 7"#,
            "tradewind_key_not_exported 1",
            "tradewind_jobs_running 2",
            r#"tradewind_runs_total{engine="pread"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
