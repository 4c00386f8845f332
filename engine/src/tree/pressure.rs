//! How far flush and compaction are behind, and how fast they work: what writers are slowed by.
//!
//! Owns: the measures and their bounds. They follow from sizes that change little when a job starts or ends, so that
//! writers are slowed smoothly and not in jumps. Never: waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Tree;
use super::compaction::shape::Targets;
use super::version::{LEVELS, Version};
use crate::limits::Options;

/// Level 0 holds writers back from so many times its trigger on …
const LEVEL0_FROM: f64 = 2.0;
/// … and at so many times it writers go as fast as it is merged.
const LEVEL0_FULL: f64 = 5.0;
/// As for level 0, of bytes above the levels' targets, in times the bytes of a full level 0.
const DEBT_FROM: f64 = 6.0;
const DEBT_FULL: f64 = 20.0;
/// More than this slows writers no further.
const MOST: f64 = 2.0;
/// Bytes a second that flush and compaction are taken to manage before any has been measured.
const RATE: u64 = 32 << 20;

/// What writers are slowed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Memtables wait for their flush.
    Flush = 0,
    /// Tables of level 0 wait for their merge.
    Level0 = 1,
    /// Deeper levels are over their sizes.
    Levels = 2,
}

/// How much writers should be slowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Slow {
    pub(crate) cause: Cause,
    /// Above 0; at 1, as fast as the background work; at most 2.
    pub(crate) by: f64,
    /// Bytes a second that the background work manages.
    pub(crate) rate: u64,
}

/// The measures, taken when the version changes. Parts are in thousandths.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    frozen: AtomicU64,
    level0: AtomicU64,
    levels: AtomicU64,
    flush_rate: AtomicU64,
    merge_rate: AtomicU64,
}

fn part(now: f64, from: f64, full: f64) -> u64 {
    (((now - from) / (full - from)).clamp(0.0, MOST) * 1e3) as u64
}

fn observe(rate: &AtomicU64, bytes: u64, took: Duration) {
    let now = (bytes as f64 / took.as_secs_f64().max(1e-6)) as u64;
    let before = rate.load(Ordering::Relaxed);
    let next = if before == 0 { now } else { before / 4 * 3 + now / 4 };
    rate.store(next.max(1), Ordering::Relaxed);
}

impl Pressure {
    pub(super) fn measure(&self, version: &Version, options: &Options) {
        self.frozen.store(version.frozen.len() as u64, Ordering::Relaxed);
        let trigger = options.level0_tables.max(1) as f64;
        let [level0, ..] = &version.levels;
        self.level0.store(part(level0.len() as f64 / trigger, LEVEL0_FROM, LEVEL0_FULL), Ordering::Relaxed);
        let sizes: [u64; LEVELS] =
            std::array::from_fn(|n| version.levels.get(n).map_or(0, |t| t.iter().map(|t| t.bytes()).sum()));
        let targets = Targets::of(&sizes, options.level_base_bytes);
        let over = |n: usize| sizes.get(n).map_or(0, |s| s.saturating_sub(targets.level(n)));
        let debt: u64 = (1..LEVELS - 1).map(over).sum();
        let full = trigger * options.memtable_bytes as f64;
        self.levels.store(part(debt as f64 / full, DEBT_FROM, DEBT_FULL), Ordering::Relaxed);
    }

    pub(super) fn flushed(&self, bytes: u64, took: Duration) {
        observe(&self.flush_rate, bytes, took);
    }

    /// So many bytes of level 0 went down.
    pub(super) fn merged(&self, bytes: u64, took: Duration) {
        observe(&self.merge_rate, bytes, took);
    }
}

impl Tree {
    /// Whether and how much a writer should be slowed now.
    pub(crate) fn slow(&self) -> Option<Slow> {
        let p = &self.pressure;
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let rate = |n: &AtomicU64| if load(n) == 0 { RATE } else { load(n) };
        // With one memtable in its flush there is nothing to hold anybody back.
        let frozen = load(&p.frozen);
        let flush = if frozen >= 2 { self.unflushed_part(frozen) } else { 0 };
        let (level0, levels) = (load(&p.level0), load(&p.levels));
        let (by, cause) = [(flush, Cause::Flush), (level0, Cause::Level0), (levels, Cause::Levels)]
            .into_iter()
            .max_by_key(|(by, _)| *by)?;
        let rate = if cause == Cause::Flush { rate(&p.flush_rate) } else { rate(&p.merge_rate) };
        (by > 0).then(|| Slow { cause, by: by as f64 / 1e3, rate })
    }

    /// Memtables count from when half of what may wait waits.
    fn unflushed_part(&self, frozen: u64) -> u64 {
        let active = self.published.with(|v| v.active.bytes()) as f64 / self.options.memtable_bytes.max(1) as f64;
        let all = (self.options.frozen_memtables_max + 1) as f64;
        part((frozen as f64 + active.min(1.0)) / all, 0.5, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_zero_at_its_beginning_one_where_it_is_full_and_bounded() {
        assert_eq!([1.0, 2.0, 3.5, 5.0, 99.0].map(|n| part(n, 2.0, 5.0)), [0, 0, 500, 1000, 2000]);
    }

    #[test]
    fn rates_follow_what_is_seen() {
        let p = Pressure::default();
        p.flushed(100, Duration::from_secs(1));
        assert_eq!(p.flush_rate.load(Ordering::Relaxed), 100);
        p.flushed(1_000, Duration::from_secs(1));
        assert_eq!(p.flush_rate.load(Ordering::Relaxed), 325);
    }
}
