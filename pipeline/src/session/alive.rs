//! Signs of life for as long as a run goes on, whatever it is waiting for.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::{RENEW_EVERY, Session};

/// Renews a session until it is dropped.
#[derive(Debug)]
pub struct Alive(tokio::task::JoinHandle<()>);

impl Alive {
    /// Renews `session` from now on, whenever that is due.
    pub fn keep(runtime: &Handle, session: &Arc<Session>) -> Self {
        Self::every(runtime, session, RENEW_EVERY / 10)
    }

    pub(super) fn every(runtime: &Handle, session: &Arc<Session>, period: Duration) -> Self {
        let session = Arc::clone(session);
        Self(runtime.spawn(async move {
            let mut ticks = tokio::time::interval(period);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // Not fatal while a later one succeeds within the lease.
                let _ = session.tick().await;
            }
        }))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.abort();
    }
}
