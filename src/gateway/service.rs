//! The nine operations of the interface, and the write under a condition beside them.

use tonic::{Request, Response, Status, Streaming};

use super::calls::Calls;
use super::gather::gather;
use super::interface::conditional::conditional_store_server::ConditionalStore;
use super::interface::conditional::{PutIfReply, PutIfRequest};
use super::interface::key_value_store_server::KeyValueStore;
use super::interface::{KeyRange, KeyRequest, KeyValueRequest, KeyValueVersionReply, PutReply};
use super::policy::CallLimits;
use super::rows::{self, Replies};
use super::translate::{
    asked_version, check_key, done, greater, no_room, range, read_row, removed_row, replaced_row,
    shown, status,
};
use crate::client::{
    Condition, ConditionalPut, Conflict, KeyRange as Range, ReadOptions, WrittenMany,
};
use crate::model::{Row, Timestamp};

/// The operations of the interface, each made of requests to the group.
pub(super) struct Gateway {
    calls: Calls,
}

impl Gateway {
    pub(super) fn new(calls: Calls) -> Gateway {
        Gateway { calls }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl KeyValueStore for Gateway {
    type GetRangeStream = Replies<KeyValueVersionReply>;
    type GetAllStream = Replies<KeyValueVersionReply>;
    type PutAllStream = Replies<PutReply>;
    type DelRangeStream = Replies<KeyValueVersionReply>;
    type DelAllStream = Replies<KeyValueVersionReply>;

    async fn get(&self, request: Request<KeyRequest>) -> Answer<KeyValueVersionReply> {
        let call = CallLimits::of(&request)?;
        let KeyRequest { key, ver } = request.into_inner();
        check_key(&key)?;
        let at = asked_version(ver);
        let client = self.calls.client(&call);
        let got = self.calls.request(&call, client.read(&key, newest_or(at))).await?;
        let row = Row { key: key.into(), found: got.found };
        Ok(Response::new(read_row(row, at)?))
    }

    async fn get_range(&self, request: Request<KeyRange>) -> Answer<Self::GetRangeStream> {
        let call = CallLimits::of(&request)?;
        let (from, to, at) = range(request.into_inner())?;
        let range = between(&from, &to)?;
        let rows = self.calls.reader(&call).scan(range, newest_or(at));
        let translate = move |row| read_row(row, at);
        Ok(Response::new(rows::of_read(self.calls.clone(), rows, call, translate)))
    }

    async fn get_all(&self, request: Request<Streaming<KeyRequest>>) -> Answer<Self::GetAllStream> {
        let call = CallLimits::of(&request)?;
        let items = gather_keys(request).await?;
        let at = items.iter().map(|item| asked_version(item.ver)).fold(None, greater);
        let rows = self.calls.reader(&call).get_all(keys(items), newest_or(at));
        let rows = rows.map_err(|error| status(&error))?;
        let translate = move |row| read_row(row, at);
        Ok(Response::new(rows::of_read(self.calls.clone(), rows, call, translate)))
    }

    async fn put(&self, request: Request<KeyValueRequest>) -> Answer<PutReply> {
        let call = CallLimits::of(&request)?;
        let KeyValueRequest { key, val } = request.into_inner();
        check_key(&key)?;
        let client = self.calls.client(&call);
        let write = async { done(client.replace(&key, &val).await, |bytes| call.hold(bytes)) };
        let written = self.calls.request(&call, write).await?;
        let ver = written.timestamp;
        Ok(written.answer(key, |row| replaced_row(row, ver)))
    }

    async fn put_all(
        &self,
        request: Request<Streaming<KeyValueRequest>>,
    ) -> Answer<Self::PutAllStream> {
        let call = CallLimits::of(&request)?;
        let measure =
            |item: &KeyValueRequest| check_key(&item.key).map(|()| item.key.len() + item.val.len());
        let items = gather(request, measure).await?;
        if items.is_empty() {
            return Ok(Response::new(nothing()));
        }
        let pairs: Vec<_> = items.into_iter().map(|item| (item.key, item.val)).collect();
        let client = self.calls.writer(&call, Some(pairs.len()));
        let WrittenMany { timestamp: ver, rows, .. } =
            self.calls.request(&call, client.put_all(pairs)).await?;
        let translate = move |row| replaced_row(row, ver);
        Ok(Response::new(rows::of_write(self.calls.clone(), rows, ver, call, translate)))
    }

    async fn del(&self, request: Request<KeyRequest>) -> Answer<KeyValueVersionReply> {
        let call = CallLimits::of(&request)?;
        let key = request.into_inner().key;
        check_key(&key)?;
        let client = self.calls.client(&call);
        let remove = async { done(client.del(&key).await, |bytes| call.hold(bytes)) };
        let written = self.calls.request(&call, remove).await?;
        Ok(written.answer(key, removed_row))
    }

    async fn del_range(&self, request: Request<KeyRange>) -> Answer<Self::DelRangeStream> {
        let call = CallLimits::of(&request)?;
        let (from, to, _) = range(request.into_inner())?;
        let client = self.calls.writer(&call, None);
        let WrittenMany { timestamp: ver, rows, .. } =
            self.calls.request(&call, client.del_scan(between(&from, &to)?)).await?;
        Ok(Response::new(rows::of_write(self.calls.clone(), rows, ver, call, removed_row)))
    }

    async fn del_all(&self, request: Request<Streaming<KeyRequest>>) -> Answer<Self::DelAllStream> {
        let call = CallLimits::of(&request)?;
        let items = gather_keys(request).await?;
        if items.is_empty() {
            return Ok(Response::new(nothing()));
        }
        let keys = keys(items);
        let client = self.calls.writer(&call, Some(keys.len()));
        let WrittenMany { timestamp: ver, rows, .. } =
            self.calls.request(&call, client.del_all(keys)).await?;
        Ok(Response::new(rows::of_write(self.calls.clone(), rows, ver, call, removed_row)))
    }

    async fn trim(&self, request: Request<KeyRequest>) -> Answer<KeyValueVersionReply> {
        let call = CallLimits::of(&request)?;
        let key = request.into_inner().key;
        check_key(&key)?;
        let client = self.calls.client(&call);
        let trim = async { done(client.trim(&key).await, |bytes| call.hold(bytes)) };
        let written = self.calls.request(&call, trim).await?;
        Ok(written.answer(key, removed_row))
    }
}

#[tonic::async_trait]
impl ConditionalStore for Gateway {
    async fn put_if(&self, request: Request<PutIfRequest>) -> Answer<PutIfReply> {
        let call = CallLimits::of(&request)?;
        let PutIfRequest { key, val, if_ver } = request.into_inner();
        check_key(&key)?;
        let condition = if_ver.map_or(Condition::Absent, |ver| Condition::Version(Timestamp(ver)));
        let client = self.calls.client(&call);
        let write = async {
            let put = client.put_if(&key, &val, condition).await?;
            let found = match &put {
                ConditionalPut::Conflict(Conflict { found: Some(found), .. }) => found.value.len(),
                // A write that is done is told, whatever room there is.
                _ => return Ok(Some(put)),
            };
            Ok(call.hold(found).then_some(put))
        };
        let put = self.calls.request(&call, write).await?.ok_or_else(|| no_room(false))?;
        Ok(Response::new(match put {
            ConditionalPut::Stored(done) => {
                PutIfReply { stored: true, ver: done.timestamp.0, ..PutIfReply::default() }
            }
            ConditionalPut::Conflict(Conflict { found, .. }) => {
                let found = found.map(|found| (shown(found.value), found.timestamp.0));
                let (found_val, found_ver) = found.unwrap_or_default();
                PutIfReply { found_val, found_ver, ..PutIfReply::default() }
            }
        }))
    }
}

async fn gather_keys(request: Request<Streaming<KeyRequest>>) -> Result<Vec<KeyRequest>, Status> {
    gather(request, |item: &KeyRequest| check_key(&item.key).map(|()| item.key.len())).await
}

/// Every read is linearizable, so that nobody can tell through which gateway a write went.
fn newest_or(at: Option<Timestamp>) -> ReadOptions {
    ReadOptions { at, linearizable: true, facts: false }
}

fn between(from: &str, to: &str) -> Result<Range, Status> {
    Range::between(from, to).map_err(|error| status(&error))
}

fn keys(items: Vec<KeyRequest>) -> Vec<String> {
    items.into_iter().map(|item| item.key).collect()
}

fn nothing<T: Send + 'static>() -> Replies<T> {
    Box::pin(futures_util::stream::empty())
}
