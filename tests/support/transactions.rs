//! Transactions for tests: random ones that may be carried out, and what they come to, written down
//! as plainly as can be.
//!
//! Whoever includes this file has `model` in scope under that name: the tests of the library
//! itself do, too.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::model::{
    Comparison, Facts, KeyState, LeaseId, Relation, Test, Timestamp, Txn, TxnAnswer, TxnKeys,
    TxnOp, TxnResult, TxnRow, TxnVersion,
};

/// Keys that have a value, with what they have.
pub type State = BTreeMap<Bytes, (KeyState, Bytes)>;

/// Carries out a transaction as the write at `at`: whether each transaction of it took `then`, and
/// what it tells, with every value.
pub fn carry_out(txn: &Txn, state: &mut State, at: Timestamp) -> (Vec<bool>, TxnAnswer) {
    let mut branches = Vec::new();
    let answer = run(txn, state, at, &mut branches);
    (branches, answer)
}

/// The same as a number.
pub fn bits(branches: &[bool]) -> u64 {
    branches.iter().rev().fold(0, |bits, taken| bits << 1 | u64::from(*taken))
}

fn run(txn: &Txn, state: &mut State, at: Timestamp, branches: &mut Vec<bool>) -> TxnAnswer {
    let succeeded = txn.compare.iter().all(|comparison| holds(comparison, state));
    branches.push(succeeded);
    if !succeeded {
        skip(&txn.then, branches);
    }
    let ops = if succeeded { &txn.then } else { &txn.or_else };
    let results = ops.iter().map(|op| run_op(op, state, at, branches)).collect();
    if succeeded {
        skip(&txn.or_else, branches);
    }
    TxnAnswer { succeeded, results: Some(results) }
}

fn skip(ops: &[TxnOp], branches: &mut Vec<bool>) {
    for op in ops {
        if let TxnOp::Txn(txn) = op {
            branches.push(false);
            skip(&txn.then, branches);
            skip(&txn.or_else, branches);
        }
    }
}

fn holds(Comparison { keys, test }: &Comparison, state: &State) -> bool {
    match keys {
        TxnKeys::One(key) => key_holds(state.get(key), test),
        TxnKeys::Range { from, to } => {
            let mut found = state.iter().filter(|(key, _)| from <= *key && *key <= to).peekable();
            if found.peek().is_none() {
                return key_holds(None, test);
            }
            found.all(|(_, found)| key_holds(Some(found), test))
        }
    }
}

fn key_holds(found: Option<&(KeyState, Bytes)>, test: &Test) -> bool {
    let compare = |relation: &Relation, found: i128, expected: i128| match relation {
        Relation::Equal => found == expected,
        Relation::NotEqual => found != expected,
        Relation::Less => found < expected,
        Relation::Greater => found > expected,
    };
    let facts = found.map(|(state, _)| state.facts);
    match test {
        Test::Version(relation, expected) => {
            let version = found.map_or(0, |(state, _)| state.version.0);
            compare(relation, version.into(), expected.0.into())
        }
        Test::Created(relation, expected) => {
            compare(relation, facts.map_or(0, |facts| facts.created.0).into(), expected.0.into())
        }
        Test::Count(relation, expected) => {
            compare(relation, facts.map_or(0, |facts| facts.count).into(), (*expected).into())
        }
        Test::Lease(relation, expected) => {
            let lease = facts.and_then(|facts| facts.lease).map_or(0, |lease| lease.0);
            compare(relation, lease.into(), (*expected).into())
        }
        Test::Value(relation, expected) => found.is_some_and(|(_, value)| match relation {
            Relation::Equal => value == expected,
            Relation::NotEqual => value != expected,
            Relation::Less => value < expected,
            Relation::Greater => value > expected,
        }),
    }
}

/// The keys that a transaction with this answer has deleted, and of which it kept the history:
/// those that it names, whether they had a value before, and those of its ranges that had one.
#[allow(dead_code, reason = "only models of what was before need it")]
pub fn deletions(txn: &Txn, answer: &TxnAnswer, before: &State) -> Vec<(Bytes, bool)> {
    let ops = if answer.succeeded { &txn.then } else { &txn.or_else };
    let results = answer.results.iter().flatten();
    let of_op = |(op, result): (&TxnOp, &TxnResult)| match (op, result) {
        (TxnOp::Del { key, keeps_history, .. }, _) => vec![(key.clone(), *keeps_history)],
        // No other operation of the path writes a key of the range.
        (TxnOp::DelRange { from, to, keeps_history, .. }, _) => {
            let in_range = before.keys().filter(|key| from <= *key && *key <= to);
            in_range.map(|key| (key.clone(), *keeps_history)).collect()
        }
        (TxnOp::Txn(txn), TxnResult::Txn(answer)) => deletions(txn, answer, before),
        _ => Vec::new(),
    };
    ops.iter().zip(results).flat_map(of_op).collect()
}

fn told((state, value): &(KeyState, Bytes), with_value: bool) -> TxnVersion {
    let value = with_value.then(|| value.clone());
    TxnVersion { timestamp: state.version, facts: state.facts, value }
}

fn row(key: &Bytes, found: &(KeyState, Bytes), with_value: bool) -> TxnRow {
    TxnRow { key: key.clone(), found: told(found, with_value) }
}

fn run_op(op: &TxnOp, state: &mut State, at: Timestamp, branches: &mut Vec<bool>) -> TxnResult {
    match op {
        TxnOp::Get { key } => TxnResult::Get(state.get(key).map(|found| told(found, true))),
        TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only } => {
            let in_range = state.iter().filter(|(key, _)| from <= *key && *key <= to);
            let mut rows: Vec<_> =
                in_range.map(|(key, found)| row(key, found, !keys_only)).collect();
            if *counts_only {
                let count = rows.len() as u64;
                return TxnResult::Range { rows: Vec::new(), count, has_more: false };
            }
            if *reverse {
                rows.reverse();
            }
            let has_more = rows.len() > *rows_max as usize;
            rows.truncate(*rows_max as usize);
            TxnResult::Range { count: rows.len() as u64, rows, has_more }
        }
        TxnOp::Put { key, value, tells_previous, lease } => {
            let before = state.get(key).cloned();
            let facts = match &before {
                None => Facts { created: at, count: 1, lease: *lease },
                Some((before, _)) => Facts {
                    created: before.facts.created,
                    count: before.facts.count + 1,
                    lease: *lease,
                },
            };
            state.insert(key.clone(), (KeyState { version: at, facts }, value.clone()));
            let previous = before.filter(|_| *tells_previous).map(|found| told(&found, true));
            TxnResult::Put { previous }
        }
        TxnOp::Del { key, tells_previous, keeps_history: _ } => {
            let before = state.remove(key);
            let previous = before.filter(|_| *tells_previous).map(|found| told(&found, true));
            TxnResult::Del { previous }
        }
        TxnOp::DelRange { from, to, tells_previous, keeps_history: _ } => {
            let in_range = state.iter().filter(|(key, _)| from <= *key && *key <= to);
            let rows: Vec<_> = in_range.map(|(key, found)| row(key, found, true)).collect();
            rows.iter().for_each(|row| drop(state.remove(&row.key)));
            let removed = rows.len() as u64;
            let rows = if *tells_previous { rows } else { Vec::new() };
            TxnResult::DelRange { removed, rows }
        }
        TxnOp::Txn(txn) => TxnResult::Txn(run(txn, state, at, branches)),
    }
}

/// Makes transactions that may be carried out.
pub struct TxnMaker<'a> {
    /// Gives a number less than this one, which is at least 1.
    pub pick: &'a mut dyn FnMut(usize) -> usize,
    /// The keys that it names, in order.
    pub keys: &'a [Bytes],
    /// Versions that keys may have, to be compared with.
    pub versions: &'a [Timestamp],
    /// Gives a value that is new.
    pub value: &'a mut dyn FnMut() -> Bytes,
    /// Values that keys may have, to be compared with.
    pub values: &'a [Bytes],
    /// Whether it removes with the history kept.
    pub keeps_history: bool,
    /// Leases with which it may put keys.
    pub leases: &'a [LeaseId],
    /// Whether it only reads.
    pub only_reads: bool,
}

/// The ranges, however deep within, that a transaction may delete with their history kept.
#[allow(dead_code, reason = "only models of what was before need it")]
pub fn kept_ranges(txn: &Txn) -> Vec<(Bytes, Bytes)> {
    let of_op = |op: &TxnOp| match op {
        TxnOp::DelRange { from, to, keeps_history: true, .. } => vec![(from.clone(), to.clone())],
        TxnOp::Txn(txn) => kept_ranges(txn),
        _ => Vec::new(),
    };
    txn.then.iter().chain(&txn.or_else).flat_map(of_op).collect()
}

impl TxnMaker<'_> {
    /// One that nests at most so deep. It may write nothing even if it may write.
    pub fn any(&mut self, depth: usize) -> Txn {
        let free = (0..self.keys.len()).collect();
        self.txn(depth, &free).0
    }

    /// One that writes, unless it is to read only.
    pub fn fit(&mut self, depth: usize) -> Txn {
        let mut txn = self.any(depth);
        if !self.only_reads && !txn.writes() {
            let key = self.key();
            txn.then.push(TxnOp::Put {
                key,
                value: (self.value)(),
                tells_previous: true,
                lease: None,
            });
        }
        txn
    }

    fn one_in(&mut self, number: usize) -> bool {
        (self.pick)(number) == 0
    }

    /// The lease of a put, which often has none.
    fn lease(&mut self) -> Option<LeaseId> {
        match self.leases.len() {
            0 => None,
            _ if !self.one_in(3) => None,
            most => Some(self.leases[(self.pick)(most)]),
        }
    }

    fn key(&mut self) -> Bytes {
        self.keys[(self.pick)(self.keys.len())].clone()
    }

    fn ends(&mut self) -> (Bytes, Bytes) {
        let (from, to) = (self.key(), self.key());
        // The wrong way round now and then, which is empty.
        if from > to && !self.one_in(8) { (to, from) } else { (from, to) }
    }

    /// A transaction that writes none but the free keys, and those that it may write.
    fn txn(&mut self, depth: usize, free: &BTreeSet<usize>) -> (Txn, BTreeSet<usize>) {
        let compare = (0..(self.pick)(3)).map(|_| self.comparison()).collect();
        let (then, written) = self.ops(depth, free);
        let (or_else, written_else) = self.ops(depth, free);
        (Txn { compare, then, or_else }, &written | &written_else)
    }

    fn comparison(&mut self) -> Comparison {
        let keys = match self.one_in(3) {
            true => {
                let (from, to) = self.ends();
                let (from, to) = if from > to { (to, from) } else { (from, to) };
                TxnKeys::Range { from, to }
            }
            false => TxnKeys::One(self.key()),
        };
        let relations = [Relation::Equal, Relation::NotEqual, Relation::Greater, Relation::Less];
        let relation = relations[(self.pick)(4)];
        let least = i64::from(relation == Relation::Less);
        let version = match (self.pick)(self.versions.len() + 1) {
            0 => Timestamp(least),
            at => Timestamp(self.versions[at - 1].0.max(least)),
        };
        let test = match (version, (self.pick)(5)) {
            (version, 0) => Test::Version(relation, version),
            (version, 1) => Test::Created(relation, version),
            (_, 2) => Test::Count(relation, least as u64 + (self.pick)(3) as u64),
            (_, 3) => Test::Lease(relation, least as u64),
            _ if self.values.is_empty() => Test::Count(relation, 1),
            _ => match &self.values[(self.pick)(self.values.len())] {
                value if value.is_empty() => Test::Value(Relation::Equal, Bytes::new()),
                value => Test::Value(relation, value.clone()),
            },
        };
        Comparison { keys, test }
    }

    fn ops(&mut self, depth: usize, free: &BTreeSet<usize>) -> (Vec<TxnOp>, BTreeSet<usize>) {
        let mut free = free.clone();
        let (mut ops, mut written) = (Vec::new(), BTreeSet::new());
        for _ in 0..(self.pick)(4) {
            let tells_previous = self.one_in(2);
            let keeps_history = self.keeps_history && self.one_in(2);
            let begin = (self.pick)(self.keys.len());
            let is_free = !self.only_reads && free.contains(&begin);
            let key = self.keys[begin].clone();
            let op = match (self.pick)(8) {
                0 if depth > 1 => {
                    let (txn, writes) = self.txn(depth - 1, &free);
                    written.extend(writes);
                    TxnOp::Txn(Box::new(txn))
                }
                1..4 if is_free => {
                    written.insert(begin);
                    TxnOp::Put { key, value: (self.value)(), tells_previous, lease: self.lease() }
                }
                4 if is_free => {
                    written.insert(begin);
                    TxnOp::Del { key, keeps_history, tells_previous }
                }
                5 if is_free => {
                    let end = (begin..self.keys.len()).take_while(|at| free.contains(at)).last();
                    let end = end.unwrap_or(begin);
                    let end = begin + (self.pick)(end - begin + 1);
                    written.extend(begin..=end);
                    let to = self.keys[end].clone();
                    TxnOp::DelRange { from: key, to, keeps_history, tells_previous }
                }
                6 => {
                    let (from, to) = self.ends();
                    let rows_max = match self.one_in(2) {
                        true => u32::MAX,
                        false => 1 + (self.pick)(3) as u32,
                    };
                    let (keys_only, reverse) = (self.one_in(4), self.one_in(2));
                    let counts_only = self.one_in(4);
                    TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only }
                }
                _ => TxnOp::Get { key },
            };
            free = &free - &written;
            ops.push(op);
        }
        (ops, written)
    }
}
