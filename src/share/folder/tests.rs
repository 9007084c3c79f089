//! Folders that are watched while their files come, change, vanish and are corrupted.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicUsize;

use super::watcher::FolderScanner;
use super::*;
use crate::model::NameError;
use crate::share::content::chunk_count;

const PATIENCE: Duration = Duration::from_secs(60);
const QUICK: FolderOptions =
    FolderOptions { threads: 3, rescan_interval: Duration::from_millis(20) };

fn name(name: &str) -> FileName {
    FileName::new(name).unwrap()
}

fn identity_of(path: &Path) -> Option<FileIdentity> {
    let folder = File::open(path.parent()?).ok()?;
    scan::identity_of(&folder, &name(path.file_name()?.to_str()?))
}

fn write(folder: &Path, file: &str, bytes: &[u8]) {
    std::fs::write(folder.join(file), bytes).unwrap();
}

/// Opens a folder and waits until it is hashed. Returns also the number of bytes hashed.
fn open(path: &Path) -> (Arc<Folder>, u64) {
    let folder = Folder::open(path, PeerId(7)).unwrap();
    let watcher = Watcher::start(Arc::clone(&folder), QUICK, |_| {}, || {}).unwrap();
    folder.wait_until_hashed(PATIENCE);
    assert!(folder.hashing().is_done());
    drop(watcher);
    let hashed = folder.hashing().bytes_done;
    (folder, hashed)
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
    let again = Folder::open(&original, PeerId(8)).unwrap();
    assert_eq!(again.peer(), PeerId(7));
    std::fs::copy(original.join(state::STATE_FILE), copy.join(state::STATE_FILE)).unwrap();
    let other = Folder::open(&copy, PeerId(9)).unwrap();
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
fn only_regular_files_with_valid_names_are_offered() {
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    let path = dir.path();
    write(path, "good", b"1");
    for bad in
        [".hidden", "film.mkv.part", "film.mkv.CRdownload", "f.aria2", "a\nb", "x\x1b[2J", "a\\b"]
    {
        write(path, bad, b"1");
    }
    // Names that are reserved on other systems only.
    let elsewhere = ["12:30:05.mkv", "aux.txt", "con", "etc.", "who?"];
    elsewhere.iter().for_each(|name| write(path, name, b"1"));
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
    let good = ["12:30:05.mkv", "aux.txt", "con", "etc.", "good", &longest, "who?"];
    assert_eq!(names(&folder), good);
    let left_out: Vec<(LeftOut, usize)> = folder.left_out().into_iter().collect();
    let expected = [
        (LeftOut::Folder, 1),
        (LeftOut::Link, 4),
        (LeftOut::Special, 1),
        (LeftOut::Hidden, 1),
        (LeftOut::Partial, 3),
        (LeftOut::NotUtf8, 1),
        (LeftOut::Name(NameError::Separator('\\')), 1),
        (LeftOut::Name(NameError::Control), 2),
    ];
    assert_eq!(left_out, expected, "the state file is none of them");
}

#[test]
fn only_one_process_shares_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).0;
    let second = Folder::open(dir.path(), PeerId(1));
    assert!(matches!(second, Err(FolderError::InUse(_))), "{second:?}");
    drop(first);
    open(dir.path());
    let missing = Folder::open(&dir.path().join("missing"), PeerId(1));
    assert!(matches!(missing, Err(FolderError::Unreadable { .. })));
    write(dir.path(), "file", b"1");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), mode).unwrap();
    // Once a FIFO was waited for until someone wrote to it.
    for other in ["file", "fifo"] {
        let other = Folder::open(&dir.path().join(other), PeerId(1));
        let Err(FolderError::Unreadable { source, .. }) = &other else { panic!("{other:?}") };
        assert_eq!(source.kind(), io::ErrorKind::NotADirectory);
    }
}

/// Waits until the watcher has announced a change after which `check` holds.
fn wait_for(changes: &Receiver<()>, what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        changes.recv_deadline(deadline).unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }
}

/// A watched folder, the channel of its changes, and the number of calls of its progress.
fn watch(path: &Path) -> (Arc<Folder>, Watcher, Receiver<()>, Arc<AtomicUsize>) {
    watch_with(path, QUICK)
}

fn watch_with(
    path: &Path,
    options: FolderOptions,
) -> (Arc<Folder>, Watcher, Receiver<()>, Arc<AtomicUsize>) {
    let folder = Folder::open(path, PeerId(7)).unwrap();
    let (changed, changes) = bounded(1024);
    let hashed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hashed);
    let progress = move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
    };
    let watcher = Watcher::start(Arc::clone(&folder), options, progress, move || {
        let _ = changed.try_send(());
    });
    (folder, watcher.unwrap(), changes, hashed)
}

#[test]
fn files_that_come_change_and_go_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "stays", b"1");
    let (folder, watcher, changes, _) = watch(dir.path());

    write(dir.path(), "comes", b"22");
    wait_for(&changes, "a new file", || names(&folder) == ["comes", "stays"]);
    let content = |bytes: &[u8]| ContentId(*blake3::hash(bytes).as_bytes());
    write(dir.path(), "comes", b"333");
    wait_for(&changes, "a changed file", || folder.offer(content(b"333")).is_some());
    assert!(folder.offer(content(b"22")).is_none());
    // Replaced by another file of the same length.
    write(dir.path(), "other.part", b"444");
    std::fs::rename(dir.path().join("other.part"), dir.path().join("comes")).unwrap();
    wait_for(&changes, "a replaced file", || folder.offer(content(b"444")).is_some());
    // A file that a server has found changed is offered again after the next scan.
    folder.changed(&folder.offer(content(b"444")).unwrap());
    wait_for(&changes, "a suspect is offered again", || folder.offer(content(b"444")).is_some());
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
fn a_folder_that_vanishes_for_a_while_is_not_hashed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("disk"), dir.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    write(&path, "film", &bytes(3 << 20, 1));
    write(&path, "changes", b"1");
    let (folder, watcher, changes, hashed) = watch(&path);
    wait_for(&changes, "all is hashed", || names(&folder) == ["changes", "film"]);
    folder.wait_until_hashed(PATIENCE);
    let offer = folder.find(&name("film")).unwrap();
    // First it is gone; then an empty folder is in its place, like a mount point.
    for is_empty in [false, true] {
        // The first hashing may still be reporting its end.
        let before = eventually_still(&hashed);
        if is_empty {
            // A server notices before the next scan.
            folder.changed(&folder.offer(offer.content).unwrap());
        }
        std::fs::rename(&path, &away).unwrap();
        if is_empty {
            std::fs::create_dir(&path).unwrap();
        }
        wait_for(&changes, "nothing is offered", || names(&folder).is_empty());
        if is_empty {
            // Nothing is written to a folder that is not the shared one.
            std::fs::remove_dir(&path).unwrap();
        }
        std::fs::rename(&away, &path).unwrap();
        wait_for(&changes, "it is back", || names(&folder).len() == 2);
        assert_eq!(hashed.load(Ordering::Relaxed), before, "it was known");
    }
    // Only the file that has changed meanwhile is hashed.
    std::fs::rename(&path, &away).unwrap();
    wait_for(&changes, "nothing is offered", || names(&folder).is_empty());
    write(&away, "changes", b"22");
    std::fs::rename(&away, &path).unwrap();
    let changed = ContentId(*blake3::hash(b"22").as_bytes());
    wait_for(&changes, "what has changed is known", || folder.offer(changed).is_some());
    assert_eq!(folder.hashing().bytes, 2);
    assert_eq!(folder.find(&name("film")), Some(offer));
    drop((watcher, folder));
    assert_eq!(open(&path).1, 0);
}

/// A scan lists the folder and then decides. Changes in between are newer than the list.
#[test]
fn a_scan_decides_nothing_about_files_that_were_hashed_since_it_began() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("disk"), dir.path().join("away"));
    std::fs::create_dir(&path).unwrap();
    write(&path, "film", b"1");
    let (folder, _) = open(&path);
    let film = folder.offer(ContentId(*blake3::hash(b"1").as_bytes())).unwrap();
    let mut scanner = FolderScanner::new(&folder, QUICK);
    let now = Instant::now();
    let hashes_nothing = || folder.hashing().is_done();

    // A server has found it changed, although its identity is the same.
    let list = scanner.list().unwrap();
    folder.changed(&film);
    scanner.apply_scan(list, now);
    assert!(names(&folder).is_empty() && hashes_nothing());
    scanner.scan_now(now);
    assert!(names(&folder) == ["film"] && hashes_nothing());

    // It goes away after it was listed, and comes back.
    let list = scanner.list().unwrap();
    std::fs::rename(&path, &away).unwrap();
    folder.changed(&film);
    scanner.apply_scan(list, now);
    assert!(names(&folder).is_empty());
    scanner.scan_now(now);
    std::fs::rename(&away, &path).unwrap();
    scanner.scan_now(now);
    assert!(names(&folder) == ["film"] && hashes_nothing());

    // A download ends after the folder was listed.
    let list = scanner.list().unwrap();
    write(&path, "new", b"22");
    let metadata = std::fs::metadata(path.join("new")).unwrap();
    let manifest = Arc::new(Manifest::of_bytes(b"22").unwrap());
    folder.add(name("new"), manifest, FileStamp::of(&metadata));
    scanner.apply_scan(list, now);
    assert_eq!(names(&folder), ["film", "new"]);
    scanner.scan_now(now);
    assert!(names(&folder) == ["film", "new"] && hashes_nothing());

    // It really changes after it was listed.
    let list = scanner.list().unwrap();
    write(&path, "film", b"333");
    folder.changed(&film);
    scanner.apply_scan(list, now);
    assert!(names(&folder) == ["new"] && hashes_nothing());
    scanner.scan_now(now);
    scanner.scan_now(now);
    assert_eq!((folder.hashing().files, folder.hashing().bytes), (1, 3));
}

/// What kept it from being hashed leaves no trace in its identity: a mode, a disk that was away.
#[test]
fn a_file_that_could_not_be_hashed_is_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "film", b"1");
    let folder = Folder::open(dir.path(), PeerId(7)).unwrap();
    let found = folder.scan().unwrap().remove(0);
    let mut scanner = FolderScanner::new(&folder, QUICK);
    let mut now = Instant::now();
    for wait in [1, 2, 4, 8, 16, 32, 32, 32].map(|times| times * files::FOLDER_RETRY_MIN) {
        folder.queue.retain(|_, _| false);
        folder.hashed(&found, Err(HashError::Changed), now);
        for (time, is_tried) in [(wait / 2, false), (wait, true)] {
            // Two scans, since a new file is hashed when two have found it with the same identity.
            (0..2).for_each(|_| scanner.scan_now(now + time));
            assert_eq!(folder.queue.contains(&found), is_tried, "{time:?} of {wait:?}");
        }
        now += wait;
    }
    // A file that has changed is another file.
    write(dir.path(), "film", b"22");
    folder.queue.retain(|_, _| false);
    (0..2).for_each(|_| scanner.scan_now(now));
    assert_eq!(folder.hashing().files, 1);
}

/// A counter's value, once it has stayed the same for two scans.
fn eventually_still(count: &AtomicUsize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let mut last = count.load(Ordering::Relaxed);
    let mut since = Instant::now();
    while since.elapsed() < 2 * QUICK.rescan_interval {
        assert!(Instant::now() < deadline);
        thread::yield_now();
        let now = count.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn a_link_or_folder_in_place_of_the_state_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, b"somebody's own").unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let link = |path: &Path| symlink(&precious, path).unwrap();
    let fifo = |path: &Path| rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).unwrap();
    let folder = |path: &Path| std::fs::create_dir(path).unwrap();
    let stands: [&dyn Fn(&Path); 3] = [&link, &fifo, &folder];
    for (number, stand) in stands.into_iter().enumerate() {
        let shared = dir.path().join(format!("shared-{number}"));
        std::fs::create_dir(&shared).unwrap();
        write(&shared, "file", b"1");
        stand(&shared.join(state::STATE_FILE));
        stand(&shared.join(".acervo-share.new"));
        stand(&shared.join(".acervo-share.0123456789abcdef.new"));
        let before = kinds(&shared);
        assert_eq!(names(&open(&shared).0), ["file"]);
        assert_eq!(kinds(&shared), before);
        assert_eq!(std::fs::read(&precious).unwrap(), b"somebody's own");
    }
    // The new state file of a killed process is removed.
    let shared = dir.path().join("left");
    std::fs::create_dir(&shared).unwrap();
    write(&shared, ".acervo-share.0123456789abcdef.new", b"half");
    write(&shared, ".acervo-share.mine", b"somebody's own");
    assert!(open(&shared).0.left_out().contains_key(&LeftOut::Hidden));
    let left: Vec<String> = kinds(&shared).into_keys().collect();
    assert_eq!(left, [state::STATE_FILE, ".acervo-share.mine"]);
}

fn kinds(folder: &Path) -> BTreeMap<String, std::fs::FileType> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let kind = |entry: std::fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), entry.file_type().unwrap())
    };
    entries.map(kind).collect()
}

/// Once a file that was changed in place with its modification time set back was served as it had
/// been for ever. So was one that the disk had corrupted.
#[test]
fn a_file_altered_without_a_trace_or_corrupted_is_hashed_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    write(dir.path(), "a", b"before");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let content = |bytes: &[u8]| ContentId(*blake3::hash(bytes).as_bytes());
    let (folder, _) = open(dir.path());
    drop(folder);
    let before = identity_of(&path).unwrap();
    // Until the clock of the file system has advanced.
    while identity_of(&path).unwrap() == before {
        write(dir.path(), "a", b"behind");
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }
    let (folder, _) = open(dir.path());
    assert_eq!(folder.find(&name("a")).unwrap().content, content(b"behind"), "over a restart");
    drop(folder);
    // No scan comes meanwhile.
    let never = FolderOptions { rescan_interval: Duration::from_secs(1 << 20), ..QUICK };
    let (folder, _watcher, changes, _) = watch_with(dir.path(), never);
    let offer = folder.offer(content(b"behind")).unwrap();
    // Other bytes, of which the identity shows nothing.
    write(dir.path(), "a", b"befoul");
    let identity = identity_of(&path).unwrap();
    let offer = Offer { stamp: Some(identity.stamp), ..offer };
    folder.known().set_identity(&name("a"), identity);
    folder.corrupted(&offer);
    assert!(folder.offer(content(b"behind")).is_none(), "it is withdrawn at once");
    assert!(folder.may_return(content(b"behind")), "the file may hold it after all");
    wait_for(&changes, "what it holds now", || folder.offer(content(b"befoul")).is_some());
    assert_eq!(names(&folder), ["a"]);
}

/// Peers have to tell a content that is gone from one whose file is only being hashed again, as
/// after a touch.
#[test]
fn a_file_that_may_return_is_distinguished_from_a_removed_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    write(path, "film", b"1");
    let (folder, _) = open(path);
    let content = |bytes: &[u8]| ContentId(*blake3::hash(bytes).as_bytes());
    let stands = || (folder.offer(content(b"1")).is_some(), folder.may_return(content(b"1")));
    assert_eq!(stands(), (true, false));
    let mut scanner = FolderScanner::new(&folder, QUICK);
    let now = Instant::now();
    let hash = |result| {
        let found = folder.scan().unwrap().remove(0);
        folder.hashed(&found, result, now);
    };
    let touch = || {
        let file = File::options().write(true).open(path.join("film")).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(modified + Duration::from_secs(5)).unwrap();
    };
    // First noticed by a server, or by a scan.
    for by_server in [true, false] {
        touch();
        if by_server {
            folder.changed(&folder.offer(content(b"1")).unwrap());
            assert_eq!(stands(), (false, true));
        }
        (0..3).for_each(|_| scanner.scan_now(now));
        assert_eq!(stands(), (false, true), "it waits to be hashed");
        hash(Ok(Manifest::of_bytes(b"1").unwrap()));
        assert_eq!(stands(), (true, false));
        scanner.scan_now(now);
    }
    // It holds something else, or cannot be read.
    for other in [Ok(Manifest::of_bytes(b"22").unwrap()), Err(HashError::Changed)] {
        touch();
        scanner.scan_now(now);
        assert_eq!(stands(), (false, true));
        hash(other);
        assert_eq!(stands(), (false, false));
        hash(Ok(Manifest::of_bytes(b"1").unwrap()));
        scanner.scan_now(now);
    }
    // It is removed, at once or while it waits to be hashed.
    for is_touched in [false, true] {
        write(path, "film", b"1");
        touch();
        scanner.scan_now(now);
        hash(Ok(Manifest::of_bytes(b"1").unwrap()));
        scanner.scan_now(now);
        if is_touched {
            touch();
            scanner.scan_now(now);
            assert_eq!(stands(), (false, true));
        }
        std::fs::remove_file(path.join("film")).unwrap();
        scanner.scan_now(now);
        assert_eq!(stands(), (false, false));
    }
}

/// A withdrawn file is announced at once, and not with the next scan.
#[test]
fn a_withdrawn_file_is_announced_at_once() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a", b"1");
    drop(open(dir.path()));
    let never = FolderOptions { rescan_interval: Duration::from_secs(1 << 20), ..QUICK };
    let (folder, _watcher, changes, _) = watch_with(dir.path(), never);
    folder.changed(&folder.offer(ContentId(*blake3::hash(b"1").as_bytes())).unwrap());
    assert!(names(&folder).is_empty());
    changes.recv_timeout(PATIENCE).expect("it is told");
}

/// Once a link in the place of a shared folder was followed, and everything behind it was offered.
#[test]
fn another_folder_in_place_of_the_shared_one_is_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let (path, away) = (dir.path().join("shared"), dir.path().join("away"));
    let outside = dir.path().join("outside");
    for folder in [&path, &outside] {
        std::fs::create_dir(folder).unwrap();
    }
    write(&path, "film", b"1");
    write(&outside, "secret", b"22");
    let (folder, _) = open(&path);
    let mut scanner = FolderScanner::new(&folder, QUICK);
    let now = Instant::now();
    let to_outside = |path: &Path| symlink(&outside, path).unwrap();
    let to_itself = |path: &Path| symlink(&away, path).unwrap();
    let other = |path: &Path| {
        std::fs::create_dir(path).unwrap();
        write(path, "secret", b"22");
    };
    let file = |path: &Path| std::fs::write(path, b"22").unwrap();
    let stands: [&dyn Fn(&Path); 4] = [&to_outside, &to_itself, &other, &file];
    for (number, stand) in stands.into_iter().enumerate() {
        std::fs::rename(&path, &away).unwrap();
        stand(&path);
        (0..3).for_each(|_| scanner.scan_now(now));
        assert!(names(&folder).is_empty() && folder.hashing().is_done(), "{number}");
        // Nothing is saved there either.
        folder.note_change();
        folder.save();
        let is_kept = |folder: &Path| folder.join(state::STATE_FILE).exists();
        assert!(!is_kept(&outside) && (number == 1 || !is_kept(&path)), "{number}");
        std::fs::rename(&path, dir.path().join(format!("stood-{number}"))).unwrap();
        std::fs::rename(&away, &path).unwrap();
        scanner.scan_now(now);
        assert_eq!(names(&folder), ["film"], "{number}");
        assert!(folder.hashing().is_done(), "it is not hashed anew");
    }
    // Files are looked at in the folder that was listed, not in what is in its place by now.
    write(&path, "new", b"333");
    let found = scanner.list().unwrap();
    std::fs::rename(&path, &away).unwrap();
    to_outside(&path);
    write(&outside, "new", b"444");
    let new = found.iter().find(|found| found.name == name("new")).unwrap();
    assert_eq!(scan::identity_of(&folder.root.folder(), &name("new")), Some(new.identity));
    assert_eq!(scan::identity_of(&folder.root.folder(), &name("secret")), None);
}
