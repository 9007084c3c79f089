//! What must always hold, whatever happens to the servers.
//!
//! The checker knows everything: it sees what every replica applies and builds from it the one
//! history that all must share. Each rule is checked where it can first be broken.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use acervo::command::Action;
use acervo::types::{ClientId, LogEntry, LogIndex, NodeId, Term, Timestamp};
use bytes::Bytes;

use crate::disk::Disk;
use crate::machine::{Effect, Machine, State, newest};

/// A broken promise, in one sentence.
#[derive(Debug)]
pub struct Violation(pub String);

/// Whether all is well.
pub type Verdict = Result<(), Violation>;

impl From<String> for Violation {
    fn from(reason: String) -> Violation {
        Violation(reason)
    }
}

/// Fails with a violation unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::checker::Violation(format!($($reason)+)));
        }
    };
}
pub(crate) use ensure;

/// A moment of the history.
#[derive(Clone)]
struct Moment {
    index: LogIndex,
    timestamp: Timestamp,
    state: Arc<State>,
}

/// The history that every replica must share.
pub struct Checker {
    first_leader: NodeId,
    leaders: BTreeMap<Term, NodeId>,
    entries: Vec<(LogEntry, u64)>,
    newest: Timestamp,
    /// When each write was carried out.
    writes: HashMap<(ClientId, u64), Timestamp>,
    /// Writes whose clients were told a version before any replica had applied them.
    promised: HashMap<(ClientId, u64), Timestamp>,
    index_by_timestamp: HashMap<Timestamp, LogIndex>,
    /// The visible store after each command.
    moments: Vec<Moment>,
    /// When the newest version of a key changed, deletions included.
    changes: BTreeMap<Bytes, Vec<Timestamp>>,
    /// What was seen before this may be gone.
    purged: Timestamp,
    commit: LogIndex,
}

impl Checker {
    /// An empty history; `first_leader` must lead first.
    pub fn new(first_leader: NodeId) -> Checker {
        Checker {
            first_leader,
            leaders: BTreeMap::new(),
            entries: Vec::new(),
            newest: Timestamp::ZERO,
            writes: HashMap::new(),
            promised: HashMap::new(),
            index_by_timestamp: HashMap::new(),
            moments: Vec::new(),
            changes: BTreeMap::new(),
            purged: Timestamp::ZERO,
            commit: 0,
        }
    }

    /// A server says it leads: nobody else may have in that term. The named one leads first, unless
    /// the group was `undisturbed` no longer when it was born.
    pub fn leads(&mut self, node: NodeId, term: Term, undisturbed: bool) -> Verdict {
        if self.leaders.is_empty() && undisturbed {
            ensure!(node == self.first_leader, "{node} led first, not {}", self.first_leader);
        }
        let leader = *self.leaders.entry(term).or_insert(node);
        ensure!(leader == node, "both {leader} and {node} lead in term {term}");
        Ok(())
    }

    /// Terms that had a leader.
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// A replica applied an entry: all apply the same, with equal effect.
    pub fn applied(&mut self, entry: &LogEntry, effect: &Effect, after: &Machine) -> Verdict {
        let position = entry.index as usize - 1;
        let hash = after.point().hash;
        if let Some((known, known_hash)) = self.entries.get(position) {
            ensure!(known == entry, "applied {entry:?} where another applied {known:?}");
            ensure!(*known_hash == hash, "state hashes differ at index {}", entry.index);
            return Ok(());
        }
        ensure!(position == self.entries.len(), "applied {} past the history", entry.index);
        self.entries.push((entry.clone(), hash));
        let Some(timestamp) = effect.timestamp else { return Ok(()) };
        let newest = self.newest;
        ensure!(timestamp > newest, "{timestamp} after {newest} at index {}", entry.index);
        self.newest = timestamp;
        self.index_by_timestamp.insert(timestamp, entry.index);
        let Some(command) = &effect.fresh else { return Ok(()) };
        if let Action::Write { request, .. } = &command.action {
            let request = (request.client, request.sequence);
            let before = self.writes.insert(request, timestamp);
            ensure!(before.is_none(), "write {request:?} was applied twice");
            if let Some(promised) = self.promised.remove(&request) {
                ensure!(
                    promised == timestamp,
                    "{request:?}, answered {promised}, became {timestamp}"
                );
            }
        }
        let (before, state) = (self.newest_state(), after.now());
        for key in before.keys().chain(state.keys()) {
            let changes = self.changes.entry(key.clone()).or_default();
            if newest_version(&before, key) != newest_version(&state, key)
                && changes.last() != Some(&timestamp)
            {
                let swept = matches!(command.action, Action::Upkeep(_));
                ensure!(!swept, "upkeep at index {} changed what {key:?} holds", entry.index);
                changes.push(timestamp);
            }
        }
        self.purged = after.purged();
        self.moments.push(Moment { index: entry.index, timestamp, state });
        Ok(())
    }

    fn newest_state(&self) -> Arc<State> {
        self.moments.last().map(|moment| moment.state.clone()).unwrap_or_default()
    }

    /// A server says the log is committed up to `commit`: a majority has it durably.
    pub fn commits(&mut self, node: NodeId, commit: LogIndex, disks: &[&Disk]) -> Verdict {
        if commit <= self.commit {
            return Ok(());
        }
        self.commit = commit;
        let durable = disks
            .iter()
            .any(|disk| disk.durable_terms(commit).any(|term| majority_holds(disks, commit, term)));
        ensure!(durable, "{node} committed {commit}, which no majority has durably");
        Ok(())
    }

    /// A server acknowledges a write: it is durable on a majority and at every server in sync.
    pub fn acknowledges(
        &self,
        timestamp: Timestamp,
        in_sync: &[NodeId],
        disks: &[&Disk],
    ) -> Verdict {
        let applied = self.index_by_timestamp.get(&timestamp);
        let applied = applied.map(|index| (*index, self.entries[*index as usize - 1].0.term));
        // Two leaders may have given out one timestamp, of which one write comes to nothing.
        let candidates = disks.iter().filter_map(|disk| disk.find(timestamp)).chain(applied);
        let durable =
            candidates.into_iter().find(|(index, term)| majority_holds(disks, *index, *term));
        let Some((index, term)) = durable else {
            return Err(Violation(format!(
                "version {timestamp} acknowledged, but no majority has it durably"
            )));
        };
        for node in in_sync {
            ensure!(
                disks[node.0 as usize - 1].holds(index, term),
                "version {timestamp} acknowledged, but {node} in sync has not stored {index}"
            );
        }
        Ok(())
    }

    /// A client was told that its write has become version `timestamp`, applied already or not.
    pub fn answered(&mut self, client: ClientId, sequence: u64, timestamp: Timestamp) -> Verdict {
        let applied = self.written(client, sequence);
        let known = applied
            .unwrap_or_else(|| *self.promised.entry((client, sequence)).or_insert(timestamp));
        ensure!(
            known == timestamp,
            "write {sequence} of {client:?} answered with version {timestamp}, it is {known}"
        );
        Ok(())
    }

    /// All is quiet: what clients were told has come true.
    pub fn kept(&self) -> Verdict {
        ensure!(self.promised.is_empty(), "answered, never applied: {:?}", self.promised);
        Ok(())
    }

    /// When a write was carried out; `None` when no replica has applied it.
    pub fn written(&self, client: ClientId, sequence: u64) -> Option<Timestamp> {
        self.writes.get(&(client, sequence)).copied()
    }

    /// Everything visible once `index` is applied.
    pub fn state_at(&self, index: LogIndex) -> Arc<State> {
        let after = self.moments.partition_point(|moment| moment.index <= index);
        self.moments[..after].last().map(|moment| moment.state.clone()).unwrap_or_default()
    }

    /// Everything visible at a moment.
    pub fn state_seen(&self, seen: Timestamp) -> Arc<State> {
        let after = self.moments.partition_point(|moment| moment.timestamp <= seen);
        self.moments[..after].last().map(|moment| moment.state.clone()).unwrap_or_default()
    }

    /// The time of the last command that is applied at `index`.
    pub fn time_at(&self, index: LogIndex) -> Timestamp {
        let after = self.moments.partition_point(|moment| moment.index <= index);
        self.moments[..after].last().map_or(Timestamp::ZERO, |moment| moment.timestamp)
    }

    /// The last time up to `seen` that a key got a new newest version, or lost it; 0 for never.
    pub fn changed(&self, key: &[u8], seen: Timestamp) -> Timestamp {
        let changes = self.changes.get(key).map_or(&[][..], Vec::as_slice);
        let after = changes.partition_point(|at| *at <= seen);
        changes[..after].last().copied().unwrap_or_default()
    }

    /// What was seen before this may be gone.
    pub fn purged(&self) -> Timestamp {
        self.purged
    }

    /// The keys whose newest version changed at that time.
    pub fn changed_by(&self, timestamp: Timestamp) -> impl Iterator<Item = &Bytes> {
        let at = move |changes: &[Timestamp]| changes.binary_search(&timestamp).is_ok();
        self.changes.iter().filter(move |(_, changes)| at(changes)).map(|(key, _)| key)
    }

    /// The last index of the history.
    pub fn last_index(&self) -> LogIndex {
        self.entries.len() as u64
    }

    /// A replica holds exactly what the history says.
    pub fn converged(&self, node: NodeId, machine: &Machine) -> Verdict {
        let (expected, held) = (self.state_at(machine.point().index), machine.now());
        ensure!(expected == held, "{node} ended with {held:?}, not {expected:?}");
        Ok(())
    }
}

fn newest_version(state: &State, key: &[u8]) -> Option<Timestamp> {
    newest(state, key, Timestamp(i64::MAX)).map(|(version, _)| version)
}

fn majority_holds(disks: &[&Disk], index: LogIndex, term: Term) -> bool {
    disks.iter().filter(|disk| disk.holds(index, term)).count() * 2 > disks.len()
}
