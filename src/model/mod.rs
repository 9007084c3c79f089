//! The vocabulary of the store: what all rooms speak of, and what an operation is.
//!
//! Nothing here does IO, reads a clock or draws a random number, and nothing here knows a
//! connection, a disk or a thread. Every other room may use it; it uses `limits` alone. What comes
//! from outside is checked where its type is made, and never again: a `FileName` is never a path,
//! whoever decoded it.
//!
//! It leaves out the messages that carry these things (`wire`) and the rows that they lie in
//! (`storage`).

pub(crate) mod bounded;
mod change;
mod command;
mod content;
mod encoded;
mod file_name;
mod garbage_collection;
mod group;
mod history;
mod ids;
mod key;
mod lease;
mod log;
mod op;
mod outcome;
mod row;
mod state;
mod timestamp;

pub use change::{FeedPosition, KeyChange, KeyInterval};
pub use command::{Action, Command, EntryError};
pub use content::{ChunkHash, ContentId, FileEntry, PeerId};
pub use encoded::EncodedWrite;
pub use file_name::{FileName, NameError};
pub use garbage_collection::GarbageCollection;
#[cfg(any(test, feature = "internals"))]
pub use group::ReleaseVersion;
pub use group::{FeatureLevel, GroupRules, Release, StateLimits};
pub use history::History;
pub use ids::{ClientId, ClusterId, LeaseId, NodeId, RequestId};
pub use key::{InvalidKey, check_key};
pub use lease::{
    LEASE_TTL_MAX, LEASES_PER_PAGE_MAX, LEASES_PER_RECORD_MAX, LEASES_PER_REQUEST_MAX, LeaseAnswer,
    LeaseEvent, LeaseName, LeaseQuestion, LeaseRecord, LeaseShown, LeaseState, check_lease_ttl,
};
pub use log::{HardState, LogBatch, LogEntry, LogIndex, Term};
pub use op::*;
pub use outcome::{AppliedWrite, Effect, Previous, WriteAnswer, WriteFate, WriteOutcome};
pub use row::{Facts, KeyState, PageNext, PageOf, ReadView, Row, Version};
pub use state::{AppliedPoint, DiskSpace, MachineSummary, Recovered, SnapshotId};
pub use timestamp::Timestamp;
