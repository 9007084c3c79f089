//! The rules for answering reads (SPEC A4 and B), which worker threads apply.
//!
//! The store changes while it is read. The rule needs two bounds on the state that the answer comes
//! from: everything up to `low` is in it for certain, because that was applied before the read
//! began; and nothing past `high`, because that is announced before it is applied. Refusals are
//! judged by `low`, and what a client remembers of an absence is `high`: both err on the safe side.

use std::net::SocketAddr;

use bytes::Bytes;

use crate::limits;
use crate::model::{self, LogIndex, Operation, PageOf, ReadView, Timestamp, Version};
use crate::node::core::Node;
use crate::node::{ConsoleEvent, GetAnswer};
use crate::storage::apply::ApplyError;
use crate::storage::reads::{InMemory, Page, PageLimits, Store, StoreReadError};
use crate::text::{counted, escape};
use crate::wire::message::{
    ErrorCode, ErrorReply, GetRequest, PageRequest, PageView, ReadAt, Reply, TxnRequest,
};

/// A client's read, of one key or a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadRequest {
    /// The newest version of a key, or one as of a time.
    Get(GetRequest),
    /// A page of a longer read.
    Page(PageRequest),
    /// A transaction that only reads.
    Txn(TxnRequest),
}

impl ReadRequest {
    /// Whether it is to go through the leader's read index.
    pub fn is_linearizable(&self) -> bool {
        match self {
            ReadRequest::Get(GetRequest { linearizable, .. })
            | ReadRequest::Page(PageRequest {
                view: PageView::First { linearizable, .. }, ..
            })
            | ReadRequest::Txn(TxnRequest { linearizable, .. }) => *linearizable,
            // The answer to the first page has made sure of it.
            ReadRequest::Page(PageRequest { view: PageView::Next(_), .. }) => false,
        }
    }

    /// The state that it asks for at least; `None` if any will do.
    pub fn wanted(&self) -> Option<Timestamp> {
        match self {
            ReadRequest::Get(GetRequest { read_at, session, .. }) => match read_at {
                ReadAt::Newest { seen } => *seen.max(session),
                ReadAt::Version(at) => Some(*at).max(*session),
            },
            ReadRequest::Page(request) => request.view.wanted(),
            ReadRequest::Txn(request) => request.session,
        }
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
            ReadRequest::Txn(TxnRequest { txn, .. }) => {
                let mut keys = Ok(());
                txn.visit(&mut |key, _| {
                    if keys.is_ok() {
                        keys = check_key(key);
                    }
                });
                return keys.and_then(|()| txn.check_read().map_err(invalid));
            }
        };
        if let PageView::Next(view) = &request.view
            && view.at > view.removals_up_to
        {
            return Err(invalid("a page has at most the version that its read has seen".into()));
        }
        match &request.of {
            PageOf::Range { from, to } | PageOf::RangeReverse { from, to } => {
                check_beginning(from)?;
                check_key(to)
            }
            PageOf::Lease { from, .. } if from.is_empty() => Ok(()),
            PageOf::Lease { from, .. } => check_beginning(from),
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

/// The beginning after the longest key is one byte longer.
fn check_beginning(from: &Bytes) -> Result<(), ErrorReply> {
    check_key(&from[..from.len().min(limits::KEY_BYTES_MAX)])?;
    if from.len() > limits::KEY_BYTES_MAX + 1 { check_key(from) } else { Ok(()) }
}

/// The outcome of a read.
#[derive(Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The reply that the client gets.
    pub reply: Reply,
    /// For the console: the version this server has of the key, and what was answered. `None` for
    /// pages, and when the store could not be read.
    pub shown: Option<(Option<Timestamp>, GetAnswer)>,
    /// Why the store could not be read.
    pub fault: Option<StoreFault>,
}

impl ReadOutcome {
    /// Bytes of the values, and of a page's keys, that the reply holds.
    pub(super) fn value_bytes(&self) -> usize {
        match &self.reply {
            Reply::GetOk { found: Some(version), .. } => version.value.len(),
            Reply::PageOk { rows, .. } => {
                rows.iter().map(|row| row.key.len() + row.value().map_or(0, <[u8]>::len)).sum()
            }
            Reply::TxnOk { answer, .. } => answer.bytes(),
            _ => 0,
        }
    }

    /// Takes the console line for the answer to `request`, if there is one: pages have none.
    pub(super) fn take_shown(
        &mut self,
        client: SocketAddr,
        request: &ReadRequest,
    ) -> Option<ConsoleEvent> {
        let (key_timestamp, answer) = self.shown.take()?;
        let ReadRequest::Get(request) = request else { return None };
        let client_timestamp = match request.read_at {
            ReadAt::Newest { seen } => seen,
            ReadAt::Version(_) => None,
        };
        let key = request.key.clone();
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
    model::check_key(key).map_err(|error| invalid(error.to_string()))
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
        PageOf::Lease { lease, .. } => format!("the keys of lease {lease}"),
    }
}

/// Answers a page, which is checked, from the store. It has at most the rows that were asked for,
/// and is within `most`.
pub fn answer_page(store: &Store, request: &PageRequest, most: PageLimits) -> ReadOutcome {
    let low = store.applied().timestamp;
    let PageRequest { of, view, rows_max, keys_only } = request;
    if Some(low) < view.wanted() {
        let reply = Reply::TryOtherServerOrLater { timestamp: None, applied: low };
        return ReadOutcome { reply, shown: None, fault: None };
    }
    let rows = (*rows_max as usize).clamp(1, most.rows);
    let most = PageLimits { rows, keys_only: *keys_only, ..most };
    let (view, page) = match *view {
        PageView::First { at: None, .. } => {
            let newest = store.newest_page(of, low, most).map_err(StoreReadError::Store);
            (ReadView::as_of(low), newest)
        }
        PageView::First { at: Some(at), .. } => {
            let view = ReadView { at, removals_up_to: low };
            (view, store.first_page(of, view, most))
        }
        PageView::Next(view) => (view, store.page(of, view, most)),
    };
    match page {
        Ok(Page { rows, next }) => {
            ReadOutcome { reply: Reply::PageOk { rows, view, next }, shown: None, fault: None }
        }
        Err(error) => unread(|| describe(of), &error),
    }
}

/// Says why a read is not answered.
fn unread(what: impl FnOnce() -> String, error: &StoreReadError) -> ReadOutcome {
    let code = match error {
        StoreReadError::Store(error) => return unreadable(what, error),
        StoreReadError::Expired => ErrorCode::Expired,
        StoreReadError::Compacted { version } => ErrorCode::Compacted { version: *version },
    };
    let reply = Reply::Error(ErrorReply::not_done(code, error.to_string()));
    ReadOutcome { reply, shown: None, fault: None }
}

/// Answers a transaction that only reads, and which is checked, from one state of the store. Values
/// are left out beyond `result_bytes_max`.
pub fn answer_txn(store: &Store, request: &TxnRequest, result_bytes_max: usize) -> ReadOutcome {
    let low = store.applied().timestamp;
    if Some(low) < request.session {
        let reply = Reply::TryOtherServerOrLater { timestamp: None, applied: low };
        return ReadOutcome { reply, shown: None, fault: None };
    }
    let reply = match store.read_txn(&request.txn, low, result_bytes_max) {
        Ok(Some(answer)) => Reply::TxnOk { answer, as_of: low },
        Ok(None) => Reply::Error(invalid(
            "the comparisons of the transaction look at too many keys, or at values that are too \
             long together: compare less"
                .to_owned(),
        )),
        Err(error) => return unreadable(|| "a transaction".to_owned(), &error),
    };
    ReadOutcome { reply, shown: None, fault: None }
}

/// Answers one GET, whose key is checked, from the store.
pub fn answer_get(store: &Store, request: &GetRequest) -> ReadOutcome {
    let low = store.applied().timestamp;
    let found = match store.get_at(&request.key, as_of(request)) {
        Ok(found) => found,
        Err(error) => return unread(|| format!("key {}", escape(&request.key)), &error),
    };
    let high = store.applying_timestamp().max(low);
    judge(request, low, found, high)
}

/// The same without the disk, and with a value of at most so many bytes; `None` where that cannot
/// be told.
pub fn answer_get_in_memory(
    store: &Store,
    request: &GetRequest,
    value_bytes_max: usize,
) -> Option<ReadOutcome> {
    let low = store.applied().timestamp;
    let found = match store.try_get_in_memory(&request.key, as_of(request), value_bytes_max) {
        InMemory::Found(version) => Some(version),
        InMemory::Absent => None,
        InMemory::Unknown => return None,
    };
    let high = store.applying_timestamp().max(low);
    Some(judge(request, low, found, high))
}

/// The version as of which a GET reads.
fn as_of(request: &GetRequest) -> Timestamp {
    match request.read_at {
        ReadAt::Newest { .. } => Timestamp(i64::MAX),
        ReadAt::Version(at) => at,
    }
}

/// Answers a GET from the log, where the newest that the client has seen is a version of this very
/// key, and that is committed and not applied yet. `None` where something else is asked, or the
/// value is long. The index of the entry that holds it comes along.
pub fn answer_from_log(node: &Node, request: &ReadRequest) -> Option<(LogIndex, ReadOutcome)> {
    let ReadRequest::Get(request) = request else { return None };
    let GetRequest { key, read_at, session, linearizable, facts } = request;
    let &ReadAt::Newest { seen: Some(seen) } = read_at else { return None };
    // Facts are known when the entry is applied.
    if *linearizable || *facts || *session > Some(seen) {
        return None;
    }
    if seen <= node.applied_point().timestamp || seen > node.newest_timestamp() {
        return None;
    }
    let (index, value) = node.unapplied_put(seen, key)?;
    if value.len() > limits::READ_SMALL_BYTES_MAX {
        return None;
    }
    // The entry's memory is the whole entry's, which is not to live as long as the answer.
    let value = Bytes::copy_from_slice(&value);
    let version = Version { timestamp: seen, value, facts: None };
    Some((index, judge(request, seen, Some(version), seen)))
}

fn judge(
    request: &GetRequest,
    low: Timestamp,
    found: Option<Version>,
    high: Timestamp,
) -> ReadOutcome {
    let timestamp = found.as_ref().map(|version| version.timestamp);
    // A key that exists is judged by its own version, one that does not by the whole state.
    let reaches = match request.read_at {
        // Every server that has applied everything up to a version answers the same as of it.
        ReadAt::Version(at) => low >= at,
        ReadAt::Newest { seen } => timestamp.or(Some(low)) >= seen,
    };
    let facts_of = |version: &Version| version.facts.filter(|_| request.facts);
    if !reaches || Some(low) < request.session {
        return ReadOutcome {
            reply: Reply::TryOtherServerOrLater { timestamp, applied: low },
            shown: Some((timestamp, GetAnswer::TryOtherServerOrLater)),
            fault: None,
        };
    }
    let value = found.as_ref().map(|version| version.value.clone());
    let found = found.map(|version| Version { facts: facts_of(&version), ..version });
    ReadOutcome {
        reply: Reply::GetOk { found, as_of: high },
        shown: Some((timestamp, value.map_or(GetAnswer::Null, GetAnswer::Value))),
        fault: None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        ClientId, Command, Comparison, LogEntry, Put, Relation, RequestId, StateLimits, Test, Txn,
        TxnKeys, TxnOp, WriteOp,
    };
    use crate::storage::apply::StateMachine;
    use crate::storage::memory::MemoryEngine;

    fn ask(seen: Option<i64>, session: Option<i64>) -> GetRequest {
        GetRequest {
            key: Bytes::from_static(b"k"),
            read_at: ReadAt::Newest { seen: seen.map(Timestamp) },
            session: session.map(Timestamp),
            linearizable: false,
            facts: false,
        }
    }

    fn version(timestamp: i64) -> Version {
        let value = Bytes::from_static(b"v");
        Version { timestamp: Timestamp(timestamp), value, facts: None }
    }

    fn at(request: GetRequest, low: i64, found: Option<i64>) -> Reply {
        let found = found.map(version);
        judge(&request, Timestamp(low), found, Timestamp(low + 5)).reply
    }

    fn refused(timestamp: Option<i64>, applied: i64) -> Reply {
        let timestamp = timestamp.map(Timestamp);
        Reply::TryOtherServerOrLater { timestamp, applied: Timestamp(applied) }
    }

    #[test]
    fn the_table_of_the_specification() {
        let value = Reply::GetOk { found: Some(version(10)), as_of: Timestamp(25) };
        let null = Reply::GetOk { found: None, as_of: Timestamp(25) };
        assert_eq!(at(ask(Some(10), None), 20, Some(10)), value, "exists, not older than seen");
        assert_eq!(
            at(ask(Some(11), None), 20, Some(10)),
            refused(Some(10), 20),
            "exists, older than seen"
        );
        assert_eq!(
            at(ask(Some(20), None), 20, None),
            null,
            "absent, and all up to what was seen is here"
        );
        assert_eq!(
            at(ask(Some(21), None), 20, None),
            refused(None, 20),
            "absent, perhaps not arrived yet"
        );
    }

    #[test]
    fn a_transaction_that_only_reads_is_answered_from_one_state() {
        let limits = StateLimits { transaction_rows_max: 1, ..StateLimits::default() };
        let mut machine = StateMachine::open(Arc::new(MemoryEngine::new()), limits).unwrap();
        let key = || Bytes::from_static(b"k");
        for (index, name) in [(1, &b"k"[..]), (2, b"l")] {
            let (client, begun) = (ClientId(1), Timestamp::ZERO);
            let request = RequestId { client, sequence: index, answered_below: index, begun };
            let put = Put { key: name.into(), value: key(), tells_previous: false };
            let data = Command::write(Timestamp(10 * index as i64), request, put.into()).encode();
            machine.apply(&[LogEntry { term: 1, index, data }]).unwrap();
        }
        let ask = |compare: Vec<Comparison>, op: TxnOp, session: Option<i64>| {
            let txn = Txn { compare, then: vec![op], or_else: vec![] };
            TxnRequest { txn, session: session.map(Timestamp), linearizable: false }
        };
        let told = |request: &TxnRequest, bytes_max: usize| {
            ReadRequest::Txn(request.clone()).check().unwrap();
            answer_txn(&machine.store(), request, bytes_max).reply
        };
        let get = || TxnOp::Get { key: key() };
        let Reply::TxnOk { answer, as_of } = told(&ask(vec![], get(), Some(20)), 1) else {
            panic!("it is not answered")
        };
        assert_eq!((answer.bytes(), as_of), (1, Timestamp(20)));
        let short = told(&ask(vec![], get(), None), 0);
        assert!(matches!(short, Reply::TxnOk { answer, .. } if answer.bytes() == 0));
        let later = Reply::TryOtherServerOrLater { timestamp: None, applied: Timestamp(20) };
        assert_eq!(told(&ask(vec![], get(), Some(21)), 1), later);
        let keys = TxnKeys::Range { from: key(), to: Bytes::from_static(b"l") };
        let all = Comparison { keys, test: Test::Count(Relation::Equal, 1) };
        let refused = |reply: Reply| match reply {
            Reply::Error(error) => {
                assert_eq!(error.code, ErrorCode::Invalid);
                error.message
            }
            other => panic!("no refusal but {other:?}"),
        };
        let too_much = refused(told(&ask(vec![all], get(), None), 1));
        assert!(too_much.contains("too many keys"), "{too_much}");
        let put = TxnOp::Put { key: key(), value: key(), tells_previous: false, lease: None };
        for (op, what) in [(put, "writes"), (TxnOp::Get { key: Bytes::new() }, "empty")] {
            let error = ReadRequest::Txn(ask(vec![], op, None)).check().unwrap_err();
            assert!(refused(Reply::Error(error)).contains(what));
        }
    }

    /// The simulation found it: the second page of a read of an empty store showed what had been
    /// written meanwhile, because the first one had "seen 0", which then asked for the newest.
    #[test]
    fn the_second_page_of_an_empty_store_shows_it_empty() {
        let mut machine =
            StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
        let page = |view, machine: &StateMachine| {
            let keys = vec![Bytes::from_static(b"k"), Bytes::from_static(b"l")];
            let of = PageOf::Keys { keys };
            let request = PageRequest { of, view, rows_max: 1, keys_only: false };
            match answer_page(&machine.store(), &request, PageLimits::default()).reply {
                Reply::PageOk { rows, view, .. } => {
                    (rows[0].value().map(Bytes::copy_from_slice), view)
                }
                other => panic!("no page but {other:?}"),
            }
        };
        let first = PageView::First { at: None, session: None, linearizable: false };
        let (nothing, empty) = page(first, &machine);
        assert_eq!(nothing, None);
        let next = PageView::Next(empty);
        assert_eq!(page(next, &machine), (None, empty), "also where nothing was written yet");
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
        assert_eq!(page(next, &machine), (None, empty));
        let written = ReadView::as_of(Timestamp(2));
        assert_eq!(page(first, &machine), (Some(Bytes::new()), written));
    }

    /// Whatever is asked of a store in whatever state.
    #[test]
    fn an_answer_from_memory_is_the_one_that_a_worker_gives() {
        let mut machine =
            StateMachine::open(Arc::new(MemoryEngine::new()), StateLimits::default()).unwrap();
        let client = ClientId(1);
        for (index, length) in [(1, 0), (2, 10), (3, 11)] {
            let begun = Timestamp::ZERO;
            let request = RequestId { client, sequence: index, answered_below: index, begun };
            let (key, value) = (Bytes::from_static(b"k"), Bytes::from(vec![b'v'; length]));
            let op = WriteOp::Put(Put { key, value, tells_previous: false });
            let data = Command::write(Timestamp(10 * index as i64), request, op).encode();
            machine.apply(&[LogEntry { term: 1, index, data }]).unwrap();
        }
        let store = machine.store();
        let times = [None, Some(5), Some(10), Some(25), Some(30), Some(31)];
        let mut from_memory = 0;
        for key in [&b"k"[..], b"absent"] {
            for (at, session) in times.iter().flat_map(|at| times.map(|session| (*at, session))) {
                let newest = ReadAt::Newest { seen: at.map(Timestamp) };
                let version = at.map(|at| ReadAt::Version(Timestamp(at)));
                for read_at in [Some(newest), version].into_iter().flatten() {
                    let key = Bytes::copy_from_slice(key);
                    let session = session.map(Timestamp);
                    let (linearizable, facts) = (false, at.is_some() == session.is_some());
                    let request = GetRequest { key, read_at, session, linearizable, facts };
                    let by_worker = answer_get(&store, &request);
                    match answer_get_in_memory(&store, &request, 10) {
                        Some(outcome) => assert_eq!(outcome, by_worker, "{request:?}"),
                        None => {
                            let found = store.get_at(&request.key, as_of(&request)).unwrap();
                            assert_eq!(found.unwrap().value.len(), 11, "{request:?}");
                            continue;
                        }
                    }
                    from_memory += 1;
                }
            }
        }
        assert!(from_memory > 50, "{from_memory}");
    }

    #[test]
    fn a_session_asks_for_everything_up_to_its_timestamp() {
        assert_eq!(at(ask(None, Some(21)), 20, Some(10)), refused(Some(10), 20));
        assert_eq!(at(ask(None, Some(21)), 20, None), refused(None, 20));
        assert!(matches!(at(ask(None, Some(20)), 20, Some(10)), Reply::GetOk { .. }));
    }
}
