//! The bytes of a log segment. All numbers are little-endian.
//!
//! ```text
//! segment  := segment header, padded with zeroes to 4096 bytes; frames; zeroes
//! header   := magic 8 | version u32 | segment u64 | begins new log u8 | first index u64
//!             | previous term u64 | first batch u64 | marker u64
//!             | term u64 | vote u64 | commit u64 | admitted u8; zeroes to byte 508 | crc u32
//! frame    := marker u64 | segment u64 | batch u64 | payload bytes u32 | records u32
//!             | zero sectors u32 | payload crc u32 | header crc u32; payload;
//!             zeroes to a multiple of 8
//! payload  := records
//! record   := body bytes u32 | crc u32 | kind u8 | term u64 | index u64; body
//! ```
//!
//! Magic, version and checksum of a segment's header are at the same place in all formats, so that
//! damage can be told from a newer format.
//!
//! A disk writes sectors of 512 bytes, each as a whole or not at all, over zeroes. So in a frame
//! whose write was interrupted, a sector is zero that was not written as zero. *Zero sectors* tells
//! them apart: it is the number of parts of sectors after the frame's header that were written as
//! zero.
//!
//! A frame is the unit of atomicity: it counts as a whole or not at all. An entry's body is its
//! data; a hard state's is `vote u64 | commit u64 | admitted u8`, and its term is in the record's
//! header.
//!
//! The *marker* begins every frame of a segment and is random, so that a client cannot plant
//! something that looks like a frame inside a value: a search for frames after a damaged place can
//! rely on it.

use bytes::{Buf, BufMut};

use crate::model::{HardState, LogEntry, LogIndex, NodeId, Term};

/// The format version that this release writes, and the only one that it reads.
pub const FORMAT_VERSION: u32 = 9;

/// The size of the segment header: one page, so that the first frame begins on a new one.
pub(super) const SEGMENT_HEADER_BYTES: usize = 4096;
pub(super) const FRAME_HEADER_BYTES: usize = 44;
pub(super) const RECORD_HEADER_BYTES: usize = 25;

const SEGMENT_MAGIC: [u8; 8] = *b"ACERVLOG";
/// The smallest unit that a disk writes as a whole or not at all.
const SECTOR_BYTES: usize = 512;
/// The part of the segment header that its checksum covers: the first sector without the checksum.
/// The rest is not used.
const SEGMENT_SUMMED_BYTES: usize = SECTOR_BYTES - 4;
const FRAME_ALIGN_BYTES: u64 = 8;
const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const HARD_STATE_BODY_BYTES: usize = 17;

/// The header of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// The number of the segment, from which its file name is made.
    pub segment: u64,
    /// Whether a new log begins here: segments before this one, if any are left, are superseded.
    pub begins_new_log: bool,
    /// The index after the log's last one when the segment was created.
    pub first_index: LogIndex,
    /// The term of the entry before `first_index` when the segment was created.
    pub previous_term: Term,
    /// The batch in its first frame.
    pub first_batch: u64,
    /// The number with which its frames begin.
    pub marker: u64,
    /// The hard state when the segment was created, so that older segments can be deleted.
    pub hard_state: HardState,
}

/// Upper bound of indices, batches and segment numbers, which are counted from 1 and never reach
/// it. A greater number is refused where it is read, so that no later calculation can overflow.
pub(super) const NUMBER_MAX: u64 = 1 << 62;

/// Why a segment header could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SegmentHeaderError {
    OtherFormat(u32),
    Damaged,
}

impl SegmentHeader {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put_slice(&SEGMENT_MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u64_le(self.segment);
        out.put_u8(u8::from(self.begins_new_log));
        out.put_u64_le(self.first_index);
        out.put_u64_le(self.previous_term);
        out.put_u64_le(self.first_batch);
        out.put_u64_le(self.marker);
        out.put_u64_le(self.hard_state.term);
        out.put_u64_le(NodeId::number_of(self.hard_state.vote));
        out.put_u64_le(self.hard_state.commit);
        out.put_u8(u8::from(self.hard_state.admitted));
        out.resize(SEGMENT_SUMMED_BYTES, 0);
        let crc = crc32fast::hash(&out);
        out.put_u32_le(crc);
        out.resize(SEGMENT_HEADER_BYTES, 0);
        out
    }

    /// Whether these bytes are a header whose write was interrupted: its first sector is zero.
    pub fn is_unwritten(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> bool {
        is_zero(&bytes[..SECTOR_BYTES])
    }

    pub fn decode(bytes: &[u8; SEGMENT_HEADER_BYTES]) -> Result<Self, SegmentHeaderError> {
        // Every field read below is within the first sector.
        let (fields, mut crc) = bytes.split_at(SEGMENT_SUMMED_BYTES);
        if crc32fast::hash(fields) != crc.get_u32_le() {
            return Err(SegmentHeaderError::Damaged);
        }
        let Some(mut fields_left) = fields.strip_prefix(&SEGMENT_MAGIC) else {
            return Err(SegmentHeaderError::Damaged);
        };
        let version = fields_left.get_u32_le();
        if version != FORMAT_VERSION {
            return Err(SegmentHeaderError::OtherFormat(version));
        }
        Ok(SegmentHeader {
            segment: fields_left.get_u64_le(),
            begins_new_log: fields_left.get_u8() != 0,
            first_index: fields_left.get_u64_le(),
            previous_term: fields_left.get_u64_le(),
            first_batch: fields_left.get_u64_le(),
            marker: fields_left.get_u64_le(),
            hard_state: HardState {
                term: fields_left.get_u64_le(),
                vote: NodeId::from_number(fields_left.get_u64_le()),
                commit: fields_left.get_u64_le(),
                admitted: fields_left.get_u8() != 0,
            },
        })
    }
}

impl SegmentHeader {
    /// Whether all numbers are within [`NUMBER_MAX`], as a writer leaves them.
    pub fn is_plausible(&self) -> bool {
        let counted = 1..NUMBER_MAX;
        self.segment < NUMBER_MAX
            && counted.contains(&self.first_index)
            && self.first_batch < NUMBER_MAX
            && self.hard_state.commit < NUMBER_MAX
    }
}

/// The header of a frame, as read from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub marker: u64,
    pub segment: u64,
    pub batch: u64,
    pub payload_bytes: u32,
    pub records: u32,
    pub zero_sectors: u32,
    pub payload_crc: u32,
}

impl FrameHeader {
    fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        let mut fields = &mut out[..];
        fields.put_u64_le(self.marker);
        fields.put_u64_le(self.segment);
        fields.put_u64_le(self.batch);
        fields.put_u32_le(self.payload_bytes);
        fields.put_u32_le(self.records);
        fields.put_u32_le(self.zero_sectors);
        fields.put_u32_le(self.payload_crc);
        let crc = crc32fast::hash(&out[..FRAME_HEADER_BYTES - 4]);
        out[FRAME_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` if the bytes are not the header of a frame of this segment.
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES], of: &SegmentHeader) -> Option<FrameHeader> {
        let (fields, mut crc) = bytes.split_at(FRAME_HEADER_BYTES - 4);
        let mut left = fields;
        let header = FrameHeader {
            marker: left.get_u64_le(),
            segment: left.get_u64_le(),
            batch: left.get_u64_le(),
            payload_bytes: left.get_u32_le(),
            records: left.get_u32_le(),
            zero_sectors: left.get_u32_le(),
            payload_crc: left.get_u32_le(),
        };
        let good = header.marker == of.marker
            && header.segment == of.segment
            && crc32fast::hash(fields) == crc.get_u32_le();
        good.then_some(header)
    }

    /// Whether bytes at `offset` that are not a valid frame header are one whose write was
    /// interrupted: some sector's part of them is zero. A header that was written has none, because
    /// one part begins with the marker and the other ends with the checksum.
    pub fn is_torn(bytes: &[u8; FRAME_HEADER_BYTES], offset: u64) -> bool {
        zero_sectors(bytes, offset) > 0
    }
}

/// The number of parts of sectors that are zero in the bytes at `offset`.
pub(super) fn zero_sectors(bytes: &[u8], offset: u64) -> u32 {
    let first = SECTOR_BYTES - (offset % SECTOR_BYTES as u64) as usize;
    let (first, rest) = bytes.split_at(first.min(bytes.len()));
    let parts = std::iter::once(first).chain(rest.chunks(SECTOR_BYTES));
    parts.filter(|part| !part.is_empty() && is_zero(part)).count() as u32
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The position of the next frame: frames begin at multiples of eight bytes.
pub(super) fn next_frame(payload_end: u64) -> u64 {
    payload_end.next_multiple_of(FRAME_ALIGN_BYTES)
}

/// The distance between positions at which a frame can begin.
pub(super) const FRAME_STEP_BYTES: usize = FRAME_ALIGN_BYTES as usize;

/// A frame under construction, with at most one run of contiguous entries.
#[derive(Default)]
pub(super) struct FrameBuilder {
    bytes: Vec<u8>,
    records: u32,
    /// (index, position of its record within the frame) of each entry.
    pub entries: Vec<(LogIndex, u64)>,
}

impl FrameBuilder {
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(FRAME_HEADER_BYTES, 0);
        self.records = 0;
        self.entries.clear();
    }

    pub fn payload_bytes(&self) -> usize {
        self.bytes.len() - FRAME_HEADER_BYTES
    }

    pub fn put_hard_state(&mut self, hard_state: &HardState) {
        let mut body = [0; HARD_STATE_BODY_BYTES];
        let mut fields = &mut body[..];
        fields.put_u64_le(NodeId::number_of(hard_state.vote));
        fields.put_u64_le(hard_state.commit);
        fields.put_u8(u8::from(hard_state.admitted));
        self.put_record(KIND_HARD_STATE, hard_state.term, 0, &body);
    }

    pub fn put_entry(&mut self, entry: &LogEntry) {
        self.entries.push((entry.index, self.bytes.len() as u64));
        self.put_record(KIND_ENTRY, entry.term, entry.index, &entry.data);
    }

    fn put_record(&mut self, kind: u8, term: Term, index: LogIndex, body: &[u8]) {
        let mut header = RecordHeader { body_bytes: body.len() as u32, crc: 0, kind, term, index };
        header.crc = header.checksum(body);
        self.bytes.put_u32_le(header.body_bytes);
        self.bytes.put_u32_le(header.crc);
        self.bytes.put_u8(kind);
        self.bytes.put_u64_le(term);
        self.bytes.put_u64_le(index);
        self.bytes.put_slice(body);
        self.records += 1;
    }

    /// Completes the frame for its position and returns its bytes and the length of its payload.
    pub fn finish(&mut self, segment: &SegmentHeader, batch: u64, offset: u64) -> (&[u8], u64) {
        let payload_bytes = self.payload_bytes();
        let padded = self.bytes.len().next_multiple_of(FRAME_STEP_BYTES);
        let payload_crc = crc32fast::hash(&self.bytes[FRAME_HEADER_BYTES..]);
        self.bytes.resize(padded, 0);
        let behind_header = offset + FRAME_HEADER_BYTES as u64;
        let header = FrameHeader {
            marker: segment.marker,
            segment: segment.segment,
            batch,
            payload_bytes: payload_bytes as u32,
            records: self.records,
            zero_sectors: zero_sectors(&self.bytes[FRAME_HEADER_BYTES..], behind_header),
            payload_crc,
        };
        self.bytes[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
        (&self.bytes, payload_bytes as u64)
    }
}

/// The header of a record, as read from disk. It is not verified before
/// [`matches`](RecordHeader::matches) has checked it together with the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    pub body_bytes: u32,
    crc: u32,
    kind: u8,
    pub term: Term,
    pub index: LogIndex,
}

/// A record whose checksum is verified.
pub(super) enum Record<'a> {
    Entry { term: Term, index: LogIndex, data: &'a [u8] },
    HardState(HardState),
}

impl RecordHeader {
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> RecordHeader {
        let mut fields = &bytes[..];
        RecordHeader {
            body_bytes: fields.get_u32_le(),
            crc: fields.get_u32_le(),
            kind: fields.get_u8(),
            term: fields.get_u64_le(),
            index: fields.get_u64_le(),
        }
    }

    pub fn is_entry(&self) -> bool {
        self.kind == KIND_ENTRY
    }

    fn checksum(&self, body: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.body_bytes.to_le_bytes());
        hasher.update(&[self.kind]);
        hasher.update(&self.term.to_le_bytes());
        hasher.update(&self.index.to_le_bytes());
        hasher.update(body);
        hasher.finalize()
    }

    /// Checks the record; `None` when it is damaged or of no known kind.
    pub fn matches<'a>(&self, body: &'a [u8]) -> Option<Record<'a>> {
        if body.len() != self.body_bytes as usize || self.checksum(body) != self.crc {
            return None;
        }
        match self.kind {
            KIND_ENTRY => Some(Record::Entry { term: self.term, index: self.index, data: body }),
            KIND_HARD_STATE => {
                let mut fields: &[u8] = body.first_chunk::<HARD_STATE_BODY_BYTES>()?;
                Some(Record::HardState(HardState {
                    term: self.term,
                    vote: NodeId::from_number(fields.get_u64_le()),
                    commit: fields.get_u64_le(),
                    admitted: fields.get_u8() != 0,
                }))
            }
            _ => None,
        }
    }
}

/// Splits a whole payload into its records; the iterator ends after the first damaged one, which
/// it gives as `None`.
pub(super) fn records(mut payload: &[u8]) -> impl Iterator<Item = Option<(u64, Record<'_>)>> {
    let whole = payload.len();
    std::iter::from_fn(move || {
        if payload.is_empty() {
            return None;
        }
        let offset = (whole - payload.len()) as u64;
        let record = take_record(&mut payload);
        if record.is_none() {
            payload = &[];
        }
        Some(record.map(|record| (offset, record)))
    })
}

fn take_record<'a>(payload: &mut &'a [u8]) -> Option<Record<'a>> {
    let (head, rest) = payload.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let header = RecordHeader::decode(head);
    let (body, rest) = rest.split_at_checked(header.body_bytes as usize)?;
    *payload = rest;
    header.matches(body)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::formats;

    fn segment() -> SegmentHeader {
        SegmentHeader {
            segment: 7,
            begins_new_log: true,
            first_index: 100,
            previous_term: 2,
            first_batch: 40,
            marker: 0x0123_4567_89ab_cdef,
            hard_state: HardState { term: 3, vote: Some(NodeId(2)), commit: 99, admitted: true },
        }
    }

    fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
        *bytes.first_chunk().unwrap()
    }

    #[test]
    fn a_segment_header_survives_encoding_and_any_flipped_bit_is_noticed() {
        let encoded = segment().encode();
        assert_eq!(SegmentHeader::decode(&array(&encoded)), Ok(segment()));
        for bit in 0..SECTOR_BYTES * 8 {
            let mut damaged = encoded.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let decoded = SegmentHeader::decode(&array(&damaged));
            assert_eq!(decoded, Err(SegmentHeaderError::Damaged), "bit {bit}");
        }
    }

    #[test]
    fn a_segment_is_written_in_the_bytes_of_its_format() {
        use std::fmt::Write;
        let header = segment().encode();
        let mut frame = FrameBuilder::default();
        frame.clear();
        frame.put_hard_state(&segment().hard_state);
        frame.put_entry(&LogEntry { term: 3, index: 100, data: Bytes::from("data") });
        let (bytes, _) = frame.finish(&segment(), 40, SEGMENT_HEADER_BYTES as u64);
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut listing = format!("format {FORMAT_VERSION}\n");
        for bytes in [&header[..SECTOR_BYTES], &bytes[..end]] {
            writeln!(listing, "    {}", formats::shown(bytes)).unwrap();
        }
        formats::compare("log.txt", &listing, "FORMAT_VERSION in src/storage/log/format.rs");
    }

    /// Fuzzing found that a header with a right checksum and first index 0 stopped the process.
    #[test]
    fn a_segment_header_with_numbers_that_no_writer_wrote_is_not_plausible() {
        assert!(segment().is_plausible());
        assert!(!SegmentHeader { first_index: 0, ..segment() }.is_plausible());
        assert!(!SegmentHeader { first_index: u64::MAX, ..segment() }.is_plausible());
        assert!(!SegmentHeader { segment: u64::MAX, ..segment() }.is_plausible());
        assert!(!SegmentHeader { first_batch: NUMBER_MAX, ..segment() }.is_plausible());
    }

    #[test]
    fn another_format_is_told_from_damage() {
        for version in [FORMAT_VERSION - 1, FORMAT_VERSION + 1] {
            let mut other = segment().encode();
            other[8..12].copy_from_slice(&version.to_le_bytes());
            let crc = crc32fast::hash(&other[..SEGMENT_SUMMED_BYTES]);
            other[SEGMENT_SUMMED_BYTES..SECTOR_BYTES].copy_from_slice(&crc.to_le_bytes());
            let expected = Err(SegmentHeaderError::OtherFormat(version));
            assert_eq!(SegmentHeader::decode(&array(&other)), expected);
        }
    }

    #[test]
    fn a_frame_survives_encoding_and_any_flipped_bit_is_noticed() {
        let entry = LogEntry { term: 3, index: 100, data: Bytes::from_static(b"data") };
        let hard_state = HardState { term: 4, vote: None, commit: 98, admitted: false };
        let mut frame = FrameBuilder::default();
        frame.clear();
        frame.put_hard_state(&hard_state);
        frame.put_entry(&entry);
        let (bytes, payload_bytes) = frame.finish(&segment(), 41, 4096);
        let bytes = bytes.to_vec();

        let check = |bytes: &[u8]| -> Option<Vec<LogEntry>> {
            let header = FrameHeader::decode(&array(bytes), &segment())?;
            let payload = &bytes[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
            let mut entries = Vec::new();
            if crc32fast::hash(payload) != header.payload_crc {
                return None;
            }
            for record in records(payload) {
                match record?.1 {
                    Record::Entry { term, index, data } => {
                        entries.push(LogEntry { term, index, data: Bytes::copy_from_slice(data) })
                    }
                    Record::HardState(found) => assert_eq!(found, hard_state),
                }
            }
            Some(entries)
        };
        assert_eq!(check(&bytes), Some(vec![entry]));
        for bit in 0..(FRAME_HEADER_BYTES + payload_bytes as usize) * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&damaged), None, "bit {bit}");
        }
    }

    #[test]
    fn zeroes_are_not_a_frame() {
        let header = SegmentHeader { marker: 0, segment: 0, ..segment() };
        assert_eq!(FrameHeader::decode(&[0; FRAME_HEADER_BYTES], &header), None);
    }

    #[test]
    fn parts_of_sectors_are_counted_by_where_they_lie() {
        assert_eq!(zero_sectors(&[], 0), 0);
        assert_eq!(zero_sectors(&[0; 1024], 0), 2);
        assert_eq!(zero_sectors(&[0; 1024], 512 - 8), 3);
        let mut bytes = [0; 1024];
        bytes[8] = 1;
        assert_eq!((zero_sectors(&bytes, 512 - 8), zero_sectors(&bytes, 512 - 9)), (2, 2));
        assert_eq!((zero_sectors(&bytes, 0), zero_sectors(&bytes[..8], 0)), (1, 1));
    }
}
