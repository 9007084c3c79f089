//! The configuration of one event loop, with the defaults that a store's server takes.

use std::time::Duration;

use super::budget::BudgetLimits;
use super::connection::SendLimits;
use crate::limits;

/// Bytes written to one connection before the others get their turn.
const WRITE_BUDGET_BYTES: usize = 1024 * 1024;

/// The limits of one event loop; [`Default`] takes them from [`limits`].
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// Time between [`Service::on_tick`](super::Service::on_tick) calls; `None` for no ticks.
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
    /// Frames at least this long are handed over by
    /// [`Service::on_large_frame`](super::Service::on_large_frame); with `None`, none are.
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
    /// The most that counts of the time between two turns of the loop, in
    /// [`Net::now`](super::Net::now) and all that is measured by it, so that a process that was
    /// stopped takes nobody for silent. It is more than the loop ever sleeps. `None` counts all.
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
