//! Reads that wait: for the confirmation that this server is up to date, and for the state machine.
//!
//! A linearizable read waits for both. Its confirmation is the read-index protocol (Ongaro's
//! thesis, 6.4), batched.
//!
//! All reads that arrive between two flushes share one *read-index request*, and while
//! [`READ_INDEX_IN_FLIGHT_MAX`] are without an answer those that arrive share the next: the leader
//! confirms by a round of heartbeats that it still leads, and returns its commit index. Rule: the
//! answer to a request confirms every read that arrived before the request was made, so it also
//! confirms the reads of all earlier requests, however late it comes. What was asked over a
//! connection that is lost is asked again at once, and what is not answered after an interval.
//! Where answers take longer than that, more requests are outstanding. That is safe because the
//! commit index that a leader returns is at least the one at the time of the request.
//!
//! A plain read waits for the state machine alone, where it asks for a state that this server's log
//! has reached and its state machine has not. A write is acknowledged when it is committed, and
//! applied a moment later; at a follower, when it hears of the commit. A client that reads what it
//! has just written would be refused in between (SPEC A4), and would go from server to server for
//! nothing. So such a read waits for [`PLAIN_READ_WAIT`], and is judged then by what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RequestToken;
use super::clock::micros;
use crate::limits::READ_INDEX_REQUESTS_MAX;
use crate::model::{AppliedPoint, LogIndex, NodeId, Timestamp};

/// A plain read that asks for what this server has in its log and has not applied yet is held this
/// long, a tick more at most; then it is judged by what is applied. Longer than entries gather for
/// the state machine and a commit takes, and no longer than asking another server does.
const PLAIN_READ_WAIT: Duration = Duration::from_millis(40);

/// Read-index requests without an answer, past which reads that arrive wait for one of them. One
/// would have a read wait for nearly two rounds; with many each read has a round of its own, and
/// three servers work for it that could work for all.
const READ_INDEX_IN_FLIGHT_MAX: usize = 2;

/// Requests about leases that share one confirmation (`node::lease_questions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReadIndexBatch(pub u64);

/// What is answered when a read is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReadOrigin {
    /// A client of this server.
    Client(RequestToken),
    /// This node itself, for those who ask about leases.
    Leases(ReadIndexBatch),
}

/// One read, and when to give it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRead {
    pub reader: ReadOrigin,
    pub deadline_us: u64,
}

/// What a read that was given up had waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AwaitedBy {
    /// A linearizable read, for its confirmation.
    Unconfirmed,
    /// A linearizable read that was confirmed, for its index to be applied.
    Confirmed,
    /// A plain read, for the state that it asks for.
    Plain,
}

/// Reads that wait for the state machine, by what it must have applied before they are answered.
#[derive(Debug, Default)]
struct AppliedReads {
    /// Linearizable reads that are confirmed, by the index that they were confirmed at.
    by_index: BTreeMap<LogIndex, Vec<PendingRead>>,
    /// Plain reads, by the timestamp of the state that they ask for.
    by_timestamp: BTreeMap<Timestamp, Vec<PendingRead>>,
}

impl AppliedReads {
    fn is_empty(&self) -> bool {
        self.by_index.is_empty() && self.by_timestamp.is_empty()
    }

    fn take_reached(&mut self, applied: &AppliedPoint) -> Vec<PendingRead> {
        fn take<K: Copy + Ord>(
            waiting: &mut BTreeMap<K, Vec<PendingRead>>,
            reached: K,
            ready: &mut Vec<PendingRead>,
        ) {
            while let Some(first) = waiting.first_entry()
                && *first.key() <= reached
            {
                ready.append(&mut first.remove());
            }
        }
        let mut ready = Vec::new();
        take(&mut self.by_index, applied.index, &mut ready);
        take(&mut self.by_timestamp, applied.timestamp, &mut ready);
        ready
    }
}

/// Reads that share their first read-index request.
#[derive(Debug, Default)]
struct ReadBatch {
    reads: Vec<PendingRead>,
    /// Requests of other servers that this leader answers: (server, the number it gave its
    /// request).
    servers: Vec<(NodeId, u64)>,
}

impl ReadBatch {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.servers.is_empty()
    }
}

/// What the answer to a read-index request confirms at once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ConfirmedAtOnce {
    /// Requests of other servers, which wait for what they have applied themselves.
    pub servers: Vec<(NodeId, u64)>,
    /// Requests about leases, some of which need nothing to be applied.
    pub leases: Vec<ReadIndexBatch>,
}

/// All reads of this server's clients that wait, and the read-index requests of other servers,
/// until they are answered.
#[derive(Debug, Default)]
pub(super) struct PendingReads {
    /// Reads for which no request was made yet.
    waiting: ReadBatch,
    /// Reads that are not confirmed, by the first request that covers them, counted from 1.
    requested: BTreeMap<u64, ReadBatch>,
    /// Read-index requests made so far.
    requests: u64,
    /// The number before that of the first request.
    before_first: u64,
    last_request_us: u64,
    /// The reads that are not confirmed need another request.
    repeat: bool,
    applied: AppliedReads,
    len: usize,
    /// How many requests of each server are in `waiting` and `requested`.
    unanswered: BTreeMap<NodeId, usize>,
}

impl PendingReads {
    /// No reads yet; requests are numbered from after `before_first`.
    pub fn new(before_first: u64) -> PendingReads {
        PendingReads { before_first, ..PendingReads::default() }
    }

    /// The number of reads of this server's clients.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a linearizable read.
    pub fn add(&mut self, read: PendingRead) {
        self.len += 1;
        self.waiting.reads.push(read);
    }

    /// Adds a plain read that waits until everything up to `timestamp` is applied.
    pub fn add_plain(&mut self, now_us: u64, token: RequestToken, timestamp: Timestamp) {
        self.len += 1;
        let (reader, deadline_us) = (ReadOrigin::Client(token), now_us + micros(PLAIN_READ_WAIT));
        let read = PendingRead { reader, deadline_us };
        self.applied.by_timestamp.entry(timestamp).or_default().push(read);
    }

    /// Adds another server's request, unless [`READ_INDEX_REQUESTS_MAX`] of that server are
    /// unanswered: it repeats a request that is not answered.
    pub fn add_server(&mut self, server: NodeId, number: u64) {
        let unanswered = self.unanswered.entry(server).or_default();
        if *unanswered < READ_INDEX_REQUESTS_MAX {
            *unanswered += 1;
            self.waiting.servers.push((server, number));
        }
    }

    /// Whether a request is to be made, for new reads or again for those not confirmed.
    pub fn is_request_due(&self) -> bool {
        let has_room = self.requested.len() < READ_INDEX_IN_FLIGHT_MAX;
        self.repeat || (has_room && !self.waiting.is_empty())
    }

    /// Begins a request for everything that is not confirmed; returns its number.
    pub fn begin_request(&mut self, now_us: u64) -> u64 {
        self.requests += 1;
        (self.last_request_us, self.repeat) = (now_us, false);
        let batch = std::mem::take(&mut self.waiting);
        if !batch.is_empty() {
            self.requested.insert(self.requests, batch);
        }
        self.before_first.wrapping_add(self.requests)
    }

    /// Notes the answer to a request. Returns what it confirms beside reads, which wait until
    /// everything up to `index` is applied.
    pub fn confirm(&mut self, number: u64, index: LogIndex) -> ConfirmedAtOnce {
        let request = number.wrapping_sub(self.before_first);
        let mut at_once = ConfirmedAtOnce::default();
        if request > self.requests {
            return at_once;
        }
        while let Some(first) = self.requested.first_entry()
            && *first.key() <= request
        {
            let batch = first.remove();
            at_once.leases.extend(batch.reads.iter().filter_map(|read| match read.reader {
                ReadOrigin::Leases(asked) => Some(asked),
                ReadOrigin::Client(_) => None,
            }));
            if !batch.reads.is_empty() {
                self.applied.by_index.entry(index).or_default().extend(batch.reads);
            }
            at_once.servers.extend(batch.servers);
        }
        for (server, _) in &at_once.servers {
            if let Some(unanswered) = self.unanswered.get_mut(server) {
                assert!(*unanswered > 0, "a request of {server} was answered twice");
                *unanswered -= 1;
            }
        }
        at_once
    }

    /// Whether a read waits for the state machine.
    pub fn awaits_application(&self) -> bool {
        !self.applied.is_empty()
    }

    /// Takes the reads that may be answered now that everything up to `applied` is.
    pub fn take_ready(&mut self, applied: &AppliedPoint) -> Vec<PendingRead> {
        let ready = self.applied.take_reached(applied);
        assert!(ready.len() <= self.len, "{} of {} reads are ready", ready.len(), self.len);
        self.len -= ready.len();
        ready
    }

    /// Makes another request due for the reads that are not confirmed, if the last one was made
    /// before `requested_before_us`: it, its answer or the leader was lost. An answer that is
    /// merely late still counts.
    pub fn repeat_request(&mut self, requested_before_us: u64) {
        self.repeat |= self.last_request_us < requested_before_us && !self.requested.is_empty();
    }

    /// Drops the requests of other servers, because this one does not lead any more: they repeat
    /// them at the next leader.
    pub fn forget_servers(&mut self) {
        self.unanswered.clear();
        self.waiting.servers.clear();
        self.requested.values_mut().for_each(|batch| batch.servers.clear());
        self.requested.retain(|_, batch| !batch.is_empty());
    }

    /// Takes the reads whose deadline has passed, with what each waited for.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<(PendingRead, AwaitedBy)> {
        let mut expired = Vec::new();
        let mut sift = |reads: &mut Vec<PendingRead>, awaited_by: AwaitedBy| {
            let late = reads.extract_if(.., |read| read.deadline_us <= now_us);
            expired.extend(late.map(|read| (read, awaited_by)));
        };
        sift(&mut self.waiting.reads, AwaitedBy::Unconfirmed);
        let requested = self.requested.values_mut();
        requested.for_each(|batch| sift(&mut batch.reads, AwaitedBy::Unconfirmed));
        self.requested.retain(|_, batch| !batch.is_empty());
        let AppliedReads { by_index, by_timestamp } = &mut self.applied;
        by_index.values_mut().for_each(|reads| sift(reads, AwaitedBy::Confirmed));
        by_index.retain(|_, reads| !reads.is_empty());
        by_timestamp.values_mut().for_each(|reads| sift(reads, AwaitedBy::Plain));
        by_timestamp.retain(|_, reads| !reads.is_empty());
        self.len -= expired.len();
        expired.sort_unstable_by_key(|(read, _)| read.reader);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: u64) -> PendingRead {
        let reader = ReadOrigin::Client(RequestToken { connection: 0, request });
        PendingRead { reader, deadline_us: 100 }
    }

    fn request(read: &PendingRead) -> u64 {
        match read.reader {
            ReadOrigin::Client(token) => token.request,
            ReadOrigin::Leases(batch) => panic!("{batch:?} was not asked"),
        }
    }

    /// The requests that may be answered once this index is applied.
    fn ready(reads: &mut PendingReads, index: LogIndex) -> Vec<u64> {
        let ready = reads.take_ready(&AppliedPoint { index, ..AppliedPoint::default() });
        ready.iter().map(request).collect()
    }

    fn expired(reads: &mut PendingReads, now_us: u64) -> Vec<(u64, AwaitedBy)> {
        let expired = reads.take_expired(now_us).into_iter();
        expired.map(|(read, awaited_by)| (request(&read), awaited_by)).collect()
    }

    #[test]
    fn reads_that_arrive_while_requests_are_under_way_share_the_next_one() {
        let mut reads = PendingReads::default();
        let first = (0..).take_while(|at| {
            reads.add(read(*at));
            let is_due = reads.is_request_due();
            if is_due {
                reads.begin_request(0);
            }
            is_due
        });
        assert_eq!(first.count(), READ_INDEX_IN_FLIGHT_MAX);
        reads.add(read(10));
        reads.confirm(1, 7);
        assert!(reads.is_request_due());
        let next = reads.begin_request(1);
        assert!(!reads.is_request_due());
        reads.confirm(next, 7);
        assert_eq!(ready(&mut reads, 7), [0, 1, 2, 10]);
        // If none is answered, all are asked for again together.
        (20..30).for_each(|at| reads.add(read(at)));
        reads.begin_request(1);
        (30..40).for_each(|at| reads.add(read(at)));
        reads.begin_request(1);
        reads.add(read(40));
        assert!(!reads.is_request_due());
        reads.repeat_request(2);
        assert!(reads.is_request_due());
    }

    #[test]
    fn a_plain_read_is_held_until_its_state_is_applied_or_its_time_is_up() {
        let wait_us = micros(PLAIN_READ_WAIT);
        let (start_us, later_us) = (1_000, 1_000 + wait_us / 2);
        let mut reads = PendingReads::default();
        let token = |request| RequestToken { connection: 0, request };
        reads.add_plain(start_us, token(1), Timestamp(10));
        reads.add_plain(later_us, token(2), Timestamp(20));
        reads.add_plain(start_us, token(3), Timestamp(30));
        reads.add_plain(later_us, token(4), Timestamp(10));
        let at = |timestamp| {
            let timestamp = Timestamp(timestamp);
            AppliedPoint { timestamp, ..AppliedPoint::default() }
        };
        let mut ready = |timestamp| -> Vec<u64> {
            reads.take_ready(&at(timestamp)).iter().map(request).collect()
        };
        assert!(ready(9).is_empty());
        assert_eq!(ready(10), [1, 4]);
        assert!(reads.awaits_application() && reads.len() == 2);
        assert!(expired(&mut reads, later_us).is_empty());
        assert_eq!(expired(&mut reads, start_us + wait_us), [(3, AwaitedBy::Plain)]);
        assert_eq!(reads.take_ready(&at(20)).len(), 1);
        assert!(!reads.awaits_application() && reads.is_empty());
    }

    #[test]
    fn a_late_answer_confirms_what_arrived_before_its_request_and_nothing_later() {
        // The numbers wrap.
        let mut reads = PendingReads::new(u64::MAX - 1);
        reads.add(read(1));
        let first = reads.begin_request(0);
        assert!(!reads.is_request_due());
        reads.repeat_request(0);
        assert!(!reads.is_request_due(), "not yet");
        reads.add(read(2));
        let second = reads.begin_request(5);
        reads.repeat_request(6);
        assert!(reads.is_request_due());
        reads.add(read(3));
        let third = reads.begin_request(6);
        let unasked = reads.confirm(third.wrapping_add(1), 9);
        assert_eq!(unasked, ConfirmedAtOnce::default(), "it was never asked");
        assert!(ready(&mut reads, 9).is_empty());
        reads.confirm(first, 4);
        assert_eq!(ready(&mut reads, 4), [1]);
        // The answer to the second is lost.
        assert_ne!(second, third);
        reads.confirm(third, 5);
        assert_eq!(ready(&mut reads, 5), [2, 3]);
        assert!(reads.is_empty());
        reads.repeat_request(u64::MAX);
        assert!(!reads.is_request_due(), "nothing is left to ask for");
    }

    #[test]
    fn no_request_is_repeated_for_reads_that_have_expired() {
        let mut reads = PendingReads::new(7);
        reads.add(read(1));
        let request = reads.begin_request(0);
        assert_eq!(expired(&mut reads, 100), [(1, AwaitedBy::Unconfirmed)]);
        reads.repeat_request(u64::MAX);
        assert!(!reads.is_request_due());
        reads.confirm(request, 1);
        assert!(ready(&mut reads, 1).is_empty() && reads.is_empty());
        // One that was confirmed waited for nothing but what is applied.
        reads.add(read(2));
        let request = reads.begin_request(0);
        reads.confirm(request, 5);
        assert_eq!(expired(&mut reads, 100), [(2, AwaitedBy::Confirmed)]);
        assert!(reads.is_empty());
    }

    #[test]
    fn the_unanswered_requests_of_a_server_are_bounded() {
        let (greedy, honest) = (NodeId(2), NodeId(3));
        let mut reads = PendingReads::default();
        for question in 0..3 * READ_INDEX_REQUESTS_MAX as u64 {
            reads.add_server(greedy, question);
            // Some wait, some have been asked for.
            if question % 1000 == 0 {
                reads.begin_request(question);
            }
        }
        reads.add_server(honest, 7);
        // Those that are asked for again count as they did.
        reads.repeat_request(u64::MAX);
        reads.add_server(greedy, 8);
        let request = reads.begin_request(0);
        let owed = reads.confirm(request, 5).servers;
        let count = |server| owed.iter().filter(|(asker, _)| *asker == server).count();
        assert_eq!((count(greedy), count(honest)), (READ_INDEX_REQUESTS_MAX, 1));

        // Answered ones make room.
        reads.add_server(greedy, 9);
        let request = reads.begin_request(0);
        assert_eq!(reads.confirm(request, 5).servers, [(greedy, 9)]);
    }

    #[test]
    fn a_deposed_leader_drops_the_requests_of_other_servers() {
        let mut reads = PendingReads::default();
        for question in 0..=READ_INDEX_REQUESTS_MAX as u64 {
            reads.add_server(NodeId(2), question);
        }
        let before = reads.begin_request(0);
        reads.forget_servers();
        assert!(reads.confirm(before, 5).servers.is_empty());
        reads.add_server(NodeId(2), 1);
        let request = reads.begin_request(0);
        assert_eq!(reads.confirm(request, 5).servers, [(NodeId(2), 1)]);
    }
}
