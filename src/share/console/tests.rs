//! Dialogues of the console with scripted input.

use super::*;
use crate::prompt::Typed;
use crate::prompt::script::{Said, Script, lines};

fn play(typed: Vec<Typed>) -> (Vec<String>, Vec<String>) {
    let mut input = Script::new(typed);
    let screen = Arc::new(Said::default());
    let registries = vec!["127.0.0.1:9".parse().unwrap()];
    let options = ConsoleOptions { registries, limit_bytes_per_s: None };
    let mut dialogue = PeerDialogue::new(&mut input, Arc::<Said>::clone(&screen) as _, options);
    dialogue.run().unwrap();
    dialogue.end(InputKind::Pipe);
    (input.prompts, screen.said())
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
    let typed = vec![Typed::Cancelled, Typed::Line("1".to_owned()), Typed::Cancelled];
    let (_, said) = play(typed);
    assert_eq!(said, ["Para sair, escolha SAIR ou tecle Ctrl-D."]);
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
    let (prompts, said) = play(lines("search\n3\nget\n\n"));
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
    let (prompts, said) = play(lines(&format!("1\ncasa\n\n{port}\n0\n\n\n/dev/null")));
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
