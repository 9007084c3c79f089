//! Reads the whole log at start, and finds where it ends.
//!
//! Every frame is synced before the next is written, so a crash can damage the last one only. It
//! does so by leaving out sectors, which then contain zeroes, or by ending the file early. Rule: a
//! bad frame that was cut short in this way, with nothing valid after it, is a *torn tail*. It was
//! never acknowledged and is cut off. Any other bad frame is *corruption*, and the log refuses to
//! open: the frame may have been acknowledged, and contain a vote or a write that only a bare
//! majority has. (If the last frame loses a sector long after it was written, that looks like a
//! torn tail, and is not detected.)
//!
//! The log begins with the newest segment that is marked as the start of a new log, or with the
//! oldest segment. Older segments before such a start are deleted unread.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::LogError;
use super::format::{
    FRAME_HEADER_BYTES, FRAME_STEP_BYTES, FrameHeader, Record, SEGMENT_HEADER_BYTES, SegmentHeader,
    SegmentHeaderError, next_frame, records, zero_sectors,
};
use super::index::PositionIndex;
use super::options::LogOptions;
use super::segment::{self, SegmentWriter, Span, file_name, parse_file_name};
use super::terms::TermRuns;
use super::window::Window;
use crate::model::{HardState, LogIndex};
use crate::storage::files::{Directory, DiskFile};
use crate::text::counted;

/// The contents of a log that is not blank.
pub(super) struct Recovery {
    pub hard_state: HardState,
    pub terms: TermRuns,
    pub index: PositionIndex,
    pub next_batch: u64,
    pub segments: Vec<Span>,
    pub tail: SegmentWriter,
}

/// The state after the frames read so far.
struct Replay {
    hard_state: HardState,
    terms: TermRuns,
    index: PositionIndex,
    next_batch: u64,
}

/// The frame at a position, after it was checked.
enum Frame {
    /// The frame is valid, and its records were added.
    Whole { payload_end: u64 },
    /// Zeroes or a bad frame; `cut_short` if its write may have been interrupted.
    Bad { cut_short: bool },
}

/// A segment that was read to its end.
struct Scanned {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    /// The position of the last valid frame; 0, that of the header, if there is none.
    last_frame: u64,
    /// The position of the next frame.
    end: u64,
    /// Whether there are bytes other than zero after `end`.
    torn: bool,
    len_bytes: u64,
}

/// Reads every segment in order. `None` if the log is blank.
pub(super) fn recover(
    fs: &dyn Directory,
    options: &LogOptions,
) -> Result<Option<Recovery>, LogError> {
    let Chain { headers, superseded } = read_chain(fs, options)?;
    // No segment contains entries at or after the first index of a later one. So the log is
    // complete from the lowest first index on, however many of the oldest segments were deleted.
    let first_index = headers.iter().map(|header| header.first_index).min().unwrap_or(0);
    let mut replay: Option<Replay> = None;
    let mut last: Option<Scanned> = None;
    for (position, header) in headers.iter().enumerate() {
        let is_last = position + 1 == headers.len();
        let mut window = Window::open(fs, &file_name(header.segment))?;
        if let (Some(replay), Some(last)) = (&replay, &last) {
            replay.check_continues(header, last)?;
        }
        let replay = replay.get_or_insert_with(|| Replay::new(header, first_index));
        let scanned = replay.scan(&mut window, *header, is_last)?;
        if options.sync {
            // Frames of a process that died, or ran without syncs, may not be durable.
            let sync = scanned.file.sync_data();
            sync.map_err(|error| LogError::io("sync", &scanned.path, error))?;
        }
        last = Some(scanned);
    }
    let (Some(mut replay), Some(last)) = (replay, last) else { return Ok(None) };
    if replay.index.last_index + 1 < replay.index.first_index {
        // Entries before the first index are only ones that replace others, and further ones must
        // follow them.
        return Err(LogError::Corrupt {
            path: last.path,
            offset: last.end,
            detail: "the entries that the log should start with are missing",
        });
    }
    for segment in superseded {
        segment::remove(fs, segment)?;
    }
    // If an append was split into several frames, the hard state in the first may name a commit
    // index in a later one.
    replay.hard_state.commit = replay.hard_state.commit.min(replay.index.last_index);
    let tail = settle_tail(fs, options, last)?;
    Ok(Some(Recovery {
        hard_state: replay.hard_state,
        terms: replay.terms,
        index: replay.index,
        next_batch: replay.next_batch,
        segments: headers.iter().map(Span::of).collect(),
        tail,
    }))
}

/// The segments that make up the log, and those that a new log has superseded.
struct Chain {
    /// In order, without gaps.
    headers: Vec<SegmentHeader>,
    superseded: Vec<u64>,
}

/// Finds the beginning of the log, from its newest segment backwards.
fn read_chain(fs: &dyn Directory, options: &LogOptions) -> Result<Chain, LogError> {
    let names = fs.list().map_err(|error| LogError::io("list", &fs.path(""), error))?;
    let mut listed: Vec<u64> = names.iter().filter_map(|name| parse_file_name(name)).collect();
    listed.sort_unstable();
    let newest = listed.last().copied();
    let mut headers: Vec<SegmentHeader> = Vec::new();
    while let Some(segment) = listed.pop() {
        let mut window = Window::open(fs, &file_name(segment))?;
        let Some(header) = read_header(&mut window, segment, newest == Some(segment))? else {
            // Its creation was interrupted, so no frame was ever written to it.
            log::warn!("{} was being created at a crash: starting it anew", window.path.display());
            discard(fs, options, segment)?;
            continue;
        };
        if let Some(next) = headers.last()
            && next.segment != segment + 1
        {
            let missing = fs.path(&file_name(next.segment - 1));
            return Err(LogError::MissingSegment { path: missing });
        }
        headers.push(header);
        if header.begins_new_log {
            break;
        }
    }
    headers.reverse();
    Ok(Chain { headers, superseded: listed })
}

/// Reads a segment's header; `None` for the last segment if its creation was interrupted.
fn read_header(
    window: &mut Window,
    segment: u64,
    is_last: bool,
) -> Result<Option<SegmentHeader>, LogError> {
    let bytes = window.array::<SEGMENT_HEADER_BYTES>(0)?;
    let header = bytes.as_ref().map_or(Err(SegmentHeaderError::Damaged), SegmentHeader::decode);
    let is_unwritten = bytes.as_ref().is_none_or(SegmentHeader::is_unwritten);
    match header {
        Ok(header) if header.segment == segment && !header.is_plausible() => {
            Err(window.corrupt(0, "the segment header names entries that no log has"))
        }
        Ok(header) if header.segment == segment => Ok(Some(header)),
        Ok(header) => {
            Err(LogError::WrongSegment { path: window.path.clone(), found: header.segment })
        }
        Err(SegmentHeaderError::OtherFormat(version)) => {
            Err(LogError::OtherFormat { path: window.path.clone(), version })
        }
        Err(SegmentHeaderError::Damaged)
            if is_last && is_unwritten && window.is_zero_from(SEGMENT_HEADER_BYTES as u64)? =>
        {
            Ok(None)
        }
        Err(SegmentHeaderError::Damaged) => {
            Err(window.corrupt(0, "the segment header does not match its checksum"))
        }
    }
}

fn discard(fs: &dyn Directory, options: &LogOptions, segment: u64) -> Result<(), LogError> {
    segment::remove(fs, segment)?;
    if options.sync {
        let path = fs.path(&file_name(segment));
        fs.sync().map_err(|error| LogError::io("sync", &path, error))?;
    }
    Ok(())
}

/// Cuts off a torn tail, and makes sure that the rest is durable.
fn settle_tail(
    fs: &dyn Directory,
    options: &LogOptions,
    last: Scanned,
) -> Result<SegmentWriter, LogError> {
    let Scanned { header, file, path, last_frame, end, torn, mut len_bytes } = last;
    if torn {
        log::warn!(
            "{}: cutting off an unfinished write at byte {end} ({})",
            path.display(),
            counted(len_bytes - end, "byte", "bytes")
        );
        // The bytes are cut off and not overwritten: a shorter frame would leave some of them after
        // it.
        file.set_len(end).map_err(|error| LogError::io("cut", &path, error))?;
        len_bytes = end;
    }
    if options.sync {
        // After a failed sync the system may have pages that are marked clean and are not on the
        // disk. Only those of the last write can be such, so it is written again and then synced.
        rewrite(&*file, last_frame, end)
            .and_then(|()| file.sync_data())
            .map_err(|error| LogError::io("sync", &path, error))?;
        fs.sync().map_err(|error| LogError::io("sync", &path, error))?;
    }
    Ok(SegmentWriter::resume(header, path, file, end, len_bytes))
}

fn rewrite(file: &dyn DiskFile, from: u64, to: u64) -> std::io::Result<()> {
    let mut bytes = vec![0; (to - from) as usize];
    let read = file.read_at(&mut bytes, from)?;
    file.write_all_at(&bytes[..read], from)
}

impl Replay {
    fn new(first: &SegmentHeader, first_index: LogIndex) -> Replay {
        let mut index = PositionIndex::new(first_index);
        index.last_index = first.first_index.saturating_sub(1);
        Replay {
            hard_state: first.hard_state,
            terms: TermRuns::new(first.first_index, first.previous_term),
            index,
            next_batch: first.first_batch,
        }
    }

    /// Checks that the previous segment ends where a later one says: its own end does not show that
    /// frames are missing.
    fn check_continues(&self, header: &SegmentHeader, previous: &Scanned) -> Result<(), LogError> {
        if header.first_batch == self.next_batch && header.first_index == self.index.last_index + 1
        {
            return Ok(());
        }
        Err(LogError::Corrupt {
            path: previous.path.clone(),
            offset: previous.end,
            detail: "batches are missing before the next segment",
        })
    }

    /// Reads all frames of a segment.
    fn scan(
        &mut self,
        window: &mut Window,
        header: SegmentHeader,
        is_last: bool,
    ) -> Result<Scanned, LogError> {
        let len_bytes = window.len_bytes()?;
        let mut scanned = Scanned {
            header,
            file: window.file(),
            path: window.path.clone(),
            last_frame: 0,
            end: SEGMENT_HEADER_BYTES as u64,
            torn: false,
            len_bytes,
        };
        let cut_short = loop {
            match self.take_frame(window, &header, scanned.end, len_bytes)? {
                Frame::Whole { payload_end } => {
                    scanned.last_frame = scanned.end;
                    scanned.end = next_frame(payload_end);
                }
                Frame::Bad { cut_short } => break cut_short,
            }
        };
        scanned.torn = !window.is_zero_from(scanned.end)?;
        let harmless = is_last && cut_short;
        if scanned.torn && (!harmless || self.later_frame(window, &header, scanned.end)?) {
            return Err(window.corrupt(scanned.end, "a batch does not match its checksum"));
        }
        Ok(scanned)
    }

    /// Reads the frame at `offset`, and adds its records if it is valid.
    fn take_frame(
        &mut self,
        window: &mut Window,
        segment: &SegmentHeader,
        offset: u64,
        len_bytes: u64,
    ) -> Result<Frame, LogError> {
        let Some(bytes) = window.array(offset)? else { return Ok(Frame::Bad { cut_short: true }) };
        let Some(header) = FrameHeader::decode(&bytes, segment) else {
            return Ok(Frame::Bad { cut_short: FrameHeader::is_torn(&bytes, offset) });
        };
        if header.batch != self.next_batch {
            return Err(window.corrupt(offset, "a batch is not the one that should follow"));
        }
        let payload_start = offset + FRAME_HEADER_BYTES as u64;
        let payload_end = payload_start + u64::from(header.payload_bytes);
        let end = next_frame(payload_end);
        if end > len_bytes {
            return Ok(Frame::Bad { cut_short: true });
        }
        // At most the rest of the file, as just checked.
        let padded = window.bytes(payload_start, (end - payload_start) as usize)?;
        let payload = padded.get(..header.payload_bytes as usize).unwrap_or(padded);
        if crc32fast::hash(payload) != header.payload_crc {
            let cut_short = zero_sectors(padded, payload_start) > header.zero_sectors;
            return Ok(Frame::Bad { cut_short });
        }
        let Some(entries) = self.take_records(payload, header.records) else {
            return Err(window.corrupt(offset, "a batch holds records that do not belong together"));
        };
        self.index.add_frame(segment.segment, offset, payload_end, &entries);
        self.next_batch += 1;
        Ok(Frame::Whole { payload_end })
    }

    /// Adds the records of a frame, and returns the entries' indices and positions within the
    /// frame; `None` if they contradict each other or earlier frames.
    fn take_records(&mut self, payload: &[u8], count: u32) -> Option<Vec<(LogIndex, u64)>> {
        let mut entries: Vec<(LogIndex, u64)> = Vec::new();
        let mut found = 0;
        for record in records(payload) {
            let (position, record) = record?;
            found += 1;
            match record {
                Record::HardState(hard_state) => self.hard_state = hard_state,
                Record::Entry { term, index, .. } => {
                    let follows = match entries.last() {
                        Some(&(previous, _)) => index == previous + 1,
                        None => (1..=self.index.last_index + 1).contains(&index),
                    };
                    if !follows {
                        return None;
                    }
                    self.terms.push(index, term);
                    entries.push((index, FRAME_HEADER_BYTES as u64 + position));
                }
            }
        }
        (found == count).then_some(entries)
    }

    /// Whether there is the header of a frame with a later batch than the expected one anywhere
    /// after `offset`.
    fn later_frame(
        &self,
        window: &mut Window,
        segment: &SegmentHeader,
        mut offset: u64,
    ) -> Result<bool, LogError> {
        let marker = segment.marker.to_le_bytes();
        loop {
            offset += FRAME_STEP_BYTES as u64;
            let Some(bytes) = window.array::<FRAME_HEADER_BYTES>(offset)? else {
                return Ok(false);
            };
            if bytes.starts_with(&marker)
                && let Some(found) = FrameHeader::decode(&bytes, segment)
                && found.batch > self.next_batch
            {
                return Ok(true);
            }
        }
    }
}
