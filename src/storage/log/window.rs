//! Reads a file through a buffer, mostly in order, by position.

use std::sync::Arc;

use super::error::LogError;
use crate::storage::files::{Directory, DiskFile};

const READ_AHEAD_BYTES: usize = 128 * 1024;

/// A buffered view of one segment file.
pub(super) struct Window {
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    /// The position in the file at which the buffer begins.
    start: u64,
    pub path: std::path::PathBuf,
}

impl Window {
    pub fn open(fs: &dyn Directory, name: &str) -> Result<Window, LogError> {
        let path = fs.path(name);
        let file = fs.open(name).map_err(|error| LogError::io("open", &path, error))?;
        Ok(Window { file, buffer: Vec::new(), start: 0, path })
    }

    pub fn file(&self) -> Arc<dyn DiskFile> {
        self.file.clone()
    }

    pub fn len_bytes(&self) -> Result<u64, LogError> {
        self.file.len_bytes().map_err(|error| LogError::io("measure", &self.path, error))
    }

    /// Returns the `len` bytes from `offset` on, or fewer at the end of the file. The caller bounds
    /// `len`.
    pub fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], LogError> {
        let held = self.start..self.start + self.buffer.len() as u64;
        if !(held.contains(&offset) && offset + len as u64 <= held.end) {
            self.buffer.resize(len.max(READ_AHEAD_BYTES), 0);
            self.start = offset;
            let read = self
                .file
                .read_at(&mut self.buffer, offset)
                .map_err(|error| LogError::io("read", &self.path, error))?;
            self.buffer.truncate(read);
        }
        let from = (offset - self.start) as usize;
        let to = self.buffer.len().min(from + len);
        Ok(&self.buffer[from..to])
    }

    /// Returns the `N` bytes from `offset` on; `None` if the file ends before.
    pub fn array<const N: usize>(&mut self, offset: u64) -> Result<Option<[u8; N]>, LogError> {
        Ok(self.bytes(offset, N)?.first_chunk().copied())
    }

    /// Whether everything from `offset` to the end of the file is zero.
    pub fn is_zero_from(&mut self, mut offset: u64) -> Result<bool, LogError> {
        loop {
            let bytes = self.bytes(offset, READ_AHEAD_BYTES)?;
            if bytes.is_empty() {
                return Ok(true);
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            offset += bytes.len() as u64;
        }
    }

    pub fn corrupt(&self, offset: u64, detail: &'static str) -> LogError {
        LogError::Corrupt { path: self.path.clone(), offset, detail }
    }
}
