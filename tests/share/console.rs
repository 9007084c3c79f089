//! The four consoles of SPEC C on pseudo-terminals: a registry and three peers, with typed input,
//! and their lines compared whole.
//!
//! Left out: the pure parts of the console, which `src/share/console` tests itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::share::{Registry, noise, write};
use crate::support::terminal::Terminal;
use crate::support::{self, ACERVO, eventually, exited_with, free_addresses};

const MENU: &str = "[1] JOIN  [2] SEARCH  [3] DOWNLOAD > ";

/// A peer's console on a pseudo-terminal.
struct Person {
    terminal: Terminal,
    address: SocketAddr,
    folder: PathBuf,
    /// The lines of SPEC C2 that the console must have shown so far.
    expected: Vec<String>,
}

/// Whether a line is one of SPEC C2.
fn is_event(line: &str) -> bool {
    ["Sou peer ", "peers com arquivo ", "Arquivo "].iter().any(|start| line.starts_with(start))
        && !line.contains("não foi baixado")
}

impl Person {
    fn sit_down(registry: SocketAddr, address: SocketAddr, folder: &Path) -> Person {
        Person::sit_down_at(registry, address, folder, "xterm")
    }

    /// The same at a terminal of the given kind.
    fn sit_down_at(registry: SocketAddr, address: SocketAddr, folder: &Path, kind: &str) -> Person {
        let mut command = Command::new(ACERVO);
        command.args(["peer", "--registry", &registry.to_string()]).env_remove("RUST_LOG");
        let folder = folder.canonicalize().unwrap();
        let terminal = Terminal::run_on(command, kind);
        Person { terminal, address, folder, expected: Vec::new() }
    }

    /// Waits for a line. The terminal does not show the space that ends the line of an empty list.
    fn expect(&mut self, line: String) {
        self.expected.push(line.trim_end().to_owned());
        let expected = self.expected.clone();
        self.terminal.wait_for(&format!("the line {:?}", expected.last()), |screen| {
            let whole = screen.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let events: Vec<&str> =
                whole.map(str::trim_end).filter(|line| is_event(line)).collect();
            (events.len() >= expected.len()).then_some(())
        });
        assert_eq!(self.terminal.lines(is_event), self.expected);
    }

    fn type_join(&mut self, entry: &str) {
        self.terminal.answer(MENU, entry);
        self.terminal.answer("IP deste peer [127.0.0.1]: ", &self.address.ip().to_string());
        self.terminal.wait_for("the port's question", |screen| {
            screen.lines().last()?.starts_with("Porta deste peer [").then_some(())
        });
        self.terminal.type_line(&self.address.port().to_string());
        self.terminal.answer("Pasta deste peer: ", self.folder.to_str().unwrap());
    }

    fn join(&mut self, entry: &str, files: &str) {
        self.type_join(entry);
        self.expect(format!("Sou peer {} com arquivos {files}", self.address));
    }

    fn search(&mut self, entry: &str, file: &str, peers: &[SocketAddr]) {
        self.terminal.answer(MENU, entry);
        self.terminal.answer("Arquivo: ", file);
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        let line = format!("peers com arquivo solicitado: {}", peers.join(" "));
        self.expect(line);
    }

    /// Answers the questions for a peer's address, or accepts the address that they offer.
    fn type_download(&mut self, entry: &str, from: SocketAddr) {
        self.terminal.answer(MENU, entry);
        for (question, answer) in
            [("IP do peer", from.ip().to_string()), ("Porta do peer", from.port().to_string())]
        {
            self.terminal.wait_for(question, |screen| {
                screen.lines().last()?.starts_with(question).then_some(())
            });
            self.terminal.type_line(&answer);
        }
    }

    fn download(&mut self, entry: &str, file: &str, from: SocketAddr) {
        self.type_download(entry, from);
        let folder = self.folder.display().to_string();
        self.expect(format!("Arquivo {file} baixado com sucesso na pasta {folder}"));
    }

    /// Waits for a line that begins with `start`, and returns it.
    fn remark(&self, start: &str) -> String {
        self.terminal.wait_for(start, |screen| {
            let whole = screen.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let mut lines = whole.map(str::trim_end);
            lines.find(|line| line.starts_with(start)).map(str::to_owned)
        })
    }

    fn leave(&mut self) {
        self.terminal.answer(MENU, "sair");
        let status = self.terminal.wait_for_end();
        assert!(exited_with(status, 0), "{status:?}");
        assert_eq!(self.terminal.lines(is_event), self.expected);
    }
}

#[test]
fn the_four_consoles_print_the_lines_of_the_specification() {
    let addresses = free_addresses(4);
    let (at, peers) = addresses.split_first().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let film = noise(7 * 1024 * 1024 + 321, "film");
    let folders: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| dir.path().join(name)).collect();
    for folder in &folders {
        std::fs::create_dir(folder).unwrap();
    }
    write(&folders[0], "aula.mp4", &film);
    write(&folders[0], "notas da aula.txt", b"1, 2, 3\n");
    write(&folders[1], "canção.ogg", &noise(10, "song"));

    // A registry whose address is an argument prints nothing at all. A regression: it logged a line
    // for every peer.
    let mut command = Command::new(ACERVO);
    let listen = free_addresses(1)[0].to_string();
    command.args(["registry", "--listen", &listen]).env_remove("RUST_LOG");
    let given = Terminal::run(command);

    // This registry asks for its address, and is first given one that is none.
    let mut command = Command::new(ACERVO);
    command.arg("registry").env_remove("RUST_LOG");
    let mut registry = Terminal::run(command);
    registry.answer("IP do registro [127.0.0.1]: ", "aqui");
    registry.wait_for_text("Resposta inválida: \"aqui\" não é um IP.", 1);
    registry.answer("IP do registro [127.0.0.1]: ", &at.ip().to_string());
    registry.answer("Porta do registro [1099]: ", &at.port().to_string());
    eventually("the registry listens", || std::net::TcpStream::connect(at).ok());

    let mut people: Vec<Person> = folders
        .iter()
        .zip(peers)
        .map(|(folder, address)| Person::sit_down(*at, *address, folder))
        .collect();
    let [a, b, c] = &mut people[..] else { unreachable!("three people") };
    a.join("1", "aula.mp4 notas da aula.txt");
    b.join("join", "canção.ogg");
    c.join("JOIN", "");
    b.search("2", "aula.mp4", &[a.address]);
    b.search("search", "nada.mp4", &[]);
    b.search("Search", "aula.mp4", &[a.address]);
    b.download("3", "aula.mp4", a.address);
    assert!(std::fs::read(folders[1].join("aula.mp4")).unwrap() == film, "byte for byte");

    // The second peer has sent UPDATE by itself: the next search finds both peers, and the third
    // peer can download from the second.
    // peer can have it from the second.
    let mut both = [(peer_id(&folders[0]), a.address), (peer_id(&folders[1]), b.address)];
    both.sort();
    let both = both.map(|(_, address)| address);
    let mut searches = 0;
    eventually("the registry knows of the download", || {
        searches += 1;
        c.terminal.answer(MENU, "2");
        c.terminal.answer("Arquivo: ", "aula.mp4");
        let shown = c.terminal.wait_for("the answer", |screen| {
            let whole = screen.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let answers = whole.map(str::trim_end).filter(|line| line.starts_with("peers com "));
            answers.map(str::to_owned).nth(searches - 1)
        });
        c.expected.push(shown.clone());
        let expected = format!("peers com arquivo solicitado: {} {}", both[0], both[1]);
        (shown == expected).then_some(())
    });
    c.download("download", "aula.mp4", b.address);
    assert!(std::fs::read(folders[2].join("aula.mp4")).unwrap() == film, "byte for byte");
    for folder in &folders {
        let parts = std::fs::read_dir(folder).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_str().unwrap().ends_with(".part")
        });
        assert_eq!(parts.count(), 0, "nothing is left over in {}", folder.display());
    }
    people.iter_mut().for_each(Person::leave);

    let mut expected = vec![
        format!("Peer {} adicionado com arquivos aula.mp4 notas da aula.txt.", peers[0]),
        format!("Peer {} adicionado com arquivos canção.ogg.", peers[1]),
        format!("Peer {} adicionado com arquivos .", peers[2]),
        format!("Peer {} solicitou arquivo aula.mp4.", peers[1]),
        format!("Peer {} solicitou arquivo nada.mp4.", peers[1]),
        format!("Peer {} solicitou arquivo aula.mp4.", peers[1]),
    ];
    expected
        .extend((0..searches).map(|_| format!("Peer {} solicitou arquivo aula.mp4.", peers[2])));
    registry.type_keys(b"\x03");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(registry.child.id() as i32).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(exited_with(registry.wait_for_end(), 0));
    assert_eq!(registry.lines(|line| line.starts_with("Peer ")), expected);
    assert_eq!(given.text(), "", "it has listened for as long");
}

/// The id under which a folder is shared. A registry lists peers in order of their ids.
fn peer_id(folder: &Path) -> u64 {
    let folder = folder.canonicalize().unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&folder.metadata().unwrap());
    acervo::share::folder::state::load(&folder, inode).unwrap().peer.0
}

#[test]
fn a_download_that_fails_prints_one_line_with_the_reason() {
    let registry = Registry::start(&[]);
    let addresses = free_addresses(3);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    let mut person = Person::sit_down(registry.address, addresses[0], &folder);
    for entry in ["2", "DOWNLOAD"] {
        person.terminal.answer(MENU, entry);
    }
    person.terminal.wait_for_text("Faça JOIN antes de SEARCH e DOWNLOAD.", 2);
    person.join("1", "");
    person.terminal.answer(MENU, "3");
    person.terminal.wait_for_text("Faça SEARCH antes de DOWNLOAD.", 1);
    // A name that is a path is refused before it is searched.
    person.terminal.answer(MENU, "2");
    person.terminal.answer("Arquivo: ", "../senhas");
    person.terminal.wait_for_text("Resposta inválida: um nome de arquivo não pode ter \"/\".", 1);
    person.terminal.answer("Arquivo: ", "nada.txt");
    person.expect("peers com arquivo solicitado:".to_owned());

    // Nothing listens at this address.
    person.type_download("3", addresses[1]);
    let remark = person
        .remark(&format!("Arquivo nada.txt não foi baixado: o peer {} não responde", addresses[1]));
    assert!(remark.ends_with('.'), "{remark}");
    // The peer at this address does not have the file.
    let peer = registry.share(&other, &["--listen", &addresses[2].to_string()]);
    person.type_download("3", addresses[2]);
    let why = format!("o peer {} não tem este arquivo.", addresses[2]);
    person.remark(&format!("Arquivo nada.txt não foi baixado: {why}"));
    // The target folder has another file of this name.
    write(&other, "nada.txt", b"theirs");
    write(&folder, "nada.txt", b"mine, and another length");
    eventually("the other's file is offered", || {
        registry.run(&["files", "--format", "json"]).out.contains("\"size\":6,").then_some(())
    });
    person.type_download("3", addresses[2]);
    person.remark("Arquivo nada.txt não foi baixado: /");
    assert_eq!(std::fs::read(folder.join("nada.txt")).unwrap(), b"mine, and another length");
    drop(peer);
    person.leave();
}

#[test]
fn a_console_joins_again_when_its_registry_is_back() {
    let mut registry = Registry::start(&[]);
    let folder = registry.folder("mine");
    write(&folder, "a.txt", b"a");
    let mut person = Person::sit_down(registry.address, free_addresses(1)[0], &folder);
    person.join("1", "a.txt");
    let joined = format!("Peer {} adicionado com arquivos a.txt.", person.address);
    let joins =
        |registry: &Registry| registry.console().iter().filter(|line| **line == joined).count();
    // The registry writes the line after it replies, and SIGKILL would not wait for that.
    eventually("the registry's line", || (joins(&registry) == 1).then_some(()));
    registry.kill();
    person.remark(&format!("Registro {} inacessível: ", registry.address));
    person.terminal.answer(MENU, "2");
    person.terminal.answer("Arquivo: ", "a.txt");
    let refused = format!("Registro {} inacessível: conexão recusada.", registry.address);
    person.terminal.wait_for("the search's failure", |screen| {
        screen.lines().any(|line| line.trim_end() == refused).then_some(())
    });
    registry.restart();
    person.remark(&format!("Registro {} alcançado de novo.", registry.address));
    person.search("2", "a.txt", &[person.address]);
    person.leave();
    eventually("the registry's second line", || (joins(&registry) == 2).then_some(()));
}

#[test]
fn from_a_pipe_only_the_lines_of_the_specification_are_on_standard_output() {
    let registry = Registry::start(&[]);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    let film = noise(3_000_000, "film");
    write(&other, "film.mkv", &film);
    let addresses = free_addresses(2);
    let _peer = registry.share(&other, &["--listen", &addresses[1].to_string()]);
    let folder = folder.canonicalize().unwrap();
    let mut child = Command::new(ACERVO)
        .args(["peer", "--registry", &registry.address()])
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Enter accepts the address that the search has found.
    let typed = format!(
        "1\n{ip}\n{port}\n{folder}\n2\nfilm.mkv\n3\n\n\n",
        ip = addresses[0].ip(),
        port = addresses[0].port(),
        folder = folder.display(),
    );
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), typed.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(exited_with(output.status, 0));
    let out = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = out.lines().collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            &format!("Arquivo film.mkv baixado com sucesso na pasta {}", folder.display()),
            &format!("Sou peer {} com arquivos ", addresses[0]),
            &format!("peers com arquivo solicitado: {}", addresses[1]),
        ]
    );
    assert!(std::fs::read(folder.join("film.mkv")).unwrap() == film);
}

#[test]
fn every_request_of_a_pasted_text_is_carried_out() {
    let registry = Registry::start(&[]);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    let film = noise(300_000, "film");
    write(&other, "film.mkv", &film);
    let addresses = free_addresses(2);
    let _peer = registry.share(&other, &["--listen", &addresses[1].to_string()]);
    let mut person = Person::sit_down(registry.address, addresses[0], &folder);
    person.terminal.wait_for_prompt(MENU);
    let joining =
        format!("1\r{}\r{}\r{}\r", addresses[0].ip(), addresses[0].port(), person.folder.display());
    // More searches than may run at once, and the last one's file is downloaded.
    let searches = "2\rnada.txt\r".repeat(29) + "2\rfilm.mkv\r";
    person.terminal.type_keys(format!("{joining}{searches}3\r\r\r").as_bytes());
    let downloaded =
        format!("Arquivo film.mkv baixado com sucesso na pasta {}", person.folder.display());
    person.terminal.wait_for_text(&downloaded, 1);
    person.terminal.wait_for_text("peers com arquivo solicitado:", 30);
    assert!(std::fs::read(folder.join("film.mkv")).unwrap() == film);
}

/// A console that is downloading a file which comes too slowly to arrive during the test.
fn downloading(registry: &Registry, kind: &str) -> (Person, support::share::Process) {
    let (folder, other) = (registry.folder(kind), registry.folder(&format!("{kind}-other")));
    write(&other, "film.mkv", &noise(8_000_000, "film"));
    let addresses = free_addresses(2);
    let peer =
        registry.share(&other, &["--limit", "4KiB/s", "--listen", &addresses[1].to_string()]);
    let mut person = Person::sit_down_at(registry.address, addresses[0], &folder, kind);
    person.join("1", "");
    person.search("2", "film.mkv", &[addresses[1]]);
    person.type_download("3", addresses[1]);
    eventually("something has come", || folder.join("film.mkv.part").exists().then_some(()));
    (person, peer)
}

#[test]
fn leaving_any_terminal_does_not_wait_for_downloads() {
    let registry = Registry::start(&[]);
    for kind in ["xterm", "dumb"] {
        let (mut person, peer) = downloading(&registry, kind);
        person.terminal.wait_for_prompt(MENU);
        person.terminal.type_keys(b"\x04");
        let status = person.terminal.wait_for_end();
        assert!(exited_with(status, 0), "{kind}: {status:?}");
        let said = person.terminal.text();
        assert!(said.contains("Arquivo film.mkv não foi baixado: interrompido"), "{kind}: {said}");
        drop(peer);
    }
}

#[test]
fn another_join_offers_the_port_in_use_and_takes_it_under_another_ip() {
    let registry = Registry::start(&[]);
    // A port that is free under every IP, and outside of the range from which the system assigns
    // ports.
    let first = 15_000 + (std::process::id() % 10_000) as u16;
    let is_free = |port: &u16| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
    let port = (first..30_000).find(is_free).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let folder = registry.folder("mine");
    let mut person = Person::sit_down(registry.address, address, &folder);
    person.join("1", "");
    for ip in ["127.0.0.1", "0.0.0.0"] {
        person.terminal.answer(MENU, "1");
        person.terminal.answer("IP deste peer [127.0.0.1]: ", ip);
        person.terminal.answer(&format!("Porta deste peer [{}]: ", address.port()), "");
        let folder = person.folder.display().to_string();
        person.terminal.answer("Pasta deste peer: ", &folder);
        person.expect(format!("Sou peer {ip}:{} com arquivos ", address.port()));
    }
    person.leave();
}

#[test]
fn a_download_says_first_that_the_search_found_nobody() {
    let registry = Registry::start(&[]);
    let folder = registry.folder("mine");
    write(&folder, "own.txt", b"own");
    let mut person = Person::sit_down(registry.address, free_addresses(1)[0], &folder);
    person.join("1", "own.txt");
    let own = person.address;
    for (name, peers, why) in [
        ("nada.txt", &[][..], "O SEARCH não achou nenhum peer"),
        ("own.txt", &[own][..], "O SEARCH só achou este peer"),
    ] {
        person.search("2", name, peers);
        person.terminal.answer(MENU, "3");
        // Enter leads back to the menu.
        person.terminal.answer("IP do peer: ", "");
        let said = format!(
            "{why}: dê o IP e a porta de um que tenha {name}, ou tecle Enter para voltar ao menu."
        );
        assert_eq!(person.remark(why), said);
    }
    person.leave();
}

/// A regression: the console waited 30 seconds for a peer that had said that it no longer has the
/// file.
#[test]
fn a_download_of_a_removed_file_ends_at_once_with_one_line() {
    let registry = Registry::start(&[]);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    write(&other, "film.mkv", &noise(3_000_000, "film"));
    let addresses = free_addresses(2);
    let _peer = registry.share(&other, &["--listen", &addresses[1].to_string()]);
    let mut person = Person::sit_down(registry.address, addresses[0], &folder);
    person.join("1", "");
    person.search("2", "film.mkv", &[addresses[1]]);
    // The peer has usually not scanned its folder since.
    std::fs::remove_file(other.join("film.mkv")).unwrap();
    person.type_download("3", addresses[1]);
    let said = person.remark("Arquivo film.mkv não foi baixado: ");
    let whys = [
        "o peer não tem mais este arquivo.".to_owned(),
        format!("o peer {} não tem este arquivo.", addresses[1]),
    ];
    assert!(whys.iter().any(|why| said.ends_with(why)), "{said}");
    assert!(!person.terminal.text().contains("deixou de enviar"), "{}", person.terminal.text());
    person.leave();
}

/// A regression: of a service that is no registry the console said "ele não aceita o pedido".
#[test]
fn a_service_that_is_no_registry_is_named() {
    let registry = Registry::start(&["--console", "off"]);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    let peer = free_addresses(1)[0];
    let _peer = registry.share(&other, &["--listen", &peer.to_string()]);
    let store = support::Group::start(1, &["--console", "off"]);
    let store = store.addresses()[0];
    for (address, who) in [
        (peer, "ali responde um peer, e não um registro; confira o endereço."),
        (store, "ali responde um servidor do acervo, e não um registro; confira o endereço."),
    ] {
        let mut person = Person::sit_down(address, free_addresses(1)[0], &folder);
        person.type_join("1");
        let start = format!("Registro {address} ");
        let said = person.remark(&start);
        assert_eq!(said, format!("{start}inacessível: {who} Tentando de novo."));
        person.leave();
    }
}

/// A DOWNLOAD that is pasted behind a SEARCH asks its questions after the search's result, however
/// long that takes.
#[test]
fn a_pasted_download_waits_for_the_result_of_its_search() {
    let mut registry = Registry::start(&[]);
    let (folder, other) = (registry.folder("mine"), registry.folder("other"));
    write(&other, "film.mkv", b"film");
    let addresses = free_addresses(2);
    let _peer = registry.share(&other, &["--listen", &addresses[1].to_string()]);
    let mut person = Person::sit_down(registry.address, addresses[0], &folder);
    person.join("1", "");
    person.terminal.wait_for_prompt(MENU);
    registry.process().signal(Signal::STOP);
    person.terminal.type_keys(b"2\rfilm.mkv\r3\r");
    person.terminal.wait_for_text("Esperando a resposta do SEARCH de film.mkv.", 1);
    assert!(!person.terminal.text().contains("IP do peer"), "{}", person.terminal.text());
    registry.process().signal(Signal::CONT);
    person.terminal.answer(&format!("IP do peer [{}]: ", addresses[1].ip()), "");
    person.terminal.answer(&format!("Porta do peer [{}]: ", addresses[1].port()), "");
    person.expect(format!("peers com arquivo solicitado: {}", addresses[1]));
    person.expect(format!(
        "Arquivo film.mkv baixado com sucesso na pasta {}",
        person.folder.display()
    ));
    let text = person.terminal.text();
    let at = |what: &str| text.find(what).unwrap();
    assert!(at("peers com arquivo solicitado: ") < at("IP do peer ["), "{text}");
    person.leave();
}

/// A log line appears above the open question and never in the question's row.
#[test]
fn a_log_line_appears_above_the_open_question() {
    let registry = Registry::start(&[]);
    let folder = registry.folder("mine");
    write(&folder, "a.txt", b"a");
    // The folder's state cannot be saved, because a folder has its name.
    std::fs::create_dir(folder.join(".acervo-share")).unwrap();
    for kind in ["xterm", "dumb"] {
        let address = free_addresses(1)[0];
        let mut person = Person::sit_down_at(registry.address, address, &folder, kind);
        person.join("1", "a.txt");
        let warning = "cannot keep what was found in ";
        person.terminal.wait_for_text(warning, 1);
        let lines = person.terminal.lines(|line| line.contains(warning));
        assert!(lines.iter().all(|line| !line.contains("DOWNLOAD")), "{kind}: {lines:?}");
        person.leave();
    }
}
