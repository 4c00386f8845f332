//! Which keys a memtable may hold: a Bloom filter cut into blocks of 512 bits, asked without a lock.
//!
//! Ten bits a key, six probes, one cache line. When more keys come than were expected, another
//! filter of twice the size is put beside the first. Owns: growth and memory. Never: a false
//! "absent" for a key whose record was applied before the reader's view was made: publishing the
//! record's LSN orders these bits before the view, so relaxed words are enough.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const WORDS: usize = 8;
const PROBES: usize = 6;
const BITS_PER_KEY: usize = 10;
/// Filters side by side; each doubles the last, so that this many are never used up.
const PARTS: usize = 24;
/// Bytes of a memtable per key that the first filter expects, and the fewest (one block) and most
/// keys it expects.
const ENTRY_BYTES: usize = 128;
const FIRST_KEYS_MIN: usize = WORDS * 64 / BITS_PER_KEY;
const FIRST_KEYS_MAX: usize = 1 << 20;

/// One cache line.
type Block = [AtomicU64; WORDS];

#[derive(Debug)]
pub(super) struct Filter {
    parts: [OnceLock<Box<[Block]>>; PARTS],
    used: AtomicUsize,
    first_keys: usize,
}

/// What only the one writer knows; it lives under the memtable's lock, and so makes writers one.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Keys that the newest part still takes.
    room: usize,
    bytes: usize,
}

impl Tally {
    /// Memory of the filter in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The words and bits of a hash: its upper half chose the block.
fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut h = hash as u32;
    (0..PROBES).map(move |_| {
        let bit = h >> 23;
        h = h.wrapping_mul(0x9e37_79b9);
        ((bit / 64) as usize, 1 << (bit % 64))
    })
}

fn block(part: &[Block], hash: u64) -> Option<&Block> {
    part.get((((hash >> 32) * part.len() as u64) >> 32) as usize)
}

fn holds(part: &[Block], hash: u64) -> bool {
    block(part, hash).is_some_and(|b| probes(hash).all(|(word, bit)| b[word].load(Ordering::Relaxed) & bit != 0))
}

impl Filter {
    /// A filter for a memtable that is frozen at `memtable_bytes`.
    pub(super) fn new(memtable_bytes: usize) -> Self {
        let first_keys = (memtable_bytes / ENTRY_BYTES).clamp(FIRST_KEYS_MIN, FIRST_KEYS_MAX);
        Self { parts: [const { OnceLock::new() }; PARTS], used: AtomicUsize::new(0), first_keys }
    }

    /// False only when no key with this hash was added.
    pub(super) fn may_contain(&self, hash: u64) -> bool {
        let used = self.used.load(Ordering::Acquire);
        self.parts.iter().take(used).rev().any(|p| p.get().is_some_and(|p| holds(p, hash)))
    }

    /// Adds a key by its hash.
    pub(super) fn add(&self, hash: u64, tally: &mut Tally) {
        let used = self.used.load(Ordering::Relaxed);
        // Another version of a key that is there needs nothing, and must not use up room.
        let newest = used.checked_sub(1).and_then(|n| self.parts[n].get()).map(|p| &**p);
        if newest.is_some_and(|p| holds(p, hash)) {
            return;
        }
        let newest = if tally.room == 0 && used < PARTS { Some(self.grow(used, tally)) } else { newest };
        tally.room = tally.room.saturating_sub(1);
        for (word, bit) in probes(hash) {
            if let Some(b) = newest.and_then(|p| block(p, hash)) {
                // One writer: nobody sets a bit between these two.
                b[word].store(b[word].load(Ordering::Relaxed) | bit, Ordering::Relaxed);
            }
        }
    }

    fn grow(&self, used: usize, tally: &mut Tally) -> &[Block] {
        let keys = self.first_keys << used;
        let blocks = (keys * BITS_PER_KEY).div_ceil(WORDS * 64);
        let part = self.parts[used].get_or_init(|| (0..blocks).map(|_| Block::default()).collect());
        self.used.store(used + 1, Ordering::Release);
        tally.room = keys;
        tally.bytes += size_of_val(&**part);
        part
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::filter::key_hash;

    fn hash(n: u32) -> u64 {
        key_hash(&n.to_le_bytes())
    }

    #[test]
    fn no_key_is_missed_and_few_are_guessed() {
        for memtable_bytes in [0, 1 << 10, 1 << 20, 16 << 20] {
            let (filter, mut tally) = (Filter::new(memtable_bytes), Tally::default());
            assert!(!filter.may_contain(hash(1)));
            for n in 0..50_000 {
                filter.add(hash(n), &mut tally);
                assert!(filter.may_contain(hash(n)));
            }
            assert!((0..50_000).all(|n| filter.may_contain(hash(n))));
            let wrong = (50_000..150_000).filter(|n| filter.may_contain(hash(*n))).count();
            assert!(wrong < 12_000, "{wrong} of 100000 false positives, sized for {memtable_bytes}");
            let bits = tally.bytes() * 8 / 50_000;
            assert!(bits < 50, "{bits} bits per key, sized for {memtable_bytes}");
        }
    }

    #[test]
    fn versions_of_one_key_take_no_room() {
        let (filter, mut tally) = (Filter::new(1 << 10), Tally::default());
        (0..10_000).for_each(|_| filter.add(hash(7), &mut tally));
        assert_eq!(tally.bytes(), 64);
    }
}
