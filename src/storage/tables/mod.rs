//! The store's engine of our own: a log-structured merge tree on [`files`](super::files), so that
//! the simulated disk, the reserve and the gates of tests stay below it.
//!
//! A batch goes into a memory table. A durable batch *seals* the memory table, and a background
//! step writes it as a *table*: an immutable file of sorted rows. The tables of one seal, or of
//! one merge, form a *run*. The manifest names all runs, and is replaced as a whole.
//!
//! Invariants:
//!
//! - A run covers a contiguous stretch of seals, and only runs that are neighbours in time are
//!   merged. So the newest state of a row is in the newest run that has the row at all.
//! - No file is changed after the manifest has named it, and every byte of it that is read is
//!   checked against a CRC-32 that covers the file's number and the position: a flipped, cut,
//!   exchanged or outdated file is an error, and never another answer.
//! - The state after a crash is that of the last seal that the manifest names.
//! - Nothing is allocated by a length from a file before it was compared with what the file holds.
//!
//! Files of a store: `MANIFEST`, `N.table` and `N.values`, with one sequence of numbers `N` that
//! are never used twice.
//!
//! What it leaves out: a log of its own (the Raft log is the durable truth, and is kept until a
//! seal is in the manifest), compression, and locking the directory, which `storage::datadir` does.

mod block;
mod cache;
mod directory;
mod filter;
mod levels;
mod manifest;
mod memory_table;
mod merge;
mod run;
mod section;
mod table;
mod table_writer;
#[cfg(test)]
mod test_disk;
mod values;
mod view;
