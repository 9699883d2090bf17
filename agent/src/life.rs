//! The life of a job: what is done next, decided from what is seen and nothing else; every step may be done twice.
//!
//! ```text
//! New ─► Accepted ─► Prepared ─► InProgress ─► Completed, Failed, Canceled
//!        one agent   its pod     data moves    all that was made for it goes,
//!        makes its   is here     (Canceling)   then its finalizer
//!        volume
//! ```
//! The agent that accepts a job makes its volume and the pod that holds it; the agent of the node where that pod runs moves
//! the data. Both may be killed anywhere: what they know is in the cluster.

use tradewind_k8s::velero::MovePhase;

/// How far this agent's own work on a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// It has not begun, or an agent before this one did it.
    None,
    /// Data moves.
    Running,
    /// It has ended, well.
    Done,
    /// It has ended because it was asked to.
    Stopped,
    /// It has ended otherwise.
    Failed,
}

/// Whose a job is, as far as this agent is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// This agent's, or that of one that has gone.
    Ours,
    /// Another agent's.
    Theirs,
    /// Nobody's yet.
    Nobodys,
}

/// What is seen of a job.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) phase: MovePhase,
    /// Somebody wants it to end early, or its object to go.
    pub(crate) stop: bool,
    /// Something may be left of what was made for it.
    pub(crate) finalizer: bool,
    /// Who makes its volume.
    pub(crate) acceptor: Whose,
    /// Who moves its data.
    pub(crate) mover: Whose,
    /// A pod of this node has handed its volume over.
    pub(crate) held: bool,
    /// The pod that held its volume has ended or is not there.
    pub(crate) pod_gone: bool,
    /// Its volume took longer than it may.
    pub(crate) overdue: bool,
    /// All its data is in place, and what comes after has begun.
    pub(crate) moved: bool,
    /// What this agent does for it.
    pub(crate) work: Work,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing, until something changes.
    Wait,
    /// Take it.
    Accept,
    /// Make its volume, or what is missing of it.
    Expose,
    /// Say that its volume is here.
    Prepare,
    /// Move its data, as soon as there is room.
    Start,
    /// Say how much has moved.
    Report,
    /// Ask the work to stop.
    Stop,
    /// All data is in place: do what comes after.
    Conclude,
    /// It ended early.
    Cancel,
    /// Its volume took too long.
    TimeOut,
    /// The work failed.
    Fail,
    /// The pod that held the volume has gone.
    Lose,
    /// Nothing more will happen: remove what was made for it.
    CleanUp,
}

/// What is done next.
pub(crate) fn decide(seen: &Seen) -> Step {
    let theirs = match seen.phase {
        MovePhase::New | MovePhase::Other(_) => false,
        MovePhase::Accepted => !seen.held && seen.acceptor == Whose::Theirs,
        _ => seen.mover == Whose::Theirs || (seen.mover == Whose::Nobodys && seen.acceptor == Whose::Theirs),
    };
    if theirs {
        return Step::Wait;
    }
    match seen.phase {
        MovePhase::New if seen.stop => Step::Cancel,
        MovePhase::New => Step::Accept,
        MovePhase::Accepted if seen.stop => Step::Cancel,
        MovePhase::Accepted if seen.held => Step::Prepare,
        MovePhase::Accepted if seen.overdue => Step::TimeOut,
        MovePhase::Accepted => Step::Expose,
        MovePhase::Prepared if seen.stop => Step::Cancel,
        MovePhase::Prepared | MovePhase::InProgress | MovePhase::Canceling => moving(seen),
        MovePhase::Completed | MovePhase::Failed | MovePhase::Canceled if seen.finalizer => Step::CleanUp,
        MovePhase::Completed | MovePhase::Failed | MovePhase::Canceled => Step::Wait,
        // Of a later version: whoever wrote it knows what it means.
        MovePhase::Other(_) => Step::Wait,
    }
}

/// The same, from when the volume is here until the data is.
fn moving(seen: &Seen) -> Step {
    let stop = seen.stop || seen.phase == MovePhase::Canceling;
    match seen.work {
        // The claim may have its volume already: there is no way back, and little left to do.
        _ if seen.moved => Step::Conclude,
        Work::Running if stop => Step::Stop,
        Work::Running => Step::Report,
        Work::Done if stop => Step::Cancel,
        Work::Done => Step::Conclude,
        Work::Stopped if stop => Step::Cancel,
        // Nobody asked for it but the pod's end.
        Work::Stopped => Step::Lose,
        Work::Failed => Step::Fail,
        Work::None if stop => Step::Cancel,
        Work::None if seen.held => Step::Start,
        Work::None if seen.pod_gone => Step::Lose,
        // This agent has just started, and the pod will call again.
        Work::None => Step::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANYTHING: Seen = Seen {
        phase: MovePhase::New,
        stop: false,
        finalizer: true,
        acceptor: Whose::Ours,
        mover: Whose::Ours,
        held: false,
        pod_gone: false,
        overdue: false,
        moved: false,
        work: Work::None,
    };

    fn next(change: impl FnOnce(&mut Seen)) -> Step {
        let mut seen = ANYTHING.clone();
        change(&mut seen);
        decide(&seen)
    }

    #[test]
    fn the_usual_way() {
        let nobody = |s: &mut Seen| {
            (s.acceptor, s.mover, s.finalizer) = (Whose::Nobodys, Whose::Nobodys, false);
        };
        assert_eq!(next(nobody), Step::Accept);
        let accepted = |s: &mut Seen| (s.phase, s.mover) = (MovePhase::Accepted, Whose::Nobodys);
        assert_eq!(next(accepted), Step::Expose);
        // The pod came to another node: that agent did not accept it.
        let held = |s: &mut Seen| {
            accepted(s);
            (s.acceptor, s.held) = (Whose::Theirs, true);
        };
        assert_eq!(next(held), Step::Prepare);
        assert_eq!(next(|s| (s.phase, s.held) = (MovePhase::Prepared, true)), Step::Start);
        let running = |s: &mut Seen| (s.phase, s.held, s.work) = (MovePhase::InProgress, true, Work::Running);
        assert_eq!(next(running), Step::Report);
        assert_eq!(next(|s| (s.phase, s.work) = (MovePhase::InProgress, Work::Done)), Step::Conclude);
        assert_eq!(next(|s| s.phase = MovePhase::Completed), Step::CleanUp);
        assert_eq!(next(|s| (s.phase, s.finalizer) = (MovePhase::Completed, false)), Step::Wait);
    }

    #[test]
    fn it_can_be_stopped_in_every_phase() {
        for phase in [MovePhase::New, MovePhase::Accepted, MovePhase::Prepared] {
            for held in [false, true] {
                let step = next(|s| (s.phase, s.stop, s.held) = (phase.clone(), true, held));
                assert_eq!(step, Step::Cancel, "{phase:?}, held: {held}");
            }
        }
        let running = |s: &mut Seen| (s.phase, s.stop, s.work) = (MovePhase::InProgress, true, Work::Running);
        assert_eq!(next(running), Step::Stop);
        // The phase says so too: whoever set it may have taken the wish back.
        assert_eq!(next(|s| (s.phase, s.work) = (MovePhase::Canceling, Work::Running)), Step::Stop);
        assert_eq!(next(|s| (s.phase, s.work) = (MovePhase::Canceling, Work::Stopped)), Step::Cancel);
        assert_eq!(next(|s| (s.phase, s.work) = (MovePhase::Canceling, Work::Done)), Step::Cancel);
        // The agent was restarted: nothing runs any more.
        assert_eq!(next(|s| s.phase = MovePhase::Canceling), Step::Cancel);
    }

    #[test]
    fn a_restarted_agent_goes_on() {
        let running = |s: &mut Seen| s.phase = MovePhase::InProgress;
        assert_eq!(next(running), Step::Wait);
        assert_eq!(next(|s| (s.phase, s.held) = (MovePhase::InProgress, true)), Step::Start);
        assert_eq!(next(|s| (s.phase, s.pod_gone) = (MovePhase::InProgress, true)), Step::Lose);
        assert_eq!(next(|s| (s.phase, s.work) = (MovePhase::InProgress, Work::Stopped)), Step::Lose);
        // Never again what was done, not even where the pod holds the volume still.
        let moved = |s: &mut Seen| (s.phase, s.held, s.moved) = (MovePhase::InProgress, true, true);
        assert_eq!(next(moved), Step::Conclude);
        let too_late = |s: &mut Seen| {
            moved(s);
            s.stop = true;
        };
        assert_eq!(next(too_late), Step::Conclude);
    }

    #[test]
    fn what_is_another_agents_is_left_alone() {
        let phases = [
            MovePhase::Accepted,
            MovePhase::Prepared,
            MovePhase::InProgress,
            MovePhase::Canceling,
            MovePhase::Completed,
            MovePhase::Failed,
            MovePhase::Canceled,
        ];
        for phase in phases {
            for stop in [false, true] {
                let moved = next(|s| {
                    (s.phase, s.stop) = (phase.clone(), stop);
                    (s.acceptor, s.mover) = (Whose::Theirs, Whose::Theirs);
                });
                let made = next(|s| {
                    (s.phase, s.stop) = (phase.clone(), stop);
                    (s.acceptor, s.mover) = (Whose::Theirs, Whose::Nobodys);
                });
                assert_eq!((moved, made), (Step::Wait, Step::Wait), "{phase:?}");
            }
        }
        assert_eq!(next(|s| s.phase = MovePhase::Other("Paused".into())), Step::Wait);
    }

    #[test]
    fn time_counts_while_the_volume_is_made_only() {
        assert_eq!(next(|s| (s.phase, s.overdue) = (MovePhase::Accepted, true)), Step::TimeOut);
        assert_eq!(next(|s| (s.phase, s.overdue, s.held) = (MovePhase::Accepted, true, true)), Step::Prepare);
        assert_eq!(next(|s| (s.phase, s.overdue, s.held) = (MovePhase::Prepared, true, true)), Step::Start);
    }
}
