//! When to accept connections, and what an error of `accept` means.
//!
//! Rule: an error of one connection never stops the listener, and a machine that has no more
//! descriptors or memory to give is asked again after a pause, with one line in the log for each
//! such period. The sockets are the event loop's.

use std::io;
use std::time::{Duration, Instant};

/// The event loop's next step after an error of `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AcceptStep {
    /// Nothing is waiting: stop until the system reports readiness again.
    Drained,
    /// That one connection was lost: go on with the next.
    Next,
    /// The machine has no descriptors or memory left: accept nothing for a while.
    BackOff {
        /// Whether this is the first of a run of failures, which alone is logged.
        log: bool,
    },
}

/// Decides whether the listener is to be asked for connections.
///
/// Readiness is edge-triggered: a listener that could not be drained, for want of file descriptors
/// for example, is not announced again, so it is asked again after a wait.
#[derive(Debug)]
pub(super) struct AcceptGate {
    backoff: Duration,
    ready: bool,
    retry_at: Option<Instant>,
    in_burst: bool,
}

impl AcceptGate {
    pub(super) fn new(backoff: Duration) -> AcceptGate {
        // Connections may wait since before the listener was registered.
        AcceptGate { backoff, ready: true, retry_at: None, in_burst: false }
    }

    /// Notes that the system has reported waiting connections.
    pub(super) fn on_ready(&mut self) {
        self.ready = true;
    }

    /// Whether to accept now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        self.ready && self.retry_at.is_none_or(|at| now >= at)
    }

    /// When a gate that is closed after a failure opens again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| self.ready)
    }

    pub(super) fn on_error(&mut self, kind: io::ErrorKind, now: Instant) -> AcceptStep {
        match kind {
            io::ErrorKind::WouldBlock => {
                self.ready = false;
                self.retry_at = None;
                self.in_burst = false;
                AcceptStep::Drained
            }
            // The connection died while it waited; the listener is fine.
            io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown => AcceptStep::Next,
            _ => {
                self.retry_at = Some(now + self.backoff);
                AcceptStep::BackOff { log: !std::mem::replace(&mut self.in_burst, true) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Duration = Duration::from_millis(100);

    #[test]
    fn running_out_of_descriptors_backs_off_and_is_logged_once_a_burst() {
        let start = Instant::now();
        let mut gate = AcceptGate::new(BACKOFF);
        assert!(gate.is_open(start));
        assert_eq!(gate.on_error(io::ErrorKind::Other, start), AcceptStep::BackOff { log: true });
        assert!(!gate.is_open(start));
        assert_eq!(gate.retry_at(), Some(start + BACKOFF));

        let later = start + BACKOFF;
        assert!(gate.is_open(later));
        assert_eq!(gate.on_error(io::ErrorKind::Other, later), AcceptStep::BackOff { log: false });
        assert!(!gate.is_open(later));

        let end = later + BACKOFF;
        assert_eq!(gate.on_error(io::ErrorKind::WouldBlock, end), AcceptStep::Drained);
        assert!(!gate.is_open(end));
        assert_eq!(gate.retry_at(), None);
        gate.on_ready();
        assert!(gate.is_open(end));
        assert_eq!(gate.on_error(io::ErrorKind::Other, end), AcceptStep::BackOff { log: true });
    }

    #[test]
    fn a_connection_that_died_waiting_does_not_close_the_gate() {
        let now = Instant::now();
        let mut gate = AcceptGate::new(BACKOFF);
        assert_eq!(gate.on_error(io::ErrorKind::ConnectionAborted, now), AcceptStep::Next);
        assert!(gate.is_open(now));
    }
}
