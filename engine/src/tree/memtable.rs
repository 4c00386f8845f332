//! The newest part of the tree, in memory: an ordered map of versions and a list of range deletes.
//!
//! Owns: what a record does to keys (the last operation on a key within one record wins; a range
//! delete covers all below its LSN and what its own record did before it). Never: files, and never
//! a record above the commit LSN \[I2\].

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::batch::{Batch, Op};
use crate::codec::Malformed;
use crate::error::Result;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::record::{Kind, Record, TimelineStart};
use crate::table::times::Times;
use crate::table::{Item, RangeDelete, Stored, covering, internal_end, internal_key};

use super::manifest::{EpochStart, Event};

/// Memory of an entry or range delete beyond its own bytes, roughly.
const ENTRY_OVERHEAD: usize = 64;
/// Entries copied and entries looked at under one lock by an iterator, and bytes copied.
const CHUNK_ITEMS: usize = 64;
const CHUNK_VISITS: usize = 1024;
const CHUNK_BYTES: usize = 256 * 1024;

/// What one record does to the tree.
#[derive(Debug, Default)]
pub(crate) struct Change {
    entries: BTreeMap<Vec<u8>, Stored>,
    ranges: Vec<RangeDelete>,
    pub(crate) event: Option<Event>,
}

impl Change {
    pub(crate) fn of(record: &Record<'_>) -> std::result::Result<Self, Malformed> {
        let h = &record.header;
        let mut out = Self::default();
        match h.kind {
            Kind::Batch => Batch::decode(record.body)?.iter().for_each(|op| out.add(op, h.lsn)),
            Kind::EpochStart => out.event = Some(Event::Epoch(EpochStart { epoch: h.epoch, lsn: h.lsn, ts: h.ts })),
            Kind::TimelineStart => out.event = Some(Event::Timeline(TimelineStart::decode(record.body)?)),
        }
        Ok(out)
    }

    /// What a batch does, before or without being a record's body.
    pub(crate) fn of_batch(batch: &Batch, lsn: Lsn) -> Self {
        let mut out = Self::default();
        batch.iter().for_each(|op| out.add(op, lsn));
        out
    }

    fn add(&mut self, op: Op<'_>, lsn: Lsn) {
        match op {
            Op::Put { keyspace, key, envelope } => {
                self.entries.insert(internal_key(keyspace, key), Stored::Put(envelope.to_vec()));
            }
            Op::Delete { keyspace, key } => {
                self.entries.insert(internal_key(keyspace, key), Stored::Delete);
            }
            Op::DeleteRange { keyspace, start, end } => {
                let range = RangeDelete { start: internal_key(keyspace, start), end: internal_end(keyspace, end), lsn };
                // The range delete hides lower LSNs only: what this record did before must go here.
                self.entries.retain(|key, _| !range.contains(key));
                self.ranges.push(range);
            }
        }
    }
}

type VersionKey = (Vec<u8>, Reverse<Lsn>);

#[derive(Debug, Default)]
struct Inner {
    map: BTreeMap<VersionKey, Stored>,
    ranges: Vec<RangeDelete>,
    times: Times,
    events: Vec<Event>,
    bytes: usize,
    end: Option<Position>,
}

/// See the module. Shared by views: entries are added, never changed or removed.
#[derive(Debug, Default)]
pub(crate) struct Memtable {
    inner: RwLock<Inner>,
}

impl Memtable {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        // A panic under the lock can leave part of a record above every view's LSN, never below.
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a record; nobody sees it before the tree publishes its LSN.
    pub(crate) fn apply(&self, at: Position, change: Change) -> std::result::Result<(), Malformed> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.times.push(at.lsn, at.ts)?;
        inner.bytes += 16;
        for (key, op) in change.entries {
            let value = if let Stored::Put(v) = &op { v.len() } else { 0 };
            inner.bytes += key.len() + value + ENTRY_OVERHEAD;
            inner.map.insert((key, Reverse(at.lsn)), op);
        }
        for range in change.ranges {
            inner.bytes += range.start.len() + range.end.len() + ENTRY_OVERHEAD;
            inner.ranges.push(range);
        }
        inner.events.extend(change.event);
        inner.end = Some(at);
        Ok(())
    }

    /// Memory in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// The position of the last record; `None` before the first.
    pub(crate) fn end(&self) -> Option<Position> {
        self.read().end
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.read().events.clone()
    }

    pub(crate) fn ranges(&self) -> Vec<RangeDelete> {
        self.read().ranges.clone()
    }

    pub(crate) fn times(&self) -> Times {
        self.read().times.clone()
    }

    /// The newest pair of LSN and commit time at or below `lsn`.
    pub(crate) fn time_at(&self, lsn: Lsn) -> Option<(Lsn, CommitTs)> {
        self.read().times.last_where(|l, _| l <= lsn)
    }

    /// The highest LSN, at most `at`, of a range delete that covers `key`.
    pub(crate) fn covering(&self, key: &[u8], at: Lsn) -> Lsn {
        covering(&self.read().ranges, key, at)
    }

    /// The newest version of `key` at or below `lsn`.
    pub(crate) fn get(&self, key: &[u8], lsn: Lsn) -> Option<(Lsn, Stored)> {
        let bounds = (key.to_vec(), Reverse(lsn))..=(key.to_vec(), Reverse(Lsn::ZERO));
        self.read().map.range(bounds).next().map(|((_, l), op)| (l.0, op.clone()))
    }
}

/// Iterates entries at or below an LSN with keys in `low..high` (empty `high`: no bound), copying a
/// chunk under each lock.
#[derive(Debug)]
pub(crate) struct MemtableIter {
    memtable: Arc<Memtable>,
    low: Bound<VersionKey>,
    high: Bound<VersionKey>,
    reverse: bool,
    lsn: Lsn,
    chunk: VecDeque<Item>,
    done: bool,
}

impl MemtableIter {
    pub(crate) fn new(memtable: Arc<Memtable>, low: Vec<u8>, high: Vec<u8>, reverse: bool, lsn: Lsn) -> Self {
        // An inverted range would make the map panic; it is empty.
        let done = !high.is_empty() && low >= high;
        let low = Bound::Included((low, Reverse(Lsn::MAX)));
        let high = if high.is_empty() { Bound::Unbounded } else { Bound::Excluded((high, Reverse(Lsn::MAX))) };
        Self { memtable, low, high, reverse, lsn, chunk: VecDeque::new(), done }
    }

    fn fill(&mut self) {
        let inner = self.memtable.read();
        let range = inner.map.range((self.low.clone(), self.high.clone()));
        let mut bytes = 0;
        let mut visits = 0;
        let mut last = None;
        let mut take = |(key, op): (&VersionKey, &Stored)| {
            visits += 1;
            if key.1.0 <= self.lsn {
                bytes += key.0.len() + if let Stored::Put(v) = op { v.len() } else { 0 };
                self.chunk.push_back(Item { key: key.0.clone(), lsn: key.1.0, op: op.clone() });
            }
            let full = self.chunk.len() >= CHUNK_ITEMS || visits >= CHUNK_VISITS || bytes >= CHUNK_BYTES;
            if full {
                last = Some(key.clone());
            }
            !full
        };
        let ended = if self.reverse { range.rev().all(&mut take) } else { range.into_iter().all(&mut take) };
        drop(inner);
        self.done = ended;
        if let Some(key) = last {
            let bound = if self.reverse { &mut self.high } else { &mut self.low };
            *bound = Bound::Excluded(key);
        }
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
