//! The heap of the process, which every byte outside of the buffers' arenas comes from.

#![allow(unsafe_code, reason = "settings of the C library and of the kernel")]

use rustix::mm::{Advice, madvise};

/// Smallest page size there is. Advice wants whole pages.
const PAGE: usize = 4096;

/// Arenas of the heap. glibc makes up to eight for each processor, and each keeps some MiB of what was freed in it:
/// bodies of reads are allocated by one thread and freed by another. Peak of a restore of 4 GiB, 192 MiB allowed:
/// 206 MiB with glibc's own choice on 2 processors, 144 with 4 arenas, 127 with 2, 112 with 1; CPU time is the same.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Makes the heap give back what is freed, so that the process keeps to [`crate::Limits::memory`]. Programs call this
/// first, while they have one thread. Does nothing where the C library is not glibc.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers and touches nothing of ours. It only says whether it knows the setting.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
}

/// Asks the kernel to back `memory` with huge pages where nothing of it was touched yet. A hint: nothing depends on it.
pub(crate) fn prefer_huge_pages<T>(memory: &mut [T]) {
    let range = memory.as_mut_ptr_range();
    let start = range.start.cast::<u8>();
    let skip = start.align_offset(PAGE);
    let len = (range.end.addr() - range.start.addr()).saturating_sub(skip) & !(PAGE - 1);
    if len > 0 {
        // SAFETY: the pages lie within memory that the caller has for itself, and this advice never changes contents.
        // It stays with the addresses when the memory is freed, which harms nobody.
        let _ = unsafe { madvise(start.wrapping_add(skip).cast(), len, Advice::LinuxHugepage) };
    }
}
