//! Opens the records that no snapshot needs, but the next writer does: sessions, lists of condemned packs.

use futures_util::StreamExt;

use super::{VerifyReport, whole};
use crate::error::{Error, Result};
use crate::gc::GC_PREFIX;
use crate::page::load::is_lost;
use crate::progress::Progress;
use crate::repository::{MAX_RECORD, Repository};
use crate::seal::object::ObjectClass;
use crate::session::SESSIONS_PREFIX;

/// Records read at a time.
const READS: usize = 8;

/// Opens every record; those that do not open go into the report.
///
/// # Errors
/// The store's; cancellation.
pub(super) async fn read(
    repository: &Repository,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<()> {
    for (prefix, class) in [(SESSIONS_PREFIX, ObjectClass::Session), (GC_PREFIX, ObjectClass::Gc)] {
        let mut after: Option<String> = None;
        loop {
            progress.check()?;
            let page = repository.store().list(prefix, after.as_deref()).await?;
            after = page.objects.last().map(|o| o.key.clone());
            let reads = page.objects.into_iter().map(|o| async move {
                let read = repository.get(class, &o.key, MAX_RECORD).await;
                (o.key, read)
            });
            let mut reads = futures_util::stream::iter(reads).buffered(READS);
            while let Some((key, read)) = reads.next().await {
                match read {
                    Ok(_) => {}
                    Err(Error::Damaged { what, .. }) => report.damages.push(whole(None, key, what)),
                    Err(error) if is_lost(&error) => {
                        report.damages.push(whole(None, key, error.to_string()));
                    }
                    Err(error) => return Err(error),
                }
            }
            if !page.more || after.is_none() {
                break;
            }
        }
    }
    Ok(())
}
