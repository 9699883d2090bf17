use std::sync::mpsc;
use std::thread;

use bytes::Bytes;

use super::*;

#[test]
fn buffers_are_aligned_separate_and_whole() {
    let pool = Pool::new(10_000, 50).unwrap();
    assert_eq!((pool.buffer_size(), pool.count(), pool.available()), (12_288, 50, 50));
    let mut all: Vec<Buf> = (0..50).map(|_| pool.take()).collect();
    assert!(pool.try_take().is_none());
    for (n, buf) in all.iter_mut().enumerate() {
        assert!(buf.is_empty());
        assert_eq!(buf.space().as_ptr().addr() % 4096, 0);
        buf.space().fill(u8::try_from(n).unwrap());
        buf.set_len(12_288);
    }
    for (n, buf) in all.iter().enumerate() {
        assert!(buf.iter().all(|b| usize::from(*b) == n));
    }
}

#[test]
fn the_buffer_that_came_back_last_goes_out_first() {
    let pool = Pool::new(4096, 10).unwrap();
    let first = pool.take();
    let second = pool.take();
    assert!(first.space_address() < second.space_address(), "a fresh pool starts at its beginning");
    let address = second.space_address();
    drop(first);
    drop(second);
    assert_eq!(pool.take().space_address(), address);
}

impl Buf {
    fn space_address(&self) -> usize {
        self.start().addr()
    }
}

#[test]
fn who_finds_the_pool_empty_waits() {
    let pool = Pool::new(4096, 1).unwrap();
    let held = pool.take();
    assert!(pool.take_timeout(Duration::from_millis(1)).is_none());
    let (sender, receiver) = mpsc::channel();
    let waiting = thread::spawn({
        let pool = pool.clone();
        move || {
            sender.send("about to wait").unwrap();
            let buf = pool.take();
            sender.send("has it").unwrap();
            drop(buf);
        }
    });
    assert_eq!(receiver.recv().unwrap(), "about to wait");
    assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err(), "there was nothing to take");
    drop(held);
    assert_eq!(receiver.recv().unwrap(), "has it");
    waiting.join().unwrap();
    assert!(pool.take_timeout(Duration::from_secs(60)).is_some());
    assert_eq!(pool.available(), 1);
}

#[test]
fn many_threads_share_few_buffers_and_never_the_same_one() {
    let pool = Pool::new(4096, 3).unwrap();
    thread::scope(|scope| {
        for id in 0..8_u8 {
            let pool = &pool;
            scope.spawn(move || {
                for _ in 0..500 {
                    let mut buf = pool.take();
                    buf.fill_from(&[id; 512]);
                    thread::yield_now();
                    assert!(buf.iter().all(|b| *b == id));
                }
            });
        }
    });
    assert_eq!(pool.available(), 3);
}

#[test]
fn frozen_memory_returns_when_its_last_slice_is_dropped() {
    let pool = Pool::new(4096, 1).unwrap();
    let mut buf = pool.take();
    buf.fill_from(b"head and tail");
    let address = buf.as_ptr();
    let whole: Bytes = buf.freeze();
    assert_eq!(whole.as_ptr(), address, "no copy");
    let tail = whole.slice(9..);
    drop(whole);
    assert_eq!((&tail[..], pool.available()), (&b"tail"[..], 0));
    let other = tail.clone();
    drop(tail);
    assert_eq!(pool.available(), 0);
    thread::spawn(move || drop(other)).join().unwrap();
    assert_eq!(pool.available(), 1);
}

#[test]
fn a_buffer_outlives_its_pool() {
    let pool = Pool::new(4096, 1).unwrap();
    let mut buf = pool.take();
    drop(pool);
    buf.fill_from(b"still here");
    assert_eq!(&buf[..], b"still here");
}

#[test]
#[should_panic(expected = "cannot hold 4097")]
fn a_length_beyond_the_capacity_is_a_bug() {
    Pool::new(4096, 1).unwrap().take().set_len(4097);
}

#[test]
fn a_pool_without_buffers_or_beyond_the_address_space_is_an_error() {
    assert!(Pool::new(4096, 0).is_err());
    assert!(Pool::new(0, 1).is_err());
    assert!(Pool::new(usize::MAX, 2).is_err());
    assert!(Pool::new(1 << 40, 1 << 30).is_err());
}

/// Resident bytes of the mapping that holds `address`.
fn resident(address: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let head = line.split(' ').next().unwrap();
        let range = head.split_once('-').and_then(|(start, end)| {
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        });
        if let Some((start, end)) = range {
            inside = (start..end).contains(&address);
        } else if inside && let Some(kib) = line.strip_prefix("Rss:") {
            return kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024;
        }
    }
    panic!("{address:x} is not mapped");
}

#[test]
fn buffers_that_nobody_needed_cost_nothing() {
    let pool = Pool::new(256 << 10, 1024).unwrap();
    let mut address = 0;
    for n in 0..1000 {
        let (mut one, mut two) = (pool.take(), pool.take());
        one.space().fill(1);
        two.space().fill(u8::try_from(n % 251).unwrap());
        address = one.space_address();
    }
    // Two buffers of 256 KiB, in whole huge pages.
    let resident = resident(address);
    assert!((1..=2 << 20).contains(&resident), "{resident} bytes of 256 MiB are resident");
}
