//! The share's commands without a menu: `share`, `fetch`, `peers` and `files`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use rand::Rng;
use serde::Serialize;
use unicode_normalization::UnicodeNormalization;

use super::args::Format;
use super::commands::{Outcome, exit_status};
use super::output::print_json;
use super::share_args::{FetchArgs, ListArgs, ShareArgs};
use super::stdout;
use crate::limits;
use crate::logging;
use crate::net::{ListenError, Listener};
use crate::process;
use crate::share::display::{FetchDisplay, HashDisplay, Style, rate, tell};
use crate::share::fetch::{self, FetchError};
use crate::share::folder::{Folder, FolderError, LeftOut};
use crate::share::line::{Line, LineError, Listing};
use crate::share::member::Notice;
use crate::share::names::FileName;
use crate::share::peer::{Peer, PeerError, PeerOptions, Wanted, sources};
use crate::share::types::{ContentId, FileEntry, PeerId};
use crate::text::{counted, escape};
use crate::wire::share::{FileSummary, PeerSummary, RegistryReply, RegistryRequest, Source};

/// How a command of the share failed.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The registry cannot be asked.
    #[error(transparent)]
    Registry(#[from] LineError),
    /// The folder cannot be shared.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The address cannot be served on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The peer cannot begin.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The download failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// What is to be fetched cannot be the name of a shared file.
    #[error("\"{}\" cannot be fetched: {why}", escape(.name.as_encoded_bytes()))]
    Name {
        /// What was given.
        name: OsString,
        /// Why it cannot be one, as a sentence for a person.
        why: String,
    },
    /// The folder to fetch to is not there, and cannot be made.
    #[error("the folder {} cannot be made: {source}; fetch to another one with --to", .path.display())]
    MakeFolder {
        /// The folder that was named.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The beginning of a hash fits more than one content.
    #[error("--content {0} fits several contents of that name: give more digits")]
    Ambiguous(String),
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// The answer could not be printed.
    #[error("the answer could not be printed: {0}")]
    Output(#[source] io::Error),
}

impl ShareError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            ShareError::Registry(_) => exit_status::UNAVAILABLE,
            ShareError::Fetch(FetchError::NoSource { .. }) => exit_status::UNAVAILABLE,
            ShareError::Fetch(FetchError::Gone { .. }) => exit_status::NOT_FOUND,
            ShareError::Folder(_) | ShareError::Ambiguous(_) | ShareError::Name { .. } => {
                exit_status::USAGE
            }
            ShareError::Fetch(_)
            | ShareError::MakeFolder { .. }
            | ShareError::Listen(_)
            | ShareError::Peer(_)
            | ShareError::Signals(_)
            | ShareError::Output(_) => exit_status::FAILED,
        }
    }
}

/// Set by the signals that stop a process. A second one ends it at once.
fn stop_flag() -> Result<Arc<AtomicBool>, ShareError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in process::stop_signals() {
        let second = i32::from(exit_status::FAILED);
        signal_hook::flag::register_conditional_shutdown(signal, second, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(ShareError::Signals)?;
    }
    Ok(stop)
}

/// What is said of a membership's ups and downs.
fn notice(quiet: bool, display: Arc<HashDisplay>) -> impl FnMut(Notice) + Send + 'static {
    move |notice| match notice {
        Notice::Joined { registry, names, .. } if !quiet => {
            let files = counted(names.len() as u64, "file", "files");
            display.tell(&format!("joined at {registry} with {files}"));
        }
        Notice::Joined { .. } => {}
        Notice::Lost(error) => display.tell(&format!("acervo: {error}; trying again")),
    }
}

/// One line on what is not offered of a folder; none when everything is.
fn left_out(reasons: &BTreeMap<LeftOut, usize>) -> Option<String> {
    let total: usize = reasons.values().sum();
    // Names are left out for several reasons of their own, which the log tells one by one.
    let mut kinds: Vec<((&str, &str), u64)> = Vec::new();
    for (why, number) in reasons {
        let kind = match why {
            LeftOut::Folder => ("folder", "folders"),
            LeftOut::Link => ("link", "links"),
            LeftOut::Special => ("special file", "special files"),
            LeftOut::Hidden => ("hidden name", "hidden names"),
            LeftOut::Partial => ("unfinished file", "unfinished files"),
            LeftOut::NotUtf8 => ("name that is not UTF-8", "names that are not UTF-8"),
            LeftOut::Name(_) => ("unusable name", "unusable names"),
            LeftOut::TooLarge => ("file beyond 1 TiB", "files beyond 1 TiB"),
            LeftOut::TooMany => ("file beyond the first 65,536", "files beyond the first 65,536"),
        };
        match kinds.last_mut() {
            Some((last, sum)) if *last == kind => *sum += *number as u64,
            _ => kinds.push((kind, *number as u64)),
        }
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|((one, many), number)| counted(number, one, many)).collect();
    (total > 0).then(|| format!("{total} left out: {}", kinds.join(", ")))
}

/// `acervo share`.
///
/// # Errors
/// See [`ShareError`].
pub fn share(args: &ShareArgs) -> Result<Outcome, ShareError> {
    let listener = Listener::bind(args.listen.unwrap_or_else(|| args.registries.anywhere()))?;
    let address = listener.address();
    let display = Arc::new(HashDisplay::new(Style::choose(args.quiet)));
    let folder = Folder::open(&args.dir, PeerId(rand::rng().next_u64()))?;
    let stop = stop_flag()?;
    let shown = escape(folder.path().as_os_str().as_encoded_bytes()).to_string();
    if let Some(line) = left_out(&folder.left_out()).filter(|_| !args.quiet) {
        display.tell(&line);
    }
    let hashing = Arc::clone(&display);
    let options = PeerOptions {
        peer: folder.peer(),
        folder: Some(Arc::clone(&folder)),
        listener,
        address,
        registries: args.registries.registry.clone(),
        limit_bytes_per_s: args.limit,
        congestion: args.congestion.clone(),
        stop: Arc::clone(&stop),
        hashing: Arc::new(move |progress| hashing.show(progress)),
    };
    let peer = Peer::start(options, notice(args.quiet, Arc::clone(&display)))?;
    if !args.quiet {
        display.tell(&format!("sharing {shown} at {}", peer.serving_at()));
        let hashing = folder.hashing();
        if !hashing.is_done() {
            let left = counted(hashing.files - hashing.files_done, "file", "files");
            display.tell(&format!("{left} still to hash: each is offered as soon as it is known"));
        }
    }
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(limits::STOP_LOOK_INTERVAL);
    }
    Ok(Outcome::Done)
}

/// One content among those of a name.
#[derive(Debug)]
struct Choice {
    content: ContentId,
    /// Who says that they have it, by the size that they say it has: first the size that most say. A content has one
    /// size, and whoever says another lies.
    sizes: Vec<(u64, Vec<Source>)>,
    /// How many contents there are.
    among: usize,
}

impl Choice {
    fn peers(&self) -> usize {
        self.sizes.iter().map(|(_, sources)| sources.len()).sum()
    }
}

/// `acervo fetch`.
///
/// # Errors
/// See [`ShareError`].
pub fn fetch(args: &FetchArgs, out: &mut dyn Write) -> Result<Outcome, ShareError> {
    let refused = |why| ShareError::Name { name: args.name.clone(), why };
    let name = &args.file_name().map_err(refused)?;
    let started = Instant::now();
    let deadline = started + limits::REGISTRY_CALL_TIMEOUT;
    let search = RegistryRequest::Search { name: name.clone() };
    let (mut line, asked) = Line::ask_any(&args.registries.registry, &search, deadline)?;
    let Some(choice) = choose(sources(asked), args.content.as_deref())? else {
        let wanted = args.content.as_ref().map(|hash| format!(" with content {hash}"));
        let (name, wanted) = (shown(name), wanted.unwrap_or_default());
        let registry = line.address();
        tell(&format!("acervo: no peer that registry {registry} knows has \"{name}\"{wanted}"));
        // A hint that cannot be had is none.
        if args.content.is_none()
            && let Ok(Some(other)) = look_alike(&mut line, &args.file_name().map_err(refused)?)
        {
            let other = typable(&other);
            tell(&format!(
                "acervo: there is a name that looks the same: fetch --escaped '{other}'"
            ));
        }
        return Ok(Outcome::NotFound);
    };
    drop(line);
    if choice.among > 1 {
        tell(&format!(
            "acervo: {} files are called \"{}\"; fetching the one of {}, {} (--content chooses another)",
            choice.among,
            shown(name),
            counted(choice.peers() as u64, "peer", "peers"),
            choice.content
        ));
    }
    let stop = stop_flag()?;
    // Something else that has the name is told of below.
    if let Err(source) = std::fs::create_dir_all(&args.to)
        && !args.to.exists()
    {
        return Err(ShareError::MakeFolder { path: args.to.clone(), source });
    }
    let to = args.to.canonicalize().map_err(|source| {
        ShareError::Fetch(FetchError::Folder { path: args.to.clone(), source })
    })?;
    let listener = Listener::bind(args.listen.unwrap_or_else(|| args.registries.anywhere()))?;
    let options = PeerOptions {
        peer: PeerId(rand::rng().next_u64()),
        folder: None,
        address: listener.address(),
        listener,
        registries: args.registries.registry.clone(),
        limit_bytes_per_s: args.limit,
        congestion: args.congestion.clone(),
        stop: Arc::clone(&stop),
        hashing: Arc::new(|_| {}),
    };
    // That the registry is away for a while is no news here: the download goes on.
    let peer = Peer::start(options, |_| {})?;
    let content = choice.content;
    let whole_patience = args.patience.unwrap_or(limits::FETCH_PATIENCE_DEFAULT);
    let mut tries: VecDeque<_> = tries(choice.sizes, whole_patience).into();
    while let Some((size, sources, patience)) = tries.pop_front() {
        let wanted = Wanted {
            name: name.clone(),
            content,
            size,
            to: to.clone(),
            sources: sources.clone(),
            look_for_more: true,
            patience,
            // Whoever says how long to wait waits for what may come back.
            gone_after: args.patience.is_none().then_some(limits::SOURCES_GONE_AFTER),
        };
        match transfer(&peer, wanted, args.quiet, &stop) {
            Ok((outcome, progress)) => {
                // Nothing is left to be ended in order: a signal ends the process at once, whoever does not read its output.
                stop.store(true, Ordering::Relaxed);
                let fetched = FileEntry { name: name.clone(), size, content };
                print_fetched(args, out, &fetched, &outcome, &progress, started.elapsed())
                    .map_err(ShareError::Output)?;
                return Ok(Outcome::Done);
            }
            Err((error, verified_bytes)) => {
                let is_short = patience < whole_patience;
                match after(&error, verified_bytes, is_short, tries.is_empty()) {
                    Next::End => return Err(error.into()),
                    Next::SameSize => tries = [(size, sources, whole_patience)].into(),
                    // What the attempt has left is no more than an earlier one had: nothing is in the way of another.
                    Next::OtherSize => log::info!("{error}; others tell another size of it"),
                }
            }
        }
    }
    // Every choice has a size.
    Ok(Outcome::NotFound)
}

/// The sizes that are told of a content, in the order in which they are tried, and for how long: a content has one
/// size, and whoever tells another lies, but only an attempt shows who. So where there are several nobody is waited
/// for long before each has been tried; the one that most tell is the last as well as the first.
fn tries(sizes: Vec<(u64, Vec<Source>)>, patience: Duration) -> Vec<(u64, Vec<Source>, Duration)> {
    let whole = sizes.iter().rev().cloned().map(|(size, sources)| (size, sources, patience));
    let quick = patience.min(limits::DOUBTFUL_PATIENCE);
    match sizes.len() {
        0 | 1 => whole.collect(),
        _ => {
            let first = sizes.iter().cloned().map(|(size, sources)| (size, sources, quick));
            first.chain(whole).collect()
        }
    }
}

/// What follows on a download that has failed.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It has failed for good.
    End,
    /// The size is the true one: it is worth all patience.
    SameSize,
    /// The size may be a lie, and another one is told.
    OtherSize,
}

/// What follows when an attempt has failed in which so many bytes were found good, now or by an earlier download. A size
/// of which a chunk was found good is true, whatever others tell. Another one is no help against what this machine
/// and whoever uses it do; all else may come of a size that is a lie: that nobody gives it, that it does not fit.
fn after(error: &FetchError, verified_bytes: u64, is_short: bool, is_last: bool) -> Next {
    match error {
        FetchError::Cancelled(_)
        | FetchError::Touched(_)
        | FetchError::Disk { .. }
        | FetchError::PartGone(_)
        | FetchError::UnderWay(_) => Next::End,
        FetchError::NoSource { .. } if verified_bytes > 0 && is_short => Next::SameSize,
        _ if verified_bytes == 0 && !is_last => Next::OtherSize,
        _ => Next::End,
    }
}

/// One download, shown while it lasts: how it ended, and how far it had come; of one that failed, how many bytes of
/// it had been found good.
fn transfer(
    peer: &Peer,
    wanted: Wanted,
    quiet: bool,
    stop: &AtomicBool,
) -> Result<(fetch::Outcome, fetch::Progress), (FetchError, u64)> {
    let mut display = FetchDisplay::new(Style::choose(quiet), &wanted.name, wanted.size);
    let mut transfer = peer.download(wanted).map_err(|error| (error, 0))?;
    let result = loop {
        if let Some(result) = transfer.wait_for(limits::STOP_LOOK_INTERVAL) {
            break result;
        }
        display.show(&transfer.progress(), Instant::now());
        if stop.load(Ordering::Relaxed) {
            transfer.cancel();
        }
    };
    display.finish();
    let progress = transfer.progress();
    match result {
        Ok(outcome) => Ok((outcome, progress)),
        Err(error) => {
            let given = progress.sources.iter().map(|source| source.given_bytes).sum::<u64>();
            Err((error, progress.kept_bytes + given))
        }
    }
}

/// The content to fetch: the one whose hash begins like this, or the one that most peers have.
fn choose(found: Vec<Source>, wanted: Option<&str>) -> Result<Option<Choice>, ShareError> {
    let mut contents: BTreeMap<ContentId, BTreeMap<u64, Vec<Source>>> = BTreeMap::new();
    for source in found {
        let sizes = contents.entry(source.content).or_default();
        sizes.entry(source.size).or_default().push(source);
    }
    if let Some(hash) = wanted {
        contents.retain(|content, _| content.to_string().starts_with(hash));
        if contents.len() > 1 {
            return Err(ShareError::Ambiguous(hash.to_owned()));
        }
    }
    let among = contents.len();
    let choices = contents.into_iter().map(|(content, sizes)| {
        let mut sizes: Vec<_> = sizes.into_iter().collect();
        sizes.sort_by_key(|(_, sources)| Reverse(sources.len()));
        Choice { content, sizes, among }
    });
    Ok(choices.max_by_key(Choice::peers))
}

/// A name that somebody offers which people take for this one: of other case, or with its accents written as other
/// characters, as some systems store them.
fn look_alike(line: &mut Line, wanted: &FileName) -> Result<Option<FileName>, LineError> {
    let key = folded(wanted);
    let mut listing = Listing::new(limits::REGISTRY_FILES_MAX);
    for _ in 0..limits::LOOK_ALIKE_PAGES_MAX {
        let request = |after| RegistryRequest::Files { after };
        let RegistryReply::Files { files, more } = listing.next_page(line, request)? else { break };
        let alike = files.iter().find(|row| folded(&row.file.name) == key);
        if let Some(row) = alike {
            return Ok(Some(row.file.name.clone()));
        }
        if !listing.has_next(line, files.iter().map(|row| &row.file.name), more)? {
            break;
        }
    }
    Ok(None)
}

fn folded(name: &FileName) -> String {
    name.as_str().to_lowercase().nfkc().collect()
}

/// A name as `--escaped` takes it between single quotes, of characters that every keyboard has.
fn typable(name: &FileName) -> String {
    let mut typed = String::new();
    for byte in name.as_str().bytes() {
        if (byte.is_ascii_graphic() || byte == b' ') && byte != b'\\' && byte != b'\'' {
            typed.push(char::from(byte));
        } else {
            // Writing into a string does not fail.
            let _ = write!(typed, "\\x{byte:02x}");
        }
    }
    typed
}

fn shown(name: &FileName) -> impl std::fmt::Display {
    escape(name.as_str().as_bytes())
}

/// What `fetch --format json` prints.
#[derive(Serialize)]
struct FetchedJson<'a> {
    name: &'a str,
    path: String,
    size: u64,
    content: String,
    already_there: bool,
    fetched_bytes: u64,
    kept_bytes: u64,
    seconds: f64,
    sources: Vec<SourceJson>,
}

#[derive(Serialize)]
struct SourceJson {
    peer: String,
    address: SocketAddr,
    bytes: u64,
}

fn print_fetched(
    args: &FetchArgs,
    out: &mut dyn Write,
    FileEntry { name, size, content }: &FileEntry,
    outcome: &fetch::Outcome,
    progress: &fetch::Progress,
    took: Duration,
) -> io::Result<()> {
    if !args.quiet {
        let fetched = outcome.fetched_bytes;
        let given = progress.sources.iter().filter(|source| source.given_bytes > 0).count();
        tell(&match outcome.already_there {
            true => format!("{} was there already, whole", shown(name)),
            false => format!(
                "{}: {} from {} in {:.1} s, {}",
                shown(name),
                HumanBytes(fetched),
                counted(given as u64, "peer", "peers"),
                took.as_secs_f64(),
                rate(fetched as f64 / took.as_secs_f64())
            ),
        });
        // On a terminal the line goes before the answer.
        logging::finish();
    }
    let path = outcome.path.display().to_string();
    match args.format.get() {
        // Scripts want the path as it is.
        Format::Text if !stdout::is_terminal() => {
            out.write_all(outcome.path.as_os_str().as_encoded_bytes())?;
            writeln!(out)
        }
        Format::Text => writeln!(out, "{}", escape(path.as_bytes())),
        Format::Json => {
            let sources = progress.sources.iter().map(|source| SourceJson {
                peer: source.peer.to_string(),
                address: source.address,
                bytes: source.given_bytes,
            });
            print_json(
                out,
                &FetchedJson {
                    name: name.as_str(),
                    path,
                    size: *size,
                    content: content.to_string(),
                    already_there: outcome.already_there,
                    fetched_bytes: outcome.fetched_bytes,
                    kept_bytes: outcome.kept_bytes,
                    seconds: took.as_secs_f64(),
                    sources: sources.collect(),
                },
            )
        }
    }
}

// ---- what the registry knows -----------------------------------------------------------------

#[derive(Serialize)]
struct PeerJson {
    peer: String,
    address: SocketAddr,
    files: u64,
    bytes: u64,
    silent_ms: u64,
}

#[derive(Serialize)]
struct FileJson<'a> {
    name: &'a str,
    size: u64,
    content: String,
    peers: u32,
}

/// `acervo peers`: a page at a time, so that it takes no memory to speak of.
///
/// # Errors
/// See [`ShareError`].
pub fn peers(args: &ListArgs, out: &mut dyn Write) -> Result<Outcome, ShareError> {
    let headings =
        format!("{:16}  {:21}  {:>7}  {:>10}  silent", "peer", "address", "files", "bytes");
    let request = |after| RegistryRequest::Peers { after };
    let mut listing = Listing::new(limits::REGISTRY_PEERS_MAX);
    let (line, mut page) = listing.first_page(&args.registries.registry, request)?;
    let mut list = List::new(args, line, "peers", headings);
    loop {
        let RegistryReply::Peers { peers, more } = page else {
            return list.end(out);
        };
        let has_next = listing.has_next(&list.line, peers.iter().map(|peer| &peer.peer), more)?;
        for peer in &peers {
            list.row(
                out,
                &text_of_peer(peer),
                &PeerJson {
                    peer: peer.peer.to_string(),
                    address: peer.address,
                    files: peer.files,
                    bytes: peer.bytes,
                    silent_ms: peer.silent_ms,
                },
            )?;
        }
        if !has_next {
            return list.end(out);
        }
        page = listing.next_page(&mut list.line, request)?;
    }
}

fn text_of_peer(peer: &PeerSummary) -> String {
    let PeerSummary { peer, address, files, bytes, silent_ms } = peer;
    let bytes = HumanBytes(*bytes).to_string();
    let address = address.to_string();
    format!("{peer:16}  {address:21}  {files:>7}  {bytes:>10}  {}s", silent_ms / 1000)
}

/// `acervo files`.
///
/// # Errors
/// See [`ShareError`].
pub fn files(args: &ListArgs, out: &mut dyn Write) -> Result<Outcome, ShareError> {
    let headings = format!("{:16}  {:>10}  {:>5}  name", "content", "size", "peers");
    let request = |after| RegistryRequest::Files { after };
    let mut listing = Listing::new(limits::REGISTRY_FILES_MAX);
    let (line, mut page) = listing.first_page(&args.registries.registry, request)?;
    let mut list = List::new(args, line, "files", headings);
    loop {
        let RegistryReply::Files { files, more } = page else {
            return list.end(out);
        };
        let names = files.iter().map(|row| &row.file.name);
        let has_next = listing.has_next(&list.line, names, more)?;
        for FileSummary { file, peers } in &files {
            let content = file.content.to_string();
            let size = HumanBytes(file.size).to_string();
            let text = format!("{:.16}  {size:>10}  {peers:>5}  {}", content, shown(&file.name));
            let (name, size) = (file.name.as_str(), file.size);
            list.row(out, &text, &FileJson { name, size, content, peers: *peers })?;
        }
        if !has_next {
            return list.end(out);
        }
        page = listing.next_page(&mut list.line, request)?;
    }
}

/// A list that is printed as it comes. Nothing is printed before a page has come that can be.
struct List {
    line: Line,
    format: Format,
    /// The member of the JSON object that holds it.
    name: &'static str,
    headings: String,
    has_begun: bool,
    rows: u64,
}

impl List {
    fn new(args: &ListArgs, line: Line, name: &'static str, headings: String) -> List {
        List { line, format: args.format.get(), name, headings, has_begun: false, rows: 0 }
    }

    /// In text, a line of headings; in JSON, the beginning of an object with one list in it.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Ok(());
        }
        match self.format {
            Format::Text => writeln!(out, "{}", self.headings),
            Format::Json => write!(out, "{{\"{}\":[", self.name),
        }
    }

    fn row(
        &mut self,
        out: &mut dyn Write,
        text: &str,
        object: &impl Serialize,
    ) -> Result<(), ShareError> {
        self.begin(out).map_err(ShareError::Output)?;
        let first = self.rows == 0;
        self.rows += 1;
        match self.format {
            Format::Text => writeln!(out, "{text}"),
            Format::Json => {
                let separator = if first { "" } else { "," };
                write!(out, "{separator}")
                    .and_then(|()| serde_json::to_writer(&mut *out, object).map_err(Into::into))
            }
        }
        .map_err(ShareError::Output)
    }

    fn end(&mut self, out: &mut dyn Write) -> Result<Outcome, ShareError> {
        self.begin(out).map_err(ShareError::Output)?;
        if self.rows == 0 && self.format == Format::Text {
            // It may be another registry than is meant.
            tell(&format!("acervo: registry {} knows no {}", self.line.address(), self.name));
        }
        if self.format == Format::Json {
            writeln!(out, "]}}").map_err(ShareError::Output)?;
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::share::fetch::Kept;

    /// A liar's second size, and an honest source that paused for five seconds: what had arrived was removed.
    #[test]
    fn what_was_found_good_is_kept_whatever_size_others_tell() {
        let gone = FetchError::NoSource {
            name: FileName::new("a").unwrap(),
            last: "it fell silent".to_owned(),
            kept: Kept(false),
        };
        assert_eq!(after(&gone, 0, true, false), Next::OtherSize);
        assert_eq!(after(&gone, 1, true, false), Next::SameSize);
        assert_eq!(after(&gone, 1, false, false), Next::End);
        assert_eq!(after(&gone, 0, false, true), Next::End);
        assert_eq!(after(&FetchError::Cancelled(Kept(false)), 0, true, false), Next::End);
        // What a size of nothing, or one that fits no disk, comes to.
        let (name, reason) = (FileName::new("a").unwrap(), "no such hash".to_owned());
        let nothing = FetchError::Internal { name, reason, kept: Kept(false) };
        assert_eq!(after(&nothing, 0, true, false), Next::OtherSize);
        assert_eq!(after(&nothing, 0, false, true), Next::End);
    }

    fn offers(all: &[(u8, u64, usize)]) -> Vec<Source> {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let source = |what: u8, size| Source {
            peer: PeerId(1),
            address,
            size,
            content: ContentId([what; 32]),
        };
        let each = |(what, size, peers): &(u8, u64, usize)| vec![source(*what, *size); *peers];
        all.iter().flat_map(each).collect()
    }

    fn chosen(all: &[(u8, u64, usize)], wanted: Option<&str>) -> (u8, Vec<u64>) {
        let choice = choose(offers(all), wanted).unwrap().unwrap();
        (choice.content.0[0], choice.sizes.iter().map(|(size, _)| *size).collect())
    }

    #[test]
    fn the_content_that_most_peers_have_is_chosen_with_every_size_that_is_told() {
        assert_eq!(chosen(&[(1, 10, 2), (2, 20, 3)], None), (2, vec![20]));
        // A liar who tells another size of it hides nobody, and takes its content no vote.
        assert_eq!(chosen(&[(1, 10, 1), (1, 99, 1), (2, 20, 1)], None), (1, vec![10, 99]));
        assert_eq!(chosen(&[(1, 99, 1), (1, 10, 2)], None), (1, vec![10, 99]));
        let hash = ContentId([1; 32]).to_string();
        assert_eq!(chosen(&[(1, 10, 1), (1, 99, 2), (2, 5, 9)], Some(&hash)), (1, vec![99, 10]));
        assert!(choose(Vec::new(), None).unwrap().is_none());
        let several = choose(offers(&[(1, 10, 1), (2, 10, 1)]), Some(""));
        assert!(matches!(several, Err(ShareError::Ambiguous(_))));
    }

    #[test]
    fn every_size_is_tried_before_one_is_waited_for_and_the_likeliest_at_both_ends() {
        let long = Duration::from_secs(30);
        let order = |all: &[(u8, u64, usize)], patience| {
            let sizes = choose(offers(all), None).unwrap().unwrap().sizes;
            let tries = tries(sizes, patience).into_iter();
            tries.map(|(size, sources, wait)| (size, sources.len(), wait)).collect::<Vec<_>>()
        };
        assert_eq!(order(&[(1, 10, 2)], long), [(10, 2, long)]);
        let quick = limits::DOUBTFUL_PATIENCE;
        let expected = [(10, 2, quick), (99, 1, quick), (99, 1, long), (10, 2, long)];
        assert_eq!(order(&[(1, 10, 2), (1, 99, 1)], long), expected);
    }

    #[test]
    fn what_is_left_out_is_counted_as_people_count() {
        let line = |of: &[(LeftOut, usize)]| left_out(&of.iter().copied().collect());
        assert_eq!(line(&[]), None);
        let one = line(&[(LeftOut::Folder, 1), (LeftOut::NotUtf8, 1), (LeftOut::TooMany, 1)]);
        let expected =
            "3 left out: 1 folder, 1 name that is not UTF-8, 1 file beyond the first 65,536";
        assert_eq!(one.unwrap(), expected);
        let two = line(&[(LeftOut::Folder, 2), (LeftOut::NotUtf8, 2), (LeftOut::TooLarge, 2)]);
        let expected = "6 left out: 2 folders, 2 names that are not UTF-8, 2 files beyond 1 TiB";
        assert_eq!(two.unwrap(), expected);
    }
}
