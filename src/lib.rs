//! Acervo: a replicated key-value store that never goes back in time.

pub mod bench;
pub mod cli;
pub mod client;
pub mod command;
pub mod consensus;
pub mod limits;
pub mod net;
pub mod node;
pub mod server;
pub mod storage;
pub mod text;
pub mod types;
pub mod wire;
pub mod workers;

pub use client::Client;
