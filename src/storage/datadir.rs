//! The data directory: it belongs to one process, one server and one group.
//!
//! `LOCK` is locked while the [`DataDir`] exists, so that two processes never write the same files.
//! `IDENTITY` names the group and the server that the directory belongs to, and is checked before
//! anything in the directory is touched. It also says two things that must survive a crash: whether
//! the server was ever an eligible voter (if its log is blank then, its data was lost), and whether
//! the data was found untrusted and must not be used again.
//!
//! Damaged data is kept aside (`set_aside`) until the server has been rebuilt.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::{self, Directory, DiskFile, RealDirectory};
use super::reserve::{DiskReserve, ReservedDirectory};
use super::set_aside::{self, SET_ASIDE_MAX};
use super::snapshot::{DiskStaging, StoreNames};
use crate::limits;
use crate::model::{ClusterId, NodeId};

/// The format version of the directory that this release writes, and the only one that it reads.
pub const DIRECTORY_FORMAT_VERSION: u32 = 3;

const LOCK: &str = "LOCK";
const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";
const LOG: &str = "log";
const STORES: StoreNames = StoreNames {
    partial: "snapshot.partial",
    staged: "snapshot",
    in_use: STORE,
    replaced: "store.replaced",
};
const STORE: &str = "store";
/// The directory that `mkfs` creates at the root of a file system, which may be mounted as the data
/// directory.
const LOST_AND_FOUND: &str = "lost+found";
const TITLE: &str = "acervo data directory";
const IDENTITY_BYTES_MAX: usize = 4096;
const UNTRUSTED_NOTHING: &str = "nothing";
const UNTRUSTED_STORE: &str = "store";
const UNTRUSTED_STATE: &str = "state";
const UNTRUSTED_EVERYTHING: &str = "everything";

/// Why a data directory is refused. Each is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The path exists and is not a directory.
    #[error("{} is not a directory: name another with --data-dir", path.display())]
    NotADirectory { path: PathBuf },
    /// The operating system refused.
    #[error(
        "cannot {action} {}: {source}; make it writable or name another with --data-dir",
        path.display()
    )]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        source: io::Error,
    },
    /// A running process has locked it.
    #[error("data directory {} is in use by another process: stop that one first", path.display())]
    Locked { path: PathBuf },
    /// It contains files and no `IDENTITY`.
    #[error(
        "{} is not empty and not a data directory of acervo: name another with --data-dir",
        path.display()
    )]
    Foreign { path: PathBuf },
    /// It belongs to another server of the group.
    #[error(
        "data directory {} belongs to server {found} of the group and this is server {expected}: \
         name this server's own with --data-dir",
        path.display()
    )]
    OtherNode {
        path: PathBuf,
        /// The server that it belongs to.
        found: NodeId,
        /// The server that was to open it.
        expected: NodeId,
    },
    /// It belongs to another group.
    #[error(
        "data directory {} belongs to group {found} and this server to group {expected}: start it \
         with the same --servers as before, or name another with --data-dir",
        path.display()
    )]
    OtherCluster {
        path: PathBuf,
        /// The group that it belongs to.
        found: ClusterId,
        /// The group of the server that was to open it.
        expected: ClusterId,
    },
    /// Another release wrote the directory.
    #[error(
        "data directory {} has format {version}, and this release reads \
         {DIRECTORY_FORMAT_VERSION}: run the release that wrote it",
        path.display()
    )]
    OtherFormat {
        path: PathBuf,
        /// The format version of the directory.
        version: u32,
    },
    /// Data was set aside too often.
    #[error(
        "{} was found damaged {SET_ASIDE_MAX} times before it was rebuilt: check the disk, then \
         move the data directory away and start on an empty one, so that the group can bring this \
         server up to date",
        path.display()
    )]
    TooMuchSetAside {
        /// The data that was to be set aside once more.
        path: PathBuf,
    },
    /// `IDENTITY` cannot be decoded.
    #[error(
        "{} is damaged: move the data directory away and start on an empty one, so that the group \
         can bring this server up to date",
        path.display()
    )]
    DamagedIdentity { path: PathBuf },
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
    /// The incarnation for the next time that this directory becomes a blank one.
    next_incarnation: u64,
    lock: Arc<dyn DiskFile>,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            log::debug!("{} is unlocked when its file is closed: {error}", self.path.display());
        }
    }
}

impl fmt::Debug for DataDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDir").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Watches a data directory, which may be removed while it is in use.
pub struct Presence {
    directory: Arc<dyn Directory>,
}

impl Presence {
    /// Whether the directory is still at the path where it was opened, with `LOCK` and `IDENTITY`
    /// in it.
    ///
    /// # Errors
    ///
    /// The system's error, if it cannot say.
    pub fn is_in_place(&self) -> io::Result<bool> {
        self.directory.is_in_place(&[LOCK, IDENTITY])
    }

    /// Bytes that the directory takes on the disk: store, log, reserve, data that is set aside, and
    /// an arriving snapshot.
    ///
    /// # Errors
    ///
    /// The system's error, if it cannot say.
    pub fn taken_bytes(&self) -> io::Result<u64> {
        /// The unit in which the system counts, whatever the file system's block size is.
        const BLOCK_BYTES: u64 = 512;
        let (mut folders, mut bytes) = (vec![self.path()], 0);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                // The metadata of the entry itself, also if it is a link. A file that was removed
                // meanwhile takes nothing.
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

/// The contents of `IDENTITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    cluster: ClusterId,
    node: NodeId,
    /// A random number that tells this directory from one that the same server had before and lost.
    incarnation: u64,
    /// A start has found that the server was an eligible voter of its group.
    admitted: bool,
    /// Data that must not be used again and is not set aside yet.
    untrusted: Option<Untrusted>,
    /// The state was refuted and is set aside: it comes from the others, and not from the log,
    /// which may be what made it wrong.
    rebuilds_state: bool,
}

/// The part of a server's data that was found damaged, or was refuted by a majority of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrusted {
    /// The store, whose file is damaged: it is rebuilt from the log, as far as that reaches back,
    /// or from the others.
    Store,
    /// The state, which a majority has refuted: the log is kept for elections, and the state comes
    /// from the others.
    State,
    /// Log and store: the server starts as a blank one.
    Everything,
}

/// Records in `IDENTITY` that data is untrusted, while the directory is in use, from any thread.
/// Does not hold the lock of the directory.
#[derive(Clone)]
pub struct Verdicts {
    directory: Arc<dyn Directory>,
    /// The contents that were last written. Nothing else writes `IDENTITY` while a server runs.
    identity: Arc<Mutex<Identity>>,
}

impl Verdicts {
    /// Records durably that this data must not be used again: the next start sets it aside first. A
    /// record about less than an earlier one changes nothing.
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
    OtherFormat(u32),
    Damaged,
}

impl DataDir {
    /// Opens the directory of server `node` of `cluster`, creating it if it does not exist; a new
    /// one is given `incarnation`, a random number.
    ///
    /// # Errors
    ///
    /// Any [`DataDirError`]; then nothing in an existing directory was changed.
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
        // Only now it is known to belong to this server.
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
        let wanted = Identity {
            cluster,
            node,
            incarnation,
            admitted: false,
            untrusted: None,
            rebuilds_state: false,
        };
        let check_owner = || match read_identity(&*directory)? {
            Some(found) => check(&path, found, wanted).map(|()| Some(found)),
            None => refuse_foreign(&*directory).map(|()| None),
        };
        // Checked before the lock, which would create a file in a foreign directory, and again
        // under the lock, in case another server has taken the directory meanwhile.
        check_owner()?;
        let lock = lock(&*directory)?;
        let found = check_owner()?;
        if found.is_none() {
            write_identity(&*directory, wanted)?;
        }
        #[cfg(any(test, feature = "internals"))]
        let is_new = found.is_none();
        let identity = found.unwrap_or(wanted);
        let open_reserve = || {
            // Created here already, because it may be on a disk of its own, whose space counts,
            // too.
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
            lock,
        })
    }

    /// Sets the store aside, so that a blank one is created. It is kept until the store has been
    /// rebuilt. No file of it may be open.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`], [`DataDirError::TooMuchSetAside`].
    pub(super) fn set_store_aside(&self) -> Result<(), DataDirError> {
        self.moved(STORE, set_aside::set_store_aside(&*self.directory, STORE))
    }

    /// Data that must not be used again and is still in place.
    pub fn untrusted(&self) -> Option<Untrusted> {
        self.identity.untrusted
    }

    /// Sets untrusted data aside, and then removes the record of it. If this is interrupted, the
    /// next start finds the record and continues. No file in the directory may be open.
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
            Untrusted::State => {
                self.set_store_aside()?;
                let identity = self.identity;
                self.change_identity(Identity { untrusted: None, rebuilds_state: true, ..identity })
            }
        }
    }

    /// Whether the state was refuted and has not come from the others yet.
    pub(super) fn rebuilds_state(&self) -> bool {
        self.identity.rebuilds_state
    }

    /// Makes this a blank directory, under a new incarnation: log and store are set aside, and kept
    /// until the server has caught up. If this is interrupted, the next start does it again. No
    /// file in the directory may be open.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`], [`DataDirError::TooMuchSetAside`].
    pub(super) fn begin_anew(&mut self) -> Result<(), DataDirError> {
        // First, so that the other servers do not take the blank server for the one that had the
        // data, or for one that never had any.
        let incarnation = self.next_incarnation;
        let untrusted = Some(Untrusted::Everything);
        let blank = Identity { incarnation, admitted: true, untrusted, ..self.identity };
        self.change_identity(blank)?;
        self.next_incarnation = self.next_incarnation.wrapping_add(1);
        self.incarnation = incarnation;
        self.moved(LOG, set_aside::set_log_aside(&*self.directory, LOG))?;
        self.set_store_aside()?;
        self.change_identity(Identity { untrusted: None, rebuilds_state: false, ..blank })
    }

    /// Whether a start has found that the server was an eligible voter on this directory. If its
    /// log does not say so, its data was lost.
    pub fn was_admitted(&self) -> bool {
        self.identity.admitted
    }

    /// Notes that the server is an eligible voter and its data complete, and removes everything
    /// that was set aside.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Io`].
    pub(super) fn is_whole(&mut self) -> Result<(), DataDirError> {
        let whole = Identity { admitted: true, rebuilds_state: false, ..self.identity };
        if whole != self.identity {
            self.change_identity(whole)?;
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

    /// The random number with which the directory was created.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Whether this opening has created the directory.
    #[cfg(any(test, feature = "internals"))]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files of the directory.
    pub(super) fn directory(&self) -> &Arc<dyn Directory> {
        &self.directory
    }

    /// The reserve of disk space in the directory.
    pub fn reserve(&self) -> &Arc<DiskReserve> {
        &self.reserve
    }

    /// The size of log segments on this disk.
    pub fn log_segment_bytes(&self) -> u64 {
        let total_bytes = self.directory.space().map_or(u64::MAX, |space| space.total_bytes);
        let part_bytes = total_bytes / limits::LOG_SEGMENT_DISK_PART;
        part_bytes.clamp(limits::LOG_SEGMENT_BYTES_MIN, limits::LOG_SEGMENT_BYTES)
    }

    /// The bytes of log that may be kept on this disk for servers that are being sent a snapshot:
    /// an eighth of a small disk, which the log would fill otherwise.
    pub fn log_held_bytes_max(&self) -> u64 {
        let total_bytes = self.directory.space().map_or(u64::MAX, |space| space.total_bytes);
        (total_bytes / limits::LOG_HELD_DISK_PART).min(limits::LOG_HELD_BYTES_MAX)
    }

    /// Returns a handle to record that data is untrusted while the server runs.
    pub fn verdicts(&self) -> Verdicts {
        let identity = Arc::new(Mutex::new(self.identity));
        Verdicts { directory: self.directory.clone(), identity }
    }

    /// Returns a handle to check whether the directory is still in place. It does not hold the
    /// lock.
    pub fn presence(&self) -> Presence {
        Presence { directory: self.directory.clone() }
    }

    /// The name of the Raft log's directory, below this one.
    pub(super) fn log_name(&self) -> &'static str {
        LOG
    }

    /// The path of the Raft log's directory.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// The path of the store's directory.
    #[cfg(any(test, feature = "internals"))]
    pub fn store_dir(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Returns the staging area in which a snapshot is received and replaces the store.
    pub fn staging(&self) -> DiskStaging {
        DiskStaging::new(self.directory.clone(), STORES)
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
    // Each level's name is made durable, beginning below the nearest directory that exists.
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
    // One byte more than any `IDENTITY` has, so that a longer file is not accepted.
    let mut text = vec![0; IDENTITY_BYTES_MAX + 1];
    let read = file.read_at(&mut text, 0).map_err(io_error("read", &name))?;
    match Identity::decode(&text[..read]) {
        Ok(identity) => Ok(Some(identity)),
        Err(IdentityError::OtherFormat(version)) => {
            Err(DataDirError::OtherFormat { path: directory.path(""), version })
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

/// Refuses a directory without `IDENTITY` that contains anything but the files that an interrupted
/// first opening leaves.
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
        // An interrupted opening has left it, or somebody has put it there: it is removed unread.
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
        let Identity { cluster, node, incarnation, admitted, untrusted, rebuilds_state } = self;
        let version = DIRECTORY_FORMAT_VERSION;
        let untrusted = match untrusted {
            None => UNTRUSTED_NOTHING,
            Some(Untrusted::Store) => UNTRUSTED_STORE,
            Some(Untrusted::State) => UNTRUSTED_STATE,
            Some(Untrusted::Everything) => UNTRUSTED_EVERYTHING,
        };
        let body = format!(
            "{TITLE}\nformat {version}\ncluster {cluster}\nnode {node}\nincarnation \
             {incarnation:016x}\nadmitted {admitted}\nuntrusted {untrusted}\n\
             rebuilds-state {rebuilds_state}\n"
        );
        let check = crc32fast::hash(body.as_bytes());
        format!("{body}check {check:08x}\n")
    }

    fn decode(text: &[u8]) -> Result<Identity, IdentityError> {
        let damaged = IdentityError::Damaged;
        let Ok(text) = str::from_utf8(text) else { return Err(damaged) };
        let Some((body, check)) = text.rsplit_once("check ") else { return Err(damaged) };
        // The title, the format version and the checksum are at the same place in all formats.
        if check.strip_suffix('\n') != Some(&format!("{:08x}", crc32fast::hash(body.as_bytes()))) {
            return Err(damaged);
        }
        let mut lines = body.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name);
        if field(TITLE) != Some("") {
            return Err(damaged);
        }
        let version = field("format ").and_then(|version| version.parse().ok()).ok_or(damaged)?;
        if version != DIRECTORY_FORMAT_VERSION {
            return Err(IdentityError::OtherFormat(version));
        }
        let cluster = field("cluster ").and_then(|id| u64::from_str_radix(id, 16).ok());
        let node = field("node ").and_then(|id| id.parse().ok());
        let incarnation = field("incarnation ").and_then(|id| u64::from_str_radix(id, 16).ok());
        let admitted = field("admitted ").and_then(|flag| flag.parse().ok());
        let untrusted = field("untrusted ").and_then(|untrusted| match untrusted {
            UNTRUSTED_NOTHING => Some(None),
            UNTRUSTED_STORE => Some(Some(Untrusted::Store)),
            UNTRUSTED_STATE => Some(Some(Untrusted::State)),
            UNTRUSTED_EVERYTHING => Some(Some(Untrusted::Everything)),
            _ => None,
        });
        let rebuilds = field("rebuilds-state ").and_then(|flag| flag.parse().ok());
        let identity = || {
            Some(Identity {
                cluster: ClusterId(cluster?),
                node: NodeId(node?),
                incarnation: incarnation?,
                admitted: admitted?,
                untrusted: untrusted?,
                rebuilds_state: rebuilds?,
            })
        };
        identity().ok_or(IdentityError::Damaged)
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
            text.starts_with("acervo data directory\nformat 3\ncluster 0000000000000ace\nnode 2\n")
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
    fn a_damaged_a_missing_and_another_formats_identity_are_refused() {
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

        for other in [DIRECTORY_FORMAT_VERSION - 1, DIRECTORY_FORMAT_VERSION + 1] {
            let body = format!("{TITLE}\nformat {other}\nsomething else\n");
            let identity = format!("{body}check {:08x}\n", crc32fast::hash(body.as_bytes()));
            fs::write(&name, identity).unwrap();
            match open(dir.path()) {
                Err(DataDirError::OtherFormat { version, .. }) => assert_eq!(version, other),
                opened => panic!("{opened:?}"),
            }
        }

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
