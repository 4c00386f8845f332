//! The memory of tables' indexes and filters: pinned as long as their table is open, or lent while there is room.
//!
//! What reads of present keys need is pinned up to a bound, and found without a lock. The indexes and filters of
//! history tables, which only reads of the past ask, and those that come once the bound is reached, are in a cache
//! that lets go of what is asked least; one too large for it is read from its file each time. Owns: both bounds.
//! Never: blocks.

use std::fmt;
use std::hash::BuildHasherDefault;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::cache::{CacheKey, Mix};
use super::filter::Filter;
use super::index::Index;
use crate::limits::Options;

/// A shard of the cache has room for the index and the filter of a large table. In bytes.
const SHARD_BYTES: u64 = 4 << 20;
const SHARDS_MOST: u64 = 16;
/// What a part has about it in the cache, in bytes.
const ENTRY_BYTES: u64 = 128;

/// An index or filter, as the cache has it.
#[derive(Clone, Debug)]
pub(super) enum Any {
    Index(Arc<Index>),
    Filter(Arc<Filter>),
}

/// What an index and a filter have in common.
pub(super) trait Part: Sized {
    /// Which of a table's parts it is.
    const KIND: u64;

    /// Memory in bytes.
    fn memory(&self) -> u64;

    fn into_any(part: Arc<Self>) -> Any;

    fn from_any(any: Any) -> Option<Arc<Self>>;
}

impl Part for Index {
    const KIND: u64 = 0;

    fn memory(&self) -> u64 {
        self.bytes() + ENTRY_BYTES
    }

    fn into_any(part: Arc<Self>) -> Any {
        Any::Index(part)
    }

    fn from_any(any: Any) -> Option<Arc<Self>> {
        if let Any::Index(index) = any { Some(index) } else { None }
    }
}

impl Part for Filter {
    const KIND: u64 = 1;

    fn memory(&self) -> u64 {
        self.bytes() as u64 + ENTRY_BYTES
    }

    fn into_any(part: Arc<Self>) -> Any {
        Any::Filter(part)
    }

    fn from_any(any: Any) -> Option<Arc<Self>> {
        if let Any::Filter(filter) = any { Some(filter) } else { None }
    }
}

#[derive(Clone, Copy, Debug)]
struct ByBytes;

impl Weighter<CacheKey, Any> for ByBytes {
    fn weight(&self, _: &CacheKey, part: &Any) -> u64 {
        match part {
            Any::Index(index) => index.memory(),
            Any::Filter(filter) => filter.memory(),
        }
    }
}

/// A part for who asks it.
#[derive(Debug)]
pub(super) enum Lent<'a, P> {
    Pinned(&'a P),
    /// It may leave the cache meanwhile: its memory counts no longer then, so nobody keeps it beyond a step.
    Shared(Arc<P>),
}

impl<P> Deref for Lent<'_, P> {
    type Target = P;

    fn deref(&self) -> &P {
        match self {
            Self::Pinned(part) => part,
            Self::Shared(part) => part,
        }
    }
}

/// See the module.
pub(super) struct Parts {
    cache: Cache<CacheKey, Any, ByBytes, BuildHasherDefault<Mix>>,
    pinned: AtomicU64,
    /// `None`: of tables that somebody reads once and alone, everything is pinned.
    bounds: Option<Pins>,
    asked: AtomicBool,
}

/// How much is pinned.
#[derive(Clone, Copy, Debug)]
struct Pins {
    /// Bytes at most.
    most: u64,
    /// Filters at the bottom only up to here.
    bottom: u64,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("pinned", &self.pinned).field("bounds", &self.bounds).finish_non_exhaustive()
    }
}

impl Parts {
    /// Of a tree with these options, or without bounds.
    pub(super) fn new(options: Option<&Options>) -> Self {
        let bytes = options.map_or(0, |o| o.memory_limit / 16);
        let shards = usize::try_from((bytes / SHARD_BYTES).clamp(1, SHARDS_MOST)).unwrap_or(1);
        let items = usize::try_from(bytes >> 14).unwrap_or(usize::MAX).clamp(64, 1 << 16);
        let shape = OptionsBuilder::new().shards(shards).estimated_items_capacity(items).weight_capacity(bytes).build();
        let (weigher, hasher, life) = (ByBytes, BuildHasherDefault::default(), DefaultLifecycle::default());
        let cache = match shape {
            Ok(shape) => Cache::with_options(shape, weigher, hasher, life),
            // Only a shape that leaves something out is refused.
            Err(_) => Cache::with(items, bytes, weigher, hasher, life),
        };
        let bounds = options.map(|o| Pins { most: o.pinned_bytes_most(), bottom: o.memory_limit / 4 });
        Self { cache, pinned: AtomicU64::new(0), bounds, asked: AtomicBool::new(false) }
    }

    pub(super) fn get<P: Part>(&self, table: u64) -> Option<Arc<P>> {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
        }
        P::from_any(self.cache.get(&(table, P::KIND))?)
    }

    pub(super) fn insert<P: Part>(&self, table: u64, part: &Arc<P>) {
        self.cache.insert((table, P::KIND), P::into_any(Arc::clone(part)));
    }

    /// The table's last handle is gone: nobody will ask for these any more.
    pub(super) fn forget(&self, table: u64) {
        self.cache.remove(&(table, Index::KIND));
        self.cache.remove(&(table, Filter::KIND));
    }

    /// Counts so many bytes as pinned if there is room. `needed`: whether reads of present keys ask for them.
    pub(super) fn pin(&self, bytes: u64, needed: bool) -> bool {
        let most = self.bounds.map_or(u64::MAX, |b| if needed { b.most } else { 0 });
        let more = |pinned: u64| pinned.checked_add(bytes).filter(|sum| *sum <= most);
        self.pinned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn unpin(&self, bytes: u64) {
        self.pinned.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether so much is pinned that the block cache serves reads of present keys better than filters at the bottom.
    pub(super) fn enough(&self) -> bool {
        self.bounds.is_some_and(|b| self.pinned() > b.bottom)
    }

    pub(super) fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Bytes in the cache.
    pub(super) fn lent(&self) -> u64 {
        self.cache.weight()
    }

    pub(super) fn set_capacity(&self, bytes: u64) {
        self.cache.set_capacity(bytes);
    }

    /// Whether anything in the cache was asked for since the last call.
    pub(super) fn was_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    pub(super) fn clear(&self) {
        self.cache.clear();
    }
}
