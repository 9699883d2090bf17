//! Patterns of paths in the manner of `.gitignore`: what a backup leaves out, and what a restore takes.
//!
//! * `*` and `?` match within a name, `**` across names, `[a-z]` and `{a,b}` as in a shell.
//! * A pattern that starts with `/` is matched from the root of the tree, any other one at any depth.
//! * A pattern that ends with `/` matches directories only. A backup does not enter an excluded directory.
//! * A pattern that starts with `!` takes back what earlier patterns match; the last match decides. It cannot bring
//!   back what is below an excluded directory.
//! * Names are bytes: a name that is not UTF-8 is matched byte by byte.

use globset::{Candidate, GlobBuilder, GlobSet};

use crate::error::{Error, Result};

/// Patterns in their order. Empty by default: nothing matches.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    given: Vec<String>,
    globs: GlobSet,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    matches: bool,
    directories_only: bool,
}

impl Patterns {
    /// Compiles patterns, in the order in which they were given. Fails with [`Error::Usage`] and the pattern.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Result<Self> {
        let mut globs = GlobSet::builder();
        let (mut given, mut rules) = (Vec::new(), Vec::new());
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let (matches, rest) = pattern.strip_prefix('!').map_or((true, pattern), |rest| (false, rest));
            let (directories_only, rest) = rest.strip_suffix('/').map_or((false, rest), |rest| (true, rest));
            let glob = rest.strip_prefix('/').map_or_else(|| format!("**/{rest}"), str::to_owned);
            // They would match nothing, and whoever gives one means something.
            if rest.starts_with("./") || rest.starts_with("../") {
                let what = "is not resolved: start it with / for the root of the tree, or with a name";
                return Err(Error::Usage(format!("pattern {pattern:?} {what}")));
            }
            if rest.trim_start_matches('/').is_empty() {
                return Err(Error::Usage(format!("pattern {pattern:?} is empty")));
            }
            let glob = GlobBuilder::new(&glob)
                .literal_separator(true)
                .backslash_escape(true)
                .build()
                .map_err(|e| Error::Usage(format!("pattern {pattern:?}: {}", e.kind())))?;
            globs.add(glob);
            given.push(pattern.to_owned());
            rules.push(Rule { matches, directories_only });
        }
        let globs = globs.build().map_err(|e| Error::Usage(format!("patterns: {e}")))?;
        Ok(Self { given, globs, rules })
    }

    /// The patterns in the text of a file: one per line; empty lines and lines that start with `#` are comments; `\#`
    /// and `\!` stand for a pattern that starts with that character.
    pub fn lines(text: &str) -> impl Iterator<Item = &str> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        text.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// The patterns as they were given.
    pub fn given(&self) -> &[String] {
        &self.given
    }

    /// True when it has no patterns.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// True when `path` (relative to the root of the tree, raw bytes) matches.
    pub fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        let matches = self.globs.matches_candidate(&Candidate::from_bytes(path));
        let last = matches.into_iter().filter_map(|i| self.rules.get(i));
        let mut last = last.filter(|rule| is_directory || !rule.directories_only);
        last.next_back().is_some_and(|rule| rule.matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_documented() {
        // patterns, path, is a directory, excluded
        type Case = (&'static [&'static str], &'static [u8], bool, bool);
        let cases: &[Case] = &[
            (&[], b"a", false, false),
            (&["*.o"], b"a.o", false, true),
            (&["*.o"], b"deep/er/a.o", false, true),
            (&["*.o"], b"a.o/b", false, false), // pruned by its directory, not by this path
            (&["/a"], b"a", false, true),
            (&["/a"], b"b/a", false, false),
            (&["a/b"], b"x/a/b", false, true),
            (&["a/b"], b"a/b", false, true),
            (&["/a/*/c"], b"a/b/c", false, true),
            (&["/a/*/c"], b"a/b/b/c", false, false),
            (&["/a/**/c"], b"a/b/b/c", false, true),
            (&["/a/**/c"], b"a/c", false, true),
            (&["a/**"], b"a/b", false, true),
            (&["a/**"], b"a", true, false),
            (&["cache/"], b"x/cache", true, true),
            (&["cache/"], b"x/cache", false, false),
            (&["*.log", "!keep.log"], b"keep.log", false, false),
            (&["*.log", "!keep.log"], b"other.log", false, true),
            (&["!keep.log", "*.log"], b"keep.log", false, true),
            (&["\\!odd"], b"!odd", false, true),
            (&["\\#odd"], b"#odd", false, true),
            (&["?.txt"], b"\xff.txt", false, true),
            (&["x*"], b"x\xff\xfe", false, true),
            (&["{a,b}[0-9]"], b"b7", false, true),
            (&["a b"], b"a b", false, true),
            (&[".*"], b"d/.hidden", false, true),
            (&["A"], b"a", false, false),
            (&["/"], b"", true, false),
        ];
        for (patterns, path, is_directory, matched) in cases {
            if *patterns == ["/"] {
                assert!(Patterns::new(*patterns).is_err());
                continue;
            }
            let set = Patterns::new(*patterns).unwrap();
            let path_text = String::from_utf8_lossy(path);
            assert_eq!(set.matches(path, *is_directory), *matched, "{patterns:?} on {path_text:?}");
        }
    }

    #[test]
    fn files_have_comments() {
        let text = "\u{feff}# comment\n\n*.o  \r\n\\#odd\n/a\n";
        let lines: Vec<&str> = Patterns::lines(text).collect();
        assert_eq!(lines, ["*.o", "\\#odd", "/a"]);
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = Patterns::new(["good", "[z-a]"]).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::Usage);
        assert!(error.to_string().contains("[z-a]"), "{error}");
    }
}
