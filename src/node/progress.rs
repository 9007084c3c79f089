//! What follows from the inputs: `flush`, once for a bunch of them.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::certainty::Certainty;
use super::commit_news::CommitNews;
use super::core::{AckPolicy, Node, Stopping, busy, micros, not_to_be_read};
use super::in_sync::{InSync, Standing};
use super::levels::PeerLevels;
use super::long_writes::LongWrites;
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
    /// Does what the inputs since the last call ask for: proposes, runs consensus, answers.
    /// Call it when no input is at hand, before waiting for more.
    pub fn flush(&mut self, now: Now, out: &mut Vec<Output>) {
        self.notice_changes(now, out);
        if self.consensus.role() == Role::Leader {
            // Also where nothing may be proposed now, or the alarm for it would go off without end.
            self.long_writes.look();
            // Before the writes, which may take all the room there is as often as there is any, and may wait for just
            // this. One piece at a time, so that it does not keep them waiting.
            self.do_chores(now);
            // What is never proposed can be refused for good.
            if self.has_majority_in_reach() {
                self.propose_waiting(now, out);
            }
        } else {
            self.forward_waiting(now, out);
        }
        self.start_reads(now, out);
        self.run_consensus(now, out);
        // What was committed has made room, which the library counts only now.
        let commit = self.consensus.commit();
        self.propose_more |= commit > self.flushed_commit && self.writes.has_waiting();
        self.flushed_commit = commit;
        let answered = self.answer_stored(now, out);
        self.tell_commit(&answered, now, out);
        for read in self.reads.take_ready(self.applied.index) {
            // The state may have been refuted since the read was taken in.
            out.push(match self.distrust() {
                Some(distrust) => {
                    Output::Reply { token: read.token, reply: not_to_be_read(distrust) }
                }
                None => Output::ReadReady { token: read.token },
            });
        }
        self.stop_when_done(now, out);
    }

    /// Notices elections won and lost, and moves what hung on the old leader.
    fn notice_changes(&mut self, now: Now, out: &mut Vec<Output>) {
        let standing = (self.consensus.role(), self.consensus.leader(), self.consensus.term());
        let (role, leader, term) = standing;
        let (role_before, leader_before, term_before) = self.standing;
        self.standing = standing;

        let new_reign = term != term_before;
        if role_before == Role::Leader && (role != Role::Leader || new_reign) {
            self.in_sync = None;
            self.birth_until_us = None;
            self.chores.lost_leadership();
            self.long_writes = LongWrites::default();
            self.certainty = Certainty::new(self.group_limits());
            (self.rules_proposed, self.level_proposed) = (false, 0);
            self.commit_news = CommitNews::default();
            self.reads.forget_servers();
            for key in self.writes.take_led(!self.refuted) {
                if self.leave_to_clients(key, out) {
                    self.wait_again(key, now);
                }
            }
            out.push(Output::Notice(Notice::LostLeadership));
        }
        if role == Role::Leader && (role_before != Role::Leader || new_reign) {
            self.peer_levels = PeerLevels::default();
            // Followers have not spoken to this server so far.
            self.heard = self.links.iter().map(|peer| (*peer, self.ticks)).collect();
            let timeout_us = micros(self.config.in_sync_timeout);
            // The library has just appended the term's first entry.
            let first_index = self.consensus.last_index();
            let (me, nodes) = (self.config.node, &self.config.nodes);
            self.in_sync = Some(InSync::new(timeout_us, me, nodes, first_index));
            // A newborn group's log holds its leader's first entry and nothing else.
            let newborn = first_index == 1;
            self.birth_until_us = newborn.then(|| now.monotonic_us + micros(limits::BIRTH_TIMEOUT));
            out.push(Output::Notice(Notice::BecameLeader { term }));
        } else if role != Role::Leader && (leader, term) != (leader_before, term_before) {
            out.push(Output::Notice(Notice::Following { leader, term }));
        }
        // What was passed on to a server that leads no more is for the next leader to decide.
        for key in self.writes.take_forwarded(|to| Some(to) != leader) {
            self.wait_again(key, now);
        }
        if leader != leader_before {
            self.reads.ask_again(u64::MAX);
        }
    }

    /// Whether writes must wait for servers that have never taken part. One that has not cannot
    /// help to elect a leader (see `consensus::voter_eligibility`), so a group that began its work without
    /// it would stand still when its first leader died.
    fn is_being_born(&mut self, now: Now) -> bool {
        let Some(until_us) = self.birth_until_us else { return false };
        let everybody = self.config.nodes.iter().filter(|n| **n != self.config.node);
        let complete = everybody.into_iter().all(|peer| self.consensus.matched(*peer) > 0);
        if complete || now.monotonic_us >= until_us {
            self.birth_until_us = None;
        }
        self.birth_until_us.is_some()
    }

    fn propose_waiting(&mut self, now: Now, out: &mut Vec<Output>) {
        self.propose_more = false;
        if self.is_being_born(now) || self.waits_for_a_leader_with_room() {
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
                // What was proposed or passed on before may be in the log already, and is no more to store for it. It
                // waits for room, or until its time is over.
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
                        let certain = self.certainty.proposed(&write.request, index, clock_us);
                        if certain && !lags && says_its_timestamp_only(write) {
                            let stored = Stored { timestamp, previous: None };
                            self.writes.propose_certain(key, index, stored);
                        } else {
                            self.writes.propose(key, term, index);
                        }
                    }
                }
                // They wait, in order, until something is committed. How much may wait is bounded, and for
                // how long.
                Err(ProposeError::Full | ProposeError::HandingOver | ProposeError::NotLeader) => {
                    batch.into_iter().rev().for_each(|(key, _)| waiting.push_front(key));
                    break;
                }
            }
        }
        waiting.append(&mut held);
        self.writes.wait_first(waiting);
    }

    /// Whether the group's rules stand in the log: they come before the first write. Where they do not, this
    /// leader proposes those of its own release.
    fn has_rules(&mut self, now: Now) -> bool {
        if self.rules.is_some() || self.rules_proposed {
            return true;
        }
        let limits = self.config.release.limits;
        let rules = GroupRules { limits, history: self.config.upkeep.history };
        // Refused, it is tried again with the next flush, and what waits goes on waiting.
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
        let known = self.peer_levels.known_to_all(others, own.level, now.monotonic_us, settled_us);
        if let Some(level) = known
            && level > self.level.max(self.level_proposed)
        {
            let raised = FeatureLevel { level, release: own.release };
            if self.propose_own(Action::Level(raised), now).is_some() {
                self.level_proposed = level;
            }
        }
    }

    /// Proposes what no client has asked for; its index, unless it was refused.
    fn propose_own(&mut self, action: Action, now: Now) -> Option<LogIndex> {
        let timestamp = self.clock.next(now.wall_us);
        let command = Command { timestamp, clock_us: self.log_time.now_us(), action };
        self.consensus.propose(vec![command.encode()]).ok()
    }

    fn do_chores(&mut self, now: Now) {
        if self.stopping != Stopping::No || self.is_being_born(now) || !self.has_rules(now) {
            return;
        }
        self.raise_level(now);
        let clock_us = self.log_time.now_us();
        let Some(upkeep) = self.chores.next(clock_us, now.monotonic_us) else { return };
        match self.propose_own(Action::Upkeep(upkeep), now) {
            Some(index) => self.chores.proposed(index, upkeep),
            None => self.chores.refused(),
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
        // Its answer must have a way back: one that comes before its link is up again would be lost.
        let reachable = |l: &NodeId| self.links.contains(l) && !self.unheard.contains(l);
        let leader = self.consensus.leader().filter(reachable);
        let mut budget_spent = false;
        // None goes past another one of its client. Whether that is behind a long one.
        let mut held_clients: HashMap<ClientId, bool> = HashMap::new();
        for key in self.writes.take_waiting() {
            // Only clients' writes are forwarded, or two servers that each take the other for the
            // leader would play ball.
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
                // In order, or one of many bytes would wait for ever.
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
            // From here on the leader watches the time; this is for when it never answers.
            pending.deadline_us = pending.give_up_us;
            if is_long {
                // That one lets it wait for its turn for as long.
                pending.deadline_us += micros(limits::COMMIT_TIMEOUT);
            }
            let (client, write) = (pending.client, pending.write.clone());
            let id = self.writes.forward(key, leader);
            let message = PeerMessage::Forward { id, client, write };
            out.push(Output::Send { to: leader, message });
        }
    }

    /// Leaves a write to the clients of this server that wait for it. False, when there are none: then it is gone.
    fn leave_to_clients(&mut self, key: usize, out: &mut Vec<Output>) -> bool {
        let (servers, goes_on) = self.writes.leave_to_clients(key);
        servers.into_iter().for_each(|(node, id)| self.answer_forward(node, id, None, out));
        goes_on
    }

    fn start_reads(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.reads.is_question_due() {
            return;
        }
        if self.consensus.role() == Role::Leader {
            let question = self.reads.ask(now.monotonic_us);
            // A leader that has committed nothing in its term does not know the commit index yet; it is
            // asked again a little later.
            self.consensus.read_index(question);
        } else if let Some(leader) = self.consensus.leader()
            && self.links.contains(&leader)
        {
            let id = self.reads.ask(now.monotonic_us);
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
                self.commit_news.told(to, *commit, now.monotonic_us);
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
        // A lost store takes nothing before its snapshot, which holds all that is committed until then. What
        // is handed out once the snapshot is being installed follows it.
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
            out.push(Output::Notice(Notice::Admitted));
        }
        let trusted = self.distrust().is_none();
        for (to, leader_term) in snapshots {
            if trusted {
                out.push(Output::SendSnapshot { to, leader_term });
            } else {
                // What is in doubt is not passed on. It is asked for again.
                self.consensus.snapshot_sent(to, None);
            }
        }
        for (question, index) in std::mem::take(&mut self.effects.reads) {
            for (to, id) in self.reads.confirm(question, index) {
                let message = PeerMessage::ReadIndexOk { id, index };
                out.push(Output::Send { to, message });
            }
        }
    }

    /// Answers the writes that the acknowledgement rule is met for. Returns the servers that had
    /// forwarded some of them.
    fn answer_stored(&mut self, now: Now, out: &mut Vec<Output>) -> BTreeSet<NodeId> {
        let mut forwarders = BTreeSet::new();
        let Some(mut in_sync) = self.in_sync.take() else { return forwarders };
        let consensus = &self.consensus;
        in_sync.proposed(consensus.last_index(), now.monotonic_us);
        let mut notices = Vec::new();
        in_sync.update(
            now.monotonic_us,
            |server| Standing {
                stored: consensus.matched(server),
                heard: server == self.config.node || self.is_heard(server),
            },
            &mut notices,
        );
        let stored_by_all = in_sync.stored_by_all();
        self.in_sync = Some(in_sync);
        out.extend(notices.into_iter().map(Output::Notice));
        // What this leader has proposed and is committed will be applied as it was proposed.
        self.writes.commit(consensus.commit());
        // Also what is certain was judged by its sessions.
        if self.refuted {
            return forwarders;
        }
        let stored: LogIndex = match self.config.ack {
            // What is settled is committed, and so durable on a majority.
            AckPolicy::Majority => LogIndex::MAX,
            AckPolicy::All => stored_by_all,
        };
        let trusted = self.distrust().is_none();
        for (index, (key, Stored { timestamp, previous })) in self.writes.take_stored(stored) {
            let pending = self.writes.remove(key);
            // What was read from a state that is in doubt is not told: the client reads it elsewhere.
            let previous = previous.filter(|_| trusted);
            let reply = match pending.write.shape.kind {
                OpKind::Put if !pending.write.previous => Reply::PutOk { timestamp },
                _ => Reply::WriteOk { timestamp, previous },
            };
            // Of a copy that came when all was done nothing is shown.
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

    /// Tells the servers that are to know what is committed, those that are `asking` at once.
    fn tell_commit(&mut self, asking: &BTreeSet<NodeId>, now: Now, out: &mut Vec<Output>) {
        if self.consensus.role() != Role::Leader {
            return;
        }
        let commit = self.consensus.commit();
        let due = self.commit_news.take_due(&self.links, asking, commit, now.monotonic_us);
        if due.is_empty() {
            return;
        }
        due.into_iter().for_each(|peer| self.consensus.send_commit_index(peer));
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
                if !self.hand_over_to_the_next(false) {
                    // Whoever could not take over may be able to by now.
                    self.eligibility.tried.clear();
                }
                self.run_consensus(now, out);
            }
            let alone = self.links.is_empty();
            // Not before another one leads: its successor may need the vote of the one that leaves.
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

/// Whether there is nothing to learn from applying a write that is new. What a key had before is known
/// only then, and whether a range can be removed.
fn says_its_timestamp_only(write: &EncodedWrite) -> bool {
    match write.shape.kind {
        OpKind::Put | OpKind::Del | OpKind::Trim => !write.previous,
        OpKind::PutAll | OpKind::DelAll | OpKind::Mark | OpKind::SetHistory(_) => true,
        OpKind::DelRange => false,
    }
}

/// Cuts committed entries so that no piece reaches past an index where replicas compare states: the
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
