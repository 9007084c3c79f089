//! The log on a real directory. `tests/store/crash.rs` runs it on a simulated disk.

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::limits;
use crate::model::NodeId;

fn entry(term: Term, index: LogIndex) -> LogEntry {
    LogEntry { term, index, data: Bytes::from(format!("{term}/{index}")) }
}

fn batch(entries: Vec<LogEntry>) -> LogBatch {
    LogBatch { number: 0, hard_state: None, entries }
}

fn small() -> LogOptions {
    LogOptions { segment_bytes: 8 * 1024, zero_fill_bytes: 1024, ..LogOptions::default() }
}

fn open(dir: &TempDir, options: LogOptions) -> (DiskLog, RecoveredLog) {
    DiskLog::open(dir.path(), options).unwrap()
}

fn all(log: &DiskLog) -> Vec<LogEntry> {
    let reader = log.reader();
    let (first, last) = reader.bounds();
    let mut entries = Vec::new();
    let mut next = first;
    while next <= last {
        let read = reader.read(next, last + 1, 100).unwrap();
        next += read.len() as u64;
        entries.extend(read);
    }
    entries
}

#[test]
fn entries_and_hard_state_come_back() {
    let dir = TempDir::new().unwrap();
    let hard_state = HardState { term: 2, vote: Some(NodeId(1)), commit: 1, admitted: true };
    {
        let (mut log, recovered) = open(&dir, small());
        assert_eq!(recovered, RecoveredLog { first_index: 1, ..RecoveredLog::default() });
        log.append(&[
            LogBatch { number: 1, hard_state: Some(hard_state), entries: vec![entry(1, 1)] },
            batch(vec![entry(2, 2), entry(2, 3)]),
        ])
        .unwrap();
    }
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.hard_state, hard_state);
    assert_eq!(recovered.term_runs, [(1, 1), (2, 2)]);
    assert_eq!((recovered.first_index, recovered.last_index), (1, 3));
    assert_eq!(all(&log), [entry(1, 1), entry(2, 2), entry(2, 3)]);
}

#[test]
fn a_replaced_suffix_is_gone_within_a_group_across_groups_and_after_reopening() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    log.append(&[batch((1..=9).map(|index| entry(1, index)).collect())]).unwrap();
    log.append(&[
        batch(vec![entry(2, 7), entry(2, 8), entry(2, 9)]),
        batch(vec![entry(3, 8)]),
        batch(vec![entry(4, 6)]),
    ])
    .unwrap();
    let mut expected: Vec<LogEntry> = (1..=5).map(|index| entry(1, index)).collect();
    expected.push(entry(4, 6));
    assert_eq!(all(&log), expected);
    drop(log);
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.term_runs, [(1, 1), (6, 4)]);
    assert_eq!(all(&log), expected);
}

#[test]
fn many_segments_read_back_like_one() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    for index in 1..=1000 {
        log.append(&[batch(vec![entry(1 + index / 100, index)])]).unwrap();
    }
    let expected: Vec<LogEntry> = (1..=1000).map(|i| entry(1 + i / 100, i)).collect();
    assert_eq!(all(&log), expected);
    drop(log);
    let segments = std::fs::read_dir(dir.path()).unwrap().count();
    assert!(segments > 5, "{segments} segments");
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.last_index, 1000);
    assert_eq!(recovered.term_runs.len(), 11);
    assert_eq!(all(&log), expected);
    assert_eq!(log.reader().read(500, 502, u64::MAX).unwrap(), expected[499..501]);
}

#[test]
fn an_entry_of_the_greatest_size_fits_small_segments_too() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    let data = Bytes::from(vec![7; limits::VALUE_BYTES_MAX + limits::KEY_BYTES_MAX]);
    let large = |index| LogEntry { term: 1, index, data: data.clone() };
    log.append(&[batch(vec![entry(1, 1), large(2), large(3), entry(1, 4)])]).unwrap();
    let read = log.reader().read(2, 5, 1).unwrap();
    assert!(read == [large(2)], "one entry, however large");
    drop(log);
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.last_index, 4);
    assert!(all(&log) == [entry(1, 1), large(2), large(3), entry(1, 4)]);
}

#[test]
fn what_does_not_fit_the_log_is_refused_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    log.append(&[batch(vec![entry(1, 1)])]).unwrap();
    for bad in [vec![entry(1, 3)], vec![entry(1, 0)], vec![entry(1, 2), entry(1, 4)]] {
        let error = log.append(&[batch(bad)]).unwrap_err();
        assert!(matches!(error, LogError::NotContiguous { .. }), "{error}");
    }
    log.append(&[batch(vec![entry(1, 2)])]).unwrap();
    assert_eq!(all(&log), [entry(1, 1), entry(1, 2)]);
    let reader = log.reader();
    for (low, high) in [(0, 2), (3, 4), (2, 2), (2, 1)] {
        let error = reader.read(low, high, 100).unwrap_err();
        assert!(matches!(error, LogError::OutOfRange { .. }), "{error}");
    }
}

#[test]
fn a_missing_a_renamed_and_a_newer_segment_are_refused_by_name() {
    const NEWER: u32 = format::FORMAT_VERSION + 1;
    let refusal = |damage: fn(&Path)| {
        let dir = TempDir::new().unwrap();
        let (mut log, _) = open(&dir, small());
        for index in 1..=500 {
            log.append(&[batch(vec![entry(1, index)])]).unwrap();
        }
        drop(log);
        damage(dir.path());
        match DiskLog::open(dir.path(), small()) {
            Ok(_) => panic!("opened a damaged log"),
            Err(error) => error,
        }
    };
    let file = |dir: &Path, segment| dir.join(segment::file_name(segment));

    let error = refusal(|dir| std::fs::remove_file(dir.join(segment::file_name(2))).unwrap());
    let LogError::MissingSegment { path } = &error else { panic!("{error}") };
    assert_eq!(*path, file(path.parent().unwrap(), 2));

    let error = refusal(|dir| {
        let (second, third) = (segment::file_name(2), segment::file_name(3));
        std::fs::copy(dir.join(third), dir.join(second)).unwrap();
    });
    assert!(matches!(error, LogError::WrongSegment { found: 3, .. }), "{error}");

    let error = refusal(|dir| {
        let path = dir.join(segment::file_name(2));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8..12].copy_from_slice(&NEWER.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..508]);
        bytes[508..512].copy_from_slice(&crc.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
    });
    assert!(matches!(error, LogError::OtherFormat { version: NEWER, .. }), "{error}");
}

/// Tears the last batch of a log inside a value that holds frames as a log of salt 1 writes them,
/// with later batch numbers, and opens it again.
fn open_with_planted_frames(salt: u64) -> Result<RecoveredLog, LogError> {
    let options = |salt| LogOptions { salt, segment_bytes: 1 << 20, ..small() };
    let forged = {
        let dir = TempDir::new().unwrap();
        let (mut log, _) = open(&dir, options(1));
        for index in 1..=20 {
            log.append(&[batch(vec![entry(1, index)])]).unwrap();
        }
        std::fs::read(dir.path().join(segment::file_name(1))).unwrap()
    };
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, options(salt));
    log.append(&[batch(vec![entry(1, 1)])]).unwrap();
    // Frames begin at multiples of eight, and the value somewhere in between.
    let before = format::FRAME_HEADER_BYTES + format::RECORD_HEADER_BYTES;
    let short = vec![0; before.next_multiple_of(format::FRAME_STEP_BYTES) - before];
    let data = Bytes::from([&short, &forged[format::SEGMENT_HEADER_BYTES..]].concat());
    log.append(&[batch(vec![LogEntry { term: 1, index: 2, data }])]).unwrap();
    drop(log);
    let path = dir.path().join(segment::file_name(1));
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last / 512 * 512..=last].fill(0);
    std::fs::write(&path, bytes).unwrap();
    DiskLog::open(dir.path(), options(salt)).map(|(_, recovered)| recovered)
}

#[test]
fn a_frame_inside_a_value_is_not_taken_for_one() {
    // A client that knew the salt could have a torn tail taken for corruption; one that does not
    // know it cannot.
    assert!(matches!(open_with_planted_frames(1), Err(LogError::Corrupt { .. })));
    assert_eq!(open_with_planted_frames(2).unwrap().last_index, 1);
}

fn segment_files(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path()).unwrap().count()
}

#[test]
fn compaction_deletes_whole_segments_and_readers_are_told() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    for index in 1..=1000 {
        log.append(&[batch(vec![entry(1 + index / 100, index)])]).unwrap();
    }
    let (reader, files) = (log.reader(), segment_files(&dir));
    log.compact(0).unwrap();
    log.compact(2).unwrap();
    assert_eq!((reader.bounds(), segment_files(&dir)), ((1, 1000), files));
    log.compact(500).unwrap();
    let (first, last) = reader.bounds();
    assert!(first > 1 && first <= 500 && last == 1000, "{first} to {last}");
    assert!(segment_files(&dir) < files);
    let expected: Vec<LogEntry> = (first..=1000).map(|i| entry(1 + i / 100, i)).collect();
    assert_eq!(all(&log), expected);
    let error = reader.read(first - 1, 1000, 100).unwrap_err();
    assert!(matches!(error, LogError::OutOfRange { last: 1000, .. }), "{error}");

    log.append(&[batch(vec![entry(20, 998), entry(20, 999)])]).unwrap();
    drop(log);
    let (mut log, recovered) = open(&dir, small());
    assert_eq!((recovered.first_index, recovered.last_index), (first, 999));
    assert_eq!(recovered.previous_term, 1 + (first - 1) / 100);
    assert_eq!(recovered.term_runs[0], (first, 1 + first / 100));
    assert_eq!(recovered.term_runs.last(), Some(&(998, 20)));

    // However much is no longer needed, the segment being written stays.
    log.compact(u64::MAX).unwrap();
    assert_eq!(segment_files(&dir), 1);
    let (first, last) = log.reader().bounds();
    assert_eq!((last, all(&log).last()), (999, Some(&entry(20, 999))));
    drop(log);
    let (log, recovered) = open(&dir, small());
    assert_eq!(recovered.first_index, first);
    assert_eq!(all(&log).len() as u64, last + 1 - first);
}

#[test]
fn a_reset_log_starts_after_the_snapshot_and_goes_on() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    for index in 1..=300 {
        log.append(&[batch(vec![entry(3, index)])]).unwrap();
    }
    let reader = log.reader();
    let hard_state = HardState { term: 9, vote: Some(NodeId(2)), commit: 700, admitted: true };
    log.reset(700, 8, hard_state).unwrap();
    assert_eq!((reader.bounds(), segment_files(&dir)), ((701, 700), 1));
    assert!(matches!(reader.read(300, 301, 1), Err(LogError::OutOfRange { first: 701, .. })));
    let refused = log.append(&[batch(vec![entry(9, 700)])]).unwrap_err();
    assert!(matches!(refused, LogError::NotContiguous { first: 701, .. }));
    drop(log);

    let (mut log, recovered) = open(&dir, small());
    let blank = RecoveredLog { first_index: 701, last_index: 700, ..RecoveredLog::default() };
    assert_eq!(recovered, RecoveredLog { hard_state, previous_term: 8, ..blank });
    log.append(&[batch(vec![entry(9, 701), entry(9, 702)])]).unwrap();
    drop(log);
    let (log, recovered) = open(&dir, small());
    assert_eq!((recovered.term_runs, recovered.previous_term), (vec![(701, 9)], 8));
    assert_eq!(all(&log), [entry(9, 701), entry(9, 702)]);
}

#[test]
fn what_a_crash_left_of_an_old_log_is_no_part_of_the_new_one() {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = open(&dir, small());
    for index in 1..=300 {
        log.append(&[batch(vec![entry(3, index)])]).unwrap();
    }
    let name = segment::file_name(2);
    let old = std::fs::read(dir.path().join(&name)).unwrap();
    log.reset(50, 3, HardState::default()).unwrap();
    log.append(&[batch(vec![entry(4, 51)])]).unwrap();
    drop(log);
    std::fs::write(dir.path().join(&name), old).unwrap();
    let (log, recovered) = open(&dir, small());
    assert_eq!((recovered.first_index, recovered.previous_term), (51, 3));
    assert_eq!(all(&log), [entry(4, 51)]);
    assert_eq!(segment_files(&dir), 1, "it was removed");
}
