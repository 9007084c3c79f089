//! Decides which servers may take part in elections, so that a lost data directory does not lose
//! writes.
//!
//! A server that comes back with a blank data directory under its old number has forgotten which
//! entries it acknowledged and for whom it voted. If it voted, a candidate that lacks an
//! acknowledged write could win with its help, although a majority of the data directories
//! survives. So a server with a blank data directory starts *ineligible*: it neither votes nor
//! campaigns. It does not follow a leader either before it knows, from the terms of a majority of
//! *other* servers, that this leader has not been deposed by a majority to which this server
//! belonged before it lost its directory. Until then it counts as down.
//!
//! Rule: it becomes an eligible voter, permanently, in one of two ways.
//!
//! 1. **Bootstrap.** The founder of a new group campaigns with an empty log, and a blank server
//!    grants the vote. Granting it makes the voter eligible, winning it makes the leader eligible.
//!    The founder does not campaign if it observes a term in which it does not remember asking for
//!    votes (it may have lost its own directory), unless all other servers have said that their
//!    logs are empty, too. The founder is the server that a majority of the group has configured as
//!    its first leader (`--leader`). If no server has such a majority, it is the lowest number that
//!    any server has configured, once every server is up, is blank, and has said what it has
//!    configured. So the founder follows from the configuration alone and not from which servers
//!    are up, and no second server ever founds the group.
//! 2. **Catching up.** Since its start, the server has heard the terms of a majority of *other*
//!    servers, and has then caught up with the commit index of a leader whose term is not below any
//!    of these, including an entry of that leader's own term. (A leader does not know everything
//!    that is committed before an entry of its own term is.)
//!
//! Why it is safe. Bootstrap: the founder sends no entry before its first one is durable in its own
//! log. If its log is empty, no server ever stored an entry and nothing was ever acknowledged.
//! Catching up: whatever this server acknowledged before it lost its directory was committed with
//! the help of at least one of the servers that it has heard, so the leader has it.
//!
//! Not covered: two data directories lost out of three. No rule can recover from that.

use std::collections::HashMap;

use crate::model::{LogIndex, NodeId, Term};

/// Whether this server is an eligible voter, and what it has heard on the way to becoming one.
#[derive(Debug)]
pub(super) struct VoterEligibility {
    eligible: bool,
    others_needed: usize,
    /// The latest term that each other server has named since this server started.
    observed_terms: HashMap<NodeId, Term>,
    /// Once enough servers are heard: the term of the leader, and the commit index to catch up
    /// with.
    target: Option<(Term, LogIndex)>,
}

impl VoterEligibility {
    /// `nodes` is the size of the group, this server included.
    pub fn new(eligible: bool, nodes: usize) -> VoterEligibility {
        VoterEligibility {
            eligible,
            others_needed: nodes / 2 + 1,
            observed_terms: HashMap::new(),
            target: None,
        }
    }

    pub fn is_eligible(&self) -> bool {
        self.eligible
    }

    /// Makes this server eligible without catching up, as bootstrap does. Returns whether it was
    /// not before.
    pub fn grant(&mut self) -> bool {
        !std::mem::replace(&mut self.eligible, true)
    }

    /// Notes the term in another server's greeting, or in any message of this run. The latest one
    /// counts, also if it is lower: a term never falls, so the higher one was forged in that
    /// server's name. (It may also be an older message that was overtaken. That does no harm: any
    /// term named since the start is recent enough.)
    pub fn observe_term(&mut self, node: NodeId, term: Term) {
        if !self.eligible {
            self.observed_terms.insert(node, term);
        }
    }

    /// Whether the founder may bootstrap the group: no server has named a later term than
    /// `last_term_asked_for`, the last in which this server asked for votes. If one has, this
    /// server may be the one whose data directory was lost.
    pub fn may_bootstrap(&self, last_term_asked_for: Term) -> bool {
        self.observed_terms.values().all(|term| *term <= last_term_asked_for)
    }

    /// Whether a leader of this term may be followed. Before enough servers are heard, or when too
    /// many of them know a later term, the leader may be a deposed one. To store its entries or to
    /// answer its heartbeats would then make a majority of that leader and a server that has
    /// forgotten its successor.
    pub fn may_follow(&self, term: Term) -> bool {
        let not_above = self.observed_terms.values().filter(|observed| **observed <= term).count();
        self.eligible || not_above >= self.others_needed
    }

    /// Notes that a REPLICATION of a leader was stored. `commit` is the commit index that it
    /// carries; `ours` is the local commit index if the entry there is of the leader's term.
    /// Returns whether that makes this server eligible.
    pub fn catch_up(&mut self, term: Term, commit: LogIndex, ours: Option<LogIndex>) -> bool {
        if self.eligible {
            return false;
        }
        if self.target.is_none_or(|(of, _)| of != term) {
            if !self.may_follow(term) {
                return false;
            }
            self.target = Some((term, commit));
        }
        match self.target {
            Some((_, index)) if ours.is_some_and(|ours| ours >= index) => self.grant(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_server_is_eligible_when_it_has_caught_up_with_what_most_others_know() {
        let mut rule = VoterEligibility::new(false, 3);
        rule.observe_term(NodeId(2), 5);
        assert!(!rule.catch_up(5, 10, Some(10)), "one other of two is not enough");
        rule.observe_term(NodeId(3), 5);
        assert!(!rule.catch_up(5, 12, Some(10)), "not caught up");
        assert!(!rule.catch_up(5, 20, Some(11)), "the first target stands, and is not reached");
        assert!(!rule.catch_up(5, 30, None), "the leader may not know yet what is committed");
        assert!(rule.catch_up(5, 30, Some(12)));
        assert!(rule.is_eligible());
        assert!(!rule.catch_up(5, 30, Some(30)), "once");
    }

    #[test]
    fn a_leader_of_an_older_term_than_another_server_knows_makes_nobody_eligible() {
        let mut rule = VoterEligibility::new(false, 3);
        rule.observe_term(NodeId(2), 5);
        rule.observe_term(NodeId(3), 7);
        assert!(!rule.may_follow(5));
        assert!(!rule.catch_up(5, 0, Some(0)));
        assert!(rule.may_follow(7));
        assert!(rule.catch_up(7, 3, Some(3)));
    }
}
