//! Reads tables from the disk, past the cache, a number of blocks at a time, and verifies every
//! byte, long values included. Files do not change, so that needs no knowledge of what was written
//! before.
//!
//! Tables are verified in the order of their numbers, so that a position stays valid while tables
//! come and go: the number of a table in the upper bits, that of a block in the lower ones. A table
//! that a merge has written meanwhile has a higher number, and its turn comes.
//!
//! What it leaves out: bytes of a segment to which no row refers.

use std::sync::Arc;

use super::block::TableValue;
use super::levels::Levels;
use super::table::Access;
use crate::storage::engine::EngineError;

/// Bits of a position that number a block: more than a table can have.
const BLOCK_BITS: u32 = 24;

/// Verifies blocks from a position on. Returns where to continue; `None` at the end.
///
/// # Errors
///
/// [`EngineError::Damaged`], [`EngineError::Read`].
pub(super) fn scrub(
    levels: &Levels,
    position: u64,
    mut blocks: u64,
) -> Result<Option<u64>, EngineError> {
    let (first_table, mut first_block) =
        (position >> BLOCK_BITS, (position % (1 << BLOCK_BITS)) as usize);
    let mut tables: Vec<_> =
        levels.tables().filter(|table| table.facts().number >= first_table).collect();
    tables.sort_unstable_by_key(|table| table.facts().number);
    for table in tables {
        let number = table.facts().number;
        if number > first_table {
            first_block = 0;
        }
        let index = match first_block {
            0 => {
                table.read_filter()?;
                Arc::new(table.read_index()?)
            }
            // It was verified with the first block.
            _ => table.index(Access::Again)?,
        };
        for block in first_block..index.blocks() {
            if blocks == 0 {
                return Ok(Some(number << BLOCK_BITS | block as u64));
            }
            blocks -= 1;
            let block = table.read_block(&index, block)?;
            for row in 0..block.rows() {
                if let TableValue::Long(value) = block.value(row) {
                    levels.read_value(value)?;
                }
            }
        }
    }
    Ok(None)
}
