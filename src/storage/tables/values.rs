//! Value segments: files of long values, to which rows of tables refer.
//!
//! ```text
//! N.values := value*        bytes only: length and checksum are in the reference
//! ```
//!
//! A long value is written when its memory table is written, and merges leave it where it is: with
//! values of 64 KiB, tables that held them would write them twice as often. They write it anew only
//! if its segment is small or mostly dead (`background`). A scan of keys reads none of them.
//!
//! A reference is covered by the checksum of its block, and has that of the value, which covers the
//! segment's number and the position. So every byte that is read is checked, and nothing in a
//! segment has to be trusted to find it.
//!
//! The manifest tells of each table how many bytes of which segment it refers to. A segment to
//! which no table refers is removed.
//!
//! What it leaves out: which values are live, and when they move to another segment.

use std::sync::Arc;

use super::block::ValueRef;
use super::directory::{Expendable, FileKind, FileWriter, StoreFile, TableDirectory};
use crate::storage::engine::EngineError;

/// Facts about a value segment, as they stand in the manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentFacts {
    pub number: u64,
    pub bytes: u64,
}

/// A segment that is being written.
pub(super) struct ValueWriter {
    file: FileWriter,
}

impl ValueWriter {
    /// Begins a segment, which has a number from now on.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn create(
        store: &Arc<TableDirectory>,
        expendable: Expendable,
    ) -> Result<ValueWriter, EngineError> {
        Ok(ValueWriter { file: store.create(FileKind::Values, expendable)? })
    }

    /// Appends a value, and returns the reference to it.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn add(&mut self, value: &[u8]) -> Result<ValueRef, EngineError> {
        let reference = ValueRef::new(self.file.place(), value);
        self.file.append(|_, out| out.extend_from_slice(value))?;
        Ok(reference)
    }

    pub fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Makes the segment durable, though not yet its name.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`].
    pub fn finish(self) -> Result<SegmentFacts, EngineError> {
        let number = self.file.number;
        Ok(SegmentFacts { number, bytes: self.file.finish()? })
    }
}

pub(super) struct ValueSegment {
    file: StoreFile,
    facts: SegmentFacts,
}

impl ValueSegment {
    /// Opens a segment of the manifest.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn open(
        store: &Arc<TableDirectory>,
        facts: SegmentFacts,
    ) -> Result<ValueSegment, EngineError> {
        let file = store.open(FileKind::Values, facts.number, facts.bytes)?;
        Ok(ValueSegment { file, facts })
    }

    /// Has the file removed with the last reader of this segment.
    pub fn set_obsolete(&self) {
        self.file.set_obsolete();
    }

    /// The value that a reference into this segment refers to.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`].
    pub fn read(&self, value: ValueRef) -> Result<Vec<u8>, EngineError> {
        let ValueRef { place, bytes, .. } = value;
        assert!(place.file == self.facts.number, "{value:?} read in {:?}", self.facts);
        let read = self.file.read(place.position, u64::from(bytes))?;
        match value.is_of(&read) {
            true => Ok(read),
            false => Err(self.file.damaged(place.position, "it does not match its checksum")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_disk::TestDisk;
    use super::*;
    use crate::storage::tables::section::Place;

    #[test]
    fn values_are_found_and_damage_of_any_bit_and_place_is() {
        let disk = TestDisk::default();
        let store = || Arc::new(TableDirectory::new(Arc::new(disk.clone()), 2));
        let mut writer = ValueWriter::create(&store(), Expendable::No).unwrap();
        let values = [&b"one value"[..], b"", b"another value"];
        let references = values.map(|value| writer.add(value).unwrap());
        assert_eq!(writer.bytes(), 22);
        let facts = writer.finish().unwrap();
        let open = || ValueSegment::open(&store(), facts).unwrap();
        let segment = open();
        for (value, reference) in values.into_iter().zip(references) {
            assert_eq!(
                (segment.read(reference).unwrap(), reference.head()),
                (value.to_vec(), value)
            );
        }
        let is_damage = |value| matches!(open().read(value), Err(EngineError::Damaged { .. }));
        let [one, _, another] = references;
        let moved = Place { position: one.place.position + 1, ..one.place };
        assert!(is_damage(ValueRef { place: moved, ..one }));
        assert!(is_damage(ValueRef { bytes: one.bytes + 1, ..one }));
        assert!(is_damage(ValueRef { bytes: u32::MAX, ..one }));
        assert!(is_damage(ValueRef { place: another.place, ..one }));
        assert!(is_damage(ValueRef { padded_head: another.padded_head, ..one }));
        for bit in 0..9 * 8 {
            disk.flip("1.values", bit);
            assert!(is_damage(one) && !is_damage(another), "bit {bit}");
            disk.flip("1.values", bit);
        }
        for length in 0..22 {
            let cut = disk.after_kill();
            cut.cut("1.values", length);
            let store = Arc::new(TableDirectory::new(Arc::new(cut), 2));
            assert!(ValueSegment::open(&store, facts).is_err(), "{length} bytes");
        }
    }
}
