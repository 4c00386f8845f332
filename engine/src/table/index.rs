//! Which data block of a table a key is in.
//!
//! Between two blocks stands a separator, a short key that is at or above the last key of the one
//! and, unless versions of one key go on, below the first key of the other. Section payload: per
//! block, `separator (varint length + bytes) | block length varint`; the first block stands at 0, each
//! other one behind the one before. In memory: the first eight bytes behind what all separators
//! share in one array, what some have beyond in another, and of each group of blocks the last head in a third, and of each
//! group of those in a fourth: a search goes through that one and then through one group each. All heads of a group are
//! compared, for the processor fetches their cache lines side by side; a bisection would wait for one after the other. Owns: making, encoding and asking it. Never: blocks.

use std::cmp::Ordering;

use crate::codec::{Cursor, Malformed, put_slice, put_varint};

use super::block::{HEAD, INTERNAL_KEY_MAX, head_of};
use super::format::{FRAME_BYTES, Place, RAW_BYTES_MAX};

/// Blocks of a group: their heads are four cache lines.
const GROUP: usize = 32;

/// Writes an index as blocks are finished.
#[derive(Debug, Default)]
pub(super) struct IndexBuilder {
    bytes: Vec<u8>,
    /// The last key and length of the block whose successor is not known yet.
    open: Option<(Vec<u8>, u64)>,
}

impl IndexBuilder {
    /// The first key of the block after the last one that was finished.
    pub(super) fn next_starts(&mut self, first: &[u8]) {
        if let Some((last, len)) = self.open.take() {
            self.put(separator(&last, first), len);
        }
    }

    pub(super) fn finished(&mut self, last: &[u8], len: u64) {
        self.open = Some((last.to_vec(), len));
    }

    pub(super) fn finish(&mut self) -> Vec<u8> {
        if let Some((last, len)) = self.open.take() {
            self.put(&last, len);
        }
        std::mem::take(&mut self.bytes)
    }

    fn put(&mut self, separator: &[u8], len: u64) {
        put_slice(&mut self.bytes, separator);
        put_varint(&mut self.bytes, len);
    }
}

/// The shortest start of `next` that is above `last`, if it is below `next` or equal; else `last`.
fn separator<'a>(last: &'a [u8], next: &'a [u8]) -> &'a [u8] {
    let shared = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    // `next` is above: behind what they share it goes on, with a higher byte or behind the end of `last`.
    match next.get(..=shared) {
        Some(short) if short < next && short.len() < last.len() => short,
        _ => last,
    }
}

/// Where blocks start, and the end of the last.
#[derive(Debug)]
enum Offsets {
    Narrow(Vec<u32>),
    Wide(Vec<u64>),
}

impl Offsets {
    fn of(offsets: Vec<u64>) -> Self {
        let narrow: Result<Vec<u32>, _> = offsets.iter().map(|o| u32::try_from(*o)).collect();
        narrow.map_or(Self::Wide(offsets), Self::Narrow)
    }

    fn get(&self, at: usize) -> Option<u64> {
        match self {
            Self::Narrow(offsets) => offsets.get(at).map(|o| u64::from(*o)),
            Self::Wide(offsets) => offsets.get(at).copied(),
        }
    }
}

/// See the module. About 13 bytes a block where separators differ within eight bytes.
#[derive(Debug)]
pub(super) struct Index {
    shared: Vec<u8>,
    heads: Vec<u64>,
    /// The last head of each group that is full, and of each full group of those.
    group_ends: Vec<u64>,
    far_ends: Vec<u64>,
    /// How many bytes of a head are the separator's.
    head_lens: Vec<u8>,
    /// What separators have behind their heads, one after another, and where each ends; no ends if none has any.
    rests: Vec<u8>,
    rest_ends: Vec<u32>,
    offsets: Offsets,
}

impl Index {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (first, last) = ends_of(bytes)?;
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        let (mut c, mut offset, mut before) = (Cursor::new(bytes), 0u64, None);
        let (mut heads, mut head_lens, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        let (mut rests, mut rest_ends) = (Vec::new(), Vec::new());
        while !c.is_empty() {
            let separator = c.slice(INTERNAL_KEY_MAX)?;
            if before.is_some_and(|b| separator < b) {
                return Err(Malformed("index out of order"));
            }
            before = Some(separator);
            let len = c.varint()?;
            if len > (RAW_BYTES_MAX + FRAME_BYTES) as u64 {
                return Err(Malformed("block length over bound"));
            }
            offset = offset.checked_add(len).ok_or(Malformed("block offset over bound"))?;
            // Sorted between the first and the last, it starts as these do.
            let tail = separator.get(shared..).ok_or(Malformed("index out of order"))?;
            heads.push(head_of(tail));
            head_lens.push(tail.len().min(HEAD) as u8);
            rests.extend_from_slice(tail.get(HEAD..).unwrap_or_default());
            rest_ends.push(u32::try_from(rests.len()).map_err(|_| Malformed("index over bound"))?);
            offsets.push(offset);
        }
        if rests.is_empty() {
            rest_ends.clear();
        }
        heads.shrink_to_fit();
        head_lens.shrink_to_fit();
        rests.shrink_to_fit();
        rest_ends.shrink_to_fit();
        let (shared, offsets) = (first.get(..shared).unwrap_or_default().to_vec(), Offsets::of(offsets));
        let ends_of_groups = |h: &[u64]| h.chunks_exact(GROUP).filter_map(|g| g.last().copied()).collect::<Vec<_>>();
        let group_ends = ends_of_groups(&heads);
        let far_ends = ends_of_groups(&group_ends);
        Ok(Self { shared, heads, group_ends, far_ends, head_lens, rests, rest_ends, offsets })
    }

    /// Memory in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        let offsets = match &self.offsets {
            Offsets::Narrow(offsets) => offsets.capacity() * 4,
            Offsets::Wide(offsets) => offsets.capacity() * 8,
        };
        let ends = self.group_ends.capacity() + self.far_ends.capacity();
        let words = (self.heads.capacity() + ends) * 8 + self.rest_ends.capacity() * 4;
        let bytes = self.shared.capacity() + self.head_lens.capacity() + self.rests.capacity();
        (size_of::<Self>() + offsets + words + bytes) as u64
    }

    /// Number of data blocks.
    pub(super) const fn len(&self) -> usize {
        self.heads.len()
    }

    /// What separators have behind what all share.
    fn tail(&self, block: usize) -> Tail<'_> {
        let end_of = |i: usize| self.rest_ends.get(i).map_or(0, |e| *e as usize);
        let from = block.checked_sub(1).map_or(0, end_of);
        Tail {
            head: self.heads.get(block).copied().unwrap_or_default(),
            head_len: self.head_lens.get(block).copied().unwrap_or_default(),
            rest: self.rests.get(from..end_of(block)).unwrap_or_default(),
        }
    }

    /// The separator at or above all keys of a block.
    pub(super) fn separator(&self, block: usize) -> Vec<u8> {
        let tail = self.tail(block);
        let head = tail.head.to_be_bytes();
        [&self.shared, head.get(..usize::from(tail.head_len)).unwrap_or(&head), tail.rest].concat()
    }

    /// Whether the keys of `block` may reach `key`: its separator is at or above.
    pub(super) fn reaches(&self, block: usize, key: &[u8]) -> bool {
        let (start, tail) = key.split_at_checked(self.shared.len()).unwrap_or((key, &[]));
        self.shared.as_slice().cmp(start).then_with(|| self.tail(block).cmp(&Tail::of(tail))).is_ge()
    }

    /// Where a block stands.
    pub(super) fn place(&self, block: usize) -> Option<Place> {
        let (from, to) = (self.offsets.get(block)?, self.offsets.get(block + 1)?);
        Some(Place { offset: from, len: to - from })
    }

    /// The first block that may hold `key` or a key above it; `len()` when all are below.
    pub(super) fn find(&self, key: &[u8]) -> usize {
        let (start, tail) = key.split_at_checked(self.shared.len()).unwrap_or((key, &[]));
        match start.cmp(&self.shared) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.len(),
            Ordering::Equal => {}
        }
        let tail = Tail::of(tail);
        let far = self.far_ends.partition_point(|h| *h < tail.head) * GROUP;
        let group = (far + below_in_group(&self.group_ends, far, tail.head)) * GROUP;
        let mut from = group + below_in_group(&self.heads, group, tail.head);
        if self.heads.get(from) != Some(&tail.head) {
            return from;
        }
        let ties = self.heads.get(from..).unwrap_or_default();
        // Mostly there is one.
        let alone = ties.get(1) != Some(&tail.head);
        let mut to = from + if alone { 1 } else { ties.partition_point(|h| *h == tail.head) };
        while from < to {
            let mid = from + (to - from) / 2;
            if self.tail(mid) < tail {
                from = mid + 1;
            } else {
                to = mid;
            }
        }
        from
    }
}

/// How many of the group that begins at `from` are below `head`.
fn below_in_group(sorted: &[u64], from: usize, head: u64) -> usize {
    let rest = sorted.get(from..).unwrap_or_default();
    rest.iter().take(GROUP).filter(|h| **h < head).count()
}

/// The end of a key, ordered as its bytes are: where heads are equal the one that ends earlier in them is
/// the lower one, as zeros only stand behind an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tail<'a> {
    head: u64,
    head_len: u8,
    rest: &'a [u8],
}

impl<'a> Tail<'a> {
    fn of(tail: &'a [u8]) -> Self {
        Self { head: head_of(tail), head_len: tail.len().min(HEAD) as u8, rest: tail.get(HEAD..).unwrap_or_default() }
    }
}

/// The first and the last separator.
fn ends_of(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let mut c = Cursor::new(bytes);
    let (mut first, mut last) = (None, &[][..]);
    while !c.is_empty() {
        last = c.slice(INTERNAL_KEY_MAX)?;
        first.get_or_insert(last);
        c.varint()?;
    }
    Ok((first.unwrap_or_default(), last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let key =
            prop_oneof![proptest::collection::vec(0u8..3, 0..12), "ab{0,9}[a-c]{0,12}".prop_map(String::into_bytes)];
        proptest::collection::btree_set(key, 1..120).prop_map(|s| s.into_iter().collect())
    }

    /// With enough blocks that ends of groups have ends of groups, and with separators that are longer than a head.
    #[test]
    fn all_that_an_index_has_in_memory_counts() {
        // In a small table, and in one so long that its offsets need eight bytes.
        for len in [10, RAW_BYTES_MAX as u64] {
            let mut bytes = Vec::new();
            for n in 0..3 * GROUP * GROUP {
                put_slice(&mut bytes, format!("{n:06} and more than fits a head").as_bytes());
                put_varint(&mut bytes, len);
            }
            let index = Index::decode(&bytes).unwrap();
            let counted = index.bytes();
            // A new field has to be named here.
            let Index { shared, heads, group_ends, far_ends, head_lens, rests, rest_ends, offsets } = index;
            let offsets = match (&offsets, len == 10) {
                (Offsets::Narrow(o), true) => o.capacity() * 4,
                (Offsets::Wide(o), false) => o.capacity() * 8,
                (other, _) => panic!("{other:?}"),
            };
            let parts = [
                (shared.capacity(), 1),
                (heads.capacity(), 8),
                (group_ends.capacity(), 8),
                (far_ends.capacity(), 8),
                (head_lens.capacity(), 1),
                (rests.capacity(), 1),
                (rest_ends.capacity(), 4),
            ];
            assert!(parts.iter().all(|(capacity, _)| *capacity > 0), "{parts:?}");
            let all: usize = parts.iter().map(|(capacity, bytes)| capacity * bytes).sum();
            assert_eq!(counted, (size_of::<Index>() + offsets + all) as u64);
        }
    }

    proptest! {
        #[test]
        fn every_key_is_found_in_its_block(keys in keys(), cuts: u64, probes in keys()) {
            // Blocks of the keys between set bits; keys at a cut have versions on both sides now and then.
            let mut blocks: Vec<Vec<&Vec<u8>>> = vec![Vec::new()];
            for (n, key) in keys.iter().enumerate() {
                blocks.last_mut().unwrap().push(key);
                if cuts >> (n % 64) & 1 == 1 && n + 1 < keys.len() {
                    blocks.push(if n % 3 == 0 { vec![key] } else { Vec::new() });
                }
            }
            blocks.retain(|b| !b.is_empty());
            let mut b = IndexBuilder::default();
            for block in &blocks {
                b.next_starts(block[0]);
                b.finished(block[block.len() - 1], 10);
            }
            let index = Index::decode(&b.finish()).unwrap();
            prop_assert_eq!(index.len(), blocks.len());
            for probe in keys.iter().chain(&probes) {
                let at = index.find(probe);
                let first = blocks.iter().position(|b| b[b.len() - 1] >= probe).unwrap_or(blocks.len());
                // Where no block holds a key, the separator may send it one block early.
                let holds = blocks.get(first).is_some_and(|b| b.contains(&probe));
                prop_assert!(at == first || (!holds && at + 1 == first), "{:?}: {} not {}", probe, at, first);
                prop_assert_eq!(at, (0..index.len()).find(|i| index.reaches(*i, probe)).unwrap_or(index.len()));
                prop_assert_eq!(at, (0..index.len()).find(|i| index.separator(*i) >= *probe).unwrap_or(index.len()));
            }
            prop_assert_eq!(index.place(blocks.len() - 1).and_then(Place::end), Some(10 * blocks.len() as u64));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, key: Vec<u8>) {
            if let Ok(index) = Index::decode(&bytes) {
                prop_assert!(index.find(&key) <= index.len());
            }
        }
    }
}
