//! The sorted slots that a node of the memtable's tree is made of: key heads beside entry addresses.
//!
//! A head is the eight bytes of a key after the prefix that all keys of the node share, so that most
//! comparisons end inside the node, without a look at the arena. Owns: order within a node and the
//! choice of its prefix. Never: which keys belong into a node.

use std::cmp::Ordering;

use crate::lsn::Lsn;

use super::arena::{Addr, Arena, Entry};

/// Slots of a node: with them a leaf is eight cache lines.
pub(super) const SLOTS: usize = LINES * LINE;
/// Heads in a cache line, and cache lines of heads.
const LINE: usize = 8;
const LINES: usize = 5;
/// The head of a slot that is not in use: never below another.
const UNUSED: u64 = u64::MAX;
/// Bytes by which a node's shared prefix must have grown before new heads are worth reading all keys.
const REHEAD: usize = 4;

/// A place in the order (key ascending, LSN descending).
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe<'a> {
    pub(super) key: &'a [u8],
    pub(super) lsn: Lsn,
}

impl<'a> Probe<'a> {
    pub(super) const fn of(entry: &Entry<'a>) -> Self {
        Self { key: entry.key, lsn: entry.lsn }
    }

    /// How `entry` compares to this place, where both keys share `prefix` bytes.
    fn order_of(&self, entry: &Entry<'_>, prefix: usize) -> Ordering {
        let (ours, theirs) = (self.key.get(prefix..), entry.key.get(prefix..));
        theirs.cmp(&ours).then_with(|| self.lsn.cmp(&entry.lsn))
    }
}

fn head(key: &[u8], prefix: usize) -> u64 {
    let rest = key.get(prefix..).unwrap_or_default();
    rest.first_chunk().map_or_else(
        || {
            // Padding makes a key equal to one with zeros there: equal heads decide nothing.
            let mut padded = [0; 8];
            padded.iter_mut().zip(rest).for_each(|(p, b)| *p = *b);
            u64::from_be_bytes(padded)
        },
        |first| u64::from_be_bytes(*first),
    )
}

/// Length of the longest common prefix.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    // Eight at a time first: keys may share 64 KiB.
    let words = a.chunks_exact(8).zip(b.chunks_exact(8)).take_while(|(a, b)| a == b).count() * 8;
    let rest = a.iter().skip(words).zip(b.iter().skip(words));
    words + rest.take_while(|(a, b)| a == b).count()
}

#[derive(Clone, Debug)]
#[repr(C)]
pub(super) struct Slots {
    heads: [[u64; LINE]; LINES],
    addrs: [Addr; SLOTS],
    len: u32,
    /// All keys that may be sought in this node share as many bytes.
    prefix: u32,
}

impl Slots {
    pub(super) const fn new(prefix: usize) -> Self {
        Self { heads: [[UNUSED; LINE]; LINES], addrs: [Addr::NONE; SLOTS], len: 0, prefix: prefix as u32 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) const fn is_full(&self) -> bool {
        self.len() == SLOTS
    }

    pub(super) const fn prefix(&self) -> usize {
        self.prefix as usize
    }

    pub(super) fn addr(&self, at: usize) -> Addr {
        self.addrs[at]
    }

    /// The first slot whose head is not below `head`. The reads do not wait for one another, so a
    /// node that is not cached costs one cache miss and not one for each step of a binary search.
    fn first_not_below(&self, head: u64) -> usize {
        let line = self.heads.iter().filter(|line| line[LINE - 1] < head).count();
        let within = self.heads.get(line).map_or(0, |l| l.iter().filter(|h| **h < head).count());
        line * LINE + within
    }

    /// The slot of exactly this place, or (`Err`) the first slot after it.
    pub(super) fn find(&self, arena: &Arena, probe: &Probe<'_>) -> Result<usize, usize> {
        let head = head(probe.key, self.prefix());
        let mut low = self.first_not_below(head);
        let heads = &self.heads.as_flattened()[..self.len()];
        let ties = heads.iter().skip(low).take_while(|h| **h == head).count();
        let mut high = low + ties;
        while low < high {
            let middle = low.midpoint(high);
            match probe.order_of(&arena.entry(self.addrs[middle]), self.prefix()) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Whether the place is after all slots.
    pub(super) fn all_below(&self, arena: &Arena, probe: &Probe<'_>) -> bool {
        let Some(last) = self.len().checked_sub(1) else { return true };
        let head = head(probe.key, self.prefix());
        match self.heads.as_flattened()[last].cmp(&head) {
            Ordering::Equal => probe.order_of(&arena.entry(self.addrs[last]), self.prefix()) == Ordering::Less,
            other => other == Ordering::Less,
        }
    }

    /// Puts an entry at a slot; there must be room.
    pub(super) fn insert(&mut self, at: usize, key: &[u8], addr: Addr) {
        let len = self.len();
        let heads = self.heads.as_flattened_mut();
        heads.copy_within(at..len, at + 1);
        heads[at] = head(key, self.prefix as usize);
        self.addrs.copy_within(at..len, at + 1);
        self.addrs[at] = addr;
        self.len += 1;
    }

    /// Lets a slot name another entry of the same key and LSN.
    pub(super) fn replace(&mut self, at: usize, addr: Addr) {
        self.addrs[at] = addr;
    }

    /// Moves the slots after the first `keep` to a new node.
    pub(super) fn split(&mut self, keep: usize) -> Self {
        let mut right = Self::new(self.prefix());
        let end = self.len();
        right.heads.as_flattened_mut()[..end - keep].copy_from_slice(&self.heads.as_flattened()[keep..end]);
        right.addrs[..end - keep].copy_from_slice(&self.addrs[keep..end]);
        right.len = (end - keep) as u32;
        self.truncate(keep);
        right
    }

    /// Drops the slots after the first `keep`.
    pub(super) fn truncate(&mut self, keep: usize) {
        let end = self.len();
        self.heads.as_flattened_mut()[keep..end].fill(UNUSED);
        self.len = keep as u32;
    }

    /// Takes note that all keys of this node now share `shared` bytes, more or fewer than before.
    pub(super) fn set_shared(&mut self, arena: &Arena, shared: usize) {
        // A shorter prefix than all share is right too, so new heads can wait until they pay.
        if shared >= self.prefix() && shared < self.prefix() + REHEAD {
            return;
        }
        self.prefix = shared as u32;
        let len = self.len();
        for (h, addr) in self.heads.as_flattened_mut().iter_mut().zip(&self.addrs).take(len) {
            *h = head(arena.entry(*addr).key, shared);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_prefixes_end_at_the_first_difference() {
        for len in 0..40 {
            let a = vec![b'x'; 40];
            let mut b = a.clone();
            b[len] = b'y';
            assert_eq!((common_prefix(&a, &b), common_prefix(&a, &b[..len])), (len, len));
        }
        assert_eq!(common_prefix(b"", b"a"), 0);
    }

    #[test]
    fn heads_as_high_as_an_unused_slot_are_found() {
        let mut arena = Arena::default();
        let mut slots = Slots::new(0);
        let keys = [&[255; 7][..], &[255; 8], &[255; 9]];
        for (n, key) in keys.iter().enumerate() {
            let probe = Probe { key, lsn: Lsn(1) };
            assert_eq!(slots.find(&arena, &probe), Err(n));
            slots.insert(n, key, arena.push(Lsn(1), (None, key), None));
            assert_eq!(slots.find(&arena, &probe), Ok(n));
            assert_eq!(slots.find(&arena, &Probe { lsn: Lsn(0), ..probe }), Err(n + 1));
        }
        slots.truncate(1);
        assert_eq!(slots.find(&arena, &Probe { key: keys[1], lsn: Lsn(1) }), Err(1));
    }
}
