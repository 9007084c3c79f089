//! Whether reads and writes respect real time.
//!
//! General linearizability checking is exponential, but here every write has a version and versions
//! are totally ordered, so an order is given and only has to be compared with real time: an
//! operation that ended before another began must not stand after it. One sweep over the
//! operations by their beginning, with those that have ended on the side: O(n log n).

use std::collections::{BTreeMap, HashMap};

use acervo::model::Timestamp;
use bytes::Bytes;

use crate::checker::{Verdict, ensure};

/// One operation that took place.
#[derive(Clone, Debug)]
pub struct Span {
    /// The key; `None` for a write that leaves every key's newest state as it is, and for a read of
    /// the whole state.
    pub key: Option<Bytes>,
    /// When it was first asked.
    pub began_us: u64,
    /// When it was answered; `None` for a write that was applied and never answered.
    pub ended_us: Option<u64>,
    /// The version written, or the one read (a deletion's too; 0 before any).
    pub version: Timestamp,
    /// A write, or a linearizable read.
    pub write: bool,
}

/// Checks every key, and the order of all writes together.
pub fn check(spans: &[Span]) -> Verdict {
    let mut by_key: BTreeMap<&Bytes, Vec<&Span>> = BTreeMap::new();
    let mut written_from_us: HashMap<Timestamp, u64> = HashMap::new();
    for span in spans {
        if let Some(key) = &span.key {
            by_key.entry(key).or_default().push(span);
        }
        if span.write {
            written_from_us.insert(span.version, span.began_us);
        }
    }
    let of_a_key = |span: &&Span| span.key.is_some() && span.version > Timestamp::ZERO;
    for read in spans.iter().filter(|span| !span.write).filter(of_a_key) {
        let from_us = written_from_us.get(&read.version);
        ensure!(
            from_us.is_some_and(|from_us| read.ended_us.is_none_or(|end_us| *from_us <= end_us)),
            "{read:?} returned a version that nobody had begun to write"
        );
    }
    for spans in by_key.into_values() {
        sweep(spans)?;
    }
    sweep(spans.iter().filter(|span| span.write || span.key.is_none()).collect())
}

fn sweep(mut by_begin: Vec<&Span>) -> Verdict {
    let mut by_end: Vec<(u64, &Span)> =
        by_begin.iter().filter_map(|span| Some((span.ended_us?, *span))).collect();
    by_begin.sort_by_key(|span| span.began_us);
    by_end.sort_by_key(|(ended_us, _)| *ended_us);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<&Span> = None;
    for span in by_begin {
        while let Some((_, done)) = ended.next_if(|(ended_us, _)| *ended_us < span.began_us) {
            if newest.is_none_or(|newest| newest.version < done.version) {
                newest = Some(done);
            }
        }
        let Some(newest) = newest else { continue };
        let in_order = match span.write {
            true => newest.version < span.version,
            false => newest.version <= span.version,
        };
        ensure!(in_order, "{span:?} began after the end of {newest:?}, which stands after it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(began_us: u64, ended_us: u64, version: i64, write: bool) -> Span {
        let key = Some(Bytes::from_static(b"k"));
        Span { key, began_us, ended_us: Some(ended_us), version: Timestamp(version), write }
    }

    #[test]
    fn a_read_during_a_write_may_return_either_version() {
        for version in [0, 7] {
            check(&[span(10, 20, 7, true), span(12, 15, version, false)]).unwrap();
        }
    }

    #[test]
    fn a_stale_read_is_noticed() {
        assert!(check(&[span(10, 20, 7, true), span(21, 22, 0, false)]).is_err());
    }

    #[test]
    fn a_stale_read_of_the_whole_state_is_noticed() {
        let read = |version| Span { key: None, ..span(21, 22, version, false) };
        check(&[span(10, 20, 7, true), read(7)]).unwrap();
        check(&[span(10, 20, 7, true), read(9)]).unwrap();
        assert!(check(&[span(10, 20, 7, true), read(6)]).is_err());
    }

    #[test]
    fn reads_that_go_back_are_noticed_even_while_the_write_is_under_way() {
        let spans = [span(10, 90, 7, true), span(20, 30, 7, false), span(40, 50, 0, false)];
        assert!(check(&spans).is_err());
    }

    #[test]
    fn a_read_from_the_future_and_writes_against_real_time_are_noticed() {
        assert!(check(&[span(10, 20, 7, false), span(30, 40, 7, true)]).is_err());
        assert!(check(&[span(10, 20, 9, true), span(30, 40, 7, true)]).is_err());
    }
}
