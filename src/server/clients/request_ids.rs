//! The ids of one client's requests under way.
//!
//! Clients count: ids rise, and are answered about in their order. So they lie in a sorted list,
//! which grows at its end and shrinks at its front, and nothing is hashed for a request. Whoever
//! chooses ids otherwise has some of a thousand numbers moved for each.

use std::collections::VecDeque;

/// A sorted list of ids, each of which is there once.
#[derive(Debug, Default)]
pub(super) struct RequestIds {
    ids: VecDeque<u64>,
}

impl RequestIds {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The place of an id, or the place where it belongs.
    fn find(&self, id: u64) -> Result<usize, usize> {
        match (self.ids.front(), self.ids.back()) {
            (Some(first), _) if *first == id => Ok(0),
            (_, Some(last)) if *last >= id => self.ids.binary_search(&id),
            _ => Err(self.ids.len()),
        }
    }

    pub fn contains(&self, id: u64) -> bool {
        self.find(id).is_ok()
    }

    /// Adds an id; `false` if it is there already.
    pub fn insert(&mut self, id: u64) -> bool {
        match self.find(id) {
            Ok(_) => false,
            Err(place) => {
                self.ids.insert(place, id);
                true
            }
        }
    }

    /// Removes an id; `false` if it is not there.
    pub fn remove(&mut self, id: u64) -> bool {
        match self.find(id) {
            Ok(place) => self.ids.remove(place).is_some(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_a_set_whatever_the_order(
            steps in prop::collection::vec((0u64..20, 0u8..3), 0..200),
        ) {
            let (mut ids, mut expected) = (RequestIds::default(), BTreeSet::new());
            for (id, step) in steps {
                match step {
                    0 => prop_assert_eq!(ids.insert(id), expected.insert(id)),
                    1 => prop_assert_eq!(ids.remove(id), expected.remove(&id)),
                    _ => prop_assert_eq!(ids.contains(id), expected.contains(&id)),
                }
                prop_assert_eq!((ids.len(), ids.is_empty()), (expected.len(), expected.is_empty()));
            }
        }
    }
}
