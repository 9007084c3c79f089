//! The service on the registry's event loop: greetings, the order of requests, and the checks of a
//! JOIN before the workers get it.
//!
//! Rule: each connection has at most one request under way.
//!
//! Left out: what a request means, which the workers know (`work`); the order of their jobs
//! (`job_queue`); which connection has which peer id (`connections`); the parts of a JOIN
//! (`partial_join`); and which addresses may be dialled (`address_checks`).

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::address_checks::{AddressChecks, CheckAdmission};
use super::connections::{RegistryConnection, RegistryConnections};
use super::interface::RegistryConfig;
use super::job_queue::JobQueue;
use super::partial_join::{self, PartialJoin};
use super::work::{MembershipChange, RegistryCompletion, RegistryJob, RegistryWork, frame};
use crate::limits::{self, origin_of};
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::{CloseReason, ConnectionId, Net, Service};
use crate::share::greeting;
use crate::share::index::{Member, PeerEndpoint};
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{RegistryReply, RegistryRequest};
use crate::workers::pool::{Pool, SubmitError};

/// A connection that has greeted has to send a request within this time, and is evicted for
/// newcomers until it does.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// All parts of a JOIN have to come within this time, in which the most files that a peer may have
/// arrive over a slow line.
const JOIN_PARTS_TIMEOUT: Duration = Duration::from_secs(120);

/// A JOIN that waits until a peer has answered at its address.
#[derive(Debug)]
struct WaitingJoin {
    /// The connection that the JOIN came over.
    joiner: ConnectionId,
    id: u64,
    place: PeerEndpoint,
    work: RegistryWork,
    held: usize,
}

pub(super) struct RegistryService {
    jobs: JobQueue,
    stop: Receiver<()>,
    connections: RegistryConnections,
    checks: AddressChecks<ConnectionId, WaitingJoin>,
    silence_timeout: Duration,
    /// The most peer ids that may be held, so that places are left for connections that only
    /// search.
    peers_max: usize,
    /// A session is this number plus the connection's id. So it differs from those of other
    /// registries and of this registry before a restart.
    first_session: u64,
    expiring: bool,
    /// The silent peers whose removal waits or is under way, so that none is removed twice.
    removing: HashSet<PeerId>,
    stopping_since: Option<Instant>,
}

impl RegistryService {
    pub fn new(
        pool: Pool<RegistryJob, RegistryCompletion>,
        workers: usize,
        config: &RegistryConfig,
        peers_max: usize,
        stop: Receiver<()>,
        first_session: u64,
    ) -> RegistryService {
        RegistryService {
            jobs: JobQueue::new(pool, workers),
            stop,
            connections: RegistryConnections::default(),
            checks: AddressChecks::new(),
            silence_timeout: config.silence_timeout,
            peers_max,
            first_session,
            expiring: false,
            removing: HashSet::new(),
            stopping_since: None,
        }
    }

    pub fn finish(self) {
        self.jobs.finish();
    }

    fn refuse(&self, net: &mut Net, connection: ConnectionId, reason: &str) {
        // The reason may quote what the other side sent.
        let reason = sentence(reason);
        if let Some(address) = net.peer_address(connection) {
            log::info!("refusing {address}: {reason}");
        }
        net.send_owned(connection, greeting::refusal(&reason));
        net.close_after_flush(connection);
    }

    fn greet(&mut self, net: &mut Net, connection: ConnectionId, message: &Message) {
        if let Err(reason) = greeting::check_hello(message) {
            return self.refuse(net, connection, &reason);
        }
        if let Some(caller) = self.connections.get_mut(connection) {
            caller.greeted = true;
        }
        net.set_frame_cap(connection, limits::REGISTRY_FRAME_BYTES_MAX);
        net.set_idle_timeout(connection, Some(limits::CLIENT_IDLE_TIMEOUT));
        // A connection that is greeted and requests nothing still gives way to others.
        net.set_deadline(connection, Some(net.now() + FIRST_REQUEST_TIMEOUT));
        net.send(connection, |out| encode(&greeting::welcome(None), out));
    }

    fn request(&mut self, net: &mut Net, connection: ConnectionId, id: u64, body: RegistryRequest) {
        let bytes = memory_bytes(&body);
        while !net.try_hold(connection, bytes) {
            if !self.evict_partial(net, connection, bytes) {
                let busy = busy("too many files are on their way to this registry");
                net.send_owned(connection, frame(id, busy));
                return;
            }
        }
        // Its memory is counted already, and belongs to the request from now on.
        let (work, held) = match self.work(net, connection, body, bytes) {
            Ok(Some(work)) => work,
            Ok(None) => return net.release(connection, bytes),
            Err(reply) => {
                net.send_owned(connection, frame(id, reply));
                return;
            }
        };
        // Its further requests are read when this one is answered.
        net.pause_reading(connection);
        if let Some(caller) = self.connections.get_mut(connection) {
            caller.waits = true;
        }
        if let RegistryWork::Join { member, place, .. } = &work {
            let (peer, place) = (member.peer, *place);
            let own = self.connections.get(connection).map(|caller| caller.address.ip());
            if !self.has_place(net, connection) {
                let full = busy("as many peers have joined as this registry has room for");
                return self.decline(net, connection, id, held, full);
            }
            let silence_timeout = self.silence_timeout;
            let taken =
                self.connections.take_id(connection, peer, place.key, net.now(), silence_timeout);
            if let Err(reply) = taken {
                return self.decline(net, connection, id, held, reply);
            }
            if own != Some(place.address.ip()) {
                let waiting = WaitingJoin { joiner: connection, id, place, work, held };
                return self.check_address(net, waiting);
            }
        }
        let is_long = work.is_long();
        self.hand_over(net, connection, id, work, held, is_long);
    }

    /// Discards the parts of an unfinished JOIN to make room for `bytes` of a request. Returns
    /// false if no one gives way.
    fn evict_partial(&mut self, net: &mut Net, connection: ConnectionId, bytes: usize) -> bool {
        let Some(asker) = self.connections.get(connection) else { return false };
        let own = origin_of(asker.address.ip());
        let own_since = asker.partial.as_ref().map(|partial| partial.since);
        let own_held = asker.partial.as_ref().map_or(0, |partial| partial.held);
        let others = self.connections.iter().filter(|(id, _)| *id != connection);
        let others = others.filter_map(|(id, caller)| {
            Some((id, origin_of(caller.address.ip()), caller.partial.as_ref()?))
        });
        let victim = partial_join::giving_way(others, own, own_since, own_held, bytes);
        if let Some(victim) = victim {
            self.give_up_parts(net, victim);
        }
        victim.is_some()
    }

    /// Discards the parts of a connection's unfinished JOIN.
    fn give_up_parts(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(caller) = self.connections.get_mut(connection)
            && let Some(partial) = caller.partial.take()
        {
            net.release(connection, partial.held);
        }
    }

    /// Hands a request to the workers, or answers that there is no room.
    fn hand_over(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        work: RegistryWork,
        held: usize,
        is_long: bool,
    ) {
        let Some(caller) = self.connections.get(connection) else {
            return net.release(connection, held);
        };
        let origin = origin_of(caller.address.ip());
        let job = RegistryJob::Request { connection, id, work, held, is_long };
        let why = match self.jobs.submit(job, origin) {
            Ok(()) => return,
            Err(SubmitError::Full(_)) => "too many requests wait at this registry",
            Err(SubmitError::Stopped(_)) => "this registry has no worker thread left",
        };
        self.decline(net, connection, id, held, busy(why));
    }

    /// Answers a request without the workers.
    fn decline(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        held: usize,
        reply: RegistryReply,
    ) {
        net.release(connection, held);
        self.connections.join_is_over(connection);
        net.send_owned(connection, frame(id, reply));
        self.answered_request(net, connection);
    }

    /// The request of a connection that was under way has been answered.
    fn answered_request(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(caller) = self.connections.get_mut(connection) {
            caller.waits = false;
        }
        self.set_idle_if_unused(net, connection);
        net.resume_reading(connection);
    }

    /// Lets a connection give way to others if it has not joined and has no request under way.
    fn set_idle_if_unused(&mut self, net: &mut Net, connection: ConnectionId) {
        if self.connections.get(connection).is_some_and(RegistryConnection::is_unused) {
            net.set_idle(connection, true);
        }
    }

    /// Whether there is room for one more peer, or the origin that has most makes room for one of
    /// another.
    fn has_place(&self, net: &mut Net, connection: ConnectionId) -> bool {
        let Some(caller) = self.connections.get(connection) else { return false };
        let is_free = self.connections.ids() < self.peers_max;
        self.connections.has_id(connection) || is_free || net.displace(caller.address.ip())
    }

    // ---- whether an address answers ----------------------------------------------------------

    /// Dials the address of a JOIN whose IP is not the one that the JOIN came from.
    fn check_address(&mut self, net: &mut Net, waiting: WaitingJoin) {
        let (origin, address, now) = (waiting.place.origin, waiting.place.address, net.now());
        let too_many = || busy("this registry is dialling too many addresses");
        match self.checks.admit(origin, now) {
            CheckAdmission::Admitted => {}
            CheckAdmission::Refused => {
                let WaitingJoin { joiner, id, held, .. } = waiting;
                return self.decline(net, joiner, id, held, too_many());
            }
            CheckAdmission::InPlaceOf(dialled) => {
                if let Some(WaitingJoin { joiner, id, held, .. }) = self.checks.end(dialled) {
                    net.close(dialled);
                    self.decline(net, joiner, id, held, too_many());
                }
            }
        }
        let dialled = net.dial(address);
        net.set_deadline(dialled, Some(now + limits::ADDRESS_CHECK_TIMEOUT));
        self.checks.begin(dialled, origin, now, waiting);
    }

    /// A check has ended with this result.
    fn checked(&mut self, net: &mut Net, dialled: ConnectionId, result: Result<(), String>) {
        let Some(waiting) = self.checks.end(dialled) else { return };
        let WaitingJoin { joiner, id, place, work, held } = waiting;
        net.close(dialled);
        let from = self.connections.get(joiner).map(|caller| caller.address.ip());
        match (result, from) {
            (Ok(()), Some(_)) => {
                let is_long = work.is_long();
                self.hand_over(net, joiner, id, work, held, is_long);
            }
            (Err(why), Some(from)) => {
                log::info!("{} does not answer for a peer from {from}: {why}", place.address);
                // The reason is not told: a registry must not be usable to find out what listens
                // where.
                let reply = invalid(&format!(
                    "this peer comes from {from}, and no peer answers at {}, where it says it \
                     serves: give an address at which this registry can reach it",
                    place.address
                ));
                self.decline(net, joiner, id, held, reply);
            }
            (_, None) => net.release(joiner, held),
        }
    }

    fn answered(&mut self, net: &mut Net, dialled: ConnectionId, frame: &[u8]) {
        let result = match codec::decode(frame) {
            Ok(Message::ShareWelcome { peer, .. }) => {
                match self.checks.get(dialled).map(|waiting| &waiting.work) {
                    Some(RegistryWork::Join { member, .. }) => {
                        greeting::check_welcome(peer, member.peer)
                    }
                    // The check was given up meanwhile.
                    _ => Ok(()),
                }
            }
            Ok(Message::Refused { reason }) => Err(sentence(&reason)),
            _ => Err("what answers is no peer".to_owned()),
        };
        self.checked(net, dialled, result);
    }

    /// Turns a request into work, with the memory that it holds together with earlier parts. If it
    /// can be answered at once, returns the answer, and has released memory that is not needed any
    /// more. `None` if the connection is gone.
    fn work(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        body: RegistryRequest,
        held: usize,
    ) -> Result<Option<(RegistryWork, usize)>, RegistryReply> {
        let sizes_fit = match &body {
            RegistryRequest::Join { files, .. } | RegistryRequest::Update { added: files, .. } => {
                files.iter().all(|file| file.size <= limits::FILE_BYTES_MAX)
            }
            RegistryRequest::Fetching { size, .. } => *size <= limits::FILE_BYTES_MAX,
            _ => true,
        };
        if !sizes_fit {
            net.release(connection, held);
            let max = limits::FILE_BYTES_MAX;
            return Err(invalid(&format!(
                "a shared file has at most {max} bytes: share no larger one"
            )));
        }
        if let RegistryRequest::Join { peer, address, files, part, last, secret, shares } = body {
            let since = net.now();
            let partial = PartialJoin {
                peer,
                address,
                next_part: part,
                files,
                key: key_of(secret),
                shares,
                since,
                held,
            };
            return self.join_part(net, connection, partial, last).map(Some);
        }
        let Some(caller) = self.connections.get(connection) else {
            net.release(connection, held);
            return Ok(None);
        };
        let (member, asker) = (caller.member(), caller.serving_address());
        if member.is_none() && is_of_member(&body) {
            net.release(connection, held);
            return Err(RegistryReply::NotJoined);
        }
        Ok(Some((RegistryWork::Other { member, asker, body }, held)))
    }

    /// Adds a part of a JOIN to the earlier ones. The last part completes the JOIN.
    fn join_part(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        part: PartialJoin,
        last: bool,
    ) -> Result<(RegistryWork, usize), RegistryReply> {
        let Some(caller) = self.connections.get_mut(connection) else {
            net.release(connection, part.held);
            return Err(RegistryReply::NotJoined);
        };
        // Whatever becomes of this part, the earlier ones are taken out of the connection's state.
        let before = caller.partial.take();
        let all_held = part.held + before.as_ref().map_or(0, |partial| partial.held);
        let whole = match part.after(before, caller.address) {
            Ok(whole) => whole,
            Err(reason) => {
                net.release(connection, all_held);
                return Err(invalid(&reason));
            }
        };
        // The earlier parts may have belonged to another JOIN, which this part has replaced.
        net.release(connection, all_held - whole.held);
        if last {
            let session = self.first_session.wrapping_add(connection.to_u64());
            let member = Member { peer: whole.peer, session };
            let origin = origin_of(caller.address.ip());
            let place = PeerEndpoint { address: whole.address, origin, key: whole.key };
            let work =
                RegistryWork::Join { member, place, files: whole.files, shares: whole.shares };
            return Ok((work, whole.held));
        }
        caller.partial =
            Some(PartialJoin { next_part: whole.next_part.saturating_add(1), ..whole });
        Err(RegistryReply::JoinOk)
    }

    fn forget(&mut self, member: Member, origin: IpAddr) {
        if let Err(refused) = self.jobs.submit(RegistryJob::Gone(member), origin) {
            log::debug!(
                "peer {} is gone, and is removed after the silence time-out: {refused}",
                member.peer
            );
        }
    }

    fn completed(&mut self, net: &mut Net, completion: RegistryCompletion) {
        match completion {
            RegistryCompletion::Long { connection, id, work, held } => {
                self.hand_over(net, connection, id, work, held, true);
            }
            RegistryCompletion::Gone => self.jobs.long_done(),
            RegistryCompletion::Expired(silent) => {
                self.expiring = false;
                for (peer, address) in silent {
                    let (job, origin) = (RegistryJob::RemoveSilent(peer), origin_of(address.ip()));
                    // Without room for it, the peer is found again.
                    if !self.removing.contains(&peer) && self.jobs.submit(job, origin).is_ok() {
                        self.removing.insert(peer);
                    }
                }
            }
            RegistryCompletion::RemovedSilent(peer) => {
                self.removing.remove(&peer);
                self.jobs.long_done();
            }
            RegistryCompletion::Reply { connection, frame, effect, held, was_long } => {
                net.release(connection, held);
                if was_long {
                    self.jobs.long_done();
                }
                if let Some(caller) = self.connections.get_mut(connection) {
                    caller.last_seen = net.now();
                    let origin = origin_of(caller.address.ip());
                    match effect {
                        MembershipChange::None => {}
                        MembershipChange::Joined(member, address) => {
                            if let Some(before) =
                                self.connections.joined(connection, member, address)
                            {
                                self.forget(before, origin);
                            }
                        }
                        MembershipChange::Out => self.connections.left(connection),
                    }
                    self.connections.join_is_over(connection);
                } else if let MembershipChange::Joined(member, address) = effect {
                    self.forget(member, origin_of(address.ip()));
                }
                net.send_owned(connection, frame);
                self.answered_request(net, connection);
            }
        }
    }
}

impl Service for RegistryService {
    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, peer: SocketAddr) {
        let caller = RegistryConnection::new(peer, net.now());
        self.connections.insert(connection, caller);
    }

    fn on_connected(&mut self, net: &mut Net, dialled: ConnectionId) {
        net.send(dialled, |out| encode(&greeting::hello(), out));
    }

    fn on_dial_failed(&mut self, net: &mut Net, dialled: ConnectionId, error: &io::Error) {
        self.checked(net, dialled, Err(error.to_string()));
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        if self.checks.get(connection).is_some() {
            return self.answered(net, connection, frame);
        }
        let Some(caller) = self.connections.get_mut(connection) else { return };
        caller.last_seen = net.now();
        let message = match codec::decode(frame) {
            Ok(message) => message,
            Err(error) => return self.refuse(net, connection, &error.to_string()),
        };
        if !caller.greeted {
            return self.greet(net, connection, &message);
        }
        match message {
            Message::Registry { id, body } => {
                if !std::mem::replace(&mut caller.asked, true) {
                    net.set_deadline(connection, None);
                }
                // Until the request is answered; what is answered at once has this connection give
                // way last.
                net.set_idle(connection, false);
                self.request(net, connection, id, body);
                self.set_idle_if_unused(net, connection);
            }
            Message::Ping { nonce } => {
                net.send(connection, |out| encode(&Message::Pong { nonce }, out));
            }
            Message::Pong { .. } => {}
            _ => self.refuse(net, connection, "a registry is sent REGISTRY and PING only"),
        }
    }

    fn on_closed(&mut self, net: &mut Net, connection: ConnectionId, reason: &CloseReason) {
        self.checked(net, connection, Err(reason.to_string()));
        let Some((caller, joined)) = self.connections.remove(connection) else { return };
        net.release(connection, caller.partial.map_or(0, |partial| partial.held));
        net.release(connection, self.jobs.drop_request(connection));
        if let Some((member, address)) = joined {
            log::info!("peer {} at {address} is gone: {reason}", member.peer);
            self.forget(member, origin_of(caller.address.ip()));
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Some(completion) = self.jobs.collect() {
            self.completed(net, completion);
        }
        if self.stopping_since.is_none() && self.stop.try_recv().is_ok() {
            log::info!("stopping: no new requests are taken");
            self.stopping_since = Some(net.now());
            net.stop_accepting();
        }
    }

    fn on_tick(&mut self, net: &mut Net) {
        if !self.expiring && self.stopping_since.is_none() {
            // If the queue is full, the next tick tries again.
            self.expiring = match self.jobs.submit_short(RegistryJob::Expire) {
                Ok(()) => true,
                Err(SubmitError::Full(_)) => false,
                Err(SubmitError::Stopped(_)) => {
                    log::error!("no thread is left to forget silent peers");
                    false
                }
            };
        }
        let now = net.now();
        let is_late = |partial: &PartialJoin| {
            now.saturating_duration_since(partial.since) > JOIN_PARTS_TIMEOUT
        };
        let late = self
            .connections
            .iter()
            .filter(|(_, caller)| caller.partial.as_ref().is_some_and(is_late));
        for connection in late.map(|(id, _)| id).collect::<Vec<_>>() {
            self.give_up_parts(net, connection);
            let seconds = JOIN_PARTS_TIMEOUT.as_secs();
            let reason = format!("the parts of a JOIN have to come within {seconds} seconds");
            self.refuse(net, connection, &reason);
        }
        let overdue = self
            .stopping_since
            .is_some_and(|since| net.now().duration_since(since) > limits::SHUTDOWN_GRACE);
        if overdue {
            log::warn!("stopping now: some requests are still without an answer");
            net.exit();
        }
    }

    fn before_sleep(&mut self, net: &mut Net) {
        // Long jobs may have been waiting for room in the workers' queue.
        self.jobs.submit_long();
        if self.stopping_since.is_some() && self.jobs.is_empty() {
            log::info!("stopping: nothing is under way");
            net.exit();
        }
    }

    fn farewell(&mut self, connection: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        match (self.connections.get(connection), reason) {
            (None, _) => Vec::new(),
            (Some(RegistryConnection { greeted: true, .. }), CloseReason::Deadline) => {
                let seconds = FIRST_REQUEST_TIMEOUT.as_secs();
                greeting::refusal(&format!("no request came within {seconds} seconds"))
            }
            (Some(_), CloseReason::Deadline) => {
                let seconds = limits::HANDSHAKE_TIMEOUT.as_secs();
                greeting::refusal(&format!("no whole HELLO came within {seconds} seconds"))
            }
            (Some(_), reason) => greeting::refusal(&sentence(&reason.to_string())),
        }
    }

    fn refusal(&mut self, _peer: SocketAddr) -> Vec<u8> {
        greeting::refusal("this registry has no room for another connection: try again later")
    }
}

fn encode(message: &Message, out: &mut Vec<u8>) {
    if let Err(error) = codec::encode(message, limits::REGISTRY_FRAME_BYTES_MAX, out) {
        log::error!("cannot send a message: {error}");
    }
}

/// Whether a request is about the peer as which its connection has joined.
fn is_of_member(body: &RegistryRequest) -> bool {
    matches!(
        body,
        RegistryRequest::Update { .. }
            | RegistryRequest::Fetching { .. }
            | RegistryRequest::Fetched { .. }
            | RegistryRequest::KeepAlive
            | RegistryRequest::Leave
    )
}

/// The memory that a request holds while it is under way, approximately.
fn memory_bytes(body: &RegistryRequest) -> usize {
    let name = |name: &FileName| name.as_str().len() + limits::ELEMENT_OVERHEAD_BYTES;
    let files = |files: &[FileEntry]| files.iter().map(|file| name(&file.name)).sum::<usize>();
    match body {
        RegistryRequest::Join { files: all, .. } => files(all),
        RegistryRequest::Update { added, removed } => {
            files(added) + removed.iter().map(name).sum::<usize>()
        }
        _ => limits::ELEMENT_OVERHEAD_BYTES,
    }
}

/// The hash of a peer's secret, so that nobody who reads it in a store or a log can join with it.
fn key_of(secret: u64) -> u64 {
    let hash = blake3::hash(&secret.to_le_bytes());
    hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn invalid(message: &str) -> RegistryReply {
    RegistryReply::Error { message: message.to_owned(), retry_after_ms: None }
}

fn busy(what: &str) -> RegistryReply {
    let message = format!("{what}: try again in a moment");
    RegistryReply::Error { message, retry_after_ms: Some(limits::BUSY_RETRY_AFTER_MS) }
}
