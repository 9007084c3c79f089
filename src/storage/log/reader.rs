//! Reads durable entries back, from any thread: for followers that are behind, and to apply entries
//! again at start.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::error::LogError;
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, RECORD_HEADER_BYTES, Record, RecordHeader,
    SEGMENT_HEADER_BYTES, SegmentHeader, next_frame,
};
use super::index::{EXTENT_STRIDE_BYTES, Extent, PositionIndex};
use super::segment::file_name;
use super::window::Window;
use crate::model::{LogEntry, LogIndex};
use crate::storage::files::Directory;

/// Reads durable entries. Cheap to clone; never waits for a write or a sync.
#[derive(Clone)]
pub struct LogReader {
    pub(super) fs: Arc<dyn Directory>,
    pub(super) index: Arc<RwLock<PositionIndex>>,
}

impl LogReader {
    /// The first index kept and the last durable one. The last is before the first if the log is
    /// empty.
    pub fn bounds(&self) -> (LogIndex, LogIndex) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        (index.first_index, index.last_index)
    }

    /// Reads entries from `low` on, contiguous, before `high` and up to the last durable one: at
    /// least one, and about `bytes_max` bytes of data.
    ///
    /// # Errors
    ///
    /// [`LogError::OutOfRange`] if `low` is not in the log, or not before `high`;
    /// [`LogError::Corrupt`] if the bytes on the disk are not those that were written.
    pub fn read(
        &self,
        low: LogIndex,
        high: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, LogError> {
        // The extents are consistent, because they are read under one lock, and what they name is
        // never overwritten, even if the writer replaces a suffix meanwhile.
        let count = (bytes_max / EXTENT_STRIDE_BYTES).saturating_add(2);
        let extents = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.check_holds(low, high)?;
            index.find(low, usize::try_from(count).unwrap_or(usize::MAX))
        };
        self.read_extents(extents, low, high, bytes_max).map_err(|error| {
            // The writer may have deleted the segments meanwhile; it updates the index first.
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            index.check_holds(low, high).err().unwrap_or(error)
        })
    }

    fn read_extents(
        &self,
        extents: Vec<(Extent, LogIndex)>,
        low: LogIndex,
        high: LogIndex,
        bytes_max: u64,
    ) -> Result<Vec<LogEntry>, LogError> {
        let mut wanted = Wanted { next: low, high, bytes_left: bytes_max, entries: Vec::new() };
        let mut open: Option<(u64, SegmentHeader, Window)> = None;
        for (extent, end) in extents {
            if wanted.is_satisfied() {
                break;
            }
            let (_, header, window) = match open.take() {
                Some(held) if held.0 == extent.segment => open.insert(held),
                _ => {
                    let (header, window) = open_segment(&*self.fs, extent.segment)?;
                    open.insert((extent.segment, header, window))
                }
            };
            read_extent(window, header, extent, end, &mut wanted)?;
        }
        Ok(wanted.entries)
    }
}

/// The progress of one read: the entries so far, and what is still wanted.
struct Wanted {
    next: LogIndex,
    high: LogIndex,
    bytes_left: u64,
    entries: Vec<LogEntry>,
}

impl Wanted {
    fn is_satisfied(&self) -> bool {
        self.next >= self.high || (self.bytes_left == 0 && !self.entries.is_empty())
    }
}

fn open_segment(fs: &dyn Directory, segment: u64) -> Result<(SegmentHeader, Window), LogError> {
    let mut window = Window::open(fs, &file_name(segment))?;
    let header = window.array::<SEGMENT_HEADER_BYTES>(0)?;
    match header.map(|bytes| SegmentHeader::decode(&bytes)) {
        Some(Ok(header)) if header.segment == segment => Ok((header, window)),
        _ => Err(window.corrupt(0, "the segment header does not match its checksum")),
    }
}

/// Reads from an extent's first record on, until its `end` or until the read is satisfied.
fn read_extent(
    window: &mut Window,
    segment: &SegmentHeader,
    extent: Extent,
    end: LogIndex,
    wanted: &mut Wanted,
) -> Result<(), LogError> {
    let mut offset = extent.offset;
    let mut payload_end = extent.payload_end;
    let mut expected = extent.first_index;
    while expected < end && !wanted.is_satisfied() {
        if offset >= payload_end {
            let frame = next_frame(payload_end);
            let header = window.array(frame)?.and_then(|head| FrameHeader::decode(&head, segment));
            let Some(header) = header else {
                return Err(window.corrupt(frame, "a batch does not match its checksum"));
            };
            offset = frame + FRAME_HEADER_BYTES as u64;
            payload_end = offset + u64::from(header.payload_bytes);
            continue;
        }
        let damaged = "an entry does not match its checksum";
        let Some(head) = window.array::<RECORD_HEADER_BYTES>(offset)? else {
            return Err(window.corrupt(offset, damaged));
        };
        let header = RecordHeader::decode(&head);
        let body = offset + RECORD_HEADER_BYTES as u64;
        let next = body + u64::from(header.body_bytes);
        if next > payload_end {
            return Err(window.corrupt(offset, damaged));
        }
        if header.is_entry() && expected >= wanted.next {
            // Bounded by the frame, whose length has its own checksum.
            let bytes = window.bytes(body, header.body_bytes as usize)?;
            match header.matches(bytes) {
                Some(Record::Entry { term, index, data }) if index == expected => {
                    let size = data.len() as u64;
                    wanted.entries.push(LogEntry {
                        term,
                        index,
                        data: Bytes::copy_from_slice(data),
                    });
                    wanted.next += 1;
                    wanted.bytes_left = wanted.bytes_left.saturating_sub(size.max(1));
                }
                _ => return Err(window.corrupt(offset, damaged)),
            }
        }
        expected += u64::from(header.is_entry());
        offset = next;
    }
    Ok(())
}
