//! What the log counts of its own work.
//!
//! Owns: the counters and how long syncs took. Never: anything per record.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Buckets of [`SyncLatency`]: the last one takes everything from about 18 minutes on.
const BUCKETS: usize = 31;

/// How long syncs took, in buckets that double: bucket `n` counts those of at least `2^n` and below
/// `2^(n+1)` microseconds, bucket 0 those below 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncLatency {
    /// Syncs per bucket.
    pub buckets: [u64; BUCKETS],
    /// Sum of all, in microseconds.
    pub total_us: u64,
    /// The longest, in microseconds.
    pub max_us: u64,
}

impl SyncLatency {
    /// The upper end, in microseconds, of the bucket below which a `part` (0 to 1) of all syncs lies; 0 without
    /// any.
    #[must_use]
    pub fn quantile_us(&self, part: f64) -> u64 {
        let all: u64 = self.buckets.iter().sum();
        let wanted = (all as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen > 0 && seen >= wanted {
                return (2u64 << n).min(self.max_us);
            }
        }
        0
    }
}

/// Counts since the log was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Syncs of a segment's data for waiting writers.
    pub syncs: u64,
    /// Records that these made durable: by `syncs` it is the mean size of a group.
    pub synced_records: u64,
    /// Bytes handed to the operating system, frames included.
    pub written_bytes: u64,
    /// Calls that did so.
    pub writes: u64,
    /// Memory of the newest records, kept for readers close to the end, in bytes.
    pub tail_bytes: u64,
    /// Memory of buffers for what is on its way into files, in bytes: records that wait to be handed to the operating
    /// system, the group that is being written and synced, and the room kept for the next ones.
    pub buffer_bytes: u64,
    /// Segments for which a new file was filled with zeros.
    pub segments_made: u64,
    /// Segments for which the file of a released one was used again.
    pub segments_recycled: u64,
    /// Released segments whose files were deleted.
    pub segments_removed: u64,
    /// How long the syncs took.
    pub sync_latency: SyncLatency,
}

/// Memory of buffers, in bytes, each told by whoever holds the buffers when it changes.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Records that nobody writes yet, and the buffer for the next ones.
    pub(super) head: AtomicUsize,
    /// The group that is being written.
    pub(super) group: AtomicUsize,
    /// Blocks that are written past the page cache.
    pub(super) blocks: AtomicUsize,
}

/// While it lives a group is being written.
#[derive(Debug)]
pub(super) struct Grouped<'a>(&'a AtomicUsize);

impl Buffers {
    pub(super) fn group(&self, bytes: usize) -> Grouped<'_> {
        self.group.store(bytes, Ordering::Relaxed);
        Grouped(&self.group)
    }
}

impl Grouped<'_> {
    /// A buffer of the group takes so much more.
    pub(super) fn grows(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Grouped<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// See [`LogStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) buffers: Buffers,
    syncs: AtomicU64,
    synced_records: AtomicU64,
    written_bytes: AtomicU64,
    writes: AtomicU64,
    made: AtomicU64,
    recycled: AtomicU64,
    removed: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    total_us: AtomicU64,
    max_us: AtomicU64,
}

impl Counters {
    pub(super) fn wrote(&self, bytes: usize) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn made_segment(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn recycled_segment(&self) {
        self.recycled.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn removed_segment(&self) {
        self.removed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn synced(&self, records: u64, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.synced_records.fetch_add(records, Ordering::Relaxed);
        let bucket = us.checked_ilog2().unwrap_or(0) as usize;
        if let Some(count) = self.buckets.get(bucket.min(BUCKETS - 1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.total_us.fetch_add(us, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    pub(super) fn stats(&self, tail_bytes: usize) -> LogStats {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let mut sync_latency =
            SyncLatency { total_us: get(&self.total_us), max_us: get(&self.max_us), ..SyncLatency::default() };
        let Buffers { head, group, blocks } = &self.buffers;
        let buffers = [head, group, blocks].map(|bytes| bytes.load(Ordering::Relaxed) as u64);
        sync_latency.buckets.iter_mut().zip(&self.buckets).for_each(|(to, from)| *to = get(from));
        LogStats {
            syncs: get(&self.syncs),
            synced_records: get(&self.synced_records),
            written_bytes: get(&self.written_bytes),
            writes: get(&self.writes),
            tail_bytes: tail_bytes as u64,
            buffer_bytes: buffers.into_iter().sum(),
            segments_made: get(&self.made),
            segments_recycled: get(&self.recycled),
            segments_removed: get(&self.removed),
            sync_latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_from_buckets() {
        let c = Counters::default();
        assert_eq!(c.stats(0).sync_latency.quantile_us(0.5), 0);
        for us in [0, 1, 100, 130, 150, 160, 200, 250, 300, 5_000_000_000] {
            c.synced(3, Duration::from_micros(us));
        }
        let stats = c.stats(0);
        assert_eq!((stats.syncs, stats.synced_records), (10, 30));
        assert_eq!(stats.sync_latency.quantile_us(0.1), 2);
        assert_eq!(stats.sync_latency.quantile_us(0.5), 256);
        assert_eq!(stats.sync_latency.quantile_us(0.9), 512);
        assert_eq!(stats.sync_latency.quantile_us(1.0), 2 << 30);
        assert_eq!(stats.sync_latency.max_us, 5_000_000_000);
    }
}
