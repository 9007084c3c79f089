//! Leases at the core: who asks about them, when the leader may answer, and when it ends them.

use std::net::SocketAddr;

use super::super::lease_questions::{PendingQuestion, QuestionAsker};
use super::super::origins::Origin;
use super::super::reads::{PendingRead, ReadIndexBatch, ReadOrigin};
use super::super::replies::{busy, not_to_be_read, shutting_down};
use super::super::{Now, Output, RequestToken};
use super::{Node, READ_INDEX_RETRY, Stopping, micros};
use crate::limits;
use crate::model::{Action, LeaseAnswer, LeaseEvent, LeaseQuestion, LogIndex, NodeId};
use crate::wire::message::{Reply, ServerMessage};

impl Node {
    /// A client of this server asks about leases.
    pub(super) fn lease_question(
        &mut self,
        now: Now,
        (token, client): (RequestToken, SocketAddr),
        question: LeaseQuestion,
        out: &mut Vec<Output>,
    ) {
        if self.stopping != Stopping::No {
            return out.push(Output::Reply { token, reply: shutting_down() });
        }
        let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
        let asker = QuestionAsker::Client { token, address: limits::origin_of(client.ip()) };
        if !self.lease_questions.add(PendingQuestion { asker, question, deadline_us }) {
            let reply = busy("too many requests about leases are under way at this server");
            out.push(Output::Reply { token, reply });
        }
    }

    /// Another server passes on what its clients ask. One that does not lead, or is to stop, does
    /// not answer: the other one repeats its request. Nor does one that was elected since the last
    /// flush: where it has lost again by the next one, nothing would drop what others have asked.
    pub(super) fn leases_passed_on(
        &mut self,
        now: Now,
        from: NodeId,
        id: u64,
        question: LeaseQuestion,
    ) {
        if !self.leads() || self.leadership.is_none() || self.stopping != Stopping::No {
            return;
        }
        let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
        let asker = QuestionAsker::Server { node: from, id };
        // A server takes no more from its clients than is taken here from it. What is too much all
        // the same is dropped, and repeated by a server that means it.
        self.lease_questions.add(PendingQuestion { asker, question, deadline_us });
    }

    /// The leader has answered what was passed on to it.
    pub(super) fn leases_answered(
        &mut self,
        from: NodeId,
        id: u64,
        answer: LeaseAnswer,
        out: &mut Vec<Output>,
    ) {
        if let Some(asked) = self.lease_questions.answered(id, from, &answer) {
            self.answer_leases(asked.asker.origin(), answer, out);
        }
    }

    /// Has this node confirmed as leader for what has come, or passes it on to whoever leads.
    pub(super) fn ask_about_leases(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.lease_questions.has_waiting() {
            return;
        }
        if self.leads() {
            if let Some(batch) = self.lease_questions.begin_batch() {
                self.long_writes.something_else_is_asked();
                let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
                self.reads.add(PendingRead { reader: ReadOrigin::Leases(batch), deadline_us });
            }
        } else if let Some(leader) = self.consensus.leader()
            && self.reachability.can_ask(leader)
        {
            for (id, question) in self.lease_questions.pass_on(leader, now.monotonic_us) {
                let message = ServerMessage::Leases { id, question };
                out.push(Output::Send { to: leader, message });
            }
        }
    }

    /// Begins to count, at a leader that has applied everything of earlier terms.
    pub(super) fn count_leases(&mut self) {
        if !self.leases.is_counting()
            && let Some(leadership) = &self.leadership
            && leadership.has_applied_earlier_terms(self.applied.index)
        {
            self.leases.begin_counting();
        }
    }

    /// This node led after these batches had begun; what was committed then may not be applied.
    pub(super) fn lease_batches_confirmed_early(
        &mut self,
        batches: Vec<ReadIndexBatch>,
        out: &mut Vec<Output>,
    ) {
        // One that has not applied everything of earlier terms cannot say what leases there are.
        if !batches.is_empty() && self.leases.is_counting() {
            for batch in batches {
                self.lease_questions.confirmed_early(batch);
            }
            self.answer_lease_questions(out);
        }
    }

    /// This node led after the batch had begun, and has applied everything up to then.
    pub(super) fn lease_batch_confirmed(&mut self, batch: ReadIndexBatch, out: &mut Vec<Output>) {
        // What a server falsely says of an index must not end this one.
        if self.leases.is_counting() {
            self.lease_questions.confirmed(batch);
            self.answer_lease_questions(out);
        }
    }

    /// Notes what the state machine has done, and answers what has waited for it.
    pub(super) fn leases_applied(
        &mut self,
        index: LogIndex,
        events: &[LeaseEvent],
        out: &mut Vec<Output>,
    ) {
        if self.leases.applied(index, events) {
            self.lease_questions.record_applied();
            self.answer_lease_questions(out);
        }
    }

    /// Answers some of those that may be answered.
    pub(super) fn answer_lease_questions(&mut self, out: &mut Vec<Output>) {
        // Questions that were confirmed are dropped with the leadership in which they were: so
        // this leader counts if there are any.
        let leases = &mut self.leases;
        let answer = |question: &LeaseQuestion, is_applied| leases.answer(question, is_applied);
        for (origin, answer) in self.lease_questions.answer(answer) {
            self.answer_leases(origin, answer, out);
        }
    }

    /// Answers whoever asked. From a state that is in doubt nobody is told that a lease is gone, or
    /// is there: the client asks another server, and another server repeats its request.
    fn answer_leases(&self, origin: Origin, answer: LeaseAnswer, out: &mut Vec<Output>) {
        let distrust = self.distrust().filter(|_| self.leads());
        out.push(match (origin, distrust) {
            (Origin::Client(token), None) => {
                Output::Reply { token, reply: Reply::LeasesOk(answer) }
            }
            (Origin::Client(token), Some(distrust)) => {
                Output::Reply { token, reply: not_to_be_read(distrust) }
            }
            (Origin::Server { node, id }, None) => {
                Output::Send { to: node, message: ServerMessage::LeasesOk { id, answer } }
            }
            (Origin::Server { .. }, Some(_)) => return,
        });
    }

    /// Asks again what the leader has not answered, and gives up what nobody has.
    pub(super) fn expire_lease_questions(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let before_us = now_us.saturating_sub(2 * micros(READ_INDEX_RETRY));
        for (to, id, question) in self.lease_questions.repeat_older(before_us, now_us) {
            out.push(Output::Send { to, message: ServerMessage::Leases { id, question } });
        }
        for asked in self.lease_questions.take_expired(now_us) {
            if let QuestionAsker::Client { token, .. } = asked.asker {
                out.push(Output::Reply { token, reply: self.group_state().no_majority() });
            }
        }
    }

    /// At the leader: ends the leases whose time is over, and notes how long others have left.
    pub(super) fn propose_lease_record(&mut self, now: Now) {
        // A server that finishes what is under way has to, for those who wait for a record.
        if !matches!(self.stopping, Stopping::No | Stopping::Draining)
            || self.distrust().is_some()
            || !self.reaches_majority()
            || !self.has_rules(now)
        {
            return;
        }
        // Each key that goes with a lease gets a tombstone and nothing leaves the disk, so that the
        // ends of many leases would use up what is reserved for removals. They wait for room.
        let may_end = self.full_disks().is_empty();
        let questions = &self.lease_questions;
        let is_asked = |id| questions.asks_to_keep(id);
        let Some(record) = self.leases.next_record(may_end, is_asked) else { return };
        match self.propose_own(Action::Leases(record.clone()), now) {
            Some(index) => self.leases.proposed(index, record),
            None => self.leases.refused(record),
        }
    }
}
