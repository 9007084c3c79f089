//! Linearizable reads under way: the read-index protocol (Ongaro's thesis, 6.4), batched.
//!
//! All reads that arrive between two flushes share one *read-index request*: the leader confirms by
//! a round of heartbeats that it still leads, and returns its commit index. Rule: the answer to a
//! request confirms every read that arrived before the request was made, so it also confirms the
//! reads of all earlier requests, however late it comes. A lost request is made up for by the next
//! one. Where answers take longer than the interval after which a request is repeated, several
//! requests are outstanding. That is safe because the commit index that a leader returns is at
//! least the one at the time of the request.

use std::collections::BTreeMap;

use super::RequestToken;
use crate::limits::READ_INDEX_REQUESTS_MAX;
use crate::model::{LogIndex, NodeId};

/// One client's read, and when to give it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingRead {
    pub token: RequestToken,
    pub deadline_us: u64,
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

/// All linearizable reads of this server's clients, and the read-index requests of other servers,
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
    /// Confirmed reads, by the index that must be applied before they are answered.
    confirmed: BTreeMap<LogIndex, Vec<PendingRead>>,
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

    pub fn add(&mut self, read: PendingRead) {
        self.len += 1;
        self.waiting.reads.push(read);
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
        self.repeat || !self.waiting.is_empty()
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

    /// Notes the answer to a request. Returns the other servers' requests that it answers.
    pub fn confirm(&mut self, number: u64, index: LogIndex) -> Vec<(NodeId, u64)> {
        let request = number.wrapping_sub(self.before_first);
        let mut servers = Vec::new();
        if request > self.requests {
            return servers;
        }
        while let Some(first) = self.requested.first_entry()
            && *first.key() <= request
        {
            let batch = first.remove();
            if !batch.reads.is_empty() {
                self.confirmed.entry(index).or_default().extend(batch.reads);
            }
            servers.extend(batch.servers);
        }
        for (server, _) in &servers {
            if let Some(unanswered) = self.unanswered.get_mut(server) {
                assert!(*unanswered > 0, "a request of {server} was answered twice");
                *unanswered -= 1;
            }
        }
        servers
    }

    /// Whether a confirmed read waits for its index to be applied.
    pub fn awaits_application(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Takes the reads that may be answered now that `applied` is applied.
    pub fn take_ready(&mut self, applied: LogIndex) -> Vec<PendingRead> {
        let mut ready = Vec::new();
        while let Some(entry) = self.confirmed.first_entry()
            && *entry.key() <= applied
        {
            ready.append(&mut entry.remove());
        }
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

    /// Takes the reads whose deadline has passed; of each, whether it was confirmed and waited only
    /// for its index to be applied.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<(PendingRead, bool)> {
        let mut expired = Vec::new();
        let mut sift = |reads: &mut Vec<PendingRead>, confirmed: bool| {
            reads.retain(|read| {
                let over = read.deadline_us <= now_us;
                if over {
                    expired.push((*read, confirmed));
                }
                !over
            });
        };
        sift(&mut self.waiting.reads, false);
        self.requested.values_mut().for_each(|batch| sift(&mut batch.reads, false));
        self.requested.retain(|_, batch| !batch.is_empty());
        self.confirmed.values_mut().for_each(|reads| sift(reads, true));
        self.confirmed.retain(|_, reads| !reads.is_empty());
        self.len -= expired.len();
        expired.sort_unstable_by_key(|(read, _)| read.token);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(request: u64) -> PendingRead {
        PendingRead { token: RequestToken { connection: 0, request }, deadline_us: 100 }
    }

    fn tokens(reads: Vec<PendingRead>) -> Vec<u64> {
        reads.into_iter().map(|read| read.token.request).collect()
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
        assert!(reads.confirm(third.wrapping_add(1), 9).is_empty(), "it was never asked");
        assert!(reads.take_ready(9).is_empty());
        reads.confirm(first, 4);
        assert_eq!(tokens(reads.take_ready(4)), [1]);
        // The answer to the second is lost.
        assert_ne!(second, third);
        reads.confirm(third, 5);
        assert_eq!(tokens(reads.take_ready(5)), [2, 3]);
        assert!(reads.is_empty());
        reads.repeat_request(u64::MAX);
        assert!(!reads.is_request_due(), "nothing is left to ask for");
    }

    #[test]
    fn no_request_is_repeated_for_reads_that_have_expired() {
        let mut reads = PendingReads::new(7);
        reads.add(read(1));
        let request = reads.begin_request(0);
        let expired = |reads: &mut PendingReads| -> Vec<(u64, bool)> {
            let number = |(read, confirmed): (PendingRead, bool)| (read.token.request, confirmed);
            reads.take_expired(100).into_iter().map(number).collect()
        };
        assert_eq!(expired(&mut reads), [(1, false)]);
        reads.repeat_request(u64::MAX);
        assert!(!reads.is_request_due());
        reads.confirm(request, 1);
        assert!(reads.take_ready(1).is_empty() && reads.is_empty());
        // One that was confirmed waited for nothing but what is applied.
        reads.add(read(2));
        let request = reads.begin_request(0);
        reads.confirm(request, 5);
        assert_eq!(expired(&mut reads), [(2, true)]);
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
        let owed = reads.confirm(request, 5);
        let count = |server| owed.iter().filter(|(asker, _)| *asker == server).count();
        assert_eq!((count(greedy), count(honest)), (READ_INDEX_REQUESTS_MAX, 1));

        // Answered ones make room.
        reads.add_server(greedy, 9);
        let request = reads.begin_request(0);
        assert_eq!(reads.confirm(request, 5), [(greedy, 9)]);
    }

    #[test]
    fn a_deposed_leader_drops_the_requests_of_other_servers() {
        let mut reads = PendingReads::default();
        for question in 0..=READ_INDEX_REQUESTS_MAX as u64 {
            reads.add_server(NodeId(2), question);
        }
        let before = reads.begin_request(0);
        reads.forget_servers();
        assert!(reads.confirm(before, 5).is_empty());
        reads.add_server(NodeId(2), 1);
        let request = reads.begin_request(0);
        assert_eq!(reads.confirm(request, 5), [(NodeId(2), 1)]);
    }
}
