//! What follows from the inputs: [`Node::flush`], once for all inputs that have come together.
//!
//! A leader proposes the waiting writes, a follower forwards them; read-index requests are made;
//! consensus turns it all into messages, log batches and entries to apply; the writes that the
//! acknowledgement rule is met for are answered.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::commit_notification::CommitNotifications;
use super::core::{AckPolicy, Node, Stopping, busy, micros, not_to_be_read};
use super::early_ack::KnownSequences;
use super::in_sync::{InSync, ServerProgress};
use super::long_writes::LongWrites;
use super::server_levels::ServerLevels;
use super::writes::{Origin, Pending, Stored};
use super::{ConsoleEvent, Notice, Now, Output, compares_states};
use crate::consensus::{InstallRequest, ProposeError};
use crate::limits;
use crate::model::{
    Action, ClientId, Command, Effect, EncodedWrite, FeatureLevel, GroupRules, LogEntry, LogIndex,
    NodeId, OpKind,
};
use crate::wire::message::{PeerMessage, RaftBody, Reply, Role};

impl Node {
    /// Works out what follows from the inputs since the last call: proposes or forwards writes,
    /// runs consensus, answers. To be called when no input is at hand, before the driver waits for
    /// more.
    pub fn flush(&mut self, now: Now, out: &mut Vec<Output>) {
        self.handle_leadership_change(now, out);
        if self.consensus.role() == Role::Leader {
            // Also if nothing may be proposed now, or `flush_due_us` would stay in the past.
            self.long_writes.look();
            // Before the writes: they may use up the room for proposals each time that there is
            // some, and a full disk may make them wait for this. It is one piece at a time, so that
            // they do not wait long.
            self.collect_garbage(now);
            // Without a majority nothing is proposed, so that a write that expires is known not to
            // be done.
            if self.reaches_majority() {
                self.propose_waiting(now, out);
            }
        } else {
            self.forward_waiting(now, out);
        }
        self.start_reads(now, out);
        self.run_consensus(now, out);
        // New commits have made room for proposals, which raft-rs counts only now.
        let commit = self.consensus.commit();
        self.propose_more |= commit > self.flushed_commit && self.writes.has_waiting();
        self.flushed_commit = commit;
        let answered = self.answer_stored(now, out);
        self.notify_commit(&answered, now, out);
        for read in self.reads.take_ready(self.applied.index) {
            // The state may have been refuted since the read was accepted.
            out.push(match self.distrust() {
                Some(distrust) => {
                    Output::Reply { token: read.token, reply: not_to_be_read(distrust) }
                }
                None => Output::ReadReady { token: read.token },
            });
        }
        self.stop_when_done(now, out);
    }

    /// Handles elections won and lost since the last flush: writes and reads that depended on the
    /// old leader wait for the next.
    fn handle_leadership_change(&mut self, now: Now, out: &mut Vec<Output>) {
        let leadership = (self.consensus.role(), self.consensus.leader(), self.consensus.term());
        let (role, leader, term) = leadership;
        let (role_before, leader_before, term_before) = self.leadership;
        self.leadership = leadership;

        let is_new_term = term != term_before;
        if role_before == Role::Leader && (role != Role::Leader || is_new_term) {
            self.in_sync = None;
            self.bootstrap_until_us = None;
            self.garbage_collector.lost_leadership();
            self.long_writes = LongWrites::default();
            self.known_sequences = KnownSequences::new(self.group_limits());
            (self.rules_proposed, self.level_proposed) = (false, 0);
            self.commit_notifications = CommitNotifications::default();
            self.reads.forget_servers();
            for key in self.writes.take_led(!self.refuted) {
                if self.leave_to_clients(key, out) {
                    self.wait_again(key, now);
                }
            }
            out.push(Output::Notice(Notice::LostLeadership));
        }
        if role == Role::Leader && (role_before != Role::Leader || is_new_term) {
            self.server_levels = ServerLevels::default();
            // Followers do not send to each other, so none was heard before.
            self.heard = self.links.iter().map(|server| (*server, self.ticks)).collect();
            let timeout_us = micros(self.config.in_sync_timeout);
            // The library has just appended the term's first entry.
            let first_index = self.consensus.last_index();
            let (me, nodes) = (self.config.node, &self.config.nodes);
            self.in_sync = Some(InSync::new(timeout_us, me, nodes, first_index));
            // The log of a group that was just bootstrapped holds its founder's first entry alone.
            let is_first_entry = first_index == 1;
            self.bootstrap_until_us =
                is_first_entry.then(|| now.monotonic_us + micros(limits::BOOTSTRAP_TIMEOUT));
            out.push(Output::Notice(Notice::BecameLeader { term }));
        } else if role != Role::Leader && (leader, term) != (leader_before, term_before) {
            out.push(Output::Notice(Notice::Following { leader, term }));
        }
        // Writes forwarded to a server that does not lead any more are decided by the next leader.
        for key in self.writes.take_forwarded(|to| Some(to) != leader) {
            self.wait_again(key, now);
        }
        if leader != leader_before {
            self.reads.repeat_request(u64::MAX);
        }
    }

    /// Whether writes must wait for servers that have never taken part in the group. Such a server
    /// cannot help to elect a leader (see `consensus::voter_eligibility`), so a group that accepted
    /// writes without it would be unavailable if its first leader died.
    fn is_bootstrapping(&mut self, now: Now) -> bool {
        let Some(until_us) = self.bootstrap_until_us else { return false };
        let everybody = self.config.nodes.iter().filter(|n| **n != self.config.node);
        let complete = everybody.into_iter().all(|server| self.consensus.matched(*server) > 0);
        if complete || now.monotonic_us >= until_us {
            self.bootstrap_until_us = None;
        }
        self.bootstrap_until_us.is_some()
    }

    fn propose_waiting(&mut self, now: Now, out: &mut Vec<Output>) {
        self.propose_more = false;
        if self.is_bootstrapping(now) || self.waits_for_a_leader_with_room() {
            return;
        }
        if !self.has_rules(now) {
            return;
        }
        let limits = self.config.limits;
        let clock_us = self.log_time.now_us();
        let mut waiting = self.writes.take_waiting();
        let mut held =
            self.long_writes.hold_back(&self.writes, &mut waiting, &limits, now.monotonic_us);
        held.iter().for_each(|key| self.writes.get_mut(*key).wait_for_turn());
        let mut proposed = (0, 0);
        while !waiting.is_empty() {
            if self.consensus.unapplied_bytes() >= limits.unapplied_bytes_max {
                // A write that was proposed or forwarded before may be in the log already, and may
                // have been answered nowhere. It waits for room, or until it expires.
                let (kept, refused): (VecDeque<usize>, VecDeque<usize>) = waiting
                    .into_iter()
                    .partition(|key| self.writes.get_mut(*key).effect > Effect::NotDone);
                for key in refused {
                    let pending = self.writes.remove(key);
                    let refusal = busy("too much waits to be applied to the leader's store");
                    self.finish(pending, refusal, out);
                }
                waiting = kept;
                break;
            }
            if proposed.0 >= limits.propose_writes_max || proposed.1 >= limits.propose_bytes_max {
                self.propose_more = true;
                break;
            }
            let mut batch = Vec::new();
            let mut data = Vec::new();
            let mut bytes = 0;
            while let Some(key) = waiting.pop_front() {
                let Pending { effect, write, .. } = self.writes.get_mut(key);
                if *effect == Effect::NotDone
                    && write.shape.kind.adds_data()
                    && let Err(refusal) = self.check_room()
                {
                    let pending = self.writes.remove(key);
                    self.answer(&pending, &refusal, out);
                    continue;
                }
                let timestamp = self.clock.next(now.wall_us);
                let pending = self.writes.get_mut(key);
                let command = pending.write.stamp(timestamp, clock_us);
                self.show_put(key, out);
                bytes += command.len() as u64;
                batch.push((key, timestamp));
                data.push(command);
                if bytes >= limits.append_bytes_max {
                    break;
                }
            }
            if batch.is_empty() {
                break;
            }
            match self.consensus.propose(data) {
                Ok(first) => {
                    proposed = (proposed.0 + batch.len(), proposed.1 + bytes as usize);
                    let term = self.consensus.term();
                    let unapplied = self.consensus.last_index().saturating_sub(self.applied.index);
                    let lags = unapplied > limits.apply_lag_entries_max
                        || self.consensus.bytes_in_memory() > limits.apply_lag_bytes_max;
                    for ((key, timestamp), index) in batch.into_iter().zip(first..) {
                        let write = &self.writes.get(key).write;
                        self.long_writes.proposed(
                            index,
                            write.shape.keys,
                            &self.writes,
                            now.monotonic_us,
                        );
                        let is_new = self.known_sequences.proposed(&write.request, index, clock_us);
                        if is_new && !lags && says_its_timestamp_only(write) {
                            let stored = Stored { timestamp, previous: None };
                            self.writes.propose_known_new(key, index, stored);
                        } else {
                            self.writes.propose(key, term, index);
                        }
                    }
                }
                // The writes wait, in order, until entries are committed. Their number, memory and
                // time are bounded.
                Err(ProposeError::Full | ProposeError::HandingOver | ProposeError::NotLeader) => {
                    batch.into_iter().rev().for_each(|(key, _)| waiting.push_front(key));
                    break;
                }
            }
        }
        waiting.append(&mut held);
        self.writes.wait_first(waiting);
    }

    /// Whether the group's rules are in the log, where they come before the first write. If they
    /// are not, this leader proposes those of its own release.
    fn has_rules(&mut self, now: Now) -> bool {
        if self.rules.is_some() || self.rules_proposed {
            return true;
        }
        let limits = self.config.release.limits;
        let rules = GroupRules { limits, history: self.config.garbage_collection.history };
        // If they are refused, the next flush tries again, and the writes go on waiting.
        self.rules_proposed = self.propose_own(Action::Rules(rules), now).is_some();
        self.rules_proposed
    }

    /// Proposes a higher feature level once every server knows it.
    fn raise_level(&mut self, now: Now) {
        let own = self.config.release.level;
        if own.level <= self.level.max(self.level_proposed) {
            return;
        }
        let others = self.config.nodes.iter().copied().filter(|node| *node != self.config.node);
        let settled_us = micros(self.config.level_settled);
        let known =
            self.server_levels.known_to_all(others, own.level, now.monotonic_us, settled_us);
        if let Some(level) = known
            && level > self.level.max(self.level_proposed)
        {
            let raised = FeatureLevel { level, release: own.release };
            if self.propose_own(Action::Level(raised), now).is_some() {
                self.level_proposed = level;
            }
        }
    }

    /// Proposes a command of the leader's own; returns its index, unless it was refused.
    fn propose_own(&mut self, action: Action, now: Now) -> Option<LogIndex> {
        let timestamp = self.clock.next(now.wall_us);
        let command = Command { timestamp, clock_us: self.log_time.now_us(), action };
        self.consensus.propose(vec![command.encode()]).ok()
    }

    fn collect_garbage(&mut self, now: Now) {
        if self.stopping != Stopping::No || self.is_bootstrapping(now) || !self.has_rules(now) {
            return;
        }
        self.raise_level(now);
        let clock_us = self.log_time.now_us();
        let Some(piece) = self.garbage_collector.next(clock_us, now.monotonic_us) else { return };
        match self.propose_own(Action::GarbageCollection(piece), now) {
            Some(index) => self.garbage_collector.proposed(index, piece),
            None => self.garbage_collector.refused(),
        }
    }

    fn show_put(&mut self, key: usize, out: &mut Vec<Output>) {
        let pending = self.writes.get_mut(key);
        if self.config.console
            && !std::mem::replace(&mut pending.shown_as_leader, true)
            && let Some((_, key, value)) = Command::put_of(pending.write.data())
        {
            let client = pending.client;
            out.push(Output::Console(ConsoleEvent::Put { client, key, value }));
        }
    }

    fn forward_waiting(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.writes.has_waiting() {
            return;
        }
        // The answer needs the link from the leader, too: one that comes before it is up again
        // would be lost.
        let reachable = |l: &NodeId| self.links.contains(l) && !self.unheard.contains(l);
        let leader = self.consensus.leader().filter(reachable);
        let mut budget_spent = false;
        // Clients with a write that is held back, in whose order the next ones stay; whether it
        // waits behind a long write.
        let mut held_clients: HashMap<ClientId, bool> = HashMap::new();
        for key in self.writes.take_waiting() {
            // Forward only writes from our own clients. Two servers that each believe the other is
            // leader would otherwise forward a write back and forth.
            if !self.leave_to_clients(key, out) {
                continue;
            }
            let Some(leader) = leader else {
                self.writes.wait(key);
                continue;
            };
            let is_due = self.writes.get(key).not_before_us <= now.monotonic_us;
            let is_long = self.writes.is_long(self.writes.get(key).write.shape.keys);
            let client = self.writes.get(key).write.request.client;
            let held = held_clients.get(&client);
            let (is_behind, is_behind_long) = (held.is_some(), held == Some(&true));
            if is_behind
                || !is_due
                || !is_long && budget_spent
                || !self.writes.may_forward(key, self.config.limits.forward_bytes_max)
            {
                // In order, or a write of many bytes would wait for ever.
                budget_spent |= !is_long && !is_behind && is_due;
                let waits_for_turn = is_long || is_behind_long;
                if waits_for_turn {
                    self.writes.get_mut(key).wait_for_turn();
                }
                held_clients.insert(client, waits_for_turn);
                self.writes.wait(key);
                continue;
            }
            let pending = self.writes.get_mut(key);
            if self.config.console
                && !std::mem::replace(&mut pending.shown_as_forwarder, true)
                && let Some((_, key, value)) = Command::put_of(pending.write.data())
            {
                out.push(Output::Console(ConsoleEvent::Forwarding { key, value }));
            }
            // From here on the leader applies the deadline; this one is for a leader that never
            // answers.
            pending.deadline_us = pending.give_up_us;
            if is_long {
                // The leader lets it wait for its turn for as long.
                pending.deadline_us += micros(limits::COMMIT_TIMEOUT);
            }
            let (client, write) = (pending.client, pending.write.clone());
            let id = self.writes.forward(key, leader);
            let message = PeerMessage::Forward { id, client, write };
            out.push(Output::Send { to: leader, message });
        }
    }

    /// Removes the other servers from the origins of a write: they forward it to the next leader
    /// themselves. Returns false if no client of this server waits for the write; it is then
    /// removed.
    fn leave_to_clients(&mut self, key: usize, out: &mut Vec<Output>) -> bool {
        let (servers, goes_on) = self.writes.leave_to_clients(key);
        servers.into_iter().for_each(|(node, id)| self.answer_forward(node, id, None, out));
        goes_on
    }

    fn start_reads(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.reads.is_request_due() {
            return;
        }
        if self.consensus.role() == Role::Leader {
            let request = self.reads.begin_request(now.monotonic_us);
            // A leader that has committed no entry of its term does not know the commit index yet.
            // The request is repeated.
            self.consensus.read_index(request);
        } else if let Some(leader) = self.consensus.leader()
            && self.links.contains(&leader)
        {
            let id = self.reads.begin_request(now.monotonic_us);
            let message = PeerMessage::ReadIndex { id };
            out.push(Output::Send { to: leader, message });
        }
    }

    fn run_consensus(&mut self, now: Now, out: &mut Vec<Output>) {
        self.consensus.advance(&mut self.effects);
        let effects = &mut self.effects;
        for message in effects.messages.drain(..) {
            let to = message.to;
            if let RaftBody::Append { commit, .. } = &message.body {
                self.commit_notifications.sent(to, *commit, now.monotonic_us);
            }
            out.push(Output::Send { to, message: PeerMessage::Raft(message) });
        }
        let install = effects.install.take();
        let before = |number| install.is_none_or(|i: InstallRequest| number < i.number);
        let (first, rest): (Vec<_>, Vec<_>) =
            effects.batches.drain(..).partition(|batch| before(batch.number));
        for batch in first.iter().chain(&rest) {
            self.eligibility.persist(batch.number);
        }
        out.extend(first.into_iter().map(Output::Persist));
        if let Some(InstallRequest { number, snapshot, hard_state }) = install {
            self.eligibility.persist(number);
            self.eligibility.apply(snapshot.index);
            out.push(Output::InstallSnapshot { number, snapshot, hard_state });
        }
        out.extend(rest.into_iter().map(Output::Persist));
        let snapshots: Vec<_> = effects.snapshots.drain(..).collect();
        let answering = self.consensus.role() == Role::Leader;
        let committed = std::mem::take(&mut effects.committed);
        // A lost store applies nothing before its snapshot, which contains everything committed
        // until then. Entries that are handed out while the snapshot is being installed follow it.
        if !self.store_lost || self.consensus.is_installing() {
            for entries in split_at_hashes(committed, self.config.state_hash_every) {
                if let Some(last) = entries.last() {
                    self.eligibility.apply(last.index);
                    if compares_states(last, self.config.state_hash_every) {
                        self.compared_at.insert(last.index);
                    }
                }
                out.push(Output::Apply { entries, answering });
            }
        } else if let Some(last) = committed.last() {
            self.consensus.skipped(last.index);
        }
        for fetch in effects.fetches.drain(..) {
            out.push(Output::Fetch {
                fetch: fetch.id,
                low: fetch.low,
                high: fetch.high,
                bytes_max: self.config.limits.append_bytes_max,
            });
        }
        if std::mem::take(&mut effects.became_eligible) {
            out.push(Output::Notice(Notice::EligibleToVote));
        }
        let trusted = self.distrust().is_none();
        for (to, leader_term) in snapshots {
            if trusted {
                out.push(Output::SendSnapshot { to, leader_term });
            } else {
                // A state that is in doubt is not sent. The follower requests it again.
                self.consensus.snapshot_sent(to, None);
            }
        }
        for (request, index) in std::mem::take(&mut self.effects.reads) {
            for (to, id) in self.reads.confirm(request, index) {
                let message = PeerMessage::ReadIndexOk { id, index };
                out.push(Output::Send { to, message });
            }
        }
    }

    /// Answers the writes for which the acknowledgement rule is met. Returns the servers that had
    /// forwarded some of them.
    fn answer_stored(&mut self, now: Now, out: &mut Vec<Output>) -> BTreeSet<NodeId> {
        let mut forwarders = BTreeSet::new();
        let Some(mut in_sync) = self.in_sync.take() else { return forwarders };
        let consensus = &self.consensus;
        in_sync.proposed(consensus.last_index(), now.monotonic_us);
        let mut notices = Vec::new();
        in_sync.update(
            now.monotonic_us,
            |server| ServerProgress {
                stored: consensus.matched(server),
                heard: server == self.config.node || self.is_heard(server),
            },
            &mut notices,
        );
        let stored_by_all = in_sync.stored_by_all();
        self.in_sync = Some(in_sync);
        out.extend(notices.into_iter().map(Output::Notice));
        // An entry that this leader has proposed and that is committed will be applied as it was
        // proposed.
        self.writes.commit(consensus.commit());
        // Whether a write is known to be new was also derived from the refuted state's sessions.
        if self.refuted {
            return forwarders;
        }
        let stored: LogIndex = match self.config.ack {
            // Settled writes are committed, and so durable on a majority.
            AckPolicy::Majority => LogIndex::MAX,
            AckPolicy::All => stored_by_all,
        };
        let trusted = self.distrust().is_none();
        for (index, (key, Stored { timestamp, previous })) in self.writes.take_stored(stored) {
            let pending = self.writes.remove(key);
            // A previous value from a state that is in doubt is not told: the client reads it at
            // another server.
            let previous = previous.filter(|_| trusted);
            let reply = match pending.write.shape.kind {
                OpKind::Put if !pending.write.previous => Reply::PutOk { timestamp },
                _ => Reply::WriteOk { timestamp, previous },
            };
            // A copy that came after the write was done is not shown.
            if pending.shown_as_leader
                && let Some((_, key, _)) = Command::put_of(pending.write.data())
            {
                let client = pending.client;
                out.push(Output::Console(ConsoleEvent::PutOk { client, key, timestamp }));
            }
            if matches!(reply, Reply::PutOk { .. } | Reply::WriteOk { previous: None, .. }) {
                let most = self.config.limits.answered_writes_max;
                self.writes.note_answered(&pending.write, index, timestamp, most);
            }
            forwarders.extend(pending.origins.iter().filter_map(|origin| match origin {
                Origin::Client(_) => None,
                Origin::Server { node, .. } => Some(*node),
            }));
            self.answer(&pending, &reply, out);
        }
        forwarders
    }

    /// Notifies followers of the commit index, those in `urgent` without delay.
    fn notify_commit(&mut self, urgent: &BTreeSet<NodeId>, now: Now, out: &mut Vec<Output>) {
        if self.consensus.role() != Role::Leader {
            return;
        }
        let commit = self.consensus.commit();
        let due = self.commit_notifications.take_due(&self.links, urgent, commit, now.monotonic_us);
        if due.is_empty() {
            return;
        }
        due.into_iter().for_each(|server| self.consensus.send_commit_index(server));
        self.run_consensus(now, out);
    }

    fn stop_when_done(&mut self, now: Now, out: &mut Vec<Output>) {
        let done = match self.stopping {
            Stopping::Draining => self.writes.is_empty() && self.reads.is_empty(),
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
                self.run_consensus(now, out);
            }
            let alone = self.links.is_empty();
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

/// Whether the client of a write that is known to be new learns nothing from its being applied but
/// the timestamp. Applying tells the previous value of a key, and whether a range can be removed.
fn says_its_timestamp_only(write: &EncodedWrite) -> bool {
    match write.shape.kind {
        OpKind::Put | OpKind::Del | OpKind::Trim => !write.previous,
        OpKind::PutAll | OpKind::DelAll | OpKind::Mark | OpKind::SetHistory(_) => true,
        OpKind::DelRange => false,
    }
}

/// Cuts committed entries so that a piece ends at each index where replicas compare states: the
/// state machine reports its hash at the end of each piece.
fn split_at_hashes(entries: Vec<LogEntry>, every: LogIndex) -> Vec<Vec<LogEntry>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    for entry in entries {
        let is_compared = compares_states(&entry, every);
        piece.push(entry);
        if is_compared {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_replicas_compare() {
        let every = 16;
        let entry = |index| LogEntry { term: 1, index, data: bytes::Bytes::from_static(b"write") };
        let mut entries: Vec<LogEntry> = (every - 1..2 * every + 2).map(entry).collect();
        entries[4].data = bytes::Bytes::new();
        let pieces = split_at_hashes(entries, every);
        let ends: Vec<u64> = pieces.iter().map(|p| p[p.len() - 1].index).collect();
        assert_eq!(ends, [every, every + 3, 2 * every, 2 * every + 1]);
        assert_eq!(pieces.iter().map(Vec::len).sum::<usize>() as u64, every + 3);
    }
}
