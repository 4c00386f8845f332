//! The table's filter: a Bloom filter cut into blocks of 512 bits, so that a look-up touches one
//! cache line.
//!
//! Ten bits a key over keyspace byte ‖ key, six probes. Section payload: `probes u8 | bits, u64 LE`.
//! Owns: building, asking, encode and decode. Never: a false "absent".

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Cursor, Malformed};

const PROBES: u8 = 6;
const WORDS: usize = 8;
const BITS_PER_KEY: usize = 10;

/// The hash that filters are asked with.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// A key as many filters are asked for it: what they look for is made once for all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probe {
    hash: u64,
    masks: [u64; WORDS],
}

impl Probe {
    /// For a key with this [`key_hash`].
    pub(crate) fn of(hash: u64) -> Self {
        Self { hash, masks: probe_masks(hash) }
    }
}

/// One cache line of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(align(64))]
struct Line([u64; WORDS]);

/// Which keys a table may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    blocks: Vec<Line>,
}

fn probe_masks(hash: u64) -> [u64; WORDS] {
    let mut masks = [0u64; WORDS];
    let mut h = hash as u32;
    for _ in 0..PROBES {
        let bit = (h >> 23) as usize;
        if let Some(m) = masks.get_mut(bit / 64) {
            *m |= 1 << (bit % 64);
        }
        h = h.wrapping_mul(0x9e37_79b9);
    }
    masks
}

impl Filter {
    /// A filter over distinct key hashes.
    pub(crate) fn build(hashes: &[u64]) -> Self {
        let mut out = Self { blocks: vec![Line::default(); (hashes.len() * BITS_PER_KEY).div_ceil(512)] };
        for h in hashes {
            let at = out.slot(*h);
            if let Some(block) = out.blocks.get_mut(at) {
                block.0.iter_mut().zip(probe_masks(*h)).for_each(|(w, m)| *w |= m);
            }
        }
        out
    }

    fn slot(&self, hash: u64) -> usize {
        // The upper half picks the block, the lower half the bits in it.
        (((hash >> 32) * self.blocks.len() as u64) >> 32) as usize
    }

    /// False only when no key with this hash was added.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        self.blocks
            .get(self.slot(hash))
            .is_some_and(|block| block.0.iter().zip(probe_masks(hash)).all(|(w, m)| w & m == m))
    }

    /// As [`Filter::may_contain`], but without a branch on what is in the filter: a processor waits for the memory of
    /// several filters at once then. For a single one it costs more.
    pub(crate) fn passes(&self, probe: &Probe) -> bool {
        self.blocks.get(self.slot(probe.hash)).is_some_and(|line| {
            let missing = line.0.iter().zip(probe.masks).fold(0, |missing, (w, m)| missing | (m & !w));
            missing == 0
        })
    }

    /// Size in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.blocks.len() * WORDS * 8
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(1 + self.bytes());
        out.push(PROBES);
        self.blocks.iter().flat_map(|line| line.0).for_each(|w| out.extend_from_slice(&w.to_le_bytes()));
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        if c.u8()? != PROBES {
            return Err(Malformed("filter of a newer format"));
        }
        let mut blocks = Vec::with_capacity(c.remaining() / (WORDS * 8));
        while !c.is_empty() {
            let mut line = Line::default();
            for w in &mut line.0 {
                *w = c.u64()?;
            }
            blocks.push(line);
        }
        Ok(Self { blocks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn few_false_positives() {
        let hashes: Vec<u64> = (0u32..10_000).map(|n| key_hash(&n.to_le_bytes())).collect();
        let f = Filter::build(&hashes);
        let wrong = (10_000u32..110_000).filter(|n| f.may_contain(key_hash(&n.to_le_bytes()))).count();
        assert!(wrong < 2_000, "{wrong} of 100000 false positives");
        assert!(!Filter::build(&[]).may_contain(7));
    }

    proptest! {
        #[test]
        fn no_false_negatives_and_it_round_trips(keys: Vec<Vec<u8>>) {
            let hashes: Vec<u64> = keys.iter().map(|k| key_hash(k)).collect();
            let f = Filter::build(&hashes);
            prop_assert!(hashes.iter().all(|h| f.may_contain(*h)));
            let others = (0..200_u64).map(|n| key_hash(&n.to_le_bytes()));
            prop_assert!(hashes.iter().copied().chain(others).all(|h| f.passes(&Probe::of(h)) == f.may_contain(h)));
            prop_assert_eq!(Filter::decode(&f.encode()), Ok(f));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Filter::decode(&bytes).map(|f| f.may_contain(1));
        }
    }
}
