//! Keys, values and random numbers: the same for every engine.
//!
//! Owns: their distribution and that a value read back can be told from any other. Never: I/O.

/// A small generator (SplitMix64): the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator for a seed and the number of a thread.
    pub fn new(seed: u64, thread: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ thread.wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from 0 to below 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Numbers below a bound with Zipf's distribution (exponent 0.99), scattered, as YCSB picks keys. After
/// Gray et al., "Quickly generating billion-record synthetic databases" (1994).
#[derive(Clone, Debug)]
pub struct Zipf {
    bound: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

const THETA: f64 = 0.99;

impl Zipf {
    /// Numbers below `bound`.
    pub fn new(bound: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| 1.0 / (i as f64).powf(THETA)).sum::<f64>();
        let all = zeta(bound);
        let eta = (1.0 - (2.0 / bound as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / all);
        Self { bound, zeta: all, alpha: 1.0 / (1.0 - THETA), eta }
    }

    /// The next one.
    pub fn next(&self, random: &mut Random) -> u64 {
        let u = random.unit();
        let uz = u * self.zeta;
        let rank = if uz < 1.0 {
            0
        } else if uz < 1.0 + 0.5f64.powf(THETA) {
            1
        } else {
            (self.bound as f64 * (self.eta * u - self.eta + 1.0).powf(self.alpha)) as u64
        };
        Random::new(rank, 7).next() % self.bound
    }
}

/// Bytes of a key.
pub const KEY_BYTES: usize = 16;

/// The key of a number: 16 decimal digits.
pub fn key(n: u64) -> [u8; KEY_BYTES] {
    let (mut out, mut rest) = ([b'0'; KEY_BYTES], n);
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out
}

/// A value for key `n`: the number first, then half of the bytes random and half of them equal.
pub fn value(out: &mut Vec<u8>, n: u64, bytes: usize, random: &mut Random) {
    out.clear();
    out.extend_from_slice(&n.to_le_bytes());
    while out.len() < bytes / 2 {
        out.extend_from_slice(&random.next().to_le_bytes());
    }
    out.resize(bytes.max(8), b'v');
}

/// Whether bytes are a value of key `n`.
pub fn is_value(bytes: &[u8], n: u64, len: usize) -> bool {
    bytes.len() == len.max(8) && bytes.first_chunk::<8>() == Some(&n.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_apart_and_half_random() {
        let (mut v, mut random) = (Vec::new(), Random::new(1, 0));
        value(&mut v, 77, 100, &mut random);
        assert!(is_value(&v, 77, 100) && !is_value(&v, 78, 100) && !is_value(&v[..99], 77, 100));
        let equal = v.iter().filter(|b| **b == b'v').count();
        assert!((40..60).contains(&equal), "{equal}");
        assert_eq!(&key(1234), b"0000000000001234");
    }

    #[test]
    fn zipf_prefers_few_and_stays_below_its_bound() {
        let (zipf, mut random) = (Zipf::new(1000), Random::new(3, 0));
        let mut counts = vec![0u32; 1000];
        (0..100_000).for_each(|_| counts[zipf.next(&mut random) as usize] += 1);
        counts.sort_unstable_by(|a, b| b.cmp(a));
        assert!(counts[0] > 8_000 && counts[..100].iter().sum::<u32>() > 50_000, "{:?}", &counts[..5]);
    }
}
