//! The engine that works everywhere: a few threads that call pread and pwrite.
//!
//! A thread per operation in flight, started when it is first needed and at most as many as the depth allows. Each
//! takes an operation from one channel, carries it to its end and puts it into another.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::io::{Errno, pread, pwrite, read, write};

use super::transfer::{Direction, Op, Payload, Step};

/// More threads than this only queue in the block layer.
const THREADS_MAX: usize = 64;
/// The threads do nothing but one system call; most of the stack is never touched.
const STACK: usize = 128 << 10;
/// Wait after `EAGAIN`.
const PAUSE: Duration = Duration::from_millis(1);

type Outcome = (Op, io::Result<usize>);

/// The threads and what is under way in them.
pub(super) struct Workers {
    todo: Option<Sender<Op>>,
    todo_end: Receiver<Op>,
    finished: Receiver<Outcome>,
    finished_end: Sender<Outcome>,
    threads: Vec<JoinHandle<()>>,
    threads_max: usize,
    in_flight: usize,
}

impl Workers {
    pub(super) fn new(depth: usize) -> Self {
        // Unbounded channels, bounded use: every operation holds a buffer, and those are counted.
        let (todo, todo_end) = unbounded();
        let (finished_end, finished) = unbounded();
        let threads_max = depth.clamp(1, THREADS_MAX);
        Self {
            todo: Some(todo),
            todo_end,
            finished,
            finished_end,
            threads: Vec::new(),
            threads_max,
            in_flight: 0,
        }
    }

    pub(super) fn submit(&mut self, op: Op) {
        self.in_flight += 1;
        if self.threads.len() < self.in_flight.min(self.threads_max) {
            self.start_thread();
        }
        let rejected = match &self.todo {
            // No thread could be started (process limit): slowly is better than not at all.
            _ if self.threads.is_empty() => Some(op),
            Some(todo) => todo.send(op).err().map(crossbeam_channel::SendError::into_inner),
            None => Some(op),
        };
        if let Some(op) = rejected {
            let _ = self.finished_end.send(carry_out(op));
        }
    }

    fn start_thread(&mut self) {
        let (todo, finished) = (self.todo_end.clone(), self.finished_end.clone());
        let work = move || {
            for op in todo {
                if finished.send(carry_out(op)).is_err() {
                    return;
                }
            }
        };
        let name = format!("io-{}", self.threads.len());
        if let Ok(thread) = std::thread::Builder::new().name(name).stack_size(STACK).spawn(work) {
            self.threads.push(thread);
        }
    }

    /// The next outcome; with `block`, waits for it unless nothing is under way.
    pub(super) fn reap(&mut self, block: bool) -> Option<Outcome> {
        if self.in_flight == 0 {
            return None;
        }
        let outcome = if block { self.finished.recv().ok() } else { self.finished.try_recv().ok() };
        self.in_flight -= usize::from(outcome.is_some());
        outcome
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // What has not begun does not begin; what has begun keeps its buffer until it ends.
        while self.todo_end.try_recv().is_ok() {}
        self.todo = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn carry_out(mut op: Op) -> Outcome {
    loop {
        let answer = call(&mut op);
        match op.advance(answer) {
            Step::Again => {}
            Step::Pause => std::thread::sleep(PAUSE),
            Step::Done(result) => return (op, result),
        }
    }
}

/// One system call. What has no positions (a pipe) is read and written in order instead.
fn call(op: &mut Op) -> Result<usize, Errno> {
    let piece = op.next();
    let range = piece.start..piece.start + piece.len;
    let file = std::sync::Arc::clone(op.descriptor(piece.way));
    match (op.direction, &mut op.payload) {
        (Direction::Read, Payload::Buf(buf)) => {
            let space = &mut buf.space()[range];
            match pread(&file, &mut *space, piece.offset) {
                Err(Errno::SPIPE) => read(&file, space),
                answer => answer,
            }
        }
        (Direction::Write, payload) => {
            let data = &payload.as_ref()[range];
            match pwrite(&file, data, piece.offset) {
                Err(Errno::SPIPE) => write(&file, data),
                answer => answer,
            }
        }
        // Reads are made with buffers only; shared bytes are never written to.
        (Direction::Read, Payload::Bytes(_)) => Err(Errno::FAULT),
    }
}
