//! Restores to a stream: in order, in bounded memory, at a rate, and to the end or to the damage.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tradewind_pipeline::browse::{self, CatOptions};
use tradewind_pipeline::limits::{Limits, Rate};
use tradewind_pipeline::manifest::{Manifest, VolumeName};
use tradewind_pipeline::progress::Progress;
use tradewind_pipeline::restore::{self, RestoreOptions, Target};
use tradewind_pipeline::{Error, Kind, Result};

use crate::bed::{Bed, engines, noise};

const MIB: usize = 1 << 20;

type Step = Box<dyn FnMut(usize) -> io::Result<()> + Send>;

/// Keeps what is written; `step` is told how much there is before each write.
#[derive(Clone, Default)]
struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    step: Arc<Mutex<Option<Step>>>,
}

impl Sink {
    fn with(step: impl FnMut(usize) -> io::Result<()> + Send + 'static) -> Self {
        Self { step: Arc::new(Mutex::new(Some(Box::new(step)))), ..Self::default() }
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.bytes.lock().unwrap())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap();
        if let Some(step) = &mut *self.step.lock().unwrap() {
            step(kept.len())?;
        }
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn stream(
    bed: &Bed,
    manifest: &Manifest,
    sink: &Sink,
    change: impl FnOnce(&mut RestoreOptions),
    progress: &Arc<Progress>,
) -> Result<()> {
    let mut options = bed.restore_options(Path::new("-"));
    options.target = Target::Stream(Box::new(sink.clone()));
    change(&mut options);
    restore::run(bed.runtime.handle(), &bed.repository, manifest, options, progress).map(drop)
}

fn tight(workers: usize) -> Limits {
    Limits { memory: 64 << 20, workers, ..Limits::default() }
}

/// A volume whose chunks lie in packs in another order than in the volume, with holes and repetitions.
fn shuffled(bed: &Bed, chunk: usize, count: usize) -> (Box<Manifest>, Vec<u8>) {
    let (ordered, source) = (bed.path("ordered"), bed.path("shuffled"));
    let bytes = noise(chunk * count, 1);
    std::fs::write(&ordered, &bytes).unwrap();
    let mut options = bed.options(&ordered);
    options.chunk_size = Some(u32::try_from(chunk).unwrap());
    options.limits = Limits { workers: 1, ..Limits::default() };
    bed.backup_with(&options).unwrap();
    let zeros = vec![0; chunk];
    let chunks: Vec<&[u8]> = bytes.chunks(chunk).collect();
    let mut volume = Vec::new();
    for (n, last_first) in chunks.iter().rev().enumerate() {
        volume.extend_from_slice(last_first);
        volume.extend_from_slice(if n % 5 == 0 { &zeros } else { chunks[n / 2] });
    }
    volume.extend_from_slice(&bytes[..1000]);
    std::fs::write(&source, &volume).unwrap();
    options.source = tradewind_pipeline::backup::Source::Path(source);
    options.volume = Some(VolumeName::new("shuffled").unwrap());
    (bed.backup_with(&options).unwrap().manifest.unwrap(), volume)
}

#[test]
fn a_stream_is_in_order_whatever_the_order_of_the_packs() {
    for (chunk, count) in [(16 << 10, 900), (256 << 10, 100), (4 * MIB, 7)] {
        let bed = Bed::new(engines()[0]);
        let (manifest, volume) = shuffled(&bed, chunk, count);
        for workers in [1, 4] {
            let sink = Sink::default();
            stream(&bed, &manifest, &sink, |o| o.limits = tight(workers), &Arc::default()).unwrap();
            assert!(sink.take() == volume, "{count} chunks of {chunk} bytes, {workers} workers");
        }
    }
}

#[test]
fn a_file_of_a_tree_is_printed() {
    let bed = Bed::new(engines()[0]);
    let tree = bed.path("tree");
    std::fs::create_dir(&tree).unwrap();
    let files = [("empty", vec![]), ("small", noise(5000, 1)), ("large", noise(40 * MIB + 1, 2))];
    for (name, bytes) in &files {
        std::fs::write(tree.join(name), bytes).unwrap();
    }
    let manifest = bed.backup(&tree).manifest.unwrap();
    for (name, bytes) in files {
        let options = CatOptions { path: name.into(), limits: tight(2), cache_dir: Some(bed.path("cache")) };
        let mut out = Vec::new();
        let progress = Arc::new(Progress::default());
        let written =
            browse::cat(bed.runtime.handle(), &bed.repository, &manifest, &options, &progress, &mut out);
        assert_eq!(written.unwrap(), bytes.len() as u64);
        assert!(out == bytes, "{name}");
    }
}

/// A volume of 24 MiB of noise in one pack or a few.
fn noisy(bed: &Bed) -> (Box<Manifest>, Vec<u8>) {
    let (source, volume) = (bed.path("source"), noise(24 * MIB, 3));
    std::fs::write(&source, &volume).unwrap();
    (bed.backup(&source).manifest.unwrap(), volume)
}

#[test]
fn a_stream_is_fetched_and_written_at_the_rates_that_were_given() {
    let bed = Bed::new(engines()[0]);
    let (manifest, volume) = noisy(&bed);
    for read in [true, false] {
        let (sink, start) = (Sink::default(), Instant::now());
        let rate = Rate::new(16 << 20);
        let change = |options: &mut RestoreOptions| {
            let limits = &mut options.limits;
            *(if read { &mut limits.read_rate } else { &mut limits.upload_rate }) = rate;
        };
        stream(&bed, &manifest, &sink, change, &Arc::default()).unwrap();
        assert!(sink.take() == volume);
        // The last piece, of up to 4 MiB, is not waited for.
        assert!(start.elapsed() > Duration::from_millis(1200), "read {read}: {:?}", start.elapsed());
    }
}

#[test]
fn a_stream_ends_with_its_reader() {
    let bed = Bed::new(engines()[0]);
    let (manifest, _) = noisy(&bed);
    let sink = Sink::with(|written| match written {
        0..MIB => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    });
    match stream(&bed, &manifest, &sink, |o| o.limits = tight(2), &Arc::default()) {
        Err(Error::Target { source: Some(e), .. }) => assert_eq!(e.kind(), io::ErrorKind::BrokenPipe),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_that_is_cancelled_ends() {
    let bed = Bed::new(engines()[0]);
    let (manifest, _) = noisy(&bed);
    let progress = Arc::new(Progress::default());
    let canceller = Arc::clone(&progress);
    let sink = Sink::with(move |written| {
        if written >= MIB {
            canceller.cancel();
        }
        Ok(())
    });
    let result = stream(&bed, &manifest, &sink, |o| o.limits = tight(2), &progress);
    assert_eq!(result.unwrap_err().kind(), Kind::Cancelled);
    assert!(sink.take().len() < 4 * MIB);
}

#[test]
fn a_stream_ends_where_something_is_lost_even_when_told_to_keep_going() {
    let bed = Bed::new(engines()[0]);
    let source = bed.path("source");
    let mut volume = noise(4 * MIB, 3);
    std::fs::write(&source, &volume).unwrap();
    let first = bed.backup(&source);
    // One chunk of the second snapshot is in a pack of its own, which is lost.
    let packs = |bed: &Bed| files(&bed.path("repo/packs"));
    let before = packs(&bed);
    volume[3 * MIB] ^= 1;
    std::fs::write(&source, &volume).unwrap();
    let second = bed.backup(&source).manifest.unwrap();
    let data = packs(&bed).into_iter().filter(|p| !before.contains(p));
    data.filter(|p| std::fs::read(p).unwrap()[10] == 1).for_each(|p| std::fs::remove_file(p).unwrap());
    for keep_going in [false, true] {
        let sink = Sink::default();
        let result = stream(&bed, &second, &sink, |o| o.keep_going = keep_going, &Arc::default());
        assert_eq!(result.unwrap_err().kind(), Kind::Damage);
        assert!(sink.take() == volume[..3 * MIB], "keep going: {keep_going}");
    }
    let sink = Sink::default();
    stream(&bed, &first.manifest.unwrap(), &sink, |_| (), &Arc::default()).unwrap();
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|p| if p.is_dir() { files(&p) } else { vec![p] }).collect()
}
