//! A peer: a folder that is served, a membership in the share, and downloads that are served on.
//!
//! It puts together what the other parts are for: the [`Folder`] and its [`Watcher`], the transfer
//! engine's [`PeerServer`] and [`Fetch`], and the [`Membership`] that tells the registry of it all. A process
//! that only fetches is a peer without a folder: it offers what it has of the content it is fetching.

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
    Fetch, FetchError, FetchHandle, FetchOptions, FetchOutcome, FetchProgress, Kept,
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

/// How a peer is set up.
pub struct PeerOptions {
    /// Who; of a folder that is shared, the folder's own.
    pub peer: PeerId,
    /// What is shared, if anything.
    pub folder: Option<Arc<Folder>>,
    /// Where it serves.
    pub listener: Listener,
    /// The address that it is reached at; an IP of zeros is filled in by the registry.
    pub address: SocketAddr,
    /// Where it joins.
    pub registries: Vec<SocketAddr>,
    /// The most bytes to send a second, and to receive a second.
    pub limit_bytes_per_s: Option<u64>,
    /// TCP congestion control, if not the system's own choice.
    pub congestion: Option<String>,
    /// Set when the peer is to end before it has begun.
    pub stop: Arc<AtomicBool>,
    /// Is told how far the folder's hashing is, from any thread.
    pub hashing: Arc<dyn Fn(HashProgress) + Send + Sync>,
}

/// Why a peer cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It cannot serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// It has no threads.
    #[error("cannot start a thread: {0}; is the limit on processes too low?")]
    Thread(#[from] io::Error),
}

/// What to download, from whom, to where.
#[derive(Clone, Debug)]
pub struct DownloadRequest {
    /// What the file is called, and is to be called.
    pub name: FileName,
    /// What is in it.
    pub content: ContentId,
    /// Its length in bytes.
    pub size: u64,
    /// The folder it is to be in.
    pub to: PathBuf,
    /// Who has it.
    pub sources: Vec<Source>,
    /// Whether to ask the registry for further sources all the while.
    pub look_for_more: bool,
    /// How long to go on when nobody gives anything.
    pub patience: Duration,
    /// See [`FetchOptions::gone_after`].
    pub gone_after: Option<Duration>,
}

/// A running peer. It leaves the share when it is dropped.
pub struct Peer {
    limit_bytes_per_s: Option<u64>,
    congestion: Option<String>,
    partials: Arc<Partials>,
    folder: Option<Arc<Folder>>,
    // In the order in which they end: who is asked for files that are not served any more should
    // know it from the registry.
    _watcher: Option<Watcher>,
    membership: Arc<Membership>,
    server: PeerServer,
}

impl Peer {
    /// Begins to serve and to hash what is to be shared, and joins with what is ready soon
    /// ([`JOIN_HASHING_WAIT`](limits::JOIN_HASHING_WAIT)); the rest is announced as it comes. `notice` is called on a thread of its own.
    ///
    /// # Errors
    /// The system gave no threads.
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
        // The folder is hashed before there is a membership that what changes could be told to.
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
                ..=limits::JOIN_HASHING_BYTES_MAX => limits::JOIN_HASHING_WAIT_MAX,
                _ => limits::JOIN_HASHING_WAIT,
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
            id_patience: limits::ID_TAKEN_PATIENCE,
            settled_after: limits::MEMBERSHIP_SETTLED_AFTER,
        };
        let membership = Arc::new(Membership::start(member, notice)?);
        // It is set once, here.
        let _ = joined.set(Arc::clone(&membership));
        // Whatever was ready between the list of its JOIN and now.
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

    /// Where it serves.
    pub fn serving_at(&self) -> SocketAddr {
        self.server.address()
    }

    /// Who has a file of this name.
    ///
    /// # Errors
    /// The registry cannot be reached, or refuses.
    pub fn search(&self, name: &FileName) -> Result<Vec<Source>, RegistryCallError> {
        Ok(sources(self.membership.ask(RegistryRequest::Search { name: name.clone() })?))
    }

    /// Asks the registry who else has a content, each time it is called; it is nobody when there is no answer.
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

    /// Begins a download, and offers what has arrived of it to others.
    ///
    /// # Errors
    /// It cannot even begin.
    pub fn download(&self, wanted: DownloadRequest) -> Result<Download, FetchError> {
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
        // A peer does not fetch from itself.
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
        let search = if look_for_more {
            Some(self.search_on(&handle, content, name.clone())?)
        } else {
            None
        };
        Ok(Download {
            name,
            content,
            handle,
            search,
            slot,
            membership: Arc::clone(&self.membership),
            folder: in_folder.map(Arc::clone),
        })
    }

    /// Asks for further sources until its answer is dropped.
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
            // Without a registry the download goes on with whom it knows.
            for source in asked.map(self::sources).unwrap_or_default() {
                if source.peer != membership.peer() {
                    handle.add_source(source);
                }
            }
            if is_answered {
                handle.searched(look);
            }
            let next = Instant::now() + limits::SOURCES_REFRESH_INTERVAL;
            // Sooner when nobody has it any more whom the download knows.
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
            reason: error.to_string(),
            kept: Kept(false),
        })?;
        Ok(SourceSearch { _stop: stop })
    }
}

/// The sources in an answer to a search, which no other answer passes for ([`RegistryCallError::Wrong`]).
pub fn sources(reply: RegistryReply) -> Vec<Source> {
    match reply {
        RegistryReply::Sources(sources) => sources,
        _ => Vec::new(),
    }
}

/// A thread that asks for further sources until this is dropped. It is not waited for: a registry may
/// owe it an answer.
struct SourceSearch {
    _stop: Sender<()>,
}

/// A download of a peer. Dropping it stops the download and keeps what has arrived.
pub struct Download {
    name: FileName,
    content: ContentId,
    search: Option<SourceSearch>,
    handle: Arc<FetchHandle>,
    /// What it offers of the content while it fetches it.
    slot: PartialsSlot,
    membership: Arc<Membership>,
    /// The folder the file arrives in, if it is the shared one.
    folder: Option<Arc<Folder>>,
}

impl Download {
    /// How far it is.
    pub fn progress(&self) -> FetchProgress {
        self.handle.progress()
    }

    /// Stops it; what has arrived is kept.
    pub fn cancel(&self) {
        self.handle.cancel();
    }

    /// Waits this long for its end. `None`: it goes on. A file that has arrived in the shared folder is
    /// offered to others from then on.
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

impl Drop for Download {
    fn drop(&mut self) {
        self.search = None;
        self.handle.cancel();
        self.slot.remove();
        self.membership.fetched(self.content);
    }
}
