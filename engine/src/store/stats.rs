//! Everything a store counts, in one struct.
//!
//! Owns: nothing but the putting together. Never: work.

use super::Store;
use super::pace::StallStats;
use super::scrub::ScrubStats;
use crate::log::LogStats;
use crate::open_files::OpenFilesStats;
use crate::space::SpaceStats;
use crate::tree::TreeStats;

/// See the parts. Counters begin at zero when the store is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StoreStats {
    /// Levels, flushes, compactions, cache, filters.
    pub tree: TreeStats,
    /// Syncs and their latency, bytes written.
    pub log: LogStats,
    /// Delays of writers, by cause.
    pub stalls: StallStats,
    /// Room on the disk, and what waits for some.
    pub space: SpaceStats,
    /// What waits because too many files are open.
    pub open_files: OpenFilesStats,
    /// How far the scrub is.
    pub scrub: ScrubStats,
}

impl StoreStats {
    /// Memory that counts against [`Options::memory_limit`](crate::Options::memory_limit) now, in bytes: memtables,
    /// also those that only views hold, log tail, indexes and filters of tables, block cache.
    #[must_use]
    pub const fn memory_bytes(&self) -> u64 {
        self.tree.memtable_bytes
            + self.tree.held.memtable_bytes
            + self.log.tail_bytes
            + self.tree.pinned_bytes
            + self.tree.lent_bytes
            + self.tree.cache_bytes
    }
}

impl Store {
    /// Counts and sizes of log and tree, and why writers were held back.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            tree: self.tree.stats(),
            log: self.log.stats(),
            stalls: self.pace.stats(),
            space: self.space(),
            open_files: self.open_files(),
            scrub: self.scrub_stats(),
        }
    }
}
