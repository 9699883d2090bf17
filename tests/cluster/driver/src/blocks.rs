//! Which blocks of an image hold data, and which differ between two images: what changed block tracking reports.
//!
//! Both files are read and compared; where both have holes, nothing is read. A window of one mebibyte of each file is
//! all that is held in memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::str::FromStr;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// What is compared at once, bytes.
pub(crate) const UNIT: u64 = 4096;

/// The same as a length in memory.
const UNIT_LENGTH: usize = 4096;

/// What is read at once, bytes.
const WINDOW: u64 = 1 << 20;

/// How blocks are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BlockLength {
    /// All of this length, bytes, at multiples of it.
    Fixed(u64),
    /// As long as they are.
    Variable,
}

impl FromStr for BlockLength {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "variable" {
            return Ok(Self::Variable);
        }
        let length = text.strip_prefix("fixed:").and_then(|n| n.parse::<u64>().ok());
        // Sizes of volumes are multiples of a mebibyte, so no block of these is cut short at the end of one.
        length
            .filter(|n| n.is_power_of_two() && (UNIT..=WINDOW).contains(n))
            .map(Self::Fixed)
            .ok_or_else(|| format!("give variable, or fixed:N with a power of two from {UNIT} to {WINDOW}"))
    }
}

/// A range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The ranges of an image that differ from another image, or from zeros; ascending, each computed when asked for.
#[derive(Debug)]
pub(crate) struct Blocks {
    image: File,
    /// None: zeros.
    base: Option<File>,
    /// Bytes of the image.
    size: u64,
    length: BlockLength,
    /// Everything before has been reported.
    position: u64,
    /// What was read last: where, and of both files.
    window: (u64, Vec<u8>, Vec<u8>),
}

impl Blocks {
    /// The ranges from the one on that ends after `start`. A base that is shorter goes on with zeros.
    pub(crate) fn new(image: File, base: Option<File>, length: BlockLength, start: u64) -> io::Result<Self> {
        let size = image.metadata()?.len();
        let step = match length {
            BlockLength::Fixed(length) => length,
            BlockLength::Variable => UNIT,
        };
        let position = start / step * step;
        Ok(Self { image, base, size, length, position, window: (0, Vec::new(), Vec::new()) })
    }

    fn next_range(&mut self) -> io::Result<Option<Range>> {
        let Some(found) = self.find(self.position, true)? else { return Ok(None) };
        let (offset, end) = match self.length {
            BlockLength::Fixed(length) => {
                let offset = found / length * length;
                (offset, offset + length)
            }
            BlockLength::Variable => (found, self.find(found, false)?.unwrap_or(self.size)),
        };
        self.position = end;
        Ok(Some(Range { offset, length: end.min(self.size) - offset }))
    }

    /// The first unit at or after `at` that differs (or does not).
    fn find(&mut self, mut at: u64, differs: bool) -> io::Result<Option<u64>> {
        while at < self.size {
            if !self.in_window(at) {
                let data = self.data_from(at)?.unwrap_or(self.size);
                if data > at && !differs {
                    return Ok(Some(at));
                }
                at = at.max(data / UNIT * UNIT);
                if data >= self.size {
                    break;
                }
                self.read_window(at)?;
            }
            if self.unit_differs(at) == differs {
                return Ok(Some(at));
            }
            at += UNIT;
        }
        Ok(None)
    }

    fn in_window(&self, at: u64) -> bool {
        let (start, image, _) = &self.window;
        at >= *start && at - start < image.len() as u64
    }

    /// Where the next data of either file begins.
    fn data_from(&self, at: u64) -> io::Result<Option<u64>> {
        let mut next = None;
        for file in [Some(&self.image), self.base.as_ref()].into_iter().flatten() {
            match seek(file, SeekFrom::Data(at)) {
                Ok(data) => next = Some(next.map_or(data, |n: u64| n.min(data))),
                // No more data, or beyond the end of the file.
                Err(Errno::NXIO) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(next)
    }

    fn read_window(&mut self, at: u64) -> io::Result<()> {
        let length = usize::try_from(WINDOW.min(self.size - at)).map_err(io::Error::other)?;
        let (start, image, base) = &mut self.window;
        *start = at;
        read_or_zero(&self.image, at, image, length)?;
        match &self.base {
            Some(file) => read_or_zero(file, at, base, length),
            None => {
                base.resize(length, 0);
                Ok(())
            }
        }
    }

    fn unit_differs(&self, at: u64) -> bool {
        let (start, image, base) = &self.window;
        // The window begins at or before it and is in memory.
        let from = usize::try_from(at - start).unwrap_or(usize::MAX).min(image.len());
        let end = image.len().min(from + UNIT_LENGTH);
        image[from..end] != base[from..end]
    }
}

impl Iterator for Blocks {
    type Item = io::Result<Range>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_range().transpose()
    }
}

/// True when the file holds nothing but zeros.
pub(crate) fn is_blank(image: File) -> io::Result<bool> {
    Ok(Blocks::new(image, None, BlockLength::Fixed(UNIT), 0)?.next().transpose()?.is_none())
}

/// Reads `length` bytes into `buffer`; zeros where the file has ended.
fn read_or_zero(file: &File, offset: u64, buffer: &mut Vec<u8>, length: usize) -> io::Result<()> {
    buffer.resize(length, 0);
    let mut done = 0;
    while done < length {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Random images: some units written, some of them with zeros, some the same in both.
    fn images(random: &mut fastrand::Rng, size: u64) -> (File, Vec<u8>, File, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let make =
            |name: &str| File::options().read(true).write(true).create_new(true).open(dir.path().join(name));
        let (base, image) = (make("base").unwrap(), make("image").unwrap());
        let base_size = if random.bool() { size } else { random.u64(0..=size) };
        base.set_len(base_size).unwrap();
        image.set_len(size).unwrap();
        for _ in 0..random.usize(0..60) {
            let offset = random.u64(0..size);
            let length = random.u64(1..=20_000).min(size - offset);
            let byte = [0, 0, 1, 2][random.usize(0..4)];
            let bytes = vec![byte; usize::try_from(length).unwrap()];
            let which = random.u8(0..3);
            if which != 0 {
                image.write_all_at(&bytes, offset).unwrap();
            }
            if which != 1 && offset < base_size {
                let length = bytes.len().min(usize::try_from(base_size - offset).unwrap());
                base.write_all_at(&bytes[..length], offset).unwrap();
            }
        }
        let image_bytes = fs::read(dir.path().join("image")).unwrap();
        let mut base_bytes = fs::read(dir.path().join("base")).unwrap();
        base_bytes.resize(image_bytes.len(), 0);
        (base, base_bytes, image, image_bytes)
    }

    /// The same by looking at every byte.
    fn oracle(image: &[u8], base: &[u8], length: BlockLength, start: usize) -> Vec<Range> {
        let step = match length {
            BlockLength::Fixed(length) => usize::try_from(length).unwrap(),
            BlockLength::Variable => UNIT_LENGTH,
        };
        let mut found: Vec<Range> = Vec::new();
        for at in (0..image.len()).step_by(step) {
            let end = image.len().min(at + step);
            if end <= start || image[at..end] == base[at..end] {
                continue;
            }
            let (offset, length_now) = (at as u64, (end - at) as u64);
            match found.last_mut() {
                Some(last) if length == BlockLength::Variable && last.offset + last.length == offset => {
                    last.length += length_now;
                }
                _ => found.push(Range { offset, length: length_now }),
            }
        }
        found
    }

    #[test]
    fn ranges_are_those_of_the_oracle() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut ranges, mut empty) = (0, 0);
        for round in 0..200 {
            // Also sizes that end within a unit, which volumes do not have.
            let size = random.u64(1..3 << 20);
            let (base, base_bytes, image, image_bytes) = images(&mut random, size);
            let zeros = vec![0; image_bytes.len()];
            for length in [BlockLength::Variable, BlockLength::Fixed(UNIT), BlockLength::Fixed(64 << 10)] {
                for start in [0, random.u64(0..=size)] {
                    for with_base in [false, true] {
                        let other = with_base.then(|| base.try_clone().unwrap());
                        let blocks = Blocks::new(image.try_clone().unwrap(), other, length, start).unwrap();
                        let got: Vec<Range> = blocks.map(Result::unwrap).collect();
                        let against = if with_base { &base_bytes } else { &zeros };
                        let want = oracle(&image_bytes, against, length, usize::try_from(start).unwrap());
                        assert_eq!(got, want, "round {round}, {length:?} from {start}, base: {with_base}");
                        ranges += got.len();
                        empty += usize::from(got.is_empty());
                    }
                }
            }
            assert_eq!(is_blank(image).unwrap(), image_bytes == zeros);
        }
        assert!(ranges > 1000 && empty > 0, "{ranges} ranges, {empty} empty lists: the images are too dull");
    }

    #[test]
    fn block_lengths_are_read() {
        assert_eq!("variable".parse(), Ok(BlockLength::Variable));
        assert_eq!("fixed:4096".parse(), Ok(BlockLength::Fixed(4096)));
        assert_eq!("fixed:1048576".parse(), Ok(BlockLength::Fixed(1 << 20)));
        for bad in ["", "fixed", "fixed:", "fixed:512", "fixed:5000", "fixed:2097152", "4096"] {
            assert!(bad.parse::<BlockLength>().is_err(), "{bad}");
        }
    }
}
