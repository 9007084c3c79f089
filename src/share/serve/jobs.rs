//! The jobs of a server's worker threads: reading chunks and slices of files.
//!
//! Rule: a job owns its buffer, and its completion gives it back, whatever came of it.

use std::collections::HashMap;
use std::sync::Arc;

use super::read::{self, ReadError};
use crate::model::ContentId;
use crate::net::{Buffer, ConnectionId};
use crate::share::chunks::ChunkSet;
use crate::share::offer::{Catalog, Offer};

/// Of the chunks that are read for a peer, one in this many is compared with its hash, in addition
/// to those that are requested again.
const UPLOAD_CHECK_EVERY: u64 = 16;
/// Contents for which the compared chunks are remembered. The set of a content of 1 TiB takes 256
/// KiB.
const UPLOAD_CHECKED_CONTENTS_MAX: usize = 256;

/// Why a chunk, or a slice of one, is read.
#[derive(Clone, Copy)]
pub(super) enum ReadFor {
    /// A peer has requested it.
    Peer { id: ConnectionId, request: u64, is_slice: bool },
    /// A peer has reported that it was wrong.
    Doubt,
}

/// A job for a worker: read as many bytes of a chunk as the buffer is long.
pub(super) struct PieceJob {
    pub reader: ReadFor,
    pub catalog: Arc<dyn Catalog>,
    pub offer: Offer,
    pub index: u64,
    /// The offset within the chunk.
    pub offset: usize,
    pub is_checked: bool,
    pub buffer: Buffer,
}

/// The completion of a job. It always gives the buffer back: the buffers bound the number of jobs
/// outstanding, so none may be free before its job's place in the pool is.
pub(super) struct PieceDone {
    pub reader: ReadFor,
    pub catalog: Arc<dyn Catalog>,
    pub offer: Offer,
    pub buffer: Buffer,
    pub outcome: Result<(), ReadError>,
}

pub(super) fn work(mut job: PieceJob, whole: &mut Vec<u8>) -> PieceDone {
    let (index, offset) = (job.index, job.offset);
    let outcome = read::read(&job.offer, index, offset, job.is_checked, &mut job.buffer, whole);
    let PieceJob { reader, catalog, offer, buffer, .. } = job;
    PieceDone { reader, catalog, offer, buffer, outcome }
}

/// Decides which chunks are compared with their hashes before they are sent: those requested a
/// second time, since a peer that got wrong bytes may not have reported it; and one in
/// [`UPLOAD_CHECK_EVERY`] of the others, since a disk may fail at any
/// time.
#[derive(Default)]
pub(super) struct SpotChecks {
    reads: u64,
    /// For each content, the chunks that were sent and those that were checked.
    contents: HashMap<ContentId, (ChunkSet, ChunkSet)>,
}

impl SpotChecks {
    /// Whether this chunk is to be compared with its hash before it is sent.
    pub(super) fn is_due(&mut self, content: ContentId, chunks: u64, index: u64) -> bool {
        if self.contents.len() >= UPLOAD_CHECKED_CONTENTS_MAX
            && !self.contents.contains_key(&content)
        {
            // Forgets everything: each chunk will be checked once more when it is requested a
            // second time.
            self.contents.clear();
        }
        let begin = || (ChunkSet::empty(chunks), ChunkSet::empty(chunks));
        let (sent, checked) = self.contents.entry(content).or_insert_with(begin);
        self.reads += 1;
        let is_second = !sent.insert(index) && !checked.contains(index);
        let is_due = is_second || self.reads.is_multiple_of(UPLOAD_CHECK_EVERY);
        if is_due {
            checked.insert(index);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_checked_when_it_is_requested_a_second_time_and_then_no_more() {
        let (mut checks, content) = (SpotChecks::default(), ContentId([1; 32]));
        let mut is_due = |index| checks.is_due(content, 10, index);
        assert_eq!([is_due(3), is_due(3), is_due(3)], [false, true, false]);
        // Of other chunks one in so many, whichever that is.
        let checked = (0..UPLOAD_CHECK_EVERY).filter(|at| is_due(4 + at % 2)).count();
        assert!((2..=3).contains(&checked), "{checked}");
    }
}
