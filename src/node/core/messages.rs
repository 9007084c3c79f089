//! Handles the messages of other servers.
//!
//! They are not trusted: a consensus message is checked by `consensus` before it is stepped, an
//! answer counts only if it repeats the number of a request that is outstanding, and timestamps far
//! in the future close the link. Messages about snapshots are the driver's.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use super::super::origins::Origin;
use super::super::replies::unknown_session;
use super::super::{ConsoleEvent, Now, Output};
use super::{Node, Stopping, micros};
use crate::consensus::RaftMessageFault;
use crate::limits;
use crate::model::{Command, Effect, EncodedWrite, LogEntry, LogIndex, NodeId, Term, Timestamp};
use crate::wire::message::{
    ErrorCode, ErrorReply, RaftBody, RaftMessage, Reply, Role, ServerMessage,
};

/// A write that a server has not accepted because it does not lead is forwarded again after this
/// long, unless another leader is known before: about the time of an election between servers that
/// reach each other.
const FORWARD_RETRY: Duration = Duration::from_millis(50);

/// Further ahead of this machine's clock than [`limits::TIMESTAMP_LEAP_MAX`], a timestamp is taken
/// that is past the last applied one by no more than this, and a time of the log's clock that is
/// past this server's by no more. Otherwise forged entries that are applied, one after the other,
/// would bring on the end of all order. There are fewer writes in the log that are not applied than
/// microseconds in this, and a leader makes timestamps of a microsecond each there.
const STEP_PAST_LEAP_MAX: Duration = Duration::from_secs(10);

impl Node {
    /// The latest timestamp that another server's entries or snapshot may have.
    pub(super) fn latest_timestamp(&self, now: Now) -> Timestamp {
        let leap_us = now.wall_us.saturating_add(micros(limits::TIMESTAMP_LEAP_MAX) as i64);
        // By the last applied timestamp and not the newest in the log: entries that are not
        // committed must not raise the bound with every message.
        let step_us = self.applied.timestamp.0.saturating_add(micros(STEP_PAST_LEAP_MAX) as i64);
        Timestamp(leap_us.max(step_us))
    }

    /// The latest time of the log's clock that another server's entries may have.
    fn latest_log_us(&self, now: Now) -> u64 {
        // The log's clock began with the group, and machines' clocks with 1970. One of a blank
        // server takes over the age of its group at once.
        let wall_us = u64::try_from(now.wall_us).unwrap_or_default();
        let leap_us = wall_us.saturating_add(micros(limits::TIMESTAMP_LEAP_MAX));
        leap_us.max(self.log_time.now_us().saturating_add(micros(STEP_PAST_LEAP_MAX)))
    }

    pub(super) fn server_message(
        &mut self,
        now: Now,
        from: NodeId,
        message: ServerMessage,
        out: &mut Vec<Output>,
    ) {
        match message {
            ServerMessage::Raft(message) => self.raft_message(now, from, message, out),
            ServerMessage::Forward { id, client, write } => {
                self.forwarded_to_us(now, from, id, client, write, out);
            }
            ServerMessage::Forwarded { id, reply } => {
                let Some(key) = self.writes.take_answered(id, from) else { return };
                match reply {
                    Some(reply) => {
                        let pending = self.writes.remove(key);
                        let reply = match reply {
                            Reply::Error(ErrorReply {
                                code: ErrorCode::UnknownSession { begin_anew_at },
                                ..
                            }) => unknown_session(pending.resent, begin_anew_at),
                            other => other,
                        };
                        self.finish(pending, reply, out);
                    }
                    None => {
                        let pending = self.writes.get_mut(key);
                        pending.not_before_us = now.monotonic_us + micros(FORWARD_RETRY);
                        // It may have been proposed by that server while it led.
                        pending.has_at_least(Effect::MayBeDone);
                        self.wait_again(key, now);
                    }
                }
            }
            ServerMessage::ReadIndex { id } => {
                // A server that does not lead does not answer: the other one repeats its request.
                if self.consensus.role() == Role::Leader {
                    self.long_writes.something_else_is_asked();
                    self.reads.add_server(from, id);
                }
            }
            ServerMessage::ReadIndexOk { id, index } => {
                // The sender was confirmed as leader after the request, so the index is valid even
                // if it does not lead any more.
                self.reads.confirm(id, index);
            }
            // Handled by the driver.
            ServerMessage::Snapshot { .. }
            | ServerMessage::SnapshotChunk { .. }
            | ServerMessage::SnapshotEnd { .. }
            | ServerMessage::SnapshotAnswer { .. } => {}
            ServerMessage::About { wall_us, level } => {
                self.server_clocks.heard(from, wall_us, now);
                if let Some(leadership) = &mut self.leadership {
                    leadership.level_heard(from, level, now);
                }
            }
            ServerMessage::Disk { full } => self.disks.set(from, full),
            ServerMessage::Leases { id, question } => {
                self.leases_passed_on(now, from, id, question);
            }
            ServerMessage::LeasesOk { id, answer } => self.leases_answered(from, id, answer, out),
            ServerMessage::StateHash { index, hash } => {
                // Each replica tells the others at the beginning of each term.
                self.consensus.has_entries(from);
                // An index beyond this log cannot be compared soon, and must not displace others.
                if index <= self.consensus.last_index() {
                    self.consistency.note_unasked(from, index, hash);
                    self.ask_about_states(now, out);
                }
            }
            ServerMessage::StateHashAt { id, index } => {
                let hash = self.consistency.hash_at(index);
                if hash.is_none() {
                    self.compare_anew(now);
                }
                let message = ServerMessage::StateHashOk { id, hash };
                out.push(Output::Send { to: from, message });
            }
            ServerMessage::StateHashOk { id, hash } => {
                if let Some(hash) = hash {
                    self.consistency.hash_answered(from, id, hash, now.monotonic_us, out);
                }
            }
            ServerMessage::LogTerm { id, index } => {
                let committed = index <= self.consensus.commit() && !self.consistency.is_refuted();
                let term = self.consensus.term_at(index).filter(|_| committed);
                let message = ServerMessage::LogTermOk { id, term };
                out.push(Output::Send { to: from, message });
            }
            ServerMessage::LogTermOk { id, term } => self.log_term_answered(from, id, term, out),
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
        let stamps = entries.iter().filter_map(|entry| Command::peek_timestamp(&entry.data));
        let clocks = entries.iter().filter_map(|entry| Command::peek_clock_us(&entry.data));
        let ahead = if stamps.max() > Some(self.latest_timestamp(now)) {
            "a timestamp"
        } else if clocks.max() > Some(self.latest_log_us(now)) {
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
        if self.disks.has_no_room_for(&message) {
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
                    self.consistency.followed(from);
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
            if let Some((timestamp, key, value)) = Command::shown_put_of(&entry.data) {
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

    /// At the leader: appends an entry without data, after which all replicas compare their states.
    fn compare_anew(&mut self, now: Now) {
        // If it is refused, the next question tries again.
        if self.leads()
            && self.consistency.may_compare_anew(now.monotonic_us)
            && self.consensus.propose(vec![Bytes::new()]).is_ok()
        {
            self.consistency.compared_anew(now.monotonic_us);
        }
    }

    /// Asks the others for the hashes of their states if one of them may differ from this server's.
    pub(super) fn ask_about_states(&mut self, now: Now, out: &mut Vec<Output>) {
        if let Some(message) = self.consistency.question_about_states(now.monotonic_us) {
            self.send_to_all(&message, out);
            if self.consistency.are_states_disputed() {
                self.compare_anew(now);
            }
        }
    }

    /// An entry that `from` has sent contradicts one that is committed here.
    fn contradicted(&mut self, now: Now, from: NodeId, index: LogIndex, out: &mut Vec<Output>) {
        if !self.consistency.is_refuted() {
            self.consistency.contradicted(from, index);
            self.ask_log_terms(now, out);
        }
    }

    fn ask_log_terms(&mut self, now: Now, out: &mut Vec<Output>) {
        if let Some(message) = self.consistency.question_about_log(now.monotonic_us) {
            self.send_to_all(&message, out);
        }
    }

    fn log_term_answered(
        &mut self,
        from: NodeId,
        id: u64,
        term: Option<Term>,
        out: &mut Vec<Output>,
    ) {
        let index = self.consistency.contradicted_index();
        let ours = index.and_then(|index| self.consensus.term_at(index));
        if let (Some(term), Some(ours)) = (term, ours) {
            self.consistency.log_answered(from, id, term != ours, out);
        }
    }

    /// Repeats the questions that are not decided, and reports a dispute that lasts once.
    pub(super) fn settle_disputes(&mut self, now: Now, out: &mut Vec<Output>) {
        self.ask_about_states(now, out);
        out.extend(self.consistency.lasting_dispute(now.monotonic_us).map(Output::Notice));
        if self.consistency.is_log_in_question() {
            self.ask_log_terms(now, out);
        }
    }
}
