//! Slots and release: which segments still have a reader, and letting the others go: some of them to be used
//! again, the rest for good.
//!
//! Owns: the bound on log kept for slow readers. Never: waiting for a reader.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::{Shared, lock, segment};
use crate::error::{Error, Result};
use crate::lsn::Lsn;

/// A slot as seen by status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Who holds it.
    pub name: String,
    /// Its holder has everything up to here.
    pub at: Lsn,
    /// It lagged too far and pins nothing any more; its holder needs a checkpoint.
    pub lost: bool,
}

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    slots: BTreeMap<u64, SlotInfo>,
}

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Slots(Arc<Mutex<Table>>);

/// A reader's hold on the log; dropping it lets go.
#[derive(Debug)]
pub struct Slot {
    id: u64,
    table: Arc<Mutex<Table>>,
}

impl Slot {
    /// The holder has everything up to `lsn`. Going back has no effect.
    pub fn advance(&self, lsn: Lsn) {
        if let Some(s) = lock(&self.table).slots.get_mut(&self.id) {
            s.at = s.at.max(lsn);
        }
    }

    /// Whether it lagged too far; this is final, take a new slot after a checkpoint.
    #[must_use]
    pub fn lost(&self) -> bool {
        lock(&self.table).slots.get(&self.id).is_none_or(|s| s.lost)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.table).slots.remove(&self.id);
    }
}

impl Slots {
    pub(super) fn add(&self, name: &str, at: Lsn) -> Slot {
        let mut t = lock(&self.0);
        let id = t.next_id;
        t.next_id += 1;
        t.slots.insert(id, SlotInfo { name: name.to_owned(), at, lost: false });
        Slot { id, table: Arc::clone(&self.0) }
    }

    pub(super) fn list(&self) -> Vec<SlotInfo> {
        lock(&self.0).slots.values().cloned().collect()
    }

    /// Marks the slots that lag too far, and returns the lowest LSN that the others hold.
    fn floor(&self, lags_too_far: impl Fn(Lsn) -> bool) -> Lsn {
        let mut t = lock(&self.0);
        let mut floor = Lsn::MAX;
        for s in t.slots.values_mut() {
            s.lost |= lags_too_far(s.at);
            if !s.lost {
                floor = floor.min(s.at);
            }
        }
        floor
    }
}

impl Shared {
    pub(super) fn release(&self, flushed: Lsn) -> Result<usize> {
        self.check_stopped()?;
        // One at a time: files go in the order of their numbers.
        let _releasing = lock(&self.releasing);
        let held = self.retained();
        // Bytes of segments wholly above a slot, the part of the segment it is in left out.
        let lag = |at: Lsn| held.iter().filter(|(base, _)| *base >= at).map(|(_, bytes)| bytes).sum::<u64>();
        let too_far = |at| lag(at) > self.retained_bytes;
        let mut removed = 0;
        while let Some(oldest) = self.pop_released(flushed, too_far) {
            let path = &oldest.path;
            let fits = oldest.bytes == self.segment_bytes && lock(&self.prepare).spares.len() < self.spares_max;
            let spare = fits.then(|| segment::spare_path(&self.log_dir, oldest.seq));
            let gone = match &spare {
                Some(spare) => self.env.fs.rename(path, spare).map_err(|e| Error::io("rename", path, e)),
                None => self.env.fs.remove_file(path).map_err(|e| Error::io("remove", path, e)),
            };
            if let Err(e) = gone {
                // It stays the oldest, so that no younger one goes before it.
                lock(&self.segments).push_front(oldest);
                return Err(e);
            }
            // One name at a time: a crash must not leave a hole between older and newer segments. And only what
            // no crash makes a segment of the log again may be written to.
            self.env.fs.sync_dir(&self.log_dir).map_err(|e| self.fatal_io("sync", &self.log_dir, e))?;
            match spare {
                Some(spare) => lock(&self.prepare).spares.push_back(spare),
                None => self.counters.removed_segment(),
            }
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes the released segments that wait to be used again.
    pub(super) fn remove_spares(&self) -> Result<usize> {
        self.check_stopped()?;
        let mut prepare = lock(&self.prepare);
        let mut removed = 0;
        while let Some(spare) = prepare.spares.front() {
            self.env.fs.remove_file(spare).map_err(|e| Error::io("remove", spare, e))?;
            prepare.spares.pop_front();
            self.counters.removed_segment();
            removed += 1;
        }
        Ok(removed)
    }

    /// Bytes of the segments that begin in `from..to`.
    pub(super) fn bytes_between(&self, from: Lsn, to: Lsn) -> u64 {
        self.retained().iter().filter(|(base, _)| (from..to).contains(base)).map(|(_, bytes)| bytes).sum()
    }

    /// Base and bytes in use of each segment.
    fn retained(&self) -> Vec<(Lsn, u64)> {
        let used = lock(&self.head).offset;
        let segments = lock(&self.segments);
        let newest = segments.len().saturating_sub(1);
        segments.iter().enumerate().map(|(i, s)| (s.base.lsn, if i == newest { used } else { s.bytes })).collect()
    }

    /// Whether a segment could go if the tables held all up to `flushed`.
    pub(super) fn would_release(&self, flushed: Lsn) -> bool {
        lock(&self.segments).get(1).is_some_and(|next| next.base.lsn <= flushed && next.header_synced())
    }

    fn pop_released(&self, flushed: Lsn, lags_too_far: impl Fn(Lsn) -> bool) -> Option<Arc<super::Segment>> {
        let mut segments = lock(&self.segments);
        // Looked at each time, and under this lock: who has a slot and then finds its place in the log keeps it.
        let floor = self.slots.floor(lags_too_far).min(flushed);
        // Recovery has to find a segment to start with, so the next one's header must be on disk.
        let next = segments.get(1)?;
        if next.base.lsn <= floor && next.header_synced() { segments.pop_front() } else { None }
    }
}
