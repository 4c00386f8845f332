//! What a store does besides reading and writing: flushes, the next log segment, letting log go, compaction.
//!
//! Owns: one bounded step of each. Never: threads (`workers`).

use super::Store;
use crate::error::{Error, Result};
use crate::exec::Progress;

impl Store {
    /// One bounded piece of all that the background threads do, for a store that has none: flush, compaction, the
    /// next log segment, releasing log, evidence.
    ///
    /// # Errors
    /// The log's and the tree's. A full disk is not fatal, nor are too many open files: the work is tried again.
    pub fn maintain_step(&self) -> Result<Progress> {
        match self.tend_step()? {
            Progress::Idle => self.compact_step(),
            worked => Ok(worked),
        }
    }

    /// [`Store::maintain_step`] without compaction: what writers may come to wait for.
    pub(super) fn tend_step(&self) -> Result<Progress> {
        match self.tend() {
            // Log that nobody needs any more may be the room that is missing.
            Err(full @ Error::DiskFull { .. }) if self.give_log_back()? == 0 => {
                if full.is_kept_back() && self.flush_for_room() { Ok(Progress::Worked) } else { Err(full) }
            }
            Err(Error::DiskFull { .. }) => Ok(Progress::Worked),
            other => other,
        }
    }

    /// Deletes all log that nobody needs; how many files.
    fn give_log_back(&self) -> Result<usize> {
        Ok(self.log.release(self.tree.flushed().lsn)? + self.log.remove_spares()?)
    }

    fn tend(&self) -> Result<Progress> {
        let (flushed, applied) = (self.tree.flushed().lsn, self.tree.applied().lsn);
        if !self.tree.has_frozen() && self.log.is_long_behind(flushed, applied) {
            self.tree.freeze();
        }
        self.tree.freeze_crowded();
        match self.tree.flush_step() {
            Ok(Progress::Worked) => {
                self.log.release(self.tree.flushed().lsn)?;
                self.wake_apply.wake();
                self.wake_compaction.wake();
                return Ok(Progress::Worked);
            }
            // Nobody waits for it yet, so neither does the rest.
            Err(e) if e.is_kept_back() && !self.tree.needs_flush() => {}
            other => drop(other?),
        }
        let prepared = self.log.prepare_step();
        if !matches!(prepared, Ok(Progress::Worked)) {
            self.log.release(self.tree.flushed().lsn)?;
            self.save_evidence()?;
        }
        prepared
    }

    /// A bounded piece of the compaction that is due.
    pub(super) fn compact_step(&self) -> Result<Progress> {
        let progress = self.tree.compact_step()?;
        let given = self.log.spare_bytes();
        if progress == Progress::Idle && given > 0 && self.space.merge_waits_for(given) {
            // Segments kept for later are the room that it waits for.
            self.log.remove_spares()?;
            return Ok(Progress::Worked);
        }
        Ok(progress)
    }

    /// What compaction and the scrub found to be damaged. Compaction leaves such tables alone: reads that need the
    /// damaged part fail, all others and all writes go on. A damaged segment of the log fails who reads that far back,
    /// and the next start as long as it needs the segment.
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        self.tree.damage().into_iter().chain(self.damaged_log()).collect()
    }
}
