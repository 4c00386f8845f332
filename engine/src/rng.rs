//! The randomness seam: ids and jitter. Real randomness from the operating system, or a seed.
//!
//! Owns: the trait, the OS source, and the small seeded generator that tests share. Never:
//! cryptographic keys.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where random numbers come from.
pub trait Rng: Send + Sync + Debug {
    /// The next number.
    fn next_u64(&self) -> u64;

    /// A number below `bound` (0 when `bound` is 0). The bias of the modulo is fine for jitter,
    /// tests and ids.
    fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next_u64() % bound }
    }
}

/// Randomness from the operating system, by way of the standard library's seeded hasher.
#[derive(Debug, Default)]
pub struct OsRng;

impl Rng for OsRng {
    fn next_u64(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` draws its keys from the OS once per thread and increments them; mixing
        // the counter through SipHash gives ids that do not repeat. Not for secrets.
        let mut h = std::collections::hash_map::RandomState::new().build_hasher();
        h.write_u64(0x6d61_696e_7374_6179);
        h.finish()
    }
}

/// `SplitMix64`: the same numbers for the same seed (Steele, Lea, Flood 2014).
#[derive(Debug)]
pub struct SeededRng(AtomicU64);

impl SeededRng {
    /// A generator for `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Rng for SeededRng {
    fn next_u64(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
