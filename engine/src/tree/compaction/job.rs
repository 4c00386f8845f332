//! A merge on its way: reads its inputs in one stream, in steps, and writes what stays to new tables.
//!
//! The history floor is fixed when the job starts. Owns: the count that proves that nothing went missing. Never:
//! the manifest, wall clocks, the block cache, or more memory than a read-ahead per input, the blocks that are
//! built, and the packed commit times above the floor.

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
use crate::table::superseded::Superseded;
use crate::table::times::Times;
use crate::table::{Bounds, EntryRef, RangeDelete};
use crate::tree::Tree;
use crate::tree::merge::{LevelCursor, Merge, Source};
use crate::tree::version::{HISTORY, Version};

use super::outputs::Outputs;
use super::rule::{Dropped, Fate, KeySpans, Reason, Rule};
use super::shape::Candidate;

/// Entries between two looks at how much was done.
const ENTRIES: u32 = 64;
/// Commit times of one history table, in bytes.
const TIMES_BYTES: usize = 8 << 20;

#[derive(Debug)]
enum Kind {
    Main(Rule),
    /// Of history tables: what is superseded at or below this is dropped.
    History(Lsn),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) inputs: Vec<Arc<Table>>,
    pub(super) floor: (Lsn, CommitTs),
    pub(super) outputs: Outputs,
    pub(super) dropped: Dropped,
    /// When it began, by the monotonic clock, and how many bytes of level 0 it brings down.
    pub(super) begun: Duration,
    pub(super) level0_bytes: u64,
    /// Bytes of keys and values merged so far.
    pub(super) processed: u64,
    kind: Kind,
    merge: Merge,
    /// Range deletes that have still something to hide.
    ranges: Vec<RangeDelete>,
    read: u64,
}

impl Job {
    /// Merges the tables `ids` into `level`.
    pub(super) fn new(tree: &Tree, version: &Version, ids: &[u128], level: u8, floor: (Lsn, CommitTs)) -> Self {
        let inputs: Vec<Arc<Table>> = version.all_tables().filter(|t| ids.contains(&t.id())).cloned().collect();
        let max_ts = inputs.iter().map(|t| t.properties().max_ts).max().unwrap_or_default();
        let (kind, ranges) = if level == HISTORY {
            (Kind::History(floor.0), Vec::new())
        } else {
            let rule = Rule::new(Arc::clone(&version.ranges), floor, below(version, usize::from(level), ids));
            (Kind::Main(rule), ranges_left(version, &inputs, floor.0))
        };
        let merge = merge(version, ids);
        let [level0, ..] = &version.levels;
        let from_level0 = level0.iter().filter(|t| ids.contains(&t.id()) && level > 0);
        let level0_bytes = from_level0.map(|t| t.properties().raw_bytes).sum();
        let begun = tree.env.clock.monotonic();
        let outputs = Outputs::new(tree, Origin::Compaction, level, max_ts);
        Self {
            inputs,
            floor,
            outputs,
            dropped: Dropped::default(),
            begun,
            level0_bytes,
            processed: 0,
            kind,
            merge,
            ranges,
            read: 0,
        }
    }

    /// Bytes of all inputs.
    pub(super) fn input_bytes(&self) -> u64 {
        self.inputs.iter().map(|t| t.bytes()).sum()
    }

    /// Most bytes that the outputs may still take.
    pub(super) fn bytes_left(&self) -> u64 {
        self.input_bytes().saturating_sub(self.outputs.written_bytes())
    }

    /// Merges about so many bytes; true when all is merged and the outputs are durable.
    pub(super) fn step(&mut self, bytes: usize) -> Result<bool> {
        let end = self.processed.saturating_add(bytes as u64);
        loop {
            for _ in 0..ENTRIES {
                if !self.merge.advance()? {
                    self.finish()?;
                    return Ok(true);
                }
                let Some(entry) = self.merge.entry() else { continue };
                self.read += 1;
                self.processed += (entry.key.len() + entry.value.map_or(0, <[u8]>::len)) as u64;
                match fate(&mut self.kind, entry)? {
                    (Fate::Keep, true) => self.outputs.add(entry)?,
                    (Fate::Keep, false) => self.outputs.add_history(entry)?,
                    (Fate::Superseded(by), _) => self.outputs.add_superseded(entry, by)?,
                    (Fate::Drop(why), _) => {
                        if let Some(count) = self.dropped.get_mut(why as usize) {
                            *count += 1;
                        }
                    }
                }
            }
            if self.processed >= end {
                return Ok(false);
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        self.outputs.finish_main(&self.ranges, &Times::default())?;
        self.keep_times()?;
        self.outputs.sync()?;
        let expected: u64 = self.inputs.iter().map(|t| t.properties().entries).sum();
        let (written, dropped) = (self.outputs.entries(), self.dropped.iter().sum::<u64>());
        if self.read == expected && written + dropped == expected {
            return Ok(());
        }
        let read = self.read;
        let what = format!(
            "compaction lost count: {expected} entries expected, {read} read, {written} written, {dropped} dropped"
        );
        let path = self.inputs.first().map(|t| t.path().to_owned()).unwrap_or_default();
        Err(Error::corruption(&path, 0, None, what))
    }

    /// The commit times above the floor, of all inputs, go into history tables: in the main tables every later merge
    /// would write those of the whole history window again.
    fn keep_times(&mut self) -> Result<()> {
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
                    self.outputs.finish_history(&std::mem::take(&mut kept))?;
                }
            }
        }
        self.outputs.finish_history(&kept)
    }
}

/// What becomes of an entry, and whether it is one of the main tables.
fn fate(kind: &mut Kind, entry: EntryRef<'_>) -> Result<(Fate, bool)> {
    match kind {
        Kind::Main(rule) => Ok((rule.judge(entry)?, true)),
        Kind::History(floor) => {
            let by = Superseded::decode(entry.value.unwrap_or_default())?.by;
            Ok((if by <= *floor { Fate::Drop(Reason::History) } else { Fate::Keep }, false))
        }
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

fn merge(version: &Version, ids: &[u128]) -> Merge {
    let picked = |tables: &[Arc<Table>]| tables.iter().filter(|t| ids.contains(&t.id())).cloned().collect::<Vec<_>>();
    let cursor = |t: Arc<Table>| TableCursor::new(t, Bounds::all(), false, Caching::Bypass);
    let [level0, sorted @ ..] = &version.levels;
    let alone = picked(level0).into_iter().chain(picked(&version.history));
    let mut sources: Vec<Source> = alone.map(|t| Source::Table(cursor(t))).collect();
    for tables in sorted.iter().map(|l| picked(l)).filter(|t| !t.is_empty()) {
        sources.push(Source::Level(LevelCursor::new(&Arc::new(tables), Bounds::all(), false, Caching::Bypass)));
    }
    Merge::new(sources, false)
}
