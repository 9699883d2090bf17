//! How many operations to keep in flight: as many as still buy throughput, no more.
//!
//! A disk that is fast at depth 1 gains nothing from depth 32 but latency and memory; cloud volumes need depth 16 to
//! reach their rate. Which one it is shows only while running, so the depth climbs like this:
//!
//! 1. Start at 4 (or the bound, if lower) and measure windows of completions: throughput and median latency.
//! 2. Double. If the next window beats the last one by 5 %, double again; if not, take the step back and rest.
//! 3. While resting, a median latency that has doubled without more throughput halves the depth (never below the
//!    start): the queue is somewhere else then, and waiting in it buys nothing.
//! 4. After such a cut, and every 32 windows, climb again: volumes have bursts and neighbours.
//!
//! A window in which the caller never filled the depth says nothing about the device and decides nothing.

use std::time::{Duration, Instant};

/// Depth at the start.
const START: usize = 4;
/// Throughput must grow by this factor to count as a gain.
const GAIN: f64 = 1.05;
/// Windows to rest between two climbs.
const REST: u32 = 32;
/// Completions in a window: at least this many, and four times the depth, so that a step has settled.
const WINDOW: usize = 16;

/// What one window of completions showed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes per second.
    pub(super) throughput: f64,
    /// Median time from submission to completion.
    pub(super) p50: Duration,
    /// The caller filled the depth at least once.
    pub(super) saturated: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Measure, then step.
    Base,
    /// A step is being judged against what was measured before it, at `depth`.
    Stepped { depth: usize, base: Sample },
    /// Nothing to gain at present; `base` is what this depth has shown.
    Resting { windows: u32, base: Sample },
}

/// The adaptive bound on operations in flight.
#[derive(Debug)]
pub(super) struct Depth {
    now: usize,
    max: usize,
    phase: Phase,
    latencies: Vec<Duration>,
    bytes: usize,
    began: Option<Instant>,
    saturated: bool,
}

impl Depth {
    /// At most `max` operations, at least 1.
    pub(super) fn new(max: usize) -> Self {
        let max = max.max(1);
        Self {
            now: START.min(max),
            max,
            phase: Phase::Base,
            latencies: Vec::new(),
            bytes: 0,
            began: None,
            saturated: false,
        }
    }

    /// The present bound.
    pub(super) fn now(&self) -> usize {
        self.now
    }

    /// The bound that is never passed.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Notes that `in_flight` operations are under way.
    pub(super) fn submitted(&mut self, in_flight: usize, at: Instant) {
        self.began.get_or_insert(at);
        self.saturated |= in_flight >= self.now;
    }

    /// Notes a completion; closes the window when it is full.
    pub(super) fn completed(&mut self, bytes: usize, latency: Duration, at: Instant) {
        self.bytes += bytes;
        self.latencies.push(latency);
        if self.latencies.len() < WINDOW.max(self.now * 4) {
            return;
        }
        let middle = self.latencies.len() / 2;
        let p50 = *self.latencies.select_nth_unstable(middle).1;
        let seconds = self.began.map_or(0.0, |began| at.duration_since(began).as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
        let throughput = self.bytes as f64 / seconds.max(1e-9);
        let sample = Sample { throughput, p50, saturated: self.saturated };
        self.latencies.clear();
        self.bytes = 0;
        self.began = Some(at);
        self.saturated = false;
        self.judge(sample);
    }

    /// The decision. No clock in here.
    pub(super) fn judge(&mut self, sample: Sample) {
        if !sample.saturated {
            return;
        }
        match self.phase {
            Phase::Base => self.step_up(sample),
            Phase::Stepped { base, .. } if sample.throughput >= base.throughput * GAIN => {
                self.step_up(sample);
            }
            Phase::Stepped { depth, base } => {
                self.now = depth;
                self.phase = Phase::Resting { windows: 0, base };
            }
            Phase::Resting { base, .. }
                if sample.p50 >= base.p50 * 2 && sample.throughput < base.throughput * GAIN =>
            {
                self.now = (self.now / 2).max(START.min(self.max));
                self.phase = Phase::Base;
            }
            Phase::Resting { windows, base } if windows + 1 < REST => {
                self.phase = Phase::Resting { windows: windows + 1, base };
            }
            Phase::Resting { .. } => self.step_up(sample),
        }
    }

    fn step_up(&mut self, base: Sample) {
        if self.now == self.max {
            self.phase = Phase::Resting { windows: 0, base };
            return;
        }
        self.phase = Phase::Stepped { depth: self.now, base };
        self.now = (self.now * 2).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(throughput: f64, p50_ms: u64) -> Sample {
        Sample { throughput, p50: Duration::from_millis(p50_ms), saturated: true }
    }

    #[test]
    fn climbs_while_it_pays_and_never_passes_the_bound() {
        let mut depth = Depth::new(20);
        let mut seen = vec![depth.now()];
        for _ in 0..10 {
            // A device that scales: throughput proportional to depth, latency constant.
            depth.judge(sample(depth.now() as f64 * 100.0, 1));
            seen.push(depth.now());
        }
        assert_eq!(seen[..5], [4, 8, 16, 20, 20]);
        assert_eq!(depth.now(), 20);
    }

    #[test]
    fn a_step_that_buys_nothing_is_taken_back() {
        let mut depth = Depth::new(32);
        depth.judge(sample(1000.0, 1));
        assert_eq!(depth.now(), 8);
        depth.judge(sample(1010.0, 2));
        assert_eq!(depth.now(), 4);
        for _ in 0..REST - 1 {
            depth.judge(sample(1000.0, 1));
            assert_eq!(depth.now(), 4);
        }
        depth.judge(sample(1000.0, 1));
        assert_eq!(depth.now(), 8, "tries again after a rest");
    }

    #[test]
    fn doubled_latency_without_gain_halves_the_depth() {
        let mut depth = Depth::new(16);
        for throughput in [1000.0, 2000.0, 4000.0] {
            depth.judge(sample(throughput, 1));
        }
        assert_eq!(depth.now(), 16);
        depth.judge(sample(4000.0, 2));
        assert_eq!(depth.now(), 8);
        // It was needed after all: the next step pays, and stays.
        depth.judge(sample(2000.0, 1));
        depth.judge(sample(4000.0, 1));
        assert_eq!(depth.now(), 16);
        for _ in 0..10 {
            depth.judge(sample(4000.0, 1));
            depth.judge(sample(1.0, 1000));
        }
        assert_eq!(depth.now(), 4, "the start is the floor");
    }

    #[test]
    fn a_caller_that_never_fills_the_depth_changes_nothing() {
        let mut depth = Depth::new(32);
        for n in 0..100 {
            depth.judge(Sample { saturated: false, ..sample(f64::from(n) * 1000.0, 1) });
        }
        assert_eq!(depth.now(), 4);
    }

    #[test]
    fn bounds_below_the_start_hold() {
        for max in 0..4 {
            let mut depth = Depth::new(max);
            for n in 1..50 {
                depth.judge(sample(f64::from(n) * 1000.0, 1));
                assert!((1..=max.max(1)).contains(&depth.now()));
            }
        }
    }

    #[test]
    fn windows_are_made_of_completions() {
        let mut depth = Depth::new(32);
        let start = Instant::now();
        let mut clock = start;
        for n in 0..40_u32 {
            depth.submitted(depth.now(), clock);
            clock += Duration::from_millis(1);
            depth.completed(1 << 20, Duration::from_millis(4), clock);
            assert_eq!(depth.now(), if n < 15 { 4 } else { 8 }, "after {n} completions");
        }
    }
}
