//! Carrying out a program at both sides.

use acervo::gateway::interface::etcd::etcdserverpb::{
    DeleteRangeRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveResponse, PutRequest, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchResponse,
};
use acervo::gateway::interface::etcd::mvccpb::Event;
use acervo::model::LEASE_TTL_MAX;
use bytes::Bytes;
use futures_util::stream;
use tonic::Status;

use super::exceptions::{
    ANSWER_OF_THE_GONE, HEADERS_WITHIN, ID_OF_THE_GONE, WHICH_IS_MISSING, even_answer_of_the_gone,
    even_headers_within, is_either_missing, not_asked, only_refused,
};
use super::program::{Call, Draw, Known};
use super::sides::{Side, Sides, plain, same};
use super::watches::{WatchStream, Watched, in_order};
use crate::site::waiting;

/// Not among the keys that programs use.
const MARK: &str = "~";
/// A lease's time is told in whole seconds, and passes while a program runs.
const TTL_SLACK_S: i64 = 600;

/// Calls both sides at once.
macro_rules! call {
    ($run:ident, $service:ident, $method:ident, $request:expr) => {{
        let [mut acervo, mut etcd] = [$run.sides.acervo.$service(), $run.sides.etcd.$service()];
        let (of_acervo, of_etcd) =
            ($run.sides.acervo.asked($request), $run.sides.etcd.asked($request));
        let (acervo, etcd) =
            tokio::join!(acervo.$method(waiting(of_acervo)), etcd.$method(waiting(of_etcd)),);
        (plain(acervo), plain(etcd))
    }};
}

/// A program that runs.
pub struct Run<'a> {
    sides: &'a mut Sides,
    known: Known,
    witnesses: [WatchStream; 2],
    streams: [WatchStream; 2],
    watched: Vec<Watched>,
    /// Ids of watches that have ended because their past is compacted.
    gone: Vec<i64>,
    /// All events of the program so far.
    history: Vec<Event>,
    /// What was asked so far.
    pub asked: Vec<Call>,
}

impl<'a> Run<'a> {
    /// Begins with empty stores.
    pub async fn begin(sides: &'a mut Sides) -> Result<Run<'a>, String> {
        for side in sides.both() {
            empty(side).await.map_err(|status| format!("{}: {status}", side.name))?;
        }
        let witnesses = [WatchStream::of(&sides.acervo), WatchStream::of(&sides.etcd)];
        let streams = [WatchStream::of(&sides.acervo), WatchStream::of(&sides.etcd)];
        let known = Known { newest: 1, ..Known::default() };
        let (watched, gone, history, asked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut run = Run { sides, known, witnesses, streams, watched, gone, history, asked };
        let all = WatchCreateRequest {
            key: Bytes::from_static(&[0]),
            range_end: Bytes::from_static(&[0]),
            start_revision: 1,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let [of_acervo, of_etcd] = &mut run.witnesses;
        for (stream, side) in [(of_acervo, &run.sides.acervo), (of_etcd, &run.sides.etcd)] {
            stream.create(side.asked(&all));
            stream.said(side).await?;
        }
        Ok(run)
    }

    /// Carries out so many calls.
    pub async fn calls(&mut self, draw: &mut Draw, count: usize) -> Result<(), String> {
        for _ in 0..count {
            self.known.newest = self.sides.etcd.newest();
            let call = draw.call(self.known);
            self.asked.push(call.clone());
            self.call(call).await?;
        }
        self.asked.push(Call::CompareWatches);
        self.compare_watches().await
    }

    async fn call(&mut self, call: Call) -> Result<(), String> {
        match call {
            Call::Range(request) => {
                let (acervo, etcd) = call!(self, kv, range, &request);
                self.sides.compare(acervo, etcd, |_, _| ())?;
            }
            Call::Put(request) => {
                let (acervo, etcd) = call!(self, kv, put, &request);
                self.sides.compare(acervo, etcd, |_, _| ())?;
            }
            Call::Delete(request) => {
                let (acervo, etcd) = call!(self, kv, delete_range, &request);
                self.sides.compare(acervo, etcd, |_, _| ())?;
            }
            Call::Txn(request) => self.txn(&request).await?,
            Call::Compact(request) => {
                // What watches have not been shown they would not be shown any more.
                self.compare_watches().await?;
                if self.watched.iter().any(|watch| watch.may_look_below(request.revision)) {
                    return Ok(());
                }
                let (acervo, etcd) = call!(self, kv, compact, &request);
                if self.sides.compare(acervo, etcd, |_, _| ())?.is_some() {
                    self.known.compacted = self.known.compacted.max(request.revision);
                }
            }
            Call::Grant(request) => {
                let (acervo, etcd) = call!(self, lease, lease_grant, &request);
                if let (0, Ok(acervo), Ok(etcd)) = (request.id, &acervo, &etcd) {
                    self.sides.acervo.add_lease(acervo.id);
                    self.sides.etcd.add_lease(etcd.id);
                    self.known.servers_leases += 1;
                }
                let mut is_capped = false;
                self.sides.compare(acervo, etcd, |acervo, etcd| {
                    is_capped = cap(acervo.ttl, &mut etcd.ttl);
                })?;
                if is_capped {
                    self.sides.except("longest-ttl");
                }
            }
            Call::Revoke(request) => {
                let (acervo, etcd) = call!(self, lease, lease_revoke, &request);
                self.sides.compare(acervo, etcd, |_, _| ())?;
            }
            Call::TimeToLive(request) => {
                let (acervo, etcd) = call!(self, lease, lease_time_to_live, &request);
                self.sides.compare(acervo, etcd, even_times)?;
            }
            Call::KeepAlive(request) => {
                let acervo = keep_alive(&self.sides.acervo, &request).await;
                let etcd = keep_alive(&self.sides.etcd, &request).await;
                self.sides.compare(acervo, etcd, |acervo, etcd| {
                    cap(acervo.ttl, &mut etcd.ttl);
                })?;
            }
            Call::Leases(request) => {
                let (acervo, etcd) = call!(self, lease, lease_leases, &request);
                self.sides.compare(acervo, etcd, |acervo, etcd| {
                    // Etcd's are in the order in which they end, ours in that of their ids.
                    acervo.leases.sort_by_key(|lease| lease.id);
                    etcd.leases.sort_by_key(|lease| lease.id);
                })?;
            }
            Call::Watch(request) => self.watch(request).await?,
            Call::CancelWatch(request) => self.cancel_watch(request).await?,
            Call::CompareWatches => self.compare_watches().await?,
        }
        Ok(())
    }

    async fn txn(&mut self, request: &TxnRequest) -> Result<(), String> {
        if let Some(exception) = not_asked(request) {
            self.sides.except(exception);
            return Ok(());
        }
        let of_acervo = self.sides.acervo.asked(request);
        let acervo = plain(self.sides.acervo.kv().txn(waiting(of_acervo)).await);
        if let Some(exception) = only_refused(request, &acervo, self.known) {
            self.sides.except(exception);
            return Ok(());
        }
        let of_etcd = self.sides.etcd.asked(request);
        let etcd = plain(self.sides.etcd.kv().txn(waiting(of_etcd)).await);
        if is_either_missing(request, &acervo, &etcd) {
            self.sides.except(WHICH_IS_MISSING);
            return Ok(());
        }
        let mut is_evened = false;
        self.sides.compare(acervo, etcd, |acervo, etcd| {
            is_evened = even_headers_within(acervo, etcd);
        })?;
        if is_evened {
            self.sides.except(HEADERS_WITHIN);
        }
        Ok(())
    }

    async fn watch(&mut self, request: WatchCreateRequest) -> Result<(), String> {
        if self.gone.contains(&request.watch_id) {
            self.sides.except(ID_OF_THE_GONE);
            return Ok(());
        }
        let create = |stream: &WatchStream, side: &Side| stream.create(side.asked(&request));
        let (answer, _) = self.asked_and_said(create).await?;
        if answer.canceled {
            return Ok(());
        }
        if request.start_revision > 0 && request.start_revision < self.known.compacted {
            // The past that it begins with is gone.
            self.gone.push(answer.watch_id);
            let is_evened = self.asked_and_said(|_, _| ()).await?.1;
            if is_evened {
                self.sides.except(ANSWER_OF_THE_GONE);
            }
            return Ok(());
        }
        self.watched.push(Watched::of(answer.watch_id, request, self.sides.etcd.newest()));
        Ok(())
    }

    async fn cancel_watch(&mut self, request: WatchCancelRequest) -> Result<(), String> {
        if self.gone.contains(&request.watch_id) {
            self.sides.except(ID_OF_THE_GONE);
            return Ok(());
        }
        self.compare_watches().await?;
        let before = self.watched.len();
        self.watched.retain(|watch| watch.id != request.watch_id);
        if self.watched.len() == before {
            // Nothing is said of one that there is not.
            self.streams.iter().for_each(|stream| stream.cancel(request));
            return Ok(());
        }
        self.asked_and_said(|stream, _| stream.cancel(request)).await.map(drop)
    }

    /// Asks both streams, and compares what both say next; whether an exception was made.
    async fn asked_and_said(
        &mut self,
        ask: impl Fn(&WatchStream, &Side),
    ) -> Result<(WatchResponse, bool), String> {
        let [of_acervo, of_etcd] = &mut self.streams;
        ask(of_acervo, &self.sides.acervo);
        ask(of_etcd, &self.sides.etcd);
        let acervo = of_acervo.said(&self.sides.acervo).await?;
        let mut etcd = of_etcd.said(&self.sides.etcd).await?;
        let is_evened = even_answer_of_the_gone(&acervo, &mut etcd);
        same(&acervo, &etcd).map(|()| (acervo, is_evened))
    }

    /// Writes a mark, waits until both sides have shown it, and compares what all watches were
    /// shown until then.
    async fn compare_watches(&mut self) -> Result<(), String> {
        let mark = PutRequest { key: MARK.into(), ..PutRequest::default() };
        let (acervo, etcd) = call!(self, kv, put, &mark);
        self.sides.compare(acervo, etcd, |_, _| ())?;
        let newest = self.sides.etcd.newest();
        let [of_acervo, of_etcd] = &mut self.witnesses;
        let mut acervo = of_acervo.history(&self.sides.acervo, newest).await?;
        let mut etcd = of_etcd.history(&self.sides.etcd, newest).await?;
        in_order(&mut acervo);
        in_order(&mut etcd);
        same(&acervo, &etcd).map_err(|why| format!("all changes\n{why}"))?;
        self.history.extend(acervo);
        for watch in &mut self.watched {
            let mut expected = watch.expected(&self.history, newest);
            in_order(&mut expected);
            let count = expected.len();
            let [of_acervo, of_etcd] = &mut self.streams;
            let mut etcd = of_etcd.events(&self.sides.etcd, watch.id, count).await?;
            let mut acervo = of_acervo.events(&self.sides.acervo, watch.id, count).await?;
            in_order(&mut acervo);
            in_order(&mut etcd);
            let what = |why| format!("{watch:?}\n{why}");
            same(&acervo, &etcd).map_err(what)?;
            same(&acervo, &expected).map_err(|why| format!("not as expected: {watch:?}\n{why}"))?;
        }
        let [of_acervo, of_etcd] = &mut self.streams;
        of_acervo.drain(&self.sides.acervo).await?;
        of_etcd.drain(&self.sides.etcd).await
    }
}

/// Leaves nothing of what was before, so that a program does not depend on it; its first write is
/// of rank 1.
async fn empty(side: &mut Side) -> Result<(), Status> {
    let leases = side.lease().lease_leases(waiting(LeaseLeasesRequest {})).await?.into_inner();
    for lease in leases.leases {
        side.lease().lease_revoke(waiting(LeaseRevokeRequest { id: lease.id })).await?;
    }
    let all = || Bytes::from_static(&[0]);
    let delete = DeleteRangeRequest { key: all(), range_end: all(), prev_kv: false };
    side.kv().delete_range(waiting(delete)).await?;
    let mark = PutRequest { key: MARK.into(), ..PutRequest::default() };
    let put = side.kv().put(waiting(mark)).await?.into_inner();
    let revision = put.header.map_or(0, |header| header.revision);
    side.begin(revision);
    side.told = revision;
    Ok(())
}

async fn keep_alive(
    side: &Side,
    request: &LeaseKeepAliveRequest,
) -> Result<LeaseKeepAliveResponse, Status> {
    let requests = stream::iter([side.asked(request)]);
    let mut answers = side.lease().lease_keep_alive(waiting(requests)).await?.into_inner();
    answers.message().await?.ok_or_else(|| Status::internal("no answer"))
}

/// "A longer one is granted 366 days, and the answer says so": whether that is the difference,
/// which is taken away then.
fn cap(acervo: i64, etcd: &mut i64) -> bool {
    let most = LEASE_TTL_MAX.as_secs() as i64;
    let is_capped = acervo == most && *etcd > most;
    if is_capped {
        *etcd = most;
    }
    is_capped
}

/// Takes away what time alone makes different.
fn even_times(acervo: &mut LeaseTimeToLiveResponse, etcd: &mut LeaseTimeToLiveResponse) {
    for answer in [&mut *acervo, &mut *etcd] {
        let passed = answer.granted_ttl - answer.ttl;
        if answer.granted_ttl > 0 && (0..TTL_SLACK_S).contains(&passed) {
            answer.ttl = answer.granted_ttl;
        }
        // Etcd tells them as its map has them.
        answer.keys.sort_unstable();
    }
    cap(acervo.ttl, &mut etcd.ttl);
    cap(acervo.granted_ttl, &mut etcd.granted_ttl);
}
