//! Restores in order to a stream.
//!
//! ```text
//! planner ──numbered wants──► fetches ──► workers: open ──numbered pieces──► writer (the calling thread)
//!    ▲                                                                          │
//!    └──────────────────────────── pieces written ──────────────────────────────┘
//! ```
//! Chunks are fetched in the order of packs and opened in any order; the writer puts them back in the order of the
//! volume. What is early waits in a plaintext buffer, and there are only so many. If early ones could take them all, the
//! one that is next would never get a buffer and everybody would wait for ever. So a piece is not even asked for before
//! it has a buffer to itself: the planner lets no more pieces be under way than there are buffers, and counts one as
//! under way until it is written and its buffer given back. Whichever order they come in, the next one is among them,
//! it has been asked for (the planner starts all reads before it waits), and a buffer is free for it. No worker ever
//! waits for the order, so reads are always granted, too.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::Run;
use super::fetch::{Deliver, Fetcher, fetcher};
use crate::entry::{Content, Extent};
use crate::error::{Error, FailOnPanic, Result};
use crate::manifest::Manifest;
use crate::page::load::is_lost;
use crate::page::walk::ExtentWalk;
use crate::progress::{Counter, Station};

/// How long anyone waits before looking whether the run has failed or was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// A stretch of the stream.
enum Piece {
    Zeros(u64),
    Data(Bytes),
    /// It cannot be had: the stream ends before it.
    Lost(Error),
}

/// A piece with its number: they are numbered from 0 in the order of the stream.
type Numbered = (u64, Piece);

/// Who wants a chunk: the piece with this number, `len` bytes at `skip`.
struct Place {
    number: u64,
    skip: u32,
    len: u32,
}

/// Writes the volume of `manifest` to `out`; returns 0, because a stream cannot be read back.
///
/// # Errors
/// [`Error::Target`] when `out` fails; damage, whether or not the run keeps going: a stream cannot have gaps. What is
/// before the damage was written.
pub(super) fn restore(run: &Run<'_>, manifest: &Manifest, mut out: Box<dyn Write + Send>) -> Result<u64> {
    let root =
        manifest.root.ok_or_else(|| Error::damaged(run.object(manifest), "manifest without a root"))?;
    write_content(run, &Content::Paged(Box::new(root)), manifest.size, &mut *out)?;
    Ok(0)
}

/// Writes a file's contents of `size` bytes to `out`.
///
/// # Errors
/// As [`restore`].
pub(crate) fn write_content(run: &Run<'_>, content: &Content, size: u64, out: &mut dyn Write) -> Result<()> {
    let failure = &run.shared.failure;
    let (fetcher, deliveries) = fetcher::<Place>(&run.shared, run.window());
    // Unbounded, but the planner bounds what is under way.
    let (pieces, ordered) = unbounded();
    let turn = Turn::default();
    let written = std::thread::scope(|scope| {
        for _ in 0..run.plan.workers {
            let (deliveries, opener) = (deliveries.clone(), run.opener());
            let sorter = Sorter { pieces: pieces.clone(), _guard: FailOnPanic(Arc::clone(failure)) };
            scope.spawn(move || deliveries.run(opener, sorter));
        }
        drop(deliveries);
        let most = run.shared.pool.count() as u64;
        let planner = Planner { run, fetcher, pieces, turn: &turn, next: 0, most };
        scope.spawn(move || {
            let _guard = FailOnPanic(Arc::clone(failure));
            failure.note(planner.plan(content));
        });
        let written = Writer { run, turn: &turn, out }.write_all(&ordered);
        // Others stop at the first failure, and nobody listens to them any more.
        drop(ordered);
        failure.note(written)
    });
    failure.take()?;
    match written {
        Some(written) if written == size => {
            out.flush().map_err(|e| Error::target_io(Path::new("standard output"), "cannot be written", e))
        }
        written => {
            let written = written.unwrap_or_default();
            Err(Error::damaged("page", format!("{written} of {size} bytes are listed")))
        }
    }
}

/// How many pieces were written.
#[derive(Default)]
struct Turn {
    written: Mutex<u64>,
    moved: Condvar,
}

impl Turn {
    fn written(&self) -> MutexGuard<'_, u64> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self) {
        *self.written() += 1;
        self.moved.notify_all();
    }

    /// Waits until no more than `most` pieces before number `next` are under way.
    fn wait(&self, next: u64, most: u64, run: &Run<'_>) -> Result<()> {
        let idle = Instant::now();
        let mut written = self.written();
        while next - *written > most {
            run.shared.failure.check()?;
            run.progress.check()?;
            written = self.moved.wait_timeout(written, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(written);
        run.progress.waited_for(Station::Disk, idle.elapsed());
        Ok(())
    }
}

/// Asks for pieces in the order of the stream.
struct Planner<'a> {
    run: &'a Run<'a>,
    fetcher: Fetcher<Place>,
    pieces: Sender<Numbered>,
    turn: &'a Turn,
    /// Number of the next piece.
    next: u64,
    /// Pieces that may be under way.
    most: u64,
}

impl Planner<'_> {
    fn plan(mut self, content: &Content) -> Result<()> {
        match content {
            Content::Empty => {}
            Content::Extents(extents) => extents.iter().try_for_each(|extent| self.extent(extent))?,
            Content::Paged(root) => {
                let mut walk = ExtentWalk::new(self.run.loader(), **root);
                let mut end = 0;
                loop {
                    let (offset, item) = match walk.next_from(end) {
                        Ok(None) => break,
                        Ok(Some(next)) => next,
                        Err(error) if is_lost(&error) => {
                            self.piece(Piece::Lost(error))?;
                            break;
                        }
                        Err(error) => return Err(error),
                    };
                    end = offset + item.len;
                    let extent = match (item.chunk, u32::try_from(item.len)) {
                        (None, _) => Extent::Hole { len: item.len },
                        (Some(chunk), Ok(len)) => Extent::Chunk { chunk, skip: 0, len },
                        (Some(_), Err(_)) => {
                            self.piece(Piece::Lost(Error::damaged("page", "chunk too long")))?;
                            break;
                        }
                    };
                    self.extent(&extent)?;
                }
            }
        }
        self.fetcher.flush()
    }

    fn extent(&mut self, extent: &Extent) -> Result<()> {
        match *extent {
            Extent::Hole { len } => self.piece(Piece::Zeros(len)),
            Extent::Chunk { chunk, skip, len } => {
                let number = self.number()?;
                self.fetcher.want(chunk, Place { number, skip, len }, size_of::<Place>())
            }
        }
    }

    /// A piece that needs no chunk. It needs no buffer either, but counts as the others do: there may be any number.
    fn piece(&mut self, piece: Piece) -> Result<()> {
        let number = self.number()?;
        // Nobody listens only when the run has failed already.
        let _ = self.pieces.send((number, piece));
        Ok(())
    }

    /// The next number, as soon as there is a buffer for it.
    fn number(&mut self) -> Result<u64> {
        if self.next - *self.turn.written() >= self.most {
            // What is asked for must be on its way before anyone waits for it. Half of the buffers are to be free
            // again: one at a time, neighbours in a pack would not be read together.
            self.fetcher.flush()?;
            self.turn.wait(self.next, self.most / 2, self.run)?;
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

/// Hands what one worker opens to the writer.
struct Sorter {
    pieces: Sender<Numbered>,
    _guard: FailOnPanic,
}

impl Sorter {
    fn send(&self, number: u64, piece: Piece) {
        // Nobody listens only when the run has failed already.
        let _ = self.pieces.send((number, piece));
    }
}

impl Deliver for Sorter {
    type To = Place;

    fn deliver(&mut self, plain: &Bytes, Place { number, skip, len }: Place) -> Result<()> {
        let (start, len) = (skip as usize, len as usize);
        let piece = match start.checked_add(len) {
            Some(end) if end <= plain.len() => Piece::Data(plain.slice(start..end)),
            _ => Piece::Lost(Error::damaged("page", "an extent passes its chunk's end")),
        };
        self.send(number, piece);
        Ok(())
    }

    /// Ends the run when its turn comes: what is before it is still written.
    fn lost(&mut self, to: Place, why: Error) -> Result<()> {
        self.send(to.number, Piece::Lost(why));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Writes pieces by their numbers.
struct Writer<'a> {
    run: &'a Run<'a>,
    turn: &'a Turn,
    out: &'a mut dyn Write,
}

impl Writer<'_> {
    /// Writes until nobody has more; returns the bytes written.
    fn write_all(mut self, pieces: &Receiver<Numbered>) -> Result<u64> {
        let mut early = BTreeMap::new();
        let (mut next, mut written) = (0, 0);
        loop {
            while let Some(piece) = early.remove(&next) {
                self.run.progress.check()?;
                // Its buffer is back before anyone else counts on it.
                written += self.write(piece)?;
                next += 1;
                self.turn.advance();
            }
            match pieces.recv_timeout(LOOK) {
                Ok((number, piece)) => drop(early.insert(number, piece)),
                Err(RecvTimeoutError::Timeout) => {
                    self.run.shared.failure.check()?;
                    self.run.progress.check()?;
                }
                // All is written, or a piece is missing because its worker failed.
                Err(RecvTimeoutError::Disconnected) => {
                    self.run.shared.failure.check()?;
                    return Ok(written);
                }
            }
        }
    }

    fn write(&mut self, piece: Piece) -> Result<u64> {
        let len = match piece {
            Piece::Zeros(len) => {
                let zeros = [0u8; 64 << 10];
                let mut left = len;
                while left > 0 {
                    let n = left.min(zeros.len() as u64);
                    self.run.shared.write_pace.wait(n, self.run.progress)?;
                    self.put(&zeros[..usize::try_from(n).unwrap_or(zeros.len())])?;
                    left -= n;
                }
                len
            }
            // At the rate that was asked for since it was opened.
            Piece::Data(bytes) => {
                self.put(&bytes)?;
                bytes.len() as u64
            }
            Piece::Lost(why) => return Err(why),
        };
        self.run.progress.add(Counter::Written, len);
        self.run.progress.add(Counter::Done, len);
        Ok(len)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out
            .write_all(bytes)
            .map_err(|e| Error::target_io(Path::new("standard output"), "cannot be written", e))
    }
}
