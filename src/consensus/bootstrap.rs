//! Determines the founder of a blank group, and why no leader can be elected.
//!
//! Rule: the founder is the server that a majority of the group has configured as its first leader
//! (`--leader`). If no server has such a majority, it is the lowest one that is configured, once
//! every server is up and blank. [`super::voter_eligibility`] says why that is safe.
//!
//! A server names what it has configured, and whether its log is empty, in its greeting when a link
//! comes up. Who the founder is goes by that alone. Why no leader can be elected goes by what was
//! heard since, too: links may stand since the group was founded.

use std::collections::BTreeMap;

use super::config::NoLeader;
use crate::model::{LogIndex, NodeId};

/// The state that another server has named in its greeting.
#[derive(Clone, Copy, Debug)]
struct GreetedState {
    /// The first leader it has configured; `None` unless its data directory is blank.
    configured_first_leader: Option<NodeId>,
    log_is_empty: bool,
    /// It has sent something since that only a server with entries sends.
    has_entries: bool,
}

/// The servers that this one has a link to, with the state that each named when the link came up.
#[derive(Debug)]
pub(super) struct GreetedServers {
    node: NodeId,
    nodes: Vec<NodeId>,
    links: BTreeMap<NodeId, GreetedState>,
}

impl GreetedServers {
    /// No link is up; `nodes` are all servers of the group.
    pub fn new(node: NodeId, nodes: &[NodeId]) -> GreetedServers {
        GreetedServers { node, nodes: nodes.to_vec(), links: BTreeMap::new() }
    }

    /// The link to another server is up, whose greeting has named these.
    pub fn link_up(&mut self, server: NodeId, last_index: LogIndex, first_leader: Option<NodeId>) {
        let log_is_empty = last_index == 0;
        let has_entries = !log_is_empty;
        let greeted =
            GreetedState { configured_first_leader: first_leader, log_is_empty, has_entries };
        self.links.insert(server, greeted);
    }

    /// Another server has sent what only a server with entries sends.
    pub fn has_entries(&mut self, server: NodeId) {
        if let Some(greeted) = self.links.get_mut(&server) {
            greeted.has_entries = true;
        }
    }

    pub fn link_down(&mut self, server: NodeId) {
        self.links.remove(&server);
    }

    /// Whether every other server is up and has said that its log is empty.
    pub fn are_all_logs_empty(&self) -> bool {
        self.links.len() + 1 == self.nodes.len()
            && self.links.values().all(|greeted| greeted.log_is_empty)
    }

    /// The founder of a blank group. It is the same server whichever servers are up. `own` is the
    /// first leader that this server has configured, if it is blank.
    pub fn founder(&self, own: Option<NodeId>) -> Option<NodeId> {
        let named = self.configured_first_leaders(own);
        let count = |server: NodeId| named.iter().filter(|name| **name == server).count();
        let agreed = named.iter().find(|name| count(**name) > self.nodes.len() / 2);
        let all_are_blank = named.len() == self.nodes.len();
        agreed.or(named.iter().min().filter(|_| all_are_blank)).copied()
    }

    /// The first leaders that the servers that are up and blank have configured, this server's own
    /// first.
    fn configured_first_leaders(&self, own: Option<NodeId>) -> Vec<NodeId> {
        let others = self.links.values().filter_map(|greeted| greeted.configured_first_leader);
        own.into_iter().chain(others).collect()
    }

    /// Why no leader can be elected although enough servers are up, if that is so and none is
    /// known. `data_lost` says whether this server has lost its data.
    pub fn no_leader(&self, own: Option<NodeId>, data_lost: bool) -> Option<NoLeader> {
        let needed = self.nodes.len() / 2 + 1;
        let up = self.links.len() + 1;
        if up < needed {
            return None;
        }
        let blank = self.links.values().filter(|greeted| !greeted.has_entries);
        let named = blank.filter_map(|greeted| greeted.configured_first_leader);
        let named: Vec<NodeId> = own.into_iter().chain(named).collect();
        let is_up = |node: &NodeId| *node == self.node || self.links.contains_key(node);
        match (up - named.len(), self.founder(own)) {
            (full, _) if data_lost && full < needed => {
                Some(NoLeader::Blank { blank: named.len(), full, needed })
            }
            (0, Some(first)) if is_up(&first) => None,
            (0, Some(first_leader)) => Some(NoLeader::NotBegun { first_leader }),
            (0, None) => {
                let missing = self.nodes.iter().copied().find(|node| !is_up(node))?;
                match (named.iter().min(), named.iter().max()) {
                    (Some(&one), Some(&another)) if one != another => {
                        Some(NoLeader::DifferentFirstLeaders { one, another, missing })
                    }
                    _ => None,
                }
            }
            (full, _) if full < needed => {
                Some(NoLeader::Blank { blank: named.len(), full, needed })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Server 1 of three, with links to blank servers that have configured these first leaders.
    fn greeted(others: &[(u64, u64)]) -> GreetedServers {
        let mut servers = GreetedServers::new(NodeId(1), &[1, 2, 3].map(NodeId));
        for (server, first_leader) in others {
            servers.link_up(NodeId(*server), 0, Some(NodeId(*first_leader)));
        }
        servers
    }

    #[test]
    fn a_majority_names_the_founder_and_without_one_all_servers_do() {
        let founder = |own, others: &[(u64, u64)]| {
            greeted(others).founder(Some(NodeId(own))).map(|founder| founder.0)
        };
        assert_eq!(founder(3, &[]), None, "one of three is no majority");
        assert_eq!(founder(3, &[(2, 3)]), Some(3), "also if it is not up");
        assert_eq!(founder(3, &[(2, 1)]), None, "the third may agree with either");
        assert_eq!(founder(3, &[(2, 1), (3, 3)]), Some(3));
        assert_eq!(founder(3, &[(2, 1), (3, 2)]), Some(1), "the lowest of three that differ");
    }

    /// Links stood since the group was founded, two disks hung for some seconds, and users were
    /// told that two servers had lost what they had.
    #[test]
    fn a_server_that_was_blank_when_it_greeted_is_not_called_blank_for_good() {
        let mut servers = greeted(&[(2, 1), (3, 1)]);
        let blank = NoLeader::Blank { blank: 2, full: 1, needed: 2 };
        assert_eq!(servers.no_leader(None, false), Some(blank));
        servers.has_entries(NodeId(3));
        assert_eq!(servers.no_leader(None, false), None, "two have what they had");
        assert_eq!(servers.founder(Some(NodeId(1))), Some(NodeId(1)), "whoever says so");
        servers.link_up(NodeId(3), 0, Some(NodeId(1)));
        assert_eq!(servers.no_leader(None, false), Some(blank), "it has lost it since");
    }

    #[test]
    fn a_server_that_is_missing_is_named_and_a_leader_that_can_be_elected_is_not() {
        let no_leader =
            |own, others: &[(u64, u64)]| greeted(others).no_leader(Some(NodeId(own)), false);
        assert_eq!(no_leader(1, &[]), None, "too few servers are up to say anything else");
        assert_eq!(no_leader(1, &[(2, 1)]), None, "the founder is up");
        let absent = NoLeader::NotBegun { first_leader: NodeId(3) };
        assert_eq!(no_leader(3, &[(2, 3)]), Some(absent));
        let (one, another, missing) = (NodeId(1), NodeId(2), NodeId(3));
        let differ = NoLeader::DifferentFirstLeaders { one, another, missing };
        assert_eq!(no_leader(1, &[(2, 2)]), Some(differ));
    }
}
