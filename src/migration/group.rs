//! A group of Acervo as one end of a migration.

use bytes::Bytes;
use tokio::time::timeout;

use super::{Change, MigrationError, News, Page, Sink, Source, TELL_INTERVAL, Told};
use crate::client::{
    AsyncClient, AsyncRows, KeyRange, ReadOptions, Timestamp, Version, Watch, WatchEvent,
    WatchOptions,
};
use crate::limits::TRANSACTION_LOOKS_MAX;
use crate::model::{Txn, TxnOp};

/// Keys that are read as one page.
const PAGE_KEYS_MAX: usize = 1_000;
/// Bytes of a page, past which it ends.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(super::WRITE_CHANGES_MAX <= TRANSACTION_LOOKS_MAX);

pub(super) struct GroupEnd {
    client: AsyncClient,
    prefix: Bytes,
    /// What is still to be read of the moment that is copied.
    rows: Option<AsyncRows>,
    /// Changes after the moment that is copied, once they are followed.
    watch: Option<Watch>,
    /// Changes of a write that is not told as a whole yet.
    gathered: Vec<Change>,
    /// Told once what came with it is.
    up_to: Option<i64>,
}

impl GroupEnd {
    pub(super) fn new(client: AsyncClient, prefix: Bytes) -> GroupEnd {
        GroupEnd { client, prefix, rows: None, watch: None, gathered: Vec::new(), up_to: None }
    }

    async fn read(&mut self, at: i64) -> Result<Page, MigrationError> {
        let options = ReadOptions::at(Timestamp(at));
        let rows = match &mut self.rows {
            Some(rows) => rows,
            None => self.rows.insert(self.client.scan(KeyRange::prefix(&self.prefix)?, options)),
        };
        let (mut page, mut bytes) = (Page { is_last: true, ..Page::default() }, 0);
        while let Some(row) = rows.next().await {
            let row = row?;
            match value(row.found) {
                Some(value) => {
                    let change = Change { key: row.key, value: Some(value) };
                    bytes += change.bytes();
                    page.changes.push(change);
                }
                None => page.leased += 1,
            }
            if page.changes.len() >= PAGE_KEYS_MAX || bytes >= PAGE_BYTES_MAX {
                page.is_last = false;
                break;
            }
        }
        Ok(page)
    }

    async fn next_news(&mut self, at: i64) -> Result<News, MigrationError> {
        if let Some(up_to) = self.up_to.take() {
            return Ok(News::UpTo(up_to));
        }
        if self.watch.is_none() {
            let options = WatchOptions { after: Some(Timestamp(at)), ..WatchOptions::default() };
            let range = KeyRange::prefix(&self.prefix)?;
            self.watch = Some(self.client.watch(range, options).await?);
        }
        let watch = self.watch.as_mut().expect("it was just begun");
        loop {
            let Ok(event) = timeout(TELL_INTERVAL, watch.next_event()).await else {
                match watch.progress().up_to().filter(|_| self.gathered.is_empty()) {
                    Some(up_to) => return Ok(News::UpTo(up_to.0)),
                    None => continue,
                }
            };
            match event {
                Some(Ok(WatchEvent::Changed { version, changes, continues })) => {
                    self.gathered.extend(changes.into_iter().map(|change| {
                        let (key, value) = (change.key, value(change.written));
                        Change { key, value }
                    }));
                    if !continues {
                        self.up_to = Some(version.0);
                        return Ok(News::Changed(std::mem::take(&mut self.gathered)));
                    }
                }
                Some(Ok(WatchEvent::Reset { .. })) => return Err(MigrationError::Compacted),
                Some(Err(error)) => return Err(error.into()),
                None => unreachable!("a watch ends with an error, after which it is not asked"),
            }
        }
    }
}

/// The value of a version, if it is one that is copied.
fn value(version: Option<Version>) -> Option<Bytes> {
    let version = version?;
    let has_lease = version.facts.is_some_and(|facts| facts.lease.is_some());
    (!has_lease).then_some(version.value)
}

impl Source for GroupEnd {
    fn moment(&mut self) -> Told<'_, i64> {
        Box::pin(async {
            // That of a state which has everything that was acknowledged before.
            let newest = ReadOptions { linearizable: true, ..ReadOptions::default() };
            let mut rows = self.client.scan(KeyRange::all(), newest).limit(1);
            rows.next().await.transpose()?;
            Ok(rows.at().map_or(0, |at| at.0))
        })
    }

    fn page(&mut self, at: i64) -> Told<'_, Page> {
        Box::pin(self.read(at))
    }

    fn next(&mut self, at: i64) -> Told<'_, News> {
        Box::pin(self.next_news(at))
    }
}

impl Sink for GroupEnd {
    fn write(&self, changes: Vec<Change>) -> Told<'_, ()> {
        let txn = changes.into_iter().fold(Txn::default(), |txn, Change { key, value }| {
            txn.then(match value {
                Some(value) => TxnOp::Put { key, value, tells_previous: false, lease: None },
                None => TxnOp::Del { key, keeps_history: true, tells_previous: false },
            })
        });
        Box::pin(async {
            self.client.txn(txn).await?;
            Ok(())
        })
    }
}
