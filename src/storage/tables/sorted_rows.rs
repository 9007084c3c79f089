//! A map of rows in memory in the order of their keys, made for keys that are compared often and
//! share long beginnings with their neighbours.
//!
//! It is a B-tree whose nodes hold, of each key, the sixteen bytes behind what all keys of the node
//! had in common when it was made: its *head*. Heads lie side by side in a node, and mostly decide
//! a search, so that few keys are looked at; in the standard map each comparison follows a pointer
//! to a key, which is most of what inserting a row costs. Sixteen bytes tell versions of one key
//! apart; with eight, keys of twelve versions each cost as much as in the standard map. Rows
//! themselves never move: nodes know them by number.
//!
//! Rows are only added. A key that does not begin as the others of its node has the least head or
//! the greatest, whichever its order asks for, and where heads are equal the keys decide. So heads
//! are right whatever is added later.
//!
//! What it leaves out: removing rows, which a memory table never does.

use bytes::Bytes;

/// Entries of a node. Half as many cost a tenth more: there are more levels, and moving half of a
/// node's one and a half kilobytes for an insertion costs less than a search.
const NODE_ENTRIES_MAX: usize = 64;
/// Rows lie in pieces of so many, so that they are never copied when there are more.
const PIECE_ROWS: usize = 256;
/// Bytes of a row in its leaf.
pub(super) const ENTRY_BYTES: usize = size_of::<NodeEntry>();

pub(super) struct SortedRows<V> {
    /// In the order in which they were added.
    pieces: Vec<Vec<(Bytes, V)>>,
    nodes: Vec<Node>,
    root: u32,
    /// Levels of nodes above the leaves.
    height: u32,
    /// The leaf with the greatest keys.
    last_leaf: u32,
}

/// Sixteen bytes of a key as numbers, which are in the order of the bytes.
type Head = [u64; 2];

#[derive(Default)]
struct Node {
    /// What the keys had in common when the node was made.
    prefix: Bytes,
    /// In ascending order of keys.
    entries: Vec<NodeEntry>,
    /// Of a leaf: those before and behind it.
    neighbours: (Option<u32>, Option<u32>),
}

#[derive(Clone, Copy)]
struct NodeEntry {
    head: Head,
    /// The row of a leaf. Above the leaves, where `child` is used: no row of the child is before
    /// this one, but for the first child of a node.
    row: u32,
    child: u32,
}

/// Where a row was found or added.
enum Placed {
    Known(u32),
    /// With the node that was split off, and the row with which it begins.
    Added(Option<NodeEntry>),
}

impl<V> Default for SortedRows<V> {
    fn default() -> SortedRows<V> {
        let (pieces, nodes) = (Vec::new(), vec![Node::default()]);
        SortedRows { pieces, nodes, root: 0, height: 0, last_leaf: 0 }
    }
}

impl<V> SortedRows<V> {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub fn get(&self, key: &[u8]) -> Option<&V> {
        let (found, value) = self.from(key).next()?;
        (*found == *key).then_some(value)
    }

    /// Adds a row. If there is one with this key, it stays, and is returned with the new value.
    pub fn add(&mut self, key: &Bytes, value: V) -> Option<(&mut V, V)> {
        let mut value = Some(value);
        // Rows that are ordered by time are added behind all others, and need no search.
        let is_last = self.is_behind_all(key);
        let split = match self.place(self.root, (self.height, is_last), key, &mut value) {
            Placed::Known(row) => {
                let (piece, at) = (row as usize / PIECE_ROWS, row as usize % PIECE_ROWS);
                return value.map(|value| (&mut self.pieces[piece][at].1, value));
            }
            Placed::Added(split) => split,
        };
        if let Some(split) = split {
            let first = self.nodes[self.root as usize].entries[0].row;
            let entries =
                vec![NodeEntry { head: Head::default(), row: first, child: self.root }, split];
            self.root = self.add_node(entries, (None, None));
            self.height += 1;
        }
        None
    }

    /// The rows from a key on, in ascending order.
    pub fn from(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &V)> {
        let (mut leaf, mut at) = self.lower_bound(key);
        std::iter::from_fn(move || {
            while at == self.nodes[leaf as usize].entries.len() {
                (leaf, at) = (self.nodes[leaf as usize].neighbours.1?, 0);
            }
            at += 1;
            Some(self.row(self.nodes[leaf as usize].entries[at - 1].row))
        })
    }

    /// The rows before a key, in descending order.
    pub fn before(&self, key: &[u8]) -> impl Iterator<Item = (&Bytes, &V)> {
        let (mut leaf, mut at) = self.lower_bound(key);
        std::iter::from_fn(move || {
            while at == 0 {
                leaf = self.nodes[leaf as usize].neighbours.0?;
                at = self.nodes[leaf as usize].entries.len();
            }
            at -= 1;
            Some(self.row(self.nodes[leaf as usize].entries[at].row))
        })
    }

    fn row(&self, number: u32) -> (&Bytes, &V) {
        let number = number as usize;
        let (key, value) = &self.pieces[number / PIECE_ROWS][number % PIECE_ROWS];
        (key, value)
    }

    /// The leaf, and the position in it, of the first row that is not before a key.
    fn lower_bound(&self, key: &[u8]) -> (u32, usize) {
        let mut node = self.root;
        for _ in 0..self.height {
            let at = self.child(node, key);
            node = self.nodes[node as usize].entries[at].child;
        }
        let (Ok(at) | Err(at)) = self.search(node, key);
        (node, at)
    }

    /// The position of the child in which a key belongs.
    fn child(&self, node: u32, key: &[u8]) -> usize {
        match self.search(node, key) {
            Ok(at) => at,
            Err(at) => at.saturating_sub(1),
        }
    }

    fn search(&self, node: u32, key: &[u8]) -> Result<usize, usize> {
        let node = &self.nodes[node as usize];
        let wanted = head(&node.prefix, key);
        node.entries.binary_search_by(|entry| {
            entry.head.cmp(&wanted).then_with(|| self.row(entry.row).0[..].cmp(key))
        })
    }

    fn is_behind_all(&self, key: &[u8]) -> bool {
        let last = self.nodes[self.last_leaf as usize].entries.last();
        last.is_some_and(|last| self.row(last.row).0[..] < *key)
    }

    /// Finds a row below a node at a level, or adds it with the value, which is taken. `is_last`:
    /// it is behind all others.
    fn place(
        &mut self,
        node: u32,
        (level, is_last): (u32, bool),
        key: &Bytes,
        value: &mut Option<V>,
    ) -> Placed {
        let end = self.nodes[node as usize].entries.len();
        let (at, new) = if level == 0 {
            let found = if is_last { Err(end) } else { self.search(node, key) };
            match found {
                Ok(at) => return Placed::Known(self.nodes[node as usize].entries[at].row),
                Err(at) => {
                    (at, NodeEntry { head: Head::default(), row: self.push(key, value), child: 0 })
                }
            }
        } else {
            let at = if is_last { end - 1 } else { self.child(node, key) };
            let child = self.nodes[node as usize].entries[at].child;
            match self.place(child, (level - 1, is_last), key, value) {
                Placed::Added(Some(split)) => {
                    // Rows may have been added before the first of the first child.
                    let row = self.nodes[child as usize].entries[0].row;
                    let head = head(&self.nodes[node as usize].prefix, self.row(row).0);
                    self.nodes[node as usize].entries[at] = NodeEntry { head, row, child };
                    (at + 1, split)
                }
                placed => return placed,
            }
        };
        let head = head(&self.nodes[node as usize].prefix, self.row(new.row).0);
        let entries = &mut self.nodes[node as usize].entries;
        entries.insert(at, NodeEntry { head, ..new });
        if entries.len() < NODE_ENTRIES_MAX {
            return Placed::Added(None);
        }
        // Rows that come in ascending order leave nodes nearly full behind.
        let ascends = at == NODE_ENTRIES_MAX - 1;
        let upper = entries.split_off(NODE_ENTRIES_MAX * if ascends { 7 } else { 4 } / 8);
        let first = upper[0].row;
        let next = self.nodes[node as usize].neighbours.1;
        let child = self.add_node(upper, (Some(node), next));
        if let Some(next) = next {
            self.nodes[next as usize].neighbours.0 = Some(child);
        }
        self.nodes[node as usize].neighbours.1 = Some(child);
        if node == self.last_leaf {
            self.last_leaf = child;
        }
        self.set_heads(node);
        Placed::Added(Some(NodeEntry { head: Head::default(), row: first, child }))
    }

    fn push(&mut self, key: &Bytes, value: &mut Option<V>) -> u32 {
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE_ROWS) {
            self.pieces.push(Vec::with_capacity(PIECE_ROWS));
        }
        let piece = self.pieces.len() - 1;
        let number = piece * PIECE_ROWS + self.pieces[piece].len();
        let Ok(number) = u32::try_from(number) else { panic!("{number} rows in memory") };
        let value = value.take();
        self.pieces[piece].extend(value.map(|value| (key.clone(), value)));
        number
    }

    fn add_node(
        &mut self,
        mut entries: Vec<NodeEntry>,
        neighbours: (Option<u32>, Option<u32>),
    ) -> u32 {
        entries.reserve_exact(NODE_ENTRIES_MAX - entries.len());
        let number = self.nodes.len() as u32;
        self.nodes.push(Node { prefix: Bytes::new(), entries, neighbours });
        self.set_heads(number);
        number
    }

    /// Gives a node the longest prefix of its keys.
    fn set_heads(&mut self, node: u32) {
        let mut made = std::mem::take(&mut self.nodes[node as usize]);
        if let (Some(first), Some(last)) = (made.entries.first(), made.entries.last()) {
            let (first, last) = (self.row(first.row).0, self.row(last.row).0);
            let common = first.iter().zip(last).take_while(|(one, other)| one == other).count();
            made.prefix = first.slice(..common);
        }
        for entry in &mut made.entries {
            entry.head = head(&made.prefix, self.row(entry.row).0);
        }
        self.nodes[node as usize] = made;
    }
}

/// What is compared of a key in a node with a prefix: it is not greater than that of any greater
/// key.
fn head(prefix: &[u8], key: &[u8]) -> Head {
    match key.strip_prefix(prefix) {
        Some(rest) => match rest.as_chunks() {
            ([first, second, ..], _) => [u64::from_be_bytes(*first), u64::from_be_bytes(*second)],
            ([first], rest) => [u64::from_be_bytes(*first), padded(rest)],
            ([], rest) => [padded(rest), 0],
        },
        None if key < prefix => [0; 2],
        None => [u64::MAX; 2],
    }
}

fn padded(rest: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Keys that begin alike over more than a head, and keys that do not.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(255), 97..100u8];
        let beginning = prop::sample::select(vec![&b""[..], b"a long beginning ", b"\xff\xff"]);
        let rest = prop::collection::vec(byte, 0..12);
        (beginning, rest).prop_map(|(beginning, rest)| [beginning, &rest].concat())
    }

    proptest! {
        #[test]
        fn it_has_the_rows_of_the_standard_map_in_their_order(
            keys in prop::collection::vec(key(), 0..600),
            is_sorted in any::<bool>(),
            wanted in prop::collection::vec(key(), 1..20),
        ) {
            let (mut rows, mut expected) = (SortedRows::default(), BTreeMap::new());
            let mut keys = keys;
            if is_sorted {
                keys.sort();
            }
            for (number, key) in keys.iter().enumerate() {
                match rows.add(&Bytes::copy_from_slice(key), number) {
                    None => prop_assert_eq!(expected.insert(key.clone(), number), None),
                    Some((known, new)) => {
                        prop_assert_eq!((Some(&*known), new), (expected.get(key), number));
                        *known = number;
                        expected.insert(key.clone(), number);
                    }
                }
            }
            prop_assert_eq!(rows.is_empty(), expected.is_empty());
            for key in keys.iter().take(20).chain(&wanted) {
                prop_assert_eq!(rows.get(key), expected.get(key));
                let found = rows.from(key).map(|(key, value)| (&key[..], value));
                let expected_rows = expected.range(key.clone()..).map(|(key, it)| (&key[..], it));
                prop_assert!(found.eq(expected_rows));
                let found = rows.before(key).map(|(key, value)| (&key[..], value));
                let expected_rows = expected.range(..key.clone()).map(|(key, it)| (&key[..], it));
                prop_assert!(found.eq(expected_rows.rev()));
            }
        }
    }

    /// Rows before all others go into the first leaf, whose parents know of none before it.
    #[test]
    fn many_rows_in_any_order_are_sorted() {
        let count = 20_000u32;
        let orders: [fn(u32) -> u32; 3] =
            [|at| at, |at| 20_000 - at, |at| at.wrapping_mul(2_654_435_761)];
        for order in orders {
            let mut rows = SortedRows::default();
            let mut expected = BTreeMap::new();
            for number in (0..count).map(order) {
                let key = Bytes::from(format!("key {number:010} with an end"));
                assert!(rows.add(&key, number).is_none());
                expected.insert(key, number);
            }
            assert!(rows.height > 1, "{} levels", rows.height);
            assert!(rows.from(b"").eq(&expected));
            assert!(rows.before(b"l").eq(expected.iter().rev()));
            assert!(expected.iter().all(|(key, number)| rows.get(key) == Some(number)));
        }
    }
}
