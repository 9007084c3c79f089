//! The change feed: what has changed in a range of keys after a version, in the order of versions.
//!
//! Each version and each tombstone has a *change row*, by time and key, which is written and
//! deleted with it. So the changes after a version are a scan by time, and the rows of the versions
//! say what was written. The removal of a long range has no tombstones but one row with its ends:
//! its changes are the keys of the range that were there just before. No write removes such a range
//! and changes keys besides, so that its changes are all there are of their time.
//!
//! Rule: a page shows every change of its range after its position up to where it ends, each once,
//! in order, or says that some may be gone ([`ChangesError::Gone`]). Garbage collection deletes no
//! change later than its horizon (`garbage_collection`: of what removals reach and what the history
//! does not keep, nothing is deleted that is later than the two times that it notes). So a position
//! that is not before the horizon has lost nothing, and one before it may have, whatever its range.
//! The horizon is one for all keys: to know it by key would cost every piece of garbage collection
//! a row for each key.
//!
//! A page ends at the newest timestamp that was applied *before* its view was taken. The view may
//! show later changes; they are left to the next page, whose beginning is then exact.
//!
//! The latest changes are in memory, too (`storage::recent`).
//!
//! Only what was applied is here, and only committed entries are applied: a leader that is deposed
//! shows nothing that its successor does not have.
//!
//! What it leaves out: who follows, and how fast (`server::watches`).

use std::ops::ControlFlow;

use bytes::Bytes;

use super::apply::ApplyError;
use super::engine::Direction;
use super::garbage_collection::{Horizon, damaged_change};
use super::keys::{self, RowRange};
use super::removals::{PendingRemovals, RangeRemoval};
use super::rows::Rows;
use super::version_row::ReadVersion;
use super::versions::{PageLimits, Reader};
use crate::limits;
use crate::model::{
    FeedPosition, KeyChange, KeyInterval, KeyState, Previous, ReadView, Row, Timestamp, Version,
};

/// The bounds of one page of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesLimits {
    /// The most changes of the page, which always has room for one.
    pub changes: usize,
    /// The most bytes of keys and values; a longer change is a page of its own.
    pub bytes: usize,
    /// The most change rows, and keys of removed ranges, that are looked at; at least one is.
    pub visits: usize,
}

impl ChangesLimits {
    /// The greatest page of this release: as long as a page of rows.
    pub const DEFAULT: ChangesLimits = ChangesLimits {
        changes: limits::PAGE_ROWS_MAX,
        bytes: limits::PAGE_BYTES_MAX,
        visits: limits::PAGE_VISITS_MAX,
    };
}

impl Default for ChangesLimits {
    fn default() -> ChangesLimits {
        ChangesLimits::DEFAULT
    }
}

/// A page of the changes of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangesPage {
    /// In order of time, and of one time in order of keys.
    pub changes: Vec<KeyChange>,
    /// Where the next page begins.
    pub next: FeedPosition,
    /// Whether there is more to show at once.
    pub has_more: bool,
}

/// Why changes cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// Some may have been deleted for good: what there is now is to be read instead.
    #[error("changes after version {after} may have been removed for good: begin from a later one")]
    Gone {
        /// The version after which they were asked for.
        after: Timestamp,
    },
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] ApplyError),
}

/// Reads a page of the changes of a range, of a state in which everything up to `applied` is there.
/// With `tells_previous` each change says what its key had before.
pub(super) fn changes_page(
    rows: &dyn Rows,
    pending: &PendingRemovals,
    applied: Timestamp,
    (range, tells_previous): (&KeyInterval, bool),
    position: &FeedPosition,
    most: ChangesLimits,
) -> Result<ChangesPage, ChangesError> {
    if position.up_to < Horizon::read(rows)?.deleted_up_to() {
        return Err(ChangesError::Gone { after: position.up_to });
    }
    if position.up_to >= applied {
        return Ok(ChangesPage { next: position.clone(), ..ChangesPage::default() });
    }
    let mut page = PageBuilder {
        rows,
        pending,
        range,
        tells_previous,
        most,
        page: ChangesPage { next: position.clone(), ..ChangesPage::default() },
        bytes: 0,
        visits: 0,
    };
    for removal in pending.ranges.iter().filter(|removal| removal.at <= applied) {
        // Beyond the last key: whether any of its keys is left to show.
        if !page.page.next.is_before(removal.at, &removal.to) {
            continue;
        }
        // Nothing else has changed at its time.
        let before = Timestamp(removal.at.0.saturating_sub(1));
        if !page.show_written(before)? || !page.show_removed(removal)? {
            page.page.has_more = true;
            return Ok(page.page);
        }
    }
    page.page.has_more = !page.show_written(applied)?;
    Ok(page.page)
}

/// A page under construction.
struct PageBuilder<'a> {
    rows: &'a dyn Rows,
    pending: &'a PendingRemovals,
    range: &'a KeyInterval,
    tells_previous: bool,
    most: ChangesLimits,
    page: ChangesPage,
    bytes: usize,
    visits: usize,
}

impl PageBuilder<'_> {
    /// Shows the changes up to a time that have change rows. Returns false when the page is full.
    fn show_written(&mut self, until: Timestamp) -> Result<bool, ApplyError> {
        if until <= self.page.next.up_to {
            return Ok(true);
        }
        let start = match &self.page.next {
            FeedPosition { within: Some((at, key)), .. } => keys::change(*at, key),
            FeedPosition { up_to, within: None } => keys::changes(*up_to, until).start,
        };
        let rows = RowRange { start, end: keys::changes(until, until).end };
        let (mut found, mut rest, mut failed) = (Vec::new(), None, None);
        let room = self.most.changes.max(1).saturating_sub(self.page.changes.len());
        self.rows.scan_rows(&rows, Direction::Forward, &mut |row, _| {
            let Ok((at, key)) = keys::decode_change(row) else {
                failed = Some(damaged_change());
                return ControlFlow::Break(());
            };
            let key = Bytes::copy_from_slice(key);
            if (self.visits > 0 && self.visits >= self.most.visits) || found.len() >= room {
                rest = Some((at, key));
                return ControlFlow::Break(());
            }
            self.visits += 1;
            if self.range.covers(&key) {
                found.push((at, key));
            }
            ControlFlow::Continue(())
        })?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        for (at, key) in found {
            let Some(change) = self.read(at, &key)? else {
                rest = Some((at, key));
                break;
            };
            self.page.changes.push(change);
        }
        match rest {
            Some((at, key)) => {
                self.page.next = FeedPosition::before(at, key);
                Ok(false)
            }
            None => {
                self.page.next = FeedPosition::after(until.max(self.page.next.up_to));
                Ok(true)
            }
        }
    }

    /// Reads the change that has a change row; `None` if it does not fit.
    fn read(&mut self, at: Timestamp, key: &Bytes) -> Result<Option<KeyChange>, ApplyError> {
        let mut found = Err(damaged_change());
        let (bytes, is_empty) = (self.bytes + key.len(), self.page.changes.is_empty());
        let row = keys::version(key, at);
        self.rows.newest(&keys::only(&row), &mut |_, stored| {
            let bytes = bytes + stored.bytes();
            if bytes > self.most.bytes && !is_empty {
                found = Ok(None);
                return;
            }
            self.bytes = bytes;
            found = ReadVersion::of(stored, at).and_then(|stored| {
                let Some(value) = stored.value() else { return Ok(Some(None)) };
                let facts = Some(value.facts);
                let version = Version { timestamp: at, value: value.read()?, facts };
                Ok(Some(Some(version)))
            });
        })?;
        let Some(written) = found? else { return Ok(None) };
        Ok(Some(self.change(at, key.clone(), written)?))
    }

    /// Shows the deletions of the keys of a long range that were there just before. Returns false
    /// when the page is full.
    fn show_removed(&mut self, removal: &RangeRemoval) -> Result<bool, ApplyError> {
        let at = removal.at;
        let mut from = removal.from.clone().max(self.range.from.clone());
        if let Some((within, key)) = &self.page.next.within
            && *within == at
        {
            from = from.max(key.clone());
        }
        let to = removal.to.clone().min(self.range.to.clone());
        let visits = self.most.visits.saturating_sub(self.visits);
        let mut most = PageLimits::keys_of(visits, limits::PAGE_SCAN_BYTES_MAX);
        most.rows = self.most.changes.max(1).saturating_sub(self.page.changes.len());
        if from <= to && (visits == 0 || most.rows == 0) && self.visits > 0 {
            self.page.next = FeedPosition::before(at, from);
            return Ok(false);
        }
        let before = Reader::new(self.rows, ReadView::before(at), self.pending.clone());
        let found = before.range(&from, &to, most)?;
        self.visits += found.visited;
        let mut rest = found.next;
        for Row { key, .. } in found.rows {
            self.bytes += key.len();
            let is_full =
                self.page.changes.len() >= self.most.changes.max(1) || self.bytes > self.most.bytes;
            if is_full && !self.page.changes.is_empty() {
                rest = Some(key);
                break;
            }
            let change = self.change(at, key, None)?;
            self.page.changes.push(change);
        }
        match rest {
            Some(key) => {
                self.page.next = FeedPosition::before(at, key);
                Ok(false)
            }
            None => {
                self.page.next = FeedPosition::after(at);
                Ok(true)
            }
        }
    }

    fn change(
        &mut self,
        at: Timestamp,
        key: Bytes,
        written: Option<Version>,
    ) -> Result<KeyChange, ApplyError> {
        let previous = match self.tells_previous {
            true => Some(self.previous(at, &key)?),
            false => None,
        };
        Ok(KeyChange { at, key, written, previous })
    }

    /// What a key had just before a time, which the horizon does not exceed.
    fn previous(&mut self, at: Timestamp, key: &[u8]) -> Result<Previous, ApplyError> {
        let before = Reader::new(self.rows, ReadView::before(at), self.pending.clone());
        let found = before.get_with(key, |value| {
            let is_small = value.bytes() <= limits::READ_SMALL_BYTES_MAX;
            self.bytes += if is_small { value.bytes() } else { 0 };
            is_small.then(|| value.read()).transpose()
        })?;
        Ok(match found {
            None => Previous::Absent,
            Some((KeyState { version, facts }, value)) => {
                Previous::Value { timestamp: version, facts, value }
            }
        })
    }
}
