//! Cuts a byte stream into length-prefixed frames.
//!
//! A frame is a four-byte big-endian length followed by that many bytes, the body. The length
//! counts the body only; it is at least 1 and at most the cap of the moment, which the owner of the
//! connection raises once it knows who is at the other end.
//!
//! Invariants:
//!
//! 1. `start ≤ end ≤ buffer.len()`, and `buffer[start..end]` is exactly what was received and not
//!    yet handed out.
//! 2. `start` is where a header begins; nothing is ever searched for or resynchronised.
//! 3. A length is compared with the cap before anything is allocated for its body, and even an
//!    accepted length reserves nothing by itself: the buffer at most doubles when it is full of
//!    bytes that did arrive. So memory is within twice what the other side has really sent, or the
//!    small size every connection starts with. A *large* frame, if the owner has said from which
//!    length on one is ([`Deframer::set_large_from`]), is received in pieces of its own and handed
//!    over as it lies there: it is never moved as a whole, and what the owner does with it can be
//!    done elsewhere.
//! 4. A byte of any other frame is moved at most once: when the free space behind an incomplete
//!    frame is not enough for the rest of it, that one frame goes to the front, where it stays
//!    until it is whole.
//! 5. A violation stays: after an error the same error comes again, whatever arrives.
//!
//! There is no IO here. The owner reads from its socket into [`Deframer::spare`], says how much
//! with [`Deframer::commit`], and takes frames with [`Deframer::next_frame`] until there is none.

use crate::limits::{
    FRAME_BUFFER_BYTES_KEEP, FRAME_BUFFER_BYTES_MIN, FRAME_HEADER_BYTES, LARGE_FRAME_PIECE_BYTES,
};

/// Why a stream is not a sequence of acceptable frames. The connection cannot be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length of zero: no message is empty.
    #[error("a frame announces an empty body")]
    Empty,
    /// A length above the cap.
    #[error("a frame announces {announced} bytes where at most {cap} are allowed")]
    TooLong {
        /// The announced body length in bytes.
        announced: usize,
        /// The cap of the moment in bytes.
        cap: usize,
    },
}

/// Refills in a row that must have done without a large buffer before it is given back. A stream
/// of large frames keeps its buffer; one large frame among small ones does not.
const SMALL_REFILLS_BEFORE_SHRINK: u32 = 16;

/// A large frame that is being received.
#[derive(Debug, Default)]
struct Large {
    /// Its body so far; all but the last piece are full.
    pieces: Vec<Vec<u8>>,
    /// Bytes of the last piece that were received.
    filled: usize,
    received: usize,
    /// Bytes still to come.
    missing: usize,
}

impl Large {
    fn spare(&mut self) -> &mut [u8] {
        if self.pieces.last().is_none_or(|last| last.len() == self.filled) {
            // Within twice what was received, as a buffer is.
            let room = self.received.clamp(FRAME_BUFFER_BYTES_KEEP, LARGE_FRAME_PIECE_BYTES);
            self.pieces.push(vec![0; room.min(self.missing.max(1))]);
            self.filled = 0;
        }
        let last = self.pieces.len() - 1;
        &mut self.pieces[last][self.filled..]
    }

    fn commit(&mut self, received: usize) {
        let received = received.min(self.missing);
        self.filled += received;
        self.received += received;
        self.missing -= received;
    }
}

/// An incremental deframer. See the module for the format and the invariants.
#[derive(Debug, Default)]
pub struct Deframer {
    /// Storage, all of it initialised; its length is what may be filled.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    cap: usize,
    /// Frames with bodies at least this long are large; none is when absent.
    large_from: Option<usize>,
    large: Option<Large>,
    /// The furthest `end` since the buffer was last empty.
    high_water: usize,
    small_refills: u32,
}

impl Deframer {
    /// A deframer that holds no buffer yet and accepts bodies of 1 to `cap` bytes.
    pub fn new(cap: usize) -> Deframer {
        Deframer { cap, ..Deframer::default() }
    }

    /// Changes the cap, in body bytes, for every frame that [`Deframer::next_frame`] has not
    /// returned yet, also when its header has been received already.
    pub fn set_cap(&mut self, cap: usize) {
        self.cap = cap;
    }

    /// Has frames with bodies of at least `bytes` handed out by [`Deframer::take_large`].
    pub fn set_large_from(&mut self, bytes: usize) {
        self.large_from = Some(bytes);
    }

    /// Takes the next frame's body, in pieces, when that is a large frame and it is whole. To be
    /// called before [`Deframer::next_frame`].
    pub fn take_large(&mut self) -> Result<Option<Vec<Vec<u8>>>, FrameError> {
        if self.large.is_none()
            && let Some(large_from) = self.large_from
            && let Some(total) = self.head_frame_bytes()?
            && total - FRAME_HEADER_BYTES >= large_from
        {
            let body = total - FRAME_HEADER_BYTES;
            let from = self.start + FRAME_HEADER_BYTES;
            let here = body.min(self.end - from);
            let first = self.buffer[from..from + here].to_vec();
            self.start = from + here;
            let pieces = if here > 0 { vec![first] } else { Vec::new() };
            self.large = Some(Large { pieces, filled: here, received: here, missing: body - here });
        }
        match self.large.take_if(|large| large.missing == 0) {
            Some(large) => Ok(Some(large.pieces)),
            None => Ok(None),
        }
    }

    /// Takes the next whole frame's body, or `None` when more bytes are needed first.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        if self.large.is_some() {
            return Ok(None);
        }
        let Some(total) = self.head_frame_bytes()? else {
            return Ok(None);
        };
        if self.end - self.start < total {
            return Ok(None);
        }
        let body_start = self.start + FRAME_HEADER_BYTES;
        self.start += total;
        Ok(Some(&self.buffer[body_start..self.start]))
    }

    /// Space to read into, never empty. Call it when [`Deframer::next_frame`] has no more to give;
    /// otherwise the buffer grows past what invariant 3 promises.
    pub fn spare(&mut self) -> &mut [u8] {
        if let Some(ref mut large) = self.large {
            return large.spare();
        }
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.shrink_after_large_frames();
        }
        // What the frame at hand needs in all. An unacceptable length needs nothing: whoever asks
        // for the frame will be told.
        let needed = match self.head_frame_bytes() {
            Ok(Some(total)) => total,
            Ok(None) | Err(_) => FRAME_HEADER_BYTES,
        };
        if self.start > 0 && self.buffer.len() - self.start < needed.max(self.end - self.start + 1)
        {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            let enough = needed.max(FRAME_BUFFER_BYTES_KEEP).max(self.end + 1);
            let grown = (2 * self.buffer.len()).max(FRAME_BUFFER_BYTES_MIN).min(enough);
            self.buffer.reserve_exact(grown - self.buffer.len());
            self.buffer.resize(grown, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that the first `received` bytes of the last [`Deframer::spare`] were filled. More than
    /// the space there was counts as all of it.
    pub fn commit(&mut self, received: usize) {
        if let Some(large) = &mut self.large {
            return large.commit(received);
        }
        self.end = (self.end + received).min(self.buffer.len());
        self.high_water = self.high_water.max(self.end);
    }

    /// Takes a copy of `bytes`: for callers that already have them in memory.
    #[cfg(any(test, feature = "internals"))]
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let spare = self.spare();
            let taken = spare.len().min(bytes.len());
            spare[..taken].copy_from_slice(&bytes[..taken]);
            self.commit(taken);
            bytes = &bytes[taken..];
        }
    }

    /// Moves received bytes that are not frames to `out`, as many as are here and fit; how many.
    /// Only the owner of the connection knows that the bytes after the last frame are not frames.
    pub fn take_raw(&mut self, out: &mut [u8]) -> usize {
        let taken = out.len().min(self.end - self.start);
        out[..taken].copy_from_slice(&self.buffer[self.start..self.start + taken]);
        self.start += taken;
        taken
    }

    /// The first bytes of a frame that is not whole yet, its header included, as far as they have
    /// come; nothing of a large frame.
    pub fn unfinished(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Bytes received and not handed out.
    pub fn buffered_bytes(&self) -> usize {
        self.end - self.start + self.large.as_ref().map_or(0, |large| large.received)
    }

    /// Bytes of memory held.
    pub fn memory_bytes(&self) -> usize {
        let pieces = self.large.iter().flat_map(|large| &large.pieces);
        self.buffer.capacity() + pieces.map(Vec::capacity).sum::<usize>()
    }

    /// Gives the memory back when nothing is buffered, so that an idle connection costs none.
    pub fn release_if_empty(&mut self) {
        if self.start == self.end && self.large.is_none() {
            *self = Deframer { large_from: self.large_from, ..Deframer::new(self.cap) };
        }
    }

    /// The length of the frame at `start`, header included, once its header is here and acceptable.
    fn head_frame_bytes(&self) -> Result<Option<usize>, FrameError> {
        let Some(header) = self.buffer[self.start..self.end].first_chunk::<FRAME_HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*header) as usize;
        if announced == 0 {
            return Err(FrameError::Empty);
        }
        if announced > self.cap {
            return Err(FrameError::TooLong { announced, cap: self.cap });
        }
        Ok(Some(FRAME_HEADER_BYTES.saturating_add(announced)))
    }

    fn shrink_after_large_frames(&mut self) {
        if self.buffer.len() <= FRAME_BUFFER_BYTES_KEEP {
            return;
        }
        if self.high_water > FRAME_BUFFER_BYTES_KEEP {
            self.small_refills = 0;
        } else {
            self.small_refills += 1;
        }
        self.high_water = 0;
        if self.small_refills >= SMALL_REFILLS_BEFORE_SHRINK {
            self.small_refills = 0;
            self.buffer.truncate(FRAME_BUFFER_BYTES_KEEP);
            self.buffer.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut bytes = (body.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut deframer = Deframer::new(16 << 20);
        deframer.push(&(16u32 << 20).to_be_bytes());
        deframer.push(&[7]);
        assert_eq!(deframer.next_frame(), Ok(None));
        assert!(deframer.spare().len() <= FRAME_BUFFER_BYTES_MIN);
        assert!(deframer.memory_bytes() <= FRAME_BUFFER_BYTES_MIN);
    }

    #[test]
    fn memory_follows_what_was_received() {
        let body_bytes = 3 << 20;
        let mut deframer = Deframer::new(body_bytes);
        deframer.push(&(body_bytes as u32).to_be_bytes());
        let mut received = FRAME_HEADER_BYTES;
        while received < FRAME_HEADER_BYTES + body_bytes {
            assert_eq!(deframer.next_frame(), Ok(None));
            let taken = deframer.spare().len().min(FRAME_HEADER_BYTES + body_bytes - received);
            deframer.commit(taken);
            assert!(deframer.memory_bytes() <= (2 * received).max(FRAME_BUFFER_BYTES_MIN));
            received += taken;
        }
        assert_eq!(deframer.next_frame().map(|f| f.map(<[u8]>::len)), Ok(Some(body_bytes)));
        assert_eq!(deframer.memory_bytes(), FRAME_HEADER_BYTES + body_bytes);
    }

    #[test]
    fn one_huge_frame_among_small_ones_gives_its_memory_back() {
        let mut deframer = Deframer::new(1 << 20);
        deframer.push(&frame(&vec![1; 1 << 20]));
        assert!(deframer.next_frame().unwrap().is_some());
        assert!(deframer.memory_bytes() > 1 << 20);
        for _ in 0..=SMALL_REFILLS_BEFORE_SHRINK {
            deframer.push(&frame(b"small"));
            assert_eq!(deframer.next_frame(), Ok(Some(&b"small"[..])));
        }
        assert!(deframer.memory_bytes() <= FRAME_BUFFER_BYTES_KEEP);
    }

    #[test]
    fn a_stream_of_large_frames_keeps_its_buffer() {
        let mut deframer = Deframer::new(1 << 20);
        let large = frame(&vec![1; 1 << 20]);
        for _ in 0..4 * SMALL_REFILLS_BEFORE_SHRINK {
            deframer.push(&large);
            assert!(deframer.next_frame().unwrap().is_some());
            assert_eq!(deframer.memory_bytes(), large.len());
        }
    }

    /// A large frame between small ones, in steps of any size: the same bytes come out, in order,
    /// and its memory is within twice what was received of it and no piece is longer than a piece
    /// may be.
    #[test]
    fn a_large_frame_is_handed_over_in_the_pieces_it_came_in() {
        let large: Vec<u8> = (0..900_001_u32).map(|n| (n % 251) as u8).collect();
        let bytes = [frame(b"before"), frame(&large), frame(b"after")].concat();
        for step in [1_000, 65_536, 300_007, bytes.len()] {
            let mut deframer = Deframer::new(1 << 20);
            deframer.set_large_from(70_000);
            let (mut found, mut received) = (Vec::new(), 0);
            while found.len() < 3 {
                if let Some(pieces) = deframer.take_large().unwrap() {
                    let most = pieces.iter().map(Vec::len).max().unwrap();
                    assert!(most <= LARGE_FRAME_PIECE_BYTES, "{most}");
                    found.push(pieces.concat());
                } else if let Some(frame) = deframer.next_frame().unwrap() {
                    found.push(frame.to_vec());
                } else {
                    let spare = deframer.spare();
                    let taken = spare.len().min(step).min(bytes.len() - received);
                    spare[..taken].copy_from_slice(&bytes[received..received + taken]);
                    deframer.commit(taken);
                    received += taken;
                    let most = 2 * received + FRAME_BUFFER_BYTES_KEEP + FRAME_BUFFER_BYTES_MIN;
                    assert!(deframer.memory_bytes() <= most);
                }
            }
            assert!(found == [b"before".to_vec(), large.clone(), b"after".to_vec()], "{step}");
            assert_eq!(deframer.buffered_bytes(), 0);
        }
    }

    #[test]
    fn a_large_frame_that_announces_too_much_is_an_error() {
        let mut deframer = Deframer::new(100);
        deframer.set_large_from(50);
        deframer.push(&[0, 0, 0, 101]);
        assert_eq!(deframer.take_large(), Err(FrameError::TooLong { announced: 101, cap: 100 }));
    }

    #[test]
    fn an_idle_connection_can_hold_no_memory_but_never_loses_a_byte() {
        let mut deframer = Deframer::new(64);
        let bytes = frame(b"abc");
        deframer.push(&bytes[..5]);
        deframer.release_if_empty();
        deframer.push(&bytes[5..]);
        assert_eq!(deframer.next_frame(), Ok(Some(&b"abc"[..])));
        deframer.release_if_empty();
        assert_eq!(deframer.memory_bytes(), 0);
        deframer.push(&frame(b"d"));
        assert_eq!(deframer.next_frame(), Ok(Some(&b"d"[..])));
    }

    #[test]
    fn lengths_out_of_bounds_are_errors_for_good() {
        let mut deframer = Deframer::new(10);
        deframer.push(&frame(&[1; 10]));
        deframer.push(&[0, 0, 0, 11]);
        assert_eq!(deframer.next_frame(), Ok(Some(&[1; 10][..])));
        let error = FrameError::TooLong { announced: 11, cap: 10 };
        assert_eq!(deframer.next_frame(), Err(error));
        deframer.push(&frame(b"fine"));
        assert_eq!(deframer.next_frame(), Err(error));

        let mut deframer = Deframer::new(10);
        deframer.push(&[0, 0, 0, 0]);
        assert_eq!(deframer.next_frame(), Err(FrameError::Empty));
    }

    #[test]
    fn the_cap_changes_between_frames_of_one_read() {
        let mut deframer = Deframer::new(3);
        let mut bytes = frame(b"abc");
        bytes.extend(frame(b"defgh"));
        deframer.push(&bytes);
        assert_eq!(deframer.next_frame(), Ok(Some(&b"abc"[..])));
        deframer.set_cap(5);
        assert_eq!(deframer.next_frame(), Ok(Some(&b"defgh"[..])));
        assert_eq!(deframer.next_frame(), Ok(None));
        assert_eq!(deframer.buffered_bytes(), 0);
    }

    #[test]
    fn spare_is_never_empty_even_when_frames_are_left_unread() {
        let mut deframer = Deframer::new(FRAME_BUFFER_BYTES_KEEP);
        for _ in 0..4 {
            deframer.push(&frame(&vec![9; FRAME_BUFFER_BYTES_KEEP]));
            assert!(!deframer.spare().is_empty());
        }
        for _ in 0..4 {
            assert!(deframer.next_frame().unwrap().is_some());
        }
        assert_eq!(deframer.next_frame(), Ok(None));
    }
}
