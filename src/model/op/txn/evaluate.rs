//! Evaluates transactions: a pure function of a transaction and of the state just before it.
//!
//! It is used in three ways, which go through the same lines:
//!
//! - [`decide`], at apply, on every replica: which branches are taken and what they write. Nothing
//!   is read that neither depends on.
//! - [`answer`], where somebody waits: the results of the operations, whose branches are known. For
//!   the first answer and for that to a retry, so that both are the same.
//! - [`read`], for a transaction that only reads: both at once, in one read view.
//!
//! What the transaction has written so far lies over the state, so that each operation sees those
//! before it, and is written when everything is decided.
//!
//! What it may look at is bounded. Where a comparison or the removal of a range would go beyond,
//! nothing is decided, since a part would be wrong ([`OpResult::TooLong`](super::OpResult)). The
//! read of a range ends early instead, and says so: it decides nothing, and replicas that answer
//! nobody do not read at all.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use super::{
    Comparison, Relation, Test, Txn, TxnAnswer, TxnKeys, TxnOp, TxnResult, TxnRow, TxnVersion,
};
use crate::limits;
use crate::model::{Facts, KeyState, LeaseId, StateLimits, Timestamp};

/// One state of a store, the same for all reads of a transaction.
pub trait TxnReads {
    /// Why the store cannot be read.
    type Error;

    /// The newest version of a key, of which nothing but its facts is asked.
    ///
    /// # Errors
    /// Those of the store.
    fn state(&self, key: &[u8]) -> Result<Option<KeyState>, Self::Error>;

    /// The same with its value, if that has at most `value_bytes_max` bytes.
    ///
    /// # Errors
    /// Those of the store.
    fn version(&self, key: &[u8], value_bytes_max: usize) -> Result<Option<TxnFound>, Self::Error>;

    /// The keys of a range that have a value.
    ///
    /// # Errors
    /// Those of the store.
    fn keys(&self, wanted: TxnRange<'_>) -> Result<TxnFoundKeys, Self::Error>;
}

/// The newest version of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnFound {
    pub state: KeyState,
    /// The length of the value.
    pub value_bytes: usize,
    /// `None` if it is longer than was asked for.
    pub value: Option<Bytes>,
}

/// Which keys are looked for.
#[derive(Clone, Copy, Debug)]
pub struct TxnRange<'a> {
    /// The least key that is looked for.
    pub from: &'a [u8],
    /// The greatest key that is looked for, not less than `from`.
    pub to: &'a [u8],
    /// The greatest key first.
    pub reverse: bool,
    /// The most keys that are told, at least 1.
    pub keys_max: usize,
    /// The most rows that are looked at, at least 1.
    pub rows_max: usize,
    /// The most bytes of keys that are looked at, where something is decided.
    pub bytes_max: usize,
}

/// Keys that have a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnFoundKeys {
    /// In the order asked for.
    pub keys: Vec<(Bytes, KeyState)>,
    /// The number of rows that count against the bound: the same wherever the same is evaluated.
    pub rows: usize,
    /// There are no more keys in the range.
    pub is_whole: bool,
}

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnWrite {
    /// Stores this value as a new version, with a lease if one is given.
    Put { value: Bytes, lease: Option<LeaseId> },
    /// Removes the key, if it has a value.
    Del { keeps_history: bool },
}

/// What a transaction has come to, but for what it tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnDecision {
    /// Bit `i` is set if transaction `i` took `then`: the whole is 0, and those within it follow in
    /// the order in which they are written down, `then` before `or_else`. Those of branches that
    /// were not taken have taken none.
    pub branches: u64,
    /// One for each key.
    pub writes: BTreeMap<Bytes, TxnWrite>,
}

/// What the evaluation of one transaction may look at and tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxnLimits {
    /// Rows that comparisons and removals of ranges may look at together, but for removals that
    /// keep history, and the same for reads of ranges.
    pub rows: usize,
    /// Rows that removals of ranges may look at together that keep history.
    pub kept_rows: usize,
    /// Bytes of values that comparisons may read together.
    pub compared_bytes: usize,
    /// Bytes of keys and values of the answer.
    pub result_bytes: usize,
}

impl TxnLimits {
    /// Those of a group.
    pub fn of(limits: &StateLimits) -> TxnLimits {
        TxnLimits {
            rows: limits.transaction_rows_max as usize,
            kept_rows: limits.kept_removal_rows_max as usize,
            compared_bytes: limits.transaction_compared_bytes_max as usize,
            result_bytes: limits::TRANSACTION_RESULT_BYTES_MAX,
        }
    }
}

/// Decides which branches a transaction takes that is written at `at`, and what it writes. `None`
/// if it looks at too much, and so does nothing.
pub(super) fn decide<R: TxnReads>(
    txn: &Txn,
    before: &R,
    at: Timestamp,
    limits: TxnLimits,
) -> Result<Option<TxnDecision>, R::Error> {
    let mut evaluation = Evaluation::new(before, at, limits, Branches::Decided(0));
    let done = evaluation.run(txn).map(drop);
    let branches = evaluation.branches.taken();
    if_not_too_long(done.map(|()| TxnDecision { branches, writes: evaluation.writes }))
}

/// What a transaction that was written at `at` and took these branches tells. `None` if the state
/// before it cannot be looked through any more.
pub(super) fn answer<R: TxnReads>(
    txn: &Txn,
    branches: u64,
    before: &R,
    at: Timestamp,
    limits: TxnLimits,
) -> Result<Option<TxnAnswer>, R::Error> {
    let mut evaluation = Evaluation::new(before, at, limits, Branches::Known(branches));
    evaluation.tells = true;
    if_not_too_long(evaluation.run(txn))
}

/// What a transaction that only reads tells. `None` if it looks at too much.
pub(super) fn read<R: TxnReads>(
    txn: &Txn,
    state: &R,
    limits: TxnLimits,
) -> Result<Option<TxnAnswer>, R::Error> {
    assert!(!txn.writes(), "a transaction that writes is not read");
    let mut evaluation = Evaluation::new(state, Timestamp::ZERO, limits, Branches::Decided(0));
    evaluation.tells = true;
    if_not_too_long(evaluation.run(txn))
}

fn if_not_too_long<T, E>(done: Result<T, Halt<E>>) -> Result<Option<T>, E> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(Halt::TooLong) => Ok(None),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// Why an evaluation ends before its end.
enum Halt<E> {
    /// It would look at more than it may.
    TooLong,
    /// The store cannot be read.
    Failed(E),
}

impl<E> From<E> for Halt<E> {
    fn from(error: E) -> Halt<E> {
        Halt::Failed(error)
    }
}

/// The branches of all transactions, a bit for each.
enum Branches {
    /// Those decided so far.
    Decided(u64),
    /// All of them, from an earlier evaluation.
    Known(u64),
}

impl Branches {
    fn taken(&self) -> u64 {
        match self {
            Branches::Decided(branches) | Branches::Known(branches) => *branches,
        }
    }
}

/// The bit of a transaction. There are no more than 64 in one that was checked.
fn bit(number: u32) -> u64 {
    1u64.checked_shl(number).unwrap_or(0)
}

struct Evaluation<'a, R> {
    before: &'a R,
    at: Timestamp,
    branches: Branches,
    /// The number of the next transaction.
    next: u32,
    /// Whether results are told, and so what only they need is read.
    tells: bool,
    writes: BTreeMap<Bytes, TxnWrite>,
    /// Rows that comparisons and removals may still look at.
    rows_left: usize,
    /// Rows that removals may still look at that keep history.
    kept_rows_left: usize,
    /// Bytes of keys that these may still look at.
    kept_bytes_left: usize,
    /// Rows that reads of ranges may still look at.
    read_rows_left: usize,
    compared_bytes_left: usize,
    result_bytes_left: usize,
}

impl<'a, R: TxnReads> Evaluation<'a, R> {
    fn new(
        before: &'a R,
        at: Timestamp,
        limits: TxnLimits,
        branches: Branches,
    ) -> Evaluation<'a, R> {
        Evaluation {
            before,
            at,
            branches,
            next: 0,
            tells: false,
            writes: BTreeMap::new(),
            rows_left: limits.rows,
            kept_rows_left: limits.kept_rows,
            kept_bytes_left: limits.kept_rows.saturating_mul(limits::KEPT_REMOVAL_BYTES_PER_ROW),
            read_rows_left: limits.rows,
            compared_bytes_left: limits.compared_bytes,
            result_bytes_left: limits.result_bytes,
        }
    }

    fn run(&mut self, txn: &Txn) -> Result<TxnAnswer, Halt<R::Error>> {
        let number = self.next;
        self.next += 1;
        let succeeded = match self.branches {
            Branches::Known(branches) => branches & bit(number) != 0,
            Branches::Decided(_) => self.all_hold(&txn.compare)?,
        };
        if let Branches::Decided(branches) = &mut self.branches
            && succeeded
        {
            *branches |= bit(number);
        }
        let results = if succeeded {
            let results = self.run_ops(&txn.then)?;
            self.next += transactions_in(&txn.or_else);
            results
        } else {
            self.next += transactions_in(&txn.then);
            self.run_ops(&txn.or_else)?
        };
        Ok(TxnAnswer { succeeded, results: self.tells.then_some(results) })
    }

    /// The results are empty where none are told.
    fn run_ops(&mut self, ops: &[TxnOp]) -> Result<Vec<TxnResult>, Halt<R::Error>> {
        let mut results = Vec::with_capacity(if self.tells { ops.len() } else { 0 });
        for op in ops {
            let result = self.run_op(op)?;
            if self.tells {
                results.push(result);
            }
        }
        Ok(results)
    }

    fn run_op(&mut self, op: &TxnOp) -> Result<TxnResult, Halt<R::Error>> {
        Ok(match op {
            TxnOp::Get { key } => TxnResult::Get(self.tell(key, true)?),
            TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only } => {
                let keys_max = if *counts_only { usize::MAX } else { *rows_max as usize };
                self.tell_range((from, to), *reverse, keys_max, *keys_only, *counts_only)?
            }
            TxnOp::Put { key, value, tells_previous, lease } => {
                let previous = self.tell(key, *tells_previous)?;
                let put = TxnWrite::Put { value: value.clone(), lease: *lease };
                self.writes.insert(key.clone(), put);
                TxnResult::Put { previous }
            }
            TxnOp::Del { key, keeps_history, tells_previous } => {
                let previous = self.tell(key, *tells_previous)?;
                let del = TxnWrite::Del { keeps_history: *keeps_history };
                self.writes.insert(key.clone(), del);
                TxnResult::Del { previous }
            }
            TxnOp::DelRange { from, to, keeps_history, tells_previous } => {
                let keys = match keeps_history {
                    true => self.all_keys_to_keep(from, to)?,
                    false => self.all_keys(from, to)?,
                };
                let removed = keys.len() as u64;
                let rows = match self.tells && *tells_previous {
                    // No more than any other range tells: each row takes more than its bytes.
                    true => {
                        let told = keys.len().min(limits::TRANSACTION_ROWS_MAX);
                        self.tell_rows(&keys[..told], false)?
                    }
                    false => Vec::new(),
                };
                let del = TxnWrite::Del { keeps_history: *keeps_history };
                self.writes.extend(keys.into_iter().map(|(key, _)| (key, del.clone())));
                TxnResult::DelRange { removed, rows }
            }
            TxnOp::Txn(txn) => TxnResult::Txn(self.run(txn)?),
        })
    }

    // What it compares.

    fn all_hold(&mut self, compare: &[Comparison]) -> Result<bool, Halt<R::Error>> {
        for Comparison { keys, test } in compare {
            let holds = match keys {
                TxnKeys::One(key) => self.holds(key, test)?,
                TxnKeys::Range { from, to } => {
                    let keys = self.all_keys(from, to)?;
                    let mut all_hold = !keys.is_empty() || holds_of_nothing(test);
                    for (key, state) in keys {
                        all_hold = all_hold
                            && match test {
                                Test::Value(relation, value) => {
                                    self.value_holds(&key, *relation, value)?
                                }
                                _ => state_holds(Some(state), test),
                            };
                    }
                    all_hold
                }
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds(&mut self, key: &Bytes, test: &Test) -> Result<bool, Halt<R::Error>> {
        match test {
            Test::Value(relation, value) => self.value_holds(key, *relation, value),
            _ => Ok(state_holds(self.state(key)?, test)),
        }
    }

    fn value_holds(
        &mut self,
        key: &Bytes,
        relation: Relation,
        expected: &Bytes,
    ) -> Result<bool, Halt<R::Error>> {
        let is_of_equals = matches!(relation, Relation::Equal | Relation::NotEqual);
        let most = match is_of_equals {
            true => self.compared_bytes_left.min(expected.len()),
            false => self.compared_bytes_left,
        };
        let Some(found) = self.version(key, most)? else { return Ok(false) };
        match found.value {
            Some(value) => {
                self.compared_bytes_left -= value.len();
                Ok(relation.holds(&value[..], &expected[..]))
            }
            // The lengths tell.
            None if is_of_equals && found.value_bytes != expected.len() => {
                Ok(relation == Relation::NotEqual)
            }
            None => Err(Halt::TooLong),
        }
    }

    /// All keys of a range of which a part would be wrong.
    fn all_keys(
        &mut self,
        from: &Bytes,
        to: &Bytes,
    ) -> Result<Vec<(Bytes, KeyState)>, Halt<R::Error>> {
        let found = self.keys((from, to), false, usize::MAX, (self.rows_left, usize::MAX))?;
        if !found.is_whole {
            return Err(Halt::TooLong);
        }
        self.rows_left = self.rows_left.saturating_sub(found.rows);
        Ok(found.keys)
    }

    /// The same of one that is removed with its history kept.
    fn all_keys_to_keep(
        &mut self,
        from: &Bytes,
        to: &Bytes,
    ) -> Result<Vec<(Bytes, KeyState)>, Halt<R::Error>> {
        let most = (self.kept_rows_left, self.kept_bytes_left);
        let found = self.keys((from, to), false, usize::MAX, most)?;
        if !found.is_whole {
            return Err(Halt::TooLong);
        }
        self.kept_rows_left = self.kept_rows_left.saturating_sub(found.rows);
        let bytes = found.keys.iter().map(|(key, _)| key.len()).sum();
        self.kept_bytes_left = self.kept_bytes_left.saturating_sub(bytes);
        Ok(found.keys)
    }

    // What it tells.

    /// What a key has, if that is asked for.
    fn tell(&mut self, key: &Bytes, is_wanted: bool) -> Result<Option<TxnVersion>, Halt<R::Error>> {
        if !self.tells || !is_wanted {
            return Ok(None);
        }
        let Some(found) = self.version(key, self.result_bytes_left)? else { return Ok(None) };
        self.result_bytes_left -= found.value.as_ref().map_or(0, Bytes::len);
        let KeyState { version, facts } = found.state;
        Ok(Some(TxnVersion { timestamp: version, facts, value: found.value }))
    }

    fn tell_range(
        &mut self,
        ends: (&Bytes, &Bytes),
        reverse: bool,
        keys_max: usize,
        keys_only: bool,
        counts_only: bool,
    ) -> Result<TxnResult, Halt<R::Error>> {
        if !self.tells {
            return Ok(TxnResult::Range { rows: Vec::new(), count: 0, has_more: false });
        }
        // One more tells whether there are more.
        let one_more = keys_max.saturating_add(1);
        let mut found = self.keys(ends, reverse, one_more, (self.read_rows_left, usize::MAX))?;
        self.read_rows_left = self.read_rows_left.saturating_sub(found.rows);
        if counts_only {
            let (count, has_more) = (found.keys.len() as u64, !found.is_whole);
            return Ok(TxnResult::Range { rows: Vec::new(), count, has_more });
        }
        found.is_whole &= found.keys.len() <= keys_max;
        found.keys.truncate(keys_max);
        let rows = self.tell_rows(&found.keys, keys_only)?;
        let has_more = !found.is_whole || rows.len() < found.keys.len();
        Ok(TxnResult::Range { count: rows.len() as u64, rows, has_more })
    }

    /// As many rows as find room.
    fn tell_rows(
        &mut self,
        keys: &[(Bytes, KeyState)],
        keys_only: bool,
    ) -> Result<Vec<TxnRow>, Halt<R::Error>> {
        let mut rows = Vec::new();
        for (key, KeyState { version, facts }) in keys {
            let Some(left) = self.result_bytes_left.checked_sub(key.len()) else { break };
            self.result_bytes_left = left;
            let value = match keys_only {
                true => None,
                false => self.version(key, left)?.and_then(|found| found.value),
            };
            self.result_bytes_left -= value.as_ref().map_or(0, Bytes::len);
            let found = TxnVersion { timestamp: *version, facts: *facts, value };
            rows.push(TxnRow { key: key.clone(), found });
        }
        Ok(rows)
    }

    // What it sees: the state before, under what it has written.

    fn version(&self, key: &Bytes, value_bytes_max: usize) -> Result<Option<TxnFound>, R::Error> {
        let (value, lease) = match self.writes.get(key) {
            None => return self.before.version(key, value_bytes_max),
            Some(TxnWrite::Del { .. }) => return Ok(None),
            Some(TxnWrite::Put { value, lease }) => (value, *lease),
        };
        Ok(Some(TxnFound {
            state: self.state_after_put(self.before.state(key)?, lease),
            value_bytes: value.len(),
            value: (value.len() <= value_bytes_max).then(|| value.clone()),
        }))
    }

    fn state(&self, key: &Bytes) -> Result<Option<KeyState>, R::Error> {
        let before = self.before.state(key)?;
        Ok(match self.writes.get(key) {
            None => before,
            Some(TxnWrite::Del { .. }) => None,
            Some(TxnWrite::Put { lease, .. }) => Some(self.state_after_put(before, *lease)),
        })
    }

    fn state_after_put(&self, before: Option<KeyState>, lease: Option<LeaseId>) -> KeyState {
        let facts = Facts::following(before.map(|before| before.facts), self.at);
        let facts = Facts { lease, ..facts };
        KeyState { version: self.at, facts }
    }

    fn keys(
        &self,
        (from, to): (&Bytes, &Bytes),
        reverse: bool,
        keys_max: usize,
        (rows_max, bytes_max): (usize, usize),
    ) -> Result<TxnFoundKeys, R::Error> {
        if from > to {
            return Ok(TxnFoundKeys { is_whole: true, ..TxnFoundKeys::default() });
        }
        let range = (Bound::Included(from), Bound::Included(to));
        // What was written counts as looked at, too.
        let written = self.writes.range::<Bytes, _>(range).take(rows_max).collect::<Vec<_>>();
        let rows_max = rows_max - written.len();
        if rows_max == 0 {
            return Ok(TxnFoundKeys { rows: written.len(), ..TxnFoundKeys::default() });
        }
        // So many may be hidden behind what was removed.
        let keys_max_below = keys_max.saturating_add(written.len());
        let wanted = TxnRange { from, to, reverse, keys_max: keys_max_below, rows_max, bytes_max };
        let mut found = self.before.keys(wanted)?;
        found.rows += written.len();
        if written.is_empty() {
            return Ok(found);
        }
        // Up to the last key that was found, what is not there does not exist.
        let seen_up_to = match found.is_whole {
            true => None,
            false => match found.keys.last() {
                Some((last, _)) => Some(last.clone()),
                None => return Ok(found),
            },
        };
        let is_seen = |key: &Bytes| match &seen_up_to {
            None => true,
            Some(last) if reverse => key >= last,
            Some(last) => key <= last,
        };
        let mut keys: BTreeMap<Bytes, KeyState> = found.keys.drain(..).collect();
        for (key, write) in written {
            match write {
                TxnWrite::Del { .. } => drop(keys.remove(key)),
                TxnWrite::Put { lease, .. } if is_seen(key) => {
                    let state = self.state_after_put(keys.get(key).copied(), *lease);
                    keys.insert(key.clone(), state);
                }
                TxnWrite::Put { .. } => {}
            }
        }
        found.keys = match reverse {
            true => keys.into_iter().rev().collect(),
            false => keys.into_iter().collect(),
        };
        if found.keys.len() > keys_max {
            found.keys.truncate(keys_max);
            found.is_whole = false;
        }
        Ok(found)
    }
}

/// The number of transactions within a branch.
fn transactions_in(ops: &[TxnOp]) -> u32 {
    let within = ops.iter().map(|op| match op {
        // There are no more than fit: a transaction has at most TRANSACTION_KEYS_MAX operations.
        TxnOp::Txn(txn) => txn.transactions() as u32,
        _ => 0,
    });
    within.sum()
}

/// Whether a test holds of a key without a value.
fn holds_of_nothing(test: &Test) -> bool {
    state_holds(None, test)
}

/// Whether a test of anything but the value holds of a key; none of a value does without one.
fn state_holds(state: Option<KeyState>, test: &Test) -> bool {
    let facts = state.map(|state| state.facts);
    match test {
        Test::Version(relation, expected) => {
            let version = state.map_or(Timestamp::ZERO, |state| state.version);
            relation.holds(&version, expected)
        }
        Test::Created(relation, expected) => {
            relation.holds(&facts.map_or(Timestamp::ZERO, |facts| facts.created), expected)
        }
        Test::Count(relation, expected) => {
            relation.holds(&facts.map_or(0, |facts| facts.count), expected)
        }
        Test::Lease(relation, expected) => {
            let lease = facts.and_then(|facts| facts.lease).map_or(0, |lease| lease.0);
            relation.holds(&lease, expected)
        }
        Test::Value(..) => false,
    }
}
