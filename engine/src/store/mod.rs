//! The store: log and tree joined, for embedded use and for a node.
//!
//! Owns: opening and closing a data directory, the order of appends, who applies committed records.
//! Never: deciding what is committed (in a node the replication rule does; embedded, the store's
//! own durable log does) and never showing a record above the commit LSN \[I2\].

mod apply;
#[cfg(feature = "sim")]
mod decoders;
mod evidence;
mod identity;
mod ingest;
mod maintain;
mod pace;
mod repair;
mod room;
mod scrub;
mod stats;
mod submit;
mod workers;
mod write;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "sim")]
pub(crate) use decoders::decoders;
pub use identity::Identity;
pub use ingest::Ingested;
pub use pace::{StallStats, Stalls};
pub use repair::Closed;
pub use scrub::{ScrubPass, ScrubStats};
pub use stats::{StoreStats, SubmitStats};
pub use submit::Completion;
pub use workers::Workers;
pub use write::Written;

use crate::batch::Keyspace;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::exec::Wake;
use crate::fault::{Bug, planted};
use crate::fs::{LockGuard, OpenMode};
use crate::limits::Options;
use crate::log::{Log, Recovered};
use crate::lsn::{CommitTs, Epoch, Lsn, Position, TimelineId};
use crate::space::Space;
use crate::tree::{Checkpoint, Found, Tree, View};
use crate::watermark::Watermark;
use evidence::Evidence;
pub(crate) use evidence::{forget as forget_evidence, look_at_evidence};

/// How sure an embedded write is when the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On disk: survives power loss. Visible when it is there, unless a weaker write came behind it.
    Synced,
    /// Handed to the operating system: survives the end of the process, not of the machine. Visible on return.
    Written,
    /// In memory, at most 64 KiB and, while the background threads run, 5 ms behind: the end of the process
    /// may lose it, with all after it. Visible on return.
    Buffered,
}

/// An open data directory. Share it in an `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct Store {
    env: Env,
    dir: PathBuf,
    identity: Mutex<Identity>,
    /// Whether its log may hold ingest records, by its identity.
    ingested: AtomicBool,
    /// Opened or run as a node, whose log others must be able to follow.
    node: AtomicBool,
    log: Arc<Log>,
    tree: Arc<Tree>,
    recovered: Recovered,
    committed: Watermark,
    applied: Watermark,
    /// Held while conditions are judged and the LSN is given: the order of writes.
    order: Mutex<()>,
    applier: Mutex<apply::Applier>,
    /// Held while the commit LSN is raised, and throughout a cut: what is committed while a cut is judged would
    /// be cut unseen \[I8\].
    cutting: Mutex<()>,
    /// Held while tables are taken in, copies included. Before `order`.
    ingesting: Mutex<()>,
    evidence: Mutex<Evidence>,
    wake_log: Wake,
    wake_apply: Wake,
    pace: pace::Pace,
    space: Arc<Space>,
    scrub: scrub::Scrub,
    wake_flush: Wake,
    wake_compaction: Wake,
    /// The other threads that merge.
    wake_helpers: Vec<Wake>,
    wake_flusher: Wake,
    outstanding: submit::Outstanding,
    wake_completer: Wake,
    /// The flusher has been woken for buffered records and has not looked yet.
    flusher_awaited: AtomicBool,
    // Last: released after everything above is dropped.
    _lock: Box<dyn LockGuard>,
}

pub(crate) fn lock_directory(env: &Env, dir: &Path) -> Result<Box<dyn LockGuard>> {
    let path = dir.join("LOCK");
    env.fs.lock(&path).map_err(|e| {
        if e.kind() == io::ErrorKind::WouldBlock { Error::InUse(dir.to_owned()) } else { Error::io("lock", &path, e) }
    })
}

/// Stands in a directory while a store is made there.
const CREATING: &str = "CREATING";

/// Begins to make a store: removes what an earlier attempt left that did not come to its end. Parts of a store without
/// an identity that are of no such attempt are a checkpoint, or a store that lost it: they are not touched.
pub(crate) fn begin_attempt(env: &Env, dir: &Path) -> Result<()> {
    let refused = |what: &str| Err(Error::Directory { path: dir.to_owned(), what: what.into() });
    if Identity::read(env, dir)?.is_some() {
        return refused("there is a store here already; open it or choose another directory");
    }
    let mark = dir.join(CREATING);
    let attempted = env.fs.exists(&mark).map_err(|e| Error::io("look for", &mark, e))?;
    for part in ["log", "tables", "manifest"] {
        let path = dir.join(part);
        if !env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
            continue;
        }
        let holds = !env.fs.list(&path).map_err(|e| Error::io("list", &path, e))?.is_empty();
        if holds && !attempted && !planted(Bug::ClearAnything) {
            return refused(
                "parts of a store are here, but no IDENTITY: a checkpoint, or a store that lost it; nothing was changed; \
                 choose another directory, or move them away",
            );
        }
    }
    if !attempted {
        env.fs.open(&mark, OpenMode::CreateNew).map_err(|e| Error::io("create", &mark, e))?;
        // Before there is any part: a crash must not leave parts without it.
        env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.to_owned(), source })?;
    }
    for part in ["log", "tables", "manifest"] {
        let path = dir.join(part);
        if env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
            env.fs.remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    forget_evidence(env, dir)
}

/// The store is made, or was at the last start: what stands here is no attempt.
pub(crate) fn end_attempt(env: &Env, dir: &Path) -> Result<()> {
    let mark = dir.join(CREATING);
    match env.fs.remove_file(&mark) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("remove", &mark, e)),
        // Else a crash might bring it back, and a later loss of the identity would look like an attempt.
        Ok(()) => env.fs.sync_dir(dir).map_err(|source| Error::Io { action: "sync", path: dir.to_owned(), source }),
    }
}

/// A failed sync ends the process also while a store is made, opened, fetched or moved \[I3\]: the next look may find
/// whole what is lost. Gives back what it was, or `Stopped`.
pub fn final_if_sync(env: &Env, e: Error) -> Error {
    match e {
        Error::Io { action: "sync", path, source } => {
            let why = format!("cannot sync {}: {source}", path.display());
            (env.fatal)(&why);
            Error::Stopped(why)
        }
        other => other,
    }
}

impl Store {
    /// Makes a new store in `dir`, which must be absent, empty, or hold no store yet. `base` is the
    /// position its log starts after: zero for a new cluster.
    ///
    /// # Errors
    /// `Directory` when there is a store already, `InUse`, or the operating system's; `Stopped` after a failed sync,
    /// which ends the process.
    pub fn create(env: Env, dir: &Path, options: &Options, identity: Identity) -> Result<Self> {
        Self::make(env.clone(), dir, options, identity).map_err(|e| final_if_sync(&env, e))
    }

    fn make(env: Env, dir: &Path, options: &Options, identity: Identity) -> Result<Self> {
        crate::fs::create_dir_synced(&*env.fs, dir)?;
        let lock = lock_directory(&env, dir)?;
        begin_attempt(&env, dir)?;
        Tree::create(env.clone(), dir, options, Position::default())?;
        drop(Log::open(&env, dir, options, Lsn::ZERO, Position::default())?);
        identity.write(&env, dir)?;
        end_attempt(&env, dir)?;
        Self::open_locked(env, dir, options, (identity, false), lock)
    }

    /// Opens an existing store: recovers the log, loads the tree. Committed records that were not
    /// flushed are applied again once the commit LSN is raised.
    ///
    /// # Errors
    /// `Directory` when there is none, and when it is an embedded store that has ingested tables; `Format`, `InUse`,
    /// `Corruption` (nothing is changed then), or the operating system's.
    pub fn open(env: Env, dir: &Path, options: &Options) -> Result<Self> {
        let store = Self::open_any(env, dir, options, ingest::refuse_node)?;
        store.node.store(true, Ordering::Relaxed);
        Ok(store)
    }

    /// Opens a store unless `refuse` finds in its identity that it may not be.
    fn open_any(
        env: Env,
        dir: &Path,
        options: &Options,
        refuse: impl FnOnce(&Path, bool) -> Result<()>,
    ) -> Result<Self> {
        let missing = || Error::Directory { path: dir.to_owned(), what: "there is no store here".into() };
        if !env.fs.exists(dir).map_err(|e| Error::io("open", dir, e))? {
            return Err(missing());
        }
        let lock = lock_directory(&env, dir)?;
        let (identity, ingested) = Identity::read_from(&*env.fs, dir)?.ok_or_else(missing)?;
        refuse(dir, ingested)?;
        end_attempt(&env, dir).map_err(|e| final_if_sync(&env, e))?;
        Self::open_locked(env.clone(), dir, options, (identity, ingested), lock).map_err(|e| final_if_sync(&env, e))
    }

    /// Opens a store whose own log commits: every record that recovery found is committed and visible,
    /// as [`Store::write`] had promised for those it acknowledged. Not for a node, whose rule decides.
    ///
    /// # Errors
    /// As [`Store::open`], which also refuses what only an embedded store may hold.
    pub fn open_embedded(env: Env, dir: &Path, options: &Options) -> Result<Self> {
        let store = Self::open_any(env, dir, options, |_, _| Ok(()))?;
        store.set_committed(store.log.last().lsn);
        store.apply_committed()?;
        Ok(store)
    }

    fn open_locked(
        env: Env,
        dir: &Path,
        options: &Options,
        (identity, ingested): (Identity, bool),
        lock: Box<dyn LockGuard>,
    ) -> Result<Self> {
        let evidence = Evidence::read(&env, dir)?;
        let tree = Arc::new(Tree::open_unchanged(env.clone(), dir, options)?);
        let flushed = tree.flushed();
        let known_durable = flushed.lsn.max(evidence.durable);
        let opened = Log::open(&env, dir, options, known_durable, flushed);
        let (log, recovered) = opened.map_err(|e| tree.explain(e))?;
        // Only with a log that continues it is the manifest's end taken for its true end. Tables that the log behind it
        // brings in have to stay.
        let kept = if ingested { ingest::named_in(&log, flushed.lsn)? } else { BTreeSet::new() };
        tree.tidy_but(&kept)?;
        // No sync from here on is to fail for want of a handle.
        for dir in [dir.to_owned(), dir.join("log"), dir.join("tables"), dir.join("manifest")] {
            env.fs.keep_dir(&dir).map_err(|e| Error::io("open", &dir, e))?;
        }
        let log = Arc::new(log);
        let committed = flushed.lsn.max(evidence.committed.min(log.last().lsn));
        let store = Self {
            dir: dir.to_owned(),
            identity: Mutex::new(identity),
            ingested: AtomicBool::new(ingested),
            node: AtomicBool::new(false),
            applier: Mutex::new(apply::Applier::default()),
            committed: Watermark::new(committed),
            applied: Watermark::new(flushed.lsn),
            order: Mutex::new(()),
            cutting: Mutex::new(()),
            ingesting: Mutex::new(()),
            evidence: Mutex::new(evidence),
            wake_log: Wake::new(),
            wake_apply: Wake::new(),
            pace: pace::Pace::default(),
            space: Arc::new(Space::new(&env.fs, dir, options)),
            scrub: scrub::Scrub::default(),
            wake_flush: Wake::new(),
            wake_compaction: Wake::new(),
            wake_helpers: (1..options.merge_threads).map(|_| Wake::new()).collect(),
            wake_flusher: Wake::new(),
            outstanding: submit::Outstanding::new(options),
            wake_completer: Wake::new(),
            flusher_awaited: AtomicBool::new(false),
            env,
            log,
            tree,
            recovered,
            _lock: lock,
        };
        // What recovery has to flush may take the reserve.
        store.apply_committed()?;
        store.tree.set_space(Arc::clone(&store.space));
        store.log.set_space(Arc::clone(&store.space));
        // Records of weaker writes are in the tree before they are durable; their tables wait for that.
        let log = Arc::clone(&store.log);
        store.tree.set_barrier(move |lsn| log.sync_to(lsn));
        Ok(store)
    }

    /// The data directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The environment it was opened with.
    #[must_use]
    pub const fn env(&self) -> &Env {
        &self.env
    }

    /// Cluster and timeline.
    #[must_use]
    pub fn identity(&self) -> Identity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a new timeline of this directory's log (after a `TimelineStart` record was appended).
    ///
    /// # Errors
    /// The operating system's.
    pub fn set_timeline(&self, timeline: TimelineId) -> Result<()> {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        let next = Identity { timeline, ..*identity };
        let written = next.write_with(&self.env, &self.dir, self.ingested.load(Ordering::Relaxed));
        written.map_err(|e| self.final_if_sync(e))?;
        // Only now: who sees the new one here takes it for done.
        *identity = next;
        Ok(())
    }

    /// What recovery found at open.
    #[must_use]
    pub const fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// The log, for tail readers and slots.
    #[must_use]
    pub const fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// The tree, for statistics.
    #[must_use]
    pub const fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// End of the log in memory.
    #[must_use]
    pub fn appended(&self) -> &Watermark {
        self.log.appended()
    }

    /// Synced to this disk.
    #[must_use]
    pub fn durable(&self) -> &Watermark {
        self.log.durable()
    }

    /// Commit rule met, as far as this node knows.
    #[must_use]
    pub const fn committed(&self) -> &Watermark {
        &self.committed
    }

    /// Visible to reads.
    #[must_use]
    pub const fn applied(&self) -> &Watermark {
        &self.applied
    }

    /// The value of one key at everything applied; `None` when absent, deleted or expired. For several reads of
    /// one moment make a [`Store::view`].
    ///
    /// # Errors
    /// `Corruption` naming the damaged block, or `Io`. Other keys stay readable.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Found>> {
        self.get_with(keyspace, key, |lsn, envelope| Found { lsn, envelope: envelope.to_vec() })
    }

    /// [`Store::get`] without a copy: `read` is called with version and envelope if there is a value.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn get_with<R>(&self, keyspace: Keyspace, key: &[u8], read: impl FnOnce(Lsn, &[u8]) -> R) -> Result<Option<R>> {
        self.tree.get_with(keyspace, key, read)
    }

    /// A consistent read position at everything applied.
    #[must_use]
    pub fn view(&self) -> View {
        self.tree.view()
    }

    /// A read position in the past.
    ///
    /// # Errors
    /// `HistoryGone` below the history floor; a position above what is applied is refused alike.
    pub fn view_at(&self, lsn: Lsn) -> Result<View> {
        self.tree.view_at(lsn)
    }

    /// A read position at a time in the past: at the newest record that had committed by then.
    ///
    /// # Errors
    /// `HistoryGone` before the history floor.
    pub fn view_at_time(&self, time: CommitTs) -> Result<View> {
        self.tree.view_at_time(time)
    }

    /// First LSN of every epoch in this log, ascending, the not yet applied ones included.
    ///
    /// # Errors
    /// Those of reading the log.
    pub fn epochs(&self) -> Result<Vec<(Epoch, Lsn)>> {
        loop {
            // First the position, then the history: what is applied between is in both, not in neither.
            let applied = self.tree.applied().lsn;
            match self.epochs_behind(applied, self.tree.epoch_history()) {
                // Applied, flushed and released meanwhile.
                Err(Error::LogGone { .. }) if self.tree.applied().lsn > applied => {}
                other => return other,
            }
        }
    }

    /// `epochs` and those of the log behind `applied`.
    fn epochs_behind(&self, applied: Lsn, mut epochs: Vec<(Epoch, Lsn)>) -> Result<Vec<(Epoch, Lsn)>> {
        let mut reader = self.log.reader(applied.next())?;
        while let Some(chunk) = reader.next(self.log.last().lsn, 1 << 20)? {
            for record in chunk.records() {
                let h = record?.header;
                if epochs.last().is_none_or(|(e, _)| *e < h.epoch) {
                    epochs.push((h.epoch, h.lsn));
                }
            }
        }
        Ok(epochs)
    }

    /// Cuts uncommitted records above `lsn`; they are kept under `diverged/`.
    ///
    /// # Errors
    /// `BelowCommit` \[I8\]; any other error ends the store.
    pub fn truncate_above(&self, lsn: Lsn) -> Result<Option<crate::log::CutTail>> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let _cutting = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        let committed = self.committed.get().max(self.tree.applied().lsn);
        // Held across the cut: evidence of what is being cut must not be written meanwhile, nor
        // outlive it.
        let mut saved = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        let lowered = Evidence { durable: saved.durable.min(lsn), committed: saved.committed.min(lsn) };
        if lsn >= committed && lowered != *saved {
            lowered.write(&self.env, &self.dir).map_err(|e| self.final_if_sync(e))?;
            *saved = lowered;
        }
        self.log.truncate_above(lsn, committed)
    }

    /// Makes a consistent, openable set of hard-linked tables in the new directory `to`, of
    /// everything applied.
    ///
    /// # Errors
    /// The tree's.
    pub fn checkpoint(&self, to: &Path) -> Result<Checkpoint> {
        self.tree.checkpoint(to)
    }

    /// Syncs everything and leaves evidence of it. Call once, after the workers have stopped. Views and scans that are
    /// still held read on, but remove no file any more when they go: the directory may be another store's by then.
    ///
    /// # Errors
    /// The operating system's.
    pub fn close(&self) -> Result<()> {
        self.tree.end();
        self.log.close()?;
        self.apply_committed()?;
        self.save_evidence()
    }

    /// Writes what is known to be durable and committed, if that changed.
    pub(crate) fn save_evidence(&self) -> Result<()> {
        let mut saved = self.evidence.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Evidence { durable: self.log.durable().get(), committed: self.committed.get() };
        if now.durable > saved.durable || now.committed > saved.committed {
            now.write(&self.env, &self.dir).map_err(|e| self.final_if_sync(e))?;
            *saved = now;
        }
        Ok(())
    }
}
