//! The replicated state machine, as a model small enough to be obviously right: a copy of the whole
//! visible store for every moment that it changed, sessions for exactly-once application, a rolling hash.
//!
//! The simulation is about the core, and this is what its outcomes are compared with. That the real
//! store says the same as copies of everything do is for `tests/versions_model.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use acervo::command::{Action, Command, History, Upkeep, WriteOp, WriteOutcome};
use acervo::node::{AppliedWrite, Swept, UpkeepState};
use acervo::types::{AppliedPoint, ClientId, LogEntry, RequestId, Timestamp};
use acervo::wire::message::Previous;
use bytes::Bytes;

/// The versions of a key.
pub type Versions = BTreeMap<Timestamp, Bytes>;

/// Everything that is visible at one moment. What two moments have in common they share.
pub type State = BTreeMap<Bytes, Arc<Versions>>;

/// The newest version of a key that is not newer than `at`.
pub fn newest<'a>(state: &'a State, key: &[u8], at: Timestamp) -> Option<(Timestamp, &'a Bytes)> {
    let (version, value) = state.get(key)?.range(..=at).next_back()?;
    Some((*version, value))
}

/// A replica's state. Cloning it is taking a checkpoint.
#[derive(Clone, Default)]
pub struct Machine {
    point: AppliedPoint,
    /// The visible store after each command, by the command's time.
    moments: BTreeMap<Timestamp, Arc<State>>,
    /// When something was removed that has not been purged.
    removals: BTreeSet<Timestamp>,
    /// What was seen before this may be gone.
    purged: Timestamp,
    sessions: BTreeMap<ClientId, Session>,
}

#[derive(Clone, Default)]
struct Session {
    answered_below: u64,
    replies: BTreeMap<u64, Timestamp>,
}

/// What applying one entry did.
#[derive(Default)]
pub struct Effect {
    /// For the core; `None` where no client's write was.
    pub write: Option<AppliedWrite>,
    /// For the core, of a sweep.
    pub swept: Option<Swept>,
    /// The command, when it was carried out (was not a retry).
    pub fresh: Option<Command>,
    /// The time of the command, carried out or not.
    pub timestamp: Option<Timestamp>,
}

impl Machine {
    /// Where this replica stands.
    pub fn point(&self) -> AppliedPoint {
        self.point
    }

    /// Everything visible now.
    pub fn now(&self) -> Arc<State> {
        self.moments.last_key_value().map(|(_, state)| state.clone()).unwrap_or_default()
    }

    /// Everything visible at that moment; `None` when some of it has been purged.
    pub fn seen(&self, seen: Timestamp) -> Option<Arc<State>> {
        if seen < self.purged {
            return None;
        }
        let moment = self.moments.range(..=seen).next_back();
        Some(moment.map(|(_, state)| state.clone()).unwrap_or_default())
    }

    /// What was seen before this may be gone.
    pub fn purged(&self) -> Timestamp {
        self.purged
    }

    /// What is left to do in the background.
    pub fn upkeep(&self) -> UpkeepState {
        UpkeepState { oldest_removal: self.removals.first().copied(), swept: None }
    }

    /// Applies the next entry of the log. `answering`: somebody waits for what keys had before.
    pub fn apply(&mut self, entry: &LogEntry, answering: bool) -> Result<Effect, String> {
        if entry.index != self.point.index + 1 {
            return Err(format!("entry {} applied after {}", entry.index, self.point.index));
        }
        let command = Command::decode(&entry.data).map_err(|error| error.to_string())?;
        self.point.index = entry.index;
        self.mix(entry.index);
        self.mix(entry.term);
        let Some(command) = command else { return Ok(Effect::default()) };
        self.point.timestamp = command.timestamp;
        let mut effect = Effect { timestamp: Some(command.timestamp), ..Effect::default() };
        match &command.action {
            Action::Upkeep(upkeep) => {
                effect.swept = self.tidy(command.timestamp, upkeep);
                effect.fresh = Some(command);
            }
            Action::Write { request, op, previous } => {
                let wanted = op.key().filter(|_| answering && *previous);
                let (outcome, fresh) = self.write(command.timestamp, request, op);
                let mut write = AppliedWrite {
                    index: entry.index,
                    term: entry.term,
                    outcome: outcome.map(|timestamp| WriteOutcome { timestamp, refused: false }),
                    previous: None,
                    newest_sequence: self.newest_sequence(request.client),
                };
                if let (Some(timestamp), Some(key)) = (outcome, wanted) {
                    match self.seen(Timestamp(timestamp.0 - 1)) {
                        Some(before) => write.previous = Some(previous_of(&before, key)),
                        // A retry so late that nobody can tell any more.
                        None => write.outcome = None,
                    }
                }
                effect.write = Some(write);
                effect.fresh = fresh.then_some(command);
            }
        }
        Ok(effect)
    }

    /// The time at which the request was carried out, unless it is forgotten, and whether that was now.
    fn write(
        &mut self,
        now: Timestamp,
        request: &RequestId,
        op: &WriteOp,
    ) -> (Option<Timestamp>, bool) {
        let session = self.sessions.entry(request.client).or_default();
        if request.sequence < session.answered_below {
            return (None, false);
        }
        if let Some(timestamp) = session.replies.get(&request.sequence) {
            return (Some(*timestamp), false);
        }
        session.answered_below = session.answered_below.max(request.answered_below);
        session.replies.insert(request.sequence, now);
        session.replies = session.replies.split_off(&session.answered_below);
        self.change(now, op);
        (Some(now), true)
    }

    fn newest_sequence(&self, client: ClientId) -> u64 {
        let Some(session) = self.sessions.get(&client) else { return 0 };
        let applied = session.replies.last_key_value().map_or(0, |(sequence, _)| *sequence);
        applied.max(session.answered_below.saturating_sub(1))
    }

    fn change(&mut self, now: Timestamp, op: &WriteOp) {
        let before = self.now();
        let mut state = State::clone(&before);
        match op {
            WriteOp::Put { key, value } => put(&mut state, now, key, value),
            WriteOp::PutAll { pairs } => {
                pairs.iter().for_each(|(key, value)| put(&mut state, now, key, value));
            }
            WriteOp::Del { key } => drop(state.remove(key)),
            WriteOp::DelAll { keys } => keys.iter().for_each(|key| drop(state.remove(key))),
            WriteOp::DelRange { from, to } => state.retain(|key, _| key < from || to < key),
            WriteOp::Trim { key } => {
                if let Some(versions) = state.get_mut(key).map(Arc::make_mut) {
                    *versions = versions.pop_last().into_iter().collect();
                }
            }
            WriteOp::Mark => {}
        }
        let oldest =
            |state: &State, key| state.get(key).and_then(|v| Some(*v.first_key_value()?.0));
        if before.keys().any(|key| oldest(&state, key) != oldest(&before, key)) {
            self.removals.insert(now);
        }
        self.stand(now, state);
    }

    fn tidy(&mut self, now: Timestamp, upkeep: &Upkeep) -> Option<Swept> {
        match upkeep {
            Upkeep::Purge { before } => {
                // One at a time, as a large one takes several.
                if let Some(oldest) = self.removals.first().copied().filter(|at| at <= before) {
                    self.removals.remove(&oldest);
                    self.purged = self.purged.max(oldest);
                    let from = self.moments.range(..=oldest).next_back().map(|(at, _)| *at);
                    self.moments = self.moments.split_off(&from.unwrap_or_default());
                }
                self.stand(now, State::clone(&self.now()));
                None
            }
            Upkeep::Sweep { history, as_of, .. } => {
                let kept = match history {
                    History::All => usize::MAX,
                    History::For { .. } => 1,
                    History::Versions { count } => *count as usize,
                };
                let mut state = State::clone(&self.now());
                for versions in state.values_mut() {
                    let old = versions.range(..=*as_of).rev().skip(kept).map(|(at, _)| *at);
                    for at in old.collect::<Vec<_>>() {
                        Arc::make_mut(versions).remove(&at);
                    }
                }
                self.stand(now, state);
                Some(Swept { next: None })
            }
        }
    }

    fn stand(&mut self, now: Timestamp, state: State) {
        self.mix(now.0 as u64);
        self.mix(state.values().map(|versions| versions.len()).sum::<usize>() as u64);
        self.moments.insert(now, Arc::new(state));
    }

    fn mix(&mut self, word: u64) {
        self.point.hash =
            (self.point.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

fn put(state: &mut State, now: Timestamp, key: &Bytes, value: &Bytes) {
    Arc::make_mut(state.entry(key.clone()).or_default()).insert(now, value.clone());
}

/// What a write says of its key's past.
pub fn previous_of(before: &State, key: &Bytes) -> Previous {
    match newest(before, key, Timestamp(i64::MAX)) {
        Some((timestamp, value)) => Previous { timestamp, value: Some(value.clone()) },
        None => Previous { timestamp: Timestamp::ZERO, value: None },
    }
}
