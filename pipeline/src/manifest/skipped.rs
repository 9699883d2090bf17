//! The skipped items that a manifest lists: few enough, and short enough, that the manifest can be read again.

use super::{MAX_SKIPPED_ITEMS, SkippedItem, Text};

/// Bytes of all listed items together, as they stand in the manifest. Far below what readers take of a manifest.
pub const MAX_SKIPPED_BYTES: usize = 1 << 20;

/// Bytes of a path that are listed. Paths above the system's own limit can only be made step by step.
const MAX_PATH: usize = 4 << 10;

/// Bytes of a reason that are listed.
const MAX_REASON: usize = 1 << 10;

/// Keeps the first skipped items of a run, as many as a manifest lists.
#[derive(Debug, Default)]
pub struct SkippedItems {
    items: Vec<SkippedItem>,
    bytes: usize,
    full: bool,
}

impl SkippedItems {
    /// Keeps an item if there is room for it. After the first one that found none, no other is kept: what is listed
    /// are the first ones, without gaps.
    pub fn keep(&mut self, path: &[u8], reason: &str) {
        if self.full {
            return;
        }
        let item = SkippedItem { path: cut_path(path), reason: cut_reason(reason) };
        // What counts is the size in the manifest: bytes that are no text take two digits each there, control
        // characters six.
        let bytes = serde_json::to_vec(&item).map_or(usize::MAX, |json| json.len() + 1);
        self.full = self.items.len() >= MAX_SKIPPED_ITEMS || bytes > MAX_SKIPPED_BYTES - self.bytes;
        if !self.full {
            self.bytes += bytes;
            self.items.push(item);
        }
    }

    /// What was kept.
    pub fn items(&self) -> &[SkippedItem] {
        &self.items
    }
}

fn mark(bytes: usize) -> String {
    format!("... (cut, {bytes} bytes in all)")
}

fn cut_path(path: &[u8]) -> Text {
    if path.len() <= MAX_PATH {
        return Text(path.to_vec());
    }
    let mut cut = match std::str::from_utf8(path) {
        // Text stays text.
        Ok(text) => path[..text.floor_char_boundary(MAX_PATH)].to_vec(),
        Err(_) => path[..MAX_PATH].to_vec(),
    };
    cut.extend_from_slice(mark(path.len()).as_bytes());
    Text(cut)
}

fn cut_reason(reason: &str) -> String {
    if reason.len() <= MAX_REASON {
        return reason.to_owned();
    }
    reason[..reason.floor_char_boundary(MAX_REASON)].to_owned() + &mark(reason.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed test may panic")]

    use super::*;

    #[test]
    fn ordinary_items_are_kept_as_they_are_up_to_their_number() {
        let mut kept = SkippedItems::default();
        for n in 0..MAX_SKIPPED_ITEMS + 5 {
            kept.keep(format!("folder/file-{n}").as_bytes(), "permission denied");
        }
        assert_eq!(kept.items().len(), MAX_SKIPPED_ITEMS);
        assert_eq!(kept.items()[7].path, Text::from("folder/file-7"));
        assert_eq!(kept.items()[7].reason, "permission denied");
    }

    #[test]
    fn however_long_the_paths_the_list_stays_small() {
        // Text, no text, and text that takes six characters a byte in JSON.
        for byte in [b'a', 0xFF, 0x01] {
            let mut kept = SkippedItems::default();
            for _ in 0..700 {
                kept.keep(&[byte; 17_000], &"why ".repeat(1000));
            }
            let json = serde_json::to_vec(kept.items()).unwrap();
            assert!(json.len() <= MAX_SKIPPED_BYTES + 2, "{byte}: {}", json.len());
            assert!(kept.items().len() >= 20, "{byte}: {}", kept.items().len());
            let first = &kept.items()[0];
            assert!(first.path.0.ends_with(b"... (cut, 17000 bytes in all)"));
            assert!(first.reason.ends_with("... (cut, 4000 bytes in all)"));
            assert_eq!(first.path.0[..MAX_PATH], [byte; MAX_PATH]);
            // A short one is not listed after a long one that was not.
            let listed = kept.items().len();
            kept.keep(b"short", "why");
            assert_eq!(kept.items().len(), listed);
        }
    }

    #[test]
    fn text_is_cut_between_characters() {
        let mut kept = SkippedItems::default();
        kept.keep("€".repeat(2000).as_bytes(), &"€".repeat(1000));
        let item = &kept.items()[0];
        assert_eq!(std::str::from_utf8(&item.path.0).unwrap().chars().filter(|c| *c == '€').count(), 1365);
        assert_eq!(item.reason.chars().filter(|c| *c == '€').count(), 341);
    }
}
