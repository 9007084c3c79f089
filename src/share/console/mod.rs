//! The peer's console of SPEC C2: a menu with JOIN, SEARCH and DOWNLOAD, serving all the while.
//!
//! What takes time happens on other threads, and its line prints when it is done; so several downloads
//! can be under way, and the prompt stays usable. The lines of the specification are the only ones on
//! standard output when input is not a terminal; prompts and remarks then go to standard error.

mod explain;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use rand::Rng;

use self::explain::{
    explain_fetch, explain_find, explain_folder, explain_hashing, explain_left_out, explain_listen,
    explain_name, explain_registry_error,
};
use super::fetch::{FindError, find};
use super::folder::Folder;
use super::member::MembershipNotice;
use super::peer::{DownloadRequest, Peer, PeerError, PeerOptions};
use super::registry::spaced;
use crate::limits;
use crate::model::{FileEntry, FileName, PeerId};
use crate::net::Listener;
use crate::prompt::questions::{check_own_ip, explain_probe, probe};
use crate::prompt::{
    self, Input, InputKind, OutputError, Screen, Stop, explain_io, invalid, parse_ip, parse_port,
};
use crate::text::{LineError as InputError, escape};
use crate::wire::share::{DenialCode, Source};

/// How the console is set up.
#[derive(Clone, Debug)]
pub struct ConsoleOptions {
    /// Where to join.
    pub registries: Vec<SocketAddr>,
    /// The most bytes to send a second, and to receive a second.
    pub limit_bytes_per_s: Option<u64>,
}

/// Why the console ended, if not because its user left.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The input failed.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Lines of the specification were lost.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// Runs the console until its input ends or its user leaves.
///
/// # Errors
/// See [`ConsoleError`].
pub fn run(options: &ConsoleOptions) -> Result<(), ConsoleError> {
    prompt::run(|input, screen, kind| {
        let mut dialogue = PeerDialogue::new(input, screen, options.clone());
        let result = dialogue.run();
        dialogue.end(kind);
        Ok(result?)
    })
}

const MENU: &str = "[1] JOIN  [2] SEARCH  [3] DOWNLOAD > ";
/// Where the search for a free port to offer begins.
const FIRST_PORT: u16 = 1100;

/// An entry of the menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MenuEntry {
    Join,
    Search,
    Download,
    Leave,
}

impl MenuEntry {
    fn parse(line: &str) -> Option<MenuEntry> {
        match line.to_ascii_uppercase().as_str() {
            "1" | "JOIN" => Some(MenuEntry::Join),
            "2" | "SEARCH" => Some(MenuEntry::Search),
            "3" | "DOWNLOAD" => Some(MenuEntry::Download),
            "SAIR" | "EXIT" | "QUIT" => Some(MenuEntry::Leave),
            _ => None,
        }
    }
}

/// What was searched for last.
#[derive(Clone)]
struct LastSearch {
    name: FileName,
    found: SearchResult,
}

/// What came of a search.
#[derive(Clone)]
enum SearchResult {
    /// The answer is still to come, and its line is still to be shown.
    Pending,
    /// Whoever has the file, as the registry says.
    Sources(Vec<Source>),
    /// The registry did not answer.
    Unanswered,
}

/// What the dialogue and its threads share.
struct ConsoleShared {
    screen: Arc<dyn Screen>,
    searched: Mutex<Option<LastSearch>>,
    /// An answer has come and was shown.
    answered: Condvar,
    stopping: AtomicBool,
}

impl ConsoleShared {
    fn searched(&self) -> MutexGuard<'_, Option<LastSearch>> {
        // It is set as a whole.
        self.searched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was searched for last and who has it. An answer that is due is waited for as long as it may take, and
    /// after a moment that is told.
    fn last_search(&self) -> Option<LastSearch> {
        let wait = |patience| {
            let pending = |searched: &mut Option<LastSearch>| {
                matches!(searched, Some(LastSearch { found: SearchResult::Pending, .. }))
            };
            let waited = self.answered.wait_timeout_while(self.searched(), patience, pending);
            waited.unwrap_or_else(PoisonError::into_inner).0.clone()
        };
        let soon = wait(limits::CONSOLE_SILENT_WAIT);
        let Some(LastSearch { name, found: SearchResult::Pending }) = &soon else { return soon };
        let name = escape(name.as_str().as_bytes());
        self.screen.say(&format!("Esperando a resposta do SEARCH de {name}."));
        wait(limits::REGISTRY_CALL_TIMEOUT)
    }

    /// The answer to a search has come and was shown, or none will come.
    fn found(&self, name: &FileName, found: SearchResult) {
        if let Some(searched) = self.searched().as_mut().filter(|searched| searched.name == *name) {
            searched.found = found;
        }
        self.answered.notify_all();
    }
}

/// A peer that has joined.
struct JoinedPeer {
    peer: Peer,
    address: SocketAddr,
    folder: PathBuf,
}

struct PeerDialogue<'a> {
    input: &'a mut dyn Input,
    options: ConsoleOptions,
    shared: Arc<ConsoleShared>,
    joined: Option<Arc<JoinedPeer>>,
    /// Searches and downloads under way.
    tasks: Vec<JoinHandle<()>>,
    /// Of them, those that have not yet said that they have ended.
    under_way: usize,
    /// Each task says so once, as the last thing it does.
    ended: (Sender<()>, Receiver<()>),
}

impl PeerDialogue<'_> {
    fn new<'a>(
        input: &'a mut dyn Input,
        screen: Arc<dyn Screen>,
        options: ConsoleOptions,
    ) -> PeerDialogue<'a> {
        let shared = Arc::new(ConsoleShared {
            screen,
            searched: Mutex::default(),
            answered: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        PeerDialogue {
            input,
            options,
            shared,
            joined: None,
            tasks: Vec::new(),
            under_way: 0,
            ended: mpsc::channel(),
        }
    }

    /// Serves the menu until the user leaves or the input ends.
    fn run(&mut self) -> Result<(), InputError> {
        loop {
            let entry = self.ask(MENU, |line| match line.trim() {
                "" => Ok(None),
                line => MenuEntry::parse(line).map(Some).ok_or_else(|| {
                    let line = escape(line.as_bytes());
                    format!(
                        "Opção desconhecida \"{line}\": escolha JOIN, SEARCH ou DOWNLOAD (1, 2 ou 3), ou SAIR."
                    )
                }),
            });
            if matches!(entry, Err(Stop::Cancelled)) {
                self.say("Para sair, escolha SAIR ou tecle Ctrl-D.");
            }
            let done = entry.and_then(|entry| match entry {
                None => Ok(()),
                Some(MenuEntry::Join) => self.join(),
                Some(MenuEntry::Search) => self.search(),
                Some(MenuEntry::Download) => self.download(),
                Some(MenuEntry::Leave) => Err(Stop::Leave),
            });
            match done {
                Ok(()) | Err(Stop::Cancelled) => {}
                Err(Stop::Leave) => return Ok(()),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// A pipe's user waits for what was asked for; whoever leaves a terminal does not.
    fn end(&mut self, kind: InputKind) {
        if kind == InputKind::Terminal {
            self.shared.stopping.store(true, Ordering::Relaxed);
        }
        for task in self.tasks.drain(..) {
            if task.join().is_err() {
                log::error!("a thread of the console panicked");
            }
        }
    }

    fn ask<T>(
        &mut self,
        prompt: &str,
        parse: impl FnMut(&str) -> Result<T, String>,
    ) -> Result<T, Stop> {
        prompt::ask(self.input, &*self.shared.screen, prompt, parse)
    }

    fn say(&self, line: &str) {
        self.shared.screen.say(line);
    }

    /// Whether it was begun; if not, why has been said.
    fn task(&mut self, run: impl FnOnce(&ConsoleShared) + Send + 'static) -> bool {
        self.tasks.retain(|task| !task.is_finished());
        self.under_way -= self.ended.1.try_iter().count();
        if self.under_way >= limits::CONSOLE_TASKS_MAX {
            // Requests that were typed ahead wait for their turn, as long as a search may take.
            if self.ended.1.recv_timeout(limits::REGISTRY_CALL_TIMEOUT).is_err() {
                self.say("Há pedidos demais em andamento: espere algum terminar.");
                return false;
            }
            self.under_way -= 1;
        }
        let (shared, ended) = (Arc::clone(&self.shared), self.ended.0.clone());
        let task = thread::Builder::new().name("share-task".to_owned());
        match task.spawn(move || {
            run(&shared);
            // The dialogue, which listens, joins all tasks before it ends.
            let _ = ended.send(());
        }) {
            Ok(task) => {
                self.tasks.push(task);
                self.under_way += 1;
                true
            }
            Err(error) => {
                self.say(&format!("Não foi possível atender: {}.", explain_io(&error)));
                false
            }
        }
    }

    // ---- JOIN --------------------------------------------------------------------------------

    fn join(&mut self) -> Result<(), Stop> {
        self.tasks.retain(|task| !task.is_finished());
        if self.joined.is_some() && !self.tasks.is_empty() {
            self.say("Há pedidos em andamento: espere que terminem para fazer outro JOIN.");
            return Ok(());
        }
        let screen = Arc::clone(&self.shared.screen);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ip = prompt::ask_or(self.input, &*screen, "IP deste peer", &local, |text| {
            // No port of a foreign IP is of use.
            let ip = parse_ip(text).and_then(|ip| check_own_ip(ip, &probe));
            ip.map_err(|why| invalid(&why))
        })?;
        // The port it serves at now is free again when it joins anew, and is the one that is offered.
        let own = self.joined.as_ref().map(|joined| joined.address);
        let usable = |address: SocketAddr| match own.is_some_and(|own| is_taken_by(own, address)) {
            true => Ok(()),
            false => probe(address),
        };
        let mut ports = own.map(|own| own.port()).into_iter().chain(FIRST_PORT..u16::MAX);
        let free = ports.find(|port| usable(SocketAddr::new(ip, *port)).is_ok());
        let default = free.unwrap_or(FIRST_PORT);
        let address = self.ask(&format!("Porta deste peer [{default}]: "), |line| {
            let port = match line.trim() {
                "" => default,
                text => parse_port(text).map_err(|why| invalid(&why))?,
            };
            let address = SocketAddr::new(ip, port);
            let why = usable(address).map_err(|error| explain_probe(address, &error));
            why.map(|()| address).map_err(|why| invalid(&why))
        })?;
        let folder = self.ask("Pasta deste peer: ", |line| {
            let path = from_home(line.trim());
            let shown = escape(line.trim().as_bytes());
            match path.metadata() {
                Ok(found) if found.is_dir() => Ok(path),
                Ok(_) => Err(invalid(&format!("\"{shown}\" não é uma pasta"))),
                Err(_) => Err(invalid(&format!("não há uma pasta \"{shown}\" que se possa ler"))),
            }
        })?;
        // One that has joined leaves first: its folder and its port may be the same.
        self.joined = None;
        match self.begin(address, &folder) {
            Ok(joined) => self.joined = Some(Arc::new(joined)),
            Err(why) => self.say(&format!("JOIN falhou: {why}.")),
        }
        Ok(())
    }

    fn begin(&self, address: SocketAddr, path: &Path) -> Result<JoinedPeer, String> {
        let folder = Folder::open(path, PeerId(rand::rng().next_u64()));
        let folder = folder.map_err(|error| explain_folder(&error))?;
        let left_out: usize = folder.left_out().values().sum();
        if left_out > 0 {
            self.shared.screen.remark(&explain_left_out(left_out));
        }
        let listener = Listener::bind(address).map_err(|error| explain_listen(&error))?;
        let options = PeerOptions {
            peer: folder.peer(),
            folder: Some(Arc::clone(&folder)),
            listener,
            address,
            registries: self.options.registries.clone(),
            limit_bytes_per_s: self.options.limit_bytes_per_s,
            congestion: None,
            stop: Arc::default(),
            // What is left after a few seconds is told in a remark, in the console's language.
            hashing: Arc::new(|_| {}),
        };
        let screen = Arc::clone(&self.shared.screen);
        let notice = move |notice: MembershipNotice| match notice {
            MembershipNotice::Joined { names, again: false, .. } => {
                screen.event(&format!("Sou peer {address} com arquivos {}", spaced(&names)));
            }
            MembershipNotice::Joined { registry, again: true, .. } => {
                screen.remark(&format!("Registro {registry} alcançado de novo."));
            }
            MembershipNotice::Lost(error) => {
                screen.remark(&format!("{} Tentando de novo.", explain_registry_error(&error)));
            }
        };
        let peer = Peer::start(options, notice).map_err(|error| match error {
            PeerError::Serve(_) | PeerError::Thread(_) => {
                log::error!("{error}");
                "o sistema não permite mais threads ou arquivos abertos".to_owned()
            }
        })?;
        let hashing = folder.hashing();
        if !hashing.is_done() {
            self.shared.screen.remark(&explain_hashing(hashing.files - hashing.files_done));
        }
        Ok(JoinedPeer { peer, address, folder: folder.path().to_owned() })
    }

    /// The peer, or a remark that it has not joined.
    fn joined(&self) -> Option<Arc<JoinedPeer>> {
        if self.joined.is_none() {
            self.say("Faça JOIN antes de SEARCH e DOWNLOAD.");
        }
        self.joined.clone()
    }

    // ---- SEARCH ------------------------------------------------------------------------------

    fn search(&mut self) -> Result<(), Stop> {
        let Some(joined) = self.joined() else { return Ok(()) };
        let name = self.ask("Arquivo: ", |line| {
            FileName::new(line).map_err(|error| invalid(&explain_name(error)))
        })?;
        *self.shared.searched() =
            Some(LastSearch { name: name.clone(), found: SearchResult::Pending });
        let asked = name.clone();
        // The line is shown first: what was typed ahead asks its questions below it.
        let is_begun = self.task(move |shared| match joined.peer.search(&asked) {
            Ok(sources) => {
                let addresses: Vec<_> =
                    sources.iter().map(|source| source.address.to_string()).collect();
                let addresses = addresses.join(" ");
                shared.screen.event(&format!("peers com arquivo solicitado: {addresses}"));
                shared.found(&asked, SearchResult::Sources(sources));
            }
            Err(error) => {
                shared.screen.remark(&explain_registry_error(&error));
                shared.found(&asked, SearchResult::Unanswered);
            }
        });
        if !is_begun {
            self.shared.found(&name, SearchResult::Unanswered);
        }
        Ok(())
    }

    // ---- DOWNLOAD ----------------------------------------------------------------------------

    fn download(&mut self) -> Result<(), Stop> {
        let Some(joined) = self.joined() else { return Ok(()) };
        let Some(LastSearch { name, found }) = self.shared.last_search() else {
            self.say("Faça SEARCH antes de DOWNLOAD.");
            return Ok(());
        };
        let sources = match &found {
            SearchResult::Sources(sources) => &sources[..],
            SearchResult::Pending | SearchResult::Unanswered => &[],
        };
        let other = sources.iter().find(|source| source.address != joined.address);
        let offered = other.map(|source| source.address);
        if offered.is_none() {
            let why = match &found {
                SearchResult::Pending | SearchResult::Unanswered => "O SEARCH não teve resposta",
                SearchResult::Sources(sources) if sources.is_empty() => {
                    "O SEARCH não achou nenhum peer"
                }
                SearchResult::Sources(_) => "O SEARCH só achou este peer",
            };
            let name = escape(name.as_str().as_bytes());
            self.say(&format!(
                "{why}: dê o IP e a porta de um que tenha {name}, ou tecle Enter para voltar ao menu."
            ));
        }
        let default = offered.map(|address| address.ip().to_string()).unwrap_or_default();
        let ip =
            self.ask(&question("IP do peer", &default), |line| match or_default(line, &default) {
                "" => Ok(None),
                answer => parse_ip(answer).map(Some).map_err(|why| invalid(&why)),
            })?;
        let Some(ip) = ip else { return Ok(()) };
        let default = offered.filter(|address| address.ip() == ip);
        let default = default.map(|address| address.port().to_string()).unwrap_or_default();
        let address = self.ask(&question("Porta do peer", &default), |line| {
            let port = parse_port(or_default(line, &default)).map_err(|why| invalid(&why))?;
            let address = SocketAddr::new(ip, port);
            if address == joined.address {
                return Err(invalid("este é o próprio peer"));
            }
            Ok(address)
        })?;
        // If it was not begun that has been said.
        let _ = self.task(move |shared| match fetch_from(&joined, &name, address, shared) {
            Ok(()) => {
                let (name, folder) = (escape(name.as_str().as_bytes()), joined.folder.display());
                shared
                    .screen
                    .event(&format!("Arquivo {name} baixado com sucesso na pasta {folder}"));
            }
            Err(why) => {
                let name = escape(name.as_str().as_bytes());
                shared.screen.remark(&format!("Arquivo {name} não foi baixado: {why}."));
            }
        });
        Ok(())
    }
}

/// A path as it was typed, where `~` is the home folder, as in a shell.
fn from_home(typed: &str) -> PathBuf {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    match (typed.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            Path::new(&home).join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(typed),
    }
}

/// Whether nothing else can listen on `address` while this peer listens on `own`.
fn is_taken_by(own: SocketAddr, address: SocketAddr) -> bool {
    let is_any = own.ip().is_unspecified() || address.ip().is_unspecified();
    own.port() == address.port() && (own.ip() == address.ip() || is_any)
}

fn question(text: &str, default: &str) -> String {
    if default.is_empty() { format!("{text}: ") } else { format!("{text} [{default}]: ") }
}

fn or_default<'a>(line: &'a str, default: &'a str) -> &'a str {
    match line.trim() {
        "" => default,
        line => line,
    }
}

/// Asks a peer for the first of these names that it has, or gives what it said of the first.
fn find_any(address: SocketAddr, names: &[FileName]) -> Result<(PeerId, FileEntry), FindError> {
    let mut said = None;
    for name in names {
        match find(address, name, limits::REGISTRY_CALL_TIMEOUT) {
            Err(error @ FindError::Refused { code: Some(DenialCode::NotFound), .. }) => {
                said.get_or_insert(error);
            }
            other => return other,
        }
    }
    Err(said.unwrap_or(FindError::Protocol(address)))
}

/// Downloads a file from one peer into the folder of another.
fn fetch_from(
    joined: &JoinedPeer,
    name: &FileName,
    address: SocketAddr,
    shared: &ConsoleShared,
) -> Result<(), String> {
    let (peer, file) =
        find_any(address, &name.spellings()).map_err(|error| explain_find(&error))?;
    let source = Source { peer, address, size: file.size, content: file.content };
    let wanted = DownloadRequest {
        name: name.clone(),
        content: file.content,
        size: file.size,
        to: joined.folder.clone(),
        sources: vec![source],
        look_for_more: false,
        patience: limits::FETCH_PATIENCE_DEFAULT,
        gone_after: Some(limits::SOURCES_GONE_AFTER),
    };
    let mut transfer = joined.peer.download(wanted).map_err(|error| explain_fetch(&error))?;
    let mut told = false;
    loop {
        if let Some(result) = transfer.wait_for(limits::STOP_LOOK_INTERVAL) {
            return result.map(drop).map_err(|error| explain_fetch(&error));
        }
        if !told && transfer.progress().waits_for_a_source() {
            told = true;
            let name = escape(name.as_str().as_bytes());
            let seconds = limits::FETCH_PATIENCE_DEFAULT.as_secs();
            shared.screen.remark(&format!(
                "O peer {address} deixou de enviar {name}: espera-se por ele até {seconds} segundos."
            ));
        }
        if shared.stopping.load(Ordering::Relaxed) {
            transfer.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Typed;

    struct Script(std::vec::IntoIter<&'static str>, Vec<String>);

    impl Input for Script {
        fn read_line(&mut self, prompt: &str) -> Result<Typed, InputError> {
            self.1.push(prompt.to_owned());
            Ok(self.0.next().map_or(Typed::End, |line| Typed::Line(line.to_owned())))
        }
    }

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Screen for Lines {
        fn event(&self, line: &str) {
            self.say(line);
        }
        fn remark(&self, line: &str) {
            self.say(line);
        }
        fn say(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    fn play(typed: Vec<&'static str>) -> (Vec<String>, Vec<String>) {
        let mut input = Script(typed.into_iter(), Vec::new());
        let screen = Arc::new(Lines::default());
        let registries = vec!["127.0.0.1:9".parse().unwrap()];
        let options = ConsoleOptions { registries, limit_bytes_per_s: None };
        let mut dialogue =
            PeerDialogue::new(&mut input, Arc::<Lines>::clone(&screen) as _, options);
        dialogue.run().unwrap();
        dialogue.end(InputKind::Pipe);
        let said = screen.0.lock().unwrap().clone();
        (input.1, said)
    }

    #[test]
    fn the_menu_takes_numbers_and_names_in_any_case() {
        for (line, entry) in [
            ("1", MenuEntry::Join),
            ("join", MenuEntry::Join),
            ("2", MenuEntry::Search),
            ("Search", MenuEntry::Search),
            ("3", MenuEntry::Download),
            ("DOWNLOAD", MenuEntry::Download),
            ("Sair", MenuEntry::Leave),
        ] {
            assert_eq!(MenuEntry::parse(line), Some(entry), "{line}");
        }
        assert_eq!(MenuEntry::parse("4"), None);
    }

    /// Any other question is dropped without a word: the menu follows.
    #[test]
    fn ctrl_c_at_the_menu_tells_how_to_leave() {
        struct Keys(std::vec::IntoIter<Typed>);
        impl Input for Keys {
            fn read_line(&mut self, _: &str) -> Result<Typed, InputError> {
                Ok(self.0.next().unwrap_or(Typed::End))
            }
        }
        let screen = Arc::new(Lines::default());
        let options = ConsoleOptions { registries: vec![], limit_bytes_per_s: None };
        let typed = [Typed::Cancelled, Typed::Line("1".to_owned()), Typed::Cancelled];
        let mut keys = Keys(Vec::from(typed).into_iter());
        PeerDialogue::new(&mut keys, Arc::<Lines>::clone(&screen) as _, options).run().unwrap();
        assert_eq!(*screen.0.lock().unwrap(), ["Para sair, escolha SAIR ou tecle Ctrl-D."]);
    }

    #[test]
    fn a_folder_can_be_named_from_home() {
        let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
        if !home.as_os_str().is_empty() {
            assert_eq!(from_home("~/Filmes"), home.join("Filmes"));
            assert_eq!(from_home("~"), home.join(""));
        }
        for other in ["~maria/Filmes", "a~", "/x/~/y", ""] {
            assert_eq!(from_home(other), PathBuf::from(other));
        }
    }

    #[test]
    fn join_comes_first() {
        let (prompts, said) = play(vec!["search", "3", "get", ""]);
        assert_eq!(
            said,
            [
                "Faça JOIN antes de SEARCH e DOWNLOAD.",
                "Faça JOIN antes de SEARCH e DOWNLOAD.",
                "Opção desconhecida \"get\": escolha JOIN, SEARCH ou DOWNLOAD (1, 2 ou 3), ou SAIR.",
            ]
        );
        assert!(prompts.iter().all(|prompt| prompt == MENU));
    }

    #[test]
    fn answers_of_join_that_cannot_be_used_are_explained() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let line: &'static str = port.to_string().leak();
        let (prompts, said) = play(vec!["1", "casa", "", line, "0", "", "", "/dev/null"]);
        assert_eq!(
            said,
            [
                "Resposta inválida: \"casa\" não é um IP.",
                &format!("Resposta inválida: a porta {port} já está em uso."),
                "Resposta inválida: \"0\" não é uma porta (1 a 65535).",
                "Resposta inválida: não há uma pasta \"\" que se possa ler.",
                "Resposta inválida: \"/dev/null\" não é uma pasta.",
            ]
        );
        assert_eq!(prompts[1], "IP deste peer [127.0.0.1]: ");
        assert!(prompts[3].starts_with("Porta deste peer ["), "{prompts:?}");
        assert_eq!(prompts.last().unwrap(), "Pasta deste peer: ");
    }
}
