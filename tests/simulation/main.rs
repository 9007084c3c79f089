//! A deterministic simulation of a group of server cores.
//!
//! Three cores run in virtual time on simulated disks and a simulated network, both of which fail
//! in every way the real ones may; clients read and write through it all, and a checker that sees
//! everything compares what happened with what was promised. Everything follows from a seed:
//!
//! - `ACERVO_SIM_SEEDS=5000 cargo test --test simulation` runs a longer campaign;
//! - `ACERVO_SEED=17 cargo test --test simulation seeds` replays one seed with its trace.
//!
//! | part | what it is |
//! | --- | --- |
//! | `world`, `driver`, `links`, `clients` | virtual time, and what happens in it |
//! | `server`, `disk`, `machine`, `network` | what cores stand on, the real store among it |
//! | `nemesis` | what goes wrong |
//! | `checker`, `reads`, `model`, `linearizability` | what must hold |
//! | `leases` | holders of leases, and what must hold of them |
//! | `contenders` | programs that contend for a lock, and what must hold of them |
//! | `campaign` | many random seeds |
//! | `liveness` | many seeds in which a majority is well, and must be seen to be |
//! | `scenarios`, `hostile` | directed tests, each named after the rule it proves |
//!
//! Bugs that were planted to see whether they are caught, and in how many of 1,000 seeds they were:
//!
//! | bug | seeds |
//! | --- | --- |
//! | DEL_RANGE leaves out its last key | 665 |
//! | later pages show the newest state instead of the first page's | 912 |
//! | TRIM removes the newest version too, on one server of the group | 823 |
//! | a retry is applied twice | 853 |
//! | a retry of a transaction takes the branch that it would take now | 287 |
//! | a late copy of a first write is applied when its session is gone | 98 |
//! | what was previous is read after the write | 991 |
//! | a retry is told what is there now as what was previous | 681 |
//! | a sweep removes one version too many | 268 |
//! | a purge does not move the horizon before which pages are refused | 239 |
//! | a page is answered by a state older than its session | 660 |
//! | a read as of a version does not wait for that version | 458 |
//! | removals after the version asked for are forgotten by range reads | 497 |
//! | a tombstone is collected before what it hides | 2 of 60 |
//! | a tombstone is kept for ever | 8 of 40 |
//!
//! And of leases, in how many seeds of how many:
//!
//! | bug | seeds |
//! | --- | --- |
//! | a keep-alive is answered by a leader that was not confirmed | 3 of 300 |
//! | the time of leases is the wall clock's | 14 of 300 |
//! | a new leader counts from the deadline that it knew before | 11 of 40 |
//! | the end of a lease removes the history of its keys | 1 of 20 |
//! | a leader answers before it has applied the first entry of its term | 1 of 400 |
//!
//! And of locks, in how many of 40 seeds (the second one of 80):
//!
//! | bug | seeds |
//! | --- | --- |
//! | whoever waits watches the holder's key, not the one before its own | 11 |
//! | whoever waits does not look again when the one before has gone | 8 |
//! | the order is that of the last writes to the keys, not of when they came into being | 6 |
//!
//! And of leadership, by which tests they were caught:
//!
//! | bug | caught by |
//! | --- | --- |
//! | a leader that may not lead does not step down | three scenarios, half of `liveness`'s seeds |
//! | answers to heartbeats wait for the disk | two scenarios |
//! | votes do not wait for the disk | 26 of 100 seeds |
//! | rehearsals are granted by who owes the disk a vote | `liveness` in 4 of 5,000 seeds |
//! | REPLICATION_OK does not wait for the disk | 100 of 100 seeds |
//! | every failed write is said not to be done | a scenario |
//! | silence and broken links leave the set in sync as it is | two scenarios |
//! | what was passed on is not passed on again when the link of its answer breaks | a scenario |
//!
//! And of watches, in how many of 60 seeds, and whether by `watches_model` of `tests/store`, too:
//!
//! | bug | seeds | model |
//! | --- | --- | --- |
//! | who is behind the window goes on in it, and misses what is between | 3 | yes |
//! | entries are shown when the log has them, before they are committed | 43 | no |
//! | a watch from before the horizon is shown what is left | 6 | yes |
//! | pages forget the removal of a long range | 22 | yes |
//! | the window forgets the removal of a long range | 21 | yes |
//! | progress is told as far as the server has applied | 27 | yes |
//! | the place within a write is lost between pages | 0 | yes |
//! | what was applied before anybody followed is not shown to the first | 0 | yes |
//!
//! And of damage, by a scenario each:
//!
//! | bug |
//! | --- |
//! | a server without its store asks for a snapshot of what is not committed |
//! | what cannot be applied without a state fills the room for what is not applied |
//! | in an idle group nobody compares states again |
//!
//! What it leaves out: sockets and real disks, which have tests of their own.

mod campaign;
mod checker;
mod clients;
mod contenders;
mod disk;
mod driver;
mod hostile;
mod leases;
mod linearizability;
mod links;
mod liveness;
#[path = "../support/log_disk.rs"]
#[allow(dead_code, reason = "tests of crashes use the rest")]
mod log_disk;
mod machine;
mod model;
mod nemesis;
mod network;
mod plain_transactions;
mod reads;
mod rng;
mod scenarios;
mod server;
mod trace;
mod watchers;
mod world;
