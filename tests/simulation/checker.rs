//! What must always hold, whatever happens to the servers.
//!
//! The checker knows everything: it sees what every replica applies and builds from it the one
//! history that all must share. Each rule is checked where it can first be broken.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::model::{Expected, Model, Written};
use acervo::model::{
    Action, AppliedPoint, AppliedWrite, ClientId, Command, KeyInterval, LogEntry, LogIndex, NodeId,
    PageOf, Row, StateLimits, Term, Timestamp, TxnAnswer, WriteFate,
};
use acervo::wire::message::WriteRequest;

use crate::disk::Disk;
use crate::leases::LeaseBook;
use crate::machine::Machine;
use crate::reads::Looked;
use crate::watchers::{Changed, Place};

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

/// The history that every replica must share.
pub struct Checker {
    first_leader: NodeId,
    leaders: BTreeMap<Term, NodeId>,
    entries: Vec<Entry>,
    newest: Timestamp,
    /// Writes whose clients were told a version before any replica had applied them.
    promised: HashMap<(ClientId, u64), Timestamp>,
    /// Writes whose clients were told that nothing was done, and believed it.
    not_done: HashSet<(ClientId, u64)>,
    /// Writes whose clients were told that they are done, though not with which version.
    done: HashSet<(ClientId, u64)>,
    index_by_timestamp: HashMap<Timestamp, LogIndex>,
    commit: LogIndex,
    /// What the state must be.
    pub model: Model,
    /// What was seen as of old versions.
    pub looked: Looked,
    pub leases: LeaseBook,
    /// What the state machines go by.
    pub limits: StateLimits,
}

/// An entry of the one history.
struct Entry {
    entry: LogEntry,
    /// The hash of the state after it, once a replica has told.
    hash: Option<u64>,
    /// What it must come to, if it is a client's write.
    expected: Option<Expected>,
    /// What became of it at the replica that applied it first.
    fate: Option<WriteFate>,
}

impl Checker {
    /// An empty history; `first_leader` must lead first.
    pub fn new(first_leader: NodeId, limits: StateLimits) -> Checker {
        Checker {
            first_leader,
            leaders: BTreeMap::new(),
            entries: Vec::new(),
            newest: Timestamp::ZERO,
            promised: HashMap::new(),
            not_done: HashSet::new(),
            done: HashSet::new(),
            index_by_timestamp: HashMap::new(),
            commit: 0,
            model: Model::new(limits),
            looked: Looked::default(),
            leases: LeaseBook::default(),
            limits,
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

    /// The first change of a range that comes after a place.
    pub fn next_change(&self, range: &KeyInterval, after: &Place) -> Option<&Changed> {
        self.model.next_change(range, after)
    }

    /// Up to where anything may be gone.
    pub fn horizon(&self) -> Timestamp {
        self.model.horizon()
    }

    /// The rows of a range as of a version.
    pub fn state_at(&self, range: &KeyInterval, at: Timestamp) -> Vec<Row> {
        let of = PageOf::Range { from: range.from.clone(), to: range.to.clone() };
        self.model.seen_from(at).rows(&of, at)
    }

    /// Terms that had a leader.
    pub fn terms_led(&self) -> usize {
        self.leaders.len()
    }

    /// A replica applied entries at once: all apply the same, with equal effect. `answering`: what
    /// keys had before was to be told.
    pub fn applied(
        &mut self,
        entries: &[LogEntry],
        writes: &[AppliedWrite],
        answering: bool,
        after: AppliedPoint,
        now_us: u64,
    ) -> Verdict {
        let mut writes = writes.iter();
        for entry in entries {
            let position = entry.index as usize - 1;
            if position == self.entries.len() {
                // Whether too much is being removed already, and whether a range is too long, the
                // first replica says.
                let fate = writes.as_slice().first().map(|write| &write.fate);
                self.take(entry, fate, now_us)?;
            }
            let Some(known) = self.entries.get_mut(position) else {
                return Err(Violation(format!("applied {} past the history", entry.index)));
            };
            let told = &known.entry;
            ensure!(told == entry, "applied {entry:?} where another applied {told:?}");
            if entry.index == after.index {
                let hash = *known.hash.get_or_insert(after.hash);
                ensure!(hash == after.hash, "state hashes differ at index {}", entry.index);
            }
            let Some(expected) = &known.expected else { continue };
            let Some(write) = writes.next() else {
                return Err(Violation(format!("no outcome of {entry:?}")));
            };
            came_to(write, entry, expected, answering)?;
            // Where nobody waits, nobody looks what was before.
            let mut fate = write.fate.clone();
            if let WriteFate::Answered(answer) = &mut fate {
                (answer.previous, answer.txn) = (None, None);
            }
            let first = known.fate.get_or_insert(fate.clone());
            ensure!(*first == fate, "{write:?} came to {first:?} elsewhere");
        }
        ensure!(writes.next().is_none(), "more outcomes than writes up to {}", after.index);
        Ok(())
    }

    /// An entry joins the history.
    fn take(&mut self, entry: &LogEntry, fate: Option<&WriteFate>, now_us: u64) -> Verdict {
        let leases_before = self.model.leases.clone();
        let command = Command::decode(&entry.data).map_err(|error| error.to_string())?;
        let expected = self.model.apply(command.as_ref(), fate);
        if let Some(Command { timestamp, action, .. }) = &command {
            let (newest, index) = (self.newest, entry.index);
            ensure!(*timestamp > newest, "timestamp {timestamp} after {newest} at index {index}");
            self.newest = *timestamp;
            if let Action::Rules(rules) = action {
                self.limits = self.model.rules().map_or(rules.limits, |rules| rules.limits);
            }
            self.index_by_timestamp.insert(*timestamp, index);
            let is_record = matches!(action, Action::Leases(_));
            let events = self.model.leases.changes_since(&leases_before, action);
            self.leases.changed(now_us, &events, is_record)?;
            if let Action::Write { request, .. } = action {
                let told = self.not_done.contains(&(request.client, request.sequence));
                ensure!(!told, "{request:?} was not to be done, and took effect");
            }
            if let Action::Write { request, .. } = action
                && let Some(Expected::Outcome(Written { timestamp: applied, .. })) = &expected
                && applied == timestamp
                && let Some(promised) = self.promised.remove(&(request.client, request.sequence))
            {
                let applied = *applied;
                ensure!(promised == applied, "{request:?}, answered {promised}, became {applied}");
            }
        }
        self.entries.push(Entry { entry: entry.clone(), hash: None, expected, fate: None });
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
        let applied = applied.map(|index| (*index, self.entries[*index as usize - 1].entry.term));
        // Two leaders may have given out one timestamp, of which one write comes to nothing.
        let candidates = disks.iter().filter_map(|disk| disk.find(timestamp)).chain(applied);
        let mut durable = candidates.filter(|(index, term)| majority_holds(disks, *index, *term));
        let holds = |node: &NodeId, (index, term): (LogIndex, Term)| {
            disks[node.0 as usize - 1].holds(index, term)
        };
        let Some(first) = durable.next() else {
            return Err(Violation(format!(
                "version {timestamp} acknowledged, but no majority has it durably"
            )));
        };
        let in_sync_too =
            |candidate: (LogIndex, Term)| in_sync.iter().all(|node| holds(node, candidate));
        ensure!(
            in_sync_too(first) || durable.any(in_sync_too),
            "version {timestamp} acknowledged, but not all of {in_sync:?} in sync have stored \
             {first:?}"
        );
        Ok(())
    }

    /// A client was told that its write is not done, and will not ask again.
    pub fn not_done(&mut self, client: ClientId, sequence: u64) -> Verdict {
        let written = self.written(client, sequence).is_some();
        ensure!(!written, "write {sequence} of {client:?}, said not to be done, is applied");
        self.not_done.insert((client, sequence));
        Ok(())
    }

    /// A client was told that its write is done.
    pub fn done(&mut self, client: ClientId, sequence: u64) {
        self.done.insert((client, sequence));
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

    /// Whether what was just before a write may be off the disk by now.
    pub fn is_off_the_disk(&self, write: &WriteRequest) -> bool {
        let written = self.written(write.request.client, write.request.sequence);
        let moment = self.model.moment(self.last_index());
        let gone = moment.purged.max(moment.swept);
        written.is_some_and(|written| written.timestamp <= gone)
    }

    /// A write that its client has no answer to was refused as forgotten: its session must have
    /// been short of room.
    pub fn forgotten(&self, write: &WriteRequest) -> Verdict {
        let written = self.written(write.request.client, write.request.sequence);
        let replies_max =
            self.limits.session_replies_total_max.min(self.limits.session_replies_max);
        let default = StateLimits::default();
        // Its session, or what that remembered, may have ended while servers handed it on.
        let is_lost = replies_max < default.session_replies_max
            || self.limits.sessions_max < default.sessions_max
            || self.limits.session_expiry_us < default.session_expiry_us;
        ensure!(is_lost, "{write:?} was refused as answered before; it became {written:?}");
        Ok(())
    }

    /// All is quiet: what clients were told has come true.
    pub fn kept(&self) -> Verdict {
        ensure!(self.promised.is_empty(), "answered, never applied: {:?}", self.promised);
        for (client, sequence) in &self.done {
            let written = self.written(*client, *sequence).is_some();
            ensure!(written, "write {sequence} of {client:?}, said to be done, never was");
        }
        Ok(())
    }

    /// What became of a write; `None` when no replica has applied it.
    pub fn written(&self, client: ClientId, sequence: u64) -> Option<&Written> {
        self.model.written(client, sequence)
    }

    /// The last index of the history.
    pub fn last_index(&self) -> LogIndex {
        self.model.last_index()
    }

    /// A replica holds exactly what the model holds.
    pub fn converged(&self, node: NodeId, machine: &Machine) -> Verdict {
        self.whole(&machine.store(), machine.point().index).map_err(|Violation(reason)| {
            Violation(format!("{node} ended with another state: {reason}"))
        })
    }
}

/// A replica applied a write: with the outcome that the model has.
fn came_to(
    write: &AppliedWrite,
    entry: &LogEntry,
    expected: &Expected,
    answering: bool,
) -> Verdict {
    let (index, term) = (entry.index, entry.term);
    ensure!((write.index, write.term) == (index, term), "{write:?} stands for {index}/{term}");
    let written = match expected {
        Expected::Forgotten => {
            ensure!(write.fate == WriteFate::Forgotten, "{write:?} should have been forgotten");
            return Ok(());
        }
        Expected::UnknownSession => {
            ensure!(
                write.fate == WriteFate::UnknownSession,
                "{write:?} is of a client without a session"
            );
            return Ok(());
        }
        Expected::Twice(before) => {
            return Err(Violation(format!("{write:?} was applied before: {before:?}")));
        }
        Expected::Refused => {
            ensure!(
                write.fate == WriteFate::Refused,
                "{write:?} should have been refused, as elsewhere"
            );
            return Ok(());
        }
        Expected::Outcome(written) | Expected::OutcomeWithoutPrevious(written) => written,
    };
    let WriteFate::Answered(answer) = &write.fate else {
        return Err(Violation(format!("{write:?} should have become {written:?}")));
    };
    let as_written = answer.timestamp == written.timestamp && answer.result == written.result;
    ensure!(as_written, "{write:?} should have become {written:?}");
    let previous = written.previous.as_ref().filter(|_| answering);
    let is_gone = matches!(expected, Expected::OutcomeWithoutPrevious(_));
    let as_it_was = answer.previous.as_ref() == previous || is_gone && answer.previous.is_none();
    ensure!(as_it_was, "{write:?} should have told {previous:?}");
    let txn = written.txn.as_ref().filter(|_| answering);
    let told = answer.txn.as_deref();
    let without = txn.map(|txn| TxnAnswer { results: None, ..txn.clone() });
    ensure!(
        told == txn || is_gone && told == without.as_ref(),
        "{write:?} should have told {txn:?}"
    );
    Ok(())
}

fn majority_holds(disks: &[&Disk], index: LogIndex, term: Term) -> bool {
    disks.iter().filter(|disk| disk.holds(index, term)).count() * 2 > disks.len()
}
