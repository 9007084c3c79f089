//! Measuring a running group: the load behind `acervo bench`, `benches/put_replication.rs` and
//! `benches/peers`.
//!
//! [`Generator`] decides who asks when and counts what comes back; it is a state machine that
//! performs no IO. [`load`] drives it over the event loop: logical clients, all on one loop and one
//! thread, so that on a small machine the group is measured and not the generator. [`Protocol`] is
//! what the clients say: [`StoreProtocol`] speaks to a group, and the bench of the floor brings its
//! own, so that both are measured by the same code. [`Mix`] and [`Distribution`] say what is asked
//! for; [`report`] prints.
//!
//! A load is closed or open ([`Pace`]). In a closed one a client asks again when it is answered, so
//! a slow group is asked less often, and the latencies are those of requests that did not queue
//! behind their own client's last one. In an open one requests are due at a fixed rate whatever the
//! group does, and their latency counts from then: what a stall of the group does to those who
//! would have asked meanwhile is not omitted.
//!
//! The generator does not use the client library. That hedges, tries again, and keeps away from
//! servers that are of no use, so that figures would tell how well it hides what a group does.
//!
//! Left out: several generators, and rates that change.

pub mod command;
mod generator;
mod live;
pub mod load;
mod mix;
pub mod report;
mod store;
mod tally;
mod zipfian;

#[cfg(any(test, feature = "internals"))]
pub use generator::{Ask, Generator, GeneratorTurn};
pub use generator::{Pace, Plan, Until};
pub use load::LoadError;
pub use mix::Mix;
pub use store::{StoreLoad, StoreProtocol};
pub use tally::Measured;
#[cfg(any(test, feature = "internals"))]
pub use tally::{KindFigures, WindowFigures};
pub use zipfian::Distribution;

use rand::rngs::SmallRng;

/// The protocol that a generator's clients speak. Each client has as many slots as it may have
/// requests under way, and a slot has one.
pub trait Protocol {
    /// Appends the frame that opens a connection. `false`: this protocol has no greeting, and
    /// requests may be sent at once.
    fn greeting(&mut self, out: &mut Vec<u8>) -> bool;

    /// Understands the frame that answers the greeting; the error says why it is not a welcome.
    ///
    /// # Errors
    /// One sentence for a person.
    fn welcomed(&mut self, frame: &[u8]) -> Result<(), String>;

    /// Appends the next request of this slot of client number `client` as one frame: the second
    /// half of one that was answered with [`Answer::Half`], or a new one. What was under way in the
    /// slot before is not awaited any more.
    fn request(&mut self, client: usize, slot: usize, random: &mut SmallRng, out: &mut Vec<u8>);

    /// Understands what came for `client`, and for which of its slots.
    ///
    /// # Errors
    /// One sentence for a person, when it is not an answer to a request of the client at all; the
    /// connection is then given up.
    fn answer(&mut self, client: usize, frame: &[u8]) -> Result<(usize, Answer), String>;
}

/// The kinds of operations, which are reported apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Reads the newest value of one key.
    Read,
    /// Writes a key that is there, or may be.
    Update,
    /// Writes a key that nobody has written before.
    Insert,
    /// Reads a page of keys in order.
    Scan,
    /// Reads a key and then writes it, as one operation with one latency.
    ReadModifyWrite,
}

impl OpKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [OpKind; 5] =
        [OpKind::Read, OpKind::Update, OpKind::Insert, OpKind::Scan, OpKind::ReadModifyWrite];

    /// The name by which it is reported.
    pub fn name(self) -> &'static str {
        match self {
            OpKind::Read => "read",
            OpKind::Update => "update",
            OpKind::Insert => "insert",
            OpKind::Scan => "scan",
            OpKind::ReadModifyWrite => "read-modify-write",
        }
    }
}

/// The meaning of a frame to a client that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is done, or its key was found.
    Done(OpKind),
    /// The read is answered, and there was no such key.
    Empty(OpKind),
    /// The first half of an operation is done: the slot's next request is its second half.
    Half,
    /// The server refused the request with this code.
    Failed(&'static str),
}
