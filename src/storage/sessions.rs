//! Exactly-once application: what each client was answered, as part of the replicated state.
//!
//! Everything here is a function of the log: expiry and eviction go by the timestamps of the
//! commands, ties by client id, so that all replicas forget the same sessions at the same entry.
//!
//! The timestamps of the log leap when a machine's clock does, or when another leader's is far ahead.
//! That must not make retries that are under way new, so sessions grow old by a clock of their own: it
//! runs with the timestamps, but by no more than [`limits::SESSION_CLOCK_STEP_MAX`] from one write to the
//! next.
//!
//! Sessions live in memory. Those that changed are written to the engine with a checkpoint only;
//! after a crash the engine stands at its last checkpoint, and the log from there on brings them
//! back. What this does not promise: a retry later than [`limits::SESSION_EXPIRY`], or from a client
//! pushed out by [`limits::SESSIONS_MAX`] others or by their
//! [`limits::SESSION_REPLIES_TOTAL_MAX`] replies, is taken for a new write.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;

use bytes::{Buf, BufMut, Bytes};

use super::apply::ApplyError;
use super::engine::{Direction, Engine, WriteBatch};
use super::hash::{StateHash, words_hash};
use super::keys;
use crate::command::StateLimits;
use crate::limits;
use crate::types::{ClientId, RequestId, Timestamp};

/// What the sessions say of a command that is about to be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not seen before: apply it, then [`record`](Sessions::record) its outcome.
    New,
    /// Applied before, with this timestamp.
    Repeated(Timestamp),
    /// Declared answered before: its timestamp, if it had one, is forgotten.
    Forgotten,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// The timestamp of the client's last command.
    heard: Timestamp,
    /// The time of the sessions' own clock then, in microseconds.
    heard_us: u64,
    /// Every sequence below this one is forgotten and will not be applied (again).
    answered_below: u64,
    /// The timestamp of each sequence from `answered_below` on that was applied.
    replies: BTreeMap<u64, Timestamp>,
}

/// All clients' sessions.
pub(super) struct Sessions {
    limits: StateLimits,
    clients: HashMap<ClientId, Session>,
    /// The same clients, the one unheard of for longest first.
    by_heard: BTreeSet<(Timestamp, ClientId)>,
    /// Clients whose rows in the engine are out of date.
    dirty: BTreeSet<ClientId>,
    /// Replies of all clients.
    replies: usize,
    /// When a client was last heard of, by the log and by the sessions' own clock: those of the client
    /// heard of last.
    newest: (Timestamp, u64),
}

impl Sessions {
    fn new(limits: StateLimits) -> Sessions {
        Sessions {
            limits,
            clients: HashMap::new(),
            by_heard: BTreeSet::new(),
            dirty: BTreeSet::new(),
            replies: 0,
            newest: (Timestamp::ZERO, 0),
        }
    }

    /// Reads the sessions of the last checkpoint.
    pub fn load(engine: &dyn Engine, limits: StateLimits) -> Result<Sessions, ApplyError> {
        let mut sessions = Sessions::new(limits);
        let mut damaged = false;
        engine.scan(&keys::sessions(), Direction::Forward, &mut |row, value| match (
            keys::decode_session(row),
            Session::decode(value),
        ) {
            (Ok(client), Some(session)) => {
                sessions.by_heard.insert((session.heard, client));
                sessions.newest = sessions.newest.max((session.heard, session.heard_us));
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
        hash: &mut StateHash,
    ) -> Admission {
        self.hear(request.client, now, hash);
        let Some(session) = self.clients.get_mut(&request.client) else {
            return Admission::New; // `hear` has just seen to it that there is one.
        };
        self.replies -= session.forget_below(request.client, request.answered_below, hash);
        if request.sequence < session.answered_below {
            return Admission::Forgotten;
        }
        match session.replies.get(&request.sequence) {
            Some(timestamp) => Admission::Repeated(*timestamp),
            None => Admission::New,
        }
    }

    /// The greatest sequence of a client that was applied or ruled out; every greater one is new.
    pub fn newest_sequence(&self, client: ClientId) -> u64 {
        let Some(session) = self.clients.get(&client) else { return 0 };
        let ruled_out = session.answered_below.saturating_sub(1);
        let applied = session.replies.last_key_value().map_or(0, |(sequence, _)| *sequence);
        applied.max(ruled_out)
    }

    /// Remembers when a command that was admitted as new was carried out.
    pub fn record(&mut self, request: &RequestId, timestamp: Timestamp, hash: &mut StateHash) {
        let Some(session) = self.clients.get_mut(&request.client) else { return };
        hash.add(reply_hash(request.client, request.sequence, timestamp));
        session.replies.insert(request.sequence, timestamp);
        self.replies += 1;
        if session.replies.len() > self.limits.session_replies_max as usize
            && let Some((&oldest, _)) = session.replies.first_key_value()
        {
            // Forgotten means never applied again, so everything up to it is forgotten as well.
            self.replies -= session.forget_below(request.client, oldest + 1, hash);
        }
        // Never this client: it was heard of last, and one client's replies are fewer than the most.
        while self.replies > self.limits.session_replies_total_max as usize
            && let Some(&(heard, oldest)) = self.by_heard.first()
        {
            self.forget_client(heard, oldest, hash);
        }
    }

    /// Makes `client` the one heard of last, creating its session, and drops those that expired or
    /// are one too many.
    fn hear(&mut self, client: ClientId, now: Timestamp, hash: &mut StateHash) {
        let (last, last_us) = self.newest;
        let passed_us = u64::try_from(now.0.saturating_sub(last.0)).unwrap_or(0);
        let now_us = last_us
            .saturating_add(passed_us.min(limits::SESSION_CLOCK_STEP_MAX.as_micros() as u64));
        self.newest = (now, now_us);
        let expiry_us = self.limits.session_expiry_us;
        while let Some(&(heard, oldest)) = self.by_heard.first()
            && let Some(session) = self.clients.get(&oldest)
            && session.heard_us.saturating_add(expiry_us) < now_us
        {
            self.forget_client(heard, oldest, hash);
        }
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
            for (sequence, timestamp) in &session.replies {
                hash.subtract(reply_hash(client, *sequence, *timestamp));
            }
        }
        self.dirty.insert(client);
    }

    /// Adds the changes since the last checkpoint to its batch.
    pub fn save(&self, batch: &mut WriteBatch) {
        for client in &self.dirty {
            let row = keys::session(*client);
            match self.clients.get(client) {
                Some(session) => batch.put(row, session.encode()),
                None => batch.delete(row),
            }
        }
    }

    /// The changes are durable.
    pub fn saved(&mut self) {
        self.dirty.clear();
    }
}

/// What keeps the two kinds of facts about a session apart in the state hash.
const HASH_HEAD: u64 = 1;
const HASH_REPLY: u64 = 2;

const HEAD_BYTES: usize = 24;
const REPLY_BYTES: usize = 16;

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

    /// `heard i64 | heard by the sessions' clock u64 | answered below u64`, then for each reply `sequence u64 | timestamp i64`, in order of
    /// sequence, little-endian.
    fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.replies.len() * REPLY_BYTES);
        out.put_i64_le(self.heard.0);
        out.put_u64_le(self.heard_us);
        out.put_u64_le(self.answered_below);
        for (sequence, timestamp) in &self.replies {
            out.put_u64_le(*sequence);
            out.put_i64_le(timestamp.0);
        }
        out.into()
    }

    fn decode(bytes: &[u8]) -> Option<Session> {
        let (mut head, replies) = bytes.split_at_checked(HEAD_BYTES)?;
        let (replies, []) = replies.as_chunks::<REPLY_BYTES>() else { return None };
        let decode_reply = |reply: &[u8; REPLY_BYTES]| {
            let mut fields = &reply[..];
            let sequence = fields.get_u64_le();
            (sequence, Timestamp(fields.get_i64_le()))
        };
        Some(Session {
            heard: Timestamp(head.get_i64_le()),
            heard_us: head.get_u64_le(),
            answered_below: head.get_u64_le(),
            replies: replies.iter().map(decode_reply).collect(),
        })
    }
}

/// Adds a session's row to the hash of a state; `None` when it cannot be read.
pub(super) fn add_stored(hash: &mut StateHash, row: &[u8], value: &[u8]) -> Option<()> {
    let client = keys::decode_session(row).ok()?;
    let session = Session::decode(value)?;
    hash.add(session.head_hash(client));
    for (sequence, timestamp) in &session.replies {
        hash.add(reply_hash(client, *sequence, *timestamp));
    }
    Some(())
}

fn reply_hash(client: ClientId, sequence: u64, timestamp: Timestamp) -> u64 {
    words_hash(HASH_REPLY, &[client.0, sequence, timestamp.0 as u64])
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::*;

    fn request(client: u64, sequence: u64, answered_below: u64) -> RequestId {
        RequestId { client: ClientId(client), sequence, answered_below }
    }

    /// Applies a command the way the state machine does; what is answered.
    fn apply(
        sessions: &mut Sessions,
        hash: &mut StateHash,
        request: RequestId,
        now: i64,
    ) -> Option<Timestamp> {
        match sessions.admit(&request, Timestamp(now), hash) {
            Admission::New => {
                sessions.record(&request, Timestamp(now), hash);
                Some(Timestamp(now))
            }
            Admission::Repeated(timestamp) => Some(timestamp),
            Admission::Forgotten => None,
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
            for (sequence, timestamp) in &session.replies {
                hash.add(reply_hash(*client, *sequence, *timestamp));
            }
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

    /// Lets the sessions' clock run for as long as a session lives, by writes of another client; the
    /// timestamp of the last one.
    fn live_on(sessions: &mut Sessions, hash: &mut StateHash, from: i64, client: u64) -> i64 {
        let step = limits::SESSION_CLOCK_STEP_MAX.as_micros() as i64;
        let steps = limits::SESSION_EXPIRY.as_micros() as i64 / step;
        for number in 1..=steps {
            let sequence = number as u64;
            apply(sessions, hash, request(client, sequence, sequence), from + number * step);
        }
        from + steps * step
    }

    #[test]
    fn a_silent_client_is_forgotten_in_the_end() {
        let (mut sessions, mut hash) = none();
        apply(&mut sessions, &mut hash, request(1, 1, 1), 10);
        apply(&mut sessions, &mut hash, request(2, 1, 1), 20);
        let now = live_on(&mut sessions, &mut hash, 10, 3);
        assert_eq!(sessions.clients.len(), 3, "the last moment counts");
        apply(&mut sessions, &mut hash, request(3, 1_000, 1_000), now + 1);
        assert_eq!(sessions.clients.len(), 2);
        assert_eq!(hash, hash_from_scratch(&sessions));
        let again = apply(&mut sessions, &mut hash, request(1, 1, 1), now + 2);
        assert_eq!(again, Some(Timestamp(now + 2)));
    }

    /// The simulation found it: a leader whose clock was an hour ahead made all sessions old at once, and
    /// a write that was being retried was applied twice.
    #[test]
    fn a_clock_that_leaps_makes_no_retry_new() {
        let (mut sessions, mut hash) = none();
        assert_eq!(apply(&mut sessions, &mut hash, request(1, 1, 1), 10), Some(Timestamp(10)));
        for days in 1..50 {
            let now = days * 86_400_000_000;
            assert!(apply(&mut sessions, &mut hash, request(2, 1, 1), now).is_some());
        }
        let late = apply(&mut sessions, &mut hash, request(1, 1, 1), 50 * 86_400_000_000);
        assert_eq!(late, Some(Timestamp(10)));
    }

    #[test]
    fn too_many_clients_push_out_the_one_unheard_of_for_longest() {
        let (mut sessions, mut hash) = none();
        for client in 0..limits::SESSIONS_MAX as u64 {
            apply(&mut sessions, &mut hash, request(client, 1, 1), client as i64);
        }
        let now = limits::SESSIONS_MAX as i64;
        assert_eq!(apply(&mut sessions, &mut hash, request(0, 1, 1), now), Some(Timestamp(0)));
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
    fn too_many_replies_push_out_the_clients_unheard_of_for_longest() {
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
        assert!(!sessions.clients.contains_key(&ClientId(2)));
        assert_eq!(sessions.clients.len() as u64, clients);
        assert_eq!(sessions.replies as u64, (clients - 1) * each + 1);
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
        engine.write(&batch, super::super::engine::Durability::Durable).unwrap();
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
        let now = live_on(&mut sessions, &mut hash, 1_000_000, 9);
        apply(&mut sessions, &mut hash, request(9, 1_000, 1_000), now + 10_000_000);
        // The clock comes back, too: whoever was restarted forgets the same clients at the same time.
        live_on(&mut other, &mut other_hash, 1_000_000, 9);
        apply(&mut other, &mut other_hash, request(9, 1_000, 1_000), now + 10_000_000);
        assert_eq!((&other.clients, other_hash), (&sessions.clients, hash));
        let mut batch = WriteBatch::default();
        sessions.save(&mut batch);
        engine.write(&batch, super::super::engine::Durability::Durable).unwrap();
        assert_eq!(
            Sessions::load(&engine, StateLimits::default()).unwrap().clients,
            sessions.clients
        );
        assert_eq!(sessions.clients.len(), 1, "the expired ones left the engine too");
    }

    #[test]
    fn a_damaged_session_is_an_error() {
        assert_eq!(Session::decode(&[0; HEAD_BYTES - 1]), None);
        assert_eq!(Session::decode(&[0; HEAD_BYTES + 1]), None);
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        batch.put(keys::session(ClientId(1)), Bytes::from_static(b"short"));
        engine.write(&batch, super::super::engine::Durability::Lazy).unwrap();
        assert!(matches!(
            Sessions::load(&engine, StateLimits::default()),
            Err(ApplyError::Damaged(_))
        ));
    }
}
