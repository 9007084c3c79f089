//! Partial files that are opened, changed by other programs, published, and left behind by crashes.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use super::names::link;
use super::*;
use crate::limits::{CHUNK_BYTES, FILE_NAME_BYTES_MAX};
use crate::net::BufferPool;
use crate::share::fetch::part_check::PART_RECHECKS_MAX;

const SIZE: u64 = CHUNK_BYTES as u64 + 4321;

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

fn content(bytes: &[u8]) -> ContentId {
    ContentId(*blake3::hash(bytes).as_bytes())
}

fn open(folder: &Path, size: u64) -> Result<Option<Part>, FetchError> {
    Part::open(folder, &name("film.mkv"), content(b"film"), size)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn write(part: &Part, index: u64, byte: u8) {
    let mut buffer =
        BufferPool::new(CHUNK_BYTES, 1).take(chunk_len(index, part.on_disk.trailer.size)).unwrap();
    buffer.as_mut().fill(byte);
    part.write_chunk(index, &buffer).unwrap();
}

#[test]
fn a_part_is_written_left_resumed_and_finished() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    assert!(!part.is_resumed());
    write(&part, 1, 7);
    drop(part);

    let part = open(folder.path(), SIZE).unwrap().unwrap();
    assert!(part.is_resumed());
    let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(0).unwrap();
    part.read_chunk(1, &mut buffer).unwrap();
    assert_eq!(buffer.as_ref(), [7; 4321]);
    write(&part, 0, 3);
    assert_eq!(
        part.finish().unwrap(),
        Finish::Doubtful,
        "somebody may have it open since long ago"
    );
    assert!(matches!(part.finish().unwrap(), Finish::Published(stamp) if stamp.size == SIZE));
    let whole = std::fs::read(folder.path().join("film.mkv")).unwrap();
    assert!(whole[..CHUNK_BYTES].iter().all(|b| *b == 3));
    assert_eq!(whole[CHUNK_BYTES..], [7; 4321]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    // Another download that had opened the partial file before it was published.
    assert!(open(folder.path(), SIZE).unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn two_downloads_of_a_file_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let _part = open(folder.path(), SIZE).unwrap().unwrap();
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::UnderWay(_))));
}

#[test]
fn partial_files_of_other_downloads_are_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    drop(part);
    let path = folder.path().join("film.mkv.part");
    let before = std::fs::read(&path).unwrap();
    let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
    assert!(matches!(other, Err(FetchError::ForeignPart(_))));
    assert!(matches!(open(folder.path(), SIZE + 10_000), Err(FetchError::ForeignPart(_))));
    assert!(std::fs::read(&path).unwrap() == before);

    std::fs::write(&path, b"somebody's own").unwrap();
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's own");

    std::fs::remove_file(&path).unwrap();
    std::fs::write(folder.path().join("elsewhere"), b"").unwrap();
    std::os::unix::fs::symlink("elsewhere", &path).unwrap();
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));

    // Once a download waited at a FIFO for somebody to write to it.
    std::fs::remove_file(&path).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
}

/// Once a partial file of another content, left by a liar's announcement or a killed download, kept
/// the right file out.
#[test]
fn a_part_that_nothing_was_written_to_makes_room_for_another_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mkv.part");
    for size in [0, SIZE + 99, SIZE] {
        let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), size);
        let other = other.unwrap().unwrap();
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))), "in use");
        other.allocate().unwrap();
        drop(other);
        drop(open(folder.path(), SIZE).unwrap().expect("there is room"));
        std::fs::remove_file(&path).unwrap();
    }
    let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
    let other = other.unwrap().unwrap();
    write(&other, 1, 0);
    drop(other);
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))), "written to");
}

#[test]
fn publishing_never_replaces_a_file_that_has_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    let whole = folder.path().join("film.mkv");
    std::fs::write(&whole, b"mine").unwrap();
    assert!(matches!(part.finish(), Err(FetchError::Exists(_))));
    assert_eq!(std::fs::read(&whole).unwrap(), b"mine");
    drop(part);
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::Exists(_))));
    // The stored chunks survive the attempt.
    std::fs::remove_file(&whole).unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    assert!(part.is_resumed());
    // Also if the name is taken at the last moment, which only linking can notice.
    part.on_disk.cut(&part.writable().unwrap().file).unwrap();
    std::fs::write(&whole, b"mine").unwrap();
    let error = part.on_disk.give_name(&part.on_disk.path, &part.on_disk.whole).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    part.on_disk.uncut(&part.writable().unwrap().file);
    drop(part);
    std::fs::remove_file(&whole).unwrap();
    assert!(open(folder.path(), SIZE).unwrap().unwrap().is_resumed());
    assert_eq!(names(folder.path()), ["film.mkv.part"]);
}

/// Once a download that followed another found the file locked, if a process was being started at
/// that moment: until it runs its program, it has a copy of every descriptor.
#[test]
fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    let copy = part.on_disk.file.try_clone().unwrap();
    assert!(matches!(open(folder.path(), SIZE), Err(FetchError::UnderWay(_))));
    drop(part);
    assert!(open(folder.path(), SIZE).unwrap().unwrap().is_resumed());
    drop(copy);
}

/// Once the hidden second name of a part that was killed while it was published, and was removed by
/// hand, kept the bytes of the whole file for ever.
#[test]
fn a_claim_that_outlives_its_part_is_removed_unless_a_download_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let claim = folder.path().join(super::names::claim_name(&name("film.mkv"), content(b"film")));
    std::fs::write(&claim, vec![7; SIZE as usize]).unwrap();
    let held = File::open(&claim).unwrap();
    held.lock().unwrap();
    drop(open(folder.path(), SIZE).unwrap().unwrap());
    assert!(claim.exists(), "another download is publishing it");
    std::fs::remove_file(folder.path().join("film.mkv.part")).unwrap();
    held.unlock().unwrap();
    drop(open(folder.path(), SIZE).unwrap().unwrap());
    assert_eq!(names(folder.path()), ["film.mkv.part"]);
}

/// Browsers use the same name: for a file of the right length, for an empty one, or for one of the
/// length of a partial file.
#[test]
fn a_users_file_with_the_partial_files_name_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.mkv.part");
    for own in
        [vec![5; SIZE as usize], Vec::new(), vec![0; SIZE.next_multiple_of(4096) as usize + 4096]]
    {
        std::fs::write(&path, &own).unwrap();
        let before = std::fs::metadata(&path).unwrap();
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::ForeignPart(_))));
        let after = std::fs::metadata(&path).unwrap();
        assert!(std::fs::read(&path).unwrap() == own);
        assert_eq!((before.ino(), before.ctime_nsec()), (after.ino(), after.ctime_nsec()));
        assert_eq!(names(folder.path()), ["film.mkv.part"]);
    }
}

/// Once a download went on writing to its removed partial file, and then published whatever had the
/// partial name: the start of another download.
#[test]
fn the_published_file_is_the_one_that_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let (path, whole) = (folder.path().join("film.mkv.part"), folder.path().join("film.mkv"));
    let first = open(folder.path(), SIZE).unwrap().unwrap();
    write(&first, 0, 3);
    std::fs::remove_file(&path).unwrap();
    let buffer = BufferPool::new(CHUNK_BYTES, 1).take(4321).unwrap();
    let error = first.write_chunk(1, &buffer).unwrap_err();
    assert!(matches!(first.write_error(error, 0), FetchError::PartGone(_)));
    let other = Part::open(folder.path(), &name("film.mkv"), content(b"other"), SIZE);
    let other = other.unwrap().unwrap();
    write(&other, 0, 9);
    assert!(matches!(first.finish(), Err(FetchError::PartGone(_))));
    assert!(!whole.exists());
    write(&other, 1, 9);
    assert!(matches!(other.finish(), Ok(Finish::Published(_))));
    assert!(std::fs::read(&whole).unwrap() == vec![9; SIZE as usize]);

    // Moved elsewhere, with another program's file in its place.
    std::fs::remove_file(&whole).unwrap();
    let moved = open(folder.path(), SIZE).unwrap().unwrap();
    write(&moved, 0, 3);
    write(&moved, 1, 3);
    std::fs::rename(&path, folder.path().join("moved")).unwrap();
    std::fs::write(&path, b"somebody's own").unwrap();
    assert!(matches!(moved.finish(), Ok(Finish::Published(_))));
    assert!(std::fs::read(&whole).unwrap() == vec![3; SIZE as usize]);
    assert_eq!(std::fs::read(&path).unwrap(), b"somebody's own");
}

/// After each step of publishing, as a crash would leave the files.
#[test]
fn a_crash_while_publishing_loses_nothing_and_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("film.mkv");
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    write(&part, 1, 3);
    part.on_disk.cut(&part.writable().unwrap().file).unwrap();
    drop(part);
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    assert!(part.is_resumed(), "cut, and claimed");
    assert_eq!(names(folder.path()), ["film.mkv.part"]);
    part.on_disk.cut(&part.writable().unwrap().file).unwrap();
    part.on_disk.give_name(&part.on_disk.path, &part.on_disk.whole).unwrap();
    drop(part);
    assert!(open(folder.path(), SIZE).unwrap().is_none(), "named already");
    let Ok(Existing::Candidate(file)) = existing(&whole, SIZE) else { panic!("it is there") };
    remove_leftovers(folder.path(), &name("film.mkv"), content(b"film"), &file);
    assert_eq!(names(folder.path()), ["film.mkv"]);
}

/// Once a process was killed between two names of a partial file, and the random one stayed a
/// second name of the published file for ever.
#[test]
fn the_temporary_name_of_a_new_partial_file_does_not_stay() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    for own in [first_name(7), "mine.part".to_owned()] {
        link(&part.on_disk.file, &folder.path().join(own)).unwrap();
    }
    std::fs::write(folder.path().join(first_name(8)), b"of another download").unwrap();
    drop(part);
    assert!(open(folder.path(), SIZE).unwrap().unwrap().is_resumed());
    assert_eq!(names(folder.path()), [&first_name(8), "film.mkv.part", "mine.part"]);
}

/// Without locks two downloads may share one partial file. What one has published stays as it is.
#[test]
fn a_late_write_of_a_second_download_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), SIZE).unwrap().unwrap();
    let file = super::open(&first.on_disk.path, OFlags::RDWR).unwrap();
    let PartFile { path, trailer, .. } = &first.on_disk;
    let second = PartFile::new(&file, folder.path(), path, &name("film.mkv"), *trailer).unwrap();
    let before = second.file.metadata().unwrap();
    second.make_room(&file).unwrap();
    let second = Part::begin(second, file, true, true);
    assert_eq!(
        second.on_disk.file.metadata().unwrap().modified().unwrap(),
        before.modified().unwrap()
    );
    write(&first, 0, 3);
    write(&first, 1, 7);
    assert!(matches!(first.finish(), Ok(Finish::Doubtful)), "a second one has it open");
    second.end().writable = None;
    assert!(matches!(first.finish(), Ok(Finish::Doubtful)), "it was checked while that wrote");
    assert!(matches!(first.finish(), Ok(Finish::Published(_))));
    write(&second, 1, 7);
    let whole = std::fs::read(&first.on_disk.whole).unwrap();
    assert_eq!(whole.len() as u64, SIZE, "nothing is behind the content");
    assert_eq!(whole[CHUNK_BYTES..], [7; 4321]);
}

/// Once a download that did not fit took all space for a moment, and other programs failed to
/// write.
#[test]
fn a_file_that_does_not_fit_reserves_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    let before = part.on_disk.file.metadata().unwrap().blocks();
    let trailer = Trailer { size: 1 << 50, ..part.on_disk.trailer };
    let writable = part.writable().unwrap();
    let new = |trailer| {
        PartFile::new(&writable.file, folder.path(), part.path(), &name("film.mkv"), trailer)
    };
    let on_disk = new(trailer).unwrap();
    assert!(matches!(on_disk.make_room(&writable.file), Err(FetchError::NoRoom { .. })));
    assert_eq!(on_disk.file.metadata().unwrap().blocks(), before);
}

#[test]
fn a_trailer_with_any_byte_changed_or_missing_is_none() {
    let trailer = Trailer { size: SIZE, content: content(b"film") };
    let bytes = trailer.encode();
    assert_eq!(Trailer::decode(&bytes), Some(trailer));
    for at in (0..88).chain([4095]) {
        let mut bad = bytes;
        bad[at] ^= 1;
        assert_eq!(Trailer::decode(&bad), None, "byte {at}");
    }
    for length in [0, 15, 16, 23, 24, 55, 56, 88, 4095] {
        assert_eq!(Trailer::decode(&bytes[..length]), None, "{length} bytes");
    }
}

#[test]
fn a_long_names_partial_file_has_a_name_that_fits() {
    let content = content(b"x");
    assert_eq!(part_name(&name("a.b"), content), "a.b.part");
    let longest = "ü".repeat(127) + "x";
    let part = part_name(&name(&longest), content);
    assert!(part.len() <= FILE_NAME_BYTES_MAX && part.ends_with(".part"), "{part}");
    let other = part_name(&name(&longest), ContentId([0; 32]));
    assert_ne!(part, other);
    let folder = tempfile::tempdir().unwrap();
    drop(Part::open(folder.path(), &name(&longest), content, 5).unwrap().unwrap());
    assert!(folder.path().join(part).exists());
}

#[test]
fn a_file_larger_than_any_disk_is_refused_at_once_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    // Setting a length is not enough: the file system is asked for the space.
    let error = open(folder.path(), 1 << 55).unwrap_err();
    assert!(matches!(error, FetchError::NoRoom { .. } | FetchError::NotSoLarge { .. }), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Another process that has a file mapped and not open. It is written in C, because Rust has no
/// safe mapping.
struct Mapper(Child, BufReader<std::process::ChildStdout>);

impl Mapper {
    fn start(folder: &Path, file: &Path) -> Mapper {
        let program = folder.join("mapped_writer");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/mapped_writer.c");
        let compiled = Command::new("cc").arg("-o").arg(&program).arg(source).status().unwrap();
        assert!(compiled.success());
        let mut command = Command::new(program);
        command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut mapper = Mapper(child, said);
        mapper.expect("mapped\n");
        mapper
    }

    fn expect(&mut self, expected: &str) {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }

    fn store(&mut self, offset: usize, byte: u8) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{offset} {byte}").unwrap();
        self.expect("written\n");
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_good(part: &Part, index: u64, byte: u8) -> bool {
    let mut buffer = BufferPool::new(CHUNK_BYTES, 1).take(0).unwrap();
    part.read_chunk(index, &mut buffer).unwrap();
    buffer.as_ref().iter().all(|found| *found == byte)
}

/// A store to a dirty page of a mapping changes the file without any trace outside.
#[test]
fn bytes_written_through_a_mapping_are_never_published() {
    // The file is mapped during the download, or before it is resumed.
    for is_resumed in [false, true] {
        let (folder, tools) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut part = open(folder.path(), SIZE).unwrap().unwrap();
        write(&part, 0, 3);
        write(&part, 1, 3);
        let mut mapper = Mapper::start(tools.path(), part.path());
        mapper.store(10, 3);
        if is_resumed {
            drop(part);
            part = open(folder.path(), SIZE).unwrap().unwrap();
        }
        mapper.store(10, 9);
        assert_eq!(part.finish().unwrap(), Finish::Doubtful);
        assert!(!is_good(&part, 0, 3), "the check finds it");
        write(&part, 0, 3);
        // The page is dirty, and good when it is checked.
        mapper.store(10, 3);
        assert_eq!(part.finish().unwrap(), Finish::Doubtful);
        assert!(is_good(&part, 0, 3) && is_good(&part, 1, 3));
        mapper.store(10, 9);
        assert_eq!(part.finish().unwrap(), Finish::Doubtful, "it may go on");
        assert!(!is_good(&part, 0, 3));
        drop(mapper);
        assert_eq!(part.finish().unwrap(), Finish::Doubtful, "it was not checked since");
        write(&part, 0, 3);
        assert_eq!(part.finish().unwrap(), Finish::Doubtful, "others may have written beside it");
        assert!(is_good(&part, 0, 3) && is_good(&part, 1, 3));
        assert!(matches!(part.finish(), Ok(Finish::Published(_))));
        assert!(std::fs::read(part.whole_path()).unwrap().iter().all(|byte| *byte == 3));
    }
}

/// Once a program that reads the partial file was taken for one that writes, and the download
/// failed.
#[test]
fn a_reader_of_the_partial_file_costs_one_more_check() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    write(&part, 1, 3);
    let _reader = File::open(part.path()).unwrap();
    assert_eq!(part.finish().unwrap(), Finish::Doubtful);
    let _another = File::open(part.path()).unwrap();
    assert!(matches!(part.finish(), Ok(Finish::Published(_))));
    // Serving it to others costs no check.
    let part = Part::open(folder.path(), &name("b"), content(b"film"), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    part.served().unwrap().read_exact_at(&mut [0; 9], 7).unwrap();
    write(&part, 1, 3);
    assert!(matches!(part.finish(), Ok(Finish::Published(_))));
}

/// Once a second download opened the partial file for writing before it looked at the lock. Each
/// attempt broke the first one's lease, until that gave up and blamed another program.
#[test]
fn a_second_download_takes_no_lease_from_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    write(&part, 1, 3);
    drop(File::open(part.path()).unwrap());
    assert_eq!(part.finish().unwrap(), Finish::Doubtful);
    for _ in 0..2 * PART_RECHECKS_MAX {
        assert!(matches!(open(folder.path(), SIZE), Err(FetchError::UnderWay(_))));
    }
    assert!(matches!(part.finish().unwrap(), Finish::Published(_)));
}

/// A writer waits for the lease. When it is let in, the check under the lease does not count.
#[test]
fn a_writer_during_the_check_has_the_file_checked_again() {
    let folder = tempfile::tempdir().unwrap();
    let part = open(folder.path(), SIZE).unwrap().unwrap();
    write(&part, 0, 3);
    write(&part, 1, 3);
    drop(File::open(part.path()).unwrap());
    assert_eq!(part.finish().unwrap(), Finish::Doubtful);
    let path = part.path().to_owned();
    let writer = std::thread::spawn(move || {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&[9], 10).unwrap();
    });
    // It is waiting when the lease is not whole any more.
    let asked = || !part.end().lease.as_ref().is_some_and(FileLease::is_whole);
    while !asked() {
        std::thread::yield_now();
    }
    assert_eq!(part.finish().unwrap(), Finish::Doubtful);
    writer.join().unwrap();
    while is_good(&part, 0, 3) {
        assert_eq!(part.finish().unwrap(), Finish::Doubtful, "wrong bytes are not published");
    }
}
