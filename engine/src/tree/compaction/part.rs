//! A part of a merge: the entries of a stretch of keys, merged in steps by one thread at a time.
//!
//! Owns: what is read, written and dropped there. Never: what other parts do, the manifest, wall clocks, the block
//! cache, or more memory than a read-ahead per input and the blocks that are built.

use std::sync::Arc;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::table::superseded::Superseded;
use crate::table::times::Times;
use crate::table::{Bounds, EntryRef};
use crate::tree::merge::Merge;

use super::outputs::Outputs;
use super::rule::{Dropped, Fate, Reason, Rule};

/// Entries between two looks at how much was done.
const ENTRIES: u32 = 64;

#[derive(Debug)]
pub(super) enum Kind {
    Main(Rule),
    /// Of history tables: what is superseded at or below this is dropped.
    History(Lsn),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Part {
    /// Which of the merge's parts, by key from 0 on.
    pub(super) number: usize,
    pub(super) outputs: Outputs,
    pub(super) dropped: Dropped,
    /// Bytes of keys and values merged so far.
    pub(super) processed: u64,
    /// Entries read so far.
    pub(super) read: u64,
    kind: Kind,
    merge: Merge,
    /// Range deletes are still to go into the last main table.
    open_end: bool,
}

impl Part {
    pub(super) fn new(number: usize, kind: Kind, merge: Merge, outputs: Outputs, open_end: bool) -> Self {
        Self { number, outputs, dropped: Dropped::default(), processed: 0, read: 0, kind, merge, open_end }
    }

    /// Merges about so many bytes; true when all is merged, and its main tables are finished unless they stay open.
    pub(super) fn step(&mut self, bytes: usize) -> Result<bool> {
        let end = self.processed.saturating_add(bytes as u64);
        loop {
            for _ in 0..ENTRIES {
                if !self.merge.advance()? {
                    if !self.open_end {
                        self.outputs.finish_main(&[], &Times::default())?;
                    }
                    return Ok(true);
                }
                let Some(entry) = self.merge.entry() else { continue };
                self.read += 1;
                self.processed += (entry.key.len() + entry.value.map_or(0, <[u8]>::len)) as u64;
                match fate(&mut self.kind, entry)? {
                    (Fate::Keep, true) => self.outputs.add(entry)?,
                    (Fate::Keep, false) => self.outputs.add_history(entry)?,
                    (Fate::Superseded(by), _) => self.outputs.add_superseded(entry, by)?,
                    (Fate::Drop(why), _) => {
                        if let Some(count) = self.dropped.get_mut(why as usize) {
                            *count += 1;
                        }
                    }
                }
            }
            if self.processed >= end {
                return Ok(false);
            }
        }
    }
}

/// What becomes of an entry, and whether it is one of the main tables.
fn fate(kind: &mut Kind, entry: EntryRef<'_>) -> Result<(Fate, bool)> {
    match kind {
        Kind::Main(rule) => Ok((rule.judge(entry)?, true)),
        Kind::History(floor) => {
            let by = Superseded::decode(entry.value.unwrap_or_default())?.by;
            Ok((if by <= *floor { Fate::Drop(Reason::History) } else { Fate::Keep }, false))
        }
    }
}

/// A key of an input and how many bytes lie between it and the one before.
pub(super) type Sample = (Vec<u8>, u64);

/// Cuts all keys into at most `parts` stretches of about as many bytes each. All versions of a key are in one.
pub(super) fn cut(mut samples: Vec<Sample>, parts: usize) -> Vec<Arc<Bounds>> {
    samples.sort_unstable();
    let all: u64 = samples.iter().map(|(_, bytes)| bytes).sum();
    let mut cuts: Vec<Vec<u8>> = Vec::new();
    let mut before = 0;
    for (key, bytes) in samples {
        before += bytes;
        // Nothing is below the empty key, and it would mean no bound.
        let due = before.saturating_mul(parts as u64) >= all.saturating_mul(cuts.len() as u64 + 1);
        if due && cuts.len() + 1 < parts && !key.is_empty() && cuts.last().is_none_or(|c| *c < key) {
            cuts.push(key);
        }
    }
    let lows = std::iter::once(Vec::new()).chain(cuts.iter().cloned());
    let highs = cuts.iter().cloned().chain(std::iter::once(Vec::new()));
    lows.zip(highs).map(|(low, high)| Bounds::new(low, high)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_follow_one_another_without_a_gap_and_are_no_more_than_asked(
            samples in proptest::collection::vec((proptest::collection::vec(0u8..4, 0..4), 0u64..1000), 0..40),
            parts in 1usize..6,
        ) {
            let bounds = cut(samples, parts);
            prop_assert!((1..=parts).contains(&bounds.len()));
            prop_assert!(bounds.first().is_some_and(|b| b.low.is_empty()));
            prop_assert!(bounds.last().is_some_and(|b| b.high.is_empty()));
            prop_assert!(bounds.windows(2).all(|w| w[0].high == w[1].low && w[0].low < w[1].low));
        }
    }

    #[test]
    fn parts_are_of_about_the_same_size() {
        let samples = (0..100u8).map(|n| (vec![n], if n < 50 { 3 } else { 1 })).collect();
        let lows: Vec<_> = cut(samples, 4).iter().map(|b| b.low.first().copied().unwrap_or_default()).collect();
        assert_eq!(lows, [0, 16, 33, 49]);
    }
}
