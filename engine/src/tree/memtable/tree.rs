//! The memtable's order: a B+tree of entry addresses by (key ascending, LSN descending).
//!
//! Entries are added, and one of the same key and LSN replaced; nothing is removed, so no node is
//! ever empty or merged. A node's separators are addresses of real entries: the first entry of the
//! child to their right, as it was when that child was split off. Owns: insertion, splits and
//! walks. Never: locks, and never what is visible.
//!
//! **Shared prefixes.** The keys that can be sought in a node lie between two separators, its
//! fences, and share what these share. Nodes on the left and right edge lack a fence and share what
//! all keys of the tree share (`shared`). So no prefix is compared on the way down. When a key comes
//! that does not start with `shared`, the nodes on both edges get new heads.

use super::arena::{Addr, Arena, Entry};
use super::pages::Pages;
use super::slots::{Probe, SLOTS, Slots, common_prefix};

const _: () = assert!(size_of::<Leaf>() == 512, "a leaf is eight cache lines");

/// In place of a neighbour that is not there.
const NO_LEAF: u32 = u32::MAX;

/// Eight cache lines; the heads start the first.
#[derive(Debug)]
#[repr(C, align(64))]
struct Leaf {
    slots: Slots,
    before: u32,
    after: u32,
    /// The slot that the last entry came into.
    newest: u32,
}

/// `children[i]` holds what is below `slots[i]`, the last child the rest.
#[derive(Debug)]
#[repr(C, align(64))]
struct Inner {
    slots: Slots,
    children: [u32; SLOTS + 1],
}

impl Inner {
    /// The child that a place belongs to.
    fn child_of(&self, arena: &Arena, probe: &Probe<'_>) -> usize {
        match self.slots.find(arena, probe) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    fn insert(&mut self, at: usize, key: &[u8], separator: Addr, child: u32) {
        self.children.copy_within(at + 1..=self.slots.len(), at + 2);
        self.children[at + 1] = child;
        self.slots.insert(at, key, separator);
    }
}

/// The separators around a node.
#[derive(Clone, Copy, Debug)]
struct Fences {
    low: Option<Addr>,
    high: Option<Addr>,
}

/// A node that came to the right of another.
struct Split {
    separator: Addr,
    right: u32,
    /// Only the new entry went right, because entries come in ascending order.
    ascending: bool,
}

#[derive(Debug)]
pub(super) struct Tree {
    leaves: Pages<Leaf>,
    inners: Pages<Inner>,
    root: u32,
    /// Levels of inner nodes above the leaves.
    height: u32,
    last: u32,
    /// What all keys start with.
    shared: Vec<u8>,
    empty: bool,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            leaves: Pages::default(),
            inners: Pages::default(),
            root: 0,
            height: 0,
            last: 0,
            shared: Vec::new(),
            empty: true,
        }
    }
}

impl Tree {
    /// Memory in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.leaves.bytes() + self.inners.bytes() + self.shared.capacity()
    }

    /// Adds an entry, in place of one with the same key and LSN.
    pub(super) fn insert(&mut self, arena: &Arena, addr: Addr) {
        let entry = arena.entry(addr);
        if self.empty {
            return self.start(&entry, addr);
        }
        if !entry.key.starts_with(&self.shared) {
            self.shorten(arena, common_prefix(&self.shared, entry.key));
        }
        let last = &mut self.leaves[self.last];
        if !last.slots.is_full() && last.slots.all_below(arena, &Probe::of(&entry)) {
            let end = last.slots.len();
            last.newest = end as u32;
            return last.slots.insert(end, entry.key, addr);
        }
        let fences = Fences { low: None, high: None };
        let Some(split) = self.insert_below(arena, self.root, self.height, fences, addr) else { return };
        let mut slots = Slots::new(self.shared.len());
        slots.insert(0, arena.entry(split.separator).key, split.separator);
        let mut children = [NO_LEAF; SLOTS + 1];
        (children[0], children[1]) = (self.root, split.right);
        self.root = self.inners.push(Inner { slots, children });
        self.height += 1;
    }

    fn start(&mut self, entry: &Entry<'_>, addr: Addr) {
        self.shared = entry.key.to_vec();
        let mut slots = Slots::new(self.shared.len());
        slots.insert(0, entry.key, addr);
        self.root = self.leaves.push(Leaf { slots, before: NO_LEAF, after: NO_LEAF, newest: 0 });
        self.last = self.root;
        self.empty = false;
    }

    /// From now on all keys share only `len` bytes.
    fn shorten(&mut self, arena: &Arena, len: usize) {
        self.shared.truncate(len);
        let shorten = |slots: &mut Slots| slots.set_shared(arena, slots.prefix().min(len));
        for right in [false, true] {
            let mut at = self.root;
            for _ in 0..self.height {
                let node = &mut self.inners[at];
                shorten(&mut node.slots);
                at = node.children[if right { node.slots.len() } else { 0 }];
            }
            shorten(&mut self.leaves[at].slots);
        }
    }

    /// What all keys between two fences share.
    fn shared_between(&self, arena: &Arena, low: Option<Addr>, high: Option<Addr>) -> usize {
        let Some((low, high)) = low.zip(high) else { return self.shared.len() };
        common_prefix(arena.entry(low).key, arena.entry(high).key)
    }

    fn insert_below(&mut self, arena: &Arena, at: u32, height: u32, fences: Fences, addr: Addr) -> Option<Split> {
        if height == 0 {
            return self.insert_leaf(arena, at, fences, addr);
        }
        let node = &self.inners[at];
        let i = node.child_of(arena, &Probe::of(&arena.entry(addr)));
        let below = Fences {
            low: i.checked_sub(1).map(|i| node.slots.addr(i)).or(fences.low),
            high: if i < node.slots.len() { Some(node.slots.addr(i)) } else { fences.high },
        };
        let split = self.insert_below(arena, node.children[i], height - 1, below, addr)?;
        let node = &mut self.inners[at];
        if node.slots.is_full() {
            return Some(self.split_inner(arena, at, i, fences, &split));
        }
        node.insert(i, arena.entry(split.separator).key, split.separator, split.right);
        None
    }

    fn insert_leaf(&mut self, arena: &Arena, at: u32, fences: Fences, addr: Addr) -> Option<Split> {
        let entry = arena.entry(addr);
        let Leaf { slots, newest, .. } = &mut self.leaves[at];
        let i = match slots.find(arena, &Probe::of(&entry)) {
            Ok(i) => {
                slots.replace(i, addr);
                return None;
            }
            Err(i) => i,
        };
        let previous = std::mem::replace(newest, i as u32) as usize;
        if !slots.is_full() {
            slots.insert(i, entry.key, addr);
            return None;
        }
        // Where entries come in a row, each behind the last or (as versions of one key do) before it,
        // the split is made there, so that leaves get full and not half full.
        let in_a_row = previous + 1 == i || previous == i;
        let ascending = i == SLOTS && (at == self.last || in_a_row);
        let middle = if ascending || in_a_row { i } else { SLOTS / 2 };
        let mut right = slots.split(middle);
        if ascending {
            right.insert(0, entry.key, addr);
        } else if i <= middle {
            slots.insert(i, entry.key, addr);
        } else {
            right.insert(i - middle, entry.key, addr);
        }
        let separator = right.addr(0);
        right.set_shared(arena, self.shared_between(arena, Some(separator), fences.high));
        let left_shares = self.shared_between(arena, fences.low, Some(separator));
        self.leaves[at].slots.set_shared(arena, left_shares);
        let right = self.link(at, right, i.saturating_sub(middle) as u32);
        Some(Split { separator, right, ascending })
    }

    /// Makes a leaf of slots to the right of another.
    fn link(&mut self, left: u32, slots: Slots, newest: u32) -> u32 {
        let after = self.leaves[left].after;
        let right = self.leaves.push(Leaf { slots, before: left, after, newest });
        self.leaves[left].after = right;
        if after == NO_LEAF {
            self.last = right;
        } else {
            self.leaves[after].before = right;
        }
        right
    }

    /// Splits a full inner node whose child `i` was split.
    fn split_inner(&mut self, arena: &Arena, at: u32, i: usize, fences: Fences, below: &Split) -> Split {
        let node = &mut self.inners[at];
        let ascending = below.ascending && i == SLOTS;
        let mut children = [NO_LEAF; SLOTS + 1];
        let (separator, mut right) = if ascending {
            children[0] = below.right;
            (below.separator, Inner { slots: Slots::new(node.slots.prefix()), children })
        } else {
            let middle = SLOTS / 2;
            let separator = node.slots.addr(middle);
            let slots = node.slots.split(middle + 1);
            node.slots.truncate(middle);
            children[..=slots.len()].copy_from_slice(&node.children[middle + 1..]);
            let mut right = Inner { slots, children };
            let key = arena.entry(below.separator).key;
            if i <= middle {
                node.insert(i, key, below.separator, below.right);
            } else {
                right.insert(i - middle - 1, key, below.separator, below.right);
            }
            (separator, right)
        };
        right.slots.set_shared(arena, self.shared_between(arena, Some(separator), fences.high));
        let left_shares = self.shared_between(arena, fences.low, Some(separator));
        self.inners[at].slots.set_shared(arena, left_shares);
        Split { separator, right: self.inners.push(right), ascending }
    }

    /// The first entry at or after a place, or the end. A place that lies after all slots of the
    /// leaf it belongs to is before the first slot of the next leaf.
    fn seek(&self, arena: &Arena, probe: &Probe<'_>) -> (u32, usize) {
        if !probe.key.starts_with(&self.shared) {
            // Keys that all start with `shared` are on one side of a key that does not.
            return if probe.key < self.shared.as_slice() { self.first() } else { self.end() };
        }
        let mut at = self.root;
        for _ in 0..self.height {
            let node = &self.inners[at];
            at = node.children[node.child_of(arena, probe)];
        }
        let (Ok(i) | Err(i)) = self.leaves[at].slots.find(arena, probe);
        (at, i)
    }

    const fn first(&self) -> (u32, usize) {
        // Splits keep the left half under the old number.
        (0, 0)
    }

    fn end(&self) -> (u32, usize) {
        (self.last, self.leaves[self.last].slots.len())
    }

    /// The first entry at or after a place.
    pub(super) fn at_or_after(&self, arena: &Arena, probe: &Probe<'_>) -> Option<Addr> {
        self.walk(arena, Some(probe), false).next()
    }

    /// Entries at or after a place (or from the first on), ascending; or those before it (or from
    /// the last on) with `reverse`, descending.
    pub(super) fn walk(&self, arena: &Arena, from: Option<&Probe<'_>>, reverse: bool) -> Walk<'_> {
        let (leaf, slot) = match from {
            _ if self.empty => (NO_LEAF, 0),
            Some(probe) => self.seek(arena, probe),
            None if reverse => self.end(),
            None => self.first(),
        };
        Walk { tree: self, leaf, slot, reverse }
    }
}

/// See [`Tree::walk`].
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    leaf: u32,
    /// The slot that comes next, or in reverse the one after it.
    slot: usize,
    reverse: bool,
}

impl Iterator for Walk<'_> {
    type Item = Addr;

    fn next(&mut self) -> Option<Addr> {
        while self.leaf != NO_LEAF {
            let leaf = &self.tree.leaves[self.leaf];
            if self.reverse {
                if let Some(slot) = self.slot.checked_sub(1) {
                    self.slot = slot;
                    return Some(leaf.slots.addr(slot));
                }
                self.leaf = leaf.before;
                self.slot = if self.leaf == NO_LEAF { 0 } else { self.tree.leaves[self.leaf].slots.len() };
            } else {
                if self.slot < leaf.slots.len() {
                    self.slot += 1;
                    return Some(leaf.slots.addr(self.slot - 1));
                }
                (self.leaf, self.slot) = (leaf.after, 0);
            }
        }
        None
    }
}

#[cfg(test)]
impl Tree {
    /// Levels, and slots in use per slot of a leaf in percent.
    pub(super) fn shape(&self) -> (u32, usize) {
        let (mut leaf, mut leaves, mut used) = (0, 0, 0);
        while leaf != NO_LEAF {
            used += self.leaves[leaf].slots.len();
            leaves += SLOTS;
            leaf = self.leaves[leaf].after;
        }
        (self.height + 1, used * 100 / leaves)
    }
}
