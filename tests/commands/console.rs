//! The consoles of the specification, as a person sees them: real servers and real clients, most of
//! them on pseudo-terminals, somebody typing, and the lines of SPEC A6 compared whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;

use acervo::client::{Client, Condition, ConditionalPut};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::terminal::Terminal;
use crate::support::{ACERVO, Group, eventually, exited_with, free_addresses, patient_client};

const MENU: &str = "[1] INIT  [2] PUT  [3] GET > ";

/// What a server's console shows: pieces one after the other, the lines of one piece in any order.
type Expected = Vec<Vec<String>>;

/// Asserts that `shown` is what is expected, no more and no less.
fn assert_lines(who: &str, shown: &[String], expected: &Expected) {
    let mut rest = shown;
    for piece in expected {
        let (mut lines, mut piece) = (rest[..piece.len().min(rest.len())].to_vec(), piece.clone());
        lines.sort();
        piece.sort();
        assert_eq!(lines, piece, "{who} shows:\n{}", shown.join("\n"));
        rest = &rest[lines.len()..];
    }
    assert_eq!(rest, <[String; 0]>::default(), "{who} shows more");
}

/// A line of SPEC A6 on a client's screen.
fn is_event(line: &str) -> bool {
    line.starts_with("PUT_OK key: ") || line.starts_with("GET key: ")
}

/// One word of a line behind a mark: `mark` to the next space or the end.
fn word_after<'a>(line: &'a str, mark: &str) -> &'a str {
    let (_, rest) = line.split_once(mark).unwrap_or_else(|| panic!("no '{mark}' in '{line}'"));
    rest.split(' ').next().unwrap()
}

/// What a client's line says.
#[derive(Clone, Debug)]
struct Done {
    line: String,
    server: SocketAddr,
    timestamp: i64,
}

/// An interactive client and what it must have seen.
struct Person {
    terminal: Terminal,
    /// By key, the timestamp that a GET must send.
    seen: BTreeMap<String, i64>,
    expected: Expected,
}

impl Person {
    fn sit_down(arguments: &[&str]) -> Person {
        let mut command = Command::new(ACERVO);
        command.arg("client").args(arguments).env_remove("RUST_LOG");
        Person { terminal: Terminal::run(command), seen: BTreeMap::new(), expected: Vec::new() }
    }

    fn type_init(&mut self, entry: &str, servers: &[SocketAddr]) {
        self.terminal.answer(MENU, entry);
        for (number, (server, port)) in (1..).zip(servers.iter().zip(10097..)) {
            let ip = server.ip().to_string();
            self.terminal.answer(&format!("IP do servidor {number} [127.0.0.1]: "), &ip);
            let question = format!("Porta do servidor {number} [{port}]: ");
            self.terminal.answer(&question, &server.port().to_string());
        }
        let names: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
        self.terminal.wait_for_text(&format!("Servidores: {}.", names.join(", ")), 1);
    }

    fn type_put(&mut self, entry: &str, key: &str, value: &str) {
        self.terminal.answer(MENU, entry);
        self.terminal.answer("Chave: ", key);
        self.terminal.answer("Valor: ", value);
    }

    fn type_get(&mut self, entry: &str, key: &str) {
        self.terminal.answer(MENU, entry);
        self.terminal.answer("Chave: ", key);
    }

    fn events(&self) -> Vec<String> {
        self.terminal.lines(is_event)
    }

    /// Waits for the line of a PUT and checks it whole, apart from what only it tells.
    fn wait_for_put(&mut self, key: &str, value: &str) -> Done {
        let start = format!("PUT_OK key: {key} value {value} timestamp ");
        let line = self.terminal.wait_for("PUT_OK", |screen| {
            screen.split_inclusive('\n').rev().find_map(|line| {
                (line.starts_with(&start) && line.ends_with('\n'))
                    .then(|| line.trim_end().to_owned())
            })
        });
        let server: SocketAddr = word_after(&line, " no servidor ").parse().unwrap();
        let timestamp: i64 = word_after(&line, " timestamp ").parse().unwrap();
        assert!(timestamp > 0, "{line}");
        assert_eq!(line, format!("{start}{timestamp} realizada no servidor {server}"));
        self.seen
            .entry(key.to_owned())
            .and_modify(|seen| *seen = timestamp.max(*seen))
            .or_insert(timestamp);
        Done { line, server, timestamp }
    }

    /// Asks for a key, waits for the answer and checks what it says of this client. Gives the value
    /// shown too.
    fn get(&mut self, entry: &str, key: &str) -> (Done, String) {
        let start = format!("GET key: {key} value: ");
        let of_key = |line: &str| line.starts_with(&start);
        let before = self.terminal.lines(of_key).len();
        self.type_get(entry, key);
        // The last line may still be on its way to the screen: the prompt that follows it is not.
        let line = self.terminal.wait_for("the answer", |screen| {
            let whole = screen.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            whole.map(str::trim_end).filter(|line| of_key(line)).nth(before).map(str::to_owned)
        });
        let server: SocketAddr =
            word_after(&line, " obtido do servidor ").trim_end_matches(',').parse().unwrap();
        let (value, _) = line[start.len()..].split_once(" obtido do servidor ").unwrap();
        let timestamp: i64 = word_after(&line, " e do servidor ").parse().unwrap();
        let sent = self.seen.get(key).copied().unwrap_or(0);
        assert_eq!(
            line,
            format!(
                "GET key: {key} value: {value} obtido do servidor {server}, \
                 meu timestamp {sent} e do servidor {timestamp}"
            )
        );
        let value = value.to_owned();
        (Done { line, server, timestamp }, value)
    }

    /// The address from which this client talks to `server`, as the system sees it.
    fn address_towards(&self, server: SocketAddr) -> SocketAddr {
        let process = format!("/proc/{}", self.terminal.child.id());
        let sockets: Vec<String> = std::fs::read_dir(format!("{process}/fd"))
            .unwrap()
            .filter_map(|file| std::fs::read_link(file.unwrap().path()).ok())
            .filter_map(|target| {
                let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
                Some(inode.to_owned())
            })
            .collect();
        let table = std::fs::read_to_string(format!("{process}/net/tcp")).unwrap();
        let mut local = table.lines().skip(1).filter_map(|row| {
            let columns: Vec<&str> = row.split_whitespace().collect();
            let own = sockets.iter().any(|inode| inode == columns[9]);
            (own && kernel_address(columns[2]) == server).then(|| kernel_address(columns[1]))
        });
        let found = local.next().expect("a connection to the server that answered");
        assert_eq!(local.next(), None, "one connection a server");
        found
    }

    fn leave(&mut self) {
        self.terminal.answer(MENU, "sair");
        let status = self.terminal.wait_for_end();
        assert!(exited_with(status, 0), "{status:?}");
        assert_lines("the client", &self.events(), &self.expected);
    }
}

/// An address as `/proc/net/tcp` writes it: the four bytes as a number of this machine, a colon,
/// the port.
fn kernel_address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').unwrap();
    let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
    SocketAddr::from((ip, u16::from_str_radix(port, 16).unwrap()))
}

/// The servers' side of the play: who leads, and what each console must show.
struct Play {
    servers: Vec<SocketAddr>,
    leader: usize,
    expected: Vec<Expected>,
    observer: Client,
}

impl Play {
    fn new(servers: &[SocketAddr], leader: usize) -> Play {
        let observer = patient_client(servers.iter().copied());
        Play {
            servers: servers.to_vec(),
            leader,
            expected: vec![Vec::new(); servers.len()],
            observer,
        }
    }

    fn index(&self, server: SocketAddr) -> usize {
        self.servers.iter().position(|known| *known == server).unwrap()
    }

    /// The lines of one PUT at each server.
    fn put_lines(&self, person: &Person, done: &Done, key: &str, value: &str) -> Vec<Vec<String>> {
        let client = person.address_towards(done.server);
        let timestamp = done.timestamp;
        let chosen = self.index(done.server);
        let lines_at = |at| {
            if at == self.leader {
                return vec![
                    format!("Cliente {client} PUT key:{key} value:{value}."),
                    format!("Enviando PUT_OK ao Cliente {client} da key:{key} ts:{timestamp}."),
                ];
            }
            let forwarding = format!("Encaminhando PUT key:{key} value:{value}");
            let replication = format!("REPLICATION key:{key} value:{value} ts:{timestamp}.");
            if at == chosen { vec![forwarding, replication] } else { vec![replication] }
        };
        (0..self.servers.len()).map(lines_at).collect()
    }

    /// The line of one GET, at the server that answered. `sent` is the client's timestamp.
    fn get_line(&self, person: &Person, done: &Done, key: &str, sent: i64, value: &str) -> String {
        let client = person.address_towards(done.server);
        let timestamp = done.timestamp;
        format!(
            "Cliente {client} GET key:{key} ts:{sent}. \
             Meu ts é {timestamp}, portanto devolvendo {value}"
        )
    }

    /// A PUT by itself: its lines come one after the other, and every server has applied it before
    /// anything else is asked.
    fn put(&mut self, person: &mut Person, entry: &str, key: &str, value: &str) -> Done {
        person.type_put(entry, key, value);
        let done = person.wait_for_put(key, value);
        person.expected.push(vec![done.line.clone()]);
        for (at, lines) in self.put_lines(person, &done, key, value).into_iter().enumerate() {
            self.expected[at].extend(lines.into_iter().map(|line| vec![line]));
        }
        self.settle(done.timestamp);
        done
    }

    /// A GET by itself.
    fn get(&mut self, person: &mut Person, entry: &str, key: &str) -> (Done, String) {
        let sent = person.seen.get(key).copied().unwrap_or(0);
        let (done, value) = person.get(entry, key);
        let line = self.get_line(person, &done, key, sent, &value);
        let at = self.index(done.server);
        self.expected[at].push(vec![line]);
        person.expected.push(vec![done.line.clone()]);
        if done.timestamp > sent {
            person.seen.insert(key.to_owned(), done.timestamp);
        }
        (done, value)
    }

    /// Waits until every server has applied everything up to a timestamp.
    fn settle(&self, timestamp: i64) {
        for server in &self.servers {
            eventually("the server has applied what was written", || {
                let status = self.observer.status(*server).ok()?;
                (status.applied_timestamp.0 >= timestamp).then_some(())
            });
        }
    }
}

/// A server on a terminal, not yet told who it is.
fn server_terminal(servers: &[SocketAddr], data_dir: &std::path::Path) -> Terminal {
    let list: Vec<_> = servers.iter().map(SocketAddr::to_string).collect();
    let mut command = Command::new(ACERVO);
    command
        .args(["server", "--servers", &list.join(","), "--in-sync-timeout", "60s", "--data-dir"])
        .arg(data_dir)
        .env_remove("RUST_LOG");
    Terminal::run(command)
}

/// Answers the four questions, each with all of its answers, and gives the dialogue's lines.
fn dialogue(terminal: &mut Terminal, questions: &[(String, &[(&str, &str)])]) -> Vec<String> {
    let mut lines = Vec::new();
    for (question, answers) in questions {
        for (answer, complaint) in *answers {
            terminal.answer(question, answer);
            lines.push(format!("{question}{answer}").trim_end().to_owned());
            if !complaint.is_empty() {
                lines.push(format!("Resposta inválida: {complaint}."));
            }
        }
    }
    lines
}

#[test]
fn five_consoles() {
    let servers = free_addresses(3);
    let dir = tempfile::tempdir().unwrap();
    let ip = servers[0].ip();
    let ports: Vec<String> = servers.iter().map(|server| server.port().to_string()).collect();
    let list = servers.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
    let question = |text: &str, default: &dyn std::fmt::Display| format!("{text} [{default}]: ");
    let mut terminals: Vec<Terminal> =
        (0..3).map(|at| server_terminal(&servers, &dir.path().join(at.to_string()))).collect();

    // The first server's user gets everything wrong before getting it right; the second leads.
    let mut dialogues = Vec::new();
    let not_of_group = |port: &str| format!("{ip}:{port} não é um servidor do grupo; são: {list}");
    dialogues.push(dialogue(
        &mut terminals[0],
        &[
            (
                question("IP deste servidor", &ip),
                &[
                    ("localhost", "\"localhost\" não é um IP"),
                    ("10.9.8.7", &format!("nenhum servidor do grupo tem o IP 10.9.8.7; há: {ip}")),
                    (&ip.to_string(), ""),
                ],
            ),
            (
                question("Porta deste servidor", &ports[0]),
                &[
                    ("porta", "\"porta\" não é uma porta (1 a 65535)"),
                    ("65536", "\"65536\" não é uma porta (1 a 65535)"),
                    ("1", &not_of_group("1")),
                    (&ports[0], ""),
                ],
            ),
            (question("IP do líder", &ip), &[("256.1.1.1", "\"256.1.1.1\" não é um IP"), ("", "")]),
            (
                question("Porta do líder", &ports[0]),
                &[
                    ("2", &not_of_group("2")),
                    ("-1", "\"-1\" não é uma porta (1 a 65535)"),
                    (&ports[1], ""),
                ],
            ),
        ],
    ));
    eventually("the first server listens", || std::net::TcpStream::connect(servers[0]).ok());
    // Whose port is then not offered to the second one, nor the second's to the third.
    let in_use = format!("a porta {} já está em uso", ports[0]);
    dialogues.push(dialogue(
        &mut terminals[1],
        &[
            (question("IP deste servidor", &ip), &[("", "")]),
            (question("Porta deste servidor", &ports[1]), &[(&ports[0], &in_use), ("", "")]),
            (question("IP do líder", &ip), &[("", "")]),
            (question("Porta do líder", &ports[0]), &[(&ports[1], "")]),
        ],
    ));
    eventually("the second server listens", || std::net::TcpStream::connect(servers[1]).ok());
    dialogues.push(dialogue(
        &mut terminals[2],
        &[
            (question("IP deste servidor", &ip), &[(&ip.to_string(), "")]),
            (question("Porta deste servidor", &ports[2]), &[("", "")]),
            (question("IP do líder", &ip), &[(&ip.to_string(), "")]),
            (question("Porta do líder", &ports[0]), &[(&ports[1], "")]),
        ],
    ));

    let mut play = Play::new(&servers, 1);
    let (mut first, mut second) = (Person::sit_down(&[]), Person::sit_down(&[]));
    first.terminal.answer(MENU, "pUt");
    first.terminal.answer(MENU, "3");
    first.terminal.wait_for_text("Faça INIT antes de PUT e GET.", 2);
    first.terminal.answer(MENU, "DEL");
    first.terminal.wait_for_text(
        "Opção desconhecida \"DEL\": escolha INIT, PUT ou GET (1, 2 ou 3), ou SAIR.",
        1,
    );
    first.type_init("1", &servers);
    second.type_init("iNiT", &servers);

    let (missing, value) = play.get(&mut first, "3", "título");
    assert_eq!((missing.timestamp, value.as_str()), (0, "NULL"));
    let written = play.put(&mut first, "PuT", "título", "Dom Casmurro");
    let (read, value) = play.get(&mut first, "3", "título");
    assert_eq!((read.timestamp, value.as_str()), (written.timestamp, "Dom Casmurro"));
    // The second client has seen nothing of it, and writes over it.
    let (read, value) = play.get(&mut second, "gEt", "título");
    assert_eq!((read.timestamp, value.as_str()), (written.timestamp, "Dom Casmurro"));
    let over = play.put(&mut second, "2", "título", "Quincas Borba");
    assert!(over.timestamp > written.timestamp);
    let (read, value) = play.get(&mut first, "get", "título");
    assert_eq!((read.timestamp, value.as_str()), (over.timestamp, "Quincas Borba"));

    // Servers are chosen at random: until every one has been written to and read from.
    let mut written_to = [false; 3];
    for number in 0.. {
        let value = format!("valor {number}");
        let done = play.put(&mut first, "2", "outra", &value);
        written_to[play.index(done.server)] = true;
        if written_to.iter().all(|written| *written) {
            break;
        }
    }
    let mut read_from = [false; 3];
    while !read_from.iter().all(|read| *read) {
        let (read, _) = play.get(&mut second, "3", "outra");
        assert_eq!(read.timestamp, first.seen["outra"]);
        read_from[play.index(read.server)] = true;
    }

    // Several under way at once, from both.
    let asked: Vec<(String, String)> =
        (0..4).map(|number| (format!("junto-{number}"), format!("v{number}"))).collect();
    for (key, value) in &asked {
        first.type_put("put", key, value);
        second.type_get("get", "título");
    }
    let mut together = vec![Vec::new(); 3];
    let mut together_at_first = Vec::new();
    let mut newest = 0;
    for (key, value) in &asked {
        let done = first.wait_for_put(key, value);
        newest = newest.max(done.timestamp);
        together_at_first.push(done.line.clone());
        for (at, lines) in play.put_lines(&first, &done, key, value).into_iter().enumerate() {
            together[at].extend(lines);
        }
    }
    let title_lines = |person: &Person| -> Vec<String> {
        person.terminal.lines(|line| line.starts_with("GET key: título "))
    };
    let answers = eventually("all reads are answered", || {
        let lines = title_lines(&second);
        (lines.len() == 1 + asked.len()).then_some(lines)
    });
    for line in &answers[1..] {
        let server =
            word_after(line, " obtido do servidor ").trim_end_matches(',').parse().unwrap();
        let done = Done { line: line.clone(), server, timestamp: over.timestamp };
        let expected = format!(
            "GET key: título value: Quincas Borba obtido do servidor {server}, \
             meu timestamp {0} e do servidor {0}",
            over.timestamp
        );
        assert_eq!(*line, expected);
        let shown = play.get_line(&second, &done, "título", over.timestamp, "Quincas Borba");
        let at = play.index(server);
        together[at].push(shown);
    }
    first.expected.push(together_at_first);
    second.expected.push(answers[1..].to_vec());
    for (at, lines) in together.into_iter().enumerate() {
        play.expected[at].push(lines);
    }
    play.settle(newest);

    // A line too many would come before the end.
    first.leave();
    second.leave();
    for (at, terminal) in terminals.iter_mut().enumerate() {
        kill_process(Pid::from_child(&terminal.child), Signal::TERM).unwrap();
        let status = terminal.wait_for_end();
        assert!(exited_with(status, 0), "{status:?}");
        // Beside the lines of the specification there are warnings, as of a server that stops, and
        // nothing else.
        let shown = terminal.lines(|line| !line.contains(" WARN "));
        let (asked, events) = shown.split_at(dialogues[at].len().min(shown.len()));
        assert_eq!(asked, dialogues[at]);
        assert_lines(&format!("server {}", servers[at]), events, &play.expected[at]);
    }
}

/// The lines of a server of `group`, which has ended: whatever it had to show is written.
fn console_lines(group: &Group, at: usize) -> Vec<String> {
    let shown = std::fs::read_to_string(group.console_path(at)).unwrap();
    shown.lines().map(str::to_owned).collect()
}

#[test]
fn lagging_server() {
    // SPEC A7, with a shorter delay than ten seconds: a GET waits three of them for a PUT that was
    // typed before it.
    let mut group = Group::start_with_a_late_server(&["--in-sync-timeout", "30s"], "7s");
    let (leader, slow) = (0, 2);
    let mut play = Play::new(&group.addresses(), leader);
    let mut person = Person::sit_down(&["--servers", &group.list()]);

    let old = play.put(&mut person, "2", "k", "old");
    person.type_put("2", "k", "new");
    let mut reads: Vec<(Done, String, i64)> = Vec::new();
    let mut newest = None;
    let (mut leader_was_new, mut slow_refused) = (false, false);
    while !(leader_was_new && slow_refused) {
        let sent = person.seen["k"];
        let (done, value) = person.get("3", "k");
        let at = play.index(done.server);
        match value.as_str() {
            "old" => assert_eq!((sent, done.timestamp), (old.timestamp, old.timestamp)),
            "new" => {
                assert!(at != slow && done.timestamp > old.timestamp, "{}", done.line);
                assert_eq!(*newest.get_or_insert(done.timestamp), done.timestamp);
                person.seen.insert("k".to_owned(), done.timestamp);
                leader_was_new |= at == leader;
            }
            refusal => {
                assert_eq!(refusal, "TRY_OTHER_SERVER_OR_LATER");
                assert_eq!(Some(sent), newest, "refused for what was seen");
                assert_eq!(done.timestamp, old.timestamp, "what the refusing server has");
                slow_refused |= at == slow;
            }
        }
        reads.push((done, value, sent));
    }
    let new = person.wait_for_put("k", "new");
    assert_eq!(Some(new.timestamp), newest);
    let events = person.events();
    assert_eq!(*events.last().unwrap(), new.line, "everything was seen before the second PUT_OK");

    let mut meanwhile = play.put_lines(&person, &new, "k", "new");
    for (done, value, sent) in &reads {
        meanwhile[play.index(done.server)].push(play.get_line(&person, done, "k", *sent, value));
        person.expected.push(vec![done.line.clone()]);
    }
    for (at, lines) in meanwhile.into_iter().enumerate() {
        play.expected[at].push(lines);
    }
    person.expected.push(vec![new.line]);

    // The slow server has it in the end.
    play.settle(new.timestamp);
    while {
        let (read, value) = play.get(&mut person, "3", "k");
        assert_eq!((read.timestamp, value.as_str()), (new.timestamp, "new"));
        play.index(read.server) != slow
    } {}
    person.leave();
    for at in 0..3 {
        let status = group.terminate(at);
        assert!(exited_with(status, 0), "{status:?}");
        let mut shown = console_lines(&group, at);
        // A machine so busy that a server does not greet for a second has the client send a copy by
        // way of another one, which says that it passes it on. The leader shows and replicates the
        // write once all the same.
        let expected: Vec<&String> = play.expected[at].iter().flatten().collect();
        shown.retain(|line| !line.starts_with("Encaminhando PUT ") || expected.contains(&line));
        assert_lines(&format!("server {at}"), &shown, &play.expected[at]);
    }
    let shown = console_lines(&group, leader);
    let position = |start: &str, end: &str| {
        let of = |line: &&String| line.starts_with(start) && line.ends_with(end);
        shown.iter().position(|line| of(&line)).unwrap()
    };
    let acknowledged = position("Enviando PUT_OK ao Cliente ", &format!(" ts:{}.", new.timestamp));
    assert!(position("Cliente ", ", portanto devolvendo new") < acknowledged);
}

#[test]
fn a_put_with_a_condition_is_shown_and_its_put_ok_where_the_condition_held() {
    let mut group = Group::start(3, &["--in-sync-timeout", "60s"]);
    let (leader, asked) = (0, 1);
    let client = patient_client([group.addresses()[asked]]);
    let stored = match client.put_if("k", "first", Condition::Absent).unwrap() {
        ConditionalPut::Stored(stored) => stored.timestamp,
        ConditionalPut::Conflict(conflict) => panic!("{conflict:?}"),
    };
    let refused = match client.put_if("k", "second", Condition::Absent).unwrap() {
        ConditionalPut::Conflict(conflict) => conflict.timestamp,
        ConditionalPut::Stored(stored) => panic!("{stored:?}"),
    };
    // Every server has had both.
    let observer = patient_client(group.addresses());
    for server in group.addresses() {
        eventually("the server has applied what was written", || {
            let status = observer.status(server).ok()?;
            (status.applied_timestamp >= refused).then_some(())
        });
    }
    for at in 0..3 {
        assert!(exited_with(group.terminate(at), 0));
        let forwarding = |value| format!("Encaminhando PUT key:k value:{value}");
        let replication = |value, ts| format!("REPLICATION key:k value:{value} ts:{ts}.");
        let expected = match at {
            _ if at == leader => vec![
                "Cliente ADDRESS PUT key:k value:first.".to_owned(),
                format!("Enviando PUT_OK ao Cliente ADDRESS da key:k ts:{stored}."),
                "Cliente ADDRESS PUT key:k value:second.".to_owned(),
            ],
            _ if at == asked => vec![
                forwarding("first"),
                replication("first", stored),
                forwarding("second"),
                replication("second", refused),
            ],
            _ => vec![replication("first", stored), replication("second", refused)],
        };
        let shown: Vec<String> =
            console_lines(&group, at).iter().map(|line| hide_address(line)).collect();
        assert_eq!(shown, expected, "server {at}");
    }
}

/// The line without the address of its client.
fn hide_address(line: &str) -> String {
    match line.split_once("Cliente ") {
        None => line.to_owned(),
        Some((before, after)) => {
            let (_, rest) = after.split_once(' ').expect("an address, and more");
            format!("{before}Cliente ADDRESS {rest}")
        }
    }
}

#[test]
fn unreachable_servers_and_an_edited_line() {
    let mut group = Group::start(3, &["--in-sync-timeout", "300ms"]);
    let mut person = Person::sit_down(&["--servers", &group.list()]);
    person.type_put("2", "k", "v");
    let written = person.wait_for_put("k", "v");

    // Corrected while typing, then brought back with the arrow.
    person.terminal.wait_for_prompt(MENU);
    person.terminal.type_keys(b"gt\x1b[De\r");
    person.terminal.answer("Chave: ", "kk\x7f");
    let of_key = |line: &str| line.starts_with("GET key: k ");
    let answers = |person: &Person, count: usize| {
        eventually("the answer", || (person.terminal.lines(of_key).len() == count).then_some(()));
    };
    answers(&person, 1);
    person.terminal.answer(MENU, "\x1b[A");
    person.terminal.answer("Chave: ", "\x1b[A");
    answers(&person, 2);

    let remarks = |person: &Person| person.terminal.lines(|line| line.starts_with("Servidor 127."));
    assert_eq!(remarks(&person), [""; 0]);
    group.kill(1);
    let refused = |at: usize, group: &Group| {
        format!("Servidor {} inacessível: conexão recusada.", group.addresses()[at])
    };
    while remarks(&person).is_empty() {
        let (read, value) = person.get("get", "k");
        assert_eq!((read.timestamp, value.as_str()), (written.timestamp, "v"));
        assert_ne!(read.server, group.addresses()[1]);
    }
    assert_eq!(remarks(&person), [refused(1, &group)], "one line");

    group.kill(0);
    group.kill(2);
    person.type_put("put", "k", "w");
    let failure = "PUT key: k falhou: nenhum servidor pôde ser alcançado; tente mais tarde; nada \
                   foi gravado.";
    person.terminal.wait_for_text(failure, 1);
    let mut said = remarks(&person).split_off(1);
    said.sort();
    let mut expected: Vec<String> = (0..3).map(|at| refused(at, &group)).collect();
    expected.sort();
    assert_eq!(said, expected, "one line a server");

    // The prompt is still there, and so is the group once it is back.
    for at in 0..3 {
        group.start_server(at);
    }
    Play::new(&group.addresses(), 0).settle(written.timestamp);
    let (read, value) = person.get("3", "k");
    assert_eq!((read.timestamp, value.as_str()), (written.timestamp, "v"));
    person.terminal.answer(MENU, "sair");
    assert!(exited_with(person.terminal.wait_for_end(), 0));
}

/// Everything of a long paste happens, in the order in which each key was written, whatever is
/// under way meanwhile: more requests than the client sends at once, a value with a tab, and the
/// leaving at its end.
#[test]
fn what_is_pasted_at_once_all_happens() {
    let group = Group::start(3, &[]);
    let mut person = Person::sit_down(&["--servers", &group.list()]);
    person.terminal.wait_for_prompt(MENU);
    let keys = 0..150;
    let mut pasted: String =
        keys.clone().map(|number| format!("2\rpasted-{number}\rvalue\t{number}\r")).collect();
    pasted += "sair\r";
    person.terminal.type_keys(pasted.as_bytes());
    let status = person.terminal.wait_for_end();
    assert!(exited_with(status, 0), "{status:?}");
    let client = group.client();
    for number in keys {
        let read = client.get(format!("pasted-{number}")).unwrap();
        assert_eq!(read.value(), Some(format!("value\t{number}").as_bytes()));
        let line = format!(
            "PUT_OK key: pasted-{number} value value\\x09{number} timestamp {} realizada no \
             servidor ",
            read.timestamp().unwrap()
        );
        let shown = person.terminal.lines(|shown| shown.starts_with(&line));
        assert_eq!(shown.len(), 1, "{line}");
    }
    assert_eq!(person.events().len(), 150);
}

/// Of ten PUTs of one key that were pasted, another than the last stayed in half of all pastes:
/// each went to a server of its own.
#[test]
fn of_several_pasted_puts_of_one_key_the_last_one_stays() {
    let group = Group::start(3, &[]);
    let mut person = Person::sit_down(&["--servers", &group.list()]);
    person.terminal.wait_for_prompt(MENU);
    let puts = |round: u32| {
        (0..10).map(move |number| format!("2\rkey-{round}\r{number}\r")).collect::<String>()
    };
    let pasted: String = (0..8).map(puts).collect();
    person.terminal.type_keys((pasted + "sair\r").as_bytes());
    assert!(exited_with(person.terminal.wait_for_end(), 0));
    let client = group.client();
    for round in 0..8 {
        let key = format!("key-{round}");
        assert_eq!(client.get(key.as_str()).unwrap().value(), Some(&b"9"[..]), "{key}");
    }
    assert_eq!(person.events().len(), 80);
}

/// A GET that was pasted behind a PUT was answered before it now and then, at another server.
#[test]
fn a_pasted_get_is_answered_after_the_put_before_it() {
    let group = Group::start(3, &["--console", "off"]);
    let mut person = Person::sit_down(&["--servers", &group.list()]);
    person.terminal.wait_for_prompt(MENU);
    let typed = |number: u32| format!("2\rkey\r{number}\r3\rkey\r");
    let pasted: String = (0..20).map(typed).collect();
    person.terminal.type_keys((pasted + "sair\r").as_bytes());
    assert!(exited_with(person.terminal.wait_for_end(), 0));
    let events = person.events();
    assert_eq!(events.len(), 40, "{events:?}");
    for (number, pair) in events.chunks(2).enumerate() {
        let [put, get] = pair else { panic!("{pair:?}") };
        assert!(put.starts_with(&format!("PUT_OK key: key value {number} timestamp ")), "{put}");
        // It is asked for what the PUT wrote, wherever that is.
        let seen = format!(", meu timestamp {} e do servidor ", word_after(put, " timestamp "));
        assert!(get.starts_with("GET key: key value: ") && get.contains(&seen), "{get}");
    }
}

/// Without a majority, or before the group has begun, a PUT says who answers and who is missing.
#[test]
fn a_put_that_nobody_orders_says_how_many_servers_answer_and_whom_to_start() {
    let mut group = Group::prepare(3, &["--console", "off"]);
    group.start_server(1);
    group.wait_until_listening(1);
    let first = group.addresses()[0];
    let put = |group: &Group| {
        let mut person = Person::sit_down(&["--servers", &group.list()]);
        person.type_put("2", "k", "v");
        let start = "PUT key: k falhou: ";
        person.terminal.wait_for("the failure", |screen| {
            let whole = screen.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            whole.map(str::trim_end).find_map(|line| line.strip_prefix(start).map(str::to_owned))
        })
    };
    let said = put(&group);
    assert!(said.contains(": 1 de 3 servidores responde"), "{said}");
    group.start_server(2);
    let status = |group: &Group| group.client().status(group.addresses()[1]).ok();
    eventually("the two have met", || {
        let waits = |warning: &String| warning.contains("begins with");
        status(&group)?.warnings.iter().any(waits).then_some(())
    });
    let said = put(&group);
    assert_eq!(
        said,
        format!(
            "o grupo ainda não começou: 2 de 3 servidores respondem, mas falta {first}, com que \
             ele começa, e nada foi feito; inicie-o e tente de novo."
        )
    );
}

/// The questions are in Portuguese, and so is what is said when they are not answered.
#[test]
fn a_server_whose_questions_are_not_answered_starts_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let servers = free_addresses(3);
    let mut terminal = server_terminal(&servers, dir.path());
    terminal.wait_for_prompt(&format!("IP deste servidor [{}]: ", servers[0].ip()));
    terminal.type_keys(b"\x04");
    assert!(exited_with(terminal.wait_for_end(), 2));
    let said = "acervo: a entrada terminou antes da última resposta, e nada foi iniciado";
    assert_eq!(terminal.lines(|line| line.starts_with("acervo: ")), [said]);
}

/// Each line stands alone, and the question that was open is asked again below it.
#[test]
fn a_terminal_that_cannot_edit_lines() {
    let group = Group::start(1, &["--console", "off"]);
    let mut command = Command::new(ACERVO);
    command.args(["client", "--servers", &group.list()]);
    let mut terminal = Terminal::run_on(command, "dumb");
    terminal.answer(MENU, "2");
    terminal.answer("Chave: ", "casa");
    terminal.answer("Valor: ", "azul");
    terminal.wait_for("the answer and the menu", |screen| {
        let (_, behind) = screen.split_once("\nPUT_OK key: casa value azul timestamp ")?;
        let (_, behind) = behind.split_once('\n')?;
        (behind == MENU).then_some(())
    });
    terminal.type_line("sair");
    assert!(exited_with(terminal.wait_for_end(), 0));
}

#[test]
fn a_console_that_is_terminated_leaves_the_terminal_as_it_was() {
    let group = Group::start(1, &["--console", "off"]);
    let mut command = Command::new(ACERVO);
    command.args(["client", "--servers", &group.list()]);
    let mut terminal = Terminal::run(command);
    terminal.wait_for_prompt(MENU);
    eventually("the console edits lines itself", || (!terminal.is_cooked()).then_some(()));
    let pid = Pid::from_raw(terminal.child.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = eventually("it ends", || terminal.child.try_wait().unwrap());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert!(terminal.is_cooked());
}

/// Whoever leaves while requests are under way is told what is waited for.
#[test]
fn whoever_leaves_early_is_told_what_is_waited_for() {
    let group = Group::start(3, &["--console", "off"]);
    let mut command = Command::new(ACERVO);
    command.args(["client", "--servers", &group.list()]);
    let mut terminal = Terminal::run(command);
    terminal.wait_for_prompt(MENU);
    (0..3).for_each(|at| group.signal(at, Signal::STOP));
    terminal.type_line("2");
    terminal.answer("Chave: ", "k");
    terminal.answer("Valor: ", "v");
    terminal.wait_for_prompt(MENU);
    terminal.type_line("sair");
    terminal.wait_for_text("Esperando 1 resposta; Ctrl-C desiste.", 1);
    (0..3).for_each(|at| group.signal(at, Signal::CONT));
    terminal.wait_for_end();
}

#[test]
fn a_byte_that_is_no_text_costs_its_line_and_not_the_console() {
    let group = Group::start(1, &["--console", "off"]);
    let mut command = Command::new(ACERVO);
    command.args(["client", "--servers", &group.list()]);
    let mut terminal = Terminal::run(command);
    terminal.answer(MENU, "2");
    terminal.wait_for_prompt("Chave: ");
    terminal.type_keys(b"\xff");
    terminal.wait_for_text("A linha não é texto UTF-8.", 1);
    terminal.wait_for_prompt("Chave: ");
    terminal.type_line("k");
    terminal.answer("Valor: ", "v");
    terminal.wait_for_text("PUT_OK key: k value v", 1);
}
