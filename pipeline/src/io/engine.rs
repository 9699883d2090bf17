//! The engine: one interface, two ways to the disk.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::buf::Buf;
use super::depth::Depth;
use super::direct::DirectFile;
use super::pool::Pool;
use super::pread::Workers;
use super::transfer::{Completion, Op, Payload};
use super::uring::Ring;
use crate::error::{Error, Result};

/// A way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// io_uring: one thread, one system call for several transfers, registered memory.
    Uring,
    /// A pool of threads in pread and pwrite: works everywhere.
    Pread,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring => "uring",
            Self::Pread => "pread",
        })
    }
}

/// Which engine the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum EngineChoice {
    /// io_uring where it works, pread elsewhere.
    #[default]
    Auto,
    /// io_uring or nothing.
    Uring,
    /// pread.
    Pread,
}

/// Reads and writes of one thread, several in flight.
///
/// An operation owns its file and its memory from submission to completion; completions come in any order and are
/// told apart by their tags. Any number may be submitted, but [`has_room`](Self::has_room) says when more would only
/// queue up.
///
/// An engine may be made in one thread and moved to another before its first use; from then on it belongs there.
/// Dropping it waits for what the kernel has begun, and forgets what it has not: a caller that wants to know the
/// outcome of its writes waits for them.
pub struct Engine {
    inner: Inner,
    depth: Depth,
    in_flight: usize,
    /// Operations that needed no call.
    settled: VecDeque<Completion>,
}

enum Inner {
    Uring(Box<Ring>),
    Pread(Workers),
}

impl Engine {
    /// An engine with at most `depth` operations in flight. Buffers of `pool` are registered with the kernel on their
    /// first use, as far as it allows; those of other pools work, a little slower.
    ///
    /// # Errors
    /// When a ring cannot be made; [`probe`](super::probe) says beforehand whether it can, and why not.
    pub fn new(kind: EngineKind, depth: usize, pool: Option<&Pool>) -> Result<Self> {
        let inner = match kind {
            EngineKind::Pread => Inner::Pread(Workers::new(depth)),
            EngineKind::Uring => Inner::Uring(Box::new(
                Ring::new(depth, pool).map_err(Error::io("set up", Path::new("io_uring")))?,
            )),
        };
        Ok(Self { inner, depth: Depth::new(depth), in_flight: 0, settled: VecDeque::new() })
    }

    /// Which engine this is.
    pub fn kind(&self) -> EngineKind {
        match self.inner {
            Inner::Uring(_) => EngineKind::Uring,
            Inner::Pread(_) => EngineKind::Pread,
        }
    }

    /// Submits a read of `len` bytes (at most the buffer's capacity) at `offset`. It completes with fewer bytes only
    /// at the end of the file. From a pipe or socket, where `offset` means nothing, submit one read at a time, and
    /// have the descriptor blocking: `EAGAIN` is waited out for a tenth of a second only.
    pub fn read(&mut self, file: &Arc<File>, offset: u64, len: usize, buf: Buf, tag: u64) {
        self.submit(Op::read(DirectFile::buffered(Arc::clone(file)), offset, len, buf, tag));
    }

    /// Like [`read`](Self::read), past the page cache as far as alignment allows.
    pub fn read_direct(&mut self, file: &DirectFile, offset: u64, len: usize, buf: Buf, tag: u64) {
        self.submit(Op::read(file.clone(), offset, len, buf, tag));
    }

    /// Submits a write of the buffer's whole valid length at `offset`. It completes with all of it or an error.
    pub fn write(&mut self, file: &Arc<File>, offset: u64, buf: Buf, tag: u64) {
        self.submit(Op::write(DirectFile::buffered(Arc::clone(file)), offset, buf.into(), tag));
    }

    /// Like [`write`](Self::write), for shared bytes.
    pub fn write_bytes(&mut self, file: &Arc<File>, offset: u64, data: Bytes, tag: u64) {
        self.submit(Op::write(DirectFile::buffered(Arc::clone(file)), offset, data.into(), tag));
    }

    /// Like [`write`](Self::write) and [`write_bytes`](Self::write_bytes), past the page cache as far as alignment
    /// allows. An unaligned tail goes through the page cache: sync afterwards, as always. For files written in pieces
    /// that are aligned but for the last; see [`DirectFile`].
    pub fn write_direct(&mut self, file: &DirectFile, offset: u64, data: impl Into<Payload>, tag: u64) {
        self.submit(Op::write(file.clone(), offset, data.into(), tag));
    }

    /// Operations submitted and not yet handed back.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// False when as many operations are in flight as pay off at present.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.depth.now()
    }

    /// Operations in flight that pay off at present, and the most there may be. The first adapts to the device.
    pub fn depth(&self) -> (usize, usize) {
        (self.depth.now(), self.depth.max())
    }

    /// Buffers registered with the kernel so far. 0 for pread.
    pub fn registered(&self) -> usize {
        match &self.inner {
            Inner::Uring(ring) => ring.registered(),
            Inner::Pread(_) => 0,
        }
    }

    /// Waits for one completion. `None` when nothing is in flight.
    pub fn wait(&mut self) -> Option<Completion> {
        self.reap(true)
    }

    /// A completion that is there already.
    pub fn poll(&mut self) -> Option<Completion> {
        self.reap(false)
    }

    fn submit(&mut self, op: Result<Op, Completion>) {
        self.in_flight += 1;
        let op = match op {
            Ok(op) => op,
            Err(completion) => return self.settled.push_back(completion),
        };
        self.depth.submitted(self.in_flight, op.submitted);
        match &mut self.inner {
            Inner::Uring(ring) => ring.submit(op),
            Inner::Pread(workers) => workers.submit(op),
        }
    }

    fn reap(&mut self, block: bool) -> Option<Completion> {
        if let Some(completion) = self.settled.pop_front() {
            self.in_flight = self.in_flight.saturating_sub(1);
            return Some(completion);
        }
        let (op, result) = match &mut self.inner {
            Inner::Uring(ring) => ring.reap(block),
            Inner::Pread(workers) => workers.reap(block),
        }?;
        self.in_flight = self.in_flight.saturating_sub(1);
        let now = Instant::now();
        self.depth.completed(*result.as_ref().unwrap_or(&0), now.duration_since(op.submitted), now);
        Some(op.complete(result))
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("kind", &self.kind())
            .field("depth", &self.depth())
            .field("in_flight", &self.in_flight)
            .finish()
    }
}
