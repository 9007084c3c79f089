//! The trait that an event loop's service implements, and the loop's configuration.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::budget::BudgetLimits;
use super::buffer::Buffer;
use super::connection::{CloseReason, SendLimits};
use super::connections::ConnectionId;
use super::handle::Net;
use crate::limits;

/// Bytes written to one connection before the others get their turn.
const WRITE_BUDGET_BYTES: usize = 1024 * 1024;

/// The callbacks of an event loop. They run on the loop's thread, one at a time, and must not
/// block.
pub trait Service {
    /// Called once before the first iteration, for instance to dial.
    fn on_start(&mut self, net: &mut Net) {
        let _ = net;
    }

    /// A connection from `peer` was accepted.
    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, peer: SocketAddr);

    /// A connection that [`Net::dial`] began is established.
    fn on_connected(&mut self, net: &mut Net, connection: ConnectionId) {
        let _ = (net, connection);
    }

    /// A connection that [`Net::dial`] began could not be established; its id is gone already.
    fn on_dial_failed(&mut self, net: &mut Net, connection: ConnectionId, error: &io::Error) {
        let _ = (net, connection, error);
    }

    /// A whole frame came; `frame` is its body, at least one byte.
    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]);

    /// A whole frame came that is at least [`LoopConfig::large_frame_bytes`] long; its body, in
    /// pieces. To decode it on another thread and keep the order of the connection's frames, pause
    /// reading until that is done.
    fn on_large_frame(&mut self, net: &mut Net, connection: ConnectionId, pieces: Vec<Vec<u8>>) {
        self.on_frame(net, connection, &pieces.concat());
    }

    /// The raw bytes that [`Net::receive_raw`] asked for have come.
    fn on_raw(&mut self, net: &mut Net, connection: ConnectionId, buffer: Buffer) {
        let _ = (net, connection, buffer);
    }

    /// The system has taken the last of the bytes of one [`Net::send_raw`], in order.
    fn on_raw_sent(&mut self, net: &mut Net, connection: ConnectionId) {
        let _ = (net, connection);
    }

    /// A connection ended; its id is gone already.
    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason);

    /// A [`WakeHandle`](super::WakeHandle) was used: other threads have left something to take.
    fn on_wake(&mut self, net: &mut Net) {
        let _ = net;
    }

    /// Called once every [`LoopConfig::tick_interval`]. After a stall of the loop some ticks are
    /// made up for.
    fn on_tick(&mut self, net: &mut Net) {
        let _ = net;
    }

    /// Nothing was received on a connection for its idle time-out. `false` spares it for as long
    /// again, for example because its answers are still being prepared.
    fn on_idle(&mut self, net: &mut Net, connection: ConnectionId) -> bool {
        let _ = (net, connection);
        true
    }

    /// Called at the end of each iteration's callbacks. What is sent here still goes out before the
    /// loop sleeps.
    fn before_sleep(&mut self, net: &mut Net) {
        let _ = net;
    }

    /// The last word, as whole frames, on an open connection that this side ends because its stream
    /// cannot be understood ([`CloseReason::Frame`]), comes too slowly ([`CloseReason::FrameSlow`])
    /// or its deadline passed ([`CloseReason::Deadline`]); nothing by default. The connection's end
    /// is told as usual.
    fn farewell(&mut self, connection: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        let _ = (connection, reason);
        Vec::new()
    }

    /// The last word, as whole frames, to someone for whom there is no room; nothing by default.
    fn refusal(&mut self, peer: SocketAddr) -> Vec<u8> {
        let _ = peer;
        Vec::new()
    }
}

/// The limits of one event loop; [`Default`] takes them from [`limits`].
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// Time between [`Service::on_tick`] calls; `None` for no ticks.
    pub tick_interval: Option<Duration>,
    /// The most accepted connections at once.
    pub accepted_max: usize,
    /// The most connections beyond that number which are being refused at once.
    pub refused_max: usize,
    /// The most dialled connections at once.
    pub dialled_max: usize,
    /// The most bytes of a frame's body on a new connection.
    pub first_frame_bytes_max: usize,
    /// The send limits of a new connection.
    pub send_limits: SendLimits,
    /// The memory that accepted connections may make this process hold.
    pub budget: BudgetLimits,
    /// Frames at least this long are handed over by [`Service::on_large_frame`]; with `None`, none
    /// are.
    pub large_frame_bytes: Option<usize>,
    /// How long one stage of an iteration may take before the loop goes on to the next.
    pub stage_time: Duration,
    /// The most bytes read from a connection in one turn.
    pub read_budget_bytes: usize,
    /// The most bytes written to a connection in one turn.
    pub write_budget_bytes: usize,
    /// The first deadline of a new connection, dialling included.
    pub handshake_timeout: Duration,
    /// How long a frame may take from its first byte to its last.
    pub frame_timeout: Duration,
    /// How long the other side may take no byte of what is queued.
    pub write_stall_timeout: Duration,
    /// How long a closed connection is kept so that the last words are heard; also the most that
    /// leaving the loop takes.
    pub close_linger: Duration,
    /// How often deadlines are looked at.
    pub sweep_interval: Duration,
    /// The most that counts of the time between two turns of the loop, in [`Net::now`] and all that
    /// is measured by it, so that a process that was stopped takes nobody for silent. It is more
    /// than the loop ever sleeps. `None` counts all.
    pub turn_max: Option<Duration>,
    /// The congestion control of every connection, by the system's name for it; the system's own
    /// choice when absent, or when it refuses.
    pub congestion: Option<String>,
}

impl Default for LoopConfig {
    fn default() -> LoopConfig {
        LoopConfig {
            tick_interval: None,
            accepted_max: limits::CONNECTIONS_MAX,
            refused_max: limits::REFUSALS_MAX,
            dialled_max: limits::DIALLED_CONNECTIONS_MAX,
            first_frame_bytes_max: limits::HELLO_FRAME_BYTES_MAX,
            send_limits: SendLimits::default(),
            budget: BudgetLimits::default(),
            large_frame_bytes: None,
            stage_time: limits::LOOP_STAGE_TIME,
            read_budget_bytes: limits::READ_BUDGET_BYTES,
            write_budget_bytes: WRITE_BUDGET_BYTES,
            handshake_timeout: limits::HANDSHAKE_TIMEOUT,
            frame_timeout: limits::FRAME_TIMEOUT,
            write_stall_timeout: limits::WRITE_STALL_TIMEOUT,
            close_linger: limits::CLOSE_LINGER,
            sweep_interval: limits::SWEEP_INTERVAL,
            turn_max: None,
            congestion: None,
        }
    }
}
