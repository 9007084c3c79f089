//! The work of a download's worker threads: write verified chunks, verify those that a partial file
//! has, finish the file.
//!
//! Rule: a job that needs a buffer owns it, and its completion gives it back. So the number of
//! buffers bounds the number of jobs outstanding.

use std::io;
use std::sync::Arc;

use super::api::FetchError;
use super::part::{Finish, Part};
use crate::net::Buffer;
use crate::share::content::Manifest;
use crate::share::swarm::SourceId;

/// Consecutive chunks that one job checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckRange {
    pub first: u64,
    pub count: u64,
}

impl CheckRange {
    pub(super) fn chunks(self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

/// A job for a worker thread.
pub(super) enum DiskJob {
    /// Write a received chunk, which has been verified.
    Store { source: SourceId, index: u64, chunk: Buffer, part: Arc<Part> },
    /// Verify these chunks of the partial file, reading them into `buffer`.
    Check { range: CheckRange, buffer: Buffer, manifest: Arc<Manifest>, part: Arc<Part> },
    /// Reserve disk space for the whole file.
    Allocate { part: Arc<Part> },
    /// Make the file durable and rename it.
    Finish { part: Arc<Part> },
}

/// The completion of a job. Its buffer becomes free only when the loop has collected the
/// completion, together with the job's place in the pool. If it were free sooner, a loop that
/// collects late could receive a chunk for which the pool has no place.
pub(super) enum DiskDone {
    /// The chunk is written, or could not be.
    Stored { source: SourceId, index: u64, buffer: Buffer, outcome: io::Result<()> },
    /// The good ones of these chunks.
    Checked { range: CheckRange, buffer: Buffer, good: Vec<u64> },
    /// Result of allocating the file; `Ok(false)` if the file system does not support it.
    Allocated(io::Result<bool>),
    /// The file is published, or has to be checked again first.
    Finished(Result<Finish, FetchError>),
}

pub(super) fn work(job: DiskJob) -> DiskDone {
    match job {
        DiskJob::Store { source, index, chunk, part } => {
            let outcome = part.write_chunk(index, &chunk);
            DiskDone::Stored { source, index, buffer: chunk, outcome }
        }
        DiskJob::Check { range, mut buffer, manifest, part } => {
            let good = range.chunks().filter(|index| {
                match part.read_chunk(*index, &mut buffer) {
                    Ok(()) => manifest.matches(*index, buffer.as_ref()),
                    // The chunk is fetched again. If the disk is broken, writing it will fail.
                    Err(error) => {
                        log::warn!("a kept chunk cannot be read: {error}");
                        false
                    }
                }
            });
            let good = good.collect();
            DiskDone::Checked { range, buffer, good }
        }
        DiskJob::Allocate { part } => DiskDone::Allocated(part.allocate()),
        DiskJob::Finish { part } => DiskDone::Finished(part.finish()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CHUNK_BYTES;
    use crate::model::FileName;
    use crate::net::BufferPool;
    use crate::workers::pool::Pool;

    /// A worker once gave its buffer back before the loop had collected the completion. The loop
    /// then received another chunk and found no place for its job: 2 of 40 downloads failed.
    #[test]
    fn a_chunk_that_has_a_buffer_has_a_place_with_the_workers() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = vec![7; 3 * CHUNK_BYTES];
        let manifest = Manifest::of_bytes(&bytes).unwrap();
        let (content, size) = (manifest.content(), manifest.size());
        let name = FileName::new("film.mkv").unwrap();
        let part = Part::open(folder.path(), &name, content, size).unwrap().unwrap();
        let part = Arc::new(part);
        // The smallest size possible: one buffer, and so one place.
        let buffers = BufferPool::new(CHUNK_BYTES, 1);
        let (woken, wakes) = std::sync::mpsc::channel();
        let wake = move || woken.send(()).unwrap();
        let mut workers = Pool::start("store", 1, 1, wake, |_| work).unwrap();
        for index in 0..3 {
            let mut chunk = buffers.take(CHUNK_BYTES).unwrap();
            chunk.as_mut().fill(7);
            let part = Arc::clone(&part);
            let job = DiskJob::Store { source: SourceId(0), index, chunk, part };
            assert!(workers.submit(job).is_ok(), "chunk {index} has a buffer and no place");
            // The job is done, and its completion is not collected yet.
            wakes.recv().unwrap();
            assert!(buffers.take(CHUNK_BYTES).is_none());
            let Some(DiskDone::Stored { outcome: Ok(()), .. }) = workers.collect() else {
                panic!("chunk {index} was not stored");
            };
        }
    }
}
