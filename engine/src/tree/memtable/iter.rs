//! Iterating a memtable that others read and write meanwhile.
//!
//! Owns: how much is copied under one lock. Never: the lock while the caller works on an entry.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Result;
use crate::lsn::Lsn;
use crate::table::{Item, below_end};

use super::slots::Probe;
use super::{Memtable, stored};

/// Entries copied and entries looked at under one lock, and bytes copied.
const CHUNK_ITEMS: usize = 64;
const CHUNK_VISITS: usize = 1024;
const CHUNK_BYTES: usize = 256 * 1024;
/// Entries of the first chunk: a scan that ends soon shall not copy much more than it gives.
const FIRST_ITEMS: usize = 8;

/// Iterates entries at or below an LSN with keys in `low..high` (empty `high`: no bound).
#[derive(Debug)]
pub(crate) struct MemtableIter {
    memtable: Arc<Memtable>,
    low: Vec<u8>,
    high: Vec<u8>,
    reverse: bool,
    lsn: Lsn,
    /// The last entry looked at: the next chunk begins behind it.
    last: Option<(Vec<u8>, Lsn)>,
    items: usize,
    chunk: VecDeque<Item>,
    done: bool,
}

impl MemtableIter {
    pub(crate) fn new(memtable: Arc<Memtable>, low: Vec<u8>, high: Vec<u8>, reverse: bool, lsn: Lsn) -> Self {
        Self { memtable, low, high, reverse, lsn, last: None, items: FIRST_ITEMS, chunk: VecDeque::new(), done: false }
    }

    fn fill(&mut self) {
        let inner = self.memtable.read();
        let edge = if self.reverse { &self.high } else { &self.low };
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
            let inside = if self.reverse { entry.key >= self.low.as_slice() } else { below_end(entry.key, &self.high) };
            if !inside {
                break;
            }
            visits += 1;
            if entry.lsn <= self.lsn {
                bytes += entry.key.len() + entry.value.map_or(0, <[u8]>::len);
                self.chunk.push_back(Item { key: entry.key.to_vec(), lsn: entry.lsn, op: stored(entry.value) });
            }
            if self.chunk.len() >= self.items || visits >= CHUNK_VISITS || bytes >= CHUNK_BYTES {
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

impl Iterator for MemtableIter {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.chunk.is_empty() && !self.done {
            self.fill();
        }
        self.chunk.pop_front().map(Ok)
    }
}
