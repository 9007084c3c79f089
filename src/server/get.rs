//! The rules for answering reads (SPEC A4 and B), which worker threads apply.
//!
//! The store changes while it is read. The rule needs two bounds on the state that the answer comes
//! from: everything up to `low` is in it for certain, because that was applied before the read
//! began; and nothing past `high`, because that is announced before it is applied. Refusals are
//! judged by `low`, and what a client remembers of an absence is `high`: both err on the safe side.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::limits;
use crate::model::{LogIndex, PageOf, Timestamp};
use crate::node::core::Node;
use crate::node::{ConsoleEvent, GetAnswer};
use crate::storage::apply::ApplyError;
use crate::storage::reads::{Page, PageError, PageLimits, ReadView, Store};
use crate::text::{counted, escape};
use crate::wire::message::{ErrorCode, ErrorReply, GetRequest, PageRequest, Reply};

/// A client's read, of one key or a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadRequest {
    /// The newest version of a key, or one as of a time.
    Get(GetRequest),
    /// A page of a longer read.
    Page(PageRequest),
}

impl ReadRequest {
    /// Whether it is to go through the leader's read index.
    pub fn is_linearizable(&self) -> bool {
        match self {
            ReadRequest::Get(request) => request.linearizable,
            ReadRequest::Page(request) => request.linearizable,
        }
    }

    /// The state that it asks for at least.
    pub fn wanted(&self) -> Timestamp {
        let wanted = match self {
            // As of a version, what was seen of the key does not matter.
            ReadRequest::Get(request) if request.at > Timestamp::ZERO => {
                request.at.max(request.session)
            }
            ReadRequest::Get(request) => request.timestamp.max(request.session),
            ReadRequest::Page(request) => request.at.max(request.seen).max(request.session),
        };
        // Where nothing has been written there is nothing to wait for.
        if wanted <= Timestamp::FIRST { Timestamp::ZERO } else { wanted }
    }

    /// Refuses what cannot be answered; done before a request waits anywhere, so that what waits is
    /// small.
    ///
    /// # Errors
    ///
    /// `INVALID`, with what to do instead.
    pub fn check(&self) -> Result<(), ErrorReply> {
        let request = match self {
            ReadRequest::Get(request) => return check_key(&request.key),
            ReadRequest::Page(request) => request,
        };
        if request.seen.0 > 0 && request.at > request.seen {
            return Err(invalid("a page has at most the version that its read has seen".into()));
        }
        match &request.of {
            PageOf::Range { from, to } | PageOf::RangeReverse { from, to } => {
                // The beginning after the longest key is one byte longer.
                check_key(&from[..from.len().min(limits::KEY_BYTES_MAX)])?;
                if from.len() > limits::KEY_BYTES_MAX + 1 {
                    return check_key(from);
                }
                check_key(to)
            }
            PageOf::Keys { keys } if keys.len() > limits::TRANSACTION_KEYS_MAX => {
                let most = limits::TRANSACTION_KEYS_MAX;
                let count = keys.len();
                Err(invalid(format!(
                    "{count} keys are asked for and at most {most} can be: ask twice"
                )))
            }
            PageOf::Keys { keys } => keys.iter().try_for_each(|key| check_key(key)),
            PageOf::Versions { key } => check_key(key),
        }
    }
}

/// The outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The reply that the client gets.
    pub reply: Reply,
    /// For the console: the version this server has, 0 for none, and what was answered. `None` when
    /// the store could not be read.
    pub shown: Option<(Timestamp, GetAnswer)>,
    /// Why the store could not be read.
    pub fault: Option<StoreFault>,
}

impl ReadOutcome {
    /// Takes the console line for the answer to `request`, if there is one: pages have none.
    pub(super) fn take_shown(
        &mut self,
        client: SocketAddr,
        request: &ReadRequest,
    ) -> Option<ConsoleEvent> {
        let (key_timestamp, answer) = self.shown.take()?;
        let ReadRequest::Get(request) = request else { return None };
        let (key, client_timestamp) = (request.key.clone(), request.timestamp);
        Some(ConsoleEvent::Get { client, key, client_timestamp, key_timestamp, answer })
    }
}

/// Why the store cannot be read any more, as a sentence.
#[derive(Debug, PartialEq, Eq)]
pub enum StoreFault {
    /// It does not hold what was written, and has to be rebuilt.
    Damage(String),
    /// The disk refused to read. What is on it may be sound, which the next start finds out.
    Failure(String),
}

impl StoreFault {
    /// The fault that an error means which was met while doing `what`.
    pub(super) fn of(error: &ApplyError, what: impl FnOnce() -> String) -> StoreFault {
        match error.is_damage() {
            true => StoreFault::Damage(format!("{} found that {error}", what())),
            false => StoreFault::Failure(error.to_string()),
        }
    }
}

/// Refuses a key that cannot exist.
fn check_key(key: &[u8]) -> Result<(), ErrorReply> {
    let key_bytes = key.len();
    let message = if key_bytes == 0 {
        "the key is empty: give it at least one byte".to_owned()
    } else if key_bytes > limits::KEY_BYTES_MAX {
        let most = limits::KEY_BYTES_MAX;
        format!("the key has {key_bytes} bytes and at most {most} are allowed: use a shorter one")
    } else {
        return Ok(());
    };
    Err(invalid(message))
}

fn invalid(message: String) -> ErrorReply {
    ErrorReply::not_done(ErrorCode::Invalid, message)
}

fn unreadable(what: impl FnOnce() -> String, error: &ApplyError) -> ReadOutcome {
    let fault = StoreFault::of(error, || format!("reading {}", what()));
    let message = format!("this server cannot read its store ({error}): ask another one");
    let code = ErrorCode::Internal;
    let reply = Reply::Error(ErrorReply::not_done(code, message));
    ReadOutcome { reply, shown: None, fault: Some(fault) }
}

/// Names what a page shows, for the log.
fn describe(of: &PageOf) -> String {
    match of {
        PageOf::Range { from, to } | PageOf::RangeReverse { from, to } => {
            format!("the keys from {} to {}", escape(from), escape(to))
        }
        PageOf::Keys { keys } => match &keys[..] {
            [key] => format!("key {}", escape(key)),
            keys => counted(keys.len() as u64, "key", "keys"),
        },
        PageOf::Versions { key } => format!("the versions of key {}", escape(key)),
    }
}

/// The timestamp up to which everything is in what is read from now on. It is never 0, since a page
/// names the state it shows, and 0 would make the next page show the newest.
fn reached(store: &Store) -> Timestamp {
    store.applied().timestamp.max(Timestamp::FIRST)
}

/// Answers a page, which is checked, from the store. It has at most the rows that were asked for,
/// and is within `most`.
pub fn answer_page(store: &Store, request: &PageRequest, most: PageLimits) -> ReadOutcome {
    let low = reached(store);
    let PageRequest { of, at, seen, session, rows_max, keys_only, .. } = request;
    if low < *session || low < *at || low < *seen {
        let timestamp = Timestamp::ZERO;
        let reply = Reply::TryOtherServerOrLater { timestamp, applied: low };
        return ReadOutcome { reply, shown: None, fault: None };
    }
    let strict = *seen > Timestamp::ZERO;
    let seen = if strict { *seen } else { low };
    let at = if *at > Timestamp::ZERO { *at } else { seen };
    let rows = (*rows_max as usize).clamp(1, most.rows);
    let most = PageLimits { rows, keys_only: *keys_only, ..most };
    match store.page(of, ReadView { at, removals_up_to: seen, strict }, most) {
        Ok(Page { rows, next }) => {
            ReadOutcome { reply: Reply::PageOk { rows, at, seen, next }, shown: None, fault: None }
        }
        Err(PageError::Store(error)) => unreadable(|| describe(of), &error),
        Err(error @ PageError::Expired) => {
            let (code, message) = (ErrorCode::Expired, error.to_string());
            let reply = Reply::Error(ErrorReply::not_done(code, message));
            ReadOutcome { reply, shown: None, fault: None }
        }
    }
}

/// Answers one GET, whose key is checked, from the store.
pub fn answer_get(store: &Store, request: &GetRequest) -> ReadOutcome {
    let low = reached(store);
    let newest = request.at <= Timestamp::ZERO;
    let at = if newest { Timestamp(i64::MAX) } else { request.at };
    let found = match store.get_at(&request.key, at) {
        Ok(found) => found,
        Err(error) => return unreadable(|| format!("key {}", escape(&request.key)), &error),
    };
    let high = store.applying_timestamp().max(low);
    judge(request, low, found, high)
}

/// Answers a GET from the log, where the newest that the client has seen is the version
/// `request.timestamp` of this very key, and that is committed and not applied yet. `None` where
/// something else is asked, or the value is long. The index of the entry that holds it comes along.
pub fn answer_from_log(node: &Node, request: &ReadRequest) -> Option<(LogIndex, ReadOutcome)> {
    let ReadRequest::Get(request) = request else { return None };
    let GetRequest { key, timestamp, session, linearizable, at } = request;
    if *linearizable || *at > Timestamp::ZERO || session > timestamp {
        return None;
    }
    if *timestamp <= node.applied_point().timestamp || *timestamp > node.newest_timestamp() {
        return None;
    }
    let (index, value) = node.unapplied_put(*timestamp, key)?;
    if value.len() > limits::READ_SMALL_BYTES_MAX {
        return None;
    }
    // The entry's memory is the whole entry's, which is not to live as long as the answer.
    let value = Bytes::copy_from_slice(&value);
    Some((index, judge(request, *timestamp, Some((*timestamp, value)), *timestamp)))
}

fn judge(
    request: &GetRequest,
    low: Timestamp,
    found: Option<(Timestamp, Bytes)>,
    high: Timestamp,
) -> ReadOutcome {
    let key_timestamp = found.as_ref().map_or(Timestamp::ZERO, |(timestamp, _)| *timestamp);
    // A key that exists is judged by its own version, one that does not by the whole state.
    let reaches = match &found {
        // As of a version every server that has applied everything up to it answers the same.
        _ if request.at > Timestamp::ZERO => low >= request.at,
        Some((timestamp, _)) => *timestamp >= request.timestamp,
        None => low >= request.timestamp,
    };
    if !reaches || low < request.session {
        return ReadOutcome {
            reply: Reply::TryOtherServerOrLater { timestamp: key_timestamp, applied: low },
            shown: Some((key_timestamp, GetAnswer::TryOtherServerOrLater)),
            fault: None,
        };
    }
    let value = found.map(|(_, value)| value);
    let shown = value.clone().map_or(GetAnswer::Null, GetAnswer::Value);
    ReadOutcome {
        reply: Reply::GetOk { value, timestamp: key_timestamp, as_of: high },
        shown: Some((key_timestamp, shown)),
        fault: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{ClientId, Command, LogEntry, Put, RequestId, StateLimits, WriteOp};
    use crate::storage::apply::StateMachine;
    use crate::storage::memory::MemoryEngine;

    fn ask(timestamp: i64, session: i64) -> GetRequest {
        GetRequest {
            key: Bytes::from_static(b"k"),
            timestamp: Timestamp(timestamp),
            session: Timestamp(session),
            linearizable: false,
            at: Timestamp::ZERO,
        }
    }

    fn at(request: GetRequest, low: i64, found: Option<i64>) -> Reply {
        let found = found.map(|timestamp| (Timestamp(timestamp), Bytes::from_static(b"v")));
        judge(&request, Timestamp(low), found, Timestamp(low + 5)).reply
    }

    fn refused(timestamp: i64, applied: i64) -> Reply {
        let (timestamp, applied) = (Timestamp(timestamp), Timestamp(applied));
        Reply::TryOtherServerOrLater { timestamp, applied }
    }

    #[test]
    fn the_table_of_the_specification() {
        let value = Reply::GetOk {
            value: Some(Bytes::from_static(b"v")),
            timestamp: Timestamp(10),
            as_of: Timestamp(25),
        };
        let null = Reply::GetOk { value: None, timestamp: Timestamp::ZERO, as_of: Timestamp(25) };
        assert_eq!(at(ask(10, 0), 20, Some(10)), value, "exists, not older than seen");
        assert_eq!(at(ask(11, 0), 20, Some(10)), refused(10, 20), "exists, older than seen");
        assert_eq!(at(ask(20, 0), 20, None), null, "absent, and all up to what was seen is here");
        assert_eq!(at(ask(21, 0), 20, None), refused(0, 20), "absent, perhaps not arrived yet");
    }

    /// The simulation found it: the second page of a read of an empty store showed what had been
    /// written meanwhile, because the first one had "seen 0", which asks for the newest.
    #[test]
    fn the_second_page_of_an_empty_store_shows_it_empty() {
        let mut machine =
            StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
        let page = |seen, machine: &StateMachine| {
            let keys = vec![Bytes::from_static(b"k"), Bytes::from_static(b"l")];
            let request = PageRequest {
                of: PageOf::Keys { keys },
                at: Timestamp::ZERO,
                seen,
                session: seen,
                linearizable: false,
                rows_max: 1,
                keys_only: false,
            };
            match answer_page(&machine.store(), &request, PageLimits::default()).reply {
                Reply::PageOk { rows, seen, .. } => (rows[0].value.clone(), seen),
                other => panic!("no page but {other:?}"),
            }
        };
        let (nothing, seen) = page(Timestamp::ZERO, &machine);
        assert_eq!(nothing, None);
        assert_eq!(page(seen, &machine), (None, seen), "also where nothing was written yet");
        let request = RequestId {
            client: ClientId(1),
            sequence: 1,
            answered_below: 1,
            begun: Timestamp::ZERO,
        };
        let op = WriteOp::Put(Put {
            key: Bytes::from_static(b"k"),
            value: Bytes::new(),
            tells_previous: false,
        });
        let data = Command::write(Timestamp(2), request, op).encode();
        machine.apply(&[LogEntry { term: 1, index: 1, data }]).unwrap();
        assert_eq!(page(seen, &machine), (None, seen));
        assert_eq!(page(Timestamp::ZERO, &machine), (Some(Bytes::new()), Timestamp(2)));
    }

    #[test]
    fn a_session_asks_for_everything_up_to_its_timestamp() {
        assert_eq!(at(ask(0, 21), 20, Some(10)), refused(10, 20));
        assert_eq!(at(ask(0, 21), 20, None), refused(0, 20));
        assert!(matches!(at(ask(0, 20), 20, Some(10)), Reply::GetOk { .. }));
    }
}
