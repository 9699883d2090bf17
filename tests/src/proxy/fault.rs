//! Faults by rule: `METHOD,KEY,WHEN,ACTION[,ACTION...]`.
//!
//! | field | forms |
//! |---|---|
//! | METHOD | `PUT`, `GET`, ..., or an operation (`PutObject`, `UploadPart`, `CompleteMultipartUpload`, `ListObjectsV2`, ...), several with `\|`, or `*` |
//! | KEY | the beginning of the object's key, or of any part of it after a `/`; with a leading `/` of the whole key only; `*` stands for any bytes |
//! | WHEN | `*` always, `3` the third match, `3+` from the third on, `3-5`, `/4` every fourth, `p0.1` with that probability (from the proxy's seed) |
//!
//! | ACTION | what happens |
//! |---|---|
//! | `status=503` | the request's body is read, nothing reaches the server, this status with S3's XML is the answer |
//! | `retry-after=2` | with `status`: the header, in seconds |
//! | `reset=before` | the connection is reset before the request's body is read |
//! | `reset=after` | the whole body is read, nothing is forwarded, the connection is reset |
//! | `cut=N` | the server gets the first N bytes of the request's body, then both connections break |
//! | `drop` | the server applies the request, its answer is thrown away, the connection is reset |
//! | `truncate=N` | the answer ends after N bytes of its body, the connection is reset |
//! | `flip=N` | the lowest bit of byte N of the answer's body is flipped |
//! | `delay=MS` | before anything else |
//! | `rate=N` | bytes per second, both directions together, shared by all that the rule matches |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::body::Limiter;

/// When, among its matches, a rule applies.
#[derive(Clone, Debug, PartialEq)]
enum When {
    Range(u64, u64),
    Every(u64),
    Probability(f64),
}

/// What is done to a request that a rule applies to.
#[derive(Clone, Debug, PartialEq)]
enum Action {
    Status(u16),
    RetryAfter(u64),
    ResetBefore,
    ResetAfter,
    Cut(u64),
    Drop,
    Truncate(u64),
    Flip(u64),
    Delay(Duration),
    Rate(u64),
}

/// One rule, parsed from its text (see the module).
#[derive(Debug)]
pub struct Rule {
    text: String,
    methods: Vec<String>,
    key: String,
    when: When,
    actions: Vec<Action>,
    limiter: Option<Arc<Limiter>>,
    matches: AtomicU64,
    applied: AtomicU64,
}

/// All that happens to one request.
#[derive(Default, Debug)]
pub(super) struct Plan {
    pub(super) rules: Vec<String>,
    pub(super) status: Option<u16>,
    pub(super) retry_after: Option<u64>,
    pub(super) reset_before: bool,
    pub(super) reset_after: bool,
    pub(super) cut: Option<u64>,
    pub(super) drop_answer: bool,
    pub(super) truncate: Option<u64>,
    pub(super) flip: Option<u64>,
    pub(super) delay: Duration,
    pub(super) limiters: Vec<Arc<Limiter>>,
}

impl std::str::FromStr for Rule {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).with_context(|| format!("fault rule '{text}'"))
    }
}

fn parse(text: &str) -> Result<Rule> {
    let mut fields = text.split(',').map(str::trim);
    let mut field =
        |name| fields.next().filter(|f| !f.is_empty()).with_context(|| format!("{name} is missing"));
    let methods: Vec<String> = field("METHOD")?.split('|').map(str::to_owned).collect();
    let key = field("KEY")?.to_owned();
    let when = parse_when(field("WHEN")?)?;
    let mut actions = vec![parse_action(field("ACTION")?)?];
    for rest in fields {
        actions.push(parse_action(rest)?);
    }
    let limiter = actions.iter().find_map(|a| match a {
        Action::Rate(rate) => Some(Arc::new(Limiter::new(*rate))),
        _ => None,
    });
    let (matches, applied) = (AtomicU64::new(0), AtomicU64::new(0));
    Ok(Rule { text: text.to_owned(), methods, key, when, actions, limiter, matches, applied })
}

fn parse_when(text: &str) -> Result<When> {
    let when = if text == "*" {
        When::Range(1, u64::MAX)
    } else if let Some(every) = text.strip_prefix('/') {
        When::Every(number(every)?)
    } else if let Some(probability) = text.strip_prefix('p') {
        When::Probability(probability.parse().with_context(|| format!("'{text}' is no probability"))?)
    } else if let Some(from) = text.strip_suffix('+') {
        When::Range(number(from)?, u64::MAX)
    } else if let Some((from, to)) = text.split_once('-') {
        When::Range(number(from)?, number(to)?)
    } else {
        When::Range(number(text)?, number(text)?)
    };
    match when {
        When::Range(from, to) => {
            ensure!(from >= 1 && to >= from, "'{text}' matches nothing: matches count from 1");
        }
        When::Every(n) => ensure!(n >= 1, "'{text}': every 0th does not exist"),
        When::Probability(p) => ensure!((0.0..=1.0).contains(&p), "'{text}' is not between p0 and p1"),
    }
    Ok(when)
}

fn parse_action(text: &str) -> Result<Action> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let value = || value.with_context(|| format!("{name} needs a value"));
    Ok(match name {
        "status" => {
            let status = u16::try_from(number(value()?)?)?;
            ensure!((300..600).contains(&status), "status {status} is no failure");
            Action::Status(status)
        }
        "retry-after" => Action::RetryAfter(number(value()?)?),
        "reset" => match value()? {
            "before" => Action::ResetBefore,
            "after" => Action::ResetAfter,
            other => bail!("reset={other} (before, after)"),
        },
        "cut" => Action::Cut(number(value()?)?),
        "drop" => Action::Drop,
        "truncate" => Action::Truncate(number(value()?)?),
        "flip" => Action::Flip(number(value()?)?),
        "delay" => Action::Delay(Duration::from_millis(number(value()?)?)),
        "rate" => {
            let rate = number(value()?)?;
            ensure!(rate > 0, "rate=0 would never end");
            Action::Rate(rate)
        }
        other => bail!("unknown action '{other}'"),
    })
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("'{text}' is no number"))
}

impl Rule {
    /// The rule as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many requests it was applied to so far.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    fn fits(&self, method: &str, operation: &str, key: &str) -> bool {
        self.methods.iter().any(|m| m == "*" || m == method || m == operation) && key_fits(&self.key, key)
    }

    /// Counts a match and says whether this one is meant. `random` is uniform in 0..1.
    fn is_due(&self, random: impl FnOnce() -> f64) -> bool {
        let n = self.matches.fetch_add(1, Ordering::SeqCst) + 1;
        match self.when {
            When::Range(from, to) => (from..=to).contains(&n),
            When::Every(k) => n.is_multiple_of(k),
            When::Probability(p) => random() < p,
        }
    }

    /// Adds what this rule does to `plan`, if it applies to this request.
    pub(super) fn apply(
        &self,
        (method, operation, key): (&str, &str, &str),
        random: impl FnOnce() -> f64,
        plan: &mut Plan,
    ) {
        if !self.fits(method, operation, key) || !self.is_due(random) {
            return;
        }
        self.applied.fetch_add(1, Ordering::SeqCst);
        plan.rules.push(self.text.clone());
        plan.limiters.extend(self.limiter.clone());
        for action in &self.actions {
            match *action {
                Action::Status(status) => plan.status = Some(status),
                Action::RetryAfter(seconds) => plan.retry_after = Some(seconds),
                Action::ResetBefore => plan.reset_before = true,
                Action::ResetAfter => plan.reset_after = true,
                Action::Cut(bytes) => plan.cut = Some(bytes),
                Action::Drop => plan.drop_answer = true,
                Action::Truncate(bytes) => plan.truncate = Some(bytes),
                Action::Flip(at) => plan.flip = Some(at),
                Action::Delay(time) => plan.delay += time,
                Action::Rate(_) => {}
            }
        }
    }
}

/// Whether the pattern fits the key's beginning, or its beginning after any `/`.
fn key_fits(pattern: &str, key: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if let Some(anchored) = pattern.strip_prefix('/') {
        return begins(anchored.as_bytes(), key.as_bytes());
    }
    std::iter::once(0)
        .chain(key.match_indices('/').map(|(at, _)| at + 1))
        .any(|at| begins(pattern.as_bytes(), &key.as_bytes()[at..]))
}

/// Whether some beginning of `text` is what `pattern` says, with `*` for any bytes.
fn begins(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => true,
        Some((b'*', rest)) => (0..=text.len()).any(|skip| begins(rest, &text[skip..])),
        Some((byte, rest)) => {
            text.split_first().is_some_and(|(first, text)| first == byte && begins(rest, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(when: &str, count: u64) -> Vec<u64> {
        let rule: Rule = format!("PUT,*,{when},drop").parse().unwrap();
        (1..=count).filter(|_| rule.is_due(|| 0.5)).collect()
    }

    #[test]
    fn rules_apply_when_they_say() {
        assert_eq!(due("*", 3), [1, 2, 3]);
        assert_eq!(due("3", 5), [3]);
        assert_eq!(due("3+", 5), [3, 4, 5]);
        assert_eq!(due("2-3", 5), [2, 3]);
        assert_eq!(due("/2", 5), [2, 4]);
        assert_eq!(due("p0.6", 2), [1, 2]);
        assert!(due("p0.4", 2).is_empty());
    }

    #[test]
    fn keys_fit_at_the_beginning_of_any_part() {
        for (pattern, key, fits) in [
            ("packs/", "packs/ab/1", true),
            ("packs/", "some/prefix/packs/ab/1", true),
            ("packs/", "unpacks/ab", false),
            ("/packs/", "packs/x", true),
            ("/packs/", "p/packs/x", false),
            ("packs/*/x", "packs/ab/xyz", true),
            ("packs/*/x", "packs/ab/yz", false),
            ("*", "", true),
            ("config", "config", true),
            ("", "x", true),
        ] {
            assert_eq!(key_fits(pattern, key), fits, "{pattern} {key}");
        }
    }

    #[test]
    fn methods_and_operations_fit() {
        let rule: Rule = "UploadPart|DELETE,*,*,status=503".parse().unwrap();
        assert!(rule.fits("PUT", "UploadPart", "k"));
        assert!(rule.fits("DELETE", "DeleteObject", "k"));
        assert!(!rule.fits("PUT", "PutObject", "k"));
    }

    #[test]
    fn nonsense_is_refused_with_the_rule_in_the_message() {
        for text in [
            "",
            "PUT",
            "PUT,x",
            "PUT,x,1",
            "PUT,x,0,drop",
            "PUT,x,/0,drop",
            "PUT,x,p2,drop",
            "PUT,x,5-2,drop",
            "PUT,x,1,explode",
            "PUT,x,1,status",
            "PUT,x,1,status=200",
            "PUT,x,1,rate=0",
            "PUT,x,1,reset=never",
            "PUT,x,many,drop",
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }
}
