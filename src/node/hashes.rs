//! Comparing replicas: equal index, equal state.
//!
//! Every replica hashes its state at the same indices and tells the others. A difference means that
//! applying is not deterministic, or that a disk lied; nothing can repair it from inside, so it is
//! reported, loudly.

use std::collections::VecDeque;

use crate::types::{LogIndex, NodeId};

/// Own hashes remembered, and others' hashes that came before our own.
const REMEMBERED_MAX: usize = 32;

#[derive(Debug, Default)]
pub(super) struct StateHashes {
    own: VecDeque<(LogIndex, u64)>,
    early: VecDeque<(NodeId, LogIndex, u64)>,
}

impl StateHashes {
    /// Our own hash; returns the peers that differ.
    pub fn record(&mut self, index: LogIndex, hash: u64) -> Vec<NodeId> {
        push(&mut self.own, (index, hash));
        let differ = self.early.iter().filter(|(_, i, h)| *i == index && *h != hash);
        let peers = differ.map(|(peer, ..)| *peer).collect();
        self.early.retain(|(_, i, _)| *i > index);
        peers
    }

    /// A peer's hash; returns whether it differs from ours.
    pub fn compare(&mut self, peer: NodeId, index: LogIndex, hash: u64) -> bool {
        match self.own.iter().find(|(i, _)| *i == index) {
            Some((_, ours)) => *ours != hash,
            None => {
                if self.own.back().is_none_or(|(last, _)| index > *last) {
                    push(&mut self.early, (peer, index, hash));
                }
                false
            }
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == REMEMBERED_MAX {
        queue.pop_front();
    }
    queue.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_noticed_whoever_comes_first() {
        let mut hashes = StateHashes::default();
        assert_eq!(hashes.record(10, 1), []);
        assert!(!hashes.compare(NodeId(2), 10, 1));
        assert!(hashes.compare(NodeId(3), 10, 2));
        assert!(!hashes.compare(NodeId(2), 20, 5), "not known yet");
        assert!(!hashes.compare(NodeId(3), 20, 6));
        assert_eq!(hashes.record(20, 6), [NodeId(2)]);
    }
}
