//! What transactions see of the versions: the reads that `model` evaluates them with.
//!
//! Ranges are looked through without their values, and each value that is wanted is then looked up
//! by itself: a transaction wants few.

use super::apply::ApplyError;
use super::versions::{PageLimits, Reader};
use crate::model::{KeyState, Row, TxnFound, TxnFoundKeys, TxnRange, TxnReads, Version};

/// One read view, as a transaction sees it.
pub(super) struct TxnReader<'a>(pub Reader<'a>);

impl TxnReads for TxnReader<'_> {
    type Error = ApplyError;

    fn state(&self, key: &[u8]) -> Result<Option<KeyState>, ApplyError> {
        self.0.state(key)
    }

    fn version(&self, key: &[u8], value_bytes_max: usize) -> Result<Option<TxnFound>, ApplyError> {
        let found = self.0.get_with(key, |value| {
            let is_wanted = value.bytes() <= value_bytes_max;
            Ok((value.bytes(), is_wanted.then(|| value.read()).transpose()?))
        })?;
        Ok(found.map(|(state, (value_bytes, value))| TxnFound { state, value_bytes, value }))
    }

    fn keys(&self, wanted: TxnRange<'_>) -> Result<TxnFoundKeys, ApplyError> {
        let TxnRange { from, to, reverse, keys_max, rows_max } = wanted;
        let most = PageLimits { rows: keys_max, ..PageLimits::keys_of(rows_max, usize::MAX) };
        let found = match reverse {
            false => self.0.range(from, to, most)?,
            true => self.0.range_reverse(from, to, most)?,
        };
        let keys = found.rows.into_iter().filter_map(|Row { key, found }| {
            // Rows of pages have a version, and that has facts.
            let Version { timestamp, facts, .. } = found?;
            Some((key, KeyState { version: timestamp, facts: facts? }))
        });
        let (keys, is_whole) = (keys.collect(), found.next.is_none());
        Ok(TxnFoundKeys { keys, rows: found.visited, is_whole })
    }
}
