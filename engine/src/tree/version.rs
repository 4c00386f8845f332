//! One state of the tree: its memtables and tables. Immutable but for entries that are added to
//! the active memtable above the LSN of every view.
//!
//! Owns: the order in which parts are asked. Never: changing a version; flush and compaction
//! install another one.

use std::sync::Arc;

use crate::error::Result;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::table::cursor::TableCursor;
use crate::table::filter::key_hash;
use crate::table::reader::{Caching, Table};
use crate::table::{Hit, RangeDelete, below_end, covering};

use super::memtable::{Memtable, MemtableCursor};
use super::merge::{LevelCursor, Merge, Source};

#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) frozen: Vec<Arc<Memtable>>,
    /// Newest first.
    pub(crate) level0: Vec<Arc<Table>>,
    /// Sorted by key, not overlapping; tables without entries in front.
    pub(crate) level1: Vec<Arc<Table>>,
    /// Those with range deletes.
    ranged: Vec<Arc<Table>>,
    /// All at or below is in tables.
    pub(crate) flushed: Position,
    /// The oldest LSN that can be read at, with its commit time.
    pub(crate) floor: (Lsn, CommitTs),
}

impl Version {
    pub(crate) fn new(
        memtable_bytes: usize,
        (level0, level1): (Vec<Arc<Table>>, Vec<Arc<Table>>),
        flushed: Position,
        floor: (Lsn, CommitTs),
    ) -> Self {
        let active = Arc::new(Memtable::new(memtable_bytes));
        let mut out = Self { active, frozen: Vec::new(), level0, level1, ranged: Vec::new(), flushed, floor };
        out.tables_changed();
        out
    }

    pub(crate) fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(&self.frozen)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.level0.iter().chain(&self.level1)
    }

    /// The newest version of `key` at or below `lsn` unless a range delete hides it.
    pub(crate) fn get(&self, key: &[u8], lsn: Lsn) -> Result<Option<Hit>> {
        let Some(found) = self.find(key, lsn)? else { return Ok(None) };
        // Range deletes are not confined to the keys of their table, so all are asked.
        let in_memory = self.memtables().map(|m| m.covering(key, lsn));
        let in_tables = self.ranged.iter().map(|t| covering(t.ranges(), key, lsn));
        let hidden_below = in_memory.chain(in_tables).max().unwrap_or_default();
        Ok((found.lsn >= hidden_below).then_some(found))
    }

    /// Parts are asked from new to old: each holds only LSNs below those of the part before, for
    /// one key, so the first version found is the newest.
    fn find(&self, key: &[u8], lsn: Lsn) -> Result<Option<Hit>> {
        let hash = key_hash(key);
        if let Some(found) = self.memtables().find_map(|m| m.get(key, hash, lsn)) {
            return Ok(Some(found));
        }
        for table in &self.level0 {
            if let Some(found) = table.get(key, hash, lsn)? {
                return Ok(Some(found));
            }
        }
        let at = self.level1.partition_point(|t| t.properties().max_key.as_slice() < key);
        let table = self.level1.get(at).filter(|t| t.properties().min_key.as_slice() <= key);
        table.map_or(Ok(None), |t| t.get(key, hash, lsn))
    }

    /// Call after every change of the tables.
    pub(crate) fn tables_changed(&mut self) {
        self.ranged = self.tables().filter(|t| !t.ranges().is_empty()).cloned().collect();
    }

    /// All versions at or below `lsn` (tables also give higher ones) of keys in `low..high`.
    pub(crate) fn merge(&self, low: &[u8], high: &[u8], reverse: bool, lsn: Lsn) -> Merge {
        let mut sources: Vec<Source> = Vec::new();
        for m in self.memtables().filter(|m| m.end().is_some()) {
            let cursor = MemtableCursor::new(Arc::clone(m), low.to_vec(), high.to_vec(), reverse, lsn);
            sources.push(Source::Memtable(cursor));
        }
        for t in &self.level0 {
            let cursor = TableCursor::new(Arc::clone(t), low.to_vec(), high.to_vec(), reverse, Caching::Keep);
            sources.push(Source::Table(cursor));
        }
        let level = LevelCursor::new(&self.level1, low.to_vec(), high.to_vec(), reverse, Caching::Keep);
        sources.push(Source::Level(level));
        Merge::new(sources, reverse)
    }

    /// Range deletes at or below `lsn` that touch keys in `low..high`.
    pub(crate) fn ranges(&self, low: &[u8], high: &[u8], lsn: Lsn) -> Vec<RangeDelete> {
        let touches = |r: &RangeDelete| r.lsn <= lsn && below_end(&r.start, high) && below_end(low, &r.end);
        let in_memory = self.memtables().flat_map(|m| m.ranges());
        let in_tables = self.ranged.iter().flat_map(|t| t.ranges().iter().cloned());
        in_memory.chain(in_tables).filter(touches).collect()
    }

    /// Commit time of the newest record at or below `lsn`, which is not below the floor.
    pub(crate) fn time_at(&self, lsn: Lsn) -> Result<CommitTs> {
        let mut best = self.floor;
        for m in self.memtables() {
            best = m.time_at(lsn).map_or(best, |t| best.max(t));
        }
        for t in self.tables() {
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
        for t in self.tables() {
            best = t.lsn_at(ts)?.map_or(best, |t| best.max(t));
        }
        Ok(best)
    }
}
