//! The parameters, results, errors and progress of a download.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::model::{ContentId, FileName, PeerId};
use crate::share::content::Manifest;
use crate::share::offer::{FileStamp, PartialsSlot};
use crate::text::counted;
use crate::wire::share::Source;

/// The parameters of a download.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    pub content: ContentId,
    pub size: u64,
    /// The name that the file will have.
    pub name: FileName,
    /// The existing folder in which the file is stored.
    pub to: PathBuf,
    /// The sources known at the start. Those of another content or size are ignored. More can be
    /// added ([`FetchHandle::add_source`](super::FetchHandle::add_source)).
    pub sources: Vec<Source>,
    /// Upper bound of the average receiving rate in bytes a second; `None` for no limit.
    pub limit_bytes_per_s: Option<u64>,
    /// Where verified chunks are offered to others during the download, and the file after it.
    pub partials: Option<PartialsSlot>,
    /// TCP congestion control algorithm by the system's name (`reno`, `cubic`, `bbr`); `None` for
    /// the system's default. It acts on the sending side, so it matters little here.
    pub congestion: Option<String>,
    /// Whether someone adds further sources during the download. If not, a download whose sources
    /// are all banned ends at once, whatever its patience.
    pub more_may_come: bool,
    /// How long the download continues without progress before it fails. The partial file is kept.
    pub patience: Duration,
    /// How long the download waits after every source has answered that it does not have the
    /// content any more, and a search has found no other. Applies only if some chunks have been
    /// fetched; with none the download fails at once. `None`: such sources are waited for like
    /// silent ones.
    pub gone_after: Option<Duration>,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Whether the partial file is kept, shown as the end of an error's sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptPart(pub bool);

impl fmt::Display for KeptPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "; what has arrived is kept" } else { "" })
    }
}

/// Why a download has failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// A different file has the name.
    #[error(
        "{} exists and is not the file to fetch; move it away, or fetch to another folder",
        .0.display()
    )]
    Exists(PathBuf),
    /// Another process is downloading the file.
    #[error("{} is being fetched by another process; wait for it, or stop it first", .0.display())]
    UnderWay(PathBuf),
    /// The file that has the partial file's name is not a part of this content.
    #[error(
        "{} is not a part of this file; move it away, or fetch to another folder",
        .0.display()
    )]
    ForeignPart(PathBuf),
    /// The partial file was removed or replaced during the download.
    #[error("{} was removed while the file arrived; fetch the file again", .0.display())]
    PartGone(PathBuf),
    /// Another program keeps changing the partial file, or has it open for writing.
    #[error(
        "{} is being changed by another program, or is open for writing in one; stop that program \
         and fetch the file again, what has arrived is kept", .0.display()
    )]
    Touched(PathBuf),
    /// The folder cannot be written to.
    #[error("cannot write to {}: {source}; fetch to another folder", .path.display())]
    Folder {
        /// The path that could not be written.
        path: PathBuf,
        source: io::Error,
    },
    /// The disk is full.
    #[error(
        "no room for {}: {} to be written and {free} free; make room and fetch the file \
         again{kept}",
        .path.display(), counted(*.needed, "byte is", "bytes are")
    )]
    NoRoom {
        path: PathBuf,
        /// Bytes still to be written.
        needed: u64,
        /// Free bytes, as the file system reports them.
        free: u64,
        kept: KeptPart,
    },
    /// The file system or a limit of this process does not allow a file of this size.
    #[error(
        "{} may not grow to the {size} bytes it needs: the file system or `ulimit -f` allows no \
         larger file; lift the limit or fetch to another folder{kept}", .path.display()
    )]
    NotSoLarge {
        path: PathBuf,
        /// The file's final length in bytes.
        size: u64,
        kept: KeptPart,
    },
    /// The disk reported an error.
    #[error("{} failed: {source}{kept}", .path.display())]
    Disk { path: PathBuf, source: io::Error, kept: KeptPart },
    /// No source has sent anything for as long as the patience lasts, or all are banned.
    #[error("no peer gives {name} any more ({last}); try again later{kept}")]
    NoSource {
        name: FileName,
        /// Why the last source was lost.
        last: String,
        kept: KeptPart,
    },
    /// The registry names several sizes of the content, and no source has proved one.
    #[error(
        "the peers that have {name} tell several sizes of it, and none proves its own ({last}); \
         try again later"
    )]
    NoSize {
        name: FileName,
        /// Why the source that was asked last has proved none.
        last: String,
    },
    /// Every source has answered that it does not have the content any more.
    #[error("no peer has {name} any more{kept}")]
    Gone {
        /// The name by which the file was asked for.
        name: FileName,
        kept: KeptPart,
    },
    /// The size is larger than a shared file may be.
    #[error("{name} has {size} bytes, more than a shared file may have")]
    TooLarge { name: FileName, size: u64 },
    /// This process cannot continue, for example because it gets no thread.
    #[error("cannot fetch {name}: {reason}{kept}")]
    Internal {
        name: FileName,
        /// The cause as a clause without a final stop.
        reason: String,
        kept: KeptPart,
    },
    /// The owner has called [`FetchHandle::cancel`](super::FetchHandle::cancel).
    #[error("stopped{0}")]
    Cancelled(KeptPart),
}

impl FetchError {
    /// The same error with its `kept` set.
    pub(super) fn keeping(mut self, is_kept: bool) -> FetchError {
        match &mut self {
            FetchError::NoRoom { kept, .. }
            | FetchError::NotSoLarge { kept, .. }
            | FetchError::Disk { kept, .. }
            | FetchError::NoSource { kept, .. }
            | FetchError::Gone { kept, .. }
            | FetchError::Internal { kept, .. }
            | FetchError::Cancelled(kept) => *kept = KeptPart(is_kept),
            _ => {}
        }
        self
    }
}

/// The result of a successful download.
#[derive(Clone, Debug)]
pub struct FetchOutcome {
    /// The path of the file.
    pub path: PathBuf,
    /// The file's chunk hashes. It need not be hashed again as long as it has `stamp`.
    pub manifest: Arc<Manifest>,
    /// What the file looked like when it was published.
    pub stamp: FileStamp,
    /// Bytes of good chunks received, each chunk counted once.
    pub fetched_bytes: u64,
    /// Bytes of all whole chunks received, including those received twice or wrong.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "benches read it"))]
    pub received_bytes: u64,
    /// Bytes of good chunks that an earlier download had left.
    pub kept_bytes: u64,
    /// Whether the whole file existed before the download.
    pub already_there: bool,
}

/// The phase of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchPhase {
    /// Looks for an existing file and prepares the partial file.
    Preparing,
    /// Fetches the chunk hashes.
    Asking,
    /// Verifies the chunks in the partial file.
    Checking,
    Fetching,
    /// Makes the file durable and renames it.
    Finishing,
    /// The download has ended.
    Ended,
}

/// The progress of a download.
#[derive(Clone, Debug)]
pub struct FetchProgress {
    pub phase: FetchPhase,
    /// The file's length in bytes.
    pub size: u64,
    /// Bytes verified and stored; during `Checking`, bytes checked.
    pub done_bytes: u64,
    /// Bytes of good chunks that an earlier download had left.
    pub kept_bytes: u64,
    /// Bytes of good chunks received by this download.
    pub fetched_bytes: u64,
    /// Average receiving rate in bytes a second.
    pub rate_bytes_per_s: f64,
    /// The longest time that the event loop has been away from its sockets.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "benches read it"))]
    pub longest_stall: Duration,
    /// All sources that have been dialled, in the order in which they were added.
    pub sources: Vec<SourceProgress>,
}

impl FetchProgress {
    /// Whether every source is lost, so that the download waits for one to return or to be added.
    pub fn waits_for_a_source(&self) -> bool {
        let is_lost = |source: &SourceProgress| matches!(source.state, SourceState::Lost(_));
        matches!(self.phase, FetchPhase::Asking | FetchPhase::Fetching)
            && !self.sources.is_empty()
            && self.sources.iter().all(is_lost)
    }

    /// Whether every connected source answers BUSY because it serves others first.
    pub fn is_put_off(&self) -> bool {
        let mut there =
            self.sources.iter().filter(|one| !matches!(one.state, SourceState::Lost(_))).peekable();
        self.phase == FetchPhase::Fetching
            && there.peek().is_some()
            && there.all(|source| source.state == SourceState::Busy)
    }
}

/// The progress of one source.
#[derive(Clone, Debug)]
pub struct SourceProgress {
    pub peer: PeerId,
    pub address: SocketAddr,
    pub state: SourceState,
    /// Bytes of good chunks that it has sent.
    pub given_bytes: u64,
    /// Average rate in bytes a second.
    pub rate_bytes_per_s: f64,
}

/// The state of a source as it is shown to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Being dialled, or connected and not greeted yet.
    Connecting,
    /// Connected, with no request outstanding.
    Idle,
    /// It answers BUSY, and is asked again after a while.
    Busy,
    /// It has requests outstanding.
    Active,
    /// Not connected, now or for good, with the reason.
    Lost(String),
}
