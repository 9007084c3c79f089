//! What the interface's messages mean to the store, and the store's answers to the interface.

use bytes::Bytes;
use tonic::Status;

use super::interface::{KeyRange, KeyValueVersionReply, PutReply};
use crate::client::ClientError;
use crate::limits;
use crate::text::escape;
use crate::types::Timestamp;
use crate::wire::message::Row;

/// As of which version: none, for the newest, when it is absent, zero or less.
pub(super) fn asked_version(ver: Option<i64>) -> Option<Timestamp> {
    ver.filter(|ver| *ver > 0).map(Timestamp)
}

/// The greater of two, where none is less than any.
pub(super) fn greater(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.max(other)
}

/// Refuses a key that cannot be.
pub(super) fn check_key(key: &str) -> Result<(), Status> {
    match key.len() {
        0 => Err(Status::invalid_argument("the key is empty: give it at least one byte")),
        length if length > limits::KEY_BYTES_MAX => Err(Status::invalid_argument(format!(
            "the key has {length} bytes and at most {} are allowed: use a shorter one",
            limits::KEY_BYTES_MAX
        ))),
        _ => Ok(()),
    }
}

/// A range's ends and version. An end that is left out is an empty key.
pub(super) fn range(range: KeyRange) -> Result<(String, String, Option<Timestamp>), Status> {
    let [from, to] = [range.fr, range.to].map(Option::unwrap_or_default);
    check_key(&from.key)?;
    check_key(&to.key)?;
    let at = greater(asked_version(from.ver), asked_version(to.ver));
    Ok((from.key, to.key, at))
}

/// A row that was read. A key without a value has the version that was asked for.
///
/// # Errors
/// The value is not UTF-8: half an answer would pass for the value.
pub(super) fn read_row(row: Row, asked: Option<Timestamp>) -> Result<KeyValueVersionReply, Status> {
    let Row { key, value, timestamp } = row;
    let Some(value) = value else {
        let ver = asked.unwrap_or_default().0;
        return Ok(KeyValueVersionReply { key: text(key)?, val: String::new(), ver });
    };
    let val = String::from_utf8(value.into()).map_err(|_| {
        Status::failed_precondition(format!(
            "the value of key \"{}\" is not UTF-8, which this interface cannot carry: read it with 'acervo get'",
            escape(&key)
        ))
    })?;
    Ok(KeyValueVersionReply { key: text(key)?, val, ver: timestamp.0 })
}

fn text(key: Bytes) -> Result<String, Status> {
    String::from_utf8(key.into()).map_err(|error| {
        Status::failed_precondition(format!(
            "the key \"{}\" is not UTF-8, which this interface cannot carry: read it with 'acervo getrange'",
            escape(error.as_bytes())
        ))
    })
}

/// What a write removed, or what a trim kept. The write is done, so nothing in it is an error any more: what
/// is not UTF-8 is shown with U+FFFD in its place.
pub(super) fn removed_row(row: Row) -> KeyValueVersionReply {
    let val = row.value.map(shown).unwrap_or_default();
    KeyValueVersionReply { key: shown(row.key), val, ver: row.timestamp.0 }
}

/// What a write at version `ver` replaced.
pub(super) fn replaced_row(row: Row, ver: Timestamp) -> PutReply {
    let KeyValueVersionReply { key, val, ver: old_ver } = removed_row(row);
    PutReply { key, old_val: val, old_ver, ver: ver.0 }
}

fn shown(bytes: Bytes) -> String {
    String::from_utf8(bytes.into())
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The status that says why a request failed.
pub(super) fn status(error: &ClientError) -> Status {
    let message = error.to_string();
    match error {
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::NoMajority { .. }
        | ClientError::Unconfirmed { .. }
        | ClientError::PreviousUnread { .. }
        | ClientError::Unavailable { .. } => Status::unavailable(message),
        ClientError::Invalid { .. }
        | ClientError::KeyEmpty
        | ClientError::KeyTooLong(_)
        | ClientError::ValueTooLong(_) => Status::invalid_argument(message),
        ClientError::DiskFull { .. } => Status::resource_exhausted(message),
        ClientError::Expired { .. } | ClientError::StaleRequest { .. } => Status::aborted(message),
        ClientError::TooManyKeys(_) | ClientError::TooManyBytes(_) | ClientError::Thread(_) => {
            Status::resource_exhausted(message)
        }
        // Of setting a client up, which is done by now.
        ClientError::BadSessionToken(_)
        | ClientError::UnknownServer(_)
        | ClientError::BadServerList(_) => Status::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::interface::KeyRequest;
    use tonic::Code;

    fn row(value: Option<&'static [u8]>, timestamp: i64) -> Row {
        let (key, value) = (Bytes::from_static(b"k"), value.map(Bytes::from_static));
        Row { key, value, timestamp: Timestamp(timestamp) }
    }

    fn reply(val: &str, ver: i64) -> KeyValueVersionReply {
        KeyValueVersionReply { key: "k".into(), val: val.into(), ver }
    }

    #[test]
    fn zero_and_less_ask_for_the_newest() {
        for ver in [None, Some(0), Some(-1), Some(i64::MIN)] {
            assert_eq!(asked_version(ver), None);
        }
        assert_eq!(asked_version(Some(1)), Some(Timestamp(1)));
    }

    #[test]
    fn the_greater_end_of_a_range_counts() {
        let end = |key: &str, ver| Some(KeyRequest { key: key.into(), ver });
        let versions = [(None, None, None), (Some(3), None, Some(3)), (Some(3), Some(7), Some(7))];
        for (fr, to, at) in versions {
            let asked = range(KeyRange { fr: end("a", fr), to: end("b", to) }).unwrap();
            assert_eq!(asked, ("a".into(), "b".into(), at.map(Timestamp)));
        }
        let half = KeyRange { fr: end("a", None), to: None };
        assert_eq!(range(half).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn what_is_not_found_has_the_version_that_was_asked_for() {
        assert_eq!(read_row(row(None, 0), None).unwrap(), reply("", 0));
        assert_eq!(read_row(row(None, 0), Some(Timestamp(5))).unwrap(), reply("", 5));
        assert_eq!(read_row(row(Some(b"v"), 3), Some(Timestamp(5))).unwrap(), reply("v", 3));
    }

    #[test]
    fn what_is_not_text_fails_a_read_but_not_a_write() {
        let error = read_row(row(Some(b"\xff"), 3), None).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("acervo get"), "{error}");
        assert_eq!(removed_row(row(Some(b"a\xffb"), 3)), reply("a\u{fffd}b", 3));
    }
}
