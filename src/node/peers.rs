//! What other servers' messages do to the core.

use std::net::SocketAddr;

use bytes::Bytes;

use super::core::{Node, Stopping, micros};
use super::disputes::{Contradiction, HashVerdict, LogVerdict, QUESTION_INTERVAL_US};
use super::writes::Origin;
use super::{ConsoleEvent, Notice, Now, Output};
use crate::consensus::RaftMessageFault;
use crate::limits;
use crate::model::{AppliedPoint, Command, Effect, EncodedWrite, LogEntry, LogIndex, NodeId};
use crate::wire::message::{
    ErrorCode, ErrorReply, PeerMessage, RaftBody, RaftMessage, Reply, Role,
};

impl Node {
    pub(super) fn peer_message(
        &mut self,
        now: Now,
        from: NodeId,
        message: PeerMessage,
        out: &mut Vec<Output>,
    ) {
        match message {
            PeerMessage::Raft(message) => self.raft_message(now, from, message, out),
            PeerMessage::Forward { id, client, write } => {
                self.forwarded_to_us(now, from, id, client, write, out);
            }
            PeerMessage::Forwarded { id, reply } => {
                let Some(key) = self.writes.take_answered(id, from) else { return };
                match reply {
                    Some(reply) => {
                        let pending = self.writes.remove(key);
                        let reply = match reply {
                            Reply::Error(ErrorReply {
                                code: ErrorCode::UnknownSession,
                                begin_anew_at,
                                ..
                            }) => Node::unknown_session(pending.resent, begin_anew_at),
                            other => other,
                        };
                        self.finish(pending, reply, out);
                    }
                    None => {
                        let pending = self.writes.get_mut(key);
                        pending.not_before_us = now.monotonic_us + micros(limits::FORWARD_RETRY);
                        // It may have been proposed there, by a leader that leads no more.
                        pending.has_at_least(Effect::MayBeDone);
                        self.wait_again(key, now);
                    }
                }
            }
            PeerMessage::ReadIndex { id } => {
                // A server that does not lead stays silent: the asking one tries again.
                if self.consensus.role() == Role::Leader {
                    self.long_writes.something_else_is_asked();
                    self.reads.add_server(from, id);
                }
            }
            PeerMessage::ReadIndexOk { id, index } => {
                // Whoever answered was confirmed as leader after we asked, so the index is good
                // even if it leads no more.
                self.reads.confirm(id, index);
            }
            // The driver's own business.
            PeerMessage::Snapshot { .. }
            | PeerMessage::SnapshotChunk { .. }
            | PeerMessage::SnapshotEnd { .. }
            | PeerMessage::SnapshotAnswer { .. } => {}
            PeerMessage::About { wall_us, level } => {
                self.peer_clocks.heard(from, wall_us, now.wall_us);
                self.peer_levels.heard(from, level, now.monotonic_us);
            }
            PeerMessage::Disk { full } => self.disk_of_peer(from, full),
            PeerMessage::StateHash { index, hash } => {
                // What is further than this log cannot be compared soon, and must not crowd out the rest.
                if index <= self.consensus.last_index() {
                    self.hashes.told(from, index, hash);
                    self.ask_about_states(now, out);
                }
            }
            PeerMessage::StateHashAt { id, index } => {
                let hash = self.hashes.ours(index).filter(|_| !self.refuted);
                if hash.is_none() {
                    self.compare_anew(now);
                }
                let message = PeerMessage::StateHashOk { id, hash };
                out.push(Output::Send { to: from, message });
            }
            PeerMessage::StateHashOk { id, hash } => {
                if let Some(hash) = hash {
                    let verdict = self.hashes.answered(from, id, hash, now.monotonic_us);
                    self.take_verdict(verdict, out);
                }
            }
            PeerMessage::LogTerm { id, index } => {
                let committed = index <= self.consensus.commit() && !self.refuted;
                let term = self.consensus.term_at(index).filter(|_| committed);
                let message = PeerMessage::LogTermOk { id, term };
                out.push(Output::Send { to: from, message });
            }
            PeerMessage::LogTermOk { id, term } => self.heard_log_term(from, id, term, out),
        }
    }

    fn raft_message(
        &mut self,
        now: Now,
        from: NodeId,
        message: RaftMessage,
        out: &mut Vec<Output>,
    ) {
        let RaftBody::Append { entries, .. } = &message.body else {
            return self.step(now, from, message, out);
        };
        // Not the newest stamp seen: what is not committed must not carry the bound further with every message.
        let newest = now.wall_us.max(self.applied.timestamp.0);
        let latest = newest.saturating_add(micros(limits::TIMESTAMP_LEAP_MAX) as i64);
        let stamps = entries.iter().filter_map(|entry| Command::peek_timestamp(&entry.data));
        let clocks = entries.iter().filter_map(|entry| Command::peek_clock_us(&entry.data));
        // No group is that old, and a blank server takes in the age of its group at once.
        let oldest_us = self.log_time.now_us().saturating_add(micros(limits::TIMESTAMP_LEAP_MAX));
        let ahead = if stamps.max().is_some_and(|stamp| stamp.0 > latest) {
            "a timestamp"
        } else if clocks.max().is_some_and(|clock_us| clock_us > oldest_us) {
            "a time of the log's clock"
        } else {
            ""
        };
        if !ahead.is_empty() {
            let reason = format!("a REPLICATION holds {ahead} more than 100 years ahead");
            return out.push(Output::Disconnect { peer: from, reason });
        }
        self.show_replication(entries, out);
        let delay_us = micros(self.config.replication_delay);
        let holds_writes = entries.iter().any(|e| !e.data.is_empty());
        if delay_us == 0 || (!holds_writes && self.delayed.is_empty()) {
            return self.step(now, from, message, out);
        }
        if self.delayed.len() < self.config.limits.delayed_appends_max {
            self.delayed.push_back((now.monotonic_us + delay_us, from, message));
        }
    }

    /// Steps the replication whose delay is over.
    pub(super) fn release_delayed(&mut self, now: Now, out: &mut Vec<Output>) {
        while let Some((_, from, message)) =
            self.delayed.pop_front_if(|(due_us, ..)| *due_us <= now.monotonic_us)
        {
            self.step(now, from, message, out);
        }
    }

    fn step(&mut self, now: Now, from: NodeId, message: RaftMessage, out: &mut Vec<Output>) {
        if self.has_no_room_for(&message) {
            return;
        }
        let is_append = matches!(message.body, RaftBody::Append { .. });
        let stamped = |entry: &LogEntry| {
            Some((entry.index, entry.term, Command::peek_timestamp(&entry.data)?))
        };
        let newest = match &message.body {
            RaftBody::Append { entries, .. } => entries.iter().rev().find_map(stamped),
            _ => None,
        };
        let newest =
            newest.filter(|(index, term, _)| self.consensus.term_at(*index) != Some(*term));
        match self.consensus.step(from, message) {
            Ok(()) => {
                // Whoever contradicted this log leads no more.
                if is_append {
                    self.contradiction.take_if(|contradiction| contradiction.peer != from);
                }
                // Whoever leads next stamps its writes later than anything replicated here. What was not
                // taken, as of a term that is over, may hold any stamp.
                if let Some((index, term, timestamp)) = newest
                    && self.consensus.term_at(index) == Some(term)
                {
                    self.clock.observe(timestamp);
                }
            }
            // Its link is needed to learn who is right.
            Err(RaftMessageFault::ContradictsCommitted { index }) => {
                self.contradicted(now, from, index, out)
            }
            Err(fault) => {
                out.push(Output::Disconnect { peer: from, reason: fault.to_string() });
            }
        }
    }

    fn show_replication(&mut self, entries: &[LogEntry], out: &mut Vec<Output>) {
        if !self.config.console {
            return;
        }
        for entry in entries {
            // Replication is repeated when an answer is lost; the console shows it once.
            if entry.index <= self.shown_index {
                continue;
            }
            self.shown_index = entry.index;
            if let Some((timestamp, key, value)) = Command::put_of(&entry.data) {
                out.push(Output::Console(ConsoleEvent::Replication { key, value, timestamp }));
            }
        }
    }

    fn forwarded_to_us(
        &mut self,
        now: Now,
        from: NodeId,
        id: u64,
        client: SocketAddr,
        write: EncodedWrite,
        out: &mut Vec<Output>,
    ) {
        if self.consensus.role() != Role::Leader || self.stopping != Stopping::No {
            return self.answer_forward(from, id, None, out);
        }
        let origin = Origin::Server { node: from, id };
        if let Err(refusal) = self.take_write(now, origin, client, write) {
            self.answer_forward(from, id, Some(refusal), out);
        }
    }

    pub(super) fn answer_forward(
        &self,
        to: NodeId,
        id: u64,
        reply: Option<Reply>,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Send { to, message: PeerMessage::Forwarded { id, reply } });
    }

    /// Our state stands at an index where all replicas compare.
    pub(super) fn share_state_hash(
        &mut self,
        now: Now,
        point: AppliedPoint,
        out: &mut Vec<Output>,
    ) {
        let AppliedPoint { index, hash, .. } = point;
        self.hashes.note_ours(index, hash);
        self.ask_about_states(now, out);
        for peer in &self.links {
            let message = PeerMessage::StateHash { index, hash };
            out.push(Output::Send { to: *peer, message });
        }
    }

    /// At the leader: all replicas are to compare their states again, as they do after an entry without data.
    fn compare_anew(&mut self, now: Now) {
        let since_us = now.monotonic_us.saturating_sub(self.compared_anew_us);
        if self.consensus.role() == Role::Leader && since_us >= QUESTION_INTERVAL_US {
            // One that is refused now is asked for again.
            if self.consensus.propose(vec![Bytes::new()]).is_ok() {
                self.compared_anew_us = now.monotonic_us;
            }
        }
    }

    /// Asks the others for the hash of their states, when it is said that one is not this server's.
    fn ask_about_states(&mut self, now: Now, out: &mut Vec<Output>) {
        if let Some(index) = self.hashes.question_due(self.next_question, now.monotonic_us) {
            let message = PeerMessage::StateHashAt { id: self.take_question(), index };
            let ask = |to: &NodeId| Output::Send { to: *to, message: message.clone() };
            out.extend(self.links.iter().map(ask));
            if self.hashes.is_disputed() {
                self.compare_anew(now);
            }
        }
    }

    fn take_question(&mut self) -> u64 {
        let id = self.next_question;
        self.next_question = id.wrapping_add(1);
        id
    }

    fn take_verdict(&mut self, verdict: HashVerdict, out: &mut Vec<Output>) {
        let Some(index) = self.hashes.asked_index() else { return };
        match verdict {
            HashVerdict::Nothing => {}
            HashVerdict::OthersDiffer(peers) => {
                for peer in peers {
                    out.push(Output::Notice(Notice::PeerDiverged { peer, index }));
                }
            }
            HashVerdict::Undisputed => out.push(Output::Notice(Notice::Undisputed)),
            HashVerdict::WeDiffer if !self.refuted => {
                self.refuted = true;
                out.push(Output::Notice(Notice::Diverged { index }));
                out.push(Output::RebuildStore);
            }
            HashVerdict::WeDiffer => {}
        }
    }

    /// `from` has sent an entry that contradicts one that is committed here, or somebody in its name. One of two
    /// logs may be wrong; one server's word against another's does not tell which, so all others are asked.
    fn contradicted(&mut self, now: Now, from: NodeId, index: LogIndex, out: &mut Vec<Output>) {
        if self.refuted {
            return;
        }
        let known = self.contradiction.as_ref().is_some_and(|known| known.index == index);
        if !known {
            self.contradiction = Some(Contradiction::new(from, index));
        }
        self.ask_log_terms(now, out);
    }

    fn ask_log_terms(&mut self, now: Now, out: &mut Vec<Output>) {
        let Some(contradiction) = &mut self.contradiction else { return };
        let index = contradiction.index;
        let (id, asked_us) = (self.next_question, &mut self.contradiction_asked_us);
        if contradiction.is_question_due(id, asked_us, now.monotonic_us) {
            let message = PeerMessage::LogTerm { id: self.take_question(), index };
            let ask = |to: &NodeId| Output::Send { to: *to, message: message.clone() };
            out.extend(self.links.iter().map(ask));
        }
    }

    fn heard_log_term(&mut self, from: NodeId, id: u64, term: Option<u64>, out: &mut Vec<Output>) {
        let Some(contradiction) = &mut self.contradiction else { return };
        let (peer, index) = (contradiction.peer, contradiction.index);
        let (Some(term), Some(ours)) = (term, self.consensus.term_at(index)) else { return };
        let verdict = contradiction.answered(from, id, term != ours, self.config.nodes.len());
        let confirmed = contradiction.is_confirmed();
        if verdict == LogVerdict::Refuted && !self.refuted {
            self.refuted = true;
            out.push(Output::Notice(Notice::LogRefuted { index }));
            out.push(Output::BeginAnew);
        } else if confirmed && !std::mem::replace(&mut self.contradiction_said, true) {
            out.push(Output::Notice(Notice::LogContradicted { peer, index }));
        }
    }

    /// What is in doubt is asked for again, and a dispute that lasts is said once.
    pub(super) fn settle_disputes(&mut self, now: Now, out: &mut Vec<Output>) {
        self.ask_about_states(now, out);
        if let Some(index) = self.hashes.lasting_dispute(now.monotonic_us) {
            out.push(Output::Notice(Notice::Disputed { index }));
        }
        if self.contradiction.as_ref().is_some_and(|found| !found.is_upheld()) {
            self.ask_log_terms(now, out);
        }
    }
}
