//! The payload of a data block: entries behind one common key prefix, with an offset array for
//! binary search and reverse iteration.
//!
//! ```text
//! prefix     varint length + bytes: what all keys of the block start with
//! base LSN   varint: the lowest LSN in the block
//! count      varint
//! entries    key tail (varint length + bytes) | LSN - base varint | kind u8 |
//!            envelope (varint length + bytes; puts only)
//! offsets    u32 LE per entry, from the start of the first entry
//! ```
//! Owns: encode, decode, search. Never: checksums, compression (`format`), files.

use crate::codec::{Cursor, Malformed, put_slice, put_varint};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::lsn::Lsn;

use super::{Item, Stored};

const KIND_PUT: u8 = 1;
const KIND_DELETE: u8 = 2;
/// Longest internal key: keyspace byte and key.
pub(super) const INTERNAL_KEY_MAX: usize = KEY_BYTES_MAX + 1;
const ENVELOPE_MAX: usize = VALUE_BYTES_MAX + 8192;

/// Collects entries of one block.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    items: Vec<Item>,
    bytes: usize,
}

impl BlockBuilder {
    pub(super) fn push(&mut self, item: Item) {
        self.bytes += entry_bytes(&item);
        self.items.push(item);
    }

    /// Size of the payload, before the common prefix is taken out.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The payload with its first and last key; the builder is empty afterwards.
    pub(super) fn finish(&mut self) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        let items = std::mem::take(&mut self.items);
        self.bytes = 0;
        let (first, last) = (items.first()?, items.last()?);
        // Keys are sorted, so what first and last share, all share.
        let prefix_len = first.key.iter().zip(&last.key).take_while(|(a, b)| a == b).count();
        let base = items.iter().map(|i| i.lsn.0).min().unwrap_or_default();
        let mut out = Vec::new();
        put_slice(&mut out, first.key.get(..prefix_len).unwrap_or_default());
        put_varint(&mut out, base);
        put_varint(&mut out, items.len() as u64);
        let start = out.len();
        let mut offsets = Vec::with_capacity(items.len() * 4);
        for item in &items {
            offsets.extend_from_slice(&((out.len() - start) as u32).to_le_bytes());
            put_slice(&mut out, item.key.get(prefix_len..).unwrap_or_default());
            put_varint(&mut out, item.lsn.0 - base);
            match &item.op {
                Stored::Put(envelope) => {
                    out.push(KIND_PUT);
                    put_slice(&mut out, envelope);
                }
                Stored::Delete => out.push(KIND_DELETE),
            }
        }
        out.extend_from_slice(&offsets);
        Some((out, first.key.clone(), last.key.clone()))
    }
}

/// Upper bound of an entry's size in a block.
pub(super) fn entry_bytes(item: &Item) -> usize {
    let value = match &item.op {
        Stored::Put(envelope) => envelope.len(),
        Stored::Delete => 0,
    };
    item.key.len() + value + 24
}

/// An entry, borrowed from its block; the key is the block's prefix and `tail`.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRef<'a> {
    prefix: &'a [u8],
    tail: &'a [u8],
    pub(super) lsn: Lsn,
    pub(super) envelope: Option<&'a [u8]>,
}

impl EntryRef<'_> {
    pub(super) fn key(&self) -> Vec<u8> {
        [self.prefix, self.tail].concat()
    }

    pub(super) fn to_item(self) -> Item {
        Item { key: self.key(), lsn: self.lsn, op: self.op() }
    }

    pub(super) fn op(&self) -> Stored {
        self.envelope.map_or(Stored::Delete, |e| Stored::Put(e.to_vec()))
    }

    pub(super) fn cmp_key(&self, key: &[u8]) -> std::cmp::Ordering {
        let (head, rest) = key.split_at_checked(self.prefix.len()).unwrap_or((key, &[]));
        self.prefix.cmp(head).then_with(|| self.tail.cmp(rest))
    }
}

/// A decoded data block.
#[derive(Debug)]
pub(crate) struct Block {
    raw: Vec<u8>,
    prefix: std::ops::Range<usize>,
    base: u64,
    entries: std::ops::Range<usize>,
    count: usize,
}

impl Block {
    pub(super) fn decode(raw: Vec<u8>) -> Result<Self, Malformed> {
        let mut c = Cursor::new(&raw);
        let prefix_len = c.slice(INTERNAL_KEY_MAX)?.len();
        let prefix_end = raw.len() - c.remaining();
        let base = c.varint()?;
        let count = usize::try_from(c.varint()?).map_err(|_| Malformed("entry count over bound"))?;
        let start = raw.len() - c.remaining();
        let offsets = count.checked_mul(4).ok_or(Malformed("entry count over bound"))?;
        let end = raw.len().checked_sub(offsets).filter(|e| *e >= start).ok_or(Malformed("block ends early"))?;
        Ok(Self { prefix: prefix_end - prefix_len..prefix_end, base, entries: start..end, count, raw })
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    /// Memory in bytes.
    pub(super) fn weight(&self) -> u64 {
        self.raw.capacity() as u64 + 96
    }

    /// Where the entry starts, within the entries; their end for `index == count`.
    fn offset(&self, index: usize) -> Result<usize, Malformed> {
        if index == self.count {
            return Ok(self.entries.len());
        }
        let at = self.raw.get(self.entries.end + index * 4..).and_then(|r| r.first_chunk::<4>());
        Ok(u32::from_le_bytes(*at.ok_or(Malformed("entry index over bound"))?) as usize)
    }

    pub(super) fn entry(&self, index: usize) -> Result<EntryRef<'_>, Malformed> {
        let (from, to) = (self.offset(index)?, self.offset(index + 1)?);
        let entries = self.raw.get(self.entries.clone()).unwrap_or_default();
        let mut c = Cursor::new(entries.get(from..to).ok_or(Malformed("entry offset over bound"))?);
        let prefix = self.raw.get(self.prefix.clone()).unwrap_or_default();
        let tail = c.slice(INTERNAL_KEY_MAX - prefix.len())?;
        let lsn = Lsn(self.base.checked_add(c.varint()?).ok_or(Malformed("LSN over 64 bits"))?);
        let envelope = match c.u8()? {
            KIND_PUT => Some(c.slice(ENVELOPE_MAX)?),
            KIND_DELETE => None,
            _ => return Err(Malformed("entry kind of a newer format")),
        };
        c.finish()?;
        Ok(EntryRef { prefix, tail, lsn, envelope })
    }

    /// Index of the first entry whose key is `key` or above.
    pub(super) fn lower_bound(&self, key: &[u8]) -> Result<usize, Malformed> {
        self.partition(|e| e.cmp_key(key).is_lt())
    }

    /// Index of the first entry at or after `(key, lsn descending)`.
    pub(super) fn seek(&self, key: &[u8], lsn: Lsn) -> Result<usize, Malformed> {
        self.partition(|e| e.cmp_key(key).then_with(|| lsn.cmp(&e.lsn)).is_lt())
    }

    fn partition(&self, before: impl Fn(&EntryRef<'_>) -> bool) -> Result<usize, Malformed> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let mid = low + (high - low) / 2;
            if before(&self.entry(mid)?) {
                low = mid + 1;
            } else {
                high = mid;
            }
        }
        Ok(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(key: &[u8], lsn: u64, value: Option<&[u8]>) -> Item {
        Item { key: key.to_vec(), lsn: Lsn(lsn), op: value.map_or(Stored::Delete, |v| Stored::Put(v.to_vec())) }
    }

    #[test]
    fn entries_come_back_and_seek_finds_the_version() {
        let items = [item(b"\x01ab", 9, Some(b"x")), item(b"\x01ab", 5, None), item(b"\x01abc", 7, Some(b""))];
        let mut b = BlockBuilder::default();
        items.iter().for_each(|i| b.push(i.clone()));
        let (raw, first, last) = b.finish().unwrap();
        assert_eq!((&first[..], &last[..]), (&b"\x01ab"[..], &b"\x01abc"[..]));
        let block = Block::decode(raw).unwrap();
        let back: Vec<Item> = (0..block.len()).map(|i| block.entry(i).unwrap().to_item()).collect();
        assert_eq!(back, items);
        assert_eq!(block.seek(b"\x01ab", Lsn(8)), Ok(1));
        assert_eq!(block.seek(b"\x01ab", Lsn(4)), Ok(2));
        assert_eq!(block.lower_bound(b"\x01ab"), Ok(0));
        assert_eq!(block.lower_bound(b"\x01b"), Ok(3));
        assert_eq!(block.lower_bound(b""), Ok(0));
        assert!(b.finish().is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, key: Vec<u8>) {
            if let Ok(b) = Block::decode(bytes) {
                let _ = b.lower_bound(&key);
                let _ = b.seek(&key, Lsn(3));
                prop_assert!((0..b.len().min(100)).filter(|i| b.entry(*i).is_ok()).count() <= 100);
            }
        }
    }
}
