//! Memory for writes past the page cache: whole blocks, aligned as disks want them.
//!
//! Owns: where in its memory the blocks begin. Never: files.

use super::DIRECT_BYTES;

/// A buffer of bytes that begins at a multiple of [`DIRECT_BYTES`] in memory.
#[derive(Debug, Default)]
pub struct Blocks {
    /// As long as it may get: growing would move it.
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl Blocks {
    /// Bytes in it.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that they take, in bytes.
    #[must_use]
    pub const fn memory(&self) -> usize {
        self.raw.capacity()
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.raw.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.start + self.len;
        self.raw[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Fills the last block up with zeros.
    pub fn pad(&mut self) {
        let padded = self.len.next_multiple_of(DIRECT_BYTES);
        self.reserve(padded - self.len);
        self.raw[self.start + self.len..self.start + padded].fill(0);
        self.len = padded;
    }

    /// Drops all but `range`, which moves to the front.
    pub fn keep(&mut self, range: std::ops::Range<usize>) {
        self.raw.copy_within(self.start + range.start..self.start + range.end, self.start);
        self.len = range.len();
    }

    /// Drops everything.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    fn reserve(&mut self, more: usize) {
        let needed = self.len + more;
        if self.start + needed <= self.raw.len() {
            return;
        }
        let mut raw = vec![0; needed.next_power_of_two().max(16 * DIRECT_BYTES) + DIRECT_BYTES];
        let start = raw.as_ptr().addr().next_multiple_of(DIRECT_BYTES) - raw.as_ptr().addr();
        raw[start..start + self.len].copy_from_slice(self.as_slice());
        (self.raw, self.start) = (raw, start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_aligned_whatever_is_added_and_kept() {
        let (mut blocks, mut model) = (Blocks::default(), Vec::new());
        for n in 0..300_usize {
            let piece = vec![n as u8; n * 37 % 9_000];
            blocks.push(&piece);
            model.extend_from_slice(&piece);
            if n % 3 == 0 {
                blocks.pad();
                model.resize(model.len().next_multiple_of(DIRECT_BYTES), 0);
            }
            assert!(blocks.as_slice() == model, "{n}");
            assert!(blocks.is_empty() || blocks.as_slice().as_ptr().addr().is_multiple_of(DIRECT_BYTES), "{n}");
            if n % 4 == 0 {
                let range = model.len() / 3..model.len() / 2;
                blocks.keep(range.clone());
                model = model[range].to_vec();
            }
        }
        blocks.clear();
        assert!(blocks.is_empty() && blocks.as_slice().is_empty());
    }
}
