//! The trait that an event loop's service implements.

use std::io;
use std::net::SocketAddr;

use super::buffer::Buffer;
use super::connection::CloseReason;
use super::connections::ConnectionId;
use super::handle::Net;

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

    /// A part of the raw bytes that [`Net::receive_raw`] asked for has come; `bytes` is all of them
    /// so far, from the first. Not called for what comes last.
    fn on_raw_part(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let _ = (connection, bytes);
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

    /// Called once every [`LoopConfig::tick_interval`](super::LoopConfig::tick_interval). After a
    /// stall of the loop some ticks are made up for.
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
