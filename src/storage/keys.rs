//! Keys of the engine's rows: encodings whose byte order is the order that scans need.
//!
//! The first byte names the key space. A version's row follows it with the user's key, in which
//! every zero byte is followed by `FF`, then the terminator `00 00`, then the timestamp inverted,
//! so that the newest version of a key comes first:
//!
//! ```text
//! version := 01 | escaped key | 00 00 | newest first
//! session := 02 | client id, eight bytes, big-endian
//! meta    := 03 | name
//! removal := 04 | escaped key | 00 00 | newest first
//! range   := 05 | oldest first
//! queued  := 06 | oldest first | key
//! change  := 07 | oldest first | key
//! lease   := 08 | id, eight bytes, big-endian
//! lease key := 09 | id, eight bytes, big-endian | key
//!
//! oldest first := eight bytes, big-endian: timestamp as ordered u64
//! newest first := the same, inverted
//! ```
//!
//! `storage::removals` describes removals, ranges and queued rows, and `storage::feed` changes.
//!
//! A key that is a prefix of another sorts before it, as the terminator's second zero is less than
//! any `FF` and its first less than or equal to any byte.

use bytes::Bytes;

use crate::limits;
use crate::model::{ClientId, LeaseId, Timestamp};

const SPACE_VERSIONS: u8 = 1;
const SPACE_SESSIONS: u8 = 2;
const SPACE_META: u8 = 3;
const SPACE_REMOVALS: u8 = 4;
const SPACE_RANGES: u8 = 5;
const SPACE_QUEUE: u8 = 6;
const SPACE_CHANGES: u8 = 7;
const SPACE_LEASES: u8 = 8;
const SPACE_LEASE_KEYS: u8 = 9;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const TERMINATOR: u8 = 0x00;
const TIMESTAMP_BYTES: usize = 8;
const SIGN_BIT: u64 = 1 << 63;

/// A row's key is not of this encoding: the engine's file is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row's key is not in the encoding of this release")]
pub struct KeyError;

/// A range of row keys: the first included, the last excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRange {
    pub start: Bytes,
    /// The key after the last one.
    pub end: Bytes,
}

/// The key space of a row, which tells what the row describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpace {
    /// A version of a key.
    Versions,
    Sessions,
    /// A fact about the store itself.
    Meta,
    /// A removal of a key, ordered by key.
    Removals,
    /// A removal of a range of keys.
    Ranges,
    /// A removal of a key, ordered by time.
    Queue,
    /// A version or a tombstone of a key, ordered by time.
    Changes,
    Leases,
    /// A key that goes with a lease.
    LeaseKeys,
}

/// The key space of a row; `None` if it belongs to none.
pub fn space(row: &[u8]) -> Option<KeySpace> {
    match row.first() {
        Some(&SPACE_VERSIONS) => Some(KeySpace::Versions),
        Some(&SPACE_SESSIONS) => Some(KeySpace::Sessions),
        Some(&SPACE_META) => Some(KeySpace::Meta),
        Some(&SPACE_REMOVALS) => Some(KeySpace::Removals),
        Some(&SPACE_RANGES) => Some(KeySpace::Ranges),
        Some(&SPACE_QUEUE) => Some(KeySpace::Queue),
        Some(&SPACE_CHANGES) => Some(KeySpace::Changes),
        Some(&SPACE_LEASES) => Some(KeySpace::Leases),
        Some(&SPACE_LEASE_KEYS) => Some(KeySpace::LeaseKeys),
        _ => None,
    }
}

/// Every row that an engine can have, also of no encoding: keys are shorter than 64 KiB, and none
/// is greater than so many of the greatest byte.
pub(super) fn every_row() -> RowRange {
    RowRange { start: Bytes::new(), end: vec![0xff; 1 << 16].into() }
}

pub fn all() -> RowRange {
    RowRange {
        start: Bytes::from_static(&[SPACE_VERSIONS]),
        end: Bytes::from_static(&[SPACE_LEASE_KEYS + 1]),
    }
}

/// The row of one version of a key.
pub fn version(key: &[u8], timestamp: Timestamp) -> Bytes {
    newest_first(prefix(SPACE_VERSIONS, key), timestamp)
}

/// Appends the row of [`version`].
pub(super) fn put_version(key: &[u8], timestamp: Timestamp, out: &mut Vec<u8>) {
    put_prefix(SPACE_VERSIONS, key, out);
    put_newest_first(timestamp, out);
}

/// The rows of all versions of a key, newest first.
#[cfg(any(test, feature = "internals"))]
pub fn versions(key: &[u8]) -> RowRange {
    let start = prefix(SPACE_VERSIONS, key);
    RowRange { end: after(&start), start: start.into() }
}

/// The rows of a key's versions up to `newest`.
pub fn versions_up_to(key: &[u8], newest: Timestamp) -> RowRange {
    versions_from(version(key, newest))
}

/// The row of a version, and those of the older versions of its key.
pub fn versions_from(row: Bytes) -> RowRange {
    RowRange { end: after(version_prefix(&row)), start: row }
}

/// The rows of the versions of all keys from `from` to `to`, both included.
pub fn versions_between(from: &[u8], to: &[u8]) -> RowRange {
    let start = prefix(SPACE_VERSIONS, from).into();
    RowRange { start, end: after(&prefix(SPACE_VERSIONS, to)) }
}

/// The rows of all versions of all keys.
pub fn all_versions() -> RowRange {
    space_rows(SPACE_VERSIONS)
}

/// One row, as a range.
pub fn only(row: &Bytes) -> RowRange {
    RowRange { start: row.clone(), end: [&row[..], &[0]].concat().into() }
}

/// Appends the key after all versions of the key that this row is a version of.
pub(super) fn put_after_version(row: &[u8], out: &mut Vec<u8>) {
    put_after(version_prefix(row), out);
}

/// A version's row without its timestamp: the same for all versions of a key, and for no other's.
pub fn version_prefix(row: &[u8]) -> &[u8] {
    &row[..row.len().saturating_sub(TIMESTAMP_BYTES)]
}

/// Whether a row without its timestamp ends as those of versions do.
pub(super) fn is_version_prefix(prefix: &[u8]) -> bool {
    prefix.ends_with(&[ESCAPE, TERMINATOR])
}

/// A row of a version or of a removal without its timestamp, any other row as it is. The rows of
/// one key and one space have this in common, with each other alone.
pub(super) fn without_timestamp(row: &[u8]) -> &[u8] {
    up_to_terminator(row).unwrap_or(row)
}

/// The row of a range that can have one row alone.
pub(super) fn single(range: &RowRange) -> Option<&[u8]> {
    (range.end.strip_prefix(&range.start[..]) == Some(&[0])).then_some(&range.start)
}

/// What the filters of tables know of a row, which is [`without_timestamp`] it. Of a change row
/// they know nothing (`None`): there is one for each version, and nobody looks for a single one.
pub(super) fn in_filter(row: &[u8]) -> Option<&[u8]> {
    (row.first() != Some(&SPACE_CHANGES)).then(|| without_timestamp(row))
}

/// What [`in_filter`] is of every row that can be in a range, if it is the same for all: of the
/// versions or the removals of one key, and of a single row.
pub(super) fn common_to(range: &RowRange) -> Option<&[u8]> {
    match up_to_terminator(&range.start) {
        Some(common) if range.end <= after(common) => Some(common),
        _ => in_filter(single(range)?),
    }
}

fn up_to_terminator(row: &[u8]) -> Option<&[u8]> {
    match row.split_first() {
        // The first two zeroes are the terminator: in the escaped key, `FF` follows each zero.
        Some((&(SPACE_VERSIONS | SPACE_REMOVALS), rest)) => {
            let terminator = rest.windows(2).position(|pair| pair == [ESCAPE, TERMINATOR])?;
            Some(&row[..1 + terminator + 2])
        }
        _ => None,
    }
}

/// Appends the row of another version of the key with this [`version_prefix`].
pub(super) fn put_sibling(prefix: &[u8], timestamp: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(prefix);
    put_newest_first(timestamp, out);
}

/// The row of the removal of a key at a time.
pub fn removal(key: &[u8], at: Timestamp) -> Bytes {
    newest_first(prefix(SPACE_REMOVALS, key), at)
}

/// The rows of a key's removals later than `after` and not later than `until`.
pub fn removals(key: &[u8], after: Timestamp, until: Timestamp) -> RowRange {
    RowRange { start: removal(key, until), end: removal(key, after) }
}

/// The time of a removal's row.
///
/// # Errors
///
/// [`KeyError`] when the row is not a removal's.
pub fn removal_timestamp(row: &[u8]) -> Result<Timestamp, KeyError> {
    trailing_timestamp(SPACE_REMOVALS, row)
}

/// The row of the removal of a range.
pub fn range(at: Timestamp) -> Bytes {
    oldest_first(SPACE_RANGES, at).into()
}

/// The rows of all removals of ranges, oldest first.
pub fn ranges() -> RowRange {
    space_rows(SPACE_RANGES)
}

/// The time of the row of a range's removal.
///
/// # Errors
///
/// [`KeyError`] when the row is not such a row.
pub fn decode_range(row: &[u8]) -> Result<Timestamp, KeyError> {
    match decode_oldest_first(SPACE_RANGES, row)? {
        (at, []) => Ok(at),
        _ => Err(KeyError),
    }
}

/// The row by which a key's removal is found in order of time.
pub fn queued(at: Timestamp, key: &[u8]) -> Bytes {
    oldest_first_of(SPACE_QUEUE, at, key).into()
}

/// The rows of all removals of keys, oldest first.
pub fn queue() -> RowRange {
    space_rows(SPACE_QUEUE)
}

/// Those of removals that are not older than `from`.
pub fn queue_from(from: Timestamp) -> RowRange {
    RowRange { start: oldest_first(SPACE_QUEUE, from).into(), ..queue() }
}

/// The time and the key of a row of [`queue`].
///
/// # Errors
///
/// [`KeyError`] if the row is not one.
pub fn decode_queued(row: &[u8]) -> Result<(Timestamp, &[u8]), KeyError> {
    decode_oldest_first(SPACE_QUEUE, row)
}

/// The row by which a version of a key, or its tombstone, is found in order of time.
pub fn change(at: Timestamp, key: &[u8]) -> Bytes {
    oldest_first_of(SPACE_CHANGES, at, key).into()
}

/// Appends the row of [`change`].
pub(super) fn put_change(at: Timestamp, key: &[u8], out: &mut Vec<u8>) {
    put_oldest_first(SPACE_CHANGES, at, key, out);
}

/// The rows of all changes, oldest first.
pub fn all_changes() -> RowRange {
    space_rows(SPACE_CHANGES)
}

/// The rows of the changes later than `after` and not later than `until`.
pub fn changes(after: Timestamp, until: Timestamp) -> RowRange {
    RowRange { start: after_time(after), end: after_time(until) }
}

/// The key after the rows of all changes up to this time.
fn after_time(at: Timestamp) -> Bytes {
    match at.0.checked_add(1) {
        Some(next) => oldest_first(SPACE_CHANGES, Timestamp(next)).into(),
        None => all_changes().end,
    }
}

/// The time and the key of a row of [`all_changes`].
///
/// # Errors
///
/// [`KeyError`] if the row is not one.
pub fn decode_change(row: &[u8]) -> Result<(Timestamp, &[u8]), KeyError> {
    decode_oldest_first(SPACE_CHANGES, row)
}

/// The row of a lease.
pub fn lease(id: LeaseId) -> Bytes {
    of_lease(SPACE_LEASES, id).into()
}

/// The rows of all leases, by their ids.
pub fn leases() -> RowRange {
    space_rows(SPACE_LEASES)
}

/// The id of a lease's row.
///
/// # Errors
///
/// [`KeyError`] if the row is not one.
pub fn decode_lease(row: &[u8]) -> Result<LeaseId, KeyError> {
    match decode_of_lease(SPACE_LEASES, row)? {
        (id, []) => Ok(id),
        _ => Err(KeyError),
    }
}

/// The row of a key that goes with a lease.
pub fn lease_key(id: LeaseId, key: &[u8]) -> Bytes {
    let mut row = of_lease(SPACE_LEASE_KEYS, id);
    row.extend_from_slice(key);
    row.into()
}

/// The rows of all keys that go with a lease, by key.
pub fn lease_keys(id: LeaseId) -> RowRange {
    let end = match id.0.checked_add(1) {
        Some(next) => of_lease(SPACE_LEASE_KEYS, LeaseId(next)),
        None => vec![SPACE_LEASE_KEYS + 1],
    };
    RowRange { start: of_lease(SPACE_LEASE_KEYS, id).into(), end: end.into() }
}

/// The lease and the key of a row of [`lease_keys`].
///
/// # Errors
///
/// [`KeyError`] if the row is not one.
pub fn decode_lease_key(row: &[u8]) -> Result<(LeaseId, &[u8]), KeyError> {
    decode_of_lease(SPACE_LEASE_KEYS, row)
}

fn of_lease(space: u8, id: LeaseId) -> Vec<u8> {
    let mut row = vec![space];
    row.extend_from_slice(&id.0.to_be_bytes());
    row
}

fn decode_of_lease(space: u8, row: &[u8]) -> Result<(LeaseId, &[u8]), KeyError> {
    let rest = row.strip_prefix(&[space]).ok_or(KeyError)?;
    let (id, rest) = rest.split_first_chunk::<8>().ok_or(KeyError)?;
    Ok((LeaseId(u64::from_be_bytes(*id)), rest))
}

fn space_rows(space: u8) -> RowRange {
    RowRange { start: vec![space].into(), end: vec![space + 1].into() }
}

fn oldest_first(space: u8, at: Timestamp) -> Vec<u8> {
    oldest_first_of(space, at, &[])
}

/// A row of its exact length, so that it is allocated once.
fn oldest_first_of(space: u8, at: Timestamp, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + TIMESTAMP_BYTES + key.len());
    put_oldest_first(space, at, key, &mut row);
    row
}

fn put_oldest_first(space: u8, at: Timestamp, key: &[u8], out: &mut Vec<u8>) {
    out.push(space);
    out.extend_from_slice(&(at.0 as u64 ^ SIGN_BIT).to_be_bytes());
    out.extend_from_slice(key);
}

fn decode_oldest_first(space: u8, row: &[u8]) -> Result<(Timestamp, &[u8]), KeyError> {
    let rest = row.strip_prefix(&[space]).ok_or(KeyError)?;
    let (at, rest) = rest.split_first_chunk::<TIMESTAMP_BYTES>().ok_or(KeyError)?;
    Ok((Timestamp((u64::from_be_bytes(*at) ^ SIGN_BIT) as i64), rest))
}

fn newest_first(mut prefix: Vec<u8>, timestamp: Timestamp) -> Bytes {
    put_newest_first(timestamp, &mut prefix);
    prefix.into()
}

fn put_newest_first(timestamp: Timestamp, out: &mut Vec<u8>) {
    out.extend_from_slice(&(!(timestamp.0 as u64 ^ SIGN_BIT)).to_be_bytes());
}

/// The key after every row that begins with `prefix`, which ends with the terminator: with one more
/// there it is after all timestamps and before every other key.
fn after(prefix: &[u8]) -> Bytes {
    let mut end = Vec::with_capacity(prefix.len());
    put_after(prefix, &mut end);
    end.into()
}

/// Rows of a damaged store may have no terminator, and end with any byte.
fn put_after(prefix: &[u8], out: &mut Vec<u8>) {
    let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
    if let Some(last) = kept {
        out.extend_from_slice(&prefix[..last]);
        out.push(prefix[last] + 1);
    }
}

fn prefix(space: u8, key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len() + 2 + TIMESTAMP_BYTES);
    put_prefix(space, key, &mut row);
    row
}

fn put_prefix(space: u8, key: &[u8], out: &mut Vec<u8>) {
    out.push(space);
    let mut rest = key;
    while let Some(zero) = rest.iter().position(|byte| *byte == ESCAPE) {
        let (unescaped, after_zero) = rest.split_at(zero + 1);
        out.extend_from_slice(unescaped);
        out.push(ESCAPED_ZERO);
        rest = after_zero;
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[ESCAPE, TERMINATOR]);
}

/// Bytes of the longest row key there can be: that of a key of as many zeros as a key may have
/// bytes, each of which is escaped.
pub const ROW_KEY_BYTES_MAX: usize = 1 + 2 * limits::KEY_BYTES_MAX + 2 + TIMESTAMP_BYTES;

/// The user's key and the timestamp of a version's row.
///
/// # Errors
///
/// [`KeyError`] when the row is not a version's.
pub fn decode_version(row: &[u8]) -> Result<(Vec<u8>, Timestamp), KeyError> {
    let mut key = Vec::new();
    let timestamp = decode_version_to(row, &mut key)?;
    Ok((key, timestamp))
}

/// The timestamp of a version's row, and the user's key in place of what `key` has held.
///
/// # Errors
///
/// [`KeyError`] when the row is not a version's.
pub fn decode_version_to(row: &[u8], key: &mut Vec<u8>) -> Result<Timestamp, KeyError> {
    decode_keyed(SPACE_VERSIONS, row, key)
}

/// The user's key and the time of a removal's row.
///
/// # Errors
///
/// [`KeyError`] when the row is not a removal's.
pub fn decode_removal(row: &[u8]) -> Result<(Vec<u8>, Timestamp), KeyError> {
    let mut key = Vec::new();
    let timestamp = decode_keyed(SPACE_REMOVALS, row, &mut key)?;
    Ok((key, timestamp))
}

fn decode_keyed(space: u8, row: &[u8], key: &mut Vec<u8>) -> Result<Timestamp, KeyError> {
    let escaped = row.strip_prefix(&[space]).ok_or(KeyError)?;
    let (escaped, timestamp) = escaped.split_last_chunk::<TIMESTAMP_BYTES>().ok_or(KeyError)?;
    let escaped = escaped.strip_suffix(&[ESCAPE, TERMINATOR]).ok_or(KeyError)?;
    key.clear();
    key.reserve(escaped.len());
    let mut rest = escaped;
    while let Some(zero) = rest.iter().position(|byte| *byte == ESCAPE) {
        let (unescaped, escaped_zero) = rest.split_at(zero + 1);
        key.extend_from_slice(unescaped);
        rest = escaped_zero.strip_prefix(&[ESCAPED_ZERO]).ok_or(KeyError)?;
    }
    key.extend_from_slice(rest);
    Ok(decode_timestamp(*timestamp))
}

/// The timestamp of a version's row, without decoding its key.
///
/// # Errors
///
/// [`KeyError`] when the row is not a version's.
pub fn version_timestamp(row: &[u8]) -> Result<Timestamp, KeyError> {
    trailing_timestamp(SPACE_VERSIONS, row)
}

fn trailing_timestamp(space: u8, row: &[u8]) -> Result<Timestamp, KeyError> {
    match row.split_last_chunk::<TIMESTAMP_BYTES>() {
        Some((prefix, timestamp)) if prefix.first() == Some(&space) => {
            Ok(decode_timestamp(*timestamp))
        }
        _ => Err(KeyError),
    }
}

fn decode_timestamp(bytes: [u8; TIMESTAMP_BYTES]) -> Timestamp {
    Timestamp((!u64::from_be_bytes(bytes) ^ SIGN_BIT) as i64)
}

/// The row of a client's session.
pub fn session(client: ClientId) -> Bytes {
    let mut row = vec![SPACE_SESSIONS];
    row.extend_from_slice(&client.0.to_be_bytes());
    row.into()
}

/// The rows of all sessions.
pub fn sessions() -> RowRange {
    RowRange {
        start: Bytes::from_static(&[SPACE_SESSIONS]),
        end: Bytes::from_static(&[SPACE_SESSIONS + 1]),
    }
}

/// The client of a session's row.
///
/// # Errors
///
/// [`KeyError`] when the row is not a session's.
pub fn decode_session(row: &[u8]) -> Result<ClientId, KeyError> {
    match row.split_first() {
        Some((&SPACE_SESSIONS, client)) => {
            let client = client.try_into().map_err(|_| KeyError)?;
            Ok(ClientId(u64::from_be_bytes(client)))
        }
        _ => Err(KeyError),
    }
}

/// The row of one fact about the store itself.
pub fn meta(name: &str) -> Bytes {
    let mut row = vec![SPACE_META];
    row.extend_from_slice(name.as_bytes());
    row.into()
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;

    use proptest::prelude::*;

    use super::*;

    /// Keys in which zeroes, `FF`s and shared prefixes are frequent.
    fn awkward_key() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 0..6)
    }

    proptest! {
        #[test]
        fn rows_sort_by_key_and_then_newest_first(
            (a, b) in (awkward_key(), awkward_key()),
            (at, bt) in (any::<i64>(), any::<i64>()),
        ) {
            let rows = version(&a, Timestamp(at)).cmp(&version(&b, Timestamp(bt)));
            prop_assert_eq!(rows, (&a, Reverse(at)).cmp(&(&b, Reverse(bt))));
        }

        #[test]
        fn rows_decode_to_what_was_encoded(key in awkward_key(), timestamp in any::<i64>()) {
            let timestamp = Timestamp(timestamp);
            let row = version(&key, timestamp);
            prop_assert_eq!(version_timestamp(&row), Ok(timestamp));
            let mut rows = Vec::new();
            put_version(&key, timestamp, &mut rows);
            put_change(timestamp, &key, &mut rows);
            prop_assert_eq!(rows, [&row[..], &change(timestamp, &key)].concat());
            prop_assert_eq!(decode_version(&row), Ok((key, timestamp)));
        }

        #[test]
        fn a_keys_range_holds_its_versions_and_no_others(
            (a, b) in (awkward_key(), awkward_key()),
            timestamp in any::<i64>(),
        ) {
            let range = versions(&a);
            let row = version(&b, Timestamp(timestamp));
            prop_assert_eq!((range.start..range.end).contains(&row), a == b);
            let of_a = version(&a, Timestamp(0));
            prop_assert_eq!(version_prefix(&row) == version_prefix(&of_a), a == b);
            let mut past = Vec::new();
            put_after_version(&of_a, &mut past);
            prop_assert_eq!(row[..] < past[..], b <= a);
        }

        #[test]
        fn a_range_of_keys_holds_the_versions_of_the_keys_within(
            (from, to, key) in (awkward_key(), awkward_key(), awkward_key()),
            timestamp in any::<i64>(),
        ) {
            let range = versions_between(&from, &to);
            let row = version(&key, Timestamp(timestamp));
            prop_assert_eq!((range.start..range.end).contains(&row), from <= key && key <= to);
        }

        #[test]
        fn a_keys_versions_up_to_one_are_those_not_newer(
            key in awkward_key(),
            (newest, timestamp) in (any::<i64>(), any::<i64>()),
        ) {
            let range = versions_up_to(&key, Timestamp(newest));
            let row = version(&key, Timestamp(timestamp));
            prop_assert_eq!((range.start..range.end).contains(&row), timestamp <= newest);
        }

        #[test]
        fn rows_of_a_key_have_in_common_what_no_other_row_has(
            (a, b) in (awkward_key(), awkward_key()),
            (at, bt) in (any::<i64>(), any::<i64>()),
        ) {
            let rows = |key: &[u8], at| {
                let at = Timestamp(at);
                [version(key, at), removal(key, at), queued(at, key), meta("a")]
            };
            for (one, a_row) in rows(&a, at).iter().enumerate() {
                let range = only(a_row);
                prop_assert_eq!(single(&range), Some(&a_row[..]));
                prop_assert_eq!(common_to(&range), Some(without_timestamp(a_row)));
                for (other, b_row) in rows(&b, bt).iter().enumerate() {
                    let is_same = one == other && (one == 3 || a == b && (one < 2 || at == bt));
                    let common = without_timestamp(a_row) == without_timestamp(b_row);
                    prop_assert_eq!(common, is_same, "{:?} {:?}", a_row, b_row);
                }
            }
            let changed = change(Timestamp(at), &a);
            let one = only(&changed);
            prop_assert_eq!((in_filter(&changed), common_to(&one)), (None, None));
            let versions = versions_up_to(&a, Timestamp(at));
            prop_assert_eq!(common_to(&versions), Some(version_prefix(&versions.start)));
            let removed = removals(&a, Timestamp(at), Timestamp(bt));
            prop_assert_eq!(common_to(&removed), Some(without_timestamp(&removed.start)));
            let between = versions_between(&a, &b);
            prop_assert_eq!(common_to(&between).is_some(), b <= a);
        }

        /// Also for rows that are of no encoding: the engine takes any bytes.
        #[test]
        fn what_is_common_to_a_range_is_common_to_each_row_in_it(
            mut rows in prop::collection::vec(
                prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(4), Just(255)], 0..7),
                3,
            ),
        ) {
            rows.sort();
            let [start, row, end] = &rows[..] else { unreachable!() };
            let range = RowRange { start: start.clone().into(), end: end.clone().into() };
            if row < end && let Some(common) = common_to(&range) {
                prop_assert_eq!(common, without_timestamp(row));
            }
        }

        #[test]
        fn removals_are_found_by_key_and_by_time(
            (a, b) in (awkward_key(), awkward_key()),
            (from, until, at) in (any::<i64>(), any::<i64>(), any::<i64>()),
        ) {
            let found = removals(&a, Timestamp(from), Timestamp(until));
            let row = removal(&b, Timestamp(at));
            let within = a == b && from < at && at <= until;
            prop_assert_eq!((found.start..found.end).contains(&row), within);
            prop_assert_eq!(removal_timestamp(&row), Ok(Timestamp(at)));
            prop_assert_eq!(decode_removal(&row), Ok((b.clone(), Timestamp(at))));
            let row = queued(Timestamp(at), &b);
            prop_assert!((queue().start..queue().end).contains(&row));
            let later = queue_from(Timestamp(from));
            prop_assert_eq!((later.start..later.end).contains(&row), from <= at);
            prop_assert_eq!(decode_queued(&row), Ok((Timestamp(at), &b[..])));
            prop_assert_eq!(queued(Timestamp(from), &a).cmp(&row), (from, &a).cmp(&(at, &b)));
            let row = change(Timestamp(at), &b);
            prop_assert!((all_changes().start..all_changes().end).contains(&row));
            let within = changes(Timestamp(from), Timestamp(until));
            let is_within = from < at && at <= until;
            prop_assert_eq!((within.start..within.end).contains(&row), is_within);
            prop_assert_eq!(decode_change(&row), Ok((Timestamp(at), &b[..])));
            prop_assert_eq!(change(Timestamp(from), &a).cmp(&row), (from, &a).cmp(&(at, &b)));
            let one = only(&change(Timestamp(from), &a));
            prop_assert_eq!((one.start..one.end).contains(&row), (from, &a) == (at, &b));
            prop_assert_eq!(decode_range(&range(Timestamp(at))), Ok(Timestamp(at)));
            let times = range(Timestamp(from)).cmp(&range(Timestamp(at)));
            prop_assert_eq!(times, from.cmp(&at));
        }

        #[test]
        fn garbage_is_an_error(row in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok((key, timestamp)) = decode_version(&row) {
                prop_assert_eq!(version(&key, timestamp), row);
            }
        }
    }

    #[test]
    fn key_spaces_do_not_overlap() {
        let rows = [
            version(&[0xff; 9], Timestamp(0)),
            session(ClientId(u64::MAX)),
            meta("a"),
            removal(&[0xff; 9], Timestamp(0)),
            range(Timestamp(i64::MAX)),
            queued(Timestamp(i64::MAX), &[0xff; 9]),
            change(Timestamp(i64::MAX), &[0xff; 9]),
            lease(LeaseId(u64::MAX)),
            lease_key(LeaseId(u64::MAX), &[0xff; 9]),
        ];
        assert!(rows.is_sorted());
        assert!((sessions().start..sessions().end).contains(&rows[1]));
        assert_eq!(decode_session(&rows[1]), Ok(ClientId(u64::MAX)));
        assert_eq!(decode_session(&rows[2]), Err(KeyError));
        let spaces = [
            KeySpace::Versions,
            KeySpace::Sessions,
            KeySpace::Meta,
            KeySpace::Removals,
            KeySpace::Ranges,
            KeySpace::Queue,
            KeySpace::Changes,
            KeySpace::Leases,
            KeySpace::LeaseKeys,
        ]
        .map(Some);
        assert_eq!(rows.each_ref().map(|row| space(row)), spaces);
        assert_eq!([space(b""), space(&[0]), space(&[10])], [None; 3]);
        assert!(rows.iter().all(|row| (all().start..all().end).contains(row)));
    }
}
