//! Lengths of time as Go writes them.

use std::fmt;
use std::time;

use serde::{Deserialize, Serialize};

/// A length of time as Go writes it, for instance `10m0s` or `1h0.5s`. It is kept as it was read: what nobody can read is
/// the trouble of whoever needs it, not of all who pass it on.
///
/// In most fields `0s` means that nothing is said ([`Duration::set`]): Go writes it where a client has set nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Duration(String);

/// Units and their length in nanoseconds.
///
/// Source: `ParseDuration` of Go's package `time`.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// The longest that Go has, in nanoseconds: some 292 years.
const LONGEST: f64 = 9.22e18;

impl Duration {
    /// The time that is meant, or `None` where the text is no time, or one before now.
    #[must_use]
    pub fn get(&self) -> Option<time::Duration> {
        let mut rest = self.0.strip_prefix('+').unwrap_or(&self.0);
        if rest == "0" {
            return Some(time::Duration::ZERO);
        }
        let mut nanoseconds = 0.0;
        while !rest.is_empty() {
            let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
            let (unit, next) =
                after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
            let (_, length) = UNITS.iter().find(|(name, _)| *name == unit)?;
            nanoseconds += number.parse::<f64>().ok()? * length;
            rest = next;
        }
        let known = !self.0.is_empty() && nanoseconds <= LONGEST;
        known.then(|| time::Duration::from_secs_f64(nanoseconds / 1e9))
    }

    /// As [`Duration::get`], and `None` for no time at all.
    #[must_use]
    pub fn set(&self) -> Option<time::Duration> {
        self.get().filter(|duration| !duration.is_zero())
    }
}

impl Default for Duration {
    /// No time at all. Not the empty text, on which Go fails with all objects of that kind.
    fn default() -> Self {
        time::Duration::ZERO.into()
    }
}

impl From<time::Duration> for Duration {
    /// In whole seconds, rounded up: what is short does not become nothing.
    fn from(duration: time::Duration) -> Self {
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        Self(match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
            (0, 0, s) => format!("{s}s"),
            (0, m, s) => format!("{m}m{s}s"),
            (h, m, s) => format!("{h}h{m}m{s}s"),
        })
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<time::Duration> {
        Duration(text.to_owned()).get()
    }

    #[test]
    fn what_go_writes_is_read() {
        let seconds = |seconds| Some(time::Duration::from_secs_f64(seconds));
        assert_eq!(read("10m0s"), seconds(600.0));
        assert_eq!(read("1h0.5s"), seconds(3600.5));
        assert_eq!(read("+1.5h"), seconds(5400.0));
        assert_eq!(read("250ms"), seconds(0.25));
        assert_eq!(read("3\u{b5}s"), seconds(3e-6));
        assert_eq!(read("0"), seconds(0.0));
        assert_eq!(read("0s"), seconds(0.0));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "10",
            "-1s",
            "1d",
            "s",
            ".s",
            "1.2.3s",
            "1e400s",
            "inf",
            "nans",
            "99999999999999999999h",
            "1 s",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn it_is_written_as_go_does() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (600, "10m0s"), (14400, "4h0m0s")] {
            let duration = Duration::from(time::Duration::from_secs(seconds));
            assert_eq!(duration.to_string(), text);
            assert_eq!(duration.get(), Some(time::Duration::from_secs(seconds)));
            assert_eq!(duration.set().is_some(), seconds > 0);
        }
        assert_eq!(Duration::from(time::Duration::from_millis(1)).to_string(), "1s");
        assert_eq!(Duration::default().to_string(), "0s");
    }
}
