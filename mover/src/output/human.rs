//! Bytes, rates, times and names as people read them.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

/// Bytes in binary units: `512 B`, `1.50 GiB`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.0 < 1 << 10 {
            format!("{} B", self.0)
        } else {
            let mut value = self.0 as f64 / 1024.0;
            let mut units = ["KiB", "MiB", "GiB", "TiB", "PiB"].into_iter().peekable();
            let mut unit = units.next().unwrap_or_default();
            // 999.5 would be written with four digits.
            while value >= 999.5
                && let Some(next) = units.next()
            {
                value /= 1024.0;
                unit = next;
            }
            let digits = if value >= 99.95 {
                0
            } else if value >= 9.995 {
                1
            } else {
                2
            };
            format!("{value:.digits$} {unit}")
        };
        f.pad(&text)
    }
}

/// Bytes per second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate(pub(crate) f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", Bytes(whole(self.0))))
    }
}

/// A float that counts something, as an integer; nonsense is 0.
#[expect(clippy::cast_possible_truncation, reason = "a cast from float saturates, and it is for display")]
pub(crate) fn whole(value: f64) -> u64 {
    if value.is_finite() && value > 0.0 { value.round() as u64 } else { 0 }
}

/// A number with separators: `1,234,567`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count(pub(crate) u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// `n thing` or `n things`.
pub(crate) fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", Count(n), if n == 1 { one } else { many })
}

/// A stretch of time: `0.42 s`, `12.3 s`, `2 m 05 s`, `3 h 07 m`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let text = match seconds {
            0..10 => format!("{:.2} s", self.0.as_secs_f64()),
            10..60 => format!("{:.1} s", self.0.as_secs_f64()),
            60..3600 => format!("{} m {:02} s", seconds / 60, seconds % 60),
            _ => format!("{} h {:02} m", seconds / 3600, seconds / 60 % 60),
        };
        f.pad(&text)
    }
}

/// A name or path made of bytes. Control characters would let a name in a backup play with the terminal: they are
/// escaped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for part in self.0.utf8_chunks() {
            for c in part.valid().chars() {
                match c.is_control() {
                    true => write!(f, "{}", c.escape_default())?,
                    false => f.write_char(c)?,
                }
            }
            for byte in part.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// A moment as RFC 3339 in UTC. In JSON a string with nanoseconds, for people with seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// Seconds since the Unix epoch.
    pub(crate) seconds: i64,
    /// Nanoseconds, below 10^9.
    pub(crate) nanos: u32,
}

impl Moment {
    fn civil(self) -> (i64, i64, i64, i64) {
        let (days, second) = (self.seconds.div_euclid(86_400), self.seconds.rem_euclid(86_400));
        // Days are counted from 0000-03-01, so that a leap day is the last day of its year.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (era * 400 + year_of_era + i64::from(month <= 2), month, day, second)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, second) = self.civil();
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        f.pad(&format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"))
    }
}

impl Serialize for Moment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string().replace(' ', "T");
        serializer.collect_str(&format_args!("{text}.{:09}Z", self.nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let texts =
            [0, 1023, 1024, 1536, 10 << 20, 1_048_000, 123 << 30, u64::MAX].map(|b| Bytes(b).to_string());
        assert_eq!(
            texts,
            ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 MiB", "1.00 MiB", "123 GiB", "16384 PiB"]
        );
        assert_eq!(format!("{:>9}|", Bytes(1024)), " 1.00 KiB|");
        assert_eq!(Rate(2_097_152.4).to_string(), "2.00 MiB/s");
        assert_eq!(Rate(f64::NAN).to_string(), "0 B/s");
    }

    #[test]
    fn counts_and_plurals() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(|n| Count(n).to_string()),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(plural(1, "file", "files"), "1 file");
        assert_eq!(plural(2000, "file", "files"), "2,000 files");
    }

    #[test]
    fn spans() {
        let texts = [420, 12_340, 125_000, 11_220_000].map(|ms| Span(Duration::from_millis(ms)).to_string());
        assert_eq!(texts, ["0.42 s", "12.3 s", "2 m 05 s", "3 h 07 m"]);
    }

    #[test]
    fn names_cannot_play_with_the_terminal() {
        assert_eq!(Name(b"a/b c").to_string(), "a/b c");
        assert_eq!(Name("\u{e4}\u{1b}[2J\n\u{9b}".as_bytes()).to_string(), "\u{e4}\\u{1b}[2J\\n\\u{9b}");
        assert_eq!(Name(b"a\xff\xc3").to_string(), "a\\xff\\xc3");
        assert_eq!(Name(b"").to_string(), "/");
    }

    #[test]
    fn moments_across_the_calendar() {
        let text = |seconds| Moment { seconds, nanos: 0 }.to_string();
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(-1), "1969-12-31 23:59:59");
        assert_eq!(text(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(1_735_689_599), "2024-12-31 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
        let json = serde_json::to_string(&Moment { seconds: 1, nanos: 5 }).unwrap_or_default();
        assert_eq!(json, "\"1970-01-01T00:00:01.000000005Z\"");
    }
}
