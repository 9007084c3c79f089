//! What a service knows about its connections, found by their ids.

use super::connections::ConnectionId;

/// A map from [`ConnectionId`] that looks up by index: ids name slots of the loop's slab, so that
/// the map is as dense as the slab is.
#[derive(Debug)]
pub struct ConnectionMap<T> {
    slots: Vec<Option<(ConnectionId, T)>>,
    len: usize,
}

impl<T> Default for ConnectionMap<T> {
    fn default() -> ConnectionMap<T> {
        ConnectionMap { slots: Vec::new(), len: 0 }
    }
}

impl<T> ConnectionMap<T> {
    /// How many connections are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts `value` under `id`. Whatever stood under it, or under an earlier connection of the same
    /// slot, is dropped.
    pub fn insert(&mut self, id: ConnectionId, value: T) {
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, || None);
        }
        if self.slots[id.slot()].replace((id, value)).is_none() {
            self.len += 1;
        }
    }

    /// What stands under `id`.
    pub fn get(&self, id: ConnectionId) -> Option<&T> {
        self.slots
            .get(id.slot())?
            .as_ref()
            .filter(|(owner, _)| *owner == id)
            .map(|(_, value)| value)
    }

    /// Likewise, to change it.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let entry = self.slots.get_mut(id.slot())?.as_mut();
        entry.filter(|(owner, _)| *owner == id).map(|(_, value)| value)
    }

    /// Takes out what stands under `id`.
    pub fn remove(&mut self, id: ConnectionId) -> Option<T> {
        let (_, value) = self.slots.get_mut(id.slot())?.take_if(|(owner, _)| *owner == id)?;
        self.len -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_an_earlier_connection_of_the_slot_finds_nothing() {
        let (first, second) = (ConnectionId::from_u64(7), ConnectionId::from_u64(1 << 32 | 7));
        let mut map = ConnectionMap::default();
        map.insert(first, "first");
        assert_eq!((map.get(first), map.get(second), map.len()), (Some(&"first"), None, 1));
        map.insert(second, "second");
        assert_eq!((map.get(first), map.len()), (None, 1));
        assert_eq!((map.remove(first), map.len()), (None, 1));
        *map.get_mut(second).unwrap() = "changed";
        assert_eq!((map.remove(second), map.remove(second)), (Some("changed"), None));
        assert!(map.is_empty());
        assert_eq!(map.get(ConnectionId::from_u64(u64::from(u32::MAX))), None);
    }
}
