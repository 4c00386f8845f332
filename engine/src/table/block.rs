//! The payload of a data block: entries behind one common key prefix, ordered by an array of key
//! heads, so that a search reads a few cache lines and compares whole keys only where heads tie.
//!
//! ```text
//! flags      u8: bit 0 says that offsets are u32, else u16
//! prefix     varint length + bytes: what all keys of the block start with
//! base LSN   varint: the lowest LSN in the block
//! count      varint
//! heads      u64 LE per entry: the next eight key bytes as a big-endian number, zeros behind a
//!            key's end
//! offsets    u16 or u32 LE per entry, from the start of the first entry
//! entries    length of the key behind the prefix (varint) | its bytes behind the head |
//!            LSN - base varint | kind u8 | envelope (puts only, to the entry's end)
//! ```
//! Owns: decode and search. Never: building (`block_builder`), checksums, compression (`format`), files.

use std::cmp::Ordering;
use std::ops::Range;

use crate::codec::{Cursor, Malformed};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::lsn::Lsn;

use super::spare;

pub(super) const KIND_PUT: u8 = 1;
pub(super) const KIND_DELETE: u8 = 2;
/// In the flags: offsets take four bytes.
pub(super) const WIDE: u8 = 1;
/// Bytes of a key that its head holds.
pub(super) const HEAD: usize = 8;
/// Longest internal key: keyspace byte and key.
pub(super) const INTERNAL_KEY_MAX: usize = KEY_BYTES_MAX + 1;
const ENVELOPE_MAX: usize = VALUE_BYTES_MAX + 8192;

/// The first eight bytes as a number that orders like them; a key that ends early counts as zeros.
pub(super) fn head_of(tail: &[u8]) -> u64 {
    if let Some(head) = tail.first_chunk::<HEAD>() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; HEAD];
    head.iter_mut().zip(tail).for_each(|(to, from)| *to = *from);
    u64::from_be_bytes(head)
}

/// A decoded data block.
#[derive(Debug)]
pub(crate) struct Block {
    raw: Vec<u8>,
    prefix: Range<usize>,
    base: u64,
    /// Where the heads start; offsets and entries follow.
    heads: usize,
    offsets: usize,
    entries: usize,
    count: usize,
    wide: bool,
}

/// An entry of a block.
#[derive(Clone, Debug)]
pub(super) struct BlockEntry<'a> {
    head: u64,
    /// Length of the key behind the block's prefix.
    tail_len: usize,
    /// The key behind prefix and head.
    rest: &'a [u8],
    pub(super) lsn: Lsn,
    /// Where in the payload the envelope of a put stands; `None` for a delete.
    pub(super) value: Option<Range<usize>>,
}

impl BlockEntry<'_> {
    /// Appends the key behind the block's prefix.
    pub(super) fn put_tail(&self, out: &mut Vec<u8>) {
        let head = self.head.to_be_bytes();
        out.extend_from_slice(head.get(..self.tail_len).unwrap_or(&head));
        out.extend_from_slice(self.rest);
    }

    /// Compares with a key of which the block's prefix was taken off.
    fn cmp_tail(&self, tail: &[u8], head: u64) -> Ordering {
        self.head.cmp(&head).then_with(|| {
            // With equal heads the shorter key is the lower one, unless both go on behind the head.
            let rest = tail.get(HEAD..).unwrap_or_default();
            if rest.is_empty() || self.rest.is_empty() { self.tail_len.cmp(&tail.len()) } else { self.rest.cmp(rest) }
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        spare::give(std::mem::take(&mut self.raw));
    }
}

impl Block {
    pub(super) fn decode(raw: Vec<u8>) -> Result<Self, Malformed> {
        let mut c = Cursor::new(&raw);
        let flags = c.u8()?;
        if flags & !WIDE != 0 {
            return Err(Malformed("data block of a newer format"));
        }
        let wide = flags & WIDE != 0;
        let prefix_len = c.slice(INTERNAL_KEY_MAX)?.len();
        let prefix_end = raw.len() - c.remaining();
        let base = c.varint()?;
        let count = usize::try_from(c.varint()?).map_err(|_| Malformed("entry count over bound"))?;
        let heads = raw.len() - c.remaining();
        let arrays = count.checked_mul(HEAD + if wide { 4 } else { 2 }).ok_or(Malformed("entry count over bound"))?;
        let entries = heads.checked_add(arrays).filter(|end| *end <= raw.len()).ok_or(Malformed("block ends early"))?;
        let offsets = heads + count * HEAD;
        Ok(Self { prefix: prefix_end - prefix_len..prefix_end, base, heads, offsets, entries, count, wide, raw })
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Memory in bytes.
    pub(super) fn weight(&self) -> u64 {
        (self.raw.capacity() + size_of::<Self>() + 16) as u64
    }

    pub(super) fn prefix(&self) -> &[u8] {
        self.raw.get(self.prefix.clone()).unwrap_or_default()
    }

    /// The bytes of a value that an entry of this block named.
    pub(super) fn value(&self, at: &Range<usize>) -> &[u8] {
        self.raw.get(at.clone()).unwrap_or_default()
    }

    fn heads(&self) -> &[[u8; HEAD]] {
        self.raw.get(self.heads..self.offsets).unwrap_or_default().as_chunks().0
    }

    /// Where an entry starts in the payload; its end for `index == count`.
    fn offset(&self, index: usize) -> Result<usize, Malformed> {
        if index == self.count {
            return Ok(self.raw.len());
        }
        let array = self.raw.get(self.offsets..self.entries).unwrap_or_default();
        let at = if self.wide {
            array.as_chunks::<4>().0.get(index).map(|o| u32::from_le_bytes(*o) as usize)
        } else {
            array.as_chunks::<2>().0.get(index).map(|o| usize::from(u16::from_le_bytes(*o)))
        };
        at.map(|at| self.entries + at).ok_or(Malformed("entry index over bound"))
    }

    pub(super) fn entry(&self, index: usize) -> Result<BlockEntry<'_>, Malformed> {
        let head = self.heads().get(index).ok_or(Malformed("entry index over bound"))?;
        let (from, to) = (self.offset(index)?, self.offset(index + 1)?);
        let bytes = self.raw.get(from..to).filter(|_| from >= self.entries);
        let mut c = Cursor::new(bytes.ok_or(Malformed("entry offset over bound"))?);
        let tail_len = usize::try_from(c.varint()?).unwrap_or(usize::MAX);
        if tail_len > INTERNAL_KEY_MAX - self.prefix.len() {
            return Err(Malformed("key over bound"));
        }
        let rest = c.bytes(tail_len.saturating_sub(HEAD))?;
        let lsn = Lsn(self.base.checked_add(c.varint()?).ok_or(Malformed("LSN over 64 bits"))?);
        let value = match c.u8()? {
            KIND_PUT if c.remaining() <= ENVELOPE_MAX => Some(to - c.remaining()..to),
            KIND_PUT => return Err(Malformed("value over bound")),
            KIND_DELETE => {
                c.finish()?;
                None
            }
            _ => return Err(Malformed("entry kind of a newer format")),
        };
        Ok(BlockEntry { head: u64::from_le_bytes(*head), tail_len, rest, lsn, value })
    }

    /// Index of the first entry whose key is `key` or above.
    pub(super) fn lower_bound(&self, key: &[u8]) -> Result<usize, Malformed> {
        self.search(key, Lsn::MAX).map(|(at, _)| at)
    }

    /// The entry of `key` with the highest LSN at or below `lsn`, or where it would be: the index of the
    /// first entry at or after `(key, lsn descending)`, and whether that is one of `key`.
    pub(super) fn search(&self, key: &[u8], lsn: Lsn) -> Result<(usize, bool), Malformed> {
        let prefix = self.prefix();
        let (start, tail) = key.split_at_checked(prefix.len()).unwrap_or((key, &[]));
        match start.cmp(prefix) {
            Ordering::Less => return Ok((0, false)),
            Ordering::Greater => return Ok((self.count, false)),
            Ordering::Equal => {}
        }
        let (head, heads) = (head_of(tail), self.heads());
        let low = heads.partition_point(|h| u64::from_le_bytes(*h) < head);
        let ties = heads.get(low..).unwrap_or_default();
        let high = low + tied(ties, head);
        let (mut from, mut to, mut found) = (low, high, false);
        while from < to {
            let mid = from + (to - from) / 2;
            let entry = self.entry(mid)?;
            match entry.cmp_tail(tail, head).then_with(|| lsn.cmp(&entry.lsn)) {
                Ordering::Less => from = mid + 1,
                _ => {
                    to = mid;
                    found = entry.cmp_tail(tail, head).is_eq();
                }
            }
        }
        // `found` speaks of the entry last taken as the end, which is the one at `from`.
        Ok((from, found))
    }
}

/// How many heads in front equal `head`. Mostly one, or few.
fn tied(heads: &[[u8; HEAD]], head: u64) -> usize {
    let equal = |h: &[u8; HEAD]| u64::from_le_bytes(*h) == head;
    match heads.get(1) {
        Some(second) if equal(second) => heads.partition_point(equal),
        _ => usize::from(heads.first().is_some_and(equal)),
    }
}
