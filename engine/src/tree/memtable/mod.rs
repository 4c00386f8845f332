//! The newest part of the tree, in memory: ordered versions of keys and a list of range deletes.
//!
//! Entries lie in an arena (`arena`, its chunks reused by `spare`), a B+tree orders them (`tree`, of `slots` in `pages`), a filter
//! spares look-ups of absent keys (`filter`). Owns: what is under the lock and for how long, and the
//! account of memory. Never: files, and never a record above the commit LSN \[I2\].

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::batch::{Op, raw_ops};
use crate::codec::Malformed;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::table::filter::key_hash;
use crate::table::times::Times;
use crate::table::{Hit, RangeDelete};

use super::manifest::Event;
use super::range_index::RangeIndex;

mod arena;
mod change;
mod filter;
mod iter;
mod pages;
mod slots;
mod spare;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use change::Change;
pub(crate) use iter::MemtableCursor;
pub(crate) use spare::Spare;

use arena::Arena;
use change::Work;
use filter::{Filter, Tally};
use slots::Probe;
use tree::Tree;

/// Operations taken in under one lock: readers wait for so many at most.
const APPLY_OPS: usize = 128;

#[derive(Debug, Default)]
struct Inner {
    arena: Arena,
    tree: Tree,
    tally: Tally,
    ranges: Vec<RangeDelete>,
    range_index: RangeIndex,
    /// Memory of the bounds of `ranges`.
    bound_bytes: usize,
    times: Times,
    events: Vec<Event>,
    end: Option<Position>,
}

/// See the module. Shared by views: entries are added, never changed or removed.
#[derive(Debug)]
pub(crate) struct Memtable {
    inner: RwLock<Inner>,
    // The rest is read without the lock: a reader's view was made after all it may see was applied.
    filter: Filter,
    has_ranges: AtomicBool,
    crowded: AtomicBool,
    bytes: AtomicUsize,
}

impl Inner {
    fn add(&mut self, filter: &Filter, lsn: Lsn, key: (Option<u8>, &[u8]), value: Option<&[u8]>) {
        let addr = self.arena.push(lsn, key, value);
        filter.add(key_hash(self.arena.entry(addr).key), &mut self.tally);
        self.tree.insert(&self.arena, addr);
    }

    fn bytes(&self) -> usize {
        let lists = self.range_index.bytes()
            + self.ranges.capacity() * size_of::<RangeDelete>()
            + self.events.capacity() * size_of::<Event>();
        // A vector's capacity is at most twice its length.
        let times = 2 * self.times.as_bytes().len();
        self.arena.bytes() + self.tree.bytes() + self.tally.bytes() + self.bound_bytes + lists + times
    }
}

impl Memtable {
    /// What the memtables of a tree hand on to each other: as much as one of `memtable_bytes` needs.
    pub(crate) fn spare(memtable_bytes: usize) -> Spare {
        Arena::spare(memtable_bytes)
    }

    /// An empty memtable that will be frozen at `memtable_bytes`.
    pub(crate) fn new(memtable_bytes: usize, spare: &Spare) -> Self {
        Self {
            inner: RwLock::new(Inner { arena: Arena::new(spare.clone()), ..Inner::default() }),
            filter: Filter::new(memtable_bytes),
            has_ranges: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
        }
    }

    // Nothing under the lock panics but for a broken invariant, which ends a release build.
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a record; nobody sees it before the tree publishes its LSN. On an error nothing was
    /// taken in.
    pub(crate) fn apply(&self, at: Position, change: Change<'_>) -> Result<(), Malformed> {
        let mut inner = self.write();
        if !inner.arena.has_room(change.bytes) {
            return Err(Malformed("memtable over its bounds: it was not frozen in time"));
        }
        inner.times.push(at.lsn, at.ts)?;
        inner.end = Some(at);
        inner.events.extend(change.event);
        match change.work {
            Work::Nothing => {}
            Work::One(op) => {
                if let Some((space, key, value)) = parts(op) {
                    inner.add(&self.filter, at.lsn, (space, key), value);
                }
            }
            Work::InOrder(ops) => inner = self.add_all(inner, at.lsn, &mut raw_ops(ops).filter_map(parts)),
            Work::Settled(entries, ranges) => {
                inner.bound_bytes += ranges.iter().map(|r| r.start.capacity() + r.end.capacity()).sum::<usize>();
                ranges.iter().for_each(|r| inner.range_index.insert(r));
                inner.ranges.extend(ranges);
                self.has_ranges.store(true, Ordering::Release);
                inner = self.add_all(inner, at.lsn, &mut entries.iter().map(|(k, v)| (None, k.as_slice(), *v)));
            }
        }
        self.bytes.store(inner.bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// Adds entries, letting readers in between now and then: they do not look at this LSN yet.
    fn add_all<'a>(
        &'a self,
        mut inner: RwLockWriteGuard<'a, Inner>,
        lsn: Lsn,
        entries: &mut dyn Iterator<Item = Parts<'_>>,
    ) -> RwLockWriteGuard<'a, Inner> {
        for (n, (space, key, value)) in entries.enumerate() {
            if n % APPLY_OPS == APPLY_OPS - 1 {
                drop(inner);
                inner = self.write();
            }
            inner.add(&self.filter, lsn, (space, key), value);
        }
        inner
    }

    /// Memory in bytes, as allocated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A scan passed over a long run of entries here that it could not show.
    pub(crate) fn mark_crowded(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// The position of the last record; `None` before the first.
    pub(crate) fn end(&self) -> Option<Position> {
        self.read().end
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.read().events.clone()
    }

    pub(crate) fn ranges(&self) -> Vec<RangeDelete> {
        if self.has_ranges() { self.read().ranges.clone() } else { Vec::new() }
    }

    pub(crate) fn times(&self) -> Times {
        self.read().times.clone()
    }

    /// The newest pair of LSN and commit time at or below `lsn`.
    pub(crate) fn time_at(&self, lsn: Lsn) -> Option<(Lsn, CommitTs)> {
        self.read().times.last_where(|l, _| l <= lsn)
    }

    /// The newest pair of LSN and commit time whose time is at or below `ts`.
    pub(crate) fn lsn_at(&self, ts: CommitTs) -> Option<(Lsn, CommitTs)> {
        self.read().times.last_where(|_, t| t <= ts)
    }

    /// Whether it holds a range delete.
    pub(crate) fn has_ranges(&self) -> bool {
        self.has_ranges.load(Ordering::Acquire)
    }

    /// The highest LSN, at most `at`, of a range delete that covers `key`.
    pub(crate) fn covering(&self, key: &[u8], at: Lsn) -> Lsn {
        if self.has_ranges() { self.read().range_index.covering(key, at) } else { Lsn::ZERO }
    }

    /// The newest version of `key`, whose filter hash is `hash`, at or below `lsn`.
    pub(crate) fn get(&self, key: &[u8], hash: u64, lsn: Lsn) -> Option<Hit> {
        if !self.filter.may_contain(hash) {
            return None;
        }
        let inner = self.read();
        let addr = inner.tree.at_or_after(&inner.arena, &Probe { key, lsn })?;
        let entry = inner.arena.entry(addr);
        (entry.key == key).then(|| Hit::copied(entry.lsn, entry.value))
    }
}

/// The keyspace byte where it is apart from the key, the key, and the value of a put.
type Parts<'a> = (Option<u8>, &'a [u8], Option<&'a [u8]>);

fn parts(op: Op<'_>) -> Option<Parts<'_>> {
    match op {
        Op::Put { keyspace, key, envelope } => Some((Some(keyspace.0), key, Some(envelope))),
        Op::Delete { keyspace, key } => Some((Some(keyspace.0), key, None)),
        // A batch with one of these was settled.
        Op::DeleteRange { .. } => None,
    }
}
