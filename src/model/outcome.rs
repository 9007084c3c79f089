//! What came of a write.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LogIndex, Term, Timestamp};

/// The result of applying a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOutcome {
    /// The version the write made. A retry gets the first application's.
    pub timestamp: Timestamp,
    /// It was not carried out, because too many large removals are under way. Sessions do not remember
    /// that: the client asks again later, as the same request.
    pub refused: bool,
}

/// One applied command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedWrite {
    /// Where it stood in the log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// What came of it: the first application's outcome, also for a retry. `None` when its
    /// session had already forgotten this sequence, or there is none.
    pub outcome: Option<WriteOutcome>,
    /// What its key had just before, if that was asked for.
    pub previous: Option<Previous>,
    /// The greatest sequence that its client's session has met by now: applied or ruled out. 0 when the
    /// client has no session.
    pub newest_sequence: u64,
}

impl AppliedWrite {
    /// Whether it was refused because it is not its client's first, and the others are not known.
    pub fn is_of_unknown_session(&self) -> bool {
        self.newest_sequence == 0
    }
}

/// What a key had before a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The version of the value; 0 when there was none.
    pub timestamp: Timestamp,
    /// The value. Nil when there was none, or when it is longer than
    /// [`limits::READ_SMALL_BYTES_MAX`](crate::limits::READ_SMALL_BYTES_MAX): then read it as a page of
    /// one key, with `at` and `seen` one less than the write's timestamp.
    pub value: Option<Bytes>,
}

/// What is known of the effect of a write that was not answered with its version. The later of two outweighs the
/// earlier.
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
