//! Exactly-once application: what each client was answered, as part of the replicated state.
//!
//! Everything here is a function of the log: expiry and eviction go by the times of the commands,
//! so that all replicas forget the same sessions at the same entry.
//!
//! Sessions grow old by the log's own clock (`log_clock`), which no leap of timestamps moves: it
//! would make retries that are under way new.
//!
//! Sessions live in memory. Those that changed are written to the engine with a seal only;
//! after a crash the engine stands at its last durable seal, and the log from there on brings them
//! back.
//!
//! What is forgotten is never applied again. Sessions end after [`StateLimits::session_expiry_us`],
//! or when [`StateLimits::sessions_max`] other clients were heard of later; how late the last
//! command of any of those was is remembered ([`Sessions::known_since`]). Every write says since
//! when its client has known the group ([`RequestId::begun`]), a timestamp smaller than that of any
//! command of the client. So a client without a session that began at `known_since` or later has
//! never had one, and all of its writes are new. Any other is refused
//! ([`DedupVerdict::UnknownSession`]): its write may have been applied in a session that was
//! dropped. That holds for a late copy of a client's first write, too, however late it is.
//!
//! A new client is not locked out by others: sessions are dropped in the order of their last
//! commands, so `known_since` stays behind the log by [`StateLimits::sessions_max`] clients or by
//! the expiry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{Bound, ControlFlow};

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::engine::{Direction, Engine, WriteBatch};
use super::hash::{StateHash, words_hash};
use super::keys;
use crate::model::{
    ClientId, OpResult, RESULT_BYTES_MAX, RequestId, StateLimits, Timestamp, WriteOutcome,
};

/// Whether a write that is about to be applied was applied before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DedupVerdict {
    /// It was not: apply it, then [`record`](Sessions::record) its outcome.
    New,
    /// It was, and came to this.
    Repeated(WriteOutcome),
    /// Declared answered before: what it came to, if it was applied, is forgotten.
    Forgotten,
    /// Its client has no session, and may have had one: it may have been applied.
    UnknownSession,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// The timestamp of the client's last command.
    heard: Timestamp,
    /// The time of the log's clock then, in microseconds.
    heard_us: u64,
    /// Every sequence below this one is forgotten and will not be applied (again).
    answered_below: u64,
    /// The outcome of each sequence from `answered_below` on that was applied.
    replies: BTreeMap<u64, WriteOutcome>,
}

/// The sessions of all clients that may still repeat a write.
pub(super) struct Sessions {
    limits: StateLimits,
    clients: HashMap<ClientId, Session>,
    /// The same clients, the one unheard of for longest first.
    by_heard: BTreeSet<(Timestamp, ClientId)>,
    /// Clients whose rows in the engine are out of date.
    dirty: BTreeSet<ClientId>,
    /// Replies of all clients.
    replies: usize,
    /// Clients heard of up to here have no replies left. Only spares looking at them again.
    emptied: Option<(Timestamp, ClientId)>,
    /// When the client of the session that was dropped last was last heard of: every client that
    /// began at this time or later and has written has a session. `None` as long as none was
    /// dropped.
    known_since: Option<Timestamp>,
}

impl Sessions {
    fn new(limits: StateLimits) -> Sessions {
        Sessions {
            limits,
            clients: HashMap::new(),
            by_heard: BTreeSet::new(),
            dirty: BTreeSet::new(),
            replies: 0,
            emptied: None,
            known_since: None,
        }
    }

    /// Goes by these limits from here on.
    pub fn set_limits(&mut self, limits: StateLimits) {
        self.limits = limits;
    }

    /// Reads the sessions of the last durable seal.
    pub fn load(engine: &dyn Engine, limits: StateLimits) -> Result<Sessions, ApplyError> {
        let mut sessions = Sessions::new(limits);
        if let Some(stored) = engine.get(&keys::meta(META_KNOWN_SINCE))? {
            let known_since = decode_known_since(&stored);
            sessions.known_since = Some(known_since.ok_or(ApplyError::Damaged("the sessions"))?);
        }
        let mut damaged = false;
        engine.scan(&keys::sessions(), Direction::Forward, &mut |row, value| match (
            keys::decode_session(row),
            Session::decode(value),
        ) {
            (Ok(client), Some(session)) => {
                sessions.by_heard.insert((session.heard, client));
                sessions.replies += session.replies.len();
                sessions.clients.insert(client, session);
                ControlFlow::Continue(())
            }
            _ => {
                damaged = true;
                ControlFlow::Break(())
            }
        })?;
        if damaged { Err(ApplyError::Damaged("a session")) } else { Ok(sessions) }
    }

    /// Notes that a command arrived, forgets what is to be forgotten by now, and says whether to
    /// apply it.
    pub fn admit(
        &mut self,
        request: &RequestId,
        now: Timestamp,
        now_us: u64,
        hash: &mut StateHash,
    ) -> DedupVerdict {
        self.expire(now_us, hash);
        // No server of this group can have told a client of the time of this command or a later
        // one.
        let has_begun_since = self.known_since <= Some(request.begun) && request.begun < now;
        if !self.clients.contains_key(&request.client) && !has_begun_since {
            return DedupVerdict::UnknownSession;
        }
        self.hear(request.client, now, now_us, hash);
        let Some(session) = self.clients.get_mut(&request.client) else {
            return DedupVerdict::New; // `hear` has just seen to it that there is one.
        };
        self.replies -= session.forget_below(request.client, request.answered_below, hash);
        if request.sequence < session.answered_below {
            return DedupVerdict::Forgotten;
        }
        match session.replies.get(&request.sequence) {
            Some(outcome) => DedupVerdict::Repeated(*outcome),
            None => DedupVerdict::New,
        }
    }

    /// The greatest sequence of a client that was applied or ruled out; every greater one is new. 0
    /// when it has no session.
    pub fn newest_sequence(&self, client: ClientId) -> u64 {
        let Some(session) = self.clients.get(&client) else { return 0 };
        let ruled_out = session.answered_below.saturating_sub(1);
        let applied = session.replies.last_key_value().map_or(0, |(sequence, _)| *sequence);
        applied.max(ruled_out)
    }

    /// Remembers what a write came to that was [`DedupVerdict::New`] just before.
    pub fn record(&mut self, request: &RequestId, outcome: WriteOutcome, hash: &mut StateHash) {
        let Some(session) = self.clients.get_mut(&request.client) else { return };
        hash.add(reply_hash(request.client, request.sequence, outcome));
        let before = session.replies.insert(request.sequence, outcome);
        assert!(before.is_none(), "{request:?} came to {before:?} and now to {outcome:?}");
        self.replies += 1;
        if session.replies.len() > self.limits.session_replies_max as usize
            && let Some((&oldest, _)) = session.replies.first_key_value()
        {
            // Forgotten means never applied again, so everything up to it is forgotten as well.
            self.replies -= session.forget_below(request.client, oldest.saturating_add(1), hash);
        }
        while self.replies > self.limits.session_replies_total_max as usize {
            let others = (self.emptied.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
            let Some(&oldest) = self.by_heard.range(others).next() else { break };
            self.forget_replies(oldest.1, hash);
            self.emptied = Some(oldest);
        }
    }

    /// Forgets a client's replies and keeps its session: its retries are refused from now on, and
    /// what it writes later is new.
    fn forget_replies(&mut self, client: ClientId, hash: &mut StateHash) {
        let Some(session) = self.clients.get_mut(&client) else { return };
        let Some((&newest, _)) = session.replies.last_key_value() else { return };
        self.replies -= session.forget_below(client, newest.saturating_add(1), hash);
        self.dirty.insert(client);
    }

    /// Drops the sessions whose clients were not heard of for too long.
    fn expire(&mut self, now_us: u64, hash: &mut StateHash) {
        let expiry_us = self.limits.session_expiry_us;
        while let Some(&(heard, oldest)) = self.by_heard.first()
            && let Some(session) = self.clients.get(&oldest)
            && session.heard_us.saturating_add(expiry_us) < now_us
        {
            self.forget_client(heard, oldest, hash);
        }
    }

    /// Makes `client` the one heard of last, creating its session, and drops those that are too
    /// many.
    fn hear(&mut self, client: ClientId, now: Timestamp, now_us: u64, hash: &mut StateHash) {
        let session = self.clients.entry(client).or_default();
        if self.by_heard.remove(&(session.heard, client)) {
            hash.subtract(session.head_hash(client));
        }
        session.heard = now;
        session.heard_us = now_us;
        hash.add(session.head_hash(client));
        self.by_heard.insert((now, client));
        self.dirty.insert(client);
        while self.clients.len() > self.limits.sessions_max as usize
            && let Some(&(heard, oldest)) = self.by_heard.first()
        {
            self.forget_client(heard, oldest, hash);
        }
    }

    fn forget_client(&mut self, heard: Timestamp, client: ClientId, hash: &mut StateHash) {
        self.by_heard.remove(&(heard, client));
        if let Some(session) = self.clients.remove(&client) {
            self.replies -= session.replies.len();
            hash.subtract(session.head_hash(client));
            for (sequence, outcome) in &session.replies {
                hash.subtract(reply_hash(client, *sequence, *outcome));
            }
        }
        self.dirty.insert(client);
        // Sessions are dropped in the order in which their clients were heard of.
        if let Some(known_since) = self.known_since.replace(heard) {
            hash.subtract(known_since_hash(known_since));
        }
        hash.add(known_since_hash(heard));
    }

    /// Adds the changes since the last seal to the batch of the next.
    pub fn save(&self, batch: &mut WriteBatch) {
        if let Some(known_since) = self.known_since {
            let known_since = known_since.0.to_le_bytes().to_vec();
            batch.put(keys::meta(META_KNOWN_SINCE), known_since.into());
        }
        for client in &self.dirty {
            let row = keys::session(*client);
            match self.clients.get(client) {
                Some(session) => batch.put(row, session.encode()),
                None => batch.delete(row),
            }
        }
    }

    /// The changes are in the engine.
    pub fn saved(&mut self) {
        self.dirty.clear();
    }
}

/// What keeps the kinds of facts about sessions apart in the state hash.
const HASH_HEAD: u64 = 1;
const HASH_REPLY: u64 = 2;
const HASH_KNOWN_SINCE: u64 = 3;

const HEAD_BYTES: usize = 24;
/// Of a reply without its result.
const REPLY_HEAD_BYTES: usize = 16;

impl Session {
    /// Returns how many replies it forgot.
    fn forget_below(&mut self, client: ClientId, below: u64, hash: &mut StateHash) -> usize {
        if below <= self.answered_below {
            return 0;
        }
        let before = self.replies.len();
        hash.subtract(self.head_hash(client));
        self.answered_below = below;
        hash.add(self.head_hash(client));
        while let Some(first) = self.replies.first_entry()
            && *first.key() < below
        {
            hash.subtract(reply_hash(client, *first.key(), *first.get()));
            first.remove();
        }
        before - self.replies.len()
    }

    fn head_hash(&self, client: ClientId) -> u64 {
        let heard = self.heard.0 as u64;
        words_hash(HASH_HEAD, &[client.0, heard, self.heard_us, self.answered_below])
    }

    /// `heard i64 | heard by the log's clock u64 | answered below u64`, then for each reply
    /// `sequence u64 | timestamp i64 | result`, in order of sequence, little-endian.
    fn encode(&self) -> Bytes {
        let replies_bytes = self.replies.len() * (REPLY_HEAD_BYTES + 1);
        let mut out = Vec::with_capacity(HEAD_BYTES + replies_bytes);
        out.put_i64_le(self.heard.0);
        out.put_u64_le(self.heard_us);
        out.put_u64_le(self.answered_below);
        for (sequence, WriteOutcome { timestamp, result }) in &self.replies {
            out.put_u64_le(*sequence);
            out.put_i64_le(timestamp.0);
            let begin = out.len();
            result.encode(&mut out);
            assert!(out.len() - begin <= RESULT_BYTES_MAX, "{result:?} is too long to be kept");
        }
        out.into()
    }

    fn decode(bytes: &[u8]) -> Option<Session> {
        let (mut head, mut fields) = bytes.split_at_checked(HEAD_BYTES)?;
        let mut replies = BTreeMap::new();
        while !fields.is_empty() {
            let sequence = fields.try_get_u64_le().ok()?;
            let timestamp = Timestamp(fields.try_get_i64_le().ok()?);
            let result = OpResult::decode(&mut fields)?;
            replies.insert(sequence, WriteOutcome { timestamp, result });
        }
        Some(Session {
            heard: Timestamp(head.get_i64_le()),
            heard_us: head.get_u64_le(),
            answered_below: head.get_u64_le(),
            replies,
        })
    }
}

/// Adds a session's row to the hash of a state; `None` when it cannot be read.
pub(super) fn add_stored(hash: &mut StateHash, row: &[u8], value: &[u8]) -> Option<()> {
    let client = keys::decode_session(row).ok()?;
    let session = Session::decode(value)?;
    hash.add(session.head_hash(client));
    for (sequence, outcome) in &session.replies {
        hash.add(reply_hash(client, *sequence, *outcome));
    }
    Some(())
}

/// The row of the time since when every client that writes has a session.
pub(super) const META_KNOWN_SINCE: &str = "known-since";

/// Reads the value of the row [`META_KNOWN_SINCE`]; `None` when it cannot be read.
pub(super) fn decode_known_since(value: &[u8]) -> Option<Timestamp> {
    value.try_into().ok().map(|bytes| Timestamp(i64::from_le_bytes(bytes)))
}

/// Its part in the hash of a state.
pub(super) fn known_since_hash(known_since: Timestamp) -> u64 {
    words_hash(HASH_KNOWN_SINCE, &[known_since.0 as u64])
}

fn reply_hash(client: ClientId, sequence: u64, outcome: WriteOutcome) -> u64 {
    let WriteOutcome { timestamp, result } = outcome;
    let [kind, detail] = result.words();
    words_hash(HASH_REPLY, &[client.0, sequence, timestamp.0 as u64, kind, detail])
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::*;
    use crate::limits;

    fn request(client: u64, sequence: u64, answered_below: u64) -> RequestId {
        RequestId { client: ClientId(client), sequence, answered_below, begun: Timestamp::ZERO }
    }

    fn done(timestamp: i64) -> WriteOutcome {
        WriteOutcome { timestamp: Timestamp(timestamp), result: OpResult::Done }
    }

    /// Applies a command the way the state machine does; the timestamp that is answered.
    fn apply(
        sessions: &mut Sessions,
        hash: &mut StateHash,
        request: RequestId,
        now: i64,
    ) -> Option<Timestamp> {
        match sessions.admit(&request, Timestamp(now), now as u64, hash) {
            DedupVerdict::New => {
                sessions.record(&request, done(now), hash);
                Some(Timestamp(now))
            }
            DedupVerdict::Repeated(outcome) => Some(outcome.timestamp),
            DedupVerdict::Forgotten | DedupVerdict::UnknownSession => None,
        }
    }

    fn none() -> (Sessions, StateHash) {
        (Sessions::new(StateLimits::default()), StateHash::default())
    }

    /// The hash computed anew from what the sessions hold.
    fn hash_from_scratch(sessions: &Sessions) -> StateHash {
        let mut hash = StateHash::default();
        for (client, session) in &sessions.clients {
            hash.add(session.head_hash(*client));
            for (sequence, outcome) in &session.replies {
                hash.add(reply_hash(*client, *sequence, *outcome));
            }
        }
        if let Some(known_since) = sessions.known_since {
            hash.add(known_since_hash(known_since));
        }
        hash
    }

    #[test]
    fn a_retry_gets_the_first_outcome_until_it_was_declared_answered() {
        let (mut sessions, mut hash) = none();
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 1), 10), Some(Timestamp(10)));
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 1), 11), Some(Timestamp(10)));
        assert_eq!(apply(&mut sessions, &mut hash, request(2, 1, 1), 12), Some(Timestamp(12)));
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 3, 3), 13), Some(Timestamp(13)));
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 1), 14), None);
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 2, 1), 15), None);
        assert_eq!(apply(&mut sessions, &mut hash, request(2, 1, 1), 16), Some(Timestamp(12)));
        assert_eq!(hash, hash_from_scratch(&sessions));
    }

    const EXPIRY: i64 = limits::SESSION_EXPIRY.as_micros() as i64;

    #[test]
    fn a_silent_client_is_forgotten_in_the_end() {
        let (mut sessions, mut hash) = none();
        apply(&mut sessions, &mut hash, request(1, 1, 1), 10);
        apply(&mut sessions, &mut hash, request(2, 1, 1), 20);
        let now = 10 + EXPIRY;
        apply(&mut sessions, &mut hash, request(3, 1, 1), now);
        assert_eq!(sessions.clients.len(), 3, "the last moment counts");
        apply(&mut sessions, &mut hash, request(3, 2, 2), now + 1);
        assert_eq!(sessions.clients.len(), 2);
        assert_eq!(hash, hash_from_scratch(&sessions));
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 2, 1), now + 2), None);
        assert_eq!(sessions.clients.len(), 2, "nothing is remembered of what is refused");
        assert_eq!(hash, hash_from_scratch(&sessions));
    }

    /// A retry of a write whose session is gone was applied a second time, and so was a late copy
    /// of a client's first write, after which the client was known again and the retries of its
    /// other writes were, too.
    #[test]
    fn nothing_of_a_client_that_was_forgotten_is_applied_again() {
        let (mut sessions, mut hash) = none();
        let mut admit = |request: RequestId, now: i64| {
            let admission = sessions.admit(&request, Timestamp(now), now as u64, &mut hash);
            if admission == DedupVerdict::New {
                sessions.record(&request, done(now), &mut hash);
            }
            assert_eq!(hash, hash_from_scratch(&sessions));
            admission
        };
        let begun = |client, begun| RequestId { begun: Timestamp(begun), ..request(client, 1, 1) };
        assert_eq!(admit(request(1, 2, 1), 1), DedupVerdict::New, "in whatever order they come");
        assert_eq!(admit(request(1, 1, 1), 2), DedupVerdict::New);
        assert_eq!(admit(request(1, 2, 1), 3), DedupVerdict::Repeated(done(1)));
        let late = 4 + EXPIRY;
        assert_eq!(admit(request(1, 1, 1), late), DedupVerdict::UnknownSession);
        assert_eq!(admit(request(1, 2, 1), late + 1), DedupVerdict::UnknownSession);
        assert_eq!(admit(begun(2, 2), late + 2), DedupVerdict::UnknownSession);
        assert_eq!(
            admit(begun(2, 3), late + 3),
            DedupVerdict::New,
            "nobody forgotten began so late"
        );
        let untold = begun(3, late + 4);
        assert_eq!(admit(untold, late + 4), DedupVerdict::UnknownSession, "no server said so");
    }

    /// However many there are, a client that has just begun is not refused.
    #[test]
    fn a_steady_stream_of_new_clients_is_served() {
        let limits = StateLimits { sessions_max: 10, ..Default::default() };
        let mut sessions = Sessions::new(limits);
        let mut hash = StateHash::default();
        for client in 1..100 {
            // Ten others write between its greeting and its first write.
            let begun = Timestamp((client - 10).max(0));
            let request = RequestId { begun, ..request(client as u64, 1, 1) };
            let admission = sessions.admit(&request, Timestamp(client), client as u64, &mut hash);
            assert_eq!(admission, DedupVerdict::New, "of {client}");
        }
        let request = RequestId { begun: Timestamp(88), ..request(100, 1, 1) };
        let admission = sessions.admit(&request, Timestamp(100), 100, &mut hash);
        assert_eq!(admission, DedupVerdict::UnknownSession, "eleven have written since");
    }

    #[test]
    fn too_many_clients_push_out_the_one_unheard_of_for_longest() {
        let (mut sessions, mut hash) = none();
        for client in 0..limits::SESSIONS_MAX as u64 {
            apply(&mut sessions, &mut hash, request(client, 1, 1), client as i64 + 1);
        }
        let now = limits::SESSIONS_MAX as i64 + 1;
        assert_eq!(apply(&mut sessions, &mut hash, request(0, 1, 1), now), Some(Timestamp(1)));
        apply(&mut sessions, &mut hash, request(u64::MAX, 1, 1), now + 1);
        assert_eq!(sessions.clients.len(), limits::SESSIONS_MAX);
        assert!(!sessions.clients.contains_key(&ClientId(1)));
        assert!(sessions.clients.contains_key(&ClientId(0)));
        assert_eq!(hash, hash_from_scratch(&sessions));
    }

    #[test]
    fn a_client_that_never_says_what_it_has_got_loses_its_oldest_replies() {
        let (mut sessions, mut hash) = none();
        let most = limits::SESSION_REPLIES_MAX as u64;
        for sequence in 1..=most + 1 {
            apply(&mut sessions, &mut hash, request(1, sequence, 0), sequence as i64);
        }
        assert_eq!(sessions.clients[&ClientId(1)].replies.len() as u64, most);
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 0), 9999), None);
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 2, 0), 9999), Some(Timestamp(2)));
        assert_eq!(hash, hash_from_scratch(&sessions));
    }

    #[test]
    fn too_many_replies_push_out_those_of_the_clients_unheard_of_for_longest() {
        let (mut sessions, mut hash) = none();
        let each = limits::SESSION_REPLIES_MAX as u64;
        let clients = limits::SESSION_REPLIES_TOTAL_MAX as u64 / each;
        let mut now = 0;
        for client in 1..=clients {
            for sequence in 1..=each {
                now += 1;
                apply(&mut sessions, &mut hash, request(client, sequence, 0), now);
            }
        }
        assert_eq!(sessions.replies, limits::SESSION_REPLIES_TOTAL_MAX);
        // The first client is heard of again, so the second is the one to go.
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 1), now + 1), Some(Timestamp(1)));
        apply(&mut sessions, &mut hash, request(u64::MAX, 1, 1), now + 2);
        assert!(sessions.clients[&ClientId(2)].replies.is_empty());
        assert_eq!(sessions.clients.len() as u64, clients + 1);
        assert_eq!(sessions.replies as u64, (clients - 1) * each + 1);
        assert_eq!(hash, hash_from_scratch(&sessions));
        // Of the second client no retry is applied again, and what it writes next is new.
        assert_eq!(apply(&mut sessions, &mut hash, request(2, each, 0), now + 3), None);
        let next = apply(&mut sessions, &mut hash, request(2, each + 1, 0), now + 4);
        assert_eq!(next, Some(Timestamp(now + 4)));
        assert_eq!(hash, hash_from_scratch(&sessions));
    }

    #[test]
    fn sessions_come_back_from_a_checkpoint() {
        let (mut sessions, mut hash) = none();
        for client in 1..5 {
            for sequence in 1..=client {
                let now = (client * 10 + sequence) as i64;
                apply(&mut sessions, &mut hash, request(client, sequence, sequence / 2), now);
            }
        }
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        sessions.save(&mut batch);
        engine.write_durably(&batch).unwrap();
        sessions.saved();
        let loaded = Sessions::load(&engine, StateLimits::default()).unwrap();
        assert_eq!(loaded.clients, sessions.clients);
        assert_eq!(loaded.by_heard, sessions.by_heard);
        assert_eq!(loaded.replies, sessions.replies);
        let mut stored = StateHash::default();
        let mut add = |row: &[u8], value: &[u8]| {
            add_stored(&mut stored, row, value).unwrap();
            ControlFlow::Continue(())
        };
        engine.scan(&keys::sessions(), Direction::Forward, &mut add).unwrap();
        assert_eq!(stored, hash);
        assert_eq!(hash, hash_from_scratch(&loaded));

        let (mut other, mut other_hash) = (loaded, hash);
        // Whoever was restarted forgets the same clients at the same time.
        let now = 1_000_000 + EXPIRY;
        let fresh = RequestId { begun: Timestamp(now - 1), ..request(9, 1, 1) };
        apply(&mut sessions, &mut hash, fresh, now);
        apply(&mut other, &mut other_hash, fresh, now);
        assert_eq!((&other.clients, other_hash), (&sessions.clients, hash));
        let mut batch = WriteBatch::default();
        sessions.save(&mut batch);
        engine.write_durably(&batch).unwrap();
        let loaded = Sessions::load(&engine, StateLimits::default()).unwrap();
        assert_eq!(loaded.clients, sessions.clients);
        assert_eq!(
            (loaded.known_since, sessions.known_since),
            (Some(Timestamp(44)), Some(Timestamp(44)))
        );
        assert_eq!(hash, hash_from_scratch(&loaded));
        assert_eq!(sessions.clients.len(), 1, "the expired ones left the engine too");
    }

    #[test]
    fn a_damaged_session_is_an_error() {
        assert_eq!(Session::decode(&[0; HEAD_BYTES - 1]), None);
        assert_eq!(Session::decode(&[0; HEAD_BYTES + 1]), None);
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        batch.put(keys::session(ClientId(1)), Bytes::from_static(b"short"));
        engine.write(&batch).unwrap();
        assert!(matches!(
            Sessions::load(&engine, StateLimits::default()),
            Err(ApplyError::Damaged(_))
        ));
    }
}
