//! The nine operations of the interface.

use tonic::{Request, Response, Status, Streaming};

use super::calls::Calls;
use super::gather::{Gathered, Room, gather};
use super::interface::key_value_store_server::KeyValueStore;
use super::interface::{KeyRange, KeyRequest, KeyValueRequest, KeyValueVersionReply, PutReply};
use super::policy::CallLimits;
use super::rows::{self, Replies};
use super::translate::{
    asked_version, check_key, greater, range, read_row, removed_row, replaced_row,
};
use crate::client::{ReadOptions, Written};
use crate::types::Timestamp;
use crate::wire::message::Row;

/// The service.
pub(super) struct Gateway {
    calls: Calls,
    room: Room,
}

impl Gateway {
    pub(super) fn new(calls: Calls) -> Gateway {
        Gateway { calls, room: Room::new() }
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
        let KeyRequest { key, ver } = request.into_inner();
        check_key(&key)?;
        let at = asked_version(ver);
        let asked = key.clone();
        let got = self.calls.request(move |client| client.read(&asked, newest_or(at))).await?;
        let row = Row { key: key.into(), value: got.value, timestamp: got.timestamp };
        Ok(Response::new(read_row(row, at)?))
    }

    async fn get_range(&self, request: Request<KeyRange>) -> Answer<Self::GetRangeStream> {
        let call = CallLimits::of(&request);
        let (from, to, at) = range(request.into_inner())?;
        let rows =
            self.calls.request(move |client| client.range(&from, &to, newest_or(at))).await?;
        let translate = move |row| read_row(row, at);
        Ok(Response::new(rows::stream(self.calls.clone(), rows, None, call, translate)))
    }

    async fn get_all(&self, request: Request<Streaming<KeyRequest>>) -> Answer<Self::GetAllStream> {
        let call = CallLimits::of(&request);
        let Gathered { items, room } = self.gather_keys(request).await?;
        let at = items.iter().map(|item| asked_version(item.ver)).fold(None, greater);
        let keys = keys(items);
        let rows = self.calls.request(move |client| client.get_all(keys, newest_or(at))).await?;
        let translate = move |row| read_row(row, at);
        Ok(Response::new(rows::stream(self.calls.clone(), rows, room, call, translate)))
    }

    async fn put(&self, request: Request<KeyValueRequest>) -> Answer<PutReply> {
        let KeyValueRequest { key, val } = request.into_inner();
        check_key(&key)?;
        let written_key = key.clone();
        let written = self.calls.request(move |client| client.replace(&written_key, &val)).await?;
        let ver = written.timestamp;
        Ok(Response::new(replaced_row(previous(key, written), ver)))
    }

    async fn put_all(
        &self,
        request: Request<Streaming<KeyValueRequest>>,
    ) -> Answer<Self::PutAllStream> {
        let call = CallLimits::of(&request);
        let measure =
            |item: &KeyValueRequest| check_key(&item.key).map(|()| item.key.len() + item.val.len());
        let Gathered { items, room } = gather(&self.room, request.into_inner(), measure).await?;
        if items.is_empty() {
            return Ok(Response::new(nothing()));
        }
        let pairs: Vec<_> = items.into_iter().map(|item| (item.key, item.val)).collect();
        let written = self.calls.request(move |client| client.put_all(pairs)).await?;
        let ver = written.timestamp;
        let translate = move |row| Ok(replaced_row(row, ver));
        Ok(Response::new(rows::stream(self.calls.clone(), written.rows, room, call, translate)))
    }

    async fn del(&self, request: Request<KeyRequest>) -> Answer<KeyValueVersionReply> {
        let key = request.into_inner().key;
        check_key(&key)?;
        let removed_key = key.clone();
        let written = self.calls.request(move |client| client.del(&removed_key)).await?;
        Ok(Response::new(removed_row(previous(key, written))))
    }

    async fn del_range(&self, request: Request<KeyRange>) -> Answer<Self::DelRangeStream> {
        let call = CallLimits::of(&request);
        let (from, to, _) = range(request.into_inner())?;
        let written = self.calls.request(move |client| client.del_range(&from, &to)).await?;
        let translate = |row| Ok(removed_row(row));
        Ok(Response::new(rows::stream(self.calls.clone(), written.rows, None, call, translate)))
    }

    async fn del_all(&self, request: Request<Streaming<KeyRequest>>) -> Answer<Self::DelAllStream> {
        let call = CallLimits::of(&request);
        let Gathered { items, room } = self.gather_keys(request).await?;
        if items.is_empty() {
            return Ok(Response::new(nothing()));
        }
        let keys = keys(items);
        let written = self.calls.request(move |client| client.del_all(keys)).await?;
        let translate = |row| Ok(removed_row(row));
        Ok(Response::new(rows::stream(self.calls.clone(), written.rows, room, call, translate)))
    }

    async fn trim(&self, request: Request<KeyRequest>) -> Answer<KeyValueVersionReply> {
        let key = request.into_inner().key;
        check_key(&key)?;
        let trimmed_key = key.clone();
        let written = self.calls.request(move |client| client.trim(&trimmed_key)).await?;
        Ok(Response::new(removed_row(previous(key, written))))
    }
}

impl Gateway {
    async fn gather_keys(
        &self,
        request: Request<Streaming<KeyRequest>>,
    ) -> Result<Gathered<KeyRequest>, Status> {
        let measure = |item: &KeyRequest| check_key(&item.key).map(|()| item.key.len());
        gather(&self.room, request.into_inner(), measure).await
    }
}

/// Every read is linearizable, so that nobody can tell through which gateway a write went.
fn newest_or(at: Option<Timestamp>) -> ReadOptions {
    ReadOptions { at, linearizable: true }
}

fn keys(items: Vec<KeyRequest>) -> Vec<String> {
    items.into_iter().map(|item| item.key).collect()
}

/// What a key had before a write on it.
fn previous(key: String, written: Written) -> Row {
    let (timestamp, value) = match written.previous {
        Some(version) => (version.timestamp, Some(version.value)),
        None => (Timestamp::ZERO, None),
    };
    Row { key: key.into(), value, timestamp }
}

fn nothing<T: Send + 'static>() -> Replies<T> {
    Box::pin(futures_util::stream::empty())
}
