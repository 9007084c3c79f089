//! Consensus: Raft, behind a facade that keeps the library's types and its traps inside.
//!
//! The engine is raft-rs (Ongaro and Ousterhout, "In Search of an Understandable Consensus
//! Algorithm", with pre-vote, check-quorum, read index and leadership transfer), driven through its
//! asynchronous interface: entries go to the disk and to the other servers at the same time, and
//! a message that must not be sent before its state is durable waits in `ready`.
//!
//! What this part adds to the library:
//! - every message from another server is checked before it is stepped (`guard`), because the
//!   library panics on some that a broken or hostile server may send;
//! - a server with a blank data directory takes no part in elections until it is up to date
//!   (`voter_eligibility`);
//! - the log's recent tail is kept in memory, the rest is read from disk by the driver
//!   (`log_store`).
//!
//! What it leaves out: the data of snapshots, which is streamed outside of consensus and of which
//! only the metadata passes through here; membership change. It does no IO and reads no clock. The
//! election time-out is drawn at random by raft-rs unless the configuration fixes it.

mod bootstrap;
mod config;
mod convert;
mod facade;
mod guard;
mod log_store;
mod logging;
mod ready;
mod voter_eligibility;

pub use config::{ConsensusConfig, ConsensusError, InitialLog, NoLeader, ProposeError};
pub use facade::Consensus;
pub use guard::RaftMessageFault;
pub use ready::{Effects, InstallRequest};
