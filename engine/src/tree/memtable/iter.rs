//! Walking a memtable that others read and write meanwhile.
//!
//! Owns: how much is copied under one lock. Never: the lock while the caller works on an entry.

use std::ops::Range;
use std::sync::Arc;

use crate::lsn::Lsn;
use crate::table::{Bounds, EntryRef, below_end};

use super::Memtable;
use super::slots::Probe;

/// Entries copied and entries looked at under one lock, and bytes copied.
const CHUNK_ITEMS: usize = 64;
const CHUNK_VISITS: usize = 1024;
const CHUNK_BYTES: usize = 256 * 1024;
/// Entries of the first chunk: a scan that ends soon shall not copy much more than it gives.
const FIRST_ITEMS: usize = 8;

/// Entries copied in one go.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, Lsn, Option<Range<usize>>)>,
}

impl Chunk {
    fn push(&mut self, entry: EntryRef<'_>) {
        let mut copy = |bytes: &[u8]| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(bytes);
            start..self.bytes.len()
        };
        let (key, value) = (copy(entry.key), entry.value.map(&mut copy));
        self.entries.push((key, entry.lsn, value));
    }

    fn get(&self, index: usize) -> Option<EntryRef<'_>> {
        let (key, lsn, value) = self.entries.get(index)?;
        let slice = |at: &Range<usize>| self.bytes.get(at.clone()).unwrap_or_default();
        Some(EntryRef { key: slice(key), lsn: *lsn, value: value.as_ref().map(slice) })
    }
}

/// Iterates entries at or below an LSN within bounds.
#[derive(Debug)]
pub(crate) struct MemtableCursor {
    memtable: Arc<Memtable>,
    bounds: Arc<Bounds>,
    reverse: bool,
    lsn: Lsn,
    /// The last entry looked at: the next chunk begins behind it.
    last: Option<(Vec<u8>, Lsn)>,
    /// Entries of the next chunk.
    items: usize,
    chunk: Chunk,
    /// The entry of `chunk` that comes next; the present one is before it.
    next: usize,
    done: bool,
}

impl MemtableCursor {
    /// Stands before the first entry: call [`MemtableCursor::advance`].
    pub(crate) fn new(memtable: Arc<Memtable>, bounds: Arc<Bounds>, reverse: bool, lsn: Lsn) -> Self {
        let chunk = Chunk::default();
        Self { memtable, bounds, reverse, lsn, last: None, items: FIRST_ITEMS, chunk, next: 0, done: false }
    }

    pub(crate) fn memtable(&self) -> &Memtable {
        &self.memtable
    }

    /// The present entry; `None` before the first and at the end.
    pub(crate) fn entry(&self) -> Option<EntryRef<'_>> {
        self.chunk.get(self.next.checked_sub(1)?)
    }

    /// Goes to the next entry; false at the end.
    pub(crate) fn advance(&mut self) -> bool {
        while self.next >= self.chunk.entries.len() {
            self.next = 0;
            self.chunk.bytes.clear();
            self.chunk.entries.clear();
            if self.done {
                return false;
            }
            self.fill();
        }
        self.next += 1;
        true
    }

    fn fill(&mut self) {
        let inner = self.memtable.read();
        let edge = if self.reverse { &self.bounds.high } else { &self.bounds.low };
        let from = match &self.last {
            Some((key, lsn)) => Some(Probe { key, lsn: *lsn }),
            None => (!edge.is_empty()).then_some(Probe { key: edge, lsn: Lsn::MAX }),
        };
        let mut walk = inner.tree.walk(&inner.arena, from.as_ref(), self.reverse);
        if self.last.is_some() && !self.reverse {
            // Entries are never removed: what is at the place of the last entry is that entry.
            walk.next();
        }
        let (mut visits, mut bytes) = (0, 0);
        self.done = true;
        for addr in walk {
            let entry = inner.arena.entry(addr);
            let inside = if self.reverse {
                entry.key >= self.bounds.low.as_slice()
            } else {
                below_end(entry.key, &self.bounds.high)
            };
            if !inside {
                break;
            }
            visits += 1;
            if entry.lsn <= self.lsn {
                bytes += entry.key.len() + entry.value.map_or(0, <[u8]>::len);
                self.chunk.push(EntryRef { key: entry.key, lsn: entry.lsn, value: entry.value });
            }
            if self.chunk.entries.len() >= self.items || visits >= CHUNK_VISITS || bytes >= CHUNK_BYTES {
                let (key, lsn) = self.last.get_or_insert_default();
                key.clear();
                key.extend_from_slice(entry.key);
                *lsn = entry.lsn;
                self.done = false;
                break;
            }
        }
        self.items = (self.items * 2).min(CHUNK_ITEMS);
    }
}
