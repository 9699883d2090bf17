//! Fills packs: one writer per lane (a CPU worker, or the metadata lane), so nothing is locked while sealing.
//!
//! A chunk is compressed and encrypted straight into the part that will be sent. Only a frame that does not fit into
//! what is left of a part takes a detour through scratch memory, because parts must all have the same size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::upload::{PackSender, Uploads};
use super::{Class, Location, MAX_SLOTS, PackName, RECORD, SessionId, TRAILER, header};
use crate::error::{Error, Result};
use crate::hash::{Id, ObjectType};
use crate::io::Buf;
use crate::progress::Counter;
use crate::seal::{Codec, Compressor, FrameHead, MasterKey, PackKey, TAG};

/// A chunk in a pack.
pub type Placed = (ObjectType, Id, Location);

/// Seals chunks into packs of one class and hands their parts to [`Uploads`].
pub struct PackWriter {
    uploads: Arc<Uploads>,
    master: MasterKey,
    epoch: u32,
    session: SessionId,
    class: Class,
    /// Packs are finished when they reach this many bytes.
    full: u64,
    open: Option<OpenPack>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for PackWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackWriter({:?})", self.class)
    }
}

struct OpenPack {
    name: PackName,
    key: PackKey,
    header: [u8; super::HEADER],
    placed: Vec<Placed>,
    /// Bytes in parts that were sent.
    sent: u64,
    part: Buf,
    /// Bytes of `part` that are filled.
    fill: usize,
    sender: Option<PackSender>,
    opened: Instant,
}

impl PackWriter {
    /// A writer without an open pack; `full`: bytes at which a pack is finished.
    pub fn new(
        uploads: Arc<Uploads>,
        master: MasterKey,
        epoch: u32,
        session: SessionId,
        class: Class,
        full: u64,
    ) -> Self {
        Self { uploads, master, epoch, session, class, full, open: None, scratch: Vec::new() }
    }

    /// Seals `plain` into the open pack and returns where it is. The pack is not durable yet.
    ///
    /// # Errors
    /// [`Error::Cancelled`] when the run failed elsewhere or was cancelled while waiting for room;
    /// [`Error::Internal`] for chunks of 4 GiB and more.
    pub fn append(
        &mut self,
        kind: ObjectType,
        id: Id,
        plain: &[u8],
        compressor: &mut Compressor,
    ) -> Result<Location> {
        let length = u32::try_from(plain.len()).map_err(|_| Error::Internal("chunk too large".into()))?;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.start()?,
        };
        let slot = u32::try_from(open.placed.len()).map_err(|_| Error::Internal("slots".into()))?;
        let offset = u32::try_from(open.sent + open.fill as u64)
            .map_err(|_| Error::Internal("pack too large".into()))?;
        let head = FrameHead { slot, kind, codec: Codec::Raw, length, id };
        let need = Compressor::bound(plain.len()).max(plain.len()) + TAG;
        let (codec, stored) = if open.part.len() - open.fill >= need {
            let out = &mut open.part[open.fill..open.fill + need];
            let (codec, stored) = seal_frame(&open.key, head, plain, compressor, out)?;
            open.fill += stored;
            (codec, stored)
        } else {
            self.scratch.resize(need.max(self.scratch.len()), 0);
            let (codec, stored) = seal_frame(&open.key, head, plain, compressor, &mut self.scratch)?;
            open.write(&self.scratch[..stored], &self.uploads)?;
            (codec, stored)
        };
        let stored = u32::try_from(stored).map_err(|_| Error::Internal("chunk too large".into()))?;
        let location = Location { pack: open.name, slot, offset, stored, length, codec };
        open.placed.push((kind, id, location));
        let full = open.sent + open.fill as u64 >= self.full || slot + 1 == MAX_SLOTS;
        self.open = Some(open);
        if full {
            self.finish()?;
        }
        let progress = self.uploads.progress();
        progress.add(Counter::Stored, u64::from(stored));
        Ok(location)
    }

    /// Finishes the open pack if it has been open for `age` or longer: bounds what a crash can cost.
    ///
    /// # Errors
    /// As [`PackWriter::append`].
    pub fn finish_older_than(&mut self, age: Duration) -> Result<()> {
        if self.open.as_ref().is_some_and(|p| p.opened.elapsed() >= age) { self.finish() } else { Ok(()) }
    }

    /// Closes the open pack, if there is one, and leaves the rest of its upload to [`Uploads`].
    ///
    /// # Errors
    /// As [`PackWriter::append`].
    pub fn finish(&mut self) -> Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        let mut table = Vec::with_capacity(open.placed.len() * RECORD + TAG + TRAILER);
        for (kind, id, at) in &open.placed {
            table.extend_from_slice(&id.0);
            table.extend_from_slice(&[*kind as u8, at.codec as u8]);
            for n in [at.offset, at.stored, at.length] {
                table.extend_from_slice(&n.to_le_bytes());
            }
        }
        let tag = open.key.seal_table(&open.header, &mut table)?;
        table.extend_from_slice(&tag);
        let lengths = [table.len(), open.placed.len()].map(u32::try_from);
        for n in lengths {
            table.extend_from_slice(&n.map_err(|_| Error::Internal("table too large".into()))?.to_le_bytes());
        }
        table.extend_from_slice(super::END_MAGIC);
        open.write(&table, &self.uploads)?;
        let size = open.sent + open.fill as u64;
        open.part.set_len(open.fill);
        let last = open.part.freeze();
        match open.sender {
            None => self.uploads.send_whole(open.name, last, open.placed),
            Some(sender) => sender.finish(last, size, open.placed),
        }
    }

    fn start(&self) -> Result<OpenPack> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|e| Error::Internal(format!("no randomness: {e}")))?;
        let name = PackName { id, session: self.session };
        let key = PackKey::derive(&self.master, self.epoch, name)?;
        let header = header(&name, self.class as u8, self.epoch, &key.commitment);
        let mut part = self.uploads.take_part()?;
        part[..header.len()].copy_from_slice(&header);
        let fill = header.len();
        Ok(OpenPack {
            name,
            key,
            header,
            placed: vec![],
            sent: 0,
            part,
            fill,
            sender: None,
            opened: Instant::now(),
        })
    }
}

impl OpenPack {
    /// Appends bytes, sending each part that fills up.
    fn write(&mut self, mut bytes: &[u8], uploads: &Arc<Uploads>) -> Result<()> {
        loop {
            let n = bytes.len().min(self.part.len() - self.fill);
            self.part[self.fill..self.fill + n].copy_from_slice(&bytes[..n]);
            self.fill += n;
            bytes = &bytes[n..];
            if bytes.is_empty() {
                return Ok(());
            }
            // More to come, so this part is full and not the last one.
            if self.sender.is_none() {
                self.sender = Some(uploads.begin(self.name));
            }
            let full = std::mem::replace(&mut self.part, uploads.take_part()?);
            self.sent += full.len() as u64;
            self.fill = 0;
            if let Some(sender) = &self.sender {
                sender.part(full.freeze())?;
            }
        }
    }
}

/// Compresses and encrypts into `out`; returns the codec used and the bytes written, tag included.
fn seal_frame(
    key: &PackKey,
    head: FrameHead,
    plain: &[u8],
    compressor: &mut Compressor,
    out: &mut [u8],
) -> Result<(Codec, usize)> {
    let room = out.len() - TAG;
    match compressor.compress(plain, &mut out[..room]) {
        Some(n) => {
            let tag = key.seal(&FrameHead { codec: Codec::Zstd, ..head }, &mut out[..n])?;
            out[n..n + TAG].copy_from_slice(&tag);
            Ok((Codec::Zstd, n + TAG))
        }
        None => {
            key.seal_to(&head, plain, &mut out[..plain.len() + TAG])?;
            Ok((Codec::Raw, plain.len() + TAG))
        }
    }
}
