//! Scripts as they are written (README.md): read, and checked as far as that can be done without
//! running them.

use crate::language::{Expected, Op};
use crate::names::Names;

/// What a script can be run through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    Engine,
    Library,
    Command,
    Gateway,
}

const EVERYTHING: [(&str, Through); 4] = [
    ("engine", Through::Engine),
    ("library", Through::Library),
    ("command", Through::Command),
    ("gateway", Through::Gateway),
];

/// Whom a step asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    Store,
    /// `behind>`: a server to which nothing of what is written here has come.
    Behind,
    Shell,
}

/// What the heads of scripts quote from.
const SPECIFICATION: &str = include_str!("../../docs/SPEC.md");

/// A rule and the session that shows it.
#[derive(Debug)]
pub struct Script {
    pub name: String,
    pub through: Vec<Through>,
    pub steps: Vec<Step>,
}

/// A command and what is expected of it.
#[derive(Debug)]
pub struct Step {
    pub line: usize,
    pub prompt: Prompt,
    pub command: String,
    pub expected: Vec<String>,
}

impl Script {
    /// Reads a script; the error says in which line, and why.
    pub fn parse(name: &str, text: &str) -> Result<Script, String> {
        let wrong = |line: usize, why: &str| format!("{name}:{line}: {why}");
        let mut script = Script {
            name: name.to_owned(),
            through: EVERYTHING.map(|(_, through)| through).to_vec(),
            steps: Vec::new(),
        };
        let head: Vec<&str> = text.lines().take_while(|line| line.starts_with('#')).collect();
        let names = ["SPEC B", "SPEC D"];
        if !head.iter().any(|line| names.iter().any(|name| line.contains(name))) {
            return Err(wrong(
                1,
                "it begins with the rule it shows and where SPEC B or D says so, after #",
            ));
        }
        let head = in_one_line(&head.join(" ").replace('#', " "));
        let (specification, quotes) =
            (in_one_line(SPECIFICATION), head.split('"').skip(1).step_by(2));
        if let Some(unknown) = quotes.into_iter().find(|quote| !specification.contains(quote)) {
            return Err(wrong(1, &format!("docs/SPEC.md has no words \"{unknown}\"")));
        }
        let mut open = false;
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim_end();
            if let Some((prompt, command)) = prompt(text) {
                let (command, expected) = (command.to_owned(), Vec::new());
                script.steps.push(Step { line, prompt, command, expected });
                open = true;
            } else if text.is_empty() {
                open = false;
            } else if let Some(step) = script.steps.last_mut().filter(|_| open) {
                step.expected.push(text.to_owned());
            } else if let (Some(list), true) =
                (text.strip_prefix("through: "), script.steps.is_empty())
            {
                script.through = through(list).map_err(|why| wrong(line, &why))?;
            } else if !text.starts_with('#') {
                return Err(wrong(line, "this belongs to no command"));
            }
        }
        if script.steps.is_empty() {
            return Err(wrong(1, "it asks nothing"));
        }
        // What cannot be understood is told now, whatever the script is run through.
        for step in &script.steps {
            step.check().map_err(|why| wrong(step.line, &why))?;
        }
        Ok(script)
    }

    /// Whether a step asks a server that is behind.
    pub fn asks_one_behind(&self) -> bool {
        self.steps.iter().any(|step| step.prompt == Prompt::Behind)
    }
}

/// Text without line ends, indentation and emphasis, so that words can be found in it.
fn in_one_line(text: &str) -> String {
    text.replace('*', "").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn prompt(line: &str) -> Option<(Prompt, &str)> {
    let prompts = [("> ", Prompt::Store), ("behind> ", Prompt::Behind), ("$ ", Prompt::Shell)];
    prompts.into_iter().find_map(|(sign, prompt)| Some((prompt, line.strip_prefix(sign)?)))
}

fn through(list: &str) -> Result<Vec<Through>, String> {
    let one = |name: &str| {
        let found = EVERYTHING.iter().find(|(known, _)| *known == name);
        found.map(|(_, through)| *through).ok_or(format!("'{name}' is nothing to run it through"))
    };
    list.split(", ").map(one).collect()
}

impl Step {
    fn check(&self) -> Result<(), String> {
        if self.expected.is_empty() {
            return Err("it expects nothing".to_owned());
        }
        if self.prompt == Prompt::Shell || self.transaction().is_some() {
            return Ok(());
        }
        let names = Names::any();
        let op = self.op(&names)?;
        let all = self.expected(&names)?;
        let stands_alone = |line: &Expected| matches!(line, Expected::None | Expected::Error(_));
        if all.len() > 1 && all.iter().any(stands_alone) {
            return Err("'none' and 'error:' stand alone".into());
        }
        for expected in all {
            if let Expected::Row(row) = expected {
                if row.is_past != op.tells_the_past() {
                    return Err("reads and trim tell what '=' is, other writes what 'was'".into());
                }
                if row.new.is_some() != op.makes_a_version() {
                    return Err("a row of put or putall ends in '-> v1', and no other does".into());
                }
            }
        }
        Ok(())
    }

    /// The text of a transaction, if the command is one: `/` stands for a line end.
    pub fn transaction(&self) -> Option<String> {
        Some(self.command.strip_prefix("txn ")?.replace(" / ", "\n"))
    }

    pub fn op(&self, names: &Names) -> Result<Op, String> {
        Op::parse(&self.command, names)
    }

    pub fn expected(&self, names: &Names) -> Result<Vec<Expected>, String> {
        let mut all = Vec::new();
        for line in &self.expected {
            all.extend(Expected::parse(line, names)?);
        }
        Ok(all)
    }
}
