//! Watches at the event loop: what clients ask of them, and what they are shown.
//!
//! Whatever is shown was sent by the hub in order, and goes out in order. Of each connection that
//! is shown something it is known how much has not left the process, and the hub is told as it
//! leaves.

use super::super::watches::{WatchFrames, WatchInput, WatchOutput};
use super::StoreService;
use super::requests::busy;
use crate::net::{ConnectionId, Net};
use crate::node::{RequestToken, not_to_be_read};

/// Why a client is refused that asks more of its watches than the server can take in.
const TOO_MUCH: &str = "too much is asked of the watches at this server: try again later";

impl StoreService {
    /// Begins a watch, unless this server is not to be read.
    pub(super) fn begin_watch(&mut self, net: &mut Net, token: RequestToken, input: WatchInput) {
        if let Some(distrust) = self.distrust() {
            return self.reply(net, token, not_to_be_read(distrust));
        }
        let connection = ConnectionId::from_u64(token.connection);
        self.watching.entry(connection).or_default();
        self.ask_watches(net, input, Some(token));
    }

    /// Hands the hub what a client asks. `token` is what is to be answered.
    pub(super) fn ask_watches(
        &mut self,
        net: &mut Net,
        input: WatchInput,
        token: Option<RequestToken>,
    ) {
        match (self.parts.threads.ask_watches(input), token) {
            (Ok(()), _) => {}
            (Err(_), Some(token)) => self.reply(net, token, busy("too much is asked of watches")),
            (Err(refused), None) => match *refused {
                WatchInput::Credit { connection, .. } => {
                    self.refuse(net, connection, TOO_MUCH.into());
                }
                other => panic!("{other:?} is answered by nothing"),
            },
        }
    }

    /// Sends what the hub gives out.
    pub(super) fn watched(&mut self, net: &mut Net, output: WatchOutput) {
        match output {
            WatchOutput::Reply { token, reply } => self.reply(net, token, reply),
            WatchOutput::Send { connection, frames } => self.show(net, connection, frames),
            WatchOutput::Read(read) => panic!("the event loop is to read {read:?}"),
        }
    }

    fn show(&mut self, net: &mut Net, connection: ConnectionId, frames: WatchFrames) {
        // It is gone, and the hub has been told so.
        let Some(unsent) = self.watching.get_mut(&connection) else { return };
        *unsent += frames.bytes();
        if let Some(distrust) = self.distrust() {
            // What it has been shown is a gap away from what comes next.
            return self.refuse(net, connection, distrust.to_string());
        }
        net.send_pieces(connection, frames.into_pieces());
    }

    /// Tells the hub what has left for the connections that are shown something. Once a tick is
    /// enough: what may be on the way to a connection is more than a tick sends.
    pub(super) fn tell_what_was_shown(&mut self, net: &Net) {
        for (connection, unsent) in &mut self.watching {
            let sent = unsent.saturating_sub(net.queued_bytes(*connection));
            if sent > 0 {
                *unsent -= sent;
                let input = WatchInput::Sent { connection: *connection, bytes: sent };
                self.parts.threads.tell_watches(input);
            }
        }
    }

    /// A connection is gone, and its watches with it.
    pub(super) fn stop_watching(&mut self, connection: ConnectionId) {
        if self.watching.remove(&connection).is_some() {
            self.parts.threads.tell_watches(WatchInput::Closed { connection });
        }
    }
}
