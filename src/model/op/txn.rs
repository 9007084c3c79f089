//! `TXN`: if every comparison holds, the operations of one branch, and otherwise those of the
//! other, as one write.
//!
//! A transaction is evaluated against the state just before it ([`evaluate`]), where each of its
//! operations sees those before it. **Its session remembers no more than which branches it took**:
//! [`OpResult::Txn`]. Its answer is made of the branches and of what the store had just before the
//! write, the first time as well as for every retry, so that all of them learn the same.
//!
//! A key is written at most once on any path through the branches, since a key has one version at
//! one timestamp. That is checked where a request comes in ([`checks`]), with everything else that
//! can be told without a store.
//!
//! A transaction that only reads is not a write: it is asked for as a read and takes no place in
//! the log.

mod answer;
mod checks;
mod decode;
mod evaluate;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

pub use answer::{TxnAnswer, TxnResult, TxnRow, TxnVersion};
pub use evaluate::{TxnDecision, TxnFound, TxnFoundKeys, TxnLimits, TxnRange, TxnReads, TxnWrite};

use super::{Learned, OpApplied, OpResult, Operation, StoreChanges};
use crate::limits;
use crate::model::{LeaseId, Timestamp, WriteAnswer};

/// Comparisons, and what is done if all of them hold and if not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Txn {
    /// Decided just before the operations. They hold if there are none.
    pub compare: Vec<Comparison>,
    /// What is done if every comparison holds, in this order.
    pub then: Vec<TxnOp>,
    /// What is done otherwise, in this order.
    #[serde(rename = "else")]
    pub or_else: Vec<TxnOp>,
}

/// What must hold of a key, or of every key of a range that has a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Comparison {
    /// The keys that it is about.
    pub keys: TxnKeys,
    /// What must hold of each.
    pub test: Test,
}

/// The keys that a comparison is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub enum TxnKeys {
    /// One key. If it has no value, its version, created, count and lease are 0, and no comparison
    /// of its value holds.
    #[serde(rename = "KEY")]
    One(Bytes),
    /// Every key between both ends, which are included. A range without a key that has a value
    /// compares like a key without one.
    #[serde(rename = "RANGE")]
    Range {
        /// The least key that is compared.
        from: Bytes,
        /// The greatest key that is compared.
        to: Bytes,
    },
}

/// How what a key has is to stand to what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub enum Relation {
    /// Both are the same.
    #[serde(rename = "EQUAL")]
    Equal,
    /// They are not the same.
    #[serde(rename = "NOT_EQUAL")]
    NotEqual,
    /// What the key has is less.
    #[serde(rename = "LESS")]
    Less,
    /// What the key has is greater.
    #[serde(rename = "GREATER")]
    Greater,
}

impl Relation {
    /// Whether `found` stands to `expected` like this.
    pub fn holds<T: Ord + ?Sized>(self, found: &T, expected: &T) -> bool {
        match self {
            Relation::Equal => found == expected,
            Relation::NotEqual => found != expected,
            Relation::Less => found < expected,
            Relation::Greater => found > expected,
        }
    }
}

/// What is compared, how, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub enum Test {
    /// The newest version of the key.
    #[serde(rename = "VERSION")]
    Version(Relation, Timestamp),
    /// The version with which the key came into being since it last did not exist.
    #[serde(rename = "CREATED")]
    Created(Relation, Timestamp),
    /// The number of the key's versions since then.
    #[serde(rename = "COUNT")]
    Count(Relation, u64),
    /// The number of the lease with which the key goes, 0 if there is none.
    #[serde(rename = "LEASE")]
    Lease(Relation, u64),
    /// The value, in the order of its bytes.
    #[serde(rename = "VALUE")]
    Value(Relation, Bytes),
}

/// One operation of a transaction. Keys and values are as in single operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum TxnOp {
    /// Tells what a key has.
    #[serde(rename = "GET")]
    Get {
        /// The key that is read.
        key: Bytes,
    },
    /// Tells which keys of a range have a value, and what they have. It ends early where all reads
    /// of the transaction would look at more rows, or tell more, than they may.
    #[serde(rename = "RANGE")]
    Range {
        /// The least key that is told.
        from: Bytes,
        /// The greatest key that is told.
        to: Bytes,
        /// At most so many rows, and at least 1 if any are asked for.
        rows_max: u32,
        /// Leave the values out.
        keys_only: bool,
        /// The last key first.
        reverse: bool,
        /// Tell only how many keys there are, whatever `rows_max` is.
        counts_only: bool,
    },
    /// Makes a new newest version of a key.
    #[serde(rename = "PUT")]
    Put {
        /// The key that is written.
        key: Bytes,
        /// Any bytes, and perhaps none.
        value: Bytes,
        /// The answer tells what the key had before.
        tells_previous: bool,
        /// The lease with which the key goes from now on; without one it leaves that which it had.
        lease: Option<LeaseId>,
    },
    /// Removes a key, if it has a value.
    #[serde(rename = "DEL")]
    Del {
        /// The key that is removed; it need not have a value.
        key: Bytes,
        /// Older versions can still be read as of their time.
        keeps_history: bool,
        /// The answer tells what the key had before.
        tells_previous: bool,
    },
    /// Removes every key of a range that has a value, both ends included. Unlike the operation
    /// `DEL_RANGE` it leaves the past of keys that were deleted keeping it: it writes the keys that
    /// it sees. Where there are more than a transaction may look through, the whole transaction
    /// does nothing.
    #[serde(rename = "DEL_RANGE")]
    DelRange {
        /// The least key that is removed.
        from: Bytes,
        /// The greatest key that is removed.
        to: Bytes,
        /// Older versions can still be read as of their time.
        keeps_history: bool,
        /// The answer tells what the keys had before, and not only how many there were.
        tells_previous: bool,
    },
    /// A transaction within the transaction, whose comparisons see what was done before it.
    #[serde(rename = "TXN")]
    Txn(Box<Txn>),
}

impl TxnOp {
    /// Whether it writes, on some path through its branches.
    fn writes(&self) -> bool {
        match self {
            TxnOp::Get { .. } | TxnOp::Range { .. } => false,
            TxnOp::Put { .. } | TxnOp::Del { .. } | TxnOp::DelRange { .. } => true,
            TxnOp::Txn(txn) => txn.writes(),
        }
    }
}

impl Txn {
    /// The operations of both branches, those of `then` first.
    fn ops(&self) -> impl Iterator<Item = &TxnOp> {
        self.then.iter().chain(&self.or_else)
    }

    /// Whether it writes, on some path through its branches. One that does not is asked for as a
    /// read.
    pub fn writes(&self) -> bool {
        self.ops().any(TxnOp::writes)
    }

    /// The number of transactions, this one and those within it.
    pub fn transactions(&self) -> usize {
        let within = self.ops().map(|op| match op {
            TxnOp::Txn(txn) => txn.transactions(),
            _ => 0,
        });
        1 + within.sum::<usize>()
    }

    /// Whether it puts a key with a lease, on some path through its branches.
    pub fn has_leases(&self) -> bool {
        self.ops().any(|op| match op {
            TxnOp::Put { lease, .. } => lease.is_some(),
            TxnOp::Txn(txn) => txn.has_leases(),
            _ => false,
        })
    }

    /// Refuses what can never be answered as a read, whatever the store has.
    ///
    /// # Errors
    /// One sentence for a person.
    pub fn check_read(&self) -> Result<(), String> {
        if self.writes() {
            return Err("the transaction writes: ask for it as a WRITE".to_owned());
        }
        checks::check(self)
    }

    /// Bytes of memory that it takes, about, with the elements of its lists.
    pub fn memory_bytes(&self) -> usize {
        let mut bytes = 0;
        self.visit(&mut |key, value| {
            bytes += key.len() + limits::ELEMENT_OVERHEAD_BYTES;
            bytes += value.map_or(0, |value| value.len() + limits::ELEMENT_OVERHEAD_BYTES);
        });
        bytes + self.transactions() * limits::ELEMENT_OVERHEAD_BYTES
    }

    /// Whether `answer` can be the answer to it: a client takes any other for the answer to
    /// something else.
    pub fn fits(&self, answer: &TxnAnswer) -> bool {
        let Some(results) = &answer.results else { return true };
        let ops = if answer.succeeded { &self.then } else { &self.or_else };
        ops.len() == results.len()
            && ops.iter().zip(results).all(|(op, result)| match (op, result) {
                (TxnOp::Get { .. }, TxnResult::Get(_))
                | (TxnOp::Range { .. }, TxnResult::Range { .. })
                | (TxnOp::DelRange { .. }, TxnResult::DelRange { .. }) => true,
                (TxnOp::Put { tells_previous, .. }, TxnResult::Put { previous })
                | (TxnOp::Del { tells_previous, .. }, TxnResult::Del { previous }) => {
                    *tells_previous || previous.is_none()
                }
                (TxnOp::Txn(txn), TxnResult::Txn(answer)) => {
                    answer.results.is_some() && txn.fits(answer)
                }
                _ => false,
            })
    }

    /// Decides which branches it takes as the write at `at`, and what it writes, given the state
    /// just before. `None` if it looks at too much, and so does nothing.
    ///
    /// # Errors
    /// Those of the store.
    pub fn decide<R: TxnReads>(
        &self,
        before: &R,
        at: Timestamp,
        limits: TxnLimits,
    ) -> Result<Option<TxnDecision>, R::Error> {
        evaluate::decide(self, before, at, limits)
    }

    /// What it tells that was the write at `at` and took these branches, given the state just
    /// before. The results are left out if that cannot be looked through any more.
    ///
    /// # Errors
    /// Those of the store.
    pub fn answer<R: TxnReads>(
        &self,
        branches: u64,
        before: &R,
        at: Timestamp,
        limits: TxnLimits,
    ) -> Result<TxnAnswer, R::Error> {
        let answer = evaluate::answer(self, branches, before, at, limits)?;
        Ok(answer.unwrap_or(TxnAnswer::without_results(branches)))
    }

    /// What it tells that only reads, of one state. `None` if it looks at too much.
    ///
    /// # Errors
    /// Those of the store.
    pub fn read<R: TxnReads>(
        &self,
        state: &R,
        limits: TxnLimits,
    ) -> Result<Option<TxnAnswer>, R::Error> {
        evaluate::read(self, state, limits)
    }

    /// Rows that its ranges look at, and rows in whose time the values are read that it compares or
    /// tells, at most. A range of one key, as etcd's clients name a key, is none. How many rows a
    /// range shows does not bound how many it looks at: removed keys lie among them until they have
    /// left the disk.
    fn looked_at_rows_max(&self) -> usize {
        let rows = match self.has_part(&Txn::looks_through_a_range) {
            true => limits::TRANSACTION_ROWS_MAX,
            false => 0,
        };
        let kept_rows = match self.has_part(&Txn::removes_a_range_keeping_history) {
            true => limits::KEPT_REMOVAL_ROWS_MAX,
            false => 0,
        };
        let compared_bytes = match self.has_part(&Txn::compares_long_values) {
            true => limits::TRANSACTION_COMPARED_BYTES_MAX,
            false => 0,
        };
        let told_bytes = match self.has_part(&Txn::tells_values) {
            true => limits::TRANSACTION_RESULT_BYTES_MAX,
            false => 0,
        };
        rows + kept_rows + (compared_bytes + told_bytes) / VALUE_BYTES_PER_ROW
    }

    /// Whether something holds of it or of a transaction within it.
    fn has_part(&self, holds: &dyn Fn(&Txn) -> bool) -> bool {
        let within = |op: &TxnOp| match op {
            TxnOp::Txn(txn) => txn.has_part(holds),
            _ => false,
        };
        holds(self) || self.ops().any(within)
    }

    fn looks_through_a_range(&self) -> bool {
        let is_range = |keys: &TxnKeys| matches!(keys, TxnKeys::Range { from, to } if from != to);
        self.compare.iter().any(|comparison| is_range(&comparison.keys))
            || self.ops().any(|op| match op {
                TxnOp::Range { from, to, .. }
                | TxnOp::DelRange { keeps_history: false, from, to, .. } => from != to,
                _ => false,
            })
    }

    fn removes_a_range_keeping_history(&self) -> bool {
        let is_range = |op: &TxnOp| match op {
            TxnOp::DelRange { keeps_history: true, from, to, .. } => from != to,
            _ => false,
        };
        self.ops().any(is_range)
    }

    /// Whether values are compared whose length does not tell how they compare.
    fn compares_long_values(&self) -> bool {
        let is_long =
            |test: &Test| matches!(test, Test::Value(Relation::Less | Relation::Greater, _));
        self.compare.iter().any(|comparison| is_long(&comparison.test))
    }

    fn tells_values(&self) -> bool {
        self.ops().any(|op| match op {
            TxnOp::Get { .. } => true,
            TxnOp::Range { keys_only, counts_only, .. } => !keys_only && !counts_only,
            TxnOp::Put { tells_previous, .. }
            | TxnOp::Del { tells_previous, .. }
            | TxnOp::DelRange { tells_previous, .. } => *tells_previous,
            TxnOp::Txn(_) => false,
        })
    }
}

/// Bytes of a long value that are read in about the time of a row.
const VALUE_BYTES_PER_ROW: usize = 16 * 1024;

impl Operation for Txn {
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
        for Comparison { keys, test } in &self.compare {
            let value = match test {
                Test::Value(_, value) => Some(value),
                Test::Version(..) | Test::Created(..) | Test::Count(..) | Test::Lease(..) => None,
            };
            match keys {
                TxnKeys::One(key) => show(key, value),
                TxnKeys::Range { from, to } => {
                    show(from, value);
                    show(to, None);
                }
            }
        }
        for op in self.ops() {
            match op {
                TxnOp::Get { key } | TxnOp::Del { key, .. } => show(key, None),
                TxnOp::Put { key, value, .. } => show(key, Some(value)),
                TxnOp::Range { from, to, .. } | TxnOp::DelRange { from, to, .. } => {
                    show(from, None);
                    show(to, None);
                }
                TxnOp::Txn(txn) => txn.visit(show),
            }
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.writes() {
            return Err("the transaction writes nothing: ask for it as a read, which takes no \
                        place in the log"
                .to_owned());
        }
        checks::check(self)
    }

    fn adds_data(&self) -> bool {
        self.ops().any(|op| match op {
            TxnOp::Put { .. } => true,
            TxnOp::Del { keeps_history, .. } | TxnOp::DelRange { keeps_history, .. } => {
                *keeps_history
            }
            TxnOp::Txn(txn) => txn.adds_data(),
            TxnOp::Get { .. } | TxnOp::Range { .. } => false,
        })
    }

    fn scanned_rows_max(&self) -> usize {
        self.looked_at_rows_max()
    }

    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
        let decided = store.decide(self)?;
        let Some(TxnDecision { branches, writes }) = decided else {
            return Ok(OpApplied::Result(OpResult::TooLong));
        };
        let mut leased: BTreeMap<LeaseId, Vec<&Bytes>> = BTreeMap::new();
        for (key, write) in &writes {
            if let TxnWrite::Put { lease: Some(lease), .. } = write {
                leased.entry(*lease).or_default().push(key);
            }
        }
        for (lease, keys) in leased {
            if let Some(refusal) = store.lease_refuses(lease, &keys)? {
                return Ok(OpApplied::Result(refusal));
            }
        }
        for (key, write) in &writes {
            match write {
                TxnWrite::Put { value, lease } => store.put_with(key, value, *lease)?,
                TxnWrite::Del { keeps_history } => store.delete(key, *keeps_history)?,
            }
        }
        Ok(OpApplied::Result(OpResult::Txn { branches }))
    }

    fn known_at_commit(&self) -> Option<OpResult> {
        None
    }

    fn depends_on_state(&self) -> bool {
        true
    }

    fn may_come_to(&self, result: OpResult) -> bool {
        match result {
            OpResult::Txn { branches } => {
                let unused = u64::MAX.checked_shl(self.transactions() as u32).unwrap_or(0);
                branches & unused == 0
            }
            OpResult::TooLong => true,
            OpResult::NoLease | OpResult::LeaseFull => self.has_leases(),
            OpResult::LeaseExists | OpResult::TooManyLeases => false,
            OpResult::Done | OpResult::ConditionFailed { .. } => false,
        }
    }

    /// Any of its keys may have changed, and what it has read is as old as the write.
    fn learned(&self, answer: &WriteAnswer) -> Learned<'_> {
        match answer.result {
            OpResult::Txn { .. } => Learned::ManyKeys,
            _ => Learned::NoKey,
        }
    }
}

#[cfg(test)]
mod tests;
