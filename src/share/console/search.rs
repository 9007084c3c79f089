//! The last search of the console, whose result a DOWNLOAD may have to wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::limits;
use crate::model::FileName;
use crate::prompt::Screen;
use crate::text::escape;
use crate::wire::share::Source;

/// A console that waits for a search's result before its next question says so after this time,
/// when people begin to wonder.
const CONSOLE_WAIT_NOTICE_AFTER: Duration = Duration::from_millis(500);

/// The last search, to which DOWNLOAD refers.
#[derive(Clone)]
pub(super) struct LastSearch {
    pub name: FileName,
    pub result: SearchResult,
}

/// The result of a search.
#[derive(Clone)]
pub(super) enum SearchResult {
    /// The answer has not come, or its line has not been shown.
    Pending,
    /// The sources, as the registry names them.
    Sources(Vec<Source>),
    /// No registry has answered.
    Unanswered,
}

/// The slot of the last search, written by the dialogue and by the search's thread.
#[derive(Default)]
pub(super) struct SearchSlot {
    last: Mutex<Option<LastSearch>>,
    /// Signalled when the result of a search has been shown.
    shown: Condvar,
}

impl SearchSlot {
    fn last(&self) -> MutexGuard<'_, Option<LastSearch>> {
        // It is set as a whole, so a poisoned lock does not matter.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A search for this name has begun. The result of an earlier one does not matter any more.
    pub(super) fn begin(&self, name: FileName) {
        *self.last() = Some(LastSearch { name, result: SearchResult::Pending });
    }

    /// The result of a search has been shown, or there will be none.
    pub(super) fn end(&self, name: &FileName, result: SearchResult) {
        if let Some(last) = self.last().as_mut().filter(|last| last.name == *name) {
            last.result = result;
        }
        self.shown.notify_all();
    }

    /// The last search with its result. If the result is pending, it is waited for as long as a
    /// search may take; after a moment the user is told so.
    pub(super) fn wait(&self, screen: &dyn Screen) -> Option<LastSearch> {
        let wait = |patience| {
            let pending = |last: &mut Option<LastSearch>| {
                matches!(last, Some(LastSearch { result: SearchResult::Pending, .. }))
            };
            let waited = self.shown.wait_timeout_while(self.last(), patience, pending);
            waited.unwrap_or_else(PoisonError::into_inner).0.clone()
        };
        let soon = wait(CONSOLE_WAIT_NOTICE_AFTER);
        let Some(LastSearch { name, result: SearchResult::Pending }) = &soon else { return soon };
        let name = escape(name.as_str().as_bytes());
        screen.say(&format!("Esperando a resposta do SEARCH de {name}."));
        wait(limits::REGISTRY_CALL_TIMEOUT)
    }
}
