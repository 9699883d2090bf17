//! The io_uring engine: one ring, owned by one thread.
//!
//! *Ownership.* Each submitted operation sits in a numbered place of [`Ring::ops`] with its file and its memory until
//! the completion with that number arrives. Nothing else takes it out: not errors, not dropping the ring. If the
//! kernel can no longer be asked (the ring was moved to another thread after its first use, or fails for good),
//! operations are leaked rather than freed, because it may still write to their memory.
//!
//! *Flags.* SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1) let the kernel do completion work in the owner's own calls
//! instead of interrupting it. The ring is made disabled and enabled by the first submission: the thread that enables
//! it is its issuer, so an engine can be made here and moved there, and every failure of creation shows here.
//!
//! *Registered buffers* save pinning the pages at each call. A pool's buffer is registered when this ring first sees
//! it, so that buffers nobody used stay untouched, until RLIMIT_MEMLOCK (or the table) is exhausted; the others work
//! unregistered.
//!
//! Not used: SQPOLL (burns a core, and containers have two), IOPOLL (needs polled queues, which network block devices
//! lack), registered files (a reference count per call is no cost at 256 KiB a call).
#![allow(unsafe_code, reason = "the kernel reads and writes memory by address, after the call that names it")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::thread::ThreadId;
use std::time::Duration;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;

use super::pool::Pool;
use super::transfer::{Direction, Op, Step};

/// The kernel's limit on the table of registered buffers.
const TABLE_MAX: usize = 1 << 14;
/// Wait after `EAGAIN`.
const PAUSE: Duration = Duration::from_millis(1);
/// Attempts to enter the kernel while it says it has no memory, `PAUSE` apart.
const ENTER_RETRIES: u32 = 5_000;

type Outcome = (Op, io::Result<usize>);

/// `struct iovec`, which the registration calls take.
#[repr(C)]
struct Iovec {
    base: *mut u8,
    len: usize,
}

/// What is known of one pool buffer in this ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seat {
    Unseen,
    Registered,
    Plain,
}

/// The table of registered buffers of one pool.
struct Table {
    pool: Pool,
    seats: Vec<Seat>,
    /// Still trying: no registration was refused yet.
    open: bool,
}

/// How a ring came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// SINGLE_ISSUER and DEFER_TASKRUN.
    Deferred,
    /// COOP_TASKRUN: Linux 5.19 to 6.0.
    Cooperative,
    /// Neither.
    Plain,
}

impl Flavour {
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Deferred => "single issuer, deferred task work",
            Self::Cooperative => "cooperative task work",
            Self::Plain => "basic",
        }
    }
}

/// A ring and what is under way in it.
pub(super) struct Ring {
    // First, so that the kernel lets go of the memory before the pool does.
    ring: IoUring,
    flavour: Flavour,
    owner: Option<ThreadId>,
    depth: usize,
    ops: Vec<Option<Op>>,
    vacant: Vec<usize>,
    /// Submitted by the caller beyond `depth`.
    backlog: VecDeque<Op>,
    finished: VecDeque<Outcome>,
    table: Option<Table>,
    /// Set while dropping: short transfers are not continued.
    closing: bool,
    dead: Option<String>,
}

// The ring's own pointers lead to its shared mappings, which have no thread; the enabling protocol above and the check
// of `owner` keep the kernel's rule of one issuer. `IoUring` is `Send`, so `Ring` is too without a word from us.

impl Ring {
    /// A ring for up to `depth` operations, with the best flags the kernel takes, and a table for `pool`.
    ///
    /// # Errors
    /// What the kernel said to the plainest attempt.
    pub(super) fn new(depth: usize, pool: Option<&Pool>) -> io::Result<Self> {
        let depth = depth.clamp(1, 4096);
        let entries = u32::try_from(depth.next_power_of_two()).unwrap_or(4096);
        let (ring, flavour) = build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if ![opcode::Read::CODE, opcode::Write::CODE, opcode::ReadFixed::CODE, opcode::WriteFixed::CODE]
            .iter()
            .all(|code| probe.is_supported(*code))
        {
            return Err(Errno::NOSYS.into());
        }
        let table = pool.map(|pool| {
            let seats = pool.count().min(TABLE_MAX);
            // Linux 5.19; before, all buffers would have to be registered, and so touched, at once.
            let open = ring.submitter().register_buffers_sparse(u32::try_from(seats).unwrap_or(0)).is_ok();
            Table { pool: pool.clone(), seats: vec![Seat::Unseen; seats], open }
        });
        Ok(Self {
            ring,
            flavour,
            owner: None,
            depth,
            ops: Vec::with_capacity(depth),
            vacant: Vec::with_capacity(depth),
            backlog: VecDeque::new(),
            finished: VecDeque::new(),
            table,
            closing: false,
            dead: None,
        })
    }

    pub(super) fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Number of pool buffers that are registered now.
    pub(super) fn registered(&self) -> usize {
        let seats = self.table.iter().flat_map(|table| &table.seats);
        seats.filter(|seat| **seat == Seat::Registered).count()
    }

    fn in_kernel(&self) -> usize {
        self.ops.len() - self.vacant.len()
    }

    pub(super) fn submit(&mut self, op: Op) {
        self.claim();
        if let Some(why) = &self.dead {
            self.finished.push_back((op, Err(io::Error::other(why.clone()))));
        } else if self.in_kernel() >= self.depth {
            self.backlog.push_back(op);
        } else {
            self.start(op);
            // At once, not with the next wait: the caller may go and wait for something else first, such as a buffer
            // that only comes back when this operation is done.
            self.enter(0);
        }
    }

    /// The next outcome; with `block`, waits for it unless nothing is under way.
    pub(super) fn reap(&mut self, block: bool) -> Option<Outcome> {
        loop {
            self.collect();
            if let Some(outcome) = self.finished.pop_front() {
                return Some(outcome);
            }
            if self.in_kernel() == 0 {
                return None;
            }
            self.claim();
            if self.dead.is_some() {
                continue; // everything under way was failed into `finished`
            }
            if block {
                self.enter(1);
                continue;
            }
            let submission = self.ring.submission();
            if submission.taskrun() || submission.cq_overflow() || !submission.is_empty() {
                drop(submission);
                self.enter(0);
                self.collect();
            }
            return self.finished.pop_front();
        }
    }

    /// Makes the calling thread the ring's issuer, or finds out that another one is.
    fn claim(&mut self) {
        let here = std::thread::current().id();
        match self.owner {
            Some(owner) if owner == here => {}
            Some(_) if self.flavour != Flavour::Deferred => self.owner = Some(here),
            Some(_) => self.abandon("an io_uring engine was used from a second thread"),
            None => {
                self.owner = Some(here);
                if let Err(e) = self.ring.submitter().register_enable_rings() {
                    self.abandon(&format!("cannot enable the io_uring: {e}"));
                }
            }
        }
    }

    /// Puts an operation in its place and its next call in the submission queue.
    fn start(&mut self, op: Op) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.ops.push(None);
            self.ops.len() - 1
        });
        self.ops[place] = Some(op);
        self.push(place, false);
    }

    fn push(&mut self, place: usize, aside: bool) {
        let Some(op) = &self.ops[place] else { return };
        let piece = op.next();
        let fd = types::Fd(op.descriptor(piece.way).as_raw_fd());
        let len = u32::try_from(piece.len).unwrap_or(u32::MAX);
        let start = op.payload.start().wrapping_add(piece.start);
        let (direction, memory) = (op.direction, start.cast_mut());
        let seat = self.table.as_mut().and_then(|table| table.seat(&self.ring, start, piece.len));
        let entry = match (direction, seat) {
            (Direction::Read, None) => opcode::Read::new(fd, memory, len).offset(piece.offset).build(),
            (Direction::Read, Some(seat)) => {
                opcode::ReadFixed::new(fd, memory, len, seat).offset(piece.offset).build()
            }
            (Direction::Write, None) => opcode::Write::new(fd, start, len).offset(piece.offset).build(),
            (Direction::Write, Some(seat)) => {
                opcode::WriteFixed::new(fd, start, len, seat).offset(piece.offset).build()
            }
        };
        let flags = if aside { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        let entry = entry.flags(flags).user_data(place as u64);
        // There is room: the queue has at least `depth` entries, one for each operation in the kernel.
        // SAFETY: descriptor and memory belong to the operation in `ops[place]`, which stays there, untouched, until
        // the completion of this entry has been seen. `next` keeps piece.start + piece.len within the memory: of a
        // read, within the capacity of a buffer that nobody else refers to; of a write, within its valid bytes.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            self.abandon("the submission queue of the io_uring is full");
        }
    }

    /// Hands new entries to the kernel and waits for `want` completions.
    fn enter(&mut self, want: usize) {
        let mut attempts = 0;
        while self.dead.is_none() {
            let Err(error) = self.ring.submitter().submit_and_wait(want) else { return };
            match Errno::from_io_error(&error) {
                Some(Errno::INTR) => {}
                // No memory for the request now, or completions to be collected first.
                Some(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) if attempts < ENTER_RETRIES => {
                    attempts += 1;
                    if !self.ring.completion().is_empty() {
                        return;
                    }
                    std::thread::sleep(PAUSE);
                }
                _ => self.abandon(&format!("io_uring_enter: {error}")),
            }
        }
    }

    /// Takes what the kernel has completed and continues what is not done.
    fn collect(&mut self) {
        loop {
            let mut continued = false;
            loop {
                let Some(entry) = self.ring.completion().next() else { break };
                let Ok(place) = usize::try_from(entry.user_data()) else { continue };
                let answer = match usize::try_from(entry.result()) {
                    Ok(n) => Ok(n),
                    Err(_) => Err(Errno::from_raw_os_error(-entry.result())),
                };
                continued |= self.answered(place, answer);
            }
            while self.in_kernel() < self.depth
                && self.dead.is_none()
                && let Some(op) = self.backlog.pop_front()
            {
                self.start(op);
                continued = true;
            }
            if !continued {
                return;
            }
            self.enter(0);
        }
    }

    /// Deals with one completion; true when another call was queued for its operation.
    fn answered(&mut self, place: usize, answer: Result<usize, Errno>) -> bool {
        let Some(op) = self.ops.get_mut(place).and_then(Option::as_mut) else { return false };
        let step = match op.advance(answer) {
            Step::Again | Step::Pause if self.closing => Step::Done(Err(Errno::CANCELED.into())),
            step => step,
        };
        match step {
            Step::Again => self.push(place, false),
            Step::Pause => {
                // Rare enough that the whole ring may wait. `aside` lets a kernel thread do the waiting next time.
                std::thread::sleep(PAUSE);
                self.push(place, true);
            }
            Step::Done(result) => {
                if let Some(op) = self.ops[place].take() {
                    self.vacant.push(place);
                    self.finished.push_back((op, result));
                }
                return false;
            }
        }
        true
    }

    /// Gives up on the ring. What is under way fails; its memory and files are leaked, because the kernel may still
    /// be at them.
    fn abandon(&mut self, why: &str) {
        if self.dead.is_some() {
            return;
        }
        tracing::error!(why, in_flight = self.in_kernel(), "io_uring engine given up");
        self.dead = Some(why.to_owned());
        let ops = std::mem::take(&mut self.ops);
        self.vacant.clear();
        for op in ops.into_iter().flatten() {
            let ghost = op.ghost();
            std::mem::forget(op);
            self.finished.push_back((ghost, Err(io::Error::other(why.to_owned()))));
        }
        for op in self.backlog.drain(..) {
            self.finished.push_back((op, Err(io::Error::other(why.to_owned()))));
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.closing = true;
        self.backlog.clear();
        while self.reap(true).is_some() {}
    }
}

impl Table {
    /// The number under which the pool buffer that holds all of `len` bytes from `start` is registered, registering it
    /// if this is its first use. `None`: not a buffer of this pool, or no room for it.
    fn seat(&mut self, ring: &IoUring, start: *const u8, len: usize) -> Option<u16> {
        let arena = self.pool.arena();
        let index = arena.locate(start, len)?;
        let number = u16::try_from(index).ok()?;
        let seat = self.seats.get_mut(index)?;
        if *seat == Seat::Unseen {
            *seat = Seat::Plain;
            if self.open {
                let piece = Iovec { base: arena.address(index), len: arena.piece() };
                // SAFETY: `Iovec` is laid out as `iovec`. The range is a piece of the arena, which stays mapped as
                // long as `self.pool`, and `Ring` drops its ring first. Registering pins pages; it accesses nothing.
                let answer = unsafe {
                    let list = std::slice::from_raw_parts((&raw const piece).cast(), 1);
                    ring.submitter().register_buffers_update(u32::from(number), list, None)
                };
                match answer {
                    Ok(()) => *seat = Seat::Registered,
                    // Memory lock limit, as a rule. What is registered stays so; the rest does without.
                    Err(_) => self.open = false,
                }
            }
        }
        (*seat == Seat::Registered).then_some(number)
    }
}

fn build(entries: u32) -> io::Result<(IoUring, Flavour)> {
    let mut deferred = IoUring::builder();
    deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all();
    let attempts = [
        (deferred, Flavour::Deferred),
        (cooperative, Flavour::Cooperative),
        (IoUring::builder(), Flavour::Plain),
    ];
    let mut refusal = Errno::NOSYS.into();
    for (mut builder, flavour) in attempts {
        match builder.setup_r_disabled().dontfork().build(entries) {
            Ok(ring) => return Ok((ring, flavour)),
            // Only "I do not know these flags" makes another try with fewer of them sensible.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => refusal = e,
            Err(e) => return Err(e),
        }
    }
    Err(refusal)
}
