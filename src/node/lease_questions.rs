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

use std::collections::BTreeMap;

use super::origins::Origin;
use super::reads::ReadIndexBatch;
use crate::model::{LeaseAnswer, LeaseQuestion, NodeId};

/// Requests that a server holds at once; past it they are refused with `BUSY`, or dropped if
/// another server has sent them. As many as linearizable reads, with which they compete.
pub(super) const QUESTIONS_MAX: usize = 16 * 1024;
/// Leases that they name together: four times those that a group may have, some megabytes.
pub(super) const NAMED_LEASES_MAX: usize = 1024 * 1024;

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
    /// At a leader: to be answered as soon as its own records about them are applied.
    confirmed: Vec<PendingQuestion>,
    batches: u64,
    /// The number of the last one that was passed on.
    last_number: u64,
    len: usize,
    named_leases: usize,
}

impl LeaseQuestions {
    /// None yet; what is passed on is numbered from after `before_first`.
    pub fn new(before_first: u64) -> LeaseQuestions {
        LeaseQuestions { last_number: before_first, ..LeaseQuestions::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request. Returns false, and does nothing, if too many are held.
    pub fn add(&mut self, asked: PendingQuestion) -> bool {
        let named_leases = self.named_leases + asked.question.names();
        if self.len >= QUESTIONS_MAX || named_leases > NAMED_LEASES_MAX {
            return false;
        }
        (self.len, self.named_leases) = (self.len + 1, named_leases);
        self.waiting.push(asked);
        true
    }

    /// The request is answered or given up.
    fn forget(&mut self, asked: &PendingQuestion) {
        let names = asked.question.names();
        assert!(self.len > 0 && self.named_leases >= names, "{asked:?} was not counted");
        self.len -= 1;
        self.named_leases -= names;
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

    /// Answers those that were confirmed, as far as `answer` can; returns who asked, and the
    /// answers.
    pub fn answer(
        &mut self,
        mut answer: impl FnMut(&LeaseQuestion) -> Option<LeaseAnswer>,
    ) -> Vec<(Origin, LeaseAnswer)> {
        let mut answered = Vec::new();
        for asked in std::mem::take(&mut self.confirmed) {
            match answer(&asked.question) {
                Some(told) => {
                    self.forget(&asked);
                    answered.push((asked.origin, told));
                }
                None => self.confirmed.push(asked),
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
        self.repeat(|passed_on| is_lost(passed_on.to));
    }

    /// Asks again what was passed on before this time.
    pub fn repeat_older(&mut self, before_us: u64) {
        self.repeat(|passed_on| passed_on.at_us < before_us);
    }

    fn repeat(&mut self, is_lost: impl Fn(&PassedOn) -> bool) {
        let lost = self.passed_on.extract_if(.., |_, passed_on| is_lost(passed_on));
        self.waiting.extend(lost.map(|(_, passed_on)| passed_on.asked));
    }

    /// This node does not lead any more, or in another term: the requests of its clients wait for
    /// the next leader, and other servers ask that one themselves.
    pub fn lost_leadership(&mut self) {
        let mut asked = std::mem::take(&mut self.waiting);
        asked.extend(std::mem::take(&mut self.unconfirmed).into_values().flatten());
        asked.append(&mut self.confirmed);
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
        expired.extend(self.confirmed.extract_if(.., |asked| is_over(asked)));
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
        assert_eq!(answered(&mut questions), [client(3).origin]);
        assert!(questions.is_empty() && questions.named_leases == 0);
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
        questions.repeat_older(5);
        questions.take_back(|to| to != LEADER);
        assert!(!questions.has_waiting());
        questions.repeat_older(6);
        assert_eq!(questions.pass_on(LEADER, 6).len(), 1);
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
        assert!(questions.is_empty() && questions.named_leases == 0);
    }

    #[test]
    fn requests_and_the_leases_that_they_name_are_bounded() {
        let mut questions = LeaseQuestions::default();
        for request in 0..QUESTIONS_MAX as u64 {
            assert!(questions.add(client(request)));
        }
        assert!(!questions.add(client(0)));
        let mut questions = LeaseQuestions::default();
        let question = LeaseQuestion::KeepAlive(vec![LeaseId(1); 1 << 19]);
        let long = || PendingQuestion { question: question.clone(), ..client(1) };
        assert!(questions.add(long()));
        assert!(questions.add(long()));
        assert!(!questions.add(client(1)));
        assert_eq!(questions.take_expired(u64::MAX).len(), 2);
        assert!(questions.add(client(1)));
    }
}
