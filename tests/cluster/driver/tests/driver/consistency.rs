//! Snapshots of volumes that are being written to.

use std::fs;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::fs::OFlags;

use crate::bed::{Bed, MIB, block, mount, run, until};
use crate::csi::volume_capability::access_mode::Mode;

/// A thread that does numbered pieces of work until it is dropped.
struct Writer {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn new(mut work: impl FnMut(u64) + Send + 'static) -> Self {
        let (done, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, stopped) = (Arc::clone(&done), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                work(number);
                counter.store(number + 1, Ordering::Release);
            }
        });
        Self { done, stop, thread: Some(thread) }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    async fn has_done(&self, count: u64) {
        until("the writer has written", || self.done() >= count).await;
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// What the numbered file holds.
fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1000)
}

/// Files that are written, which fit into the volume. After that, one more is changed all the time.
const FILES: u64 = 5000;

async fn file_system_is_whole(fs_type: &str, check: &[&str]) {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 320, None).await.unwrap();
    let dir = bed.file_system(&volume, fs_type).await;
    let writer = Writer::new({
        let dir = dir.clone();
        move |number| {
            let name = if number < FILES { number.to_string() } else { "busy".to_owned() };
            fs::write(dir.join(name), content(number)).unwrap();
        }
    });
    writer.has_done(20).await;
    for round in 0..3 {
        let before = writer.done().min(FILES);
        let snapshot = bed.snapshot(&format!("snapshot-{round}"), &volume).await.unwrap();
        let copy = bed.create(&format!("copy-{round}"), 0, Some(&snapshot)).await.unwrap();

        // Next to its source, which is still being written to.
        let dir = bed.file_system(&copy, fs_type).await;
        let files: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        let count = files.iter().filter(|name| name.parse::<u64>().is_ok()).count() as u64;
        assert!(count >= before, "{fs_type}, round {round}: {count} files, {before} were written");
        for number in 0..before {
            assert_eq!(fs::read(dir.join(number.to_string())).unwrap(), content(number), "file {number}");
        }
        bed.unstage(&copy).await.unwrap();
        let device = bed.device(&copy).await;
        run(check[0], &[&check[1..], &[device.to_str().unwrap()]].concat());

        // For readers, straight from the snapshot.
        let copy = bed.create(&format!("read-{round}"), 0, Some(&snapshot)).await.unwrap();
        let dir = bed.stage(&copy, mount(fs_type, Mode::MultiNodeReaderOnly)).await.unwrap();
        assert_eq!(fs::read(dir.join("7")).unwrap(), content(7));
        let refused = fs::write(dir.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        writer.has_done(writer.done() + 1).await;
    }
    // A clone of the volume itself is no different.
    let copy = bed.create("clone", 0, Some(&volume)).await.unwrap();
    let dir = bed.file_system(&copy, fs_type).await;
    assert_eq!(fs::read(dir.join("19")).unwrap(), content(19));
    drop(writer);
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_is_whole_in_a_snapshot() {
    file_system_is_whole("ext4", &["e2fsck", "-f", "-n"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_is_whole_in_a_snapshot() {
    file_system_is_whole("xfs", &["xfs_repair", "-n"]).await;
}

/// How many blocks of a device carry their numbers, from the first on; nothing may follow them.
fn prefix(device: &Path, blocks: u64) -> u64 {
    let device = fs::File::open(device).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        device.read_exact_at(&mut bytes, at * 4096).unwrap();
        u64::from_le_bytes(bytes)
    };
    let count = (0..blocks).take_while(|at| number(*at) == at + 1).count() as u64;
    for at in count..blocks {
        assert_eq!(number(at), 0, "block {at} was written after block {count}, which is not there");
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_seen_as_it_was_at_one_moment() {
    const BLOCKS: u64 = 8192;
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", BLOCKS * 4096 / MIB, None).await.unwrap();
    let device = bed.device(&volume).await;
    // Each block is on its way to the image before the next is begun, as a database writes its log.
    let dsync = i32::try_from(OFlags::DSYNC.bits()).unwrap();
    let file = fs::File::options().write(true).custom_flags(dsync).open(&device).unwrap();
    let writer = Writer::new(move |number| {
        let block = (number + 1).to_le_bytes().repeat(512);
        if number < BLOCKS {
            file.write_all_at(&block, number * 4096).unwrap();
        } else {
            thread::yield_now();
        }
    });
    for round in 0..5 {
        writer.has_done((round + 1) * 20).await;
        let before = writer.done().min(BLOCKS);
        let snapshot = bed.snapshot(&format!("snapshot-{round}"), &volume).await.unwrap();
        let after = writer.done() + 1;
        let copy = bed.create(&format!("copy-{round}"), 0, Some(&snapshot)).await.unwrap();
        let seen = prefix(&bed.device(&copy).await, BLOCKS);
        assert!((before..=after).contains(&seen), "{seen} blocks, not {before} to {after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_has_in_its_cache_is_in_the_snapshot() {
    let Some(bed) = Bed::new(&[]).await else { return };
    let volume = bed.create("volume", 64, None).await.unwrap();
    let device = fs::File::options().write(true).open(bed.device(&volume).await).unwrap();
    let data: Vec<u8> = (0..40 * MIB).map(|i| (i / 4096 % 251) as u8).collect();
    device.write_all_at(&data, MIB).unwrap();
    let snapshot = bed.snapshot("snapshot", &volume).await.unwrap();
    device.write_all_at(&[0; 4096], MIB).unwrap();
    let copy = bed.create("copy", 0, Some(&snapshot)).await.unwrap();
    bed.stage(&copy, block(Mode::SingleNodeReaderOnly)).await.unwrap();
    let target = bed.publish(&copy, block(Mode::SingleNodeReaderOnly), true, "reader").await.unwrap();
    let mut read = vec![0; data.len()];
    fs::File::open(&target).unwrap().read_exact_at(&mut read, MIB).unwrap();
    assert!(read == data, "the snapshot lacks what was written before it");
    assert!(fs::write(&target, "x").is_err(), "a reader's device cannot be written to");
}
