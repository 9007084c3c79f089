//! The registry's service on the event loop: greetings, the parts of a JOIN, who holds which id, whether an
//! address answers, and who waits for what.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::RegistryConfig;
use super::work::{MembershipChange, RegistryCompletion, RegistryJob, RegistryWork, frame};
use crate::limits;
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::{CloseReason, ConnectionId, ConnectionMap, Net, Service, origin_of};
use crate::share::greeting;
use crate::share::index::{Member, PeerEndpoint};
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{RegistryReply, RegistryRequest};
use crate::workers::pool::{Pool, SubmitError};

/// A connection.
#[derive(Debug)]
struct RegistryConnection {
    /// Where it comes from.
    address: SocketAddr,
    greeted: bool,
    /// It has asked something, and has no deadline any more.
    asked: bool,
    /// A request of it is under way.
    waits: bool,
    /// When it was last sure to be alive: it has spoken, or its request was still being worked on.
    last_seen: Instant,
    /// As whom it is about to join.
    joining: Option<PeerId>,
    /// Of the peer as whom it has joined, or is about to join.
    key: u64,
    /// Whom it has joined as, and where that one serves.
    joined: Option<(Member, SocketAddr)>,
    /// The parts of a JOIN that have come so far.
    partial: Option<PartialJoin>,
}

#[derive(Debug)]
struct PartialJoin {
    peer: PeerId,
    address: SocketAddr,
    next_part: u32,
    files: Vec<FileEntry>,
    key: u64,
    shares: bool,
    /// When the first part came.
    since: Instant,
    /// What the files hold.
    held: usize,
}

/// A JOIN that waits until its address has answered.
#[derive(Debug)]
struct AddressCheck {
    /// The connection that the JOIN came over.
    joiner: ConnectionId,
    id: u64,
    place: PeerEndpoint,
    work: RegistryWork,
    held: usize,
    begun: Instant,
}

/// The service.
pub(super) struct RegistryService {
    pool: Pool<RegistryJob, RegistryCompletion>,
    stop: Receiver<()>,
    connections: ConnectionMap<RegistryConnection>,
    /// Which connection has joined, or is about to join, as which peer.
    id_holders: HashMap<PeerId, ConnectionId>,
    /// By the connection that was dialled for it. At most
    /// [`ADDRESS_CHECKS_MAX`](limits::ADDRESS_CHECKS_MAX).
    checks: ConnectionMap<AddressCheck>,
    /// When each origin's checks of the last [`ADDRESS_CHECKS_PERIOD`](limits::ADDRESS_CHECKS_PERIOD) began: whoever
    /// looks for open ports learns no more than those.
    checked: HashMap<IpAddr, VecDeque<Instant>>,
    silence_timeout: Duration,
    /// The most [`id_holders`](Self::holders), so that there are always places for those that come to ask.
    peers_max: usize,
    /// Long jobs that wait for their turn. What they hold is counted, and so bounds how many there are.
    long: VecDeque<RegistryJob>,
    /// Long jobs with the workers, and how many there may be: others' questions find a thread free.
    long_under_way: usize,
    long_max: usize,
    /// Sessions are this plus a connection's id: unlike those of other registries, and of this one
    /// before it was restarted.
    first_session: u64,
    expiring: bool,
    stopping_since: Option<Instant>,
}

impl RegistryService {
    pub fn new(
        pool: Pool<RegistryJob, RegistryCompletion>,
        config: &RegistryConfig,
        peers_max: usize,
        stop: Receiver<()>,
        first_session: u64,
    ) -> RegistryService {
        RegistryService {
            pool,
            stop,
            connections: ConnectionMap::default(),
            id_holders: HashMap::new(),
            checks: ConnectionMap::default(),
            checked: HashMap::new(),
            silence_timeout: config.silence_timeout,
            peers_max,
            long: VecDeque::new(),
            long_under_way: 0,
            long_max: config.workers.saturating_sub(1).max(1),
            first_session,
            expiring: false,
            stopping_since: None,
        }
    }

    /// Ends the workers.
    pub fn finish(self) {
        if let Err(panicked) = self.pool.shut_down(Instant::now() + limits::STOP_DISK_TIMEOUT) {
            log::error!("{panicked}");
        }
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
        if let Some(caller) = self.connections.get_mut(&connection) {
            caller.greeted = true;
        }
        net.set_frame_cap(connection, limits::REGISTRY_FRAME_BYTES_MAX);
        net.set_idle_timeout(connection, Some(limits::CLIENT_IDLE_TIMEOUT));
        // Whoever greets and asks nothing still gives way to whoever comes to ask.
        net.set_deadline(connection, Some(net.now() + limits::FIRST_REQUEST_TIMEOUT));
        net.send(connection, |out| encode(&greeting::welcome(PeerId(0)), out));
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
        // What was staged is held already, and is from here on part of the work.
        let (work, held) = match self.work(net, connection, body, bytes) {
            Ok(Some(work)) => work,
            Ok(None) => return net.release(connection, bytes),
            Err(reply) => {
                net.send_owned(connection, frame(id, reply));
                return;
            }
        };
        // Its further requests come when this one is answered.
        net.pause_reading(connection);
        if let Some(caller) = self.connections.get_mut(&connection) {
            caller.waits = true;
        }
        if let RegistryWork::Join { member, place, .. } = &work {
            let (peer, place) = (member.peer, *place);
            let own = self.connections.get(&connection).map(|caller| caller.address.ip());
            if !self.has_place(net, connection) {
                let full = busy("as many peers have joined as this registry has room for");
                return self.decline(net, connection, id, held, full);
            }
            if let Err(reply) = self.take_id(net.now(), peer, place.key, connection) {
                return self.decline(net, connection, id, held, reply);
            }
            if own != Some(place.address.ip()) {
                let begun = net.now();
                let check = AddressCheck { joiner: connection, id, place, work, held, begun };
                return self.check_address(net, check);
            }
        }
        self.hand_over(net, connection, id, work, held);
    }

    /// Gives up the parts of somebody's JOIN for `bytes` of a request that find no room. The youngest goes, of the
    /// origin that holds most, if that is more than the origin of who asks would hold; of that origin's own only one
    /// younger than what the one who asks has sent so far. So neither do unfinished JOINs keep others out, nor do
    /// several block each other: the oldest always goes on. `false`: nobody gives way.
    fn evict_partial(&mut self, net: &mut Net, connection: ConnectionId, bytes: usize) -> bool {
        let Some(asker) = self.connections.get(&connection) else { return false };
        let (own, own_since) =
            (origin_of(asker.address.ip()), asker.partial.as_ref().map(|s| s.since));
        let partial = || {
            self.connections.iter().filter_map(|(id, caller)| {
                Some((*id, origin_of(caller.address.ip()), caller.partial.as_ref()?))
            })
        };
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        partial()
            .for_each(|(_, origin, partial)| *origins.entry(origin).or_default() += partial.held);
        let own_held = origins.get(&own).copied().unwrap_or_default() + bytes;
        let heaviest = origins.into_iter().max_by_key(|(_, held)| *held);
        let Some((heaviest, held)) = heaviest.filter(|(_, held)| *held > 0) else { return false };
        let gives_way = |origin: IpAddr, since: Instant| match origin == own {
            true => own_since.is_some_and(|own_since| since > own_since),
            false => origin == heaviest && held > own_held,
        };
        let victims = partial()
            .filter(|(id, origin, partial)| *id != connection && gives_way(*origin, partial.since));
        let youngest = victims.max_by_key(|(_, origin, s)| (*origin != own, s.since));
        let Some(victim) = youngest.map(|(id, ..)| id) else { return false };
        self.give_up_parts(net, victim);
        true
    }

    /// Forgets the parts of a JOIN that is not finished.
    fn give_up_parts(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(caller) = self.connections.get_mut(&connection)
            && let Some(partial) = caller.partial.take()
        {
            net.release(connection, partial.held);
        }
    }

    /// Gives a request to the workers, or tells whoever asked to come later.
    fn hand_over(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        work: RegistryWork,
        held: usize,
    ) {
        let member = match &work {
            RegistryWork::Join { .. } => None,
            _ => self.connections.get(&connection).and_then(|caller| caller.joined),
        };
        let member = member.map(|(member, _)| member);
        let why = match self.submit(RegistryJob::Request { connection, id, member, work, held }) {
            Ok(()) => return,
            Err(SubmitError::Full(_)) => "too many requests wait at this registry",
            Err(SubmitError::Stopped(_)) => "this registry has no thread left to look with",
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
        self.join_is_over(connection);
        net.send_owned(connection, frame(id, reply));
        self.answered_request(net, connection);
    }

    /// The request of a connection that was under way has been answered.
    fn answered_request(&mut self, net: &mut Net, connection: ConnectionId) {
        if let Some(caller) = self.connections.get_mut(&connection) {
            caller.waits = false;
        }
        self.set_idle_if_unused(net, connection);
        net.resume_reading(connection);
    }

    /// Whoever has not joined and waits for no answer gives way to newcomers.
    fn set_idle_if_unused(&mut self, net: &mut Net, connection: ConnectionId) {
        let caller = self.connections.get(&connection);
        if caller.is_some_and(|caller| !caller.waits && caller.joined.is_none()) {
            net.set_idle(connection, true);
        }
    }

    // ---- who holds which id ------------------------------------------------------------------

    /// Whether there is a place for one more peer, or the address that has the most makes room for one of another.
    fn has_place(&self, net: &mut Net, connection: ConnectionId) -> bool {
        let Some(caller) = self.connections.get(&connection) else { return false };
        let holds_one = caller.joined.is_some() || caller.joining.is_some();
        holds_one || self.id_holders.len() < self.peers_max || net.displace(caller.address.ip())
    }

    /// A connection is about to join as a peer, unless another that is alive has.
    fn take_id(
        &mut self,
        now: Instant,
        peer: PeerId,
        key: u64,
        connection: ConnectionId,
    ) -> Result<(), RegistryReply> {
        let id_holder = self.id_holders.get(&peer).filter(|id_holder| **id_holder != connection);
        let is_alive = |caller: &RegistryConnection| {
            // A peer whose connection is dead, which only it knows, joins anew at once.
            caller.key != key
                && (caller.joining == Some(peer)
                    || now.saturating_duration_since(caller.last_seen) <= self.silence_timeout)
        };
        if id_holder.and_then(|id_holder| self.connections.get(id_holder)).is_some_and(is_alive) {
            let retry_after_ms = limits::JOINED_ELSEWHERE_RETRY_AFTER_MS;
            return Err(RegistryReply::IdTaken { retry_after_ms });
        }
        if let Some(caller) = self.connections.get_mut(&connection) {
            caller.joining = Some(peer);
            caller.key = key;
            self.id_holders.insert(peer, connection);
        }
        Ok(())
    }

    /// The JOIN of a connection has been answered: it holds the id that it has joined as, and no other.
    fn join_is_over(&mut self, connection: ConnectionId) {
        let Some(caller) = self.connections.get_mut(&connection) else { return };
        let joined = caller.joined.map(|(member, _)| member.peer);
        if let Some(peer) = caller.joining.take().filter(|peer| joined != Some(*peer)) {
            self.give_up_id(peer, connection);
        }
    }

    fn give_up_id(&mut self, peer: PeerId, connection: ConnectionId) {
        if self.id_holders.get(&peer) == Some(&connection) {
            self.id_holders.remove(&peer);
        }
    }

    // ---- whether an address answers ----------------------------------------------------------

    /// Dials the address of a JOIN that is not where the JOIN came from.
    fn check_address(&mut self, net: &mut Net, check: AddressCheck) {
        if !self.may_check(net, check.place.origin) {
            let busy = busy("this registry is dialling too many addresses");
            return self.decline(net, check.joiner, check.id, check.held, busy);
        }
        let dialled = net.dial(check.place.address);
        net.set_deadline(dialled, Some(net.now() + limits::ADDRESS_CHECK_TIMEOUT));
        self.checks.insert(dialled, check);
    }

    /// Whether one more address may be dialled for somebody from `origin`; counts it if so.
    fn may_check(&mut self, net: &mut Net, origin: IpAddr) -> bool {
        let now = net.now();
        let is_recent =
            |at: &Instant| now.saturating_duration_since(*at) < limits::ADDRESS_CHECKS_PERIOD;
        self.checked.retain(|_, begun| {
            begun.retain(is_recent);
            !begun.is_empty()
        });
        let begun = self.checked.get(&origin).map_or(0, VecDeque::len);
        if begun >= limits::ADDRESS_CHECKS_PER_ORIGIN_MAX
            || begun == 0 && self.checked.len() >= limits::ADDRESS_CHECK_ORIGINS_MAX
            || self.checks.len() >= limits::ADDRESS_CHECKS_MAX && !self.drop_check(net, origin)
        {
            return false;
        }
        self.checked.entry(origin).or_default().push_back(now);
        true
    }

    /// Gives up a check of the origin that has most, for one of an origin that has fewer; or the one that has waited for
    /// longest, if most addresses would have answered by then.
    fn drop_check(&mut self, net: &mut Net, origin: IpAddr) -> bool {
        let mut origins: HashMap<IpAddr, usize> = HashMap::new();
        self.checks.values().for_each(|c| *origins.entry(c.place.origin).or_default() += 1);
        let own = origins.get(&origin).copied().unwrap_or_default();
        let Some((heaviest, most)) = origins.into_iter().max_by_key(|(_, count)| *count) else {
            return false;
        };
        let alike = self.checks.iter().filter(|(_, check)| check.place.origin == heaviest);
        let of_most = alike.map(|(dialled, _)| *dialled).next().filter(|_| most > own + 1);
        let is_late = |check: &AddressCheck| {
            net.now().saturating_duration_since(check.begun) >= limits::ADDRESS_CHECK_GIVES_WAY
        };
        let oldest = || {
            let late = self.checks.iter().filter(|(_, check)| is_late(check));
            late.min_by_key(|(_, check)| check.begun).map(|(dialled, _)| *dialled)
        };
        let Some(dialled) = of_most.or_else(oldest) else { return false };
        if let Some(AddressCheck { joiner, id, held, .. }) = self.checks.remove(&dialled) {
            net.close(dialled);
            let busy = busy("this registry is dialling too many addresses");
            self.decline(net, joiner, id, held, busy);
        }
        true
    }

    /// The address has answered, or has not and this is why.
    fn checked(&mut self, net: &mut Net, dialled: ConnectionId, result: Result<(), String>) {
        let Some(AddressCheck { joiner, id, place, work, held, .. }) = self.checks.remove(&dialled)
        else {
            return;
        };
        net.close(dialled);
        let from = self.connections.get(&joiner).map(|caller| caller.address.ip());
        match (result, from) {
            (Ok(()), Some(_)) => self.hand_over(net, joiner, id, work, held),
            (Err(why), Some(from)) => {
                log::info!("{} does not answer for a peer from {from}: {why}", place.address);
                // Not why: a registry is not there to find out what listens where.
                let reply = invalid(&format!(
                    "this peer comes from {from}, and no peer answers at {}, where it says it serves: \
                     give an address at which this registry can reach it",
                    place.address
                ));
                self.decline(net, joiner, id, held, reply);
            }
            (_, None) => net.release(joiner, held),
        }
    }

    fn answered(&mut self, net: &mut Net, dialled: ConnectionId, frame: &[u8]) {
        let result = match codec::decode(frame) {
            Ok(Message::Welcome(welcome)) => {
                match self.checks.get(&dialled).map(|check| &check.work) {
                    Some(RegistryWork::Join { member, .. }) => {
                        greeting::check_welcome(&welcome, member.peer)
                    }
                    // The check has been given up.
                    _ => Ok(()),
                }
            }
            Ok(Message::Refused { reason }) => Err(sentence(&reason)),
            _ => Err("what answers is no peer".to_owned()),
        };
        self.checked(net, dialled, result);
    }

    /// Hands a job to the workers, or has it wait for its turn.
    ///
    /// # Errors
    /// Too many wait, or no worker is left.
    fn submit(&mut self, job: RegistryJob) -> Result<(), SubmitError<()>> {
        if !job.is_long() {
            return self.pool.submit(job).map_err(|error| match error {
                SubmitError::Full(_) => SubmitError::Full(()),
                SubmitError::Stopped(_) => SubmitError::Stopped(()),
            });
        }
        if self.long.len() >= limits::REGISTRY_QUEUE_JOBS_MAX {
            return Err(SubmitError::Full(()));
        }
        self.long.push_back(job);
        self.submit_long();
        Ok(())
    }

    fn submit_long(&mut self) {
        while self.long_under_way < self.long_max
            && let Some(job) = self.long.pop_front()
        {
            match self.pool.submit(job) {
                Ok(()) => self.long_under_way += 1,
                Err(SubmitError::Full(job)) => return self.long.push_front(job),
                Err(SubmitError::Stopped(job)) => {
                    log::error!("a long request has no thread to be done by");
                    return self.long.push_front(job);
                }
            }
        }
    }

    fn long_done(&mut self) {
        self.long_under_way -= 1;
        self.submit_long();
    }

    /// What is to be done for a request that holds so many bytes, and what it holds together with the parts
    /// before it; or the answer that can be given at once, when what is not kept has been released. `None`
    /// when the connection is gone.
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
        let work = self.short_work(connection, body);
        if work.is_err() {
            net.release(connection, held);
        }
        Ok(work?.map(|work| (work, held)))
    }

    fn short_work(
        &mut self,
        connection: ConnectionId,
        body: RegistryRequest,
    ) -> Result<Option<RegistryWork>, RegistryReply> {
        let Some(caller) = self.connections.get(&connection) else { return Ok(None) };
        let member = || caller.joined.map(|(member, _)| member).ok_or(RegistryReply::NotJoined);
        Ok(Some(match body {
            RegistryRequest::Join { .. } => return Ok(None),
            RegistryRequest::Search { name } => {
                let asker = caller.joined.map_or(caller.address, |(_, address)| address);
                RegistryWork::Search { asker, name }
            }
            RegistryRequest::SearchContent { content } => RegistryWork::SearchContent(content),
            RegistryRequest::Update { added, removed } => {
                RegistryWork::Update { member: member()?, added, removed }
            }
            RegistryRequest::Fetching { content, size } => {
                RegistryWork::Fetching { member: member()?, content, size }
            }
            RegistryRequest::Fetched { content } => {
                RegistryWork::Fetched { member: member()?, content }
            }
            RegistryRequest::KeepAlive => member().map(|_| RegistryWork::KeepAlive)?,
            RegistryRequest::Leave => RegistryWork::Leave(member()?),
            RegistryRequest::Peers { after } => RegistryWork::Peers(after),
            RegistryRequest::Files { after } => RegistryWork::Files(after),
        }))
    }

    /// Adds a part to those that have come; the last makes the whole.
    fn join_part(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        part: PartialJoin,
        last: bool,
    ) -> Result<(RegistryWork, usize), RegistryReply> {
        let Some(caller) = self.connections.get_mut(&connection) else {
            net.release(connection, part.held);
            return Err(RegistryReply::NotJoined);
        };
        // Whatever becomes of this part, it is not kept twice.
        let before = caller.partial.take();
        let all_held = part.held + before.as_ref().map_or(0, |partial| partial.held);
        let whole = match whole(part, before, caller.address) {
            Ok(whole) => whole,
            Err(reply) => {
                net.release(connection, all_held);
                return Err(reply);
            }
        };
        // The parts before may have been another JOIN's, which was given up.
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

    fn forget(&mut self, member: Member) {
        if let Err(refused) = self.submit(RegistryJob::Gone(member)) {
            log::debug!("peer {} is gone; its silence will take it away: {refused}", member.peer);
        }
    }

    fn completed(&mut self, net: &mut Net, completion: RegistryCompletion) {
        match completion {
            RegistryCompletion::Gone => self.long_done(),
            RegistryCompletion::Expired => self.expiring = false,
            RegistryCompletion::Reply { connection, frame, effect, held, was_long } => {
                net.release(connection, held);
                if was_long {
                    self.long_done();
                }
                if let Some(caller) = self.connections.get_mut(&connection) {
                    caller.last_seen = net.now();
                    match effect {
                        MembershipChange::None => {}
                        MembershipChange::Joined(member, address) => {
                            let before = caller.joined.replace((member, address));
                            // One connection, one peer.
                            if let Some((before, _)) = before.filter(|(b, _)| b.peer != member.peer)
                            {
                                self.give_up_id(before.peer, connection);
                                self.forget(before);
                            }
                        }
                        MembershipChange::Out => {
                            if let Some((member, _)) = caller.joined.take() {
                                self.give_up_id(member.peer, connection);
                            }
                        }
                    }
                    self.join_is_over(connection);
                } else if let MembershipChange::Joined(member, _) = effect {
                    self.forget(member);
                }
                net.send_owned(connection, frame);
                self.answered_request(net, connection);
            }
        }
    }
}

impl Service for RegistryService {
    fn on_accepted(&mut self, net: &mut Net, connection: ConnectionId, peer: SocketAddr) {
        let caller = RegistryConnection {
            address: peer,
            greeted: false,
            asked: false,
            waits: false,
            last_seen: net.now(),
            joining: None,
            key: 0,
            joined: None,
            partial: None,
        };
        self.connections.insert(connection, caller);
    }

    fn on_connected(&mut self, net: &mut Net, dialled: ConnectionId) {
        net.send(dialled, |out| encode(&greeting::hello(), out));
    }

    fn on_dial_failed(&mut self, net: &mut Net, dialled: ConnectionId, error: &io::Error) {
        self.checked(net, dialled, Err(error.to_string()));
    }

    fn on_frame(&mut self, net: &mut Net, connection: ConnectionId, frame: &[u8]) {
        if self.checks.contains_key(&connection) {
            return self.answered(net, connection, frame);
        }
        let Some(caller) = self.connections.get_mut(&connection) else { return };
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
                // Until it is answered; what is answered at once makes it the last in the order of who gives way.
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
        let Some(caller) = self.connections.remove(&connection) else { return };
        net.release(connection, caller.partial.map_or(0, |partial| partial.held));
        if let Some(peer) = caller.joining {
            self.give_up_id(peer, connection);
        }
        if let Some((member, address)) = caller.joined {
            self.give_up_id(member.peer, connection);
            log::info!("peer {} at {address} is gone: {reason}", member.peer);
            self.forget(member);
        }
    }

    fn on_wake(&mut self, net: &mut Net) {
        while let Some(completion) = self.pool.collect() {
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
            // When the queue is full the next tick tries again.
            self.expiring = match self.pool.submit(RegistryJob::Expire) {
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
            now.saturating_duration_since(partial.since) > limits::JOIN_PARTS_TIMEOUT
        };
        let late = self
            .connections
            .iter()
            .filter(|(_, caller)| caller.partial.as_ref().is_some_and(is_late));
        for connection in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.give_up_parts(net, connection);
            let seconds = limits::JOIN_PARTS_TIMEOUT.as_secs();
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
        // Long jobs may have found the workers' queue full of others' questions.
        self.submit_long();
        let under_way = self.pool.outstanding() + self.long.len();
        if self.stopping_since.is_some() && under_way == 0 {
            log::info!("stopping: nothing is under way");
            net.exit();
        }
    }

    fn farewell(&mut self, connection: ConnectionId, reason: &CloseReason) -> Vec<u8> {
        match (self.connections.get(&connection), reason) {
            (None, _) => Vec::new(),
            (Some(RegistryConnection { greeted: true, .. }), CloseReason::Deadline) => {
                let seconds = limits::FIRST_REQUEST_TIMEOUT.as_secs();
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

/// A part of a JOIN together with those that came before it on the same connection, from `from`.
fn whole(
    mut part: PartialJoin,
    before: Option<PartialJoin>,
    from: SocketAddr,
) -> Result<PartialJoin, RegistryReply> {
    part.address.set_ip(part.address.ip().to_canonical());
    if part.address.ip().is_unspecified() {
        // It listens everywhere: it is reached where it comes from.
        part.address.set_ip(from.ip());
    }
    let whole = match before {
        _ if part.address.ip().is_loopback() && !from.ip().is_loopback() => {
            let reason = "a peer on another machine than its registry cannot serve on a loopback \
                          address: give the address at which others reach it";
            return Err(invalid(reason));
        }
        _ if part.address.port() == 0 => return Err(invalid("a peer cannot serve on port 0")),
        _ if part.next_part == 0 => part,
        Some(mut partial)
            if (partial.peer, partial.address, partial.key, partial.shares, partial.next_part)
                == (part.peer, part.address, part.key, part.shares, part.next_part) =>
        {
            partial.files.append(&mut part.files);
            partial.held += part.held;
            partial
        }
        _ => {
            let reason = "this part of a JOIN does not follow the one before, or that one had to make room: send \
                          all of them again";
            return Err(invalid(reason));
        }
    };
    if whole.files.len() > limits::FILES_PER_PEER_MAX {
        let max = limits::FILES_PER_PEER_MAX;
        return Err(invalid(&format!("a peer offers at most {max} files: share fewer")));
    }
    Ok(whole)
}

/// What a request holds while it is under way, about.
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

/// What is kept of a peer's secret: whoever sees it, in a store or a log, cannot join with it.
fn key_of(secret: u64) -> u64 {
    let hash = blake3::hash(&secret.to_le_bytes());
    hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

fn invalid(message: &str) -> RegistryReply {
    RegistryReply::Error { message: message.to_owned(), retry_after_ms: 0 }
}

fn busy(what: &str) -> RegistryReply {
    let message = format!("{what}: try again in a moment");
    RegistryReply::Error { message, retry_after_ms: limits::BUSY_RETRY_AFTER_MS }
}
