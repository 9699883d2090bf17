//! From what is seen of a job to what is done for it, the same for every kind of job.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::core::DeserializeGuard;
use kube::{Resource, ResourceExt as _};
use kube_runtime::controller::Action;
use kube_runtime::events::{Event, EventType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tradewind_k8s::velero::{DataDownload, DataUpload, MovePhase, MoveProgress};
use tradewind_pipeline::progress::{Counter, Progress};

use crate::Mode;
use crate::agent::Agent;
use crate::handover::Held;
use crate::jobs::{Ended, Moved};
use crate::life::{Seen, Step, Whose, Work, decide};
use crate::objects::{self, FINALIZER, NODE, Uid, VOLUME};
use crate::pods::{Holder, holder};

/// How long one look at a job may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How soon to look again where nothing tells of a change.
const SOON: Duration = Duration::from_millis(500);
/// How soon to look again whether there is room for one more volume in preparation; as Velero's agent does.
const QUEUED: Duration = Duration::from_secs(5);
/// How soon to look again where something should tell, in case it does not.
const LATER: Duration = Duration::from_secs(30);

/// What the status of every kind of job has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) phase: MovePhase,
    pub(crate) message: String,
    pub(crate) start: Option<Time>,
    pub(crate) completion: Option<Time>,
    pub(crate) progress: Option<MoveProgress>,
    pub(crate) accepted_by: String,
    pub(crate) accepted: Option<Time>,
}

/// How far something is that takes several steps in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Going {
    /// It waits for this.
    On(String),
    /// All is there.
    Done,
    /// It will never be: why.
    Nowhere(String),
}

/// A kind of job.
pub(crate) trait Move:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Who shall do it.
    fn data_mover(&self) -> &str;
    /// Somebody wants it to end early.
    fn cancel(&self) -> bool;
    fn status(&self) -> Status;
    /// Writes the status; of how it was done only what is given.
    fn write(&mut self, status: Status, moved: Option<&Moved>);
    /// Writes where its data moves.
    fn set_node(&mut self, node: &str);
    /// True once it can be begun.
    fn ready(&self, agent: &Agent) -> impl Future<Output = Result<bool, kube::Error>> + Send;
    /// Makes its volume and the pod that holds it, or what is missing of them.
    fn expose(&self, agent: &Agent, uid: &Uid) -> impl Future<Output = Result<Going, kube::Error>> + Send;
    /// Moves its data.
    fn work(
        &self,
        agent: Arc<Agent>,
        held: Arc<Held>,
        progress: Arc<Progress>,
    ) -> impl Future<Output = Ended> + Send + 'static;
    /// Does what comes after all its data has moved.
    fn conclude(&self, agent: &Agent, uid: &Uid) -> impl Future<Output = Result<Going, kube::Error>> + Send;
    /// Removes what was made for it. True once nothing is left.
    fn clean_up(&self, agent: &Agent, uid: &Uid) -> impl Future<Output = Result<bool, kube::Error>> + Send;
}

/// Looks at a job and does what is next.
///
/// # Errors
/// The API server's; the job is looked at again.
pub(crate) async fn reconcile<M: Move>(
    job: Arc<DeserializeGuard<M>>,
    agent: Arc<Agent>,
) -> Result<Action, kube::Error> {
    let job = match &job.0 {
        Ok(job) => job,
        Err(error) => {
            let name = error.metadata.name.clone().unwrap_or_default();
            tracing::warn!(kind = %M::kind(&()), name, "this object is not understood: {error}");
            return Ok(Action::await_change());
        }
    };
    let Some(uid) = Uid::of(job) else { return Ok(Action::await_change()) };
    if !agent.serves(job.data_mover()) {
        return Ok(Action::await_change());
    }
    let job = Job { agent: &agent, job, uid, status: job.status() };
    // An answer that never comes must not keep the job for ever. Every step may be done again.
    let step = tokio::time::timeout(PATIENCE, job.next());
    step.await.unwrap_or_else(|_| {
        tracing::warn!(kind = %M::kind(&()), name = job.job.name_any(), "the API server does not answer");
        Ok(Action::requeue(SOON))
    })
}

impl<M: Move> Job<'_, M> {
    async fn next(&self) -> Result<Action, kube::Error> {
        let step = decide(&self.seen());
        let (name, phase) = (self.job.name_any(), self.status.phase.as_str());
        tracing::debug!(kind = %M::kind(&()), name, phase, ?step);
        self.take(step).await
    }
}

/// A job that is looked at.
struct Job<'a, M> {
    agent: &'a Arc<Agent>,
    job: &'a M,
    uid: Uid,
    status: Status,
}

impl<M: Move> Job<'_, M> {
    fn seen(&self) -> Seen {
        let whose = |node: &str| match node {
            "" => Whose::Nobodys,
            node if node == self.agent.options.node || !self.agent.has_agent(node) => Whose::Ours,
            _ => Whose::Theirs,
        };
        let accepted = self.status.accepted.as_ref().map(|time| time.0);
        let limit = SignedDuration::try_from(self.agent.prepare_timeout()).unwrap_or(SignedDuration::MAX);
        Seen {
            phase: self.status.phase.clone(),
            stop: self.job.cancel() || self.job.meta().deletion_timestamp.is_some(),
            finalizer: self.job.finalizers().iter().any(|found| found == FINALIZER),
            acceptor: whose(&self.status.accepted_by),
            mover: whose(objects::marked(self.job, NODE, &self.uid).unwrap_or_default()),
            held: self.agent.handover.held(&self.uid).is_some(),
            pod_gone: matches!(holder(self.agent.holder(&self.uid).as_deref()), Holder::Gone(_)),
            overdue: accepted.is_some_and(|at| Timestamp::now().duration_since(at) > limit),
            moved: objects::marked(self.job, VOLUME, &self.uid).is_some(),
            work: self.agent.jobs.work(&self.uid),
        }
    }

    async fn take(&self, step: Step) -> Result<Action, kube::Error> {
        match step {
            Step::Wait if self.status.phase.is_final() => Ok(Action::await_change()),
            Step::Wait => Ok(Action::requeue(LATER)),
            Step::Accept => self.accept().await,
            Step::Expose => match self.exposed().await? {
                Going::On(why) => {
                    self.say(&why).await?;
                    Ok(Action::requeue(SOON))
                }
                Going::Done => Ok(Action::requeue(LATER)),
                Going::Nowhere(why) => self.end(MovePhase::Failed, &why, None).await,
            },
            Step::Prepare => self.prepare().await,
            Step::Start => self.start().await,
            Step::Report => self.report().await,
            Step::Stop => {
                self.agent.jobs.stop(&self.uid);
                if self.status.phase != MovePhase::Canceling {
                    let mut status = self.status.clone();
                    status.phase = MovePhase::Canceling;
                    status.message = "it is being stopped".to_owned();
                    self.change(status, None, |_| {}).await?;
                }
                Ok(Action::await_change())
            }
            Step::Conclude => self.conclude().await,
            Step::Cancel => self.end(MovePhase::Canceled, "it was canceled", None).await,
            Step::TimeOut => {
                let why = match self.exposed().await {
                    Ok(Going::On(why) | Going::Nowhere(why)) => why,
                    Ok(Going::Done) => "its volume to be taken by an agent".to_owned(),
                    Err(error) => error.to_string(),
                };
                let limit = self.agent.prepare_timeout().as_secs();
                self.end(MovePhase::Failed, &format!("after {limit} s it still waited for {why}"), None).await
            }
            Step::Fail => {
                let why = match self.agent.jobs.ended(&self.uid) {
                    Some(Ended::Failed(why)) => why,
                    _ => "it failed".to_owned(),
                };
                self.end(MovePhase::Failed, &why, None).await
            }
            Step::Lose => {
                let why = match holder(self.agent.holder(&self.uid).as_deref()) {
                    Holder::Gone(why) | Holder::Hopeless(why) => why,
                    Holder::Pending(_) | Holder::Running(_) => {
                        "the pod that held the volume has closed its connection".to_owned()
                    }
                };
                self.end(MovePhase::Failed, &why, None).await
            }
            Step::CleanUp => self.clean_up().await,
        }
    }

    /// Writes a status, and what `also` changes; only if nobody was faster.
    async fn change(
        &self,
        status: Status,
        moved: Option<&Moved>,
        also: impl FnOnce(&mut M),
    ) -> Result<(), kube::Error> {
        let mut after = self.job.clone();
        after.write(status, moved);
        also(&mut after);
        let api = self.agent.ours::<M>();
        objects::change(&api, self.job, &after).await.map(drop)
    }

    async fn accept(&self) -> Result<Action, kube::Error> {
        if !self.job.ready(self.agent).await? {
            return Ok(Action::requeue(SOON));
        }
        let most =
            usize::try_from(self.agent.config.load_concurrency.prepare_queue_length).unwrap_or_default();
        if most > 0 && in_preparation(self.agent).await? >= most {
            return Ok(Action::requeue(QUEUED));
        }
        let mut status = self.status.clone();
        status.phase = MovePhase::Accepted;
        status.accepted_by.clone_from(&self.agent.options.node);
        status.accepted = Some(now());
        self.change(status, None, with_finalizer).await?;
        tracing::info!(kind = %M::kind(&()), name = self.job.name_any(), "accepted");
        self.tell("Accepted", "its volume is being made", false).await;
        Ok(Action::await_change())
    }

    /// Exposes the volume; what the API server refuses is a reason to give up.
    async fn exposed(&self) -> Result<Going, kube::Error> {
        match self.job.expose(self.agent, &self.uid).await {
            Err(error) if objects::is_refusal(&error) => {
                Ok(Going::Nowhere(format!("the cluster refuses: {error}")))
            }
            other => other,
        }
    }

    /// Says what it waits for.
    async fn say(&self, why: &str) -> Result<(), kube::Error> {
        let message = format!("waits for {why}");
        if self.status.message == message {
            return Ok(());
        }
        self.change(Status { message, ..self.status.clone() }, None, |_| {}).await
    }

    async fn prepare(&self) -> Result<Action, kube::Error> {
        let status = Status { phase: MovePhase::Prepared, message: String::new(), ..self.status.clone() };
        let node = self.agent.options.node.clone();
        self.change(status, None, |job| {
            // Where Velero's own agent is not, nobody takes it the wrong way, and `kubectl get` shows it.
            if self.agent.options.mode == Mode::Standalone {
                job.set_node(&node);
            }
            job.annotations_mut().insert(NODE.to_owned(), objects::mark(&self.uid, &node));
        })
        .await?;
        Ok(Action::await_change())
    }

    async fn start(&self) -> Result<Action, kube::Error> {
        let Some(held) = self.agent.handover.held(&self.uid) else { return Ok(Action::requeue(SOON)) };
        let Some(progress) = self.agent.jobs.place(&self.uid) else { return Ok(Action::requeue(LATER)) };
        let mut status = self.status.clone();
        status.phase = MovePhase::InProgress;
        status.message = String::new();
        status.start.get_or_insert_with(now);
        if let Err(error) = self.change(status, None, |_| {}).await {
            self.agent.jobs.give_back(&self.uid);
            return Err(error);
        }
        tracing::info!(kind = %M::kind(&()), name = self.job.name_any(), "started");
        self.tell("Started", &format!("data moves on node {}", self.agent.options.node), false).await;
        let work = self.job.work(Arc::clone(self.agent), Arc::clone(&held), Arc::clone(&progress));
        self.agent.jobs.run(self.uid.clone(), progress, held, work);
        Ok(Action::await_change())
    }

    async fn report(&self) -> Result<Action, kube::Error> {
        let Some(progress) = self.agent.jobs.progress(&self.uid) else { return Ok(Action::await_change()) };
        let now = so_far(&progress);
        let before = self.status.progress.as_ref().map_or(0, |before| before.bytes_done);
        // It never goes back, not even where an agent before this one had come further.
        if now.bytes_done > before || self.status.progress.is_none() {
            self.change(Status { progress: Some(now), ..self.status.clone() }, None, |_| {}).await?;
        }
        Ok(Action::await_change())
    }

    async fn conclude(&self) -> Result<Action, kube::Error> {
        match self.job.conclude(self.agent, &self.uid).await? {
            Going::On(why) => {
                self.say(&why).await?;
                Ok(Action::requeue(SOON))
            }
            Going::Nowhere(why) => self.end(MovePhase::Failed, &why, None).await,
            Going::Done => {
                let moved = match self.agent.jobs.ended(&self.uid) {
                    Some(Ended::Done(moved)) => Some(moved),
                    _ => None,
                };
                let notes = moved.as_ref().map(|moved| moved.notes.join("; ")).unwrap_or_default();
                self.end(MovePhase::Completed, &notes, moved.as_ref()).await
            }
        }
    }

    /// Writes how it ended.
    async fn end(
        &self,
        phase: MovePhase,
        message: &str,
        moved: Option<&Moved>,
    ) -> Result<Action, kube::Error> {
        tracing::info!(kind = %M::kind(&()), name = self.job.name_any(), phase = phase.as_str(), message, "ended");
        let mut status = self.status.clone();
        status.phase = phase.clone();
        message.clone_into(&mut status.message);
        status.completion = Some(now());
        if let Some(moved) = moved {
            let total = i64::try_from(moved.total).unwrap_or(i64::MAX);
            status.progress =
                Some(MoveProgress { total_bytes: total, bytes_done: total, ..MoveProgress::default() });
        }
        // What never was accepted has something to be removed too: the snapshot.
        self.change(status, moved, with_finalizer).await?;
        self.agent.jobs.forget(&self.uid);
        self.agent.metrics.ended(&M::kind(&()), &phase);
        self.tell(phase.as_str(), message, phase == MovePhase::Failed).await;
        Ok(Action::await_change())
    }

    /// Tells what happened, where `kubectl describe` shows it. It is no loss where it cannot be told.
    async fn tell(&self, reason: &str, note: &str, warning: bool) {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            // Its length is limited, by the API server to 1,024 bytes.
            note: Some(note.chars().take(250).collect()),
            action: "Move".to_owned(),
            secondary: None,
        };
        let about = self.job.object_ref(&());
        if let Err(error) = self.agent.recorder.publish(&event, &about).await {
            tracing::debug!("an event was not written: {error}");
        }
    }

    async fn clean_up(&self) -> Result<Action, kube::Error> {
        // Somebody else may have written the end.
        self.agent.jobs.stop(&self.uid);
        if self.agent.jobs.work(&self.uid) == Work::Running {
            return Ok(Action::requeue(SOON));
        }
        self.agent.jobs.forget(&self.uid);
        if let Some(held) = self.agent.handover.held(&self.uid) {
            held.release();
        }
        if !self.job.clean_up(self.agent, &self.uid).await? {
            return Ok(Action::requeue(SOON));
        }
        let mut after = self.job.clone();
        after.finalizers_mut().retain(|found| found != FINALIZER);
        objects::change(&self.agent.ours::<M>(), self.job, &after).await?;
        Ok(Action::await_change())
    }
}

/// How many jobs of all agents have or get a volume whose data does not move yet.
async fn in_preparation(agent: &Agent) -> Result<usize, kube::Error> {
    async fn of<M: Move>(agent: &Agent) -> Result<usize, kube::Error> {
        let all = agent.ours::<DeserializeGuard<M>>().list(&ListParams::default()).await?;
        let counts = |job: &M| {
            let phase = job.status().phase;
            agent.serves(job.data_mover()) && matches!(phase, MovePhase::Accepted | MovePhase::Prepared)
        };
        Ok(all.iter().filter_map(|job| job.0.as_ref().ok()).filter(|job| counts(job)).count())
    }
    Ok(of::<DataUpload>(agent).await? + of::<DataDownload>(agent).await?)
}

/// Adds the finalizer, unless the object is going already: then the API server takes none.
fn with_finalizer<M: Move>(job: &mut M) {
    if job.meta().deletion_timestamp.is_none() && !job.finalizers().iter().any(|found| found == FINALIZER) {
        job.finalizers_mut().push(FINALIZER.to_owned());
    }
}

/// Now, in whole seconds, as every time in an object is.
fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

/// What has moved so far, as a status has it: what the bucket does not have yet is still to be done.
fn so_far(progress: &Progress) -> MoveProgress {
    let counted = |counter| u128::from(progress.get(counter));
    let (new, stored) = (counted(Counter::New), counted(Counter::Stored));
    let missing = new * stored.saturating_sub(counted(Counter::Uploaded)) / stored.max(1);
    let done = progress.get(Counter::Done).saturating_sub(u64::try_from(missing).unwrap_or(u64::MAX));
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    MoveProgress {
        total_bytes: number(progress.total().unwrap_or_default().max(done)),
        bytes_done: number(done),
        ..MoveProgress::default()
    }
}

/// How soon to try again after an error: at once where somebody else was faster, for what is seen is old.
#[expect(clippy::needless_pass_by_value, reason = "as the controller calls it")]
pub(crate) fn again<M: Move>(job: Arc<DeserializeGuard<M>>, error: &kube::Error, _: Arc<Agent>) -> Action {
    let name = job.meta().name.clone().unwrap_or_default();
    if matches!(error, kube::Error::Api(status) if status.is_conflict()) {
        tracing::debug!(kind = %M::kind(&()), name, "somebody was faster");
        return Action::requeue(Duration::from_millis(50));
    }
    tracing::warn!(kind = %M::kind(&()), name, "will try again: {error}");
    Action::requeue(Duration::from_secs(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_to_the_bucket_has_not_moved() {
        let progress = Progress::default();
        progress.expect_total(1000);
        let done = || so_far(&progress).bytes_done;
        progress.add(Counter::Done, 900);
        // 100 were there already; the rest is half as large in the bucket, and half of that has arrived.
        progress.add(Counter::New, 800);
        progress.add(Counter::Stored, 400);
        assert_eq!(done(), 100);
        progress.add(Counter::Uploaded, 200);
        assert_eq!(done(), 500);
        // Objects that are no data count too.
        progress.add(Counter::Uploaded, 300);
        assert_eq!((done(), so_far(&progress).total_bytes), (900, 1000));
        // A restore puts nothing into the bucket.
        let progress = Progress::default();
        progress.add(Counter::Done, 7);
        assert_eq!((so_far(&progress).bytes_done, so_far(&progress).total_bytes), (7, 7));
    }
}
