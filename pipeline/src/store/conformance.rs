//! What every store must do, as code: each store and each decorator runs this.
//!
//! Everything happens under `conformance/<random>/` and is deleted at the end, so the suite can run beside anything.

mod listing;
mod objects;
mod uploads;

use bytes::Bytes;

use crate::store::{Store, StoreError, StoreErrorKind};

/// What a store did wrong, in words.
#[derive(Debug, thiserror::Error)]
#[error("{check}: {what}")]
pub struct Violation {
    /// The rule that was checked.
    pub check: &'static str,
    /// What was seen instead.
    pub what: String,
}

type Outcome = Result<(), String>;

/// The store under test, and the folder that the suite keeps to.
struct Bed<'a> {
    store: &'a dyn Store,
    root: String,
}

impl Bed<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }
}

/// Fails with a text unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}
use ensure;

/// Fails unless `result` is an error of one of these kinds.
fn refused<T>(result: Result<T, StoreError>, kinds: &[StoreErrorKind], what: &str) -> Outcome {
    match result {
        Ok(_) => Err(format!("{what} succeeded")),
        Err(e) if kinds.contains(&e.kind) => Ok(()),
        Err(e) => Err(format!("{what}: wanted {kinds:?}, got {:?}: {e}", e.kind)),
    }
}

/// Adds what was being done to an error.
fn doing<T>(what: &str, result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// Bytes of every value that do not compress, the same for the same seed.
fn noise(seed: u64, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes.into()
}

/// Runs every check on `store` and stops at the first that fails. Writes and deletes about 60 MiB and 1,100 objects.
pub async fn suite(store: &dyn Store) -> Result<(), Violation> {
    suite_except(store, &[]).await
}

/// As [`suite`], for a store with known faults: the `exempt` checks (named as in [`Violation::check`]) run, but may
/// fail. They need not, since whether a race is lost is a matter of luck.
pub async fn suite_except(store: &dyn Store, exempt: &[&str]) -> Result<(), Violation> {
    let bed = &Bed { store, root: format!("conformance/{:016x}", fastrand::u64(..)) };
    macro_rules! run {
        ($($check:path),+ $(,)?) => {
            $(
                let check = stringify!($check);
                let outcome = Box::pin($check(bed)).await;
                if !exempt.contains(&check) {
                    outcome.map_err(|what| Violation { check, what })?;
                }
            )+
        };
    }
    run!(
        objects::contents_come_back,
        objects::create_refuses_what_exists,
        objects::create_has_one_winner,
        objects::ranges_are_exact,
        objects::whole_reads_have_a_limit,
        objects::absence_is_told_apart,
        objects::a_folder_is_no_object,
        objects::bad_keys_are_refused,
        objects::deleting_is_idempotent,
        objects::the_clock_is_sane,
        uploads::parts_arrive_in_any_order,
        uploads::unfinished_is_invisible,
        uploads::a_part_can_be_sent_again,
        uploads::one_small_part_will_do,
        uploads::finishing_does_not_replace,
        uploads::finish_has_one_winner,
        uploads::aborting_forgets,
        uploads::begun_uploads_are_listed,
        uploads::unknown_uploads_are_refused,
        listing::order_prefix_and_after,
        listing::more_than_a_page,
        clean_up,
    );
    Ok(())
}

/// Deletes everything the suite wrote, and looks that it is gone.
async fn clean_up(bed: &Bed<'_>) -> Outcome {
    let below = format!("{}/", bed.root);
    loop {
        let page = doing("list", bed.store.list(&below, None).await)?;
        if page.objects.is_empty() {
            ensure!(!page.more, "an empty page says that more follows");
            return Ok(());
        }
        for some in page.objects.chunks(16) {
            let gone = some.iter().map(|o| bed.store.delete(&o.key));
            for done in futures_util::future::join_all(gone).await {
                doing("delete", done)?;
            }
        }
    }
}
