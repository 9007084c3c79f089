//! What a client is told of a transaction: which branch it took, and the result of each operation
//! of that branch.
//!
//! All of an answer has at most
//! [`TRANSACTION_RESULT_BYTES_MAX`](crate::limits::TRANSACTION_RESULT_BYTES_MAX) bytes of keys and
//! values. Values that find no room are left out, and can be read as of the version that is told
//! with them; a list of rows ends where the next key finds none.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits;
use crate::model::{Facts, Timestamp, bounded};

/// What a transaction came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnAnswer {
    /// Whether every comparison held, so that `then` was done, and otherwise `or_else`.
    pub succeeded: bool,
    /// One for each operation of that branch. `None` if a retry came so late that what they were
    /// may be off the disk.
    #[serde(deserialize_with = "bounded::optional_keys")]
    pub results: Option<Vec<TxnResult>>,
}

impl TxnAnswer {
    /// That of a write whose results are not known any more, and which took these branches.
    pub fn without_results(branches: u64) -> TxnAnswer {
        TxnAnswer { succeeded: branches & 1 != 0, results: None }
    }

    /// Bytes of memory that it takes, about.
    pub fn memory_bytes(&self) -> usize {
        let elements: usize = self.results.iter().flatten().map(TxnResult::elements).sum();
        self.bytes() + elements * limits::ELEMENT_OVERHEAD_BYTES
    }

    /// Bytes of the keys and values that it holds.
    pub fn bytes(&self) -> usize {
        self.results.iter().flatten().map(TxnResult::bytes).sum()
    }
}

/// The result of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnResult {
    /// What the key had; `None` for no value.
    #[serde(rename = "GET")]
    Get(Option<TxnVersion>),
    /// Keys of the range that had a value.
    #[serde(rename = "RANGE")]
    Range {
        /// In the order asked for; none if only their number was asked for.
        #[serde(deserialize_with = "bounded::keys")]
        rows: Vec<TxnRow>,
        /// The number of `rows`, or that of the keys that were counted.
        count: u64,
        /// There are more keys, of which nothing is told.
        has_more: bool,
    },
    /// A value was stored.
    #[serde(rename = "PUT")]
    Put {
        /// What the key had before, if that was asked for and it had a value.
        previous: Option<TxnVersion>,
    },
    /// A key was removed, if it had a value.
    #[serde(rename = "DEL")]
    Del {
        /// What the key had before, if that was asked for and it had a value.
        previous: Option<TxnVersion>,
    },
    /// The keys of a range were removed.
    #[serde(rename = "DEL_RANGE")]
    DelRange {
        /// How many of them had a value.
        removed: u64,
        /// What they had before, if that was asked for; fewer than `removed` if they found no
        /// room.
        #[serde(deserialize_with = "bounded::keys")]
        rows: Vec<TxnRow>,
    },
    /// What a transaction within the transaction came to.
    #[serde(rename = "TXN")]
    Txn(TxnAnswer),
}

impl TxnResult {
    /// Results and rows, those within a transaction included.
    fn elements(&self) -> usize {
        match self {
            TxnResult::Get(_) | TxnResult::Put { .. } | TxnResult::Del { .. } => 1,
            TxnResult::Range { rows, .. } | TxnResult::DelRange { rows, .. } => 1 + rows.len(),
            TxnResult::Txn(answer) => {
                1 + answer.results.iter().flatten().map(TxnResult::elements).sum::<usize>()
            }
        }
    }

    fn bytes(&self) -> usize {
        let of_rows = |rows: &[TxnRow]| {
            rows.iter().map(|row| row.key.len() + row.found.value_bytes()).sum::<usize>()
        };
        match self {
            TxnResult::Get(found) | TxnResult::Put { previous: found } => {
                found.as_ref().map_or(0, TxnVersion::value_bytes)
            }
            TxnResult::Del { previous } => previous.as_ref().map_or(0, TxnVersion::value_bytes),
            TxnResult::Range { rows, .. } | TxnResult::DelRange { rows, .. } => of_rows(rows),
            TxnResult::Txn(answer) => answer.bytes(),
        }
    }
}

/// A version that an operation of a transaction has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnVersion {
    /// That of the transaction itself, if an earlier operation of it has written the key.
    pub timestamp: Timestamp,
    /// What the version says of the key.
    pub facts: Facts,
    /// `None` if it was not asked for, or found no room in the answer.
    pub value: Option<Bytes>,
}

impl TxnVersion {
    fn value_bytes(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// A key and the version that an operation of a transaction has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxnRow {
    pub key: Bytes,
    pub found: TxnVersion,
}
