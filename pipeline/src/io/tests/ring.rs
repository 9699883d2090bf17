//! What only the io_uring engine has: registered memory and a thread it belongs to.

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::*;

#[test]
fn buffers_are_registered_when_they_are_first_used() {
    if !uring_works() {
        return;
    }
    let data = noise(65_536);
    let (_dir, path) = file_with(&data);
    let file = open(&path);
    let pool = Pool::new(4096, 8).unwrap();
    let mut engine = engine(EngineKind::Uring, 8, &pool);
    assert_eq!(engine.registered(), 0);
    for round in 1..=3 {
        engine.read(&file, round * 4096, 4096, pool.take(), 0);
        let at = usize::try_from(round).unwrap() * 4096;
        assert!(engine.wait().unwrap().buf.as_ref() == &data[at..at + 4096]);
        assert!(engine.registered() <= 1, "one buffer at a time stays one buffer");
    }
    for n in 0..8 {
        engine.read(&file, n * 4096, 4096, pool.take(), n);
    }
    let frozen: Vec<Bytes> = std::iter::from_fn(|| Some(engine.wait()?.buf.into_bytes())).collect();
    if engine.registered() == 0 {
        eprintln!("SKIPPED: this kernel registers no buffers");
    } else {
        assert_eq!(engine.registered(), 8);
    }
    // A slice of a registered buffer is in it as well.
    for (n, bytes) in frozen.iter().enumerate() {
        engine.write_bytes(&file, n as u64 * 4096, bytes.slice(1..=512), 0);
    }
    while let Some(completion) = engine.wait() {
        assert_eq!(completion.result.unwrap(), 512);
    }
    let mut found = vec![0; 512];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(frozen.iter().any(|bytes| bytes[1..=512] == found[..]));
}

#[test]
fn beyond_the_limit_of_locked_memory_buffers_work_unregistered() {
    if !uring_works() {
        return;
    }
    let Some(limit) = getrlimit(Resource::Memlock).current.filter(|limit| *limit <= 256 << 20) else {
        eprintln!("SKIPPED: no limit of locked memory to reach");
        return;
    };
    let size = usize::try_from(limit / 4).unwrap().max(4096);
    let ring_thread = std::thread::spawn(move || {
        // The superuser's privilege lifts the limit. It belongs to the thread, so nobody else notices.
        let mut own = capabilities(None).unwrap();
        own.effective.remove(CapabilitySet::IPC_LOCK);
        set_capabilities(None, own).unwrap();

        let (_dir, path) = file_with(&noise(4 << 20));
        let file = open(&path);
        let pool = Pool::new(size, 12).unwrap();
        let mut engine = engine(EngineKind::Uring, 4, &pool);
        for n in 0..12 {
            engine.read(&file, n * 1000, 100_000.min(size), pool.take(), n);
        }
        let mut kept = Vec::new();
        while let Some(completion) = engine.wait() {
            let at = completion.offset;
            assert_eq!(completion.result.unwrap(), 100_000.min(size));
            let mut expected = vec![0; 100_000.min(size)];
            file.read_exact_at(&mut expected, at).unwrap();
            assert!(completion.buf.as_ref() == expected);
            kept.push(completion.buf);
        }
        engine.registered()
    });
    let registered = ring_thread.join().unwrap();
    assert!(registered < 12, "{registered} of 12 registered under a limit for 4");
    eprintln!("{registered} of 12 buffers of {size} bytes registered under a limit of {limit}");
}

#[test]
fn a_second_thread_is_refused_and_the_memory_is_not_freed_under_the_kernel() {
    if !uring_works() {
        return;
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader)));
    let pool = Pool::new(4096, 2).unwrap();
    let mut engine = engine(EngineKind::Uring, 4, &pool);
    engine.read(&file, 0, 5, pool.take(), 1);
    let elsewhere = std::thread::spawn({
        let (file, pool) = (Arc::clone(&file), pool.clone());
        move || {
            engine.read(&file, 0, 5, pool.take(), 2);
            let ends: Vec<Completion> = std::iter::from_fn(|| engine.wait()).collect();
            ends
        }
    });
    drop(writer);
    let ends = elsewhere.join().unwrap();
    let refused = ends.iter().filter(|c| c.result.is_err()).count();
    let lost = ends.iter().filter(|c| c.result.is_err() && matches!(c.buf, Payload::Bytes(_))).count();
    assert_eq!(ends.len(), 2);
    drop(ends);
    // On kernels without a single issuer the second thread is as good as the first, and nothing is refused.
    assert_eq!(pool.available(), 2 - lost, "{refused} refused");
    assert!(refused == 0 || lost == 1);
}
