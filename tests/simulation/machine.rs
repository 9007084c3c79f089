//! The replicated state machine, as a model small enough to be obviously right: newest versions,
//! sessions for exactly-once application, a rolling hash.

use std::collections::BTreeMap;

use acervo::command::{Command, WriteOp, WriteOutcome};
use acervo::node::AppliedWrite;
use acervo::types::{AppliedPoint, ClientId, LogEntry, Timestamp};
use bytes::Bytes;

/// A replica's state. Cloning it is taking a checkpoint.
#[derive(Clone, Default)]
pub struct Machine {
    point: AppliedPoint,
    keys: BTreeMap<Bytes, (Timestamp, Bytes)>,
    sessions: BTreeMap<ClientId, Session>,
}

#[derive(Clone, Default)]
struct Session {
    answered_below: u64,
    replies: BTreeMap<u64, WriteOutcome>,
}

/// What applying one entry did.
pub struct Effect {
    /// For the core; `None` for a no-op.
    pub write: Option<AppliedWrite>,
    /// The command, when it changed the state (was not a retry).
    pub fresh: Option<Command>,
}

impl Machine {
    /// Where this replica stands.
    pub fn point(&self) -> AppliedPoint {
        self.point
    }

    /// The newest version of a key.
    pub fn get(&self, key: &[u8]) -> Option<&(Timestamp, Bytes)> {
        self.keys.get(key)
    }

    /// Every key with its newest version.
    pub fn keys(&self) -> &BTreeMap<Bytes, (Timestamp, Bytes)> {
        &self.keys
    }

    /// Applies the next entry of the log.
    pub fn apply(&mut self, entry: &LogEntry) -> Result<Effect, String> {
        if entry.index != self.point.index + 1 {
            return Err(format!("entry {} applied after {}", entry.index, self.point.index));
        }
        let command = Command::decode(&entry.data).map_err(|error| error.to_string())?;
        self.point.index = entry.index;
        self.mix(entry.index);
        self.mix(entry.term);
        let Some(command) = command else {
            return Ok(Effect { write: None, fresh: None });
        };
        self.point.timestamp = command.timestamp;
        let client = command.request.client;
        let session = self.sessions.entry(client).or_default();
        let known = session.replies.get(&command.request.sequence).copied();
        let forgotten = command.request.sequence < session.answered_below;
        let (outcome, fresh) = if known.is_some() || forgotten {
            (known, None)
        } else {
            (Some(self.change(&command)), Some(command))
        };
        self.mix(outcome.map_or(0, |outcome| outcome.timestamp.0 as u64));
        let session = self.sessions.entry(client).or_default();
        let applied = session.replies.last_key_value().map_or(0, |(sequence, _)| *sequence);
        let newest_sequence = applied.max(session.answered_below.saturating_sub(1));
        let AppliedPoint { index, .. } = self.point;
        let write = AppliedWrite { index, term: entry.term, outcome, newest_sequence };
        Ok(Effect { write: Some(write), fresh })
    }

    fn change(&mut self, command: &Command) -> WriteOutcome {
        let existed = match &command.op {
            WriteOp::Put { key, value } => {
                self.keys.insert(key.clone(), (command.timestamp, value.clone())).is_some()
            }
            WriteOp::Del { key } => self.keys.remove(key).is_some(),
        };
        let outcome = WriteOutcome { timestamp: command.timestamp, existed };
        let session = self.sessions.entry(command.request.client).or_default();
        session.answered_below = session.answered_below.max(command.request.answered_below);
        session.replies.insert(command.request.sequence, outcome);
        session.replies = session.replies.split_off(&session.answered_below);
        outcome
    }

    fn mix(&mut self, word: u64) {
        self.point.hash =
            (self.point.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
