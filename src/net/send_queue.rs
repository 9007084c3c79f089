//! The queue of bytes that wait to be written to one socket.
//!
//! Small frames are gathered into segments, long runs of bytes stay where they lie; all of it goes
//! out in order, in vectored writes. How long the queue may be is said by whoever appends.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

use crate::limits::SEND_SEGMENT_BYTES;

/// Memory of emptied segments that is kept for all connections of a loop, so that a loop under load
/// does not allocate: that of 64 long ones, or a short one for each of thousands of clients.
const SEND_SEGMENTS_KEEP_BYTES: usize = 64 * SEND_SEGMENT_BYTES;
/// Room that a new segment has, for a few short answers.
const SEND_SEGMENT_BYTES_MIN: usize = 256;

/// Slices offered to the system in one vectored write: as many segments as a socket's buffer holds,
/// and some more.
const SLICES_PER_WRITE: usize = 16;

/// Emptied segments, which all connections of a loop use again.
#[derive(Debug, Default)]
pub(super) struct SegmentPool {
    free: Vec<Vec<u8>>,
    /// The sum of their capacities.
    bytes: usize,
}

impl SegmentPool {
    fn take(&mut self) -> Vec<u8> {
        match self.free.pop() {
            Some(segment) => {
                self.bytes -= segment.capacity();
                segment
            }
            None => Vec::with_capacity(SEND_SEGMENT_BYTES_MIN),
        }
    }

    fn give(&mut self, mut segment: Vec<u8>) {
        // A segment that grew for one large frame is not worth keeping.
        let bytes = self.bytes + segment.capacity();
        if segment.capacity() <= 2 * SEND_SEGMENT_BYTES && bytes <= SEND_SEGMENTS_KEEP_BYTES {
            segment.clear();
            self.free.push(segment);
            self.bytes = bytes;
        }
    }
}

/// Why a write came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteProgress {
    /// The queue is empty.
    Drained,
    /// The socket takes no more for now.
    Blocked,
    /// The budget is spent; the socket may take more.
    Budget,
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flushed {
    /// Number of bytes that the system has taken.
    pub(super) bytes: usize,
    /// Number of lent runs of bytes that were written to their end.
    pub(super) lent: usize,
    /// Why it stopped there.
    pub(super) state: WriteProgress,
}

/// A run of bytes of the queue, by who holds its memory.
#[derive(Debug)]
enum Segment {
    /// Frames, in memory that goes back to the pool.
    Frames(Vec<u8>),
    /// Bytes that the service has lent, and is told of when they are written.
    Lent(Bytes),
    /// Bytes that others may hold as well.
    Shared(Bytes),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Frames(bytes) => bytes,
            Segment::Lent(bytes) | Segment::Shared(bytes) => bytes,
        }
    }

    fn memory_bytes(&self) -> usize {
        match self {
            Segment::Frames(bytes) => bytes.capacity(),
            Segment::Lent(bytes) | Segment::Shared(bytes) => bytes.len(),
        }
    }
}

/// Frames in order, gathered into segments so that many small ones make one write.
///
/// Invariants: no segment is empty; `head_written` is less than the first one's length;
/// `queued` is the sum of the lengths less `head_written`.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    segments: VecDeque<Segment>,
    head_written: usize,
    queued: usize,
    /// Bytes of memory that all segments take.
    held: usize,
    /// Bytes written since the connection began.
    written: u64,
}

impl SendQueue {
    /// Bytes that wait to be written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued
    }

    /// Bytes of memory: those waiting, the written ones of the segment that is being written, and
    /// what segments have room for.
    pub(super) fn held_bytes(&self) -> usize {
        self.held
    }

    /// Bytes queued since the connection began, and those of them that have been written.
    pub(super) fn ever(&self) -> (u64, u64) {
        (self.written + self.queued as u64, self.written)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Lets `write` append to the queue. When the queue is then longer than `bytes_max`, what was
    /// appended is taken back and the answer is the length it would have had.
    pub(super) fn append(
        &mut self,
        bytes_max: usize,
        pool: &mut SegmentPool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), usize> {
        let mut segment = match self.segments.pop_back() {
            Some(Segment::Frames(tail)) if tail.len() < SEND_SEGMENT_BYTES => {
                self.held -= tail.capacity();
                tail
            }
            Some(tail) => {
                self.segments.push_back(tail);
                pool.take()
            }
            None => pool.take(),
        };
        let length_before = segment.len();
        write(&mut segment);
        // Frames of other messages stand before it.
        let length = segment.len();
        assert!(length >= length_before, "a writer left {length} of {length_before} bytes");
        let added = segment.len().saturating_sub(length_before);
        let wanted = self.queued + added;
        let fits = wanted <= bytes_max;
        if fits {
            self.queued = wanted;
        } else {
            segment.truncate(length_before);
        }
        if segment.is_empty() {
            pool.give(segment);
        } else {
            self.push(Segment::Frames(segment));
        }
        if fits { Ok(()) } else { Err(wanted) }
    }

    /// Appends bytes the caller already has. A long run becomes a segment of its own and is not
    /// copied.
    pub(super) fn append_owned(
        &mut self,
        bytes_max: usize,
        pool: &mut SegmentPool,
        bytes: Vec<u8>,
    ) -> Result<(), usize> {
        if bytes.len() < SEND_SEGMENT_BYTES / 4 {
            return self.append(bytes_max, pool, |segment| segment.extend_from_slice(&bytes));
        }
        let wanted = self.queued + bytes.len();
        if wanted > bytes_max {
            return Err(wanted);
        }
        self.queued = wanted;
        self.push(Segment::Frames(bytes));
        Ok(())
    }

    fn push(&mut self, segment: Segment) {
        self.held += segment.memory_bytes();
        self.segments.push_back(segment);
    }

    /// Appends bytes that stay where they are, and whose writing the service is told of.
    pub(super) fn append_lent(&mut self, bytes_max: usize, bytes: Bytes) -> Result<(), usize> {
        let wanted = self.queued + bytes.len();
        if wanted > bytes_max {
            return Err(wanted);
        }
        if !bytes.is_empty() {
            self.queued = wanted;
            self.push(Segment::Lent(bytes));
        }
        Ok(())
    }

    /// Appends frames in pieces that stay where they are: all of them or none.
    pub(super) fn append_pieces(
        &mut self,
        bytes_max: usize,
        pieces: Vec<Bytes>,
    ) -> Result<(), usize> {
        let wanted = self.queued + pieces.iter().map(Bytes::len).sum::<usize>();
        if wanted > bytes_max {
            return Err(wanted);
        }
        self.queued = wanted;
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty());
        pieces.for_each(|piece| self.push(Segment::Shared(piece)));
        Ok(())
    }

    /// Writes until nothing is left, the socket blocks, or about `budget` bytes are written.
    pub(super) fn write_to(
        &mut self,
        socket: &mut impl Write,
        budget: usize,
        pool: &mut SegmentPool,
    ) -> io::Result<Flushed> {
        let (mut bytes, mut lent) = (0, 0);
        loop {
            if self.is_empty() {
                return Ok(Flushed { bytes, lent, state: WriteProgress::Drained });
            }
            if bytes >= budget {
                return Ok(Flushed { bytes, lent, state: WriteProgress::Budget });
            }
            match self.write_once(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes += written;
                    lent += self.advance(written, pool);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Flushed { bytes, lent, state: WriteProgress::Blocked });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write_once(&self, socket: &mut impl Write) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_PER_WRITE];
        let mut count = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            let from = if count == 0 { self.head_written } else { 0 };
            *slice = IoSlice::new(&segment.bytes()[from..]);
            count += 1;
        }
        // The usual case, and a system call that does less.
        if let [only] = &slices[..count] {
            return socket.write(only);
        }
        socket.write_vectored(&slices[..count])
    }

    /// Forgets what was written. The answer is how many lent segments are done with.
    fn advance(&mut self, written: usize, pool: &mut SegmentPool) -> usize {
        let mut lent = 0;
        self.queued = self.queued.saturating_sub(written);
        self.written += written as u64;
        self.head_written += written;
        while let Some(head) = self.segments.front()
            && self.head_written >= head.bytes().len()
        {
            self.head_written -= head.bytes().len();
            self.held -= head.memory_bytes();
            match self.segments.pop_front() {
                Some(Segment::Frames(segment)) => pool.give(segment),
                Some(Segment::Lent(_)) => lent += 1,
                Some(Segment::Shared(_)) | None => {}
            }
        }
        lent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `room` bytes, at most `step` at a time, then blocks.
    struct Pipe {
        taken: Vec<u8>,
        room: usize,
        step: usize,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.step).min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.taken.extend_from_slice(&bytes[..count]);
            self.room -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bytes(count: usize, seed: usize) -> Vec<u8> {
        (0..count).map(|i| ((i + seed) * 31 % 251) as u8).collect()
    }

    #[test]
    fn partial_writes_keep_the_order_and_the_count() {
        let mut pool = SegmentPool::default();
        let mut queue = SendQueue::default();
        let mut expected = Vec::new();
        for (seed, count) in [10, 1, SEND_SEGMENT_BYTES, 3, 2 * SEND_SEGMENT_BYTES, 7, 20_000]
            .into_iter()
            .enumerate()
        {
            let piece = bytes(count, seed);
            expected.extend_from_slice(&piece);
            if seed == 3 || seed == 6 {
                queue.append_lent(usize::MAX, Bytes::from(piece)).unwrap();
            } else if seed % 2 == 0 {
                queue.append(usize::MAX, &mut pool, |out| out.extend_from_slice(&piece)).unwrap();
            } else {
                queue.append_owned(usize::MAX, &mut pool, piece).unwrap();
            }
            assert_eq!(queue.queued_bytes(), expected.len());
        }
        let mut pipe = Pipe { taken: Vec::new(), room: 0, step: 4_099 };
        let mut lent = 0;
        while !queue.is_empty() {
            let blocked = Flushed { bytes: 0, lent: 0, state: WriteProgress::Blocked };
            assert_eq!(queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap(), blocked);
            pipe.room = 50_021;
            let before = queue.queued_bytes();
            let flushed = queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap();
            assert_eq!(queue.queued_bytes(), before - flushed.bytes);
            assert_eq!(flushed.state == WriteProgress::Drained, queue.is_empty());
            lent += flushed.lent;
            pipe.room = 0;
        }
        assert!(pipe.taken == expected);
        assert_eq!(lent, 2);
        assert!(queue.segments.is_empty() && queue.head_written == 0 && queue.held_bytes() == 0);
        assert_eq!(queue.ever(), (expected.len() as u64, expected.len() as u64));
    }

    #[test]
    fn a_full_queue_takes_nothing_and_loses_nothing() {
        let mut pool = SegmentPool::default();
        let mut queue = SendQueue::default();
        queue.append(10, &mut pool, |out| out.extend_from_slice(b"12345678")).unwrap();
        assert_eq!(queue.append(10, &mut pool, |out| out.extend_from_slice(b"abc")), Err(11));
        assert_eq!(queue.append_owned(10, &mut pool, vec![0; SEND_SEGMENT_BYTES]), Err(65_544));
        assert_eq!(queue.append_lent(10, Bytes::from_static(b"abc")), Err(11));
        let pieces = [&b"a"[..], b"", b"bc"].map(Bytes::from_static).to_vec();
        assert_eq!(queue.append_pieces(10, pieces), Err(11), "all or none");
        queue.append_owned(10, &mut pool, b"90".to_vec()).unwrap();
        let mut pipe = Pipe { taken: Vec::new(), room: 99, step: 99 };
        queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap();
        assert_eq!(pipe.taken, b"1234567890");
    }

    #[test]
    fn a_budget_is_kept_to_within_one_write() {
        let mut pool = SegmentPool::default();
        let mut queue = SendQueue::default();
        queue.append_owned(usize::MAX, &mut pool, vec![1; 100_000]).unwrap();
        let mut pipe = Pipe { taken: Vec::new(), room: usize::MAX, step: 1_000 };
        let expected = Flushed { bytes: 5_000, lent: 0, state: WriteProgress::Budget };
        assert_eq!(queue.write_to(&mut pipe, 4_500, &mut pool).unwrap(), expected);
    }

    #[test]
    fn many_small_frames_share_one_write_and_segments_are_reused() {
        let mut pool = SegmentPool::default();
        let mut queue = SendQueue::default();
        for _ in 0..100 {
            queue.append(usize::MAX, &mut pool, |out| out.extend_from_slice(&[1; 100])).unwrap();
        }
        assert_eq!(queue.segments.len(), 1);
        let mut pipe = Pipe { taken: Vec::new(), room: usize::MAX, step: usize::MAX };
        queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap();
        assert_eq!(pool.free.len(), 1);
        assert_eq!(pool.bytes, pool.free[0].capacity());
        queue.append(usize::MAX, &mut pool, |out| out.push(1)).unwrap();
        assert!(pool.free.is_empty() && pool.bytes == 0);
    }
}
