//! Measuring a running group: the load behind `acervo bench` and behind
//! `benches/put_replication.rs`.
//!
//! [`load`] is the generator: logical clients with one request under way each, all on one event
//! loop and one thread, so that on a small machine the group is measured and not the generator.
//! [`Protocol`] is what the clients say: [`StoreProtocol`] speaks to a group, and the bench of the
//! floor brings its own, so that both are measured by the same code. [`report`] prints.
//!
//! The load is closed: a client asks again when it is answered, so a slow group is asked less
//! often, and the latencies are those of requests that did not queue behind their own client's last
//! one.
//!
//! The generator does not use the client library. That hedges, tries again, and keeps away from
//! servers that are of no use, so that figures would tell how well it hides what a group does.
//!
//! Left out: open loads with a fixed rate, mixed reads and writes, several generators.

pub mod command;
pub mod load;
pub mod report;
mod store;

pub use load::{LoadError, Measured, Plan, Until};
pub use store::{StoreProtocol, Workload};

use rand::rngs::SmallRng;

/// The protocol that a generator's clients speak.
pub trait Protocol {
    /// Appends the frame that opens a connection. `false`: this protocol has no greeting, and
    /// requests may be sent at once.
    fn greeting(&mut self, out: &mut Vec<u8>) -> bool;

    /// Understands the frame that answers the greeting; the error says why it is not a welcome.
    ///
    /// # Errors
    /// One sentence for a person.
    fn welcomed(&mut self, frame: &[u8]) -> Result<(), String>;

    /// Appends the next request of client number `client` as one frame.
    fn request(&mut self, client: usize, random: &mut SmallRng, out: &mut Vec<u8>);

    /// Understands what came for `client`.
    ///
    /// # Errors
    /// One sentence for a person, when it is not an answer to the client's request at all; the
    /// connection is then given up.
    fn answer(&mut self, client: usize, frame: &[u8]) -> Result<Answer, String>;
}

/// The meaning of a frame to a client that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The request is done, or its key was found.
    Done,
    /// The read is answered, and there was no such key.
    Empty,
    /// The server refused the request with this code.
    Failed(&'static str),
}
