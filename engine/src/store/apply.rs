//! Applying: committed records go into the tree, in LSN order, by one applier at a time; and the
//! background workers of a node.
//!
//! Owns: the `applied` watermark and the three workers (log writer, applier, maintenance). Never:
//! applying above the commit LSN \[I2\], nor above what this disk holds durably, so that a table never
//! contains a record that a crash could still take out of the log.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::Store;
use crate::error::{Error, Result};
use crate::exec::{Progress, Wake, Worker, WorkerThread};
use crate::fault::{Bug, planted};
use crate::log::Reader;
use crate::lsn::Lsn;

/// Pause of the maintenance thread when there is nothing to do.
const MAINTAIN_PAUSE: Duration = Duration::from_secs(1);
/// How long a record of [`Durability::Buffered`](super::Durability::Buffered) stays in memory alone.
const BUFFERED_FOR: Duration = Duration::from_millis(5);
/// Most bytes applied in one step, so that a stop or a flush is never far.
const STEP_BYTES: usize = 1 << 20;

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
            if !matches!(self.apply_piece(applier, self.may_apply()), Ok(Progress::Worked)) {
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
        loop {
            if self.apply_step()? == Progress::Worked {
                continue;
            }
            if self.tree.applied().lsn >= self.may_apply() || !self.tree.needs_flush() {
                return Ok(());
            }
            self.tree.flush_step()?;
        }
    }

    /// Flushes until the tree can take another record.
    ///
    /// # Errors
    /// As [`Tree::flush_step`](crate::tree::Tree::flush_step).
    pub(super) fn make_room(&self) -> Result<()> {
        while self.tree.needs_flush() && self.tree.flush_step()? == Progress::Worked {}
        Ok(())
    }

    /// Applies one bounded piece. `Idle` when nothing may be applied or a flush must come first.
    ///
    /// # Errors
    /// The log's and the tree's.
    pub fn apply_step(&self) -> Result<Progress> {
        self.apply_piece(self.applier(), self.may_apply())
    }

    fn applier(&self) -> MutexGuard<'_, Applier> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies everything up to `lsn`, durable or not, flushing when that is in the way.
    pub(super) fn apply_upto(&self, lsn: Lsn) -> Result<()> {
        while self.tree.applied().lsn < lsn {
            if self.apply_piece(self.applier(), lsn)? == Progress::Idle {
                self.tree.flush_step()?;
            }
        }
        Ok(())
    }

    fn apply_piece(&self, mut applier: MutexGuard<'_, Applier>, upto: Lsn) -> Result<Progress> {
        let applied = self.tree.applied().lsn;
        if applied >= upto || self.tree.needs_flush() {
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

    /// One bounded piece of maintenance: flush, compaction, the next log segment, releasing log,
    /// evidence.
    ///
    /// # Errors
    /// The log's and the tree's. A full disk is not fatal: the work is tried again.
    pub fn maintain_step(&self) -> Result<Progress> {
        match self.maintain() {
            // Log that nobody needs any more may be the room that is missing.
            Err(full @ Error::DiskFull { .. }) if self.log.release(self.tree.flushed().lsn)? == 0 => Err(full),
            Err(Error::DiskFull { .. }) => Ok(Progress::Worked),
            other => other,
        }
    }

    fn maintain(&self) -> Result<Progress> {
        if self.tree.flush_step()? == Progress::Worked {
            self.log.release(self.tree.flushed().lsn)?;
            self.wake_apply.wake();
            return Ok(Progress::Worked);
        }
        if self.log.prepare_step()? == Progress::Worked || self.compact()? == Progress::Worked {
            return Ok(Progress::Worked);
        }
        self.log.release(self.tree.flushed().lsn)?;
        self.save_evidence()?;
        Ok(Progress::Idle)
    }

    /// Compacts until a table turns out to be damaged: what can be read of it must be read where it is.
    fn compact(&self) -> Result<Progress> {
        if self.damage.get().is_some() {
            return Ok(Progress::Idle);
        }
        match self.tree.compact_step() {
            Err(e @ Error::Corruption { .. }) => {
                let _ = self.damage.set(e.to_string());
                Ok(Progress::Idle)
            }
            other => other,
        }
    }

    /// What compaction found to be damaged. It has stopped then: reads that need the damaged part fail, all
    /// others and all writes go on, while tables pile up.
    #[must_use]
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    /// Starts the workers of a node on named threads. Dropping the result stops and joins them.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start_workers(self: &Arc<Self>) -> Result<Workers> {
        let spawn = |name: &'static str, wake: &Wake, step: StepFn, pause: Option<Duration>| {
            let worker = StoreWorker { store: Arc::clone(self), step, pause };
            WorkerThread::spawn(name, wake.clone(), worker).map_err(|e| Error::io("start a thread for", &self.dir, e))
        };
        Ok(Workers {
            _threads: vec![
                spawn("log-writer", &self.wake_log, log_step, None)?,
                spawn("applier", &self.wake_apply, apply_step, None)?,
                spawn("maintenance", &self.wake_maintain, maintain_step, Some(MAINTAIN_PAUSE))?,
            ],
        })
    }

    /// Starts the background threads of an embedded store: flush and compaction, and the one that hands
    /// buffered records to the operating system. Dropping the result stops and joins them.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start_background(self: &Arc<Self>) -> Result<Workers> {
        let failed = |e| Error::io("start a thread for", &self.dir, e);
        let maintenance = StoreWorker { store: Arc::clone(self), step: maintain_step, pause: Some(MAINTAIN_PAUSE) };
        let flusher = LogFlusher { store: Arc::clone(self), waited: false };
        Ok(Workers {
            _threads: vec![
                WorkerThread::spawn("maintenance", self.wake_maintain.clone(), maintenance).map_err(failed)?,
                WorkerThread::spawn("log-flusher", self.wake_flusher.clone(), flusher).map_err(failed)?,
            ],
        })
    }
}

/// Hands buffered records to the operating system a moment after the first of them came.
struct LogFlusher {
    store: Arc<Store>,
    waited: bool,
}

impl Worker for LogFlusher {
    fn step(&mut self) -> Progress {
        if !self.waited && self.store.log.buffered_bytes() > 0 {
            self.waited = true;
            return Progress::Sleep(BUFFERED_FOR);
        }
        self.waited = false;
        // From here on a writer wakes this thread again; what was appended before is written now.
        self.store.flusher_awaited.store(false, Ordering::SeqCst);
        if self.store.log.buffered_bytes() == 0 {
            return Progress::Idle;
        }
        match self.store.log.write_to(self.store.log.appended().get()) {
            Ok(()) => Progress::Worked,
            // The log has called the fatal hook.
            Err(_) => Progress::Done,
        }
    }
}

/// The running workers of a store.
#[derive(Debug)]
pub struct Workers {
    _threads: Vec<WorkerThread>,
}

type StepFn = fn(&Store) -> Result<Progress>;

struct StoreWorker {
    store: Arc<Store>,
    step: StepFn,
    pause: Option<Duration>,
}

fn log_step(store: &Store) -> Result<Progress> {
    let progress = store.log.step()?;
    if progress == Progress::Worked {
        store.wake_apply.wake();
    }
    Ok(progress)
}

fn apply_step(store: &Store) -> Result<Progress> {
    let progress = store.apply_step()?;
    if store.tree.has_frozen() {
        store.wake_maintain.wake();
    }
    Ok(progress)
}

fn maintain_step(store: &Store) -> Result<Progress> {
    store.maintain_step()
}

impl Worker for StoreWorker {
    fn step(&mut self) -> Progress {
        match (self.step)(&self.store) {
            Ok(Progress::Idle) => self.pause.map_or(Progress::Idle, Progress::Sleep),
            Ok(progress) => progress,
            // Room may return; writers see the same error from their own calls.
            Err(Error::DiskFull { .. }) => Progress::Sleep(Duration::from_secs(1)),
            // The log has called the fatal hook; nothing more can be done here.
            Err(Error::Stopped(_)) => Progress::Done,
            Err(e) => {
                // A tree that cannot take a committed record must not serve on.
                (self.store.env.fatal)(&format!("{}: {e}", self.store.dir.display()));
                self.store.committed.close();
                self.store.applied.close();
                Progress::Done
            }
        }
    }
}
