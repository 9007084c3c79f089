//! Watches at the event loop: what clients ask of them, and what they are shown.
//!
//! Whatever is shown was sent by the hub in order, and goes out in order. Of each connection that
//! is shown something it is known how much has not left the process, and the hub is told as it
//! leaves. What the other threads have done is taken in first, and watches have a part of a stage
//! of their own, so that a thousand clients that are shown something hold up no acknowledgement.

use std::time::Instant;

use super::super::watches::{WatchEnd, WatchFrames, WatchInput, WatchOutput};
use super::StoreService;
use super::requests::busy;
use crate::limits;
use crate::net::{ConnectionId, Net};
use crate::node::{RequestToken, not_to_be_read};
use crate::wire::message::Reply;

/// Why a client is refused that gives credit without end for what it has not begun.
const NO_SUCH_WATCHES: &str = "it gives credit for many watches that do not exist";

/// Why a client is closed that takes what it is shown too slowly, where all others wait for it.
const TOO_SLOW: &str = "it takes what it is shown too slowly, and others wait for it";

/// Why a client is closed whose watches are shown nothing more here.
const CUT_OFF: &str = "this server knows no leader, and shows no changes: ask another one";

/// A connection that has asked something of the watches.
#[derive(Default)]
pub(super) struct WatchingClient {
    /// What counts of what it was sent and has not left.
    unsent: usize,
    /// Its watches that have begun and not ended.
    watches: usize,
}

impl StoreService {
    /// Sends what the hub has given out, for a part of a stage.
    pub(super) fn collect_watched(&mut self, net: &mut Net) {
        let until = Instant::now() + limits::LOOP_STAGE_TIME / 2;
        while let Some(output) = self.parts.threads.collect_watched() {
            self.watched(net, output);
            if Instant::now() >= until {
                net.wake_again();
                break;
            }
        }
    }

    /// Begins a watch, unless this server is not to be read.
    pub(super) fn begin_watch(&mut self, net: &mut Net, token: RequestToken, input: WatchInput) {
        if let Some(distrust) = self.distrust() {
            return self.reply(net, token, not_to_be_read(distrust));
        }
        self.ask_watches(net, token, input);
    }

    /// Hands the hub what a client asks.
    pub(super) fn ask_watches(&mut self, net: &mut Net, token: RequestToken, input: WatchInput) {
        if !self.parts.threads.ask_watches(input) {
            return self.reply(net, token, busy("too much is asked of watches"));
        }
        // From now on the hub is told when it is gone.
        self.watching.entry(ConnectionId::from_u64(token.connection)).or_default();
    }

    /// A client gives one of its watches credit.
    pub(super) fn credit_watch(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        watch: u64,
        bytes: u32,
    ) {
        let watches = self.watching.get(&connection).map_or(0, |client| client.watches);
        // Without a watch it is of no use: the last one may have ended just now.
        if watches > 0 && !self.parts.threads.credit_watch(connection, watch, bytes, watches) {
            self.refuse(net, connection, NO_SUCH_WATCHES.into());
        }
    }

    /// Sends what the hub gives out.
    fn watched(&mut self, net: &mut Net, output: WatchOutput) {
        match output {
            WatchOutput::Reply { token, reply } => {
                let connection = ConnectionId::from_u64(token.connection);
                if let Some(client) = self.watching.get_mut(&connection) {
                    match reply {
                        Reply::WatchOk { .. } => client.watches += 1,
                        Reply::UnwatchOk {} => client.watches -= 1,
                        _ => {}
                    }
                    self.clients.set_watching(connection, client.watches > 0);
                }
                self.reply(net, token, reply);
            }
            WatchOutput::Close { connection, why } => {
                let why = match why {
                    WatchEnd::TooSlow => TOO_SLOW,
                    WatchEnd::CutOff => CUT_OFF,
                };
                self.refuse(net, connection, why.to_owned());
                // It has taken little for long, and what it holds is what others wait for.
                net.set_deadline(connection, Some(net.now() + limits::CLOSE_LINGER));
            }
            WatchOutput::Send { connection, frames } => self.show(net, connection, frames),
            WatchOutput::Read(read) => panic!("the event loop is to read {read:?}"),
        }
    }

    fn show(&mut self, net: &mut Net, connection: ConnectionId, frames: WatchFrames) {
        // It is gone, and the hub has been told so.
        let Some(client) = self.watching.get_mut(&connection) else { return };
        client.unsent += frames.bytes();
        if let Some(distrust) = self.distrust() {
            // What it has been shown is a gap away from what comes next.
            return self.refuse(net, connection, distrust.to_string());
        }
        net.send_pieces(connection, frames.into_pieces());
    }

    /// Tells the hub what has left for the connections that are shown something. Once a tick is
    /// enough: what may be on the way to a connection is more than a tick sends.
    pub(super) fn tell_what_was_shown(&mut self, net: &Net) {
        for (connection, client) in &mut self.watching {
            let sent = client.unsent.saturating_sub(net.queued_bytes(*connection));
            if sent > 0 {
                client.unsent -= sent;
                self.parts.threads.sent_of_watches(*connection, sent);
            }
        }
    }

    /// A connection is gone, and its watches with it.
    pub(super) fn stop_watching(&mut self, connection: ConnectionId) {
        if self.watching.remove(&connection).is_some() {
            self.parts.threads.end_watches(connection);
        }
    }
}
