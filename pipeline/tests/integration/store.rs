//! Every store and every decorator against the conformance suite; S3 also against answers that no well-behaved
//! server gives.

mod answers;
mod decorators;
mod directory;
mod fake;
mod location;
mod read_only;
mod servers;

use tradewind_pipeline::store::conformance::suite_except;
use tradewind_pipeline::store::{Store, StoreError, StoreErrorKind};

/// Runs the conformance suite and fails with its words.
async fn conforms(store: &dyn Store) {
    conforms_except(store, &[]).await;
}

/// The same for a store with known faults.
async fn conforms_except(store: &dyn Store, exempt: &[&str]) {
    if let Err(violation) = suite_except(store, exempt).await {
        panic!("{}: {violation}", store.location());
    }
}

/// The kind of a failure.
fn kind<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> StoreErrorKind {
    outcome.expect_err("this must fail").kind
}
