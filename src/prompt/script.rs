//! A person at a console, for the tests of dialogues: what is typed, and what is shown.

use std::sync::{Mutex, PoisonError};

use super::{Input, Screen, Typed};
use crate::text::LineError;

/// Types the given things, and then ends. Keeps the prompts.
pub(crate) struct Script {
    typed: std::vec::IntoIter<Typed>,
    pub(crate) prompts: Vec<String>,
}

impl Script {
    pub(crate) fn new(typed: Vec<Typed>) -> Script {
        Script { typed: typed.into_iter(), prompts: Vec::new() }
    }
}

impl Input for Script {
    fn read_line(&mut self, prompt: &str) -> Result<Typed, LineError> {
        self.prompts.push(prompt.to_owned());
        Ok(self.typed.next().unwrap_or(Typed::End))
    }
}

/// A text as it is typed, line by line.
pub(crate) fn lines(text: &str) -> Vec<Typed> {
    text.lines().map(|line| Typed::Line(line.to_owned())).collect()
}

/// Keeps everything that is shown.
#[derive(Default)]
pub(crate) struct Said(Mutex<Vec<String>>);

impl Said {
    pub(crate) fn said(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Screen for Said {
    fn event(&self, line: &str) {
        self.say(line);
    }
    fn remark(&self, line: &str) {
        self.say(line);
    }
    fn say(&self, line: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    }
}
