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
    /// The log's and the tree's. A full disk is not fatal: the work is tried again.
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
            Err(full @ Error::DiskFull { .. }) if self.log.release(self.tree.flushed().lsn)? == 0 => Err(full),
            Err(Error::DiskFull { .. }) => Ok(Progress::Worked),
            other => other,
        }
    }

    fn tend(&self) -> Result<Progress> {
        if self.tree.flush_step()? == Progress::Worked {
            self.log.release(self.tree.flushed().lsn)?;
            self.wake_apply.wake();
            self.wake_compaction.wake();
            return Ok(Progress::Worked);
        }
        if self.log.prepare_step()? == Progress::Worked {
            return Ok(Progress::Worked);
        }
        self.log.release(self.tree.flushed().lsn)?;
        self.save_evidence()?;
        Ok(Progress::Idle)
    }

    /// A bounded piece of the compaction that is due.
    pub(super) fn compact_step(&self) -> Result<Progress> {
        self.tree.compact_step()
    }

    /// What compaction and the scrub found to be damaged. Compaction leaves such tables alone: reads that need the
    /// damaged part fail, all others and all writes go on. A damaged segment of the log fails who reads that far back,
    /// and the next start as long as it needs the segment.
    #[must_use]
    pub fn damage(&self) -> Vec<String> {
        self.tree.damage().into_iter().chain(self.damaged_log()).collect()
    }
}
