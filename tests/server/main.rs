//! Servers as real processes: what a group and its clients see when processes are killed, disks
//! fail, neighbours are hostile, or a parent ends.
//!
//! Every test has its own group, on addresses and in a folder of its own, so that tests run beside
//! each other. Limits of this process are only ever raised. Left out: what floods cost a process in
//! memory (`tests/memory`), and the commands and consoles (`tests/commands`).

mod abuse;
mod campaign;
mod cluster;
mod cluster_command;
mod damage;
mod data_directory;
mod disk_full;
mod early_reads;
mod failover;
#[path = "../support/mod.rs"]
mod support;
mod watches;
