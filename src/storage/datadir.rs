//! The data directory and its guard: one process, one server, one group.
//!
//! `LOCK` is locked for as long as the [`DataDir`] lives, so that two processes never write the same
//! files. `IDENTITY` says whose directory it is, and whether its server was ever admitted to the group:
//! a blank log then means that what it had is lost. A directory that is not this server's is refused
//! before anything in it is touched. And it says whether a verdict was reached that what is in the directory
//! must not be used again, so that a kill between the verdict and the rebuilding changes nothing.
//!
//! What is damaged is set aside (`set_aside`) until the server has been rebuilt.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::{self, Directory, DiskFile, RealDirectory};
use super::reserve::{DiskReserve, ReservedDirectory};
use super::set_aside::{self, SET_ASIDE_MAX};
use super::snapshot::DiskStaging;
use crate::limits;
use crate::model::{ClusterId, NodeId};

/// The layout of the directory this build writes, and the newest it reads.
pub const DIRECTORY_FORMAT_VERSION: u32 = 1;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";
const LOG: &str = "log";
const STORE: &str = "store.redb";
const SNAPSHOT_PARTIAL: &str = "snapshot.partial";
const SNAPSHOT_STAGED: &str = "snapshot.redb";
/// What `mkfs` leaves at the root of a file system, which may be mounted as the data directory.
const LOST_AND_FOUND: &str = "lost+found";
const TITLE: &str = "acervo data directory";
const IDENTITY_BYTES_MAX: usize = 4096;
const UNTRUSTED_NOTHING: &str = "nothing";
const UNTRUSTED_STORE: &str = "store";
const UNTRUSTED_EVERYTHING: &str = "everything";

/// Why a data directory is refused. Each is one sentence for the person who started the server.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The path is something else.
    #[error("{} is not a directory: name another with --data-dir", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}; make it writable or name another with --data-dir", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A running process has it.
    #[error("data directory {} is in use by another process: stop that one first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It holds files and no identity.
    #[error(
        "{} is not empty and not a data directory of acervo: name another with --data-dir",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// It belongs to another server of the group.
    #[error(
        "data directory {} belongs to server {found} of the group and this is server {expected}: \
         name this server's own with --data-dir",
        path.display()
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        expected: NodeId,
    },
    /// It belongs to another group.
    #[error(
        "data directory {} belongs to group {found} and this server to group {expected}: start it \
         with the same --servers as before, or name another with --data-dir",
        path.display()
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: ClusterId,
        /// Who asked.
        expected: ClusterId,
    },
    /// A later release wrote it.
    #[error(
        "data directory {} has format {version}, newer than this release reads \
         ({DIRECTORY_FORMAT_VERSION}): run the release that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        version: u32,
    },
    /// Too much is set aside.
    #[error(
        "{} was found damaged {SET_ASIDE_MAX} times before it was rebuilt: check the disk, then move the data \
         directory away and start on an empty one, so that the group can bring this server up to date",
        path.display()
    )]
    TooMuchSetAside {
        /// What was to be set aside once more.
        path: PathBuf,
    },
    /// Its identity cannot be read.
    #[error(
        "{} is damaged: move the data directory away and start on an empty one, so that the group \
         can bring this server up to date",
        path.display()
    )]
    DamagedIdentity {
        /// The identity file.
        path: PathBuf,
    },
}

/// An open data directory, locked until dropped.
pub struct DataDir {
    directory: Arc<dyn Directory>,
    reserve: Arc<DiskReserve>,
    path: PathBuf,
    #[cfg(any(test, feature = "internals"))]
    is_new: bool,
    incarnation: u64,
    identity: Identity,
    /// For the next time that this directory becomes a new one.
    next_incarnation: u64,
    /// Held for its lock.
    _lock: Arc<dyn DiskFile>,
}

impl fmt::Debug for DataDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDir").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A data directory that may be removed while it is in use.
pub struct Presence {
    directory: Arc<dyn Directory>,
}

impl Presence {
    /// Whether the directory is still where it was opened, with what tells whose it is.
    ///
    /// # Errors
    ///
    /// The operating system's, when it cannot say.
    pub fn is_in_place(&self) -> io::Result<bool> {
        self.directory.is_in_place(&[LOCK, IDENTITY])
    }

    /// Bytes that the directory takes on the disk: the store, the log, the reserve, and what is set aside or on its way.
    ///
    /// # Errors
    ///
    /// The operating system's, when it cannot say.
    pub fn taken_bytes(&self) -> io::Result<u64> {
        /// A block, in which the system counts whatever the file system's own are.
        const BLOCK_BYTES: u64 = 512;
        let (mut folders, mut bytes) = (vec![self.path()], 0);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                // Of the entry itself, be it a link; what has gone meanwhile takes nothing.
                match entry.metadata() {
                    Ok(found) if found.is_dir() => folders.push(entry.path()),
                    Ok(found) => bytes += found.blocks() * BLOCK_BYTES,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(bytes)
    }

    /// The path under which the directory was opened; something else may be there by now.
    pub fn path(&self) -> PathBuf {
        self.directory.path("")
    }
}

/// What `IDENTITY` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    cluster: ClusterId,
    node: NodeId,
    /// Tells this directory from one that the same server had before and lost.
    incarnation: u64,
    /// The server was once admitted to its group, as far as a start has found.
    admitted: bool,
    /// What must not be used again and is not yet set aside.
    untrusted: Option<Untrusted>,
}

/// What of a server's data was found to be damaged, or was refuted by the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrusted {
    /// The store; the log is kept, and the store is rebuilt.
    Store,
    /// Log and store: the server becomes a blank one.
    Everything,
}

/// Sets verdicts about a data directory down in it, while the directory is in use and from any thread. It does
/// not hold the lock.
#[derive(Clone)]
pub struct Verdicts {
    directory: Arc<dyn Directory>,
    /// As it was last written. Nothing else writes it while a server runs.
    identity: Arc<Mutex<Identity>>,
}

impl Verdicts {
    /// Makes it durable that this must not be used again: every start sets it aside first, until it is. A
    /// verdict about less than an earlier one changes nothing.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`].
    pub fn set_down(&self, untrusted: Untrusted) -> Result<(), DataDirError> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = identity.untrusted.max(Some(untrusted));
        let judged = Identity { untrusted: verdict, ..*identity };
        write_identity(&*self.directory, judged)?;
        *identity = judged;
        Ok(())
    }
}

/// Why an `IDENTITY` could not be read.
#[derive(Debug, PartialEq, Eq)]
enum IdentityError {
    Newer(u32),
    Damaged,
}

impl DataDir {
    /// Opens the directory of server `node` of `cluster`, creating it when it does not exist; a new
    /// one is given `incarnation`, a random number.
    ///
    /// # Errors
    ///
    /// Every [`DataDirError`]; then nothing in an existing directory was changed.
    pub fn open(
        path: &Path,
        cluster: ClusterId,
        node: NodeId,
        incarnation: u64,
    ) -> Result<DataDir, DataDirError> {
        create(path)?;
        let directory = RealDirectory::open(path).map_err(io_error("open", path))?;
        let directory = Arc::new(directory);
        let data_dir = DataDir::open_on(directory.clone(), cluster, node, incarnation)?;
        // Only now is it sure to be this server's own.
        directory.restrict().map_err(io_error("restrict", path))?;
        Ok(data_dir)
    }

    /// Opens the data directory on any file system; see [`open`](DataDir::open).
    ///
    /// # Errors
    ///
    /// As [`open`](DataDir::open).
    pub fn open_on(
        directory: Arc<dyn Directory>,
        cluster: ClusterId,
        node: NodeId,
        incarnation: u64,
    ) -> Result<DataDir, DataDirError> {
        let path = directory.path("");
        let wanted = Identity { cluster, node, incarnation, admitted: false, untrusted: None };
        let look = || match read_identity(&*directory)? {
            Some(found) => check(&path, found, wanted).map(|()| Some(found)),
            None => refuse_foreign(&*directory).map(|()| None),
        };
        // Before the lock, which would be a file in somebody else's directory; and again when nobody else can make it
        // theirs meanwhile.
        look()?;
        let lock = lock(&*directory)?;
        let found = look()?;
        if found.is_none() {
            write_identity(&*directory, wanted)?;
        }
        #[cfg(any(test, feature = "internals"))]
        let is_new = found.is_none();
        let identity = found.unwrap_or(wanted);
        let open_reserve = || {
            // Created here already: it may be on a disk of its own, whose room counts, too.
            let log = directory.directory(LOG)?;
            DiskReserve::open(directory.clone(), log)
        };
        let reserve = Arc::new(open_reserve().map_err(io_error("keep a reserve in", &path))?);
        let directory = Arc::new(ReservedDirectory { inner: directory, reserve: reserve.clone() });
        Ok(DataDir {
            directory,
            reserve,
            path,
            #[cfg(any(test, feature = "internals"))]
            is_new,
            incarnation: identity.incarnation,
            identity,
            next_incarnation: incarnation
                .wrapping_add(u64::from(incarnation == identity.incarnation)),
            _lock: lock,
        })
    }

    /// Moves the engine's file out of the way, so that a new one is made. It is kept until the store has
    /// been rebuilt. Nothing may have the file open.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`], [`DataDirError::TooMuchSetAside`].
    pub(super) fn set_store_aside(&self) -> Result<(), DataDirError> {
        self.moved(STORE, set_aside::set_store_aside(&*self.directory, STORE))
    }

    /// What a verdict says must not be used again, and is still in its place.
    pub fn untrusted(&self) -> Option<Untrusted> {
        self.identity.untrusted
    }

    /// Moves what must not be used again out of the way, and then takes the verdict back. When this is cut short,
    /// the verdict is found again and what is left of this is done. Nothing in the directory may be open.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`], [`DataDirError::TooMuchSetAside`].
    pub fn set_aside(&mut self, untrusted: Untrusted) -> Result<(), DataDirError> {
        match untrusted {
            Untrusted::Everything => self.begin_anew(),
            Untrusted::Store => {
                self.set_store_aside()?;
                self.change_identity(Identity { untrusted: None, ..self.identity })
            }
        }
    }

    /// Makes this the directory of a server that has nothing, under a new incarnation: log and store are
    /// moved out of the way, and kept until it has been brought up to date. When this is cut short, the
    /// next start does it again. Nothing in the directory may be open.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`], [`DataDirError::TooMuchSetAside`].
    pub(super) fn begin_anew(&mut self) -> Result<(), DataDirError> {
        // First, so that nobody takes the blank server for the one that had all that, or for one that
        // never had anything.
        let incarnation = self.next_incarnation;
        let untrusted = Some(Untrusted::Everything);
        let blank = Identity { incarnation, admitted: true, untrusted, ..self.identity };
        self.change_identity(blank)?;
        self.next_incarnation = self.next_incarnation.wrapping_add(1);
        self.incarnation = incarnation;
        self.moved(LOG, set_aside::set_log_aside(&*self.directory, LOG))?;
        self.set_store_aside()?;
        self.change_identity(Identity { untrusted: None, ..blank })
    }

    /// Whether a server has been admitted to its group on this directory, as far as a start has found. One that
    /// has and whose log says nothing of it has lost what it had.
    pub fn was_admitted(&self) -> bool {
        self.identity.admitted
    }

    /// The server was found to be admitted to its group, and to need nothing from the others: notes it, and
    /// removes what was set aside.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`].
    pub(super) fn is_whole(&mut self) -> Result<(), DataDirError> {
        if !self.identity.admitted {
            self.change_identity(Identity { admitted: true, ..self.identity })?;
        }
        let removed = set_aside::remove_all(&*self.directory);
        removed.map_err(io_error("remove what was set aside in", &self.path))
    }

    fn change_identity(&mut self, identity: Identity) -> Result<(), DataDirError> {
        write_identity(&*self.directory, identity)?;
        self.identity = identity;
        Ok(())
    }

    fn moved(&self, name: &str, moved: io::Result<bool>) -> Result<(), DataDirError> {
        let path = self.directory.path(name);
        match moved {
            Ok(true) => Ok(()),
            Ok(false) => Err(DataDirError::TooMuchSetAside { path }),
            Err(error) => Err(io_error("set aside", &path)(error)),
        }
    }

    /// The random number the directory was created with.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether this opening was the directory's first.
    #[cfg(any(test, feature = "internals"))]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of the directory.
    pub(super) fn directory(&self) -> &Arc<dyn Directory> {
        &self.directory
    }

    /// What is kept of the disk for the end.
    pub fn reserve(&self) -> &Arc<DiskReserve> {
        &self.reserve
    }

    /// How large log segments are to be on this disk.
    pub fn log_segment_bytes(&self) -> u64 {
        let total_bytes = self.directory.space().map_or(u64::MAX, |space| space.total_bytes);
        let part_bytes = total_bytes / limits::LOG_SEGMENT_DISK_PART;
        part_bytes.clamp(limits::LOG_SEGMENT_BYTES_MIN, limits::LOG_SEGMENT_BYTES)
    }

    /// How much of the log may be kept on this disk for servers that are being sent a snapshot: an eighth of a small
    /// disk, or it would be the log that fills it.
    pub fn log_held_bytes_max(&self) -> u64 {
        let total_bytes = self.directory.space().map_or(u64::MAX, |space| space.total_bytes);
        (total_bytes / limits::LOG_HELD_DISK_PART).min(limits::LOG_HELD_BYTES_MAX)
    }

    /// For whoever reaches a verdict about what is here while the server runs.
    pub fn verdicts(&self) -> Verdicts {
        let identity = Arc::new(Mutex::new(self.identity));
        Verdicts { directory: self.directory.clone(), identity }
    }

    /// For whoever looks from time to time whether the directory is still there; it does not hold the lock.
    pub fn presence(&self) -> Presence {
        Presence { directory: self.directory.clone() }
    }

    /// Where the Raft log lives, below the directory.
    pub(super) fn log_name(&self) -> &'static str {
        LOG
    }

    /// Where the Raft log lives.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Where the engine's file lives.
    #[cfg(any(test, feature = "internals"))]
    pub fn store_file(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Where a snapshot is taken in and takes the store's place.
    pub fn staging(&self) -> DiskStaging {
        DiskStaging::new(self.directory.clone(), [SNAPSHOT_PARTIAL, SNAPSHOT_STAGED, STORE])
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { action, path: path.to_path_buf(), source }
}

fn create(path: &Path) -> Result<(), DataDirError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(DataDirError::NotADirectory { path: path.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(DataDirError::NotADirectory { path: path.to_path_buf() });
        }
        Err(error) => return Err(io_error("open", path)(error)),
    }
    // Each level's name is made durable, from the nearest directory that exists down.
    let missing: Vec<&Path> = path.ancestors().take_while(|level| !level.is_dir()).collect();
    for level in missing.into_iter().rev().filter(|level| !level.as_os_str().is_empty()) {
        match files::create_directory(level) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && level.is_dir() => {}
            Err(error) => return Err(io_error("create", level)(error)),
        }
    }
    Ok(())
}

fn lock(directory: &dyn Directory) -> Result<Arc<dyn DiskFile>, DataDirError> {
    let (path, name) = (directory.path(""), directory.path(LOCK));
    let file = match directory.create(LOCK) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            directory.open(LOCK).map_err(io_error("open", &name))?
        }
        created => created.map_err(io_error("write to", &path))?,
    };
    match file.try_lock().map_err(io_error("lock", &name))? {
        true => Ok(file),
        false => Err(DataDirError::Locked { path }),
    }
}

fn read_identity(directory: &dyn Directory) -> Result<Option<Identity>, DataDirError> {
    let name = directory.path(IDENTITY);
    let file = match directory.open_for_reading(IDENTITY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error("open", &name))?,
    };
    // One byte more than any identity has, so that a longer file does not pass for one.
    let mut text = vec![0; IDENTITY_BYTES_MAX + 1];
    let read = file.read_at(&mut text, 0).map_err(io_error("read", &name))?;
    match Identity::decode(&text[..read]) {
        Ok(identity) => Ok(Some(identity)),
        Err(IdentityError::Newer(version)) => {
            Err(DataDirError::NewerFormat { path: directory.path(""), version })
        }
        Err(IdentityError::Damaged) => Err(DataDirError::DamagedIdentity { path: name }),
    }
}

fn check(path: &Path, found: Identity, expected: Identity) -> Result<(), DataDirError> {
    let path = path.to_path_buf();
    if found.cluster != expected.cluster {
        let (found, expected) = (found.cluster, expected.cluster);
        return Err(DataDirError::OtherCluster { path, found, expected });
    }
    if found.node != expected.node {
        let (found, expected) = (found.node, expected.node);
        return Err(DataDirError::OtherNode { path, found, expected });
    }
    Ok(())
}

/// Refuses a directory without an identity that holds anything but what a first opening cut short
/// leaves behind.
fn refuse_foreign(directory: &dyn Directory) -> Result<(), DataDirError> {
    let path = directory.path("");
    for name in directory.list().map_err(io_error("read", &path))? {
        match name.as_str() {
            LOCK | IDENTITY_NEW | LOST_AND_FOUND => {}
            LOG | STORE => {
                return Err(DataDirError::DamagedIdentity { path: directory.path(IDENTITY) });
            }
            _ => return Err(DataDirError::Foreign { path }),
        }
    }
    Ok(())
}

fn write_identity(directory: &dyn Directory, identity: Identity) -> Result<(), DataDirError> {
    let write = || {
        // What an opening cut short has left, or what somebody has put there: it goes unread.
        files::remove_if_present(directory, IDENTITY_NEW)?;
        let file = directory.create(IDENTITY_NEW)?;
        file.write_all_at(identity.encode().as_bytes(), 0)?;
        file.sync_data()?;
        directory.rename(IDENTITY_NEW, IDENTITY)?;
        directory.sync()
    };
    write().map_err(io_error("write", &directory.path(IDENTITY)))
}

impl Identity {
    fn encode(&self) -> String {
        let Identity { cluster, node, incarnation, admitted, untrusted } = self;
        let version = DIRECTORY_FORMAT_VERSION;
        let untrusted = match untrusted {
            None => UNTRUSTED_NOTHING,
            Some(Untrusted::Store) => UNTRUSTED_STORE,
            Some(Untrusted::Everything) => UNTRUSTED_EVERYTHING,
        };
        let body = format!(
            "{TITLE}\nformat {version}\ncluster {cluster}\nnode {node}\nincarnation {incarnation:016x}\n\
             admitted {admitted}\nuntrusted {untrusted}\n"
        );
        let check = crc32fast::hash(body.as_bytes());
        format!("{body}check {check:08x}\n")
    }

    fn decode(text: &[u8]) -> Result<Identity, IdentityError> {
        let damaged = IdentityError::Damaged;
        let Ok(text) = str::from_utf8(text) else { return Err(damaged) };
        let Some((body, check)) = text.rsplit_once("check ") else { return Err(damaged) };
        // The title, the format and the checksum stay where they are in all formats.
        if check.strip_suffix('\n') != Some(&format!("{:08x}", crc32fast::hash(body.as_bytes()))) {
            return Err(damaged);
        }
        let mut lines = body.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        if field(TITLE) != Some("") {
            return Err(damaged);
        }
        let version = field("format ").and_then(|version| version.parse().ok()).ok_or(damaged)?;
        if version > DIRECTORY_FORMAT_VERSION {
            return Err(IdentityError::Newer(version));
        }
        let cluster = field("cluster ").and_then(|id| u64::from_str_radix(id, 16).ok());
        let node = field("node ").and_then(|id| id.parse().ok());
        let incarnation = field("incarnation ").and_then(|id| u64::from_str_radix(id, 16).ok());
        let admitted = field("admitted ").and_then(|flag| flag.parse().ok());
        let untrusted = field("untrusted ").and_then(|untrusted| match untrusted {
            UNTRUSTED_NOTHING => Some(None),
            UNTRUSTED_STORE => Some(Some(Untrusted::Store)),
            UNTRUSTED_EVERYTHING => Some(Some(Untrusted::Everything)),
            _ => None,
        });
        match (cluster, node, incarnation, admitted, untrusted) {
            (Some(cluster), Some(node), Some(incarnation), Some(admitted), Some(untrusted)) => {
                let (cluster, node) = (ClusterId(cluster), NodeId(node));
                Ok(Identity { cluster, node, incarnation, admitted, untrusted })
            }
            _ => Err(IdentityError::Damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(0xace);
    const NODE: NodeId = NodeId(2);

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(path, CLUSTER, NODE, 7)
    }

    #[test]
    fn a_directory_is_created_once_and_then_known() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("deep/er");
        assert!(open(&path).unwrap().is_new());
        let again = open(&path).unwrap();
        assert!(!again.is_new());
        assert_eq!(again.path(), path);
        let text = fs::read_to_string(path.join(IDENTITY)).unwrap();
        assert!(
            text.starts_with("acervo data directory\nformat 1\ncluster 0000000000000ace\nnode 2\n")
        );
    }

    #[test]
    fn nothing_of_somebody_elses_directory_is_changed() {
        use std::os::unix::fs::PermissionsExt;
        for names in [&["notes.txt"][..], &["notes.txt", LOCK], &[IDENTITY], &[IDENTITY, LOCK]] {
            let dir = TempDir::new().unwrap();
            for name in names {
                fs::write(dir.path().join(name), "mine").unwrap();
                let mode = fs::Permissions::from_mode(0o644);
                fs::set_permissions(dir.path().join(name), mode).unwrap();
            }
            open(dir.path()).unwrap_err();
            let mut left = Vec::new();
            for entry in fs::read_dir(dir.path()).unwrap() {
                let entry = entry.unwrap();
                assert_eq!(entry.metadata().unwrap().mode() & 0o7777, 0o644, "{entry:?}");
                left.push(entry.file_name().into_string().unwrap());
            }
            left.sort();
            let mut names = names.to_vec();
            names.sort_unstable();
            assert_eq!(left, names);
        }
    }

    #[test]
    fn a_directory_in_use_is_refused_until_it_is_let_go() {
        let dir = TempDir::new().unwrap();
        let held = open(dir.path()).unwrap();
        assert!(matches!(open(dir.path()), Err(DataDirError::Locked { .. })));
        drop(held);
        open(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_keeps_the_number_it_was_created_with() {
        let dir = TempDir::new().unwrap();
        assert_eq!(DataDir::open(dir.path(), CLUSTER, NODE, 7).unwrap().incarnation(), 7);
        assert_eq!(DataDir::open(dir.path(), CLUSTER, NODE, 8).unwrap().incarnation(), 7);
    }

    #[test]
    fn the_directory_of_another_server_or_group_is_refused() {
        let dir = TempDir::new().unwrap();
        drop(open(dir.path()).unwrap());
        let other = DataDir::open(dir.path(), CLUSTER, NodeId(3), 7).unwrap_err();
        assert!(matches!(other, DataDirError::OtherNode { found: NODE, expected: NodeId(3), .. }));
        assert!(other.to_string().contains("belongs to server 2"), "{other}");
        let other = DataDir::open(dir.path(), ClusterId(9), NODE, 7).unwrap_err();
        assert!(matches!(other, DataDirError::OtherCluster { found: CLUSTER, .. }));
    }

    #[test]
    fn a_damaged_a_missing_and_a_newer_identity_are_refused() {
        let dir = TempDir::new().unwrap();
        drop(open(dir.path()).unwrap());
        let name = dir.path().join(IDENTITY);
        let good = fs::read_to_string(&name).unwrap();
        for cut in 0..good.len() {
            fs::write(&name, &good[..cut]).unwrap();
            let refused = open(dir.path());
            assert!(matches!(refused, Err(DataDirError::DamagedIdentity { .. })), "cut at {cut}");
        }
        fs::write(&name, good.replace("node 2", "node 3")).unwrap();
        assert!(matches!(open(dir.path()), Err(DataDirError::DamagedIdentity { .. })));

        let body = format!("{TITLE}\nformat 2\nsomething else\n");
        let newer = format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()));
        fs::write(&name, newer).unwrap();
        assert!(matches!(open(dir.path()), Err(DataDirError::NewerFormat { version: 2, .. })));

        fs::remove_file(&name).unwrap();
        // The log tells that there was one.
        assert!(matches!(open(dir.path()), Err(DataDirError::DamagedIdentity { .. })));
    }

    #[test]
    fn a_first_opening_cut_short_is_finished_by_the_next() {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(LOCK), "").unwrap();
        fs::write(dir.path().join(IDENTITY_NEW), "acervo da").unwrap();
        assert!(open(dir.path()).unwrap().is_new());
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_refused_in_one_sentence() {
        // Not even the superuser creates files here.
        let refused = open(Path::new("/proc/below/it")).unwrap_err();
        assert!(matches!(refused, DataDirError::Io { action: "create", .. }), "{refused}");
        let sentence = refused.to_string();
        assert!(sentence.starts_with("cannot create /proc/below"), "{sentence}");
        assert!(sentence.ends_with("; make it writable or name another with --data-dir"));
    }

    #[test]
    fn a_file_and_a_directory_of_other_things_are_refused() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(open(&file), Err(DataDirError::NotADirectory { .. })));
        assert!(matches!(open(&file.join("below")), Err(DataDirError::NotADirectory { .. })));
        assert!(matches!(open(dir.path()), Err(DataDirError::Foreign { .. })));
    }
}
