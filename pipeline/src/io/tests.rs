//! What both engines owe their callers, in one table of tests that runs once for each.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tempfile::TempDir;

use super::*;

mod devices;
mod ring;

/// False, loudly, where the kernel refuses io_uring.
fn uring_works() -> bool {
    match probe(EngineChoice::Uring) {
        Ok(_) => true,
        Err(e) => {
            eprintln!("SKIPPED: {e}");
            false
        }
    }
}

macro_rules! for_both_engines {
    ($($name:ident)*) => {
        mod pread {
            $(#[test] fn $name() { super::$name(super::EngineKind::Pread); })*
        }
        mod uring {
            $(#[test] fn $name() { if super::uring_works() { super::$name(super::EngineKind::Uring); } })*
        }
    };
}
use for_both_engines;

for_both_engines! {
    random_reads_deliver_what_std_delivers
    reads_end_where_the_file_ends
    what_is_written_in_any_order_reads_back
    a_read_from_a_pipe_waits_for_all_of_it
    a_write_to_a_pipe_goes_on_until_all_is_taken
    errors_come_with_the_buffer
    requests_that_cannot_be_made_are_errors_not_panics
    nothing_to_do_is_done
    more_than_the_depth_may_be_submitted
    an_engine_without_work_does_not_wait
    polling_never_waits
    dropping_waits_for_what_the_kernel_has_begun
    dropping_with_a_full_queue_returns_every_buffer
    an_engine_is_made_here_and_used_there
    other_pools_and_no_pool_work_too
}

fn noise(len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(len as u64 + 1);
    (0..len).map(|_| random.u8(..)).collect()
}

fn file_with(data: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume");
    std::fs::write(&path, data).unwrap();
    (dir, path)
}

fn engine(kind: EngineKind, depth: usize, pool: &Pool) -> Engine {
    let engine = Engine::new(kind, depth, Some(pool)).unwrap();
    assert_eq!(engine.kind(), kind);
    engine
}

fn open(path: &Path) -> Arc<File> {
    Arc::new(File::options().read(true).write(true).open(path).unwrap())
}

fn random_reads_deliver_what_std_delivers(kind: EngineKind) {
    let data = noise((3 << 20) + 777);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let pool = Pool::new(256 << 10, 8).unwrap();
    let mut engine = engine(kind, 8, &pool);
    let mut random = fastrand::Rng::with_seed(1);
    let mut asked = std::collections::HashMap::new();
    let mut answered = 0;
    while answered < 500 {
        while asked.len() + answered < 500 && engine.has_room() {
            let Some(buf) = pool.try_take() else { break };
            let (offset, len) = (random.u64(..data.len() as u64 + 5000), random.usize(..=256 << 10));
            let tag = random.u64(..);
            asked.insert(tag, (offset, len));
            engine.read(&file, offset, len, buf, tag);
        }
        assert_eq!(engine.in_flight(), asked.len());
        let completion = engine.wait().unwrap();
        let (offset, len) = asked.remove(&completion.tag).unwrap();
        answered += 1;
        let mut expected = vec![0; len];
        let mut n = 0;
        while n < len {
            match file.read_at(&mut expected[n..], offset + n as u64).unwrap() {
                0 => break,
                more => n += more,
            }
        }
        assert_eq!(completion.result.unwrap(), n);
        assert_eq!(completion.offset, offset);
        assert!(completion.buf.as_ref() == &expected[..n], "{n} bytes at {offset} differ");
    }
    assert!(engine.wait().is_none());
    assert_eq!(pool.available(), 8);
}

fn reads_end_where_the_file_ends(kind: EngineKind) {
    let data = noise(10_000);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let pool = Pool::new(16_384, 1).unwrap();
    let mut engine = engine(kind, 2, &pool);
    for (offset, expected) in [(0, 10_000), (1, 9999), (9999, 1), (10_000, 0), (10_001, 0), (1 << 40, 0)] {
        engine.read(&file, offset, 16_384, pool.take(), offset);
        let completion = engine.wait().unwrap();
        assert_eq!((completion.tag, completion.result.unwrap()), (offset, expected));
        assert_eq!(completion.buf.len(), expected);
    }
}

fn what_is_written_in_any_order_reads_back(kind: EngineKind) {
    let data = noise((1 << 20) + 321);
    let (_dir, path) = file_with(&[]);
    let file = open(&path);
    let pool = Pool::new(65_536, 4).unwrap();
    let mut engine = engine(kind, 4, &pool);
    let mut places: Vec<usize> = (0..data.len()).step_by(65_536).collect();
    fastrand::Rng::with_seed(2).shuffle(&mut places);
    for (n, at) in places.iter().enumerate() {
        let part = &data[*at..data.len().min(at + 65_536)];
        let buf = loop {
            match pool.try_take() {
                Some(buf) => break buf,
                None => drop(engine.wait().unwrap().result.unwrap()),
            }
        };
        let mut buf = buf;
        buf.fill_from(part);
        match n % 3 {
            0 => engine.write(&file, *at as u64, buf, n as u64),
            1 => engine.write_bytes(&file, *at as u64, buf.freeze(), n as u64),
            _ => engine.write_bytes(&file, *at as u64, Bytes::copy_from_slice(part), n as u64),
        }
    }
    while let Some(completion) = engine.wait() {
        assert_eq!(completion.result.unwrap(), completion.buf.len());
    }
    assert!(std::fs::read(&path).unwrap() == data);
    assert_eq!(pool.available(), 4);
}

fn a_read_from_a_pipe_waits_for_all_of_it(kind: EngineKind) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let data = noise(300_000);
    let pool = Pool::new(131_072, 1).unwrap();
    let mut engine = engine(kind, 2, &pool);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for part in data.chunks(7001) {
                writer.write_all(part).unwrap();
            }
            drop(writer);
        });
        let mut got = Vec::new();
        for expected in [131_072, 131_072, 300_000 - 262_144, 0] {
            engine.read(&file, got.len() as u64, 131_072, pool.take(), 0);
            let completion = engine.wait().unwrap();
            assert_eq!(completion.result.unwrap(), expected);
            got.extend_from_slice(completion.buf.as_ref());
        }
        assert!(got == data);
    });
}

fn a_write_to_a_pipe_goes_on_until_all_is_taken(kind: EngineKind) {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(writer)));
    let data = Bytes::from(noise(1 << 20));
    let pool = Pool::new(4096, 1).unwrap();
    let mut engine = engine(kind, 2, &pool);
    let mut got = Vec::new();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| std::io::Read::read_to_end(&mut reader, &mut got).unwrap());
        engine.write_bytes(&file, 0, data.clone(), 0);
        assert_eq!(engine.wait().unwrap().result.unwrap(), 1 << 20);
        drop(file);
        reading.join().unwrap();
    });
    assert!(got == data);
}

fn errors_come_with_the_buffer(kind: EngineKind) {
    let (_dir, path) = file_with(&noise(10_000));
    let pool = Pool::new(4096, 4).unwrap();
    let mut engine = engine(kind, 4, &pool);
    let read_only = Arc::new(File::open(&path).unwrap());
    let write_only = Arc::new(File::options().write(true).open(&path).unwrap());
    let full = open(Path::new("/dev/full"));
    let mut buf = pool.take();
    buf.fill_from(b"hello");
    engine.read(&write_only, 0, 4096, pool.take(), 1);
    engine.write(&read_only, 0, buf, 2);
    engine.write_bytes(&full, 0, Bytes::from_static(b"x"), 3);
    for _ in 0..3 {
        let completion = engine.wait().unwrap();
        let error = Errno::from_io_error(&completion.result.unwrap_err());
        match completion.tag {
            1 => assert_eq!((error, completion.buf.len()), (Some(Errno::BADF), 0)),
            2 => assert_eq!((error, completion.buf.as_ref()), (Some(Errno::BADF), &b"hello"[..])),
            _ => assert_eq!((error, completion.buf.as_ref()), (Some(Errno::NOSPC), &b"x"[..])),
        }
    }
    assert_eq!(pool.available(), 4);
}

fn requests_that_cannot_be_made_are_errors_not_panics(kind: EngineKind) {
    let (_dir, path) = file_with(&noise(10_000));
    let file = open(&path);
    let pool = Pool::new(4096, 4).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read(&file, 0, 4097, pool.take(), 1);
    engine.read(&file, u64::MAX, 1, pool.take(), 2);
    engine.write_bytes(&file, u64::MAX - 1, Bytes::from_static(b"xyz"), 3);
    for _ in 0..3 {
        assert_eq!(engine.wait().unwrap().result.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    assert_eq!((pool.available(), engine.in_flight()), (4, 0));
}

fn nothing_to_do_is_done(kind: EngineKind) {
    let (_dir, path) = file_with(b"x");
    let file = open(&path);
    let pool = Pool::new(4096, 2).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read(&file, 0, 0, pool.take(), 1);
    engine.write(&file, 5, pool.take(), 2);
    for _ in 0..2 {
        assert_eq!(engine.wait().unwrap().result.unwrap(), 0);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
}

fn more_than_the_depth_may_be_submitted(kind: EngineKind) {
    let data = noise(100 * 4096);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let pool = Pool::new(4096, 100).unwrap();
    let mut engine = engine(kind, 2, &pool);
    for n in 0..100 {
        assert_eq!(engine.has_room(), n < 2);
        engine.read(&file, n * 4096, 4096, pool.take(), n);
    }
    let mut tags: Vec<u64> = std::iter::from_fn(|| {
        let completion = engine.wait()?;
        let at = usize::try_from(completion.tag).unwrap() * 4096;
        assert!(completion.buf.as_ref() == &data[at..at + 4096]);
        Some(completion.tag)
    })
    .collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..100));
}

fn an_engine_without_work_does_not_wait(kind: EngineKind) {
    let pool = Pool::new(4096, 1).unwrap();
    let mut engine = engine(kind, 4, &pool);
    assert!(engine.wait().is_none());
    assert!(engine.poll().is_none());
    assert_eq!((engine.in_flight(), engine.has_room()), (0, true));
}

fn polling_never_waits(kind: EngineKind) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let pool = Pool::new(4096, 1).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read(&file, 0, 5, pool.take(), 1);
    for _ in 0..10 {
        assert!(engine.poll().is_none());
    }
    writer.write_all(b"12345").unwrap();
    let completion = loop {
        match engine.poll() {
            Some(completion) => break completion,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert_eq!(completion.buf.as_ref(), b"12345");
}

fn dropping_waits_for_what_the_kernel_has_begun(kind: EngineKind) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let pool = Pool::new(4096, 1).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read(&file, 0, 5, pool.take(), 1);
    if kind == EngineKind::Pread {
        // Submitting only queues here: the operation has begun when the first bytes are gone.
        writer.write_all(b"12").unwrap();
        while rustix::io::ioctl_fionread(&file).unwrap() > 0 {
            std::thread::yield_now();
        }
    }
    let written = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            written.store(true, Ordering::SeqCst);
            writer.write_all(b"12345").unwrap();
        });
        drop(engine);
        assert!(written.load(Ordering::SeqCst), "dropped while the kernel held the buffer");
    });
    assert_eq!(pool.available(), 1);
}

fn dropping_with_a_full_queue_returns_every_buffer(kind: EngineKind) {
    let data = noise(4 << 20);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let pool = Pool::new(65_536, 32).unwrap();
    for round in 0..20 {
        let mut engine = engine(kind, 8, &pool);
        for n in 0..32 {
            engine.read(&file, n * 65_536, 65_536, pool.take(), n);
        }
        for _ in 0..round {
            engine.wait().unwrap().result.unwrap();
        }
        drop(engine);
        assert_eq!(pool.available(), 32);
    }
    assert_eq!(Arc::strong_count(&file), 1);
}

fn an_engine_is_made_here_and_used_there(kind: EngineKind) {
    let (_dir, path) = file_with(b"over there");
    let file = open(&path);
    let pool = Pool::new(4096, 1).unwrap();
    let mut engine = engine(kind, 4, &pool);
    let there = std::thread::spawn(move || {
        engine.read(&file, 0, 100, pool.take(), 1);
        engine.wait().unwrap().buf.as_ref().to_vec()
    });
    assert_eq!(there.join().unwrap(), b"over there");
}

fn other_pools_and_no_pool_work_too(kind: EngineKind) {
    let data = noise(8192);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let (one, two) = (Pool::new(8192, 1).unwrap(), Pool::new(8192, 1).unwrap());
    for pool in [None, Some(&one)] {
        let mut engine = Engine::new(kind, 2, pool).unwrap();
        engine.read(&file, 0, 8192, two.take(), 1);
        assert!(engine.wait().unwrap().buf.as_ref() == data);
        assert_eq!(engine.registered(), 0);
    }
}
