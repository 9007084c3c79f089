//! What must always hold, whatever happens to the servers.
//!
//! The checker knows everything: it sees what every replica applies and builds from it the one
//! history that all must share. Each rule is checked where it can first be broken.

use std::collections::{BTreeMap, HashMap};

use acervo::command::WriteOp;
use acervo::types::{ClientId, LogEntry, LogIndex, NodeId, Term, Timestamp};
use bytes::Bytes;

use crate::disk::Disk;
use crate::machine::{Effect, Machine};

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

/// One version of a key: a value, or its deletion.
#[derive(Clone, Debug)]
pub struct Version {
    /// Where in the log.
    pub index: LogIndex,
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// `None` for a deletion.
    pub value: Option<Bytes>,
}

/// A write the history holds.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Its version.
    pub timestamp: Timestamp,
    /// Whether the key existed before.
    pub existed: bool,
}

/// The history that every replica must share.
pub struct Checker {
    first_leader: NodeId,
    leaders: BTreeMap<Term, NodeId>,
    entries: Vec<(LogEntry, u64)>,
    newest: Timestamp,
    writes: HashMap<(ClientId, u64), Written>,
    /// Writes whose clients were told a version before any replica had applied them.
    promised: HashMap<(ClientId, u64), Timestamp>,
    index_by_timestamp: HashMap<Timestamp, LogIndex>,
    versions: BTreeMap<Bytes, Vec<Version>>,
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
            versions: BTreeMap::new(),
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
        if effect.write.is_some() {
            let timestamp = after.point().timestamp;
            ensure!(
                timestamp > self.newest,
                "timestamp {timestamp} after {} at index {}",
                self.newest,
                entry.index
            );
            self.newest = timestamp;
            self.index_by_timestamp.insert(timestamp, entry.index);
        }
        let (Some(command), Some(write)) = (&effect.fresh, &effect.write) else { return Ok(()) };
        let Some(outcome) = write.outcome else { return Ok(()) };
        let request = (command.request.client, command.request.sequence);
        let written = Written { timestamp: outcome.timestamp, existed: outcome.existed };
        let before = self.writes.insert(request, written);
        ensure!(before.is_none(), "write {request:?} was applied twice");
        if let Some(promised) = self.promised.remove(&request) {
            let applied = outcome.timestamp;
            ensure!(promised == applied, "{request:?}, answered {promised}, became {applied}");
        }
        let value = match &command.op {
            WriteOp::Put { value, .. } => Some(value.clone()),
            WriteOp::Del { .. } => None,
        };
        self.versions.entry(command.op.key().clone()).or_default().push(Version {
            index: entry.index,
            timestamp: outcome.timestamp,
            value,
        });
        Ok(())
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
        let applied = self.written(client, sequence).map(|written| written.timestamp);
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

    /// What became of a write; `None` when no replica has applied it.
    pub fn written(&self, client: ClientId, sequence: u64) -> Option<Written> {
        self.writes.get(&(client, sequence)).copied()
    }

    /// The newest version of a key, deletions included, once `index` is applied.
    pub fn version_at(&self, key: &[u8], index: LogIndex) -> Option<&Version> {
        let versions = self.versions.get(key)?;
        let after = versions.partition_point(|version| version.index <= index);
        versions[..after].last()
    }

    /// The last index of the history.
    pub fn last_index(&self) -> LogIndex {
        self.entries.len() as u64
    }

    /// A replica at the end of the history holds exactly the newest versions.
    pub fn converged(&self, node: NodeId, machine: &Machine) -> Verdict {
        let expected: BTreeMap<&Bytes, (Timestamp, &Bytes)> = self
            .versions
            .iter()
            .filter_map(|(key, versions)| {
                let newest = versions.last()?;
                Some((key, (newest.timestamp, newest.value.as_ref()?)))
            })
            .collect();
        let held: BTreeMap<&Bytes, (Timestamp, &Bytes)> =
            machine.keys().iter().map(|(key, (ts, value))| (key, (*ts, value))).collect();
        ensure!(expected == held, "{node} ended with {held:?}, not {expected:?}");
        Ok(())
    }
}

fn majority_holds(disks: &[&Disk], index: LogIndex, term: Term) -> bool {
    disks.iter().filter(|disk| disk.holds(index, term)).count() * 2 > disks.len()
}
