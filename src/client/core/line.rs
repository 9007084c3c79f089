//! How much of what was sent to a server may still be on the line.
//!
//! What is sent on a connection arrives in its order. So who answers a request has got everything
//! that was sent up to it, and who answers PING everything up to that: its nonce says how much that
//! was. Whether somebody still waits for what was sent changes nothing about where it is.

use std::collections::VecDeque;

/// How exactly the way of what is sent is known: a quarter of a second of the slowest line that
/// counts.
const LINE_MARK_BYTES: u64 = 16 * 1024;
/// Marks that are kept; when there are more the last one moves. Of long requests a mark each, and
/// more than any server has under way.
const LINE_MARKS_MAX: usize = 1024;

/// What has been sent on one connection, in bytes since it was made.
#[derive(Default)]
pub(super) struct Line {
    sent: u64,
    /// As far as is known.
    arrived: u64,
    /// How much had been sent with some of the requests, by their ids, oldest first.
    marks: VecDeque<(u64, u64)>,
}

impl Line {
    /// The request with this id, greater than any before, is sent.
    pub(super) fn sent(&mut self, id: u64, bytes: usize) {
        self.sent += bytes as u64;
        let last = self.marks.back().map_or(self.arrived, |(_, sent)| *sent);
        if self.marks.len() == LINE_MARKS_MAX {
            self.marks.pop_back();
        } else if self.sent - last < LINE_MARK_BYTES {
            return;
        }
        self.marks.push_back((id, self.sent));
    }

    /// The server has answered the request with this id.
    pub(super) fn answered(&mut self, id: u64, is_last: bool) {
        if is_last {
            self.arrived = self.sent;
            self.marks.clear();
        }
        while let Some((_, sent)) = self.marks.pop_front_if(|(marked, _)| *marked <= id) {
            self.arrived = self.arrived.max(sent);
        }
    }

    /// What a PING that is sent now has for its nonce.
    pub(super) fn nonce(&self) -> u64 {
        self.sent
    }

    /// The server has answered a PING.
    pub(super) fn ponged(&mut self, nonce: u64) {
        // It may answer what it was not asked.
        self.arrived = self.arrived.max(nonce.min(self.sent));
        while self.marks.pop_front_if(|(_, sent)| *sent <= self.arrived).is_some() {}
    }

    /// Bytes that may be on the line.
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.sent - self.arrived).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn what_was_sent_up_to_an_answered_request_has_arrived_and_nothing_after_it() {
        let mut line = Line::default();
        for id in 1..=4 {
            line.sent(id, 100 * KIB);
        }
        line.answered(2, false);
        assert_eq!(line.bytes(), 200 * KIB);
        line.answered(1, false);
        assert_eq!(line.bytes(), 200 * KIB, "answers come in any order");
        line.answered(4, true);
        assert_eq!(line.bytes(), 0);
    }

    #[test]
    fn the_answer_to_a_ping_says_how_much_had_been_sent_before_it() {
        let mut line = Line::default();
        line.sent(1, 100 * KIB);
        let nonce = line.nonce();
        line.sent(2, 50 * KIB);
        line.ponged(nonce);
        assert_eq!(line.bytes(), 50 * KIB);
        line.ponged(0);
        assert_eq!(line.bytes(), 50 * KIB);
        line.ponged(u64::MAX);
        assert_eq!(line.bytes(), 0, "nothing can have arrived that was not sent");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_what_arrives_is_known_within_a_mark() {
        let mut line = Line::default();
        let mut id = 0;
        for _ in 0..10_000 {
            id += 1;
            line.sent(id, KIB);
        }
        line.answered(5_000, false);
        assert!((5_000 * KIB..=5_016 * KIB).contains(&line.bytes()), "{}", line.bytes());
        for _ in 0..2 * LINE_MARKS_MAX {
            id += 1;
            line.sent(id, 20 * KIB);
        }
        assert_eq!(line.marks.len(), LINE_MARKS_MAX);
        line.answered(id, true);
        assert_eq!((line.bytes(), line.marks.len()), (0, 0));
    }
}
