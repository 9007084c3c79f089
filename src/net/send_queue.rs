//! What waits to be written to one socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use crate::limits::{SEND_SEGMENT_BYTES, SEND_SEGMENTS_KEEP};

/// Slices offered to the system in one write.
const SLICES_PER_WRITE: usize = 16;

/// Emptied segments, shared by all connections of a loop.
#[derive(Debug, Default)]
pub(super) struct SegmentPool {
    free: Vec<Vec<u8>>,
}

impl SegmentPool {
    fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_default()
    }

    fn give(&mut self, mut segment: Vec<u8>) {
        // A segment that grew for one large frame is not worth keeping.
        if self.free.len() < SEND_SEGMENTS_KEEP && segment.capacity() <= 2 * SEND_SEGMENT_BYTES {
            segment.clear();
            self.free.push(segment);
        }
    }
}

/// How far a write got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing is left.
    Drained,
    /// The socket takes no more for now.
    Blocked,
    /// The budget is spent; the socket may take more.
    Budget,
}

/// Frames in order, gathered into segments so that many small ones make one write.
///
/// Invariants: no segment is empty; `head_written` is less than the first one's length;
/// `queued` is the sum of the lengths less `head_written`.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    segments: VecDeque<Vec<u8>>,
    head_written: usize,
    queued: usize,
}

impl SendQueue {
    /// Bytes waiting.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued
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
            Some(tail) if tail.len() < SEND_SEGMENT_BYTES => tail,
            Some(tail) => {
                self.segments.push_back(tail);
                pool.take()
            }
            None => pool.take(),
        };
        let length_before = segment.len();
        write(&mut segment);
        // Frames of other messages stand before it: a writer only ever appends.
        debug_assert!(segment.len() >= length_before);
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
            self.segments.push_back(segment);
        }
        if fits { Ok(()) } else { Err(wanted) }
    }

    /// Appends bytes the caller already has. A long run becomes a segment of its own, uncopied.
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
        self.segments.push_back(bytes);
        Ok(())
    }

    /// Writes until nothing is left, the socket blocks, or about `budget` bytes are written. The
    /// first number is how many bytes were.
    pub(super) fn write_to(
        &mut self,
        socket: &mut impl Write,
        budget: usize,
        pool: &mut SegmentPool,
    ) -> io::Result<(usize, Written)> {
        let mut total = 0;
        loop {
            if self.is_empty() {
                return Ok((total, Written::Drained));
            }
            if total >= budget {
                return Ok((total, Written::Budget));
            }
            match self.write_once(socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    total += written;
                    self.advance(written, pool);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok((total, Written::Blocked));
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
            *slice = IoSlice::new(&segment[from..]);
            count += 1;
        }
        socket.write_vectored(&slices[..count])
    }

    fn advance(&mut self, written: usize, pool: &mut SegmentPool) {
        self.queued = self.queued.saturating_sub(written);
        self.head_written += written;
        while let Some(head) = self.segments.front()
            && self.head_written >= head.len()
        {
            self.head_written -= head.len();
            if let Some(segment) = self.segments.pop_front() {
                pool.give(segment);
            }
        }
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
            if seed % 2 == 0 {
                queue.append(usize::MAX, &mut pool, |out| out.extend_from_slice(&piece)).unwrap();
            } else {
                queue.append_owned(usize::MAX, &mut pool, piece).unwrap();
            }
            assert_eq!(queue.queued_bytes(), expected.len());
        }
        let mut pipe = Pipe { taken: Vec::new(), room: 0, step: 4_099 };
        while !queue.is_empty() {
            assert_eq!(
                queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap(),
                (0, Written::Blocked)
            );
            pipe.room = 50_021;
            let before = queue.queued_bytes();
            let (written, state) = queue.write_to(&mut pipe, usize::MAX, &mut pool).unwrap();
            assert_eq!(queue.queued_bytes(), before - written);
            assert_eq!(state == Written::Drained, queue.is_empty());
            pipe.room = 0;
        }
        assert!(pipe.taken == expected);
        assert!(queue.segments.is_empty() && queue.head_written == 0);
    }

    #[test]
    fn a_full_queue_takes_nothing_and_loses_nothing() {
        let mut pool = SegmentPool::default();
        let mut queue = SendQueue::default();
        queue.append(10, &mut pool, |out| out.extend_from_slice(b"12345678")).unwrap();
        assert_eq!(queue.append(10, &mut pool, |out| out.extend_from_slice(b"abc")), Err(11));
        assert_eq!(queue.append_owned(10, &mut pool, vec![0; SEND_SEGMENT_BYTES]), Err(65_544));
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
        assert_eq!(queue.write_to(&mut pipe, 4_500, &mut pool).unwrap(), (5_000, Written::Budget));
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
        queue.append(usize::MAX, &mut pool, |out| out.push(1)).unwrap();
        assert!(pool.free.is_empty());
    }
}
