//! The background threads of a store.
//!
//! Owns: which threads there are, what rouses them, what an error means to them. Never: the work of a step.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Store;
use super::scrub::Scrubber;
use crate::error::{Error, Result};
use crate::exec::{Progress, Wake, Worker, WorkerThread};

/// Pause of the threads for flush and compaction when there is nothing to do.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after merges that were refused files.
const REFUSED_PAUSE_MOST: Duration = Duration::from_secs(64);
/// How long a record of [`Durability::Buffered`](super::Durability::Buffered) stays in memory alone.
const BUFFERED_FOR: Duration = Duration::from_millis(5);
/// So long without a flush the store counts as one that nobody writes to.
const QUIET: Duration = Duration::from_secs(10);

impl Store {
    /// Starts the workers of a node on named threads. Dropping the result stops and joins them.
    ///
    /// # Errors
    /// `Directory` for an embedded store that has ingested tables; the operating system's.
    pub fn start_workers(self: &Arc<Self>) -> Result<Workers> {
        self.become_node()?;
        let spawn = |name: &'static str, wake: &Wake, step: StepFn, pause: Option<Duration>| {
            let worker = StoreWorker { store: Arc::clone(self), step, pause };
            WorkerThread::spawn(name, wake.clone(), worker).map_err(|e| Error::io("start a thread for", &self.dir, e))
        };
        self.pace.turn_on();
        self.log.rouse_preparer(&self.wake_flush);
        let mut threads = vec![
            spawn("log-writer", &self.wake_log, log_step, None)?,
            spawn("applier", &self.wake_apply, apply_step, None)?,
            spawn("flush", &self.wake_flush, tend_step, Some(PAUSE))?,
        ];
        threads.extend(self.spawn_compaction()?);
        threads.extend(self.spawn_scrub()?);
        Ok(Workers { _threads: threads })
    }

    /// Starts the background threads of an embedded store: flush and compaction, the one that hands buffered
    /// records to the operating system, and the log writer, which completes what was given to [`Store::submit`] and makes log segments ahead.
    /// Dropping the result stops and joins them; what is outstanding is completed before.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start_background(self: &Arc<Self>) -> Result<Workers> {
        let failed = |e| Error::io("start a thread for", &self.dir, e);
        let flush = StoreWorker { store: Arc::clone(self), step: tend_step, pause: Some(PAUSE) };
        let flusher = LogFlusher { store: Arc::clone(self), waited: false };
        self.pace.turn_on();
        let mut threads = vec![
            WorkerThread::spawn("flush", self.wake_flush.clone(), flush).map_err(failed)?,
            WorkerThread::spawn("log-flusher", self.wake_flusher.clone(), flusher).map_err(failed)?,
            WorkerThread::spawn("log-writer", self.wake_completer.clone(), self.completer()).map_err(failed)?,
        ];
        threads.extend(self.spawn_compaction()?);
        threads.extend(self.spawn_scrub()?);
        Ok(Workers { _threads: threads })
    }
}

impl Store {
    /// The thread that compacts, and those that help it with large merges.
    fn spawn_compaction(self: &Arc<Self>) -> Result<Vec<WorkerThread>> {
        let failed = |e| Error::io("start a thread for", &self.dir, e);
        let now = self.env.clock.monotonic();
        let worker = Compaction {
            store: Arc::clone(self),
            flushes: 0,
            quiet_since: now,
            not_before: now,
            refused: Default::default(),
        };
        let thread = WorkerThread::spawn_in_background("compaction", self.wake_compaction.clone(), worker);
        let mut threads = vec![thread.map_err(failed)?];
        for (n, wake) in self.wake_helpers.iter().enumerate() {
            let name = format!("compaction-{}", n + 2);
            let helper = MergeHelper { store: Arc::clone(self) };
            threads.push(WorkerThread::spawn_for_spare_time(&name, wake.clone(), helper).map_err(failed)?);
        }
        Ok(threads)
    }

    /// The scrub's thread, if the options ask for one.
    fn spawn_scrub(self: &Arc<Self>) -> Result<Option<WorkerThread>> {
        let spawn = |worker| WorkerThread::spawn_in_background("scrub", Wake::new(), worker);
        let thread = Scrubber::new(self).map(spawn).transpose();
        thread.map_err(|e| Error::io("start a thread for", &self.dir, e))
    }

    /// After an error in the background: how to go on.
    fn background_error(&self, e: &Error) -> Progress {
        match e {
            // Room may return, and so may file handles; writers see the same error from their own calls.
            e if e.is_shortage() => Progress::Sleep(PAUSE),
            // The log has called the fatal hook; nothing more can be done here.
            Error::Stopped(_) => Progress::Done,
            e => {
                // A tree that cannot take a committed record must not serve on.
                (self.env.fatal)(&format!("{}: {e}", self.dir.display()));
                self.committed.close();
                self.applied.close();
                Progress::Done
            }
        }
    }
}

/// Compacts what is due, and what is not once nobody has written for a while.
struct Compaction {
    store: Arc<Store>,
    flushes: u64,
    quiet_since: Duration,
    /// The bytes merged so far have used the time until then, by the rate that is allowed.
    not_before: Duration,
    /// How long it waits after merges that were refused files, and until when: it may have been the last file of a
    /// merge, all of which is done again.
    refused: (Duration, Duration),
}

impl Compaction {
    fn compact(&mut self) -> Result<Progress> {
        // Who holds writers back must not hold back itself.
        let rate = self.store.tree.compaction_rate().filter(|_| self.store.tree.slow().is_none());
        let now = self.store.env.clock.monotonic();
        if rate.is_some() && now < self.not_before {
            return Ok(Progress::Sleep(self.not_before - now));
        }
        let before = self.store.tree.stepped_bytes();
        let progress = self.compact_or_settle()?;
        if rate.is_none() && self.store.tree.merging() == (true, true) {
            self.store.wake_helpers.iter().for_each(Wake::wake);
        }
        if let Some(rate) = rate {
            let bytes = self.store.tree.stepped_bytes().saturating_sub(before);
            self.not_before = now + Duration::from_secs_f64(bytes as f64 / rate as f64);
        }
        Ok(progress)
    }

    fn compact_or_settle(&mut self) -> Result<Progress> {
        let progress = self.store.compact_step()?;
        if progress != Progress::Idle {
            return Ok(progress);
        }
        let (now, flushes) = (self.store.env.clock.monotonic(), self.store.tree.flushes());
        if flushes != self.flushes {
            (self.flushes, self.quiet_since) = (flushes, now);
        }
        if now.saturating_sub(self.quiet_since) < QUIET {
            return Ok(Progress::Sleep(PAUSE));
        }
        Ok(match self.store.tree.settle_step()? {
            Progress::Idle => Progress::Sleep(PAUSE),
            worked => worked,
        })
    }
}

impl Worker for Compaction {
    fn step(&mut self) -> Progress {
        let (pause, until) = self.refused;
        let now = self.store.env.clock.monotonic();
        if now < until {
            return Progress::Sleep(until - now);
        }
        match self.compact() {
            Ok(progress) => {
                if !self.store.tree.merge_file().waits() {
                    self.refused.0 = Duration::ZERO;
                }
                progress
            }
            Err(Error::TooManyFiles { .. }) => {
                let pause = (pause * 2).clamp(PAUSE, REFUSED_PAUSE_MOST);
                self.refused = (pause, self.store.env.clock.monotonic() + pause);
                Progress::Sleep(pause)
            }
            Err(e) => self.store.background_error(&e),
        }
    }
}

/// Merges parts of the merge that [`Compaction`] has begun.
struct MergeHelper {
    store: Arc<Store>,
}

impl Worker for MergeHelper {
    fn step(&mut self) -> Progress {
        let tree = &self.store.tree;
        if tree.compaction_rate().is_some() && tree.slow().is_none() {
            return Progress::Idle;
        }
        let progress = tree.help_step().unwrap_or_else(|e| self.store.background_error(&e));
        if progress == Progress::Worked && tree.owes_a_step() {
            // The last part, the end of the merge and what is due next are that thread's.
            self.store.wake_compaction.wake();
        }
        progress
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
        self.store.flusher_awaited.swap(false, Ordering::SeqCst);
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
        store.wake_flush.wake();
    }
    Ok(progress)
}

fn tend_step(store: &Store) -> Result<Progress> {
    store.tend_step()
}

impl Worker for StoreWorker {
    fn step(&mut self) -> Progress {
        match (self.step)(&self.store) {
            Ok(Progress::Idle) => self.pause.map_or(Progress::Idle, Progress::Sleep),
            Ok(progress) => progress,
            Err(e) => self.store.background_error(&e),
        }
    }
}

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod rate;

#[cfg(all(test, feature = "sim"))]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::batch::Batch;
    use crate::clock::SimClock;
    use crate::env::SimFatal;
    use crate::fs::sim::SimFs;
    use crate::store::{Durability, Identity};
    use crate::{ClusterId, CommitTs, Env, Options, TimelineId};

    fn store() -> (Arc<SimFs>, SimFatal, Arc<SimClock>, Arc<Store>) {
        let fs = SimFs::new(1);
        let dir = Path::new("/data");
        fs.prepare_dir(dir).unwrap();
        let clock = SimClock::new(CommitTs(1_000_000));
        let (env, fatal) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), 1);
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        let store = Arc::new(Store::create(env, dir, &Options::tiny(), identity).unwrap());
        (fs, fatal, clock, store)
    }

    fn freeze_one(store: &Store, n: u32) {
        let mut batch = Batch::new();
        batch.put(&n.to_be_bytes(), b"value").unwrap().put(b"k", b"value").unwrap();
        store.write(&batch, &[], Durability::Written).unwrap();
        store.tree().freeze();
    }

    fn run(worker: &mut impl Worker) -> Progress {
        loop {
            let progress = worker.step();
            if progress != Progress::Worked {
                return progress;
            }
        }
    }

    fn flush_worker(store: &Arc<Store>) -> StoreWorker {
        StoreWorker { store: Arc::clone(store), step: tend_step, pause: Some(PAUSE) }
    }

    #[test]
    fn a_flush_and_a_merge_that_may_open_no_file_are_tried_again_after_a_pause() {
        let (fs, fatal, clock, store) = store();
        let mut flush = flush_worker(&store);
        let now = store.env.clock.monotonic();
        let mut merge = Compaction {
            store: Arc::clone(&store),
            flushes: 0,
            quiet_since: now,
            not_before: now,
            refused: Default::default(),
        };
        run(&mut flush);
        freeze_one(&store, 0);
        fs.set_open_files_max(fs.open_files());
        assert_eq!(run(&mut flush), Progress::Sleep(PAUSE));
        let stats = store.stats().open_files;
        assert!(stats.flush_waits && !stats.writes_refused && store.tree().has_frozen(), "{stats:?}");
        assert!(stats.trouble().is_some_and(|t| t.contains("flushes wait")), "{stats:?}");
        fs.set_open_files_max(u64::MAX);
        assert_eq!(run(&mut flush), Progress::Sleep(PAUSE));
        assert!(!store.tree().has_frozen() && store.stats().open_files.trouble().is_none());
        // Level 0 is full.
        for n in 1..6 {
            freeze_one(&store, n);
            run(&mut flush);
        }
        fs.set_open_files_max(fs.open_files());
        // All of it is done again each time, so not as often as it is woken, and ever less.
        for pause in [1, 2, 4].map(|n| PAUSE * n) {
            assert_eq!(run(&mut merge), Progress::Sleep(pause));
            let refusals = store.stats().open_files.refusals;
            assert_eq!((run(&mut merge), store.stats().open_files.refusals), (Progress::Sleep(pause), refusals));
            clock.advance(pause);
        }
        let stats = store.stats();
        assert!(stats.open_files.merge_waits && stats.open_files.refusals >= 3, "{stats:?}");
        assert_eq!(stats.tree.compactions, 0);
        fs.set_open_files_max(u64::MAX);
        run(&mut merge);
        let stats = store.stats();
        assert!(stats.tree.compactions > 0 && stats.open_files.trouble().is_none(), "{stats:?}");
        assert_eq!(fatal.messages(), Vec::<String>::new());
    }

    #[test]
    fn a_flush_whose_sync_fails_ends_the_store() {
        let (fs, fatal, _, store) = store();
        let mut flush = flush_worker(&store);
        run(&mut flush);
        freeze_one(&store, 0);
        fs.fail_next_sync();
        assert_eq!(run(&mut flush), Progress::Done);
        assert_eq!(fatal.messages().len(), 1);
    }
}
