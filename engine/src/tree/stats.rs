//! What a tree says of itself: counts and sizes.
//!
//! Owns: the counters and the picture made of them. Never: decisions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Tree;
use super::compaction::rule::Dropped;
use super::memtable::Memtable;
use super::version::{LEVELS, Version};
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

/// What views and scans hold that the tree itself no longer needs. It is freed when the last of them goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldStats {
    /// States of the tree that were replaced and are still read.
    pub versions: u64,
    /// How long ago the oldest of them was replaced, in microseconds: whoever reads it began before.
    pub oldest_us: u64,
    /// Memory of memtables that have been flushed, in bytes.
    pub memtable_bytes: u64,
    /// Bytes of table files that have been merged or forgotten.
    pub table_bytes: u64,
}

/// Entries that merges and flushes dropped, by reason. With the entries written these make up the entries read;
/// a merge or flush that finds it otherwise fails before its tables count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedStats {
    /// A newer version had taken their place before the history window.
    pub superseded: u64,
    /// A range delete had covered them before the history window.
    pub range_deleted: u64,
    /// Deletes that had nothing left to hide.
    pub deletes: u64,
    /// Expired before the history window.
    pub expired: u64,
    /// Kept for the history window, which has passed them.
    pub history: u64,
}

/// Counts and sizes of a tree. Counters begin at zero when it is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeStats {
    /// Level 0, into which memtables are flushed, to the deepest.
    pub levels: [LevelStats; LEVELS],
    /// Tables of versions that newer ones superseded, kept for the history window.
    pub history: LevelStats,
    /// What readers hold beyond that.
    pub held: HeldStats,
    /// Memory of active and frozen memtables, in bytes.
    pub memtable_bytes: u64,
    /// Frozen memtables that wait for their flush.
    pub frozen_memtables: u64,
    /// Ingested tables that are read and wait for the flush that gives them a level.
    pub arriving_tables: u64,
    /// Tables ingested, those that recovery found in the log included.
    pub ingested_tables: u64,
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
    /// Entries that merges and flushes dropped.
    pub dropped: DroppedStats,
    /// Tables in which a scan passed over a long run of entries that it could not show: compaction takes them.
    pub crowded_tables: u64,
    /// Damaged tables that compaction leaves alone.
    pub damaged_tables: u64,
    /// Reads of one key: each of [`View::multi_get`](super::View::multi_get) and of the conditions of a write too.
    pub gets: u64,
    /// Tables whose index these searched: those that could hold the key and that no filter ruled out.
    pub get_tables: u64,
    /// Data blocks of tables that these looked at, in the cache or read from a file. See
    /// [`TreeStats::read_amplification`].
    pub get_blocks: u64,
    /// Blocks found in the cache, by gets and by scans.
    pub cache_hits: u64,
    /// Blocks read from files for readers.
    pub cache_misses: u64,
    /// Look-ups in a table that its filter spared.
    pub filter_spared: u64,
    /// Look-ups that a filter let pass though the key, or a version old enough, was not there.
    pub filter_wrong: u64,
    /// Memory of the block cache, in bytes.
    pub cache_bytes: u64,
    /// Memory of what the cache remembers of blocks that were missed, to let in what is missed again, in bytes.
    pub missed_bytes: u64,
    /// Memory of the indexes and filters that stay as long as their table is open, in bytes: of the tables that reads of
    /// present keys have asked, up to a bound.
    pub pinned_bytes: u64,
    /// Memory of the indexes and filters beyond that bound, and of history tables, in bytes: they make room for each other.
    pub lent_bytes: u64,
    /// Indexes and filters read from files. More than two a table that goes on growing says that the memory limit is too
    /// small for the tables that are read.
    pub parts_loaded: u64,
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

    /// Data blocks that a get looks at, on average of all gets since the tree was opened: those in the cache count as
    /// those that are read from a file do. A get that finds its key in a memtable looks at none, and the mean is below 1
    /// where many do or where filters rule out keys that are not there. Indexes and filters are not counted, nor
    /// what scans look at; of the blocks, `cache_misses` were read from files. 0 without gets.
    #[must_use]
    pub fn read_amplification(&self) -> f64 {
        self.get_blocks as f64 / self.gets.max(1) as f64
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
    pub(super) ingested: AtomicU64,
    pub(super) forgotten: AtomicU64,
    pub(super) merged_bytes: AtomicU64,
    pub(super) compacted_bytes: AtomicU64,
    dropped: [AtomicU64; 5],
    /// Bytes of keys and values that merges went through, unfinished ones too.
    pub(super) stepped_bytes: AtomicU64,
}

impl Counters {
    /// So many entries were dropped.
    pub(super) fn dropped(&self, by_reason: &Dropped) {
        for (sum, n) in self.dropped.iter().zip(by_reason) {
            sum.fetch_add(*n, Ordering::Relaxed);
        }
    }

    fn dropped_stats(&self) -> DroppedStats {
        let [superseded, range_deleted, deletes, expired, history] =
            self.dropped.each_ref().map(|n| n.load(Ordering::Relaxed));
        DroppedStats { superseded, range_deleted, deletes, expired, history }
    }
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

    /// What readers hold of states that were replaced.
    pub(super) fn held(&self) -> HeldStats {
        let (held, now) = (self.published.held(), self.version());
        let mut out = HeldStats { versions: held.len() as u64, ..HeldStats::default() };
        if let Some((when, _)) = held.first() {
            let age = self.env.clock.monotonic().saturating_sub(*when);
            out.oldest_us = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
        }
        out.memtable_bytes = memtable_bytes(&held, &now);
        let mut tables: BTreeSet<u128> = now.all_tables().map(|t| t.id()).collect();
        for (_, version) in &held {
            out.table_bytes += version.all_tables().filter(|t| tables.insert(t.id())).map(|t| t.bytes()).sum::<u64>();
        }
        out
    }

    /// [`HeldStats::memtable_bytes`] alone: asked for with every change of the version, which a writer may wait for.
    pub(super) fn held_memtable_bytes(&self) -> u64 {
        memtable_bytes(&self.published.held(), &self.version())
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
            held: self.held(),
            memtable_bytes: version.memtables().map(|m| m.bytes() as u64).sum(),
            frozen_memtables: version.frozen.len() as u64,
            arriving_tables: version.arriving().count() as u64,
            ingested_tables: count(&c.ingested),
            flushes: count(&c.flushes),
            flushed_bytes: count(&c.flushed_bytes),
            compactions: count(&c.compactions),
            moved_tables: count(&c.moved),
            forgotten: count(&c.forgotten),
            merged_bytes: count(&c.merged_bytes),
            compacted_bytes: count(&c.compacted_bytes),
            dropped: c.dropped_stats(),
            crowded_tables: version.tables().filter(|t| t.is_crowded()).count() as u64,
            damaged_tables: self.damaged.len(),
            gets: reads.gets,
            get_tables: reads.get_tables,
            get_blocks: reads.get_blocks,
            cache_hits: reads.cache_hits,
            cache_misses: reads.cache_misses,
            filter_spared: reads.filter_spared,
            filter_wrong: reads.filter_wrong,
            cache_bytes: self.cache.bytes(),
            missed_bytes: self.cache.missed_bytes(),
            pinned_bytes: self.cache.pinned_bytes(),
            lent_bytes: self.cache.lent_bytes(),
            parts_loaded: reads.parts_loaded,
        }
    }
}

/// Memory of the memtables of replaced versions that are not in the present one.
fn memtable_bytes(held: &[(Duration, Arc<Version>)], now: &Version) -> u64 {
    let mut seen: Vec<&Arc<Memtable>> = now.memtables().collect();
    let mut bytes = 0;
    for m in held.iter().flat_map(|(_, version)| version.memtables()) {
        if !seen.iter().any(|s| Arc::ptr_eq(s, m)) {
            seen.push(m);
            bytes += m.bytes() as u64;
        }
    }
    bytes
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
