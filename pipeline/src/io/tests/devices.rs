//! O_DIRECT and failing devices. What this machine cannot do is skipped, loudly.

use std::process::Command;

use super::*;

for_both_engines! {
    odd_sizes_past_the_page_cache
    a_descriptor_of_ones_own_that_is_direct
    memory_file_systems_refuse_and_work
    a_device_that_lost_its_backing_fails_with_eio
    a_device_reads_and_writes_directly
}

/// A file on a file system with O_DIRECT, if there is one.
fn direct_file(data: &[u8]) -> Option<(TempDir, PathBuf)> {
    for place in [std::env::temp_dir(), PathBuf::from("/var/tmp"), PathBuf::from(".")] {
        let Ok(dir) = tempfile::tempdir_in(place) else { continue };
        let path = dir.path().join("volume");
        std::fs::write(&path, data).unwrap();
        if DirectFile::open_read(&path).unwrap().is_direct() {
            return Some((dir, path));
        }
    }
    eprintln!("SKIPPED: no file system with O_DIRECT for temporary files");
    None
}

fn odd_sizes_past_the_page_cache(kind: EngineKind) {
    for size in [1, 511, 4095, 4096, 4097, 65_536, 1_000_001] {
        let data = noise(size);
        let Some((_dir, path)) = direct_file(&[]) else { return };
        let file = DirectFile::open_write(&path).unwrap();
        let pool = Pool::new(65_536, 4).unwrap();
        let mut engine = engine(kind, 4, &pool);
        for (n, part) in data.chunks(65_536).enumerate() {
            let mut buf = pool.take_timeout(Duration::ZERO).unwrap_or_else(|| {
                engine.wait().unwrap().result.unwrap();
                pool.take()
            });
            buf.fill_from(part);
            engine.write_direct(&file, n as u64 * 65_536, buf, n as u64);
        }
        while let Some(completion) = engine.wait() {
            assert_eq!(completion.result.unwrap(), completion.buf.len());
        }
        assert!(std::fs::read(&path).unwrap() == data, "written {size}");

        let file = DirectFile::open_read(&path).unwrap();
        for n in 0..size.div_ceil(65_536) {
            // Asked for exactly, and asked for beyond the end.
            for len in [65_536.min(size - n * 65_536), 65_536] {
                engine.read_direct(&file, n as u64 * 65_536, len, pool.take(), 0);
                let completion = engine.wait().unwrap();
                let expected = &data[n * 65_536..size.min((n + 1) * 65_536)];
                assert_eq!(completion.result.unwrap(), expected.len());
                assert!(completion.buf.as_ref() == expected, "read {size}");
            }
        }
        engine.read_direct(&file, 3, 500, pool.take(), 0);
        let completion = engine.wait().unwrap();
        assert!(completion.buf.as_ref() == &data[size.min(3)..size.min(503)], "an odd offset");
    }
}

fn a_descriptor_of_ones_own_that_is_direct(kind: EngineKind) {
    let data = noise(10_000);
    let Some((_dir, path)) = direct_file(&data) else { return };
    let (file, direct) = open_read(&path).unwrap();
    assert!(direct);
    let pool = Pool::new(16_384, 1).unwrap();
    let mut engine = engine(kind, 2, &pool);
    for (offset, expected) in [(0, 10_000), (4096, 5904), (8192, 1808)] {
        engine.read(&file, offset, 16_384, pool.take(), 0);
        let completion = engine.wait().unwrap();
        assert_eq!(completion.result.unwrap(), expected);
        assert!(completion.buf.as_ref() == &data[10_000 - expected..]);
    }
    let picks = DirectFile::open_read(&path).unwrap();
    for (offset, len, aligned) in [(0, 8192, true), (8192, 1808, false), (100, 4096, false)] {
        let pick = picks.pick(offset, len);
        assert_eq!(Arc::ptr_eq(pick, picks.direct.as_ref().unwrap()), aligned);
        engine.read(pick, offset, len, pool.take(), 0);
        assert_eq!(engine.wait().unwrap().result.unwrap(), len);
    }
    // A direct descriptor from elsewhere gets a buffered twin.
    let twins = DirectFile::from_file(file.try_clone().unwrap());
    assert!(twins.is_direct());
    engine.read_direct(&twins, 1, 9999, pool.take(), 0);
    assert!(engine.wait().unwrap().buf.as_ref() == &data[1..]);
}

fn memory_file_systems_refuse_and_work(kind: EngineKind) {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: no /dev/shm");
        return;
    };
    let path = dir.path().join("volume");
    let (file, direct) = open_write(&path).unwrap();
    assert!(!direct);
    let pool = Pool::new(8192, 1).unwrap();
    let mut engine = engine(kind, 2, &pool);
    let mut buf = pool.take();
    buf.fill_from(&noise(8191));
    engine.write(&file, 0, buf, 0);
    assert_eq!(engine.wait().unwrap().result.unwrap(), 8191);
    let both = DirectFile::open_read(&path).unwrap();
    engine.read_direct(&both, 0, 8192, pool.take(), 0);
    assert!(engine.wait().unwrap().buf.as_ref() == noise(8191));
}

/// A loop device, detached when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(backing: &Path) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: loop devices need root");
            return None;
        }
        let output = Command::new("losetup").args(["--find", "--show"]).arg(backing).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).unwrap().trim().into()))
            }
            other => {
                eprintln!("SKIPPED: no loop device: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn a_device_that_lost_its_backing_fails_with_eio(kind: EngineKind) {
    let (_dir, path) = file_with(&noise(8 << 20));
    let Some(device) = Loop::over(&path) else { return };
    open(&path).set_len(4 << 20).unwrap();
    let file = DirectFile::open_read(&device.0).unwrap();
    let pool = Pool::new(65_536, 2).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read_direct(&file, 1 << 20, 65_536, pool.take(), 1);
    engine.read_direct(&file, 6 << 20, 65_536, pool.take(), 2);
    for _ in 0..2 {
        let completion = engine.wait().unwrap();
        match completion.tag {
            1 => assert_eq!(completion.result.unwrap(), 65_536),
            _ => {
                let error = completion.result.unwrap_err();
                assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
                assert_eq!(completion.buf.len(), 0);
            }
        }
    }
    assert_eq!(pool.available(), 2);
}

fn a_device_reads_and_writes_directly(kind: EngineKind) {
    let data = noise((1 << 20) + 512);
    let (_dir, path) = file_with(&data);
    let Some(device) = Loop::over(&path) else { return };
    let file = DirectFile::open_write(&device.0).unwrap();
    assert!(file.is_direct());
    let pool = Pool::new((1 << 20) + 4096, 1).unwrap();
    let mut engine = engine(kind, 4, &pool);
    engine.read_direct(&file, 0, pool.buffer_size(), pool.take(), 0);
    let completion = engine.wait().unwrap();
    assert_eq!(completion.result.unwrap(), data.len());
    assert!(completion.buf.as_ref() == data);
    let mut buf = completion.buf.into_buf().unwrap();
    buf.reverse();
    engine.write_direct(&file, 0, buf, 0);
    assert_eq!(engine.wait().unwrap().result.unwrap(), data.len());
    for descriptor in [&file.buffered, file.direct.as_ref().unwrap()] {
        descriptor.sync_data().unwrap();
    }
    engine.read_direct(&file, 0, pool.buffer_size(), pool.take(), 0);
    assert!(engine.wait().unwrap().buf.as_ref().iter().eq(data.iter().rev()));
    // Beyond the end of a device there is no space.
    engine.write_direct(&file, 2 << 20, Bytes::from_static(b"x"), 0);
    let error = engine.wait().unwrap().result.unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
}
