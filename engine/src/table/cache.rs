//! The block cache: decoded data blocks, weighed in bytes, shared by all tables of a tree.
//!
//! Indexes and filters ([`Parts`]) come out of the same share of the memory: the blocks have what these leave, but never
//! less than the least that they were given. Owns: that division, the bound of what scans read ahead, what reads count. Never: blocks read by compaction,
//! which would push out what readers use.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::admission::Admission;
use super::block::Block;
use super::parts::Parts;
use super::tally::{Asked, Counts, Event, Tally};
use crate::limits::Options;

/// After so many changes of the share without a question for an index or filter that is not pinned, these go.
const UNASKED_MAX: u32 = 16;
/// The least that blocks have is so many steps in which more is given or taken.
const STEPS: u64 = 8;

/// Of the memory limit, this part is the most that all scans hold of blocks that they read ahead.
const RUNS_PART: u64 = 64;

/// Table file number (unique within the process) and offset of the block, or which part.
pub(super) type CacheKey = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct ByBytes;

impl Weighter<CacheKey, Arc<Block>> for ByBytes {
    fn weight(&self, _: &CacheKey, block: &Arc<Block>) -> u64 {
        block.weight()
    }
}

/// Keys are small numbers of our own: mixing them needs no secret, and a fixed function keeps
/// simulated runs equal.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }

    fn write_u64(&mut self, v: u64) {
        let mut z = (self.0 ^ v).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }
}

/// The capacity that a cache gets which has `now` bytes and may have `most`: less at once, more only where it is worth
/// it. A change takes all locks of the cache, and rounds down how many blocks that have left it are remembered: many small
/// ones would end in none, and then it cannot tell what is asked often.
const fn changed(now: u64, most: u64, step: u64) -> Option<u64> {
    let new = if most > step { most - most % step } else { most };
    if new < now || new >= now.saturating_add(2 * step) { Some(new) } else { None }
}

/// How many blocks there are in so many bytes, about.
fn blocks_of(bytes: u64, block_bytes: usize) -> usize {
    usize::try_from(bytes / block_bytes.max(64) as u64).unwrap_or(usize::MAX).clamp(16, 1 << 22)
}

/// Memory of what the cache of a tree with this limit and blocks of this size remembers of missed blocks, in bytes. It is
/// taken when the tree is opened.
pub(crate) fn missed_bytes_of(memory_limit: u64, block_bytes: usize) -> u64 {
    Admission::bytes_of(blocks_of(memory_limit, block_bytes))
}

/// What is divided, in bytes.
#[derive(Clone, Copy, Debug)]
struct Share {
    all: u64,
    /// Blocks and what is not pinned have at least this.
    least: u64,
    /// What blocks were given last, and indexes and filters that are not pinned.
    blocks: u64,
    parts: u64,
    /// Changes since an index or filter that is not pinned was asked for.
    unasked: u32,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Cache<CacheKey, Arc<Block>, ByBytes, BuildHasherDefault<Mix>>,
    parts: Parts,
    share: Mutex<Share>,
    next_table: AtomicU64,
    admission: Admission,
    /// What scans read ahead, and the most of it.
    runs: AtomicU64,
    runs_most: u64,
    tally: Tally,
}

impl BlockCache {
    /// Of tables that are read once and alone: indexes and filters stay as long as their table is open.
    pub(crate) fn new(bytes: u64, block_bytes: usize) -> Self {
        Self::with(bytes, block_bytes, None)
    }

    /// Of a tree. [`BlockCache::set_share`] says how much it may have.
    pub(crate) fn of(options: &Options) -> Self {
        Self::with(options.memory_limit, options.block_bytes, Some(options))
    }

    fn with(bytes: u64, block_bytes: usize, options: Option<&Options>) -> Self {
        let items = blocks_of(bytes, block_bytes);
        let least = options.map_or(bytes, Options::cache_bytes_least);
        Self {
            blocks: Cache::with(items, bytes, ByBytes, BuildHasherDefault::default(), DefaultLifecycle::default()),
            parts: Parts::new(options),
            share: Mutex::new(Share { all: bytes, least, blocks: bytes, parts: 0, unasked: 0 }),
            next_table: AtomicU64::new(0),
            admission: Admission::new(items),
            runs: AtomicU64::new(0),
            runs_most: bytes / RUNS_PART,
            tally: Tally::default(),
        }
    }

    /// Blocks, indexes and filters together may have so many bytes from now on.
    pub(crate) fn set_share(&self, bytes: u64) {
        let mut share = self.share.lock().unwrap_or_else(PoisonError::into_inner);
        share.all = bytes;
        share.unasked = if self.parts.was_asked() { 0 } else { share.unasked.saturating_add(1) };
        if share.unasked == UNASKED_MAX {
            self.parts.clear();
        }
        self.divide(&mut share);
    }

    /// An index or filter has come.
    pub(super) fn divide_anew(&self) {
        self.divide(&mut self.share.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn divide(&self, share: &mut Share) {
        let step = (share.least / STEPS).max(1);
        let left = share.all.saturating_sub(self.parts.pinned().next_multiple_of(step)).max(share.least);
        if let Some(parts) = changed(share.parts, left / 2, step) {
            share.parts = parts;
            self.parts.set_capacity(parts);
        }
        let blocks = left.saturating_sub(self.parts.lent().next_multiple_of(step));
        if let Some(blocks) = changed(share.blocks, blocks, step) {
            share.blocks = blocks;
            self.blocks.set_capacity(blocks);
        }
    }

    pub(super) const fn parts(&self) -> &Parts {
        &self.parts
    }

    /// A number for a table that is being opened.
    pub(super) fn table_number(&self) -> u64 {
        self.next_table.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, table: u64, offset: u64) -> Option<Arc<Block>> {
        let found = self.get_uncounted(table, offset);
        self.count(if found.is_some() { Event::CacheHit } else { Event::CacheMiss });
        found
    }

    pub(super) fn forget(&self, table: u64, offset: u64) {
        self.blocks.remove(&(table, offset));
    }

    /// [`BlockCache::get`] for a get, which counts all at its end.
    pub(super) fn get_uncounted(&self, table: u64, offset: u64) -> Option<Arc<Block>> {
        self.blocks.get(&(table, offset))
    }

    /// A block that was missed and read: it comes in if there is room, or if it was missed before.
    pub(super) fn offer(&self, table: u64, offset: u64, block: &Arc<Block>) {
        let key = (table, offset);
        if self.admission.admits(Self::hash_of(&key), || self.is_full()) {
            self.blocks.insert(key, Arc::clone(block));
        }
    }

    fn hash_of(key: &CacheKey) -> u64 {
        BuildHasherDefault::<Mix>::default().hash_one(key)
    }

    /// Whether a block that comes pushes out others.
    fn is_full(&self) -> bool {
        let capacity = self.blocks.capacity();
        self.blocks.weight() > capacity - capacity / 16
    }

    /// Counts so many bytes as read ahead if there is room.
    pub(super) fn reserve_run(&self, bytes: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.runs_most);
        self.runs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn release_run(&self, bytes: u64) {
        self.runs.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn count(&self, event: Event) {
        self.tally.count(event);
    }

    /// A get of the tree is over.
    pub(crate) fn count_get(&self, asked: &Asked) {
        self.tally.count_get(asked);
    }

    /// What reads counted.
    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Memory of what is remembered of missed blocks, in bytes.
    pub(crate) const fn missed_bytes(&self) -> u64 {
        self.admission.bytes()
    }

    /// Bytes of blocks held.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// Bytes of the indexes and filters that are pinned.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.parts.pinned()
    }

    /// Bytes of the other indexes and filters held.
    pub(crate) fn lent_bytes(&self) -> u64 {
        self.parts.lent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_up_and_down_a_little_changes_no_capacity_and_no_more_is_had_than_allowed() {
        let cache = BlockCache::of(&Options::with_memory_limit(64 << 20));
        let (mut capacity, mut changes) = (cache.blocks.capacity(), 0);
        for n in 0..10_000u64 {
            // A memtable that comes and goes, and indexes that wander.
            let most = (30 << 20) + (n * 7919) % (1 << 20) + (n / 1000 % 2) * (10 << 20);
            cache.set_share(most);
            assert!(cache.blocks.capacity() <= most, "{n}");
            assert!(cache.blocks.capacity() + (4 << 20) >= most, "{n}");
            changes += usize::from(std::mem::replace(&mut capacity, cache.blocks.capacity()) != capacity);
        }
        assert!(changes < 50, "{changes} changes");
    }
}
