//! Reads ahead: the bytes of several blocks, read at once for a cursor that goes through a table in order.
//!
//! Who passes over the cache knows that all will be read. A scan is mostly short and mostly finds its blocks in the cache: it
//! reads single blocks until it has missed the cache a few times, then four at once, then twice as many each time, as kernels do
//! with files and RocksDB with iterators. All scans of a tree share a bound on what they hold so. Owns: how much is read at
//! once. Never: which blocks those are, what stays in the cache.

use std::ops::Range;
use std::sync::Arc;

use super::cache::BlockCache;
use super::format::Place;
use super::reader::Caching;

/// Read at once at most, in bytes; by who passes over the cache, always.
pub(crate) const RUN_BYTES: u64 = 256 << 10;

/// Blocks that a scan reads one at a time before it reads ahead.
const SINGLE: u32 = 2;
/// Blocks of the first run of a scan.
const FIRST_BLOCKS: u64 = 4;

/// What this scan has of the memory that all scans of a tree share.
#[derive(Debug)]
struct Reserved {
    cache: Arc<BlockCache>,
    bytes: u64,
}

impl Reserved {
    /// Makes it so many bytes, if there is room; it does not become less.
    fn grow(&mut self, to: u64) {
        let more = to.saturating_sub(self.bytes);
        if self.cache.reserve_run(more) {
            self.bytes += more;
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.cache.release_run(self.bytes);
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Run {
    bytes: Vec<u8>,
    at: u64,
    reserved: Option<Reserved>,
    /// Blocks that were not in the cache.
    misses: u32,
    /// To be read at once next, in bytes.
    next: u64,
    /// A stretch that could not be read at once: from it each block is read alone.
    alone: Range<u64>,
}

impl Run {
    /// A block was in the cache: so may the next ones be.
    pub(super) fn found_one(&mut self) {
        self.next /= 2;
    }

    pub(super) fn has(&self, place: Place) -> bool {
        let end = self.at + self.bytes.len() as u64;
        place.offset >= self.at && place.end().is_some_and(|e| e <= end)
    }

    /// What was read last, and where it starts in the file.
    pub(super) fn bytes(&self) -> (&[u8], u64) {
        (&self.bytes, self.at)
    }

    /// How many bytes to read at once from `place` on, where no run has it; `None`: this block alone.
    pub(super) fn wanted(&mut self, place: Place, caching: Caching, cache: &Arc<BlockCache>) -> Option<u64> {
        if caching == Caching::Bypass {
            return Some(RUN_BYTES);
        }
        self.misses = self.misses.saturating_add(1);
        if self.misses <= SINGLE || self.alone.contains(&place.offset) {
            return None;
        }
        let wanted = self.next.clamp((FIRST_BLOCKS * place.len).min(RUN_BYTES), RUN_BYTES);
        let reserved = self.reserved.get_or_insert_with(|| Reserved { cache: Arc::clone(cache), bytes: 0 });
        reserved.grow(wanted);
        // Where others have the rest, as much as before.
        let wanted = wanted.min(reserved.bytes);
        self.next = wanted * 2;
        (wanted > place.len).then_some(wanted)
    }

    /// Memory for a run of `len` bytes that starts at `at`.
    pub(super) fn memory(&mut self, at: u64, len: usize) -> &mut [u8] {
        // A block larger than any run is passed once, and a merge would hold on to its memory for each input.
        if len as u64 <= RUN_BYTES && self.bytes.capacity() as u64 > RUN_BYTES {
            self.bytes = Vec::new();
        }
        // No more than that: it is counted.
        self.bytes.reserve_exact(len.saturating_sub(self.bytes.len()));
        self.bytes.resize(len, 0);
        self.at = at;
        &mut self.bytes
    }

    /// `place` could not be read at once. What is before the bad sector is read block by block: each attempt of a disk
    /// takes seconds.
    pub(super) fn failed(&mut self, place: Place) {
        self.bytes.clear();
        self.alone = place.offset..place.offset.saturating_add(place.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Options;

    fn wanted(run: &mut Run, at: u64, cache: &Arc<BlockCache>) -> Option<u64> {
        run.wanted(Place { offset: at, len: 4096 }, Caching::Keep, cache)
    }

    #[test]
    fn a_scan_reads_ahead_the_further_the_longer_it_misses() {
        let cache = Arc::new(BlockCache::of(&Options::with_memory_limit(64 << 20)));
        let mut run = Run::default();
        let first: Vec<_> = (0..9).map(|n| wanted(&mut run, n << 20, &cache).map(|w| w >> 10)).collect();
        let most = Some(RUN_BYTES >> 10);
        assert_eq!(first, [None, None, Some(16), Some(32), Some(64), Some(128), most, most, most]);
        run.found_one();
        run.found_one();
        assert_eq!(wanted(&mut run, 9 << 20, &cache), Some(RUN_BYTES / 2), "much of it was in the cache");
        let bypass = Run::default().wanted(Place { offset: 0, len: 4096 }, Caching::Bypass, &cache);
        assert_eq!(bypass, Some(RUN_BYTES));
    }

    #[test]
    fn what_could_not_be_read_at_once_is_read_block_by_block() {
        let cache = Arc::new(BlockCache::of(&Options::with_memory_limit(64 << 20)));
        let mut run = Run::default();
        assert!((0..5).filter_map(|n| wanted(&mut run, n << 20, &cache)).count() == 3);
        run.failed(Place { offset: 5 << 20, len: 64 << 10 });
        let blocks: Vec<_> = (0..17).map(|n| wanted(&mut run, (5 << 20) + (n << 12), &cache)).collect();
        assert_eq!(blocks.iter().position(Option::is_some), Some(16), "{blocks:?}");
    }

    #[test]
    fn the_memory_of_a_large_block_goes_with_it() {
        let mut run = Run::default();
        assert_eq!(run.memory(0, 16 << 20).len(), 16 << 20);
        assert_eq!(run.memory(16 << 20, 5000).len(), 5000);
        assert!(run.bytes.capacity() as u64 <= RUN_BYTES, "{} bytes", run.bytes.capacity());
    }

    #[test]
    fn scans_share_what_they_hold_and_give_it_back() {
        // A 64th: four whole runs.
        let cache = Arc::new(BlockCache::of(&Options::with_memory_limit(64 << 20)));
        let mut runs: Vec<Run> = (0..40).map(|_| Run::default()).collect();
        let held = |runs: &[Run]| runs.iter().filter_map(|r| r.reserved.as_ref()).map(|r| r.bytes).sum::<u64>();
        for n in 0..20 {
            for run in &mut runs {
                let asked = wanted(run, n << 20, &cache);
                let own = run.reserved.as_ref().map_or(0, |r| r.bytes);
                assert!(asked.is_none_or(|w| w <= own), "more than is counted");
            }
            assert!(held(&runs) <= 1 << 20, "{} bytes", held(&runs));
        }
        assert!(held(&runs) > 1 << 19, "this tests nothing");
        let mut late = Run::default();
        assert!((0..20).filter_map(|n| wanted(&mut late, n << 20, &cache)).all(|w| w <= 1 << 16));
        drop(runs);
        assert_eq!((0..20).filter_map(|n| wanted(&mut late, n << 20, &cache)).max(), Some(RUN_BYTES));
    }
}
