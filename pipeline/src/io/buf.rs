//! Aligned memory: one mapping, cut into buffers, each owned by one holder at a time.
//!
//! [`Arena`] is the mapping, [`Slot`] the exclusive right to one piece of it, [`Buf`] a slot with a valid length that
//! finds its way back to the pool. All that is needed for soundness is in this file: slots are made once, by
//! [`Arena::map`], are neither `Clone` nor constructible elsewhere, and keep the mapping alive.
#![allow(unsafe_code, reason = "memory that is mapped, aligned, and handed to the kernel by address")]

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::pool::Home;

/// Alignment of every buffer in bytes, and the unit that buffer sizes are rounded up to. O_DIRECT wants 512 on most
/// devices and 4,096 on some; the larger one is right everywhere.
pub(super) const ALIGN: usize = 4096;

/// Transparent huge pages come in this size on every machine with 4 KiB pages.
const HUGE: usize = 2 << 20;

/// One private anonymous mapping that is cut into `count` pieces of `piece` bytes.
///
/// Nothing is touched here: a piece costs memory from its first use on.
pub(super) struct Arena {
    map: NonNull<u8>,
    map_len: usize,
    base: NonNull<u8>,
    piece: usize,
    count: usize,
}

// SAFETY: the arena is an address range. Its memory is reached only through slots, and each piece has one slot.
unsafe impl Send for Arena {}
// SAFETY: as above; `&Arena` gives out addresses and sizes, never references into the memory.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps room for `count` pieces of at least `piece` bytes and returns it with one slot for each, lowest address
    /// last, so that `Vec::pop` starts at the beginning of the mapping.
    pub(super) fn map(piece: usize, count: usize) -> io::Result<(Arc<Self>, Vec<Slot>)> {
        let too_large =
            || io::Error::new(io::ErrorKind::InvalidInput, "buffer pool larger than the address space");
        let piece = piece.max(1).checked_next_multiple_of(ALIGN).ok_or_else(too_large)?;
        let used = piece.checked_mul(count.max(1)).ok_or_else(too_large)?;
        // Huge pages save TLB misses and page faults, but only whole aligned ones exist: leave room to align. The
        // slack is address space; it is never touched.
        let huge = used >= HUGE;
        let map_len = used.checked_add(if huge { HUGE } else { 0 }).ok_or_else(too_large)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let map = unsafe {
            mmap_anonymous(std::ptr::null_mut(), map_len, ProtFlags::READ | ProtFlags::WRITE, flags)
        }?;
        let map =
            NonNull::new(map.cast::<u8>()).ok_or_else(|| io::Error::other("mapping at address zero"))?;
        let skip = if huge { map.as_ptr().align_offset(HUGE) } else { 0 };
        // SAFETY: skip < HUGE, and the mapping has HUGE bytes more than `used`.
        let base = unsafe { map.add(skip) };
        let arena = Arc::new(Self { map, map_len, base, piece, count });
        let advise = |advice| {
            // SAFETY: base..base + used lies in the mapping just made; these advices never discard contents.
            // They are hints: a kernel without one of them works all the same.
            let _ = unsafe { madvise(base.as_ptr().cast(), used, advice) };
        };
        if huge {
            advise(Advice::LinuxHugepage);
        }
        // A child process has no use for plaintext, and pinned pages would be copied for it at every fork.
        advise(Advice::LinuxDontFork);
        // Nor does a core dump.
        advise(Advice::LinuxDontDump);
        let slots = (0..count).rev().map(|index| Slot { arena: Arc::clone(&arena), index }).collect();
        Ok((arena, slots))
    }

    /// Bytes in each piece.
    pub(super) fn piece(&self) -> usize {
        self.piece
    }

    /// Number of pieces.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// First address of piece `index`, for registration with the kernel. The address alone gives no right to access.
    pub(super) fn address(&self, index: usize) -> *mut u8 {
        self.base.as_ptr().wrapping_add(index * self.piece)
    }

    /// The piece that holds all of `len` bytes from address `at`.
    pub(super) fn locate(&self, at: *const u8, len: usize) -> Option<usize> {
        let offset = at.addr().checked_sub(self.base.addr().get())?;
        let index = offset / self.piece;
        (index < self.count && offset % self.piece + len <= self.piece).then_some(index)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made. Every slot holds a reference to the arena, so no slot is left,
        // and neither is an operation of the kernel: those own their slots until they complete.
        let _ = unsafe { munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

/// The exclusive right to one piece of an arena.
pub(super) struct Slot {
    arena: Arc<Arena>,
    index: usize,
}

impl Slot {
    fn start(&self) -> *mut u8 {
        self.arena.address(self.index)
    }
}

/// An aligned buffer from a [`Pool`](super::Pool), owned by whoever holds it, back in the pool when dropped.
///
/// It dereferences to its *valid* bytes, the first [`len`](Self::len) of [`capacity`](Self::capacity). A buffer taken
/// from the pool has length 0 and whatever contents the last holder left beyond it.
pub struct Buf {
    slot: ManuallyDrop<Slot>,
    home: Arc<Home>,
    len: usize,
}

impl Buf {
    pub(super) fn new(slot: Slot, home: Arc<Home>) -> Self {
        Self { slot: ManuallyDrop::new(slot), home, len: 0 }
    }

    /// Bytes the buffer can hold.
    pub fn capacity(&self) -> usize {
        self.slot.arena.piece
    }

    /// Valid bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no byte is valid.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the number of valid bytes. Bytes that become valid hold what was written there last: zeros, or an
    /// earlier use of this buffer.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "a buffer of {} bytes cannot hold {len}", self.capacity());
        self.len = len;
    }

    /// The whole buffer, valid or not, to be filled before [`set_len`](Self::set_len).
    pub fn space(&mut self) -> &mut [u8] {
        // SAFETY: the slot is exclusive, `&mut self` is too, and mapped memory is initialised (with zeros).
        unsafe { std::slice::from_raw_parts_mut(self.slot.start(), self.capacity()) }
    }

    /// Replaces the contents.
    ///
    /// # Panics
    /// If `data` is longer than the capacity.
    pub fn fill_from(&mut self, data: &[u8]) {
        self.set_len(data.len());
        self.copy_from_slice(data);
    }

    /// Gives up exclusive access for sharing, without a copy. The buffer returns to its pool when the last clone and
    /// slice of the result is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// Address of the first byte, for the kernel. No reference is made.
    pub(super) fn start(&self) -> *mut u8 {
        self.slot.start()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: drop runs once, and nothing reads the field afterwards.
        let slot = unsafe { ManuallyDrop::take(&mut self.slot) };
        self.home.give_back(slot);
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: len <= capacity by `set_len`; the slot is exclusive and mapped memory is initialised.
        unsafe { std::slice::from_raw_parts(self.slot.start(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slot.start(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Sizes only: contents are plaintext.
impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {})", self.len, self.capacity())
    }
}
