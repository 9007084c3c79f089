//! Which step the background takes next, from sizes alone. Pure.
//!
//! Rule: seals are moved first, since they are what memory waits for. Then runs are merged that are
//! neighbours in time, by *size class*: a class holds sizes up to `fan` times those of the class
//! below, and the lowest ends where less is not worth a run of its own. A run counts as at least as
//! large as every newer one, so classes only grow from the newest run to the oldest, and the runs
//! of a class are neighbours. When a class has `fan` runs, these become one.
//!
//! So there are at most `fan - 1` runs a class when nothing is left to do, whatever the sizes of
//! the seals were. If each run counted with its own size, small runs between large ones would never
//! be merged. A row is written about once a class.
//!
//! A merge writes a stretch of keys at a time (`background`), and after each stretch this decides
//! anew. The runs of a merge that is not finished count as one run of their size. So a large merge
//! does not keep newer, smaller runs from being merged, and goes on when none of them is due.
//!
//! Reads look into every run, so there is a bound: with [`RUNS_MAX`] of them, seals wait, and fewer
//! runs of a class than `fan` are merged, as many as there are.
//!
//! A marker of a deleted row goes only with the oldest run, below which there is nothing that it
//! could hide. It cannot go together with the state that it hides, as two runs that are merged may
//! hold the marker and the newer of two states: without the marker, the older one would show again.
//! When an eighth of all rows are markers, so that a quarter may be dead, all runs become one.
//!
//! Values in segments die when merges drop their rows. Few markers may hide most of the bytes, so
//! all runs become one also when the values that they hide are a quarter of the bytes of the store.
//! When another quarter are dead values, in segments of which less than half is live, the runs that
//! refer to these are merged, which writes the live ones anew.

use std::ops::Range;

/// With so many runs, seals wait for merges: each run costs a search a look at its filter, and a
/// scan a cursor. A store of a hundred gigabytes has as many when its merges keep up.
pub(super) const RUNS_MAX: usize = 24;
/// All runs become one when one of so many rows is a marker.
const DELETED_SHARE: u64 = 8;
/// All runs become one when one of so many bytes is of a value that a newer run hides.
const REMOVED_VALUES_SHARE: u64 = 4;
/// Values are written anew when one of so many bytes is of a dead one.
const DEAD_VALUES_SHARE: u64 = 4;

/// How sizes of runs are classed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SizeClasses {
    /// How much larger the runs of a class are than those of the one below, and how many runs of a
    /// class become one.
    pub fan: usize,
    /// The size up to which a run is of the lowest class.
    pub lowest_bytes: u64,
}

impl SizeClasses {
    fn of(self, bytes: u64) -> u32 {
        let (mut class, mut class_bytes) = (0, self.lowest_bytes.max(1));
        while bytes > class_bytes {
            class += 1;
            class_bytes = class_bytes.saturating_mul(self.fan as u64);
        }
        class
    }
}

/// The size of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RunSize {
    pub bytes: u64,
    /// The number of rows, deleted ones included.
    pub rows: u64,
    pub deleted_rows: u64,
    /// It is being merged, and the newer runs up to the first that is not have the outcome so far.
    pub is_merging: bool,
    /// It refers to segments of which less than half is live.
    pub has_sparse_values: bool,
}

/// The sizes of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StoreSizes {
    /// Seals that are in memory.
    pub seals: usize,
    /// Those on the disk, the newest first.
    pub runs: Vec<RunSize>,
    /// The bytes of all value segments.
    pub value_bytes: u64,
    /// Those of them to which rows refer that newer runs hide.
    pub removed_value_bytes: u64,
    /// Bytes to which nothing refers, in segments of which less than half is live.
    pub dead_value_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BackgroundStep {
    /// Moves the oldest seal to the disk.
    Move,
    /// Merges these runs, counted from the newest, or a stretch of them: the next one if they are
    /// an outcome and what is left to merge.
    Merge(Range<usize>),
}

/// A run, or the runs of a merge that is not finished.
struct Unit {
    runs: Range<usize>,
    bytes: u64,
}

fn units(runs: &[RunSize]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        match units.last_mut() {
            Some(unit) if run.is_merging => {
                unit.runs.end = at + 1;
                unit.bytes += run.bytes;
            }
            _ => units.push(Unit { runs: at..at + 1, bytes: run.bytes }),
        }
    }
    units
}

/// The next step; `None` if there is nothing to do.
pub(super) fn next_step(sizes: &StoreSizes, classes: SizeClasses) -> Option<BackgroundStep> {
    let SizeClasses { fan, .. } = classes;
    assert!(fan >= 2, "runs are merged {fan} at a time");
    let units = units(&sizes.runs);
    let is_crowded = units.len() >= RUNS_MAX;
    if sizes.seals > 0 && !is_crowded {
        return Some(BackgroundStep::Move);
    }
    // There are far fewer classes than runs then, so that one of them has several.
    let counts = if is_crowded { &[fan, fan.div_ceil(2), 2][..] } else { &[fan][..] };
    let due = counts.iter().find_map(|count| full_class(&units, classes, *count));
    let merge = match due {
        Some(due) => unfinished(&units[..due.end]).or_else(|| span(&units[due])),
        None => unfinished(&units)
            .or_else(|| wants_reclaiming(sizes).then_some(0..sizes.runs.len()))
            .or_else(|| with_dead_values(sizes)),
    };
    merge.map(BackgroundStep::Merge)
}

/// The units of the newest class that has so many of them.
fn full_class(units: &[Unit], classes: SizeClasses, count: usize) -> Option<Range<usize>> {
    let (mut start, mut class) = (0, 0);
    for (at, unit) in units.iter().enumerate() {
        let own = classes.of(unit.bytes);
        if own > class {
            if at - start >= count {
                return Some(start..at);
            }
            (start, class) = (at, own);
        }
    }
    (units.len() - start >= count).then_some(start..units.len())
}

/// The runs of the newest merge that is not finished.
fn unfinished(units: &[Unit]) -> Option<Range<usize>> {
    let unit = units.iter().find(|unit| unit.runs.len() > 1)?;
    Some(unit.runs.clone())
}

fn span(units: &[Unit]) -> Option<Range<usize>> {
    Some(units.first()?.runs.start..units.last()?.runs.end)
}

impl StoreSizes {
    fn bytes(&self) -> u64 {
        self.value_bytes + self.runs.iter().map(|run| run.bytes).sum::<u64>()
    }
}

/// Whether some bytes are so large a part of all.
fn is_share(bytes: u64, of_all: u64, share: u64) -> bool {
    bytes > 0 && bytes >= of_all / share
}

fn wants_reclaiming(sizes: &StoreSizes) -> bool {
    let rows: u64 = sizes.runs.iter().map(|run| run.rows).sum();
    let deleted_rows: u64 = sizes.runs.iter().map(|run| run.deleted_rows).sum();
    is_share(deleted_rows, rows, DELETED_SHARE)
        || is_share(sizes.removed_value_bytes, sizes.bytes(), REMOVED_VALUES_SHARE)
}

/// The runs to merge so that live values leave the segments that are mostly dead.
fn with_dead_values(sizes: &StoreSizes) -> Option<Range<usize>> {
    if !is_share(sizes.dead_value_bytes, sizes.bytes(), DEAD_VALUES_SHARE) {
        return None;
    }
    let runs = &sizes.runs;
    let first = runs.iter().position(|run| run.has_sparse_values)?;
    let last = runs.iter().rposition(|run| run.has_sparse_values)?;
    Some(first..last + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classes(fan: usize) -> SizeClasses {
        SizeClasses { fan, lowest_bytes: 64 * 1024 }
    }

    fn of_bytes(bytes: u64) -> RunSize {
        RunSize { bytes, rows: bytes / 100 + 1, ..RunSize::default() }
    }

    fn step(seals: usize, runs: &[RunSize], fan: usize) -> Option<BackgroundStep> {
        let sizes = StoreSizes { seals, runs: runs.to_vec(), ..StoreSizes::default() };
        next_step(&sizes, classes(fan))
    }

    /// Merges until nothing is due, or for so many stretches. A stretch moves so many bytes of each
    /// run that is merged to the outcome.
    fn settle(
        runs: &mut Vec<RunSize>,
        fan: usize,
        (stretch, stretches): (u64, usize),
    ) -> (u64, usize) {
        let (mut written, mut merges) = (0, 0);
        for _ in 0..stretches {
            let Some(step) = step(0, runs, fan) else { break };
            let BackgroundStep::Merge(merged) = step else { panic!("there are no seals") };
            let is_begun = runs.get(merged.start + 1).is_some_and(|run| run.is_merging);
            let mut inputs = runs[merged.clone()].to_vec();
            let outcome = if is_begun { inputs.remove(0).bytes } else { 0 };
            assert!(merged.len() >= 2 || inputs[0].deleted_rows > 0);
            assert!(inputs.iter().all(|run| run.is_merging == is_begun), "a part of a merge");
            let moved: u64 = inputs.iter().map(|run| run.bytes.min(stretch)).sum();
            inputs.retain(|run| run.bytes > stretch);
            for run in &mut inputs {
                *run = RunSize { is_merging: true, ..of_bytes(run.bytes - stretch) };
            }
            merges += usize::from(inputs.is_empty());
            runs.splice(merged, [of_bytes(outcome + moved)].into_iter().chain(inputs));
            written += moved;
        }
        (written, merges)
    }

    proptest! {
        #[test]
        fn few_runs_are_left_whatever_the_sizes_of_seals(
            seals in prop::collection::vec(
                prop_oneof![1..1000u64, 60_000..70_000u64, 1_000_000..16_000_000u64],
                1..300,
            ),
            fan in 2..9usize,
            stretch in prop_oneof![Just(u64::MAX), 1_000_000..8_000_000u64],
        ) {
            let mut runs = Vec::new();
            for bytes in &seals {
                runs.insert(0, of_bytes(*bytes));
                settle(&mut runs, fan, (stretch, 10_000));
                prop_assert_eq!(step(0, &runs, fan), None, "merging comes to an end");
                let most = classes(fan).of(seals.iter().sum()) as usize + 1;
                prop_assert!(runs.len() <= (fan - 1) * most, "{} runs", runs.len());
            }
        }

        /// With a stretch of merging for each seal, no seal waits long, and the outcome of a large
        /// merge comes in between.
        #[test]
        fn seals_wait_for_few_stretches_and_runs_stay_bounded(
            seals in prop::collection::vec(prop_oneof![Just(8 << 20), 1..9_000_000u64], 300),
            fan in 4..9usize,
        ) {
            let (mut runs, stretch) = (Vec::new(), 64 << 20);
            let mut waited = 0;
            for bytes in seals {
                let mut stretches = 0;
                while step(1, &runs, fan) != Some(BackgroundStep::Move) {
                    settle(&mut runs, fan, (stretch, 1));
                    stretches += 1;
                    prop_assert!(stretches < 20, "a seal waits for {stretches} stretches");
                }
                waited += stretches;
                runs.insert(0, of_bytes(bytes));
                settle(&mut runs, fan, (stretch, 1));
                prop_assert!(units(&runs).len() <= RUNS_MAX);
                prop_assert!(runs.len() <= 2 * RUNS_MAX, "{} runs", runs.len());
            }
            prop_assert!(waited < 100, "{waited}");
        }
    }

    /// As in an hour of writes: seals of one size.
    #[test]
    fn a_byte_is_merged_about_once_a_class() {
        let (fan, seal_bytes, seals) = (8, 8 << 20, 512);
        let (mut runs, mut written) = (Vec::new(), 0);
        for _ in 0..seals {
            runs.insert(0, of_bytes(seal_bytes));
            written += settle(&mut runs, fan, (64 << 20, 10_000)).0;
        }
        assert!(written <= 3 * seals * seal_bytes, "{} times", written / (seals * seal_bytes));
    }

    #[test]
    fn seals_come_first_and_markers_are_reclaimed() {
        let run =
            |rows, deleted_rows| RunSize { bytes: 1 << 20, rows, deleted_rows, ..of_bytes(0) };
        assert_eq!(step(1, &[], 4), Some(BackgroundStep::Move));
        assert_eq!(step(0, &[], 4), None);
        assert_eq!(step(0, &[run(80, 9), run(100, 0)], 4), None);
        let all = step(0, &[run(80, 30), run(100, 0)], 4);
        assert_eq!(all, Some(BackgroundStep::Merge(0..2)));
        assert_eq!(step(0, &[run(1, 0)], 4), None);
    }

    #[test]
    fn seals_wait_while_there_are_too_many_runs() {
        // Of sizes so different that no class is full.
        let mut runs: Vec<RunSize> =
            (0..RUNS_MAX as u32).map(|at| of_bytes(1 << (10 + at))).collect();
        assert_eq!(step(1, &runs[1..], 8), Some(BackgroundStep::Move));
        let Some(BackgroundStep::Merge(merged)) = step(1, &runs, 8) else { panic!("it waits") };
        assert!(merged.start == 0 && merged.len() >= 4, "{merged:?}");
        runs.splice(merged.clone(), [of_bytes(1 << (10 + merged.end))]);
        assert_eq!(step(1, &runs, 8), Some(BackgroundStep::Move));
    }

    #[test]
    fn a_class_is_a_stretch_of_neighbours_up_to_a_larger_run() {
        let sizes = |bytes: &[u64]| bytes.iter().map(|bytes| of_bytes(*bytes)).collect::<Vec<_>>();
        let step = |bytes: &[u64]| step(0, &sizes(bytes), 3);
        let large = 1 << 20;
        assert_eq!(step(&[1, 1, large, large]), None);
        assert_eq!(step(&[1, 1, 1, large]), Some(BackgroundStep::Merge(0..3)));
        assert_eq!(step(&[1, large, 1, 1]), Some(BackgroundStep::Merge(1..4)));
    }

    #[test]
    fn a_merge_that_was_begun_gives_way_to_newer_runs_and_no_others() {
        let small = of_bytes(1);
        let merging = RunSize { is_merging: true, ..of_bytes(1 << 20) };
        let begun = [of_bytes(1 << 10), merging, merging];
        let older = [of_bytes(1 << 26); 3];
        let with = |newer: &[RunSize]| [newer, &begun, &older].concat();
        assert_eq!(step(0, &with(&[small; 2]), 3), Some(BackgroundStep::Merge(2..5)));
        assert_eq!(step(0, &with(&[small; 3]), 3), Some(BackgroundStep::Merge(0..3)));
        // The class that it is in is full.
        let others = [of_bytes(1 << 21); 2];
        assert_eq!(step(0, &with(&others), 3), Some(BackgroundStep::Merge(2..5)));
    }

    #[test]
    fn dead_values_are_left_behind_when_they_are_a_quarter_of_all() {
        let run = |has_sparse_values| RunSize { has_sparse_values, ..of_bytes(1000) };
        let step = |dead_value_bytes| {
            let runs = [false, true, false, true, false].map(run).to_vec();
            let sizes =
                StoreSizes { runs, value_bytes: 5000, dead_value_bytes, ..StoreSizes::default() };
            next_step(&sizes, classes(8))
        };
        assert_eq!((step(0), step(2499)), (None, None));
        assert_eq!(step(2500), Some(BackgroundStep::Merge(1..4)));
    }

    #[test]
    fn all_runs_become_one_when_they_hide_a_quarter_of_all_bytes() {
        let runs = [of_bytes(1000), of_bytes(1000), of_bytes(3000)].to_vec();
        let step = |removed_value_bytes| {
            let (runs, value_bytes) = (runs.clone(), 5000);
            let sizes =
                StoreSizes { runs, value_bytes, removed_value_bytes, ..StoreSizes::default() };
            next_step(&sizes, classes(8))
        };
        assert_eq!((step(0), step(2499)), (None, None));
        assert_eq!(step(2500), Some(BackgroundStep::Merge(0..3)));
    }
}
