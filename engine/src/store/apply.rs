//! Applying: committed records go into the tree, in LSN order, by one applier at a time.
//!
//! Owns: the `applied` watermark. Never:
//! applying above the commit LSN \[I2\], nor above what this disk holds durably, so that a table never
//! contains a record that a crash could still take out of the log.

use std::sync::{MutexGuard, PoisonError};

use super::Store;
use crate::error::Result;
use crate::exec::Progress;
use crate::fault::{Bug, planted};
use crate::log::Reader;
use crate::lsn::Lsn;

/// Most bytes applied in one step, so that a stop or a flush is never far.
const STEP_BYTES: usize = 1 << 20;

/// Whether memtables keep their bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Kept,
    Over,
}

/// The applier's place in the log.
#[derive(Debug, Default)]
pub(super) struct Applier {
    reader: Option<Reader>,
    /// What the reader has read to.
    at: Lsn,
}

impl Store {
    /// Raises the commit LSN; the applier follows. What is not in the log yet cannot be committed: another
    /// record may come to stand there.
    pub fn set_committed(&self, lsn: Lsn) {
        let cutting = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        self.committed.raise(lsn.min(self.log.last().lsn));
        drop(cutting);
        self.wake_apply.wake();
    }

    /// Commits and applies what a group's sync has made durable, as far as that needs no waiting: who calls this
    /// holds up the log. Whatever is left over its writers do.
    pub(super) fn commit_group(&self, durable: Lsn) {
        let Ok(cutting) = self.cutting.try_lock() else { return };
        self.committed.raise(durable.min(self.log.last().lsn));
        drop(cutting);
        while let Ok(applier) = self.applier.try_lock() {
            // An error comes again when a writer tries.
            if !matches!(self.apply_piece(applier, self.may_apply(), Bound::Kept), Ok(Progress::Worked)) {
                break;
            }
        }
    }

    /// How far the tree may go now.
    fn may_apply(&self) -> Lsn {
        if planted(Bug::VisibleAboveCommit) {
            return self.log.last().lsn;
        }
        self.committed.get().min(self.log.durable().get())
    }

    /// Applies everything that may be applied, flushing inline when full memtables are in the way.
    ///
    /// # Errors
    /// The log's and the tree's.
    pub fn apply_committed(&self) -> Result<()> {
        let mut looked_again = false;
        loop {
            if self.apply_step()? == Progress::Worked {
                looked_again = false;
            } else if self.tree.applied().lsn >= self.may_apply() {
                return Ok(());
            } else if self.tree.needs_flush() {
                self.tree.flush_step()?;
                looked_again = false;
            } else if looked_again {
                // Nothing stands there: a timeline's jump.
                return Ok(());
            } else {
                // Another thread's flush may have ended between the two looks.
                looked_again = true;
            }
        }
    }

    /// Flushes until the tree can take another record.
    ///
    /// # Errors
    /// As [`Tree::flush_step`](crate::tree::Tree::flush_step).
    pub(super) fn make_room(&self) -> Result<()> {
        if !self.tree.needs_flush() {
            return Ok(());
        }
        let begun = self.env.clock.monotonic();
        while self.tree.needs_flush() && self.tree.flush_step()? == Progress::Worked {}
        self.pace.stopped(self.env.clock.monotonic().saturating_sub(begun));
        Ok(())
    }

    /// [`Store::apply_committed`] for a writer whose record is durable: it must become visible, and no error may
    /// say that nothing was written. Where a flush finds no room, or no file, the active memtable takes what is over,
    /// which is no more than the writers brought that were let in before.
    ///
    /// # Errors
    /// The log's and the tree's, but neither `DiskFull` nor `TooManyFiles`.
    pub(super) fn apply_written(&self) -> Result<()> {
        match self.apply_committed() {
            Err(e) if e.is_shortage() => {
                while self.apply_piece(self.applier(), self.may_apply(), Bound::Over)? == Progress::Worked {}
                Ok(())
            }
            other => other,
        }
    }

    /// Applies one bounded piece. `Idle` when nothing may be applied or a flush must come first.
    ///
    /// # Errors
    /// The log's and the tree's.
    pub fn apply_step(&self) -> Result<Progress> {
        self.apply_piece(self.applier(), self.may_apply(), Bound::Kept)
    }

    fn applier(&self) -> MutexGuard<'_, Applier> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies everything up to `lsn`, durable or not, flushing when that is in the way.
    pub(super) fn apply_upto(&self, lsn: Lsn) -> Result<()> {
        while self.tree.applied().lsn < lsn {
            if self.apply_piece(self.applier(), lsn, Bound::Kept)? == Progress::Idle {
                self.tree.flush_step()?;
            }
        }
        Ok(())
    }

    fn apply_piece(&self, mut applier: MutexGuard<'_, Applier>, upto: Lsn, bound: Bound) -> Result<Progress> {
        let applied = self.tree.applied().lsn;
        if applied >= upto || (bound == Bound::Kept && self.tree.needs_flush()) {
            return Ok(Progress::Idle);
        }
        // Writers that apply their own records leave the reader behind.
        let mut reader = match applier.reader.take().filter(|_| applier.at == applied) {
            Some(r) => r,
            None => self.log.reader(applied.next())?,
        };
        // An error below drops the reader; the next step starts a fresh one at `applied`.
        let Some(chunk) = reader.next(upto, STEP_BYTES)? else { return Ok(Progress::Idle) };
        for record in chunk.records() {
            self.tree.apply(&record?)?;
        }
        self.applied.raise(chunk.last);
        applier.at = chunk.last;
        applier.reader = Some(reader);
        Ok(Progress::Worked)
    }
}
