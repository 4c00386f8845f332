//! What a store does when there is little room on its disk.
//!
//! Owns: refusing a write that would find no memtable, and making log that can go releasable. Never: the measures
//! (`crate::space`).

use super::Store;
use crate::error::Result;
use crate::space::SpaceStats;

impl Store {
    /// Room on the disk, and what waits for some.
    #[must_use]
    pub fn space(&self) -> SpaceStats {
        self.space.stats(self.tree.needs_flush())
    }

    /// Refuses a write while as many memtables wait as may and there is no room to flush one: its record would be
    /// in the log, and could not be shown.
    ///
    /// # Errors
    /// `DiskFull`.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.space.flush_waits() && self.tree.needs_flush() {
            self.wake_flush.wake();
            return self.space.refuse_write();
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
