//! The operations that change the store: what each asks for, when it is refused, what it does, and
//! what its client learns.
//!
//! **One file an operation.** It holds the parameters as they travel and lie in the log, and an
//! [`Operation`]: which keys and values it names, what makes it invalid, how it changes a store,
//! and whether its answer is known before it is applied. [`WriteOp`] lists the operations and
//! delegates to them; no other room asks which one it has. So a new operation is a file here, a
//! line in the list, and what its own users call it.
//!
//! **A result is short.** Sessions remember an [`OpResult`] for every write that may still be
//! retried, so it has no keys and no values. What a key had before a write is not remembered:
//! whoever answers, also a retry, reads it as of the moment just before the write
//! ([`Operation::tells_before`]).
//!
//! **Applying is a function of the store and the operation.** It sees no clock and no limit of this
//! release, so that every replica comes to the same.
//!
//! It leaves out how versions and removals lie on a disk: [`StoreChanges`] is what `storage` offers
//! to operations.

mod barrier;
mod compact;
mod del;
mod del_all;
mod del_range;
mod lease_grant;
mod lease_revoke;
mod put;
mod put_all;
mod put_if;
mod put_sequential;
mod set_history;
mod trim;
mod txn;

use std::mem::Discriminant;

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

pub use barrier::Barrier;
pub use compact::Compact;
pub use del::Del;
pub use del_all::DelAll;
pub use del_range::DelRange;
pub use lease_grant::LeaseGrant;
pub use lease_revoke::LeaseRevoke;
pub use put::Put;
pub use put_all::PutAll;
pub use put_if::{Condition, PutIf};
pub use put_sequential::PutSequential;
pub use set_history::SetHistory;
pub use trim::Trim;
pub use txn::{
    Comparison, Relation, Test, Txn, TxnAnswer, TxnDecision, TxnFound, TxnFoundKeys, TxnKeys,
    TxnLimits, TxnOp, TxnRange, TxnReads, TxnResult, TxnRow, TxnVersion,
};

use super::key::check_key_bytes;
use super::outcome::WriteAnswer;
use super::{History, InvalidKey, KeyState, LeaseId, Timestamp};
use crate::limits;

/// What an operation can do to a store. All of it happens at one timestamp, that of the write, and
/// all or none of it becomes visible.
pub trait StoreChanges {
    /// Why the store cannot be read; it stops the state machine.
    type Error;

    /// The newest version of a key, as it was before this operation, and its facts; `None` where
    /// the key has no value.
    fn newest(&self, key: &[u8]) -> Result<Option<KeyState>, Self::Error>;

    /// Makes a new newest version, whose facts follow from those of the one before, without a
    /// lease.
    ///
    /// # Errors
    /// Those of the store.
    fn put(&mut self, key: &Bytes, value: &Bytes) -> Result<(), Self::Error> {
        self.put_with(key, value, None)
    }

    /// The same with a lease, if one is given, which takes the key
    /// ([`lease_refuses`](StoreChanges::lease_refuses)). At most once for each key, since both
    /// would have the same timestamp.
    fn put_with(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), Self::Error>;

    /// Removes every version of a key, or only those that follow from now on: then reads as of a
    /// time before find what the key had.
    fn delete(&mut self, key: &Bytes, keeps_history: bool) -> Result<(), Self::Error>;

    /// Does so to every key from `from` to `to`, both included.
    fn delete_range(
        &mut self,
        from: &Bytes,
        to: &Bytes,
        keeps_history: bool,
    ) -> Result<RangeDeletion, Self::Error>;

    /// Removes every version of a key but the newest.
    fn trim(&mut self, key: &Bytes) -> Result<(), Self::Error>;

    /// The timestamp of the write, which all of its changes bear.
    fn timestamp(&self) -> Timestamp;

    /// Evaluates a transaction against the state as it was before this operation; nothing is
    /// changed. `None` if it looks at more than it may.
    fn decide(&self, txn: &Txn) -> Result<Option<TxnDecision>, Self::Error>;

    /// Changes what is kept of versions that newer ones have replaced.
    fn set_history(&mut self, history: History) -> Result<(), Self::Error>;

    /// Ends reads as of versions below this one, or below that of the write if it is less.
    fn compact(&mut self, version: Timestamp) -> Result<(), Self::Error>;

    /// What a write comes to, and changes nothing, that would put these keys, which differ, with
    /// the lease; `None` if it takes them.
    fn lease_refuses(
        &self,
        lease: LeaseId,
        keys: &[&Bytes],
    ) -> Result<Option<OpResult>, Self::Error>;

    /// Begins a lease; what the write comes to.
    fn grant_lease(&mut self, grant: &LeaseGrant) -> Result<OpResult, Self::Error>;

    /// Ends a lease, and deletes its keys, unless they are more than `keys_max`; what the write
    /// comes to.
    fn end_lease(&mut self, id: LeaseId, keys_max: Option<u32>) -> Result<OpResult, Self::Error>;
}

/// What deleting a range comes to. Unless it is done, nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeDeletion {
    Done,
    /// The range is too long to keep its history.
    TooLong,
    /// The range is long, and too many such removals are under way.
    TooManyRanges,
}

/// What there is to know of one operation.
pub trait Operation {
    /// Shows every key that it names, with the value that goes with it, if one does.
    fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>));

    /// What must hold of a key just before the write, and else nothing changes; `None` where the
    /// operation takes effect whatever the store has. An operation that fails for another reason
    /// has no such condition, and says what follows from it itself: in `may_come_to`,
    /// `tells_before` and `depends_on_state`.
    fn condition(&self) -> Option<(&Bytes, Condition)> {
        None
    }

    /// Refuses what can never be carried out, beyond the limits on keys and values, which are the
    /// same for all operations.
    ///
    /// # Errors
    /// One sentence for a person.
    fn check(&self) -> Result<(), String> {
        self.condition().map_or(Ok(()), |(_, condition)| condition.check())
    }

    /// Whether it stores what nothing makes room for later, values or tombstones that keep what is
    /// older, so that there must be room on the disks.
    fn adds_data(&self) -> bool;

    /// Upper bound of the rows of a store that applying it looks through, besides those of the keys
    /// that it names.
    fn scanned_rows_max(&self) -> usize {
        0
    }

    /// Carries it out. Whoever calls has made sure that it is applied for the first time.
    ///
    /// # Errors
    /// Those of the store.
    fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error>;

    /// The result of the operation where it is the same whatever the store has, and where nothing
    /// else is told with it: the client is answered when the write is committed. `None` where it
    /// is answered when the write has been applied. Without a default: a wrong result would be
    /// told before anybody knows it.
    fn known_at_commit(&self) -> Option<OpResult>;

    /// Whether the result depends on the store. A leader whose state is in doubt tells of no such
    /// write what it came to.
    fn depends_on_state(&self) -> bool {
        self.condition().is_some()
    }

    /// Whether it can come to this result. A client takes any other for the answer to something
    /// else.
    fn may_come_to(&self, result: OpResult) -> bool {
        match result {
            OpResult::Done => true,
            OpResult::ConditionFailed { .. } => self.condition().is_some(),
            OpResult::Txn { .. }
            | OpResult::TooLong
            | OpResult::LeaseExists
            | OpResult::TooManyLeases
            | OpResult::NoLease
            | OpResult::LeaseFull => false,
        }
    }

    /// The key of which the answer tells what it had just before the write: that of a condition
    /// that did not hold.
    fn tells_before(&self, result: OpResult) -> Option<&Bytes> {
        match result {
            OpResult::Done | OpResult::Txn { .. } | OpResult::TooLong => None,
            OpResult::ConditionFailed { .. } => self.condition().map(|(key, _)| key),
            OpResult::LeaseExists
            | OpResult::TooManyLeases
            | OpResult::NoLease
            | OpResult::LeaseFull => None,
        }
    }

    /// What a client knows of the store once it has this answer.
    fn learned(&self, answer: &WriteAnswer) -> Learned<'_>;
}

/// What applying an operation comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpApplied {
    /// It is over, and its session remembers this.
    Result(OpResult),
    /// Nothing was done, because too many large removals are under way. Sessions do not remember
    /// that: the client asks again later, as the same request.
    Refused,
}

/// What an operation came to, as sessions remember it and clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpResult {
    /// It has taken effect, all of it.
    #[serde(rename = "DONE")]
    Done,
    /// Its condition did not hold, and nothing has changed.
    #[serde(rename = "CONDITION_FAILED")]
    ConditionFailed {
        /// The newest version that the key had just before the write; `None` where it had no value.
        newest: Option<Timestamp>,
    },
    /// It is a transaction, and has taken effect: what its branches say.
    #[serde(rename = "TXN")]
    Txn {
        /// Which transactions of it took `then`: [`TxnDecision::branches`].
        branches: u64,
    },
    /// A range has more keys than may be looked through, to delete it with its history kept, or in
    /// a transaction, to compare or to delete it, and nothing has changed.
    #[serde(rename = "TOO_LONG")]
    TooLong,
    /// There is a lease of the id that was wished for, and none was granted.
    #[serde(rename = "LEASE_EXISTS")]
    LeaseExists,
    /// The group has as many leases as it may have, and none was granted.
    #[serde(rename = "TOO_MANY_LEASES")]
    TooManyLeases,
    /// There is no such lease: it has ended, or was never granted. Nothing has changed.
    #[serde(rename = "NO_LEASE")]
    NoLease,
    /// The lease would have more keys than a lease may have. Nothing has changed.
    #[serde(rename = "LEASE_FULL")]
    LeaseFull,
}

/// The greatest number of bytes that a result takes in a session.
pub const RESULT_BYTES_MAX: usize = 9;

impl OpResult {
    /// Whether the store has changed as the client asked.
    pub fn has_taken_effect(self) -> bool {
        match self {
            OpResult::Done | OpResult::Txn { .. } => true,
            OpResult::ConditionFailed { .. }
            | OpResult::TooLong
            | OpResult::LeaseExists
            | OpResult::TooManyLeases
            | OpResult::NoLease
            | OpResult::LeaseFull => false,
        }
    }

    /// Appends the result as a session's row holds it: a byte that tells which, and what goes with
    /// it.
    pub fn encode(self, out: &mut Vec<u8>) {
        match self {
            OpResult::Done => out.put_u8(0),
            OpResult::ConditionFailed { newest: None } => out.put_u8(1),
            OpResult::ConditionFailed { newest: Some(newest) } => {
                out.put_u8(2);
                out.put_i64_le(newest.0);
            }
            OpResult::TooLong => out.put_u8(3),
            OpResult::Txn { branches } => {
                out.put_u8(4);
                out.put_u64_le(branches);
            }
            OpResult::LeaseExists => out.put_u8(5),
            OpResult::TooManyLeases => out.put_u8(6),
            OpResult::NoLease => out.put_u8(7),
            OpResult::LeaseFull => out.put_u8(8),
        }
    }

    /// The result as two numbers, different ones for different results: which it is, and what goes
    /// with it.
    pub fn words(self) -> [u64; 2] {
        match self {
            OpResult::Done => [0, 0],
            OpResult::ConditionFailed { newest: None } => [1, 0],
            OpResult::ConditionFailed { newest: Some(newest) } => [2, newest.0 as u64],
            OpResult::TooLong => [3, 0],
            OpResult::Txn { branches } => [4, branches],
            OpResult::LeaseExists => [5, 0],
            OpResult::TooManyLeases => [6, 0],
            OpResult::NoLease => [7, 0],
            OpResult::LeaseFull => [8, 0],
        }
    }

    /// Takes a result from the front of `bytes`; `None` for what [`encode`](OpResult::encode) never
    /// wrote.
    pub fn decode(bytes: &mut &[u8]) -> Option<OpResult> {
        match bytes.try_get_u8().ok()? {
            0 => Some(OpResult::Done),
            1 => Some(OpResult::ConditionFailed { newest: None }),
            2 => {
                let newest = Some(Timestamp(bytes.try_get_i64_le().ok()?));
                Some(OpResult::ConditionFailed { newest })
            }
            3 => Some(OpResult::TooLong),
            4 => Some(OpResult::Txn { branches: bytes.try_get_u64_le().ok()? }),
            5 => Some(OpResult::LeaseExists),
            6 => Some(OpResult::TooManyLeases),
            7 => Some(OpResult::NoLease),
            8 => Some(OpResult::LeaseFull),
            _ => None,
        }
    }
}

/// What a client knows of the newest versions once it has an answer, so that it never reads
/// backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned<'a> {
    /// The newest state of one key, a value or its removal, is this version.
    Newest(&'a Bytes, Timestamp),
    /// Versions of one key are gone, and perhaps all, in the state as of the write.
    Gone(&'a Bytes),
    /// Any number of keys have changed.
    ManyKeys,
    /// Nothing about any key.
    NoKey,
}

impl<'a> Learned<'a> {
    /// What is known of a key that has this newest version, or no value.
    fn of(key: &'a Bytes, newest: Option<Timestamp>) -> Learned<'a> {
        match newest {
            Some(newest) => Learned::Newest(key, newest),
            None => Learned::Gone(key),
        }
    }
}

/// Declares the one list of operations: the variants of [`WriteOp`], each with its name in the log
/// and on the wire.
macro_rules! operations {
    ($($name:ident = $wire:literal: $meaning:literal,)+) => {
        /// An operation as a client asks for it.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub enum WriteOp {
            $(
                #[doc = $meaning]
                #[serde(rename = $wire)]
                $name($name),
            )+
        }

        $(
            impl From<$name> for WriteOp {
                fn from(op: $name) -> WriteOp {
                    WriteOp::$name(op)
                }
            }
        )+

        impl Operation for WriteOp {
            fn visit(&self, show: &mut dyn FnMut(&Bytes, Option<&Bytes>)) {
                match self { $(WriteOp::$name(op) => op.visit(show),)+ }
            }

            fn condition(&self) -> Option<(&Bytes, Condition)> {
                match self { $(WriteOp::$name(op) => op.condition(),)+ }
            }

            fn check(&self) -> Result<(), String> {
                match self { $(WriteOp::$name(op) => op.check(),)+ }
            }

            fn adds_data(&self) -> bool {
                match self { $(WriteOp::$name(op) => op.adds_data(),)+ }
            }

            fn scanned_rows_max(&self) -> usize {
                match self { $(WriteOp::$name(op) => op.scanned_rows_max(),)+ }
            }

            fn apply<S: StoreChanges>(&self, store: &mut S) -> Result<OpApplied, S::Error> {
                match self { $(WriteOp::$name(op) => op.apply(store),)+ }
            }

            fn known_at_commit(&self) -> Option<OpResult> {
                match self { $(WriteOp::$name(op) => op.known_at_commit(),)+ }
            }

            fn depends_on_state(&self) -> bool {
                match self { $(WriteOp::$name(op) => op.depends_on_state(),)+ }
            }

            fn may_come_to(&self, result: OpResult) -> bool {
                match self { $(WriteOp::$name(op) => op.may_come_to(result),)+ }
            }

            fn tells_before(&self, result: OpResult) -> Option<&Bytes> {
                match self { $(WriteOp::$name(op) => op.tells_before(result),)+ }
            }

            fn learned(&self, answer: &WriteAnswer) -> Learned<'_> {
                match self { $(WriteOp::$name(op) => op.learned(answer),)+ }
            }
        }
    };
}

// New operations go to the end: decoders take a variant by its position, too.
operations! {
    Put = "PUT": "Store a new newest version of a key.",
    PutAll = "PUT_ALL": "Store a new newest version of each key, all at one version.",
    PutIf = "PUT_IF": "Store a new newest version of a key, if it is as the client has seen it.",
    Del = "DEL": "Remove every version of a key, or delete it and keep its past.",
    DelAll = "DEL_ALL": "Do the same to each key.",
    DelRange = "DEL_RANGE": "Do the same to every key of a range.",
    Trim = "TRIM": "Remove every version of a key but the newest.",
    Barrier = "BARRIER": "Change nothing: take a timestamp, after which no write is older.",
    SetHistory = "SET_HISTORY": "Change what is kept of versions that newer ones have replaced.",
    PutSequential = "PUT_SEQUENTIAL": "Store a value under a key that ends in its own version.",
    Txn = "TXN": "Compare, and do the operations of one branch or of the other.",
    LeaseGrant = "LEASE_GRANT": "Begin a lease, with which keys can be put.",
    LeaseRevoke = "LEASE_REVOKE": "End a lease, and delete its keys.",
    Compact = "COMPACT": "End reads as of versions below one.",
}

/// What has to be known of an operation to judge it, to order it and to answer it, without its keys
/// and values. Computed once, where the operation is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpShape {
    kind: Discriminant<WriteOp>,
    /// Number of keys that it names, each as often as it is named.
    pub keys: usize,
    /// Number of rows that applying it may look at, about: one for each key that it names, and
    /// [`Operation::scanned_rows_max`].
    pub work_rows: usize,
    /// Number of values, of which none is longer than `value_bytes_max`.
    pub values: usize,
    /// Bytes of all keys and values.
    pub bytes: usize,
    /// Length of the shortest key; `None` without keys.
    pub key_bytes_min: Option<usize>,
    /// Length of the longest key; 0 without keys.
    pub key_bytes_max: usize,
    /// Length of the longest value; 0 without values.
    pub value_bytes_max: usize,
    /// Whether there must be room on the disks: [`Operation::adds_data`].
    pub adds_data: bool,
    /// What can be answered before the operation is applied: [`Operation::known_at_commit`].
    pub known_at_commit: Option<OpResult>,
    /// Whether the result depends on the store: [`Operation::depends_on_state`].
    pub depends_on_state: bool,
}

/// What an operation is to do to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// A lease begins, unless there is one of its id.
    Begin(LeaseGrant),
    /// The lease of this id ends, if there is one.
    End(LeaseId),
}

impl LeaseChange {
    /// The change that an operation is for, if it is for one.
    pub fn of(op: &WriteOp) -> Option<LeaseChange> {
        match op {
            WriteOp::LeaseGrant(grant) => Some(LeaseChange::Begin(*grant)),
            WriteOp::LeaseRevoke(revoke) => Some(LeaseChange::End(revoke.id)),
            _ => None,
        }
    }
}

impl OpShape {
    /// Looks at every key and value once.
    pub fn of(op: &WriteOp) -> OpShape {
        let mut shape = OpShape::without_keys(op);
        op.visit(&mut |key, value| shape.add(key.len(), value.map(Bytes::len)));
        shape
    }

    /// The shape of a PUT that has a key and a value of these lengths in the place of its own.
    pub(super) fn of_put(put: &WriteOp, key_bytes: usize, value_bytes: usize) -> OpShape {
        let mut shape = OpShape::without_keys(put);
        shape.add(key_bytes, Some(value_bytes));
        shape
    }

    fn without_keys(op: &WriteOp) -> OpShape {
        OpShape {
            kind: std::mem::discriminant(op),
            keys: 0,
            work_rows: op.scanned_rows_max(),
            values: 0,
            bytes: 0,
            key_bytes_min: None,
            key_bytes_max: 0,
            value_bytes_max: 0,
            adds_data: op.adds_data(),
            known_at_commit: op.known_at_commit(),
            depends_on_state: op.depends_on_state(),
        }
    }

    fn add(&mut self, key_bytes: usize, value_bytes: Option<usize>) {
        self.keys += 1;
        self.work_rows += 1;
        self.values += usize::from(value_bytes.is_some());
        let value_bytes = value_bytes.unwrap_or(0);
        self.bytes += key_bytes + value_bytes;
        self.key_bytes_min = Some(self.key_bytes_min.map_or(key_bytes, |min| min.min(key_bytes)));
        self.key_bytes_max = self.key_bytes_max.max(key_bytes);
        self.value_bytes_max = self.value_bytes_max.max(value_bytes);
    }

    /// Refuses keys that cannot exist.
    pub fn check_keys(&self) -> Result<(), InvalidKey> {
        let Some(shortest) = self.key_bytes_min else { return Ok(()) };
        check_key_bytes(shortest).and_then(|()| check_key_bytes(self.key_bytes_max))
    }

    /// Bytes of memory that the operation takes, about: a list of empty values is not as small as
    /// it looks.
    pub fn memory_bytes(&self) -> usize {
        self.bytes + (self.keys + self.values) * limits::ELEMENT_OVERHEAD_BYTES
    }
}

/// A store in memory, to try operations on.
#[cfg(test)]
mod tests;
