//! What a run may spend, and how that is shared out: every large allocation of the pipeline has its line in [`plan`].

mod rate;

pub use rate::{Rate, Turn};

use crate::error::{Error, Result};

/// Default of [`Limits::memory`], bytes: enough for full speed on a small node, well under 256 MiB of RSS.
pub const DEFAULT_MEMORY: u64 = 192 << 20;

/// Least memory a run accepts, bytes.
pub const MIN_MEMORY: u64 = 64 << 20;

/// Bytes of one read of a block volume: four default chunks.
pub const BLOCK_READ: usize = 1 << 20;

/// Bytes of one read of a large file: several FastCDC chunks, so that few straddle two reads.
pub const FILE_READ: usize = 4 << 20;

/// What a run may spend. Rates can be changed while it runs, and runs with clones of the same limits share them.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Sum of all buffers, queues, filters and contexts, bytes. RSS stays within it plus 32 MiB in a program that called
    /// [`crate::heap::bound`].
    pub memory: u64,
    /// CPU workers.
    pub workers: usize,
    /// Reading the source (writing the target on restore; verify has neither), bytes per second.
    pub read_rate: Rate,
    /// Sending to the store (fetching on restore and verify), bytes per second.
    pub upload_rate: Rate,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: DEFAULT_MEMORY,
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            read_rate: Rate::unlimited(),
            upload_rate: Rate::unlimited(),
        }
    }
}

/// How the memory of a run is shared out. Sums to at most [`Limits::memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// CPU workers, reduced when there is no memory for as many as asked.
    pub workers: usize,
    /// Read buffers of the sort in use ([`BLOCK_READ`] or [`FILE_READ`]).
    pub read_buffers: usize,
    /// Bytes of one part of a pack.
    pub part_bytes: usize,
    /// Part buffers: one being filled by each lane, the rest on their way to the store.
    pub parts: usize,
    /// Filters of the index, bytes.
    pub filter_bytes: usize,
    /// Names and small files of a tree in flight, bytes.
    pub tree_bytes: usize,
    /// Bytes fetched from the store and not yet opened (restore).
    pub fetch_bytes: usize,
    /// Plaintext buffers on their way to the target (restore), of 4 MiB at most.
    pub write_bytes: usize,
}

/// What each worker needs besides buffers: two zstd contexts and room for one sealed chunk.
const WORKER_BYTES: u64 = 8 << 20;

/// Entries, tickets, pages being built and read, chunks of this session not yet in a stored segment, contents of linked
/// files, 12 bytes for each pack of the repository.
const BOOKKEEPING: u64 = 20 << 20;

/// Shares out `memory` bytes for `workers` CPU workers reading `read_bytes` at a time.
///
/// # Errors
/// [`Error::Usage`] for less than [`MIN_MEMORY`].
pub fn plan(memory: u64, workers: usize, read_bytes: usize) -> Result<Plan> {
    if memory < MIN_MEMORY {
        return Err(Error::Usage(format!("memory: {} MiB is the least a run can do with", MIN_MEMORY >> 20)));
    }
    let part_bytes: u64 = if memory < 160 << 20 { 5 << 20 } else { 8 << 20 };
    let buffers = memory - BOOKKEEPING;
    // A worker, its part being filled and two reads: as many workers as fit into two thirds of the buffers.
    let per_worker = WORKER_BYTES + part_bytes + 2 * read_bytes as u64;
    let workers = (workers.max(1) as u64).min((buffers / 3 * 2 / per_worker).max(1));
    let rest = buffers.saturating_sub(workers * per_worker + part_bytes);
    // Each worker and the metadata lane fill one part; at least two more are on their way.
    let flying = (rest / 8 * 3 / part_bytes).clamp(2, 32);
    let rest = rest.saturating_sub(flying * part_bytes);
    let reads = (rest / 3 / read_bytes as u64).min(64) + 2 * workers;
    let filter = (rest / 6).clamp(1 << 20, 64 << 20);
    let tree = (rest / 4).clamp(4 << 20, 64 << 20);
    let to = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let spare = buffers.saturating_sub(workers * WORKER_BYTES + filter);
    Ok(Plan {
        workers: to(workers),
        read_buffers: to(reads),
        part_bytes: to(part_bytes),
        parts: to(workers + 1 + flying),
        filter_bytes: to(filter),
        tree_bytes: to(tree),
        fetch_bytes: to((spare / 2).min(256 << 20)),
        write_bytes: to((spare / 3).min(256 << 20)),
    })
}

impl Plan {
    /// Bytes that a backup with this plan may hold at once.
    #[cfg(test)]
    fn backup_bytes(&self, read_bytes: usize) -> u64 {
        let buffers = self.read_buffers * read_bytes + self.parts * self.part_bytes;
        (buffers + self.filter_bytes + self.tree_bytes) as u64
            + self.workers as u64 * WORKER_BYTES
            + BOOKKEEPING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_stay_within_memory() {
        for mib in [64u64, 80, 96, 128, 160, 192, 256, 512, 1024, 8192] {
            for workers in [1, 2, 4, 16, 96] {
                for read in [BLOCK_READ, FILE_READ] {
                    let p = plan(mib << 20, workers, read).unwrap();
                    let used = p.backup_bytes(read);
                    assert!(
                        used <= mib << 20,
                        "{mib} MiB, {workers} workers, read {read}: {} MiB: {p:?}",
                        used >> 20
                    );
                    assert!(p.parts > p.workers + 2, "a lane could wait for itself: {p:?}");
                    let restore = (p.fetch_bytes + p.write_bytes + p.filter_bytes) as u64
                        + p.workers as u64 * WORKER_BYTES
                        + BOOKKEEPING;
                    assert!(restore <= mib << 20, "restore: {p:?}");
                }
            }
        }
        assert!(plan(1 << 20, 1, BLOCK_READ).is_err());
        assert!(plan(u64::MAX, 1024, FILE_READ).is_ok());
    }
}
