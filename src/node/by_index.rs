//! What is kept for entries of the log, by their indices.
//!
//! Indices are added rising and taken from the lowest, so that a sorted list serves, whose ends are
//! where things happen: nothing is allocated or searched for a write. What is added elsewhere moves
//! the shorter side.

use std::collections::VecDeque;

use crate::model::LogIndex;

/// A map from log indices, sorted.
#[derive(Debug)]
pub(super) struct ByIndex<T> {
    entries: VecDeque<(LogIndex, T)>,
}

impl<T> Default for ByIndex<T> {
    fn default() -> ByIndex<T> {
        ByIndex { entries: VecDeque::new() }
    }
}

impl<T> ByIndex<T> {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The place of an index, or the place where it belongs.
    fn find(&self, index: LogIndex) -> Result<usize, usize> {
        match (self.entries.front(), self.entries.back()) {
            (Some((first, _)), _) if *first == index => Ok(0),
            (_, Some((last, _))) if *last >= index => {
                self.entries.binary_search_by_key(&index, |(at, _)| *at)
            }
            _ => Err(self.entries.len()),
        }
    }

    pub fn contains(&self, index: LogIndex) -> bool {
        self.find(index).is_ok()
    }

    /// Adds what is kept for an index, which must have nothing yet.
    ///
    /// # Panics
    /// Panics when there is something, which two writes at one index are.
    pub fn insert(&mut self, index: LogIndex, value: T) {
        match self.find(index) {
            Ok(_) => panic!("two writes are entry {index} of the log"),
            Err(place) => self.entries.insert(place, (index, value)),
        }
    }

    /// Takes the lowest index, if it is no greater than `most`.
    pub fn pop_up_to(&mut self, most: LogIndex) -> Option<(LogIndex, T)> {
        self.entries.pop_front_if(|(index, _)| *index <= most)
    }

    /// Takes everything, the lowest index first.
    pub fn take_all(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.entries).into_iter().map(|(_, value)| value)
    }

    /// Keeps what `keeps` says.
    pub fn retain(&mut self, mut keeps: impl FnMut(&T) -> bool) {
        self.entries.retain(|(_, value)| keeps(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map_whatever_the_order(
            steps in prop::collection::vec((1u64..30, 0u8..3), 0..200),
        ) {
            let (mut found, mut expected) = (ByIndex::default(), BTreeMap::new());
            for (number, (index, step)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 if !expected.contains_key(&index) => {
                        found.insert(index, number);
                        expected.insert(index, number);
                    }
                    2 => {
                        let first = expected.first_key_value().map(|(at, value)| (*at, *value));
                        let first = first.filter(|(at, _)| *at <= index);
                        prop_assert_eq!(found.pop_up_to(index), first);
                        first.map(|(at, _)| expected.remove(&at));
                    }
                    _ => prop_assert_eq!(found.contains(index), expected.contains_key(&index)),
                }
                prop_assert_eq!(found.len(), expected.len());
            }
            prop_assert!(found.take_all().eq(expected.into_values()));
            prop_assert_eq!(found.len(), 0);
        }
    }
}
