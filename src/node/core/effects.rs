//! Turns the effects of consensus into outputs for the driver.
//!
//! Invariant: log batches and an installation are handed out in the order of their numbers, and
//! committed entries in the order of their indices, in which the driver must carry them out.

use super::super::reads::ConfirmedAtOnce;
use super::super::{Notice, Output, compares_states};
use super::Node;
use crate::consensus::InstallRequest;
use crate::model::{LogEntry, LogIndex};
use crate::wire::message::{RaftBody, Role, ServerMessage};

impl Node {
    /// Runs consensus, and collects what the driver is to do for it.
    pub(super) fn run_consensus(&mut self, out: &mut Vec<Output>) {
        self.consensus.advance(&mut self.effects);
        let effects = &mut self.effects;
        for message in effects.messages.drain(..) {
            let to = message.to;
            if let RaftBody::Append { commit, .. } = &message.body
                && let Some(leadership) = &mut self.leadership
            {
                leadership.commit_sent(to, *commit);
            }
            out.push(Output::Send { to, message: ServerMessage::Raft(message) });
        }
        let install = effects.install.take();
        let before = |number| install.is_none_or(|i: InstallRequest| number < i.number);
        let (first, rest): (Vec<_>, Vec<_>) =
            effects.batches.drain(..).partition(|batch| before(batch.number));
        for batch in first.iter().chain(&rest) {
            self.eligibility.persist(batch.number);
        }
        out.extend(first.into_iter().map(Output::Persist));
        if let Some(request) = install {
            self.eligibility.persist(request.number);
            self.eligibility.apply(request.snapshot.index);
            out.push(Output::InstallSnapshot(request));
        }
        out.extend(rest.into_iter().map(Output::Persist));
        let snapshots: Vec<_> = effects.snapshots.drain(..).collect();
        let answering = self.consensus.role() == Role::Leader;
        let committed = std::mem::take(&mut effects.committed);
        // A lost store applies nothing before its snapshot, which contains everything committed
        // until then. Entries that are handed out while the snapshot is being installed follow it.
        if !self.store_lost || self.consensus.is_installing() {
            for entries in split_at_hashes(committed, self.config.state_hash_every) {
                if let Some(last) = entries.last() {
                    self.eligibility.apply(last.index);
                    if compares_states(last, self.config.state_hash_every) {
                        self.consistency.handed_out(last.index);
                    }
                }
                out.push(Output::Apply { entries, answering });
            }
        } else if let Some(last) = committed.last() {
            self.consensus.skipped(last.index);
        }
        for fetch in effects.fetches.drain(..) {
            out.push(Output::Fetch {
                fetch: fetch.id,
                low: fetch.low,
                high: fetch.high,
                bytes_max: self.config.limits.append_bytes_max,
            });
        }
        if std::mem::take(&mut effects.became_eligible) {
            out.push(Output::Notice(Notice::EligibleToVote));
        }
        let trusted = self.distrust().is_none();
        for (to, leader_term) in snapshots {
            if trusted {
                out.push(Output::SendSnapshot { to, leader_term });
            } else {
                // A state that is in doubt is not sent. The follower requests it again.
                self.consensus.snapshot_sent(to, None);
            }
        }
        for (request, index) in std::mem::take(&mut self.effects.reads) {
            let ConfirmedAtOnce { servers, leases } = self.reads.confirm(request, index);
            for (to, id) in servers {
                let message = ServerMessage::ReadIndexOk { id, index };
                out.push(Output::Send { to, message });
            }
            self.lease_batches_confirmed_early(leases, out);
        }
    }
}

/// Cuts committed entries so that a piece ends at each index where replicas compare states: the
/// state machine reports its hash at the end of each piece.
fn split_at_hashes(entries: Vec<LogEntry>, every: LogIndex) -> Vec<Vec<LogEntry>> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    for entry in entries {
        let is_compared = compares_states(&entry, every);
        piece.push(entry);
        if is_compared {
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_replicas_compare() {
        let every = 16;
        let entry = |index| LogEntry { term: 1, index, data: bytes::Bytes::from_static(b"write") };
        let mut entries: Vec<LogEntry> = (every - 1..2 * every + 2).map(entry).collect();
        entries[4].data = bytes::Bytes::new();
        let pieces = split_at_hashes(entries, every);
        let ends: Vec<u64> = pieces.iter().map(|p| p[p.len() - 1].index).collect();
        assert_eq!(ends, [every, every + 3, 2 * every, 2 * every + 1]);
        assert_eq!(pieces.iter().map(Vec::len).sum::<usize>() as u64, every + 3);
    }
}
