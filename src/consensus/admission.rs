//! Who may take part in elections: the rule that keeps a lost data directory from losing writes.
//!
//! A server that comes back blank under its old number has forgotten what it acknowledged and whom
//! it voted for. If it voted, a candidate that lacks an acknowledged write could win with its help
//! although a majority of data directories survives. So a blank server starts *not admitted*: it
//! neither votes nor campaigns. Nor does it follow a leader before it knows, by the terms of a
//! majority of *other* servers, that this one has not been deposed by a majority to which its former
//! self belonged: until then it is as good as down.
//!
//! It is admitted, for ever, in one of two ways:
//!
//! 1. **The group's birth.** The founder campaigns with an empty log, unless it hears of
//!    a term that it does not remember asking for (its directory was lost) and not all others have
//!    said that their logs are empty, too; and a blank server grants it. The founder is whoever a majority of the group's servers was told leads first. When they
//!    were told so many different ones that there is no such majority, it is the lowest of those named, as
//!    soon as every server is up, is blank, and has said whom it was told. Either way it follows from what the servers
//!    were told alone, and not from who is up: nobody else ever founds the group, also when
//!    another server's directory is lost. This is safe because the founder sends no entry before the first one is
//!    durable at itself: if its log is empty, nobody ever stored anything and nothing was ever
//!    acknowledged. Granting such a vote admits the voter, winning it admits the leader.
//! 2. **Catching up.** It has heard the terms of a majority of *other* servers since it started, and
//!    has then caught up with the commit index of a leader whose term is not below them, as far as an entry of that
//!    leader's own term: before one is committed, the leader itself does not know all that is. Whatever
//!    its former self helped to commit was stored by one of those servers too, so that leader has
//!    it.
//!
//! Two lost directories out of three are beyond this rule, as they are beyond any.

use std::collections::HashMap;

use crate::types::{LogIndex, NodeId, Term};

/// The state of the rule at one server.
#[derive(Debug)]
pub(super) struct Admission {
    admitted: bool,
    others_needed: usize,
    reported: HashMap<NodeId, Term>,
    /// Once enough others are heard: the term of the leader, and the commit index to reach.
    target: Option<(Term, LogIndex)>,
}

impl Admission {
    /// `nodes` is the size of the group, this server included.
    pub fn new(admitted: bool, nodes: usize) -> Admission {
        Admission { admitted, others_needed: nodes / 2 + 1, reported: HashMap::new(), target: None }
    }

    pub fn is_admitted(&self) -> bool {
        self.admitted
    }

    /// Admits at once (the group's birth). Returns whether that is news.
    pub fn admit(&mut self) -> bool {
        !std::mem::replace(&mut self.admitted, true)
    }

    /// Another server's term, from its greeting or any message of this run. The latest counts: a term
    /// never falls, so if it is less than before, what was said before was not the server's word. (It may
    /// also be older than what overtook it. That is as good: any word since the start will do.)
    pub fn heard(&mut self, node: NodeId, term: Term) {
        if !self.admitted {
            self.reported.insert(node, term);
        }
    }

    /// Whether the group may be unborn, as the named first leader sees it: nobody has been in a later term than
    /// the one given, the last in which it asked for votes itself. Otherwise it may be its own directory that was lost.
    pub fn is_newborn(&self, last_term_asked_for: Term) -> bool {
        self.reported.values().all(|reported| *reported <= last_term_asked_for)
    }

    /// Whether a leader of this term may be followed at all. Before enough others are heard, or when
    /// too many of them know a later term, it may be a deposed one: storing its entries or answering
    /// its heartbeats would make a majority of it and of a server that has forgotten its successor.
    pub fn may_follow(&self, term: Term) -> bool {
        let not_above = self.reported.values().filter(|reported| **reported <= term).count();
        self.admitted || not_above >= self.others_needed
    }

    /// A leader's REPLICATION was taken in; `commit` is the leader's, `ours` is what is committed
    /// here now, if the entry there is of the leader's term. Returns whether this server is newly admitted.
    pub fn followed(&mut self, term: Term, commit: LogIndex, ours: Option<LogIndex>) -> bool {
        if self.admitted {
            return false;
        }
        if self.target.is_none_or(|(of, _)| of != term) {
            if !self.may_follow(term) {
                return false;
            }
            self.target = Some((term, commit));
        }
        match self.target {
            Some((_, index)) if ours.is_some_and(|ours| ours >= index) => self.admit(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blank_server_is_admitted_when_it_has_caught_up_with_what_most_others_know() {
        let mut rule = Admission::new(false, 3);
        rule.heard(NodeId(2), 5);
        assert!(!rule.followed(5, 10, Some(10)), "one other of two is not enough");
        rule.heard(NodeId(3), 5);
        assert!(!rule.followed(5, 12, Some(10)), "not caught up");
        assert!(!rule.followed(5, 20, Some(11)), "the first target stands, and is not reached");
        assert!(!rule.followed(5, 30, None), "the leader may not know yet what is committed");
        assert!(rule.followed(5, 30, Some(12)));
        assert!(rule.is_admitted());
        assert!(!rule.followed(5, 30, Some(30)), "once");
    }

    #[test]
    fn a_leader_of_an_older_term_than_another_server_knows_admits_nobody() {
        let mut rule = Admission::new(false, 3);
        rule.heard(NodeId(2), 5);
        rule.heard(NodeId(3), 7);
        assert!(!rule.may_follow(5));
        assert!(!rule.followed(5, 0, Some(0)));
        assert!(rule.may_follow(7));
        assert!(rule.followed(7, 3, Some(3)));
    }
}
