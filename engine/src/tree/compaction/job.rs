//! A merge on its way: its inputs in one order, cut by key into parts that may be merged at the same time.
//!
//! The history floor is fixed when the job starts. Owns: the cut, what stands in no part (range deletes, commit times),
//! and the count that proves that nothing went missing. Never: the manifest, wall clocks, the block cache, or more memory
//! than its parts and the packed commit times above the floor.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::lsn::{CommitTs, Lsn};
use crate::table::cursor::TableCursor;
use crate::table::format::Origin;
use crate::table::reader::{Caching, Table};
use crate::table::run::RUN_BYTES;
use crate::table::times::Times;
use crate::table::{Bounds, RangeDelete};
use crate::tree::Tree;
use crate::tree::merge::{LevelCursor, Merge, Source};
use crate::tree::version::{HISTORY, Version};

use super::choose::HISTORY_SMALL_BYTES;
use super::outputs::Outputs;
use super::part::{Kind, Part, cut};
use super::rule::{KeySpans, Rule};
use super::shape::Candidate;

/// Commit times of one history table, in bytes.
const TIMES_BYTES: usize = 8 << 20;
/// Keys of the inputs that are looked at to cut a merge into parts of about the same size.
const SAMPLES: u64 = 256;
/// What parts read ahead takes at most this part of the memory limit, half of what is left for such work; or so much.
const MEMORY_PART: u64 = 16;
const AHEAD_LEAST: u64 = 4 << 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) inputs: Vec<Arc<Table>>,
    pub(super) floor: (Lsn, CommitTs),
    pub(super) level: u8,
    /// When it began, by the monotonic clock, and how many bytes of level 0 it brings down.
    pub(super) begun: Duration,
    pub(super) level0_bytes: u64,
    /// Range deletes that have still something to hide.
    ranges: Vec<RangeDelete>,
}

impl Job {
    /// Merges the tables `ids` into `level`: the job and its parts.
    pub(super) fn new(
        tree: &Tree,
        version: &Version,
        ids: &[u128],
        level: u8,
        floor: (Lsn, CommitTs),
    ) -> (Self, Vec<Part>) {
        let inputs: Vec<Arc<Table>> = version.all_tables().filter(|t| ids.contains(&t.id())).cloned().collect();
        let max_ts = inputs.iter().map(|t| t.properties().max_ts).max().unwrap_or_default();
        let ranges = if level == HISTORY { Vec::new() } else { ranges_left(version, &inputs, floor.0) };
        let [level0, ..] = &version.levels;
        let from_level0 = level0.iter().filter(|t| ids.contains(&t.id()) && level > 0);
        let level0_bytes = from_level0.map(|t| t.properties().raw_bytes).sum();
        let part = |(number, bounds): (usize, Arc<Bounds>)| {
            let kind = if level == HISTORY {
                Kind::History(floor.0)
            } else {
                Kind::Main(Rule::new(Arc::clone(&version.ranges), floor, below(version, usize::from(level), ids)))
            };
            let outputs = Outputs::new(tree, Origin::Compaction, level, max_ts);
            Part::new(number, kind, merge(version, ids, &bounds), outputs, !ranges.is_empty())
        };
        let parts = parts_of(tree, &inputs, level).into_iter().enumerate().map(part).collect();
        let begun = tree.env.clock.monotonic();
        (Self { inputs, floor, level, begun, level0_bytes, ranges }, parts)
    }

    /// Bytes of all inputs.
    pub(super) fn input_bytes(&self) -> u64 {
        self.inputs.iter().map(|t| t.bytes()).sum()
    }

    /// All parts are merged: range deletes and commit times follow, then the outputs are durable.
    pub(super) fn finish(&self, parts: &mut [Part]) -> Result<()> {
        if !self.ranges.is_empty() {
            // A table of range deletes alone is made only where there is no other.
            let last = parts.iter().rposition(|p| p.outputs.has_open_main()).unwrap_or_default();
            for (n, part) in parts.iter_mut().enumerate() {
                part.outputs.finish_main(if n == last { &self.ranges } else { &[] }, &Times::default())?;
            }
        }
        if let Some((first, others)) = parts.split_first_mut() {
            for part in others {
                part.outputs.finish_history(&Times::default())?;
            }
            self.keep_times(&mut first.outputs)?;
            first.outputs.sync()?;
        }
        let expected: u64 = self.inputs.iter().map(|t| t.properties().entries).sum();
        let read: u64 = parts.iter().map(|p| p.read).sum();
        let written: u64 = parts.iter().map(|p| p.outputs.entries()).sum();
        let dropped: u64 = parts.iter().flat_map(|p| &p.dropped).sum();
        if read == expected && written + dropped == expected {
            return Ok(());
        }
        let what = format!(
            "compaction lost count: {expected} entries expected, {read} read, {written} written, {dropped} dropped"
        );
        let path = self.inputs.first().map(|t| t.path().to_owned()).unwrap_or_default();
        Err(Error::corruption(&path, 0, None, what))
    }

    /// The commit times above the floor, of all inputs, go into history tables: in the main tables every later merge
    /// would write those of the whole history window again.
    fn keep_times(&self, outputs: &mut Outputs) -> Result<()> {
        let span = |t: &Arc<Table>| (t.properties().first_time.0, t.properties().last_time.0);
        let mut inputs: Vec<_> = self.inputs.iter().filter(|t| span(t).1 > self.floor.0).cloned().collect();
        inputs.sort_by_key(span);
        let mut kept = Times::default();
        // Mostly each has a stretch of its own: only the times of those that overlap are in memory together.
        while let Some((_, mut end)) = inputs.first().map(span) {
            let mut together = 1;
            while let Some((_, last)) = inputs.get(together).map(span).filter(|(first, _)| *first <= end) {
                (together, end) = (together + 1, end.max(last));
            }
            let times = inputs.drain(..together).map(|t| t.times()).collect::<Result<Vec<_>>>()?;
            let mut above: Vec<_> = times.iter().map(|t| t.iter().filter(|(l, _)| *l > self.floor.0)).collect();
            let firsts = above.iter_mut().enumerate().filter_map(|(n, pairs)| Some(Reverse((pairs.next()?, n))));
            let mut heads: BinaryHeap<_> = firsts.collect();
            while let Some(mut first) = heads.peek_mut() {
                let Reverse(((lsn, ts), n)) = *first;
                kept.push(lsn, ts)?;
                match above.get_mut(n).and_then(Iterator::next) {
                    Some(pair) => *first = Reverse((pair, n)),
                    None => _ = PeekMut::pop(first),
                }
                if kept.as_bytes().len() >= TIMES_BYTES {
                    outputs.finish_history(&std::mem::take(&mut kept))?;
                }
            }
        }
        outputs.finish_history(&kept)
    }
}

/// The key spans of the tables below an output at `level` that is made of the tables `ids`: of the deeper levels,
/// and of those tables of level 0 that stay beside the output. A flush is at level 0 and made of no table.
pub(in crate::tree) fn below(version: &Version, level: usize, ids: &[u128]) -> Vec<KeySpans> {
    let keys = |t: &Arc<Table>| {
        let p = t.properties();
        (p.entries > 0).then(|| (p.min_key.clone(), p.max_key.clone()))
    };
    let [level0, ..] = &version.levels;
    let beside = level0.iter().filter(|t| level == 0 && !ids.contains(&t.id())).filter_map(keys).map(|span| vec![span]);
    let deeper = version.levels.iter().skip(level + 1).filter(|tables| !tables.is_empty());
    beside.chain(deeper.map(|tables| tables.iter().filter_map(keys).collect())).collect()
}

/// The inputs' range deletes but for those at or below the floor that hide nothing outside of the inputs.
fn ranges_left(version: &Version, inputs: &[Arc<Table>], floor: Lsn) -> Vec<RangeDelete> {
    let all = inputs.iter().flat_map(|t| t.ranges());
    if inputs.iter().all(|t| t.ranges().is_empty()) {
        return Vec::new();
    }
    let is_input = |t: &&Arc<Table>| inputs.iter().any(|i| i.id() == t.id());
    let others: Vec<Candidate> = version.tables().filter(|t| !is_input(t)).map(Candidate::of).collect();
    all.filter(|r| r.lsn > floor || others.iter().any(|t| t.touched_by(r))).cloned().collect()
}

/// The stretches of keys that are merged beside one another: as many as threads merge, if each has enough to do. An
/// output of level 0 stays one table.
fn parts_of(tree: &Tree, inputs: &[Arc<Table>], level: u8) -> Vec<Arc<Bounds>> {
    let bytes: u64 = inputs.iter().map(|t| t.bytes()).sum();
    // Outputs that count as small would be merged again at once.
    let least =
        if level == HISTORY { tree.options.table_bytes.max(HISTORY_SMALL_BYTES) } else { tree.options.table_bytes };
    let enough = bytes / least.max(1);
    // Each part reads ahead in each input.
    let ahead: u64 = inputs.iter().map(|t| t.bytes().min(RUN_BYTES)).sum();
    let at_once = (tree.options.memory_limit / MEMORY_PART).max(AHEAD_LEAST) / ahead.max(1);
    let parts = usize::try_from(enough.min(at_once)).unwrap_or(usize::MAX).min(tree.options.merge_threads);
    if level == 0 || parts < 2 {
        return vec![Bounds::all()];
    }
    let samples = inputs.iter().map(|t| {
        let count = t.bytes().saturating_mul(SAMPLES) / bytes.max(1);
        t.sample_keys(usize::try_from(count).unwrap_or_default() + 1)
    });
    // What keeps it from being read here the merge will meet as well, and name.
    samples.collect::<Result<Vec<_>>>().map_or_else(|_| vec![Bounds::all()], |s| cut(s.concat(), parts))
}

fn merge(version: &Version, ids: &[u128], bounds: &Arc<Bounds>) -> Merge {
    let picked = |tables: &[Arc<Table>]| tables.iter().filter(|t| ids.contains(&t.id())).cloned().collect::<Vec<_>>();
    let cursor = |t: Arc<Table>| TableCursor::new(t, Arc::clone(bounds), false, Caching::Bypass);
    let [level0, sorted @ ..] = &version.levels;
    let alone = picked(level0).into_iter().chain(picked(&version.history));
    let mut sources: Vec<Source> = alone.map(|t| Source::Table(cursor(t))).collect();
    for tables in sorted.iter().map(|l| picked(l)).filter(|t| !t.is_empty()) {
        sources.push(Source::Level(LevelCursor::new(&Arc::new(tables), Arc::clone(bounds), false, Caching::Bypass)));
    }
    Merge::new(sources, false)
}
