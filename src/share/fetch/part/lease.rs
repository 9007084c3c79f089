//! Makes sure that no other program has a file open for writing.
//!
//! A read lease (`fcntl(2)`, `F_SETLEASE`) is granted only while no descriptor and no shared
//! mapping of the file is writable. While it is held, opening the file for writing blocks; opening
//! it for reading does not.
//!
//! Rule: the system lets a writer in after 45 seconds, so a lease has to be checked
//! ([`FileLease::is_whole`]) before anything is built on it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// `F_SETSIG`, which the libc crate does not define. It has this value on every architecture of
/// Linux.
const F_SETSIG: libc::c_int = 10;

/// A read lease. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct FileLease(Arc<File>);

/// Why a lease was not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoLease {
    /// Another program has the file open for writing.
    Writers,
    /// The file system has no leases, or the file belongs to another user.
    Unsupported,
}

impl FileLease {
    /// Takes a lease on a file that is open for reading only.
    pub fn take(file: &Arc<File>) -> Result<FileLease, NoLease> {
        // The system signals that someone waits for the lease. SIGURG is ignored by default; the
        // usual signal would end the process.
        let asked = fcntl(file, F_SETSIG, libc::SIGURG)
            .and_then(|_| fcntl(file, libc::F_SETLEASE, libc::c_int::from(libc::F_RDLCK as i16)));
        match asked {
            Ok(_) => Ok(FileLease(Arc::clone(file))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_remote(file) => {
                Err(NoLease::Writers)
            }
            Err(_) => Err(NoLease::Unsupported),
        }
    }

    /// Whether nobody waits for the lease or has been let in.
    pub fn is_whole(&self) -> bool {
        fcntl(&self.0, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK as libc::c_int)
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        if let Err(error) = fcntl(&self.0, libc::F_SETLEASE, libc::F_UNLCK as libc::c_int) {
            log::debug!("a lease was gone: {error}");
        }
    }
}

/// Whether the file is on another machine. If that one grants no leases, some file systems answer
/// as if somebody had the file open for writing, for ever.
fn is_remote(file: &File) -> bool {
    // The numbers of CIFS, SMB 2, SMB and NFS from `statfs(2)`.
    const REMOTE: [u32; 4] = [0xff53_4d42, 0xfe53_4d42, 0x517b, 0x6969];
    // The field's width depends on the architecture; the numbers have 32 bits.
    rustix::fs::fstatfs(file).is_ok_and(|stat| REMOTE.contains(&(stat.f_type as u32)))
}

/// The one system call that no crate offers without `unsafe`.
#[allow(unsafe_code)]
fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: the commands used here take a number and touch no memory of this process, and the
    // descriptor is open as long as the file is borrowed.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        done => Ok(done),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn a_lease_needs_a_file_without_writers_and_makes_new_ones_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = File::create(&path).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        assert_eq!(FileLease::take(&file).unwrap_err(), NoLease::Writers);
        drop(writer);
        let reader = File::open(&path).unwrap();
        let lease = FileLease::take(&file).unwrap();
        assert!(lease.is_whole());
        // A program that does not block gets an error.
        let mut options = File::options();
        let refused = options.write(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(!lease.is_whole(), "somebody has asked for it");
        drop((lease, reader));
        File::options().write(true).open(&path).unwrap();
    }
}
