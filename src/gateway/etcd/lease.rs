//! The service Lease: granted, kept alive, described and revoked.
//!
//! Times are whole seconds, as etcd has them. Whoever asks for less than [`TTL_MIN_S`] gets that,
//! as in etcd, and whoever asks for more than a group allows gets the most that it does: the answer
//! says what was granted.
//!
//! A stream of keep-alives asks for one lease after the other, and reads the next request when the
//! one before is answered: so what it may make the gateway hold does not depend on how many a
//! client sends. It has no time of its own and ends with its client.

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status, Streaming};

use super::super::interface::etcd::etcdserverpb::lease_server::Lease;
use super::super::interface::etcd::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use super::super::policy::CallLimits;
use super::errors::{EtcdError, failed, no_room};
use super::{Answer, EtcdServices, overlong};
use crate::client::{LeaseId, ReadOptions};
use crate::model::LEASE_TTL_MAX;

/// The shortest time of a lease: what etcd grants at its usual election timeout.
const TTL_MIN_S: i64 = 2;
/// A longer time is refused, as by etcd.
const TTL_MAX_S: i64 = 9_000_000_000;
/// Bytes that a lease takes up in a list of all.
const LISTED_LEASE_BYTES: usize = 64;

/// The lease of an id; `None` for 0, which stands for none.
pub(super) fn lease_id(id: i64) -> Option<LeaseId> {
    // Ids are 64 bits, of which etcd shows one as a sign.
    Some(LeaseId(id as u64)).filter(|lease| lease.0 != 0)
}

/// How long a lease is granted for, if so many seconds are asked for.
fn granted_ttl(seconds: i64) -> Result<Duration, Status> {
    match seconds {
        ..TTL_MIN_S => Ok(Duration::from_secs(TTL_MIN_S as u64)),
        TTL_MIN_S..=TTL_MAX_S => Ok(Duration::from_secs(seconds as u64).min(LEASE_TTL_MAX)),
        _ => Err(EtcdError::LeaseTtlTooLarge.into()),
    }
}

impl EtcdServices {
    /// Grants a lease.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn grant_lease(
        &self,
        call: &CallLimits,
        LeaseGrantRequest { ttl, id }: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        let ttl = granted_ttl(ttl)?;
        let client = self.calls().client(call);
        let granted = self.calls().in_turn(call, client.grant_lease(ttl, lease_id(id))).await;
        let granted = granted.map_err(|error| failed(call, &error))?;
        Ok(LeaseGrantResponse {
            header: Some(self.headers().at(granted.timestamp)),
            id: granted.id.0 as i64,
            ttl: granted.ttl.as_secs() as i64,
            error: String::new(),
        })
    }

    /// Ends a lease, and deletes its keys.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn revoke_lease(
        &self,
        call: &CallLimits,
        LeaseRevokeRequest { id }: LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, Status> {
        let lease = lease_id(id).ok_or(EtcdError::LeaseNotFound)?;
        let client = self.calls().client(call);
        let revoked = self.calls().in_turn(call, client.revoke_lease(lease)).await;
        let revoked = revoked.map_err(|error| failed(call, &error))?;
        let at = revoked.ok_or(EtcdError::LeaseNotFound)?;
        Ok(LeaseRevokeResponse { header: Some(self.headers().at(at)) })
    }

    /// Gives a lease its whole time again; no time tells that there is no such lease.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn keep_lease_alive(
        &self,
        call: &CallLimits,
        LeaseKeepAliveRequest { id }: LeaseKeepAliveRequest,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        let mut left = None;
        if let Some(lease) = lease_id(id) {
            let client = self.calls().client(call);
            let kept = self.calls().in_turn(call, client.keep_alive([lease])).await;
            left = kept.map_err(|error| failed(call, &error))?.into_iter().next().flatten();
        }
        // It has its whole time, which is whole seconds, but for what has passed since.
        let ttl = left.map_or(0, |left| left.as_millis().div_ceil(1000) as i64);
        Ok(LeaseKeepAliveResponse { header: Some(self.headers().now()), id, ttl })
    }

    /// Describes a lease.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn describe_lease(
        &self,
        call: &CallLimits,
        LeaseTimeToLiveRequest { id, keys: wants_keys }: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        let mut shown = None;
        if let Some(lease) = lease_id(id) {
            let client = self.calls().client(call);
            let asked = self.calls().in_turn(call, client.lease_shown(lease)).await;
            shown = asked.map_err(|error| failed(call, &error))?;
        }
        let header = Some(self.headers().now());
        let Some(shown) = shown else {
            return Ok(LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() });
        };
        let mut keys = Vec::new();
        if wants_keys {
            let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
            let rows = self.calls().reader(call).lease_keys(shown.name.id, options).keys_only();
            let mut held = 0;
            self.each_row(call, rows, |row| {
                held += row.key.len() + LISTED_LEASE_BYTES;
                keys.push(row.key);
                if call.hold(held) { Ok(()) } else { Err(no_room()) }
            })
            .await?;
        }
        let seconds = |ms: u64| (ms / 1000) as i64;
        let (ttl, granted_ttl) = (seconds(shown.left_ms), seconds(shown.ttl_ms));
        Ok(LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys })
    }

    /// Lists all leases.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn list_leases(
        &self,
        call: &CallLimits,
    ) -> Result<LeaseLeasesResponse, Status> {
        let client = self.calls().client(call);
        let leases = self.calls().in_turn(call, client.leases()).await;
        let leases = leases.map_err(|error| failed(call, &error))?;
        if !call.hold(leases.len() * LISTED_LEASE_BYTES) {
            return Err(no_room());
        }
        let leases = leases.iter().map(|lease| LeaseStatus { id: lease.name.id.0 as i64 });
        let header = Some(self.headers().now());
        Ok(LeaseLeasesResponse { header, leases: leases.collect() })
    }

    /// The next answer of a stream of keep-alives; `None` when its client has ended it.
    async fn next_kept_alive(
        &self,
        call: &CallLimits,
        requests: &mut Streaming<LeaseKeepAliveRequest>,
    ) -> Result<Option<LeaseKeepAliveResponse>, Status> {
        let request = tokio::select! {
            request = requests.message() => request.map_err(overlong)?,
            () = self.stopped() => return Err(EtcdError::Stopped.into()),
        };
        match request {
            Some(request) => self.keep_lease_alive(call, request).await.map(Some),
            None => Ok(None),
        }
    }
}

#[tonic::async_trait]
impl Lease for EtcdServices {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        let call = CallLimits::of(&request)?;
        self.grant_lease(&call, request.into_inner()).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Answer<LeaseRevokeResponse> {
        let call = CallLimits::of(&request)?;
        self.revoke_lease(&call, request.into_inner()).await.map(Response::new)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let call = CallLimits::of(&request)?;
        let state = (self.clone(), call, request.into_inner());
        let answers = stream::try_unfold(state, async |(etcd, call, mut requests)| {
            let answer = etcd.next_kept_alive(&call, &mut requests).await?;
            Ok(answer.map(|answer| (answer, (etcd, call, requests))))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        let call = CallLimits::of(&request)?;
        self.describe_lease(&call, request.into_inner()).await.map(Response::new)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Answer<LeaseLeasesResponse> {
        let call = CallLimits::of(&request)?;
        self.list_leases(&call).await.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_are_raised_long_ones_cut_and_absurd_ones_refused() {
        let most = LEASE_TTL_MAX.as_secs();
        for (asked, granted) in [(-5, 2), (0, 2), (1, 2), (2, 2), (60, 60), (9_000_000_000, most)] {
            assert_eq!(granted_ttl(asked).unwrap().as_secs(), granted, "{asked}");
        }
        let refused = granted_ttl(9_000_000_001).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::OutOfRange);
        assert_eq!(refused.message(), "etcdserver: too large lease TTL");
    }

    #[test]
    fn an_id_keeps_its_bits() {
        assert_eq!(lease_id(0), None);
        assert_eq!(lease_id(7), Some(LeaseId(7)));
        assert_eq!(lease_id(-1), Some(LeaseId(u64::MAX)));
    }
}
