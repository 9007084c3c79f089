//! Reading the whole log at start: what it holds, and where it ends.
//!
//! Every frame is synced before the next is written, so a crash can damage the last one only, and it does so
//! by leaving out sectors, which then are zero, or by ending the file. Hence the rule: a bad frame that was cut
//! short in this way, with nothing valid behind it, is a *torn tail*, was never acknowledged, and is cut
//! off. Any other bad frame is *corruption*, and the log refuses to open: the frame may have been acknowledged,
//! and hold a vote or a write that only a bare majority has. (A sector that is lost from the last frame long after
//! it was written looks like a torn tail.)
//!
//! The log begins at the newest segment that *starts afresh*, or else at the oldest there is. What
//! is left of a log before a fresh start is removed unread.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{
    FRAME_HEADER_BYTES, FRAME_STEP_BYTES, FrameHeader, Record, SEGMENT_HEADER_BYTES, SegmentHeader,
    SegmentHeaderError, next_frame, records, zero_sectors,
};
use super::index::PositionIndex;
use super::segment::{self, SegmentWriter, Span, file_name, parse_file_name};
use super::terms::TermRuns;
use super::window::Window;
use super::{LogError, LogOptions};
use crate::model::{HardState, LogIndex};
use crate::storage::files::{Directory, DiskFile};
use crate::text::counted;

/// What a log that is not blank holds.
pub(super) struct Recovery {
    pub hard_state: HardState,
    pub terms: TermRuns,
    pub index: PositionIndex,
    pub next_batch: u64,
    pub segments: Vec<Span>,
    pub tail: SegmentWriter,
}

/// Everything the frames read so far say.
struct Replay {
    hard_state: HardState,
    terms: TermRuns,
    index: PositionIndex,
    next_batch: u64,
}

/// What is found where a frame may be.
enum Frame {
    /// It was taken in.
    Whole { payload_end: u64 },
    /// Zeroes, or a bad one: `cut_short` when its write may have ended half-way.
    Bad { cut_short: bool },
}

/// A segment that was read to its end.
struct Scanned {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    /// Where the last whole frame begins; 0, the header, when there is none.
    last_frame: u64,
    /// Where the next frame goes.
    end: u64,
    /// Whether anything lies behind `end`.
    torn: bool,
    len_bytes: u64,
}

/// Reads every segment in order. `None` when the log is blank.
pub(super) fn recover(
    fs: &dyn Directory,
    options: &LogOptions,
) -> Result<Option<Recovery>, LogError> {
    let Chain { headers, superseded } = read_chain(fs, options)?;
    // A segment holds no entry that a later one starts at, or that comes after it. So the log is
    // whole from the lowest of these on, however the oldest segments came to be removed.
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
            // What was written by a process that died, or ran without syncs, may not be durable.
            let sync = scanned.file.sync_data();
            sync.map_err(|error| LogError::io("sync", &scanned.path, error))?;
        }
        last = Some(scanned);
    }
    let (Some(mut replay), Some(last)) = (replay, last) else { return Ok(None) };
    if replay.index.last_index + 1 < replay.index.first_index {
        // Only entries that replace others lie before the first index, and others must follow.
        return Err(LogError::Corrupt {
            path: last.path,
            offset: last.end,
            detail: "the entries that the log should start with are missing",
        });
    }
    for segment in superseded {
        segment::remove(fs, segment)?;
    }
    // A hard state of a group that was split over two frames may name entries of the second.
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

/// The segments that make up the log, and those that do not any more.
struct Chain {
    /// In order, without gaps.
    headers: Vec<SegmentHeader>,
    superseded: Vec<u64>,
}

/// Finds where the log begins, from its newest segment back.
fn read_chain(fs: &dyn Directory, options: &LogOptions) -> Result<Chain, LogError> {
    let names = fs.list().map_err(|error| LogError::io("list", &fs.path(""), error))?;
    let mut listed: Vec<u64> = names.iter().filter_map(|name| parse_file_name(name)).collect();
    listed.sort_unstable();
    let newest = listed.last().copied();
    let mut headers: Vec<SegmentHeader> = Vec::new();
    while let Some(segment) = listed.pop() {
        let mut window = Window::open(fs, &file_name(segment))?;
        let Some(header) = read_header(&mut window, segment, newest == Some(segment))? else {
            // Its creation was not finished when the power went: nothing was ever put in it.
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
        if header.starts_afresh {
            break;
        }
    }
    headers.reverse();
    Ok(Chain { headers, superseded: listed })
}

/// Reads a segment's header; `None` for the last segment when its creation was cut short.
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
        Err(SegmentHeaderError::Newer(version)) => {
            Err(LogError::NewerFormat { path: window.path.clone(), version })
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

/// Cuts the torn tail off and makes sure that what is left is durable.
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
        // Cut, not left to be overwritten: a shorter frame written here would leave some of these
        // bytes behind it.
        file.set_len(end).map_err(|error| LogError::io("cut", &path, error))?;
        len_bytes = end;
    }
    if options.sync {
        // After a failed sync the operating system may hold pages that look clean and are not on
        // the disk. Only the last write can be one of those: write it again, then sync.
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

    /// A later segment says what must have come before it: the end of the previous one shows
    /// nothing of frames that vanished there.
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

    /// Reads a segment's frames to its end.
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

    /// Takes in the frame at `offset`, if a whole one is there.
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

    /// Takes in a frame's records and returns the entries' indexes and positions within the frame;
    /// `None` when they contradict each other or what came before.
    fn take_records(&mut self, payload: &[u8], count: u32) -> Option<Vec<(LogIndex, u64)>> {
        let mut entries: Vec<(LogIndex, u64)> = Vec::new();
        let mut seen = 0;
        for record in records(payload) {
            let (position, record) = record?;
            seen += 1;
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
        (seen == count).then_some(entries)
    }

    /// Whether the head of a batch later than the expected one lies anywhere behind `offset`.
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
