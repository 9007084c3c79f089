//! The store as everybody would like to think of it: after every entry of the log a copy of the
//! whole map from keys to versions, so that reading as of `at`, as seen from `seen`, is to take the
//! copy of that moment and look up the greatest version.
//!
//! Nothing ever leaves the disk here. Of what garbage collection may have taken away it only keeps
//! the time up to which: what lies past it must still be answered exactly.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use acervo::model::{
    Action, ClientId, Command, Compact, Condition, Del, DelAll, DelRange, Facts, GarbageCollection,
    GroupRules, KeyInterval, KeyState, LeaseId, LeaseName, LeaseRevoke, LogIndex, OpResult,
    Operation, PageOf, Previous, Put, PutAll, PutIf, RequestId, Row, StateLimits, Timestamp, Trim,
    Txn, TxnAnswer, Version, WriteAnswer, WriteFate, WriteOp,
};
use bytes::Bytes;

use crate::leases::ModelLeases;
use crate::plain_transactions::{State, bits, carry_out, deletions, kept_ranges};
use crate::watchers::{Changed, Place};

/// `None` where the key was deleted and its history kept.
type Versions = BTreeMap<Timestamp, Option<Version>>;

/// The store after an entry. Copies share the versions of the keys that have not changed.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    /// Of the last command.
    pub timestamp: Timestamp,
    pub clock_us: u64,
    /// What was removed up to here may be off the disk.
    pub purged: Timestamp,
    /// What versions before this were replaced by later ones up to it may be gone.
    pub swept: Timestamp,
    /// Reads as of versions before this are refused.
    pub compacted: Timestamp,
    state: BTreeMap<Bytes, Rc<Versions>>,
}

/// A write the history holds.
#[derive(Clone, Debug)]
pub struct Written {
    pub timestamp: Timestamp,
    /// What it came to.
    pub result: OpResult,
    /// What its one key had just before.
    pub previous: Option<Previous>,
    /// What it told, if it is a transaction.
    pub txn: Option<TxnAnswer>,
    /// The key that it has only looked at, since its condition did not hold, and the version of its
    /// newest state, a deletion's too.
    pub looked_at: Option<(Bytes, Timestamp)>,
    /// The keys whose newest state it made.
    pub keys: Vec<Bytes>,
}

/// What applying a write comes to.
#[derive(Clone, Debug)]
pub enum Expected {
    /// Its first application's outcome.
    Outcome(Written),
    /// The same, perhaps without what was before, which may be off the disk.
    OutcomeWithoutPrevious(Written),
    /// Its client had declared it answered.
    Forgotten,
    /// Its client has no session, and may have had one.
    UnknownSession,
    /// A server would apply it a second time.
    Twice(Written),
    /// It was not carried out: too many long ranges are being removed.
    Refused,
}

/// What is remembered of a client.
#[derive(Clone, Debug)]
struct Session {
    client: ClientId,
    heard: Timestamp,
    heard_us: u64,
    answered_below: u64,
    replies: BTreeSet<u64>,
}

/// All of them, the one heard of last at the end.
struct Sessions {
    limits: StateLimits,
    all: Vec<Session>,
    /// When the client was last heard of whose session was dropped last.
    known_since: Timestamp,
}

impl Sessions {
    fn new(limits: StateLimits) -> Sessions {
        Sessions { limits, all: Vec::new(), known_since: Timestamp::ZERO }
    }

    /// The session of a client that may write; `None` when it is not known and should be.
    fn admit(&mut self, request: &RequestId, now: Timestamp, now_us: u64) -> Option<&Session> {
        let expiry_us = self.limits.session_expiry_us;
        let is_over = |session: &&Session| session.heard_us + expiry_us < now_us;
        let expired = self.all.iter().take_while(is_over).count();
        self.drop_oldest(expired);
        let at = self.all.iter().position(|session| session.client == request.client);
        if at.is_none() && (request.begun < self.known_since || request.begun >= now) {
            return None;
        }
        let (client, replies) = (request.client, BTreeSet::new());
        let unknown = Session { client, heard: now, heard_us: now_us, answered_below: 0, replies };
        let mut session = at.map_or(unknown, |at| self.all.remove(at));
        (session.heard, session.heard_us) = (now, now_us);
        session.forget_below(request.answered_below);
        self.all.push(session);
        self.drop_oldest(self.all.len().saturating_sub(self.limits.sessions_max as usize));
        self.all.last()
    }

    fn drop_oldest(&mut self, count: usize) {
        let last = self.all.drain(..count).next_back();
        self.known_since = last.map_or(self.known_since, |session| session.heard);
    }

    /// The client heard of last was answered.
    fn record(&mut self, request: &RequestId) {
        let Some(session) = self.all.last_mut() else { return };
        session.replies.insert(request.sequence);
        if session.replies.len() > self.limits.session_replies_max as usize
            && let Some(oldest) = session.replies.first().copied()
        {
            session.forget_below(oldest + 1);
        }
        for at in 0..self.all.len() {
            let total: usize = self.all.iter().map(|session| session.replies.len()).sum();
            if total <= self.limits.session_replies_total_max as usize {
                break;
            }
            if let Some(newest) = self.all[at].replies.last().copied() {
                self.all[at].forget_below(newest + 1);
            }
        }
    }
}

impl Session {
    fn forget_below(&mut self, below: u64) {
        self.answered_below = self.answered_below.max(below);
        self.replies.retain(|sequence| *sequence >= self.answered_below);
    }
}

pub struct Model {
    /// After each index; at 0 the empty store.
    moments: Vec<Moment>,
    writes: HashMap<(ClientId, u64), Written>,
    sessions: Sessions,
    rules: Option<GroupRules>,
    pub leases: ModelLeases,
    /// Leases that ended because their time was over, with their keys and when it was.
    pub lease_ends: Vec<(LeaseName, Vec<Bytes>, Timestamp)>,
    /// When the newest state of each key changed: in log order, with the version or deletion.
    changes: BTreeMap<Bytes, Vec<(LogIndex, Timestamp)>>,
    /// What has changed of the newest state, in order of time and of keys.
    changed: Vec<Changed>,
}

fn row(key: &Bytes, found: Option<&Version>) -> Row {
    Row { key: key.clone(), found: found.cloned() }
}

impl Moment {
    /// A key's newest version up to `at`; without a value when there is none.
    pub fn get(&self, key: &Bytes, at: Timestamp) -> Row {
        let versions = self.state.get(key);
        let newest = versions.and_then(|versions| versions.range(..=at).next_back());
        row(key, newest.and_then(|(_, version)| version.as_ref()))
    }

    /// Everything that a page and those after it are to show as of `at`.
    pub fn rows(&self, of: &PageOf, at: Timestamp) -> Vec<Row> {
        match of {
            PageOf::Range { from, to } => {
                let keys = self.state.keys().filter(|key| from <= *key && *key <= to);
                let rows = keys.map(|key| self.get(key, at));
                rows.filter(|row| row.found.is_some()).collect()
            }
            PageOf::RangeReverse { from, to } => {
                let range = PageOf::Range { from: from.clone(), to: to.clone() };
                let mut rows = self.rows(&range, at);
                rows.reverse();
                rows
            }
            PageOf::Keys { keys } => keys.iter().map(|key| self.get(key, at)).collect(),
            PageOf::Versions { key } => {
                let versions = self.state.get(key).into_iter().flat_map(|v| v.range(..=at).rev());
                let shown = versions.filter_map(|(_, version)| version.as_ref());
                shown.map(|version| row(key, Some(version))).collect()
            }
            PageOf::Lease { .. } => panic!("nobody asks for the keys of a lease"),
        }
    }

    /// Every key that has a value, with the newest.
    pub fn newest(&self) -> State {
        let newest = self.state.iter().filter_map(|(key, versions)| {
            let (_, newest) = versions.last_key_value()?;
            let Version { timestamp, value, facts } = newest.as_ref()?;
            let state = KeyState { version: *timestamp, facts: (*facts)? };
            Some((key.clone(), (state, value.clone())))
        });
        newest.collect()
    }

    /// Every key that has a value.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.state.keys()
    }

    /// The keys of a range of which there is a version, or a deletion that kept some.
    fn keys_in(&self, from: &Bytes, to: &Bytes) -> impl Iterator<Item = &Bytes> {
        self.state.keys().filter(move |key| from <= *key && *key <= to)
    }

    fn delete(&mut self, now: Timestamp, key: &Bytes, keeps_history: bool) {
        if !keeps_history {
            self.state.remove(key);
        } else if let Some(versions) = self.state.get_mut(key)
            && let Some((_, Some(_))) = versions.last_key_value()
        {
            Rc::make_mut(versions).insert(now, None);
        }
    }

    fn change(&mut self, now: Timestamp, op: &WriteOp) {
        let mut put = |key: &Bytes, value: &Bytes| {
            let versions = Rc::make_mut(self.state.entry(key.clone()).or_default());
            // Of a key that is given twice the last value counts, and makes one version.
            let (created, count) = match versions.range(..now).next_back() {
                Some((_, Some(Version { facts: Some(before), .. }))) => {
                    (before.created, before.count + 1)
                }
                _ => (now, 1),
            };
            let facts = Some(Facts { created, count, lease: None });
            let version = Version { timestamp: now, value: value.clone(), facts };
            versions.insert(now, Some(version));
        };
        match op {
            WriteOp::Put(Put { key, value, .. }) | WriteOp::PutIf(PutIf { key, value, .. }) => {
                put(key, value)
            }
            WriteOp::PutAll(PutAll { pairs }) => {
                pairs.iter().for_each(|(key, value)| put(key, value))
            }
            WriteOp::Del(Del { key, keeps_history, .. }) => self.delete(now, key, *keeps_history),
            WriteOp::DelAll(DelAll { keys, keeps_history }) => {
                keys.iter().for_each(|key| self.delete(now, key, *keeps_history))
            }
            WriteOp::DelRange(DelRange { from, to, keeps_history }) => {
                let keys: Vec<Bytes> = self.keys_in(from, to).cloned().collect();
                keys.iter().for_each(|key| self.delete(now, key, *keeps_history));
            }
            WriteOp::Trim(Trim { key, .. }) => {
                if let Some(versions) = self.state.get_mut(key) {
                    let newest =
                        versions.last_key_value().map(|(at, newest)| (*at, newest.clone()));
                    *versions = Rc::new(newest.into_iter().collect());
                }
            }
            WriteOp::PutSequential(sequential) => {
                put(&sequential.key(now), &sequential.value);
            }
            WriteOp::Barrier(_)
            | WriteOp::SetHistory(_)
            | WriteOp::Compact(_)
            | WriteOp::LeaseGrant(_)
            | WriteOp::LeaseRevoke(_) => {}
            WriteOp::Txn(_) => panic!("a transaction is not carried out here"),
        }
    }
}

impl Model {
    pub fn new(limits: StateLimits) -> Model {
        Model {
            moments: vec![Moment::default()],
            writes: HashMap::new(),
            sessions: Sessions::new(limits),
            rules: None,
            leases: ModelLeases::default(),
            lease_ends: Vec::new(),
            changes: BTreeMap::new(),
            changed: Vec::new(),
        }
    }

    /// Applies the next entry, which is `None` for a no-op; what a write must come to. `fate`: what
    /// came of it at the first replica that applied it, where that is for a replica to say.
    pub fn apply(
        &mut self,
        command: Option<&Command>,
        fate: Option<&WriteFate>,
    ) -> Option<Expected> {
        let mut moment = self.moments.last().cloned().unwrap_or_default();
        let mut expected = None;
        if let Some(Command { timestamp, clock_us, action }) = command {
            moment.timestamp = *timestamp;
            moment.clock_us = moment.clock_us.max(*clock_us);
            match action {
                Action::GarbageCollection(GarbageCollection::Removed { before_us, .. }) => {
                    moment.purged = moment.purged.max(self.reached(*before_us));
                }
                Action::GarbageCollection(GarbageCollection::History { as_of_us, .. }) => {
                    moment.swept = moment.swept.max(self.reached(*as_of_us));
                }
                Action::GarbageCollection(GarbageCollection::Compacted { as_of_us, .. }) => {
                    let as_of = self.reached(*as_of_us).min(moment.compacted);
                    moment.swept = moment.swept.max(as_of);
                }
                Action::Rules(rules) => {
                    if self.rules.is_none() {
                        self.rules = Some(*rules);
                        self.sessions.limits = rules.limits;
                    }
                }
                Action::Level(_) => {}
                Action::Leases(record) => {
                    for name in self.leases.apply(record) {
                        let keys = self.end_lease(&mut moment, name.id);
                        self.lease_ends.push((name, keys, *timestamp));
                    }
                }
                Action::Write { request, op } => {
                    expected = Some(self.write(&mut moment, request, op, fate));
                }
            }
        }
        self.note_changes(&moment);
        self.moments.push(moment);
        expected
    }

    /// Notes what the next moment has of each key that the last one has not.
    fn note_changes(&mut self, moment: &Moment) {
        let nothing = BTreeMap::new();
        let before = self.moments.last().map_or(&nothing, |last| &last.state);
        let newest = |state: &BTreeMap<Bytes, Rc<Versions>>, key: &Bytes| {
            let newest = state.get(key).and_then(|versions| versions.last_key_value());
            newest.and_then(|(_, version)| version.clone())
        };
        let keys: BTreeSet<&Bytes> = before.keys().chain(moment.state.keys()).collect();
        for key in keys {
            let (previous, written) = (newest(before, key), newest(&moment.state, key));
            if previous != written {
                let place = (moment.timestamp, key.clone());
                self.changed.push(Changed { place, written, previous });
            }
        }
    }

    /// The first change of a range that comes after a place.
    pub fn next_change(&self, range: &KeyInterval, after: &Place) -> Option<&Changed> {
        let first = self.changed.partition_point(|changed| changed.place <= *after);
        self.changed[first..].iter().find(|changed| range.covers(&changed.place.1))
    }

    /// Up to where anything may be gone.
    pub fn horizon(&self) -> Timestamp {
        self.moments.last().map_or(Timestamp::ZERO, |moment| moment.purged.max(moment.swept))
    }

    fn write(
        &mut self,
        moment: &mut Moment,
        request: &RequestId,
        op: &WriteOp,
        fate: Option<&WriteFate>,
    ) -> Expected {
        let name = (request.client, request.sequence);
        let written = self.writes.get(&name).cloned();
        let is_new = match self.sessions.admit(request, moment.timestamp, moment.clock_us) {
            None => return Expected::UnknownSession,
            Some(session) if request.sequence < session.answered_below => {
                return Expected::Forgotten;
            }
            Some(session) => !session.replies.contains(&request.sequence),
        };
        if let Some(written) = written {
            if is_new {
                return Expected::Twice(written);
            }
            let before = Timestamp(written.timestamp.0 - 1);
            let gone = before < moment.purged || before < moment.swept;
            return match gone {
                true => Expected::OutcomeWithoutPrevious(written),
                false => Expected::Outcome(written),
            };
        }
        if fate == Some(&WriteFate::Refused)
            && matches!(op, WriteOp::DelRange(DelRange { keeps_history: false, .. }))
        {
            return Expected::Refused;
        }
        self.sessions.record(request);
        if let WriteOp::Txn(txn) = op {
            let written = match self.says_too_long(txn, fate) {
                true => Written {
                    timestamp: moment.timestamp,
                    result: OpResult::TooLong,
                    previous: None,
                    txn: None,
                    looked_at: None,
                    keys: Vec::new(),
                },
                false => self.transact(moment, txn),
            };
            self.writes.insert(name, written.clone());
            return Expected::Outcome(written);
        }
        let now = moment.timestamp;
        let (mut result, looked_at) = self.judge(moment, op);
        if self.is_too_long(moment, op, fate) {
            result = OpResult::TooLong;
        }
        let told = looked_at.as_ref().map(|(key, _)| key).or(told_key(op));
        let newest = told.map(|key| moment.get(key, now));
        let previous = newest.map(|row| match row.found {
            Some(Version { timestamp, value, facts: Some(facts) }) => {
                Previous::Value { timestamp, facts, value: Some(value) }
            }
            _ => Previous::Absent,
        });
        let mut keys: Vec<Bytes> = match op {
            _ if !result.has_taken_effect() => Vec::new(),
            WriteOp::Trim(_)
            | WriteOp::Barrier(_)
            | WriteOp::SetHistory(_)
            | WriteOp::Compact(_) => Vec::new(),
            // Of keys that nobody ever wrote nobody can tell that they were removed.
            WriteOp::DelRange(DelRange { from, to, .. }) => {
                self.changes.keys().filter(|key| from <= *key && *key <= to).cloned().collect()
            }
            WriteOp::PutSequential(sequential) => vec![sequential.key(now)],
            named => named_keys(named),
        };
        for key in &keys {
            let index = self.moments.len() as u64;
            self.changes.entry(key.clone()).or_default().push((index, now));
        }
        if let WriteOp::Compact(Compact { version }) = op {
            moment.compacted = moment.compacted.max((*version).min(now));
        }
        if result.has_taken_effect() {
            moment.change(now, op);
        }
        match op {
            WriteOp::LeaseGrant(grant) if result == OpResult::Done => {
                self.leases.add(LeaseName { id: grant.id_at(now), granted: now });
            }
            WriteOp::LeaseRevoke(LeaseRevoke { id, .. }) if result == OpResult::Done => {
                self.leases.remove(*id);
                keys = self.end_lease(moment, *id);
            }
            _ => {}
        }
        let written = Written { timestamp: now, result, previous, keys, txn: None, looked_at };
        self.writes.insert(name, written.clone());
        Expected::Outcome(written)
    }

    /// The keys of a lease go, whose end is applied next; which they are.
    fn end_lease(&mut self, moment: &mut Moment, id: LeaseId) -> Vec<Bytes> {
        let is_of_it = |versions: &Rc<Versions>| {
            let newest = versions.last_key_value().and_then(|(_, version)| version.as_ref()?.facts);
            newest.is_some_and(|facts| facts.lease == Some(id))
        };
        let of_it = moment.state.iter().filter(|(_, versions)| is_of_it(versions));
        let keys: Vec<Bytes> = of_it.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            moment.delete(moment.timestamp, key, true);
            let index = self.moments.len() as u64;
            self.changes.entry(key.clone()).or_default().push((index, moment.timestamp));
        }
        keys
    }

    /// Carries out a transaction that is applied next.
    fn transact(&mut self, moment: &mut Moment, txn: &Txn) -> Written {
        let now = moment.timestamp;
        let before = moment.newest();
        let mut after = before.clone();
        let (branches, answer) = carry_out(txn, &mut after, now);
        let new = after.values().filter(|(state, _)| state.version == now);
        let mut leases = new.filter_map(|(state, _)| state.facts.lease);
        if leases.any(|lease| !self.leases.has(lease)) {
            let (result, keys) = (OpResult::NoLease, Vec::new());
            let (txn, previous, looked_at) = (None, None, None);
            return Written { timestamp: now, result, previous, keys, txn, looked_at };
        }
        let mut keys = Vec::new();
        for (key, (state, value)) in &after {
            if state.version == now {
                let (value, facts) = (value.clone(), Some(state.facts));
                let versions = moment.state.entry(key.clone()).or_default();
                let version = Version { timestamp: now, value, facts };
                Rc::make_mut(versions).insert(now, Some(version));
                keys.push(key.clone());
            }
        }
        for (key, keeps_history) in deletions(txn, &answer, &before) {
            moment.delete(now, &key, keeps_history);
            keys.push(key);
        }
        for key in &keys {
            let index = self.moments.len() as u64;
            self.changes.entry(key.clone()).or_default().push((index, now));
        }
        let result = OpResult::Txn { branches: bits(&branches) };
        let (txn, previous, looked_at) = (Some(answer), None, None);
        Written { timestamp: now, result, previous, keys, txn, looked_at }
    }

    /// What an operation comes to that is applied next, and what it looks at if its condition does
    /// not hold.
    fn judge(&self, moment: &Moment, op: &WriteOp) -> (OpResult, Option<(Bytes, Timestamp)>) {
        match op {
            WriteOp::LeaseGrant(grant) => {
                let most = self.sessions.limits.leases_max;
                return (self.leases.grant(grant, moment.timestamp, most), None);
            }
            WriteOp::LeaseRevoke(LeaseRevoke { id, .. }) if !self.leases.has(*id) => {
                return (OpResult::NoLease, None);
            }
            _ => {}
        }
        let WriteOp::PutIf(PutIf { key, condition, .. }) = op else {
            return (OpResult::Done, None);
        };
        let newest = moment.get(key, Timestamp(i64::MAX)).timestamp();
        let holds = match condition {
            Condition::Absent => newest.is_none(),
            Condition::Version(version) => newest == Some(*version),
        };
        match holds {
            true => (OpResult::Done, None),
            false => {
                let changed = self.changed(key, self.last_index());
                (OpResult::ConditionFailed { newest }, Some((key.clone(), changed)))
            }
        }
    }

    /// Whether a range is too long to be deleted with its history kept. Between the keys of which
    /// the store must have something and those that it has ever had, a replica has to say it: of a
    /// key that was deleted long ago nothing may be left.
    fn is_too_long(&self, moment: &Moment, op: &WriteOp, fate: Option<&WriteFate>) -> bool {
        let WriteOp::DelRange(DelRange { from, to, keeps_history: true }) = op else {
            return false;
        };
        let most = self.sessions.limits.kept_removal_rows_max as usize;
        let ever = self.changes.keys().filter(|key| from <= *key && *key <= to);
        let said = matches!(
            fate,
            Some(WriteFate::Answered(WriteAnswer { result: OpResult::TooLong, .. }))
        );
        let is_there = |key: &&Bytes| {
            let versions = &moment.state[*key];
            // What was deleted and then trimmed leaves nothing that the deletion would hide.
            let may_be_gone = |at: Timestamp| at <= moment.swept || versions.len() == 1;
            let newest = versions.last_key_value();
            newest.is_some_and(|(at, version)| version.is_some() || !may_be_gone(*at))
        };
        let there = moment.keys_in(from, to).filter(is_there);
        there.count() > most || (said && ever.count() > most)
    }

    /// Whether a replica says that a transaction looks through too much, and may be right: of keys
    /// that are deleted with their history kept there have been as many as it may look at.
    fn says_too_long(&self, txn: &Txn, fate: Option<&WriteFate>) -> bool {
        let said = matches!(
            fate,
            Some(WriteFate::Answered(WriteAnswer { result: OpResult::TooLong, .. }))
        );
        let ever = |(from, to): &(Bytes, Bytes)| {
            self.changes.keys().filter(|key| from <= *key && *key <= to).count()
        };
        let looked_at: usize = kept_ranges(txn).iter().map(ever).sum();
        said && looked_at >= self.sessions.limits.kept_removal_rows_max as usize
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

    /// The last timestamp that was given out until the log's clock said so.
    fn reached(&self, clock_us: u64) -> Timestamp {
        let after = self.moments.partition_point(|moment| moment.clock_us <= clock_us);
        after.checked_sub(1).map_or(Timestamp::ZERO, |last| self.moments[last].timestamp)
    }

    /// What the group goes by.
    pub fn rules(&self) -> Option<GroupRules> {
        self.rules
    }

    pub fn last_index(&self) -> LogIndex {
        self.moments.len() as u64 - 1
    }

    /// The number of transactions that have taken `then`, and that of the others.
    pub fn txns(&self) -> (u64, u64) {
        let txns = self.writes.values().filter_map(|written| written.txn.as_ref());
        let (then, or_else): (Vec<_>, Vec<_>) = txns.partition(|txn| txn.succeeded);
        (then.len() as u64, or_else.len() as u64)
    }

    /// What became of a write.
    pub fn written(&self, client: ClientId, sequence: u64) -> Option<&Written> {
        self.writes.get(&(client, sequence))
    }

    /// When the newest state of a key was made that stands once `index` is applied, by a value or
    /// by a deletion; 0 for never.
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

/// The keys that an operation names, those of a transaction that it only looks at included.
pub fn named_keys(op: &WriteOp) -> Vec<Bytes> {
    let mut keys = Vec::new();
    op.visit(&mut |key, _| keys.push(key.clone()));
    keys
}

/// The key of which whoever waits is to be told what it had before.
fn told_key(op: &WriteOp) -> Option<&Bytes> {
    match op {
        WriteOp::Put(Put { key, tells_previous: true, .. })
        | WriteOp::Del(Del { key, tells_previous: true, .. })
        | WriteOp::Trim(Trim { key, tells_previous: true }) => Some(key),
        _ => None,
    }
}

/// What is left of rows that were asked for without their values.
pub fn leave_out_values(rows: &mut [Row]) {
    for version in rows.iter_mut().filter_map(|row| row.found.as_mut()) {
        version.value = Bytes::new();
    }
}
