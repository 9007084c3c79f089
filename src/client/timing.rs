//! How long a client waits for a server, apart from a call's whole time.

use std::time::Duration;

use crate::limits;

/// The client's time-outs below a whole request's; [`Timing::default`] suits a local network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// To establish a connection, greeting included.
    pub connect_timeout: Duration,
    /// How long a server may say nothing, or owe the answer to a read of which nothing is arriving,
    /// before another is asked, too. A write waits twice as long for a server to greet, and stays
    /// with one that has greeted as long as anything is heard of it, PINGs included, within six
    /// times as long. While it is heard, after twenty times as long one write at a time goes to
    /// another server, too, and after twelve seconds every one.
    pub hedge_delay: Duration,
    /// How often a server that says nothing while it owes something is asked with PING.
    pub ping_interval: Duration,
    /// And before its connection is given up and the request tried elsewhere.
    pub silence_timeout: Duration,
    /// With no server heard for this long, requests fail.
    pub reach_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            connect_timeout: limits::CLIENT_CONNECT_TIMEOUT,
            hedge_delay: limits::CLIENT_HEDGE_DELAY,
            ping_interval: limits::CLIENT_PING_INTERVAL,
            silence_timeout: limits::CLIENT_SILENCE_TIMEOUT,
            reach_timeout: limits::CLIENT_REACH_TIMEOUT,
        }
    }
}
