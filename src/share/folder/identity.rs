//! By what a file or a folder is known, and why a folder cannot be shared.

use std::io;
use std::path::PathBuf;

use crate::share::offer::FileStamp;

/// The attributes by which a file is taken to be unchanged. The device is none of them, because a
/// disk that is taken out and put back may get another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    pub stamp: FileStamp,
    /// The inode: another file under the same name has another one.
    pub inode: u64,
}

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It does not exist, is not a folder, or cannot be read.
    #[error("cannot share {}: {source}; name a folder that can be read", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Another process shares it.
    #[error("{} is shared by another process already; stop that one first", .0.display())]
    InUse(PathBuf),
}
