//! Linearizable reads under way: the read-index protocol, batched.
//!
//! All reads that arrive between two flushes share one *question*: an index is asked of the leader, which
//! confirms by a heartbeat round trip that it still leads. The answer holds for reads that arrived before the question
//! was asked; that is what makes them linearizable. (Ongaro's thesis, 6.4.) So the answer to a question settles what
//! was first asked for with it or with an earlier one, however late it comes; a lost one is made up for by the next
//! question's. Where answers take longer than a question is given before it is asked again, several are under way.

use std::collections::BTreeMap;

use super::RequestToken;
use crate::limits::READ_INDEX_QUESTIONS_MAX;
use crate::model::{LogIndex, NodeId};

/// One client's read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub token: RequestToken,
    pub deadline_us: u64,
}

/// Reads that were first asked for together.
#[derive(Debug, Default)]
struct Round {
    reads: Vec<Read>,
    /// Questions of other servers that this one answers: (server, its number).
    servers: Vec<(NodeId, u64)>,
}

impl Round {
    fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.servers.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Not asked for yet.
    waiting: Round,
    /// Asked for and not confirmed, by the question that they were first in, counted from 1.
    asked: BTreeMap<u64, Round>,
    /// Questions so far.
    questions: u64,
    /// The number before the first question's.
    before_first: u64,
    last_asked_us: u64,
    /// What is asked for is to be asked for again.
    again: bool,
    /// Confirmed: answer when this index is applied.
    confirmed: BTreeMap<LogIndex, Vec<Read>>,
    len: usize,
    /// How many questions of each server are among `waiting` and `asked`.
    owed: BTreeMap<NodeId, usize>,
}

impl Reads {
    /// None yet; questions are numbered from after `before_first`.
    pub fn new(before_first: u64) -> Reads {
        Reads { before_first, ..Reads::default() }
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

    /// Whether something waits to be asked for, for the first time or again.
    pub fn is_question_due(&self) -> bool {
        self.again || !self.waiting.is_empty()
    }

    /// Asks for everything that is not confirmed; returns the question's number.
    pub fn ask(&mut self, now_us: u64) -> u64 {
        self.questions += 1;
        (self.last_asked_us, self.again) = (now_us, false);
        let round = std::mem::take(&mut self.waiting);
        if !round.is_empty() {
            self.asked.insert(self.questions, round);
        }
        self.before_first.wrapping_add(self.questions)
    }

    /// A question is answered. Returns the other servers' questions that it answers.
    pub fn confirm(&mut self, number: u64, index: LogIndex) -> Vec<(NodeId, u64)> {
        let question = number.wrapping_sub(self.before_first);
        let mut servers = Vec::new();
        if question > self.questions {
            return servers;
        }
        while let Some(first) = self.asked.first_entry()
            && *first.key() <= question
        {
            let round = first.remove();
            if !round.reads.is_empty() {
                self.confirmed.entry(index).or_default().extend(round.reads);
            }
            servers.extend(round.servers);
        }
        for (server, _) in &servers {
            if let Some(owed) = self.owed.get_mut(server) {
                *owed -= 1;
            }
        }
        servers
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

    /// What is not confirmed is asked for again, if the last question was asked before `asked_before_us`: it or
    /// its answer was lost, or the leader was. An answer that is merely late is still taken.
    pub fn ask_again(&mut self, asked_before_us: u64) {
        self.again |= self.last_asked_us < asked_before_us && !self.asked.is_empty();
    }

    /// Other servers ask again elsewhere when this one stops leading.
    pub fn forget_servers(&mut self) {
        self.owed.clear();
        self.waiting.servers.clear();
        self.asked.values_mut().for_each(|round| round.servers.clear());
        self.asked.retain(|_, round| !round.is_empty());
    }

    /// Reads whose time is up, taken from their places; of each whether it was confirmed and only what it reads is not
    /// applied.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<(Read, bool)> {
        let mut expired = Vec::new();
        let mut sift = |reads: &mut Vec<Read>, confirmed: bool| {
            reads.retain(|read| {
                let over = read.deadline_us <= now_us;
                if over {
                    expired.push((*read, confirmed));
                }
                !over
            });
        };
        sift(&mut self.waiting.reads, false);
        self.asked.values_mut().for_each(|round| sift(&mut round.reads, false));
        self.asked.retain(|_, round| !round.is_empty());
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

    fn read(request: u64) -> Read {
        Read { token: RequestToken { connection: 0, request }, deadline_us: 100 }
    }

    fn tokens(reads: Vec<Read>) -> Vec<u64> {
        reads.into_iter().map(|read| read.token.request).collect()
    }

    #[test]
    fn a_late_answer_settles_what_arrived_before_its_question_and_nothing_later() {
        // The numbers wrap.
        let mut reads = Reads::new(u64::MAX - 1);
        reads.add(read(1));
        let first = reads.ask(0);
        assert!(!reads.is_question_due());
        reads.ask_again(0);
        assert!(!reads.is_question_due(), "not yet");
        reads.add(read(2));
        let second = reads.ask(5);
        reads.ask_again(6);
        assert!(reads.is_question_due());
        reads.add(read(3));
        let third = reads.ask(6);
        assert!(reads.confirm(third.wrapping_add(1), 9).is_empty(), "it was never asked");
        assert!(reads.take_ready(9).is_empty());
        reads.confirm(first, 4);
        assert_eq!(tokens(reads.take_ready(4)), [1]);
        // The answer to the second is lost.
        assert_ne!(second, third);
        reads.confirm(third, 5);
        assert_eq!(tokens(reads.take_ready(5)), [2, 3]);
        assert!(reads.is_empty());
        reads.ask_again(u64::MAX);
        assert!(!reads.is_question_due(), "nothing is left to ask for");
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_not_asked_for_again() {
        let mut reads = Reads::new(7);
        reads.add(read(1));
        let question = reads.ask(0);
        let expired = |reads: &mut Reads| -> Vec<(u64, bool)> {
            let number = |(read, confirmed): (Read, bool)| (read.token.request, confirmed);
            reads.take_expired(100).into_iter().map(number).collect()
        };
        assert_eq!(expired(&mut reads), [(1, false)]);
        reads.ask_again(u64::MAX);
        assert!(!reads.is_question_due());
        reads.confirm(question, 1);
        assert!(reads.take_ready(1).is_empty() && reads.is_empty());
        // One that was confirmed waited for nothing but what is applied.
        reads.add(read(2));
        let question = reads.ask(0);
        reads.confirm(question, 5);
        assert_eq!(expired(&mut reads), [(2, true)]);
        assert!(reads.is_empty());
    }

    #[test]
    fn a_server_that_asks_without_end_is_owed_a_bounded_number_of_answers() {
        let (greedy, honest) = (NodeId(2), NodeId(3));
        let mut reads = Reads::default();
        for question in 0..3 * READ_INDEX_QUESTIONS_MAX as u64 {
            reads.add_server(greedy, question);
            // Some wait, some have been asked for.
            if question % 1000 == 0 {
                reads.ask(question);
            }
        }
        reads.add_server(honest, 7);
        // Those that are asked for again count as they did.
        reads.ask_again(u64::MAX);
        reads.add_server(greedy, 8);
        let question = reads.ask(0);
        let owed = reads.confirm(question, 5);
        let count = |server| owed.iter().filter(|(asker, _)| *asker == server).count();
        assert_eq!((count(greedy), count(honest)), (READ_INDEX_QUESTIONS_MAX, 1));

        // Answered ones make room.
        reads.add_server(greedy, 9);
        let question = reads.ask(0);
        assert_eq!(reads.confirm(question, 5), [(greedy, 9)]);
    }

    #[test]
    fn a_leader_no_more_owes_nobody() {
        let mut reads = Reads::default();
        for question in 0..=READ_INDEX_QUESTIONS_MAX as u64 {
            reads.add_server(NodeId(2), question);
        }
        let before = reads.ask(0);
        reads.forget_servers();
        assert!(reads.confirm(before, 5).is_empty());
        reads.add_server(NodeId(2), 1);
        let question = reads.ask(0);
        assert_eq!(reads.confirm(question, 5), [(NodeId(2), 1)]);
    }
}
