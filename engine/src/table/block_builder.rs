//! Collects the entries of one data block and lays them out as `block` says.
//!
//! Owns: the choice of prefix, base LSN and offset width. Never: order (the table builder checks it).

use std::ops::Range;

use crate::codec::{put_slice, put_varint};
use crate::lsn::Lsn;

use super::EntryRef;
use super::block::{HEAD, KIND_DELETE, KIND_PUT, WIDE, head_of};

/// Bytes that an entry takes beside key and value, at most about.
const ENTRY_OVERHEAD: usize = 24;

#[derive(Debug)]
struct Pushed {
    key: Range<usize>,
    value: Option<Range<usize>>,
    lsn: Lsn,
}

/// See the module. Its memory is used again for the next block.
#[derive(Debug, Default)]
pub(super) struct BlockBuilder {
    bytes: Vec<u8>,
    entries: Vec<Pushed>,
    laid: Vec<u8>,
}

impl BlockBuilder {
    pub(super) fn push(&mut self, entry: EntryRef<'_>) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(entry.key);
        let key_end = self.bytes.len();
        let value = entry.value.map(|v| {
            self.bytes.extend_from_slice(v);
            key_end..self.bytes.len()
        });
        self.entries.push(Pushed { key: start..key_end, value, lsn: entry.lsn });
    }

    /// Size of the payload, before the common prefix is taken out.
    pub(super) const fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * ENTRY_OVERHEAD
    }

    /// What an entry adds to [`BlockBuilder::size`].
    pub(super) fn size_of(entry: EntryRef<'_>) -> usize {
        entry.key.len() + entry.value.map_or(0, <[u8]>::len) + ENTRY_OVERHEAD
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn key(&self, entry: &Pushed) -> &[u8] {
        self.bytes.get(entry.key.clone()).unwrap_or_default()
    }

    /// The key pushed last; empty without entries.
    pub(super) fn last_key(&self) -> &[u8] {
        self.entries.last().map(|e| self.key(e)).unwrap_or_default()
    }

    /// Appends the payload to `out`. The builder is as it was: see [`BlockBuilder::clear`].
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let mut laid = std::mem::take(&mut self.laid);
        laid.clear();
        let first = self.entries.first().map(|e| self.key(e)).unwrap_or_default();
        // Keys are sorted, so what first and last share, all share.
        let prefix = first.iter().zip(self.last_key()).take_while(|(a, b)| a == b).count();
        let base = self.entries.iter().map(|e| e.lsn.0).min().unwrap_or_default();
        let mut starts = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            starts.push(laid.len());
            let tail = self.key(entry).get(prefix..).unwrap_or_default();
            put_varint(&mut laid, tail.len() as u64);
            laid.extend_from_slice(tail.get(HEAD..).unwrap_or_default());
            put_varint(&mut laid, entry.lsn.0 - base);
            match &entry.value {
                Some(at) => {
                    laid.push(KIND_PUT);
                    laid.extend_from_slice(self.bytes.get(at.clone()).unwrap_or_default());
                }
                None => laid.push(KIND_DELETE),
            }
        }
        let wide = laid.len() > usize::from(u16::MAX);
        out.push(if wide { WIDE } else { 0 });
        put_slice(out, first.get(..prefix).unwrap_or_default());
        put_varint(out, base);
        put_varint(out, self.entries.len() as u64);
        for entry in &self.entries {
            let head = head_of(self.key(entry).get(prefix..).unwrap_or_default());
            out.extend_from_slice(&head.to_le_bytes());
        }
        for start in starts {
            if wide {
                out.extend_from_slice(&(start as u32).to_le_bytes());
            } else {
                out.extend_from_slice(&(start as u16).to_le_bytes());
            }
        }
        out.extend_from_slice(&laid);
        self.laid = laid;
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::table::block::Block;

    type Version = (Vec<u8>, u64, Option<Vec<u8>>);

    fn build(entries: &[Version]) -> Block {
        let mut b = BlockBuilder::default();
        for (key, lsn, value) in entries {
            b.push(EntryRef { key, lsn: Lsn(*lsn), value: value.as_deref() });
        }
        let mut raw = Vec::new();
        b.write(&mut raw);
        assert_eq!(b.last_key(), entries.last().map_or(&[][..], |e| &e.0));
        b.clear();
        assert!(b.is_empty());
        Block::decode(raw).unwrap()
    }

    fn at(block: &Block, index: usize) -> Version {
        let e = block.entry(index).unwrap();
        let mut key = block.prefix().to_vec();
        e.put_tail(&mut key);
        (key, e.lsn.0, e.value.map(|v| block.value(&v).to_vec()))
    }

    /// Keys that share heads, end inside them, or end in zeros; several versions of some.
    fn versions() -> impl Strategy<Value = Vec<Version>> {
        let key = prop_oneof![
            proptest::collection::vec(0u8..3, 0..14),
            proptest::collection::vec(0u8..2, 7..10),
            "[a-b]{0,4}(http://x/){0,2}[a-c]{0,9}".prop_map(String::into_bytes),
        ];
        let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        proptest::collection::btree_map((key, 1u64..6), value, 1..60).prop_map(|map| {
            let mut all: Vec<Version> = map.into_iter().map(|((k, l), v)| (k, l, v)).collect();
            all.sort_by(|a, b| (&a.0, b.1).cmp(&(&b.0, a.1)));
            all
        })
    }

    proptest! {
        #[test]
        fn entries_come_back_and_searches_find_what_a_list_finds(entries in versions(), probes in versions()) {
            let block = build(&entries);
            prop_assert_eq!(block.len(), entries.len());
            prop_assert_eq!((0..block.len()).map(|i| at(&block, i)).collect::<Vec<_>>(), entries.clone());
            for (key, lsn, _) in entries.iter().chain(&probes) {
                let want = entries.partition_point(|(k, l, _)| (k, std::cmp::Reverse(l)) < (key, std::cmp::Reverse(lsn)));
                let found = entries.get(want).is_some_and(|(k, _, _)| k == key);
                prop_assert_eq!(block.search(key, Lsn(*lsn)), Ok((want, found)), "{:?} at {}", key, lsn);
                let lower = entries.partition_point(|(k, _, _)| k < key);
                prop_assert_eq!(block.lower_bound(key), Ok(lower));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, key: Vec<u8>) {
            if let Ok(b) = Block::decode(bytes) {
                let _ = b.search(&key, Lsn(3));
                let count = (0..b.len().min(100)).filter(|i| b.entry(*i).is_ok_and(|e| e.value.is_none_or(|v| b.value(&v).len() == v.len()))).count();
                prop_assert!(count <= 100);
            }
        }

        #[test]
        fn a_changed_byte_never_panics(entries in versions(), at: proptest::sample::Index, xor in 1u8.., key: Vec<u8>) {
            let mut b = BlockBuilder::default();
            entries.iter().for_each(|(key, lsn, value)| b.push(EntryRef { key, lsn: Lsn(*lsn), value: value.as_deref() }));
            let mut raw = Vec::new();
            b.write(&mut raw);
            let at = at.index(raw.len());
            raw[at] ^= xor;
            if let Ok(b) = Block::decode(raw) {
                let _ = b.search(&key, Lsn(3));
                prop_assert!((0..b.len()).filter(|i| b.entry(*i).is_ok()).count() <= b.len());
            }
        }
    }

    #[test]
    fn a_large_block_has_wide_offsets() {
        let entries: Vec<Version> = (0..40u8).map(|n| (vec![1, n], 7, Some(vec![n; 2_000]))).collect();
        let block = build(&entries);
        assert_eq!((0..40).map(|i| at(&block, i)).collect::<Vec<_>>(), entries);
    }
}
