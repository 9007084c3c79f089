//! What a download's worker threads do: check chunks, write them, finish the file.

use std::io;
use std::sync::Arc;

use super::api::FetchError;
use super::part::Part;
use crate::net::Buffer;
use crate::share::content::Manifest;
use crate::share::offer::FileStamp;
use crate::share::swarm::SourceId;

/// Something to do.
pub(super) enum Job {
    /// Check a chunk that has arrived and, if it is good, write it.
    Store { source: SourceId, index: u64, buffer: Buffer, manifest: Arc<Manifest>, part: Arc<Part> },
    /// Check `count` chunks that an earlier download has left, from `first` on, using `buffer`.
    Check { first: u64, count: u64, buffer: Buffer, manifest: Arc<Manifest>, part: Arc<Part> },
    /// Have the disk set aside what the file takes.
    Allocate { part: Arc<Part> },
    /// Make the file durable and give it its name.
    Finish { part: Arc<Part> },
}

/// What came of it.
pub(super) enum Done {
    /// A chunk was good and is stored, or was not good, or could not be stored.
    Stored { source: SourceId, index: u64, outcome: io::Result<bool> },
    /// Of `count` chunks these are good.
    Checked { count: u64, good: Vec<u64> },
    /// It has, or cannot.
    Allocated(io::Result<bool>),
    /// The file is there.
    Finished(Result<FileStamp, FetchError>),
}

/// Does it.
pub(super) fn work(job: Job) -> Done {
    match job {
        Job::Store { source, index, mut buffer, manifest, part } => {
            let outcome = if manifest.matches(index, buffer.as_ref()) {
                part.write_chunk(index, &mut buffer).map(|()| true)
            } else {
                Ok(false)
            };
            Done::Stored { source, index, outcome }
        }
        Job::Check { first, count, mut buffer, manifest, part } => {
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
            Done::Checked { count, good: good.collect() }
        }
        Job::Allocate { part } => Done::Allocated(part.allocate()),
        Job::Finish { part } => Done::Finished(part.finish()),
    }
}
