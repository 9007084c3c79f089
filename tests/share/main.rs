//! The share: registries and peers as real processes, their commands and consoles, and transfers
//! between real ends in this process.
//!
//! Left out: transfers between processes that are killed or short of memory, whose tests are a
//! binary of their own (`share_processes`), since they start it again.

mod commands;
mod console;
mod disk;
mod registry;
#[path = "../share_support/mod.rs"]
mod share_support;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod transfer;
