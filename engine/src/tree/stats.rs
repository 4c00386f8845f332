//! What a tree says of itself: counts and sizes.
//!
//! Owns: the counters and the picture made of them. Never: decisions.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Tree;
use super::version::LEVELS;
use crate::table::reader::Table;

/// One level of tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// Table files.
    pub tables: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Versions of keys in them, deletes included.
    pub entries: u64,
    /// Deletes among the entries, which hide older versions further below.
    pub deletes: u64,
}

/// Counts and sizes of a tree. Counters begin at zero when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Level 0, into which memtables are flushed, to the deepest.
    pub levels: [LevelStats; LEVELS],
    /// Tables of versions that newer ones superseded, kept for the history window.
    pub history: LevelStats,
    /// Memory of active and frozen memtables, in bytes.
    pub memtable_bytes: u64,
    /// Frozen memtables that wait for their flush.
    pub frozen_memtables: u64,
    /// Memtables flushed.
    pub flushes: u64,
    /// Bytes of the tables that flushes wrote.
    pub flushed_bytes: u64,
    /// Merges done.
    pub compactions: u64,
    /// Tables moved to a deeper level as they are.
    pub moved_tables: u64,
    /// Times that tables were let go unread, because nobody could see anything in them.
    pub forgotten: u64,
    /// Bytes of the tables that merges read.
    pub merged_bytes: u64,
    /// Bytes of the tables that merges wrote.
    pub compacted_bytes: u64,
    /// Entries that merges dropped.
    pub dropped_entries: u64,
    /// Damaged tables that compaction leaves alone.
    pub damaged_tables: u64,
    /// Blocks found in the cache.
    pub cache_hits: u64,
    /// Blocks read from files for readers.
    pub cache_misses: u64,
    /// Look-ups in a table that its filter spared.
    pub filter_spared: u64,
    /// Look-ups that a filter let pass though the key, or a version old enough, was not there.
    pub filter_wrong: u64,
    /// Memory of the block cache, in bytes.
    pub cache_bytes: u64,
    /// Memory of the indexes and filters of all tables, in bytes.
    pub pinned_bytes: u64,
}

impl TreeStats {
    /// All tables, history included.
    #[must_use]
    pub fn tables(&self) -> u64 {
        self.levels.iter().chain([&self.history]).map(|l| l.tables).sum()
    }

    /// Bytes of all tables, history included.
    #[must_use]
    pub fn table_bytes(&self) -> u64 {
        self.levels.iter().chain([&self.history]).map(|l| l.bytes).sum()
    }

    /// Bytes of all levels for each byte of the deepest level that is used: how much larger the tree is than a
    /// tree that holds each key once. History is not in it.
    #[must_use]
    pub fn space_amplification(&self) -> f64 {
        let all: u64 = self.levels.iter().map(|l| l.bytes).sum();
        let deepest = self.levels.iter().rev().find(|l| l.bytes > 0).map_or(1, |l| l.bytes);
        all.max(1) as f64 / deepest as f64
    }

    /// Bytes written to tables for each byte flushed.
    #[must_use]
    pub fn write_amplification(&self) -> f64 {
        (self.flushed_bytes + self.compacted_bytes).max(1) as f64 / self.flushed_bytes.max(1) as f64
    }
}

/// Sums since the tree was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) flushes: AtomicU64,
    pub(super) flushed_bytes: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) moved: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) merged_bytes: AtomicU64,
    pub(super) compacted_bytes: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) damaged: AtomicU64,
    /// Bytes of keys and values that merges went through, unfinished ones too.
    pub(super) stepped_bytes: AtomicU64,
}

impl Tree {
    /// Memtables flushed since the tree was opened.
    pub(crate) fn flushes(&self) -> u64 {
        self.counters.flushes.load(Ordering::Relaxed)
    }

    /// Bytes of keys and values that merges went through since the tree was opened.
    pub(crate) fn stepped_bytes(&self) -> u64 {
        self.counters.stepped_bytes.load(Ordering::Relaxed)
    }

    /// Counts and sizes.
    #[must_use]
    pub fn stats(&self) -> TreeStats {
        let version = self.version();
        let reads = self.cache.counts();
        let c = &self.counters;
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        TreeStats {
            levels: std::array::from_fn(|n| version.levels.get(n).map(|t| level(t)).unwrap_or_default()),
            history: level(&version.history),
            memtable_bytes: version.memtables().map(|m| m.bytes() as u64).sum(),
            frozen_memtables: version.frozen.len() as u64,
            flushes: count(&c.flushes),
            flushed_bytes: count(&c.flushed_bytes),
            compactions: count(&c.compactions),
            moved_tables: count(&c.moved),
            forgotten: count(&c.forgotten),
            merged_bytes: count(&c.merged_bytes),
            compacted_bytes: count(&c.compacted_bytes),
            dropped_entries: count(&c.dropped),
            damaged_tables: count(&c.damaged),
            cache_hits: reads.cache_hits,
            cache_misses: reads.cache_misses,
            filter_spared: reads.filter_spared,
            filter_wrong: reads.filter_wrong,
            cache_bytes: self.cache.bytes(),
            pinned_bytes: version.all_tables().map(|t| t.pinned_bytes()).sum(),
        }
    }
}

fn level(tables: &[Arc<Table>]) -> LevelStats {
    let mut out = LevelStats::default();
    for t in tables {
        let p = t.properties();
        out.tables += 1;
        out.bytes += t.bytes();
        out.entries += p.entries;
        out.deletes += p.deletes;
    }
    out
}
