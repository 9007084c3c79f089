//! Which writes are certain to be new, so that their outcome is known before they are applied.
//!
//! Applying looks a command up in its client's session: it may be new, a repetition of one applied
//! before, or declared answered before. A PUT that is new makes the version it was proposed with, so
//! a leader that knows it to be new can answer as soon as it is committed. The rule:
//!
//! **A command is new if its sequence is greater than every sequence of its client in the log before
//! it.** For a session can only hold an outcome for a sequence that was in the log. And it can only
//! have ruled a sequence out by an `answered_below`, which is never greater than the sequence of the
//! command that carried it, or by dropping the oldest of its outcomes, which rules out what lies up to
//! that outcome's sequence: all of these are smaller too.
//!
//! A session that was dropped whole makes what its client writes later unknown: it is refused. So the session
//! must stand for certain where the command is applied. It stood where the client's last command was
//! applied; it is dropped when it has expired, or when more than [`StateLimits::sessions_max`] other clients
//! were heard of later, each by an entry. As long as neither can have been, it stands.
//!
//! What is certain is answered early only while the state machine keeps up
//! ([`limits::APPLY_LAG_ENTRIES_MAX`]): clients that wait for answers are what keeps it in reach.
//!
//! So a leader keeps, for each client, the greatest sequence in the log. What it has proposed itself
//! it has seen. What lies before its reign, and before it began to keep account of a client, it learns
//! from the state machine, which reports with every applied command the greatest sequence that the
//! session has met. Until then, and for every sequence that is not greater, the answer waits for the
//! command to be applied. That covers retries, whichever copy comes first, by whatever way: the copy
//! that comes to the log second is not greater than the first, and whatever its sender knows of the
//! other is not needed.

use std::collections::HashMap;

use crate::limits;
use crate::model::{ClientId, LogIndex, RequestId, StateLimits};

/// What a leader knows of its clients' sequences, in one reign.
#[derive(Debug, Default)]
pub(super) struct Certainty {
    /// `None` when they are not known: then nothing is certain.
    limits: Option<StateLimits>,
    clients: HashMap<ClientId, Known>,
}

#[derive(Debug)]
struct Known {
    /// Every command of the client from this index on is accounted for.
    since: LogIndex,
    /// Its last command, and the log's clock then.
    last: (LogIndex, u64),
    /// The greatest sequence among those, and among all others once they are `complete`.
    newest: u64,
    /// What lies before `since` is accounted for as well.
    complete: bool,
}

impl Certainty {
    /// Nothing is known of the clients of state machines that go by these limits, if those are.
    pub fn new(limits: Option<StateLimits>) -> Certainty {
        Certainty { limits, clients: HashMap::new() }
    }

    /// `request` has been proposed, at an index greater than any before. Whether it is certain to be
    /// new there.
    pub fn proposed(&mut self, request: &RequestId, index: LogIndex, clock_us: u64) -> bool {
        // Forgetting is always safe: the client's next write waits to be applied.
        if self.clients.len() >= limits::CERTAIN_CLIENTS_MAX
            && !self.clients.contains_key(&request.client)
        {
            self.clients.clear();
        }
        let unknown = Known { since: index, last: (index, clock_us), newest: 0, complete: false };
        let known = self.clients.entry(request.client).or_insert(unknown);
        let (last, last_us) = known.last;
        let stands = self.limits.is_some_and(|limits| {
            index - last <= u64::from(limits.sessions_max)
                && clock_us.saturating_sub(last_us) <= limits.session_expiry_us
        });
        if !stands {
            (known.since, known.complete) = (index, false);
        }
        known.last = (index, clock_us);
        let certain = known.complete && request.sequence > known.newest;
        known.newest = known.newest.max(request.sequence);
        certain
    }

    /// The command of `client` at `index`, proposed in this reign, is applied; `newest` is the
    /// greatest sequence that its session has met by then, 0 when it has none.
    pub fn applied(&mut self, client: ClientId, index: LogIndex, newest: u64) {
        if let Some(known) = self.clients.get_mut(&client)
            && index >= known.since
            && newest > 0
        {
            known.newest = known.newest.max(newest);
            known.complete = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn request(client: u64, sequence: u64) -> RequestId {
        RequestId { client: ClientId(client), sequence, answered_below: 0, begun: Timestamp::ZERO }
    }

    fn propose(certainty: &mut Certainty, request: &RequestId, index: LogIndex) -> bool {
        certainty.proposed(request, index, index)
    }

    #[test]
    fn where_the_session_may_be_gone_nothing_is_certain() {
        let limits = StateLimits { sessions_max: 10, session_expiry_us: 100, ..Default::default() };
        let mut certainty = Certainty::new(Some(limits));
        let mut sequence = 0;
        let mut certain_at = |index, at| {
            sequence += 1;
            let request = request(1, sequence);
            let certain = certainty.proposed(&request, index, at);
            certainty.applied(request.client, index, sequence);
            certain
        };
        assert!(!certain_at(1, 1));
        assert!(
            certain_at(11, 101),
            "ten clients at most were heard of later, and no more time passed"
        );
        assert!(!certain_at(22, 110), "eleven may have been");
        assert!(certain_at(23, 111));
        assert!(!certain_at(24, 212), "it may have expired");
        assert!(!certainty.proposed(&request(2, 5), 30, 220));
        certainty.applied(ClientId(2), 30, 0);
        assert!(!certainty.proposed(&request(2, 6), 31, 221), "it has no session");
    }

    #[test]
    fn a_client_is_unknown_until_one_of_its_commands_is_applied() {
        let mut certainty = Certainty::new(Some(StateLimits::default()));
        assert!(!propose(&mut certainty, &request(1, 5), 10));
        assert!(!propose(&mut certainty, &request(1, 6), 11));
        certainty.applied(ClientId(1), 10, 5);
        assert!(!propose(&mut certainty, &request(1, 6), 12), "proposed at 11 already");
        assert!(propose(&mut certainty, &request(1, 7), 13));
        assert!(!propose(&mut certainty, &request(1, 7), 14));
        assert!(!propose(&mut certainty, &request(2, 8), 15), "another client");
    }

    #[test]
    fn what_came_before_the_reign_counts() {
        let mut certainty = Certainty::new(Some(StateLimits::default()));
        assert!(!propose(&mut certainty, &request(1, 5), 10));
        certainty.applied(ClientId(1), 10, 8);
        assert!(!propose(&mut certainty, &request(1, 8), 11), "an earlier leader had it");
        assert!(propose(&mut certainty, &request(1, 9), 12));
    }

    #[test]
    fn what_is_applied_before_the_account_began_completes_nothing() {
        let mut certainty = Certainty::new(Some(StateLimits::default()));
        propose(&mut certainty, &request(1, 5), 10);
        propose(&mut certainty, &request(1, 9), 11);
        for other in 2..=limits::CERTAIN_CLIENTS_MAX as u64 + 1 {
            propose(&mut certainty, &request(other, 1), 10 + other);
        }
        let now = limits::CERTAIN_CLIENTS_MAX as u64 + 20;
        assert!(!propose(&mut certainty, &request(1, 6), now), "forgotten meanwhile");
        certainty.applied(ClientId(1), 10, 5);
        assert!(!propose(&mut certainty, &request(1, 9), now + 1), "9 is in the log at 11");
        certainty.applied(ClientId(1), now, 9);
        assert!(!propose(&mut certainty, &request(1, 9), now + 2));
        assert!(propose(&mut certainty, &request(1, 10), now + 3));
    }
}
