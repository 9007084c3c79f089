//! Who leads: elections won and lost, leadership transfers, and the end of a node.
//!
//! Rule: a leader that may not lead (`eligibility`), whose disk is full, or that is to stop,
//! transfers the leadership to a follower that has stored everything that is committed. It tries
//! each follower once, because one that may not lead does not say so. Without a successor it steps
//! down only if it cannot do a leader's work itself.

use super::super::eligibility::{Ineligible, LeadershipAction};
use super::super::leadership::Leadership;
use super::super::long_writes::LongWrites;
use super::super::{Notice, Now, Output};
use super::{Node, Stopping, micros};
use crate::limits;
use crate::model::NodeId;
use crate::wire::message::Role;

impl Node {
    /// Handles elections won and lost since the last flush: writes and reads that depended on the
    /// old leader wait for the next.
    pub(super) fn handle_leadership_change(&mut self, now: Now, out: &mut Vec<Output>) {
        let (role, leader, term) =
            (self.consensus.role(), self.consensus.leader(), self.consensus.term());
        let (role_before, leader_before, term_before) =
            std::mem::replace(&mut self.last_role, (role, leader, term));

        let is_new_term = term != term_before;
        if role_before == Role::Leader && (role != Role::Leader || is_new_term) {
            self.leadership = None;
            self.garbage_collector.lost_leadership();
            self.long_writes = LongWrites::default();
            self.reads.forget_servers();
            self.leases.lost_leadership();
            self.lease_questions.lost_leadership();
            for key in self.writes.take_led(self.distrust()) {
                if self.leave_to_clients(key, out) {
                    self.wait_again(key, now);
                }
            }
            out.push(Output::Notice(Notice::LostLeadership));
        }
        if role == Role::Leader && (role_before != Role::Leader || is_new_term) {
            self.reachability.take_all_as_heard();
            let timeout_us = micros(self.config.in_sync_timeout);
            // The library has just appended the term's first entry.
            let first_index = self.consensus.last_index();
            let (node, nodes, limits) = (self.config.node, &self.config.nodes, self.group_limits());
            self.leadership =
                Some(Leadership::new(node, nodes, first_index, timeout_us, limits, now));
            out.push(Output::Notice(Notice::BecameLeader { term }));
        } else if role != Role::Leader && (leader, term) != (leader_before, term_before) {
            out.push(Output::Notice(Notice::Following { leader, term }));
        }
        // Writes forwarded to a server that does not lead any more are decided by the next leader.
        for key in self.writes.take_forwarded(|to| Some(to) != leader) {
            self.wait_again(key, now);
        }
        self.lease_questions.take_back(|to| Some(to) != leader);
        if leader != leader_before {
            self.reads.repeat_request(u64::MAX);
        }
    }

    /// Whether writes must wait for servers that have never taken part in the group.
    pub(super) fn is_bootstrapping(&mut self, now: Now) -> bool {
        let Some(leadership) = &mut self.leadership else { return false };
        let (node, consensus) = (self.config.node, &self.consensus);
        let mut others = self.config.nodes.iter().filter(|other| **other != node);
        leadership.is_bootstrapping(|| others.all(|other| consensus.matched(*other) > 0), now)
    }

    /// Updates whether this node may lead; if it leads and may not, it transfers the leadership or
    /// steps down.
    pub(super) fn judge_eligibility(&mut self, out: &mut Vec<Output>) {
        for (reason, holds) in self.eligibility.update() {
            let notice = match holds {
                true => Notice::MayNotLead { reason },
                false => Notice::MayLeadAgain { reason },
            };
            out.push(Output::Notice(notice));
        }
        let full = self.disks.is_own_full();
        let stops = matches!(self.stopping, Stopping::HandingOver { .. });
        // A server that did not accept a transfer because of this full disk may be able to later.
        if self.eligibility.reasons().is_empty()
            && !stops
            && (!full
                || self.reachability.ticks().is_multiple_of(limits::DISK_HANDOVER_AGAIN_TICKS))
        {
            self.eligibility.tried.clear();
        }
        // A group of one has no other server: this one leads as well as it can.
        let alone = self.config.nodes.len() == 1;
        self.consensus.set_may_lead(alone || self.eligibility.reasons().is_empty());
        let action = match self.eligibility.action() {
            LeadershipAction::Keep if full => LeadershipAction::TransferIfPossible,
            action => action,
        };
        if alone || self.consensus.role() != Role::Leader || action == LeadershipAction::Keep {
            return;
        }
        if self.consensus.is_handing_over() {
            return;
        }
        let only_with_room = self.eligibility.action() == LeadershipAction::Keep;
        if !self.transfer_to_next(only_with_room) && action == LeadershipAction::TransferOrStepDown
        {
            self.consensus.step_down();
        }
    }

    /// Begins a leadership transfer to a follower that was not tried yet: one that may not lead
    /// does not say so. Returns false if there is none.
    fn transfer_to_next(&mut self, only_with_room: bool) -> bool {
        let Some(successor) = self.successor(only_with_room) else { return false };
        self.eligibility.tried.insert(successor);
        self.consensus.transfer_leadership(successor);
        true
    }

    /// The follower to transfer the leadership to, of those not tried yet. It has stored everything
    /// that is committed; and more than this node if this node's log is stalled, because its own
    /// may be stalled as well. A follower whose disk is full is the last choice, and no choice for
    /// a leader that leaves because its own disk is full.
    fn successor(&self, only_with_room: bool) -> Option<NodeId> {
        let mut needed = self.consensus.commit();
        if self.eligibility.reasons().contains(&Ineligible::LogStalled) {
            let own = self.consensus.matched(self.config.node);
            needed = needed.max(self.consensus.last_index().min(own + 1));
        }
        let untried = self
            .reachability
            .links()
            .iter()
            .filter(|server| !self.eligibility.tried.contains(server));
        let able = untried.filter(|server| self.consensus.matched(**server) >= needed);
        able.filter(|server| !only_with_room || self.disks.has_room(**server))
            .max_by_key(|server| (self.disks.has_room(**server), self.consensus.matched(**server)))
            .copied()
    }

    /// Campaigns at once if this node is the founder of a blank group and has links to a majority.
    pub(super) fn campaign_if_founder(&mut self) {
        if self.reachability.has_links_to_majority() {
            self.consensus.campaign_if_founder();
        }
    }

    /// At a leader whose disk is full: whether a server with room is about to lead.
    pub(super) fn waits_for_a_leader_with_room(&self) -> bool {
        self.disks.is_own_full()
            && (self.consensus.is_handing_over() || self.successor(true).is_some())
    }

    /// Goes on with stopping: once no request is under way, waits until another server leads.
    pub(super) fn stop_when_done(&mut self, now: Now, out: &mut Vec<Output>) {
        let done = match self.stopping {
            Stopping::Draining => {
                self.writes.is_empty() && self.reads.is_empty() && self.lease_questions.is_empty()
            }
            Stopping::Leaving => true,
            Stopping::No | Stopping::HandingOver { .. } | Stopping::Done => false,
        };
        if done {
            let until_us = now.monotonic_us + micros(limits::HANDOVER_TIMEOUT);
            self.stopping = Stopping::HandingOver { until_us };
            self.eligibility.tried.clear();
        }
        if let Stopping::HandingOver { until_us } = self.stopping {
            if self.consensus.role() == Role::Leader && !self.consensus.is_handing_over() {
                if !self.transfer_to_next(false) {
                    // A server that did not take over before may be able to by now.
                    self.eligibility.tried.clear();
                }
                self.run_consensus(out);
            }
            let alone = self.reachability.links().is_empty();
            // Not before another server leads: it may need this server's vote.
            let follows =
                self.consensus.role() != Role::Leader && self.consensus.leader().is_some();
            let free = follows || alone;
            if free || now.monotonic_us >= until_us {
                self.stopping = Stopping::Done;
                out.push(Output::Stopped);
            }
        }
    }
}
