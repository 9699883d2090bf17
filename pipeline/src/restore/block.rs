//! Restores a block volume to a file or device: chunks out of order, holes as zeros.

mod target;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use self::target::BlockTarget;
use super::Run;
use super::fetch::{Deliver, Fetcher, fetcher};
use super::sample::Sample;
use crate::entry::ChunkRef;
use crate::error::{Error, Result};
use crate::io::{Completion, Engine};
use crate::manifest::Manifest;
use crate::page::load::is_lost;
use crate::page::walk::ExtentWalk;
use crate::progress::{Counter, Progress, Station};

use super::Damages;

/// Offset and length of a chunk in the volume, bytes.
type Place = (u64, u64);

/// Most chunks of a [`Stretch`]: 64 MiB of them, as the default is.
const STRETCH: usize = 256;

/// Where a block volume is restored to.
pub(super) enum Destination {
    /// A file or device; what is there is replaced only with `overwrite`.
    Path { path: PathBuf, overwrite: bool },
    /// Descriptors of somebody else's, with and without O_DIRECT; what is there is replaced.
    HandedOver { direct: Option<Arc<File>>, buffered: Arc<File> },
}

/// Restores the volume of `manifest` to the destination; returns the bytes read back.
///
/// # Errors
/// [`Error::Target`] when the target is refused (then untouched) or cannot be written; damage; the store's errors.
pub(super) fn restore(run: &Run<'_>, manifest: &Manifest, to: Destination) -> Result<u64> {
    let root =
        manifest.root.ok_or_else(|| Error::damaged(run.object(manifest), "manifest without a root"))?;
    if root.len != manifest.size {
        return Err(Error::damaged(run.object(manifest), "pages do not cover the volume"));
    }
    let target = match to {
        Destination::Path { path, overwrite } => BlockTarget::open(&path, manifest.size, overwrite)?,
        Destination::HandedOver { direct, buffered } => {
            BlockTarget::handed_over(direct, buffered, manifest.size)?
        }
    };
    let sample = Sample::default();
    let (mut fetcher, deliveries) = fetcher::<Place>(&run.shared, run.window());
    let depth = (run.shared.pool.count() / run.plan.workers).saturating_sub(1).clamp(1, 16);
    let planned = std::thread::scope(|scope| -> Result<()> {
        for _ in 0..run.plan.workers {
            let (deliveries, opener) = (deliveries.clone(), run.opener());
            let writer = Writer {
                engine: Engine::new(run.engine, depth, Some(&run.shared.pool))?,
                target: &target,
                sample: &sample,
                damages: &run.damages,
                progress: run.progress,
            };
            scope.spawn(move || deliveries.run(opener, writer));
        }
        drop(deliveries);
        let mut walk = ExtentWalk::new(run.loader(), root);
        let mut stretch = Stretch::default();
        let mut end = 0;
        loop {
            let (offset, item) = match walk.next_from(end) {
                Ok(None) => break,
                Ok(Some(next)) => next,
                Err(error) if is_lost(&error) => {
                    stretch.want(&target, &mut fetcher)?;
                    let (offset, len) = walk.lost().unwrap_or((end, manifest.size - end));
                    run.damages.note(&[], offset, len, error)?;
                    target.zero(offset, len)?;
                    end = offset + len;
                    continue;
                }
                Err(error) => return Err(error),
            };
            end = offset + item.len;
            match item.chunk {
                Some(chunk) => {
                    stretch.chunks.push((chunk, (offset, item.len)));
                    if stretch.chunks.len() == STRETCH {
                        stretch.want(&target, &mut fetcher)?;
                    }
                }
                None => {
                    stretch.want(&target, &mut fetcher)?;
                    target.zero(offset, item.len)?;
                    run.progress.add(Counter::Holes, item.len);
                    run.progress.add(Counter::Done, item.len);
                }
            }
        }
        stretch.want(&target, &mut fetcher)?;
        fetcher.flush()?;
        drop(fetcher);
        if end == manifest.size {
            Ok(())
        } else {
            Err(Error::damaged(run.object(manifest), "pages do not cover the volume"))
        }
    });
    run.shared.failure.take()?;
    planned?;
    target.sync()?;
    sample.check(|()| {
        let (path, file) = (target.path(), target.file().buffered.try_clone());
        file.map(|f| (path.to_owned(), f)).map_err(|e| Error::target_io(path, "cannot read back", e))
    })
}

/// Chunks that follow each other without a hole between them.
#[derive(Default)]
struct Stretch {
    chunks: Vec<(ChunkRef, Place)>,
}

impl Stretch {
    /// Reserves room for the chunks and asks for them; none are left.
    fn want(&mut self, target: &BlockTarget, fetcher: &mut Fetcher<Place>) -> Result<()> {
        if let (Some((_, first)), Some((_, last))) = (self.chunks.first(), self.chunks.last()) {
            target.reserve(first.0, last.0 + last.1 - first.0);
        }
        self.chunks.drain(..).try_for_each(|(chunk, place)| fetcher.want(chunk, place, size_of::<Place>()))
    }
}

/// Writes what one worker opens.
struct Writer<'a> {
    engine: Engine,
    target: &'a BlockTarget,
    sample: &'a Sample<()>,
    damages: &'a Damages,
    progress: &'a Arc<Progress>,
}

impl Writer<'_> {
    fn done(&self, done: Completion) -> Result<()> {
        let len = done.result.map_err(|e| {
            Error::target_io(self.target.path(), format!("cannot write at byte {}", done.offset), e)
        })?;
        self.progress.add(Counter::Written, len as u64);
        self.progress.add(Counter::Done, len as u64);
        Ok(())
    }

    fn reap(&mut self) -> Result<()> {
        let idle = std::time::Instant::now();
        if let Some(done) = self.engine.wait() {
            self.progress.waited_for(Station::Disk, idle.elapsed());
            self.done(done)?;
        }
        Ok(())
    }
}

impl Deliver for Writer<'_> {
    type To = Place;

    fn deliver(&mut self, plain: &Bytes, (offset, len): Place) -> Result<()> {
        if plain.len() as u64 != len {
            let why = Error::damaged("page", format!("chunk of {} bytes where {len} belong", plain.len()));
            return self.damages.note(&[], offset, len, why);
        }
        // The engine's own bound, not only what pays off at present: buffers in flight are counted on to come back.
        while self.engine.in_flight() >= self.engine.depth().0 {
            self.reap()?;
        }
        self.sample.offer(|| (), offset, plain);
        self.engine.write_direct(self.target.file(), offset, plain.clone(), 0);
        while let Some(done) = self.engine.poll() {
            self.done(done)?;
        }
        Ok(())
    }

    fn lost(&mut self, (offset, len): Place, why: Error) -> Result<()> {
        self.damages.note(&[], offset, len, why)?;
        // Nothing else may be mistaken for the volume's contents.
        self.target.zero(offset, len)
    }

    fn finish(&mut self) -> Result<()> {
        while self.engine.in_flight() > 0 {
            self.reap()?;
        }
        Ok(())
    }
}
