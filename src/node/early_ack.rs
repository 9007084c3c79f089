//! Acknowledges writes before they are applied.
//!
//! Normally a leader answers a write when its state machine has applied it. If the leader can prove
//! that the write is new, and not a retry of one that was ordered before, its result is known when
//! it is committed, and the client is answered without waiting for the state machine.
//!
//! Rule: **a write is known to be new if its sequence is greater than every sequence of its client
//! in the log before it.** The leader keeps the greatest sequence of each client. It sees what it
//! proposes itself. What lies before its term, and before it began to account for the client, it
//! learns from the state machine, which reports with every applied write the greatest sequence that
//! the client's session has met. Until then, and for every sequence that is not greater, the answer
//! waits until the write is applied. That covers retries, whichever copy is ordered first: the copy
//! that is second in the log is not greater than the first.
//!
//! Why it is safe: applying a write looks its sequence up in the client's session. A session can
//! hold a result only for a sequence that was in the log. It can rule out a sequence only by an
//! `answered_below`, which is never greater than the sequence of the write that carried it, or by
//! dropping its oldest results, which rules out the sequences up to theirs. All of these are
//! smaller, so the session cannot change the outcome of the write. The session must exist, though:
//! the write of a client without one is refused. The session existed where the client's last write
//! was applied. It is dropped when it expires, or when more than [`StateLimits::sessions_max`]
//! other clients were active since, each by an entry. While neither can have happened, it exists.
//!
//! Not covered: writes whose result only the store knows, or that tell what a key had before (see
//! `model::Operation::known_at_commit`), and times when the state machine is behind by more than
//! [`limits::APPLY_LAG_ENTRIES_MAX`](crate::limits::APPLY_LAG_ENTRIES_MAX): clients that wait for
//! answers are what keeps it from falling further behind.

use std::collections::HashMap;

use crate::model::StateLimits;
use crate::model::{ClientId, LogIndex, RequestId};

/// Clients whose sequences a leader keeps. With one more it begins anew, so that the next write of
/// each client is answered when it is applied. Each takes about a hundred bytes.
const KNOWN_CLIENTS_MAX: usize = 16 * 1024;

/// The sequences of clients' writes as far as a leader knows them, in one term.
#[derive(Debug, Default)]
pub(super) struct KnownSequences {
    /// `None` while the group's limits are not known; then no write is known to be new.
    limits: Option<StateLimits>,
    clients: HashMap<ClientId, ClientSequences>,
}

#[derive(Debug)]
struct ClientSequences {
    /// Every write of the client from this index on is accounted for.
    since: LogIndex,
    /// The index of its last write, and the log's clock then.
    last: (LogIndex, u64),
    /// The greatest sequence among these, and among all earlier ones once this is `complete`.
    newest: u64,
    /// The writes before `since` are accounted for as well.
    complete: bool,
}

impl KnownSequences {
    /// Knows of no client yet; `limits` are those of the group's state machines, once they are
    /// known.
    pub fn new(limits: Option<StateLimits>) -> KnownSequences {
        KnownSequences { limits, clients: HashMap::new() }
    }

    /// Notes that `request` was proposed, at an index greater than any before. Returns whether it
    /// is known to be new there.
    pub fn proposed(&mut self, request: &RequestId, index: LogIndex, clock_us: u64) -> bool {
        // Forgetting is always safe: the answers to the clients' next writes wait until those are
        // applied.
        if self.clients.len() >= KNOWN_CLIENTS_MAX && !self.clients.contains_key(&request.client) {
            self.clients.clear();
        }
        let unknown =
            ClientSequences { since: index, last: (index, clock_us), newest: 0, complete: false };
        let known = self.clients.entry(request.client).or_insert(unknown);
        let (last, last_us) = known.last;
        let session_exists = self.limits.is_some_and(|limits| {
            index - last <= u64::from(limits.sessions_max)
                && clock_us.saturating_sub(last_us) <= limits.session_expiry_us
        });
        if !session_exists {
            (known.since, known.complete) = (index, false);
        }
        known.last = (index, clock_us);
        assert!(index >= last, "a write is proposed at {index} after one at {last}");
        let is_new = known.complete && request.sequence > known.newest;
        known.newest = known.newest.max(request.sequence);
        is_new
    }

    /// Notes that the write of `client` at `index`, proposed in this term, is applied. `newest` is
    /// the greatest sequence that its session has met by then, 0 if it has none.
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

    fn propose(sequences: &mut KnownSequences, request: &RequestId, index: LogIndex) -> bool {
        sequences.proposed(request, index, index)
    }

    #[test]
    fn no_write_is_known_to_be_new_where_the_session_may_be_gone() {
        let limits = StateLimits { sessions_max: 10, session_expiry_us: 100, ..Default::default() };
        let mut sequences = KnownSequences::new(Some(limits));
        let mut sequence = 0;
        let mut is_new_at = |index, at| {
            sequence += 1;
            let request = request(1, sequence);
            let is_new = sequences.proposed(&request, index, at);
            sequences.applied(request.client, index, sequence);
            is_new
        };
        assert!(!is_new_at(1, 1));
        assert!(
            is_new_at(11, 101),
            "ten clients at most were heard of later, and no more time passed"
        );
        assert!(!is_new_at(22, 110), "eleven may have been");
        assert!(is_new_at(23, 111));
        assert!(!is_new_at(24, 212), "it may have expired");
        assert!(!sequences.proposed(&request(2, 5), 30, 220));
        sequences.applied(ClientId(2), 30, 0);
        assert!(!sequences.proposed(&request(2, 6), 31, 221), "it has no session");
    }

    #[test]
    fn a_client_is_unknown_until_one_of_its_commands_is_applied() {
        let mut sequences = KnownSequences::new(Some(StateLimits::default()));
        assert!(!propose(&mut sequences, &request(1, 5), 10));
        assert!(!propose(&mut sequences, &request(1, 6), 11));
        sequences.applied(ClientId(1), 10, 5);
        assert!(!propose(&mut sequences, &request(1, 6), 12), "proposed at 11 already");
        assert!(propose(&mut sequences, &request(1, 7), 13));
        assert!(!propose(&mut sequences, &request(1, 7), 14));
        assert!(!propose(&mut sequences, &request(2, 8), 15), "another client");
    }

    #[test]
    fn sequences_from_before_the_term_count() {
        let mut sequences = KnownSequences::new(Some(StateLimits::default()));
        assert!(!propose(&mut sequences, &request(1, 5), 10));
        sequences.applied(ClientId(1), 10, 8);
        assert!(!propose(&mut sequences, &request(1, 8), 11), "an earlier leader had it");
        assert!(propose(&mut sequences, &request(1, 9), 12));
    }

    #[test]
    fn a_write_applied_before_the_accounting_began_completes_nothing() {
        let mut sequences = KnownSequences::new(Some(StateLimits::default()));
        propose(&mut sequences, &request(1, 5), 10);
        propose(&mut sequences, &request(1, 9), 11);
        for other in 2..=KNOWN_CLIENTS_MAX as u64 + 1 {
            propose(&mut sequences, &request(other, 1), 10 + other);
        }
        let now = KNOWN_CLIENTS_MAX as u64 + 20;
        assert!(!propose(&mut sequences, &request(1, 6), now), "forgotten meanwhile");
        sequences.applied(ClientId(1), 10, 5);
        assert!(!propose(&mut sequences, &request(1, 9), now + 1), "9 is in the log at 11");
        sequences.applied(ClientId(1), now, 9);
        assert!(!propose(&mut sequences, &request(1, 9), now + 2));
        assert!(propose(&mut sequences, &request(1, 10), now + 3));
    }
}
