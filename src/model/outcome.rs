//! What came of a write, from the state machine to the client.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Facts, LogIndex, OpResult, Term, Timestamp, TxnAnswer};

/// The outcome of a write that was applied, as sessions remember it: a retry gets that of the first
/// application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteOutcome {
    /// The version that the write made, or would have made.
    pub timestamp: Timestamp,
    /// What the operation came to.
    pub result: OpResult,
}

/// What a client is told of a write that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteAnswer {
    /// The version that the write made, or would have made.
    pub timestamp: Timestamp,
    /// What the operation came to, the first time that it was applied.
    pub result: OpResult,
    /// What one key had just before, if the operation tells that. `None` also where whoever answers
    /// cannot tell, or does not trust its own state: it can be read as of the timestamp before the
    /// write's.
    pub previous: Option<Previous>,
    /// What a transaction tells, if it has taken effect. `None` also where nobody was waiting when
    /// it was applied, or where there was no room for it.
    pub txn: Option<Box<TxnAnswer>>,
}

impl WriteAnswer {
    /// An answer that tells nothing of what was before.
    pub fn of(WriteOutcome { timestamp, result }: WriteOutcome) -> WriteAnswer {
        WriteAnswer { timestamp, result, previous: None, txn: None }
    }

    /// Whether it tells more than the outcome, which is what is remembered of it.
    pub fn tells_more(&self) -> bool {
        self.previous.is_some() || self.txn.is_some()
    }

    /// Bytes of memory that it takes, about, as the answer to a transaction.
    pub fn txn_bytes(&self) -> usize {
        self.txn.as_ref().map_or(0, |txn| txn.memory_bytes())
    }

    /// Whether a transaction has taken effect and what it tells found no room: whoever waits is to
    /// ask again.
    pub fn is_untold(&self) -> bool {
        matches!(self.result, OpResult::Txn { .. }) && self.txn.is_none()
    }

    /// The same without what was before.
    pub fn outcome(&self) -> WriteOutcome {
        WriteOutcome { timestamp: self.timestamp, result: self.result }
    }
}

/// What a key had just before a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Previous {
    /// It had no value.
    #[serde(rename = "ABSENT")]
    Absent,
    /// It had a value.
    #[serde(rename = "VALUE")]
    Value {
        /// The version of the value.
        timestamp: Timestamp,
        /// What that version says of the key.
        facts: Facts,
        /// `None` when it is longer than
        /// [`READ_SMALL_BYTES_MAX`](crate::limits::READ_SMALL_BYTES_MAX), and is to be read as of
        /// the timestamp before the write's.
        value: Option<Bytes>,
    },
}

/// One client's write, as the state machine has dealt with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedWrite {
    /// Where it stood in the log.
    pub index: LogIndex,
    /// The term of its entry.
    pub term: Term,
    /// What became of it.
    pub fate: WriteFate,
    /// The greatest sequence that its client's session has met by now: applied or ruled out. 0 when
    /// the client has no session.
    pub newest_sequence: u64,
}

/// What became of a write when its entry was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteFate {
    /// It was carried out, now or when it was applied for the first time.
    Answered(WriteAnswer),
    /// Nothing was done and nothing is remembered, since too many large removals are under way.
    Refused,
    /// Its session had already forgotten what became of this sequence, so it was not carried out
    /// (again).
    Forgotten,
    /// Its client has no session, and may have had one that knew it, so it was not carried out
    /// (again).
    UnknownSession,
}

/// What is known of the effect of a write that was not answered with its version. The later of two
/// outweighs the earlier.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Effect {
    /// It has taken none, and will not.
    #[default]
    #[serde(rename = "NOT_DONE")]
    NotDone,
    /// It may have taken effect, or may yet.
    #[serde(rename = "MAY_BE_DONE")]
    MayBeDone,
    /// It has taken effect: a majority of the servers has stored it.
    #[serde(rename = "DONE")]
    Done,
}
