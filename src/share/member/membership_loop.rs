//! The thread of a membership: connects, joins, announces, and joins again.
//!
//! Rule: the registry's answers are waited for on this thread only. Whoever uses the membership
//! sends a command and goes on.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rand::Rng;

use super::interface::{MemberCommand, MemberOptions, MembershipNotice};
use crate::limits;
use crate::model::{ContentId, FileEntry, FileName, PeerId};
use crate::net::backoff::Backoff;
use crate::share::registry_client::{RegistryCallError, RegistryClient};
use crate::wire::share::{RegistryReply, RegistryRequest};

/// First wait before a peer announces again what its registry had no room for.
const ANNOUNCE_BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait before such an announcement: a registry that is full is asked rarely.
const ANNOUNCE_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How often a peer says again that a registry refuses it, or answers what makes no sense.
pub(super) const REFUSAL_TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// How often a peer checks whether its registry has closed the connection.
const REGISTRY_POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Errors of its registries that a peer remembers having reported. Past it the oldest may be
/// reported again.
const REPORTED_ERRORS_MAX: usize = 2 * limits::REGISTRIES_MAX;

/// The state of the membership's thread.
pub(super) struct MembershipLoop {
    options: MemberOptions,
    /// The current id, for other threads.
    peer: Arc<AtomicU64>,
    /// The registry it is connected to, for other threads.
    registry: Arc<Mutex<Option<SocketAddr>>>,
    /// Proves to a registry that two connections are of the same peer.
    secret: u64,
    /// Since when another connection has been found to hold the id.
    taken_since: Option<Instant>,
    notice: Box<dyn FnMut(MembershipNotice) + Send>,
    is_changed: Arc<AtomicBool>,
    line: Option<RegistryClient>,
    /// The earliest time of the next announcement, after a registry had no room for one.
    announce_at: Instant,
    announce_backoff: Backoff,
    /// What the registry of `line` has acknowledged.
    announced: HashMap<FileName, (u64, ContentId)>,
    /// One entry for each download under way; two of the same content are two entries.
    fetching: Vec<(ContentId, u64)>,
    backoff: Backoff,
    retry_at: Instant,
    alive_at: Instant,
    has_joined: bool,
    /// When the last JOIN was accepted.
    joined_at: Instant,
    /// How often in a row a JOIN was accepted and then forgotten. NOT_JOINED counts twice.
    not_kept: u32,
    rejoin_backoff: Backoff,
    /// The notice of a JOIN that is held back until the registry has kept it.
    unreported: Option<MembershipNotice>,
    /// The registry to try first. It advances after each failure, so that a registry that answers
    /// but cannot help is not preferred to one that could.
    first: usize,
    /// The failures since the last JOIN and when each was reported, the newest last.
    reported: Vec<(RegistryCallError, Instant)>,
}

impl MembershipLoop {
    pub(super) fn new(
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
            announce_backoff: Backoff::new(ANNOUNCE_BACKOFF_MIN, ANNOUNCE_BACKOFF_MAX),
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

    /// Runs until the [`Membership`] is dropped.
    pub(super) fn run(mut self, commands: &Receiver<MemberCommand>) {
        loop {
            self.maintain();
            if Instant::now() >= self.announce_at && self.is_changed.swap(false, Ordering::Relaxed)
            {
                self.announce();
            }
            let wait = match self.line {
                Some(_) => REGISTRY_POLL_INTERVAL,
                None => self.retry_at.saturating_duration_since(Instant::now()),
            };
            match commands.recv_timeout(wait) {
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(line) = &mut self.line {
            // A registry that misses this notices that the connection closes.
            let _ = line.ask(&RegistryRequest::Leave, Instant::now() + limits::CLOSE_LINGER);
        }
    }

    /// Notices a closed connection, joins when a retry is due, and sends KEEP_ALIVE when that is
    /// due.
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
            // The caller looks at the flag after every command.
            MemberCommand::Changed => {}
            MemberCommand::Fetching(content, size) => {
                self.fetching.push((content, size));
                self.send(&RegistryRequest::Fetching { content, size });
            }
            MemberCommand::Fetched(content) => {
                let of_it = |(fetching, _): &(ContentId, u64)| *fetching == content;
                let at = self.fetching.iter().position(of_it);
                // Each download announces its content once, and withdraws it when it is dropped.
                let at = at.expect("a download that ends was announced when it began");
                self.fetching.swap_remove(at);
                // Another download of the same content may be under way.
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
                // Somebody waits for this answer, so it is worth a JOIN in spite of the back-off,
                // unless registries accept JOINs and forget them.
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
                // The receiver is gone if another registry was faster.
                let _ = answer.send(result);
            }
        }
    }

    /// Connects to a registry and sends JOIN with the whole list of files.
    fn join(&mut self) {
        if let Some(line) = &self.line {
            panic!("a peer joins while its connection to {} is open", line.address());
        }
        match self.try_join() {
            Ok((line, files)) => {
                let registry = line.address();
                self.set_line(Some(line));
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

    /// Another connection holds the id. If it is a dead connection of this very peer, the registry
    /// drops it soon. If not, the id is lost, since an id proves nothing: the peer draws a new one
    /// for as long as it runs.
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
        // A peer without files sends one part, which is empty.
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

    /// Announces the difference between the files of now and those the registry has acknowledged.
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
            // Removals go first, so that the registry's limit on files is not exceeded in between.
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
                // The registry has taken none of this part and keeps what was announced before. The
                // membership goes on, and the rest is announced later, when there may be room.
                Some(Err(error @ RegistryCallError::Declined { .. })) => {
                    let wait = self.announce_backoff.next_wait(rand::rng().next_u64());
                    self.announce_at = Instant::now() + wait;
                    self.is_changed.store(true, Ordering::Relaxed);
                    return self.report(error);
                }
                // The next JOIN announces everything.
                Some(Err(_)) | None => return,
            }
        }
    }

    /// Sends a request whose answer carries nothing. If it is refused, the connection is given up,
    /// since joining again announces everything.
    fn send(&mut self, request: &RegistryRequest) {
        if let Some(Err(error @ RegistryCallError::Declined { .. })) = self.call(request) {
            self.dropped_by_registry(error);
        }
    }

    /// Sends a request on the connection, if there is one. A failed connection is given up.
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

    /// Whether the registry has known the peer long enough to count as having kept it.
    fn is_kept(&self) -> bool {
        self.joined_at.elapsed() >= self.options.settled_after
    }

    /// Whether registries repeatedly accept a JOIN and then forget it. One restart of a registry is
    /// not enough for that.
    fn is_doubtful(&self) -> bool {
        self.not_kept >= 2
    }

    /// Sets the connection, and for other threads the registry it leads to.
    fn set_line(&mut self, line: Option<RegistryClient>) {
        let registry = line.as_ref().map(RegistryClient::address);
        *self.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
        self.line = line;
    }

    fn report_joined(&mut self) {
        self.reported.clear();
        if let Some(notice) = self.unreported.take() {
            (self.notice)(notice);
        }
    }

    /// Gives up the connection over which the peer had joined. If the registry has not kept the
    /// peer, the waits grow with each time, because every JOIN sends the whole list again.
    fn dropped_by_registry(&mut self, mut error: RegistryCallError) {
        self.set_line(None);
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

    /// Schedules the next attempt and reports why there is no connection.
    fn lost(&mut self, error: RegistryCallError) {
        assert!(self.line.is_none(), "a connection is open, and lost all the same: {error}");
        self.retry_at = Instant::now() + self.backoff.next_wait(rand::rng().next_u64());
        self.report(error);
    }

    /// Reports a failure, unless it has been reported already.
    fn report(&mut self, error: RegistryCallError) {
        let now = Instant::now();
        let before = self.reported.iter().position(|(told, _)| *told == error);
        let told_at = before.map(|at| self.reported.remove(at).1);
        // A registry that stays unreachable is no news. A refusal is repeated, since a person may
        // have to do something about it.
        let is_refusal = matches!(
            error,
            RegistryCallError::Declined { .. }
                | RegistryCallError::Refused { .. }
                | RegistryCallError::Wrong { .. }
        );
        let is_due =
            told_at.is_none_or(|at| is_refusal && now.duration_since(at) >= REFUSAL_TOLD_INTERVAL);
        if is_due && !matches!(error, RegistryCallError::NotJoined(_)) {
            (self.notice)(MembershipNotice::Lost(error.clone()));
        }
        if self.reported.len() >= REPORTED_ERRORS_MAX {
            self.reported.remove(0);
        }
        let told_at = told_at.filter(|_| !is_due).unwrap_or(now);
        self.reported.push((error, told_at));
        let reported = self.reported.len();
        assert!(reported <= REPORTED_ERRORS_MAX, "{reported} failures are remembered");
    }
}
