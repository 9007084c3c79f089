//! What the interface's messages mean to the store, and the store's answers to the interface.

use bytes::Bytes;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Response, Status};

use super::interface::{KeyRange, KeyValueVersionReply, PREVIOUS_UNREAD, PutReply};
use crate::client::{ClientError, Effect, Version, Written};
use crate::model::{self, Row, Timestamp};
use crate::text::escape;

/// Why what a write replaced is not told.
const NO_ROOM: &str = "this gateway, or this connection, holds too much at once";

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
    model::check_key(key.as_bytes()).map_err(|error| Status::invalid_argument(error.to_string()))
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
    let Row { key, found } = row;
    let Some(Version { timestamp, value, .. }) = found else {
        let ver = asked.unwrap_or_default().0;
        return Ok(KeyValueVersionReply { key: text(key)?, val: String::new(), ver });
    };
    let val = String::from_utf8(value.into()).map_err(|_| {
        Status::failed_precondition(format!(
            "the value of key \"{}\" is not UTF-8, which this interface cannot carry: read it with \
             'acervo get'",
            escape(&key)
        ))
    })?;
    Ok(KeyValueVersionReply { key: text(key)?, val, ver: timestamp.0 })
}

fn text(key: Bytes) -> Result<String, Status> {
    String::from_utf8(key.into()).map_err(|error| {
        Status::failed_precondition(format!(
            "the key \"{}\" is not UTF-8, which this interface cannot carry: read it with 'acervo \
             getrange'",
            escape(error.as_bytes())
        ))
    })
}

/// What a write removed, or what a trim kept. The write is done, so nothing in it is an error any
/// more: what is not UTF-8 is shown with U+FFFD in its place.
pub(super) fn removed_row(row: Row) -> KeyValueVersionReply {
    let (ver, val) = match row.found {
        Some(Version { timestamp, value, .. }) => (timestamp.0, shown(value)),
        None => (0, String::new()),
    };
    KeyValueVersionReply { key: shown(row.key), val, ver }
}

/// What a write at version `ver` replaced.
pub(super) fn replaced_row(row: Row, ver: Timestamp) -> PutReply {
    let KeyValueVersionReply { key, val, ver: old_ver } = removed_row(row);
    PutReply { key, old_val: val, old_ver, ver: ver.0 }
}

/// A write on one key, which is done.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) timestamp: Timestamp,
    previous: Option<Version>,
    /// Why it could not be read what there was before.
    unread: Option<String>,
}

/// A write is done, too, when only what it replaced or removed could not be read: an error would
/// have clients, and their retry policies, write again.
///
/// `hold` says whether there is room for so many bytes of it.
pub(super) fn done(
    result: Result<Written, ClientError>,
    hold: impl FnOnce(usize) -> bool,
) -> Result<Done, ClientError> {
    match result {
        Ok(Written { timestamp, previous, .. }) => {
            let bytes = previous.as_ref().map_or(0, |version| version.value.len());
            Ok(match hold(bytes) {
                true => Done { timestamp, previous, unread: None },
                false => Done { timestamp, previous: None, unread: Some(NO_ROOM.to_owned()) },
            })
        }
        Err(ClientError::PreviousUnread { timestamp, why }) => {
            Ok(Done { timestamp, previous: None, unread: Some(why.to_string()) })
        }
        Err(error) => Err(error),
    }
}

impl Done {
    /// The answer, made of what `key` had before, and in its metadata why that is missing from it.
    pub(super) fn answer<T>(self, key: String, message: impl FnOnce(Row) -> T) -> Response<T> {
        let mut answer = Response::new(message(Row { key: key.into(), found: self.previous }));
        if let Some(why) = self.unread {
            answer.metadata_mut().insert(PREVIOUS_UNREAD, metadata_text(&why));
        }
        answer
    }
}

/// The status of a write on many keys that is done at version `ver`, of which it could not be told
/// to the end what there was before. No retry policy takes it for one that may be repeated.
pub(super) fn previous_unread(ver: Timestamp, why: &Status) -> Status {
    let code = match why.code() {
        Code::DeadlineExceeded => Code::DeadlineExceeded,
        _ => Code::Unknown,
    };
    let mut metadata = MetadataMap::new();
    metadata.insert(PREVIOUS_UNREAD, metadata_text(why.message()));
    let message = format!(
        "the write is done, with version {ver}; what there was before could not be told to the \
         end: {}",
        why.message()
    );
    Status::with_metadata(code, message, metadata)
}

/// What a call is told that makes the gateway hold too much; of a write that is done, never that it
/// may be repeated.
pub(super) fn no_room(is_done: bool) -> Status {
    if is_done {
        let why = NO_ROOM;
        let mut metadata = MetadataMap::new();
        metadata.insert(PREVIOUS_UNREAD, metadata_text(why));
        let message = format!("the write is done; what was there before is not told: {why}");
        return Status::with_metadata(Code::Unknown, message, metadata);
    }
    Status::resource_exhausted(
        "this gateway, or this connection, holds too much of requests and unread answers: try \
         again later",
    )
}

/// Text as metadata can carry it.
fn metadata_text(text: &str) -> MetadataValue<Ascii> {
    let escaped = escape(text.as_bytes()).to_string();
    MetadataValue::try_from(escaped).unwrap_or(MetadataValue::from_static("the reason is not text"))
}

/// Text that stands for bytes which need not be text.
pub(super) fn shown(bytes: Bytes) -> String {
    String::from_utf8(bytes.into())
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The status that says why a request failed. `UNAVAILABLE` has retry policies ask again, so a
/// write that is known to be done, or that nobody can know of any more, is `UNKNOWN`.
pub(super) fn status(error: &ClientError) -> Status {
    let message = error.to_string();
    match error {
        _ if error.effect() == Effect::Done => Status::unknown(message),
        ClientError::StaleRequest { .. } | ClientError::PreviousUnread { .. } => {
            Status::unknown(message)
        }
        ClientError::Compacted { .. } => Status::out_of_range(message),
        _ if error.is_of_the_request() => Status::invalid_argument(message),
        ClientError::NoRoom(_) => no_room(false),
        ClientError::ConflictUnread { why, .. } if matches!(**why, ClientError::NoRoom(_)) => {
            no_room(false)
        }
        ClientError::Unreachable { .. }
        | ClientError::TimedOut { .. }
        | ClientError::NoMajority { .. }
        | ClientError::Unconfirmed { .. }
        | ClientError::ConflictUnread { .. }
        | ClientError::Unavailable { .. } => Status::unavailable(message),
        ClientError::DiskFull { .. } | ClientError::Thread(_) => {
            Status::resource_exhausted(message)
        }
        ClientError::Expired { .. } => Status::aborted(message),
        // Nothing but another process helps.
        _ => Status::internal(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::interface::KeyRequest;

    fn row(found: Option<(&'static [u8], i64)>) -> Row {
        let version = |(value, timestamp)| Version {
            timestamp: Timestamp(timestamp),
            value: Bytes::from_static(value),
            facts: None,
        };
        Row { key: Bytes::from_static(b"k"), found: found.map(version) }
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
        assert_eq!(read_row(row(None), None).unwrap(), reply("", 0));
        assert_eq!(read_row(row(None), Some(Timestamp(5))).unwrap(), reply("", 5));
        assert_eq!(read_row(row(Some((b"v", 3))), Some(Timestamp(5))).unwrap(), reply("v", 3));
    }

    #[test]
    fn a_write_that_is_done_or_unknown_does_not_look_as_if_it_could_be_repeated() {
        let server = ([127, 0, 0, 1], 1).into();
        let gone = || ClientError::NoMajority { server, message: "no majority".into() };
        let timestamp = Timestamp(7);
        let unread = || ClientError::PreviousUnread { timestamp, why: Box::new(gone()) };
        // Of one key: done, and the answer says what is missing.
        let written = done(Err(unread()), |_| true).unwrap();
        assert_eq!(written.timestamp, timestamp);
        let answer = written.answer("k".into(), removed_row);
        let why = answer.metadata().get(PREVIOUS_UNREAD).unwrap().to_str().unwrap();
        assert!(why.contains("no majority"), "{why}");
        assert_eq!(answer.into_inner(), reply("", 0));
        let value = Bytes::from_static(b"v");
        let previous = || Some(Version { timestamp, value: value.clone(), facts: None });
        for has_room in [true, false] {
            let written = Written { timestamp, previous: previous(), server };
            let written = done(Ok(written), |bytes| bytes == 1 && has_room).unwrap();
            let answer = written.answer("k".into(), removed_row);
            assert_eq!(answer.metadata().is_empty(), has_room);
            assert_eq!(answer.into_inner().val, if has_room { "v" } else { "" });
        }
        assert_eq!(status(&done(Err(gone()), |_| true).unwrap_err()).code(), Code::Unavailable);
        // Of many.
        let lost = previous_unread(timestamp, &status(&gone()));
        assert_eq!(lost.code(), Code::Unknown);
        assert!(lost.message().contains("done, with version 7"), "{lost}");
        assert!(lost.metadata().contains_key(PREVIOUS_UNREAD));
        let effect = Effect::MayBeDone;
        let stale = ClientError::StaleRequest { server, message: "forgotten".into(), effect };
        let known = ClientError::Unavailable { last: "x".into(), effect: Some(Effect::Done) };
        for error in [unread(), stale, known] {
            assert_eq!(status(&error).code(), Code::Unknown, "{error}");
        }
    }

    #[test]
    fn what_is_past_a_limit_is_an_invalid_argument_and_a_full_disk_is_not() {
        for error in [ClientError::TooManyKeys(1), ClientError::TooManyBytes(1)] {
            assert_eq!(status(&error).code(), Code::InvalidArgument);
        }
        let server = ([127, 0, 0, 1], 1).into();
        let full = ClientError::DiskFull { server, message: "full".into() };
        assert_eq!(status(&full).code(), Code::ResourceExhausted);
    }

    #[test]
    fn what_is_not_text_fails_a_read_but_not_a_write() {
        let error = read_row(row(Some((b"\xff", 3))), None).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("acervo get"), "{error}");
        assert_eq!(removed_row(row(Some((b"a\xffb", 3)))), reply("a\u{fffd}b", 3));
    }
}
