//! Room on the disk: who may still take some when little is left.
//!
//! In three stages, each before the operating system would say that the disk is full. First compaction waits: what
//! it gives back it needs twice for a while. Then flushes wait, as long as nobody waits for them. At last the log
//! gets no further segment, and writes are refused. Then a flush may take the reserve: it is what lets log go. What
//! is refused has not begun, so nothing has to be undone, and each is measured anew when it is tried again: room
//! that returns is found by the next try.
//!
//! Owns: the comparison of what is free with what is needed, and what waits for room. Never: a measurement per
//! write (one per flush, segment, and piece of a merge), nor a refusal that outlasts its reason.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result, Shortage};
use crate::fault::{Bug, planted};
use crate::fs::Fs;
use crate::limits::{Options, SEGMENT_BYTES_MAX};

/// What a flush needs beyond the bytes of its memtable: frames and footers of its tables, an edit of the manifest or
/// a new one.
const FLUSH_SLACK_BYTES: u64 = 8 << 10;

/// What waits for room, from nothing to everything; a stage includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Nothing waits.
    #[default]
    Enough,
    /// A merge is due and waits.
    CompactionWaits,
    /// A memtable waits to be flushed.
    FlushWaits,
    /// Writes that need another log segment, or a memtable, are refused. Reads go on.
    WritesRefused,
}

/// Room on the disk, as last measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceStats {
    /// What waits.
    pub room: Room,
    /// Free for this user now, in bytes: where least is, if log or tables have a file system of their own.
    pub free_bytes: u64,
    /// Kept free for flushes when nothing else is left, in bytes.
    pub reserve_bytes: u64,
    /// Times that work was refused for want of room, since the store was opened.
    pub refusals: u64,
}

/// Who asks for room.
#[derive(Clone, Copy, Debug)]
enum Work {
    Merge = 0,
    Flush = 1,
    Segment = 2,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Each may be on a file system of its own.
    tables_dir: PathBuf,
    log_dir: PathBuf,
    reserve: u64,
    segment: u64,
    /// By [`Work`]: what it needed when it was last refused; 0 when it does not wait.
    waits: [AtomicU64; 3],
    /// What the flush under way, and the segment that is being made, may still write.
    flushing: AtomicU64,
    making: AtomicU64,
    refusals: AtomicU64,
}

/// The right to write what was asked for; ends with the flush.
#[derive(Debug)]
pub(crate) struct Granted<'a>(&'a Space);

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        self.0.flushing.store(0, Ordering::Relaxed);
    }
}

impl Space {
    /// Of the file systems of the data directory `dir`, its tables and its log.
    pub(crate) fn new(fs: &Arc<dyn Fs>, dir: &Path, options: &Options) -> Self {
        Self {
            fs: Arc::clone(fs),
            dir: dir.to_owned(),
            tables_dir: dir.join("tables"),
            log_dir: dir.join("log"),
            // Sums of these stay far below what a number holds.
            reserve: options.disk_reserve_bytes.min(1 << 60),
            segment: options.segment_bytes.min(SEGMENT_BYTES_MAX),
            waits: Default::default(),
            flushing: AtomicU64::new(0),
            making: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        }
    }

    /// Where it writes.
    fn place(&self, work: Work) -> &Path {
        match work {
            Work::Merge | Work::Flush => &self.tables_dir,
            Work::Segment => &self.log_dir,
        }
    }

    fn free(&self, work: Work) -> u64 {
        self.free_at(self.place(work))
    }

    /// A file system that does not tell is taken to have room: it will say itself when it has none.
    fn free_at(&self, dir: &Path) -> u64 {
        self.fs.free_bytes(dir).or_else(|_| self.fs.free_bytes(&self.dir)).unwrap_or(u64::MAX)
    }

    fn wait(&self, work: Work) -> &AtomicU64 {
        let [merge, flush, segment] = &self.waits;
        match work {
            Work::Merge => merge,
            Work::Flush => flush,
            Work::Segment => segment,
        }
    }

    /// Whether `work` may go on that needs so many bytes free.
    fn ask(&self, work: Work, needed: u64) -> Result<()> {
        let free = self.free(work);
        if free >= needed || planted(Bug::IgnoreReserve) {
            self.wait(work).store(0, Ordering::Relaxed);
            return Ok(());
        }
        Err(self.refuse(work, needed, free))
    }

    fn refuse(&self, work: Work, needed: u64, free: u64) -> Error {
        self.wait(work).store(needed.max(1), Ordering::Relaxed);
        self.refusal(work, needed, free)
    }

    fn refusal(&self, work: Work, needed: u64, free: u64) -> Error {
        self.refusals.fetch_add(1, Ordering::Relaxed);
        Error::DiskFull { path: self.place(work).to_owned(), kept_back: Some(Shortage { free, needed }) }
    }

    /// Whether a merge that has so many bytes still to write may go on.
    pub(crate) fn for_merge(&self, left: u64) -> Result<()> {
        let others = self.flushing.load(Ordering::Relaxed) + self.making.load(Ordering::Relaxed);
        self.ask(Work::Merge, left + others + self.segment + self.reserve)
    }

    /// The largest merge that may go on now, in bytes.
    pub(crate) fn merge_room(&self) -> u64 {
        let others = self.flushing.load(Ordering::Relaxed) + self.making.load(Ordering::Relaxed);
        self.free(Work::Merge).saturating_sub(others + self.segment + self.reserve)
    }

    /// Whether the merge that waits could go on if so many bytes more were free.
    pub(crate) fn merge_waits_for(&self, bytes: u64) -> bool {
        let needed = self.wait(Work::Merge).load(Ordering::Relaxed);
        needed > 0 && self.free(Work::Merge).saturating_add(bytes) >= needed
    }

    /// Whether so many bytes may be copied in beside what the store needs itself. Who is refused does not wait.
    pub(crate) fn for_ingest(&self, bytes: u64) -> Result<()> {
        let others = self.flushing.load(Ordering::Relaxed) + self.making.load(Ordering::Relaxed);
        let (free, needed) = (self.free(Work::Merge), bytes.saturating_add(others + self.segment + self.reserve));
        if free >= needed || planted(Bug::IgnoreReserve) {
            return Ok(());
        }
        Err(self.refusal(Work::Merge, needed, free))
    }

    /// No merge is due.
    pub(crate) fn no_merge(&self) {
        self.wait(Work::Merge).store(0, Ordering::Relaxed);
    }

    /// Whether a memtable of so many bytes may be flushed. If writers wait for it, or the log for its release, it
    /// may take the reserve.
    pub(crate) fn for_flush(&self, bytes: u64, awaited: bool) -> Result<Granted<'_>> {
        let own = bytes + FLUSH_SLACK_BYTES;
        let making = self.making.load(Ordering::Relaxed);
        let kept = if awaited || self.segment_refused() { 0 } else { self.segment + self.reserve };
        self.ask(Work::Flush, own + making + kept)?;
        self.flushing.store(own, Ordering::Relaxed);
        Ok(Granted(self))
    }

    /// Whether a flush of so many bytes would be granted the reserve.
    pub(crate) fn reserve_holds(&self, bytes: u64) -> bool {
        self.free(Work::Flush) >= bytes + FLUSH_SLACK_BYTES + self.making.load(Ordering::Relaxed)
    }

    /// No memtable waits.
    pub(crate) fn no_flush(&self) {
        self.wait(Work::Flush).store(0, Ordering::Relaxed);
    }

    /// A flush met a full disk.
    pub(crate) fn flush_failed(&self, bytes: u64) {
        self.refuse(Work::Flush, bytes + FLUSH_SLACK_BYTES, 0);
    }

    /// Whether a log segment of so many bytes may be made.
    pub(crate) fn for_segment(&self, bytes: u64) -> Result<()> {
        self.ask(Work::Segment, bytes + self.flushing.load(Ordering::Relaxed) + self.reserve)?;
        self.making.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The segment that is being made needs so many bytes more; with 0 it is there.
    pub(crate) fn segment_left(&self, bytes: u64) {
        self.making.store(bytes, Ordering::Relaxed);
        if bytes == 0 {
            self.wait(Work::Segment).store(0, Ordering::Relaxed);
        }
    }

    /// The segment that was being made met a full disk.
    pub(crate) fn segment_failed(&self, bytes: u64) {
        self.making.store(0, Ordering::Relaxed);
        self.refuse(Work::Segment, bytes + self.reserve, 0);
    }

    pub(crate) fn segment_refused(&self) -> bool {
        self.wait(Work::Segment).load(Ordering::Relaxed) > 0
    }

    pub(crate) fn flush_waits(&self) -> bool {
        self.wait(Work::Flush).load(Ordering::Relaxed) > 0
    }

    /// Refuses a write that finds all memtables waiting for a flush that was refused, unless it was granted meanwhile.
    pub(crate) fn refuse_write(&self) -> Result<()> {
        match self.wait(Work::Flush).load(Ordering::Relaxed) {
            0 => Ok(()),
            needed => Err(self.refusal(Work::Flush, needed, self.free(Work::Flush))),
        }
    }

    /// What waits and what is free. `stuck`: as many memtables wait as may.
    pub(crate) fn stats(&self, stuck: bool) -> SpaceStats {
        let waits = |work| self.wait(work).load(Ordering::Relaxed) > 0;
        let room = if waits(Work::Segment) || (waits(Work::Flush) && stuck) {
            Room::WritesRefused
        } else if waits(Work::Flush) {
            Room::FlushWaits
        } else if waits(Work::Merge) {
            Room::CompactionWaits
        } else {
            Room::Enough
        };
        let refusals = self.refusals.load(Ordering::Relaxed);
        let places = [&self.dir, &self.tables_dir, &self.log_dir];
        let free_bytes = places.map(|dir| self.free_at(dir)).into_iter().min().unwrap_or(u64::MAX);
        SpaceStats { room, free_bytes, reserve_bytes: self.reserve, refusals }
    }
}

impl SpaceStats {
    /// What an operator should be told; `None` when nothing waits.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let what = match self.room {
            Room::Enough => return None,
            Room::CompactionWaits => "compaction waits for room",
            Room::FlushWaits => "compaction and flushes wait for room",
            Room::WritesRefused => "writes that need another log segment or memtable are refused, reads go on",
        };
        let free = crate::error::bytes(self.free_bytes);
        Some(format!("little room on the disk ({free} free): {what}; free space, it goes on by itself then"))
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn a_merge_waits_for_what_is_missing_and_no_more() {
        let fs = crate::fs::sim::SimFs::new(1);
        let dir = Path::new("/data");
        ["tables", "log"].iter().for_each(|d| fs.prepare_dir(&dir.join(d)).unwrap());
        let fs_seam: Arc<dyn Fs> = Arc::<crate::fs::sim::SimFs>::clone(&fs);
        let options = Options::tiny();
        let (space, kept) = (Space::new(&fs_seam, dir, &options), options.segment_bytes + options.disk_reserve_bytes);
        fs.set_capacity(kept + (40 << 10));
        assert_eq!(space.merge_room(), 40 << 10);
        assert!(!space.merge_waits_for(u64::MAX), "none was refused");
        assert!(space.for_merge(50 << 10).is_err());
        assert!(!space.merge_waits_for((10 << 10) - 1) && space.merge_waits_for(10 << 10));
        assert!(space.for_merge(space.merge_room()).is_ok() && !space.merge_waits_for(u64::MAX));
    }

    #[test]
    fn a_write_beside_a_flush_that_is_granted_is_not_refused() {
        let fs = crate::fs::sim::SimFs::new(1);
        let dir = Path::new("/data");
        ["tables", "log"].iter().for_each(|d| fs.prepare_dir(&dir.join(d)).unwrap());
        let fs_seam: Arc<dyn Fs> = Arc::<crate::fs::sim::SimFs>::clone(&fs);
        let space = Space::new(&fs_seam, dir, &Options::tiny());
        fs.set_capacity(4 << 10);
        assert!(space.for_flush(4 << 10, true).is_err() && space.refuse_write().is_err_and(|e| e.is_kept_back()));
        fs.set_capacity(1 << 20);
        // A writer that saw the refusal comes here after the flush has got its room.
        drop(space.for_flush(4 << 10, true).unwrap());
        assert!(space.refuse_write().is_ok() && !space.flush_waits());
        assert_eq!(space.stats(true).refusals, 2);
    }
}
