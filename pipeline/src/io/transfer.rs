//! One operation from submission to completion, for both engines: what to ask the kernel for next, and what its answer
//! means. Everything a kernel may do to a read or write other than simply doing it is dealt with here, once:
//!
//! | answer | read | write |
//! |---|---|---|
//! | fewer bytes than asked | ask for the rest | ask for the rest |
//! | 0 bytes | end of file: done, short | error `WriteZero` |
//! | `EINTR` | again | again |
//! | `EAGAIN`, `ECANCELED` | again after a pause, 100 times | same |
//! | `EIO` | again, 3 times at one offset: cables and paths fail over | final: the page may be gone, a second "success" would lie |
//! | `EINVAL` on an O_DIRECT descriptor | the rest goes through the buffered one | same |
//! | any other error | final | final |
//!
//! A single call moves at most 0x7ffff000 bytes, which the kernel would cut to anyway.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rustix::io::Errno;

use super::buf::Buf;
use super::direct::{DirectFile, Way};

/// The most that one read or write call transfers (`MAX_RW_COUNT`), a multiple of the alignment.
const CALL_MAX: usize = 0x7fff_f000;
/// Further attempts after `EIO` of a read, at one offset.
const EIO_RETRIES: u32 = 3;
/// Further attempts after `EAGAIN` and the like, at one offset.
const AGAIN_RETRIES: u32 = 100;

/// The memory of an operation: given to the engine with the submission, handed back with the [`Completion`].
#[derive(Debug)]
pub enum Payload {
    /// A pool buffer, of a read or a write.
    Buf(Buf),
    /// Shared bytes, of a write.
    Bytes(Bytes),
}

impl Payload {
    /// Number of valid bytes.
    pub fn len(&self) -> usize {
        self.as_ref().len()
    }

    /// True when there is no valid byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pool buffer, if it is one.
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Self::Buf(buf) => Some(buf),
            Self::Bytes(_) => None,
        }
    }

    /// The contents for sharing, without a copy.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Buf(buf) => buf.freeze(),
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Address of the first byte; no reference is made.
    pub(super) fn start(&self) -> *const u8 {
        match self {
            Self::Buf(buf) => buf.start(),
            Self::Bytes(bytes) => bytes.as_ptr(),
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Buf(buf) => buf,
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Buf> for Payload {
    fn from(buf: Buf) -> Self {
        Self::Buf(buf)
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The tag given with the submission.
    pub tag: u64,
    /// The memory given with the submission. After a read, a buffer whose length is the number of bytes read: 0 if the
    /// read failed. (Empty bytes instead, if an io_uring broke down and the kernel may still be using the memory.)
    pub buf: Payload,
    /// The offset given with the submission, in bytes.
    pub offset: u64,
    /// Bytes transferred: for a write all of them, for a read fewer than asked for only at the end of the file.
    pub result: io::Result<usize>,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// The next call to make for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) way: Way,
    /// In the file.
    pub(super) offset: u64,
    /// In the payload.
    pub(super) start: usize,
    pub(super) len: usize,
}

/// What an answer of the kernel means.
#[derive(Debug)]
pub(super) enum Step {
    /// Make the next call.
    Again,
    /// Make the next call, but not at once.
    Pause,
    /// Nothing left to do.
    Done(io::Result<usize>),
}

/// An operation in progress. Owns file and memory until it is done.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) direction: Direction,
    pub(super) file: DirectFile,
    pub(super) payload: Payload,
    pub(super) submitted: Instant,
    tag: u64,
    offset: u64,
    want: usize,
    done: usize,
    /// `EIO`s in a row.
    broken: u32,
    /// `EAGAIN`s in a row.
    busy: u32,
    /// The direct descriptor said `EINVAL`.
    refused: bool,
}

impl Op {
    /// A read of `len` bytes, or at once its completion if no call is needed to know it.
    pub(super) fn read(
        file: DirectFile,
        offset: u64,
        len: usize,
        buf: Buf,
        tag: u64,
    ) -> Result<Self, Completion> {
        let fits = len <= buf.capacity();
        let op = Self::new(Direction::Read, file, offset, len, Payload::Buf(buf), tag);
        if fits { op.checked() } else { Err(op.refuse("read longer than its buffer")) }
    }

    /// A write of all of `payload`, or at once its completion if no call is needed to know it.
    pub(super) fn write(
        file: DirectFile,
        offset: u64,
        payload: Payload,
        tag: u64,
    ) -> Result<Self, Completion> {
        Self::new(Direction::Write, file, offset, payload.len(), payload, tag).checked()
    }

    fn new(
        direction: Direction,
        file: DirectFile,
        offset: u64,
        want: usize,
        payload: Payload,
        tag: u64,
    ) -> Self {
        let submitted = Instant::now();
        Self {
            direction,
            file,
            payload,
            submitted,
            tag,
            offset,
            want,
            done: 0,
            broken: 0,
            busy: 0,
            refused: false,
        }
    }

    fn checked(self) -> Result<Self, Completion> {
        // The kernel's offsets are signed, and an io_uring takes -1 for "wherever the file's position is".
        let end = u64::try_from(self.want).ok().and_then(|want| self.offset.checked_add(want));
        if end.and_then(|end| i64::try_from(end).ok()).is_none() {
            return Err(self.refuse("offset beyond the largest file"));
        }
        if self.want == 0 { Err(self.complete(Ok(0))) } else { Ok(self) }
    }

    fn refuse(self, what: &str) -> Completion {
        self.complete(Err(io::Error::new(io::ErrorKind::InvalidInput, what)))
    }

    /// The call to make next. It is not empty and lies within the payload: the capacity of a read's buffer, the valid
    /// bytes of what is written.
    pub(super) fn next(&self) -> Piece {
        let offset = self.offset + self.done as u64;
        let len = (self.want - self.done).min(CALL_MAX);
        let address = self.payload.start().addr() + self.done;
        let (way, len) =
            if self.refused { (Way::Buffered, len) } else { self.file.way(offset, len, address) };
        Piece { way, offset, start: self.done, len }
    }

    /// The descriptor of a call.
    pub(super) fn descriptor(&self, way: Way) -> &Arc<File> {
        self.file.descriptor(way)
    }

    /// What the answer to the call that [`next`](Self::next) named means.
    pub(super) fn advance(&mut self, answer: Result<usize, Errno>) -> Step {
        let piece = self.next();
        let error = match answer {
            Ok(0) if self.direction == Direction::Read => return Step::Done(Ok(self.done)),
            Ok(0) => return Step::Done(Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => {
                self.done += n.min(piece.len);
                (self.broken, self.busy) = (0, 0);
                return if self.done == self.want { Step::Done(Ok(self.done)) } else { Step::Again };
            }
            Err(error) => error,
        };
        match error {
            Errno::INTR => Step::Again,
            Errno::AGAIN | Errno::CANCELED if self.busy < AGAIN_RETRIES => {
                self.busy += 1;
                Step::Pause
            }
            Errno::IO if self.direction == Direction::Read && self.broken < EIO_RETRIES => {
                self.broken += 1;
                Step::Again
            }
            Errno::INVAL if piece.way == Way::Direct => {
                self.refused = true;
                Step::Again
            }
            // A caller's own O_DIRECT descriptor without a buffered twin, asked beyond an odd end of file.
            Errno::INVAL if self.direction == Direction::Read && self.done > 0 && self.at_end(piece) => {
                Step::Done(Ok(self.done))
            }
            error => Step::Done(Err(error.into())),
        }
    }

    /// Stands in for an operation whose memory cannot be handed back.
    pub(super) fn ghost(&self) -> Self {
        let none = Bytes::new().into();
        Self {
            submitted: self.submitted,
            ..Self::new(Direction::Write, self.file.clone(), self.offset, 0, none, self.tag)
        }
    }

    fn at_end(&self, piece: Piece) -> bool {
        self.descriptor(piece.way).metadata().is_ok_and(|m| m.is_file() && m.len() <= piece.offset)
    }

    /// The completion of this operation.
    pub(super) fn complete(mut self, result: io::Result<usize>) -> Completion {
        if let (Direction::Read, Payload::Buf(buf)) = (self.direction, &mut self.payload) {
            buf.set_len(result.as_ref().map_or(0, |n| *n));
        }
        Completion { tag: self.tag, buf: self.payload, offset: self.offset, result }
    }
}

#[cfg(test)]
mod tests;
