use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::share::content::chunk_count;

const PATIENCE: Duration = Duration::from_secs(60);
const QUICK: FolderOptions =
    FolderOptions { threads: 3, rescan_interval: Duration::from_millis(20) };

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

fn write(folder: &Path, file: &str, bytes: &[u8]) {
    std::fs::write(folder.join(file), bytes).unwrap();
}

/// Opens a folder; also how many bytes were hashed for that.
fn open(path: &Path) -> (Arc<Folder>, u64) {
    let hashed = AtomicU64::new(0);
    let progress = |progress: HashProgress| {
        hashed.fetch_max(progress.bytes_done, Ordering::Relaxed);
    };
    let folder = Folder::open(path, PeerId(7), QUICK, &progress).unwrap();
    (folder, hashed.load(Ordering::Relaxed))
}

fn names(folder: &Folder) -> Vec<String> {
    folder.files().into_iter().map(|file| file.name.to_string()).collect()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at / 1000) as u8 ^ seed).collect()
}

#[test]
fn every_file_is_hashed_as_b3sum_would_and_once() {
    let dir = tempfile::tempdir().unwrap();
    let contents =
        [("none", 0), ("one", 1), ("chunk", 1 << 20), ("film.mkv", (5 << 20) + 12_345), ("é x", 9)];
    for (file, length) in contents {
        write(dir.path(), file, &bytes(length, length as u8));
    }
    let (folder, hashed) = open(dir.path());
    let total: usize = contents.iter().map(|(_, length)| length).sum();
    assert_eq!(hashed, total as u64);
    let mut sorted: Vec<&str> = contents.iter().map(|(file, _)| *file).collect();
    sorted.sort_unstable();
    assert_eq!(names(&folder), sorted);
    for (file, length) in contents {
        let entry = folder.find(&name(file)).unwrap();
        let expected = blake3::hash(&bytes(length, length as u8));
        assert_eq!((entry.size, &entry.content.0), (length as u64, expected.as_bytes()), "{file}");
        let offer = folder.offer(entry.content).unwrap();
        assert_eq!(offer.manifest.chunks().len() as u64, chunk_count(length as u64));
        assert_eq!(offer.file, file);
    }
    let before = folder.files();
    drop(folder);

    write(dir.path(), "one", b"2");
    let (folder, hashed) = open(dir.path());
    assert_eq!(hashed, 1, "only what has changed");
    assert_eq!(folder.files().len(), before.len());
    assert_ne!(folder.files(), before);
}

#[test]
fn a_folder_keeps_its_id_and_a_copy_of_it_gets_another() {
    let dir = tempfile::tempdir().unwrap();
    let (original, copy) = (dir.path().join("a"), dir.path().join("b"));
    for path in [&original, &copy] {
        std::fs::create_dir(path).unwrap();
        write(path, "f", b"1");
    }
    drop(open(&original));
    let again = Folder::open(&original, PeerId(8), QUICK, &|_| {}).unwrap();
    assert_eq!(again.peer(), PeerId(7));
    std::fs::copy(original.join(state::STATE_FILE), copy.join(state::STATE_FILE)).unwrap();
    let other = Folder::open(&copy, PeerId(9), QUICK, &|_| {}).unwrap();
    assert_eq!(other.peer(), PeerId(9));
}

#[test]
fn a_state_that_is_damaged_anywhere_is_ignored() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "f", b"content");
    drop(open(dir.path()));
    let path = dir.path().join(state::STATE_FILE);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let (_, hashed) = open(dir.path());
        assert_eq!(hashed, 7, "byte {at}");
    }
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        assert_eq!(open(dir.path()).1, 7, "{length} bytes");
    }
    assert_eq!(open(dir.path()).1, 0);
}

#[test]
fn what_is_not_a_plain_file_with_a_plain_name_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let path = dir.path();
    write(path, "good", b"1");
    for bad in [".hidden", "film.mkv.part", "a\nb", "x\x1b[2J", "C:drive", "a\\b", "con", "aux.txt"]
    {
        write(path, bad, b"1");
    }
    let not_utf8 = std::ffi::OsStr::new("ok").to_owned();
    let mut not_utf8 = std::os::unix::ffi::OsStringExt::into_vec(not_utf8);
    not_utf8.push(0xff);
    let not_utf8: OsString = std::os::unix::ffi::OsStringExt::from_vec(not_utf8);
    std::fs::write(path.join(not_utf8), b"1").unwrap();
    symlink(outside.path(), path.join("link-out")).unwrap();
    symlink("good", path.join("link-in")).unwrap();
    symlink("nowhere", path.join("link-dangling")).unwrap();
    symlink("/dev/zero", path.join("link-device")).unwrap();
    std::fs::create_dir(path.join("below")).unwrap();
    write(&path.join("below"), "file", b"1");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, path.join("fifo"), mode).unwrap();
    let longest = "n".repeat(255);
    write(path, &longest, b"1");

    let (folder, _) = open(path);
    assert_eq!(names(&folder), ["good", &longest]);
}

#[test]
fn one_process_shares_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).0;
    let second = Folder::open(dir.path(), PeerId(1), QUICK, &|_| {});
    assert!(matches!(second, Err(FolderError::InUse(_))), "{second:?}");
    drop(first);
    open(dir.path());
    let missing = Folder::open(&dir.path().join("missing"), PeerId(1), QUICK, &|_| {});
    assert!(matches!(missing, Err(FolderError::Unreadable { .. })));
    write(dir.path(), "file", b"1");
    let file = Folder::open(&dir.path().join("file"), PeerId(1), QUICK, &|_| {});
    assert!(matches!(file, Err(FolderError::Unreadable { .. })));
}

/// Waits until the watcher has told of a change after which `check` holds.
fn wait_for(changes: &Receiver<()>, what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        changes.recv_deadline(deadline).unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

#[test]
fn files_that_come_change_and_go_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "stays", b"1");
    let (folder, _) = open(dir.path());
    let (changed, changes) = bounded(1024);
    let watcher = Watcher::start(Arc::clone(&folder), QUICK, move || {
        let _ = changed.try_send(());
    });
    let watcher = watcher.unwrap();

    write(dir.path(), "comes", b"22");
    wait_for(&changes, "a new file", || names(&folder) == ["comes", "stays"]);
    let content = |bytes: &[u8]| ContentId(*blake3::hash(bytes).as_bytes());
    write(dir.path(), "comes", b"333");
    wait_for(&changes, "a changed file", || folder.offer(content(b"333")).is_some());
    assert!(folder.offer(content(b"22")).is_none());
    // Replaced by another of the same length.
    write(dir.path(), "other.part", b"444");
    std::fs::rename(dir.path().join("other.part"), dir.path().join("comes")).unwrap();
    wait_for(&changes, "a replaced file", || folder.offer(content(b"444")).is_some());
    // What a server finds changed is not offered at once, and again when it has been hashed.
    folder.changed(&folder.offer(content(b"444")).unwrap());
    assert!(folder.offer(content(b"444")).is_none());
    wait_for(&changes, "a suspect is hashed again", || folder.offer(content(b"444")).is_some());
    std::fs::remove_file(dir.path().join("comes")).unwrap();
    wait_for(&changes, "a file that went", || names(&folder) == ["stays"]);
    drop(watcher);
    drop(folder);
    assert_eq!(open(dir.path()).1, 0, "what is left is known");
}

#[test]
fn a_downloaded_file_is_offered_without_being_hashed() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = open(dir.path());
    let content = bytes(3 << 20, 1);
    write(dir.path(), "film", &content);
    let manifest = Arc::new(Manifest::of_bytes(&content).unwrap());
    let metadata = std::fs::metadata(dir.path().join("film")).unwrap();
    folder.add(name("film"), Arc::clone(&manifest), FileStamp::of(&metadata));
    assert_eq!(folder.find(&name("film")).unwrap().content, manifest.content());
    drop(folder);
    assert_eq!(open(dir.path()).1, 0);
}

#[test]
fn a_file_that_is_not_what_was_found_any_more_is_not_hashed() {
    let dir = tempfile::tempdir().unwrap();
    for (file, before, after) in
        [("grows", &b"1"[..], &b"22"[..]), ("shrinks", b"22", b"1"), ("fills", b"", b"1")]
    {
        write(dir.path(), file, before);
        let Scan { mut files, .. } = scan::scan(dir.path(), &HashSet::new()).unwrap();
        files.retain(|found| found.name == name(file));
        write(dir.path(), file, after);
        let stop = AtomicBool::new(false);
        let hasher = Hasher { folder: dir.path(), threads: 2, stop: &stop };
        let mut results = Vec::new();
        hasher.hash(&files, &|_| {}, &mut |_, result| results.push(result));
        assert!(matches!(results[..], [Err(hash::HashError::Changed)]), "{file}: {results:?}");
    }
}
