//! Transactions as a program writes them: a sentence of comparisons and operations.
//!
//! The types are the model's, whose fields are public: what has no word of its own here is written
//! as a literal. Keys and values are not looked at here; [`Client::txn`](super::Client::txn)
//! refuses those that no server takes.

use bytes::Bytes;

use super::KeyRange;
use crate::model::{Comparison, LeaseId, Relation, Test, Timestamp, Txn, TxnKeys, TxnOp};

fn bytes(of: impl AsRef<[u8]>) -> Bytes {
    Bytes::copy_from_slice(of.as_ref())
}

impl<K: AsRef<[u8]>> From<K> for TxnKeys {
    fn from(key: K) -> TxnKeys {
        TxnKeys::One(bytes(key))
    }
}

impl From<KeyRange> for TxnKeys {
    fn from(range: KeyRange) -> TxnKeys {
        let (from, to) = range.ends();
        TxnKeys::Range { from, to }
    }
}

impl Txn {
    /// A transaction that does its [`then`](Txn::then) if this holds, and more that is added by
    /// [`and`](Txn::and). Without any comparison, as [`Txn::default`] makes one, it holds.
    pub fn when(comparison: Comparison) -> Txn {
        Txn::default().and(comparison)
    }

    /// Holds only if this holds, too.
    pub fn and(mut self, comparison: Comparison) -> Txn {
        self.compare.push(comparison);
        self
    }

    /// One more operation, after the others, for when all comparisons hold.
    pub fn then(mut self, op: impl Into<TxnOp>) -> Txn {
        self.then.push(op.into());
        self
    }

    /// One more operation, after the others, for when a comparison does not hold.
    pub fn or_else(mut self, op: impl Into<TxnOp>) -> Txn {
        self.or_else.push(op.into());
        self
    }
}

/// A transaction inside another one.
impl From<Txn> for TxnOp {
    fn from(txn: Txn) -> TxnOp {
        TxnOp::Txn(Box::new(txn))
    }
}

/// The first half of a comparison: what of which keys is compared. Its methods say with what.
///
/// Of a [`KeyRange`] every key that has a value must stand so to it; a range without any is
/// compared like a key that does not exist.
#[derive(Clone, Debug)]
#[must_use]
pub struct Compared<T> {
    keys: TxnKeys,
    test: fn(Relation, T) -> Test,
}

/// What a [`Compared`] can be compared with.
pub trait Operand<T> {
    /// The same as the model has it.
    fn into_operand(self) -> T;
}

impl Operand<Timestamp> for Timestamp {
    fn into_operand(self) -> Timestamp {
        self
    }
}

impl Operand<u64> for u64 {
    fn into_operand(self) -> u64 {
        self
    }
}

impl<V: AsRef<[u8]>> Operand<Bytes> for V {
    fn into_operand(self) -> Bytes {
        bytes(self)
    }
}

impl<T> Compared<T> {
    fn with(self, relation: Relation, operand: impl Operand<T>) -> Comparison {
        Comparison { keys: self.keys, test: (self.test)(relation, operand.into_operand()) }
    }

    /// It has to be this.
    pub fn equals(self, operand: impl Operand<T>) -> Comparison {
        self.with(Relation::Equal, operand)
    }

    /// It has to be anything but this.
    pub fn differs_from(self, operand: impl Operand<T>) -> Comparison {
        self.with(Relation::NotEqual, operand)
    }

    /// It has to be less than this.
    pub fn is_less_than(self, operand: impl Operand<T>) -> Comparison {
        self.with(Relation::Less, operand)
    }

    /// It has to be greater than this.
    pub fn is_greater_than(self, operand: impl Operand<T>) -> Comparison {
        self.with(Relation::Greater, operand)
    }
}

impl Comparison {
    /// Compares the newest version; zero for a key that does not exist.
    pub fn version(keys: impl Into<TxnKeys>) -> Compared<Timestamp> {
        Compared { keys: keys.into(), test: Test::Version }
    }

    /// Compares the version with which the key came into being; zero for one that does not exist.
    pub fn created(keys: impl Into<TxnKeys>) -> Compared<Timestamp> {
        Compared { keys: keys.into(), test: Test::Created }
    }

    /// Compares how often the key has been written since it came into being; 0 for one that does
    /// not exist.
    pub fn count(keys: impl Into<TxnKeys>) -> Compared<u64> {
        Compared { keys: keys.into(), test: Test::Count }
    }

    /// Compares the value, bytewise. Of a key that does not exist no comparison of it holds.
    pub fn value(keys: impl Into<TxnKeys>) -> Compared<Bytes> {
        Compared { keys: keys.into(), test: Test::Value }
    }

    /// Holds if the key has a value.
    pub fn exists(key: impl AsRef<[u8]>) -> Comparison {
        Comparison::created(key).differs_from(Timestamp::ZERO)
    }

    /// Holds if the key has no value.
    pub fn absent(key: impl AsRef<[u8]>) -> Comparison {
        Comparison::created(key).equals(Timestamp::ZERO)
    }
}

impl TxnOp {
    /// Reads what a key has.
    pub fn get(key: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::Get { key: bytes(key) }
    }

    /// Reads the keys of a range that have a value, in the range's order, and at most so many.
    pub fn range(range: KeyRange, rows_max: u32) -> TxnOp {
        let reverse = range.is_reversed();
        let (from, to) = range.ends();
        TxnOp::Range { from, to, rows_max, keys_only: false, reverse, counts_only: false }
    }

    /// Counts the keys of a range that have a value.
    pub fn count(range: KeyRange) -> TxnOp {
        let (from, to) = range.ends();
        let (rows_max, keys_only, reverse) = (0, true, false);
        TxnOp::Range { from, to, rows_max, keys_only, reverse, counts_only: true }
    }

    /// Stores a value, as [`Client::put`](super::Client::put).
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::Put { key: bytes(key), value: bytes(value), tells_previous: false, lease: None }
    }

    /// Stores a value that goes when the lease ends, as
    /// [`Client::put_with_lease`](super::Client::put_with_lease).
    pub fn put_with_lease(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, lease: LeaseId) -> TxnOp {
        let (key, value, lease) = (bytes(key), bytes(value), Some(lease));
        TxnOp::Put { key, value, tells_previous: false, lease }
    }

    /// Stores a value and tells what there was, as [`Client::replace`](super::Client::replace).
    pub fn replace(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::Put { key: bytes(key), value: bytes(value), tells_previous: true, lease: None }
    }

    /// Removes every version of a key and tells the newest, as [`Client::del`](super::Client::del).
    pub fn del(key: impl AsRef<[u8]>) -> TxnOp {
        TxnOp::Del { key: bytes(key), keeps_history: false, tells_previous: true }
    }

    /// Removes every version of every key of a range, and tells how many keys there were.
    pub fn del_range(range: KeyRange) -> TxnOp {
        let (from, to) = range.ends();
        TxnOp::DelRange { from, to, keeps_history: false, tells_previous: false }
    }
}
