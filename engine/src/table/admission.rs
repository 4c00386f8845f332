//! Which blocks come into a cache that is full: those that were missed before, not long ago.
//!
//! What is read once would push out what is read often, and bringing it in costs more than decoding it. (The doorkeeper of
//! TinyLFU, Einziger, Friedman and Manes 2017, with a table of fingerprints in place of a Bloom filter: what is old is
//! overwritten and needs no reset.) Owns: what was missed. Never: what stays in the cache once it is there.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Misses remembered for each block that the cache has room for.
const REMEMBERED: usize = 2;
/// Whether the cache is full is asked at one in so many misses.
const ASKED: u64 = 256;

/// See the module.
#[derive(Debug)]
pub(super) struct Admission {
    /// Fingerprints of the blocks that were missed last; 0 for none. Their number is a power of two.
    missed: Box<[AtomicU32]>,
    full: AtomicBool,
}

impl Admission {
    /// For a cache of about so many blocks.
    pub(super) fn new(blocks: usize) -> Self {
        Self { missed: (0..slots(blocks)).map(|_| AtomicU32::new(0)).collect(), full: AtomicBool::new(false) }
    }

    /// Memory for a cache of about so many blocks, in bytes.
    pub(super) const fn bytes_of(blocks: usize) -> u64 {
        (slots(blocks) * size_of::<AtomicU32>()) as u64
    }

    /// Memory in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        size_of_val(&*self.missed) as u64
    }

    /// Whether a block that was missed is to come in; `hash` is its own, `is_full` tells of the cache.
    pub(super) fn admits(&self, hash: u64, is_full: impl FnOnce() -> bool) -> bool {
        let (at, print) = (hash as u32, (hash >> 32) as u32 | 1);
        if hash.is_multiple_of(ASKED) {
            self.full.store(is_full(), Ordering::Relaxed);
        }
        if !self.full.load(Ordering::Relaxed) {
            return true;
        }
        let Some(slot) = self.missed.get(at as usize & (self.missed.len() - 1)) else { return true };
        if slot.load(Ordering::Relaxed) == print {
            return true;
        }
        slot.store(print, Ordering::Relaxed);
        false
    }
}

const fn slots(blocks: usize) -> usize {
    blocks.saturating_mul(REMEMBERED).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes that are spread like those of blocks.
    fn hash(n: u64) -> u64 {
        let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[test]
    fn a_cache_with_room_takes_all_and_a_full_one_what_is_missed_again_soon() {
        let admission = Admission::new(1000);
        assert_eq!((admission.bytes(), Admission::bytes_of(1000)), (8192, 8192));
        assert!((0..500).all(|n| admission.admits(hash(n), || false)));
        assert!(admission.admits(0, || false) && !admission.admits(256 << 40, || true));
        let first = (1000..1500).filter(|n| admission.admits(hash(*n), || true)).count();
        assert!(first < 5, "{first} came in at their first miss");
        let again = (1000..1500).filter(|n| admission.admits(hash(*n), || true)).count();
        assert!(again > 350, "of 500 that were missed again soon only {again} came in");
        assert!((10_000..40_000).filter(|n| admission.admits(hash(*n), || true)).count() < 300);
        let late = (1000..1500).filter(|n| admission.admits(hash(*n), || true)).count();
        assert!(late < 5, "{late} were remembered for ever");
        assert!(!admission.admits(hash(7), || true));
        assert!(admission.admits(0, || false) && admission.admits(hash(8), || false), "there is room again");
    }
}
