//! What a store does when there is little room on its disk, or when it may open no more files.
//!
//! Owns: refusing a write that would find no memtable, and making log that can go releasable. Never: the measures
//! (`crate::space`, `crate::open_files`).

use super::Store;
use crate::error::Result;
use crate::open_files::{FileWait, OpenFilesStats};
use crate::space::SpaceStats;

impl Store {
    /// Room on the disk, and what waits for some.
    #[must_use]
    pub fn space(&self) -> SpaceStats {
        self.space.stats(self.tree.needs_flush())
    }

    /// Work that waits because too many files are open.
    #[must_use]
    pub fn open_files(&self) -> OpenFilesStats {
        let (flush, merge, segment) = (self.tree.flush_file(), self.tree.merge_file(), self.log.segment_file());
        OpenFilesStats {
            flush_waits: flush.waits(),
            merge_waits: merge.waits(),
            segment_waits: segment.waits(),
            writes_refused: segment.waits() || (flush.waits() && self.tree.needs_flush()),
            refusals: [flush, merge, segment].into_iter().map(FileWait::refusals).sum(),
        }
    }

    /// Refuses a write while as many memtables wait as may and there is no room, or no file, to flush one: its record
    /// would be in the log, and could not be shown.
    ///
    /// # Errors
    /// `DiskFull`, `TooManyFiles`.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.space.flush_waits() && self.tree.needs_flush() {
            self.wake_flush.wake();
            return self.space.refuse_write();
        }
        if self.tree.flush_file().waits() && self.tree.needs_flush() {
            self.wake_flush.wake();
            return self.tree.flush_file().refuse_write(self.tree.tables_dir());
        }
        Ok(())
    }

    /// Where the log was refused another segment: whether a flush would let log go and fits into the reserve. The
    /// active memtable is frozen for it if no other waits.
    pub(super) fn flush_for_room(&self) -> bool {
        let flushed = self.tree.flushed().lsn;
        let held = self.log.slots().iter().any(|s| !s.lost && s.at <= flushed);
        // The segment in use stays whatever is flushed: a flush for it would be followed by the next, and so on.
        let goes = self.log.would_release(self.tree.applied().lsn);
        if held || !goes || !self.space.segment_refused() || !self.space.reserve_holds(self.tree.next_flush_bytes()) {
            return false;
        }
        if !self.tree.has_frozen() {
            self.tree.freeze();
        }
        self.tree.has_frozen()
    }
}
