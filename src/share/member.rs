//! Keeps a peer joined at a registry for as long as the peer lives.
//!
//! A thread of its own keeps one connection to one of the registries. It joins, sends KEEP_ALIVE,
//! and announces changed files. When the connection breaks, or the registry has forgotten the peer
//! (for example because it was restarted), it joins again with exponential back-off.
//!
//! Rule: an announcement is always the difference between what this registry has acknowledged and
//! the files of now. So no file is announced twice, and no change is lost while there is no
//! connection.
//!
//! Left out: searches are only passed through ([`Membership::ask`]), and are hedged over the other
//! registries because a search needs no membership.

mod interface;
mod membership_loop;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use self::interface::MemberCommand;
pub use self::interface::{MemberOptions, MembershipNotice, NoFiles, OfferedFiles};
use self::membership_loop::MembershipLoop;
use super::registry_client::{RegistryCallError, RegistryClient};
use crate::limits;
use crate::model::{ContentId, PeerId};
use crate::wire::share::{RegistryReply, RegistryRequest};

/// Commands of a peer's other threads that wait for the membership's thread. Whoever sends one more
/// waits.
const MEMBER_COMMANDS_MAX: usize = 64;

/// A running membership. Dropping it sends LEAVE.
pub struct Membership {
    commands: Option<Sender<MemberCommand>>,
    registries: Vec<SocketAddr>,
    /// The registry it is connected to now.
    registry: Arc<Mutex<Option<SocketAddr>>>,
    peer: Arc<AtomicU64>,
    /// Whether the files have changed since the last announcement.
    is_changed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Never carries a value; it disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Membership {
    /// Starts the thread. `notice` is called on it and must not block.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        options: MemberOptions,
        notice: impl FnMut(MembershipNotice) + Send + 'static,
    ) -> io::Result<Membership> {
        let (commands, received) = bounded(MEMBER_COMMANDS_MAX);
        let (alive, ended) = bounded::<()>(0);
        let is_changed = Arc::new(AtomicBool::new(false));
        let changed = Arc::clone(&is_changed);
        let peer = Arc::clone(&options.id);
        peer.store(options.peer.0, Ordering::Relaxed);
        let registries = options.registries.clone();
        let registry = Arc::default();
        let (told, connected) = (Arc::clone(&peer), Arc::clone(&registry));
        let thread = thread::Builder::new().name("share-member".to_owned()).spawn(move || {
            MembershipLoop::new(options, told, connected, Box::new(notice), changed).run(&received);
            drop(alive);
        })?;
        let (commands, thread) = (Some(commands), Some(thread));
        Ok(Membership { commands, registries, registry, peer, is_changed, thread, ended })
    }

    /// The current id. It differs from the one at the start if another connection has taken that.
    pub fn peer(&self) -> PeerId {
        PeerId(self.peer.load(Ordering::Relaxed))
    }

    /// Notes that the files have changed and returns at once. The registry is informed soon.
    pub fn changed(&self) {
        self.is_changed.store(true, Ordering::Relaxed);
        if let Some(commands) = &self.commands {
            // A full queue means that the thread will look at the flag after the next command
            // anyway.
            let _ = commands.try_send(MemberCommand::Changed);
        }
    }

    /// Announces that chunks of a content are served.
    pub fn fetching(&self, content: ContentId, size: u64) {
        self.send(MemberCommand::Fetching(content, size));
    }

    /// Announces that a download has ended.
    pub fn fetched(&self, content: ContentId) {
        self.send(MemberCommand::Fetched(content));
    }

    /// Sends a request to the registry. If that one does not answer soon, the other registries are
    /// asked as well, over connections of their own.
    ///
    /// # Errors
    /// The error of the first registry that failed, when none has answered.
    pub fn ask(&self, request: RegistryRequest) -> Result<RegistryReply, RegistryCallError> {
        let (answer, answered) = bounded(2);
        self.send(MemberCommand::Ask(Box::new(request.clone()), answer.clone()));
        let silent = *self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.registries.iter().filter(|registry| Some(**registry) != silent);
        let others: Vec<SocketAddr> = others.copied().collect();
        // With a single registry there is nobody to ask beside it.
        if self.registries.len() > 1 && !others.is_empty() {
            match answered.recv_timeout(limits::REGISTRY_HEDGE_AFTER) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(RegistryCallError::Stopping),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let ask = move || {
                let deadline = Instant::now() + limits::REGISTRY_CALL_TIMEOUT;
                let asked = RegistryClient::ask_any(&others, &request, deadline);
                // The receiver is gone if the first registry has answered meanwhile.
                let _ = answer.send(asked.map(|(_, reply)| reply));
            };
            // Without a thread only the first registry is waited for.
            let _ = thread::Builder::new().name("share-ask".to_owned()).spawn(ask);
        } else {
            drop(answer);
        }
        let mut failed = None;
        for result in answered {
            match result {
                Ok(reply) => return Ok(reply),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or(RegistryCallError::Stopping))
    }

    fn send(&self, command: MemberCommand) {
        if let Some(commands) = &self.commands {
            // Sending fails only when the thread has ended; dropping the command drops its reply
            // channel.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.commands = None;
        // A registry that hangs is not waited for. It will notice that the connection closes or is
        // silent.
        let ended = self.ended.recv_timeout(limits::MEMBER_STOP_TIMEOUT);
        if ended == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that speaks to the registry panicked");
        }
    }
}
