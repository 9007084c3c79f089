//! The floor under a replicated write: the least that a leader, two followers and their disks cost
//! on this machine.
//!
//! Three real processes (this program again, with [`ARGUMENT`]) exchange bare length-prefixed
//! frames over mio: client → leader → two followers → leader → client. Every server makes what it
//! received durable with one `fdatasync` before it answers, as many frames at once as have come
//! (group commit); the leader's disk works while the followers' do. There are no terms, no checks,
//! no store, no second thread. The load is [`acervo::bench::load`]'s, the same as for the real
//! thing.

#![allow(dead_code, reason = "each bench uses its own part of what is shared")]

mod server;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use acervo::bench::{Answer, OpKind, Protocol};
use acervo::limits::FRAME_HEADER_BYTES;
use rand::rngs::SmallRng;
use tempfile::TempDir;

pub use server::serve;

/// The first argument of a server process of the floor.
pub const ARGUMENT: &str = "floor-server";
/// A request's body: about that of a PUT of 100 bytes.
pub const BODY_BYTES: usize = 160;

/// How a server's file takes what is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// It grows, so that a sync must also write its new size.
    Appended,
    /// It is full of zeros before, as a log with prepared segments is.
    Prepared,
}

/// Three running servers; dropping them ends them.
pub struct Floor {
    pub leader: SocketAddr,
    processes: Vec<Child>,
    _dir: TempDir,
}

impl Floor {
    /// Starts servers whose leader answers when `followers_needed` of the two followers have, and
    /// its own disk.
    pub fn start(followers_needed: usize, file: File) -> Floor {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut processes = Vec::new();
        let mut start = |name: &str, more: &[String]| -> SocketAddr {
            let mut child = command(&dir.path().join(name), file)
                .args(more)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("this program starts again");
            let output = child.stdout.take().expect("its output is piped");
            processes.push(child);
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).expect("it says where it listens");
            line.trim().parse().expect("an address")
        };
        let followers = [start("follower-1", &[]), start("follower-2", &[])];
        let more =
            [followers_needed.to_string(), followers[0].to_string(), followers[1].to_string()];
        let leader = start("leader", &more);
        Floor { leader, processes, _dir: dir }
    }

    /// The processes of its servers.
    pub fn processes(&self) -> Vec<u32> {
        self.processes.iter().map(Child::id).collect()
    }
}

fn command(log: &Path, file: File) -> Command {
    let program = std::env::current_exe().expect("this program has a file");
    let mut command = Command::new(program);
    command.arg(ARGUMENT).arg(log).arg(if file == File::Appended {
        "appended"
    } else {
        "prepared"
    });
    command
}

impl Drop for Floor {
    fn drop(&mut self) {
        // The leader, which was started last, first: it would complain about missing followers.
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What a load's clients say to the floor: frames of [`BODY_BYTES`], any frame is an answer. They
/// bear no numbers, so each client may have one under way.
pub struct Echo;

impl Protocol for Echo {
    fn greeting(&mut self, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn welcomed(&mut self, _frame: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn request(&mut self, _client: usize, _slot: usize, _random: &mut SmallRng, out: &mut Vec<u8>) {
        out.extend_from_slice(&(BODY_BYTES as u32).to_be_bytes());
        out.resize(out.len() + BODY_BYTES, b'v');
    }

    fn answer(&mut self, _client: usize, _frame: &[u8]) -> Result<(usize, Answer), String> {
        Ok((0, Answer::Done(OpKind::Update)))
    }
}

/// The bytes of one request on the wire.
pub const FRAME_BYTES: usize = FRAME_HEADER_BYTES + BODY_BYTES;
