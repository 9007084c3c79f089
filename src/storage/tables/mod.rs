//! The store's engine of our own: a log-structured merge tree on [`files`](super::files), so that
//! the simulated disk, the reserve and the gates of tests stay below it.
//!
//! A batch goes into a memory table. A *seal* ends the memory table, and a background step writes
//! it as a *table*: an immutable file of sorted rows. The tables of one seal, or of one merge, form
//! a *run*. The manifest names all runs, and is replaced as a whole.
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
//! The parts, from below:
//!
//! | part | is for |
//! | --- | --- |
//! | `section`, `block`, `filter` | bytes of files, pure: encoded, checked, decoded |
//! | `directory` | names, numbers, whole files, reads within bounds, the first damage |
//! | `table`, `table_writer`, `values`, `cache` | files of rows and of long values |
//! | `manifest`, `levels` | which files there are; these files, open |
//! | `memory_table`, `sorted_rows` | rows of the newest batches |
//! | `run`, `merge`, `view` | cursors over one run, over everything, as of one batch |
//! | `policy`, `background`, `scrub` | which step is next; that step; verifying files |
//! | `builder` | a whole store from the rows of a snapshot |
//! | `engine` | all of it as an [`Engine`](super::engine::Engine) |
//!
//! What it leaves out: a log of its own (the Raft log is the durable truth, and is kept until a
//! seal is in the manifest), compression, and locking the directory, which `storage::datadir` does.

mod background;
mod block;
mod builder;
mod cache;
mod directory;
mod engine;
mod filter;
#[cfg(test)]
mod formats;
#[cfg(any(test, feature = "internals"))]
pub mod fuzzing;
mod levels;
mod manifest;
mod memory_table;
mod merge;
mod policy;
mod run;
mod scrub;
mod section;
mod sorted_rows;
mod table;
mod table_writer;
#[cfg(test)]
mod test_disk;
mod values;
mod view;

pub use builder::TableStoreBuilder;
pub use engine::TableEngine;

use super::files::Directory;
use crate::limits;

/// However small the disk is, tables are not made smaller than this for it: half of a memory table.
const FITTED_TABLE_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// Bounds of an engine of tables. Tests draw them small, so that few rows make many tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablesOptions {
    /// A memory table of so many bytes is full.
    pub memory_table_bytes: usize,
    /// A block ends with the row with which it reaches so many bytes.
    pub block_bytes: usize,
    /// The number of runs of one size class that become one.
    pub fan: usize,
    /// Runs up to so many bytes are of the lowest size class.
    pub small_run_bytes: u64,
    /// A table, or a value segment, ends with the row with which it reaches so many bytes.
    pub table_bytes: u64,
    /// A step of a merge takes so many rows.
    pub merge_step_rows: usize,
    /// Longer values are stored in value segments.
    pub long_value_bytes: usize,
    /// Blocks, indexes and filters in memory.
    pub cache_bytes: usize,
    /// Files that stay open between two reads.
    pub open_files_max: usize,
}

impl Default for TablesOptions {
    fn default() -> TablesOptions {
        TablesOptions {
            // With two of them being moved, a server stays below 64 MiB.
            memory_table_bytes: 8 * 1024 * 1024,
            // The size with which this layout was measured against others and chosen.
            block_bytes: 8 * 1024,
            // Two or three classes for ten million rows: a row is written about three times.
            fan: 8,
            // An idle group seals every ten seconds: a file for less would be too much.
            small_run_bytes: 64 * 1024,
            // Ten million small rows make some 25 tables; an index is less than half a mebibyte.
            table_bytes: 64 * 1024 * 1024,
            // About a millisecond of work, unless long values are written anew.
            merge_step_rows: 1024,
            // A value of a page of the disk is not worth a read of its own.
            long_value_bytes: 4 * 1024,
            cache_bytes: 16 * 1024 * 1024,
            // A gigabyte or two of tables. To open a file anew costs less than to read from it.
            open_files_max: limits::STORE_FILES_MAX,
        }
    }
}

impl TablesOptions {
    /// With tables of at most the hundredth part of a small disk: a merge takes the room of one for
    /// each of its runs beside what it gives back, and writes must not be refused for it.
    fn fitting(self, directory: &dyn Directory) -> TablesOptions {
        // A disk that does not tell its size is found out when something is written.
        let Ok(space) = directory.space() else { return self };
        let table_bytes_max = (space.total_bytes / 100).max(FITTED_TABLE_BYTES_MIN);
        TablesOptions { table_bytes: self.table_bytes.min(table_bytes_max), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::tables::test_disk::TestDisk;

    #[test]
    fn tables_are_smaller_on_a_small_disk_and_never_larger() {
        // It says that it has a gibibyte.
        let disk = TestDisk::default();
        let fitted = TablesOptions::default().fitting(&disk);
        assert_eq!(fitted.table_bytes, (1 << 30) / 100);
        let tiny = TablesOptions { table_bytes: 100, ..TablesOptions::default() };
        assert_eq!(tiny.fitting(&disk), tiny);
    }
}
