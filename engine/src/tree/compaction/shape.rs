//! The tables of a tree as the choice of a compaction sees them: facts, without files.
//!
//! Owns: overlaps, sizes, the sizes that levels should have. Never: I/O.

use std::sync::Arc;

use crate::lsn::Lsn;
use crate::table::reader::Table;
use crate::table::{RangeDelete, below_end};
use crate::tree::version::{LEVELS, Version};

/// Each level is as many times larger than the one above.
pub(super) const FANOUT: u64 = 10;

/// A table as the choice sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) id: u128,
    pub(super) bytes: u64,
    /// First and last key; `None` without entries.
    pub(super) keys: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) entries: u64,
    pub(super) deletes: u64,
    pub(super) expiring: u64,
    /// Earliest and latest expiry.
    pub(super) expiry: (u64, u64),
    pub(super) ranges: Vec<RangeDelete>,
    pub(super) min_lsn: Lsn,
    pub(super) max_lsn: Lsn,
    /// The newest record whose commit time is in here.
    pub(super) last_time: Lsn,
    /// Of a history table.
    pub(super) superseded: Lsn,
    /// Scans pass over long runs of entries in it.
    pub(super) crowded: bool,
}

impl Candidate {
    pub(super) fn of(table: &Arc<Table>) -> Self {
        let p = table.properties();
        Self {
            id: table.id(),
            bytes: table.bytes(),
            keys: (p.entries > 0).then(|| (p.min_key.clone(), p.max_key.clone())),
            entries: p.entries,
            deletes: p.deletes,
            expiring: p.expiring,
            expiry: p.expiry,
            ranges: table.ranges().to_vec(),
            min_lsn: p.min_lsn,
            max_lsn: p.max_lsn,
            last_time: p.last_time.0,
            superseded: p.superseded,
            crowded: table.is_crowded(),
        }
    }

    /// Whether some key may be in both.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        let (Some((a, b)), Some((c, d))) = (&self.keys, &other.keys) else { return false };
        a <= d && c <= b
    }

    /// Whether the range delete covers entries of this table that are older.
    pub(super) fn touched_by(&self, r: &RangeDelete) -> bool {
        let Some((first, last)) = &self.keys else { return false };
        self.min_lsn < r.lsn && below_end(first, &r.end) && r.start <= *last
    }

    /// Whether it hides everything in this table.
    pub(super) fn buried_by(&self, r: &RangeDelete) -> bool {
        let Some((first, last)) = &self.keys else { return false };
        self.max_lsn < r.lsn && r.start <= *first && below_end(last, &r.end)
    }
}

/// All tables, by level.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    /// Level 0 newest first, the others by key.
    pub(super) levels: [Vec<Candidate>; LEVELS],
    pub(super) history: Vec<Candidate>,
}

impl Shape {
    pub(super) fn of(version: &Version) -> Self {
        let candidates = |tables: &[Arc<Table>]| tables.iter().map(Candidate::of).collect();
        Self {
            levels: std::array::from_fn(|n| version.levels.get(n).map(|t| candidates(t)).unwrap_or_default()),
            history: candidates(&version.history),
        }
    }

    pub(super) fn level(&self, level: usize) -> &[Candidate] {
        self.levels.get(level).map_or(&[], Vec::as_slice)
    }

    pub(super) fn tables(&self) -> impl Iterator<Item = &Candidate> {
        self.levels.iter().flatten()
    }

    pub(super) fn sizes(&self) -> [u64; LEVELS] {
        std::array::from_fn(|n| self.level(n).iter().map(|t| t.bytes).sum())
    }

    /// The tables of a level with keys between the first and the last of `others`; those without entries join all.
    pub(super) fn overlapping<'a>(&'a self, level: usize, others: &[&Candidate]) -> Vec<&'a Candidate> {
        let keys = || others.iter().filter_map(|o| o.keys.as_ref());
        let first = keys().map(|(first, _)| first).min();
        let last = keys().map(|(_, last)| last).max();
        let hull = Candidate { keys: first.cloned().zip(last.cloned()), ..Candidate::default() };
        self.level(level).iter().filter(|t| t.keys.is_none() || hull.overlaps(t)).collect()
    }
}

/// How large each level should be, in bytes, and the level into which level 0 is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) base: usize,
    pub(crate) bytes: [u64; LEVELS],
}

impl Targets {
    /// Sizes follow from the deepest level's, which holds nearly everything, so that they stay put while data
    /// moves down (RocksDB's dynamic level bytes): each level above is a [`FANOUT`]th of it, until one is at most
    /// `base_bytes` large. That is the base; levels above it should be empty.
    pub(crate) fn of(sizes: &[u64; LEVELS], base_bytes: u64) -> Self {
        let last = LEVELS - 1;
        let largest = sizes.iter().skip(1).copied().max().unwrap_or_default();
        let mut bytes = [0; LEVELS];
        let (mut base, mut size) = (last, largest);
        let mut set = |level: usize, size: u64| {
            if let Some(b) = bytes.get_mut(level) {
                *b = size.max(base_bytes / FANOUT).max(1);
            }
        };
        set(last, size.max(base_bytes));
        while base > 1 && size > base_bytes {
            (base, size) = (base - 1, size / FANOUT);
            set(base, size);
        }
        // What shrank leaves levels above the base behind: they come down first.
        let first_used = (1..LEVELS).find(|l| sizes.get(*l).is_some_and(|s| *s > 0)).unwrap_or(last);
        Self { base: base.min(first_used), bytes }
    }

    pub(crate) fn level(&self, level: usize) -> u64 {
        self.bytes.get(level).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_come_between_as_the_last_one_grows() {
        let of = |last: u64| Targets::of(&[0, 0, 0, 0, 0, 0, last], 1000);
        assert_eq!((of(0).base, of(0).bytes), (6, [0, 0, 0, 0, 0, 0, 1000]));
        assert_eq!(of(900).base, 6);
        assert_eq!((of(2000).base, of(2000).bytes), (5, [0, 0, 0, 0, 0, 200, 2000]));
        assert_eq!((of(50_000).base, of(50_000).bytes), (4, [0, 0, 0, 0, 500, 5000, 50_000]));
        assert_eq!(of(u64::MAX).base, 1);
    }

    #[test]
    fn a_level_above_the_base_is_emptied_first() {
        let t = Targets::of(&[0, 0, 7, 0, 0, 0, 900], 1000);
        assert_eq!((t.base, t.level(2)), (2, 0));
    }
}
