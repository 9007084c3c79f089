//! Keys of the engine's rows: encodings whose byte order is the order that scans need.
//!
//! The first byte names the key space. A version's row follows it with the user's key, in which
//! every zero byte is followed by `FF`, then the terminator `00 00`, then the timestamp inverted,
//! so that the newest version of a key comes first:
//!
//! ```text
//! version := 01 | escaped key | 00 00 | eight bytes, big-endian: !(timestamp as ordered u64)
//! session := 02 | client id, eight bytes, big-endian
//! meta    := 03 | name
//! ```
//!
//! A key that is a prefix of another sorts before it, as the terminator's second zero is less than
//! any `FF` and its first less than or equal to any byte.

use bytes::Bytes;

use crate::types::{ClientId, Timestamp};

const SPACE_VERSIONS: u8 = 1;
const SPACE_SESSIONS: u8 = 2;
const SPACE_META: u8 = 3;

const ESCAPE: u8 = 0x00;
const ESCAPED_ZERO: u8 = 0xff;
const TERMINATOR: u8 = 0x00;
const TIMESTAMP_BYTES: usize = 8;
const SIGN_BIT: u64 = 1 << 63;

/// A row's key that is not of this encoding: the engine's file is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row's key is not in the encoding of this release")]
pub struct KeyError;

/// A range of row keys: the first included, the last excluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRange {
    /// The first key.
    pub start: Bytes,
    /// One past the last key.
    pub end: Bytes,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySpace {
    /// A version of a key.
    Versions,
    /// A client's session.
    Sessions,
    /// A fact about the store itself.
    Meta,
}

/// The key space of a row; `None` when it is of none.
pub fn space(row: &[u8]) -> Option<KeySpace> {
    match row.first() {
        Some(&SPACE_VERSIONS) => Some(KeySpace::Versions),
        Some(&SPACE_SESSIONS) => Some(KeySpace::Sessions),
        Some(&SPACE_META) => Some(KeySpace::Meta),
        _ => None,
    }
}

/// All rows.
pub fn all() -> RowRange {
    RowRange {
        start: Bytes::from_static(&[SPACE_VERSIONS]),
        end: Bytes::from_static(&[SPACE_META + 1]),
    }
}

/// The row of one version of a key.
pub fn version(key: &[u8], timestamp: Timestamp) -> Bytes {
    let mut row = version_prefix(key);
    row.extend_from_slice(&(!(timestamp.0 as u64 ^ SIGN_BIT)).to_be_bytes());
    row.into()
}

/// The rows of all versions of a key, newest first.
pub fn versions(key: &[u8]) -> RowRange {
    let start = version_prefix(key);
    let mut end = start.clone();
    // The prefix ends with the terminator: one more there is past all its timestamps and before
    // every other key.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    RowRange { start: start.into(), end: end.into() }
}

fn version_prefix(key: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(1 + key.len() + 2 + TIMESTAMP_BYTES);
    row.push(SPACE_VERSIONS);
    for &byte in key {
        row.push(byte);
        if byte == ESCAPE {
            row.push(ESCAPED_ZERO);
        }
    }
    row.extend_from_slice(&[ESCAPE, TERMINATOR]);
    row
}

/// The user's key and the timestamp of a version's row.
///
/// # Errors
///
/// [`KeyError`] when the row is not a version's.
pub fn decode_version(row: &[u8]) -> Result<(Vec<u8>, Timestamp), KeyError> {
    let (&[SPACE_VERSIONS], escaped) = row.split_first_chunk::<1>().ok_or(KeyError)? else {
        return Err(KeyError);
    };
    let (escaped, timestamp) = escaped.split_last_chunk::<TIMESTAMP_BYTES>().ok_or(KeyError)?;
    let escaped = escaped.strip_suffix(&[ESCAPE, TERMINATOR]).ok_or(KeyError)?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut bytes = escaped.iter();
    while let Some(&byte) = bytes.next() {
        if byte == ESCAPE && bytes.next() != Some(&ESCAPED_ZERO) {
            return Err(KeyError);
        }
        key.push(byte);
    }
    Ok((key, decode_timestamp(*timestamp)))
}

/// The timestamp of a version's row, without decoding its key.
///
/// # Errors
///
/// [`KeyError`] when the row is not a version's.
pub fn version_timestamp(row: &[u8]) -> Result<Timestamp, KeyError> {
    match row.split_last_chunk::<TIMESTAMP_BYTES>() {
        Some((prefix, timestamp)) if prefix.first() == Some(&SPACE_VERSIONS) => {
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
        let rows = [version(&[0xff; 9], Timestamp(0)), session(ClientId(u64::MAX)), meta("a")];
        assert!(rows.is_sorted());
        assert!((sessions().start..sessions().end).contains(&rows[1]));
        assert_eq!(decode_session(&rows[1]), Ok(ClientId(u64::MAX)));
        assert_eq!(decode_session(&rows[2]), Err(KeyError));
        let spaces = [KeySpace::Versions, KeySpace::Sessions, KeySpace::Meta].map(Some);
        assert_eq!(rows.each_ref().map(|row| space(row)), spaces);
        assert_eq!([space(b""), space(&[0]), space(&[4])], [None; 3]);
        assert!(rows.iter().all(|row| (all().start..all().end).contains(row)));
    }
}
