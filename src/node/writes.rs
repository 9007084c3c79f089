//! The writes under way at one server, from receipt to answer.
//!
//! A write is in exactly one place: waiting to be proposed or forwarded, among what has come or,
//! where that was too much at once, among what takes turns (`write_turns`); proposed, under its
//! (term, index), with its outcome to be learned when it is applied; proposed and certain of its
//! outcome; settled, that is committed with a known outcome, waiting for the servers in sync; or
//! forwarded, under the forward's number. It is never found by order of arrival. When leadership is
//! lost everything goes back to waiting: the next leader may get it a second time, and the
//! replicated session makes sure it is applied once.
//!
//! Clients send a write again, by way of another server or on another connection, when they do not
//! know what became of it. **A copy of a write that is under way here, or was done lately in this
//! leadership, is not ordered again**: whoever sent it waits with the first for what comes of that,
//! or for the servers in sync to have stored what was done. That is safe since an answer tells what
//! became of the write, not of its copy. A copy that comes later, or to another leader, is ordered,
//! and is recognised when it is applied.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use slab::Slab;

use super::by_index::ByIndex;
use super::config::Distrust;
use super::origins::{Origin, Origins};
use super::write_accounts::{OriginAccounts, is_over_share};
use super::write_turns::WriteTurns;
use crate::limits::{NodeLimits, TRANSACTION_RESULT_BYTES_MAX, origin_of};
use crate::model::{
    ClientId, Effect, EncodedWrite, LogIndex, NodeId, OpShape, RequestId, Term, Timestamp,
    WriteAnswer, WriteOutcome,
};

/// Copies of one write that wait for its outcome together, at most. A client has two under way, and
/// one more for each connection that it loses; copies are in nobody's account, so that a flood of
/// them would keep others' writes out.
const WRITE_COPIES_MAX: usize = 32;

/// Whether a write is a copy of one that is under way, and waits with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joined {
    No,
    Yes,
    TooMany,
}

/// The writes that a server has forwarded to the leader, and of which it knows no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// Number of long writes.
    pub long: usize,
    /// Rows that applying these may look at.
    pub long_rows: usize,
    /// Number of all others.
    pub short: usize,
    /// Bytes of keys and values of the others.
    pub short_bytes: usize,
}

/// One write under way.
#[derive(Debug)]
pub(super) struct PendingWrite {
    /// Everybody who sent it, the first one first; never empty. They share its deadlines, or copies
    /// that keep coming would keep the first from being answered.
    pub origins: Origins,
    /// The client's own address, as of the first.
    pub client: SocketAddr,
    pub write: EncodedWrite,
    /// When to give up, unless it is committed or in another server's hands.
    pub deadline_us: u64,
    /// When to give up whatever happens to it: however often leaders change or forwards are lost,
    /// its client hears something in bounded time.
    pub give_up_us: u64,
    /// What is known of it apart from the place it is in now: earlier leaders may have proposed it.
    pub effect: Effect,
    /// It has been proposed or forwarded before, and may have been applied though nobody has said
    /// so.
    pub resent: bool,
    /// Not to be forwarded before.
    pub not_before_us: u64,
    /// The console has shown it as received by the leader, or as forwarded.
    pub shown_as_leader: bool,
    pub shown_as_forwarder: bool,
}

impl PendingWrite {
    /// Whether another write is this one once more, and its answer the same. A client that gives
    /// two writes one identity is answered as the session does it, when they are applied.
    fn is_repeated_by(&self, other: &EncodedWrite) -> bool {
        identity(&self.write.request) == identity(&other.request) && self.write.shape == other.shape
    }

    /// It is long, or comes after a long one of its client, and waits for its turn as long as
    /// anything may wait.
    pub fn wait_for_turn(&mut self) {
        self.deadline_us = self.give_up_us;
    }

    /// More is known of its effect.
    pub fn has_at_least(&mut self, effect: Effect) {
        self.effect = self.effect.max(effect);
    }
}

/// Bytes of what settled transactions tell while servers in sync have not stored them. Without it a
/// server that is slow to store would have the leader hold a mebibyte for each of thousands.
const TOLD_BYTES_MAX: usize = 32 * TRANSACTION_RESULT_BYTES_MAX;

/// What makes two writes the same.
type Identity = (ClientId, u64);

fn identity(request: &RequestId) -> Identity {
    (request.client, request.sequence)
}

/// What is known of writes by what they are: which are under way, and the outcomes of those that
/// were answered last in this leadership, as far as the outcome is all that there was to tell.
#[derive(Debug, Default)]
struct KnownWrites {
    /// A write that is neither under way nor answered has none.
    writes: HashMap<Identity, KnownWrite>,
    /// Those that are answered, the oldest first.
    answered: VecDeque<Identity>,
}

#[derive(Debug, Default)]
struct KnownWrite {
    /// Its key among those under way; of two that are not the same and have one identity the
    /// later.
    under_way: Option<usize>,
    answered: Option<(LogIndex, WriteOutcome)>,
}

impl KnownWrites {
    /// The key of the write of this identity that is under way.
    fn under_way(&self, write: Identity) -> Option<usize> {
        self.writes.get(&write)?.under_way
    }

    /// A write is under way. Returns the outcome of one of the same identity that was answered.
    fn begin(&mut self, write: Identity, key: usize) -> Option<(LogIndex, WriteOutcome)> {
        let known = self.writes.entry(write).or_default();
        known.under_way = Some(key);
        known.answered
    }

    /// A write is not under way any more.
    fn end(&mut self, write: Identity, key: usize) {
        if let Entry::Occupied(mut known) = self.writes.entry(write) {
            known.get_mut().under_way.take_if(|under_way| *under_way == key);
            if known.get().under_way.is_none() && known.get().answered.is_none() {
                known.remove();
            }
        }
    }

    /// A write is not under way any more, because it was answered with its outcome. No more than
    /// `most` are remembered.
    fn answer(
        &mut self,
        write: Identity,
        key: usize,
        (index, outcome): (LogIndex, WriteOutcome),
        most: usize,
    ) {
        let known = self.writes.entry(write).or_default();
        known.under_way.take_if(|under_way| *under_way == key);
        if known.answered.replace((index, outcome)).is_none() {
            self.answered.push_back(write);
        }
        while self.answered.len() > most {
            let oldest = self.answered.pop_front();
            oldest.into_iter().for_each(|oldest| self.forget_answered(oldest));
        }
    }

    fn forget_answered(&mut self, write: Identity) {
        if let Entry::Occupied(mut known) = self.writes.entry(write) {
            known.get_mut().answered = None;
            if known.get().under_way.is_none() {
                known.remove();
            }
        }
    }

    /// The leadership in which they were answered is over.
    fn forget_all_answered(&mut self) {
        let answered = std::mem::take(&mut self.answered);
        answered.into_iter().for_each(|write| self.forget_answered(write));
    }
}

/// How much work it is to apply a write, by which it takes turns (see `long_writes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteLength {
    /// It looks at one row.
    Single,
    /// It looks at some more, of which many such writes make much.
    Several,
    /// It is much by itself.
    Long,
}

/// The writes of clients that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Writes {
    all: Slab<PendingWrite>,
    accounts: OriginAccounts,
    /// The place in `accounts` where each of `all` is counted, by its key.
    account_of: Vec<usize>,
    known: KnownWrites,
    /// How many origins all of them have.
    origins: usize,
    /// Those that have come since what waits was last looked at, and others that wait anew.
    waiting: VecDeque<usize>,
    /// Those that were left over then, and come before those in `waiting`.
    turns: WriteTurns,
    proposed: BTreeMap<(Term, LogIndex), usize>,
    /// Known to be new in this leadership; see `early_ack`.
    known_new: ByIndex<(usize, WriteAnswer)>,
    settled: ByIndex<(usize, WriteAnswer)>,
    /// Bytes of what settled transactions tell.
    told_bytes: usize,
    forwarded: HashMap<u64, (usize, NodeId)>,
    /// Bytes of keys and values in those of them that are not long.
    forwarded_bytes: usize,
    /// How many of them are long.
    forwarded_long: usize,
    /// Rows that the long ones of them look at.
    forwarded_long_rows: usize,
    last_forward: u64,
    bytes: usize,
    long_bytes: usize,
    /// A write of more rows is long.
    short_rows_max: usize,
    /// Rows that those of them look at which are not single.
    work_rows: usize,
}

impl Writes {
    /// None yet; forwards are numbered from after `last_forward`, and a write that looks at more
    /// than `short_rows_max` rows is long.
    pub fn new(last_forward: u64, short_rows_max: usize) -> Writes {
        Writes { last_forward, short_rows_max, ..Writes::default() }
    }

    /// Writes and copies of them that are to be answered.
    pub fn len(&self) -> usize {
        self.origins
    }

    /// Why no further write of a client at this address is taken, if so: those under way are as
    /// long as they may be, or its origin has more of what is taken than others leave it.
    pub fn is_full_for(&self, client: IpAddr, limits: &NodeLimits) -> Option<&'static str> {
        let (own, own_bytes) = self.accounts.of(origin_of(client));
        let (most, bytes_max) = (limits.pending_writes_max, limits.pending_write_bytes_max);
        if is_over_share(own, self.all.len(), most) {
            Some("too many writes are under way at this server")
        } else if self.bytes >= bytes_max || is_over_share(own_bytes, self.bytes, bytes_max) {
            Some("too many bytes are being written at this server")
        } else {
            None
        }
    }

    /// Bytes of memory of keys and values in long writes.
    pub fn long_bytes(&self) -> usize {
        self.long_bytes
    }

    /// How long a write of this shape is.
    pub fn length(&self, shape: &OpShape) -> WriteLength {
        match shape.work_rows {
            rows if rows > self.short_rows_max => WriteLength::Long,
            0..=1 => WriteLength::Single,
            _ => WriteLength::Several,
        }
    }

    /// Whether a write of this shape is long: such ones take turns (see `long_writes`).
    pub fn is_long(&self, shape: &OpShape) -> bool {
        self.length(shape) == WriteLength::Long
    }

    /// Rows that all of them look at which are not single.
    pub fn work_rows(&self) -> usize {
        self.work_rows
    }

    /// Whether any of them may be long.
    pub fn may_have_long_ones(&self) -> bool {
        self.work_rows > self.short_rows_max
    }

    /// Rows of a write that count in [`work_rows`](Writes::work_rows).
    fn counted_rows(&self, shape: &OpShape) -> usize {
        match self.length(shape) {
            WriteLength::Single => 0,
            WriteLength::Several | WriteLength::Long => shape.work_rows,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Checks that each write is in exactly one place, as it is whenever the node has worked out
    /// what follows from its inputs, and that each is to be answered to somebody.
    pub fn check_places(&self) {
        let places = [
            self.waiting(),
            self.proposed.len(),
            self.known_new.len(),
            self.settled.len(),
            self.forwarded.len(),
        ];
        assert_eq!(
            places.iter().sum::<usize>(),
            self.all.len(),
            "writes waiting, proposed, known to be new, settled and forwarded: {places:?}"
        );
        assert!(
            self.origins >= self.all.len() && self.long_bytes <= self.bytes,
            "{} origins of {} writes, {} of {} bytes in long ones",
            self.origins,
            self.all.len(),
            self.long_bytes,
            self.bytes
        );
    }

    pub fn has_waiting(&self) -> bool {
        self.waiting() > 0
    }

    /// How many wait to be proposed or forwarded.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.turns.len()
    }

    /// Takes in a write, which waits to be ordered unless it is a copy of one that was done.
    pub fn add(&mut self, pending: PendingWrite) {
        assert!(!pending.origins.is_empty(), "nobody waits for {:?}", pending.write.request);
        self.bytes += pending.write.memory_bytes();
        if self.is_long(&pending.write.shape) {
            self.long_bytes += pending.write.memory_bytes();
        }
        self.origins += pending.origins.len();
        let identity = identity(&pending.write.request);
        self.work_rows += self.counted_rows(&pending.write.shape);
        let origin = origin_of(pending.client.ip());
        let account = self.accounts.begin(origin, pending.write.memory_bytes());
        let key = self.all.insert(pending);
        // A slab gives each new key the lowest number that it never had, or one that is free.
        match self.account_of.get_mut(key) {
            Some(place) => *place = account,
            None => self.account_of.push(account),
        }
        let done = self.known.begin(identity, key);
        match done.filter(|(index, _)| !self.settled.contains(*index)) {
            Some((index, outcome)) => {
                self.settled.insert(index, (key, WriteAnswer::of(outcome)));
            }
            None => self.waiting.push_back(key),
        }
    }

    /// Has `origin` wait with whoever sent this write before, if it is under way.
    pub fn join(&mut self, write: &EncodedWrite, origin: Origin) -> Joined {
        let found = self.known.under_way(identity(&write.request));
        let first = found.and_then(|key| self.all.get_mut(key));
        let Some(first) = first.filter(|first| first.is_repeated_by(write)) else {
            return Joined::No;
        };
        if first.origins.len() >= WRITE_COPIES_MAX {
            return Joined::TooMany;
        }
        first.origins.push(origin);
        self.origins += 1;
        Joined::Yes
    }

    /// Removes a write of this leadership that is answered with its outcome and nothing else, which
    /// is remembered for copies of it: of no more than `most` writes.
    pub fn remove_answered(
        &mut self,
        key: usize,
        index: LogIndex,
        outcome: WriteOutcome,
        most: usize,
    ) -> PendingWrite {
        let pending = self.take_out(key);
        self.known.answer(identity(&pending.write.request), key, (index, outcome), most);
        pending
    }

    /// Takes everything that waits, in its turn, to place or to drop each one.
    pub fn take_waiting(&mut self) -> VecDeque<usize> {
        if self.turns.is_empty() {
            return std::mem::take(&mut self.waiting);
        }
        self.give_turns();
        self.turns.take_all()
    }

    /// Takes the next write that waits, to place or to drop it.
    pub fn take_next_waiting(&mut self) -> Option<usize> {
        if self.turns.is_empty() {
            return self.waiting.pop_front();
        }
        self.give_turns();
        self.turns.pop()
    }

    /// Lets a write wait with those that have come last.
    pub fn wait(&mut self, key: usize) {
        self.waiting.push_back(key);
    }

    /// Lets a write wait that was left over: it takes turns with the others that were.
    pub fn wait_in_turn(&mut self, key: usize) {
        let pending = &self.all[key];
        let origin = origin_of(pending.client.ip());
        self.turns.push(key, pending.write.request.client, origin);
    }

    /// Puts back writes that were taken and not placed, before those of their origins, and has
    /// everything that is left over take turns.
    pub fn leave_in_turns(&mut self, keys: VecDeque<usize>) {
        // What was taken is in order of turns: the origin whose write has been placed comes last.
        if self.turns.is_empty() {
            keys.into_iter().for_each(|key| self.wait_in_turn(key));
            return self.give_turns();
        }
        self.give_turns();
        for key in keys.into_iter().rev() {
            let pending = &self.all[key];
            let origin = origin_of(pending.client.ip());
            self.turns.put_back(key, pending.write.request.client, origin);
        }
    }

    fn give_turns(&mut self) {
        while let Some(key) = self.waiting.pop_front() {
            self.wait_in_turn(key);
        }
    }

    /// # Panics
    /// Panics on a key that is not under way: keys come from this container's own places, each of
    /// which holds a key only as long as the write exists.
    pub fn get_mut(&mut self, key: usize) -> &mut PendingWrite {
        &mut self.all[key]
    }

    /// # Panics
    /// As [`get_mut`](Writes::get_mut).
    pub fn get(&self, key: usize) -> &PendingWrite {
        &self.all[key]
    }

    pub fn remove(&mut self, key: usize) -> PendingWrite {
        let pending = self.take_out(key);
        self.known.end(identity(&pending.write.request), key);
        pending
    }

    /// Takes a write out of everything but `known`.
    fn take_out(&mut self, key: usize) -> PendingWrite {
        let pending = self.all.remove(key);
        let (bytes, all_bytes) = (pending.write.memory_bytes(), self.bytes);
        assert!(bytes <= all_bytes, "a write of {bytes} bytes among {all_bytes} of all writes");
        self.bytes -= bytes;
        self.accounts.end(self.account_of[key], bytes);
        if self.is_long(&pending.write.shape) {
            self.long_bytes -= pending.write.memory_bytes();
        }
        self.origins -= pending.origins.len();
        let (rows, all_rows) = (self.counted_rows(&pending.write.shape), self.work_rows);
        assert!(rows <= all_rows, "a write of {rows} rows among {all_rows} of all writes");
        self.work_rows -= rows;
        pending
    }

    /// A write that another leader must decide: whoever is another server is to ask that one.
    /// Returns those, and whether clients of this server wait for it besides; if none do, it is
    /// gone.
    pub fn leave_to_clients(&mut self, key: usize) -> (Vec<(NodeId, u64)>, bool) {
        let pending = &mut self.all[key];
        let servers = pending.origins.take_servers();
        let goes_on = !pending.origins.is_empty();
        self.origins -= servers.len();
        if !goes_on {
            self.remove(key);
        }
        (servers, goes_on)
    }

    pub fn propose(&mut self, key: usize, term: Term, index: LogIndex) {
        let before = self.proposed.insert((term, index), key);
        assert!(before.is_none(), "two writes, {before:?} and {key}, are entry {index} of {term}");
    }

    /// What is to be answered to a write that was proposed at `index` is known, once it is
    /// committed.
    pub fn propose_known_new(&mut self, key: usize, index: LogIndex, answer: WriteAnswer) {
        self.known_new.insert(index, (key, answer));
    }

    /// Everything up to `index` is committed under this leadership.
    pub fn commit(&mut self, index: LogIndex) {
        while let Some((index, write)) = self.known_new.pop_up_to(index) {
            self.settled.insert(index, write);
        }
    }

    /// Whether some write's outcome is known only when it is applied.
    pub fn awaits_application(&self) -> bool {
        !self.proposed.is_empty()
    }

    /// Whether another write may be put in another server's hands, where so many bytes of short
    /// ones may be, and so many rows of long ones: these may wait for their turns there. One of
    /// either may always be there, however long it is.
    pub fn may_forward(&self, key: usize, limits: &NodeLimits) -> bool {
        let shape = &self.all[key].write.shape;
        if self.is_long(shape) {
            let rows = self.forwarded_long_rows + shape.work_rows;
            return self.forwarded_long == 0 || rows <= limits.long_write_rows_max;
        }
        let Forwarded { short, short_bytes, .. } = self.forwarded();
        short == 0 || short_bytes + shape.bytes <= limits.forward_bytes_max
    }

    /// A write is not in another server's hands any more.
    fn came_back(&mut self, key: usize) {
        let shape = &self.all[key].write.shape;
        if self.is_long(shape) {
            let (rows, all_rows) = (shape.work_rows, self.forwarded_long_rows);
            assert!(
                self.forwarded_long > 0 && rows <= all_rows,
                "a long write of {rows} rows came back, of {} with {all_rows} forwarded",
                self.forwarded_long
            );
            self.forwarded_long -= 1;
            self.forwarded_long_rows -= rows;
        } else {
            let (bytes, all_bytes) = (shape.bytes, self.forwarded_bytes);
            assert!(bytes <= all_bytes, "{bytes} bytes came back of {all_bytes} forwarded");
            self.forwarded_bytes -= bytes;
        }
    }

    /// What is in another server's hands.
    pub fn forwarded(&self) -> Forwarded {
        Forwarded {
            long: self.forwarded_long,
            long_rows: self.forwarded_long_rows,
            short: self.forwarded.len() - self.forwarded_long,
            short_bytes: self.forwarded_bytes,
        }
    }

    /// Puts a write in another server's hands; returns the forward's number.
    pub fn forward(&mut self, key: usize, to: NodeId) -> u64 {
        let shape = &self.all[key].write.shape;
        if self.is_long(shape) {
            self.forwarded_long += 1;
            self.forwarded_long_rows += shape.work_rows;
        } else {
            self.forwarded_bytes += shape.bytes;
        }
        self.last_forward = self.last_forward.wrapping_add(1);
        self.forwarded.insert(self.last_forward, (key, to));
        self.last_forward
    }

    /// The forward is answered by `from`.
    pub fn take_answered(&mut self, id: u64, from: NodeId) -> Option<usize> {
        match self.forwarded.get(&id) {
            Some((key, to)) if *to == from => {
                let key = *key;
                self.came_back(key);
                self.forwarded.remove(&id);
                Some(key)
            }
            _ => None,
        }
    }

    /// What was proposed at (term, index) is applied there.
    pub fn take_proposed(&mut self, term: Term, index: LogIndex) -> Option<usize> {
        self.proposed.remove(&(term, index))
    }

    /// A committed write waits until every server in sync has stored `index`.
    pub fn wait_for_stored(&mut self, key: usize, index: LogIndex, answer: WriteAnswer) {
        assert!(answer.timestamp > Timestamp::ZERO, "{answer:?} of entry {index}");
        self.told_bytes += answer.txn_bytes();
        self.settled.insert(index, (key, answer));
    }

    /// Whether so much is to be told already that this answer has to be asked for again.
    pub fn tells_too_much(&self, answer: &WriteAnswer) -> bool {
        self.told_bytes > 0 && self.told_bytes + answer.txn_bytes() > TOLD_BYTES_MAX
    }

    /// The next settled write that every server in sync has stored, as they have everything up to
    /// this index, in log order.
    pub fn take_stored(&mut self, up_to: LogIndex) -> Option<(LogIndex, (usize, WriteAnswer))> {
        let (index, (key, answer)) = self.settled.pop_up_to(up_to)?;
        self.told_bytes -= answer.txn_bytes();
        Some((index, (key, answer)))
    }

    /// Leadership is lost: takes every write whose fate another leader decides now. `distrust` says
    /// whether what this server knew of their outcomes holds.
    pub fn take_led(&mut self, distrust: Option<Distrust>) -> Vec<usize> {
        self.known.forget_all_answered();
        let proposed = std::mem::take(&mut self.proposed).into_values();
        let certain = self.known_new.take_all().map(|(key, _)| key);
        let mut led: Vec<usize> = proposed.chain(certain).collect();
        led.iter().for_each(|key| self.all[*key].has_at_least(Effect::MayBeDone));
        self.told_bytes = 0;
        for (key, answer) in self.settled.take_all() {
            // What is settled is committed and new: no other leader can undo it. Of a write that
            // changed nothing nobody may say that it is done; asked again, the group tells.
            // Nor what a write came to by a state that is in doubt.
            let is_known = match distrust {
                None => true,
                Some(Distrust::Refuted) => false,
                Some(Distrust::Disputed | Distrust::StoreLost) => {
                    !self.all[key].write.shape.depends_on_state
                }
            };
            let is_done = is_known && answer.result.has_taken_effect();
            self.all[key].has_at_least(if is_done { Effect::Done } else { Effect::MayBeDone });
            led.push(key);
        }
        led
    }

    /// Takes back what was forwarded to servers that are `lost`: what becomes of it there is not
    /// known.
    pub fn take_forwarded(&mut self, lost: impl Fn(NodeId) -> bool) -> Vec<usize> {
        let forwarded = self.forwarded.iter().filter(|(_, (_, to))| lost(*to));
        let mut taken: Vec<(u64, usize)> = forwarded.map(|(id, (key, _))| (*id, *key)).collect();
        // A hash map's order is not the same in every run; the numbers' is.
        taken.sort_unstable();
        for (id, key) in &taken {
            self.came_back(*key);
            self.forwarded.remove(id);
            self.all[*key].has_at_least(Effect::MayBeDone);
        }
        taken.into_iter().map(|(_, key)| key).collect()
    }

    /// Waiting or proposed writes whose time is up, taken from their places.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<usize> {
        let all = &mut self.all;
        let mut expired: Vec<usize> = Vec::new();
        let mut is_over = |key: usize, effect: Effect| {
            let over = all[key].deadline_us <= now_us;
            if over {
                all[key].has_at_least(effect);
                expired.push(key);
            }
            over
        };
        self.turns.retain(|key| !is_over(key, Effect::NotDone));
        self.waiting.retain(|key| !is_over(*key, Effect::NotDone));
        self.proposed.retain(|_, key| !is_over(*key, Effect::MayBeDone));
        self.known_new.retain(|(key, _)| !is_over(*key, Effect::MayBeDone));
        expired
    }

    /// Forwarded writes that have not been answered in time: the forward or its answer was lost.
    pub fn take_unanswered(&mut self, now_us: u64) -> Vec<usize> {
        let all = &self.all;
        let mut late: Vec<(u64, usize)> = Vec::new();
        self.forwarded.retain(|id, (key, _)| {
            let over = all[*key].deadline_us <= now_us;
            if over {
                late.push((*id, *key));
            }
            !over
        });
        late.iter().for_each(|(_, key)| self.came_back(*key));
        late.sort_unstable();
        late.iter().for_each(|(_, key)| self.all[*key].has_at_least(Effect::MayBeDone));
        late.into_iter().map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Condition, Facts, OpResult, Put, PutIf, TxnAnswer, TxnResult, TxnVersion, WriteOp,
    };
    use crate::node::RequestToken;
    use bytes::Bytes;

    fn pending(sequence: u64, op: WriteOp) -> PendingWrite {
        let request =
            RequestId { client: ClientId(1), sequence, answered_below: 1, begun: Timestamp::ZERO };
        let token = RequestToken { connection: 1, request: sequence };
        PendingWrite {
            origins: Origins::of(Origin::Client(token)),
            client: ([127, 0, 0, 1], 1).into(),
            write: EncodedWrite::new(request, op),
            deadline_us: 0,
            give_up_us: 0,
            effect: Effect::NotDone,
            resent: false,
            not_before_us: 0,
            shown_as_leader: false,
            shown_as_forwarder: false,
        }
    }

    /// What could not be proposed came back in the order of its last writes, so that an origin with
    /// few of them was always first, and another one waited until its writes were given up.
    #[test]
    fn origins_take_turns_also_if_one_write_at_a_time_can_be_placed() {
        let mut writes = Writes::new(0, 512);
        for sequence in 1..8 {
            let put = Put { key: Bytes::new(), value: Bytes::new(), tells_previous: false };
            let mut pending = pending(sequence, put.into());
            let from_first = sequence <= 3;
            pending.write.request.client = ClientId(if from_first { 1 } else { 2 });
            pending.client = ([10, 0, 0, if from_first { 1 } else { 2 }], 1).into();
            writes.add(pending);
        }
        let mut placed = Vec::new();
        while let Some((first, rest)) = {
            let mut taken = writes.take_waiting();
            taken.pop_front().map(|first| (first, taken))
        } {
            placed.push(writes.get(first).write.request.sequence);
            writes.leave_in_turns(rest);
        }
        // Nothing had been left over when the first was placed; after it they take turns.
        assert_eq!(placed, [1, 2, 4, 3, 5, 6, 7]);
    }

    /// What transactions tell while a server in sync is slow to store them.
    #[test]
    fn what_is_to_be_told_is_bounded() {
        let value = Bytes::from(vec![7; TRANSACTION_RESULT_BYTES_MAX]);
        let facts = Facts { created: Timestamp(1), count: 1, lease: None };
        let found = TxnVersion { timestamp: Timestamp(1), facts, value: Some(value) };
        let results = Some(vec![TxnResult::Get(Some(found))]);
        let told = TxnAnswer { succeeded: true, results };
        let outcome =
            WriteOutcome { timestamp: Timestamp(1), result: OpResult::Txn { branches: 1 } };
        let answer = WriteAnswer { txn: Some(Box::new(told)), ..WriteAnswer::of(outcome) };
        let (mut writes, mut index) = (Writes::new(0, 512), 0);
        while !writes.tells_too_much(&answer) {
            index += 1;
            let put = Put { key: Bytes::new(), value: Bytes::new(), tells_previous: false };
            writes.add(pending(index, put.into()));
            let key = writes.take_next_waiting().unwrap();
            writes.wait_for_stored(key, index, answer.clone());
        }
        assert_eq!(index as usize, TOLD_BYTES_MAX / answer.txn_bytes());
        assert!(!writes.tells_too_much(&WriteAnswer::of(outcome)), "what tells nothing is told");
        assert!(writes.take_stored(1).is_some());
        assert!(!writes.tells_too_much(&answer));
        writes.take_led(None);
        assert_eq!(writes.told_bytes, 0);
    }

    /// A write that this server's state said was done, while another server's said otherwise.
    #[test]
    fn what_a_state_in_doubt_has_come_to_is_not_told_as_done() {
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
        let put = Put { key: key.clone(), value: value.clone(), tells_previous: false };
        let put_if = PutIf { key, value, condition: Condition::Absent };
        let (done, perhaps) = (Effect::Done, Effect::MayBeDone);
        for (distrust, effects) in [
            (None, [done, done]),
            (Some(Distrust::Disputed), [done, perhaps]),
            (Some(Distrust::Refuted), [perhaps, perhaps]),
        ] {
            let mut writes = Writes::new(0, 512);
            for (op, index) in
                [WriteOp::from(put.clone()), put_if.clone().into()].into_iter().zip(1..)
            {
                writes.add(pending(index, op));
                let key = writes.take_next_waiting().unwrap();
                let outcome = WriteOutcome { timestamp: Timestamp(1), result: OpResult::Done };
                writes.wait_for_stored(key, index, WriteAnswer::of(outcome));
            }
            let led = writes.take_led(distrust);
            let found: Vec<Effect> = led.iter().map(|key| writes.get(*key).effect).collect();
            assert_eq!(found, effects, "{distrust:?}");
        }
    }
}
