//! Proves the size of a content of which the registry tells several.
//!
//! A content has one size, and the peers that have it prove it to anybody, whatever size they told. The list of its
//! chunk hashes proves itself against the content's id, and ends where it gives that id. The last chunk then hashes,
//! at its place, to the last hash of the list: its place and its length are the size.
//!
//! The list alone proves nothing. Where the hashes of inner nodes of the tree stand for those of chunks, a shorter list
//! gives the same id. But a node's hash depends on where in the content its bytes begin, so no bytes of one chunk at
//! the place that such a list says hash to it.
//!
//! Sources are asked side by side, [`SIZE_QUESTIONS_MAX`](limits::SIZE_QUESTIONS_MAX) at once, each on a thread of its
//! own that no other one waits for: at first for a moment, then, when all have had that, for twice as long, and so on.
//! Those of one origin have their turns after one of each other origin. Who has given the whole list may take its time
//! for the chunk, as far as that leaves the others half of the places.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use rand::seq::SliceRandom;

use super::api::{FetchError, Kept};
use crate::limits;
use crate::model::{ChunkHash, ContentId, FileName};
use crate::net::origin_of;
use crate::share::content::{chunk_count, chunk_offset, hash_chunk, root_of, subtree_hash};
use crate::share::greeting;
use crate::text::sentence;
use crate::wire::codec;
use crate::wire::message::Message;
use crate::wire::share::{PeerReply, PeerRequest, Source};

/// Which content's size is wanted, and who may know it.
#[derive(Clone, Debug)]
pub struct SizeOptions {
    /// The file's name, for the sentence that says that nobody knows.
    pub name: FileName,
    /// What the size is wanted of.
    pub content: ContentId,
    /// Who says that they have it, whatever size they tell.
    pub sources: Vec<Source>,
    /// For how long to ask in all.
    pub patience: Duration,
    /// Ends it when it is set.
    pub stop: Arc<AtomicBool>,
}

/// Why a source has not proved a size.
#[derive(Debug, thiserror::Error)]
enum ProofFailure {
    #[error("it does not answer: {0}")]
    Lost(#[from] io::Error),
    #[error("it does not answer in time")]
    Late,
    #[error("{}", sentence(.0))]
    Denied(String),
    /// What it says is false: it is asked no more.
    #[error("{0}")]
    Lie(String),
}

impl ProofFailure {
    fn lie(what: &str) -> ProofFailure {
        ProofFailure::Lie(what.to_owned())
    }
}

/// The source that has proved the size, and with that size; the first one counts. `more` is called now and then, on a
/// thread of its own, for further sources.
///
/// # Errors
///
/// Nobody has proved any within the patience, it was stopped, or the system gives no threads.
pub fn prove_size(
    options: SizeOptions,
    mut more: impl FnMut() -> Vec<Source> + Send + 'static,
) -> Result<Source, FetchError> {
    let SizeOptions { name, content, sources, patience, stop } = options;
    // Of no bytes there is no chunk to ask for.
    if let Some(source) = sources.first()
        && content == root_of(&[])
    {
        return Ok(Source { size: 0, ..source.clone() });
    }
    let (found, proofs) = bounded(1);
    let deadline = Instant::now() + patience;
    let inquiry = Arc::new(Inquiry {
        content,
        deadline,
        is_over: AtomicBool::new(false),
        state: Mutex::default(),
        found,
    });
    // Whatever comes of it, the threads end by themselves; one that is dialling is not waited for.
    let _end = StopOnDrop(Arc::clone(&inquiry));
    inquiry.add(sources);
    let begin = |run: Box<dyn FnOnce() + Send>| {
        let thread = thread::Builder::new().name("share-size".to_owned()).spawn(run);
        thread.map(drop).map_err(|error| FetchError::Internal {
            name: name.clone(),
            reason: error.to_string(),
            kept: Kept(false),
        })
    };
    for _ in 0..limits::SIZE_QUESTIONS_MAX {
        let inquiry = Arc::clone(&inquiry);
        begin(Box::new(move || inquiry.work()))?;
    }
    let seeking = Arc::clone(&inquiry);
    begin(Box::new(move || {
        while seeking.pause_until(Instant::now() + limits::SOURCES_REFRESH_INTERVAL) {
            seeking.add(more());
        }
    }))?;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(FetchError::Cancelled(Kept(false)));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match proofs.recv_timeout(left.min(limits::STOP_LOOK_INTERVAL)) {
            Ok(source) => return Ok(source),
            Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
            Err(_) => {
                let mut last = std::mem::take(&mut inquiry.state().last);
                if last.is_empty() {
                    "nobody has answered".clone_into(&mut last);
                }
                return Err(FetchError::NoSource { name, last, kept: Kept(false) });
            }
        }
    }
}

/// Ends the threads of an inquiry.
struct StopOnDrop(Arc<Inquiry>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// What the threads that ask share.
struct Inquiry {
    content: ContentId,
    deadline: Instant,
    is_over: AtomicBool,
    state: Mutex<InquiryState>,
    found: Sender<Source>,
}

#[derive(Default)]
struct InquiryState {
    /// Who is to be asked, those asked least first.
    waiting: VecDeque<Attempt>,
    /// The addresses of all that were ever added.
    known: HashSet<SocketAddr>,
    /// Why the last source that failed has failed.
    last: String,
    /// How many take their time for the last chunk.
    patient: usize,
    /// When the next one may ask for the last chunk.
    next_chunk: Option<Instant>,
}

/// A source that is to be asked.
struct Attempt {
    source: Source,
    /// No sooner than this.
    from: Instant,
    /// How long it may take over its answers; doubled each time that it did not prove a size.
    time: Duration,
}

impl Inquiry {
    fn state(&self) -> MutexGuard<'_, InquiryState> {
        // Each of its fields may be ahead of the others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire) || Instant::now() >= self.deadline
    }

    /// Whether it goes on at that time.
    fn pause_until(&self, at: Instant) -> bool {
        while !self.is_over() {
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(limits::SIZE_LOOK_INTERVAL));
        }
        false
    }

    /// Adds those that are not known, in random order, one of each origin first.
    fn add(&self, mut sources: Vec<Source>) {
        sources.shuffle(&mut rand::rng());
        let mut of_origin: HashMap<_, usize> = HashMap::new();
        let mut ranked: Vec<(usize, Source)> = sources
            .into_iter()
            .filter(|source| source.content == self.content)
            .map(|source| {
                let rank = of_origin.entry(origin_of(source.address.ip())).or_default();
                *rank += 1;
                (*rank, source)
            })
            .collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        let (mut state, from) = (self.state(), Instant::now());
        let mut fresh = VecDeque::new();
        for (_, source) in ranked {
            if state.known.len() < limits::SOURCES_KNOWN_MAX && state.known.insert(source.address) {
                fresh.push_back(Attempt { source, from, time: limits::SIZE_QUESTION_TIME });
            }
        }
        fresh.append(&mut state.waiting);
        state.waiting = fresh;
    }

    /// Asks one source after the other, until somebody has proved a size.
    fn work(&self) {
        while !self.is_over() {
            let begun = Instant::now();
            let attempt = {
                let mut state = self.state();
                let due = state.waiting.iter().position(|attempt| attempt.from <= begun);
                due.and_then(|at| state.waiting.remove(at))
            };
            let Some(mut attempt) = attempt else {
                self.pause_until(begun + limits::SIZE_LOOK_INTERVAL);
                continue;
            };
            let failure = match self.ask(&attempt) {
                Ok(size) => {
                    attempt.source.size = size;
                    // Somebody else may have been quicker.
                    let _ = self.found.try_send(attempt.source);
                    return;
                }
                Err(failure) => failure,
            };
            let why = format!("{}: {failure}", attempt.source.address);
            log::info!("source {why}");
            let mut state = self.state();
            state.last = why;
            if !matches!(failure, ProofFailure::Lie(_)) {
                attempt.from = begun + limits::SOURCE_REDIAL_MIN;
                attempt.time = attempt.time.saturating_mul(2);
                state.waiting.push_back(attempt);
            }
        }
    }

    /// Asks a source for its proof, in its time.
    fn ask(&self, attempt: &Attempt) -> Result<u64, ProofFailure> {
        let now = Instant::now();
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Err(ProofFailure::Late);
        }
        let time = attempt.time.min(left);
        let stream = TcpStream::connect_timeout(&attempt.source.address, time)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(time))?;
        let mut dialogue =
            SourceDialogue { inquiry: self, stream, deadline: now + time, last_id: 0 };
        dialogue.greet()?;
        let (count, last) = dialogue.list()?;
        let is_patient = {
            let mut state = self.state();
            let may = state.patient < limits::SIZE_QUESTIONS_MAX / 2;
            state.patient += usize::from(may);
            may
        };
        if is_patient {
            dialogue.deadline = self.deadline;
        }
        let size = dialogue.last_chunk(count, last);
        self.state().patient -= usize::from(is_patient);
        size
    }

    /// Waits for the turn to ask for the last chunk; how long that took. One after the other, so that many who have it
    /// do not all send it.
    fn await_chunk_turn(&self) -> Result<Duration, ProofFailure> {
        let now = Instant::now();
        let attempt = {
            let mut state = self.state();
            let attempt = state.next_chunk.map_or(now, |next| next.max(now));
            state.next_chunk = Some(attempt + limits::SIZE_CHUNK_AFTER);
            attempt
        };
        if !self.pause_until(attempt) {
            return Err(ProofFailure::Late);
        }
        Ok(now.elapsed())
    }
}

/// A connection with one source.
struct SourceDialogue<'a> {
    inquiry: &'a Inquiry,
    stream: TcpStream,
    deadline: Instant,
    last_id: u64,
}

impl SourceDialogue<'_> {
    fn send(&mut self, message: &Message) -> Result<(), ProofFailure> {
        let frame =
            greeting::frame(message).map_err(|error| ProofFailure::Denied(error.to_string()))?;
        Ok(self.stream.write_all(&frame)?)
    }

    /// Receives so many bytes, as long as some come.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<(), ProofFailure> {
        let (mut filled, mut silent_since) = (0, Instant::now());
        while filled < bytes.len() {
            let until = self.deadline.min(silent_since + limits::SOURCE_SILENCE_MAX);
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.inquiry.is_over() {
                return Err(ProofFailure::Late);
            }
            self.stream.set_read_timeout(Some(left.min(limits::STOP_LOOK_INTERVAL)))?;
            match self.stream.read(&mut bytes[filled..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(received) => (filled, silent_since) = (filled + received, Instant::now()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted
                    | io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut => {}
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    fn message(&mut self) -> Result<Message, ProofFailure> {
        let no_peer = || ProofFailure::lie("it does not answer like a peer");
        let mut header = [0; limits::FRAME_HEADER_BYTES];
        self.receive(&mut header)?;
        let length = u32::from_be_bytes(header) as usize;
        if length == 0 || length > limits::SHARE_FRAME_BYTES_MAX {
            return Err(no_peer());
        }
        let mut body = vec![0; length];
        self.receive(&mut body)?;
        match codec::decode(&body) {
            Ok(Message::Refused { reason }) => Err(ProofFailure::Denied(reason)),
            Ok(message) => Ok(message),
            Err(_) => Err(no_peer()),
        }
    }

    fn greet(&mut self) -> Result<(), ProofFailure> {
        self.send(&greeting::hello())?;
        match self.message()? {
            Message::Welcome(welcome) => {
                greeting::peer_in_welcome(&welcome).map(drop).map_err(ProofFailure::Lie)
            }
            _ => Err(ProofFailure::lie("it does not greet like a peer")),
        }
    }

    fn ask(&mut self, body: PeerRequest) -> Result<PeerReply, ProofFailure> {
        self.last_id += 1;
        self.send(&Message::Share { id: self.last_id, body })?;
        match self.message()? {
            Message::ShareReply { id, body } if id == self.last_id => match body {
                PeerReply::Denied { message, .. } => Err(ProofFailure::Denied(message)),
                body => Ok(body),
            },
            _ => Err(ProofFailure::lie("it answers what it was not asked")),
        }
    }

    /// How many chunks the content has, and the hash of the last one, as its list says.
    fn list(&mut self) -> Result<(u64, ChunkHash), ProofFailure> {
        let content = self.inquiry.content;
        let (mut list, mut first) = (ListProof::new(content), 0);
        loop {
            let PeerReply::Hashes { hashes } = self.ask(PeerRequest::Hashes { content, first })?
            else {
                return Err(ProofFailure::lie("it answers what it was not asked"));
            };
            match list.take(&hashes) {
                PageVerdict::More(next) => first = next,
                PageVerdict::Whole(count, last) => return Ok((count, last)),
                PageVerdict::Wrong => return Err(ProofFailure::lie("its chunk hashes are false")),
            }
        }
    }

    /// The size, of which the last of `count` chunks is the proof.
    fn last_chunk(&mut self, count: u64, last: ChunkHash) -> Result<u64, ProofFailure> {
        self.deadline += self.inquiry.await_chunk_turn()?;
        let (content, index) = (self.inquiry.content, count - 1);
        let PeerReply::Chunk { length } = self.ask(PeerRequest::Chunk { content, index })? else {
            return Err(ProofFailure::lie("it answers what it was not asked"));
        };
        if length == 0 || length as usize > limits::CHUNK_BYTES {
            return Err(ProofFailure::lie("its last chunk has a false length"));
        }
        let mut bytes = vec![0; length as usize];
        self.receive(&mut bytes)?;
        let size = chunk_offset(index) + u64::from(length);
        if hash_chunk(index, size, &bytes) == Some(last) {
            Ok(size)
        } else {
            Err(ProofFailure::lie("its last chunk is false"))
        }
    }
}

/// A list of chunk hashes of unknown length that comes page by page. All pages but the last are full, so each is a whole
/// subtree, of which only the hash is kept: a list of any length takes no memory to speak of.
#[derive(Debug)]
struct ListProof {
    content: ContentId,
    pages: Vec<ChunkHash>,
    count: u64,
}

/// What came of a page.
#[derive(Debug, PartialEq, Eq)]
enum PageVerdict {
    /// The next one is to begin with this chunk.
    More(u64),
    /// That was the last one: the number of chunks, and the last one's hash.
    Whole(u64, ChunkHash),
    /// It cannot be a page of this list.
    Wrong,
}

impl ListProof {
    fn new(content: ContentId) -> ListProof {
        ListProof { content, pages: Vec::new(), count: 0 }
    }

    fn take(&mut self, page: &[ChunkHash]) -> PageVerdict {
        let Some(last) = page.last() else { return PageVerdict::Wrong };
        self.count += page.len() as u64;
        let is_too_long = self.count > chunk_count(limits::FILE_BYTES_MAX);
        if is_too_long || page.len() > limits::HASHES_PER_FRAME_MAX {
            return PageVerdict::Wrong;
        }
        self.pages.push(subtree_hash(page));
        // The tree over full pages, of a power of two of chunks each, is the one over their chunks.
        let root = if self.pages.len() == 1 { root_of(page) } else { root_of(&self.pages) };
        if root == self.content {
            PageVerdict::Whole(self.count, *last)
        } else if page.len() == limits::HASHES_PER_FRAME_MAX {
            PageVerdict::More(self.count)
        } else {
            PageVerdict::Wrong
        }
    }
}

#[cfg(test)]
mod tests;
