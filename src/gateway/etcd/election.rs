//! The service Election of etcd's interface: whose key has had its turn leads ([`contest`]).
//!
//! Errors that etcd's own client package makes, and its server passes on, are UNKNOWN here as
//! there.
//!
//! [`contest`]: super::contest

use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::super::interface::etcd::mvccpb::KeyValue;
use super::super::interface::etcd::v3electionpb::election_server::Election;
use super::super::interface::etcd::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use super::super::policy::CallLimits;
use super::errors::{EtcdError, failed};
use super::lease::lease_id;
use super::range::key_value;
use super::{Answer, EtcdServices};
use crate::client::contender::ContestName;
use crate::client::{
    Comparison, Leader, Leaders, ReadOptions, Timestamp, Txn, TxnDone, TxnOp, Version,
};

fn not_leader() -> Status {
    Status::unknown("election: not leader")
}

fn no_leader() -> Status {
    Status::unknown("election: no leader")
}

/// The key of a request that must name one.
fn named(leader: Option<LeaderKey>) -> Result<LeaderKey, Status> {
    leader.ok_or_else(|| Status::unknown("\"leader\" field must be provided"))
}

/// Whoever leads, as etcd tells it.
fn told(leader: Leader) -> KeyValue {
    let Leader { key, value, timestamp, facts, .. } = leader;
    key_value(key, Version { timestamp, value, facts })
}

impl EtcdServices {
    /// Waits until the caller leads.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn campaign_for(
        &self,
        call: &CallLimits,
        CampaignRequest { name, lease, value }: CampaignRequest,
    ) -> Result<CampaignResponse, Status> {
        let (place, mut at) = self.contend(call, &name, &value, lease).await?;
        let (key, rev, lease) = (place.key.clone(), place.fence, place.lease);
        let (rev, lease) = (rev.0, lease.0 as i64);
        let leader = LeaderKey { name, key, rev, lease };
        if place.earlier.as_ref().is_some_and(|earlier| *earlier != value) {
            at = self.proclaim_as(call, &leader, value).await?;
        }
        place.keep();
        Ok(CampaignResponse { header: Some(self.headers().at(at)), leader: Some(leader) })
    }

    /// Changes the value of a leader.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn proclaim_value(
        &self,
        call: &CallLimits,
        ProclaimRequest { leader, value }: ProclaimRequest,
    ) -> Result<ProclaimResponse, Status> {
        let at = self.proclaim_as(call, &named(leader)?, value).await?;
        Ok(ProclaimResponse { header: Some(self.headers().at(at)) })
    }

    async fn proclaim_as(
        &self,
        call: &CallLimits,
        leader: &LeaderKey,
        value: Bytes,
    ) -> Result<Timestamp, Status> {
        let (key, lease) = (leader.key.clone(), lease_id(leader.lease));
        let put = TxnOp::Put { key, value, tells_previous: false, lease };
        let done = self.if_leader(call, leader, put).await?;
        if done.succeeded { Ok(done.timestamp) } else { Err(not_leader()) }
    }

    /// Does something if this is still a leader's key.
    async fn if_leader(
        &self,
        call: &CallLimits,
        leader: &LeaderKey,
        op: TxnOp,
    ) -> Result<TxnDone, Status> {
        let own = Comparison::created(&leader.key).equals(Timestamp(leader.rev.max(0)));
        let client = self.calls().client(call);
        let done = client.txn(Txn::when(own).then(op));
        let done = self.calls().in_turn(call, done).await;
        done.map_err(|error| failed(call, &error))
    }

    /// Gives leadership up. One that is lost is given up already.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn resign_from(
        &self,
        call: &CallLimits,
        ResignRequest { leader }: ResignRequest,
    ) -> Result<ResignResponse, Status> {
        let leader = named(leader)?;
        let (keeps_history, tells_previous) = (true, false);
        let del = TxnOp::Del { key: leader.key.clone(), keeps_history, tells_previous };
        let done = self.if_leader(call, &leader, del).await?;
        Ok(ResignResponse { header: Some(self.headers().at(done.timestamp)) })
    }

    /// Tells who leads.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn leader_of(
        &self,
        call: &CallLimits,
        LeaderRequest { name }: LeaderRequest,
    ) -> Result<LeaderResponse, Status> {
        let name = ContestName::new(&name).map_err(|error| failed(call, &error))?;
        let range = name.range().map_err(|error| failed(call, &error))?;
        let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
        let rows = self.calls().reader(call).scan(range, options);
        let mut first: Option<KeyValue> = None;
        let at = self.each_row(call, rows, |row| {
            let Some(found) = row.found.filter(|_| name.has(&row.key)) else { return Ok(()) };
            let row = key_value(row.key, found);
            if first.as_ref().is_none_or(|first| row.create_revision < first.create_revision) {
                first = Some(row);
            }
            Ok(())
        });
        let header = Some(self.headers().at(at.await?));
        let kv = first.ok_or_else(no_leader)?;
        Ok(LeaderResponse { header, kv: Some(kv) })
    }

    /// The next leader; nobody is told when nobody leads, as in etcd.
    async fn next_leader(
        &self,
        call: &CallLimits,
        leaders: &mut Leaders,
    ) -> Result<LeaderResponse, Status> {
        loop {
            let leader = tokio::select! {
                leader = leaders.next_leader() => leader,
                () = self.stopped() => return Err(EtcdError::Stopped.into()),
            };
            match leader {
                Some(Ok(Some(leader))) => {
                    let header = Some(self.headers().at(leader.timestamp));
                    return Ok(LeaderResponse { header, kv: Some(told(leader)) });
                }
                Some(Ok(None)) => {}
                Some(Err(error)) => return Err(failed(call, &error)),
                // It ends only after an error.
                None => return Err(Status::internal("the election is not observed any more")),
            }
        }
    }
}

#[tonic::async_trait]
impl Election for EtcdServices {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn campaign(&self, request: Request<CampaignRequest>) -> Answer<CampaignResponse> {
        let call = CallLimits::of(&request)?;
        self.campaign_for(&call, request.into_inner()).await.map(Response::new)
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Answer<ProclaimResponse> {
        let call = CallLimits::of(&request)?;
        self.proclaim_value(&call, request.into_inner()).await.map(Response::new)
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Answer<LeaderResponse> {
        let call = CallLimits::of(&request)?;
        self.leader_of(&call, request.into_inner()).await.map(Response::new)
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Answer<Self::ObserveStream> {
        let call = CallLimits::of(&request)?;
        let name = request.into_inner().name;
        let place = self.place_to_wait(&call, name.len())?;
        let client = self.calls().afterwards();
        let observing = self.calls().in_turn(&call, client.observe(name)).await;
        let leaders = observing.map_err(|error| failed(&call, &error))?;
        let state = (self.clone(), call, leaders, place);
        let answers = stream::try_unfold(state, async |(etcd, call, mut leaders, place)| {
            let answer = etcd.next_leader(&call, &mut leaders).await?;
            Ok(Some((answer, (etcd, call, leaders, place))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Answer<ResignResponse> {
        let call = CallLimits::of(&request)?;
        self.resign_from(&call, request.into_inner()).await.map(Response::new)
    }
}
