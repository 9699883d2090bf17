//! The CPU stations: zero check, identity, cutting, compression, sealing. Rates are bytes of input per second and core.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tradewind_pipeline::chunk::{Cutter, Sizes, is_zero};
use tradewind_pipeline::hash::{Hasher, Id, ObjectType};
use tradewind_pipeline::pack::{PackName, SessionId};
use tradewind_pipeline::seal::{Codec, Compressor, FrameHead, Level, MasterKey, PackKey, TAG};

/// A default chunk of a block volume.
const CHUNK: usize = 256 << 10;

fn noise(len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// Text that compresses about three times, as logs and tables do.
fn text(len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(2);
    let words: Vec<String> = (0..500).map(|_| format!("{:x} ", rng.u32(..))).collect();
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        bytes.extend_from_slice(words[rng.usize(..words.len())].as_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn stations(c: &mut Criterion) {
    let master = MasterKey::from_bytes([7; 32]);
    let mut group = c.benchmark_group("cpu");
    group.throughput(Throughput::Bytes(CHUNK as u64));

    let (noise, text, zeros) = (noise(CHUNK), text(CHUNK), vec![0; CHUNK]);
    group.bench_function("zero check, zeros", |b| b.iter(|| assert!(is_zero(&zeros))));
    group.bench_function("zero check, data", |b| b.iter(|| assert!(!is_zero(&noise))));

    let hasher = Hasher::new(&master);
    group.bench_function("id", |b| b.iter(|| hasher.id(ObjectType::Data, &noise)));

    let mut cutter = Cutter::new(&master, Sizes::FILES);
    group.bench_function("cut", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Some(n) = cutter.next_cut(&noise[at..]) {
                at += n;
            }
        });
    });

    let mut out = vec![0; Compressor::bound(CHUNK)];
    for (name, level) in [("zstd 1", 1), ("zstd 3", 3)] {
        let mut compressor = Compressor::new(Level::Fixed(level));
        group.bench_function(format!("{name}, text"), |b| {
            b.iter(|| compressor.compress(&text, &mut out).unwrap());
        });
        group.bench_function(format!("{name}, noise"), |b| b.iter(|| compressor.compress(&noise, &mut out)));
    }

    let name = PackName { id: [1; 16], session: SessionId([2; 12]) };
    let key = PackKey::derive(&master, 1, name).unwrap();
    let head = FrameHead {
        slot: 0,
        kind: ObjectType::Data,
        codec: Codec::Raw,
        length: u32::try_from(CHUNK).unwrap(),
        id: Id([3; 32]),
    };
    let mut sealed = vec![0; CHUNK + TAG];
    group.bench_function("seal", |b| b.iter(|| key.seal_to(&head, &noise, &mut sealed).unwrap()));
    let mut opened = vec![0; CHUNK];
    group.bench_function("open", |b| b.iter(|| key.open_to(&head, &sealed, &mut opened).unwrap()));
    group.finish();
}

criterion_group!(benches, stations);
criterion_main!(benches);
