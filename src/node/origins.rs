//! Who waits for the answer to a write: its client, or the server that has forwarded it, and
//! whoever has sent a copy of it.

use super::RequestToken;
use crate::model::NodeId;

/// Who gets the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A client of this server.
    Client(RequestToken),
    /// Another server that forwarded it under this number.
    Server { node: NodeId, id: u64 },
}

/// Everybody who has sent a write, the first one first. Most writes come once: the first needs no
/// memory of its own.
#[derive(Debug)]
pub(super) struct Origins {
    /// `None` when nobody waits any more.
    first: Option<Origin>,
    copies: Vec<Origin>,
}

impl Origins {
    pub fn of(first: Origin) -> Origins {
        Origins { first: Some(first), copies: Vec::new() }
    }

    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.copies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Adds whoever has sent a copy. The first is still there.
    pub fn push(&mut self, origin: Origin) {
        assert!(self.first.is_some(), "a copy of a write that nobody waits for, by {origin:?}");
        self.copies.push(origin);
    }

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Origin> {
        self.first.iter().chain(&self.copies).copied()
    }

    /// Takes away the other servers.
    pub fn take_servers(&mut self) -> Vec<(NodeId, u64)> {
        let mut servers = Vec::new();
        let mut stays = |origin: &Origin| match origin {
            Origin::Client(_) => true,
            Origin::Server { node, id } => {
                servers.push((*node, *id));
                false
            }
        };
        self.first.take_if(|first| !stays(first));
        self.copies.retain(stays);
        if self.first.is_none() && !self.copies.is_empty() {
            self.first = Some(self.copies.remove(0));
        }
        servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_taken_away_and_clients_stay_in_their_order() {
        let client = |request| Origin::Client(RequestToken { connection: 1, request });
        let server = |id| Origin::Server { node: NodeId(2), id };
        for (first, copies, clients, servers) in [
            (
                server(1),
                vec![client(2), server(3), client(4)],
                vec![client(2), client(4)],
                vec![1, 3],
            ),
            (client(1), vec![server(2)], vec![client(1)], vec![2]),
            (server(1), vec![], vec![], vec![1]),
        ] {
            let mut origins = Origins::of(first);
            copies.into_iter().for_each(|copy| origins.push(copy));
            let taken: Vec<u64> = origins.take_servers().into_iter().map(|(_, id)| id).collect();
            assert_eq!(taken, servers);
            assert_eq!(origins.iter().collect::<Vec<_>>(), clients);
            assert_eq!((origins.len(), origins.is_empty()), (clients.len(), clients.is_empty()));
        }
    }
}
