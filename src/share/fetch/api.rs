//! What a download is asked for, and what it tells.

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

/// What to fetch, from whom, to where.
#[derive(Clone, Debug)]
pub struct FetchOptions {
    /// What.
    pub content: ContentId,
    /// Its length in bytes.
    pub size: u64,
    /// The file's name to be.
    pub name: FileName,
    /// The folder it is to be in, which exists.
    pub to: PathBuf,
    /// Who has it. Those that offer another content or size under this name are passed over. More
    /// may follow ([`FetchHandle::add_source`](super::FetchHandle::add_source)).
    pub sources: Vec<Source>,
    /// The most bytes to receive a second, on the average; no limit when absent.
    pub limit_bytes_per_s: Option<u64>,
    /// Where to offer what has arrived to others, while the rest is still on its way and after.
    pub partials: Option<PartialsSlot>,
    /// TCP congestion control by the system's name for it (`reno`, `cubic`, `bbr`); the system's own
    /// choice when absent. It matters at the side that sends, so little here.
    pub congestion: Option<String>,
    /// Whether somebody looks for further sources all the while. Else a download whose sources are all gone for good
    /// ends at once, whatever its patience.
    pub more_may_come: bool,
    /// With no source reachable, or none that has what is missing, for this long the download gives
    /// up. What has arrived is kept.
    pub patience: Duration,
    /// It ends when every source has answered that it has the content no more, and whoever looks for further ones has
    /// found none: at once, or after so long if some of it has come. When absent they are waited for like any that give
    /// nothing.
    pub gone_after: Option<Duration>,
    /// Where the random choices start from.
    pub seed: u64,
}

/// Whether something of what has arrived is kept, as the end of a sentence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept(pub bool);

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "; what has arrived is kept" } else { "" })
    }
}

/// Why a download ended without its file.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Another file has the name.
    #[error("{} exists and is not the file to fetch; move it away, or fetch to another folder", .0.display())]
    Exists(PathBuf),
    /// Another download is at it.
    #[error("{} is being fetched by another process; wait for it, or stop it first", .0.display())]
    UnderWay(PathBuf),
    /// What is kept under the partial file's name is not a part of this.
    #[error("{} is not a part of this file; move it away, or fetch to another folder", .0.display())]
    ForeignPart(PathBuf),
    /// The partial file has been removed, or replaced by another, while it was written to.
    #[error("{} was removed while the file arrived; fetch the file again", .0.display())]
    PartGone(PathBuf),
    /// Another program goes on changing the partial file, or has it open for writing.
    #[error(
        "{} is being changed by another program, or is open for writing in one; stop that program and fetch the file \
         again, what has arrived is kept", .0.display()
    )]
    Touched(PathBuf),
    /// The folder cannot take a file.
    #[error("cannot write to {}: {source}; fetch to another folder", .path.display())]
    Folder {
        /// What was to be written.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The disk is too full, or became so.
    #[error(
        "no room for {}: {} to be written and {free} free; make room and fetch the file again{kept}",
        .path.display(), counted(*.needed, "byte is", "bytes are")
    )]
    NoRoom {
        /// The partial file.
        path: PathBuf,
        /// Bytes still to come.
        needed: u64,
        /// Bytes the file system says it has.
        free: u64,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// The file system, or a limit of this process, allows no file of this length.
    #[error(
        "{} may not grow to the {size} bytes it needs: the file system or `ulimit -f` allows no larger \
         file; lift the limit or fetch to another folder{kept}", .path.display()
    )]
    NotSoLarge {
        /// The partial file.
        path: PathBuf,
        /// The whole file's length in bytes.
        size: u64,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// The disk failed.
    #[error("{} failed: {source}{kept}", .path.display())]
    Disk {
        /// The partial file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// Nobody is left to fetch from.
    #[error("no peer gives {name} any more ({last}); try again later{kept}")]
    NoSource {
        /// The file.
        name: FileName,
        /// What became of the source lost last.
        last: String,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// Every source has answered that it has the content no more.
    #[error("no peer has {name} any more{kept}")]
    Gone {
        /// The name by which the file was asked for.
        name: FileName,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// A shared file is not that large.
    #[error("{name} has {size} bytes, more than a shared file may have")]
    TooLarge {
        /// The file.
        name: FileName,
        /// Its length in bytes.
        size: u64,
    },
    /// This process could not go on.
    #[error("cannot fetch {name}: {reason}{kept}")]
    Internal {
        /// The file.
        name: FileName,
        /// What failed.
        reason: String,
        /// Whether a part of it is kept.
        kept: Kept,
    },
    /// It was stopped from outside.
    #[error("stopped{0}")]
    Cancelled(Kept),
}

impl FetchError {
    /// The same error, saying whether anything is kept of what has arrived.
    pub(super) fn keeping(mut self, is_kept: bool) -> FetchError {
        match &mut self {
            FetchError::NoRoom { kept, .. }
            | FetchError::NotSoLarge { kept, .. }
            | FetchError::Disk { kept, .. }
            | FetchError::NoSource { kept, .. }
            | FetchError::Gone { kept, .. }
            | FetchError::Internal { kept, .. }
            | FetchError::Cancelled(kept) => *kept = Kept(is_kept),
            _ => {}
        }
        self
    }
}

/// A download that has its file.
#[derive(Clone, Debug)]
pub struct FetchOutcome {
    /// The file.
    pub path: PathBuf,
    /// What is in it, chunk by chunk: it need not be hashed again …
    pub manifest: Arc<Manifest>,
    /// … as long as it looks like this.
    pub stamp: FileStamp,
    /// Bytes of good chunks that came over the network; of one that came from two sources once.
    pub fetched_bytes: u64,
    /// Bytes of whole chunks that came over the network, those that came twice or wrong included.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "benches read it"))]
    pub received_bytes: u64,
    /// Bytes that an earlier download had left and that were good.
    pub kept_bytes: u64,
    /// The file had been there, whole, before.
    pub already_there: bool,
}

/// What a download does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchPhase {
    /// Looks at what is there and makes room.
    Preparing,
    /// Asks for the chunk hashes.
    Asking,
    /// Hashes what an earlier download has left.
    Checking,
    /// Fetches chunks.
    Fetching,
    /// Makes the file durable and gives it its name.
    Finishing,
    /// Is over.
    Ended,
}

/// How far a download is.
#[derive(Clone, Debug)]
pub struct FetchProgress {
    /// What it does.
    pub phase: FetchPhase,
    /// The length of the whole in bytes.
    pub size: u64,
    /// Bytes verified and stored; while checking, bytes looked at.
    pub done_bytes: u64,
    /// Bytes of those that an earlier download had left.
    pub kept_bytes: u64,
    /// Bytes of good chunks received by this download.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "tests read it"))]
    pub fetched_bytes: u64,
    /// Bytes a second of late.
    pub rate_bytes_per_s: f64,
    /// The longest time that the event loop was away from its sockets.
    #[cfg_attr(not(feature = "internals"), expect(dead_code, reason = "benches read it"))]
    pub longest_stall: Duration,
    /// Who is or was asked, in order of their addition.
    pub sources: Vec<SourceProgress>,
}

impl FetchProgress {
    /// Whether nobody gives any more: the download waits for one of its sources, or a new one, as long as its patience
    /// lasts.
    pub fn waits_for_a_source(&self) -> bool {
        let is_lost = |source: &SourceProgress| matches!(source.state, SourceState::Lost(_));
        matches!(self.phase, FetchPhase::Asking | FetchPhase::Fetching)
            && !self.sources.is_empty()
            && self.sources.iter().all(is_lost)
    }

    /// Whether everybody who is there says that others are being served first, and to come again.
    pub fn is_put_off(&self) -> bool {
        let mut there =
            self.sources.iter().filter(|one| !matches!(one.state, SourceState::Lost(_))).peekable();
        self.phase == FetchPhase::Fetching
            && there.peek().is_some()
            && there.all(|source| source.state == SourceState::Busy)
    }
}

/// One source of a download.
#[derive(Clone, Debug)]
pub struct SourceProgress {
    /// Who.
    pub peer: PeerId,
    /// Where.
    pub address: SocketAddr,
    /// How it is doing.
    pub state: SourceState,
    /// Bytes of good chunks it has given.
    pub given_bytes: u64,
    /// Bytes a second of late.
    pub rate_bytes_per_s: f64,
}

/// How a source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// Being dialled or greeted.
    Connecting,
    /// There, and nothing is asked of it now.
    Idle,
    /// Says that others are being served first. It is asked again and again.
    Busy,
    /// Gives.
    Active,
    /// Left, for now or for good, and why.
    Lost(String),
}
