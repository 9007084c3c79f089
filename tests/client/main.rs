//! The client library against scripted servers. Nothing here starts a process.
//!
//! Left out: the library's core in virtual time, which `src/client` tests itself, and real servers
//! (`tests/scripts`, `tests/server`).

#[path = "../support/fake_server.rs"]
mod fake_server;
mod library;
mod transactions;
mod versions;
mod watches;
