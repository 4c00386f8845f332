//! What reads count. Each thread counts in a place of its own, or two readers would fight for it.
//!
//! Owns: the counters. Never: anything that a read depends on.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    CacheHit,
    CacheMiss,
    /// The filter spared a look into the table.
    FilterSpared,
    /// The filter let a look-up pass whose key was not there.
    FilterWrong,
    /// An index or filter was read from its file.
    PartLoaded,
}

const EVENTS: usize = 5;
/// More threads than this share places.
const PLACES: usize = 16;

/// A place as large as what a processor hands over at once.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Place([AtomicU64; EVENTS]);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally([Place; PLACES]);

/// Sums of all places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
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
    pub(super) fn count(&self, event: Event, times: u64) {
        // A thread that is ending has no place any more: any other does as well.
        let place = MINE.try_with(|m| *m).unwrap_or_default();
        if let Some(counter) = self.0.get(place).and_then(|p| p.0.get(event as usize)) {
            counter.fetch_add(times, Ordering::Relaxed);
        }
    }

    pub(super) fn counts(&self) -> Counts {
        let sum = |event: Event| {
            let of = |p: &Place| p.0.get(event as usize).map_or(0, |c| c.load(Ordering::Relaxed));
            self.0.iter().map(of).sum()
        };
        Counts {
            cache_hits: sum(Event::CacheHit),
            cache_misses: sum(Event::CacheMiss),
            filter_spared: sum(Event::FilterSpared),
            filter_wrong: sum(Event::FilterWrong),
            parts_loaded: sum(Event::PartLoaded),
        }
    }
}
