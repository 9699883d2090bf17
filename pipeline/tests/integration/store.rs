//! Every store and every decorator against the conformance suite; S3 also against answers that no well-behaved
//! server gives.

mod answers;
mod decorators;
mod directory;
mod fake;
mod servers;

use tradewind_pipeline::store::conformance::suite;
use tradewind_pipeline::store::{Store, StoreError, StoreErrorKind};

/// Runs the conformance suite and fails with its words.
async fn conforms(store: &dyn Store) {
    if let Err(violation) = Box::pin(suite(store)).await {
        panic!("{}: {violation}", store.location());
    }
}

/// The kind of a failure.
fn kind<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> StoreErrorKind {
    outcome.expect_err("this must fail").kind
}
