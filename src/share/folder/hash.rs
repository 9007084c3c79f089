//! Hashing files with all processors: each thread takes the next chunk, of whatever file it is.
//!
//! One file or a thousand, small or large: every thread has one buffer of a chunk's size and always
//! something to do. Files are opened when their first chunk is taken and closed after their last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use rustix::fs::{Mode, OFlags};

use super::Look;
use super::scan::{self, Found};
use crate::limits::CHUNK_BYTES;
use crate::share::content::{
    Manifest, ManifestError, chunk_count, chunk_len, chunk_offset, hash_chunk,
};
use crate::share::types::ChunkHash;

/// How far the hashing of some files is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashProgress {
    /// Files to hash.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that have been hashed.
    pub bytes_done: u64,
}

/// Why a file could not be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It was written to meanwhile.
    #[error("it changed while it was being hashed")]
    Changed,
    /// What was hashed makes no manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Who hashes.
pub(super) struct Hasher<'a> {
    pub folder: &'a Path,
    pub threads: usize,
    /// Once set, nothing more is begun.
    pub stop: &'a AtomicBool,
}

/// The chunk that is next in turn.
struct Cursor {
    file: usize,
    chunk: u64,
    open: Option<Arc<File>>,
}

/// One chunk to hash.
struct Turn {
    file: usize,
    chunk: u64,
    open: Arc<File>,
}

/// What a thread reports.
enum Report {
    Chunk { file: usize, chunk: u64, hash: ChunkHash },
    Failed { file: usize, error: HashError },
}

/// A file whose chunks are coming in.
struct Gathering {
    hashes: Vec<Option<ChunkHash>>,
    missing: u64,
}

impl Hasher<'_> {
    /// Hashes files. `done` is called on this thread with each file and what came of it, in any order;
    /// not at all for those that were not finished when it was told to stop.
    pub fn hash(
        &self,
        files: &[Found],
        progress: &(dyn Fn(HashProgress) + Sync),
        done: &mut dyn FnMut(&Found, Result<Manifest, HashError>),
    ) {
        let bytes = files.iter().map(|file| file.look.stamp.size).sum();
        let total = HashProgress { files: files.len() as u64, bytes, bytes_done: 0 };
        let bytes_done = AtomicU64::new(0);
        let cursor = Mutex::new(Cursor { file: 0, chunk: 0, open: None });
        let threads = self.threads.max(1);
        let (reports, received) = bounded(4 * threads);
        thread::scope(|scope| {
            for _ in 0..threads {
                let (reports, cursor, bytes_done) = (reports.clone(), &cursor, &bytes_done);
                let told = move |bytes: usize| {
                    let bytes = bytes as u64;
                    let bytes_done = bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    progress(HashProgress { bytes_done, ..total });
                };
                scope.spawn(move || self.work(files, cursor, &reports, &told));
            }
            drop(reports);
            self.gather(files, received.iter(), done);
        });
    }

    fn work(
        &self,
        files: &[Found],
        cursor: &Mutex<Cursor>,
        reports: &Sender<Report>,
        progress: &dyn Fn(usize),
    ) {
        let mut buffer = vec![0; CHUNK_BYTES];
        while !self.stop.load(Ordering::Relaxed) {
            let turn = {
                let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
                self.next_turn(files, &mut cursor)
            };
            let Some(turn) = turn else { return };
            let report = match turn {
                Ok(turn) => {
                    let size = files[turn.file].look.stamp.size;
                    let piece = &mut buffer[..chunk_len(turn.chunk, size)];
                    let read = turn.open.read_exact_at(piece, chunk_offset(turn.chunk));
                    progress(piece.len());
                    let hashed = read
                        .map_err(|error| match error.kind() {
                            io::ErrorKind::UnexpectedEof => HashError::Changed,
                            _ => HashError::Unreadable(error),
                        })
                        .and_then(|()| {
                            hash_chunk(turn.chunk, size, piece).ok_or(HashError::Changed)
                        });
                    let (file, chunk) = (turn.file, turn.chunk);
                    match hashed {
                        Ok(hash) => Report::Chunk { file, chunk, hash },
                        Err(error) => Report::Failed { file, error },
                    }
                }
                Err((file, error)) => Report::Failed { file, error },
            };
            if reports.send(report).is_err() {
                return;
            }
        }
    }

    /// Takes the next chunk; `None` when there is none. Opens its file if it is the first.
    fn next_turn(
        &self,
        files: &[Found],
        cursor: &mut Cursor,
    ) -> Option<Result<Turn, (usize, HashError)>> {
        loop {
            let found = files.get(cursor.file)?;
            let open = match &cursor.open {
                Some(open) => Arc::clone(open),
                None => match open(self.folder, found) {
                    Ok(file) => {
                        let file = Arc::new(file);
                        cursor.open = Some(Arc::clone(&file));
                        file
                    }
                    Err(error) => {
                        let file = cursor.file;
                        *cursor = Cursor { file: file + 1, chunk: 0, open: None };
                        return Some(Err((file, error)));
                    }
                },
            };
            let (file, chunk) = (cursor.file, cursor.chunk);
            if chunk < chunk_count(found.look.stamp.size) {
                cursor.chunk += 1;
                return Some(Ok(Turn { file, chunk, open }));
            }
            *cursor = Cursor { file: file + 1, chunk: 0, open: None };
        }
    }

    fn gather(
        &self,
        files: &[Found],
        reports: impl Iterator<Item = Report>,
        done: &mut dyn FnMut(&Found, Result<Manifest, HashError>),
    ) {
        let mut gathering: Vec<Option<Gathering>> = Vec::with_capacity(files.len());
        for found in files {
            let chunks = chunk_count(found.look.stamp.size);
            // Hashes are kept from the first chunk of a file on, not for all files at once.
            gathering.push(Some(Gathering { hashes: Vec::new(), missing: chunks }));
            if chunks == 0 {
                gathering.pop();
                gathering.push(None);
                done(found, finish(self.folder, found, Vec::new()));
            }
        }
        for report in reports {
            match report {
                Report::Failed { file, error } => {
                    // Further chunks of it may still come; they are of no use.
                    if gathering[file].take().is_some() {
                        done(&files[file], Err(error));
                    }
                }
                Report::Chunk { file, chunk, hash } => {
                    let found = &files[file];
                    let Some(parts) = &mut gathering[file] else { continue };
                    if parts.hashes.is_empty() {
                        parts.hashes.resize(chunk_count(found.look.stamp.size) as usize, None);
                    }
                    parts.hashes[chunk as usize] = Some(hash);
                    parts.missing -= 1;
                    if parts.missing == 0
                        && let Some(parts) = gathering[file].take()
                    {
                        let hashes = parts.hashes.into_iter().flatten().collect();
                        done(found, finish(self.folder, found, hashes));
                    }
                }
            }
        }
    }
}

/// A manifest, provided that the file still looks as it did before it was read.
fn finish(folder: &Path, found: &Found, hashes: Vec<ChunkHash>) -> Result<Manifest, HashError> {
    let look = scan::look_at(&folder.join(found.name.as_str()));
    if look != Some(found.look) {
        return Err(HashError::Changed);
    }
    Ok(Manifest::new(found.look.stamp.size, hashes)?)
}

/// Opens a file that was found, if it is still that one.
fn open(folder: &Path, found: &Found) -> Result<File, HashError> {
    // Whatever has taken its place: a link is not followed, a FIFO not waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = folder.join(found.name.as_str());
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?;
    let file = File::from(file);
    let metadata = file.metadata()?;
    let look: Look = scan::look(&metadata);
    if metadata.is_file() && look == found.look { Ok(file) } else { Err(HashError::Changed) }
}
