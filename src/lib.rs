//! Acervo: a replicated key-value store that never goes back in time.
//!
//! This crate is the store, its client library and everything the `acervo` command is made of. To use
//! a running group from a program, [`Client`] is all you need. The rest of this page is the tour for
//! those who want to change it; `ARCHITECTURE.md` goes further.
//!
//! ```
//! use acervo::Client;
//! use acervo::server::LocalGroup;
//!
//! // Three servers in this process, for a test. Elsewhere they run as `acervo server`.
//! let dir = tempfile::tempdir()?;
//! let group = LocalGroup::start(dir.path())?;
//!
//! let client = Client::connect(group.servers())?;
//! let written = client.put("title", "Dom Casmurro")?;
//! let read = client.get("title")?;
//! assert_eq!(read.value.as_deref(), Some(&b"Dom Casmurro"[..]));
//! assert!(read.timestamp >= written.timestamp);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The parts
//!
//! | part | is for |
//! | --- | --- |
//! | [`model`], [`limits`], [`text`] | the shared vocabulary and the operations, every limit, escaping |
//! | [`console`], [`prompt`] | lines on standard output, off the request path; dialogues with a person |
//! | [`logging`] | the process's log: it never waits for standard error, and gathers lines that repeat |
//! | [`wire`] | frames, and the one [`Message`](wire::message::Message) type |
//! | [`net`] | the event loop: one thread that owns every socket |
//! | [`process`] | what a process settles with the system: signals, open files |
//! | [`workers`] | the pool of threads that handle requests |
//! | [`consensus`] | Raft, behind a facade |
//! | [`node`] | the core: one server's mind, pure |
//! | [`storage`] | the durable log, the engine, the state machine, the data directory |
//! | [`server`] | a server process: all of the above wired together |
//! | [`share`] | the registry and the peers that pass files to each other |
//! | [`client`] | the client library and the interactive console |
//! | `gateway` | the store for any gRPC client (feature `grpc`) |
//! | [`cli`] | the command line |
//!
//! # The life of a request
//!
//! A frame comes in at [`net`], is decoded by [`server`], and becomes an
//! [`Input`](node::Input) of the [`node`] core. What the core answers is carried out in order: messages
//! to other servers, batches for the log's thread, committed entries for the applier's. A PUT is
//! stamped, proposed, replicated while all disks sync side by side, applied, and answered when the
//! acknowledgement rule is met. A plain GET needs no agreement and goes straight to the workers.
//!
//! # The rule of dependencies
//!
//! `mio` only in [`net`]; `raft` only in [`consensus`]; `redb` only in [`storage`]; clocks and randomness
//! only where things are wired, in [`server`] and [`client`]. The core reads no clock, draws no random
//! number, does no IO and prints nothing, so that `tests/simulation` can run it under every fault from a
//! seed.

pub mod bench;
pub mod cli;
pub mod client;
pub mod consensus;
pub mod console;
#[cfg(feature = "grpc")]
pub mod gateway;
pub mod limits;
pub mod logging;
pub mod model;
pub mod net;
pub mod node;
pub mod process;
pub mod prompt;
pub mod server;
pub mod share;
pub mod storage;
pub mod text;
pub mod wire;
pub mod workers;

pub use client::Client;
