//! What a download's worker threads do: check chunks, write them, finish the file.

use std::io;
use std::sync::Arc;

use super::api::FetchError;
use super::part::{Finish, Part};
use crate::net::Buffer;
use crate::share::content::Manifest;
use crate::share::swarm::SourceId;

/// Something to do.
pub(super) enum DiskJob {
    /// Check a chunk that has arrived and, if it is good, write it.
    Store { source: SourceId, index: u64, buffer: Buffer, manifest: Arc<Manifest>, part: Arc<Part> },
    /// Check `count` chunks that an earlier download has left, from `first` on, using `buffer`.
    Check { first: u64, count: u64, buffer: Buffer, manifest: Arc<Manifest>, part: Arc<Part> },
    /// Have the disk set aside what the file takes.
    Allocate { part: Arc<Part> },
    /// Make the file durable and give it its name.
    Finish { part: Arc<Part> },
}

/// What came of it. A buffer comes back in here, and is free when the completion has been collected: it is what
/// bounds the jobs outstanding, so it must not be free any sooner than a job's place in the pool is.
pub(super) enum DiskDone {
    /// A chunk was good and is stored, or was not good, or could not be stored.
    Stored { source: SourceId, index: u64, buffer: Buffer, outcome: io::Result<bool> },
    /// Of `count` chunks from `first` on these are good.
    Checked { first: u64, count: u64, buffer: Buffer, good: Vec<u64> },
    /// It has, or cannot.
    Allocated(io::Result<bool>),
    /// The file is there, or has to be checked again.
    Finished(Result<Finish, FetchError>),
}

/// Does it.
pub(super) fn work(job: DiskJob) -> DiskDone {
    match job {
        DiskJob::Store { source, index, buffer, manifest, part } => {
            let outcome = if manifest.matches(index, buffer.as_ref()) {
                part.write_chunk(index, &buffer).map(|()| true)
            } else {
                Ok(false)
            };
            DiskDone::Stored { source, index, buffer, outcome }
        }
        DiskJob::Check { first, count, mut buffer, manifest, part } => {
            let good = (first..first + count).filter(|index| {
                match part.read_chunk(*index, &mut buffer) {
                    Ok(()) => manifest.matches(*index, buffer.as_ref()),
                    // It is fetched again; if the disk is to blame, writing it will tell.
                    Err(error) => {
                        log::warn!("a kept chunk cannot be read: {error}");
                        false
                    }
                }
            });
            let good = good.collect();
            DiskDone::Checked { first, count, buffer, good }
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

    /// A worker gave the buffer back before the loop had collected the completion, so that a loop that
    /// collected late received another chunk and found no place for its job: 2 of 40 downloads failed.
    #[test]
    fn a_loop_that_collects_late_never_has_more_chunks_than_places_for_them() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = vec![7; 3 * CHUNK_BYTES];
        let manifest = Arc::new(Manifest::of_bytes(&bytes).unwrap());
        let (content, size) = (manifest.content(), manifest.size());
        let name = FileName::new("film.mkv").unwrap();
        let part = Part::open(folder.path(), &name, content, size).unwrap().unwrap();
        let part = Arc::new(part);
        // As small as they may be: one buffer, and so one place.
        let buffers = BufferPool::new(CHUNK_BYTES, 1);
        let (woken, wakes) = std::sync::mpsc::channel();
        let wake = move || woken.send(()).unwrap();
        let mut workers = Pool::start("store", 1, 1, wake, |_| work).unwrap();
        for index in 0..3 {
            let mut buffer = buffers.take(CHUNK_BYTES).unwrap();
            buffer.as_mut().fill(7);
            let (manifest, part) = (Arc::clone(&manifest), Arc::clone(&part));
            let job = DiskJob::Store { source: SourceId(0), index, buffer, manifest, part };
            assert!(workers.submit(job).is_ok(), "chunk {index} has a buffer and no place");
            // It is done, and not collected yet.
            wakes.recv().unwrap();
            assert!(buffers.take(CHUNK_BYTES).is_none());
            let Some(DiskDone::Stored { outcome: Ok(true), .. }) = workers.collect() else {
                panic!("chunk {index} was not stored");
            };
        }
    }
}
