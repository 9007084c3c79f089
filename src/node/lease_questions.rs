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
//!
//! A request to keep leases alive of which the leader knows that all of them are running is
//! answered then, whatever waits to be applied: applying one long write takes seconds, in which the
//! holder of a short lease gives it up (`node::leases` says why that is safe). All others wait
//! until everything is applied that was committed before the confirmation.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use super::RequestToken;
use super::origins::Origin;
use super::reads::ReadIndexBatch;
use crate::limits;
use crate::model::{
    LEASES_PER_PAGE_MAX, LEASES_PER_REQUEST_MAX, LeaseAnswer, LeaseId, LeaseQuestion, NodeId,
};

/// What a request counts as at least, in leases that are looked at: it has to be kept, too.
const LOOKS_MIN: usize = 4;
/// Leases that are looked at for one kind of request, of one who asks. Past it requests are refused
/// with `BUSY`, or dropped if another server has sent them.
#[derive(Clone, Copy, Debug)]
struct Looks {
    /// For all clients of this server.
    clients: usize,
    /// For those of one origin: whoever asks for more does not keep others from being answered.
    origin: usize,
    connection: usize,
    /// For another server: as much as that one takes from its clients, so that nothing of what it
    /// passes on is dropped.
    server: usize,
    /// For an origin that has asked for no more than this there is always room: for the few
    /// leases of an ordinary client, whatever others ask.
    few: usize,
}

/// Keeping leases alive, and describing single ones: sixteen of the longest requests.
const KEEPING: Looks = {
    let (clients, few) = (16 * LEASES_PER_REQUEST_MAX, 16);
    Looks {
        clients,
        origin: clients / 4,
        connection: clients / 8,
        server: clients + few * (limits::CONNECTIONS_MAX + limits::CONNECTIONS_SPARE),
        few,
    }
};
/// Lists are short to ask for and long to answer, and nobody's lease ends for the want of one.
const LISTING: Looks = {
    let page = LEASES_PER_PAGE_MAX;
    Looks { clients: 16 * page, origin: 4 * page, connection: 2 * page, server: 16 * page, few: 0 }
};
/// Leases that are looked at between two inputs, and those of one more request of each kind: some
/// hundred microseconds of the event loop.
const LOOKS_PER_FLUSH: usize = 4 * 1024;

/// One request, which is answered as a whole.
#[derive(Debug)]
pub(super) struct PendingQuestion {
    pub asker: QuestionAsker,
    pub question: LeaseQuestion,
    /// When it is given up.
    pub deadline_us: u64,
}

/// Who asks, and where the answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuestionAsker {
    /// A client of this server, from this origin.
    Client { token: RequestToken, address: IpAddr },
    /// Another server, under this number.
    Server { node: NodeId, id: u64 },
}

impl QuestionAsker {
    /// Who gets the answer.
    pub fn origin(self) -> Origin {
        match self {
            QuestionAsker::Client { token, .. } => Origin::Client(token),
            QuestionAsker::Server { node, id } => Origin::Server { node, id },
        }
    }
}

impl PendingQuestion {
    fn is_of_client(&self) -> bool {
        matches!(self.asker, QuestionAsker::Client { .. })
    }

    /// The request as another server knows it.
    fn of_server(&self) -> Option<(NodeId, u64)> {
        match self.asker {
            QuestionAsker::Client { .. } => None,
            QuestionAsker::Server { node, id } => Some((node, id)),
        }
    }

    fn is_list(&self) -> bool {
        matches!(self.question, LeaseQuestion::List { .. })
    }

    fn looks(&self) -> usize {
        self.question.looks().max(LOOKS_MIN)
    }
}

/// Whose requests are bounded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Payer {
    Clients,
    Address(IpAddr),
    Connection(u64),
    Server(NodeId),
}

/// What is looked at for the requests of one kind that are held.
#[derive(Debug, Default)]
struct LooksOf {
    by_payer: BTreeMap<Payer, usize>,
}

impl LooksOf {
    fn of(&self, payer: Payer) -> usize {
        self.by_payer.get(&payer).copied().unwrap_or_default()
    }

    /// Counts a request, unless that is too much.
    fn add(&mut self, most: &Looks, asked: &PendingQuestion) -> bool {
        let looks = asked.looks();
        let fits = |payer, most: usize| self.of(payer) + looks <= most;
        let has_room = match asked.asker {
            QuestionAsker::Client { token, address } => {
                fits(Payer::Address(address), most.few)
                    || (fits(Payer::Clients, most.clients)
                        && fits(Payer::Address(address), most.origin)
                        && fits(Payer::Connection(token.connection), most.connection))
            }
            QuestionAsker::Server { node, .. } => fits(Payer::Server(node), most.server),
        };
        if has_room {
            for payer in payers(asked.asker) {
                *self.by_payer.entry(payer).or_default() += looks;
            }
        }
        has_room
    }

    fn forget(&mut self, asked: &PendingQuestion) {
        let looks = asked.looks();
        for payer in payers(asked.asker) {
            let counted = self.by_payer.remove(&payer).unwrap_or_default();
            assert!(counted >= looks, "{asked:?} was not counted for {payer:?}: {counted}");
            if counted > looks {
                self.by_payer.insert(payer, counted - looks);
            }
        }
    }
}

fn payers(asker: QuestionAsker) -> impl Iterator<Item = Payer> {
    let payers = match asker {
        QuestionAsker::Client { token, address } => [
            Some(Payer::Clients),
            Some(Payer::Address(address)),
            Some(Payer::Connection(token.connection)),
        ],
        QuestionAsker::Server { node, .. } => [Some(Payer::Server(node)), None, None],
    };
    payers.into_iter().flatten()
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
    /// At a leader, until it is confirmed as leader and has applied what was committed before.
    unconfirmed: BTreeMap<ReadIndexBatch, Vec<PendingQuestion>>,
    /// At a leader that is confirmed and has not applied all of that: requests to keep leases alive
    /// that it has not yet tried to answer without. Their batches rise.
    early: VecDeque<(ReadIndexBatch, PendingQuestion)>,
    /// At a leader, which may answer them.
    confirmed: VecDeque<PendingQuestion>,
    /// The same of lists, whose turn comes after all others.
    confirmed_lists: VecDeque<PendingQuestion>,
    /// At a leader, which may answer them once one of its own records about them is applied.
    held: Vec<PendingQuestion>,
    /// What other servers have passed on, each once however often it came.
    of_servers: BTreeSet<(NodeId, u64)>,
    batches: u64,
    /// The number of the last one that was passed on.
    last_number: u64,
    len: usize,
    keeping: LooksOf,
    listing: LooksOf,
    /// The leases that are to be kept alive, with the number of requests that name each.
    named: HashMap<LeaseId, u32>,
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
        if asked.of_server().is_some_and(|known| self.of_servers.contains(&known)) {
            return true;
        }
        let has_room = match asked.is_list() {
            true => self.listing.add(&LISTING, &asked),
            false => self.keeping.add(&KEEPING, &asked),
        };
        if !has_room {
            return false;
        }
        self.len += 1;
        for id in asked.question.kept_alive() {
            *self.named.entry(*id).or_default() += 1;
        }
        self.of_servers.extend(asked.of_server());
        self.waiting.push(asked);
        true
    }

    /// The request is answered or given up.
    fn forget(&mut self, asked: &PendingQuestion) {
        assert!(self.len > 0, "{asked:?} was not counted");
        self.len -= 1;
        for id in asked.question.kept_alive() {
            let named = self.named.remove(id).unwrap_or_default();
            assert!(named > 0, "{asked:?} was not counted for {id}");
            if named > 1 {
                self.named.insert(*id, named - 1);
            }
        }
        match asked.is_list() {
            true => self.listing.forget(asked),
            false => self.keeping.forget(asked),
        }
        if let Some(known) = asked.of_server() {
            self.of_servers.remove(&known);
        }
    }

    /// Whether a request is held that is to keep a lease alive.
    pub fn asks_to_keep(&self, id: LeaseId) -> bool {
        self.named.contains_key(&id)
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

    /// This node led after the batch had begun, and counts leases. What was committed before may
    /// not be applied, so that only some can be answered. A batch of an earlier leadership is not
    /// known any more.
    pub fn confirmed_early(&mut self, batch: ReadIndexBatch) {
        let Some(asked) = self.unconfirmed.get_mut(&batch) else { return };
        let newest = self.early.back().map(|(newest, _)| *newest);
        assert!(newest < Some(batch), "{batch:?} is confirmed after {newest:?}");
        let keeps_alive = |asked: &mut PendingQuestion| !asked.question.kept_alive().is_empty();
        self.early.extend(asked.extract_if(.., keeps_alive).map(|asked| (batch, asked)));
    }

    /// This node led after the batch had begun, and has applied everything of earlier terms and
    /// what was committed by then. A batch of an earlier leadership is not known any more.
    pub fn confirmed(&mut self, batch: ReadIndexBatch) {
        while let Some((_, asked)) = self.early.pop_front_if(|(early, _)| *early <= batch) {
            self.confirmed.push_back(asked);
        }
        for asked in self.unconfirmed.remove(&batch).into_iter().flatten() {
            match asked.is_list() {
                true => self.confirmed_lists.push_back(asked),
                false => self.confirmed.push_back(asked),
            }
        }
    }

    /// A record of the leader is applied, for which some may have waited.
    pub fn record_applied(&mut self) {
        self.confirmed.extend(self.held.drain(..));
    }

    /// Answers some of those that were confirmed, as far as `answer` can, which is told whether
    /// everything is applied that the answer may depend on; returns who asked, and the answers. The
    /// others have their turn at the next call. A list has its turn behind all others, and in each
    /// call one has, whatever the others take.
    pub fn answer(
        &mut self,
        mut answer: impl FnMut(&LeaseQuestion, bool) -> Option<LeaseAnswer>,
    ) -> Vec<(Origin, LeaseAnswer)> {
        let (mut answered, mut looks, mut has_listed) = (Vec::new(), 0, false);
        while let Some((unapplied, asked)) = self.next_confirmed(looks, has_listed) {
            looks += asked.looks();
            has_listed |= asked.is_list();
            match (answer(&asked.question, unapplied.is_none()), unapplied) {
                (Some(told), _) => {
                    self.forget(&asked);
                    answered.push((asked.asker.origin(), told));
                }
                (None, None) => self.held.push(asked),
                (None, Some(batch)) => self.unconfirmed.entry(batch).or_default().push(asked),
            }
        }
        answered
    }

    /// Takes the request that is to be answered next, after so much was looked at; with its batch
    /// if not everything is applied that was committed before it was confirmed.
    fn next_confirmed(
        &mut self,
        looks: usize,
        has_listed: bool,
    ) -> Option<(Option<ReadIndexBatch>, PendingQuestion)> {
        let may_look = looks < LOOKS_PER_FLUSH;
        if may_look {
            if let Some(asked) = self.confirmed.pop_front() {
                return Some((None, asked));
            }
            if let Some((batch, asked)) = self.early.pop_front() {
                return Some((Some(batch), asked));
            }
        }
        let may_list = may_look || !has_listed;
        let list = if may_list { self.confirmed_lists.pop_front() } else { None };
        list.map(|asked| (None, asked))
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
        asked.extend(std::mem::take(&mut self.early).into_iter().map(|(_, asked)| asked));
        asked.extend(std::mem::take(&mut self.confirmed));
        asked.extend(std::mem::take(&mut self.confirmed_lists));
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
        for confirmed in [&mut self.confirmed, &mut self.confirmed_lists] {
            let (over, left) = std::mem::take(confirmed).into_iter().partition(is_over);
            *confirmed = left;
            expired.extend::<VecDeque<_>>(over);
        }
        let (over, left): (VecDeque<_>, _) =
            std::mem::take(&mut self.early).into_iter().partition(|(_, asked)| is_over(asked));
        self.early = left;
        expired.extend(over.into_iter().map(|(_, asked)| asked));
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
    use super::*;

    const LEADER: NodeId = NodeId(2);

    /// The origin of a connection: every two have the same.
    fn asker(connection: u64, request: u64) -> QuestionAsker {
        let address = IpAddr::from([10, 0, 0, (connection / 2) as u8]);
        QuestionAsker::Client { token: RequestToken { connection, request }, address }
    }

    fn client(request: u64) -> PendingQuestion {
        PendingQuestion {
            asker: asker(0, request),
            question: LeaseQuestion::KeepAlive(vec![LeaseId(request), LeaseId(7)]),
            deadline_us: 100 + request,
        }
    }

    fn server(id: u64) -> PendingQuestion {
        PendingQuestion { asker: QuestionAsker::Server { node: NodeId(3), id }, ..client(id) }
    }

    fn origins(asked: impl IntoIterator<Item = PendingQuestion>) -> Vec<Origin> {
        asked.into_iter().map(|asked| asked.asker.origin()).collect()
    }

    fn answer(leases: usize) -> LeaseAnswer {
        LeaseAnswer::KeptAlive(vec![None; leases])
    }

    fn answered(questions: &mut LeaseQuestions) -> Vec<Origin> {
        questions.answer(|_, _| Some(answer(2))).into_iter().map(|(origin, _)| origin).collect()
    }

    fn is_clear(questions: &LeaseQuestions) -> bool {
        let LeaseQuestions { keeping, listing, .. } = questions;
        let is_empty = questions.is_empty() && questions.named.is_empty();
        is_empty && keeping.by_payer.is_empty() && listing.by_payer.is_empty()
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
        assert_eq!(answered(&mut questions), origins([client(1), server(2)]));
        let second = questions.begin_batch().unwrap();
        questions.confirmed(first);
        assert!(answered(&mut questions).is_empty());
        questions.confirmed(second);
        assert!(questions.answer(|_, _| None).is_empty(), "a record of the leader is awaited");
        assert!(answered(&mut questions).is_empty(), "it has not come");
        questions.record_applied();
        assert_eq!(answered(&mut questions), origins([client(3)]));
        assert!(is_clear(&questions));
    }

    /// What a leader has not applied is awaited by those it cannot answer without, and by lists.
    #[test]
    fn some_are_answered_by_a_leader_that_is_confirmed_and_others_when_it_has_applied() {
        let mut questions = LeaseQuestions::default();
        for asked in [client(1), server(2), list(asker(5, 6)), client(3)] {
            assert!(questions.add(asked));
        }
        let batch = questions.begin_batch().unwrap();
        let knows = |question: &LeaseQuestion, is_applied: bool| {
            let is_known = question.kept_alive().contains(&LeaseId(2));
            (is_applied || is_known).then(|| answer(2))
        };
        let answered = |questions: &mut LeaseQuestions| -> Vec<Origin> {
            questions.answer(knows).into_iter().map(|(origin, _)| origin).collect()
        };
        assert!(answered(&mut questions).is_empty(), "the leader is not confirmed");
        questions.confirmed_early(batch);
        assert_eq!(answered(&mut questions), origins([server(2)]));
        assert!(answered(&mut questions).is_empty());
        assert!(questions.add(client(4)));
        let later = questions.begin_batch().unwrap();
        questions.confirmed_early(later);
        questions.confirmed(batch);
        assert_eq!(
            answered(&mut questions),
            origins([client(1), client(3), list(asker(5, 6))]),
            "one that came later waits for more"
        );
        questions.confirmed_early(later);
        questions.confirmed(later);
        assert_eq!(answered(&mut questions), origins([client(4)]));
        assert!(is_clear(&questions));
        assert!(questions.add(client(5)) && questions.add(server(6)));
        let batch = questions.begin_batch().unwrap();
        questions.confirmed_early(batch);
        questions.lost_leadership();
        questions.confirmed(batch);
        assert!(answered(&mut questions).is_empty());
        assert_eq!(origins(questions.take_expired(105)), origins([client(5)]));
        assert!(is_clear(&questions));
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
            questions.answered(numbers[0], LEADER, &answer(2)).map(|asked| asked.asker),
            None
        );
        let second = questions.answered(numbers[1], LEADER, &answer(2)).unwrap();
        assert_eq!(origins([second, first]), origins([client(1), client(3)]));
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
        assert_eq!(origins(questions.take_expired(101)), origins([client(1)]));
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
        assert!(is_clear(&questions));
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
        assert_eq!(answered(&mut questions), origins([server(1), server(2)]));
        assert!(questions.add(server(1)), "its answer was lost");
        assert_eq!(questions.len, 1);
    }

    fn list(asker: QuestionAsker) -> PendingQuestion {
        PendingQuestion { asker, question: LeaseQuestion::List { after: None }, deadline_us: 100 }
    }

    fn keep(asker: QuestionAsker, leases: usize) -> PendingQuestion {
        let question = LeaseQuestion::KeepAlive(vec![LeaseId(1); leases]);
        PendingQuestion { asker, question, deadline_us: 100 }
    }

    /// How many of these are taken before one is refused.
    fn taken(questions: &mut LeaseQuestions, ask: impl Fn(u64) -> PendingQuestion) -> usize {
        (0..).take_while(|request| questions.add(ask(*request))).count()
    }

    /// A list is short to ask for and long to answer: a thousand of them stopped the event loop.
    #[test]
    fn what_is_answered_at_once_is_bounded_by_what_is_looked_at() {
        let mut questions = LeaseQuestions::default();
        let page = LEASES_PER_PAGE_MAX;
        for connection in 0..8 {
            let lists = taken(&mut questions, |request| list(asker(connection, request)));
            assert_eq!(lists, LISTING.connection / page);
        }
        assert!(!questions.add(list(asker(8, 0))), "all places are taken");
        let batch = questions.begin_batch().unwrap();
        questions.confirmed(batch);
        let mut calls = 0;
        while !questions.is_empty() {
            let at_once = answered(&mut questions).len();
            assert!(at_once * page <= LOOKS_PER_FLUSH, "{at_once}");
            calls += 1;
        }
        assert_eq!(calls, LISTING.clients / LOOKS_PER_FLUSH);
    }

    /// Lists from one address, asked for without end, filled all places, and others' leases ended.
    #[test]
    fn lists_take_no_place_from_leases_that_are_kept_alive_and_come_after_them() {
        let mut questions = LeaseQuestions::default();
        for connection in 0..40 {
            taken(&mut questions, |request| list(asker(connection, request)));
        }
        let node = NodeId(3);
        taken(&mut questions, |id| list(QuestionAsker::Server { node, id }));
        let long = LEASES_PER_REQUEST_MAX;
        assert!(questions.add(keep(asker(1, 1000), long)));
        assert!(questions.add(keep(QuestionAsker::Server { node, id: 1000 }, long)));
        let batch = questions.begin_batch().unwrap();
        questions.confirmed(batch);
        let keeping = |answered: Vec<(Origin, LeaseAnswer)>| answered.len();
        let told = |question: &LeaseQuestion, _: bool| Some(answer(question.names()));
        assert_eq!(keeping(questions.answer(told)), 2, "one, and a list in each call");
        assert_eq!(questions.confirmed.len(), 1);
        assert_eq!(keeping(questions.answer(told)), 2);
        assert!(questions.confirmed.is_empty());
        while !questions.answer(told).is_empty() {}
        assert!(is_clear(&questions));
    }

    #[test]
    fn requests_and_the_leases_that_they_name_are_bounded_for_connection_origin_and_all() {
        let mut questions = LeaseQuestions::default();
        let short = |connection| move |request| keep(asker(connection, request), 1);
        assert_eq!(taken(&mut questions, short(0)), KEEPING.connection / LOOKS_MIN);
        assert_eq!(taken(&mut questions, short(1)), KEEPING.connection / LOOKS_MIN);
        let long = LEASES_PER_REQUEST_MAX;
        assert!(!questions.add(keep(asker(0, 0), 1)) && questions.add(keep(asker(2, 0), long)));
        for connection in 2..8 {
            taken(&mut questions, |request| keep(asker(connection, request), long));
        }
        assert_eq!(questions.keeping.of(Payer::Clients), KEEPING.clients);
        assert!(!questions.add(keep(asker(8, 0), KEEPING.few + 1)), "all places are taken");
        let few = taken(&mut questions, short(8));
        assert_eq!(few, KEEPING.few / LOOKS_MIN, "there is room for a few of anybody's");
        let server = |id| QuestionAsker::Server { node: NodeId(3), id };
        assert!(questions.add(keep(server(1), long)), "it counts by itself");
        let of_server = 1 + taken(&mut questions, |id| keep(server(id + 2), long));
        assert!(of_server * long > KEEPING.clients && of_server * long <= KEEPING.server);
        assert!(!questions.take_expired(u64::MAX).is_empty());
        assert!(is_clear(&questions));
        assert!(questions.add(keep(asker(0, 1), 1)));
    }
}
