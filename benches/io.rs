//! The io station: both engines at three depths, and the pool.
//!
//! The file is small enough to stay in the page cache, so that the buffered figures are the engines' own cost; the
//! direct ones are the disk's, where the temporary directory (`TMPDIR`) has O_DIRECT. Without io_uring its half is
//! left out, loudly: a figure for a fallback under the name of the real thing would be a lie.

use std::hint::black_box;
use std::path::Path;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tradewind_pipeline::io::{DirectFile, Engine, EngineChoice, EngineKind, Pool, probe};

const FILE: usize = 64 << 20;
const BUFFER: usize = 256 << 10;

fn engines() -> Vec<EngineKind> {
    let mut engines = vec![EngineKind::Pread];
    match probe(EngineChoice::Uring) {
        Ok(probe) => {
            eprintln!("{}", probe.why);
            engines.push(EngineKind::Uring);
        }
        Err(e) => eprintln!("LEFT OUT: {e}"),
    }
    engines
}

/// Reads the whole file with `depth` reads in flight.
fn read_all(engine: &mut Engine, file: &DirectFile, pool: &Pool, depth: usize) {
    let mut next = 0;
    loop {
        while next < FILE && engine.in_flight() < depth {
            let Some(buf) = pool.try_take() else { break };
            engine.read_direct(file, next as u64, BUFFER, buf, 0);
            next += BUFFER;
        }
        let Some(completion) = engine.wait() else { return };
        assert!(completion.result.is_ok_and(|n| n == BUFFER));
        black_box(completion.buf.as_ref().first());
    }
}

fn reads(c: &mut Criterion) {
    let Ok(dir) = tempfile::tempdir() else { return eprintln!("LEFT OUT: no temporary directory") };
    let path = dir.path().join("volume");
    let noise: Vec<u8> = (0..FILE).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 13).to_le_bytes()[0]).collect();
    if std::fs::write(&path, noise).is_err() {
        return eprintln!("LEFT OUT: no room for {FILE} bytes in {}", path.display());
    }
    let engines = engines();
    for (name, file) in files(&path) {
        let mut group = c.benchmark_group(format!("io/read/{name}"));
        group.throughput(Throughput::Bytes(FILE as u64)).sample_size(10);
        for kind in &engines {
            for depth in [1, 8, 32] {
                let id = BenchmarkId::new(kind.to_string(), depth);
                group.bench_function(id, |b| {
                    let pool = Pool::new(BUFFER, depth).unwrap_or_else(|e| panic!("{e}"));
                    let mut engine = Engine::new(*kind, depth, Some(&pool)).unwrap_or_else(|e| panic!("{e}"));
                    b.iter(|| read_all(&mut engine, &file, &pool, depth));
                });
            }
        }
        group.finish();
    }
}

/// The same file by the ways there are to it.
fn files(path: &Path) -> Vec<(&'static str, DirectFile)> {
    let Ok(file) = DirectFile::open_read(path) else { return Vec::new() };
    let cached = ("cached", DirectFile::buffered(file.buffered.clone()));
    if file.is_direct() {
        vec![cached, ("direct", file)]
    } else {
        eprintln!("LEFT OUT: no O_DIRECT for {}", path.display());
        vec![cached]
    }
}

fn pool(c: &mut Criterion) {
    let Ok(pool) = Pool::new(BUFFER, 64) else { return };
    c.bench_function("io/pool/take and return", |b| b.iter(|| drop(black_box(pool.take()))));
    c.bench_function("io/pool/take, freeze and return", |b| {
        b.iter(|| drop(black_box(pool.take().freeze().slice(..))));
    });
}

criterion_group!(benches, reads, pool);
criterion_main!(benches);
