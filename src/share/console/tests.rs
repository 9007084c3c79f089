//! Dialogues of the console with scripted input.

use std::sync::Mutex;

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
    let mut dialogue = PeerDialogue::new(&mut input, Arc::<Lines>::clone(&screen) as _, options);
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

/// At any other prompt Ctrl-C returns to the menu without a word.
#[test]
fn ctrl_c_at_the_menu_explains_how_to_leave() {
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
fn search_and_download_are_refused_before_a_join() {
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
