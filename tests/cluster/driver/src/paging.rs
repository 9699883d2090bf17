//! Lists in pages.
//!
//! Entries are in the order of their ids, which is the order of their creation, and a token is the id of the last
//! entry of a page: it stays good while entries come and go, that one included.

use tonic::Status;

use crate::state;

/// The entries after `token` (empty: all), at most `max` (0: all), and the token of what follows (empty: nothing).
pub(crate) fn page<T>(
    mut entries: Vec<T>,
    id: impl Fn(&T) -> &str,
    max: i32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let max = usize::try_from(max)
        .map_err(|_| Status::invalid_argument(format!("max_entries is {max}: give 0 or more")))?;
    if !token.is_empty() && !state::is_id(token) {
        return Err(Status::aborted(format!(
            "starting_token {token:?} is none that this driver gave: list from the start"
        )));
    }
    entries.retain(|entry| id(entry) > token);
    let more = max > 0 && entries.len() > max;
    if more {
        entries.truncate(max);
    }
    let next = entries.last().filter(|_| more).map_or_else(String::new, |last| id(last).to_owned());
    Ok((entries, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("vol-{i:016x}")).collect()
    }

    #[test]
    fn pages_put_together_are_the_list() {
        for (count, max) in [(0, 1), (1, 1), (5, 2), (6, 2), (7, 100), (4, 0)] {
            let (mut all, mut token) = (Vec::new(), String::new());
            loop {
                let (mut some, next) = page(ids(count), |s| s, max, &token).unwrap();
                all.append(&mut some);
                token = next;
                if token.is_empty() {
                    break;
                }
            }
            assert_eq!(all, ids(count));
        }
    }

    #[test]
    fn a_token_outlives_its_entry_and_sees_what_is_new() {
        let (first, token) = page(ids(3), |s| s, 2, "").unwrap();
        assert_eq!(first, ids(2));
        let mut now = ids(5);
        now.remove(1);
        let (rest, token) = page(now, |s| s, 0, &token).unwrap();
        assert_eq!(rest, ids(5)[2..]);
        assert_eq!(token, "");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        assert_eq!(page(ids(1), |s| s, 0, "invalid-token").unwrap_err().code(), tonic::Code::Aborted);
        assert_eq!(page(ids(1), |s| s, -1, "").unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
