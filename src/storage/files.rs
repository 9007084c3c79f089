//! The file operations that everything durable needs, as traits that are small enough to fake: the
//! crash tests run log, store and data directory on a simulated disk that loses, tears and refuses
//! writes.
//!
//! Invariants of the real directory:
//!
//! - Every name is looked up below the open directory, never by a path, and a link in the place of
//!   a file is never followed. Only regular files are opened; a FIFO is refused, and never waited
//!   for.
//! - Directories have mode 0700 and files 0600, whatever the umask, and also if they had another
//!   mode before.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Read, write and search for the owner alone.
const DIRECTORY_MODE: Mode = Mode::RWXU;
/// Read and write for the owner alone.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const PERMISSION_BITS: u32 = 0o7777;
/// If the file system cannot allocate, zeroes are written in pieces of this size.
const ZEROES_BYTES: usize = 64 * 1024;

/// An open directory, with the operations on the files in it.
pub trait Directory: Send + Sync {
    /// The names in the directory, in any order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Creates a file that must not exist yet, for reading and writing. It survives a power loss
    /// only after [`sync`](Directory::sync).
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file that is expendable until it is opened anew: when the disk is nearly full its
    /// writes fail, where those of other files use the reserve.
    fn create_expendable(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.create(name)
    }
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading, and does not change its mode: the directory may belong
    /// to another program.
    fn open_for_reading(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open(name)
    }
    /// Removes a file, which must exist.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file within the directory; it replaces one that has the name already.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes created, removed and renamed names durable.
    fn sync(&self) -> io::Result<()>;
    /// Removes a directory below this one, which must have no files.
    fn remove_directory(&self, name: &str) -> io::Result<()>;
    /// Opens a directory below this one; it is created, durably, if it does not exist.
    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>>;
    /// The space on the file system that the directory is on.
    fn space(&self) -> io::Result<Space>;
    /// Whether the directory's path still leads to it, and these names are in it.
    fn is_in_place(&self, names: &[&str]) -> io::Result<bool>;
    /// The path of a file, or of the directory itself if `name` is empty, for error messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// The space on a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// The bytes that this process may still write.
    pub free_bytes: u64,
    /// The size of the file system.
    pub total_bytes: u64,
}

/// An open file, read and written by position.
pub trait DiskFile: Send + Sync {
    /// The length of the file.
    fn len_bytes(&self) -> io::Result<u64>;
    /// Reads at most `buffer.len()` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `offset`, growing the file as needed.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts the file, or extends it with zeroes.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;
    /// Allocates disk space for this many bytes from the beginning of the file; new bytes read as
    /// zeroes.
    fn allocate(&self, len_bytes: u64) -> io::Result<()>;
    /// Returns when everything written to the file, and its length, is durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Locks the file until it is closed; returns false if another open file description holds the
    /// lock.
    fn try_lock(&self) -> io::Result<bool>;
    /// Gives the lock back, also while a copy of the descriptor is open: a process that another
    /// thread is just starting has one until it runs its program.
    fn unlock(&self) -> io::Result<()>;
}

/// Removes a file if it exists.
pub(crate) fn remove_if_present(directory: &dyn Directory, name: &str) -> io::Result<()> {
    match directory.remove(name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory below this one with all its files, if it exists. What it held may come back
/// in part if the power goes before the next [`Directory::sync`]. A directory in it is somebody
/// else's, and is left where it is.
pub(crate) fn remove_directory_if_present(parent: &dyn Directory, name: &str) -> io::Result<()> {
    if !parent.list()?.iter().any(|present| present == name) {
        return Ok(());
    }
    let directory = parent.directory(name)?;
    for file in directory.list()? {
        match remove_if_present(&*directory, &file) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                let left = directory.path(&file);
                log::warn!("{} is left: it is no file of this program", left.display());
            }
            removed => removed?,
        }
    }
    match parent.remove_directory(name) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        removed => removed,
    }
}

/// Makes the names in a directory durable. An empty path means the current directory.
pub(crate) fn sync_path(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// Creates a directory with mode 0700 and makes its name durable. It is an error if it exists.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    rustix::fs::mkdir(path, DIRECTORY_MODE)?;
    // The umask has removed bits from the mode requested.
    rustix::fs::chmod(path, DIRECTORY_MODE)?;
    path.parent().map_or(Ok(()), sync_path)
}

/// A directory of the system, held open.
pub struct RealDirectory {
    fd: OwnedFd,
    path: PathBuf,
}

impl RealDirectory {
    /// Opens the directory at `path`, creating it (durably) if it does not exist. Only here a link
    /// is followed: the user who names the path may have placed it there.
    pub fn open(path: &Path) -> io::Result<RealDirectory> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                create_directory(path)?;
                rustix::fs::open(path, flags, Mode::empty())?
            }
            opened => opened?,
        };
        Ok(RealDirectory { fd, path: path.to_path_buf() })
    }

    /// Sets the directory's mode to 0700, if it has another.
    pub fn restrict(&self) -> io::Result<()> {
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&self.fd)?.st_mode & PERMISSION_BITS);
        if mode != DIRECTORY_MODE {
            rustix::fs::fchmod(&self.fd, DIRECTORY_MODE)?;
        }
        Ok(())
    }

    fn open_file(&self, name: &str, extra: OFlags) -> io::Result<Arc<dyn DiskFile>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | extra;
        let file = regular(rustix::fs::openat(&self.fd, name, flags, FILE_MODE))?;
        let found = rustix::fs::fstat(&file)?;
        if Mode::from_raw_mode(found.st_mode & PERMISSION_BITS) != FILE_MODE {
            rustix::fs::fchmod(&file, FILE_MODE)?;
        }
        Ok(Arc::new(file))
    }
}

/// Accepts an opened file only if it is a regular file.
fn regular(opened: Result<OwnedFd, Errno>) -> io::Result<File> {
    let file = match opened {
        Ok(fd) => File::from(fd),
        Err(Errno::LOOP | Errno::NXIO) => return Err(not_regular()),
        Err(error) => return Err(error.into()),
    };
    let found = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile => Ok(file),
        _ => Err(not_regular()),
    }
}

fn not_regular() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is a link, a pipe or a device where only a regular file is used",
    )
}

impl Directory for RealDirectory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            // A name that is not UTF-8 is not one of this program's; it is listed so that foreign
            // files are found.
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(name, OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.open_file(name, OFlags::empty())
    }

    fn open_for_reading(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(Arc::new(regular(rustix::fs::openat(&self.fd, name, flags, Mode::empty()))?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    fn remove_directory(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?)
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Directory>> {
        match rustix::fs::mkdirat(&self.fd, name, DIRECTORY_MODE) {
            Ok(()) => {
                // It was created just now, in a directory that only its owner may write to.
                rustix::fs::chmodat(&self.fd, name, DIRECTORY_MODE, AtFlags::empty())?;
                self.sync()?;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let told = "it is not a directory, or a link to one, which is not followed";
                return Err(io::Error::new(io::ErrorKind::NotADirectory, told));
            }
            opened => opened?,
        };
        let directory = RealDirectory { fd, path: self.path.join(name) };
        directory.restrict()?;
        Ok(Arc::new(directory))
    }

    fn space(&self) -> io::Result<Space> {
        let found = rustix::fs::fstatvfs(&self.fd)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { free_bytes: bytes(found.f_bavail), total_bytes: bytes(found.f_blocks) })
    }

    fn is_in_place(&self, names: &[&str]) -> io::Result<bool> {
        let held = rustix::fs::fstat(&self.fd)?;
        let found = match rustix::fs::stat(&self.path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            found => found?,
        };
        if (held.st_dev, held.st_ino) != (found.st_dev, found.st_ino) {
            return Ok(false);
        }
        for name in names {
            match rustix::fs::statat(&self.fd, *name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(false),
                found => _ = found?,
            }
        }
        Ok(true)
    }

    fn path(&self, name: &str) -> PathBuf {
        // An empty name yields the directory without a slash at its end.
        if name.is_empty() { self.path.clone() } else { self.path.join(name) }
    }
}

impl DiskFile for File {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match FileExt::read_at(self, &mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        File::set_len(self, len_bytes)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, len_bytes) {
            Err(Errno::OPNOTSUPP) => {
                let old_bytes = self.len_bytes()?;
                let zeroes = vec![0; ZEROES_BYTES];
                let mut offset = old_bytes;
                while offset < len_bytes {
                    let piece_bytes = (len_bytes - offset).min(ZEROES_BYTES as u64);
                    DiskFile::write_all_at(self, &zeroes[..piece_bytes as usize], offset)?;
                    offset += piece_bytes;
                }
                Ok(())
            }
            allocated => Ok(allocated?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn try_lock(&self) -> io::Result<bool> {
        match File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        File::unlock(self)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::CWD;

    use tempfile::TempDir;

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & PERMISSION_BITS
    }

    #[test]
    fn links_pipes_and_directories_are_refused_in_the_place_of_files_and_left_alone() {
        let dir = TempDir::new().unwrap();
        let directory = RealDirectory::open(dir.path()).unwrap();
        let outside = TempDir::new().unwrap();
        let target = outside.path().join("target");
        std::fs::write(&target, "somebody else's").unwrap();
        symlink(&target, dir.path().join("link")).unwrap();
        symlink(outside.path().join("nothing"), dir.path().join("dangling")).unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), FILE_MODE).unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for name in ["link", "dangling", "pipe", "folder", "socket"] {
            assert!(directory.open(name).is_err(), "{name}");
            assert!(directory.create(name).is_err(), "{name}");
        }
        symlink(outside.path(), dir.path().join("log")).unwrap();
        assert!(directory.directory("log").is_err());
        assert!(directory.directory("pipe").is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "somebody else's");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn modes_are_made_right_where_they_were_not() {
        let dir = TempDir::new().unwrap();
        let directory = RealDirectory::open(&dir.path().join("new")).unwrap();
        assert_eq!(mode(&dir.path().join("new")), 0o700);
        directory.create("file").unwrap();
        directory.directory("below").unwrap();
        let (file, below) = (dir.path().join("new/file"), dir.path().join("new/below"));
        for (path, right) in [(&file, 0o600), (&below, 0o700)] {
            assert_eq!(mode(path), right);
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        directory.open("file").unwrap();
        directory.directory("below").unwrap();
        assert_eq!((mode(&file), mode(&below)), (0o600, 0o700));
    }
}
