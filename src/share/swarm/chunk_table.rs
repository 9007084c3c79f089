//! The state of each chunk of one download, and the sources that are asked for it.
//!
//! A chunk is in exactly one state: missing, assigned to one or more sources, arrived and waiting
//! to be verified, or stored. Before [`ChunkTable::begin`] nothing is known of any chunk.
//!
//! Rule: only this module changes a chunk's state. Each change ends with a check, alive in release
//! builds, that the numbers of chunks in the four states add up to the number of chunks.
//!
//! Left out: which chunk is assigned to which source, which `Swarm` decides.

use std::collections::BTreeMap;

use super::interface::SourceId;
use super::picker::Picker;
use crate::share::chunks::ChunkSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// Nothing is known of it before [`ChunkTable::begin`].
    Unknown,
    /// It is in the picker and has no assignees.
    Missing,
    /// It has at least one assignee.
    Assigned,
    /// It is being verified and written.
    Arrived,
    Stored,
}

#[derive(Debug)]
pub(super) struct ChunkTable {
    states: Vec<ChunkState>,
    picker: Picker,
    /// For each assigned chunk, the sources that are asked for it, in the order of the requests.
    assignees: BTreeMap<u64, Vec<SourceId>>,
    /// For each chunk that has not arrived, how many sources have stalled over it.
    stalls: BTreeMap<u64, u32>,
    arrived: usize,
    stored: u64,
    has_begun: bool,
    /// Counts the chunks that have become missing again. While it stays the same, a source that had
    /// no missing chunk to offer still has none.
    returns: u64,
}

impl ChunkTable {
    pub(super) fn new(chunks: u64, seed: u64) -> ChunkTable {
        ChunkTable {
            states: vec![ChunkState::Unknown; chunks as usize],
            picker: Picker::new(chunks, seed),
            assignees: BTreeMap::new(),
            stalls: BTreeMap::new(),
            arrived: 0,
            stored: 0,
            has_begun: false,
            returns: 0,
        }
    }

    /// The chunks of `stored` are stored already; all others are missing from now on.
    pub(super) fn begin(&mut self, stored: &ChunkSet) {
        assert!(!self.has_begun, "a download begins once");
        assert_eq!(stored.chunks(), self.len(), "the set is one of another content");
        self.has_begun = true;
        for (index, state) in (0..).zip(&mut self.states) {
            if stored.contains(index) {
                *state = ChunkState::Stored;
                self.stored += 1;
            } else {
                *state = ChunkState::Missing;
                self.picker.put(index);
            }
        }
        self.returns += 1;
        self.check_sums();
    }

    /// The number of chunks that the content has.
    pub(super) fn len(&self) -> u64 {
        self.states.len() as u64
    }

    pub(super) fn is_done(&self) -> bool {
        self.stored == self.len()
    }

    pub(super) fn missing(&self) -> u64 {
        self.picker.missing()
    }

    /// The number of chunks that have assignees.
    pub(super) fn assigned(&self) -> u64 {
        self.assignees.len() as u64
    }

    /// The number of chunks that are being verified and written.
    pub(super) fn arrived(&self) -> usize {
        self.arrived
    }

    pub(super) fn returns(&self) -> u64 {
        self.returns
    }

    /// The sources that are asked for a chunk; empty if it is not assigned.
    pub(super) fn assignees(&self, index: u64) -> &[SourceId] {
        self.assignees.get(&index).map(Vec::as_slice).unwrap_or_default()
    }

    /// How many sources have stalled over a chunk since it was last received.
    pub(super) fn stalls(&self, index: u64) -> u32 {
        self.stalls.get(&index).copied().unwrap_or_default()
    }

    pub(super) fn has_stalls(&self) -> bool {
        !self.stalls.is_empty()
    }

    pub(super) fn add_stall(&mut self, index: u64) {
        assert_eq!(self.state(index), ChunkState::Assigned, "chunk {index} is not assigned");
        *self.stalls.entry(index).or_default() += 1;
    }

    /// One more source with a part of the content has this chunk.
    pub(super) fn more(&mut self, index: u64) {
        self.picker.more(index);
    }

    /// One fewer source with a part of the content has this chunk.
    pub(super) fn fewer(&mut self, index: u64) {
        self.picker.fewer(index);
    }

    /// Chooses a missing chunk, see [`Picker::pick`]. The caller has to assign it at once.
    pub(super) fn pick(&mut self, have: Option<&ChunkSet>, next: u64) -> Option<u64> {
        self.picker.pick(have, next)
    }

    /// A source is asked for a chunk that was picked, or that other sources are asked for already.
    pub(super) fn assign(&mut self, index: u64, source: SourceId) {
        let assignees = self.assignees.entry(index).or_default();
        assert!(!assignees.contains(&source), "{source:?} has chunk {index} already");
        let is_first = assignees.is_empty();
        assignees.push(source);
        let expected = if is_first { ChunkState::Missing } else { ChunkState::Assigned };
        assert_eq!(self.state(index), expected, "chunk {index}, first assignee: {is_first}");
        self.set(index, ChunkState::Assigned);
        self.check_sums();
    }

    /// A source is not asked for a chunk any more. Without another assignee it is missing again.
    pub(super) fn unassign(&mut self, index: u64, source: SourceId) {
        assert_eq!(self.state(index), ChunkState::Assigned, "chunk {index} of {source:?}");
        let mut assignees = self.assignees.remove(&index).unwrap_or_default();
        let before = assignees.len();
        assignees.retain(|assignee| *assignee != source);
        assert_eq!(assignees.len() + 1, before, "{source:?} is one assignee of chunk {index}");
        if assignees.is_empty() {
            self.put_back(index);
        } else {
            self.assignees.insert(index, assignees);
        }
        self.check_sums();
    }

    /// A chunk has been received from one of its assignees. Returns the others, which need not send
    /// it any more.
    pub(super) fn arrive(&mut self, index: u64, source: SourceId) -> Vec<SourceId> {
        assert_eq!(self.state(index), ChunkState::Assigned, "chunk {index} of {source:?}");
        let mut others = self.assignees.remove(&index).unwrap_or_default();
        let before = others.len();
        others.retain(|other| *other != source);
        assert_eq!(others.len() + 1, before, "{source:?} is one assignee of chunk {index}");
        self.stalls.remove(&index);
        self.set(index, ChunkState::Arrived);
        self.arrived += 1;
        self.check_sums();
        others
    }

    /// An arrived chunk is verified and stored, or is wrong and therefore missing again.
    pub(super) fn settle(&mut self, index: u64, good: bool) {
        assert_eq!(self.state(index), ChunkState::Arrived, "chunk {index} is checked once");
        self.arrived -= 1;
        if good {
            self.set(index, ChunkState::Stored);
            self.stored += 1;
        } else {
            self.put_back(index);
        }
        self.check_sums();
    }

    /// A stored chunk was found changed on the disk: it is missing again.
    pub(super) fn damage(&mut self, index: u64) {
        assert_eq!(self.state(index), ChunkState::Stored, "chunk {index} is damaged");
        self.stored -= 1;
        self.put_back(index);
        self.check_sums();
    }

    fn put_back(&mut self, index: u64) {
        self.set(index, ChunkState::Missing);
        self.returns += 1;
        self.picker.put(index);
    }

    fn state(&self, index: u64) -> ChunkState {
        self.states[index as usize]
    }

    fn set(&mut self, index: u64, state: ChunkState) {
        self.states[index as usize] = state;
    }

    fn check_sums(&self) {
        let (missing, assigned) = (self.missing(), self.assigned());
        let (arrived, stored) = (self.arrived as u64, self.stored);
        assert_eq!(
            missing + assigned + arrived + stored,
            self.len(),
            "{missing} missing, {assigned} assigned, {arrived} arrived, {stored} stored"
        );
    }

    /// Compares the counters and the picker with every chunk's state, which takes too long outside
    /// of tests.
    #[cfg(test)]
    pub(super) fn check_each_chunk(&self) {
        let count = |state| self.states.iter().filter(|one| **one == state).count() as u64;
        assert_eq!(count(ChunkState::Missing), self.missing());
        assert_eq!(count(ChunkState::Assigned), self.assigned());
        assert_eq!(count(ChunkState::Arrived), self.arrived as u64);
        assert_eq!(count(ChunkState::Stored), self.stored);
        for (index, assignees) in &self.assignees {
            assert_eq!(self.state(*index), ChunkState::Assigned, "chunk {index}");
            assert!(!assignees.is_empty(), "chunk {index}");
        }
    }
}
