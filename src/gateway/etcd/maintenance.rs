//! The service Maintenance of etcd's interface: what operators ask of a server.
//!
//! Alarms are stored and listed, and nothing follows from them: a group that has no room refuses
//! writes by itself. They live in the gateway's process, like everything that it keeps, and end
//! with it.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::super::interface::etcd::etcdserverpb::alarm_request::AlarmAction;
use super::super::interface::etcd::etcdserverpb::maintenance_server::Maintenance;
use super::super::interface::etcd::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse,
};
use super::super::policy::CallLimits;
use super::errors::EtcdError;
use super::header::member_id;
use super::range::key_value;
use super::{Answer, ETCD_VERSION, EtcdServices, not_yet};
use crate::client::{KeyRange, ReadOptions, ServerStatus, Timestamp};

/// Alarms that were raised, by the servers that they are about, or 0: so there are only so many as
/// there are kinds for each.
#[derive(Debug, Default)]
pub(super) struct Alarms(Mutex<BTreeSet<(u64, i32)>>);

impl Alarms {
    fn set(&self) -> MutexGuard<'_, BTreeSet<(u64, i32)>> {
        // Each change leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises, ends or lists alarms; those that this is about.
    fn change(&self, action: AlarmAction, kind: AlarmType, member_id: u64) -> Vec<AlarmMember> {
        let one = (member_id, i32::from(kind));
        let mut alarms = self.set();
        let about: Vec<(u64, i32)> = match action {
            AlarmAction::Get => {
                let is_meant = |alarm: &&(u64, i32)| kind == AlarmType::None || alarm.1 == one.1;
                alarms.iter().filter(is_meant).copied().collect()
            }
            AlarmAction::Activate => {
                alarms.insert(one);
                vec![one]
            }
            AlarmAction::Deactivate => alarms.take(&one).into_iter().collect(),
        };
        about.into_iter().map(|(member_id, alarm)| AlarmMember { member_id, alarm }).collect()
    }
}

impl EtcdServices {
    /// Raises, ends or lists alarms.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn change_alarms(
        &self,
        call: &CallLimits,
        AlarmRequest { action, member_id, alarm }: AlarmRequest,
    ) -> Result<AlarmResponse, Status> {
        let unknown = |_| Status::invalid_argument("there is no such alarm, or no such action");
        let action = AlarmAction::try_from(action).map_err(unknown)?;
        let kind = AlarmType::try_from(alarm).map_err(unknown)?;
        if action == AlarmAction::Activate && member_id != 0 {
            let status = self.any_status(call).await?;
            if !self.member_ids(&status).iter().any(|(id, _)| *id == member_id) {
                return Err(EtcdError::MemberNotFound.into());
            }
        }
        let alarms = self.alarms().change(action, kind, member_id);
        Ok(AlarmResponse { header: Some(self.headers().now()), alarms })
    }

    /// Describes the server that leads, or another where nobody knows it: operators ask a gateway
    /// about the group.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn describe_server(
        &self,
        call: &CallLimits,
    ) -> Result<StatusResponse, Status> {
        let status = self.status_of_leader(call).await?;
        let id = |address: &str| member_id(status.cluster, address);
        let mut header = self.headers().now();
        header.member_id = id(&status.address);
        let mut errors = Vec::new();
        if status.leader.is_none() {
            errors.push(Status::from(EtcdError::NoLeader).message().to_owned());
        }
        let size = status.disk_bytes.map_or(0, |bytes| bytes as i64);
        Ok(StatusResponse {
            header: Some(header),
            version: ETCD_VERSION.to_owned(),
            db_size: size,
            db_size_in_use: size,
            leader: status.leader.as_deref().map_or(0, id),
            raft_index: status.commit,
            raft_applied_index: status.applied,
            raft_term: status.term,
            errors,
            is_learner: false,
        })
    }

    async fn status_of_leader(&self, call: &CallLimits) -> Result<ServerStatus, Status> {
        let status = self.any_status(call).await?;
        let leader = status.leader.as_ref().filter(|leader| **leader != status.address);
        let Some(leader) = leader.and_then(|leader| leader.parse().ok()) else { return Ok(status) };
        let client = self.calls().client(call);
        let asked = self.calls().in_turn(call, client.status(leader)).await;
        // It may have gone just now.
        Ok(asked.unwrap_or(status))
    }

    /// A number that is the same wherever the keys, their values and facts are, as of a revision.
    async fn hash(
        &self,
        call: &CallLimits,
        at: Option<Timestamp>,
    ) -> Result<(u32, Timestamp), Status> {
        let options = ReadOptions { at, linearizable: true, facts: true };
        let rows = self.calls().reader(call).scan(KeyRange::all(), options);
        let mut hasher = blake3::Hasher::new();
        let read = self.each_row(call, rows, |row| {
            if let Some(found) = row.found {
                // With its length before it, no message is the beginning of another.
                let row =
                    prost::Message::encode_length_delimited_to_vec(&key_value(row.key, found));
                hasher.update(&row);
            }
            Ok(())
        });
        let read = read.await?;
        let mut hash = [0; 4];
        hasher.finalize_xof().fill(&mut hash);
        Ok((u32::from_be_bytes(hash), read))
    }

    /// The hash of what the store has now.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn hash_newest(
        &self,
        call: &CallLimits,
    ) -> Result<HashResponse, Status> {
        let (hash, at) = self.hash(call, None).await?;
        Ok(HashResponse { header: Some(self.headers().at(at)), hash })
    }

    /// The hash of what the store had at a revision.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn hash_at(
        &self,
        call: &CallLimits,
        HashKvRequest { revision }: HashKvRequest,
    ) -> Result<HashKvResponse, Status> {
        let at = self.known_revision(call, revision).await?;
        let (hash, read) = self.hash(call, at).await?;
        let header = match at {
            None => self.headers().at(read),
            Some(_) => self.headers().now(),
        };
        let compacted = self.compacted_revision(call).await?;
        let compact_revision = compacted.map_or(0, |revision| revision.0);
        Ok(HashKvResponse { header: Some(header), hash, compact_revision })
    }

    /// Makes a server the leader, which it has to be already.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn move_leader_to(
        &self,
        call: &CallLimits,
        MoveLeaderRequest { target_id }: MoveLeaderRequest,
    ) -> Result<MoveLeaderResponse, Status> {
        let status = self.any_status(call).await?;
        let leader = status.leader.as_deref().map(|address| member_id(status.cluster, address));
        if leader == Some(target_id) {
            return Ok(MoveLeaderResponse { header: Some(self.headers().now()) });
        }
        match self.member_ids(&status).iter().any(|(id, _)| *id == target_id) {
            true => Err(not_yet("transfer of leadership: the group elects its leader by itself")),
            false => Err(EtcdError::BadLeaderTransferee.into()),
        }
    }
}

#[tonic::async_trait]
impl Maintenance for EtcdServices {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn alarm(&self, request: Request<AlarmRequest>) -> Answer<AlarmResponse> {
        let call = CallLimits::of(&request)?;
        self.change_alarms(&call, request.into_inner()).await.map(Response::new)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let call = CallLimits::of(&request)?;
        self.describe_server(&call).await.map(Response::new)
    }

    /// The store gives room back by itself, so that there is nothing to do.
    async fn defragment(&self, _: Request<DefragmentRequest>) -> Answer<DefragmentResponse> {
        // As etcd's, this answer has no header.
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Answer<HashResponse> {
        let call = CallLimits::of(&request)?;
        self.hash_newest(&call).await.map(Response::new)
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Answer<HashKvResponse> {
        let call = CallLimits::of(&request)?;
        self.hash_at(&call, request.into_inner()).await.map(Response::new)
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Answer<Self::SnapshotStream> {
        Err(not_yet("snapshots: a stopped server's data directory can be copied"))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        let call = CallLimits::of(&request)?;
        self.move_leader_to(&call, request.into_inner()).await.map(Response::new)
    }

    async fn downgrade(&self, _: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        Err(not_yet("downgrades: its servers are not etcd's"))
    }
}
