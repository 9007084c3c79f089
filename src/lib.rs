//! Acervo: a replicated key-value store that never goes back in time.
//!
//! [`Client`] talks to a running group of servers; [`LocalGroup`] starts a group inside this
//! process, for the tests of programs that use one. [`client`] has their types, and says what they
//! promise.
//!
//! ```
//! use acervo::{Client, LocalGroup};
//!
//! // Three servers in this process, for a test. Elsewhere they run as `acervo server`.
//! let dir = tempfile::tempdir()?;
//! let group = LocalGroup::start(dir.path())?;
//!
//! let client = Client::connect(group.servers())?;
//! let written = client.put("title", "Dom Casmurro")?;
//! let read = client.get("title")?;
//! assert_eq!(read.value(), Some(&b"Dom Casmurro"[..]));
//! assert!(read.timestamp() >= Some(written.timestamp));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing else of this crate is for other programs. The servers, the gateway and the share run as
//! the `acervo` command; `ARCHITECTURE.md` describes how they are built.

// Every room is private, so that the compiler finds what nobody uses. The feature `internals` opens
// them to this crate's own tests, benches and fuzz targets, which enable it in
// `[dev-dependencies]`; nothing else may.
#![cfg_attr(feature = "internals", allow(missing_docs))]

#[cfg(not(feature = "internals"))]
mod bench;
#[cfg(feature = "internals")]
pub mod bench;
#[doc(hidden)]
pub mod cli;
pub mod client;
#[cfg(not(feature = "internals"))]
mod consensus;
#[cfg(feature = "internals")]
pub mod consensus;
#[cfg(not(feature = "internals"))]
mod console;
#[cfg(feature = "internals")]
pub mod console;
#[cfg(all(feature = "grpc", not(feature = "internals")))]
mod gateway;
#[cfg(all(feature = "grpc", feature = "internals"))]
pub mod gateway;
#[cfg(not(feature = "internals"))]
mod limits;
#[cfg(feature = "internals")]
pub mod limits;
#[cfg(not(feature = "internals"))]
mod logging;
#[cfg(feature = "internals")]
pub mod logging;
#[cfg(feature = "grpc")]
mod migration;
#[cfg(not(feature = "internals"))]
mod model;
#[cfg(feature = "internals")]
pub mod model;
#[cfg(not(feature = "internals"))]
mod net;
#[cfg(feature = "internals")]
pub mod net;
#[cfg(not(feature = "internals"))]
mod node;
#[cfg(feature = "internals")]
pub mod node;
#[cfg(not(feature = "internals"))]
mod process;
#[cfg(feature = "internals")]
pub mod process;
#[cfg(not(feature = "internals"))]
mod prompt;
#[cfg(feature = "internals")]
pub mod prompt;
#[cfg(not(feature = "internals"))]
mod server;
#[cfg(feature = "internals")]
pub mod server;
#[cfg(not(feature = "internals"))]
mod share;
#[cfg(feature = "internals")]
pub mod share;
#[cfg(not(feature = "internals"))]
mod storage;
#[cfg(feature = "internals")]
pub mod storage;
#[cfg(not(feature = "internals"))]
mod text;
#[cfg(feature = "internals")]
pub mod text;
#[cfg(not(feature = "internals"))]
mod wire;
#[cfg(feature = "internals")]
pub mod wire;
#[cfg(not(feature = "internals"))]
mod workers;
#[cfg(feature = "internals")]
pub mod workers;

pub use self::client::Client;
pub use self::server::{LocalGroup, ServerError};

/// The examples of the page on the library, which run with those of this crate.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
mod library_page {}

/// Those of the tour of coordination.
#[cfg(doctest)]
#[doc = include_str!("../docs/COORDINATION.md")]
mod coordination_page {}
