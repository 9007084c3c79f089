//! The share: a registry that knows who has which files, and peers that pass them to each other.
//!
//! A file's content is named by its BLAKE3 hash, the one `b3sum` prints. It travels in chunks of
//! [`limits::CHUNK_BYTES`](crate::limits::CHUNK_BYTES), each of them a whole subtree of BLAKE3's own
//! tree, so that the list of chunk hashes can be checked against the content's name, and each chunk
//! against the list: nobody has to be trusted for either.
//!
//! What it uses of the rest: [`net`](crate::net), [`wire`](crate::wire), [`workers`](crate::workers) and
//! [`client`](crate::client); never the node core or its storage.

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
pub mod serve;
pub mod swarm;
