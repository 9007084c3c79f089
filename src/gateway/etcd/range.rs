//! Range: which keys a request means, which of them its answer shows, and reading them.
//!
//! An answer is one message, however long the range: its rows are charged to the call as they are
//! read ([`CallLimits::hold`]), and one that there is no room for ends with an error. What filters
//! leave out, and what lies behind the limit and is only counted, is not kept.

use std::cmp::Reverse;

use bytes::Bytes;
use tonic::Status;

use super::super::interface::etcd::etcdserverpb::range_request::{SortOrder, SortTarget};
use super::super::interface::etcd::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader};
use super::super::interface::etcd::mvccpb::KeyValue;
use super::super::policy::CallLimits;
use super::EtcdServices;
use super::errors::{EtcdError, failed, no_room};
use crate::client::{AsyncRows, ClientError, Facts, KeyRange, ReadOptions};
use crate::limits::KEY_BYTES_MAX;
use crate::model::{Row, Timestamp, Version};

/// What a row takes up beside its key and value, about, from when it is read until it is encoded.
const ROW_BYTES: usize = 128;
/// The greatest key that there can be. It is the same bytes for all ranges without an end.
static GREATEST_KEY: [u8; KEY_BYTES_MAX] = [0xff; KEY_BYTES_MAX];
/// Rows that are taken in one turn of a call, so that others get theirs.
const ROWS_PER_TURN: usize = 1024;

/// The keys that a request means: one, or those from its key to the last before its range's end.
/// Both ends are included, as the store has ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySpan {
    pub(super) from: Bytes,
    pub(super) to: Bytes,
}

impl KeySpan {
    /// `None` where no key is meant.
    ///
    /// # Errors
    /// There is no key, or one that no server takes.
    pub(super) fn of(key: &Bytes, range_end: &Bytes) -> Result<Option<KeySpan>, Status> {
        match key.len() {
            0 => return Err(EtcdError::KeyEmpty.into()),
            1..=KEY_BYTES_MAX => {}
            length => {
                return Err(Status::invalid_argument(ClientError::KeyTooLong(length).to_string()));
            }
        }
        let from = key.clone();
        let to = match &range_end[..] {
            [] => from.clone(),
            // All keys from this one on.
            [0] => Bytes::from_static(&GREATEST_KEY),
            end if end <= &from[..] => return Ok(None),
            end => last_before(end),
        };
        Ok(Some(KeySpan { from, to }))
    }

    /// Bytes that a span takes up beside its request, if it has this range's end.
    pub(super) fn bytes_beside(range_end: &Bytes) -> usize {
        match range_end[..] {
            [] | [0] => 0,
            _ => KEY_BYTES_MAX,
        }
    }

    /// The same for the client library.
    pub(super) fn range(&self) -> Result<KeyRange, Status> {
        // Both are keys that servers take.
        KeyRange::between(&self.from, &self.to)
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// The greatest key that there can be before `end`, which is not empty and greater than some key.
fn last_before(end: &[u8]) -> Bytes {
    if end.len() > KEY_BYTES_MAX {
        // Whatever is greater than this and less than the end is too long.
        return Bytes::copy_from_slice(&end[..KEY_BYTES_MAX]);
    }
    let mut last = end.to_vec();
    match last.pop() {
        // Nothing lies between a key and the same with a zero byte behind it.
        None | Some(0) => {}
        Some(byte) => {
            last.push(byte - 1);
            last.resize(KEY_BYTES_MAX, 0xff);
        }
    }
    last.into()
}

/// What a request wants of the keys that it means.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Rows at most; `None` for all of them.
    limit: Option<u64>,
    order: SortOrder,
    target: SortTarget,
    pub(super) keys_only: bool,
    pub(super) count_only: bool,
    min_mod: i64,
    max_mod: i64,
    min_created: i64,
    max_created: i64,
}

impl Selection {
    /// What this request wants.
    ///
    /// # Errors
    /// It is to be sorted in a way that there is not.
    pub(super) fn of(request: &RangeRequest) -> Result<Selection, Status> {
        let unknown = |_| Status::from(EtcdError::InvalidSortOption);
        Ok(Selection {
            limit: u64::try_from(request.limit).ok().filter(|limit| *limit > 0),
            order: SortOrder::try_from(request.sort_order).map_err(unknown)?,
            target: SortTarget::try_from(request.sort_target).map_err(unknown)?,
            keys_only: request.keys_only,
            count_only: request.count_only,
            min_mod: request.min_mod_revision,
            max_mod: request.max_mod_revision,
            min_created: request.min_create_revision,
            max_created: request.max_create_revision,
        })
    }

    /// How many rows are enough to know the answer, but for its count; `None` for all. One more
    /// than the limit tells whether there are more. As in etcd, a limit comes before sorting where
    /// no order is asked for.
    pub(super) fn rows_enough(&self) -> Option<u64> {
        let filters = [self.min_mod, self.max_mod, self.min_created, self.max_created];
        let in_key_order = self.order == SortOrder::None || self.target == SortTarget::Key;
        let enough = in_key_order && filters == [0; 4];
        self.limit.filter(|_| enough).map(|limit| limit.saturating_add(1))
    }

    /// Whether the last key is read first.
    pub(super) fn is_reversed(&self) -> bool {
        self.order == SortOrder::Descend && self.target == SortTarget::Key
    }

    /// Whether values are read: what is sorted by them needs them, too.
    pub(super) fn needs_values(&self) -> bool {
        !self.keys_only || self.target == SortTarget::Value
    }

    /// Whether no filter leaves a row out.
    pub(super) fn keeps(&self, row: &KeyValue) -> bool {
        let within =
            |at: i64, min: i64, max: i64| (min == 0 || at >= min) && (max == 0 || at <= max);
        within(row.mod_revision, self.min_mod, self.max_mod)
            && within(row.create_revision, self.min_created, self.max_created)
    }

    /// The answer made of rows, as they were read, that filters have kept.
    pub(super) fn answer(
        &self,
        mut kvs: Vec<KeyValue>,
        count: u64,
        header: ResponseHeader,
    ) -> RangeResponse {
        let descending = self.order == SortOrder::Descend;
        // Rows that are equal stay in the order of their keys.
        let by_number = |kvs: &mut Vec<KeyValue>, number: fn(&KeyValue) -> i64| match descending {
            false => kvs.sort_by_key(number),
            true => kvs.sort_by_key(|row| Reverse(number(row))),
        };
        match self.target {
            // They come in this order.
            SortTarget::Key => {}
            SortTarget::Version => by_number(&mut kvs, |row| row.version),
            SortTarget::Create => by_number(&mut kvs, |row| row.create_revision),
            SortTarget::Mod => by_number(&mut kvs, |row| row.mod_revision),
            SortTarget::Value if descending => {
                kvs.sort_by(|one, other| other.value.cmp(&one.value))
            }
            SortTarget::Value => kvs.sort_by(|one, other| one.value.cmp(&other.value)),
        }
        let limit = self.limit.map_or(usize::MAX, |limit| limit.try_into().unwrap_or(usize::MAX));
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if self.keys_only {
            kvs.iter_mut().for_each(|row| row.value = Bytes::new());
        }
        // A store has less than 2^63 keys.
        RangeResponse { header: Some(header), kvs, more, count: count as i64 }
    }
}

/// A version of a key as etcd tells it.
pub(super) fn key_value(key: Bytes, found: Version) -> KeyValue {
    let Version { timestamp, value, facts } = found;
    // Ranges and transactions always tell the facts.
    let fresh = Facts { created: timestamp, count: 1, lease: None };
    let Facts { created, count, lease } = facts.unwrap_or(fresh);
    KeyValue {
        key,
        create_revision: created.0,
        mod_revision: timestamp.0,
        version: count as i64,
        value,
        lease: lease.map_or(0, |lease| lease.0 as i64),
    }
}

/// The rows of an answer, which its call is charged for as they come.
pub(super) struct KeptRows<'a> {
    call: &'a CallLimits,
    /// Bytes that the call holds of these and of earlier rows.
    held: &'a mut usize,
    pub(super) kvs: Vec<KeyValue>,
}

impl<'a> KeptRows<'a> {
    pub(super) fn of(call: &'a CallLimits, held: &'a mut usize) -> KeptRows<'a> {
        KeptRows { call, held, kvs: Vec::new() }
    }

    /// Keeps one more row.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn keep(&mut self, row: KeyValue) -> Result<(), Status> {
        *self.held += row.key.len() + row.value.len() + ROW_BYTES;
        if !self.call.hold(*self.held) {
            return Err(no_room());
        }
        self.kvs.push(row);
        Ok(())
    }
}

impl EtcdServices {
    /// Reads a range; `held` counts what the call holds of it beside what it held before.
    ///
    /// # Errors
    /// What a client of etcd is told.
    pub(in crate::gateway) async fn read_range(
        &self,
        call: &CallLimits,
        request: RangeRequest,
        held: &mut usize,
    ) -> Result<RangeResponse, Status> {
        let selection = Selection::of(&request)?;
        let span = KeySpan::of(&request.key, &request.range_end)?;
        let at = self.known_revision(call, request.revision).await?;
        let Some(span) = span else {
            // Where nothing is read nothing shows that what would be is gone.
            if at.is_some() && at < self.compacted_revision(call).await? {
                return Err(EtcdError::Compacted.into());
            }
            return Ok(selection.answer(Vec::new(), 0, self.headers().now()));
        };
        let told = self.headers().told();
        let options = ReadOptions { at, linearizable: !request.serializable, facts: true };
        let read = self.read_selection(call, &selection, &span, options, held).await?;
        // A server that lags may answer from before what this client was told.
        let read = match at.is_none() && read.at < told {
            true => {
                let options = ReadOptions { linearizable: true, ..options };
                self.read_selection(call, &selection, &span, options, held).await?
            }
            false => read,
        };
        let header = match at {
            None => self.headers().at(read.at),
            Some(_) => self.headers().now(),
        };
        Ok(selection.answer(read.kvs, read.count, header))
    }

    /// As of when a request is to be read that names this revision; `None` for the newest.
    ///
    /// # Errors
    /// It lies in the future. Whether it was compacted shows when it is read.
    pub(super) async fn known_revision(
        &self,
        call: &CallLimits,
        revision: i64,
    ) -> Result<Option<Timestamp>, Status> {
        let asked = Timestamp(revision);
        if asked <= Timestamp::ZERO {
            return Ok(None);
        }
        if asked > self.headers().told() && asked > self.newest_revision(call).await? {
            return Err(EtcdError::FutureRevision.into());
        }
        Ok(Some(asked))
    }

    /// The revision below which nothing can be read any more; `None` where nothing was compacted.
    pub(super) async fn compacted_revision(
        &self,
        call: &CallLimits,
    ) -> Result<Option<Timestamp>, Status> {
        // Nothing is older than this. Whoever was told of a compaction by this gateway is not
        // answered out of a state before it.
        let oldest = ReadOptions::at(Timestamp(1));
        let client = self.calls().client(call);
        match self.calls().in_turn(call, client.read([0], oldest)).await {
            Ok(_) => Ok(None),
            Err(ClientError::Compacted { version, .. }) => Ok(Some(version)),
            Err(error) => Err(failed(call, &error)),
        }
    }

    /// A revision that is no less than that of any write that was acknowledged before. Nothing is
    /// written to find out.
    pub(super) async fn newest_revision(&self, call: &CallLimits) -> Result<Timestamp, Status> {
        let least = KeySpan { from: Bytes::from_static(&[0]), to: Bytes::from_static(&[0]) };
        let options = ReadOptions { linearizable: true, ..ReadOptions::default() };
        let rows = self.calls().reader(call).scan(least.range()?, options).keys_only();
        let newest = self.each_row(call, rows, |_| Ok(())).await?;
        self.headers().at(newest);
        Ok(newest)
    }

    async fn read_selection(
        &self,
        call: &CallLimits,
        selection: &Selection,
        span: &KeySpan,
        options: ReadOptions,
        held: &mut usize,
    ) -> Result<ReadRows, Status> {
        let (mut kept, mut count) = (KeptRows::of(call, held), 0);
        if selection.count_only {
            let (at, count) = self.count(call, span, options).await?;
            return Ok(ReadRows { at, kvs: kept.kvs, count });
        }
        let range = span.range()?;
        let range = if selection.is_reversed() { range.reversed() } else { range };
        let mut rows = self.calls().reader(call).scan(range, options);
        if !selection.needs_values() {
            rows = rows.keys_only();
        }
        let enough = selection.rows_enough();
        if let Some(enough) = enough {
            rows = rows.limit(enough);
        }
        let mut last = Bytes::new();
        let at = self
            .each_row(call, rows, |Row { key, found }| {
                let Some(found) = found else { return Ok(()) };
                count += 1;
                last = key.clone();
                let row = key_value(key, found);
                if selection.keeps(&row) { kept.keep(row) } else { Ok(()) }
            })
            .await?;
        if enough == Some(count) {
            // The last one is counted again.
            let rest = match selection.is_reversed() {
                false => KeySpan { from: last, to: span.to.clone() },
                true => KeySpan { from: span.from.clone(), to: last },
            };
            let same = ReadOptions { at: Some(at), ..ReadOptions::default() };
            let (_, others) = self.count(call, &rest, same).await?;
            count = (count + others).saturating_sub(1);
        }
        Ok(ReadRows { at, kvs: kept.kvs, count })
    }

    /// How many keys there are, and as of when.
    async fn count(
        &self,
        call: &CallLimits,
        span: &KeySpan,
        options: ReadOptions,
    ) -> Result<(Timestamp, u64), Status> {
        let rows = self.calls().reader(call).scan(span.range()?, options).keys_only();
        let mut count = 0;
        let at = self
            .each_row(call, rows, |_| {
                count += 1;
                Ok(())
            })
            .await?;
        Ok((at, count))
    }

    /// Reads rows to their end, a turn at a time; as of when they are.
    pub(super) async fn each_row(
        &self,
        call: &CallLimits,
        mut rows: AsyncRows,
        mut take: impl FnMut(Row) -> Result<(), Status> + Send,
    ) -> Result<Timestamp, Status> {
        loop {
            let turn = self.calls().in_turn(call, next_rows(&mut rows)).await;
            let some = turn.map_err(|error| failed(call, &error))?;
            let is_over = some.len() < ROWS_PER_TURN;
            some.into_iter().try_for_each(&mut take)?;
            if is_over {
                return Ok(rows.at().unwrap_or(Timestamp::ZERO));
            }
        }
    }
}

/// What was read of a range.
struct ReadRows {
    at: Timestamp,
    kvs: Vec<KeyValue>,
    /// Keys of the range, whatever was kept of them.
    count: u64,
}

/// The next rows; fewer than [`ROWS_PER_TURN`] at the end.
async fn next_rows(rows: &mut AsyncRows) -> Result<Vec<Row>, ClientError> {
    let mut some = Vec::new();
    while some.len() < ROWS_PER_TURN {
        match rows.next().await {
            Some(row) => some.push(row?),
            None => break,
        }
    }
    Ok(some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(key: &'static [u8], end: &'static [u8]) -> Option<(Bytes, Bytes)> {
        let span = KeySpan::of(&Bytes::from_static(key), &Bytes::from_static(end)).unwrap();
        span.map(|KeySpan { from, to }| (from, to))
    }

    /// The bytes of the greatest key that begins so.
    fn padded(begin: &[u8]) -> Bytes {
        let mut key = begin.to_vec();
        key.resize(KEY_BYTES_MAX, 0xff);
        key.into()
    }

    #[test]
    fn a_range_ends_with_the_last_key_before_its_end() {
        let from = |key: &'static [u8]| Bytes::from_static(key);
        assert_eq!(span(b"a", b""), Some((from(b"a"), from(b"a"))));
        assert_eq!(span(b"a", b"b"), Some((from(b"a"), padded(b"a"))));
        assert_eq!(span(b"a", b"a\0"), Some((from(b"a"), from(b"a"))));
        assert_eq!(span(b"a", b"a\0\0"), Some((from(b"a"), from(b"a\0"))));
        assert_eq!(span(b"a", b"\0"), Some((from(b"a"), padded(b""))));
        assert_eq!(span(b"\0", b"\0"), Some((from(b"\0"), padded(b""))));
        assert_eq!(span(b"\0", b"\x01"), Some((from(b"\0"), padded(b"\0"))));
        for end in [&b"a"[..], b"Z", b"\0\0"] {
            assert_eq!(span(b"a", end), None, "{end:?}");
        }
        let long = Bytes::from(vec![b'b'; KEY_BYTES_MAX + 1]);
        let to = KeySpan::of(&from(b"a"), &long).unwrap().unwrap().to;
        assert_eq!(to, long[..KEY_BYTES_MAX]);
        let endless = || KeySpan::of(&from(b"a"), &from(b"\0")).unwrap().unwrap().to;
        assert_eq!(endless().as_ptr(), endless().as_ptr(), "thousands take no more than one");
    }

    #[test]
    fn a_key_that_no_server_takes_is_refused() {
        for key in [Bytes::new(), vec![1; KEY_BYTES_MAX + 1].into()] {
            let refused = KeySpan::of(&key, &Bytes::new()).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
        }
    }

    /// Keys a to d, in that order, of which each is sorted differently by each target.
    fn rows() -> Vec<KeyValue> {
        let row =
            |key: &'static str, version, create_revision, mod_revision, value: &'static str| {
                let (key, value) = (Bytes::from(key), Bytes::from(value));
                KeyValue { key, create_revision, mod_revision, version, value, lease: 0 }
            };
        vec![
            row("a", 3, 10, 40, "z"),
            row("b", 1, 30, 30, "y"),
            row("c", 2, 20, 50, "x"),
            row("d", 1, 60, 60, "w"),
        ]
    }

    fn keys(request: &RangeRequest) -> (String, bool) {
        let selection = Selection::of(request).unwrap();
        let mut read = rows();
        if selection.is_reversed() {
            read.reverse();
        }
        let enough = selection.rows_enough().map_or(usize::MAX, |enough| enough as usize);
        read.truncate(enough);
        read.retain(|row| selection.keeps(row));
        let answer = selection.answer(read, 4, ResponseHeader::default());
        assert_eq!(answer.count, 4, "limits and filters do not change it");
        let keys = answer.kvs.iter().map(|row| String::from_utf8_lossy(&row.key).into_owned());
        (keys.collect(), answer.more)
    }

    #[test]
    fn rows_are_filtered_then_sorted_then_cut() {
        let order = |order: SortOrder, target: SortTarget, limit| RangeRequest {
            sort_order: order.into(),
            sort_target: target.into(),
            limit,
            ..RangeRequest::default()
        };
        use SortOrder::{Ascend, Descend, None as Unsorted};
        use SortTarget::{Create, Key, Mod, Value, Version};
        let cases = [
            (order(Unsorted, Key, 0), "abcd", false),
            (order(Ascend, Key, 2), "ab", true),
            (order(Descend, Key, 2), "dc", true),
            (order(Descend, Key, 4), "dcba", false),
            (order(Ascend, Version, 0), "bdca", false),
            (order(Descend, Version, 1), "a", true),
            (order(Ascend, Create, 0), "acbd", false),
            (order(Descend, Create, 0), "dbca", false),
            (order(Ascend, Mod, 3), "bac", true),
            (order(Ascend, Value, 0), "dcba", false),
            (order(Descend, Value, 0), "abcd", false),
            // Without an order the others sort ascending, and what is sorted is cut before.
            (order(Unsorted, Mod, 0), "bacd", false),
            (order(Unsorted, Value, 2), "cb", true),
        ];
        for (request, expected, more) in cases {
            assert_eq!(keys(&request), (expected.to_owned(), more), "{request:?}");
        }
        let filters = [
            (RangeRequest { min_mod_revision: 40, ..RangeRequest::default() }, "acd", false),
            (RangeRequest { max_mod_revision: 40, ..RangeRequest::default() }, "ab", false),
            (
                RangeRequest { min_create_revision: 20, limit: 2, ..RangeRequest::default() },
                "bc",
                true,
            ),
            (RangeRequest { max_create_revision: 20, ..RangeRequest::default() }, "ac", false),
        ];
        for (request, expected, more) in filters {
            assert_eq!(keys(&request), (expected.to_owned(), more), "{request:?}");
        }
    }

    #[test]
    fn an_order_that_there_is_not_is_refused() {
        let request = RangeRequest { sort_order: 9, ..RangeRequest::default() };
        let refused = Selection::of(&request).unwrap_err();
        assert_eq!(refused.message(), "etcdserver: invalid sort option");
    }
}
