//! Shows how far a run is: bars on a terminal, JSON lines for programs, now and then a line of text for logs.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tradewind_pipeline::progress::{Progress, Station};

use crate::output::Output;
use crate::output::human::{Bytes, Count, Rate, Span, plural, whole};
use crate::output::messages::{Counters, Going, station_name};

/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(250);

/// How often programs hear about it.
const JSON_LINE: Duration = Duration::from_secs(1);

/// How often a log gets a line, with `--verbose`.
const LOG_LINE: Duration = Duration::from_secs(30);

/// Rates are averages over about this long, so that they can be read.
const SMOOTH_SECONDS: f64 = 5.0;

/// A station for which others waited less than this share of the time holds nobody up.
const NOTICEABLE: f64 = 0.05;

/// Turns counters into rates, an estimate and a bottleneck.
#[derive(Debug)]
struct Sampler {
    command: &'static str,
    at: f64,
    counters: Counters,
    waits: [u64; 3],
    /// Smoothed bytes per second of done, read, uploaded, fetched, written.
    rates: Option<[f64; 5]>,
}

impl Sampler {
    fn new(command: &'static str) -> Self {
        Self { command, at: 0.0, counters: Counters::default(), waits: [0; 3], rates: None }
    }

    fn look(&mut self, progress: &Progress) -> Going {
        let at = progress.elapsed().as_secs_f64();
        self.sample(at, Counters::from(progress), progress.total(), progress.waits())
    }

    fn sample(&mut self, at: f64, counters: Counters, total: Option<u64>, waits: [u64; 3]) -> Going {
        let passed = (at - self.at).max(1e-3);
        let now = flows(&counters);
        let before = flows(&self.counters);
        let fresh: [f64; 5] = std::array::from_fn(|i| now[i].saturating_sub(before[i]) as f64 / passed);
        let weight = 1.0 - (-passed / SMOOTH_SECONDS).exp();
        let rates = match self.rates {
            None => fresh,
            Some(old) => std::array::from_fn(|i| old[i] + weight * (fresh[i] - old[i])),
        };
        let grown: [u64; 3] = std::array::from_fn(|i| waits[i].saturating_sub(self.waits[i]));
        let [done, read, uploaded, fetched, written] = rates;
        let left = total.map(|t| t.saturating_sub(counters.done_bytes) as f64);
        let going = Going {
            command: self.command,
            elapsed_seconds: at,
            total_bytes: total,
            eta_seconds: left.filter(|_| done >= 1.0).map(|bytes| bytes / done),
            done_bytes_per_second: done,
            read_bytes_per_second: read,
            uploaded_bytes_per_second: uploaded,
            fetched_bytes_per_second: fetched,
            written_bytes_per_second: written,
            bottleneck: bottleneck(grown, passed).map(station_name),
            counters,
        };
        (self.at, self.counters, self.waits, self.rates) = (at, counters, waits, Some(rates));
        going
    }
}

fn flows(c: &Counters) -> [u64; 5] {
    [c.done_bytes, c.read_bytes, c.uploaded_bytes, c.fetched_bytes, c.written_bytes]
}

/// The station for which others waited longest, from nanoseconds waited during `seconds`.
fn bottleneck(waited: [u64; 3], seconds: f64) -> Option<Station> {
    let stations = [Station::Disk, Station::Cpu, Station::Store];
    let (station, nanos) = stations.into_iter().zip(waited).max_by_key(|(_, nanos)| *nanos)?;
    (nanos as f64 >= NOTICEABLE * seconds * 1e9).then_some(station)
}

impl Going {
    /// How far it is.
    fn state(&self) -> String {
        let mut text = Bytes(self.counters.done_bytes).to_string();
        if let Some(total) = self.total_bytes {
            text += &format!(" of {}", Bytes(total));
        }
        text += &format!("  {}", Rate(self.done_bytes_per_second));
        match self.eta_seconds.map(whole) {
            Some(seconds @ ..60) => text += &format!("  {seconds} s left"),
            Some(seconds) => text += &format!("  {} left", Span(Duration::from_secs(seconds))),
            None => {}
        }
        text
    }

    /// What happens to the bytes at the disk.
    fn disk(&self) -> String {
        let c = &self.counters;
        match self.command {
            "backup" => {
                let read = flow("read", c.read_bytes, self.read_bytes_per_second);
                format!("{read}  new {}  stored {}", Bytes(c.new_bytes), Bytes(c.stored_bytes))
            }
            "restore" => flow("written", c.written_bytes, self.written_bytes_per_second),
            _ => format!("checked {}", Bytes(c.done_bytes)),
        }
    }

    /// What happens at the store, what was met on the way, and what holds it up.
    fn store(&self) -> String {
        let c = &self.counters;
        let mut text = match self.command {
            "backup" => flow("uploaded", c.uploaded_bytes, self.uploaded_bytes_per_second),
            _ => flow("fetched", c.fetched_bytes, self.fetched_bytes_per_second),
        };
        if c.files > 0 {
            text += &format!("  {}", plural(c.files, "file", "files"));
        }
        if c.skipped > 0 {
            text += &format!("  {} skipped", Count(c.skipped));
        }
        if let Some(station) = self.bottleneck {
            text += &format!("  waiting for: {station}");
        }
        text
    }
}

fn flow(name: &str, bytes: u64, rate: f64) -> String {
    format!("{name} {} ({})", Bytes(bytes), Rate(rate))
}

impl fmt::Display for Going {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tradewind: {}: {}  {}  {}", self.command, self.state(), self.disk(), self.store())
    }
}

/// Shows a run until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch(Option<(Sender<()>, JoinHandle<()>)>);

impl Watch {
    /// Starts to show `progress` in the way that suits `output`; perhaps not at all.
    pub(crate) fn start(command: &'static str, progress: &Arc<Progress>, output: &Arc<Output>) -> Self {
        let interval = if output.wants_display() {
            REDRAW
        } else if output.quiet() {
            return Self(None);
        } else if output.json() {
            JSON_LINE
        } else if output.verbose() > 0 {
            LOG_LINE
        } else {
            return Self(None);
        };
        let (stop, stopped) = mpsc::channel();
        let (progress, output) = (Arc::clone(progress), Arc::clone(output));
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut sampler = Sampler::new(command);
            let bars = output.wants_display().then(|| Bars::new(&output));
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let going = sampler.look(&progress);
                match &bars {
                    Some(bars) => bars.show(&going),
                    None if output.json() => output.aside(&going),
                    None => output.screen().line(&going),
                }
            }
            if let Some(bars) = bars {
                bars.clear();
            }
        });
        // Without a thread there is no display, and the run goes on.
        Self(thread.ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

/// Three lines at the bottom of a terminal; each fits into 80 columns.
struct Bars {
    state: ProgressBar,
    disk: ProgressBar,
    store: ProgressBar,
    known: ProgressStyle,
    unknown: ProgressStyle,
}

impl Bars {
    fn new(output: &Output) -> Self {
        let style = |template| {
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let bars = output.screen().bars();
        let line = || ProgressBar::new_spinner().with_style(style("  {wide_msg}"));
        Self {
            state: bars.add(ProgressBar::new_spinner()),
            disk: bars.add(line()),
            store: bars.add(line()),
            known: style("{bar:16} {percent:>3}%  {wide_msg}"),
            unknown: style("{spinner} {wide_msg}"),
        }
    }

    fn show(&self, going: &Going) {
        match going.total_bytes {
            Some(total) => {
                self.state.set_style(self.known.clone());
                self.state.set_length(total);
                self.state.set_position(going.counters.done_bytes.min(total));
            }
            None => {
                self.state.set_style(self.unknown.clone());
                self.state.tick();
            }
        }
        self.state.set_message(going.state());
        self.disk.set_message(going.disk());
        self.store.set_message(going.store());
    }

    fn clear(&self) {
        for bar in [&self.store, &self.disk, &self.state] {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(done: u64, uploaded: u64) -> Counters {
        Counters { done_bytes: done, uploaded_bytes: uploaded, ..Counters::default() }
    }

    #[test]
    fn rates_follow_and_the_estimate_uses_them() {
        let mut sampler = Sampler::new("backup");
        let going = sampler.sample(1.0, counters(100, 50), Some(1100), [0; 3]);
        assert!((going.done_bytes_per_second - 100.0).abs() < 1e-9);
        assert_eq!(going.eta_seconds.map(f64::round), Some(10.0));
        let going = sampler.sample(2.0, counters(400, 100), Some(1100), [0; 3]);
        let rate = going.done_bytes_per_second;
        assert!(rate > 100.0 && rate < 300.0, "smoothed: {rate}");
        assert!((going.uploaded_bytes_per_second - 50.0).abs() < 1e-9);
        for second in 3..60 {
            sampler.sample(f64::from(second), counters(400, 100), Some(1100), [0; 3]);
        }
        let going = sampler.sample(60.0, counters(400, 100), Some(1100), [0; 3]);
        assert!(going.done_bytes_per_second < 1.0);
        assert_eq!(going.eta_seconds, None, "nothing moves: no estimate");
        assert_eq!(sampler.sample(61.0, counters(500, 0), None, [0; 3]).eta_seconds, None);
    }

    #[test]
    fn the_bottleneck_is_what_grew_most_since_the_last_look() {
        let mut sampler = Sampler::new("backup");
        let mut look = |at, waits| sampler.sample(at, Counters::default(), None, waits).bottleneck;
        assert_eq!(look(1.0, [900_000_000, 100_000_000, 0]), Some("disk"));
        assert_eq!(look(2.0, [900_000_000, 100_000_000, 800_000_000]), Some("store"));
        assert_eq!(look(3.0, [900_000_000, 600_000_000, 900_000_000]), Some("cpu"));
        assert_eq!(look(4.0, [900_000_000, 600_000_000, 901_000_000]), None, "too little to matter");
    }

    #[test]
    fn a_line_of_text() {
        let mut sampler = Sampler::new("restore");
        let c = Counters { done_bytes: 1 << 30, fetched_bytes: 1 << 20, files: 2, ..Counters::default() };
        let going = sampler.sample(1.0, c, Some(2 << 30), [0, 0, 1_000_000_000]);
        assert_eq!(
            going.to_string(),
            "tradewind: restore: 1.00 GiB of 2.00 GiB  1.00 GiB/s  1 s left  written 0 B (0 B/s)  \
             fetched 1.00 MiB (1.00 MiB/s)  2 files  waiting for: store"
        );
    }
}
