//! Which part of the log may go: the decision apart from the files, so that simulations make the same one.

use crate::types::LogIndex;

/// The reasons to keep a part of the log.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The store is durable up to here: what lies behind is needed after a crash.
    pub durable_index: LogIndex,
    /// From here on the log spares servers that are a little late a snapshot.
    pub recent_from: LogIndex,
    /// From here on a server that is being sent a snapshot needs it.
    pub needed_from: Option<LogIndex>,
    /// From here on the log is as long as it may become for such servers.
    pub longest_from: LogIndex,
}

/// The first index to keep.
pub fn first_kept(kept: Kept) -> LogIndex {
    let Kept { durable_index, recent_from, needed_from, longest_from } = kept;
    let for_servers = needed_from.map_or(recent_from, |needed| needed.max(longest_from));
    for_servers.min(recent_from).min(durable_index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_kept_up_to_a_bound() {
        let kept =
            Kept { durable_index: 900, recent_from: 800, needed_from: None, longest_from: 100 };
        assert_eq!(first_kept(kept), 800);
        assert_eq!(first_kept(Kept { needed_from: Some(500), ..kept }), 500);
        assert_eq!(first_kept(Kept { needed_from: Some(50), ..kept }), 100, "no longer than that");
        assert_eq!(first_kept(Kept { needed_from: Some(850), ..kept }), 800);
        assert_eq!(first_kept(Kept { durable_index: 300, needed_from: Some(500), ..kept }), 301);
        assert_eq!(first_kept(Kept { durable_index: 9, longest_from: 700, ..kept }), 10);
    }
}
