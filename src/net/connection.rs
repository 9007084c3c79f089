//! One connection's state.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::TcpStream;

use super::buffer::Buffer;
use super::connections::Origin;
use super::send_queue::SendQueue;
use crate::limits::{CLIENT_SEND_BYTES_MAX, CLIENT_SEND_BYTES_PAUSE};
use crate::text::counted;
use crate::wire::frame::{Deframer, FrameError};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The service closed it.
    #[error("closed by this side")]
    Local,
    /// The other side closed it.
    #[error("closed by the other side")]
    Remote,
    /// What the other side sent is not a sequence of acceptable frames.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The socket failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The deadline passed, by default that of the greeting.
    #[error("not done in the time allowed")]
    Deadline,
    /// A frame has begun and does not end.
    #[error(
        "a frame was begun and not whole after {}: {} of it came",
        counted(*seconds, "second", "seconds"),
        counted(*received_bytes as u64, "byte", "bytes")
    )]
    FrameSlow {
        /// The time allowed.
        seconds: u64,
        /// Bytes of it that came.
        received_bytes: usize,
    },
    /// Nothing was received for longer than the idle time-out.
    #[error("idle for too long")]
    Idle,
    /// The other side took no byte of what was queued for it for too long.
    #[error("the other side does not read: {queued_bytes} bytes wait for it")]
    WriteStalled {
        /// Bytes that were waiting.
        queued_bytes: usize,
    },
    /// More was queued than the connection may have waiting.
    #[error("the other side reads too slowly: {queued_bytes} bytes would wait, {max} may")]
    QueueFull {
        /// Bytes that would have been waiting.
        queued_bytes: usize,
        /// The limit.
        max: usize,
    },
    /// No place was left, and another connection got this one's.
    #[error(
        "its place was needed: most connections come from its address, it has not greeted, or nothing was under way on it"
    )]
    Displaced,
    /// Accepted connections made this process hold more than they may, and this one much of it for long.
    #[error(
        "it takes or sends too slowly: {held_bytes} bytes are held for it, and for all together \
         more than {max}"
    )]
    Evicted {
        /// Bytes that were held for it.
        held_bytes: usize,
        /// The limit for all together, or for all of its origin.
        max: usize,
    },
}

/// How many bytes may wait to be written to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendLimits {
    /// From here on the connection is not read until less is waiting.
    pub pause_bytes: usize,
    /// More than this is never queued.
    pub max_bytes: usize,
}

impl Default for SendLimits {
    fn default() -> SendLimits {
        SendLimits { pause_bytes: CLIENT_SEND_BYTES_PAUSE, max_bytes: CLIENT_SEND_BYTES_MAX }
    }
}

/// Where a connection is in its life. It only ever moves downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Dialled, not there yet. What is sent waits.
    Connecting,
    /// Frames in, frames out.
    Open,
    /// Nothing is read any more; closed when what is queued has been written.
    Flushing,
    /// Everything is written and our end of the stream is closed. What still comes in is thrown
    /// away until the other side closes too: closing with unread input would make the system
    /// send a reset, which can destroy our last words before they are read.
    Lingering,
}

/// Raw bytes on their way in.
pub(super) struct RawIncoming {
    /// Where to, and how many.
    pub(super) buffer: Buffer,
    /// How many are there.
    pub(super) filled: usize,
}

impl RawIncoming {
    /// Where the next ones go.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[self.filled..]
    }
}

/// One socket and what is known about it.
pub(super) struct Connection {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) origin: Origin,
    pub(super) phase: Phase,
    /// The service knows this connection and has not been told of its end.
    pub(super) announced: bool,
    /// Why it is being closed, from `Flushing` on.
    pub(super) close_reason: CloseReason,

    /// The system said so and no call has shown otherwise.
    pub(super) readable: bool,
    /// Likewise.
    pub(super) writable: bool,
    /// The end of the other side's stream is near: a short read does not mean "no more".
    pub(super) end_announced: bool,
    /// Its turns come before those of others, and whatever they take.
    pub(super) urgent: bool,
    /// Its last turn may have left whole frames behind.
    pub(super) frames_left: bool,
    /// The service wants no frames for now.
    pub(super) paused: bool,
    /// What it sends would take more memory than it may for now.
    pub(super) held_back: bool,
    /// The service works on a frame elsewhere, and wants the next one when it has done with that.
    pub(super) held: bool,
    /// Waits for a turn; kept so that it is in the list once.
    pub(super) scheduled: bool,
    /// Waits to be flushed; likewise.
    pub(super) dirty: bool,

    pub(super) deframer: Deframer,
    /// Since when a frame of which some is here has been waited for, time in which this side does not
    /// read apart.
    pub(super) frame_since: Option<Instant>,
    /// Since when the frame of which some is here has taken memory.
    pub(super) received_since: Option<Instant>,
    /// What the budget was told of received bytes.
    pub(super) received_charged: usize,
    /// What it was told of queued ones.
    pub(super) queued_charged: usize,
    /// When the oldest of the queued bytes may have been queued, and how many have been queued ever when
    /// that was noted. When the other side has taken those, the mark is set anew; so it is never older than
    /// what waits, and at most as young as half of it.
    pub(super) queue_mark: Option<(Instant, u64)>,
    /// The bytes that come next are not frames.
    pub(super) raw: Option<RawIncoming>,
    /// Everything ever received.
    pub(super) received_bytes: u64,
    pub(super) raw_bytes: u64,
    pub(super) frame_cap: usize,
    pub(super) queue: SendQueue,
    pub(super) send_limits: SendLimits,

    pub(super) deadline: Option<Instant>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) last_received: Instant,
    /// When the socket last took a byte, or the queue began to wait.
    pub(super) last_write_progress: Instant,
}

impl CloseReason {
    /// Whether this is how connections end when nothing is wrong.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            CloseReason::Local | CloseReason::Remote | CloseReason::Io(_) | CloseReason::Idle
        )
    }
}

impl Connection {
    /// Whether frames may be handed to the service.
    pub(super) fn wants_read(&self) -> bool {
        self.phase == Phase::Open
            && !self.paused
            && !self.held_back
            && !self.held
            && self.queue.queued_bytes() < self.send_limits.pause_bytes
    }

    /// Whether there is something to write and someone to write it to.
    pub(super) fn wants_write(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Flushing) && !self.queue.is_empty()
    }

    /// Whether a turn would find something to do.
    pub(super) fn wants_turn(&self) -> bool {
        match self.phase {
            Phase::Connecting => self.writable,
            Phase::Open => (self.readable || self.frames_left) && self.wants_read(),
            Phase::Flushing => false,
            Phase::Lingering => self.readable,
        }
    }

    /// Since when the oldest of the queued bytes have been waiting, about.
    pub(super) fn queued_since(&mut self, now: Instant) -> Option<Instant> {
        let (queued_ever, taken_ever) = self.queue.ever();
        if self.queue.is_empty() {
            self.queue_mark = None;
        } else if self.queue_mark.is_none_or(|(_, mark)| taken_ever >= mark) {
            self.queue_mark = Some((now, queued_ever));
        }
        self.queue_mark.map(|(since, _)| since)
    }

    /// Takes note of what is left over when everything that has come has been handed out.
    pub(super) fn note_partial_frame(&mut self, now: Instant) {
        if self.deframer.buffered_bytes() == 0 || !self.wants_read() {
            self.frame_since = None;
        } else {
            self.frame_since.get_or_insert(now);
        }
    }

    /// Why the connection has lived long enough, if it has.
    pub(super) fn expired(
        &mut self,
        now: Instant,
        write_stall_timeout: Duration,
        frame_timeout: Duration,
    ) -> Option<CloseReason> {
        if !self.wants_read() {
            // The rest of the frame may be in the system's buffer: it is this side that keeps it waiting.
            self.frame_since = self.frame_since.map(|_| now);
        }
        if self
            .frame_since
            .is_some_and(|since| now.saturating_duration_since(since) >= frame_timeout)
        {
            return Some(CloseReason::FrameSlow {
                seconds: frame_timeout.as_secs(),
                received_bytes: self.deframer.buffered_bytes(),
            });
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(CloseReason::Deadline);
        }
        if self.wants_write() {
            let stalled = now.saturating_duration_since(self.last_write_progress);
            return (stalled >= write_stall_timeout)
                .then(|| CloseReason::WriteStalled { queued_bytes: self.queue.queued_bytes() });
        }
        let silent = now.saturating_duration_since(self.last_received);
        (self.phase == Phase::Open && self.idle_timeout.is_some_and(|limit| silent >= limit))
            .then_some(CloseReason::Idle)
    }
}
