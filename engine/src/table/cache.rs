//! The block cache: decoded data blocks, weighed in bytes, shared by all tables of a tree.
//!
//! Owns: the bound on its memory, what reads count. Never: blocks read by compaction, which
//! would push out what readers use.

use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};

use super::block::Block;
use super::tally::{Counts, Event, Tally};

/// Table file number (unique within the process) and offset of the block.
type CacheKey = (u64, u64);

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
struct Mix(u64);

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

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockCache {
    blocks: Cache<CacheKey, Arc<Block>, ByBytes, BuildHasherDefault<Mix>>,
    next_table: AtomicU64,
    tally: Tally,
}

impl BlockCache {
    pub(crate) fn new(bytes: u64, block_bytes: usize) -> Self {
        let items = usize::try_from(bytes / block_bytes.max(64) as u64).unwrap_or(usize::MAX).clamp(16, 1 << 22);
        Self {
            blocks: Cache::with(items, bytes, ByBytes, BuildHasherDefault::default(), DefaultLifecycle::default()),
            next_table: AtomicU64::new(0),
            tally: Tally::default(),
        }
    }

    /// Holds at most this many bytes from now on.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        if self.blocks.capacity() != bytes {
            self.blocks.set_capacity(bytes);
        }
    }

    /// Holds so many bytes less until [`BlockCache::set_capacity`] is told anew.
    pub(crate) fn give_up(&self, bytes: u64) {
        self.set_capacity(self.blocks.capacity().saturating_sub(bytes));
    }

    /// A number for a table that is being opened.
    pub(super) fn table_number(&self) -> u64 {
        self.next_table.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, table: u64, offset: u64) -> Option<Arc<Block>> {
        let found = self.blocks.get(&(table, offset));
        self.count(if found.is_some() { Event::CacheHit } else { Event::CacheMiss });
        found
    }

    pub(super) fn insert(&self, table: u64, offset: u64, block: &Arc<Block>) {
        self.blocks.insert((table, offset), Arc::clone(block));
    }

    pub(super) fn count(&self, event: Event) {
        self.tally.count(event);
    }

    /// What reads counted.
    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.blocks.weight()
    }
}
