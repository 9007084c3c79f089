//! The event loop: one thread that owns every socket of a process.
//!
//! An [`EventLoop`] accepts and dials TCP connections, and those within the process, cuts what
//! they bring into frames and hands each frame to a [`Service`], which answers through the [`Net`]
//! handle it is given with every call. A store server is one service; a file-sharing registry and
//! its peers are others. The loop knows frames, not messages.
//!
//! Between frames a connection may carry *raw* bytes, whose number a frame has announced: file
//! contents, which are neither encoded nor copied into frames. [`Net::send_raw`] queues them as
//! they lie in memory; [`Net::receive_raw`] has the next bytes of a connection read straight into a
//! [`Buffer`], up to its length and not a byte further, after which frames go on.
//!
//! How one iteration goes:
//!
//! 1. Sleep until a socket is ready, a [`WakeHandle`] is used, or a tick or deadline is due. The
//!    monotonic clock is read once, here.
//! 2. Accept a bounded number of connections, give every ready connection one bounded turn of
//!    reading, then report wakes, ticks and expired deadlines to the service. Urgent connections
//!    come first; the others as far as [`LoopConfig::stage_time`] goes, and those not reached come
//!    first in the next iteration.
//! 3. Call [`Service::before_sleep`], where a service does what it has gathered.
//! 4. Write what was queued: one vectored write per connection, when the socket takes it; likewise
//!    as far as the time goes.
//!
//! Invariants:
//!
//! - **Nothing blocks** but step 1.
//! - **Edge-triggered, so nothing is forgotten.** Each socket is registered once, for everything.
//!   What the system said is kept in the connection (`readable`, `writable`) until a call has shown
//!   it untrue; whether to act on it is computed from the connection's state (`wants_read`,
//!   `wants_write`) and never stored. Work left behind by a spent budget, a pause or a full queue
//!   leaves the connection scheduled for a later turn without waiting for the system.
//! - **A socket is read only when no whole frame is buffered.** So back-pressure reaches the other
//!   side's kernel, the end of a stream is seen after everything that came before it, and a
//!   connection buffers at most one incomplete frame and one read. (What was read together with the
//!   frame that announces raw bytes is copied from there; a connection that carries little but raw
//!   bytes keeps its smallest read buffer.)
//! - **One bad connection costs one connection.** Errors of a socket, lengths out of bounds,
//!   silence and slowness end that connection with a [`CloseReason`]; errors of accepting pause
//!   accepting. Only a failure of the readiness system itself ends the loop.
//! - **Places are shared** (`crowd`): when all are taken, a connection that has not greeted gives
//!   way to a new one, and an origin that has many to one that has few.
//! - **What others make this process hold is counted** (`budget`), by connection, by origin and in
//!   all; past a limit a connection is not read, or is closed.
//! - **Ids are never confused.** A [`ConnectionId`] names one connection for ever; using it after
//!   the connection is gone does nothing.
//! - **Callbacks are never nested.** What a call to [`Net`] brings about, such as the end of a
//!   connection, is reported to the service after its present callback has returned. Every
//!   connection that was reported to a service, or that it has dialled, ends with exactly one
//!   [`Service::on_closed`], or [`Service::on_dial_failed`] when it never came about.
//!
//! Left out: names (addresses are resolved elsewhere, since that blocks), TLS, datagrams,
//! half-closed connections (the end of the other side's stream is the end of the connection).

mod accept;
pub mod backoff;
mod budget;
mod buffer;
mod clock;
mod config;
mod connection;
mod connections;
mod crowd;
#[cfg(any(test, feature = "grpc"))]
mod driven;
mod event_loop;
mod handle;
mod listener;
mod local;
mod map;
mod send_queue;
mod service;
mod shared;
mod socket;
mod wake;

pub use budget::BudgetLimits;
pub use buffer::{BUFFER_ALIGNMENT, Buffer, BufferPool};
pub use clock::RunClock;
pub use config::LoopConfig;
pub use connection::{CloseReason, SendLimits};
pub use connections::ConnectionId;
#[cfg(feature = "grpc")]
pub use crowd::Crowd;
#[cfg(feature = "grpc")]
pub(crate) use driven::{DrivenLoop, DrivenTurn};
pub use event_loop::{EventLoop, LoopError};
pub use handle::Net;
#[cfg(feature = "internals")]
pub use handle::SendError;
pub use listener::{ListenError, Listener};
pub use local::LocalPort;
pub use map::ConnectionMap;
pub use service::Service;
pub use shared::SharedLoop;
pub use wake::WakeHandle;
