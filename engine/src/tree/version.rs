//! One state of the tree: its memtables and tables. Immutable but for entries that are added to
//! the active memtable above the LSN of every view.
//!
//! Owns: the order in which parts are asked. Never: changing a version; flush and compaction
//! install another one.

use std::sync::Arc;

use crate::error::Result;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::table::cache::BlockCache;
use crate::table::cursor::TableCursor;
use crate::table::filter::{Probe, key_hash};
use crate::table::reader::{Caching, Table};
use crate::table::{Asked, Bounds, Hit, key_head};

use super::ingest::Arriving;
use super::memtable::{Memtable, MemtableCursor};
use super::merge::{HistoryCursor, LevelCursor, Merge, Source};
use super::range_index::RangeIndex;

/// Levels of tables: level 0 holds what was flushed, its tables overlap; those of each other level do not.
pub(crate) const LEVELS: usize = 7;
/// The deepest level.
pub(crate) const LAST_LEVEL: u8 = LEVELS as u8 - 1;
/// Filters of level 0 that are asked together.
const TOGETHER: usize = 8;
/// Where a manifest places history tables.
pub(crate) const HISTORY: u8 = LEVELS as u8;

/// A memtable that takes no more records.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) memtable: Arc<Memtable>,
    /// Tables that its last record brought in: above all of its entries. Its flush gives them a level.
    pub(crate) over: Arc<Arriving>,
}

#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) frozen: Vec<Frozen>,
    /// `levels[0]`: newest first. Others: sorted by key, not overlapping; tables without entries in front.
    /// Shared with the scans that walk them and with the versions that did not change them.
    pub(crate) levels: [Arc<Vec<Arc<Table>>>; LEVELS],
    /// Of each level but the first the heads of its tables' last keys, as [`key_head`] gives them: a get finds its table
    /// without a look at others.
    ends: [Arc<Vec<u128>>; LEVELS],
    /// Versions that newer ones superseded; only reads at an older LSN ask them.
    pub(crate) history: Vec<Arc<Table>>,
    /// The range deletes of all tables.
    pub(crate) ranges: Arc<RangeIndex>,
    /// All at or below is in tables.
    pub(crate) flushed: Position,
    /// The oldest LSN that can be read at, with its commit time.
    pub(crate) floor: (Lsn, CommitTs),
    /// Counts what gets do.
    cache: Arc<BlockCache>,
}

impl Version {
    pub(crate) fn new(active: Memtable, flushed: Position, floor: (Lsn, CommitTs), cache: Arc<BlockCache>) -> Self {
        Self {
            active: Arc::new(active),
            frozen: Vec::new(),
            levels: Default::default(),
            ends: Default::default(),
            history: Vec::new(),
            ranges: Arc::default(),
            flushed,
            floor,
            cache,
        }
    }

    pub(crate) fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(self.frozen.iter().map(|f| &f.memtable))
    }

    /// Tables that are visible and wait for their level.
    pub(crate) fn arriving(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.frozen.iter().flat_map(|f| f.over.tables.iter())
    }

    /// All but history tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.levels.iter().flat_map(|l| l.iter())
    }

    /// All that have their level, history tables included.
    pub(crate) fn all_tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.tables().chain(&self.history)
    }

    /// Those that wait for their level, too.
    pub(crate) fn known_tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.all_tables().chain(self.arriving())
    }

    /// Whether it is one of the history tables.
    pub(crate) fn is_history(&self, table: &Table) -> bool {
        self.history.iter().any(|t| t.id() == table.id())
    }

    /// Takes tables out and puts others in, each with its level.
    pub(crate) fn change_tables(&mut self, removed: &[u128], added: &[(u8, Arc<Table>)]) {
        let mut ranged = added.iter().any(|(_, t)| !t.ranges().is_empty());
        let mut retain = |tables: &mut Vec<Arc<Table>>| {
            tables.retain(|t| {
                let goes = removed.contains(&t.id());
                ranged |= goes && !t.ranges().is_empty();
                !goes
            });
        };
        let mut changed: [bool; LEVELS] = std::array::from_fn(|n| added.iter().any(|(l, _)| usize::from(*l) == n));
        let grown = changed;
        for (level, changed) in self.levels.iter_mut().zip(&mut changed) {
            if level.iter().any(|t| removed.contains(&t.id())) {
                retain(Arc::make_mut(level));
                *changed = true;
            }
        }
        retain(&mut self.history);
        for (level, table) in added {
            match self.levels.get_mut(usize::from(*level)) {
                Some(tables) => Arc::make_mut(tables).push(Arc::clone(table)),
                None => self.history.push(Arc::clone(table)),
            }
        }
        for ((n, tables), _) in self.levels.iter_mut().enumerate().zip(grown).filter(|(_, grown)| *grown) {
            match n {
                // Their LSNs are apart, but for those without entries, for which no order counts.
                0 => Arc::make_mut(tables).sort_by_key(|t| std::cmp::Reverse(t.properties().max_lsn)),
                _ => sort_by_key(Arc::make_mut(tables).as_mut_slice()),
            }
        }
        let sorted = self.levels.iter().zip(&mut self.ends).zip(changed).skip(1);
        for ((tables, ends), _) in sorted.filter(|(_, changed)| *changed) {
            *ends = Arc::new(tables.iter().map(|t| key_head(&t.properties().max_key)).collect());
        }
        if ranged {
            self.ranges = Arc::new(RangeIndex::of(self.tables().flat_map(|t| t.ranges())));
        }
    }

    /// Puts another handle of the same table in its place.
    pub(crate) fn replace_table(&mut self, table: &Arc<Table>) {
        let levels = self.levels.iter_mut().filter(|l| l.iter().any(|t| t.id() == table.id()));
        let all = levels.flat_map(|l| Arc::make_mut(l).iter_mut()).chain(&mut self.history);
        all.filter(|t| t.id() == table.id()).for_each(|t| *t = Arc::clone(table));
    }

    /// The highest LSN, at most `lsn`, of a range delete that covers `key`; `ZERO` without one. Range deletes
    /// are not confined to the keys of their table, so all are asked.
    pub(crate) fn covering(&self, key: &[u8], lsn: Lsn) -> Lsn {
        let in_tables = if self.ranges.is_empty() { Lsn::ZERO } else { self.ranges.covering(key, lsn) };
        self.memtables().filter(|m| m.has_ranges()).map(|m| m.covering(key, lsn)).fold(in_tables, Lsn::max)
    }

    /// Whether any range delete is there.
    pub(crate) fn has_ranges(&self) -> bool {
        !self.ranges.is_empty() || self.memtables().any(|m| m.has_ranges())
    }

    /// The newest version of `key` at or below `lsn` unless a range delete hides it.
    pub(crate) fn get(&self, key: &[u8], lsn: Lsn) -> Result<Option<Hit>> {
        let mut asked = Asked::default();
        let found = self.get_asking(key, lsn, &mut asked);
        self.cache.count_get(&asked);
        found
    }

    fn get_asking(&self, key: &[u8], lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
        let hash = key_hash(key);
        let mut found = self.find(key, hash, lsn, asked)?;
        // What a table supersedes, it supersedes by a record that was flushed.
        if lsn < self.flushed.lsn {
            for table in &self.history {
                let older = table.get_superseded(key, hash, lsn, asked)?;
                found = if older.as_ref().map(|h| h.lsn) > found.as_ref().map(|h| h.lsn) { older } else { found };
            }
        }
        let Some(found) = found else { return Ok(None) };
        Ok((found.lsn >= self.covering(key, lsn)).then_some(found))
    }

    /// Parts are asked from new to old: each holds only LSNs below those of the part before, for
    /// one key, so the first version found is the newest.
    fn find(&self, key: &[u8], hash: u64, lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
        if let Some(found) = self.active.get(key, hash, lsn) {
            return Ok(Some(found));
        }
        for frozen in &self.frozen {
            let found = match find_in(&frozen.over.tables, key, hash, lsn, asked)? {
                None => frozen.memtable.get(key, hash, lsn),
                found => found,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        let ([level0, sorted @ ..], [_, ends @ ..]) = (&self.levels, &self.ends);
        if let Some(found) = find_overlapping(level0, key, hash, lsn, asked)? {
            return Ok(Some(found));
        }
        let head = key_head(key);
        for (level, ends) in sorted.iter().zip(ends).filter(|(l, _)| !l.is_empty()) {
            let tied = ends.partition_point(|e| *e < head);
            let ties = ends.get(tied..).map_or(0, |e| e.iter().take_while(|e| **e == head).count());
            let ties = level.get(tied..tied + ties).unwrap_or_default();
            let at = tied + ties.partition_point(|t| t.properties().max_key.as_slice() < key);
            if let Some(found) = find_at(level, at, key, hash, lsn, asked)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// All versions that reads at `lsn` may see of keys in `low..high`, and some that they do not.
    pub(crate) fn merge(&self, low: Vec<u8>, high: Vec<u8>, reverse: bool, lsn: Lsn) -> Merge {
        let bounds = Bounds::new(low, high);
        let mut sources: Vec<Source> = Vec::with_capacity(8);
        for m in self.memtables().filter(|m| m.end().is_some()) {
            let cursor = MemtableCursor::new(Arc::clone(m), Arc::clone(&bounds), reverse, lsn);
            sources.push(Source::Memtable(cursor));
        }
        let cursor = |t: &Arc<Table>| TableCursor::new(Arc::clone(t), Arc::clone(&bounds), reverse, Caching::Keep);
        let [level0, sorted @ ..] = &self.levels;
        sources.extend(level0.iter().map(|t| Source::Table(cursor(t))));
        let over = self.frozen.iter().map(|f| &f.over.tables);
        for level in over.chain(sorted).filter(|l| !l.is_empty()) {
            let level = LevelCursor::new(level, Arc::clone(&bounds), reverse, Caching::Keep);
            sources.push(Source::Level(level));
        }
        if lsn < self.flushed.lsn {
            let seen = |t: &&Arc<Table>| t.properties().min_lsn <= lsn && t.properties().superseded > lsn;
            sources
                .extend(self.history.iter().filter(seen).map(|t| Source::History(HistoryCursor::new(cursor(t), lsn))));
        }
        Merge::new(sources, reverse)
    }

    /// Commit time of the newest record at or below `lsn`, which is not below the floor.
    pub(crate) fn time_at(&self, lsn: Lsn) -> Result<CommitTs> {
        let mut best = self.floor;
        for m in self.memtables() {
            best = m.time_at(lsn).map_or(best, |t| best.max(t));
        }
        for t in self.all_tables() {
            if best.0 == lsn {
                break;
            }
            best = t.time_at(lsn)?.map_or(best, |t| best.max(t));
        }
        Ok(best.1)
    }

    /// The newest record whose commit time is at or below `ts`, which is not below the floor's.
    pub(crate) fn lsn_at(&self, ts: CommitTs) -> Result<(Lsn, CommitTs)> {
        let mut best = self.floor;
        for m in self.memtables() {
            best = m.lsn_at(ts).map_or(best, |t| best.max(t));
        }
        for t in self.all_tables() {
            best = t.lsn_at(ts)?.map_or(best, |t| best.max(t));
        }
        Ok(best)
    }
}

/// Looks a key up in tables of which any may have it, the newest first. Filters are asked in groups, before anything
/// else is done with their answers: their memory comes at the same time.
fn find_overlapping(tables: &[Arc<Table>], key: &[u8], hash: u64, lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
    if tables.is_empty() {
        return Ok(None);
    }
    let probe = Probe::of(hash);
    for group in tables.chunks(TOGETHER) {
        let passed = group.iter().rev().fold(0_u32, |passed, t| passed << 1 | u32::from(t.may_hold(&probe)));
        asked.spared += group.len() as u64 - u64::from(passed.count_ones());
        for (n, table) in group.iter().enumerate() {
            if passed >> n & 1 == 1
                && let Some(found) = table.get(key, hash, lsn, asked)?
            {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Looks a key up in tables that are sorted and do not overlap.
fn find_in(tables: &[Arc<Table>], key: &[u8], hash: u64, lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
    if tables.is_empty() {
        return Ok(None);
    }
    let at = tables.partition_point(|t| t.properties().max_key.as_slice() < key);
    find_at(tables, at, key, hash, lsn, asked)
}

fn find_at(
    tables: &[Arc<Table>],
    at: usize,
    key: &[u8],
    hash: u64,
    lsn: Lsn,
    asked: &mut Asked,
) -> Result<Option<Hit>> {
    let table = tables.get(at).filter(|t| t.properties().min_key.as_slice() <= key);
    table.map_or(Ok(None), |t| t.get(key, hash, lsn, asked))
}

/// Tables without entries, which have no key, come first and are never chosen by one.
fn sort_by_key(tables: &mut [Arc<Table>]) {
    tables.sort_by(|a, b| {
        let (a, b) = (a.properties(), b.properties());
        (a.entries > 0, &a.min_key).cmp(&(b.entries > 0, &b.min_key))
    });
}
