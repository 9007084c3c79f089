//! What transactions see of the versions: the reads that `model` evaluates them with.
//!
//! Ranges are looked through without their values, and each value that is wanted is then looked up
//! by itself: a transaction wants few.

use super::apply::ApplyError;
use super::versions::{PageLimits, Reader};
use crate::model::{KeyState, Row, TxnFound, TxnFoundKeys, TxnRange, TxnReads, Version};

/// How many rows a read as of a time may look at for each that it shows: those of later
/// writes, among them the transaction's own, lie above what it shows, and so may removed keys.
const ROWS_PER_SHOWN_ROW: usize = 16;

/// One read view, as a transaction sees it.
pub(super) struct TxnReader<'a> {
    reader: Reader<'a>,
    counts: CountedRows,
}

/// The rows that a transaction's bound is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CountedRows {
    /// All that are looked at, the same on all replicas that apply the entry.
    LookedAt,
    /// Those that are shown, the same whenever the same time is read as of. What was written since
    /// is looked at, too, up to a bound that is met only where very much was.
    Shown,
}

impl<'a> TxnReader<'a> {
    /// Reads the newest state, to decide what a transaction does.
    pub fn deciding(reader: Reader<'a>) -> TxnReader<'a> {
        TxnReader { reader, counts: CountedRows::LookedAt }
    }

    /// Reads the state as of a time, to tell what a transaction has found.
    pub fn telling(reader: Reader<'a>) -> TxnReader<'a> {
        TxnReader { reader, counts: CountedRows::Shown }
    }
}

impl TxnReads for TxnReader<'_> {
    type Error = ApplyError;

    fn state(&self, key: &[u8]) -> Result<Option<KeyState>, ApplyError> {
        self.reader.state(key)
    }

    fn version(&self, key: &[u8], value_bytes_max: usize) -> Result<Option<TxnFound>, ApplyError> {
        let found = self.reader.get_with(key, |value| {
            let is_wanted = value.bytes() <= value_bytes_max;
            Ok((value.bytes(), is_wanted.then(|| value.read()).transpose()?))
        })?;
        Ok(found.map(|(state, (value_bytes, value))| TxnFound { state, value_bytes, value }))
    }

    fn keys(&self, wanted: TxnRange<'_>) -> Result<TxnFoundKeys, ApplyError> {
        let TxnRange { from, to, reverse, keys_max, rows_max, bytes_max } = wanted;
        let (rows, visits, bytes) = match self.counts {
            CountedRows::LookedAt => (keys_max, rows_max, bytes_max),
            // What is told of was decided within that bound.
            CountedRows::Shown => {
                (keys_max.min(rows_max), rows_max.saturating_mul(ROWS_PER_SHOWN_ROW), usize::MAX)
            }
        };
        let most = PageLimits { rows, ..PageLimits::keys_of(visits, bytes) };
        let found = match reverse {
            false => self.reader.range(from, to, most)?,
            true => self.reader.range_reverse(from, to, most)?,
        };
        let keys = found.rows.into_iter().filter_map(|Row { key, found }| {
            // Rows of pages have a version, and that has facts.
            let Version { timestamp, facts, .. } = found?;
            Some((key, KeyState { version: timestamp, facts: facts? }))
        });
        let (keys, is_whole) = (keys.collect::<Vec<_>>(), found.next.is_none());
        let rows = match self.counts {
            CountedRows::LookedAt => found.visited,
            // What is looked at and not shown is bounded for all reads together.
            CountedRows::Shown => keys.len().max(found.visited.div_ceil(ROWS_PER_SHOWN_ROW)),
        };
        Ok(TxnFoundKeys { keys, rows, is_whole })
    }
}
