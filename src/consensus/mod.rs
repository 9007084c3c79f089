//! Consensus: Raft, behind a facade that keeps the library's types and its traps inside.
//!
//! The engine is raft-rs (Ongaro and Ousterhout, "In Search of an Understandable Consensus
//! Algorithm", with pre-vote, check-quorum, read index and leadership transfer), driven through its
//! asynchronous interface: entries go to the disk and to the other servers at the same time, and
//! whatever must not be said before it is durable waits in `ready`.
//!
//! What this part adds to the library:
//! - every message from another server is checked before it is stepped (`guard`), because the
//!   library panics on some that a broken or hostile server may send;
//! - a blank data directory takes no part in elections until it is up to date (`admission`);
//! - the log's recent tail is kept in memory, the rest is read from disk by others (`log_store`).
//!
//! What it leaves out: the data of snapshots, which travels as a stream outside consensus and of
//! which only the name passes through here; membership change. It does no IO and reads no clock.

mod admission;
mod convert;
mod facade;
mod guard;
mod log_store;
mod logging;
mod ready;

pub use facade::{
    Consensus, ConsensusConfig, ConsensusError, NoLeader, ProposeError, RecoveredLog,
};
pub use guard::PeerFault;
pub use ready::{Effects, FetchRequest, InstallRequest};
