//! How values are written on the command line: sizes, rates, shares, durations, tags, snapshots.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use tradewind_pipeline::chunk::valid_block_chunk;
use tradewind_pipeline::seal::Level;

/// Units of sizes. A bare letter means the binary unit, as in other backup tools.
const UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
];

/// Bytes from `96MiB`, `1GiB`, `100MB`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .ok_or_else(|| format!("`{unit}` is no unit; write sizes like 96MiB, 1GiB or 100MB"))?;
    let number: u64 = number.parse().map_err(|_| "write sizes like 96MiB, 1GiB or 100MB".to_owned())?;
    number.checked_mul(*factor).ok_or_else(|| "the size is too large".to_owned())
}

/// Bytes per second from `50MiB` or `50MiB/s`; 0 is no limit.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    size(text.strip_suffix("/s").unwrap_or(text))
}

/// A share between 0 (excluded) and 1 from `10%` or `0.5%`.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
    match percent {
        Some(p) if p > 0.0 && p <= 100.0 => Ok(p / 100.0),
        _ => Err("write a share like 10%, above 0% and at most 100%".to_owned()),
    }
}

/// A time from `500ms`, `30s`, `2m`, `1h`, or a bare number of seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a time like 500ms, 30s, 2m or 1h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let total = number.checked_mul(millis.ok_or_else(wrong)?).ok_or_else(wrong)?;
    if total == 0 { Err("must be more than zero".to_owned()) } else { Ok(Duration::from_millis(total)) }
}

/// A tag from `key=value`. The key is not empty; the value may be.
pub(crate) fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.contains(char::is_control) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("write a tag as key=value".to_owned()),
    }
}

/// Size of fixed chunks: a power of two from 16 KiB to 4 MiB.
pub(crate) fn chunk_size(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    match u32::try_from(bytes) {
        Ok(n) if valid_block_chunk(n) => Ok(n),
        _ => Err("must be a power of two from 16KiB to 4MiB".to_owned()),
    }
}

/// Compression from `off`, `auto` or a zstd level.
pub(crate) fn compression(text: &str) -> Result<Level, String> {
    match text {
        "off" => Ok(Level::Off),
        "auto" => Ok(Level::Auto),
        n => match n.parse() {
            Ok(level @ (-7..=-1 | 1..=19)) => Ok(Level::Fixed(level)),
            _ => Err("write off, auto, or a zstd level from -7 to 19 without 0".to_owned()),
        },
    }
}

/// Which snapshot to compare with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parent {
    /// None: read everything.
    None,
    /// This one.
    Id(String),
}

/// A parent from `none` or the beginning of a snapshot id.
pub(crate) fn parent(text: &str) -> Result<Parent, String> {
    if text == "none" { Ok(Parent::None) } else { snapshot(text).map(Parent::Id) }
}

/// `latest`, or the beginning of a snapshot id: hexadecimal digits.
pub(crate) fn snapshot(text: &str) -> Result<String, String> {
    let is_id = (1..=24).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if text == "latest" || is_id {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("write `latest` or the beginning of a snapshot id; `tradewind snapshots` lists them".to_owned())
    }
}

/// A snapshot and a place inside its tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// `latest` or the beginning of an id.
    pub(crate) snapshot: String,
    /// Path relative to the root of the tree, raw bytes; empty for the root.
    pub(crate) path: Vec<u8>,
}

/// A place from `SNAPSHOT` or `SNAPSHOT:PATH`. Names need not be UTF-8.
#[expect(clippy::needless_pass_by_value, reason = "the shape that the argument parser calls")]
pub(crate) fn place(text: OsString) -> Result<Place, String> {
    let bytes = text.as_bytes();
    let (id, path) = match bytes.iter().position(|b| *b == b':') {
        Some(colon) => (&bytes[..colon], &bytes[colon + 1..]),
        None => (bytes, &[][..]),
    };
    let id = std::str::from_utf8(id).map_err(|_| "a snapshot id is hexadecimal".to_owned())?;
    let names: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) {
        return Err("`..` has no place in the path of a snapshot".to_owned());
    }
    Ok(Place { snapshot: snapshot(id)?, path: names.join(&b'/') })
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("96MiB"), Ok(96 << 20));
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("100MB"), Ok(100_000_000));
        assert_eq!(size("64k"), Ok(64 << 10));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("3 gib"), Ok(3 << 30));
        for wrong in ["", "MiB", "1.5GiB", "-1", "1XiB", "99999999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(rate("50MiB"), Ok(50 << 20));
        assert_eq!(rate("50MiB/s"), Ok(50 << 20));
        assert_eq!(rate("0"), Ok(0));
        assert!(rate("50MiB/m").is_err());
    }

    #[test]
    fn shares() {
        assert_eq!(share("10%"), Ok(0.1));
        assert_eq!(share("100%"), Ok(1.0));
        assert_eq!(share("0.5%"), Ok(0.005));
        for wrong in ["10", "0%", "101%", "-1%", "NaN%", "inf%", "%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in ["", "s", "0", "1d", "1.5s", "99999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tags() {
        assert_eq!(tag("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert_eq!(tag("a="), Ok(("a".to_owned(), String::new())));
        for wrong in ["a", "=b", "a=\n"] {
            assert!(tag(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn chunk_sizes() {
        assert_eq!(chunk_size("16KiB"), Ok(16 << 10));
        assert_eq!(chunk_size("4MiB"), Ok(4 << 20));
        for wrong in ["8KiB", "8MiB", "100KB", "16GiB"] {
            assert!(chunk_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn compressions() {
        assert_eq!(compression("off"), Ok(Level::Off));
        assert_eq!(compression("auto"), Ok(Level::Auto));
        assert_eq!(compression("-7"), Ok(Level::Fixed(-7)));
        assert_eq!(compression("19"), Ok(Level::Fixed(19)));
        for wrong in ["0", "20", "-8", "best"] {
            assert!(compression(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places() {
        let ok = |text: &str, id: &str, path: &[u8]| {
            let expected = Place { snapshot: id.to_owned(), path: path.to_vec() };
            assert_eq!(place(text.into()), Ok(expected), "{text}");
        };
        ok("latest", "latest", b"");
        ok("latest:/", "latest", b"");
        ok("ABCD:/etc//./passwd", "abcd", b"etc/passwd");
        ok("latest:a:b", "latest", b"a:b");
        let raw = OsString::from_vec(b"latest:a\xffb".to_vec());
        assert_eq!(place(raw).map(|p| p.path), Ok(b"a\xffb".to_vec()));
        for wrong in ["", "0123456789abcdef012345678", "newest", ":etc", "latest:../etc", "12345g"] {
            assert!(place(wrong.into()).is_err(), "{wrong}");
        }
    }
}
