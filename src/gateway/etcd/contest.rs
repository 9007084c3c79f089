//! What locks and elections have in common: a key NAME/LEASE that waits for its turn, by the recipe
//! that etcd's `concurrency` package and the client library follow ([`contender`]).
//!
//! Unlike the library's own locks these go with a lease of the caller, who keeps it alive. Whoever
//! names none gets one of [`OWN_LEASE_TTL`], which is kept alive while its turn is waited for, and
//! not any more once it has come: as in etcd.
//!
//! **A call that is given up leaves no key behind.** The lease and the key are made by a task of
//! their own, which goes on when the call is dropped, and what it hands over ([`ContestPlace`])
//! takes itself back when it is dropped before it was kept. Both are done in the turn of the call's
//! connection, and keep the call's place among those that wait ([`waiting`](super::waiting)): a
//! call that was given up before its turn has come has done nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, interval_at};
use tonic::Status;

use super::super::calls::Calls;
use super::super::policy::CallLimits;
use super::super::turns::{RequestPlace, Usage};
use super::EtcdServices;
use super::errors::{EtcdError, failed};
use super::lease::lease_id;
use super::waiting::WaitingPlace;
use crate::client::contender::{Contender, ContestName, Step};
use crate::client::{
    AsyncClient, ClientError, Comparison, KeyRange, LeaseId, ReadOptions, Timestamp, Txn, TxnOp,
    TxnOutput, WatchOptions, entered_with,
};

/// How long a lease lives that a lock or a campaign without one is given, as in etcd.
const OWN_LEASE_TTL: Duration = Duration::from_secs(60);
/// How often it is kept alive while its turn is waited for.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A key that waits for its turn, or has it. Dropped before it was [kept](ContestPlace::keep), it
/// is taken back.
pub(super) struct ContestPlace {
    client: AsyncClient,
    pub(super) key: Bytes,
    pub(super) lease: LeaseId,
    /// The version with which the key came into being.
    pub(super) fence: Timestamp,
    /// The value that the key had already, put by an earlier call of the same lease.
    pub(super) earlier: Option<Bytes>,
    /// The lease is only this call's.
    owns_lease: bool,
    is_kept: bool,
    /// In whose turn it is taken back.
    turns: ContestTurns,
    /// Kept until that is done; `None` once it is under way.
    waiting: Option<WaitingPlace>,
}

/// The turns of one call's connection, which outlive the call.
#[derive(Clone)]
struct ContestTurns {
    calls: Calls,
    usage: Usage,
}

impl ContestTurns {
    async fn next(&self) -> RequestPlace {
        self.calls.turn(&self.usage).await
    }
}

impl ContestPlace {
    /// It has come, and its caller is told.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for ContestPlace {
    fn drop(&mut self) {
        // A key that was there before is an earlier call's.
        if self.is_kept || self.earlier.is_some() {
            return;
        }
        let (client, key, fence) = (self.client.clone(), self.key.clone(), self.fence);
        let lease = self.owns_lease.then_some(self.lease);
        let (turns, waiting) = (self.turns.clone(), self.waiting.take());
        // Without a runtime the process ends, and the lease with its time.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let _place = waiting;
            let _turn = turns.next().await;
            // Where nobody answers, the lease ends by itself.
            let _ = match lease {
                Some(lease) => client.revoke_lease(lease).await.map(drop),
                None => {
                    let (keeps_history, tells_previous) = (true, false);
                    let del = TxnOp::Del { key: key.clone(), keeps_history, tells_previous };
                    let own = Comparison::created(&key).equals(fence);
                    client.txn(Txn::when(own).then(del)).await.map(drop)
                }
            };
        });
    }
}

impl EtcdServices {
    /// Waits until nobody of the name is before the caller; at which version that was seen.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(super) async fn contend(
        &self,
        call: &CallLimits,
        name: &[u8],
        value: &Bytes,
        lease: i64,
    ) -> Result<(ContestPlace, Timestamp), Status> {
        let waiting = self.place_to_wait(call, name.len() + value.len())?;
        let name = ContestName::new(name).map_err(|error| failed(call, &error))?;
        let name = Arc::new(name);
        let lease = lease_id(lease);
        let place = self.enter(call, Arc::clone(&name), value.clone(), lease, waiting).await?;
        let waiting = self.wait_for_turn(call, &name, &place);
        let lost = async {
            match place.owns_lease {
                true => self.keep_own_alive(call, place.lease).await,
                false => std::future::pending().await,
            }
        };
        let at = tokio::select! {
            at = waiting => at?,
            () = lost => return Err(EtcdError::LeaseNotFound.into()),
            () = self.stopped() => return Err(EtcdError::Stopped.into()),
        };
        Ok((place, at))
    }

    /// Puts the key, with a lease of its own if there is none.
    async fn enter(
        &self,
        call: &CallLimits,
        name: Arc<ContestName>,
        value: Bytes,
        lease: Option<LeaseId>,
        waiting: WaitingPlace,
    ) -> Result<ContestPlace, Status> {
        let (client, owns_lease) = (self.calls().afterwards().clone(), lease.is_none());
        let turns = ContestTurns { calls: self.calls().clone(), usage: call.usage().clone() };
        let (mut entered, told) = oneshot::channel();
        tokio::spawn(async move {
            let turn = tokio::select! {
                biased;
                () = entered.closed() => return,
                turn = turns.next() => turn,
            };
            let entering = async {
                let lease = match lease {
                    Some(lease) => lease,
                    None => client.grant_lease(OWN_LEASE_TTL, None).await?.id,
                };
                let txn = Contender::new(ContestName::clone(&name), lease).entering(&value);
                let done = client.txn(txn).await?;
                let (fence, found) = entered_with(&done, lease);
                if found != Some(lease) {
                    // Somebody else's key, which would not go with the lease.
                    return Err(ClientError::ContenderGone(name.to_string()));
                }
                let earlier = match done.results.first() {
                    Some(TxnOutput::Get(Some(found))) => Some(found.value.clone()),
                    _ => None,
                };
                let (key, is_kept, waiting) = (name.key(lease), false, Some(waiting));
                Ok(ContestPlace {
                    client,
                    key,
                    lease,
                    fence,
                    earlier,
                    owns_lease,
                    is_kept,
                    turns,
                    waiting,
                })
            };
            let place = entering.await;
            drop(turn);
            // Where nobody waits any more it is dropped, and takes itself back.
            let _ = entered.send(place);
        });
        match told.await {
            Ok(entered) => entered.map_err(|error| failed(call, &error)),
            Err(_) => Err(Status::internal("the task that was to put the key has ended")),
        }
    }

    async fn wait_for_turn(
        &self,
        call: &CallLimits,
        name: &ContestName,
        place: &ContestPlace,
    ) -> Result<Timestamp, Status> {
        let mut contender = Contender::new(name.clone(), place.lease);
        let mut step = contender.entered(place.fence, Some(place.lease));
        let mut at = place.fence;
        loop {
            step = match step {
                Step::Look => {
                    let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
                    let range = name.range().map_err(|error| failed(call, &error))?;
                    let rows = self.calls().reader(call).scan(range, options).keys_only();
                    let row = |row| {
                        contender.row(&row);
                        Ok(())
                    };
                    at = self.each_row(call, rows, row).await?;
                    contender.looked(at)
                }
                Step::Watch { key, after } => {
                    let ahead = self.end_of(&mut contender, &key, after).await;
                    ahead.map_err(|error| failed(call, &error))?
                }
                Step::Hold { .. } => return Ok(at),
                // Its lease has ended, or somebody has deleted its key.
                Step::Lose => return Err(Status::unknown("mutex: session is expired")),
            };
        }
    }

    /// Watches the key that is ahead until something follows from it.
    async fn end_of(
        &self,
        contender: &mut Contender,
        key: &Bytes,
        after: Timestamp,
    ) -> Result<Step, ClientError> {
        let options = WatchOptions { after: Some(after), ..WatchOptions::default() };
        let range = KeyRange::between(key, key)?;
        let mut watch = self.calls().afterwards().watch(range, options).await?;
        loop {
            match watch.next_event().await {
                Some(Ok(event)) => {
                    if let Some(step) = contender.ahead(&event) {
                        return Ok(step);
                    }
                }
                Some(Err(error)) => return Err(error),
                // It ends only after an error.
                None => return Err(ClientError::Ended),
            }
        }
    }

    /// Is done when a lease is lost.
    async fn keep_own_alive(&self, call: &CallLimits, lease: LeaseId) {
        let mut due = interval_at(Instant::now() + KEEP_ALIVE_INTERVAL, KEEP_ALIVE_INTERVAL);
        loop {
            due.tick().await;
            // What failed is tried again, before the lease ends.
            let kept = self.calls().afterwards().keep_alive([lease]);
            if let Ok(left) = self.calls().in_turn(call, kept).await
                && left == [None]
            {
                return;
            }
        }
    }
}
