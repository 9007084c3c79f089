//! Room for calls: how many are under way, how much memory their requests take, and who waits.
//!
//! Calls that wait go in the order of their numbers, reads and writes each for themselves: one that
//! does not fit lets none of its kind pass, or it would wait for ever, and holds up none of the
//! other kind. One that is longer than all that there is room for begins when it is alone.

use std::collections::BTreeSet;

use super::CallId;
use crate::limits::{CLIENT_REQUEST_BYTES_MAX, CLIENT_REQUESTS_MAX};

/// The calls of one kind.
#[derive(Default)]
struct Kind {
    waiting: BTreeSet<CallId>,
    under_way: usize,
    /// About how much memory the requests of those under way take.
    bytes: usize,
}

/// The places of a client's calls. Reads and writes have bytes of their own, so that writes that
/// hang do not hold up a read.
#[derive(Default)]
pub(super) struct Places {
    reads: Kind,
    writes: Kind,
}

impl Places {
    fn kind(&mut self, is_write: bool) -> &mut Kind {
        if is_write { &mut self.writes } else { &mut self.reads }
    }

    fn under_way(&self) -> usize {
        self.reads.under_way + self.writes.under_way
    }

    /// Whether no more calls may be under way, whatever they are.
    pub(super) fn is_full(&self) -> bool {
        self.under_way() >= CLIENT_REQUESTS_MAX
    }

    /// A call waits from now on.
    pub(super) fn wait(&mut self, id: CallId, is_write: bool) {
        self.kind(is_write).waiting.insert(id);
    }

    /// A call that may wait does not any more.
    pub(super) fn leave(&mut self, id: CallId, is_write: bool) {
        self.kind(is_write).waiting.remove(&id);
    }

    /// The first read and the first write that wait, in the order of their numbers.
    pub(super) fn next(&self) -> impl Iterator<Item = CallId> + use<> {
        let mut next = [&self.reads, &self.writes].map(|kind| kind.waiting.first().copied());
        next.sort_unstable();
        next.into_iter().flatten()
    }

    /// Whether there is room for a call whose request takes so many bytes.
    pub(super) fn has_room(&self, is_write: bool, request_bytes: usize) -> bool {
        let taken = if is_write { self.writes.bytes } else { self.reads.bytes };
        !self.is_full() && (taken == 0 || taken + request_bytes <= CLIENT_REQUEST_BYTES_MAX)
    }

    /// A call that has waited is under way.
    pub(super) fn take(&mut self, id: CallId, is_write: bool, request_bytes: usize) {
        let kind = self.kind(is_write);
        let has_waited = kind.waiting.remove(&id);
        assert!(has_waited, "call {id} begins and did not wait");
        kind.under_way += 1;
        kind.bytes += request_bytes;
    }

    /// A call is not under way any more.
    pub(super) fn give_back(&mut self, is_write: bool, request_bytes: usize) {
        let kind = self.kind(is_write);
        kind.under_way -= 1;
        kind.bytes -= request_bytes;
    }

    /// What must hold between any two inputs, of the calls of one kind: which wait, and how many
    /// bytes each of those under way takes.
    #[cfg(test)]
    pub(super) fn check(&self, is_write: bool, waiting: &BTreeSet<CallId>, under_way: &[usize]) {
        let kind = if is_write { &self.writes } else { &self.reads };
        assert_eq!(kind.waiting, *waiting);
        assert_eq!((kind.under_way, kind.bytes), (under_way.len(), under_way.iter().sum()));
        assert!(kind.bytes <= CLIENT_REQUEST_BYTES_MAX || kind.under_way == 1);
        assert!(self.under_way() <= CLIENT_REQUESTS_MAX);
    }
}
