//! Every bound of the engine in one place, with its unit and reason \[I12\].
//!
//! Owns: hard limits of the formats and the tunable sizes (`Options`). Never: behaviour.

use crate::table::cache::missed_bytes_of;

/// Largest key in bytes. It fits a `u16` length and keeps index blocks small.
pub const KEY_BYTES_MAX: usize = 64 * 1024 - 1;
/// Largest value in bytes, envelope excluded.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest encoded batch in bytes: one maximal put fits, and a record always fits a segment.
pub const BATCH_BYTES_MAX: usize = 20 * 1024 * 1024;
/// Most operations in one batch.
pub const BATCH_OPS_MAX: usize = 100_000;
/// Most tables in one ingest.
pub const INGEST_TABLES_MAX: usize = 4096;
/// Largest metadata block of a value envelope in bytes.
pub const METADATA_BYTES_MAX: usize = 4 * 1024;
/// Latest commit timestamp, in microseconds since 1970: a later one in a record is refused, or no record could ever
/// follow it. The half of what there is, for whoever adds to a timestamp.
pub const COMMIT_TS_MAX: u64 = u64::MAX / 2;
/// Largest log segment in bytes: recovery reads one whole into memory.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Most writes given to `Store::submit` that are not completed; one more is refused. Of their bytes it is a sixteenth of
/// [`Options::memory_limit`].
pub const OUTSTANDING_WRITES_MAX: usize = 1 << 14;
/// How far LSNs jump when a restore or a forced failover starts a new timeline, so that a reader
/// of the old history can never mistake the new one for it \[I11\].
pub const TIMELINE_LSN_JUMP: u64 = 1 << 32;

/// Number of records after LSN `older` up to LSN `newer`, where timelines may have begun between them.
/// Exact as long as fewer than [`TIMELINE_LSN_JUMP`] records are counted.
#[must_use]
pub const fn records_between(older: u64, newer: u64) -> u64 {
    let apart = newer.saturating_sub(older);
    // Each jump holds one record, the new timeline's first.
    apart - apart / TIMELINE_LSN_JUMP * (TIMELINE_LSN_JUMP - 1)
}

/// Sizes that a deployment or a test may choose. Defaults suit a small server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Log segment size in bytes. At least `BATCH_BYTES_MAX` + 64 KiB, except in tests whose
    /// batches are small. Above `SEGMENT_BYTES_MAX` it acts as that.
    pub segment_bytes: u64,
    /// Log kept in memory for tail readers close to the head, in bytes; 256 KiB at most until there is a first reader.
    pub tail_memory_bytes: usize,
    /// Log kept on disk for slots (replicas, archiver, watchers) beyond what the tree needs, in
    /// bytes. A slot that lags by more is dropped and must fall back to a checkpoint.
    pub retained_log_bytes: u64,
    /// Memtable size at which it is frozen and flushed, in bytes.
    pub memtable_bytes: usize,
    /// Most frozen memtables waiting for their flush; at the bound `apply` stops until one is
    /// flushed, so memory stays bounded.
    pub frozen_memtables_max: usize,
    /// Target size of a data block before compression, in bytes.
    pub block_bytes: usize,
    /// Size at which compaction starts another output table, in bytes.
    pub table_bytes: u64,
    /// Tables in level 0 that trigger a compaction.
    pub level0_tables: usize,
    /// While the deepest level has at most so many bytes, level 0 is merged right into it; a larger one gets levels
    /// above it, each a tenth of the next.
    pub level_base_bytes: u64,
    /// The manifest is written anew, as one whole state, when it is longer than this, in bytes, and than four times what
    /// it began with.
    pub manifest_bytes: u64,
    /// Threads that merge at once: a large merge is cut by key into as many parts. More than one work at a merge only
    /// where [`Options::compaction_bytes_per_second`] does not bound it.
    pub merge_threads: usize,
    /// Bytes of keys and values a second that merges go through at most, so that they leave the disk to others; 0
    /// for no bound. Where writers would have to wait for a merge, it does not count. Flushes are exempt: each writes once
    /// what writers brought, and one that waited would only stop these.
    pub compaction_bytes_per_second: u64,
    /// Bytes a second that the background scrub reads; 0 for no scrub.
    pub scrub_bytes_per_second: u64,
    /// Time from the beginning of one pass of the scrub to that of the next, if it is over by then.
    pub scrub_interval: std::time::Duration,
    /// Memory of the whole store, in bytes: memtables and log tail take what they need, an eighth is for work in
    /// progress, an eighth at least for the block cache. Indexes and filters of tables are pinned in what that
    /// leaves, three eighths by default: enough for keys and values of fifty times the limit. Those beyond, and those of
    /// the past, share an eighth with the block cache and are read again when needed
    /// ([`TreeStats::parts_loaded`](crate::tree::TreeStats::parts_loaded)). See [`Options::with_memory_limit`].
    pub memory_limit: u64,
    /// How long superseded versions stay readable, in microseconds of commit time.
    pub history_window_us: u64,
    /// Whether the thread that syncs the log for a group waits a moment, of 40 to 100 µs, for those of the last group who
    /// come back with another record. For measurement: groups and writes a second with and without it are what
    /// `engine/examples/durable.rs` prints. Off, there is less in a group and nothing else changes.
    pub gather_syncs: bool,
    /// Room kept free on the disk so that a flush can finish when nothing else may write any more, in bytes. At
    /// least a memtable.
    pub disk_reserve_bytes: u64,
}

/// Of the memory limit, this part is one memtable: with the most that may wait for their flush, a third.
const MEMTABLE_PART: u64 = 12;
/// Of the memory limit, this part is the log's tail.
const TAIL_PART: u64 = 24;
/// Of the memory limit, this part is for what flushes, merges and reads hold while they work, and for what an
/// allocator cannot use.
const WORK_PART: u64 = 8;
/// Of the memory limit, this part is the least of the block cache.
const CACHE_PART: u64 = 8;
const MANIFEST_BYTES: u64 = 64 << 10;
const MEMORY_LIMIT: u64 = 256 << 20;
/// A pass of the scrub begins once a day.
const SCRUB_INTERVAL: std::time::Duration = std::time::Duration::from_secs(86_400);
/// More merge threads would only take readers and writers their processors.
const MERGE_THREADS_MOST: usize = 4;
const LEVEL0_TABLES: usize = 4;
/// A merge of level 0 rewrites at most so many times its own size below.
const BASE_FLUSHES: u64 = 5;

impl Default for Options {
    fn default() -> Self {
        Self::with_memory_limit(MEMORY_LIMIT)
    }
}

impl Options {
    /// Defaults whose memtables and log tail suit a memory limit in bytes.
    #[must_use]
    pub fn with_memory_limit(memory_limit: u64) -> Self {
        let part =
            |of: u64, min: u64, max: u64| usize::try_from((memory_limit / of).clamp(min, max)).unwrap_or(usize::MAX);
        Self {
            segment_bytes: 24 << 20,
            tail_memory_bytes: part(TAIL_PART, 64 << 10, 32 << 20),
            retained_log_bytes: 1 << 30,
            memtable_bytes: part(MEMTABLE_PART, 64 << 10, 128 << 20),
            frozen_memtables_max: 3,
            block_bytes: 4 << 10,
            table_bytes: 32 << 20,
            level0_tables: LEVEL0_TABLES,
            level_base_bytes: Self::level_base_of(part(MEMTABLE_PART, 64 << 10, 128 << 20) as u64),
            manifest_bytes: MANIFEST_BYTES,
            merge_threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(MERGE_THREADS_MOST)),
            compaction_bytes_per_second: 0,
            scrub_bytes_per_second: 0,
            scrub_interval: SCRUB_INTERVAL,
            memory_limit,
            history_window_us: 600 * 1_000_000,
            gather_syncs: true,
            disk_reserve_bytes: part(MEMTABLE_PART, 1 << 20, 128 << 20) as u64,
        }
    }

    /// What suits as [`Options::level_base_bytes`] for memtables of this size.
    #[must_use]
    pub const fn level_base_of(memtable_bytes: u64) -> u64 {
        let flushed = if memtable_bytes > 1 << 20 { memtable_bytes } else { 1 << 20 };
        BASE_FLUSHES * LEVEL0_TABLES as u64 * flushed
    }

    /// Bytes of batches given to `Store::submit` that may be outstanding, a half of what work in progress may hold: the log
    /// keeps them twice, to be written and to be read.
    pub(crate) fn outstanding_bytes(&self) -> usize {
        usize::try_from(self.memory_limit / WORK_PART / 2).unwrap_or(usize::MAX)
    }

    /// What blocks, indexes and filters may take beside `memtables` memtables and `held` bytes of those that only views
    /// hold.
    pub(crate) fn table_memory_bytes(&self, memtables: usize, held: u64) -> u64 {
        let memtables = memtables.saturating_mul(self.memtable_bytes);
        let missed = missed_bytes_of(self.memory_limit, self.block_bytes);
        let others =
            (memtables.saturating_add(self.tail_memory_bytes) as u64).saturating_add(held).saturating_add(missed);
        self.memory_limit.saturating_sub(others.saturating_add(self.memory_limit / WORK_PART))
    }

    /// The least that the block cache has, with the indexes and filters that are not pinned.
    pub(crate) const fn cache_bytes_least(&self) -> u64 {
        self.memory_limit / CACHE_PART
    }

    /// Indexes and filters that stay in memory as long as their table is open are no more than this: with as many
    /// memtables as there may be, and the least of the cache, all fits into the limit.
    pub(crate) fn pinned_bytes_most(&self) -> u64 {
        let least = self.cache_bytes_least();
        let most = self.table_memory_bytes(self.frozen_memtables_max.saturating_add(1), least);
        if most > least { most } else { least }
    }

    /// Tiny sizes, so that a short test passes through rotation, flush and compaction.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            segment_bytes: 16 << 10,
            tail_memory_bytes: 4 << 10,
            retained_log_bytes: 64 << 10,
            memtable_bytes: 4 << 10,
            frozen_memtables_max: 2,
            block_bytes: 256,
            table_bytes: 4 << 10,
            level0_tables: 2,
            level_base_bytes: 12 << 10,
            manifest_bytes: MANIFEST_BYTES,
            merge_threads: 2,
            compaction_bytes_per_second: 0,
            scrub_bytes_per_second: 0,
            scrub_interval: SCRUB_INTERVAL,
            memory_limit: 96 << 10,
            history_window_us: 1_000,
            gather_syncs: true,
            disk_reserve_bytes: 12 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_counts_as_the_one_record_that_it_holds() {
        assert_eq!(records_between(7, 5), 0);
        assert_eq!(records_between(5, 9), 4);
        let start = 100 + TIMELINE_LSN_JUMP;
        assert_eq!(records_between(100, start), 1);
        // Three behind the fork, the first record of the timeline, and two more.
        assert_eq!(records_between(97, start + 2), 6);
        assert_eq!(records_between(97, start + 2 + TIMELINE_LSN_JUMP), 7);
    }
}
