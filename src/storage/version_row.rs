//! What the row of a version holds: a value with the facts of its key, or a tombstone.
//!
//! The facts come first, within the head of the row ([`VALUE_HEAD_BYTES`]), so that they never cost
//! reading a long value. A row says nothing of its own version, which is in its key: so the
//! timestamp goes along wherever a row is encoded or decoded.
//!
//! What it leaves out: which of the versions of a key is shown (`storage::versions`).

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::engine::{RowValue, VALUE_HEAD_BYTES};
use super::varint::{VARINT_BYTES_MAX, get_varint, put_varint};
use crate::model::{Facts, LeaseId, Timestamp};

/// The kinds of rows, their first byte.
const TOMBSTONE: u8 = 0;
const VALUE: u8 = 1;
const TOMBSTONE_KEEPING_HISTORY: u8 = 2;
/// Bytes of a row before the value: its kind, and the facts.
const ROW_PREFIX_BYTES_MAX: usize = 1 + 3 * VARINT_BYTES_MAX;
// Facts never cost reading a long value.
const _: () = assert!(ROW_PREFIX_BYTES_MAX <= VALUE_HEAD_BYTES);

/// What the row of a version holds.
///
/// ```text
/// row   := 00 | 01 facts value | 02     a tombstone | a value | a tombstone that keeps history
/// facts := age | count | lease          as in `storage::varint`
/// age   := the version's timestamp less that with which the key came into being
/// lease := its number, 0 for none
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StoredVersion<'a> {
    /// The key was deleted at the version's time.
    Tombstone {
        /// What the key had before is shown to reads as of a time before, unless another removal
        /// reaches it. Otherwise the tombstone has a removal, which does (`removals`).
        keeps_history: bool,
    },
    Value {
        facts: Facts,
        /// The value that was written.
        value: &'a [u8],
    },
}

impl<'a> StoredVersion<'a> {
    /// The row of the version `at`.
    pub fn encode(self, at: Timestamp) -> Bytes {
        match self {
            StoredVersion::Tombstone { keeps_history: false } => Bytes::from_static(&[TOMBSTONE]),
            StoredVersion::Tombstone { keeps_history: true } => {
                Bytes::from_static(&[TOMBSTONE_KEEPING_HISTORY])
            }
            StoredVersion::Value { facts, value } => {
                let prefix = RowPrefix::new(facts, at);
                let mut stored = Vec::with_capacity(prefix.length + value.len());
                stored.extend_from_slice(prefix.bytes());
                stored.extend_from_slice(value);
                stored.into()
            }
        }
    }

    /// What the row of the version `at` holds.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Damaged`].
    pub fn decode(stored: &'a [u8], at: Timestamp) -> Result<StoredVersion<'a>, ApplyError> {
        if let Some(keeps_history) = tombstone(stored) {
            return Ok(StoredVersion::Tombstone { keeps_history });
        }
        let mut fields = stored;
        let facts = take_prefix(&mut fields, at).ok_or_else(damaged)?;
        Ok(StoredVersion::Value { facts, value: fields })
    }

    /// Whether a row is a tombstone's.
    pub fn is_tombstone(stored: &[u8]) -> bool {
        tombstone(stored).is_some()
    }
}

/// Whether a tombstone keeps history; `None` for the row of a value.
fn tombstone(stored: &[u8]) -> Option<bool> {
    match stored {
        [TOMBSTONE] => Some(false),
        [TOMBSTONE_KEEPING_HISTORY] => Some(true),
        _ => None,
    }
}

/// The row of a version that a read has come to.
#[derive(Clone, Copy)]
pub(super) enum ReadVersion<'a> {
    /// The key was deleted then: [`StoredVersion::Tombstone`].
    Tombstone { keeps_history: bool },
    /// Its value, which is read when it is asked for.
    Value(VersionValue<'a>),
}

impl<'a> ReadVersion<'a> {
    /// The row of the version `at`.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Damaged`].
    pub fn of(stored: RowValue<'a>, at: Timestamp) -> Result<ReadVersion<'a>, ApplyError> {
        let head = stored.head();
        if let Some(keeps_history) = tombstone(head).filter(|_| stored.bytes() == head.len()) {
            return Ok(ReadVersion::Tombstone { keeps_history });
        }
        let mut fields = head;
        let facts = take_prefix(&mut fields, at).ok_or_else(damaged)?;
        let prefix_bytes = head.len() - fields.len();
        Ok(ReadVersion::Value(VersionValue { stored, facts, prefix_bytes }))
    }

    /// The value, if the row is no tombstone's.
    pub fn value(self) -> Option<VersionValue<'a>> {
        match self {
            ReadVersion::Tombstone { .. } => None,
            ReadVersion::Value(value) => Some(value),
        }
    }
}

/// What is before the value in the row of a version.
pub(super) struct RowPrefix {
    buffer: [u8; ROW_PREFIX_BYTES_MAX],
    length: usize,
}

impl RowPrefix {
    /// That of the version `at`.
    pub fn new(facts: Facts, at: Timestamp) -> RowPrefix {
        let Facts { created, count, lease } = facts;
        assert!(created <= at && count > 0, "the version {at} with {facts:?}");
        let mut buffer = [0; ROW_PREFIX_BYTES_MAX];
        let mut rest = &mut buffer[..];
        rest.put_u8(VALUE);
        put_varint(&mut rest, at.0.abs_diff(created.0));
        put_varint(&mut rest, count);
        put_varint(&mut rest, lease.map_or(0, |lease| lease.0));
        let length = ROW_PREFIX_BYTES_MAX - rest.len();
        RowPrefix { buffer, length }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Takes it from the front of `fields`; `None` for what no [`RowPrefix`] is.
fn take_prefix(fields: &mut &[u8], at: Timestamp) -> Option<Facts> {
    if fields.try_get_u8() != Ok(VALUE) {
        return None;
    }
    let created = Timestamp(at.0.checked_sub_unsigned(get_varint(fields)?)?);
    let count = get_varint(fields).filter(|count| *count > 0)?;
    let lease = Some(get_varint(fields)?).filter(|lease| *lease > 0).map(LeaseId);
    Some(Facts { created, count, lease })
}

/// The value of a version that a read has come to, which is read when it is asked for.
#[derive(Clone, Copy)]
pub(super) struct VersionValue<'a> {
    stored: RowValue<'a>,
    /// What the version says of its key, known without reading the value.
    pub facts: Facts,
    prefix_bytes: usize,
}

impl VersionValue<'_> {
    /// The length of the value.
    pub fn bytes(&self) -> usize {
        self.stored.bytes() - self.prefix_bytes
    }

    /// The value, if it lies beside its key and has at most so many bytes.
    pub fn read_short(&self, bytes_max: usize) -> Result<Option<Bytes>, ApplyError> {
        let is_short = self.bytes() <= bytes_max && matches!(self.stored, RowValue::Inline(_));
        is_short.then(|| self.read()).transpose()
    }

    pub fn read(&self) -> Result<Bytes, ApplyError> {
        let stored = self.stored.read()?;
        if stored.len() < self.prefix_bytes {
            return Err(damaged());
        }
        Ok(match stored {
            Cow::Borrowed(stored) => Bytes::copy_from_slice(&stored[self.prefix_bytes..]),
            Cow::Owned(stored) => Bytes::from(stored).slice(self.prefix_bytes..),
        })
    }
}

fn damaged() -> ApplyError {
    ApplyError::Damaged("a version")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::engine::head_of;

    proptest! {
        /// Whether the value lies beside its key or elsewhere, where its head tells the facts.
        #[test]
        fn a_version_comes_back_from_its_row_and_its_facts_from_the_head(
            (at, age_bits, count, count_bits) in (1..i64::MAX, 0u32..64, any::<u64>(), 0u32..64),
            lease in prop::option::of(1..u64::MAX),
            value in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let created = Timestamp(at - (at as u64 >> age_bits) as i64);
            let (at, count) = (Timestamp(at), (count >> count_bits).max(1));
            let facts = Facts { created, count, lease: lease.map(LeaseId) };
            let stored = StoredVersion::Value { facts, value: &value };
            let row = stored.encode(at);
            prop_assert_eq!(StoredVersion::decode(&row, at).unwrap(), stored);
            prop_assert!(!StoredVersion::is_tombstone(&row));
            let read = || Ok(row.to_vec());
            let head = head_of(&row);
            let elsewhere = RowValue::OutOfLine { bytes: row.len(), head, read: &read };
            for stored in [RowValue::Inline(&row), elsewhere] {
                let shown = ReadVersion::of(stored, at).unwrap().value().unwrap();
                prop_assert_eq!((shown.facts, shown.bytes()), (facts, value.len()));
                prop_assert_eq!(&shown.read().unwrap()[..], &value[..]);
            }
        }

        #[test]
        fn any_bytes_are_a_version_or_a_typed_error(
            row in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..40),
            at in any::<i64>(),
        ) {
            let at = Timestamp(at);
            let decoded = StoredVersion::decode(&row, at);
            let shown = ReadVersion::of(RowValue::Inline(&row), at).map(ReadVersion::value);
            match decoded {
                Ok(StoredVersion::Value { facts, value }) => {
                    prop_assert!(facts.created <= at && facts.count > 0);
                    let shown = shown.unwrap().unwrap();
                    prop_assert_eq!((shown.facts, &shown.read().unwrap()[..]), (facts, value));
                    // In another form, perhaps.
                    let again = StoredVersion::Value { facts, value }.encode(at);
                    prop_assert!(again.len() <= row.len());
                }
                Ok(stored @ StoredVersion::Tombstone { .. }) => {
                    prop_assert!(shown.unwrap().is_none());
                    prop_assert_eq!(&stored.encode(at)[..], &row[..]);
                }
                Err(_) => prop_assert!(shown.is_err()),
            }
        }
    }
}
