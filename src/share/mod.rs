//! The share: a registry that knows which peer has which file, and peers that send the files to
//! each other.
//!
//! A content is named by the BLAKE3 hash of its bytes, the same that `b3sum` prints. It travels in
//! chunks of [`limits::CHUNK_BYTES`](crate::limits::CHUNK_BYTES). Each chunk is a whole subtree of
//! BLAKE3's own tree, so the list of chunk hashes is verified against the content's name and each
//! chunk is verified against the list. Neither the registry nor any peer has to be trusted.
//!
//! Rule: the share uses [`net`](crate::net), [`wire`](crate::wire), [`workers`](crate::workers)
//! and [`client`](crate::client), and never the node core, consensus or storage.
//!
//! Left out: encryption and accounts. Whoever can connect can search and download.

pub mod chunks;
pub mod console;
pub mod content;
pub mod display;
pub mod fetch;
pub mod folder;
pub mod greeting;
pub mod index;
pub mod member;
pub mod offer;
pub mod peer;
pub mod rate;
pub mod registry;
pub mod registry_client;
#[cfg(test)]
mod seeds;
pub mod serve;
pub mod swarm;
