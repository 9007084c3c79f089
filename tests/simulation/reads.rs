//! What a read may answer, by the model: what the state that it was read from held, as of the
//! version asked for, with the removals up to where it was seen. Garbage collection may have taken
//! away only what lies past the horizon it has announced.

use std::collections::HashMap;

use crate::model::leave_out_values;
use acervo::model::{LogIndex, PageNext, PageOf, ReadView, Row, Timestamp, Version};
use acervo::storage::reads::{PageLimits, Store};
use acervo::wire::message::{GetRequest, PageRequest, PageView, ReadAt};
use bytes::Bytes;

use crate::checker::{Checker, Verdict, Violation, ensure};

/// What clients saw as of old versions: a later state says the same, or nothing any more. This
/// needs no model to be known.
#[derive(Default)]
pub struct Looked {
    /// By key and version asked for, from which state, and what.
    seen: HashMap<(Bytes, Timestamp), (LogIndex, Row)>,
}

/// A page as it was answered.
#[derive(Clone, Debug)]
pub struct PageAnswer {
    pub rows: Vec<Row>,
    pub view: ReadView,
    /// Where the next one begins.
    pub next: Option<PageNext>,
}

impl Looked {
    fn look(&mut self, at: Timestamp, from: LogIndex, row: &Row) -> Verdict {
        let known = self.seen.entry((row.key.clone(), at)).or_insert((from, row.clone()));
        let ((earlier, later), newer) = match known.0 <= from {
            true => ((&known.1, row), true),
            false => ((row, &known.1), false),
        };
        ensure!(
            earlier == later || later.found.is_none(),
            "as of {at} there was {earlier:?}, and then {later:?}"
        );
        if newer {
            *known = (from, row.clone());
        }
        Ok(())
    }
}

impl Checker {
    /// A read of one key was answered from the state after `read_at`; the version it showed, which
    /// may be a deletion's.
    pub fn got(
        &mut self,
        get: &GetRequest,
        found: Option<Version>,
        as_of: Timestamp,
        read_at: LogIndex,
    ) -> Result<Timestamp, Violation> {
        let (newest, at, wanted) = match get.read_at {
            ReadAt::Newest { .. } => (true, Timestamp(i64::MAX), get.session),
            ReadAt::Version(at) => (false, at, get.session.max(Some(at))),
        };
        let moment = self.model.moment(read_at);
        let held = moment.get(&get.key, at);
        let told = Row { key: get.key.clone(), found };
        ensure!(
            newest || at >= moment.compacted,
            "{get:?} was answered, and everything before {} is compacted",
            moment.compacted
        );
        let swept = !newest && at < moment.swept && told.found.is_none();
        let mut expected = held.clone();
        if let Some(version) = expected.found.as_mut().filter(|_| !get.facts) {
            version.facts = None;
        }
        ensure!(
            expected == told || swept,
            "{get:?} was told {told:?} by a state that has {held:?}"
        );
        let now = moment.timestamp;
        ensure!(wanted <= Some(now), "{get:?} was answered by a state of {now}");
        ensure!(now <= as_of, "{get:?} saw a state of {now}, past its as-of {as_of}");
        if !newest {
            // What was not asked for is what the state has.
            let seen = if told.found.is_some() { &held } else { &told };
            self.looked.look(at, read_at, seen)?;
        }
        Ok(self.model.changed(&get.key, read_at))
    }

    /// A page was answered from the state after `read_at`.
    pub fn paged(&mut self, page: &PageRequest, answer: &PageAnswer, read_at: LogIndex) -> Verdict {
        let &PageAnswer { ref rows, view, ref next } = answer;
        let now = self.model.moment(read_at);
        let newest = now.timestamp;
        let (first, wanted, shows) = match page.view {
            PageView::First { at, session, .. } => {
                let shows = ReadView { at: at.unwrap_or(newest), removals_up_to: newest };
                (true, at.max(session), shows)
            }
            PageView::Next(view) => (false, Some(view.removals_up_to.max(view.at)), view),
        };
        ensure!(wanted <= Some(newest), "{page:?} was answered by a state of {newest}");
        ensure!(view == shows, "{page:?} shows {view:?}");
        let ReadView { at, removals_up_to: seen } = view;
        ensure!(
            at >= now.compacted || at == seen || matches!(page.of, PageOf::Versions { .. }),
            "{page:?} was answered, and everything before {} is compacted",
            now.compacted
        );
        let most = (page.rows_max as usize).max(1);
        ensure!(rows.len() <= most, "{page:?} has {} rows", rows.len());
        let progress = match (next, &page.of) {
            (Some(PageNext::From(next)), PageOf::Range { from, .. }) => next > from,
            (Some(PageNext::To(next)), PageOf::RangeReverse { to, .. }) => next < to,
            (next, _) => next.is_none() || !rows.is_empty(),
        };
        ensure!(progress, "{page:?} has {} rows, and goes on at {next:?}", rows.len());

        let mut expected = self.model.seen_from(seen).rows(&page.of, at);
        if page.keys_only {
            leave_out_values(&mut expected);
        }
        match (next, &page.of) {
            (None, _) => {}
            (Some(PageNext::From(from)), PageOf::Range { .. }) => {
                expected.retain(|row| row.key < *from);
            }
            (Some(PageNext::To(to)), PageOf::RangeReverse { .. }) => {
                expected.retain(|row| row.key > *to);
            }
            (Some(PageNext::Skip(count)), PageOf::Keys { .. }) => {
                expected.truncate(*count as usize)
            }
            (Some(PageNext::At(at)), PageOf::Versions { .. }) => {
                expected.retain(|row| row.timestamp() > Some(*at));
            }
            (next, of) => return Err(Violation(format!("{next:?} does not go on with {of:?}"))),
        }
        let swept = now.swept;
        // It looked back so far when it began that some may have been swept before.
        let passed_us = |at| self.model.seen_from(at).clock_us;
        let looked_back_us = passed_us(seen) - passed_us(at);
        let partial = at < swept && (first || looked_back_us > self.limits.removal_grace_us);
        let fits = match &page.of {
            PageOf::Range { .. } | PageOf::RangeReverse { .. } if partial => {
                rows.iter().all(|row| expected.contains(row))
            }
            PageOf::Keys { .. } if partial => {
                rows.len() == expected.len()
                    && rows.iter().zip(&expected).all(|(told, held)| {
                        told == held || (told.key == held.key && told.found.is_none())
                    })
            }
            PageOf::Versions { .. } => {
                expected.starts_with(rows)
                    && expected[rows.len()..].iter().all(|row| row.timestamp() < Some(swept))
            }
            PageOf::Range { .. }
            | PageOf::RangeReverse { .. }
            | PageOf::Keys { .. }
            | PageOf::Lease { .. } => *rows == expected,
        };
        ensure!(fits, "{page:?} shows {rows:?} before {next:?}, not {expected:?}");
        if !matches!(page.of, PageOf::Versions { .. }) && first && at < seen && !page.keys_only {
            rows.iter().try_for_each(|row| self.looked.look(at, read_at, row))?;
        }
        Ok(())
    }

    /// A page was refused as too old: something of it may really be gone.
    pub fn expired(&self, page: &PageRequest, read_at: LogIndex) -> Verdict {
        let moment = self.model.moment(read_at);
        let PageView::Next(ReadView { at, removals_up_to: seen }) = page.view else {
            return Err(Violation(format!("{page:?} was refused, and is the first page")));
        };
        let at = match page.of {
            PageOf::Versions { .. } => seen,
            PageOf::Range { .. }
            | PageOf::RangeReverse { .. }
            | PageOf::Keys { .. }
            | PageOf::Lease { .. } => at,
        };
        ensure!(
            seen < moment.purged || at < moment.swept,
            "{page:?} was refused, and nothing of it is gone"
        );
        Ok(())
    }

    /// A read as of a version was refused as compacted by the state after `read_at`: it says so of
    /// that very version.
    pub fn compacted(
        &self,
        at: Option<Timestamp>,
        version: Timestamp,
        read_at: LogIndex,
    ) -> Verdict {
        let compacted = self.model.moment(read_at).compacted;
        ensure!(
            at.is_some_and(|at| at < compacted) && version == compacted,
            "a read as of {at:?} was refused as before {version}, and {compacted} is compacted"
        );
        Ok(())
    }

    /// A store that has applied everything up to `index` holds all that the model holds, each key's
    /// versions included.
    pub fn whole(&self, store: &Store, index: LogIndex) -> Verdict {
        let moment = self.model.moment(index);
        let at = moment.timestamp;
        let read_view = ReadView::as_of(at);
        let read = |of: &PageOf| {
            let page = store.page(of, read_view, PageLimits::default());
            let page = page.map_err(|error| Violation(format!("{of:?}: {error}")))?;
            ensure!(page.next.is_none(), "{of:?} takes more than a page");
            Ok(page.rows)
        };
        let (from, to) = (Bytes::from_static(&[0]), Bytes::from_static(&[0xff; 8]));
        let all = PageOf::Range { from, to };
        let (held, expected) = (read(&all)?, moment.rows(&all, at));
        ensure!(held == expected, "it has {held:?}, not {expected:?}");
        for key in moment.keys() {
            let of = PageOf::Versions { key: key.clone() };
            let (held, expected) = (read(&of)?, moment.rows(&of, at));
            let swept =
                expected.iter().skip(held.len()).all(|row| row.timestamp() < Some(moment.swept));
            ensure!(
                expected.starts_with(&held) && swept,
                "of {key:?} it has {held:?}, not {expected:?}"
            );
        }
        Ok(())
    }
}
