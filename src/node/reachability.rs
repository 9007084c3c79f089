//! Keeps which servers this node reaches: the links that are up, and when each server was last
//! heard.
//!
//! Invariant: a server is heard only while its link is up. Time is counted in ticks of the election
//! clock, of which a process that was suspended gets few.

use std::collections::{BTreeMap, BTreeSet};

use crate::limits;
use crate::model::NodeId;

/// Ticks between the campaigns of two servers whose links come up at the same time: an election
/// takes two round trips and two syncs.
pub(super) const CAMPAIGN_TURN_TICKS: u64 = 2;

/// The links of this node, and when it has last heard from each server.
#[derive(Debug)]
pub(super) struct Reachability {
    node: NodeId,
    /// The size of the group, this node included.
    servers: usize,
    ticks: u64,
    links: BTreeSet<NodeId>,
    /// Servers whose link to this node broke and from which nothing has come since: an answer of
    /// theirs would be lost.
    inbound_broken: BTreeSet<NodeId>,
    /// By server: the tick in which its last message came, or its link came up.
    heard_tick: BTreeMap<NodeId, u64>,
    /// If the links to a majority have come up: the tick in which to campaign, unless a leader is
    /// known by then.
    campaign_tick: Option<u64>,
    /// Ticks since there was a leader.
    leaderless_ticks: u64,
}

impl Reachability {
    /// No link is up; `servers` is the size of the group.
    pub fn new(node: NodeId, servers: usize) -> Reachability {
        Reachability {
            node,
            servers,
            ticks: 0,
            links: BTreeSet::new(),
            inbound_broken: BTreeSet::new(),
            heard_tick: BTreeMap::new(),
            campaign_tick: None,
            leaderless_ticks: 0,
        }
    }

    pub fn tick(&mut self) {
        self.ticks += 1;
    }

    /// Ticks since the start.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// The servers to which this node has a link.
    pub fn links(&self) -> &BTreeSet<NodeId> {
        &self.links
    }

    pub fn link_up(&mut self, server: NodeId) {
        assert!(server != self.node, "a link of server {server} to itself");
        self.links.insert(server);
        self.heard_tick.insert(server, self.ticks);
        assert!(self.links.len() < self.servers, "{:?} of {} servers", self.links, self.servers);
    }

    pub fn link_down(&mut self, server: NodeId) {
        self.links.remove(&server);
    }

    /// The link on which `server` sends to this node broke.
    pub fn inbound_down(&mut self, server: NodeId) {
        self.inbound_broken.insert(server);
    }

    /// A message of `server` has come.
    pub fn heard(&mut self, server: NodeId) {
        self.heard_tick.insert(server, self.ticks);
        self.inbound_broken.remove(&server);
    }

    /// Takes every server with a link as heard now: a new leader, because followers do not send to
    /// each other and so were not heard before.
    pub fn take_all_as_heard(&mut self) {
        self.heard_tick = self.links.iter().map(|server| (*server, self.ticks)).collect();
    }

    /// Whether the link to a server is up, and a message from it came within an election time-out.
    pub fn is_heard(&self, server: NodeId) -> bool {
        let silent_ticks = self.ticks - self.heard_tick.get(&server).copied().unwrap_or_default();
        self.links.contains(&server) && silent_ticks <= limits::ELECTION_TICKS as u64
    }

    /// Whether a request can be sent to a server and its answer come back.
    pub fn can_ask(&self, server: NodeId) -> bool {
        self.links.contains(&server) && !self.inbound_broken.contains(&server)
    }

    /// Whether `leader`, which consensus takes for the leader of its term, leads as far as this
    /// node can know: it is heard, or is this node and hears a majority. One that is cut off may
    /// take itself, or another, for the leader for a while.
    fn has_leader(&self, leader: Option<NodeId>) -> bool {
        leader.is_some_and(|leader| match leader == self.node {
            true => self.reaches_majority(true),
            false => self.is_heard(leader),
        })
    }

    /// Takes in who leads, once a tick. Whether it is time to say that this node is cut off: there
    /// was no leader for `timeout_ticks`, or for a multiple of that.
    pub fn is_cut_off_due(&mut self, leader: Option<NodeId>, timeout_ticks: u64) -> bool {
        self.leaderless_ticks = if self.has_leader(leader) { 0 } else { self.leaderless_ticks + 1 };
        self.leaderless_ticks > 0 && self.leaderless_ticks.is_multiple_of(timeout_ticks.max(1))
    }

    /// The number of servers that this node reaches, itself included. Followers do not hear from
    /// each other regularly, so at a node that does not lead each server with a link counts.
    pub fn reached(&self, leads: bool) -> usize {
        1 + self.links.iter().filter(|server| !leads || self.is_heard(**server)).count()
    }

    /// Whether the servers that this node reaches are a majority of the group.
    pub fn reaches_majority(&self, leads: bool) -> bool {
        self.reached(leads) > self.servers / 2
    }

    /// Whether the servers with a link and this node are a majority of the group.
    pub fn has_links_to_majority(&self) -> bool {
        self.links.len() + 1 > self.servers / 2
    }

    /// Makes a campaign due before the election time-out, because a link has come up that completes
    /// a majority: there is no leader that may merely be late. Servers take turns by their numbers,
    /// so that the first has won before the next campaigns.
    pub fn campaign_soon(&mut self) {
        let before = self.links.range(..self.node).count() as u64;
        self.campaign_tick = Some(self.ticks + before * CAMPAIGN_TURN_TICKS);
    }

    pub fn is_campaign_due(&self) -> bool {
        self.campaign_tick.is_some_and(|tick| tick <= self.ticks)
    }

    /// Takes the campaign that was due as made.
    pub fn campaigned(&mut self) {
        self.campaign_tick = None;
    }
}
