//! Linearizable reads under way: the read-index protocol, batched.
//!
//! All reads that arrive between two flushes share one *round*: one index asked of the leader, which
//! confirms by a heartbeat round trip that it still leads. A read joins only a round that starts
//! after the read arrived; that is what makes it linearizable. (Ongaro's thesis, 6.4.)

use std::collections::{BTreeMap, HashMap};

use super::RequestToken;
use crate::limits::READ_INDEX_QUESTIONS_MAX;
use crate::types::{LogIndex, NodeId};

/// One client's read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub token: RequestToken,
    pub deadline_us: u64,
}

/// Reads that were asked for together.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub reads: Vec<Read>,
    /// Rounds of other servers that this one answers: (server, its round).
    pub servers: Vec<(NodeId, u64)>,
    pub started_us: u64,
}

#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Not asked for yet.
    pub waiting: Round,
    /// Asked for, by number.
    rounds: HashMap<u64, Round>,
    last_round: u64,
    /// Confirmed: answer when this index is applied.
    confirmed: BTreeMap<LogIndex, Vec<Read>>,
    len: usize,
    /// How many rounds of each server are among `waiting` and `rounds`.
    owed: BTreeMap<NodeId, usize>,
}

impl Reads {
    /// None yet; rounds are numbered from after `last_round`.
    pub fn new(last_round: u64) -> Reads {
        Reads { last_round, ..Reads::default() }
    }

    /// Reads of this server's clients.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn add(&mut self, read: Read) {
        self.len += 1;
        self.waiting.reads.push(read);
    }

    /// Another server asks, unless it is owed too many answers already.
    pub fn add_server(&mut self, server: NodeId, round: u64) {
        let owed = self.owed.entry(server).or_default();
        if *owed < READ_INDEX_QUESTIONS_MAX {
            *owed += 1;
            self.waiting.servers.push((server, round));
        }
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.reads.is_empty() || !self.waiting.servers.is_empty()
    }

    /// Starts a round of everything that waits; returns its number.
    pub fn start(&mut self, now_us: u64) -> u64 {
        self.last_round = self.last_round.wrapping_add(1);
        let round = Round { started_us: now_us, ..std::mem::take(&mut self.waiting) };
        self.rounds.insert(self.last_round, round);
        self.last_round
    }

    /// A round is confirmed. Returns the other servers' rounds that it answers.
    pub fn confirm(&mut self, round: u64, index: LogIndex) -> Vec<(NodeId, u64)> {
        let Some(round) = self.rounds.remove(&round) else { return Vec::new() };
        if !round.reads.is_empty() {
            self.confirmed.entry(index).or_default().extend(round.reads);
        }
        for (server, _) in &round.servers {
            if let Some(owed) = self.owed.get_mut(server) {
                *owed -= 1;
            }
        }
        round.servers
    }

    /// Whether some read waits only for its index to be applied.
    pub fn awaits_application(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Reads that may be answered now that `applied` is.
    pub fn take_ready(&mut self, applied: LogIndex) -> Vec<Read> {
        let mut ready = Vec::new();
        while let Some(entry) = self.confirmed.first_entry()
            && *entry.key() <= applied
        {
            ready.append(&mut entry.remove());
        }
        self.len -= ready.len();
        ready
    }

    /// Rounds started before `started_before_us` go back to waiting: their question or its answer
    /// was lost, or the leader was.
    pub fn retry(&mut self, started_before_us: u64) {
        let mut late: Vec<u64> = self
            .rounds
            .iter()
            .filter(|(_, round)| round.started_us < started_before_us)
            .map(|(number, _)| *number)
            .collect();
        late.sort_unstable();
        for number in late {
            if let Some(round) = self.rounds.remove(&number) {
                self.waiting.reads.extend(round.reads);
                self.waiting.servers.extend(round.servers);
            }
        }
    }

    /// Other servers ask again elsewhere when this one stops leading.
    pub fn forget_servers(&mut self) {
        self.owed.clear();
        self.waiting.servers.clear();
        for round in self.rounds.values_mut() {
            round.servers.clear();
        }
    }

    /// Reads whose time is up, taken from their places.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<Read> {
        let mut expired = Vec::new();
        let mut sift = |reads: &mut Vec<Read>| {
            reads.retain(|read| {
                let over = read.deadline_us <= now_us;
                if over {
                    expired.push(*read);
                }
                !over
            });
        };
        sift(&mut self.waiting.reads);
        self.rounds.values_mut().for_each(|round| sift(&mut round.reads));
        self.confirmed.values_mut().for_each(sift);
        self.confirmed.retain(|_, reads| !reads.is_empty());
        self.len -= expired.len();
        expired.sort_unstable_by_key(|read| read.token);
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_asks_without_end_is_owed_a_bounded_number_of_answers() {
        let (greedy, honest) = (NodeId(2), NodeId(3));
        let mut reads = Reads::default();
        let mut started = Vec::new();
        for question in 0..3 * READ_INDEX_QUESTIONS_MAX as u64 {
            reads.add_server(greedy, question);
            // Some wait, some have been asked for.
            if question % 1000 == 0 {
                started.push(reads.start(question));
            }
        }
        reads.add_server(honest, 7);
        // Those that are asked for again count as they did.
        reads.retry(u64::MAX);
        reads.add_server(greedy, 8);
        let round = reads.start(0);
        for lost in started {
            assert!(reads.confirm(lost, 5).is_empty(), "it was started anew");
        }
        let owed = reads.confirm(round, 5);
        let count = |server| owed.iter().filter(|(asker, _)| *asker == server).count();
        assert_eq!((count(greedy), count(honest)), (READ_INDEX_QUESTIONS_MAX, 1));

        // Answered ones make room.
        reads.add_server(greedy, 9);
        let round = reads.start(0);
        assert_eq!(reads.confirm(round, 5), [(greedy, 9)]);
    }

    #[test]
    fn a_leader_no_more_owes_nobody() {
        let mut reads = Reads::default();
        for question in 0..=READ_INDEX_QUESTIONS_MAX as u64 {
            reads.add_server(NodeId(2), question);
        }
        let before = reads.start(0);
        reads.forget_servers();
        assert!(reads.confirm(before, 5).is_empty());
        reads.add_server(NodeId(2), 1);
        let round = reads.start(0);
        assert_eq!(reads.confirm(round, 5), [(NodeId(2), 1)]);
    }
}
