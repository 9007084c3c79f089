//! Who is wrong when two servers contradict each other: in their states, or in their logs.
//!
//! Every replica hashes its state at the same indices and tells the others. At equal index the states are
//! equal; where they are not, applying was not deterministic, or a machine erred. A server that is sent an
//! entry that contradicts one that is committed at it asks all others for the term of theirs.
//!
//! The rule is the same for both: **a server is wrong when more than half of the group agree on something
//! else, and right when more than half, itself included, agree with it.** In the first case it throws away
//! what was refuted and takes the others'. As long as no majority agrees, nobody guesses: those who know of the contradiction serve no reads and pass no snapshots on, and go on to
//! vote, to store, and to lead, because only the log brings the servers that are missing to where they can
//! decide. One server's word alone never makes another throw anything away.
//!
//! A word may be lost with a link, or with the process that was to say it. So a server that knows of a contradiction
//! between states repeats its own hash and asks for the others'. Where they do not know theirs any more, the leader
//! appends an entry without data, after which everybody compares again: an idle group decides, too.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::types::{LogIndex, NodeId};

/// Indices whose hashes are remembered: a replica that lags further behind is compared at a later one.
const REMEMBERED_MAX: usize = 32;
/// A dispute is said when it has lasted so long; the third server's word is usually a moment away.
const DISPUTE_SAID_AFTER_US: u64 = 2_000_000;
/// The others are asked again, for the term of an entry or for the hash of a state, after this long.
pub(super) const QUESTION_INTERVAL_US: u64 = 500_000;

/// What a hash that was noted means for this server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HashVerdict {
    /// Nothing new.
    Nothing,
    /// A majority agrees with this server, and these do not; each is named once.
    OthersDiffer(Vec<NodeId>),
    /// A majority agrees with this server, which was not known before.
    Undisputed,
    /// A majority agrees on another state than this server's.
    WeDiffer,
}

/// The states' hashes at this server and at others.
#[derive(Debug)]
pub(super) struct StateHashes {
    me: NodeId,
    nodes: usize,
    /// By index, the oldest first.
    known: VecDeque<(LogIndex, BTreeMap<NodeId, u64>)>,
    dispute: Option<Dispute>,
    named: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Dispute {
    index: LogIndex,
    /// This server's hash there.
    hash: u64,
    since_us: u64,
    asked_us: u64,
    said: bool,
}

impl StateHashes {
    pub fn new(me: NodeId, nodes: usize) -> StateHashes {
        StateHashes { me, nodes, known: VecDeque::new(), dispute: None, named: BTreeSet::new() }
    }

    /// Takes a hash of the state of `server`, which may be this one, at `index`.
    pub fn note(&mut self, server: NodeId, index: LogIndex, hash: u64, now_us: u64) -> HashVerdict {
        let at = self.known.partition_point(|(known, _)| *known < index);
        if self.known.get(at).is_none_or(|(known, _)| *known != index) {
            if at == 0 && self.known.len() == REMEMBERED_MAX {
                return HashVerdict::Nothing;
            }
            self.known.insert(at, (index, BTreeMap::new()));
        }
        let hashes = &mut self.known[at].1;
        hashes.insert(server, hash);
        let ours = hashes.get(&self.me).copied().unwrap_or_default();
        let verdict = hashes.get(&self.me).map(|ours| {
            let others = hashes.iter().filter(|(_, hash)| *hash != ours);
            let differing: Vec<NodeId> = others.clone().map(|(peer, _)| *peer).collect();
            let votes = |wanted: u64| hashes.values().filter(|hash| **hash == wanted).count();
            let refuted = others.clone().any(|(_, hash)| votes(*hash) > self.nodes / 2);
            (differing, refuted, votes(*ours) > self.nodes / 2)
        });
        if self.known.len() > REMEMBERED_MAX {
            self.known.pop_front();
        }
        match verdict {
            Some((_, true, _)) => HashVerdict::WeDiffer,
            Some((differing, _, true)) => {
                let said = self.dispute.take().is_some_and(|dispute| dispute.said);
                let new: Vec<_> =
                    differing.into_iter().filter(|peer| self.named.insert(*peer)).collect();
                match (new.is_empty(), said) {
                    (false, _) => HashVerdict::OthersDiffer(new),
                    (true, true) => HashVerdict::Undisputed,
                    (true, false) => HashVerdict::Nothing,
                }
            }
            Some((differing, ..)) if !differing.is_empty() => {
                // The others' words are usually a moment away.
                let (since_us, asked_us) = (now_us, now_us);
                let dispute = Dispute { index, hash: ours, since_us, asked_us, said: false };
                self.dispute.get_or_insert(dispute);
                HashVerdict::Nothing
            }
            _ => HashVerdict::Nothing,
        }
    }

    /// Whether replicas contradict each other and no majority is known to agree.
    pub fn is_disputed(&self) -> bool {
        self.dispute.is_some()
    }

    /// This server's hash at `index`, if it is remembered.
    pub fn ours(&self, index: LogIndex) -> Option<u64> {
        let at = self.known.binary_search_by_key(&index, |(known, _)| *known).ok()?;
        self.known[at].1.get(&self.me).copied()
    }

    /// What the others are to be asked about now, as there is a dispute: an index and this server's hash there. They
    /// are then taken as asked.
    pub fn take_question(&mut self, now_us: u64) -> Option<(LogIndex, u64)> {
        let dispute = self.dispute.as_mut()?;
        if now_us.saturating_sub(dispute.asked_us) < QUESTION_INTERVAL_US {
            return None;
        }
        dispute.asked_us = now_us;
        Some((dispute.index, dispute.hash))
    }

    /// A dispute that has lasted, once.
    pub fn lasting_dispute(&mut self, now_us: u64) -> Option<LogIndex> {
        let dispute = self.dispute.as_mut()?;
        let lasts = now_us.saturating_sub(dispute.since_us) >= DISPUTE_SAID_AFTER_US;
        (lasts && !std::mem::replace(&mut dispute.said, true)).then_some(dispute.index)
    }
}

/// An entry of another server that contradicts one that is committed here.
///
/// The others are asked for the terms of two entries: the one in question, and the one that this server's commit index
/// stood at. Logs that agree at an index agree before it, so the second acquits this server as well, where the
/// others have cut their logs behind the first.
#[derive(Debug)]
pub(super) struct Contradiction {
    pub peer: NodeId,
    pub index: LogIndex,
    commit: LogIndex,
    asked_us: Option<u64>,
    /// Answers to the last question: whether the others hold what this server does.
    answers: BTreeMap<NodeId, bool>,
    acquitted: bool,
}

/// What the answers so far say of this server's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogVerdict {
    /// Too few have answered.
    Open,
    /// A majority, this server included, holds the same.
    Acquitted,
    /// A majority holds another entry.
    Refuted,
}

impl Contradiction {
    /// `before` is the one that this one replaces: the others are not asked more often for there being many.
    pub fn new(
        peer: NodeId,
        index: LogIndex,
        commit: LogIndex,
        before: Option<Contradiction>,
    ) -> Contradiction {
        let asked_us = before.and_then(|before| before.asked_us);
        let answers = BTreeMap::new();
        Contradiction { peer, index, commit, asked_us, answers, acquitted: false }
    }

    /// Whether it is not known who is right. An acquittal lasts until a majority says otherwise, or the same entry
    /// would put this server in doubt each time that it is sent.
    pub fn is_open(&self) -> bool {
        !self.acquitted
    }

    /// The indices to ask all others about now, if it is time to; they are then taken as asked.
    pub fn take_question(&mut self, now_us: u64) -> Vec<LogIndex> {
        if self.asked_us.is_some_and(|at| now_us.saturating_sub(at) < QUESTION_INTERVAL_US) {
            return Vec::new();
        }
        self.asked_us = Some(now_us);
        self.answers.clear();
        let mut indices = vec![self.index, self.commit];
        indices.dedup();
        indices
    }

    /// Takes another server's answer about the entry at `index`, which this server has committed: in a group of
    /// `nodes`.
    pub fn heard(
        &mut self,
        from: NodeId,
        index: LogIndex,
        agrees: bool,
        nodes: usize,
    ) -> LogVerdict {
        if index == self.index {
            self.answers.insert(from, agrees);
        } else if index == self.commit && agrees {
            self.answers.entry(from).or_insert(true);
        }
        let agreeing = self.answers.values().filter(|agrees| **agrees).count();
        if self.answers.len() - agreeing > nodes / 2 {
            return LogVerdict::Refuted;
        }
        self.acquitted |= agreeing + 1 > nodes / 2;
        if self.acquitted { LogVerdict::Acquitted } else { LogVerdict::Open }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    fn hashes() -> StateHashes {
        StateHashes::new(NodeId(1), 3)
    }

    #[test]
    fn a_difference_is_noticed_whoever_comes_first_and_the_minority_is_wrong() {
        for order in [[1, 2, 3], [2, 3, 1], [3, 1, 2], [2, 1, 3]] {
            let mut hashes = hashes();
            let mut last = HashVerdict::Nothing;
            for node in order {
                last = hashes.note(NodeId(node), 10, if node == 1 { 1 } else { 2 }, 0);
            }
            assert_eq!(last, HashVerdict::WeDiffer, "{order:?}");
        }
        let mut hashes = hashes();
        hashes.note(NodeId(1), 10, 1, 0);
        assert_eq!(hashes.note(A, 10, 2, 0), HashVerdict::Nothing);
        assert!(hashes.is_disputed(), "one against one");
        assert_eq!(hashes.note(B, 10, 1, 0), HashVerdict::OthersDiffer(vec![A]));
        assert!(!hashes.is_disputed());
        hashes.note(NodeId(1), 20, 1, 0);
        hashes.note(B, 20, 1, 0);
        assert_eq!(hashes.note(A, 20, 2, 0), HashVerdict::Nothing, "it was named");
    }

    #[test]
    fn where_no_majority_agrees_nobody_guesses_until_one_does() {
        let mut hashes = hashes();
        for (server, hash) in [(NodeId(1), 1), (A, 2), (B, 3)] {
            assert_eq!(hashes.note(server, 10, hash, 0), HashVerdict::Nothing);
        }
        assert!(hashes.is_disputed());
        assert_eq!(hashes.lasting_dispute(DISPUTE_SAID_AFTER_US - 1), None);
        assert_eq!(hashes.lasting_dispute(DISPUTE_SAID_AFTER_US), Some(10));
        assert_eq!(hashes.lasting_dispute(DISPUTE_SAID_AFTER_US), None, "it is said once");
        hashes.note(NodeId(1), 20, 1, 0);
        assert_eq!(hashes.note(B, 20, 1, 0), HashVerdict::Undisputed);
        assert!(!hashes.is_disputed());
    }

    #[test]
    fn what_is_remembered_is_bounded_and_one_servers_word_refutes_nobody() {
        let mut hashes = hashes();
        for index in 0..1_000 {
            hashes.note(A, index, 7, 0);
            hashes.note(A, index, 8, 0);
        }
        assert_eq!(hashes.known.len(), REMEMBERED_MAX);
        assert_eq!(hashes.note(NodeId(1), 999, 1, 0), HashVerdict::Nothing);
        assert_eq!(hashes.note(A, 0, 7, 0), HashVerdict::Nothing, "long past");
    }

    #[test]
    fn a_log_that_a_majority_agrees_with_is_acquitted_though_the_others_have_cut_theirs() {
        let mut found = Contradiction::new(A, 3, 9, None);
        assert_eq!(found.take_question(0), [3, 9]);
        assert!(found.take_question(QUESTION_INTERVAL_US - 1).is_empty());
        assert_eq!(found.heard(B, 9, false, 3), LogVerdict::Open, "they may part after the third");
        assert_eq!(found.heard(B, 9, true, 3), LogVerdict::Acquitted);
        assert!(!found.is_open());
        // Sent again, it is looked into again, and puts nothing in doubt meanwhile.
        assert_eq!(found.take_question(QUESTION_INTERVAL_US), [3, 9]);
        assert!(!found.is_open());
        assert_eq!(found.heard(A, 3, false, 3), LogVerdict::Acquitted);
        assert_eq!(found.heard(B, 3, false, 3), LogVerdict::Refuted);
        // A new one is asked about when it is time to.
        let mut next = Contradiction::new(B, 4, 4, Some(found));
        assert!(next.is_open() && next.take_question(QUESTION_INTERVAL_US).is_empty());
        assert_eq!(next.take_question(2 * QUESTION_INTERVAL_US), [4]);
    }
}
