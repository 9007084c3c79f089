//! Finds out which server is wrong when two contradict each other, in their states or in their
//! logs.
//!
//! Every replica hashes its state at the same log indices and sends the hash to the others. At the
//! same index the states must be equal; if they are not, applying was not deterministic, or a
//! machine has failed. Likewise a server may be sent an entry that contradicts one that is
//! committed in its own log.
//!
//! Rule: **a message that was not asked for only raises a question**, because any process could
//! have sent it in another server's name. The server then asks all others, on the connections that
//! it has dialled itself, and only their answers count, which repeat the number of the question. No
//! other process knows the number, so an answer cannot be forged by one that sees neither message.
//!
//! **A server is wrong if more than half of the group answer something else.** It then discards its
//! state or its log and takes the others'. While there is no such majority no server decides: the
//! ones that were contradicted serve no reads and send no snapshots. They go on voting, storing and
//! leading, because only the log brings the missing servers to where they can decide. The word of
//! one server alone never makes another discard anything.
//!
//! An answer may be lost with a link or a process, so the question is repeated until it is decided.
//! If the others do not remember their hashes any more, the leader appends an entry without data,
//! after which all replicas compare again. So an idle group decides, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Notice, Output};
use crate::model::{AppliedPoint, LogIndex, NodeId};
use crate::wire::message::ServerMessage;

/// Number of indices whose hashes are kept. A replica that is further behind is compared at a later
/// index.
const REMEMBERED_MAX: usize = 32;
/// A dispute is reported when it has lasted this long: the third server usually answers within
/// milliseconds.
const DISPUTE_REPORTED_AFTER_US: u64 = 2_000_000;
/// Interval at which the others are asked, for a hash or for the term of an entry; not more often
/// either, however many messages raise questions.
const QUESTION_INTERVAL_US: u64 = 500_000;

/// The questions of one server about the states and logs of the others, and what they have decided.
#[derive(Debug)]
pub(super) struct ConsistencyCheck {
    servers: usize,
    hashes: StateHashes,
    /// Indices that were handed out to be applied, and at which replicas compare their states.
    compared_at: BTreeSet<LogIndex>,
    /// When this node, as leader, last appended an entry to make replicas compare their states.
    compared_anew_us: u64,
    /// An entry that contradicts this node's log, while no majority has decided.
    contradiction: Option<Contradiction>,
    /// A contradiction was reported; once in a run.
    contradiction_reported: bool,
    /// When the others were last asked about a contradiction.
    contradiction_asked_us: Option<u64>,
    /// The number of the next question.
    next_question: u64,
    /// A majority has refuted the state or the log.
    refuted: bool,
}

impl ConsistencyCheck {
    /// No question is open, in a group of `servers`; they are numbered from `first_question` on.
    pub fn new(servers: usize, first_question: u64) -> ConsistencyCheck {
        ConsistencyCheck {
            servers,
            hashes: StateHashes::new(servers),
            compared_at: BTreeSet::new(),
            compared_anew_us: 0,
            contradiction: None,
            contradiction_reported: false,
            contradiction_asked_us: None,
            next_question: first_question,
            refuted: false,
        }
    }

    /// Whether a majority has refuted this server's state or log.
    pub fn is_refuted(&self) -> bool {
        self.refuted
    }

    /// Takes the state as refuted, as if a majority had answered so.
    #[cfg(test)]
    pub fn refute(&mut self) {
        self.refuted = true;
    }

    /// Whether another server contradicts this one and no majority has decided.
    pub fn is_disputed(&self) -> bool {
        self.hashes.is_disputed()
            || self.contradiction.as_ref().is_some_and(Contradiction::is_confirmed)
    }

    /// Notes that an entry at which replicas compare their states was handed out to be applied.
    pub fn handed_out(&mut self, index: LogIndex) {
        assert!(
            self.compared_at.last().is_none_or(|last| *last < index),
            "states are compared at {index}, and at {:?} before",
            self.compared_at.last()
        );
        self.compared_at.insert(index);
    }

    /// Notes the point up to which entries are applied. If replicas compare their states there,
    /// returns the message with the hash of this server's.
    pub fn applied(&mut self, point: AppliedPoint) -> Option<ServerMessage> {
        let AppliedPoint { index, hash, .. } = point;
        let is_compared = self.compared_at.contains(&index);
        self.compared_at = self.compared_at.split_off(&(index + 1));
        is_compared.then(|| {
            self.hashes.note_ours(index, hash);
            ServerMessage::StateHash { index, hash }
        })
    }

    /// Notes the hash that another server has sent without being asked.
    pub fn note_unasked(&mut self, from: NodeId, index: LogIndex, hash: u64) {
        self.hashes.note_unasked(from, index, hash);
    }

    /// The hash of this server's state at an index, for a server that asks; `None` if it is not
    /// kept any more, or refuted.
    pub fn hash_at(&self, index: LogIndex) -> Option<u64> {
        self.hashes.ours(index).filter(|_| !self.refuted)
    }

    /// If a question about the states is due, begins one and returns the message for all others.
    pub fn question_about_states(&mut self, now_us: u64) -> Option<ServerMessage> {
        let index = self.hashes.question_due(self.next_question, now_us)?;
        Some(ServerMessage::StateHashAt { id: self.take_number(), index })
    }

    /// Whether the states are disputed, so that replicas are to compare them at a later index, too.
    pub fn are_states_disputed(&self) -> bool {
        self.hashes.is_disputed()
    }

    /// Whether this node, as leader, may append an entry to make replicas compare their states.
    pub fn may_compare_anew(&self, now_us: u64) -> bool {
        now_us.saturating_sub(self.compared_anew_us) >= QUESTION_INTERVAL_US
    }

    /// Notes that such an entry was appended.
    pub fn compared_anew(&mut self, now_us: u64) {
        self.compared_anew_us = now_us;
    }

    /// Handles the answer of a server about the hash of its state.
    pub fn hash_answered(
        &mut self,
        from: NodeId,
        id: u64,
        hash: u64,
        now_us: u64,
        out: &mut Vec<Output>,
    ) {
        let verdict = self.hashes.answered(from, id, hash, now_us);
        let Some(index) = self.hashes.asked_index() else { return };
        match verdict {
            HashVerdict::Nothing => {}
            HashVerdict::OthersDiffer(servers) => {
                for server in servers {
                    out.push(Output::Notice(Notice::ServerDiverged { server, index }));
                }
            }
            HashVerdict::Undisputed => out.push(Output::Notice(Notice::Undisputed)),
            HashVerdict::WeDiffer if !self.refuted => {
                self.refuted = true;
                out.push(Output::Notice(Notice::Diverged { index }));
                out.push(Output::RebuildState);
            }
            HashVerdict::WeDiffer => {}
        }
    }

    /// Notes that an entry that `from` has sent, or another process in its name, contradicts one
    /// that is committed here. One server's word against another's does not tell which log is
    /// wrong, so all others are to be asked.
    pub fn contradicted(&mut self, from: NodeId, index: LogIndex) {
        let known = self.contradiction.as_ref().is_some_and(|known| known.index == index);
        if !known {
            self.contradiction = Some(Contradiction::new(from, index));
        }
    }

    /// Notes that a leader's entries were stored: a server that contradicted them does not lead any
    /// more.
    pub fn followed(&mut self, leader: NodeId) {
        self.contradiction.take_if(|contradiction| contradiction.server != leader);
    }

    /// Forgets a contradiction by a server whose link is down.
    pub fn link_down(&mut self, server: NodeId) {
        self.contradiction.take_if(|contradiction| contradiction.server == server);
    }

    /// Whether there is a contradiction that no majority has decided in this server's favour.
    pub fn is_log_in_question(&self) -> bool {
        self.contradiction.as_ref().is_some_and(|contradiction| !contradiction.is_upheld())
    }

    /// If a question about a contradiction is due, begins one and returns the message for all
    /// others.
    pub fn question_about_log(&mut self, now_us: u64) -> Option<ServerMessage> {
        let contradiction = self.contradiction.as_mut()?;
        let index = contradiction.index;
        let asked_us = &mut self.contradiction_asked_us;
        contradiction
            .is_question_due(self.next_question, asked_us, now_us)
            .then(|| ServerMessage::LogTerm { id: self.take_number(), index })
    }

    /// The index at which a contradiction is in question.
    pub fn contradicted_index(&self) -> Option<LogIndex> {
        self.contradiction.as_ref().map(|contradiction| contradiction.index)
    }

    /// Handles the answer of a server about the entry in question: whether its term differs from
    /// that of this server's entry.
    pub fn log_answered(&mut self, from: NodeId, id: u64, differs: bool, out: &mut Vec<Output>) {
        let Some(contradiction) = &mut self.contradiction else { return };
        let (server, index) = (contradiction.server, contradiction.index);
        let verdict = contradiction.answered(from, id, differs, self.servers);
        let confirmed = contradiction.is_confirmed();
        if verdict == LogVerdict::Refuted && !self.refuted {
            self.refuted = true;
            out.push(Output::Notice(Notice::LogRefuted { index }));
            out.push(Output::BeginAnew);
        } else if confirmed && !std::mem::replace(&mut self.contradiction_reported, true) {
            out.push(Output::Notice(Notice::LogContradicted { server, index }));
        }
    }

    /// The notice of a dispute about the states that has lasted, once.
    pub fn lasting_dispute(&mut self, now_us: u64) -> Option<Notice> {
        self.hashes.lasting_dispute(now_us).map(|index| Notice::Disputed { index })
    }

    fn take_number(&mut self) -> u64 {
        let id = self.next_question;
        self.next_question = id.wrapping_add(1);
        id
    }
}

/// The outcome of one answer about the hash of the state.
#[derive(Debug, PartialEq, Eq)]
enum HashVerdict {
    Nothing,
    /// A majority agrees with this server, and these servers do not; each is named once.
    OthersDiffer(Vec<NodeId>),
    /// A majority agrees with this server, which was not known before.
    Undisputed,
    /// A majority agrees on another state than this server's.
    WeDiffer,
}

/// The hashes of this server's states, and those that the others have sent.
#[derive(Debug)]
struct StateHashes {
    nodes: usize,
    /// Ordered by index, and at most [`REMEMBERED_MAX`].
    known: VecDeque<(LogIndex, HashesAtIndex)>,
    question: Option<HashQuestion>,
    dispute: Option<Dispute>,
    /// Servers that were already reported as different from the majority.
    named: BTreeSet<NodeId>,
}

/// The hashes known of one index.
#[derive(Debug, Default)]
struct HashesAtIndex {
    ours: Option<u64>,
    /// The hashes that other servers have sent without being asked, but for those that a majority
    /// has contradicted since.
    unasked: BTreeMap<NodeId, u64>,
}

impl HashesAtIndex {
    /// Whether a server has sent another hash than this server's.
    fn is_suspected(&self) -> bool {
        self.ours.is_some_and(|ours| self.unasked.values().any(|other| *other != ours))
    }
}

#[derive(Debug)]
struct HashQuestion {
    id: u64,
    index: LogIndex,
    ours: u64,
    asked_us: u64,
    answers: BTreeMap<NodeId, u64>,
}

#[derive(Debug)]
struct Dispute {
    index: LogIndex,
    since_us: u64,
    reported: bool,
}

impl StateHashes {
    pub fn new(nodes: usize) -> StateHashes {
        StateHashes {
            nodes,
            known: VecDeque::new(),
            question: None,
            dispute: None,
            named: BTreeSet::new(),
        }
    }

    /// Notes the hash of this server's state at `index`.
    pub fn note_ours(&mut self, index: LogIndex, hash: u64) {
        if let Some(known) = self.known_at(index) {
            known.ours = Some(hash);
        }
        self.forget_oldest();
    }

    /// Notes the hash that another server has sent without being asked.
    pub fn note_unasked(&mut self, server: NodeId, index: LogIndex, hash: u64) {
        if let Some(known) = self.known_at(index) {
            known.unasked.insert(server, hash);
        }
        self.forget_oldest();
    }

    /// The hashes at an index; `None` if it is older than all that are kept.
    fn known_at(&mut self, index: LogIndex) -> Option<&mut HashesAtIndex> {
        let at = self.known.partition_point(|(known, _)| *known < index);
        if self.known.get(at).is_none_or(|(known, _)| *known != index) {
            if at == 0 && self.known.len() == REMEMBERED_MAX {
                return None;
            }
            self.known.insert(at, (index, HashesAtIndex::default()));
        }
        self.known.get_mut(at).map(|(_, known)| known)
    }

    fn forget_oldest(&mut self) {
        if self.known.len() > REMEMBERED_MAX {
            self.known.pop_front();
        }
    }

    /// The hash of this server's state at an index, if it is still kept.
    pub fn ours(&self, index: LogIndex) -> Option<u64> {
        let at = self.known.binary_search_by_key(&index, |(known, _)| *known).ok()?;
        self.known[at].1.ours
    }

    /// Begins a question with this number if one is due; returns the index whose hash the others
    /// are to be asked for.
    pub fn question_due(&mut self, id: u64, now_us: u64) -> Option<LogIndex> {
        let waits = self.question.as_ref().is_some_and(|question| {
            now_us.saturating_sub(question.asked_us) < QUESTION_INTERVAL_US
        });
        let suspected = self.known.iter().filter(|(_, known)| known.is_suspected());
        let suspected = suspected.map(|(index, _)| *index).max();
        if waits || (suspected.is_none() && self.dispute.is_none()) {
            return None;
        }
        // Servers that have sent their hash of an index can answer for it. That states are the same
        // settles what was said of earlier ones, and nothing of later ones: so the question is
        // about an index of which another hash was sent, or about one after all of these.
        let ours = self.known.iter();
        let ours = ours.filter(|(index, at)| Some(*index) >= suspected || at.is_suspected());
        let ours = ours.filter_map(|(index, known)| Some((*index, known, known.ours?)));
        let (index, _, ours) =
            ours.max_by_key(|(index, known, _)| (known.unasked.len(), *index))?;
        let answers = BTreeMap::new();
        self.question = Some(HashQuestion { id, index, ours, asked_us: now_us, answers });
        Some(index)
    }

    /// Handles the answer of a server; one to another question counts for nothing.
    pub fn answered(&mut self, server: NodeId, id: u64, hash: u64, now_us: u64) -> HashVerdict {
        let Some(question) = self.question.as_mut().filter(|question| question.id == id) else {
            return HashVerdict::Nothing;
        };
        question.answers.insert(server, hash);
        let (index, ours) = (question.index, question.ours);
        let votes = |wanted: u64| question.answers.values().filter(|hash| **hash == wanted).count();
        let majority = self.nodes / 2 + 1;
        let mut others = question.answers.iter().filter(|(_, hash)| **hash != ours);
        if others.clone().any(|(_, hash)| votes(*hash) >= majority) {
            return HashVerdict::WeDiffer;
        }
        if 1 + votes(ours) >= majority {
            for (_, known) in self.known.iter_mut().filter(|(known, _)| *known <= index) {
                known.unasked.retain(|_, hash| known.ours.is_none_or(|ours| ours == *hash));
            }
            let reported = self.dispute.take().is_some_and(|dispute| dispute.reported);
            let new: Vec<_> = others
                .map(|(server, _)| *server)
                .filter(|server| self.named.insert(*server))
                .collect();
            return match (new.is_empty(), reported) {
                (false, _) => HashVerdict::OthersDiffer(new),
                (true, true) => HashVerdict::Undisputed,
                (true, false) => HashVerdict::Nothing,
            };
        }
        if others.next().is_some() {
            self.dispute.get_or_insert(Dispute { index, since_us: now_us, reported: false });
        }
        HashVerdict::Nothing
    }

    /// The index that the last question was about.
    pub fn asked_index(&self) -> Option<LogIndex> {
        self.question.as_ref().map(|question| question.index)
    }

    /// Whether replicas contradict each other and no majority is known to agree.
    pub fn is_disputed(&self) -> bool {
        self.dispute.is_some()
    }

    /// Returns the index of a dispute that has lasted for [`DISPUTE_REPORTED_AFTER_US`], once.
    pub fn lasting_dispute(&mut self, now_us: u64) -> Option<LogIndex> {
        let dispute = self.dispute.as_mut()?;
        let lasts = now_us.saturating_sub(dispute.since_us) >= DISPUTE_REPORTED_AFTER_US;
        (lasts && !std::mem::replace(&mut dispute.reported, true)).then_some(dispute.index)
    }
}

/// An entry of another server that contradicts one that is committed here.
#[derive(Debug)]
struct Contradiction {
    pub server: NodeId,
    pub index: LogIndex,
    /// The number of the last question about it.
    id: Option<u64>,
    /// By server that has answered: whether it holds another entry at the index than this server.
    answers: BTreeMap<NodeId, bool>,
    /// A majority holds this server's entry. That stands until a majority says otherwise; else the
    /// same entry would make this server stop serving reads each time that it is sent.
    upheld: bool,
}

/// The outcome of the answers about a contradiction.
#[derive(Debug, PartialEq, Eq)]
enum LogVerdict {
    /// No majority is known.
    Open,
    /// More than half of the group hold this server's entry.
    Upheld,
    /// More than half of the group hold another one.
    Refuted,
}

impl Contradiction {
    pub fn new(server: NodeId, index: LogIndex) -> Contradiction {
        Contradiction { server, index, id: None, answers: BTreeMap::new(), upheld: false }
    }

    /// Begins a question with this number if one is due; returns whether the others are to be
    /// asked. `asked_us` is when they were last asked about any entry.
    pub fn is_question_due(&mut self, id: u64, asked_us: &mut Option<u64>, now_us: u64) -> bool {
        let due = asked_us.is_none_or(|at| now_us.saturating_sub(at) >= QUESTION_INTERVAL_US);
        if due {
            *asked_us = Some(now_us);
            self.id = Some(id);
        }
        due
    }

    /// Whether a server that was asked holds another entry than this one, and no majority holds
    /// this server's.
    pub fn is_confirmed(&self) -> bool {
        !self.upheld && self.answers.values().any(|differs| *differs)
    }

    /// Whether a majority is known to hold this server's entry.
    pub fn is_upheld(&self) -> bool {
        self.upheld
    }

    /// Handles the answer of a server, in a group of `nodes` servers.
    pub fn answered(&mut self, server: NodeId, id: u64, differs: bool, nodes: usize) -> LogVerdict {
        if self.id != Some(id) {
            return LogVerdict::Open;
        }
        self.answers.insert(server, differs);
        let differ = self.answers.values().filter(|differs| **differs).count();
        let agree = 1 + self.answers.len() - differ;
        match nodes / 2 {
            half if differ > half => LogVerdict::Refuted,
            half if agree > half => {
                self.upheld = true;
                LogVerdict::Upheld
            }
            _ => LogVerdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);
    const LATER: u64 = QUESTION_INTERVAL_US;

    /// Of a group of three, at one of which the state has hash 1 at index 10 and A has told another
    /// one.
    fn suspicious() -> StateHashes {
        let mut hashes = StateHashes::new(3);
        hashes.note_ours(10, 1);
        assert_eq!(hashes.question_due(70, 0), None, "there is nothing to ask");
        hashes.note_unasked(A, 10, 2);
        assert_eq!(hashes.question_due(71, 0), Some(10));
        hashes
    }

    #[test]
    fn what_comes_unasked_refutes_nobody_and_stops_nothing() {
        let mut hashes = StateHashes::new(3);
        for (order, early) in [([A, B], true), ([B, A], false)] {
            if early {
                hashes.note_ours(10, 1);
            }
            for server in order {
                hashes.note_unasked(server, 10, 2);
                assert_eq!(hashes.answered(server, 0, 2, 0), HashVerdict::Nothing, "nobody asked");
            }
            hashes.note_ours(10, 1);
            assert!(!hashes.is_disputed());
        }
    }

    #[test]
    fn a_difference_is_noticed_whoever_tells_first_and_the_minority_is_wrong() {
        for ours_first in [false, true] {
            let mut hashes = StateHashes::new(3);
            if ours_first {
                hashes.note_ours(10, 1);
            }
            hashes.note_unasked(B, 10, 2);
            assert_eq!(hashes.question_due(5, 0), ours_first.then_some(10));
            hashes.note_ours(10, 1);
            hashes.question_due(5, 0);
            assert_eq!(hashes.answered(B, 4, 2, 0), HashVerdict::Nothing, "another question's");
            assert_eq!(hashes.answered(B, 5, 2, 0), HashVerdict::Nothing);
            assert!(hashes.is_disputed(), "one against one");
            assert_eq!(hashes.answered(B, 5, 2, 0), HashVerdict::Nothing, "once more");
            assert_eq!(hashes.answered(A, 5, 2, 0), HashVerdict::WeDiffer);
        }
        let mut hashes = suspicious();
        hashes.answered(A, 71, 2, 0);
        assert!(hashes.is_disputed());
        assert_eq!(hashes.answered(B, 71, 1, 0), HashVerdict::OthersDiffer(vec![A]));
        assert!(!hashes.is_disputed());
        hashes.note_ours(20, 1);
        hashes.note_unasked(A, 20, 2);
        assert_eq!(hashes.question_due(72, LATER), Some(20));
        hashes.answered(B, 72, 1, LATER);
        assert_eq!(hashes.answered(A, 72, 2, LATER), HashVerdict::Nothing, "it was named");
    }

    /// It was once enough for a server to serve no reads until the next comparison, which may never
    /// come.
    #[test]
    fn a_forged_hash_is_forgotten_when_its_server_is_asked() {
        let mut hashes = suspicious();
        assert_eq!(hashes.answered(A, 71, 1, 0), HashVerdict::Nothing);
        assert!(!hashes.is_disputed());
        assert_eq!(hashes.question_due(72, 9 * LATER), None);
    }

    #[test]
    fn where_no_majority_agrees_nobody_guesses_until_one_does() {
        let mut hashes = suspicious();
        for (server, hash) in [(A, 2), (B, 3)] {
            assert_eq!(hashes.answered(server, 71, hash, 0), HashVerdict::Nothing);
        }
        assert!(hashes.is_disputed());
        assert_eq!(hashes.lasting_dispute(DISPUTE_REPORTED_AFTER_US - 1), None);
        assert_eq!(hashes.lasting_dispute(DISPUTE_REPORTED_AFTER_US), Some(10));
        assert_eq!(hashes.lasting_dispute(DISPUTE_REPORTED_AFTER_US), None, "it is said once");
        hashes.note_ours(20, 1);
        hashes.note_unasked(B, 20, 1);
        assert_eq!(hashes.question_due(72, LATER - 1), None, "it was asked a moment ago");
        assert_eq!(hashes.question_due(72, LATER), Some(20), "where most can answer");
        assert_eq!(hashes.answered(B, 72, 1, LATER), HashVerdict::Undisputed);
        assert!(!hashes.is_disputed());
        assert_eq!(hashes.question_due(73, 9 * LATER), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_one_servers_word_refutes_nobody() {
        let mut hashes = StateHashes::new(3);
        for index in 0..1_000 {
            hashes.note_unasked(A, index, 7);
            hashes.note_unasked(A, index, 8);
        }
        assert_eq!(hashes.known.len(), REMEMBERED_MAX);
        hashes.note_ours(999, 1);
        hashes.note_unasked(A, 0, 7);
        assert_eq!(hashes.question_due(1, 0), Some(999), "the others are long past");
        assert_eq!((hashes.ours(999), hashes.ours(998)), (Some(1), None));
        assert_eq!(hashes.answered(A, 1, 8, 0), HashVerdict::Nothing);
    }

    #[test]
    fn a_contradiction_is_settled_by_those_who_were_asked() {
        let (mut asked_us, mut contradiction) = (None, Contradiction::new(A, 9));
        for server in [A, B] {
            assert_eq!(contradiction.answered(server, 7, true, 3), LogVerdict::Open, "not asked");
        }
        assert!(contradiction.is_question_due(7, &mut asked_us, 100));
        assert!(!contradiction.is_question_due(8, &mut asked_us, 99 + LATER));
        assert!(!Contradiction::new(B, 10).is_question_due(8, &mut asked_us, 99 + LATER));
        assert_eq!(contradiction.answered(A, 7, true, 3), LogVerdict::Open);
        assert!(contradiction.is_confirmed());
        assert_eq!(contradiction.answered(B, 7, true, 3), LogVerdict::Refuted);
        assert_eq!(contradiction.answered(B, 7, false, 3), LogVerdict::Upheld);
        assert_eq!(contradiction.answered(B, 7, false, 5), LogVerdict::Open);
    }
}
