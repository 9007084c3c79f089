//! Notices: what the core reports to the operator, and the sentences for them.
//!
//! The core prints nothing. It returns a [`Notice`], and the driver writes it to the log under the
//! notice's [`target`](Notice::target).

use super::NoLeader;
use super::eligibility::Ineligible;
use crate::model::History;
use crate::model::{LogIndex, NodeId, Term};

/// An event that an operator may need to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// This node has become leader.
    BecameLeader {
        /// The term that it leads.
        term: Term,
    },
    /// This node does not lead any more.
    LostLeadership,
    /// This node follows another leader, or knows of none.
    Following {
        /// The leader, if one is known.
        leader: Option<NodeId>,
        term: Term,
    },
    /// At the leader: a server has left the in-sync set.
    OutOfSync {
        /// The server that has left.
        server: NodeId,
    },
    /// At the leader: a server has joined the in-sync set.
    InSync {
        /// The server that has joined.
        server: NodeId,
    },
    /// A reason why this node may not lead has begun to hold; another server is to lead if it can.
    MayNotLead {
        /// The reason that holds now.
        reason: Ineligible,
    },
    /// No leader can be elected although enough servers are up.
    NoLeader {
        /// The reason, and what to do about it.
        reason: NoLeader,
    },
    /// A reason why this node may not lead has ceased to hold.
    MayLeadAgain {
        /// The reason that held until now.
        reason: Ineligible,
    },
    /// At the leader: its clock is far from the other servers'.
    ClockApart {
        /// How far the clocks of the others are ahead of the leader's, in microseconds.
        ahead_us: i64,
    },
    /// The history that the group keeps has become known, or has changed.
    History {
        /// The history that is kept from now on.
        history: History,
    },
    /// The group's feature level has risen.
    LevelRaised {
        /// The new level of the group.
        level: u32,
    },
    /// This node's data directory was blank; the node has caught up and takes part in elections
    /// from now on.
    EligibleToVote,
    /// A majority of the group holds another state than this server, whose store is to be rebuilt.
    Diverged {
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// A majority of the group, this server included, holds another state than `server`.
    ServerDiverged {
        /// The server with the other state.
        server: NodeId,
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// Replicas hold different states, and no majority is known to hold the same one.
    Disputed {
        /// The index at which the states were compared.
        index: LogIndex,
    },
    /// The dispute is over: a majority holds the same state as this server.
    Undisputed,
    /// Another server has sent an entry that contradicts one that is committed here.
    LogContradicted {
        /// The server that has sent the entry.
        server: NodeId,
        /// The index of the entry in question.
        index: LogIndex,
    },
    /// A majority of the group holds another entry at an index than this server, whose log is to be
    /// discarded.
    LogRefuted {
        /// The index of the entry in question.
        index: LogIndex,
    },
    /// The lost store has been rebuilt from a snapshot, and this server serves reads again.
    StoreRebuilt,
}

/// Returns one sentence for the operator of a leader from whose clock the other servers' clocks are
/// this far ahead.
pub fn clock_apart(ahead_us: i64) -> String {
    let seconds = ahead_us.unsigned_abs() / 1_000_000;
    let direction = if ahead_us < 0 { "ahead of" } else { "behind" };
    format!(
        "this server leads, and its clock is {seconds} s {direction} the other servers' clocks: \
         versions get wrong times; set the clock, or synchronize it by NTP"
    )
}

impl Notice {
    /// The log target of a notice's kind. Many lines of one target are combined into one, so kinds
    /// that are reported once have targets of their own.
    pub fn target(&self) -> &'static str {
        match self {
            Notice::BecameLeader { .. }
            | Notice::LostLeadership
            | Notice::Following { .. }
            | Notice::MayNotLead { .. }
            | Notice::MayLeadAgain { .. } => "acervo::leadership",
            Notice::NoLeader { .. } => "acervo::no_leader",
            Notice::OutOfSync { .. } | Notice::InSync { .. } => "acervo::in_sync",
            Notice::ClockApart { .. } => "acervo::clock",
            Notice::EligibleToVote => "acervo::voter_eligibility",
            Notice::History { .. } | Notice::LevelRaised { .. } => "acervo::rules",
            Notice::Diverged { .. } => "acervo::diverged",
            Notice::ServerDiverged { .. } => "acervo::server_diverged",
            Notice::Disputed { .. } | Notice::Undisputed => "acervo::dispute",
            Notice::LogContradicted { .. } => "acervo::log_contradicted",
            Notice::LogRefuted { .. } => "acervo::log_refuted",
            Notice::StoreRebuilt => "acervo::store_rebuilt",
        }
    }
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Notice::BecameLeader { term } => write!(f, "this server leads in term {term}"),
            Notice::LostLeadership => write!(f, "this server leads no more"),
            Notice::Following { leader: Some(leader), term } => {
                write!(f, "following server {leader} in term {term}")
            }
            Notice::Following { leader: None, term } => {
                write!(
                    f,
                    "no leader is known in term {term}: writes wait until a majority of the \
                     servers is up and has elected one"
                )
            }
            Notice::OutOfSync { server } => {
                write!(
                    f,
                    "server {server} is out of sync: writes no longer wait for it; it catches up \
                     by itself once it is up and within reach"
                )
            }
            Notice::InSync { server } => {
                write!(f, "server {server} is in sync: writes wait for it")
            }
            Notice::MayNotLead { reason } => {
                write!(f, "this server leaves it to others to lead: {reason}")
            }
            Notice::MayLeadAgain { reason: Ineligible::LogStalled } => {
                write!(f, "the disk under the log answers again: this server may lead")
            }
            Notice::MayLeadAgain { reason: Ineligible::ApplierStalled } => {
                write!(f, "the disk under the store answers again: this server may lead")
            }
            Notice::MayLeadAgain { reason: Ineligible::StoreDamaged } => {
                write!(f, "the store is whole again: this server may lead")
            }
            Notice::ClockApart { ahead_us } => f.write_str(&clock_apart(*ahead_us)),
            Notice::NoLeader { reason } => f.write_str(&reason.sentence(by_place)),
            Notice::EligibleToVote => {
                write!(f, "this server is up to date and takes part in elections")
            }
            Notice::Diverged { index } => write!(
                f,
                "the state of this server differs from that of the majority at log index {index}: \
                 it serves no reads and rebuilds its store from the others"
            ),
            Notice::ServerDiverged { server, index } => write!(
                f,
                "server {server} holds another state than the majority at log index {index}: it \
                 rebuilds its store by itself"
            ),
            Notice::Disputed { index } => write!(
                f,
                "servers hold different states at log index {index} and no majority holds the \
                 same: none of them serves reads before the others are up and have decided; if \
                 they never will be, keep one data directory and start the other servers on empty \
                 ones"
            ),
            Notice::Undisputed => {
                write!(f, "a majority holds the same state as this server: it serves reads again")
            }
            Notice::LogContradicted { server, index } => write!(
                f,
                "server {server} sent another entry than the one that is committed here at log \
                 index {index}: this server serves no reads before the others have said which one \
                 is theirs"
            ),
            Notice::LogRefuted { index } => write!(
                f,
                "the log of this server contradicts that of the majority at log index {index}: it \
                 sets its data aside and starts as a blank server"
            ),
            Notice::History { history } => {
                write!(
                    f,
                    "the group keeps a history of {history}: 'acervo set-history' changes that"
                )
            }
            Notice::LevelRaised { level } => write!(
                f,
                "every server knows feature level {level}, and the group uses it: no release that \
                 does not know it can take part any more"
            ),
            Notice::StoreRebuilt => {
                write!(
                    f,
                    "the store has been rebuilt from the others: this server serves reads again"
                )
            }
        }
    }
}

/// Names a server whose address is not known.
pub(super) fn by_place(node: NodeId) -> String {
    format!("the server at place {node} of the group's list")
}
