//! Range deletes by key: disjoint fragments, each with the LSNs of all range deletes that cover it.
//!
//! A look-up costs one search however many range deletes there are. Owns: cutting ranges into fragments.
//! Never: which of them still count.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::lsn::Lsn;
use crate::table::{RangeDelete, below_end};

#[derive(Clone, Debug)]
struct Fragment {
    /// Exclusive; empty is above every key.
    end: Vec<u8>,
    /// Ascending.
    lsns: Vec<Lsn>,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeIndex {
    by_start: BTreeMap<Vec<u8>, Fragment>,
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
        self.by_start.is_empty()
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
        self.cut(&r.start);
        if !r.end.is_empty() {
            self.cut(&r.end);
        }
        // Fragments inside of the range stand whole; what lies between them is filled.
        let high = if r.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(r.end.as_slice()) };
        let mut gaps = Vec::new();
        let mut at = Some(r.start.clone());
        for (start, f) in self.by_start.range_mut::<[u8], _>((Bound::Included(r.start.as_slice()), high)) {
            if let Some(from) = at.take().filter(|a| a < start) {
                gaps.push((from, start.clone()));
            }
            f.lsns.push(r.lsn);
            self.bytes += size_of::<Lsn>();
            at = (!f.end.is_empty()).then(|| f.end.clone());
        }
        if let Some(from) = at.filter(|a| below_end(a, &r.end)) {
            gaps.push((from, r.end.clone()));
        }
        for (start, end) in gaps {
            self.put(start, Fragment { end, lsns: vec![r.lsn] });
        }
    }

    fn put(&mut self, start: Vec<u8>, f: Fragment) {
        self.bytes += start.len() + f.end.len() + f.lsns.len() * size_of::<Lsn>() + 2 * size_of::<Fragment>();
        self.by_start.insert(start, f);
    }

    /// Makes a fragment that goes across `key` two that meet there.
    fn cut(&mut self, key: &[u8]) {
        let before = self.by_start.range_mut::<[u8], _>((Bound::Unbounded, Bound::Excluded(key))).next_back();
        if let Some((_, f)) = before
            && below_end(key, &f.end)
        {
            let behind = f.clone();
            f.end = key.to_vec();
            self.put(key.to_vec(), behind);
        }
    }

    fn lsns(&self, key: &[u8]) -> &[Lsn] {
        let upto = (Bound::Unbounded, Bound::Included(key));
        let last = self.by_start.range::<[u8], _>(upto).next_back();
        last.filter(|(_, f)| below_end(key, &f.end)).map_or(&[], |(_, f)| &f.lsns)
    }

    /// The highest LSN, at most `at`, of a range delete that covers `key`; `ZERO` without one.
    pub(crate) fn covering(&self, key: &[u8], at: Lsn) -> Lsn {
        let lsns = self.lsns(key);
        let n = lsns.partition_point(|l| *l <= at);
        n.checked_sub(1).and_then(|n| lsns.get(n)).copied().unwrap_or_default()
    }

    /// The lowest LSN above `lsn` of a range delete that covers `key`.
    pub(crate) fn first_above(&self, key: &[u8], lsn: Lsn) -> Option<Lsn> {
        let lsns = self.lsns(key);
        lsns.get(lsns.partition_point(|l| *l <= lsn)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_answers_as_the_list_does(ranges in proptest::collection::vec((0u8..12, 0u8..13), 0..20)) {
            let list: Vec<RangeDelete> = ranges.iter().zip(1..).map(|((a, b), lsn)| RangeDelete {
                start: vec![*a],
                end: if *b == 12 { Vec::new() } else { vec![*b] },
                lsn: Lsn(lsn),
            }).collect();
            let index = RangeIndex::of(list.iter().rev());
            for key in 0u8..14 {
                let covers = || list.iter().filter(|r| r.contains(&[key])).map(|r| r.lsn);
                for lsn in (0..22).map(Lsn) {
                    let covering = covers().filter(|l| *l <= lsn).max().unwrap_or_default();
                    prop_assert_eq!(index.covering(&[key], lsn), covering);
                    prop_assert_eq!(index.first_above(&[key], lsn), covers().filter(|l| *l > lsn).min());
                }
            }
        }
    }
}
