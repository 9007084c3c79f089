//! The rows that an operation sees: those of a read view, or those of a view with the changes of an
//! unwritten batch.

use std::cell::Cell;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::engine::{
    Direction, EngineError, EngineView, RowValue, RowVisitor, ShowRow, SkippingVisitor, Steps,
    Visitor, WriteBatch, with_values,
};
use super::keys::{self, RowRange};

/// Rows that can be scanned in key order.
pub(super) trait Rows {
    /// Visits the rows of a range until the visitor breaks, and reads of long values only those
    /// that the visitor reads. A range that ends before it begins is empty.
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// Visits the rows of a range in ascending order, but those that the visitor skips.
    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError>;

    /// Shows the first row of a range in which newer rows sort first, unless it is empty
    /// ([`EngineView::newest`]).
    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError>;

    /// Visits the rows of a range with their whole values.
    fn scan(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        with_values(visit, |visit| self.scan_rows(range, direction, visit))
    }

    /// Visits the rows of a range in ascending order, with their whole values.
    fn visit(&self, range: &RowRange, visit: &mut Visitor<'_>) -> Result<(), EngineError> {
        self.scan(range, Direction::Forward, visit)
    }

    /// The value of a row.
    fn get(&self, row: &Bytes) -> Result<Option<Bytes>, EngineError> {
        let mut found = Ok(None);
        self.newest(&keys::only(row), &mut |_, value| {
            found = value.read().map(|value| Some(value.into_owned().into()));
        })?;
        found
    }

    /// The first row of a range.
    fn first(&self, range: &RowRange) -> Result<Option<(Bytes, Bytes)>, EngineError> {
        let mut found = None;
        self.visit(range, &mut |row, value| {
            found = Some((Bytes::copy_from_slice(row), Bytes::copy_from_slice(value)));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

/// The rows of a view.
pub(super) struct ViewRows<'a>(pub &'a dyn EngineView);

impl Rows for ViewRows<'_> {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan_rows(range, direction, visit)
    }

    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.0.scan_skipping(range, visit)
    }

    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError> {
        self.0.newest(range, show)
    }
}

/// What memory alone tells of the rows of a view, for threads that must not wait: everything else
/// fails with [`EngineError::NotInMemory`].
pub(super) struct RowsInMemory<'a>(pub &'a dyn EngineView);

impl Rows for RowsInMemory<'_> {
    fn scan_rows(
        &self,
        _: &RowRange,
        _: Direction,
        _: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        Err(EngineError::NotInMemory)
    }

    fn scan_skipping(&self, _: &RowRange, _: &mut SkippingVisitor<'_>) -> Result<(), EngineError> {
        Err(EngineError::NotInMemory)
    }

    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError> {
        self.0.newest_in_memory(range, &mut |key, value| match value {
            RowValue::Inline(_) => show(key, value),
            RowValue::OutOfLine { bytes, head, .. } => {
                let read = || Err(EngineError::NotInMemory);
                show(key, RowValue::OutOfLine { bytes, head, read: &read });
            }
        })
    }
}

/// The rows of a view with the changes of a batch. Each scan and each row that it comes to count as
/// steps, so that an operation that only reads is counted as well.
pub(super) struct Overlay<'a> {
    pub view: &'a dyn EngineView,
    pub batch: &'a WriteBatch,
    pub steps: &'a Steps,
}

impl Rows for Overlay<'_> {
    fn scan_rows(
        &self,
        range: &RowRange,
        direction: Direction,
        visit: &mut RowVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.steps.step();
        let mut changes = self.batch.range(range).inspect(|_| self.steps.step());
        let next = || match direction {
            Direction::Forward => changes.next(),
            Direction::Reverse => changes.next_back(),
        };
        let mut changed = std::iter::from_fn(next).peekable();
        let comes_first = |key: &[u8], row: &[u8]| match direction {
            Direction::Forward => key <= row,
            Direction::Reverse => key >= row,
        };
        let mut over = false;
        self.view.scan_rows(range, direction, &mut |row, value| {
            self.steps.step();
            // The batch's rows before this one, or instead of it, are visited first.
            while let Some((key, new)) = changed.next_if(|(key, _)| comes_first(key, row)) {
                let replaces = key[..] == *row;
                let flow =
                    new.map_or(ControlFlow::Continue(()), |new| visit(key, RowValue::Inline(new)));
                over = flow.is_break();
                if over || replaces {
                    return flow;
                }
            }
            let flow = visit(row, value);
            over = flow.is_break();
            flow
        })?;
        if over {
            return Ok(());
        }
        for (key, new) in changed {
            if let Some(new) = new
                && visit(key, RowValue::Inline(new)).is_break()
            {
                break;
            }
        }
        Ok(())
    }

    fn scan_skipping(
        &self,
        range: &RowRange,
        visit: &mut SkippingVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.steps.step();
        let mut changed = self.batch.range(range).inspect(|_| self.steps.step()).peekable();
        let (over, mut skip_to) = (Cell::new(false), Vec::new());
        let mut visit_unskipped = |key: &[u8], value: RowValue<'_>, skip_to: &mut Vec<u8>| {
            if *key < **skip_to {
                return ControlFlow::Continue(());
            }
            skip_to.clear();
            let flow = visit(key, value, skip_to);
            over.set(flow.is_break());
            flow
        };
        self.view.scan_skipping(range, &mut |row, value, skip_rows_to| {
            self.steps.step();
            // The batch's rows before this one, or instead of it, are visited first.
            let mut is_replaced = false;
            while let Some((key, new)) = changed.next_if(|(key, _)| ***key <= *row) {
                is_replaced = key[..] == *row;
                if let Some(new) = new {
                    visit_unskipped(key, RowValue::Inline(new), &mut skip_to)?;
                }
            }
            if !is_replaced {
                visit_unskipped(row, value, &mut skip_to)?;
            }
            skip_rows_to.extend_from_slice(&skip_to);
            ControlFlow::Continue(())
        })?;
        for (key, new) in changed {
            if over.get() {
                break;
            }
            if let Some(new) = new {
                let _ = visit_unskipped(key, RowValue::Inline(new), &mut skip_to);
            }
        }
        Ok(())
    }

    fn newest(&self, range: &RowRange, show: &mut ShowRow<'_>) -> Result<(), EngineError> {
        // The batch is newer than the view. So the view's first row comes after all that the batch
        // sets, and it may be one that the batch deletes.
        let deleted = match self.batch.range(range).next() {
            Some((key, Some(new))) => {
                self.steps.step();
                show(key, RowValue::Inline(new));
                return Ok(());
            }
            // There is no other row.
            Some((_, None)) if keys::single(range).is_some() => {
                self.steps.step();
                return Ok(());
            }
            deleted => deleted.map(|(key, _)| key),
        };
        self.steps.step();
        let mut is_decided = deleted.is_none();
        self.view.newest(range, &mut |key, value| {
            self.steps.step();
            if deleted.is_none_or(|deleted| *key < **deleted) {
                is_decided = true;
                show(key, value);
            }
        })?;
        if is_decided {
            return Ok(());
        }
        self.scan_rows(range, Direction::Forward, &mut |key, value| {
            show(key, value);
            ControlFlow::Break(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::engine::Engine;
    use crate::storage::memory::MemoryEngine;
    use crate::storage::tables::TableEngine;

    type Change = (u8, Option<u8>);

    fn batch(changes: &[Change]) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.put(vec![*key].into(), vec![*value].into()),
                None => batch.delete(vec![*key].into()),
            }
        }
        batch
    }

    /// The event loop asks, and once waited for the disk, where the removal of a range with long
    /// ends was just being taken away.
    #[test]
    fn what_memory_tells_of_a_long_value_is_its_length_alone() {
        let dir = tempfile::tempdir().unwrap();
        let engine = TableEngine::open_at(dir.path()).unwrap();
        let (row, value) = (Bytes::from_static(b"row"), Bytes::from(vec![7; 100_000]));
        let mut batch = WriteBatch::default();
        batch.put(row.clone(), value.clone());
        engine.write_durably(&batch).unwrap();
        let view = engine.view().unwrap();
        assert_eq!(ViewRows(&*view).get(&row).unwrap(), Some(value.clone()));
        let rows = RowsInMemory(&*view);
        let mut told = None;
        rows.newest(&keys::only(&row), &mut |_, found| told = Some(found.bytes())).unwrap();
        assert_eq!(told, Some(value.len()));
        assert!(matches!(rows.get(&row), Err(EngineError::NotInMemory)));
    }

    proptest! {
        #[test]
        fn an_overlay_shows_what_writing_the_batch_would(
            stored in prop::collection::vec((0..12u8, any::<u8>().prop_map(Some)), 0..12),
            changes in prop::collection::vec((0..12u8, any::<Option<u8>>()), 0..12),
            (start, end) in (0..13u8, 0..13u8),
            (stop_after, reverse) in (1..14usize, any::<bool>()),
        ) {
            let engine = MemoryEngine::new();
            engine.write(&batch(&stored)).unwrap();
            let mut model: BTreeMap<u8, u8> =
                stored.iter().filter_map(|(key, value)| Some((*key, (*value)?))).collect();
            for (key, value) in &changes {
                match value {
                    Some(value) => model.insert(*key, *value),
                    None => model.remove(key),
                };
            }
            let mut expected: Vec<_> =
                model.into_iter().filter(|(key, _)| (start..end).contains(key)).collect();
            let first_expected = expected.first().copied();
            let direction = if reverse { Direction::Reverse } else { Direction::Forward };
            if reverse {
                expected.reverse();
            }
            expected.truncate(stop_after);
            let (view, batch) = (engine.view().unwrap(), batch(&changes));
            let mut found = Vec::new();
            let range = RowRange { start: vec![start].into(), end: vec![end].into() };
            let steps = Steps::default();
            let overlay = Overlay { view: &*view, batch: &batch, steps: &steps };
            overlay.scan(&range, direction, &mut |key, value| {
                found.push((key[0], value[0]));
                match found.len() == stop_after {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            }).unwrap();
            prop_assert_eq!(&found, &expected);
            prop_assert!(steps.count() > found.len() as u64, "a scan that finds nothing is work");
            // Rows are skipped as far as their own values say, also to rows before them.
            let skipping = |rows: &dyn Rows| {
                let mut found = Vec::new();
                rows.scan_skipping(&range, &mut |key, value, skip_to| {
                    let value = value.read().unwrap()[0];
                    found.push((key[0], value));
                    if value % 3 > 0 {
                        skip_to.push(key[0].saturating_add(value % 8).saturating_sub(2));
                    }
                    match found.len() == stop_after {
                        true => ControlFlow::Break(()),
                        false => ControlFlow::Continue(()),
                    }
                }).unwrap();
                found
            };
            let shown = skipping(&overlay);
            engine.write(overlay.batch).unwrap();
            let written = engine.view().unwrap();
            prop_assert_eq!(shown, skipping(&ViewRows(&*written)));
            let first = overlay.first(&range).unwrap().map(|(key, value)| (key[0], value[0]));
            prop_assert_eq!(first, first_expected);
        }
    }
}
