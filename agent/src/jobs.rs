//! The jobs whose data this agent moves now, and what it may spend on them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tradewind_pipeline::progress::Progress;

use crate::budget::Budget;
use crate::handover::Held;
use crate::life::Work;
use crate::metrics::{Last, Metrics};
use crate::objects::Uid;

/// How often a running job is looked at, to say how much has moved. The server asks every 10 seconds.
const BEAT: Duration = Duration::from_secs(3);

/// What became of a job's data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    /// The snapshot that was made or restored.
    pub(crate) snapshot: String,
    /// Bytes of the volume.
    pub(crate) total: u64,
    /// Bytes that were not in the bucket before.
    pub(crate) new: u64,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

/// How a job's work has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Well.
    Done(Moved),
    /// It was asked to.
    Stopped,
    /// Otherwise: why.
    Failed(String),
}

struct Running {
    progress: Arc<Progress>,
    ended: Option<Ended>,
}

#[derive(Default)]
struct State {
    running: HashMap<Uid, Running>,
    /// Those that wait until one of the others has ended.
    waiting: HashSet<Uid>,
}

/// The jobs of this agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Jobs {
    state: Arc<Mutex<State>>,
    budget: Budget,
    metrics: Arc<Metrics>,
    /// Told of every job that should be looked at.
    wake: UnboundedSender<Uid>,
}

impl Jobs {
    pub(crate) fn new(budget: Budget, metrics: Arc<Metrics>, wake: UnboundedSender<Uid>) -> Self {
        Self { state: Arc::default(), budget, metrics, wake }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far a job's work is.
    pub(crate) fn work(&self, job: &Uid) -> Work {
        match self.state().running.get(job).map(|running| &running.ended) {
            None => Work::None,
            Some(None) => Work::Running,
            Some(Some(Ended::Done(_))) => Work::Done,
            Some(Some(Ended::Stopped)) => Work::Stopped,
            Some(Some(Ended::Failed(_))) => Work::Failed,
        }
    }

    /// How a job's work has ended, if it has.
    pub(crate) fn ended(&self, job: &Uid) -> Option<Ended> {
        self.state().running.get(job).and_then(|running| running.ended.clone())
    }

    /// What a job has moved so far.
    pub(crate) fn progress(&self, job: &Uid) -> Option<Arc<Progress>> {
        self.state().running.get(job).map(|running| Arc::clone(&running.progress))
    }

    /// Asks a job's work to stop.
    pub(crate) fn stop(&self, job: &Uid) {
        if let Some(running) = self.state().running.get(job) {
            running.progress.cancel();
        }
    }

    /// Forgets a job whose work has ended and was written down.
    pub(crate) fn forget(&self, job: &Uid) {
        let mut state = self.state();
        state.waiting.remove(job);
        if state.running.get(job).is_some_and(|running| running.ended.is_some()) {
            state.running.remove(job);
        }
    }

    /// The job should be looked at.
    pub(crate) fn wake(&self, job: &Uid) {
        // Nobody looks any more: the agent ends.
        let _ = self.wake.send(job.clone());
    }

    /// Shows how many there are.
    fn count(&self, state: &State) {
        let running = state.running.values().filter(|running| running.ended.is_none()).count();
        self.metrics.jobs(running, state.waiting.len());
    }

    /// Takes a place for a job; the job is looked at again when there may be one. What it gives must be [run](Self::run).
    pub(crate) fn place(&self, job: &Uid) -> Option<Arc<Progress>> {
        let mut state = self.state();
        if state.running.contains_key(job) {
            return None;
        }
        // What has ended waits to be written down, and takes nothing.
        if state.running.values().filter(|running| running.ended.is_none()).count() >= self.budget.at_once() {
            state.waiting.insert(job.clone());
            return None;
        }
        state.waiting.remove(job);
        let progress = Arc::new(Progress::default());
        state.running.insert(job.clone(), Running { progress: Arc::clone(&progress), ended: None });
        Some(progress)
    }

    /// Gives a place back that was taken and not used.
    pub(crate) fn give_back(&self, job: &Uid) {
        self.state().running.remove(job);
    }

    /// Does the work of a job that has a place, beside everything else, and stops it when the pod that holds the volume has
    /// gone.
    pub(crate) fn run(
        &self,
        job: Uid,
        progress: Arc<Progress>,
        held: Arc<Held>,
        work: impl Future<Output = Ended> + Send + 'static,
    ) {
        let jobs = self.clone();
        tokio::spawn(async move {
            let mut gone = held.gone();
            // Its own task, so that a panic ends the job and not the agent.
            let mut work = tokio::spawn(work);
            let mut beat = tokio::time::interval(BEAT);
            let mut lost = false;
            let mut last = Last::default();
            let ended = loop {
                tokio::select! {
                    done = &mut work => {
                        break done.unwrap_or_else(|error| Ended::Failed(format!("this is a bug in tradewind: {error}")));
                    }
                    _ = gone.wait_for(|gone| *gone), if !lost => {
                        lost = true;
                        progress.cancel();
                    }
                    _ = beat.tick() => {
                        jobs.metrics.add(&progress, &mut last);
                        jobs.count(&jobs.state());
                        jobs.wake(&job);
                    }
                }
            };
            jobs.metrics.add(&progress, &mut last);
            let waiting = {
                let mut state = jobs.state();
                if let Some(running) = state.running.get_mut(&job) {
                    running.ended = Some(ended);
                }
                jobs.count(&state);
                std::mem::take(&mut state.waiting)
            };
            waiting.iter().chain([&job]).for_each(|job| jobs.wake(job));
        });
    }
}

#[cfg(test)]
mod tests {
    use tradewind_pipeline::limits::Limits;

    use super::*;

    fn jobs(slots: usize, wake: UnboundedSender<Uid>) -> Jobs {
        let machine = Limits { memory: 1 << 30, ..Limits::default() };
        Jobs::new(Budget::new(machine, slots), Arc::new(Metrics::new("n")), wake)
    }

    fn uid(n: u8) -> Uid {
        Uid::parse(format!("{n:02x}234567-89ab-cdef-0123-456789abcdef").as_bytes()).unwrap()
    }

    #[test]
    fn there_is_room_for_so_many() {
        let (wake, _woken) = tokio::sync::mpsc::unbounded_channel();
        let jobs = jobs(2, wake);
        assert!(jobs.place(&uid(1)).is_some() && jobs.place(&uid(2)).is_some());
        assert!(jobs.place(&uid(1)).is_none(), "twice");
        assert!(jobs.place(&uid(3)).is_none());
        assert_eq!((jobs.work(&uid(1)), jobs.work(&uid(3))), (Work::Running, Work::None));
        // It still runs.
        jobs.forget(&uid(1));
        assert_eq!(jobs.work(&uid(1)), Work::Running);
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let (wake, mut woken) = tokio::sync::mpsc::unbounded_channel();
        let jobs = jobs(1, wake);
        let progress = jobs.place(&uid(1)).unwrap();
        assert!(jobs.place(&uid(2)).is_none());
        let (_pod, held) = Held::for_tests();
        jobs.run(uid(1), progress, held, async { Ended::Done(Moved::default()) });
        let mut told = HashSet::new();
        while told.len() < 2 {
            told.insert(woken.recv().await.unwrap());
        }
        assert_eq!(jobs.work(&uid(1)), Work::Done);
        // Its result is still to be written down, and takes no place.
        assert!(jobs.place(&uid(2)).is_some());
        jobs.forget(&uid(1));
        assert_eq!(jobs.work(&uid(1)), Work::None);
    }

    #[tokio::test]
    async fn a_job_stops_when_its_volume_goes() {
        let (wake, _woken) = tokio::sync::mpsc::unbounded_channel();
        let jobs = jobs(1, wake);
        let progress = jobs.place(&uid(1)).unwrap();
        let (pod, held) = Held::for_tests();
        let seen = Arc::clone(&progress);
        jobs.run(uid(1), progress, held, async move {
            while seen.check().is_ok() {
                tokio::task::yield_now().await;
            }
            Ended::Stopped
        });
        pod.send_replace(true);
        while jobs.work(&uid(1)) == Work::Running {
            tokio::task::yield_now().await;
        }
        assert_eq!(jobs.work(&uid(1)), Work::Stopped);
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let (wake, _woken) = tokio::sync::mpsc::unbounded_channel();
        let jobs = jobs(1, wake);
        let progress = jobs.place(&uid(1)).unwrap();
        let (_pod, held) = Held::for_tests();
        jobs.run(uid(1), progress, held, async { panic!("on purpose") });
        while jobs.work(&uid(1)) == Work::Running {
            tokio::task::yield_now().await;
        }
        assert!(matches!(jobs.ended(&uid(1)), Some(Ended::Failed(why)) if why.contains("bug")));
    }
}
