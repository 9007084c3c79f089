//! The state of one connection: what is known of its socket, and why it may end.
//!
//! Rule: whether to read, write or close is computed from this state whenever it is asked for, and
//! never stored. The calls to the system are in `event_loop` and `handle`.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::send_queue::SendQueue;
use super::socket::Socket;
use crate::limits::{CLIENT_SEND_BYTES_MAX, CLIENT_SEND_BYTES_PAUSE};
use crate::text::counted;
use crate::wire::frame::{Deframer, FrameError};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// This side's service closed it.
    #[error("closed by this side")]
    Local,
    /// The other side closed it.
    #[error("closed by the other side")]
    Remote,
    /// What the other side sent is not a sequence of acceptable frames.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// The system reported an error of the socket.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// Its deadline passed; a new connection has that of the greeting.
    #[error("not done in the time allowed")]
    Deadline,
    /// A frame was begun and not whole within
    /// [`LoopConfig::frame_timeout`](super::LoopConfig::frame_timeout).
    #[error(
        "a frame was begun and not whole after {}: {} of it came",
        counted(*seconds, "second", "seconds"),
        counted(*received_bytes as u64, "byte", "bytes")
    )]
    FrameSlow {
        /// The frame time-out, in seconds.
        seconds: u64,
        /// Bytes of the frame that had come.
        received_bytes: usize,
    },
    /// Nothing was received for longer than the idle time-out.
    #[error("idle for too long")]
    Idle,
    /// The other side took no byte of what was queued for it for too long.
    #[error("the other side does not read: {queued_bytes} bytes wait for it")]
    WriteStalled {
        /// Bytes that waited to be written.
        queued_bytes: usize,
    },
    /// More was queued than the connection may have waiting.
    #[error("the other side reads too slowly: {queued_bytes} bytes would wait, {max} may")]
    QueueFull {
        /// Bytes that would have waited to be written.
        queued_bytes: usize,
        /// The limit of the connection, [`SendLimits::max_bytes`].
        max: usize,
    },
    /// It gave way: no place was left, and another connection got this one's.
    #[error(
        "its place was needed: most connections come from its address, it has not greeted, or \
         nothing was under way on it"
    )]
    Displaced,
    /// Accepted connections made this process hold more than the budget, and this one much of it
    /// for long.
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

/// The phases of a connection, in the order in which it goes through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionPhase {
    /// Dialled and not established. What is sent waits.
    Connecting,
    /// Frames are read and written.
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
    /// Where they go; its length is the number that is awaited.
    pub(super) buffer: Buffer,
    /// Number of bytes that have come.
    pub(super) filled: usize,
}

impl RawIncoming {
    /// The part of the buffer that is still to be filled.
    pub(super) fn rest(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut()[self.filled..]
    }
}

/// Which side dialled, and whether there was room. Each kind has a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConnectionKind {
    /// The other side dialled, and there was room.
    Accepted,
    /// This side has dialled.
    Dialled,
    /// The other side dialled when there was no room, and is being told so.
    Refused,
}

/// One socket and what is known about it.
pub(super) struct Connection {
    pub(super) stream: Socket,
    pub(super) peer: SocketAddr,
    pub(super) kind: ConnectionKind,
    pub(super) phase: ConnectionPhase,
    /// The service knows this connection and has not been told of its end.
    pub(super) announced: bool,
    /// Why it is being closed, from `Flushing` on.
    pub(super) close_reason: CloseReason,

    /// The system has reported that it can be read, and no call has shown otherwise since.
    pub(super) readable: bool,
    /// The system has reported that it can be written, and no call has shown otherwise since.
    pub(super) writable: bool,
    /// The system has reported the end of the other side's stream: after a short read there may be
    /// more to read.
    pub(super) end_announced: bool,
    /// Its turns come before those of others, whatever time those take.
    pub(super) urgent: bool,
    /// Its last turn may have left whole frames behind.
    pub(super) frames_left: bool,
    /// The service has called [`Net::pause_reading`](super::Net::pause_reading).
    pub(super) paused: bool,
    /// It is not read until the budget has room for what it sends.
    pub(super) held_back: bool,
    /// The service has called [`Net::hold_frames`](super::Net::hold_frames): a frame is decoded on
    /// another thread.
    pub(super) held: bool,
    /// It is in the list of connections that wait for a turn, which it enters once.
    pub(super) scheduled: bool,
    /// It is in the list of connections with something to write, which it enters once.
    pub(super) dirty: bool,

    pub(super) deframer: Deframer,
    /// Since when a frame that has begun has been waited for. Time in which this side does not read
    /// does not count.
    pub(super) frame_since: Option<Instant>,
    /// Since when the frame that has begun has taken memory, time in which this side does not read
    /// included.
    pub(super) received_since: Option<Instant>,
    /// Received bytes that are charged to the budget.
    pub(super) received_charged: usize,
    /// Queued bytes that are charged to the budget.
    pub(super) queued_charged: usize,
    /// When the oldest of the queued bytes may have been queued, and the number of bytes ever
    /// queued when that was noted. When the other side has taken those, the mark is set anew; so it
    /// is never older than what waits, and at most as young as half of it.
    pub(super) queue_mark: Option<(Instant, u64)>,
    /// The buffer for the raw bytes that come next, where no frame is expected.
    pub(super) raw: Option<RawIncoming>,
    /// Bytes of every kind received since the connection began.
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
        self.phase == ConnectionPhase::Open
            && !self.paused
            && !self.held_back
            && !self.held
            && self.queue.queued_bytes() < self.send_limits.pause_bytes
    }

    /// Whether there is something to write and someone to write it to.
    pub(super) fn wants_write(&self) -> bool {
        matches!(self.phase, ConnectionPhase::Open | ConnectionPhase::Flushing)
            && !self.queue.is_empty()
    }

    /// Whether a turn would find something to do.
    pub(super) fn wants_turn(&self) -> bool {
        match self.phase {
            ConnectionPhase::Connecting => self.writable,
            ConnectionPhase::Open => (self.readable || self.frames_left) && self.wants_read(),
            ConnectionPhase::Flushing => false,
            ConnectionPhase::Lingering => self.readable,
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

    /// Starts or stops the time of a frame, after every whole frame has been handed out.
    pub(super) fn note_partial_frame(&mut self, now: Instant) {
        if self.deframer.buffered_bytes() == 0 || !self.wants_read() {
            self.frame_since = None;
        } else {
            self.frame_since.get_or_insert(now);
        }
    }

    /// Why the connection is to be closed now, if one of its time limits has passed.
    pub(super) fn expired(
        &mut self,
        now: Instant,
        write_stall_timeout: Duration,
        frame_timeout: Duration,
    ) -> Option<CloseReason> {
        if !self.wants_read() {
            // The rest of the frame may be in the system's buffer: it is this side that keeps it
            // waiting.
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
        (self.phase == ConnectionPhase::Open
            && self.idle_timeout.is_some_and(|limit| silent >= limit))
        .then_some(CloseReason::Idle)
    }
}
