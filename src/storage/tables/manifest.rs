//! The manifest: which runs, tables and value segments make up the store. It is the root of the
//! store, and the only file that is replaced.
//!
//! ```text
//! MANIFEST := format u32 | next file number u64 | rows u64 | bytes of long values u64 | seals u64
//!             | segment count u32 | segment* | run count u32 | run* | CRC-32 over all before
//! segment  := number u64 | bytes u64
//! run      := first seal u64 | last seal u64 | is merging u8 | table count u32 | table*
//! table    := number u64 | bytes u64 | footer checksum u32 | rows u64 | deleted rows u64
//!             | first key | last key | value count u32 | (segment number u64, bytes u64)*
//! ```
//!
//! It is written whole, to `MANIFEST.new`, synced, and renamed. Before the rename the names of all
//! files that it names are made durable, and afterwards its own. Whichever of both a crash leaves
//! is complete, and every file it names as well. A failed step after the first leaves unknown which
//! of both a crash would find, so it is final: nothing may be written or removed after it.
//!
//! A store begins with a manifest without runs. So files of a store beside no manifest are damage:
//! it is never taken for a blank store. What the manifest does not name was left by a crash, and is
//! removed at opening, after the manifest was verified.
//!
//! Writing it whole costs about 100 bytes a table, so with tables of 64 MiB less than a
//! five-hundred-thousandth of what is written. With the longest keys it is 16 KiB for a table of
//! 16 MiB. A log of changes, as LevelDB has it, would save
//! that, and need rules for its torn end.
//!
//! Its checksum is bound to no place, since there is one manifest. An old copy in its place is
//! found by the files that it names and that are gone. If they are all there it is a former state
//! of the store, which its rows tell.
//!
//! A merge is written stretch by stretch. Until it is finished, its outcome so far stands before
//! the runs that are being merged: up to the last key of the outcome its rows count, and of the
//! others those behind that key. So tables that a stretch has used up are not named any more, and
//! a merge that a crash has interrupted goes on where it was.
//!
//! What it leaves out: opening the tables it names, which compares their lengths and footers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::directory::{FileKind, NUMBERS_END, TableDirectory, remove};
use super::levels::LongValues;
use super::section::{self, Fields, Place, SectionError, put_key};
use super::table::TableFacts;
use super::values::SegmentFacts;
use crate::storage::engine::EngineError;
use crate::storage::files;

pub(super) const MANIFEST: &str = "MANIFEST";
const MANIFEST_NEW: &str = "MANIFEST.new";
const FORMAT: u32 = 2;
const PLACE: Place = Place { file: 0, position: 0 };
/// What the tables of forty terabytes need, of sixty gigabytes if all their keys are the longest
/// there are. A file that is longer is no manifest, so none is written.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Number of a seal: the first memory table that is sealed has number 1.
pub(super) type SealNumber = u64;

/// The contents of the manifest: which files the store has, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TableManifest {
    /// Files of lower numbers were created before.
    pub next_number: u64,
    /// The number of rows of the store as of the last seal.
    pub rows: u64,
    /// The bytes of all long values of rows of the store as of the last seal. It decides only when
    /// runs are merged: if the length from which values are long changes between two releases, it
    /// is inexact until all runs have become one.
    pub long_value_bytes: u64,
    /// The last seal that is in a run, or would be if it had had rows.
    pub last_seal: SealNumber,
    /// In ascending order of numbers.
    pub segments: Vec<SegmentFacts>,
    /// In the order of time, the newest first.
    pub runs: Vec<RunFacts>,
}

/// Facts about a run: tables whose keys do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunFacts {
    pub first_seal: SealNumber,
    pub last_seal: SealNumber,
    /// It is being merged. The next newer run that is not has the outcome so far: up to its last
    /// key, rows are that run's.
    pub is_merging: bool,
    /// In ascending order of keys, at least one.
    pub tables: Vec<TableFacts>,
}

impl RunFacts {
    /// The greatest key of a row.
    pub fn last_key(&self) -> Option<&Vec<u8>> {
        self.tables.last().map(|table| &table.last_key)
    }
}

impl TableManifest {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&FORMAT.to_le_bytes());
        let TableManifest { next_number, rows, long_value_bytes, last_seal, .. } = *self;
        put_numbers(&[next_number, rows, long_value_bytes, last_seal], &mut out);
        put_count(self.segments.len(), &mut out);
        for segment in &self.segments {
            put_numbers(&[segment.number, segment.bytes], &mut out);
        }
        put_count(self.runs.len(), &mut out);
        for run in &self.runs {
            put_numbers(&[run.first_seal, run.last_seal], &mut out);
            out.push(u8::from(run.is_merging));
            put_count(run.tables.len(), &mut out);
            run.tables.iter().for_each(|table| encode_table(table, &mut out));
        }
        section::seal(PLACE, &mut out, 0);
        out
    }

    /// The manifest in these bytes.
    ///
    /// # Errors
    ///
    /// [`SectionError`].
    pub fn decode(bytes: &[u8]) -> Result<TableManifest, SectionError> {
        let mut fields = Fields(section::open(PLACE, bytes)?);
        if fields.u32() != Some(FORMAT) {
            return Err(SectionError::Encoding("the manifest is not of this release's format"));
        }
        let manifest = TableManifest::decode_fields(&mut fields)
            .filter(|_| fields.0.is_empty())
            .ok_or(SectionError::Encoding("the manifest is not in its encoding"))?;
        manifest.check().map_err(SectionError::Encoding)?;
        Ok(manifest)
    }

    fn decode_fields(fields: &mut Fields<'_>) -> Option<TableManifest> {
        let (next_number, rows) = (fields.u64()?, fields.u64()?);
        let (long_value_bytes, last_seal) = (fields.u64()?, fields.u64()?);
        let segments = decode_list(fields, |fields| {
            Some(SegmentFacts { number: fields.u64()?, bytes: fields.u64()? })
        })?;
        let runs = decode_list(fields, |fields| {
            let (first_seal, last_seal) = (fields.u64()?, fields.u64()?);
            let is_merging = match fields.u8()? {
                0 => false,
                1 => true,
                _ => return None,
            };
            let tables = decode_list(fields, decode_table)?;
            Some(RunFacts { first_seal, last_seal, is_merging, tables })
        })?;
        Some(TableManifest { next_number, rows, long_value_bytes, last_seal, segments, runs })
    }

    /// What holds of every manifest, whoever reads or writes it.
    ///
    /// # Errors
    ///
    /// What does not hold, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let mut numbers = BTreeSet::new();
        let (mut outcome, mut newer): (Option<&RunFacts>, Option<&RunFacts>) = (None, None);
        for run in &self.runs {
            let is_in_order = match (outcome, newer) {
                (Some(outcome), Some(newer)) if run.is_merging => {
                    let is_older = match newer.is_merging {
                        true => run.last_seal < newer.first_seal,
                        false => run.last_seal <= outcome.last_seal,
                    };
                    is_older && outcome.first_seal <= run.first_seal
                }
                (Some(outcome), _) => run.last_seal < outcome.first_seal,
                (None, _) => !run.is_merging,
            };
            if run.first_seal > run.last_seal || !is_in_order {
                return Err("the runs of the manifest are not in the order of their seals");
            }
            let Some(first) = run.tables.first() else {
                return Err("a run of the manifest has no tables");
            };
            match outcome.and_then(RunFacts::last_key) {
                Some(done) if run.is_merging && first.last_key <= *done => {
                    return Err("a merge of the manifest has used up a table that it names");
                }
                _ if run.is_merging => {}
                _ => outcome = Some(run),
            }
            newer = Some(run);
            let mut last_key: Option<&Vec<u8>> = None;
            for table in &run.tables {
                let is_behind = last_key.is_none_or(|last| *last < table.first_key);
                if !is_behind || table.first_key > table.last_key {
                    return Err("the tables of a run overlap");
                }
                last_key = Some(&table.last_key);
                if table.rows == 0 || table.deleted_rows > table.rows {
                    return Err("a table of the manifest has an impossible number of rows");
                }
                if !numbers.insert(table.number) {
                    return Err("the manifest names a file twice");
                }
                let has_values = |(number, bytes): &(u64, u64)| {
                    let found = self.segments.binary_search_by_key(number, |it| it.number);
                    found.is_ok_and(|at| *bytes <= self.segments[at].bytes)
                };
                let is_sorted = table.values.is_sorted_by(|one, other| one.0 < other.0);
                if !is_sorted || !table.values.iter().all(has_values) {
                    return Err("a table refers to values that no segment of the manifest has");
                }
            }
        }
        let newest = self.runs.first().map_or(0, |run| run.last_seal);
        if newest > self.last_seal {
            return Err("a run of the manifest is newer than its last seal");
        }
        if !self.segments.is_sorted_by(|one, other| one.number < other.number) {
            return Err("the segments of the manifest are not in order");
        }
        numbers.extend(self.segments.iter().map(|segment| segment.number));
        let files =
            self.segments.len() + self.runs.iter().map(|run| run.tables.len()).sum::<usize>();
        if numbers.len() < files {
            return Err("the manifest names a file twice");
        }
        if self.next_number > NUMBERS_END {
            return Err("the manifest counts more files than a store has");
        }
        match numbers.last().is_none_or(|last| *last < self.next_number) {
            true => Ok(()),
            false => Err("the manifest names a file that does not exist yet"),
        }
    }

    /// Replaces the manifest of a store, durably, with all files that it names.
    ///
    /// # Errors
    ///
    /// [`EngineError::File`], after which it is unknown which manifest a crash would leave.
    pub fn store(&self, store: &TableDirectory) -> Result<(), EngineError> {
        if let Err(broken) = self.check() {
            panic!("{broken}: {self:?}");
        }
        let directory = store.files();
        let encoded = self.encode();
        if encoded.len() as u64 > BYTES_MAX {
            let detail = format!("it would have {} bytes, of {BYTES_MAX} at most", encoded.len());
            return Err(store.refused("write", MANIFEST_NEW, &io::Error::other(detail)));
        }
        let written = files::remove_if_present(directory, MANIFEST_NEW)
            .and_then(|()| directory.create(MANIFEST_NEW))
            .and_then(|file| {
                file.write_all_at(&encoded, 0)?;
                file.sync_data()
            });
        written.map_err(|error| store.refused("write", MANIFEST_NEW, &error))?;
        directory
            .sync()
            .and_then(|()| directory.rename(MANIFEST_NEW, MANIFEST))
            .and_then(|()| directory.sync())
            .map_err(|error| store.refused("replace", MANIFEST, &error))
    }

    /// Reads the manifest of a store, and removes what a crash has left. A directory without files
    /// of a store becomes a blank store.
    ///
    /// # Errors
    ///
    /// [`EngineError::Damaged`], [`EngineError::Read`]; [`EngineError::File`] if the blank store
    /// cannot be written.
    pub fn open(store: &TableDirectory) -> Result<TableManifest, EngineError> {
        let names = store.files().list().map_err(|error| store.unreadable("", &error))?;
        let found: Vec<(FileKind, u64)> =
            names.iter().filter_map(|name| FileKind::parse(name)).collect();
        let manifest = match TableManifest::read(store)? {
            Some(manifest) => manifest,
            None if found.is_empty() => {
                let blank = TableManifest { next_number: 1, ..TableManifest::default() };
                blank.store(store)?;
                blank
            }
            None => {
                let detail = "it is missing, and there are tables of the store".to_owned();
                return Err(store.damaged(MANIFEST, detail));
            }
        };
        let named = manifest.files();
        store.skip_numbers(manifest.next_number);
        for (kind, number) in found {
            // A number that was used once is not used again, even if the manifest never knew it.
            store.skip_numbers(number.saturating_add(1));
            if !named.contains(&(kind, number)) {
                remove(store, &kind.name(number));
            }
        }
        remove(store, MANIFEST_NEW);
        Ok(manifest)
    }

    fn read(store: &TableDirectory) -> Result<Option<TableManifest>, EngineError> {
        let opened = store.files().open(MANIFEST).and_then(|file| Ok((file.len_bytes()?, file)));
        let (length, file) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(store.unreadable(MANIFEST, &error)),
        };
        if length > BYTES_MAX {
            return Err(store.damaged(MANIFEST, format!("no manifest has {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        let read = file.read_at(&mut bytes, 0);
        let read = read.map_err(|error| store.unreadable(MANIFEST, &error))?;
        // What is missing makes the checksum wrong.
        let manifest = TableManifest::decode(&bytes[..read]);
        manifest.map(Some).map_err(|error| store.damaged(MANIFEST, error.to_string()))
    }

    /// The bytes of each segment to which rows of tables refer.
    pub fn live_value_bytes(&self) -> BTreeMap<u64, u64> {
        let mut live = BTreeMap::new();
        let tables = self.runs.iter().flat_map(|run| &run.tables);
        for (segment, bytes) in tables.flat_map(|table| &table.values) {
            *live.entry(*segment).or_default() += bytes;
        }
        live
    }

    /// Counts the long values of a seal.
    pub fn count_long_values(&mut self, seal: LongValues) {
        let bytes = self.long_value_bytes.saturating_add(seal.added_bytes);
        self.long_value_bytes = bytes.saturating_sub(seal.removed_bytes);
    }

    /// In a single run, every row that refers to a long value is one of the store.
    pub fn correct_long_value_bytes(&mut self) {
        if self.runs.len() <= 1 {
            self.long_value_bytes = self.live_value_bytes().values().sum();
        }
    }

    /// The bytes of long values whose rows are removed, but are still in a run older than the
    /// marker or the newer state that hides them.
    pub fn removed_value_bytes(&self) -> u64 {
        let referred: u64 = self.live_value_bytes().values().sum();
        referred.saturating_sub(self.long_value_bytes)
    }

    /// Forgets the segments to which no table refers.
    pub fn drop_unused_segments(&mut self) {
        let live = self.live_value_bytes();
        self.segments.retain(|segment| live.contains_key(&segment.number));
    }

    fn files(&self) -> BTreeSet<(FileKind, u64)> {
        let tables = self.runs.iter().flat_map(|run| &run.tables);
        let tables = tables.map(|table| (FileKind::Table, table.number));
        let segments = self.segments.iter().map(|segment| (FileKind::Values, segment.number));
        tables.chain(segments).collect()
    }
}

fn put_numbers(numbers: &[u64], out: &mut Vec<u8>) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn put_count(count: usize, out: &mut Vec<u8>) {
    let Ok(encoded) = u32::try_from(count) else { panic!("{count} files in a manifest") };
    out.extend_from_slice(&encoded.to_le_bytes());
}

fn encode_table(table: &TableFacts, out: &mut Vec<u8>) {
    let TableFacts { number, bytes, footer_checksum, rows, deleted_rows, .. } = table;
    put_numbers(&[*number, *bytes], out);
    out.extend_from_slice(&footer_checksum.to_le_bytes());
    put_numbers(&[*rows, *deleted_rows], out);
    put_key(&table.first_key, out);
    put_key(&table.last_key, out);
    put_count(table.values.len(), out);
    for (segment, bytes) in &table.values {
        put_numbers(&[*segment, *bytes], out);
    }
}

fn decode_table(fields: &mut Fields<'_>) -> Option<TableFacts> {
    Some(TableFacts {
        number: fields.u64()?,
        bytes: fields.u64()?,
        footer_checksum: fields.u32()?,
        rows: fields.u64()?,
        deleted_rows: fields.u64()?,
        first_key: fields.key()?.to_vec(),
        last_key: fields.key()?.to_vec(),
        values: decode_list(fields, |fields| Some((fields.u64()?, fields.u64()?)))?,
    })
}

/// A count and as many elements. The list grows with what is decoded, whatever the count says.
fn decode_list<T>(
    fields: &mut Fields<'_>,
    mut decode: impl FnMut(&mut Fields<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = fields.u32()?;
    let mut list = Vec::new();
    for _ in 0..count {
        list.push(decode(fields)?);
    }
    Some(list)
}

#[cfg(test)]
mod tests;
