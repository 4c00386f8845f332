//! What readers of the tree see: its present version and the last record taken in.
//!
//! A read takes no lock and counts no reference that two threads would fight for. Owns: the order
//! that makes the two fit, see [`Published::now`]. Never: deciding what a version holds.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};

use super::lock;
use super::version::Version;
use crate::lsn::{CommitTs, Lsn, Position};

/// See the module.
#[derive(Debug)]
pub(super) struct Published {
    version: ArcSwap<Version>,
    /// Held by who puts another version in place, so that no change gets lost.
    changing: Mutex<()>,
    /// Versions that were replaced, by when, and that readers may still hold. In that order.
    replaced: Mutex<Vec<(Duration, Weak<Version>)>>,
    applied: Mutex<Position>,
    /// LSN and commit time of `applied` for who reads without the lock: they belong together if `stamp` was
    /// even and the same before and after.
    stamp: AtomicU64,
    lsn: AtomicU64,
    ts: AtomicU64,
}

impl Published {
    pub(super) fn new(version: Version, applied: Position) -> Self {
        Self {
            version: ArcSwap::from_pointee(version),
            changing: Mutex::new(()),
            replaced: Mutex::default(),
            applied: Mutex::new(applied),
            stamp: AtomicU64::new(0),
            lsn: AtomicU64::new(applied.lsn.0),
            ts: AtomicU64::new(applied.ts.0),
        }
    }

    /// Shows a record whose entries are all in the active memtable.
    pub(super) fn set_applied(&self, at: Position) {
        let mut applied = lock(&self.applied);
        *applied = at;
        let stamp = self.stamp.load(Ordering::Relaxed);
        self.stamp.store(stamp + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.lsn.store(at.lsn.0, Ordering::Relaxed);
        self.ts.store(at.ts.0, Ordering::Relaxed);
        self.stamp.store(stamp + 2, Ordering::Release);
    }

    pub(super) fn applied(&self) -> Position {
        *lock(&self.applied)
    }

    fn applied_lsn(&self) -> (Lsn, CommitTs) {
        let before = self.stamp.load(Ordering::Acquire);
        let (lsn, ts) = (self.lsn.load(Ordering::Relaxed), self.ts.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if before.is_multiple_of(2) && self.stamp.load(Ordering::Relaxed) == before {
            return (Lsn(lsn), CommitTs(ts));
        }
        let applied = self.applied();
        (applied.lsn, applied.ts)
    }

    /// A version and the newest LSN that can be read in it, with its commit time.
    ///
    /// The LSN is taken first: whatever replaces the version meanwhile, the one taken afterwards holds
    /// all up to there. Only its history floor may have come to be above.
    pub(super) fn now(&self) -> (Guard<Arc<Version>>, Lsn, CommitTs) {
        loop {
            let (lsn, ts) = self.applied_lsn();
            let version = self.version.load();
            if version.floor.0 <= lsn {
                return (version, lsn, ts);
            }
        }
    }

    pub(super) fn version(&self) -> Arc<Version> {
        self.version.load_full()
    }

    /// The present version for a moment: cheaper than [`Published::version`], not to be kept.
    pub(super) fn load(&self) -> Guard<Arc<Version>> {
        self.version.load()
    }

    /// Looks at the present version for a moment.
    pub(super) fn with<R>(&self, look: impl FnOnce(&Version) -> R) -> R {
        look(&self.load())
    }

    /// Puts a changed copy in the present version's place; it is `now` on the monotonic clock.
    pub(super) fn change(&self, now: Duration, change: impl FnOnce(&mut Version)) {
        let _changing = lock(&self.changing);
        let mut version = (**self.version.load()).clone();
        change(&mut version);
        let before = self.version.swap(Arc::new(version));
        let mut replaced = lock(&self.replaced);
        replaced.retain(|(_, v)| v.strong_count() > 0);
        replaced.push((now, Arc::downgrade(&before)));
    }

    /// The replaced versions that somebody still reads, with when they were replaced, oldest first.
    pub(super) fn held(&self) -> Vec<(Duration, Arc<Version>)> {
        lock(&self.replaced).iter().filter_map(|(when, v)| Some((*when, v.upgrade()?))).collect()
    }
}
