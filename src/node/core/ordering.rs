//! The way of a write: accepted, proposed by the leader or forwarded to it, and answered.
//!
//! Invariant: a write stays in exactly one place of `writes` until it is answered. What makes a
//! write wait (room in the log, a majority, its turn, a full disk) leaves it there, in order; what
//! refuses it removes it and answers every origin.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::super::config::AckPolicy;
use super::super::disk_space::disk_full;
use super::super::in_sync::ServerProgress;
use super::super::origins::{Origin, Origins};
use super::super::replies::{busy, error, over_share_of_leases, result_in_doubt, shutting_down};
use super::super::writes::{Joined, PendingWrite};
use super::super::{ConsoleEvent, Now, Output, RequestToken};
use super::{Node, Stopping, micros};
use crate::consensus::ProposeError;
use crate::limits;
use crate::model::{
    Action, ClientId, Command, Effect, EncodedWrite, FeatureLevel, GroupRules, LeaseChange,
    LeaseName, LogIndex, NodeId, Timestamp, WriteAnswer, WriteOutcome,
};
use crate::wire::message::{ErrorCode, Reply, ServerMessage};

/// Writes for which room is made at once where they are proposed together; for more it grows.
const PROPOSE_COUNT_EXPECTED: usize = 256;

impl Node {
    pub(super) fn write(
        &mut self,
        now: Now,
        token: RequestToken,
        client: SocketAddr,
        write: EncodedWrite,
        out: &mut Vec<Output>,
    ) {
        let reply = |reply| Output::Reply { token, reply };
        if self.stopping != Stopping::No {
            out.push(reply(shutting_down()));
        } else if let Err(refusal) = self.take_write(now, Origin::Client(token), client, write) {
            out.push(reply(refusal));
        }
    }

    /// Checks a write and adds it to those under way, or to the origins of its first copy.
    pub(super) fn take_write(
        &mut self,
        now: Now,
        origin: Origin,
        client: SocketAddr,
        write: EncodedWrite,
    ) -> Result<(), Reply> {
        if let Err(reason) = write.check(self.config.value_bytes_max) {
            return Err(error(ErrorCode::Invalid, &reason));
        }
        let limits = &self.config.limits;
        if self.writes.len() >= limits.pending_writes_max {
            return Err(busy("too many writes are under way at this server"));
        }
        // A copy of a write under way takes no memory to speak of, and a bounded number of them.
        match self.writes.join(&write, origin) {
            Joined::Yes => return Ok(()),
            Joined::TooMany => return Err(busy("too many copies of this write are under way")),
            Joined::No => {}
        }
        if let Some(full) = self.writes.is_full_for(client.ip(), limits) {
            return Err(busy(full));
        }
        // Long writes wait for their turn, and leave half of the memory to others meanwhile.
        let is_long = self.writes.is_long(&write.shape);
        if is_long && self.writes.long_bytes() >= limits.pending_write_bytes_max / 2 {
            return Err(busy("too many long writes wait for their turn at this server"));
        }
        if !is_long {
            self.long_writes.something_else_is_asked();
        }
        self.writes.add(PendingWrite {
            origins: Origins::of(origin),
            client,
            write,
            deadline_us: now.monotonic_us + micros(limits::COMMIT_TIMEOUT),
            give_up_us: now.monotonic_us
                + micros(self.config.in_sync_timeout)
                + 2 * micros(limits::COMMIT_TIMEOUT),
            effect: Effect::NotDone,
            resent: false,
            not_before_us: 0,
            shown_as_leader: false,
            shown_as_forwarder: false,
        });
        Ok(())
    }

    pub(super) fn propose_waiting(&mut self, now: Now, out: &mut Vec<Output>) {
        self.propose_more = false;
        if self.is_bootstrapping(now) || self.waits_for_a_leader_with_room() {
            return;
        }
        if !self.has_rules(now) {
            return;
        }
        let limits = self.config.limits;
        let (clock_us, wall_us) = (self.log_time.now_us(), self.stamping_wall_us(now));
        // What comes before everything else that waits.
        let mut next = VecDeque::new();
        let mut held = VecDeque::new();
        if self.long_writes.may_hold_back(&self.writes, &limits) {
            next = self.writes.take_waiting();
            held = self.long_writes.hold_back(&self.writes, &mut next, &limits, now.monotonic_us);
            held.iter().for_each(|key| self.writes.get_mut(*key).wait_for_turn());
        }
        let full = self.full_disks();
        // Where the rules of the group are not applied yet, there are no leases.
        let leases_max = self.group_limits().map_or(usize::MAX, |most| most.leases_max as usize);
        let mut proposed = (0, 0);
        while !next.is_empty() || self.writes.has_waiting() {
            if self.consensus.unapplied_bytes() >= limits.unapplied_bytes_max {
                // A write that was proposed or forwarded before may be in the log already, and may
                // have been answered nowhere. It waits for room, or until it expires.
                next.append(&mut self.writes.take_waiting());
                let (kept, refused): (VecDeque<usize>, VecDeque<usize>) = next
                    .into_iter()
                    .partition(|key| self.writes.get_mut(*key).effect > Effect::NotDone);
                for key in refused {
                    let pending = self.writes.remove(key);
                    let refusal = busy("too much waits to be applied to the leader's store");
                    self.finish(pending, refusal, out);
                }
                next = kept;
                break;
            }
            if proposed.0 >= limits.propose_writes_max || proposed.1 >= limits.propose_bytes_max {
                self.propose_more = true;
                break;
            }
            let count = (next.len() + self.writes.waiting()).min(PROPOSE_COUNT_EXPECTED);
            let (mut batch, mut data) = (Vec::with_capacity(count), Vec::with_capacity(count));
            let mut bytes = 0;
            while let Some(key) = next.pop_front().or_else(|| self.writes.take_next_waiting()) {
                let PendingWrite { effect, write, client, .. } = self.writes.get_mut(key);
                let is_new = *effect == Effect::NotDone;
                if is_new && write.shape.adds_data && !full.is_empty() {
                    let refusal = disk_full(&full);
                    let pending = self.writes.remove(key);
                    self.answer(&pending, refusal, out);
                    continue;
                }
                if is_new
                    && let Some(LeaseChange::Begin(_)) = write.lease_change()
                    && !self.leases.may_grant(client.ip(), leases_max)
                {
                    let refusal = over_share_of_leases();
                    let pending = self.writes.remove(key);
                    self.answer(&pending, refusal, out);
                    continue;
                }
                let Some(timestamp) = self.clock.next(wall_us) else {
                    let pending = self.writes.remove(key);
                    let refusal =
                        error(ErrorCode::Internal, "there is no timestamp after the last");
                    self.finish(pending, refusal, out);
                    continue;
                };
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
                        let PendingWrite { write, client, .. } = self.writes.get(key);
                        let (rows, length) =
                            (write.shape.work_rows, self.writes.length(&write.shape));
                        self.long_writes.proposed(index, rows, length);
                        match write.lease_change() {
                            Some(LeaseChange::Begin(grant)) => {
                                let (id, granted) = (grant.id_at(timestamp), timestamp);
                                let name = LeaseName { id, granted };
                                self.leases.grant_proposed(name, client.ip(), index);
                            }
                            Some(LeaseChange::End(id)) => {
                                self.leases.revoke_proposed(*id, index);
                            }
                            None => {}
                        }
                        let is_new = self.leadership.as_mut().is_some_and(|leadership| {
                            leadership.write_proposed(&write.request, index, clock_us)
                        });
                        // A new write comes to what its operation says, if that can be said now.
                        match write.shape.known_at_commit.filter(|_| is_new && !lags) {
                            Some(result) => {
                                let answer = WriteAnswer::of(WriteOutcome { timestamp, result });
                                self.writes.propose_known_new(key, index, answer);
                            }
                            None => self.writes.propose(key, term, index),
                        }
                    }
                }
                // The writes wait, in order, until entries are committed. Their number, memory and
                // time are bounded.
                Err(ProposeError::Full | ProposeError::HandingOver | ProposeError::NotLeader) => {
                    batch.into_iter().rev().for_each(|(key, _)| next.push_front(key));
                    break;
                }
            }
        }
        next.append(&mut held);
        self.writes.leave_in_turns(next);
    }

    /// The time that this leader stamps by: its machine's, but no further ahead than a majority of
    /// servers takes (`latest_timestamp`), also if the machine's clock has leapt.
    fn stamping_wall_us(&self, now: Now) -> i64 {
        let others = self.config.nodes.len() / 2;
        if others == 0 {
            return now.wall_us;
        }
        let last = self.clock.last();
        let leap_us = micros(limits::TIMESTAMP_LEAP_MAX) as i64;
        match self.server_clocks.reached_by(others, now) {
            // A year less, since the clocks may have been set back meanwhile.
            Some(wall_us) => now.wall_us.min(wall_us.saturating_add(leap_us - leap_us / 100)),
            // In the first second of a link, when the others' clocks are not known, a machine that
            // more than half a year past the last timestamp is not believed: that one may be up to
            // a year short of what the others take.
            None if last > Timestamp::ZERO
                && now.wall_us.saturating_sub(last.0) > leap_us / 200 =>
            {
                last.0
            }
            None => now.wall_us,
        }
    }

    /// Whether the group's rules are in the log, where they come before the first write. If they
    /// are not, this leader proposes those of its own release.
    pub(super) fn has_rules(&mut self, now: Now) -> bool {
        if self.rules.is_some() {
            return true;
        }
        let Some(leadership) = &self.leadership else { return false };
        if leadership.are_rules_proposed() {
            return true;
        }
        let limits = self.config.release.limits;
        let rules = GroupRules { limits, history: self.config.garbage_collection.history };
        // If they are refused, the next flush tries again, and the writes go on waiting.
        let proposed = self.propose_own(Action::Rules(rules), now).is_some();
        if proposed && let Some(leadership) = &mut self.leadership {
            leadership.rules_proposed();
        }
        proposed
    }

    /// Proposes a higher feature level once every server knows it.
    fn raise_level(&mut self, now: Now) {
        let Some(leadership) = &self.leadership else { return };
        let own = self.config.release.level;
        let others = self.config.nodes.iter().copied().filter(|node| *node != self.config.node);
        let settled_us = micros(self.config.level_settled);
        let level = leadership.level_to_propose(others, own.level, self.level, settled_us, now);
        let Some(level) = level else { return };
        let raised = FeatureLevel { level, release: own.release };
        if self.propose_own(Action::Level(raised), now).is_some()
            && let Some(leadership) = &mut self.leadership
        {
            leadership.level_proposed(level);
        }
    }

    /// Proposes a command of the leader's own; returns its index, unless it was refused.
    pub(super) fn propose_own(&mut self, action: Action, now: Now) -> Option<LogIndex> {
        let timestamp = self.clock.next(self.stamping_wall_us(now))?;
        let command = Command { timestamp, clock_us: self.log_time.now_us(), action };
        self.consensus.propose(vec![command.encode()]).ok()
    }

    /// At the leader: proposes the next piece of garbage collection, if one is due.
    pub(super) fn collect_garbage(&mut self, now: Now) {
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
            && let Some((_, key, value)) = Command::shown_put_of(pending.write.data())
        {
            let client = pending.client;
            out.push(Output::Console(ConsoleEvent::Put { client, key, value }));
        }
    }

    pub(super) fn forward_waiting(&mut self, now: Now, out: &mut Vec<Output>) {
        if !self.writes.has_waiting() {
            return;
        }
        // The answer needs the link from the leader, too: one that comes before it is up again
        // would be lost.
        let leader = self.consensus.leader().filter(|leader| self.reachability.can_ask(*leader));
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
                self.writes.wait_in_turn(key);
                continue;
            };
            let is_due = self.writes.get(key).not_before_us <= now.monotonic_us;
            let is_long = self.writes.is_long(&self.writes.get(key).write.shape);
            let client = self.writes.get(key).write.request.client;
            let held = held_clients.get(&client);
            let (is_behind, is_behind_long) = (held.is_some(), held == Some(&true));
            if is_behind
                || !is_due
                || !is_long && budget_spent
                || !self.writes.may_forward(key, &self.config.limits)
            {
                // In order, or a write of many bytes would wait for ever.
                budget_spent |= !is_long && !is_behind && is_due;
                let waits_for_turn = is_long || is_behind_long;
                if waits_for_turn {
                    self.writes.get_mut(key).wait_for_turn();
                }
                held_clients.insert(client, waits_for_turn);
                self.writes.wait_in_turn(key);
                continue;
            }
            let pending = self.writes.get_mut(key);
            if self.config.console
                && !std::mem::replace(&mut pending.shown_as_forwarder, true)
                && let Some((_, key, value)) = Command::shown_put_of(pending.write.data())
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
            let message = ServerMessage::Forward { id, client, write };
            out.push(Output::Send { to: leader, message });
        }
    }

    /// Removes the other servers from the origins of a write: they forward it to the next leader
    /// themselves. Returns false if no client of this server waits for the write; it is then
    /// removed.
    pub(super) fn leave_to_clients(&mut self, key: usize, out: &mut Vec<Output>) -> bool {
        let (servers, goes_on) = self.writes.leave_to_clients(key);
        servers.into_iter().for_each(|(node, id)| self.answer_forward(node, id, None, out));
        goes_on
    }

    /// The link to or from `server` broke: the writes forwarded to it, or its answers, may be lost,
    /// so they are forwarded again.
    pub(super) fn take_back_forwarded(&mut self, server: NodeId, now: Now) {
        for key in self.writes.take_forwarded(|to| to == server) {
            self.wait_again(key, now);
        }
    }

    /// Puts a write back to wait for the next leader, which decides it.
    pub(super) fn wait_again(&mut self, key: usize, now: Now) {
        let pending = self.writes.get_mut(key);
        let deadline_us = now.monotonic_us + micros(limits::COMMIT_TIMEOUT);
        pending.deadline_us = deadline_us.min(pending.give_up_us);
        pending.resent = true;
        self.writes.wait(key);
    }

    /// Answers the writes for which the acknowledgement rule is met.
    pub(super) fn answer_stored(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(leadership) = &mut self.leadership else { return };
        let (consensus, reachability) = (&self.consensus, &self.reachability);
        let node = self.config.node;
        let progress = |server| ServerProgress {
            stored: consensus.matched(server),
            heard: server == node || reachability.is_heard(server),
        };
        let mut notices = Vec::new();
        let last_index = consensus.last_index();
        let stored_by_all = leadership.update_in_sync(last_index, progress, now, &mut notices);
        out.extend(notices.into_iter().map(Output::Notice));
        // An entry that this leader has proposed and that is committed will be applied as it was
        // proposed.
        self.writes.commit(consensus.commit());
        // Whether a write is known to be new was also derived from the refuted state's sessions.
        if self.consistency.is_refuted() {
            return;
        }
        let stored: LogIndex = match self.config.ack {
            // Settled writes are committed, and so durable on a majority.
            AckPolicy::Majority => LogIndex::MAX,
            AckPolicy::All => stored_by_all,
        };
        let distrust = self.distrust();
        let mut in_doubt = Vec::new();
        while let Some((index, (key, mut answer))) = self.writes.take_stored(stored) {
            // What such a write came to is read from the state, like any read. It waits until the
            // doubt is settled, or another server leads; copies of it wait with it.
            let pending = self.writes.get(key);
            if let Some(distrust) = distrust
                && pending.write.shape.depends_on_state
            {
                if now.monotonic_us < pending.deadline_us {
                    in_doubt.push((index, key, answer));
                } else {
                    let pending = self.writes.remove(key);
                    self.answer(&pending, result_in_doubt(distrust), out);
                }
                continue;
            }
            // A previous value from a state that is in doubt is not told: the client reads it at
            // another server.
            answer.previous.take_if(|_| distrust.is_some());
            let most = self.config.limits.answered_writes_max;
            let pending = match answer.tells_more() {
                false => self.writes.remove_answered(key, index, answer.outcome(), most),
                true => self.writes.remove(key),
            };
            // A copy that came after the write was done is not shown, nor a PUT whose condition did
            // not hold: nothing is stored, and no PUT_OK is sent.
            if pending.shown_as_leader
                && answer.result.has_taken_effect()
                && let Some((_, key, _)) = Command::shown_put_of(pending.write.data())
            {
                let (client, timestamp) = (pending.client, answer.timestamp);
                out.push(Output::Console(ConsoleEvent::PutOk { client, key, timestamp }));
            }
            self.answer(&pending, Reply::WriteOk(answer), out);
        }
        for (index, key, answer) in in_doubt {
            self.writes.wait_for_stored(key, index, answer);
        }
    }

    /// Notifies the followers of the commit index that no REPLICATION has told of it. While
    /// further entries are under way, theirs will.
    pub(super) fn notify_commit(&mut self, out: &mut Vec<Output>) {
        if !self.leads() || self.consensus.commit() < self.consensus.last_index() {
            return;
        }
        let Some(leadership) = &mut self.leadership else { return };
        let (links, commit) = (self.reachability.links(), self.consensus.commit());
        let due = leadership.take_commit_notifications(links, commit);
        if due.is_empty() {
            return;
        }
        due.into_iter().for_each(|server| self.consensus.send_commit_index(server));
        self.run_consensus(out);
    }

    /// Sends the reply to every origin of a write.
    pub(super) fn answer(&self, pending: &PendingWrite, reply: Reply, out: &mut Vec<Output>) {
        let mut origins = pending.origins.iter();
        let Some(last) = origins.next_back() else { return };
        origins.for_each(|origin| self.answer_origin(origin, reply.clone(), out));
        self.answer_origin(last, reply, out);
    }

    fn answer_origin(&self, origin: Origin, reply: Reply, out: &mut Vec<Output>) {
        match origin {
            Origin::Client(token) => out.push(Output::Reply { token, reply }),
            Origin::Server { node, id } => self.answer_forward(node, id, Some(reply), out),
        }
    }

    /// Answers a write, raising the effect in an error to what is known of the write: an earlier
    /// leader may have ordered it.
    pub(super) fn finish(&self, pending: PendingWrite, mut reply: Reply, out: &mut Vec<Output>) {
        if let Reply::Error(error) = &mut reply {
            error.effect = error.effect.max(pending.effect);
        }
        self.answer(&pending, reply, out);
    }

    pub(super) fn answer_forward(
        &self,
        to: NodeId,
        id: u64,
        reply: Option<Reply>,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Send { to, message: ServerMessage::Forwarded { id, reply } });
    }
}
