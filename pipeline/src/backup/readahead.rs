//! Reads ranges of a file in order with several reads in flight.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, FirstError, Result};
use crate::io::{Buf, DirectFile, Engine, EngineKind, Pool};
use crate::limits::Rate;
use crate::progress::{Counter, Progress, Station};

/// Most reads in flight; the engine's adaptive depth stays below it where more would only add latency.
const DEPTH: usize = 32;

/// An engine with its buffers, used for one file after the other.
#[derive(Debug)]
pub(super) struct ReadAhead {
    engine: Engine,
    pool: Pool,
    rate: Rate,
    progress: Arc<Progress>,
    failure: Arc<FirstError>,
    /// Reads in flight or waiting for their turn, in order of offsets.
    queue: VecDeque<Read>,
    next_tag: u64,
}

#[derive(Debug)]
struct Read {
    offset: u64,
    asked: usize,
    result: Option<std::io::Result<Buf>>,
}

impl ReadAhead {
    /// Reads with an engine of `kind` into buffers of `pool`.
    ///
    /// # Errors
    /// When the engine cannot be set up.
    pub(super) fn new(
        kind: EngineKind,
        pool: Pool,
        rate: Rate,
        progress: Arc<Progress>,
        failure: Arc<FirstError>,
    ) -> Result<Self> {
        let engine = Engine::new(kind, DEPTH.min(pool.count()), Some(&pool))?;
        Ok(Self { engine, pool, rate, progress, failure, queue: VecDeque::new(), next_tag: 0 })
    }

    /// Reads `ranges` of `file` (ascending, none empty) and calls `visit` with each piece's offset, the
    /// bytes that were asked for, and the piece, in order. A piece is shorter than asked only where the file ends.
    ///
    /// # Errors
    /// [`Error::Source`] naming the path and the offset of a failed read; [`Error::Cancelled`]; what `visit` returns.
    pub(super) fn read(
        &mut self,
        file: &DirectFile,
        path: &Path,
        ranges: &mut dyn Iterator<Item = Result<Range<u64>>>,
        visit: &mut dyn FnMut(u64, usize, Buf) -> Result<()>,
    ) -> Result<()> {
        let result = self.read_inner(file, path, ranges, visit);
        // The engine serves the next file: nothing of this one may be left in it.
        while self.engine.wait().is_some() {}
        self.queue.clear();
        result
    }

    fn read_inner(
        &mut self,
        file: &DirectFile,
        path: &Path,
        ranges: &mut dyn Iterator<Item = Result<Range<u64>>>,
        visit: &mut dyn FnMut(u64, usize, Buf) -> Result<()>,
    ) -> Result<()> {
        let mut range = 0..0;
        let mut more = true;
        let first_tag = self.next_tag;
        let mut delivered = 0;
        loop {
            while more && self.engine.has_room() {
                if range.is_empty() {
                    match ranges.next().transpose()? {
                        Some(next) => range = next,
                        None => more = false,
                    }
                    continue;
                }
                let Some(buf) = self.buffer()? else { break };
                let len = buf.capacity().min(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
                self.rate.wait(len as u64, &self.progress)?;
                self.engine.read_direct(file, range.start, len, buf, self.next_tag);
                self.next_tag += 1;
                self.queue.push_back(Read { offset: range.start, asked: len, result: None });
                range.start += len as u64;
            }
            let Some(head) = self.queue.front_mut() else { return Ok(()) };
            if let Some(result) = head.result.take() {
                let (offset, asked) = (head.offset, head.asked);
                self.queue.pop_front();
                delivered += 1;
                let buf =
                    result.map_err(|e| Error::source_io(path, format!("cannot read at byte {offset}"), e))?;
                self.progress.add(Counter::Read, buf.len() as u64);
                visit(offset, asked, buf)?;
            } else if let Some(done) = self.engine.wait() {
                let at = usize::try_from(done.tag - first_tag - delivered).unwrap_or(usize::MAX);
                let buf = done.buf.into_buf();
                let result = done.result.and_then(|n| {
                    let mut buf = buf.ok_or_else(|| std::io::Error::other("engine lost a buffer"))?;
                    buf.set_len(n);
                    Ok(buf)
                });
                if let Some(read) = self.queue.get_mut(at) {
                    read.result = Some(result);
                }
            } else {
                return Err(Error::Internal("reads got lost".into()));
            }
        }
    }

    /// A free buffer; waits for one only when nothing is in flight that could be delivered first.
    fn buffer(&self) -> Result<Option<Buf>> {
        if let Some(buf) = self.pool.try_take() {
            return Ok(Some(buf));
        }
        if !self.queue.is_empty() {
            return Ok(None);
        }
        self.take().map(Some)
    }

    /// A free buffer of the pool, waiting for the workers to give one back.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run is cancelled or failed meanwhile.
    pub(super) fn take(&self) -> Result<Buf> {
        let start = Instant::now();
        loop {
            self.failure.check()?;
            self.progress.check()?;
            if let Some(buf) = self.pool.take_timeout(Duration::from_millis(100)) {
                self.progress.waited_for(Station::Cpu, start.elapsed());
                return Ok(buf);
            }
        }
    }
}
