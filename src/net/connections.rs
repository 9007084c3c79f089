//! The slab of connections and the ids that name them.

use slab::Slab;

use super::connection::{Connection, ConnectionKind};

/// Names one connection of one event loop for ever: the slot it lives in and the loop's count of
/// connections when it began. A slot is used again, an id is not (within 2³² connections).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

impl ConnectionId {
    /// Packs the id into a number, for code that does not know this type.
    pub fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The reverse of [`ConnectionId::to_u64`]. Any number gives an id; one that names no
    /// connection is ignored wherever it is used.
    pub fn from_u64(packed: u64) -> ConnectionId {
        // Both casts take exactly the half that is meant.
        ConnectionId { slot: packed as u32, generation: (packed >> 32) as u32 }
    }

    pub(super) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// The connections by their ids: a slab in which each slot carries the generation of its present
/// connection.
#[derive(Default)]
pub(super) struct Connections {
    slots: Slab<(u32, Connection)>,
    next_generation: u32,
    counts: [usize; 3],
}

impl Connections {
    /// The slot that the next [`Connections::insert`] will use.
    pub(super) fn next_slot(&self) -> usize {
        self.slots.vacant_key()
    }

    /// An id nobody has had. Without an [`Connections::insert`] it names no connection and never
    /// will, as befits a dial that fails at once.
    pub(super) fn fresh_id(&mut self) -> ConnectionId {
        let generation = self.next_generation;
        self.next_generation = self.next_generation.wrapping_add(1);
        // Every kind of connection has a cap far below 2³² (see `limits`), and slots are used
        // again.
        ConnectionId { slot: self.next_slot() as u32, generation }
    }

    pub(super) fn insert(&mut self, connection: Connection) -> ConnectionId {
        let id = self.fresh_id();
        self.counts[connection.kind as usize] += 1;
        self.slots.insert((id.generation, connection));
        id
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<&Connection> {
        let (generation, connection) = self.slots.get(id.slot())?;
        (*generation == id.generation).then_some(connection)
    }

    pub(super) fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let (generation, connection) = self.slots.get_mut(id.slot())?;
        (*generation == id.generation).then_some(connection)
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        self.get(id)?;
        let (_, connection) = self.slots.try_remove(id.slot())?;
        self.counts[connection.kind as usize] -= 1;
        Some(connection)
    }

    /// The id of the connection that is in a slot now.
    pub(super) fn id_in_slot(&self, slot: usize) -> Option<ConnectionId> {
        let (generation, _) = self.slots.get(slot)?;
        Some(ConnectionId { slot: u32::try_from(slot).ok()?, generation: *generation })
    }

    pub(super) fn count(&self, kind: ConnectionKind) -> usize {
        self.counts[kind as usize]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ConnectionId, &mut Connection)> {
        self.slots.iter_mut().map(|(slot, (generation, connection))| {
            // As in `fresh_id`, a slot number fits 32 bits.
            (ConnectionId { slot: slot as u32, generation: *generation }, connection)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_packing() {
        for (slot, generation) in [(0, 0), (1, 2), (u32::MAX, 0), (0, u32::MAX), (7, u32::MAX)] {
            let id = ConnectionId { slot, generation };
            assert_eq!(ConnectionId::from_u64(id.to_u64()), id);
        }
    }
}
