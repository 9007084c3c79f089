//! A peer's membership in a share: joined at a registry, for as long as it lives.
//!
//! A thread of its own keeps one connection to one of the registries: it joins, says that it is alive,
//! and tells what has changed among the files. When the connection breaks, or the registry has
//! forgotten the peer (it was restarted, say), it joins again by itself, with waits that double. What it
//! announces is always the difference between what the registry was told last and what there is now:
//! so nothing is told twice, and nothing that happens in between is lost.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rand::Rng;

use super::registry_client::{RegistryCallError, RegistryClient};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::net::backoff::Backoff;
use crate::wire::share::{RegistryReply, RegistryRequest};

/// What a peer offers, at any time.
pub trait OfferedFiles: Send + Sync {
    /// Every file, in order of name, no more than
    /// [`FILES_PER_PEER_MAX`](limits::FILES_PER_PEER_MAX).
    fn files(&self) -> Vec<FileEntry>;
}

/// Nothing, for a peer that only fetches.
pub struct NoFiles;

impl OfferedFiles for NoFiles {
    fn files(&self) -> Vec<FileEntry> {
        Vec::new()
    }
}

/// Who joins where.
pub struct MemberOptions {
    /// The registries; one is enough, the others are for when it is gone.
    pub registries: Vec<SocketAddr>,
    /// Who.
    pub peer: PeerId,
    /// Where others read who it is: it becomes another one when somebody else has taken the id.
    pub id: Arc<AtomicU64>,
    /// Where it serves. An IP of zeros is filled in by the registry.
    pub address: SocketAddr,
    /// What it offers.
    pub files: Arc<dyn OfferedFiles>,
    /// Whether it shares a folder, or only fetches.
    pub shares: bool,
    /// For how long it asks for its id while somebody else has joined under it, before it joins under another.
    pub id_patience: Duration,
    /// How long after its JOIN a registry has to know it, to have kept it.
    pub settled_after: Duration,
}

/// What becomes of a membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipNotice {
    /// `JOIN_OK` has come. Where registries take a peer in and do not keep it, this is told again only when one has kept
    /// it.
    Joined {
        /// From whom.
        registry: SocketAddr,
        /// What is offered.
        names: Vec<FileName>,
        /// Not for the first time.
        again: bool,
    },
    /// The registry is gone, or refuses. Told once for each reason, of a refusal once in
    /// [`REFUSAL_TOLD_INTERVAL`](limits::REFUSAL_TOLD_INTERVAL); the membership goes on trying.
    Lost(RegistryCallError),
}

enum MemberCommand {
    /// The files have changed.
    Changed,
    /// Parts of this are served.
    Fetching(ContentId, u64),
    /// Not any more.
    Fetched(ContentId),
    /// A question of somebody else's, asked on the same connection.
    Ask(Box<RegistryRequest>, Sender<Result<RegistryReply, RegistryCallError>>),
}

/// A running membership. It leaves when it is dropped.
pub struct Membership {
    commands: Option<Sender<MemberCommand>>,
    registries: Vec<SocketAddr>,
    /// The one that it is connected to.
    registry: Arc<Mutex<Option<SocketAddr>>>,
    peer: Arc<AtomicU64>,
    /// The files have changed since the registry was told.
    is_changed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Nothing is ever sent; the thread's end closes it.
    ended: Receiver<()>,
}

impl Membership {
    /// Begins; `notice` is called on the membership's thread and must not wait for it.
    ///
    /// # Errors
    /// The system refused a thread.
    pub fn start(
        options: MemberOptions,
        notice: impl FnMut(MembershipNotice) + Send + 'static,
    ) -> io::Result<Membership> {
        let (commands, received) = bounded(limits::MEMBER_COMMANDS_MAX);
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

    /// Who it is: another one than it was when somebody else has taken that id.
    pub fn peer(&self) -> PeerId {
        PeerId(self.peer.load(Ordering::Relaxed))
    }

    /// The files have changed: the registry is told soon. Never waits, however slow the registry is.
    pub fn changed(&self) {
        self.is_changed.store(true, Ordering::Relaxed);
        if let Some(commands) = &self.commands {
            // Without room for it there are commands enough to come by, and the flag is looked at with each.
            let _ = commands.try_send(MemberCommand::Changed);
        }
    }

    /// Parts of a content are served from now on.
    pub fn fetching(&self, content: ContentId, size: u64) {
        self.send(MemberCommand::Fetching(content, size));
    }

    /// They are not any more.
    pub fn fetched(&self, content: ContentId) {
        self.send(MemberCommand::Fetched(content));
    }

    /// Asks the registry something, as this peer. When that one does not answer soon the others are asked as well, over
    /// connections of their own: a question needs no membership.
    ///
    /// # Errors
    /// See [`RegistryCallError`].
    pub fn ask(&self, request: RegistryRequest) -> Result<RegistryReply, RegistryCallError> {
        let (answer, answered) = bounded(2);
        self.send(MemberCommand::Ask(Box::new(request.clone()), answer.clone()));
        let silent = *self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.registries.iter().filter(|registry| Some(**registry) != silent);
        let others: Vec<SocketAddr> = others.copied().collect();
        // Where there is one registry alone, its own peer asks it in its own time.
        if self.registries.len() > 1 && !others.is_empty() {
            match answered.recv_timeout(limits::REGISTRY_HEDGE_AFTER) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(RegistryCallError::Stopping),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let ask = move || {
                let deadline = Instant::now() + limits::REGISTRY_CALL_TIMEOUT;
                let asked = RegistryClient::ask_any(&others, &request, deadline);
                // The registry that it has joined at may have been sooner.
                let _ = answer.send(asked.map(|(_, reply)| reply));
            };
            // Without a thread the first one's answer is waited for.
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
            // Fails only when the thread is gone, which drops what asks for answers.
            let _ = commands.send(command);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.commands = None;
        // A registry that does not answer is not waited for: it notices the closed connection, or the
        // silence.
        let ended = self.ended.recv_timeout(limits::MEMBER_STOP_TIMEOUT);
        if ended == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that speaks to the registry panicked");
        }
    }
}

struct MembershipLoop {
    options: MemberOptions,
    /// The id, for others to read.
    peer: Arc<AtomicU64>,
    /// The registry that it is connected to, for others to read.
    registry: Arc<Mutex<Option<SocketAddr>>>,
    /// Proves to its registry, over another connection, who it is.
    secret: u64,
    /// Since when somebody else has been found to hold the id.
    taken_since: Option<Instant>,
    notice: Box<dyn FnMut(MembershipNotice) + Send>,
    is_changed: Arc<AtomicBool>,
    line: Option<RegistryClient>,
    /// Before that nothing is announced: the registry had no room for it.
    announce_at: Instant,
    announce_backoff: Backoff,
    /// What the registry at the other end of `line` has been told.
    announced: HashMap<FileName, (u64, ContentId)>,
    /// One for each download under way, so that of two of one content the end of one is not told.
    fetching: Vec<(ContentId, u64)>,
    backoff: Backoff,
    retry_at: Instant,
    alive_at: Instant,
    has_joined: bool,
    /// When `JOIN_OK` has come last.
    joined_at: Instant,
    /// How often in a row it was taken in and not kept; being told that it is not known counts twice.
    not_kept: u32,
    rejoin_backoff: Backoff,
    /// That it has joined, which is told when it is known to be kept.
    unreported: Option<MembershipNotice>,
    /// Which registry is tried first: another one after each attempt that came to nothing, so that one that
    /// answers and cannot help does not stand before one that could.
    first: usize,
    /// What has been wrong since it was joined, and when each was told; the newest is the last.
    reported: Vec<(RegistryCallError, Instant)>,
}

impl MembershipLoop {
    fn new(
        options: MemberOptions,
        peer: Arc<AtomicU64>,
        registry: Arc<Mutex<Option<SocketAddr>>>,
        notice: Box<dyn FnMut(MembershipNotice) + Send>,
        is_changed: Arc<AtomicBool>,
    ) -> MembershipLoop {
        let now = Instant::now();
        MembershipLoop {
            options,
            peer,
            registry,
            secret: rand::rng().next_u64(),
            taken_since: None,
            notice,
            is_changed,
            line: None,
            announce_at: now,
            announce_backoff: Backoff::new(
                limits::ANNOUNCE_BACKOFF_MIN,
                limits::ANNOUNCE_BACKOFF_MAX,
            ),
            announced: HashMap::new(),
            fetching: Vec::new(),
            backoff: Backoff::new(limits::REGISTRY_BACKOFF_MIN, limits::REGISTRY_BACKOFF_MAX),
            retry_at: now,
            alive_at: now,
            has_joined: false,
            joined_at: now,
            not_kept: 0,
            rejoin_backoff: Backoff::new(limits::REJOIN_BACKOFF_MIN, limits::REJOIN_BACKOFF_MAX),
            unreported: None,
            first: 0,
            reported: Vec::new(),
        }
    }

    /// Goes on until nobody has commands any more.
    fn run(mut self, commands: &Receiver<MemberCommand>) {
        loop {
            self.maintain();
            if Instant::now() >= self.announce_at && self.is_changed.swap(false, Ordering::Relaxed)
            {
                self.announce();
            }
            let wait = match self.line {
                Some(_) => limits::REGISTRY_LOOK_INTERVAL,
                None => self.retry_at.saturating_duration_since(Instant::now()),
            };
            match commands.recv_timeout(wait) {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(line) = &mut self.line {
            // A registry that does not hear it notices the closed connection.
            let _ = line.ask(&RegistryRequest::Leave, Instant::now() + limits::CLOSE_LINGER);
        }
    }

    /// Notices a connection that has ended, joins when it is time, says that the peer is alive.
    fn maintain(&mut self) {
        if self.line.as_ref().is_some_and(RegistryClient::is_closed) {
            let address = self.line.take().map(|line| line.address());
            let reason = "it closed the connection".to_owned();
            if let Some(address) = address {
                self.dropped_by_registry(RegistryCallError::Unreachable { address, reason });
            }
        }
        let now = Instant::now();
        if self.line.is_none() && now >= self.retry_at {
            self.join();
        } else if self.line.is_some() && now >= self.alive_at {
            self.send(&RegistryRequest::KeepAlive);
        }
    }

    fn handle(&mut self, command: MemberCommand) {
        match command {
            // The flag is looked at after every command.
            MemberCommand::Changed => {}
            MemberCommand::Fetching(content, size) => {
                self.fetching.push((content, size));
                self.send(&RegistryRequest::Fetching { content, size });
            }
            MemberCommand::Fetched(content) => {
                let of_it = |(fetching, _): &(ContentId, u64)| *fetching == content;
                if let Some(at) = self.fetching.iter().position(of_it) {
                    self.fetching.swap_remove(at);
                }
                // Another download of the same content may go on.
                if !self.fetching.iter().any(of_it) {
                    self.send(&RegistryRequest::Fetched { content });
                }
            }
            MemberCommand::Ask(request, answer) => {
                let mut result = self.call(&request);
                let is_lost = matches!(
                    result,
                    None | Some(Err(RegistryCallError::Unreachable { .. }
                        | RegistryCallError::Unanswered { .. }
                        | RegistryCallError::Refused { .. }
                        | RegistryCallError::NotJoined(_)))
                );
                // Somebody waits: this is worth trying now, whatever the back-off says, unless no registry keeps it.
                if is_lost && (!self.is_doubtful() || Instant::now() >= self.retry_at) {
                    self.join();
                    result = self.call(&request);
                }
                let nobody = || {
                    Err(self
                        .reported
                        .last()
                        .map_or(RegistryCallError::Nobody, |(error, _)| error.clone()))
                };
                let result = result.unwrap_or_else(nobody);
                // Whoever asked may have given up.
                let _ = answer.send(result);
            }
        }
    }

    /// Dials a registry and gives it the whole list.
    fn join(&mut self) {
        match self.try_join() {
            Ok((line, files)) => {
                let registry = line.address();
                self.publish_registry(Some(registry));
                self.line = Some(line);
                self.joined_at = Instant::now();
                self.alive_at = self.joined_at + limits::KEEP_ALIVE_INTERVAL;
                self.backoff.reset();
                self.taken_since = None;
                let names = files.iter().map(|file| file.name.clone()).collect();
                let told = files.into_iter().map(|file| (file.name, (file.size, file.content)));
                self.announced = told.collect();
                let again = std::mem::replace(&mut self.has_joined, true);
                self.unreported = Some(MembershipNotice::Joined { registry, names, again });
                if !self.is_doubtful() {
                    self.report_joined();
                }
                for (content, size) in self.fetching.clone() {
                    self.send(&RegistryRequest::Fetching { content, size });
                }
            }
            Err(error) => {
                self.first = self.first.wrapping_add(1);
                if matches!(error, RegistryCallError::IdTaken(_)) {
                    self.give_up_id();
                }
                self.lost(error);
            }
        }
    }

    /// Somebody else has the id. A connection of this peer's own that is dead loses it soon; one that keeps it is
    /// somebody else's, and an id proves nothing: so the peer becomes another one, for as long as it runs.
    fn give_up_id(&mut self) {
        let now = Instant::now();
        let since = *self.taken_since.get_or_insert(now);
        if now.duration_since(since) >= self.options.id_patience {
            self.taken_since = None;
            self.options.peer = PeerId(rand::rng().next_u64());
            self.peer.store(self.options.peer.0, Ordering::Relaxed);
            log::warn!("this peer's id is somebody else's now: joining as {}", self.options.peer);
        }
    }

    fn try_join(&mut self) -> Result<(RegistryClient, Vec<FileEntry>), RegistryCallError> {
        let files = self.options.files.files();
        let patience =
            limits::REGISTRY_CALL_TIMEOUT + limits::JOIN_TIME_PER_FILE * files.len() as u32;
        let deadline = Instant::now() + patience;
        let mut registries = self.options.registries.clone();
        let first = self.first % registries.len().max(1);
        registries.rotate_left(first);
        let mut line = RegistryClient::open_any(&registries, deadline)?;
        let MemberOptions { peer, address, shares, .. } = self.options;
        // A peer without files joins too.
        let parts = files.len().div_ceil(limits::FILES_PER_FRAME).max(1);
        for part in 0..parts {
            let from = part * limits::FILES_PER_FRAME;
            let to = files.len().min(from + limits::FILES_PER_FRAME);
            let join = RegistryRequest::Join {
                peer,
                address,
                files: files[from..to].to_vec(),
                part: part as u32,
                last: part + 1 == parts,
                secret: self.secret,
                shares,
            };
            line.ask_reporting(&join, deadline, &mut |error| self.report(error))?;
        }
        Ok((line, files))
    }

    /// Tells the registry what has changed since it was told last.
    fn announce(&mut self) {
        let now: HashMap<FileName, (u64, ContentId)> = self
            .options
            .files
            .files()
            .into_iter()
            .map(|file| (file.name, (file.size, file.content)))
            .collect();
        let mut added: Vec<FileEntry> = now
            .iter()
            .filter(|(name, what)| self.announced.get(*name) != Some(*what))
            .map(|(name, (size, content))| FileEntry {
                name: name.clone(),
                size: *size,
                content: *content,
            })
            .collect();
        let mut removed: Vec<FileName> =
            self.announced.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        while self.line.is_some() && !(added.is_empty() && removed.is_empty()) {
            // What goes comes first, so that the whole never exceeds what a peer may offer.
            let removed: Vec<_> =
                removed.drain(..removed.len().min(limits::FILES_PER_FRAME)).collect();
            let room = limits::FILES_PER_FRAME - removed.len();
            let added: Vec<_> = added.drain(..added.len().min(room)).collect();
            let update = RegistryRequest::Update { added: added.clone(), removed: removed.clone() };
            match self.call(&update) {
                Some(Ok(_)) => {
                    self.announce_backoff.reset();
                    for name in &removed {
                        self.announced.remove(name);
                    }
                    for FileEntry { name, size, content } in added {
                        self.announced.insert(name, (size, content));
                    }
                }
                // Nothing of it was taken, and what was announced before still stands: it is kept, and the rest
                // told when there may be room.
                Some(Err(error @ RegistryCallError::Declined { .. })) => {
                    let wait = self.announce_backoff.next_wait(rand::rng().next_u64());
                    self.announce_at = Instant::now() + wait;
                    self.is_changed.store(true, Ordering::Relaxed);
                    return self.report(error);
                }
                // Joining again tells everything.
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Tells the registry something. When that fails the connection is given up, and joining again
    /// tells everything.
    fn send(&mut self, request: &RegistryRequest) {
        if let Some(Err(error @ RegistryCallError::Declined { .. })) = self.call(request) {
            self.dropped_by_registry(error);
        }
    }

    /// Asks on the connection, if there is one. One that breaks is given up.
    fn call(
        &mut self,
        request: &RegistryRequest,
    ) -> Option<Result<RegistryReply, RegistryCallError>> {
        let line = self.line.as_mut()?;
        let result = line.ask(request, Instant::now() + limits::REGISTRY_CALL_TIMEOUT);
        match &result {
            Ok(_) => {
                self.alive_at = Instant::now() + limits::KEEP_ALIVE_INTERVAL;
                if self.is_kept() && std::mem::take(&mut self.not_kept) > 0 {
                    self.rejoin_backoff.reset();
                    self.report_joined();
                }
            }
            Err(RegistryCallError::Declined { .. }) => {}
            Err(error) => self.dropped_by_registry(error.clone()),
        }
        Some(result)
    }

    /// Whether the registry has known it for long enough to have kept it.
    fn is_kept(&self) -> bool {
        self.joined_at.elapsed() >= self.options.settled_after
    }

    /// Whether it is taken in again and again and not kept. A registry that was restarted just then is no such case.
    fn is_doubtful(&self) -> bool {
        self.not_kept >= 2
    }

    fn publish_registry(&self, registry: Option<SocketAddr>) {
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
    }

    fn report_joined(&mut self) {
        self.reported.clear();
        if let Some(notice) = self.unreported.take() {
            (self.notice)(notice);
        }
    }

    /// The connection over which it had joined is of no more use. Where it was not kept for long it joins again later
    /// and later, and says once that it does: each JOIN tells the whole list.
    fn dropped_by_registry(&mut self, mut error: RegistryCallError) {
        self.line = None;
        self.publish_registry(None);
        self.first = self.first.wrapping_add(1);
        if self.is_kept() {
            return self.lost(error);
        }
        self.not_kept = self.not_kept.saturating_add(1);
        if let RegistryCallError::NotJoined(address) = error {
            self.not_kept = self.not_kept.saturating_add(1);
            error = RegistryCallError::Forgotten(address);
        }
        self.lost(error);
        if self.is_doubtful() {
            let wait = self.rejoin_backoff.next_wait(rand::rng().next_u64());
            self.retry_at = self.retry_at.max(Instant::now() + wait);
        }
    }

    /// There is no connection: says so, and tries again a little later.
    fn lost(&mut self, error: RegistryCallError) {
        self.retry_at = Instant::now() + self.backoff.next_wait(rand::rng().next_u64());
        self.report(error);
    }

    /// Says what is wrong, unless it has been said.
    fn report(&mut self, error: RegistryCallError) {
        let now = Instant::now();
        let before = self.reported.iter().position(|(told, _)| *told == error);
        let told_at = before.map(|at| self.reported.remove(at).1);
        // That it is still gone is no news. That it refuses is, to somebody who waits for something to come of it.
        let is_refusal = matches!(
            error,
            RegistryCallError::Declined { .. }
                | RegistryCallError::Refused { .. }
                | RegistryCallError::Wrong { .. }
        );
        let is_due = told_at
            .is_none_or(|at| is_refusal && now.duration_since(at) >= limits::REFUSAL_TOLD_INTERVAL);
        if is_due && !matches!(error, RegistryCallError::NotJoined(_)) {
            (self.notice)(MembershipNotice::Lost(error.clone()));
        }
        if self.reported.len() >= limits::REGISTRY_TROUBLES_KEPT {
            self.reported.remove(0);
        }
        let told_at = told_at.filter(|_| !is_due).unwrap_or(now);
        self.reported.push((error, told_at));
    }
}
