//! What reads count. Each thread counts in a place of its own, or two readers would fight for it.
//!
//! Owns: the counters. Never: anything that a read depends on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// A block for anybody but a get was in the cache.
    CacheHit,
    CacheMiss,
    /// A block for a get was in the cache.
    GetHit,
    GetMiss,
    /// A get that came to its end without a look into the index of any table.
    GetUnsearched,
    /// A get that looked into a table's index.
    GetSearched,
    /// Tables beyond the first into whose index a get looked.
    SearchedMore,
    /// The filter spared a look into the table.
    FilterSpared,
    /// The filter let a look-up pass whose key was not there.
    FilterWrong,
    /// An index or filter was read from its file.
    PartLoaded,
}

const EVENTS: usize = 10;
/// More threads than this share places.
const PLACES: usize = 16;

/// A place as large as what a processor hands over at once.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place([AtomicU64; EVENTS]);

impl Place {
    fn add(&self, event: Event, times: u64) {
        if let Some(counter) = self.0.get(event as usize) {
            counter.fetch_add(times, Ordering::Relaxed);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally([Place; PLACES]);

/// What one get does on its way through the tables. It is counted at once when the get is over.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// Tables whose index was searched.
    pub(super) tables: u64,
    /// Data blocks looked at that were in the cache, and that were not.
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// As [`Event::FilterSpared`] and [`Event::FilterWrong`].
    pub(crate) spared: u64,
    pub(super) wrong: u64,
}

/// Sums of all places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Gets, the tables whose index these searched, and the data blocks that they looked at.
    pub(crate) gets: u64,
    pub(crate) get_tables: u64,
    pub(crate) get_blocks: u64,
    /// Of gets and of all others.
    pub(crate) cache_hits: u64,
    pub(crate) cache_misses: u64,
    pub(crate) filter_spared: u64,
    pub(crate) filter_wrong: u64,
    pub(crate) parts_loaded: u64,
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MINE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % PLACES;
}

impl Tally {
    fn mine(&self) -> Option<&Place> {
        // A thread that is ending has no place any more: any other does as well.
        self.0.get(MINE.try_with(|m| *m).unwrap_or_default())
    }

    pub(super) fn count(&self, event: Event) {
        if let Some(place) = self.mine() {
            place.add(event, 1);
        }
    }

    /// A get is over. What did not happen costs nothing: a usual get, of one block in one table, adds to two counters of
    /// the thread's own place.
    pub(super) fn count_get(&self, asked: &Asked) {
        let Some(place) = self.mine() else { return };
        place.add(if asked.tables == 0 { Event::GetUnsearched } else { Event::GetSearched }, 1);
        let seldom = [(Event::SearchedMore, asked.tables.saturating_sub(1)), (Event::FilterWrong, asked.wrong)];
        let often = [(Event::GetHit, asked.hits), (Event::GetMiss, asked.misses), (Event::FilterSpared, asked.spared)];
        for (event, times) in often.into_iter().chain(seldom).filter(|(_, times)| *times > 0) {
            place.add(event, times);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let sum = |event: Event| {
            let of = |p: &Place| p.0.get(event as usize).map_or(0, |c| c.load(Ordering::Relaxed));
            self.0.iter().map(of).sum()
        };
        let (hits, misses) = (sum(Event::GetHit), sum(Event::GetMiss));
        let searched = sum(Event::GetSearched);
        Counts {
            gets: searched + sum(Event::GetUnsearched),
            get_tables: searched + sum(Event::SearchedMore),
            get_blocks: hits + misses,
            cache_hits: hits + sum(Event::CacheHit),
            cache_misses: misses + sum(Event::CacheMiss),
            filter_spared: sum(Event::FilterSpared),
            filter_wrong: sum(Event::FilterWrong),
            parts_loaded: sum(Event::PartLoaded),
        }
    }
}
