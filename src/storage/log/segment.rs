//! Writes one segment: creates it, fills it with zeroes ahead of the writer, appends frames.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::LogError;
use super::format::{FrameBuilder, NUMBER_MAX, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::options::LogOptions;
use crate::model::LogIndex;
use crate::storage::files::{Directory, DiskFile};

const SUFFIX: &str = ".log";
const SEQUENCE_DIGITS: usize = 16;
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// The file name of a segment: sixteen decimal digits, so that names sort like numbers.
pub(super) fn file_name(segment: u64) -> String {
    format!("{segment:0SEQUENCE_DIGITS$}{SUFFIX}")
}

/// The segment that a file name stands for; `None` for a file that is not a segment.
pub(super) fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    let ours = digits.len() >= SEQUENCE_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    ours.then(|| digits.parse().ok()).flatten().filter(|segment| *segment < NUMBER_MAX)
}

/// Derives the marker of a segment's frames from the log's salt.
fn marker(salt: u64, segment: u64) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&salt.to_le_bytes()).update(&segment.to_le_bytes());
    let hash = hasher.finalize();
    hash.as_bytes().iter().take(8).fold(0, |marker, byte| marker << 8 | u64::from(*byte))
}

/// The segment at the end of the log, to which frames are appended.
pub(super) struct SegmentWriter {
    pub header: SegmentHeader,
    pub path: PathBuf,
    file: Arc<dyn DiskFile>,
    /// The position of the next frame.
    position: u64,
    /// The length of the file. From `position` to here it contains zeroes.
    filled: u64,
}

/// A segment of the log, by its number and first index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub segment: u64,
    /// From its header. The entries of all segments before it are before this index.
    pub first_index: LogIndex,
}

impl Span {
    pub fn of(header: &SegmentHeader) -> Span {
        Span { segment: header.segment, first_index: header.first_index }
    }
}

/// Deletes a segment; the caller makes that durable.
pub(super) fn remove(fs: &dyn Directory, segment: u64) -> Result<(), LogError> {
    let name = file_name(segment);
    fs.remove(&name).map_err(|error| LogError::io("remove", &fs.path(&name), error))
}

/// The position of a frame that was written.
pub(super) struct Placed {
    pub offset: u64,
    pub payload_end: u64,
}

impl SegmentWriter {
    /// Creates a segment and makes it durable, its name included, before any frame is written. Sets
    /// the header's marker.
    pub fn create(
        fs: &dyn Directory,
        options: &LogOptions,
        header: SegmentHeader,
    ) -> Result<SegmentWriter, LogError> {
        let name = file_name(header.segment);
        let path = fs.path(&name);
        let file = fs.create(&name).map_err(|error| LogError::io("create", &path, error))?;
        let header = SegmentHeader { marker: marker(options.salt, header.segment), ..header };
        let mut writer =
            SegmentWriter { header, path, file, position: SEGMENT_HEADER_BYTES as u64, filled: 0 };
        writer.fill(options, SEGMENT_HEADER_BYTES as u64)?;
        writer.write_at(&header.encode(), 0)?;
        writer.sync(options)?;
        if options.sync {
            fs.sync().map_err(|error| LogError::io("sync", &writer.path, error))?;
        }
        Ok(writer)
    }

    /// Continues where recovery has found the end of the log. From `position` to `filled` the file
    /// contains zeroes, and ends there.
    pub fn resume(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        position: u64,
        filled: u64,
    ) -> SegmentWriter {
        SegmentWriter { header, path, file, position, filled }
    }

    /// Whether a frame with this many payload bytes belongs in the next segment. A segment without
    /// a frame accepts any, so that the largest entry fits however small segments are.
    pub fn is_full_for(&self, options: &LogOptions, payload_bytes: usize) -> bool {
        self.position > SEGMENT_HEADER_BYTES as u64
            && self.position + payload_bytes as u64 > options.segment_bytes
    }

    /// Writes a frame with one write and makes it durable with one sync.
    pub fn write_frame(
        &mut self,
        options: &LogOptions,
        frame: &mut FrameBuilder,
        batch: u64,
    ) -> Result<Placed, LogError> {
        let offset = self.position;
        let (bytes, payload_bytes) = frame.finish(&self.header, batch, offset);
        let end = offset + bytes.len() as u64;
        self.fill(options, end)?;
        assert!(
            offset >= SEGMENT_HEADER_BYTES as u64 && end <= self.filled,
            "a frame from {offset} to {end} in a segment that is filled to {}",
            self.filled
        );
        self.write_at(bytes, offset)?;
        self.sync(options)?;
        self.position = end;
        let payload_end = offset + super::format::FRAME_HEADER_BYTES as u64 + payload_bytes;
        Ok(Placed { offset, payload_end })
    }

    /// Extends the file beyond `end`, in large steps, so that most syncs do not have to make a new
    /// length durable. The bytes before `end` are not filled, because they are written next.
    fn fill(&mut self, options: &LogOptions, end: u64) -> Result<(), LogError> {
        if end <= self.filled {
            return Ok(());
        }
        let step = options.zero_fill_bytes.max(1);
        let target = end.next_multiple_of(step).min(options.segment_bytes).max(end);
        let mut offset = end;
        while offset < target {
            let chunk = (target - offset).min(ZEROES.len() as u64);
            self.write_at(&ZEROES[..chunk as usize], offset)?;
            offset += chunk;
        }
        self.filled = target;
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), LogError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| LogError::io("write", &self.path, error))
    }

    fn sync(&self, options: &LogOptions) -> Result<(), LogError> {
        if !options.sync {
            return Ok(());
        }
        self.file.sync_data().map_err(|error| LogError::io("sync", &self.path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_foreign_ones_ignored() {
        for segment in [1, 42, NUMBER_MAX - 1] {
            assert_eq!(parse_file_name(&file_name(segment)), Some(segment));
        }
        assert_eq!(parse_file_name(&file_name(NUMBER_MAX)), None, "no writer comes that far");
        assert!(file_name(9) < file_name(10));
        for foreign in ["", ".log", "1.log", "0000000000000001.tmp", "+000000000000001.log"] {
            assert_eq!(parse_file_name(foreign), None, "{foreign}");
        }
    }
}
