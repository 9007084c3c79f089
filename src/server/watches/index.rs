//! Finds the watched ranges that have a key, among very many. Most watches are of one key: these
//! are found by its hash. Other intervals are in a tree that is ordered by where they begin, in
//! which each node knows how far those below it reach.
//!
//! The tree is a treap: the priorities of the nodes are drawn from a seed that nobody outside
//! knows, so that the tree is balanced, about, whatever intervals are watched in whatever order. A
//! search visits the intervals that it finds and some dozens besides. Watches of one interval share
//! a node.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::WatchKey;
use crate::model::KeyInterval;

/// The place of a node among all.
type Place = usize;

/// The watches that wait for changes, by their intervals.
#[derive(Debug)]
pub(super) struct WatchIndex {
    /// Watches of one key.
    keys: HashMap<Bytes, BTreeSet<WatchKey>>,
    nodes: Vec<Node>,
    /// Places of nodes that are not in the tree.
    free: Vec<Place>,
    root: Option<Place>,
    random: u64,
}

#[derive(Debug)]
struct Node {
    interval: KeyInterval,
    /// The greatest end of the intervals of this node and of those below it.
    reaches: Bytes,
    /// Not less than those of the nodes below it.
    priority: u64,
    left: Option<Place>,
    right: Option<Place>,
    watches: BTreeSet<WatchKey>,
}

impl WatchIndex {
    /// Without watches. `seed` is drawn at random.
    pub fn new(seed: u64) -> WatchIndex {
        let (keys, nodes, free) = (HashMap::new(), Vec::new(), Vec::new());
        WatchIndex { keys, nodes, free, root: None, random: seed }
    }

    /// Adds a watch, which must not be there.
    pub fn insert(&mut self, interval: &KeyInterval, watch: WatchKey) {
        let is_new = match self.find(interval) {
            _ if interval.is_one_key() => {
                self.keys.entry(interval.from.clone()).or_default().insert(watch)
            }
            Some(place) => self.nodes[place].watches.insert(watch),
            None => {
                let place = self.new_node(interval.clone(), watch);
                let (less, greater) = self.split(self.root, interval);
                let less = self.merge(less, Some(place));
                self.root = self.merge(less, greater);
                true
            }
        };
        assert!(is_new, "{watch:?} is added twice");
    }

    /// Takes out a watch, which must be there.
    pub fn remove(&mut self, interval: &KeyInterval, watch: WatchKey) {
        if interval.is_one_key() {
            return self.remove_of_key(&interval.from, watch);
        }
        let place = self.find(interval);
        let Some(place) = place else { panic!("{watch:?} is not in the index") };
        assert!(self.nodes[place].watches.remove(&watch), "{watch:?} is not in the index");
        if !self.nodes[place].watches.is_empty() {
            return;
        }
        self.root = self.without(self.root, interval);
        let node = &mut self.nodes[place];
        (node.left, node.right) = (None, None);
        (node.interval.from, node.interval.to) = (Bytes::new(), Bytes::new());
        node.reaches = Bytes::new();
        self.free.push(place);
        if self.root.is_none() {
            // As much memory as the most watches that there were is not kept.
            (self.nodes, self.free) = (Vec::new(), Vec::new());
        }
    }

    fn remove_of_key(&mut self, key: &Bytes, watch: WatchKey) {
        let watches = self.keys.get_mut(key);
        let is_found = watches.is_some_and(|watches| watches.remove(&watch));
        assert!(is_found, "{watch:?} is not in the index");
        if self.keys.get(key).is_some_and(BTreeSet::is_empty) {
            self.keys.remove(key);
        }
        if self.keys.is_empty() {
            self.keys = HashMap::new();
        }
    }

    /// The watches of exactly this interval.
    pub fn watches(&self, interval: &KeyInterval) -> Vec<WatchKey> {
        let watches = match interval.is_one_key() {
            true => self.keys.get(&interval.from),
            false => self.find(interval).map(|place| &self.nodes[place].watches),
        };
        watches.into_iter().flatten().copied().collect()
    }

    /// Shows the watched intervals that have a key in common with that from `from` to `to`.
    pub fn overlapping(&self, from: &[u8], to: &[u8], show: &mut impl FnMut(KeyInterval)) {
        if from == to {
            let of_key = self.keys.get_key_value(from);
            of_key.into_iter().for_each(|(key, _)| show(KeyInterval::one_key(key.clone())));
        } else {
            // A long range was removed, which is rare.
            let within = self.keys.keys().filter(|key| *from <= key[..] && key[..] <= *to);
            within.for_each(|key| show(KeyInterval::one_key(key.clone())));
        }
        if self.root.is_none() {
            return;
        }
        let mut rest: Vec<Place> = self.root.into_iter().collect();
        while let Some(place) = rest.pop() {
            let node = &self.nodes[place];
            if node.reaches[..] < *from {
                continue;
            }
            rest.extend(node.left);
            // This interval, and those to the right, begin later than the one that is looked for
            // ends.
            if node.interval.from[..] > *to {
                continue;
            }
            rest.extend(node.right);
            if node.interval.to[..] >= *from {
                show(node.interval.clone());
            }
        }
    }

    fn find(&self, interval: &KeyInterval) -> Option<Place> {
        let mut next = self.root;
        while let Some(place) = next {
            let node = &self.nodes[place];
            next = match interval.cmp(&node.interval) {
                std::cmp::Ordering::Less => node.left,
                std::cmp::Ordering::Equal => return Some(place),
                std::cmp::Ordering::Greater => node.right,
            };
        }
        None
    }

    fn new_node(&mut self, interval: KeyInterval, watch: WatchKey) -> Place {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ self.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let node = Node {
            reaches: interval.to.clone(),
            interval,
            priority: mixed ^ mixed >> 31,
            left: None,
            right: None,
            watches: BTreeSet::from([watch]),
        };
        match self.free.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Works out how far the intervals of a node and below it reach.
    fn update(&mut self, place: Place) {
        let node = &self.nodes[place];
        let below = [node.left, node.right].into_iter().flatten();
        let below = below.map(|place| &self.nodes[place].reaches);
        let reaches = below.chain([&node.interval.to]).max().cloned().unwrap_or_default();
        self.nodes[place].reaches = reaches;
    }

    /// The trees of the intervals less than this one and of the others.
    fn split(&mut self, tree: Option<Place>, at: &KeyInterval) -> (Option<Place>, Option<Place>) {
        let Some(place) = tree else { return (None, None) };
        let halves = if self.nodes[place].interval < *at {
            let (less, greater) = self.split(self.nodes[place].right, at);
            self.nodes[place].right = less;
            (tree, greater)
        } else {
            let (less, greater) = self.split(self.nodes[place].left, at);
            self.nodes[place].left = greater;
            (less, tree)
        };
        self.update(place);
        halves
    }

    /// One tree of two, all of whose intervals are less in the first.
    fn merge(&mut self, less: Option<Place>, greater: Option<Place>) -> Option<Place> {
        let (Some(left), Some(right)) = (less, greater) else { return less.or(greater) };
        if self.nodes[left].priority >= self.nodes[right].priority {
            self.nodes[left].right = self.merge(self.nodes[left].right, greater);
            self.update(left);
            less
        } else {
            self.nodes[right].left = self.merge(less, self.nodes[right].left);
            self.update(right);
            greater
        }
    }

    /// The tree without the node of this interval.
    fn without(&mut self, tree: Option<Place>, interval: &KeyInterval) -> Option<Place> {
        let place = tree?;
        match interval.cmp(&self.nodes[place].interval) {
            std::cmp::Ordering::Less => {
                self.nodes[place].left = self.without(self.nodes[place].left, interval);
            }
            std::cmp::Ordering::Greater => {
                self.nodes[place].right = self.without(self.nodes[place].right, interval);
            }
            std::cmp::Ordering::Equal => {
                return self.merge(self.nodes[place].left, self.nodes[place].right);
            }
        }
        self.update(place);
        tree
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn interval(from: u8, to: u8) -> KeyInterval {
        KeyInterval { from: vec![from].into(), to: vec![to].into() }
    }

    fn depth(index: &WatchIndex, tree: Option<Place>) -> usize {
        tree.map_or(0, |place| {
            let node = &index.nodes[place];
            1 + depth(index, node.left).max(depth(index, node.right))
        })
    }

    proptest! {
        /// Intervals that share beginnings and ends, many of one key, and some of which end before
        /// they begin.
        #[test]
        fn a_search_finds_the_watches_that_a_look_at_all_finds(
            seed in any::<u64>(),
            steps in prop::collection::vec((0..12u8, 0..12u8, any::<(bool, bool)>()), 0..60),
            searches in prop::collection::vec((0..13u8, 0..4u8), 1..10),
        ) {
            let mut index = WatchIndex::new(seed);
            let mut all: BTreeMap<WatchKey, KeyInterval> = BTreeMap::new();
            for (number, (from, to, (removes, is_one))) in steps.into_iter().enumerate() {
                if removes && let Some((watch, interval)) = all.pop_first() {
                    index.remove(&interval, watch);
                    continue;
                }
                let watch = WatchKey(number as u64);
                let interval = interval(from, if is_one { from } else { to });
                index.insert(&interval, watch);
                all.insert(watch, interval);
            }
            for (from, length) in searches {
                let looked_for = interval(from, from + length);
                let mut found = BTreeSet::new();
                index.overlapping(&looked_for.from, &looked_for.to, &mut |interval| {
                    for watch in index.watches(&interval) {
                        assert!(found.insert(watch), "{watch:?} is shown twice");
                    }
                });
                let right = all.iter().filter(|(_, interval)| interval.overlaps(&looked_for));
                prop_assert_eq!(found, right.map(|(watch, _)| *watch).collect());
            }
            all.into_iter().for_each(|(watch, interval)| index.remove(&interval, watch));
            prop_assert!(index.root.is_none() && index.nodes.is_empty() && index.keys.is_empty());
        }
    }

    #[test]
    fn the_tree_is_flat_whatever_the_order_and_a_search_in_it_is_short() {
        let mut index = WatchIndex::new(7);
        for number in 0..20_000u32 {
            let from = Bytes::copy_from_slice(&number.to_be_bytes());
            let to = [&from[..], b"!"].concat().into();
            index.insert(&KeyInterval { from, to }, WatchKey(u64::from(number)));
        }
        let depth = depth(&index, index.root);
        assert!(depth < 60, "{depth}");
        let mut found = Vec::new();
        let key = 77u32.to_be_bytes();
        index.overlapping(&key, &key, &mut |interval| found.extend(index.watches(&interval)));
        assert_eq!(found, [WatchKey(77)]);
    }
}
