//! The heap of the process, which every byte outside of the buffers' arenas comes from.

#![allow(unsafe_code, reason = "a setting of the C library, made before there are threads")]

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
