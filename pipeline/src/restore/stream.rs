//! Restores in order to a stream, with several chunks fetched ahead.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;

use super::Run;
use crate::entry::{ChunkRef, Content, Extent};
use crate::error::{Error, Result};
use crate::hash::ObjectType;
use crate::manifest::Manifest;
use crate::page::walk::ExtentWalk;
use crate::progress::Counter;

/// Chunks fetched ahead, at most; the plaintext pool bounds their bytes.
const AHEAD: usize = 32;

/// A stretch of the stream, in order.
struct Next {
    skip: usize,
    len: u64,
    /// `None` for zeros.
    plain: Option<std::thread::JoinHandle<Result<Vec<u8>>>>,
}

/// Writes the volume of `manifest` to `out`; returns 0, because a stream cannot be read back.
///
/// # Errors
/// [`Error::Target`] when `out` fails; damage, whether or not the run keeps going: a stream cannot have gaps.
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
    let mut queue = VecDeque::new();
    let ahead = run.shared.pool.count().min(AHEAD);
    let mut written = 0;
    let mut push = |extent: Extent, out: &mut dyn Write| -> Result<()> {
        let next = match extent {
            Extent::Hole { len } => Next { skip: 0, len, plain: None },
            Extent::Chunk { chunk, skip, len } => {
                Next { skip: skip as usize, len: len.into(), plain: Some(fetch(run, chunk)) }
            }
        };
        queue.push_back(next);
        if queue.len() > ahead { write_next(run, &mut queue, &mut written, out) } else { Ok(()) }
    };
    match content {
        Content::Empty => {}
        Content::Extents(extents) => extents.iter().try_for_each(|e| push(*e, out))?,
        Content::Paged(root) => {
            let mut walk = ExtentWalk::new(run.loader(), **root);
            let mut end = 0;
            while let Some((offset, item)) = walk.next_from(end)? {
                end = offset + item.len;
                let extent = match item.chunk {
                    None => Extent::Hole { len: item.len },
                    Some(chunk) => {
                        let len =
                            u32::try_from(item.len).map_err(|_| Error::damaged("page", "chunk too long"))?;
                        Extent::Chunk { chunk, skip: 0, len }
                    }
                };
                push(extent, out)?;
            }
        }
    }
    while !queue.is_empty() {
        write_next(run, &mut queue, &mut written, out)?;
    }
    if written != size {
        return Err(Error::damaged("page", format!("{written} of {size} bytes are listed")));
    }
    out.flush().map_err(|e| Error::target_io(Path::new("-"), "cannot write", e))
}

fn fetch(run: &Run<'_>, chunk: ChunkRef) -> std::thread::JoinHandle<Result<Vec<u8>>> {
    let loader = run.loader();
    std::thread::spawn(move || loader.fetch(ObjectType::Data, &chunk))
}

fn write_next(
    run: &Run<'_>,
    queue: &mut VecDeque<Next>,
    written: &mut u64,
    out: &mut dyn Write,
) -> Result<()> {
    let Some(next) = queue.pop_front() else { return Ok(()) };
    run.progress.check()?;
    let fail = |e| Error::target_io(Path::new("-"), "cannot write", e);
    match next.plain {
        None => {
            let zeros = [0u8; 64 << 10];
            let mut left = next.len;
            while left > 0 {
                let n = zeros.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                out.write_all(&zeros[..n]).map_err(fail)?;
                left -= n as u64;
            }
        }
        Some(plain) => {
            let plain = plain.join().map_err(|_| Error::Internal("a fetch panicked".into()))??;
            let end = usize::try_from(next.len).ok().and_then(|len| next.skip.checked_add(len));
            let bytes = end
                .and_then(|end| plain.get(next.skip..end))
                .ok_or_else(|| Error::damaged("page", "an extent passes its chunk's end"))?;
            out.write_all(bytes).map_err(fail)?;
        }
    }
    *written += next.len;
    run.progress.add(Counter::Written, next.len);
    run.progress.add(Counter::Done, next.len);
    Ok(())
}
