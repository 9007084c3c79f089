//! Requests of clients, from the decoded frame to the core or the workers.
//!
//! Rule: each request is counted in [`Clients`](super::super::clients::Clients) first, and answered
//! once, with a refusal where a limit is reached. What a read finds is decided by `get`, and what
//! becomes of a write by the core.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::decoding::Undecodable;
use super::super::get::{ReadOutcome, ReadRequest, answer_from_log, answer_get_in_memory};
use super::super::links::ServerLink;
use super::super::watches::WatchInput;
use super::super::work::{ReadCharge, ReadJob};
use super::{ConnectionRole, NOT_OF_A_CLIENT, StoreService};
use crate::limits::{self, origin_of};
use crate::model::{DiskSpace, EncodedWrite, NodeId};
use crate::net::{ConnectionId, Net};
use crate::node::config::Distrust;
use crate::node::eligibility::Ineligible;
use crate::node::not_to_be_read;
use crate::node::{Input, NoLeader, ReadCondition, RequestToken, clock_apart};
use crate::text::counted;
use crate::wire::codec;
use crate::wire::message::{ErrorCode, ErrorReply, Message, Reply, Request, ServerStatus};
use crate::workers::pool::SubmitError;

/// Why a read is refused that waited for the disk.
const DISK_HANGS: &str = "the disk does not answer, and reads wait for it";

impl StoreService {
    pub(super) fn client_message(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        message: Message,
    ) {
        match message {
            Message::Request { id, body } => self.request(net, connection, id, body),
            Message::Ping { nonce } => self.send(net, connection, &Message::Pong { nonce }),
            Message::Pong { .. } => {}
            Message::WatchCredit { watch, bytes } => {
                self.credit_watch(net, connection, watch, bytes);
            }
            _ => self.refuse(net, connection, NOT_OF_A_CLIENT.into()),
        }
    }

    /// A frame could not be decoded. A request whose list is too long has broken a limit and no
    /// rule: it gets its answer, and the connection goes on.
    pub(super) fn undecodable(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        Undecodable { reason, request }: Undecodable,
    ) {
        let is_client = matches!(self.connections.get(&connection), Some(ConnectionRole::Client));
        let Some(id) = request.filter(|_| is_client) else {
            return self.refuse(net, connection, reason);
        };
        let Some((token, _)) = self.admit(net, connection, id, 0) else { return };
        let invalid =
            ErrorReply::not_done(ErrorCode::Invalid, format!("{reason}: make it several requests"));
        self.reply(net, token, Reply::Error(invalid));
    }

    /// Counts a request that holds `memory_bytes`; `None` when it has been refused.
    fn admit(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        memory_bytes: usize,
    ) -> Option<(RequestToken, SocketAddr)> {
        let token = RequestToken { connection: connection.to_u64(), request: id };
        if self.clients.is_in_use(token) {
            self.refuse(net, connection, format!("request id {id} is in use"));
            return None;
        }
        let admission = self.clients.begin(net, token, memory_bytes)?;
        if admission.pause {
            net.pause_reading(connection);
        }
        if let Some(what) = admission.busy {
            self.reply(net, token, busy(what));
            return None;
        }
        if !self.lifecycle.takes_requests() {
            let message = "this server is stopping: ask another one".to_owned();
            let refusal = ErrorReply::not_done(ErrorCode::ShuttingDown, message);
            self.reply(net, token, Reply::Error(refusal));
            return None;
        }
        Some((token, admission.client))
    }

    /// Refuses a large frame for which there is no memory, or no thread to decode it.
    pub(super) fn refuse_large(&mut self, net: &mut Net, connection: ConnectionId, head: &[u8]) {
        let what = "requests under way hold all the memory that they may";
        let is_client = matches!(self.connections.get(&connection), Some(ConnectionRole::Client));
        let Some(id) = codec::request_id(head).filter(|_| is_client) else {
            return self.refuse(net, connection, format!("{what}: try again later"));
        };
        if let Some((token, _)) = self.admit(net, connection, id, 0) {
            self.reply(net, token, busy(what));
        }
    }

    /// Hands a client's write to the core, if it is admitted.
    pub(super) fn write_request(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        write: EncodedWrite,
    ) {
        let memory_bytes = write.memory_bytes();
        if let Some((token, client)) = self.admit(net, connection, id, memory_bytes) {
            self.input(net, Input::Write { token, client, write });
        }
    }

    pub(super) fn request(
        &mut self,
        net: &mut Net,
        connection: ConnectionId,
        id: u64,
        body: Request,
    ) {
        let memory_bytes = body.memory_bytes();
        let Some((token, client)) = self.admit(net, connection, id, memory_bytes) else { return };
        let read = match body {
            // Encoded where it was decoded.
            Request::Write(_) => return,
            Request::Status => {
                let status = Reply::StatusOk(Box::new(self.status(net)));
                return self.reply(net, token, status);
            }
            Request::Watch(request) => {
                let origin = origin_of(client.ip());
                return self.begin_watch(net, token, WatchInput::Watch { token, origin, request });
            }
            Request::Unwatch { watch } => {
                let input = WatchInput::Unwatch { token, watch };
                return self.ask_watches(net, token, input);
            }
            Request::Leases(question) => {
                return self.input(net, Input::Leases { token, client, question });
            }
            Request::Get(request) => ReadRequest::Get(request),
            Request::Page(request) => ReadRequest::Page(request),
            Request::Txn(request) => ReadRequest::Txn(request),
        };
        if let Err(refusal) = read.check() {
            return self.reply(net, token, Reply::Error(refusal));
        }
        // Sooner than its turn comes, so that the client asks another server at once.
        if let Some(distrust) = self.distrust() {
            return self.reply(net, token, not_to_be_read(distrust));
        }
        if let Some((_, answered)) = answer_from_log(self.core.node(), &read) {
            return self.answer_read(net, token, client, &read, answered);
        }
        let soon = read.wanted().filter(|wanted| self.core.node().reaches_soon(*wanted));
        let condition = match (read.is_linearizable(), soon) {
            (true, _) => ReadCondition::Linearizable,
            (false, Some(wanted)) => ReadCondition::Applied(wanted),
            (false, None) => return self.read(net, token, client, read),
        };
        self.clients.keep_waiting(token, read);
        self.input(net, Input::Read { token, condition });
    }

    /// Answers a read that waits for nothing, or leaves it to a worker.
    pub(super) fn read(
        &mut self,
        net: &mut Net,
        token: RequestToken,
        client: SocketAddr,
        read: ReadRequest,
    ) {
        match self.try_answer(&read) {
            Some(answered) => self.answer_read(net, token, client, &read, answered),
            None => self.clients.read(token, client, read),
        }
    }

    /// The answer to a GET of a short value that needs no disk, as long as such answers do not hold
    /// up the loop.
    fn try_answer(&mut self, read: &ReadRequest) -> Option<ReadOutcome> {
        let ReadRequest::Get(request) = read else { return None };
        if self.distrust().is_some() {
            return None;
        }
        let most = self.loop_reads.value_bytes_max(Instant::now)?;
        let most = most.min(limits::READ_SMALL_BYTES_MAX);
        let answered = answer_get_in_memory(&self.parts.store, request, most);
        self.loop_reads.tried(answered.as_ref().map_or(0, ReadOutcome::value_bytes));
        answered
    }

    /// Sends the answer to a read that no worker has done, and shows it.
    fn answer_read(
        &mut self,
        net: &mut Net,
        token: RequestToken,
        client: SocketAddr,
        read: &ReadRequest,
        mut answered: ReadOutcome,
    ) {
        if self.parts.console.is_on()
            && let Some(event) = answered.take_shown(client, read)
        {
            self.parts.console.show(event);
        }
        self.reply(net, token, answered.reply);
    }

    /// Ends a request of a client, which is read again if it had too much under way.
    pub(super) fn answered(&mut self, net: &mut Net, token: RequestToken) {
        if self.clients.answered(net, token) {
            net.resume_reading(ConnectionId::from_u64(token.connection));
        }
    }

    /// Sends the answer of a worker, unless the state has come into doubt while it was read.
    pub(super) fn read_answered(&mut self, net: &mut Net, charge: ReadCharge, frame: Vec<u8>) {
        let token = charge.token;
        self.clients.read_done(net, charge);
        match self.distrust() {
            Some(distrust) => self.reply(net, token, not_to_be_read(distrust)),
            None => {
                net.send_owned(ConnectionId::from_u64(token.connection), frame);
                self.answered(net, token);
            }
        }
    }

    /// Why this server is not to be read, if so.
    pub(super) fn distrust(&self) -> Option<Distrust> {
        let refuted = self.lifecycle.is_refuted().then_some(Distrust::Refuted);
        refuted.or_else(|| self.core.node().distrust())
    }

    pub(super) fn status(&self, net: &Net) -> ServerStatus {
        let status = self.core.node().status();
        let config = &self.parts.config;
        let address = |node| self.address(node);
        ServerStatus {
            address: config.listen.to_string(),
            node: self.me,
            cluster: self.cluster,
            role: status.role,
            leader: status.leader.map(address),
            term: status.term,
            commit: status.commit,
            applied: status.applied.index,
            applied_timestamp: status.applied.timestamp,
            last_index: status.last_index,
            in_sync: status.in_sync.into_iter().map(address).collect(),
            full_disks: status.full_disks.into_iter().map(address).collect(),
            client_connections: self.clients.len() as u32,
            server_connections: self.links.iter().map(ServerLink::usable).sum(),
            uptime_ms: self.core.uptime(net.now()).as_millis() as u64,
            longest_stall_us: net.longest_stall().as_micros() as u64,
            disk_bytes: self.parts.threads.disk_bytes(),
            store_rows: self.parts.store.rows(),
            leases: status.leases,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            level: status.level,
            history: status.history,
            warnings: self.warnings(net.now(), &status.ineligible, status.no_leader),
        }
    }

    /// The warnings of this server's status.
    fn warnings(
        &self,
        now: Instant,
        ineligible: &[Ineligible],
        no_leader: Option<NoLeader>,
    ) -> Vec<String> {
        let disk = match self.disk_space {
            DiskSpace::Ample => None,
            DiskSpace::Low => Some("its disk is getting full: make room before writes are refused"),
            DiskSpace::Full | DiskSpace::Exhausted => {
                Some("its disk is nearly full: make room on it, or remove or trim keys")
            }
        };
        let ineligible =
            ineligible.iter().map(|reason| format!("it leaves it to others to lead: {reason}"));
        let no_leader = no_leader.map(|reason| reason.sentence(|node| self.address(node)));
        let distrust = self.distrust().map(|distrust| distrust.to_string());
        let clock = self.core.node().clock_apart_us().map(clock_apart);
        let disk = disk.map(str::to_owned);
        let hang = self.read_hang(now).map(|hang| {
            format!("a read has waited for its disk for {hang:.0?}, and others are refused")
        });
        let of_group = distrust.into_iter().chain(ineligible).chain(clock).chain(no_leader);
        of_group.chain(disk).chain(hang).collect()
    }

    /// The address of a server of the group.
    pub(super) fn address(&self, node: NodeId) -> String {
        let at = (node.0 as usize).checked_sub(1);
        let at = at.and_then(|at| self.parts.config.servers.get(at));
        at.map_or_else(|| node.to_string(), SocketAddr::to_string)
    }

    /// Hands reads to the workers: GETs in batches, and each page by itself, since it may take
    /// long.
    pub(super) fn submit_reads(&mut self, net: &mut Net) {
        let mut gets = self.clients.take_reads(net);
        // The state may have come into doubt while they waited for it, for the core or for their
        // budget.
        if let Some(distrust) = self.distrust() {
            for read in gets {
                self.end_read(net, read, not_to_be_read(distrust));
            }
            return;
        }
        let pages: Vec<_> = gets.extract_if(.., |read| read.is_page()).collect();
        for page in pages {
            self.submit_batch(net, vec![page]);
        }
        while !gets.is_empty() {
            let rest = gets.split_off(gets.len().min(limits::READS_PER_BATCH_MAX));
            let batch = std::mem::replace(&mut gets, rest);
            self.submit_batch(net, batch);
        }
    }

    fn submit_batch(&mut self, net: &mut Net, batch: Vec<ReadJob>) {
        let (refused, why) = match self.parts.threads.read_batch(batch) {
            Ok(()) => return,
            Err(SubmitError::Full(refused)) => (refused, "too many reads wait"),
            Err(SubmitError::Stopped(refused)) => {
                let reads = counted(refused.len() as u64, "read has", "reads have");
                log::error!("{reads} no thread to do them");
                (refused, "no thread is left to read with")
            }
        };
        for read in refused {
            self.end_read(net, read, busy(why));
        }
    }

    /// For how long a worker has been at one read, if that is so long that the disk hangs.
    pub(super) fn read_hang(&self, now: Instant) -> Option<Duration> {
        let hang = now.saturating_duration_since(self.parts.threads.reading_since()?);
        (hang >= self.clients.read_wait_max()).then_some(hang)
    }

    /// While the disk hangs, refuses the reads that have waited for it for too long. Those that a
    /// worker has begun stay counted until they are done.
    pub(super) fn refuse_overdue_reads(&mut self, net: &mut Net) {
        if self.read_hang(net.now()).is_none() {
            return;
        }
        let Some(tick) = self.clients.overdue_since() else { return };
        for read in self.parts.threads.take_back_reads(tick) {
            self.end_read(net, read, busy(DISK_HANGS));
        }
        for read in self.clients.take_overdue() {
            self.reply(net, read.token, busy(DISK_HANGS));
        }
    }

    /// Answers a read that no worker does.
    fn end_read(&mut self, net: &mut Net, read: ReadJob, reply: Reply) {
        self.clients.read_done(net, read.charge());
        self.reply(net, read.token, reply);
    }
}

pub(super) fn busy(what: &str) -> Reply {
    let message = format!("{what} at this server: try again in a moment");
    let code = ErrorCode::Busy { retry_after_ms: limits::BUSY_RETRY_AFTER_MS };
    Reply::Error(ErrorReply::not_done(code, message))
}
