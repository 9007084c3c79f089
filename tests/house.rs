//! The rules of the house, held by reading the sources: which room may use which, where clocks,
//! randomness and three crates may be, and how files, comments and names are written.
//!
//! The rules that name rooms are in two tables of `ARCHITECTURE.md`, which this test reads: there
//! they are explained, and there they are changed. A room is a folder or a file directly below
//! `src/`. Code of tests is left out of the rules about rooms, since a test may wire anything to
//! anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line: two files beside each other fit on a screen.
const COLUMNS_MAX: usize = 100;
/// A doc comment with fewer words cannot say more than the name and the type beside it.
const COMMENT_WORDS_MIN: usize = 4;
/// Public type names that may stand for more than one type in different rooms. A general name
/// carries its room.
const SHARED_TYPE_NAMES_MAX: usize = 10;

struct Source {
    /// From the root of the repository, with slashes.
    path: String,
    text: String,
}

impl Source {
    /// The folder or file directly below `src/`; `None` outside of it, and for the two roots.
    fn room(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let first = inside.split('/').next()?;
        let room = first.strip_suffix(".rs").unwrap_or(first);
        (!matches!(inside, "lib.rs" | "main.rs")).then_some(room)
    }

    /// Lines of code that is shipped, numbered from 1: no comments, and nothing of a unit test.
    fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_test = self.path.ends_with("tests.rs") || self.path.contains("/tests/");
        let before_tests = if is_test { "" } else { &self.text };
        let end = before_tests.find("#[cfg(test)]\nmod tests {").unwrap_or(before_tests.len());
        let lines = before_tests[..end].lines().enumerate();
        lines
            .map(|(index, line)| (index + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below these folders with this extension, in order.
fn files(folders: &[&str], extension: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { text: fs::read_to_string(&path).unwrap(), path: relative });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(!found.is_empty(), "the folders are there");
    found
}

fn sources() -> Vec<Source> {
    files(&["src", "tests", "benches"], "rs")
}

/// The rows of the table of `ARCHITECTURE.md` whose first column has this heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = read("ARCHITECTURE.md");
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let mut lines = text.lines().skip_while(|line| {
        !line.starts_with('|') || cells(line).first().is_none_or(|first| first != heading)
    });
    assert!(
        lines.next().is_some(),
        "ARCHITECTURE.md has a table whose first column is '{heading}'"
    );
    lines.skip(1).take_while(|line| line.starts_with('|')).map(cells).collect()
}

/// What a cell has between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Every room of the table, with the rooms that it may use.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let mut allowed = BTreeMap::new();
    for row in table("room") {
        let may_use: BTreeSet<String> = quoted(&row[2]).map(str::to_owned).collect();
        for room in quoted(&row[0]) {
            let room = room.trim_end_matches('/').to_owned();
            assert!(allowed.insert(room.clone(), may_use.clone()).is_none(), "{room} twice");
        }
    }
    allowed
}

/// Fails with all that is wrong, one line each.
fn hold(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}; {} places:\n{}", broken.len(), broken.join("\n"));
}

/// The names that follow `crate::` in a line, the first segment of each path.
fn rooms_named(line: &str) -> Vec<&str> {
    let named = |rest: &'_ str| {
        let end = rest.find(|character: char| !character.is_alphanumeric() && character != '_');
        end.unwrap_or(rest.len())
    };
    line.split("crate::").skip(1).map(|rest| &rest[..named(rest)]).collect()
}

#[test]
fn a_room_uses_only_the_rooms_that_the_architecture_allows_it() {
    let allowed = allowed();
    let sources = files(&["src"], "rs");
    let rooms: BTreeSet<&str> = sources.iter().filter_map(Source::room).collect();
    let described: BTreeSet<&str> = allowed.keys().map(String::as_str).collect();
    assert_eq!(rooms, described, "the table describes the rooms that there are");

    let mut broken = Vec::new();
    for source in &sources {
        let Some(room) = source.room() else { continue };
        for (number, line) in source.production() {
            for used in rooms_named(line) {
                // `crate::Client` is the client's, for whoever reads the documentation.
                let used = if used == "Client" { "client" } else { used };
                if used != room && rooms.contains(used) && !allowed[room].contains(used) {
                    broken.push(format!("{}:{number}: {room} uses {used}", source.path));
                }
            }
            if line.contains("use crate::{") {
                broken.push(format!("{}:{number}: one room a line, please", source.path));
            }
        }
    }
    hold("a room uses only what the table allows", &broken);
}

#[test]
fn no_room_uses_itself_by_way_of_others() {
    let mut allowed = allowed();
    while !allowed.is_empty() {
        let free: Vec<String> = allowed
            .iter()
            .filter(|(_, uses)| uses.iter().all(|used| !allowed.contains_key(used)))
            .map(|(room, _)| room.clone())
            .collect();
        assert!(!free.is_empty(), "these rooms use each other in a circle: {:?}", allowed.keys());
        for room in free {
            allowed.remove(&room);
        }
    }
}

#[test]
fn clocks_randomness_and_some_crates_stay_in_their_rooms() {
    let mut broken = Vec::new();
    let sources = files(&["src"], "rs");
    for row in table("only here") {
        let rooms: BTreeSet<&str> =
            quoted(&row[0]).map(|room| room.trim_end_matches('/')).collect();
        let words: Vec<&str> = quoted(&row[1]).collect();
        assert!(!rooms.is_empty() && !words.is_empty(), "{row:?}");
        let mut met = BTreeSet::new();
        for source in &sources {
            let Some(room) = source.room() else { continue };
            for (number, line) in source.production() {
                if !words.iter().any(|word| has_word(line, word)) {
                    continue;
                }
                met.insert(room);
                if !rooms.contains(room) {
                    broken.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
        let unused: Vec<_> = rooms.difference(&met).collect();
        assert!(unused.is_empty(), "{words:?} is allowed to rooms that do not use it: {unused:?}");
    }
    hold("what only some rooms may use stays there", &broken);
}

/// Whether a line has a path that begins with this word, and not a longer word that ends with it.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|character| !character.is_alphanumeric() && character != '_')
    })
}

#[test]
fn every_file_begins_with_what_it_is_for() {
    let is_bare = |source: &&Source| !source.text.starts_with("//! ");
    let bare: Vec<String> =
        sources().iter().filter(is_bare).map(|source| source.path.clone()).collect();
    hold("a file begins with a header that says what it is for", &bare);
}

#[test]
fn no_line_is_longer_than_a_screen_is_wide() {
    let mut long = Vec::new();
    for source in sources() {
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            // An address cannot be broken.
            if columns > COLUMNS_MAX && !line.contains("://") {
                long.push(format!("{}:{}: {columns} columns", source.path, index + 1));
            }
        }
    }
    hold("a line has at most 100 columns", &long);
}

#[test]
fn a_comment_says_more_than_the_name_beside_it() {
    let mut short = Vec::new();
    for source in sources() {
        let mut words = 0;
        for (index, line) in source.text.lines().chain([""]).enumerate() {
            let line = line.trim_start();
            match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
                Some(comment) => words += comment.split_whitespace().count(),
                None => {
                    if (1..COMMENT_WORDS_MIN).contains(&words) {
                        short.push(format!("{}:{index}", source.path));
                    }
                    words = 0;
                }
            }
        }
    }
    hold("a doc comment has four words or more, or is left out", &short);
}

/// `ARCHITECTURE.md`, `docs/SPEC.md`: whatever ends so in sources and documents, and begins with a
/// capital.
fn documents_named(line: &str) -> impl Iterator<Item = &str> {
    let is_path = |character: char| character.is_alphanumeric() || "./_-".contains(character);
    line.split(move |character: char| !is_path(character))
        .map(|word| word.trim_end_matches(['.', '-']))
        .filter(|word| word.strip_suffix(".md").is_some_and(|name| !name.is_empty()))
}

#[test]
fn a_document_that_is_named_is_there() {
    let mut missing = Vec::new();
    let mut all = sources();
    all.extend(files(&["docs"], "md"));
    for path in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        all.push(Source { path: path.to_owned(), text: read(path) });
    }
    for source in &all {
        let folder = Path::new(&source.path).parent().unwrap();
        for (index, line) in source.text.lines().enumerate() {
            for named in documents_named(line) {
                // A link is relative to its page, and a comment names a page from the root of the
                // repository.
                let places = [root().join(named), root().join(folder).join(named)];
                if !places.iter().any(|place| place.is_file()) {
                    missing.push(format!("{}:{}: {named}", source.path, index + 1));
                }
            }
        }
    }
    hold("a document that is named is in the repository", &missing);
}

/// The architecture sends a reader to `room::module::name`: each of these names is in that room.
#[test]
fn a_module_that_the_architecture_names_is_there() {
    let mut rooms: BTreeMap<String, String> = BTreeMap::new();
    for source in files(&["src"], "rs") {
        if let Some(room) = source.room() {
            let names = rooms.entry(room.to_owned()).or_default();
            names.push_str(&source.path.replace(['/', '.'], " "));
            names.push_str(&source.text);
        }
    }
    let architecture = read("ARCHITECTURE.md");
    let mut missing = Vec::new();
    for (index, line) in architecture.lines().enumerate() {
        for path in quoted(line).filter(|path| path.contains("::")) {
            let mut segments = path.split("::");
            let Some(names) = segments.next().and_then(|room| rooms.get(room)) else { continue };
            let is_known = |segment: &str| segment.is_empty() || has_whole_word(names, segment);
            if !segments.all(|segment| is_known(segment.trim_end_matches("()"))) {
                missing.push(format!("ARCHITECTURE.md:{}: {path}", index + 1));
            }
        }
    }
    hold("a name that the architecture gives is in its room", &missing);
}

/// Whether the text has this word, and not only a longer one around it.
fn has_whole_word(text: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(at, _)| {
        let (before, after) =
            (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// The name of a type that a line declares for others than its own module.
fn public_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest = match rest.strip_prefix('(') {
        Some(scoped) => scoped.split_once(')')?.1,
        None => rest,
    };
    let rest = rest.trim_start();
    let rest =
        ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| rest.strip_prefix(kind))?;
    rest.split(|character: char| !character.is_alphanumeric() && character != '_').next()
}

#[test]
fn a_public_type_name_stands_for_one_type() {
    let mut declared: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for source in files(&["src"], "rs") {
        let Some(room) = source.room() else { continue };
        for (number, line) in source.production() {
            if let Some(name) = public_type(line) {
                let rooms = declared.entry(name.to_owned()).or_default();
                rooms.entry(room.to_owned()).or_default().push(format!("{}:{number}", source.path));
            }
        }
    }
    let within: Vec<String> = declared
        .iter()
        .flat_map(|(name, rooms)| rooms.values().map(move |places| (name, places)))
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    hold("a public type name stands for one type in a room", &within);

    let across: Vec<String> = declared
        .iter()
        .filter(|(_, rooms)| rooms.len() > 1)
        .map(|(name, rooms)| format!("{name}: {:?}", rooms.keys().collect::<Vec<_>>()))
        .collect();
    assert!(
        across.len() <= SHARED_TYPE_NAMES_MAX,
        "{} type names stand for types of several rooms, {SHARED_TYPE_NAMES_MAX} may:\n{}",
        across.len(),
        across.join("\n")
    );
}
