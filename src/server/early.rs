//! Plain reads that came early: they ask for what this server has in its log and not in its state.
//!
//! A write is acknowledged when it is committed, and applied a moment later; at a follower, when it
//! hears of the commit. A client that reads what it has just written would be refused in between
//! (SPEC A4), and would go from server to server for nothing. So a read whose timestamp is in this
//! server's log waits until the state machine has come there, and after
//! [`EARLY_READ_WAIT`](crate::limits::EARLY_READ_WAIT) judged by what is there then. What is not in the log is not
//! worth waiting for: such a read is judged at once.
//!
//! How many wait is bounded by the requests that clients may have under way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::get::ReadRequest;
use crate::limits;
use crate::node::RequestToken;
use crate::types::Timestamp;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct EarlyRead {
    pub token: RequestToken,
    pub client: SocketAddr,
    pub request: ReadRequest,
    until: Instant,
}

/// All of them, by what they wait for.
#[derive(Debug, Default)]
pub(super) struct EarlyReads {
    by_timestamp: BTreeMap<Timestamp, Vec<EarlyRead>>,
}

impl EarlyReads {
    pub fn is_empty(&self) -> bool {
        self.by_timestamp.is_empty()
    }

    /// Lets a read wait, from `now` on.
    pub fn hold(
        &mut self,
        now: Instant,
        token: RequestToken,
        client: SocketAddr,
        request: ReadRequest,
    ) {
        let reads = self.by_timestamp.entry(request.wanted()).or_default();
        reads.push(EarlyRead { token, client, request, until: now + limits::EARLY_READ_WAIT });
    }

    /// Takes those that the state machine, which has come to `applied`, can answer.
    pub fn take_reached(&mut self, applied: Timestamp) -> Vec<EarlyRead> {
        let mut reached = Vec::new();
        while let Some(first) = self.by_timestamp.first_entry()
            && *first.key() <= applied
        {
            reached.append(&mut first.remove());
        }
        reached
    }

    /// Takes those that have waited for long enough.
    pub fn take_overdue(&mut self, now: Instant) -> Vec<EarlyRead> {
        let mut overdue = Vec::new();
        self.by_timestamp.retain(|_, reads| {
            overdue.extend(reads.extract_if(.., |read| read.until <= now));
            !reads.is_empty()
        });
        overdue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message::GetRequest;
    use bytes::Bytes;

    fn tokens(reads: &[EarlyRead]) -> Vec<u64> {
        reads.iter().map(|read| read.token.request).collect()
    }

    #[test]
    fn a_read_is_held_until_its_state_is_reached_or_its_time_is_up() {
        let start = Instant::now();
        let mut early = EarlyReads::default();
        let mut hold = |id: u64, timestamp: i64, session: i64, at| {
            let request = ReadRequest::Get(GetRequest {
                key: Bytes::from_static(b"k"),
                timestamp: Timestamp(timestamp),
                session: Timestamp(session),
                linearizable: false,
                at: Timestamp::ZERO,
            });
            let token = RequestToken { connection: 1, request: id };
            early.hold(at, token, ([127, 0, 0, 1], 9).into(), request);
        };
        let later = start + limits::EARLY_READ_WAIT / 2;
        hold(1, 10, 0, start);
        hold(2, 0, 20, later);
        hold(3, 30, 20, start);
        hold(4, 10, 5, later);
        assert!(early.take_reached(Timestamp(9)).is_empty());
        assert_eq!(tokens(&early.take_reached(Timestamp(10))), [1, 4]);
        assert!(early.take_overdue(later).is_empty());
        assert_eq!(tokens(&early.take_overdue(start + limits::EARLY_READ_WAIT)), [3]);
        assert_eq!(tokens(&early.take_reached(Timestamp(20))), [2]);
        assert!(early.is_empty());
    }
}
