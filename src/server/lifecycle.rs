//! Whether a server goes on, and how it ends.
//!
//! - Asked to stop, it ends when the core has stopped and every request is answered, or when
//!   [`limits::SHUTDOWN_GRACE`] and [`limits::HANDOVER_TIMEOUT`] are over.
//! - With data that cannot be trusted it answers no read any more and hands over. It ends, to start
//!   again without them, once a kill cannot undo that verdict and the core has stopped; requests
//!   under way are not waited for.
//! - When something breaks it ends at once.
//!
//! This part is bookkeeping without a clock and without IO. What each step takes (inputs of the
//! core, the thread that makes a verdict durable) is the service's to do.

use std::time::{Duration, Instant};

use crate::limits;
use crate::storage::datadir::Untrusted;

/// How far the end of a server has come.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    stop_asked: Option<Instant>,
    /// The server is to start again without this, after it has handed over.
    untrusted: Option<Untrusted>,
    /// The verdict is durable, or its durability is not waited for any more.
    verdict_settled: bool,
    /// No request is taken any more.
    core_stopped: bool,
    failure: Option<String>,
}

impl Lifecycle {
    /// Notes that the server was asked to stop; returns whether that is new.
    pub fn ask_to_stop(&mut self, now: Instant) -> bool {
        let is_new = self.stop_asked.is_none();
        self.stop_asked.get_or_insert(now);
        is_new
    }

    /// Whether the server was asked to stop so long ago that what is under way is not waited for.
    pub fn is_stop_overdue(&self, now: Instant) -> bool {
        let patience: Duration = limits::SHUTDOWN_GRACE + limits::HANDOVER_TIMEOUT;
        self.stop_asked.is_some_and(|since| now.saturating_duration_since(since) > patience)
    }

    /// Notes that these data cannot be trusted; returns whether it is more than was known.
    pub fn distrust(&mut self, untrusted: Untrusted) -> bool {
        let is_more = self.untrusted < Some(untrusted);
        if is_more {
            self.untrusted = Some(untrusted);
        }
        is_more
    }

    /// Whether the data cannot be trusted, so that no read is answered from them.
    pub fn is_refuted(&self) -> bool {
        self.untrusted.is_some()
    }

    /// Notes that the verdict about the data is durable, or is not waited for any more; returns
    /// whether that is new, so that the server is to hand over.
    pub fn settle_verdict(&mut self) -> bool {
        assert!(self.untrusted.is_some(), "a verdict about nothing is settled");
        !std::mem::replace(&mut self.verdict_settled, true)
    }

    /// Whether the verdict is durable, or is not waited for any more.
    pub fn is_verdict_settled(&self) -> bool {
        self.verdict_settled
    }

    /// Notes that the core has stopped.
    pub fn core_stopped(&mut self) {
        self.core_stopped = true;
    }

    /// Whether requests are taken.
    pub fn takes_requests(&self) -> bool {
        !self.core_stopped
    }

    /// Whether the server may end, where `answered` says that no client waits for an answer.
    pub fn may_end(&self, answered: bool) -> bool {
        self.core_stopped && (answered || self.is_refuted())
    }

    /// Notes what has broken. The first failure is the one that is told.
    pub fn fail(&mut self, failure: String) {
        self.failure.get_or_insert(failure);
    }

    /// What follows when the event loop has ended: whether to start again, and without what. The
    /// error is what broke. Files that a thread still has open are not set aside, nor opened again
    /// by this process.
    pub fn end(self, threads_ended: bool) -> Result<Restart, String> {
        let stop_asked = self.stop_asked.is_some();
        match (self.failure, self.untrusted) {
            (Some(failure), _) => Err(failure),
            (None, Some(untrusted)) if threads_ended => {
                Ok(Restart { without: Some(untrusted), now: !stop_asked })
            }
            (None, Some(_)) if !stop_asked => {
                Err("this server is to be rebuilt, and its disk does not answer: start it again"
                    .to_owned())
            }
            (None, _) => Ok(Restart { without: None, now: false }),
        }
    }
}

/// What is to be done after a server has ended that nothing broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Restart {
    /// What is to be set aside before the next start.
    pub without: Option<Untrusted>,
    /// Whether this process starts the server again.
    pub now: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_was_asked_to_stop_waits_for_answers_but_not_for_ever() {
        let (mut lifecycle, now) = (Lifecycle::default(), Instant::now());
        assert!(lifecycle.ask_to_stop(now) && !lifecycle.ask_to_stop(now), "once is enough");
        assert!(!lifecycle.may_end(true), "the core has not stopped");
        lifecycle.core_stopped();
        assert!(!lifecycle.takes_requests());
        assert!(!lifecycle.may_end(false), "a client waits");
        assert!(lifecycle.may_end(true));
        let patience = limits::SHUTDOWN_GRACE + limits::HANDOVER_TIMEOUT;
        assert!(!lifecycle.is_stop_overdue(now + patience));
        assert!(lifecycle.is_stop_overdue(now + patience + Duration::from_millis(1)));
        assert_eq!(lifecycle.end(true), Ok(Restart { without: None, now: false }));
    }

    #[test]
    fn a_refuted_server_waits_for_its_verdict_and_for_no_client() {
        let mut lifecycle = Lifecycle::default();
        assert!(lifecycle.distrust(Untrusted::Store));
        assert!(!lifecycle.distrust(Untrusted::Store), "it is known");
        assert!(lifecycle.is_refuted() && lifecycle.takes_requests());
        assert!(lifecycle.settle_verdict() && !lifecycle.settle_verdict());
        assert!(lifecycle.distrust(Untrusted::Everything), "the log is damaged, too");
        assert!(!lifecycle.distrust(Untrusted::Store), "that is less");
        lifecycle.core_stopped();
        assert!(lifecycle.may_end(false));
        let without = Some(Untrusted::Everything);
        assert_eq!(lifecycle.end(true), Ok(Restart { without, now: true }));
    }

    #[test]
    fn data_that_a_thread_still_has_open_are_not_set_aside() {
        let refuted = || {
            let mut lifecycle = Lifecycle::default();
            lifecycle.distrust(Untrusted::Store);
            lifecycle
        };
        assert!(refuted().end(false).unwrap_err().contains("start it again"));
        let mut stopped = refuted();
        stopped.ask_to_stop(Instant::now());
        assert_eq!(stopped.end(false), Ok(Restart { without: None, now: false }));
        let mut failed = refuted();
        failed.fail("the first".to_owned());
        failed.fail("the second".to_owned());
        assert_eq!(failed.end(true), Err("the first".to_owned()));
    }
}
