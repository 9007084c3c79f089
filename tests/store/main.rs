//! What a server keeps on its disk, tested in this process: the log, the data directory, the
//! engines and the versions, on simulated disks that lose power and on real files that rot.
//!
//! Left out: real processes on real disks (`tests/server`), and replication (`tests/simulation`).

mod crash;
mod damage;
mod datadir_crash;
mod engine_conformance;
#[path = "../support/log_disk.rs"]
mod log_disk;
mod plain_transactions;
mod room;
mod tables_crash;
mod versions_model;
mod watches_model;
