//! Assembles a peer from its parts.
//!
//! A peer is a shared folder ([`Folder`] and its [`Watcher`]), a server of chunks ([`PeerServer`]),
//! a membership that keeps the registry informed ([`Membership`]), and its downloads ([`Fetch`]). A
//! process that only downloads is a peer without a folder; it serves what it has received so far.
//!
//! Left out: what is shown to a person, which `share::display` and `share::console` do.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rand::Rng;

use super::fetch::{
    Fetch, FetchError, FetchHandle, FetchOptions, FetchOutcome, FetchProgress, KeptPart,
};
use super::folder::hash::HashProgress;
use super::folder::{Folder, FolderOptions, Watcher};
use super::member::{MemberOptions, Membership, MembershipNotice, NoFiles, OfferedFiles};
use super::offer::{Catalog, Partials, PartialsSlot};
use super::registry_client::RegistryCallError;
use super::serve::{PeerServer, ServeError, ServeOptions};
use crate::limits;
use crate::model::{ContentId, FileName, PeerId};
use crate::net::Listener;
use crate::wire::share::{RegistryReply, RegistryRequest, Source};

/// Before it joins, a peer has its folder hashed for this long, so that its JOIN names what is
/// ready at once.
const JOIN_HASHING_WAIT: Duration = Duration::from_secs(1);
/// How long a JOIN waits for hashing if few bytes are left ([`JOIN_HASHING_BYTES_MAX`]).
const JOIN_HASHING_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a peer asks for its id before it joins under another: longer than a dead connection of
/// its own counts as alive, unless its registry has a longer timeout.
const ID_TAKEN_PATIENCE: Duration = Duration::from_secs(45);
/// With at most this many bytes left to hash, a JOIN waits for the longer time.
const JOIN_HASHING_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The parameters of [`Peer::start`].
pub struct PeerOptions {
    /// The id to join under. For a shared folder it is the id kept in that folder.
    pub peer: PeerId,
    /// The shared folder; `None` for a peer that only downloads.
    pub folder: Option<Arc<Folder>>,
    /// The bound socket on which chunks are served.
    pub listener: Listener,
    /// The address to announce. The registry replaces an unspecified IP by the connection's own.
    pub address: SocketAddr,
    /// The registries to join at, in order of preference. One at a time is used.
    pub registries: Vec<SocketAddr>,
    /// Upper bound of the sending rate, and separately of each download's receiving rate.
    pub limit_bytes_per_s: Option<u64>,
    /// TCP congestion control algorithm; `None` for the system's default.
    pub congestion: Option<String>,
    /// Ends the wait for hashing in [`Peer::start`] when set.
    pub stop: Arc<AtomicBool>,
    /// Called from any thread with the progress of hashing the folder.
    pub hashing: Arc<dyn Fn(HashProgress) + Send + Sync>,
}

/// Why a peer could not start.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The server of chunks could not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system refused a thread.
    #[error("cannot start a thread: {0}; is the limit on processes too low?")]
    Thread(#[from] io::Error),
}

/// The parameters of [`Peer::download`].
#[derive(Clone, Debug)]
pub struct DownloadRequest {
    /// The name that the file will have.
    pub name: FileName,
    pub content: ContentId,
    pub size: u64,
    /// The folder in which the file is stored.
    pub to: PathBuf,
    /// The sources known at the start.
    pub sources: Vec<Source>,
    /// Whether to ask the registry for further sources during the download.
    pub look_for_more: bool,
    /// How long the download continues without progress.
    pub patience: Duration,
    /// The value of [`FetchOptions::gone_after`].
    pub gone_after: Option<Duration>,
}

/// A running peer. Dropping it leaves the share.
pub struct Peer {
    limit_bytes_per_s: Option<u64>,
    congestion: Option<String>,
    partials: Arc<Partials>,
    folder: Option<Arc<Folder>>,
    // Fields are dropped in this order. The membership ends before the server, so that the registry
    // stops naming this peer before it stops serving.
    _watcher: Option<Watcher>,
    membership: Arc<Membership>,
    server: PeerServer,
}

impl Peer {
    /// Starts to serve and to hash the folder, waits a short time for hashing
    /// ([`JOIN_HASHING_WAIT`]), and joins with the files hashed by then.
    /// The others are announced as they are hashed. `notice` is called on a thread of its own.
    ///
    /// # Errors
    /// The server or a thread could not be started.
    pub fn start(
        options: PeerOptions,
        notice: impl FnMut(MembershipNotice) + Send + 'static,
    ) -> Result<Peer, PeerError> {
        let PeerOptions { peer, folder, limit_bytes_per_s, congestion, .. } = options;
        let partials = Arc::new(Partials::default());
        let mut catalogs: Vec<Arc<dyn Catalog>> = Vec::new();
        catalogs.extend(folder.iter().map(|folder| Arc::<Folder>::clone(folder) as _));
        catalogs.push(Arc::<Partials>::clone(&partials));
        let id = Arc::new(AtomicU64::new(peer.0));
        let serve = ServeOptions {
            peer: Arc::clone(&id),
            catalogs,
            limit_bytes_per_s,
            congestion: congestion.clone(),
            ..ServeOptions::default()
        };
        let server = PeerServer::start(options.listener, serve)?;
        let files: Arc<dyn OfferedFiles> = match &folder {
            Some(folder) => Arc::<Folder>::clone(folder),
            None => Arc::new(NoFiles),
        };
        // Hashing begins before the membership exists that has to be told of new files.
        let joined: Arc<OnceLock<Arc<Membership>>> = Arc::default();
        let watcher = match &folder {
            None => None,
            Some(folder) => {
                let (joined, hashing) = (Arc::clone(&joined), options.hashing);
                let changed = move || {
                    if let Some(membership) = joined.get() {
                        membership.changed();
                    }
                };
                let (options, folder) = (FolderOptions::default(), Arc::clone(folder));
                Some(Watcher::start(folder, options, move |progress| hashing(progress), changed)?)
            }
        };
        if let Some(folder) = &folder {
            let wait = match folder.hashing().bytes {
                ..=JOIN_HASHING_BYTES_MAX => JOIN_HASHING_WAIT_MAX,
                _ => JOIN_HASHING_WAIT,
            };
            let until = Instant::now() + wait;
            while !options.stop.load(Ordering::Relaxed) && !folder.hashing().is_done() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                folder.wait_until_hashed(left.min(limits::STOP_LOOK_INTERVAL));
            }
        }
        let (registries, address) = (options.registries, options.address);
        let shares = folder.is_some();
        let member = MemberOptions {
            registries,
            peer,
            id,
            address,
            files,
            shares,
            id_patience: ID_TAKEN_PATIENCE,
            settled_after: limits::MEMBERSHIP_SETTLED_AFTER,
        };
        let membership = Arc::new(Membership::start(member, notice)?);
        // The cell is set only here, so setting it cannot fail.
        let _ = joined.set(Arc::clone(&membership));
        // Announces the files that were hashed after the JOIN's list was made.
        membership.changed();
        Ok(Peer {
            limit_bytes_per_s,
            congestion,
            partials,
            folder,
            _watcher: watcher,
            membership,
            server,
        })
    }

    /// The address of the bound socket.
    pub fn serving_at(&self) -> SocketAddr {
        self.server.address()
    }

    /// Asks the registry for the sources of a file name.
    ///
    /// # Errors
    /// No registry answered, or the registry refused.
    pub fn search(&self, name: &FileName) -> Result<Vec<Source>, RegistryCallError> {
        Ok(sources(self.membership.ask(RegistryRequest::Search { name: name.clone() })?))
    }

    /// Returns a closure that asks the registry for the other sources of a content each time it is
    /// called. It returns no sources if no registry answers.
    pub fn who_has(
        &self,
        content: ContentId,
    ) -> impl FnMut() -> Vec<Source> + Send + use<> + 'static {
        let membership = Arc::clone(&self.membership);
        move || {
            let asked = membership.ask(RegistryRequest::SearchContent { content });
            let mut found = asked.map(self::sources).unwrap_or_default();
            found.retain(|source| source.peer != membership.peer());
            found
        }
    }

    /// Starts a download and serves its verified chunks to others while it runs.
    ///
    /// # Errors
    /// The download could not be started.
    pub fn download(&self, wanted: DownloadRequest) -> Result<PeerDownload, FetchError> {
        let DownloadRequest {
            name,
            content,
            size,
            to,
            sources,
            look_for_more,
            patience,
            gone_after,
        } = wanted;
        let in_folder = self.folder.as_ref().filter(|folder| to == folder.path());
        // A peer does not download from itself.
        let me = self.membership.peer();
        let sources = sources.into_iter().filter(|source| source.peer != me).collect();
        let slot = self.partials.slot();
        let handle = Arc::new(Fetch::start(FetchOptions {
            content,
            size,
            name: name.clone(),
            to,
            sources,
            limit_bytes_per_s: self.limit_bytes_per_s,
            partials: Some(slot.clone()),
            congestion: self.congestion.clone(),
            more_may_come: look_for_more,
            patience,
            gone_after,
            seed: rand::rng().next_u64(),
        })?);
        self.membership.fetching(content, size);
        // From here on dropping the download withdraws the announcement.
        let mut download = PeerDownload {
            name,
            content,
            handle,
            search: None,
            slot,
            membership: Arc::clone(&self.membership),
            folder: in_folder.map(Arc::clone),
        };
        if look_for_more {
            let name = download.name.clone();
            download.search = Some(self.search_on(&download.handle, content, name)?);
        }
        Ok(download)
    }

    /// Asks the registry for further sources again and again until the result is dropped.
    fn search_on(
        &self,
        handle: &Arc<FetchHandle>,
        content: ContentId,
        name: FileName,
    ) -> Result<SourceSearch, FetchError> {
        let (stop, stopped) = bounded::<()>(0);
        let (handle, membership) = (Arc::clone(handle), Arc::clone(&self.membership));
        let search_on = move || loop {
            let look = handle.search_requested();
            let asked = membership.ask(RegistryRequest::SearchContent { content });
            let is_answered = asked.is_ok();
            // If no registry answers, the download continues with the sources it has.
            for source in asked.map(self::sources).unwrap_or_default() {
                if source.peer != membership.peer() {
                    handle.add_source(source);
                }
            }
            if is_answered {
                handle.searched(look);
            }
            let next = Instant::now() + limits::SOURCES_REFRESH_INTERVAL;
            // The wait is cut short when the download requests a search because all its sources are
            // gone.
            while Instant::now() < next && handle.search_requested() == look {
                let wait = stopped.recv_timeout(limits::STOP_LOOK_INTERVAL);
                if wait != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("share-sources".to_owned()).spawn(search_on);
        thread.map_err(|error| FetchError::Internal {
            name,
            reason: format!("no thread can be started: {error}"),
            kept: KeptPart(false),
        })?;
        Ok(SourceSearch { _stop: stop })
    }
}

/// The sources in the answer to a search. The client has already rejected any other kind of answer
/// ([`RegistryCallError::Wrong`]).
pub fn sources(reply: RegistryReply) -> Vec<Source> {
    match reply {
        RegistryReply::Sources(sources) => sources,
        _ => Vec::new(),
    }
}

/// A thread that asks for further sources until this is dropped. Dropping it does not wait for the
/// thread, which may be waiting for a registry's answer.
struct SourceSearch {
    _stop: Sender<()>,
}

/// A download of a peer. Dropping it stops the download and keeps the partial file.
pub struct PeerDownload {
    name: FileName,
    content: ContentId,
    search: Option<SourceSearch>,
    handle: Arc<FetchHandle>,
    /// The entry under which its chunks are offered to others.
    slot: PartialsSlot,
    membership: Arc<Membership>,
    /// The shared folder, if that is where the file is stored.
    folder: Option<Arc<Folder>>,
}

impl PeerDownload {
    pub fn progress(&self) -> FetchProgress {
        self.handle.progress()
    }

    /// Stops the download and keeps the partial file.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Waits for the end of the download, at most `timeout`; `None` if it is still running. A file
    /// that has been stored in the shared folder is offered to others from then on.
    pub fn wait_for(&mut self, timeout: Duration) -> Option<Result<FetchOutcome, FetchError>> {
        let result = self.handle.wait_for(timeout)?;
        self.search = None;
        if let (Ok(outcome), Some(folder)) = (&result, &self.folder) {
            folder.add(self.name.clone(), Arc::clone(&outcome.manifest), outcome.stamp);
            self.membership.changed();
        }
        Some(result)
    }
}

impl Drop for PeerDownload {
    fn drop(&mut self) {
        self.search = None;
        self.handle.cancel();
        self.slot.remove();
        self.membership.fetched(self.content);
    }
}
