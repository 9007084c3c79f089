//! Requests to keep leases alive, or to tell how long they have left, until they are answered.
//!
//! The leader answers. A server that does not lead passes on what its clients ask, and asks again
//! when the answer may be lost: to keep a lease alive twice does no harm.
//!
//! A leader answers when it has confirmed that it led after the request came, by the read-index
//! request that reads make, too (`node::reads`): one for all requests that have come between two
//! flushes, however many leases they name. Rule: a request belongs to the confirmation that was
//! asked for after it had come, and to no earlier one. Otherwise a leader that was deposed without
//! knowing would keep a lease alive that its successor ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::origins::Origin;
use super::reads::ReadIndexBatch;
use crate::model::{LeaseAnswer, LeaseQuestion, NodeId};

/// Requests that a server holds at once; past it they are refused with `BUSY`, or dropped if
/// another server has sent them. As many as linearizable reads, with which they compete.
pub(super) const QUESTIONS_MAX: usize = 16 * 1024;
/// Leases that are looked at for all of them: sixteen of the longest, some megabytes.
pub(super) const LOOKS_MAX: usize = 64 * 1024;
/// And for those of one connection, or of another server: whoever asks for more does not keep
/// others from keeping their leases alive.
const LOOKS_PER_ASKER_MAX: usize = LOOKS_MAX / 4;
/// Leases that are looked at between two inputs, and those of one more request: some hundred
/// microseconds of the event loop.
const LOOKS_PER_FLUSH: usize = 4 * 1024;

/// One request, which is answered as a whole.
#[derive(Debug)]
pub(super) struct PendingQuestion {
    pub origin: Origin,
    pub question: LeaseQuestion,
    /// When it is given up.
    pub deadline_us: u64,
}

impl PendingQuestion {
    fn is_of_client(&self) -> bool {
        matches!(self.origin, Origin::Client(_))
    }

    fn asker(&self) -> Asker {
        match self.origin {
            Origin::Client(token) => Asker::Connection(token.connection),
            Origin::Server { node, .. } => Asker::Server(node),
        }
    }
}

/// Whose requests are bounded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asker {
    Connection(u64),
    Server(NodeId),
}

#[derive(Debug)]
struct PassedOn {
    to: NodeId,
    at_us: u64,
    asked: PendingQuestion,
}

/// The requests of this server's clients, and at a leader those of other servers.
#[derive(Debug, Default)]
pub(super) struct LeaseQuestions {
    /// Neither passed on nor confirmed.
    waiting: Vec<PendingQuestion>,
    /// At a server that does not lead, by the number under which each was passed on.
    passed_on: BTreeMap<u64, PassedOn>,
    /// At a leader, until it is confirmed as leader.
    unconfirmed: BTreeMap<ReadIndexBatch, Vec<PendingQuestion>>,
    /// At a leader, which may answer them.
    confirmed: VecDeque<PendingQuestion>,
    /// At a leader, which may answer them once one of its own records about them is applied.
    held: Vec<PendingQuestion>,
    /// What other servers have passed on, each once however often it came.
    of_servers: BTreeSet<(NodeId, u64)>,
    batches: u64,
    /// The number of the last one that was passed on.
    last_number: u64,
    len: usize,
    looks: usize,
    looks_of: BTreeMap<Asker, usize>,
}

impl LeaseQuestions {
    /// None yet; what is passed on is numbered from after `before_first`.
    pub fn new(before_first: u64) -> LeaseQuestions {
        LeaseQuestions { last_number: before_first, ..LeaseQuestions::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request, unless it is there already. Returns false, and does nothing, if too many
    /// are held, for all or for who asks.
    pub fn add(&mut self, asked: PendingQuestion) -> bool {
        if let Origin::Server { node, id } = asked.origin
            && self.of_servers.contains(&(node, id))
        {
            return true;
        }
        let looks = asked.question.looks();
        let of_asker = self.looks_of.get(&asked.asker()).copied().unwrap_or_default() + looks;
        let is_too_much = self.looks + looks > LOOKS_MAX || of_asker > LOOKS_PER_ASKER_MAX;
        if self.len >= QUESTIONS_MAX || is_too_much {
            return false;
        }
        (self.len, self.looks) = (self.len + 1, self.looks + looks);
        self.looks_of.insert(asked.asker(), of_asker);
        if let Origin::Server { node, id } = asked.origin {
            self.of_servers.insert((node, id));
        }
        self.waiting.push(asked);
        true
    }

    /// The request is answered or given up.
    fn forget(&mut self, asked: &PendingQuestion) {
        let looks = asked.question.looks();
        let of_asker = self.looks_of.remove(&asked.asker()).unwrap_or_default();
        let counted = self.len > 0 && self.looks >= looks && of_asker >= looks;
        assert!(counted, "{asked:?} was not counted");
        (self.len, self.looks) = (self.len - 1, self.looks - looks);
        if of_asker > looks {
            self.looks_of.insert(asked.asker(), of_asker - looks);
        }
        if let Origin::Server { node, id } = asked.origin {
            self.of_servers.remove(&(node, id));
        }
    }

    /// At a leader: the number of the batch of all that have come since the last one, for which a
    /// confirmation is to be asked now.
    pub fn begin_batch(&mut self) -> Option<ReadIndexBatch> {
        if self.waiting.is_empty() {
            return None;
        }
        self.batches += 1;
        let batch = ReadIndexBatch(self.batches);
        self.unconfirmed.insert(batch, std::mem::take(&mut self.waiting));
        Some(batch)
    }

    /// This node led after the batch had begun, and has applied everything of earlier terms. A
    /// batch of an earlier leadership is not known any more.
    pub fn confirmed(&mut self, batch: ReadIndexBatch) {
        self.confirmed.extend(self.unconfirmed.remove(&batch).into_iter().flatten());
    }

    /// A record of the leader is applied, for which some may have waited.
    pub fn record_applied(&mut self) {
        self.confirmed.extend(self.held.drain(..));
    }

    /// Answers some of those that were confirmed, as far as `answer` can; returns who asked, and
    /// the answers. The others have their turn at the next call.
    pub fn answer(
        &mut self,
        mut answer: impl FnMut(&LeaseQuestion) -> Option<LeaseAnswer>,
    ) -> Vec<(Origin, LeaseAnswer)> {
        let (mut answered, mut looks) = (Vec::new(), 0);
        while looks < LOOKS_PER_FLUSH
            && let Some(asked) = self.confirmed.pop_front()
        {
            looks += asked.question.looks();
            match answer(&asked.question) {
                Some(told) => {
                    self.forget(&asked);
                    answered.push((asked.origin, told));
                }
                None => self.held.push(asked),
            }
        }
        answered
    }

    /// Whether there is something to pass on.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// At a server that does not lead: passes on what waits, each under a number of its own.
    pub fn pass_on(&mut self, to: NodeId, now_us: u64) -> Vec<(u64, LeaseQuestion)> {
        let mut messages = Vec::with_capacity(self.waiting.len());
        for asked in std::mem::take(&mut self.waiting) {
            // What other servers have asked was dropped with the leadership.
            assert!(asked.is_of_client(), "{asked:?} is passed on twice");
            self.last_number = self.last_number.wrapping_add(1);
            messages.push((self.last_number, asked.question.clone()));
            self.passed_on.insert(self.last_number, PassedOn { to, at_us: now_us, asked });
        }
        messages
    }

    /// Takes the request that was passed on to this server under this number, if that can be the
    /// answer.
    pub fn answered(
        &mut self,
        number: u64,
        from: NodeId,
        answer: &LeaseAnswer,
    ) -> Option<PendingQuestion> {
        let passed_on = self.passed_on.get(&number)?;
        if passed_on.to != from || !answer.answers(&passed_on.asked.question) {
            return None;
        }
        let asked = self.passed_on.remove(&number)?.asked;
        self.forget(&asked);
        Some(asked)
    }

    /// Takes back what was passed on to a server to which this applies, to ask again.
    pub fn take_back(&mut self, is_lost: impl Fn(NodeId) -> bool) {
        let lost = self.passed_on.extract_if(.., |_, passed_on| is_lost(passed_on.to));
        self.waiting.extend(lost.map(|(_, passed_on)| passed_on.asked));
    }

    /// What was passed on before this time, to be sent again to the same server under its number:
    /// an answer counts also if it comes late, and the server knows what it has already.
    pub fn repeat_older(
        &mut self,
        before_us: u64,
        now_us: u64,
    ) -> Vec<(NodeId, u64, LeaseQuestion)> {
        let older = self.passed_on.iter_mut().filter(|(_, passed_on)| passed_on.at_us < before_us);
        let again = older.map(|(number, passed_on)| {
            passed_on.at_us = now_us;
            (passed_on.to, *number, passed_on.asked.question.clone())
        });
        again.collect()
    }

    /// This node does not lead any more, or in another term: the requests of its clients wait for
    /// the next leader, and other servers ask that one themselves.
    pub fn lost_leadership(&mut self) {
        let mut asked = std::mem::take(&mut self.waiting);
        asked.extend(std::mem::take(&mut self.unconfirmed).into_values().flatten());
        asked.extend(std::mem::take(&mut self.confirmed));
        asked.append(&mut self.held);
        for asked in asked {
            match asked.is_of_client() {
                true => self.waiting.push(asked),
                false => self.forget(&asked),
            }
        }
    }

    /// Takes the requests whose time is up.
    pub fn take_expired(&mut self, now_us: u64) -> Vec<PendingQuestion> {
        let is_over = |asked: &PendingQuestion| asked.deadline_us <= now_us;
        let mut expired: Vec<_> = self.waiting.extract_if(.., |asked| is_over(asked)).collect();
        expired.extend(self.held.extract_if(.., |asked| is_over(asked)));
        let (over, left) = std::mem::take(&mut self.confirmed).into_iter().partition(is_over);
        self.confirmed = left;
        expired.extend::<VecDeque<_>>(over);
        for batch in self.unconfirmed.values_mut() {
            expired.extend(batch.extract_if(.., |asked| is_over(asked)));
        }
        self.unconfirmed.retain(|_, batch| !batch.is_empty());
        let passed_on = self.passed_on.extract_if(.., |_, passed_on| is_over(&passed_on.asked));
        expired.extend(passed_on.map(|(_, passed_on)| passed_on.asked));
        expired.iter().for_each(|asked| self.forget(asked));
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::super::RequestToken;
    use super::*;
    use crate::model::LeaseId;

    const LEADER: NodeId = NodeId(2);

    fn client(request: u64) -> PendingQuestion {
        PendingQuestion {
            origin: Origin::Client(RequestToken { connection: 0, request }),
            question: LeaseQuestion::KeepAlive(vec![LeaseId(request), LeaseId(7)]),
            deadline_us: 100 + request,
        }
    }

    fn server(id: u64) -> PendingQuestion {
        PendingQuestion { origin: Origin::Server { node: NodeId(3), id }, ..client(id) }
    }

    fn origins(asked: impl IntoIterator<Item = PendingQuestion>) -> Vec<Origin> {
        asked.into_iter().map(|asked| asked.origin).collect()
    }

    fn answer(leases: usize) -> LeaseAnswer {
        LeaseAnswer::KeptAlive(vec![None; leases])
    }

    fn answered(questions: &mut LeaseQuestions) -> Vec<Origin> {
        questions.answer(|_| Some(answer(2))).into_iter().map(|(origin, _)| origin).collect()
    }

    #[test]
    fn a_confirmation_is_for_what_had_come_before_it_was_asked_for() {
        let mut questions = LeaseQuestions::default();
        assert!(questions.add(client(1)));
        assert!(questions.add(server(2)));
        let first = questions.begin_batch().unwrap();
        assert_eq!(questions.begin_batch(), None);
        assert!(questions.add(client(3)));
        questions.confirmed(first);
        assert_eq!(answered(&mut questions), [client(1).origin, server(2).origin]);
        let second = questions.begin_batch().unwrap();
        questions.confirmed(first);
        assert!(answered(&mut questions).is_empty());
        questions.confirmed(second);
        assert!(questions.answer(|_| None).is_empty(), "a record of the leader is awaited");
        assert!(answered(&mut questions).is_empty(), "it has not come");
        questions.record_applied();
        assert_eq!(answered(&mut questions), [client(3).origin]);
        assert!(questions.is_empty() && questions.looks == 0 && questions.looks_of.is_empty());
    }

    #[test]
    fn a_deposed_leader_confirms_nothing_and_keeps_what_its_clients_ask() {
        let mut questions = LeaseQuestions::default();
        assert!(questions.add(client(1)));
        assert!(questions.add(server(2)));
        let before = questions.begin_batch().unwrap();
        assert!(questions.add(client(3)));
        questions.lost_leadership();
        questions.confirmed(before);
        assert!(answered(&mut questions).is_empty());
        let numbers: Vec<u64> =
            questions.pass_on(LEADER, 5).into_iter().map(|(number, ..)| number).collect();
        assert_eq!(numbers.len(), 2);
        assert!(questions.answered(numbers[0], NodeId(3), &answer(2)).is_none(), "another server");
        assert!(questions.answered(numbers[0], LEADER, &answer(1)).is_none(), "another length");
        let first = questions.answered(numbers[0], LEADER, &answer(2)).unwrap();
        assert_eq!(
            questions.answered(numbers[0], LEADER, &answer(2)).map(|asked| asked.origin),
            None
        );
        let second = questions.answered(numbers[1], LEADER, &answer(2)).unwrap();
        assert_eq!(origins([second, first]), [client(1).origin, client(3).origin]);
        assert!(questions.is_empty());
    }

    #[test]
    fn what_may_be_lost_is_asked_again_until_its_time_is_up() {
        let mut questions = LeaseQuestions::new(u64::MAX);
        assert!(questions.add(client(1)));
        assert_eq!(questions.pass_on(LEADER, 5), [(0, client(1).question)], "the numbers wrap");
        assert!(questions.repeat_older(5, 6).is_empty());
        questions.take_back(|to| to != LEADER);
        assert_eq!(questions.repeat_older(6, 7), [(LEADER, 0, client(1).question)]);
        assert!(questions.repeat_older(6, 8).is_empty() && !questions.has_waiting());
        questions.take_back(|to| to == LEADER);
        assert!(questions.has_waiting());
        assert!(questions.take_expired(100).is_empty());
        assert_eq!(origins(questions.take_expired(101)), [client(1).origin]);
        for asked in [client(2), client(3), client(4), client(5)] {
            assert!(questions.add(asked));
            match questions.len {
                1 => drop(questions.pass_on(LEADER, 7)),
                2 => drop(questions.begin_batch()),
                3 => {
                    let batch = questions.begin_batch().unwrap();
                    questions.confirmed(batch);
                }
                _ => {}
            }
        }
        assert_eq!(questions.take_expired(105).len(), 4);
        assert!(questions.is_empty() && questions.looks == 0 && questions.looks_of.is_empty());
    }

    /// Where each answer took longer than the time after which a request is repeated, none was
    /// ever taken, and the leader held a copy more for each time.
    #[test]
    fn an_answer_that_comes_after_a_repetition_counts_and_a_copy_does_not() {
        let mut questions = LeaseQuestions::default();
        assert!(questions.add(client(1)));
        let (number, _) = questions.pass_on(LEADER, 5).remove(0);
        assert_eq!(questions.repeat_older(6, 6).len(), 1);
        assert!(questions.answered(number, LEADER, &answer(2)).is_some());
        let mut questions = LeaseQuestions::default();
        assert!(questions.add(server(1)) && questions.add(server(1)) && questions.add(server(2)));
        assert_eq!(questions.len, 2);
        let batch = questions.begin_batch().unwrap();
        questions.confirmed(batch);
        assert_eq!(answered(&mut questions), [server(1).origin, server(2).origin]);
        assert!(questions.add(server(1)), "its answer was lost");
        assert_eq!(questions.len, 1);
    }

    /// A list is short to ask for and long to answer: a thousand of them stopped the event loop.
    #[test]
    fn what_is_answered_at_once_is_bounded_by_what_is_looked_at() {
        let mut questions = LeaseQuestions::default();
        let list = |connection| PendingQuestion {
            origin: Origin::Client(RequestToken { connection, request: 1 }),
            question: LeaseQuestion::List { after: None },
            deadline_us: 100,
        };
        let taken = |questions: &mut LeaseQuestions, connection| {
            std::iter::repeat_with(|| questions.add(list(connection)))
                .take(1000)
                .filter(|ok| *ok)
                .count()
        };
        let each = LOOKS_PER_ASKER_MAX / list(0).question.looks();
        for connection in 0..4 {
            assert_eq!(taken(&mut questions, connection), each);
        }
        assert_eq!(taken(&mut questions, 4), 0, "all places are taken");
        let batch = questions.begin_batch().unwrap();
        questions.confirmed(batch);
        let mut calls = 0;
        while !questions.is_empty() {
            let at_once = answered(&mut questions).len();
            assert!(at_once * list(0).question.looks() <= LOOKS_PER_FLUSH, "{at_once}");
            calls += 1;
        }
        assert_eq!(calls, LOOKS_MAX / LOOKS_PER_FLUSH);
    }

    #[test]
    fn requests_and_the_leases_that_they_name_are_bounded() {
        let mut questions = LeaseQuestions::default();
        let of = |connection, request| PendingQuestion {
            origin: Origin::Client(RequestToken { connection, request }),
            ..client(request)
        };
        for request in 0..QUESTIONS_MAX as u64 {
            assert!(questions.add(of(request % 8, request)));
        }
        assert!(!questions.add(of(9, 0)));
        let mut questions = LeaseQuestions::default();
        let question = LeaseQuestion::KeepAlive(vec![LeaseId(1); LOOKS_PER_ASKER_MAX / 2]);
        let long = |connection| PendingQuestion { question: question.clone(), ..of(connection, 1) };
        assert!(questions.add(long(0)) && questions.add(long(0)));
        assert!(!questions.add(of(0, 1)) && questions.add(of(1, 1)));
        assert_eq!(questions.take_expired(u64::MAX).len(), 3);
        assert!(questions.add(of(0, 1)));
    }
}
