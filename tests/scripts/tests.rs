//! The scripts' runner: it notices what is wrong with an answer, and with a script.

use crate::engines::Machine;
use crate::language::Op;
use crate::run::{Answer, BackEnd, Left, run};
use crate::script::Script;

const HEAD: &str = "# A rule.\n# SPEC B\n\n";

/// Runs what comes below a head on the memory engine.
fn outcome(session: &str) -> Result<(), String> {
    let script = Script::parse("file", &format!("{HEAD}{session}"))?;
    run(&script, &mut Machine::memory(1))
}

#[test]
fn what_is_expected_passes_and_anything_else_fails() {
    let session = |expected: &str| {
        format!(
            "> putall a=1 b=2\na was nothing -> v1\nb was nothing -> v1\n\n\
             > put a 3\na was 1 @v1 -> v2\n\n> getall a x b\n{expected}\n"
        )
    };
    let right = "a = 3 @v2\nx = nothing\nb = 2 @v1";
    assert_eq!(outcome(&session(right)), Ok(()));
    let wrong = [
        ("the value", "a = 1 @v2\nx = nothing\nb = 2 @v1"),
        ("the version", "a = 3 @v1\nx = nothing\nb = 2 @v1"),
        ("a version beside it", "a = 3 @v2\nx = nothing\nb = 2 @v1+1"),
        ("the key", "c = 3 @v2\nx = nothing\nb = 2 @v1"),
        ("something instead of nothing", "a = 3 @v2\nx = 0 @v1\nb = 2 @v1"),
        ("nothing instead of something", "a = 3 @v2\nx = nothing\nb = nothing"),
        ("an empty value instead of nothing", "a = 3 @v2\nx = \"\" @0\nb = 2 @v1"),
        ("the order", "x = nothing\na = 3 @v2\nb = 2 @v1"),
        ("a row too many", "a = 3 @v2\nx = nothing\nb = 2 @v1\nb = 2 @v1"),
        ("a row too few", "a = 3 @v2\nx = nothing"),
        ("no rows", "none"),
        ("an error", "error: empty"),
        ("the order of versions", &format!("{right}\nv2 < v1")),
        ("a version nobody wrote", "a = 3 @v3\nx = nothing\nb = 2 @v1"),
    ];
    for (what, expected) in wrong {
        let failure = outcome(&session(expected)).expect_err(what);
        assert!(failure.starts_with("file:11: getall a x b (through the memory"), "{failure}");
    }
    let failure = outcome(&session("a = 3 @v2\nx = nothing\nb = 3 @v1")).unwrap_err();
    let (expected, got) = failure.split_once("got:").unwrap();
    assert!(expected.contains("b = \"3\" @v1") && got.contains("b = \"2\" @v1"), "{failure}");
}

#[test]
fn what_a_head_quotes_stands_in_the_specification() {
    let quoting = |words: &str| {
        let text = format!("# A rule.\n# SPEC B: \"{words}\"\n\n> get a\na = nothing\n");
        Script::parse("file", &text).map(drop)
    };
    assert_eq!(quoting("Every write\n# makes a new version"), Ok(()));
    let unknown = quoting("Every read makes a new version").unwrap_err();
    assert!(unknown.contains("docs/SPEC.md has no words \"Every read makes"), "{unknown}");
}

#[test]
fn versions_keep_their_names() {
    let put = |expected: &str| format!("> put a 1\na was nothing -> v1\n\n> put a 2\n{expected}\n");
    assert_eq!(outcome(&put("a was 1 @v1 -> v2\nv1 < v2")), Ok(()));
    for wrong in
        ["a was 1 @v1 -> v1", "a was 1 @v2 -> v2", "a was nothing -> v2", "a was 2 @v1 -> v2"]
    {
        assert!(outcome(&put(wrong)).is_err(), "{wrong}");
    }
    let two = "> putall a=1 b=2\na was nothing -> v1\nb was nothing -> v2\n";
    assert!(outcome(two).is_err(), "one version has one name");
}

#[test]
fn what_is_no_script_is_refused() {
    let parse = |text: &str| Script::parse("file", text).map(|_| ());
    assert_eq!(parse(&format!("{HEAD}through: engine\n\n> get a\na = nothing\n")), Ok(()));
    let wrong = [
        "> get a\na = nothing\n",
        "# A rule without a reference.\n\n> get a\na = nothing\n",
        HEAD,
        &format!("{HEAD}> get a\n"),
        &format!("{HEAD}> get a\n\na = nothing\n"),
        &format!("{HEAD}> get a\n> get b\nb = nothing\n"),
        &format!("{HEAD}> fetch a\na = nothing\n"),
        &format!("{HEAD}> get a b\na = nothing\n"),
        &format!("{HEAD}> get a at\na = nothing\n"),
        &format!("{HEAD}> get a at noon\na = nothing\n"),
        &format!("{HEAD}> getrange a\nnone\n"),
        &format!("{HEAD}> putall a\na was nothing -> v1\n"),
        &format!("{HEAD}> get \"a\na = nothing\n"),
        &format!("{HEAD}> get {{a}}\na = nothing\n"),
        &format!("{HEAD}> get a\na = 1\n"),
        &format!("{HEAD}> get a\na = 1 @\n"),
        &format!("{HEAD}> get a\na = 1 @v1 and more\n"),
        &format!("{HEAD}> get a\na was 1 @v1\n"),
        &format!("{HEAD}> get a\na = 1 @v1 -> v2\n"),
        &format!("{HEAD}> put a 1\na was nothing\n"),
        &format!("{HEAD}> del a\na = nothing\n"),
        &format!("{HEAD}through: telephone\n\n> get a\na = nothing\n"),
        &format!("{HEAD}no prompt\n"),
        &format!("{HEAD}> get \"\"\nerror: empty\na = 1 @v1\n"),
        &format!("{HEAD}> getrange a b\nnone\na = 1 @v1\n"),
    ];
    for text in wrong {
        let refused = parse(text).expect_err(text);
        assert!(refused.starts_with("file:"), "{refused}");
    }
}

/// A shell in which every command prints the same and ends with status 1.
struct Fixed;

impl BackEnd for Fixed {
    fn name(&self) -> &'static str {
        "a fixed answer"
    }

    fn ask(&mut self, _op: &Op) -> Answer {
        Answer::Rows(Vec::new())
    }

    fn shell(&mut self, line: &str) -> Result<Left, String> {
        assert!(line == "acervo history a" || line == "acervo get a --at 11", "{line}");
        Ok(Left { status: 1, out: b"a\t12\tone\nb\t12\ttwo words\n".to_vec(), err: "why".into() })
    }
}

#[test]
fn what_a_shell_prints_and_its_status_are_both_compared() {
    let outcome = |expected: &str| {
        let script = format!("{HEAD}$ acervo history a\n{expected}\n");
        Script::parse("file", &script).and_then(|script| run(&script, &mut Fixed))
    };
    let right = [
        "a\\t12\\tone\nb\\t12\\ttwo words\nexit 1",
        "a\\t<v1>\\tone\nb\\t<v1>\\ttwo words\nexit 1",
        "a\\t<v1>\\t<any>\nb\\t<any> words\nexit 1\n\n$ acervo get a --at \
         <v1-1>\n<any>\n<any>\nexit 1",
    ];
    for expected in right {
        assert_eq!(outcome(expected), Ok(()));
    }
    let wrong = [
        "a\\t12\\tone\nb\\t12\\ttwo words",
        "a\\t12\\tone\nb\\t12\\ttwo words\nexit 2",
        "a\\t12\\tone\nb\\t12\\ttwo\nexit 1",
        "a\\t<v1>\\tone\nb\\t<v2>\\ttwo words\nexit 1",
        "a\\t<v1>\\tone\nb\\t12\\t<v1>\nexit 1",
        "a\\t12\\tone\nexit 1",
        "a\\t12\\tone\nb\\t12\\ttwo words\nc\nexit 1",
        "exit 1",
    ];
    for expected in wrong {
        let failure = outcome(expected).expect_err(expected);
        assert!(failure.contains("got, with status 1") && failure.contains("why"), "{failure}");
    }
}
