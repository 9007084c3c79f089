//! What the window of the latest changes has for a watch that is behind: at most a page.

use crate::limits::{PAGE_BYTES_MAX, PAGE_ROWS_MAX};
use crate::model::{FeedPosition, KeyChange, KeyInterval, Timestamp};
use crate::storage::reads::Store;
use crate::storage::recent::{RecentChange, RecentPart};

/// What memory has for a watch that is behind.
pub(super) enum Recent {
    Changes {
        changes: Vec<KeyChange>,
        position: FeedPosition,
        has_more: bool,
    },
    /// Only the store can tell.
    ReadStore,
}

/// What memory has of a range after a position.
pub(super) fn recent_of(
    store: &Store,
    range: &KeyInterval,
    tells_previous: bool,
    after: &FeedPosition,
) -> Recent {
    let RecentPart::Batches(batches) = store.recent_changes(after.up_to) else {
        return Recent::ReadStore;
    };
    let (mut changes, mut bytes) = (Vec::new(), 0);
    let mut position = after.clone();
    for batch in &batches {
        for change in &batch.changes {
            match change {
                RecentChange::Range { at, range: removed } => {
                    if after.up_to < *at && removed.overlaps(range) {
                        return read_rest(changes, FeedPosition::after(Timestamp(at.0 - 1)));
                    }
                }
                RecentChange::Key(change) => {
                    let is_shown =
                        range.covers(&change.key) && after.is_before(change.at, &change.key);
                    if !is_shown {
                        continue;
                    }
                    if tells_previous {
                        return Recent::ReadStore;
                    }
                    bytes += change_bytes(change);
                    let is_full = changes.len() >= PAGE_ROWS_MAX || bytes > PAGE_BYTES_MAX;
                    if is_full && !changes.is_empty() {
                        let position = FeedPosition::before(change.at, change.key.clone());
                        return Recent::Changes { changes, position, has_more: true };
                    }
                    changes.push(change.clone());
                }
            }
        }
        position = FeedPosition::after(batch.up_to);
    }
    Recent::Changes { changes, position, has_more: false }
}

/// The changes before that of a long range, which the store then tells.
fn read_rest(changes: Vec<KeyChange>, position: FeedPosition) -> Recent {
    match changes.is_empty() {
        true => Recent::ReadStore,
        false => Recent::Changes { changes, position, has_more: true },
    }
}

/// Bytes of a change's key and value.
pub(super) fn change_bytes(change: &KeyChange) -> usize {
    change.key.len() + change.written.as_ref().map_or(0, |version| version.value.len())
}
