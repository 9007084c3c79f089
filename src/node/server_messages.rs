//! Handles the messages of other servers.
//!
//! They are not trusted: a consensus message is checked by `consensus` before it is stepped, an
//! answer counts only if it repeats the number of a request that is outstanding, and timestamps far
//! in the future close the link. Messages about snapshots are the driver's.

use std::net::SocketAddr;

use bytes::Bytes;

use super::consistency_check::{Contradiction, HashVerdict, LogVerdict, QUESTION_INTERVAL_US};
use super::core::{Node, Stopping, micros};
use super::writes::Origin;
use super::{ConsoleEvent, Notice, Now, Output};
use crate::consensus::RaftMessageFault;
use crate::limits;
use crate::model::{AppliedPoint, Command, Effect, EncodedWrite, LogEntry, LogIndex, NodeId};
use crate::wire::message::{
    ErrorCode, ErrorReply, PeerMessage, RaftBody, RaftMessage, Reply, Role,
};

impl Node {
    pub(super) fn server_message(
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
                        // It may have been proposed by that server while it led.
                        pending.has_at_least(Effect::MayBeDone);
                        self.wait_again(key, now);
                    }
                }
            }
            PeerMessage::ReadIndex { id } => {
                // A server that does not lead does not answer: the other one repeats its request.
                if self.consensus.role() == Role::Leader {
                    self.long_writes.something_else_is_asked();
                    self.reads.add_server(from, id);
                }
            }
            PeerMessage::ReadIndexOk { id, index } => {
                // The sender was confirmed as leader after the request, so the index is valid even
                // if it does not lead any more.
                self.reads.confirm(id, index);
            }
            // Handled by the driver.
            PeerMessage::Snapshot { .. }
            | PeerMessage::SnapshotChunk { .. }
            | PeerMessage::SnapshotEnd { .. }
            | PeerMessage::SnapshotAnswer { .. } => {}
            PeerMessage::About { wall_us, level } => {
                self.server_clocks.heard(from, wall_us, now.wall_us);
                self.server_levels.heard(from, level, now.monotonic_us);
            }
            PeerMessage::Disk { full } => self.disk_state_of(from, full),
            PeerMessage::StateHash { index, hash } => {
                // An index beyond this log cannot be compared soon, and must not displace others.
                if index <= self.consensus.last_index() {
                    self.hashes.note_unasked(from, index, hash);
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
        // By the last applied timestamp and not the newest in the log: entries that are not
        // committed must not raise the bound with every message.
        let newest = now.wall_us.max(self.applied.timestamp.0);
        let latest = newest.saturating_add(micros(limits::TIMESTAMP_LEAP_MAX) as i64);
        let stamps = entries.iter().filter_map(|entry| Command::peek_timestamp(&entry.data));
        let clocks = entries.iter().filter_map(|entry| Command::peek_clock_us(&entry.data));
        // No group is that old; a blank server takes over the age of its group at once.
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
            return out.push(Output::Disconnect { server: from, reason });
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

    /// Handles the delayed REPLICATIONs that are due.
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
                // A server that contradicted this log does not lead any more.
                if is_append {
                    self.contradiction.take_if(|contradiction| contradiction.server != from);
                }
                // The next leader's timestamps must be greater than any that was replicated here.
                // Entries that were not stored, as those of an old term, may have any timestamp.
                if let Some((index, term, timestamp)) = newest
                    && self.consensus.term_at(index) == Some(term)
                {
                    self.clock.observe(timestamp);
                }
            }
            // The link stays up, because the answers of that server are needed.
            Err(RaftMessageFault::ContradictsCommitted { index }) => {
                self.contradicted(now, from, index, out)
            }
            Err(fault) => {
                out.push(Output::Disconnect { server: from, reason: fault.to_string() });
            }
        }
    }

    fn show_replication(&mut self, entries: &[LogEntry], out: &mut Vec<Output>) {
        if !self.config.console {
            return;
        }
        for entry in entries {
            // A REPLICATION is repeated if its answer is lost; the console shows it once.
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

    /// Sends the hash of this node's state at an index where replicas compare theirs.
    pub(super) fn share_state_hash(
        &mut self,
        now: Now,
        point: AppliedPoint,
        out: &mut Vec<Output>,
    ) {
        let AppliedPoint { index, hash, .. } = point;
        self.hashes.note_ours(index, hash);
        self.ask_about_states(now, out);
        for server in &self.links {
            let message = PeerMessage::StateHash { index, hash };
            out.push(Output::Send { to: *server, message });
        }
    }

    /// At the leader: appends an entry without data, after which all replicas compare their states.
    fn compare_anew(&mut self, now: Now) {
        let since_us = now.monotonic_us.saturating_sub(self.compared_anew_us);
        if self.consensus.role() == Role::Leader && since_us >= QUESTION_INTERVAL_US {
            // If it is refused, the next question tries again.
            if self.consensus.propose(vec![Bytes::new()]).is_ok() {
                self.compared_anew_us = now.monotonic_us;
            }
        }
    }

    /// Asks the others for the hashes of their states if one of them may differ from this server's.
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
            HashVerdict::OthersDiffer(servers) => {
                for server in servers {
                    out.push(Output::Notice(Notice::ServerDiverged { server, index }));
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

    /// An entry that `from` has sent, or another process in its name, contradicts one that is
    /// committed here. One server's word against another's does not tell which log is wrong, so all
    /// others are asked.
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
        let (server, index) = (contradiction.server, contradiction.index);
        let (Some(term), Some(ours)) = (term, self.consensus.term_at(index)) else { return };
        let verdict = contradiction.answered(from, id, term != ours, self.config.nodes.len());
        let confirmed = contradiction.is_confirmed();
        if verdict == LogVerdict::Refuted && !self.refuted {
            self.refuted = true;
            out.push(Output::Notice(Notice::LogRefuted { index }));
            out.push(Output::BeginAnew);
        } else if confirmed && !std::mem::replace(&mut self.contradiction_reported, true) {
            out.push(Output::Notice(Notice::LogContradicted { server, index }));
        }
    }

    /// Repeats the questions that are not decided, and reports a dispute that lasts once.
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
