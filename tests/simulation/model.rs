//! The store as everybody would like to think of it: after every entry of the log a copy of the
//! whole map from keys to versions, so that reading as of `at`, as seen from `seen`, is to take the copy
//! of that moment and look up the greatest version.
//!
//! Nothing ever leaves the disk here. Of what upkeep may have taken away it only keeps the time up to
//! which: what lies past it must still be answered exactly.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use acervo::command::{Action, Command, Upkeep, WriteOp};
use acervo::types::{ClientId, LogIndex, RequestId, Timestamp};
use acervo::wire::message::{PageOf, Previous, Row};
use bytes::Bytes;

/// A key's versions.
type Versions = BTreeMap<Timestamp, Bytes>;

/// The store after an entry. Copies share the versions of the keys that have not changed.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Of the last command.
    pub timestamp: Timestamp,
    /// What was removed up to here may be off the disk.
    pub purged: Timestamp,
    /// What versions before this were replaced by later ones up to it may be gone.
    pub swept: Timestamp,
    state: BTreeMap<Bytes, Rc<Versions>>,
}

/// A write the history holds.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its version.
    pub timestamp: Timestamp,
    /// What its one key had just before.
    pub previous: Option<Previous>,
    /// The keys whose newest state it made.
    pub keys: Vec<Bytes>,
}

/// What applying a write comes to.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Its first application's outcome.
    Outcome(Written),
    /// The same, or nothing when what was before is off the disk.
    OutcomeOrExpired(Written),
    /// Its client had declared it answered.
    Forgotten,
    /// It was not carried out: too many long ranges are being removed.
    Refused,
}

/// The whole history.
pub struct Model {
    /// After each index; at 0 the empty store.
    moments: Vec<Moment>,
    writes: HashMap<(ClientId, u64), Written>,
    answered_below: HashMap<ClientId, u64>,
    /// When the newest state of each key changed: in log order, with the version or deletion.
    changes: BTreeMap<Bytes, Vec<(LogIndex, Timestamp)>>,
}

fn row(key: &Bytes, found: Option<(&Timestamp, &Bytes)>) -> Row {
    let timestamp = found.map_or(Timestamp::ZERO, |(timestamp, _)| *timestamp);
    Row { key: key.clone(), value: found.map(|(_, value)| value.clone()), timestamp }
}

impl Moment {
    /// A key's newest version up to `at`; without a value when there is none.
    pub fn get(&self, key: &Bytes, at: Timestamp) -> Row {
        row(key, self.state.get(key).and_then(|versions| versions.range(..=at).next_back()))
    }

    /// Everything that a page and those after it are to show as of `at`.
    pub fn rows(&self, of: &PageOf, at: Timestamp) -> Vec<Row> {
        match of {
            PageOf::Range { from, to } => {
                let keys = self.state.keys().filter(|key| from <= *key && *key <= to);
                let rows = keys.map(|key| self.get(key, at));
                rows.filter(|row| row.value.is_some()).collect()
            }
            PageOf::Keys { keys } => keys.iter().map(|key| self.get(key, at)).collect(),
            PageOf::Versions { key } => {
                let versions = self.state.get(key).into_iter().flat_map(|v| v.range(..=at).rev());
                versions.map(|version| row(key, Some(version))).collect()
            }
        }
    }

    /// Every key that has a value.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.state.keys()
    }

    fn change(&mut self, now: Timestamp, op: &WriteOp) {
        let mut put = |key: &Bytes, value: &Bytes| {
            let versions = self.state.entry(key.clone()).or_default();
            Rc::make_mut(versions).insert(now, value.clone());
        };
        match op {
            WriteOp::Put { key, value } => put(key, value),
            WriteOp::PutAll { pairs } => pairs.iter().for_each(|(key, value)| put(key, value)),
            WriteOp::Del { key } => drop(self.state.remove(key)),
            WriteOp::DelAll { keys } => keys.iter().for_each(|key| drop(self.state.remove(key))),
            WriteOp::DelRange { from, to } => self.state.retain(|key, _| key < from || to < key),
            WriteOp::Trim { key } => {
                if let Some(versions) = self.state.get_mut(key) {
                    let newest = versions.last_key_value().map(|(at, value)| (*at, value.clone()));
                    *versions = Rc::new(newest.into_iter().collect());
                }
            }
            WriteOp::Mark => {}
        }
    }
}

impl Model {
    /// Nothing has happened.
    pub fn new() -> Model {
        Model {
            moments: vec![Moment::default()],
            writes: HashMap::new(),
            answered_below: HashMap::new(),
            changes: BTreeMap::new(),
        }
    }

    /// Applies the next entry, which is `None` for a no-op; what a write must come to. `refused`: the
    /// first replica that applied it did not carry it out.
    pub fn apply(&mut self, command: Option<&Command>, refused: bool) -> Option<Expected> {
        let mut moment = self.moments.last().cloned().unwrap_or_default();
        let mut expected = None;
        if let Some(Command { timestamp, action }) = command {
            moment.timestamp = *timestamp;
            match action {
                Action::Upkeep(Upkeep::Purge { before, .. }) => {
                    moment.purged = moment.purged.max(*before);
                }
                Action::Upkeep(Upkeep::Sweep { as_of, .. }) => {
                    moment.swept = moment.swept.max(*as_of);
                }
                Action::Write { request, op, previous } => {
                    expected = Some(self.write(&mut moment, request, op, *previous, refused));
                }
            }
        }
        self.moments.push(moment);
        expected
    }

    fn write(
        &mut self,
        moment: &mut Moment,
        request: &RequestId,
        op: &WriteOp,
        previous: bool,
        refused: bool,
    ) -> Expected {
        let answered_below = self.answered_below.entry(request.client).or_default();
        *answered_below = request.answered_below.max(*answered_below);
        if request.sequence < *answered_below {
            return Expected::Forgotten;
        }
        let name = (request.client, request.sequence);
        if let Some(written) = self.writes.get(&name).cloned() {
            let before = Timestamp(written.timestamp.0 - 1);
            let gone = before < moment.purged || before < moment.swept;
            return match previous && op.key().is_some() && gone {
                true => Expected::OutcomeOrExpired(written),
                false => Expected::Outcome(written),
            };
        }
        if refused && matches!(op, WriteOp::DelRange { .. }) {
            return Expected::Refused;
        }
        let now = moment.timestamp;
        let newest = op.key().filter(|_| previous).map(|key| moment.get(key, now));
        let previous = newest.map(|Row { timestamp, value, .. }| Previous { timestamp, value });
        let keys: Vec<Bytes> = match op {
            WriteOp::Trim { .. } | WriteOp::Mark => Vec::new(),
            // Of keys that nobody ever wrote nobody can tell that they were removed.
            WriteOp::DelRange { from, to } => {
                self.changes.keys().filter(|key| from <= *key && *key <= to).cloned().collect()
            }
            named => named.pairs().map(|(key, _)| key.clone()).collect(),
        };
        for key in &keys {
            let index = self.moments.len() as u64;
            self.changes.entry(key.clone()).or_default().push((index, now));
        }
        moment.change(now, op);
        let written = Written { timestamp: now, previous, keys };
        self.writes.insert(name, written.clone());
        Expected::Outcome(written)
    }

    /// The store once `index` was applied.
    pub fn moment(&self, index: LogIndex) -> &Moment {
        &self.moments[index as usize]
    }

    /// The store as it was at a time.
    pub fn seen_from(&self, seen: Timestamp) -> &Moment {
        let after = self.moments.partition_point(|moment| moment.timestamp <= seen);
        &self.moments[after.max(1) - 1]
    }

    /// The last index.
    pub fn last_index(&self) -> LogIndex {
        self.moments.len() as u64 - 1
    }

    /// What became of a write.
    pub fn written(&self, client: ClientId, sequence: u64) -> Option<&Written> {
        self.writes.get(&(client, sequence))
    }

    /// When the newest state of a key was made that stands once `index` is applied, by a value or by
    /// a deletion; 0 for never.
    pub fn changed(&self, key: &Bytes, index: LogIndex) -> Timestamp {
        let Some(changes) = self.changes.get(key) else { return Timestamp::ZERO };
        let after = changes.partition_point(|(at, _)| *at <= index);
        changes[..after].last().map_or(Timestamp::ZERO, |(_, timestamp)| *timestamp)
    }

    /// Every key that was ever written or deleted.
    pub fn known_keys(&self) -> impl Iterator<Item = &Bytes> {
        self.changes.keys()
    }
}
