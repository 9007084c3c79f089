//! Reads tables from the disk, past the cache, a number of blocks at a time, and verifies every
//! byte, long values included. Files do not change, so that needs no knowledge of what was written
//! before.
//!
//! Tables are verified in the order of their numbers, so that a position stays valid while tables
//! come and go: the number of a table in the upper bits, then that of a block, then that of a row.
//! A table that a merge has written meanwhile has a higher number, and its turn comes.
//!
//! A long value counts as the blocks that it would fill, and a step may end between two of them: a
//! block of references leads to far more bytes than its own.
//!
//! What it leaves out: bytes of a segment to which no row refers.

use std::sync::Arc;

use super::block::TableValue;
use super::levels::Levels;
use super::table::Access;
use crate::storage::engine::EngineError;

/// Bits of a position that number a row in a block. A step does not end at a later one.
const ROW_BITS: u32 = 12;
/// Bits of a position that number a block: more than a table can have.
const BLOCK_BITS: u32 = 22;
/// Bytes of a long value that count as a block.
const BLOCK_BYTES: u64 = 8 * 1024;

/// Where the next step begins.
struct ScrubPosition {
    table: u64,
    block: usize,
    row: usize,
}

impl ScrubPosition {
    fn decode(position: u64) -> ScrubPosition {
        let low_bits = |bits: u32, shift: u32| (position >> shift) as usize % (1 << bits);
        ScrubPosition {
            table: position >> (BLOCK_BITS + ROW_BITS),
            block: low_bits(BLOCK_BITS, ROW_BITS),
            row: low_bits(ROW_BITS, 0),
        }
    }

    fn encode(&self) -> u64 {
        (self.table << BLOCK_BITS | self.block as u64) << ROW_BITS | self.row as u64
    }
}

/// Verifies so many blocks from a position on, at least one block or value. Returns where to
/// continue; `None` at the end.
///
/// # Errors
///
/// [`EngineError::Damaged`], [`EngineError::Read`].
pub(super) fn scrub(
    levels: &Levels,
    position: u64,
    mut blocks: u64,
) -> Result<Option<u64>, EngineError> {
    let start = ScrubPosition::decode(position);
    let mut tables: Vec<_> =
        levels.tables().filter(|table| table.facts().number >= start.table).collect();
    tables.sort_unstable_by_key(|table| table.facts().number);
    let mut is_first_value = true;
    for table in tables {
        let number = table.facts().number;
        if blocks == 0 {
            return Ok(Some(ScrubPosition { table: number, block: 0, row: 0 }.encode()));
        }
        let is_begun = number == start.table && (start.block, start.row) != (0, 0);
        let index = if is_begun {
            // It was verified with the first block.
            table.index(Access::Again)?
        } else {
            (0..table.filter_parts()).try_for_each(|part| table.read_filter(part).map(drop))?;
            Arc::new(table.read_index()?)
        };
        let first_block = if is_begun { start.block } else { 0 };
        for block in first_block..index.blocks() {
            if blocks == 0 {
                return Ok(Some(ScrubPosition { table: number, block, row: 0 }.encode()));
            }
            blocks -= 1;
            let first_row = if is_begun && block == start.block { start.row } else { 0 };
            let rows = table.read_block(&index, block)?;
            for row in first_row..rows.rows() {
                let TableValue::Long(value) = rows.value(row) else { continue };
                if blocks == 0 && !is_first_value && row < 1 << ROW_BITS {
                    return Ok(Some(ScrubPosition { table: number, block, row }.encode()));
                }
                levels.read_value(value)?;
                is_first_value = false;
                blocks = blocks.saturating_sub(u64::from(value.bytes).div_ceil(BLOCK_BYTES));
            }
        }
    }
    Ok(None)
}
