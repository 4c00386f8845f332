//! Seeded chance for the simulated disk.
//!
//! Owns: one generator per (seed, purpose, moment), so that a draw added in one place shifts no
//! other. Never: hidden state; the same question at the same moment has the same answer.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::rng::{Rng, SeededRng};

/// A generator for one purpose at one moment.
#[derive(Debug)]
pub(super) struct Dice(SeededRng);

impl Dice {
    pub(super) fn new(seed: u64, purpose: &str, moment: u64, which: u64) -> Self {
        let mixed = xxh3_64_with_seed(purpose.as_bytes(), seed)
            ^ xxh3_64_with_seed(&moment.to_le_bytes(), 1)
            ^ xxh3_64_with_seed(&which.to_le_bytes(), 2);
        Self(SeededRng::new(mixed))
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub(super) fn below(&self, bound: usize) -> usize {
        usize::try_from(self.0.below(bound as u64)).unwrap_or(0)
    }

    pub(super) fn coin(&self) -> bool {
        self.0.below(2) == 0
    }

    pub(super) fn fill(&self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            let bytes = self.0.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// What a crash keeps of the unsynced changes of one thing.
#[derive(Debug)]
pub(super) enum Fate {
    /// Nothing, not even a length.
    Nothing,
    /// Each by toss. `keep` of 4 survive on average; when `ordered`, all after the first loss are
    /// lost too, as under a journal.
    Toss { dice: Dice, keep: usize, ordered: bool, lost: bool },
}

impl Fate {
    /// A fate whose odds are themselves drawn, so that seeds cover "all", "none" and the middle.
    pub(super) fn toss(dice: Dice) -> Self {
        let keep = dice.below(5);
        let ordered = dice.below(3) == 0;
        Self::Toss { dice, keep, ordered, lost: false }
    }

    /// Whether the next change survives.
    pub(super) fn survives(&mut self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Toss { dice, keep, ordered, lost } => {
                let kept = dice.below(4) < *keep && !(*ordered && *lost);
                *lost |= !kept;
                kept
            }
        }
    }

    /// An even toss, independent of the odds.
    pub(super) fn coin(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Toss { dice, .. } => dice.coin(),
        }
    }

    /// What a place holds that was allotted and never written: junk.
    pub(super) fn junk(&self, buf: &mut [u8]) {
        if let Self::Toss { dice, .. } = self {
            dice.fill(buf);
        }
    }
}
