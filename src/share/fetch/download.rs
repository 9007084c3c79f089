//! Decides everything in one download: a deterministic state machine without sockets, files,
//! threads or clock.
//!
//! Inputs are method calls with the time since the download began: a source was added, connected or
//! lost, sent a message, or sent a chunk's bytes; a worker has verified, stored or checked chunks;
//! time passed. Outputs are [`DownloadAction`]s. The driver (`driver`) carries them out and owns
//! what they need: connections, buffers, workers and the partial file.
//!
//! The phases: fetch the chunk hashes (`Asking`), check what an earlier download has left
//! (`Checking`), fetch what is missing (`Fetching`), publish the file (`Finishing`). If another
//! program may have changed the file, it is checked again before it is published.
//!
//! Rule: whatever a source sends can at most get that source banned. A chunk counts as stored only
//! when a worker has verified and written it.
//!
//! Left out: which source is asked for which chunk ([`Swarm`]), how the list of hashes is put
//! together ([`HashLists`]), and the limit on the rate, which the driver keeps.

mod gone;
mod interface;
mod stored;

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use self::gone::{GoneVerdict, GoneWatch};
pub(super) use self::interface::{DownloadAction, DownloadConfig, DownloadFailure};
use self::stored::StoredChunks;
use super::api::{FetchPhase, FetchProgress, SourceProgress, SourceState};
use super::disk::CheckRange;
use super::hashes::{HashLists, PageOutcome};
use super::links::{IncomingChunk, RequestKind, SourceLink};
use super::part_check::PartCheck;
use crate::limits;
use crate::model::ChunkHash;
use crate::share::content::{Manifest, chunk_count, chunk_len};
use crate::share::greeting;
use crate::share::swarm::{DropReason, SourceId, SourceStatus, Swarm, SwarmAction};
use crate::text;
use crate::wire::message::Message;
use crate::wire::share::{DenialCode, PeerReply, PeerRequest, Source};

/// Whether a message keeps its source; if not, the reason for which the source is banned.
type Handled = Result<(), DropReason>;

/// The state machine of one download.
#[derive(Debug)]
pub(super) struct Download {
    config: DownloadConfig,
    phase: FetchPhase,
    actions: VecDeque<DownloadAction>,
    swarm: Swarm,
    /// The state of each source, at the index that is its id.
    links: Vec<SourceLink>,
    /// The addresses of `links`. Each address is one source, whatever its peer ids.
    known: HashSet<SocketAddr>,
    next_request: u64,
    /// The source that was lost last, and why.
    last_lost: Option<String>,
    gone: GoneWatch,

    lists: HashLists,
    manifest: Option<Arc<Manifest>>,
    stored: StoredChunks,
    check: PartCheck,
    has_begun: bool,
    /// Whether space for the file is reserved, or cannot be.
    is_allocated: bool,
}

impl Download {
    pub(super) fn new(config: DownloadConfig) -> Download {
        let chunks = chunk_count(config.size);
        Download {
            phase: FetchPhase::Asking,
            actions: VecDeque::new(),
            swarm: Swarm::new(config.swarm.clone(), Duration::ZERO),
            links: Vec::new(),
            known: HashSet::new(),
            next_request: 1,
            last_lost: None,
            gone: GoneWatch::default(),
            lists: HashLists::new(config.content, config.size),
            manifest: None,
            stored: StoredChunks::new(config.size),
            check: PartCheck::new(chunks, config.checks_per_job, config.workers),
            has_begun: false,
            is_allocated: false,
            config,
        }
    }

    /// The next thing to do. To be called until it returns `None`, after every input.
    pub(super) fn next_action(&mut self) -> Option<DownloadAction> {
        self.actions.pop_front()
    }

    /// Requests chunks and hashes, and dials sources. To be called once after a batch of inputs.
    pub(super) fn plan(&mut self, now: Duration) {
        self.ask_for_hashes(now);
        self.act(now);
    }

    pub(super) fn phase(&self) -> FetchPhase {
        self.phase
    }

    pub(super) fn manifest(&self) -> Option<&Arc<Manifest>> {
        self.manifest.as_ref()
    }

    pub(super) fn stored(&self) -> &StoredChunks {
        &self.stored
    }

    /// The number of sources, whose ids are below it.
    pub(super) fn source_count(&self) -> usize {
        self.links.len()
    }

    // ---- sources ----------------------------------------------------------------------------

    /// Adds sources, but for those of another content and those whose address is known.
    pub(super) fn add_sources(&mut self, sources: Vec<Source>, now: Duration) {
        if sources.is_empty() {
            return;
        }
        // Dropped sources are closed before their ids are reused. None is dialled before all are
        // added, so that those dialled are a random sample.
        self.act(now);
        for source in sources {
            let fits = (source.content, source.size) == (self.config.content, self.config.size);
            if !fits || self.known.contains(&source.address) {
                continue;
            }
            // Without room for it, it may be added when it is found again.
            let Some(id) = self.swarm.add_source(source.address, now) else { continue };
            self.known.insert(source.address);
            match self.links.get_mut(id.0) {
                None => self.links.push(SourceLink::new(source)),
                Some(link) => {
                    let forgotten = std::mem::replace(link, SourceLink::new(source)).source;
                    self.known.remove(&forgotten.address);
                }
            }
        }
        assert_eq!(self.known.len(), self.links.len(), "each source has an address of its own");
    }

    /// A search that was requested has this number.
    pub(super) fn search_requested(&mut self, number: u64) {
        self.gone.search_requested(number);
    }

    /// The search with this number has ended, and the sources that it found have been added.
    pub(super) fn searched(&mut self, number: u64) {
        self.gone.searched(number);
    }

    /// The connection with a source is open.
    pub(super) fn connected(&mut self, id: SourceId) {
        self.actions.push_back(DownloadAction::Send(id, greeting::hello()));
    }

    /// The connection with a source is closed, or could not be opened.
    pub(super) fn disconnected(&mut self, id: SourceId, why: &str, now: Duration) {
        self.close(id, why);
        self.swarm.disconnected(id, now);
    }

    /// What a source has sent is no message.
    pub(super) fn undecodable(&mut self, id: SourceId) {
        self.swarm.ban(id, DropReason::Protocol);
    }

    /// A source has sent a message.
    pub(super) fn message(&mut self, id: SourceId, message: Message, now: Duration) {
        if let Err(reason) = self.handle(id, message, now) {
            self.swarm.ban(id, reason);
        }
    }

    fn handle(&mut self, id: SourceId, message: Message, now: Duration) -> Handled {
        let link = &mut self.links[id.0];
        match message {
            Message::ShareWelcome { peer, .. } if !link.greeted => {
                // Any peer will do, since what it sends is verified. If a peer under another id
                // than announced were refused, anybody could get a peer at its own IP address
                // refused by announcing its address under an id of its own.
                link.source.peer = greeting::peer_in_welcome(peer).map_err(DropReason::Refused)?;
                link.greeted = true;
                link.lost.clear();
                self.actions.push_back(DownloadAction::Greeted(id));
                self.swarm.connected(id, now);
                let body = PeerRequest::Watch { content: self.config.content };
                self.ask(id, RequestKind::Watch, body);
                Ok(())
            }
            // The other side closes after this; nothing that may follow is waited for.
            Message::Refused { reason } => {
                if link.is_connected {
                    self.disconnected(id, &sanitize(&reason), now);
                }
                Ok(())
            }
            Message::Ping { nonce } if link.greeted => {
                self.actions.push_back(DownloadAction::Send(id, Message::Pong { nonce }));
                Ok(())
            }
            Message::Pong { .. } if link.pings > 0 => {
                link.pings -= 1;
                Ok(())
            }
            Message::ShareReply { id: request, body } if link.greeted => {
                self.reply(id, request, body, now)
            }
            _ => Err(DropReason::Protocol),
        }
    }

    fn reply(&mut self, id: SourceId, request: u64, body: PeerReply, now: Duration) -> Handled {
        let link = &mut self.links[id.0];
        let kind = link.asked.get(&request).copied().ok_or(DropReason::Protocol)?;
        if kind != RequestKind::Watch {
            link.asked.remove(&request);
        }
        match &body {
            PeerReply::Denied { code: DenialCode::Busy | DenialCode::Cancelled, .. } => {}
            PeerReply::Denied { code, .. } => link.is_gone = *code == DenialCode::NotFound,
            _ => link.is_gone = false,
        }
        match (kind, body) {
            (RequestKind::Watch, PeerReply::Have { runs }) => {
                self.swarm.have(id, &runs);
                Ok(())
            }
            (RequestKind::Hashes(first), PeerReply::Hashes { hashes }) => {
                self.hashes(id, first, &hashes, now)
            }
            (RequestKind::Chunk(index), PeerReply::Chunk { length }) => {
                if length as usize != chunk_len(index, self.config.size) {
                    return Err(DropReason::WrongBytes);
                }
                if link.incoming.is_some() {
                    return Err(DropReason::Protocol);
                }
                link.incoming = Some(IncomingChunk::Waiting(index));
                Ok(())
            }
            (RequestKind::Chunk(index), PeerReply::Denied { code, message }) => {
                let message = sanitize(&message);
                self.swarm.denied(id, index, code, &message, now);
                if code != DenialCode::Cancelled {
                    let address = self.links[id.0].source.address;
                    self.last_lost = Some(format!("{address}: {message}"));
                }
                Ok(())
            }
            (_, PeerReply::Denied { code: DenialCode::Invalid, message }) => {
                Err(DropReason::Refused(sanitize(&message)))
            }
            // It does not have the content any more, or not at the moment.
            (_, PeerReply::Denied { message, .. }) => {
                self.swarm.withdrawn(id, &sanitize(&message), now);
                Ok(())
            }
            _ => Err(DropReason::Protocol),
        }
    }

    /// Sends a request to a source that has a connection.
    fn ask(&mut self, id: SourceId, kind: RequestKind, body: PeerRequest) {
        let request = self.send_request(id, body);
        self.links[id.0].asked.insert(request, kind);
    }

    fn send_request(&mut self, id: SourceId, body: PeerRequest) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        let message = Message::Share { id: request, body };
        self.actions.push_back(DownloadAction::Send(id, message));
        request
    }

    /// Closes the connection with a source that the swarm does not use any more.
    fn close(&mut self, id: SourceId, why: &str) {
        let link = &mut self.links[id.0];
        why.clone_into(&mut link.lost);
        let lost = format!("{}: {why}", link.source.address);
        log::info!("source {lost}");
        self.last_lost = Some(lost);
        link.reset(false);
        self.actions.push_back(DownloadAction::Close(id));
        self.lists.lost(id);
    }

    /// Carries out what the swarm has decided.
    fn act(&mut self, now: Duration) {
        while let Some(action) = self.swarm.next_action(now) {
            match action {
                SwarmAction::Connect(id) => {
                    let link = &mut self.links[id.0];
                    link.reset(true);
                    link.lost.clear();
                    let address = link.source.address;
                    self.actions.push_back(DownloadAction::Connect(id, address));
                }
                SwarmAction::Request(id, index) => {
                    // Cancelled requests are answered, too. A source that answers none of them has
                    // more outstanding than an honest one ever would.
                    if self.links[id.0].asked.len() >= limits::ANSWERS_OWED_MAX {
                        self.swarm.ban(id, DropReason::Protocol);
                        continue;
                    }
                    let body = PeerRequest::Chunk { content: self.config.content, index };
                    self.ask(id, RequestKind::Chunk(index), body);
                }
                SwarmAction::Cancel(id, index) => self.cancel(id, index),
                SwarmAction::Drop(id, reason) => self.close(id, &reason.to_string()),
            }
        }
    }

    fn cancel(&mut self, id: SourceId, index: u64) {
        let asked = &self.links[id.0].asked;
        let request = asked.iter().find(|(_, kind)| **kind == RequestKind::Chunk(index));
        // None if its answer has come already, and its bytes are coming.
        if let Some(request) = request.map(|(request, _)| *request) {
            self.send_request(id, PeerRequest::Cancel { request });
        }
    }

    // ---- chunk hashes -----------------------------------------------------------------------

    /// Requests the chunk hashes from a source, or from another one when that takes too long.
    fn ask_for_hashes(&mut self, now: Duration) {
        if self.phase != FetchPhase::Asking {
            return;
        }
        let (content, size) = (self.config.content, self.config.size);
        if let Some(manifest) = HashLists::without_asking(content, size) {
            return self.manifest_known(manifest, now);
        }
        for late in self.lists.late(now) {
            self.swarm.leave_silent(late, now);
        }
        // Closes the sources that are left, so that they are not asked again.
        self.act(now);
        let ids = (0..self.links.len()).map(SourceId);
        let ready: Vec<SourceId> =
            ids.filter(|id| self.swarm.status(*id) == SourceStatus::Ready).collect();
        while let Some(id) = self.lists.next(&ready, self.links.len(), now) {
            if let Some(slowest) = self.lists.take_replaced() {
                self.swarm.make_room(slowest, now);
            }
            let asked = &self.links[id.0].asked;
            // An answer to an earlier request for the same page will do.
            let is_asked = asked.values().any(|kind| *kind == RequestKind::Hashes(0));
            if !is_asked && asked.len() < limits::ANSWERS_OWED_MAX {
                self.ask_for_page(id, 0);
            }
        }
    }

    fn ask_for_page(&mut self, id: SourceId, first: u64) {
        let body = PeerRequest::Hashes { content: self.config.content, first };
        self.ask(id, RequestKind::Hashes(first), body);
    }

    fn hashes(&mut self, id: SourceId, first: u64, page: &[ChunkHash], now: Duration) -> Handled {
        if self.phase != FetchPhase::Asking {
            // Another source was faster.
            return Ok(());
        }
        match self.lists.take(id, first, page, now) {
            PageOutcome::More(first) => self.ask_for_page(id, first),
            PageOutcome::Whole(manifest) => self.manifest_known(manifest, now),
            PageOutcome::Late => {}
            PageOutcome::Wrong => return Err(DropReason::WrongBytes),
        }
        Ok(())
    }

    fn manifest_known(&mut self, manifest: Manifest, now: Duration) {
        assert!(self.manifest.is_none(), "the chunk hashes are taken once");
        assert_eq!(manifest.content(), self.config.content);
        self.manifest = Some(Arc::new(manifest));
        self.actions.push_back(DownloadAction::OfferPart);
        if self.config.is_resumed {
            self.phase = FetchPhase::Checking;
            self.check.start();
        } else {
            self.fetch_missing(now);
        }
    }

    // ---- the partial file -------------------------------------------------------------------

    /// The chunks of the partial file that the next job is to check, if one may be started now.
    pub(super) fn next_check(&self) -> Option<CheckRange> {
        self.check.next().filter(|_| self.phase == FetchPhase::Checking)
    }

    /// A job that checks these chunks was started.
    pub(super) fn check_started(&mut self, range: CheckRange) {
        self.check.started(range);
    }

    /// A job has checked these chunks and found some of them good.
    pub(super) fn checked(&mut self, range: CheckRange, good: &[u64], now: Duration) {
        assert_eq!(self.phase, FetchPhase::Checking, "{range:?} was checked");
        for index in range.chunks() {
            match (good.contains(&index), self.stored.chunks().contains(index)) {
                (true, false) => {
                    assert!(!self.has_begun, "chunk {index} is good, and being fetched");
                    self.stored.kept(index);
                }
                (false, true) => {
                    self.stored.changed(index);
                    self.swarm.damaged(index, now);
                }
                (true, true) | (false, false) => {}
            }
        }
        if self.check.ended(range) {
            self.fetch_missing(now);
        }
    }

    /// Fetches every chunk that is not stored. The next phase begins at once if there is none: an
    /// earlier download may have stored all chunks without publishing the file.
    fn fetch_missing(&mut self, now: Duration) {
        self.phase = FetchPhase::Fetching;
        if std::mem::replace(&mut self.has_begun, true) {
            self.swarm.restart_patience(now);
        } else {
            self.swarm.begin(&self.stored.chunks().snapshot(), now);
        }
        self.finish_when_whole();
    }

    /// Space for the file is reserved, or the file system cannot reserve any.
    pub(super) fn allocated(&mut self) {
        self.is_allocated = true;
        self.finish_when_whole();
    }

    fn finish_when_whole(&mut self) {
        // Space that is reserved after the file is cut to its length would lie behind its end.
        if self.phase == FetchPhase::Fetching && self.swarm.is_done() && self.is_allocated {
            assert!(self.stored.is_whole(), "{} bytes are stored", self.stored.bytes());
            self.phase = FetchPhase::Finishing;
            self.actions.push_back(DownloadAction::Finish);
        }
    }

    /// Another program may have changed the file: the whole is checked before it is published.
    pub(super) fn doubtful(&mut self) {
        assert_eq!(self.phase, FetchPhase::Finishing, "the file was being published");
        if self.check.start_again() {
            self.phase = FetchPhase::Checking;
        } else {
            self.actions.push_back(DownloadAction::Fail(DownloadFailure::Touched));
        }
    }

    // ---- chunks -----------------------------------------------------------------------------

    /// A source whose next chunk waits for a buffer, and that chunk's length, if one more chunk may
    /// be received. Sources from `from` on are looked at.
    pub(super) fn next_waiting(&self, from: usize) -> Option<(SourceId, usize)> {
        if !self.swarm.may_receive() {
            return None;
        }
        let mut links = self.links.iter().enumerate().skip(from);
        links.find_map(|(id, link)| match link.incoming {
            Some(IncomingChunk::Waiting(index)) => {
                Some((SourceId(id), chunk_len(index, self.config.size)))
            }
            _ => None,
        })
    }

    /// The chunk of this source that was waiting has a buffer now. Returns which one that is.
    pub(super) fn receiving(&mut self, id: SourceId) -> u64 {
        let incoming = &mut self.links[id.0].incoming;
        let Some(IncomingChunk::Waiting(index)) = *incoming else {
            panic!("{id:?} has no chunk that waits, but {incoming:?}");
        };
        *incoming = Some(IncomingChunk::Receiving(index));
        index
    }

    /// Whether the connection with a source is not to be read, because its next chunk waits.
    pub(super) fn is_waiting(&self, id: SourceId) -> bool {
        self.links[id.0].is_waiting()
    }

    /// Bytes have been received from a source: of all kinds, and of requested chunks. `is_read`
    /// tells whether its connection is being read. To be called regularly for every connection.
    pub(super) fn received(
        &mut self,
        id: SourceId,
        all_bytes: u64,
        chunk_bytes: u64,
        is_read: bool,
        now: Duration,
    ) {
        self.lists.received(id, all_bytes);
        // Only bytes of requested chunks count as progress and for a source's rate.
        self.swarm.received(id, chunk_bytes, now);
        if !is_read {
            self.swarm.not_read(id, now);
        }
    }

    /// All bytes of the chunk that was being received from a source have come. Returns the chunk if
    /// it is to be verified and stored; otherwise it is not wanted any more.
    pub(super) fn chunk_received(&mut self, id: SourceId) -> Option<(u64, Arc<Manifest>)> {
        let incoming = self.links[id.0].incoming.take();
        let Some(IncomingChunk::Receiving(index)) = incoming else {
            panic!("no chunk was being received from {id:?}, but {incoming:?}");
        };
        let manifest = self.manifest.clone();
        let manifest = manifest.expect("chunks are requested when their hashes are known");
        self.swarm.arrived(id, index).then_some((index, manifest))
    }

    /// A received chunk was verified and stored; or it is wrong.
    pub(super) fn checked_chunk(&mut self, id: SourceId, index: u64, good: bool, now: Duration) {
        if good {
            self.stored.fetched(index);
        }
        self.swarm.checked(id, index, good, now);
        if !good {
            self.report_wrong_chunk(id, index);
        }
        self.finish_when_whole();
    }

    /// Tells a source that its chunk was wrong, so that one whose disk has corrupted the file
    /// notices. The swarm has banned it; the connection is closed when the message is sent.
    fn report_wrong_chunk(&mut self, id: SourceId, index: u64) {
        // After the greeting only: the connection may be a new one, which is being made.
        let link = &self.links[id.0];
        if link.is_connected && link.greeted {
            let content = self.config.content;
            self.send_request(id, PeerRequest::Doubt { content, index });
            self.links[id.0].is_connected = false;
            self.actions.push_back(DownloadAction::CloseAfterFlush(id));
        }
    }

    // ---- time -------------------------------------------------------------------------------

    /// Time has passed. To be called every [`SHARE_TICK`](limits::SHARE_TICK).
    pub(super) fn tick(&mut self, now: Duration) {
        self.swarm.tick(now);
        // Closes dropped sources, so that the reason below can name them.
        self.act(now);
        if let Some(failure) = self.failure(now) {
            self.actions.push_back(DownloadAction::Fail(failure));
        }
    }

    /// Sends a PING to every source.
    pub(super) fn ping(&mut self) {
        for (id, link) in self.links.iter_mut().enumerate() {
            if link.is_connected && link.greeted {
                link.pings += 1;
                let ping = Message::Ping { nonce: 0 };
                self.actions.push_back(DownloadAction::Send(SourceId(id), ping));
            }
        }
    }

    fn failure(&mut self, now: Duration) -> Option<DownloadFailure> {
        let waited = match self.phase {
            FetchPhase::Asking => now.saturating_sub(self.lists.progress_at()),
            FetchPhase::Fetching => now.saturating_sub(self.swarm.progress_at()),
            _ => return None,
        };
        if self.is_gone(now) {
            return Some(DownloadFailure::Gone);
        }
        // If every source is banned and nobody adds others, there is nothing to wait for.
        let is_hopeless =
            !self.config.more_may_come && !self.links.is_empty() && self.swarm.is_hopeless();
        (is_hopeless || waited >= self.config.patience)
            .then(|| DownloadFailure::NoSource(self.why_no_source()))
    }

    /// Whether the download is to fail because no source has the content any more. Every source
    /// that is not banned has to have said so, and a search for others has to have ended. A source
    /// that is silent, or is hashing its file, may have the content.
    fn is_gone(&mut self, now: Duration) -> bool {
        let is_out = |(id, link): (usize, &SourceLink)| {
            link.is_gone || self.swarm.status(SourceId(id)) == SourceStatus::Banned
        };
        let all_out = self.links.iter().enumerate().all(is_out);
        let is_gone = all_out && self.links.iter().any(|link| link.is_gone);
        let Some(gone_after) = self.config.gone_after.filter(|_| is_gone) else {
            self.gone.reset();
            return false;
        };
        // If nothing has been fetched, nothing is lost by failing now. Otherwise the file may only
        // have been renamed, and will be offered again soon.
        let gone_after = if self.stored.fetched_bytes() > 0 { gone_after } else { Duration::ZERO };
        match self.gone.all_say_so(gone_after, self.config.more_may_come, now) {
            GoneVerdict::Wait => false,
            GoneVerdict::Gone => true,
            GoneVerdict::Search => {
                self.actions.push_back(DownloadAction::RequestSearch);
                false
            }
        }
    }

    /// The reason to name when no source sends anything: a connected source comes first.
    fn why_no_source(&self) -> String {
        let with = |wanted: SourceStatus| {
            let mut ids = (0..self.links.len()).map(SourceId);
            // One that answers BUSY is not silent: its answer says more.
            let is_meant =
                |id: &SourceId| self.swarm.status(*id) == wanted && !self.swarm.reports_busy(*id);
            let id = ids.find(is_meant)?;
            Some(self.links[id.0].source.address)
        };
        let silent = || with(SourceStatus::Ready).map(|address| format!("{address}: it is silent"));
        let unreached = || {
            with(SourceStatus::Connecting).map(|address| format!("{address}: it does not answer"))
        };
        let why = silent().or_else(|| self.last_lost.clone()).or_else(unreached);
        why.unwrap_or_else(|| "nobody has it".to_owned())
    }

    // ---- progress ---------------------------------------------------------------------------

    /// The progress, with the average rate and the longest stall that the driver has measured.
    pub(super) fn progress(&self, rate_bytes_per_s: f64, longest_stall: Duration) -> FetchProgress {
        let ids = (0..self.links.len()).map(SourceId);
        let tried = ids.filter(|id| self.swarm.status(*id) != SourceStatus::Untried);
        let checked_bytes = self.check.checked().saturating_mul(limits::CHUNK_BYTES as u64);
        FetchProgress {
            phase: self.phase,
            size: self.config.size,
            done_bytes: match self.phase {
                FetchPhase::Checking => checked_bytes.min(self.config.size),
                _ => self.stored.bytes(),
            },
            kept_bytes: self.stored.kept_bytes(),
            fetched_bytes: self.stored.fetched_bytes(),
            rate_bytes_per_s,
            longest_stall,
            sources: tried.map(|id| self.source_progress(id)).collect(),
        }
    }

    fn source_progress(&self, id: SourceId) -> SourceProgress {
        let link = &self.links[id.0];
        let state = match self.swarm.status(id) {
            SourceStatus::Connecting => SourceState::Connecting,
            SourceStatus::Ready if self.swarm.reports_busy(id) => SourceState::Busy,
            SourceStatus::Ready if self.swarm.outstanding(id) > 0 => SourceState::Active,
            SourceStatus::Ready => SourceState::Idle,
            SourceStatus::Untried | SourceStatus::Away { .. } | SourceStatus::Banned => {
                SourceState::Lost(link.lost.clone())
            }
        };
        SourceProgress {
            peer: link.source.peer,
            address: link.source.address,
            state,
            given_bytes: self.swarm.given_bytes(id),
            rate_bytes_per_s: self.swarm.rate(id),
        }
    }
}

/// Shortens and escapes a sentence that another peer has sent, so that it can be shown.
fn sanitize(sentence: &str) -> String {
    let short: String = sentence.chars().take(limits::REASON_BYTES_MAX / 4).collect();
    text::escape(short.as_bytes()).to_string()
}

#[cfg(test)]
mod tests;
