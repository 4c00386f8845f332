//! Range deletes by key, in two layers.
//!
//! `newest` has the highest LSN of each stretch of keys: one search answers a read at the present, however many
//! range deletes there are. `blocks` have all LSNs, for reads in the past and for compaction: so many range deletes
//! in order of LSN make a block of disjoint fragments, each with the LSNs of the block that cover it. However the
//! ranges lie across each other, memory grows no faster than their number. Owns: cutting ranges into fragments.
//! Never: which of them still count.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::lsn::Lsn;
use crate::table::{RangeDelete, below_end};

/// Range deletes of one block: each can add its LSN to as many fragments as the block has bounds.
const BLOCK_RANGES: usize = 256;

#[derive(Clone, Debug)]
struct Fragment<T> {
    /// Exclusive; empty is above every key.
    end: Vec<u8>,
    lsns: T,
}

/// Disjoint fragments by their starts.
type Fragments<T> = BTreeMap<Vec<u8>, Fragment<T>>;

#[derive(Clone, Debug, Default)]
struct Block {
    /// LSNs ascending.
    fragments: Fragments<Vec<Lsn>>,
    ranges: usize,
    first: Lsn,
    last: Lsn,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeIndex {
    newest: Fragments<Lsn>,
    /// In order of LSN.
    blocks: Vec<Block>,
    bytes: usize,
}

impl RangeIndex {
    pub(crate) fn of<'a>(ranges: impl Iterator<Item = &'a RangeDelete>) -> Self {
        let mut ranges: Vec<&RangeDelete> = ranges.collect();
        ranges.sort_by_key(|r| r.lsn);
        let mut out = Self::default();
        ranges.into_iter().for_each(|r| out.insert(r));
        out
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    /// Memory in bytes, about.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a range delete whose LSN is not below any other's.
    pub(crate) fn insert(&mut self, r: &RangeDelete) {
        if !below_end(&r.start, &r.end) {
            return;
        }
        self.cover(r);
        if self.blocks.last().is_none_or(|b| b.ranges == BLOCK_RANGES) {
            self.blocks.push(Block { first: r.lsn, ..Block::default() });
        }
        if let Some(block) = self.blocks.last_mut() {
            self.bytes += block.insert(r);
        }
    }

    /// Puts one fragment in the place of all that the range covers.
    fn cover(&mut self, r: &RangeDelete) {
        self.bytes += cut(&mut self.newest, &r.start);
        if !r.end.is_empty() {
            self.bytes += cut(&mut self.newest, &r.end);
        }
        let inside = self.newest.range::<[u8], _>((Bound::Included(r.start.as_slice()), high(&r.end)));
        let inside: Vec<Vec<u8>> = inside.map(|(start, _)| start.clone()).collect();
        for start in inside {
            if let Some(f) = self.newest.remove(&start) {
                self.bytes = self.bytes.saturating_sub(size(&start, &f));
            }
        }
        let fragment = Fragment { end: r.end.clone(), lsns: r.lsn };
        self.bytes += size(&r.start, &fragment);
        self.newest.insert(r.start.clone(), fragment);
    }

    /// The highest LSN, at most `at`, of a range delete that covers `key`; `ZERO` without one.
    pub(crate) fn covering(&self, key: &[u8], at: Lsn) -> Lsn {
        let Some(newest) = find(&self.newest, key) else { return Lsn::ZERO };
        if *newest <= at {
            return *newest;
        }
        let before = self.blocks.partition_point(|b| b.first <= at);
        let blocks = self.blocks.iter().take(before).rev();
        blocks.filter_map(|b| b.at_most(key, at)).next().unwrap_or_default()
    }

    /// The lowest LSN above `lsn` of a range delete that covers `key`.
    pub(crate) fn first_above(&self, key: &[u8], lsn: Lsn) -> Option<Lsn> {
        find(&self.newest, key).filter(|newest| **newest > lsn)?;
        let before = self.blocks.partition_point(|b| b.last <= lsn);
        self.blocks.iter().skip(before).find_map(|b| b.above(key, lsn))
    }
}

impl Block {
    /// Returns by how much the memory grew, in bytes.
    fn insert(&mut self, r: &RangeDelete) -> usize {
        self.ranges += 1;
        self.last = r.lsn;
        let mut grown = cut(&mut self.fragments, &r.start);
        if !r.end.is_empty() {
            grown += cut(&mut self.fragments, &r.end);
        }
        // Fragments inside of the range stand whole; what lies between them is filled.
        let mut gaps = Vec::new();
        let mut at = Some(r.start.clone());
        for (start, f) in self.fragments.range_mut::<[u8], _>((Bound::Included(r.start.as_slice()), high(&r.end))) {
            if let Some(from) = at.take().filter(|a| a < start) {
                gaps.push((from, start.clone()));
            }
            f.lsns.push(r.lsn);
            grown += size_of::<Lsn>();
            at = (!f.end.is_empty()).then(|| f.end.clone());
        }
        if let Some(from) = at.filter(|a| below_end(a, &r.end)) {
            gaps.push((from, r.end.clone()));
        }
        for (start, end) in gaps {
            let fragment = Fragment { end, lsns: vec![r.lsn] };
            grown += size(&start, &fragment);
            self.fragments.insert(start, fragment);
        }
        grown
    }

    fn at_most(&self, key: &[u8], at: Lsn) -> Option<Lsn> {
        let lsns = find(&self.fragments, key)?;
        lsns.get(lsns.partition_point(|l| *l <= at).checked_sub(1)?).copied()
    }

    fn above(&self, key: &[u8], lsn: Lsn) -> Option<Lsn> {
        let lsns = find(&self.fragments, key)?;
        lsns.get(lsns.partition_point(|l| *l <= lsn)).copied()
    }
}

/// How much memory the LSNs of a fragment take beside the fragment itself.
trait Weigh {
    fn bytes(&self) -> usize;
}

impl Weigh for Lsn {
    fn bytes(&self) -> usize {
        0
    }
}

impl Weigh for Vec<Lsn> {
    fn bytes(&self) -> usize {
        self.len() * size_of::<Lsn>()
    }
}

fn size<T: Weigh>(start: &[u8], f: &Fragment<T>) -> usize {
    start.len() + f.end.len() + f.lsns.bytes() + 2 * size_of::<Fragment<T>>()
}

const fn high(end: &[u8]) -> Bound<&[u8]> {
    if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) }
}

/// Makes a fragment that goes across `key` two that meet there; returns by how much the memory grew.
fn cut<T: Weigh + Clone>(fragments: &mut Fragments<T>, key: &[u8]) -> usize {
    let before = fragments.range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
    if let Some((_, f)) = before
        && below_end(key, &f.end)
    {
        let behind = f.clone();
        f.end = key.to_vec();
        let grown = size(key, &behind);
        fragments.insert(key.to_vec(), behind);
        return grown;
    }
    0
}

/// What the fragment says in which `key` lies.
fn find<'a, T>(fragments: &'a Fragments<T>, key: &[u8]) -> Option<&'a T> {
    #[cfg(test)]
    tests::SEARCHES.set(tests::SEARCHES.get() + 1);
    let last = fragments.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
    last.filter(|(_, f)| below_end(key, &f.end)).map(|(_, f)| &f.lsns)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;
    use proptest::prelude::*;

    thread_local! {
        /// Searches of this thread.
        pub(crate) static SEARCHES: Cell<u64> = const { Cell::new(0) };
    }

    type Bounds = (Vec<u8>, Vec<u8>);

    fn key(n: usize) -> Vec<u8> {
        format!("{n:06}").into_bytes()
    }

    /// The trimming of a queue, prefix by prefix, and ranges that lie across each other.
    #[test]
    fn many_range_deletes_cost_a_present_read_one_search_and_no_more_memory_than_their_number() {
        let n = 10_000;
        let apart = |i: usize| (key(2 * i), key(2 * i + 1));
        let growing = |i: usize| (key(0), key(i + 1));
        let nested = |i: usize| (key(i), key(2 * n - i));
        let across = |i: usize| (key(i * 7_919 % n), key(i * 7_919 % n + n / 2));
        let shapes: [&dyn Fn(usize) -> Bounds; 4] = [&apart, &growing, &nested, &across];
        for (shape, range) in shapes.into_iter().enumerate() {
            let of = |i: usize| RangeDelete { start: range(i).0, end: range(i).1, lsn: Lsn(i as u64 + 1) };
            let ranges: Vec<_> = (0..n).map(of).collect();
            let index = RangeIndex::of(ranges.iter());
            assert!(index.bytes() / n <= 8 * 2 * BLOCK_RANGES + 500, "shape {shape}: {} bytes each", index.bytes() / n);
            for i in (0..2 * n).step_by(97) {
                let covers = || ranges.iter().filter(|r| r.contains(&key(i))).map(|r| r.lsn);
                let before = SEARCHES.get();
                assert_eq!(index.covering(&key(i), Lsn::MAX), covers().max().unwrap_or_default(), "shape {shape}");
                assert_eq!(SEARCHES.get() - before, 1, "shape {shape}");
                let at = Lsn(i as u64 / 2);
                assert_eq!(index.covering(&key(i), at), covers().filter(|l| *l <= at).max().unwrap_or_default());
                assert_eq!(index.first_above(&key(i), at), covers().filter(|l| *l > at).min());
            }
        }
    }

    proptest! {
        #[test]
        fn it_answers_as_the_list_does(ranges in proptest::collection::vec((0u8..12, 0u8..13), 0..20), times in 1usize..40) {
            // Often enough for several blocks.
            let list: Vec<RangeDelete> = ranges.iter().cycle().take(ranges.len() * times).zip(1..).map(|((a, b), lsn)| RangeDelete {
                start: vec![*a],
                end: if *b == 12 { Vec::new() } else { vec![*b] },
                lsn: Lsn(lsn),
            }).collect();
            let index = RangeIndex::of(list.iter().rev());
            for key in 0u8..14 {
                let covers = || list.iter().filter(|r| r.contains(&[key])).map(|r| r.lsn);
                for lsn in (0..list.len() as u64 + 2).step_by(times).map(Lsn) {
                    let covering = covers().filter(|l| *l <= lsn).max().unwrap_or_default();
                    prop_assert_eq!(index.covering(&[key], lsn), covering);
                    prop_assert_eq!(index.first_above(&[key], lsn), covers().filter(|l| *l > lsn).min());
                }
            }
        }
    }
}
