//! The tree: a log-structured merge tree that materialises the committed prefix of the log.
//!
//! Records go into a memtable in LSN order; full memtables become tables of level 0 (`flush`),
//! those merge into deeper levels (`compaction`); the manifest says which tables count. Nothing here
//! starts a thread: callers run `flush_step` and `compact_step`. Owns: `tables/` and `manifest/` of
//! the data directory. Never: the log, and never a record above the commit LSN: its caller hands
//! over committed records only, so a flush never has to be undone \[I2\].
//!
//! Lock order: flushing → compacting → manifest → what is published; applier → what is published. What is damaged
//! comes last, and is held across no I/O.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::Guard;

use crate::batch::{Batch, Keyspace};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::limits::Options;
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::open_files::FileWait;
use crate::record::{Kind, Record, RecordError, TimelineStart};
use crate::space::Space;
use crate::table::cache::BlockCache;
use crate::table::reader::{Life, Table};
use crate::table::{parse_table_name, table_name};

mod checkpoint;
mod compaction;
mod damage;
mod damaged;
#[cfg(feature = "sim")]
mod decoders;
mod flush;
mod ingest;
pub(crate) mod inspect;
mod manifest;
mod manifest_file;
mod memtable;
mod merge;
mod pressure;
mod published;
mod range_index;
mod read_only;
mod repair;
mod scrub;
mod stats;
mod stop;
#[cfg(test)]
mod tests;
mod version;
mod view;

pub(crate) use checkpoint::manifest_of;
pub use checkpoint::{Checkpoint, PinnedTables, install_manifest};
pub use damaged::DamagedTable;
#[cfg(feature = "sim")]
pub(crate) use decoders::decoders;
pub use manifest::{ManifestSummary, manifest_tables};
pub use pressure::Cause;
pub use read_only::ReadOnly;
pub(crate) use repair::repair_closed;
pub(crate) use scrub::{Scrubbed, TableScrub};
pub use stats::{DroppedStats, HeldStats, LevelStats, TreeStats};
pub use view::{Entry, Found, Scan, ScanEntry, View};

use compaction::Compacting;
use damage::Damage;
use ingest::Arriving;
use manifest::{EpochStart, Event, Placed, State};
use manifest_file::Manifest;
use memtable::{Change, Memtable, Spare};
use pressure::Pressure;
use published::Published;
use stats::Counters;
use stop::Stop;
use version::{Frozen, HISTORY, Version};

#[derive(Debug)]
struct Applier {
    epochs: Vec<EpochStart>,
    timeline: Option<TimelineStart>,
}

/// See the module. All calls may be made from several threads.
#[derive(Debug)]
pub struct Tree {
    env: Env,
    options: Options,
    tables_dir: PathBuf,
    cache: Arc<BlockCache>,
    stop: Stop,
    published: Published,
    applier: Mutex<Applier>,
    manifest: Mutex<Manifest>,
    flushing: Mutex<()>,
    compacting: Mutex<Compacting>,
    damaged: Damage,
    counters: Counters,
    pressure: Pressure,
    barrier: Barrier,
    space: OnceLock<Arc<Space>>,
    flush_file: FileWait,
    merge_file: FileWait,
    spare: Spare,
    life: Arc<Life>,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.end();
    }
}

type BarrierFn = dyn Fn(Lsn) -> Result<()> + Send + Sync;

/// See [`Tree::set_barrier`].
#[derive(Default)]
struct Barrier(OnceLock<Box<BarrierFn>>);

impl std::fmt::Debug for Barrier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Barrier")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State behind these locks is replaced whole, after what it says has become true.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn manifest_dir(dir: &Path) -> PathBuf {
    dir.join("manifest")
}

fn tables_dir(dir: &Path) -> PathBuf {
    dir.join("tables")
}

impl Tree {
    /// Whether `dir` holds a tree.
    ///
    /// # Errors
    /// `Io`.
    pub fn exists(env: &Env, dir: &Path) -> Result<bool> {
        manifest_file::exists(&*env.fs, &manifest_dir(dir))
    }

    /// Makes an empty tree in the data directory `dir`, whose first record will follow `base`
    /// (`Position::default()` for a new log). Durable when it returns, but for the name of `dir`
    /// itself, which is the caller's.
    ///
    /// # Errors
    /// `Directory` when there is one already, `DiskFull`, `Io`, `Stopped`.
    pub fn create(env: Env, dir: &Path, options: &Options, base: Position) -> Result<Self> {
        let stop = Stop::new(Arc::clone(&env.fatal));
        if Self::exists(&env, dir)? {
            let what = "holds a tree already; open it, or choose an empty directory".into();
            return Err(Error::Directory { path: dir.to_owned(), what });
        }
        for d in [tables_dir(dir), manifest_dir(dir)] {
            env.fs.create_dir_all(&d).map_err(|e| Error::io("create", &d, e))?;
        }
        env.fs.sync_dir(dir).map_err(|e| stop.fatal("sync", dir, &e))?;
        let state = State { flushed: base, floor: (base.lsn, base.ts), ..State::default() };
        let manifest = Manifest::create(&env.fs, &manifest_dir(dir), state, &stop)?;
        let tree = Self::with(env, dir, options, manifest, stop)?;
        tree.tidy()?;
        Ok(tree)
    }

    /// Opens the tree in the data directory `dir`, as of the last flush; the caller replays the log
    /// after [`Tree::flushed`]. Table files that the manifest does not name are removed.
    ///
    /// # Errors
    /// `Directory` when there is none, `Corruption` when the manifest or a named table's footer, properties or
    /// range deletes are damaged or the file is missing (damage further inside shows in the reads that need it),
    /// `Format`, `Io`, `Stopped`.
    pub fn open(env: Env, dir: &Path, options: &Options) -> Result<Self> {
        let tree = Self::open_unchanged(env, dir, options)?;
        tree.tidy()?;
        Ok(tree)
    }

    /// [`Tree::open`] without any change on disk, for a caller that may yet find that it must not go
    /// on. [`Tree::tidy`] has to follow before anything else.
    pub(crate) fn open_unchanged(env: Env, dir: &Path, options: &Options) -> Result<Self> {
        let stop = Stop::new(Arc::clone(&env.fatal));
        let manifest = Manifest::open(&env.fs, &manifest_dir(dir))?;
        Self::with(env, dir, options, manifest, stop)
    }

    /// Adds to an error of the log what of the manifest may be to blame.
    pub(crate) fn explain(&self, e: Error) -> Error {
        lock(&self.manifest).explain(e)
    }

    /// Makes durable what was read, and removes what the manifest does not name.
    pub(crate) fn tidy(&self) -> Result<()> {
        self.tidy_but(&BTreeSet::new())
    }

    /// [`Tree::tidy`] that leaves the tables in `kept`, which the log names.
    pub(crate) fn tidy_but(&self, kept: &BTreeSet<u128>) -> Result<()> {
        let mut manifest = lock(&self.manifest);
        manifest.settle(&self.stop)?;
        remove_unnamed(&self.env, &self.tables_dir, manifest.state(), kept)?;
        repair::remove_leftovers(&*self.env.fs, &self.tables_dir)?;
        manifest.remove_others()
    }

    fn with(env: Env, dir: &Path, options: &Options, mut manifest: Manifest, stop: Stop) -> Result<Self> {
        manifest.set_rotate_bytes(options.manifest_bytes);
        let tables_dir = tables_dir(dir);
        let cache = Arc::new(BlockCache::of(options));
        let state = manifest.state();
        let spare = Memtable::spare(options.memtable_bytes);
        let active = Memtable::new(options.memtable_bytes, &spare);
        let life = Arc::default();
        let version = open_tables(&env, &tables_dir, &cache, &life, state, active).map_err(|e| manifest.explain(e))?;
        let applier = Applier { epochs: state.epochs.clone(), timeline: state.timeline };
        let published = Published::new(version, state.flushed);
        let tree = Self {
            env,
            // With none, nothing could ever be applied.
            options: Options { frozen_memtables_max: options.frozen_memtables_max.max(1), ..options.clone() },
            tables_dir,
            cache,
            stop,
            published,
            applier: Mutex::new(applier),
            manifest: Mutex::new(manifest),
            flushing: Mutex::new(()),
            compacting: Mutex::default(),
            damaged: Damage::default(),
            counters: Counters::default(),
            pressure: Pressure::default(),
            barrier: Barrier::default(),
            space: OnceLock::new(),
            flush_file: FileWait::default(),
            merge_file: FileWait::default(),
            spare,
            life,
        };
        tree.look_after_change();
        Ok(tree)
    }

    /// Takes in the next committed record; visible to views made afterwards.
    ///
    /// # Errors
    /// `Record` when it does not follow [`Tree::applied`], `Corruption` when its body is malformed,
    /// `Stopped`. The tree is unchanged then.
    pub fn apply(&self, record: &Record<'_>) -> Result<()> {
        self.stop.check()?;
        if record.header.kind == Kind::Ingest {
            return self.apply_ingest_record(record);
        }
        let mut applier = lock(&self.applier);
        let version = self.published.load();
        record.follows(&self.applied())?;
        let lsn = record.header.lsn;
        let malformed = |m: crate::codec::Malformed| Error::corruption(&self.tables_dir, 0, Some(lsn), m.0);
        let change = Change::of(record).map_err(malformed)?;
        let event = change.event;
        version.active.apply(record.position(), change).map_err(malformed)?;
        match event {
            Some(Event::Epoch(e)) => applier.epochs.push(e),
            Some(Event::Timeline(t)) => applier.timeline = Some(t),
            None => {}
        }
        self.published.set_applied(record.position());
        let full = version.active.bytes() >= self.options.memtable_bytes;
        if full && version.frozen.len() < self.options.frozen_memtables_max {
            self.freeze_active();
        }
        Ok(())
    }

    /// Takes in the record that the caller has just appended at `at`, from its batch. Returns whether a
    /// memtable now waits for its flush.
    ///
    /// # Errors
    /// `Record` when it does not follow [`Tree::applied`], `Stopped`. The tree is unchanged then.
    pub fn apply_batch(&self, at: Position, batch: &Batch) -> Result<bool> {
        self.stop.check()?;
        let _applier = lock(&self.applier);
        let (version, applied) = (self.published.load(), self.applied());
        if at.lsn != applied.lsn.next() {
            return Err(RecordError::Discontinuous { epoch: at.epoch, lsn: at.lsn, after: applied.lsn }.into());
        }
        let malformed = |m: crate::codec::Malformed| Error::corruption(&self.tables_dir, 0, Some(at.lsn), m.0);
        version.active.apply(at, Change::of_batch(batch, at.lsn)).map_err(malformed)?;
        self.published.set_applied(at);
        if version.active.bytes() < self.options.memtable_bytes {
            return Ok(false);
        }
        if version.frozen.len() < self.options.frozen_memtables_max {
            self.freeze_active();
        }
        Ok(true)
    }

    /// Before a table counts whose newest record is `lsn`, `barrier(lsn)` must succeed: the log has to hold
    /// durably what a table shows, or a crash could leave tables ahead of the log. Set once, at open.
    pub(crate) fn set_barrier(&self, barrier: impl Fn(Lsn) -> Result<()> + Send + Sync + 'static) {
        let _ = self.barrier.0.set(Box::new(barrier));
    }

    /// Flushes and merges are done only where `space` has room for them. Set once, at open.
    pub(crate) fn set_space(&self, space: Arc<Space>) {
        let _ = self.space.set(space);
    }

    /// Whether a memtable waits because too many files are open.
    pub(crate) const fn flush_file(&self) -> &FileWait {
        &self.flush_file
    }

    /// Whether a merge waits because too many files are open.
    pub(crate) const fn merge_file(&self) -> &FileWait {
        &self.merge_file
    }

    /// True when as many frozen memtables wait as may: run [`Tree::flush_step`] before applying
    /// more, else memory grows beyond its bound.
    #[must_use]
    pub fn needs_flush(&self) -> bool {
        self.published.with(|v| v.frozen.len()) >= self.options.frozen_memtables_max
    }

    /// True when a frozen memtable waits for its flush.
    #[must_use]
    pub fn has_frozen(&self) -> bool {
        self.published.with(|v| !v.frozen.is_empty())
    }

    /// Bytes of the memtable that would be flushed next if the active one were frozen now.
    pub(crate) fn next_flush_bytes(&self) -> u64 {
        self.published.with(|v| v.frozen.last().map_or(&v.active, |f| &f.memtable).bytes()) as u64
    }

    /// Freezes the active memtable if a scan had to pass over a long run of what it could not show there: its flush
    /// drops what nobody sees.
    pub fn freeze_crowded(&self) {
        if self.published.with(|v| v.active.is_crowded()) {
            self.freeze();
        }
    }

    /// Freezes the active memtable whatever its size; nothing happens when it is empty.
    pub fn freeze(&self) {
        let _applier = lock(&self.applier);
        self.freeze_active();
    }

    /// The caller holds the applier's lock.
    fn freeze_active(&self) {
        if self.version().active.end().is_some() {
            self.freeze_under(Arc::default());
        }
    }

    /// Freezes the active memtable with these tables over it. The caller holds the applier's lock.
    fn freeze_under(&self, over: Arc<Arriving>) {
        let next = Arc::new(Memtable::new(self.options.memtable_bytes, &self.spare));
        self.change_version(|version| {
            let memtable = std::mem::replace(&mut version.active, next);
            version.frozen.insert(0, Frozen { memtable, over });
        });
    }

    /// The last record taken in.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.published.applied()
    }

    /// All records at or below are in tables and manifest: the log before is not needed here.
    #[must_use]
    pub fn flushed(&self) -> Position {
        self.version().flushed
    }

    /// The oldest LSN that [`Tree::view_at`] accepts.
    #[must_use]
    pub fn history_floor(&self) -> Lsn {
        self.version().floor.0
    }

    /// The first LSN of each epoch, ascending.
    #[must_use]
    pub fn epoch_history(&self) -> Vec<(Epoch, Lsn)> {
        lock(&self.applier).epochs.iter().map(|e| (e.epoch, e.lsn)).collect()
    }

    /// The first record of the present timeline; `None` when the tree never took one in.
    #[must_use]
    pub fn timeline(&self) -> Option<TimelineStart> {
        lock(&self.applier).timeline
    }

    /// A view at the applied position.
    #[must_use]
    pub fn view(&self) -> View {
        let (version, lsn, ts) = self.published.now();
        View::new(Guard::into_inner(version), lsn, ts)
    }

    /// Reads one key at the applied position, as a view made for it would, and calls `read` with version and
    /// envelope if it has a value. Cheaper than a view.
    ///
    /// # Errors
    /// `Corruption` naming the damaged block, or `Io`. Other keys stay readable.
    pub fn get_with<R>(&self, keyspace: Keyspace, key: &[u8], read: impl FnOnce(Lsn, &[u8]) -> R) -> Result<Option<R>> {
        let (version, lsn, ts) = self.published.now();
        view::look_up(&version, lsn, ts, keyspace, key, read)
    }

    /// A view at an older LSN (`Lsn::MAX`: the newest). Reads it as it was then, expiry included.
    /// May read commit times from a table file.
    ///
    /// # Errors
    /// `HistoryGone` below the history floor, `NotApplied` above the applied LSN, `Corruption`, `Io`.
    pub fn view_at(&self, lsn: Lsn) -> Result<View> {
        let (version, applied, ts) = self.published.now();
        if lsn == Lsn::MAX || lsn == applied {
            return Ok(View::new(Guard::into_inner(version), applied, ts));
        }
        if lsn > applied {
            return Err(Error::NotApplied { asked: lsn, applied });
        }
        if lsn < version.floor.0 {
            return Err(Error::HistoryGone { asked: lsn, floor: version.floor.0 });
        }
        let ts = version.time_at(lsn)?;
        Ok(View::new(Guard::into_inner(version), lsn, ts))
    }

    /// A view at an older time: at the newest record that had committed by then. A time after the newest record
    /// gives the newest. May read commit times from table files.
    ///
    /// # Errors
    /// `HistoryGone` before the history floor, `Corruption`, `Io`.
    pub fn view_at_time(&self, time: CommitTs) -> Result<View> {
        let (version, applied, ts) = self.published.now();
        if time >= ts {
            return Ok(View::new(Guard::into_inner(version), applied, ts));
        }
        if time < version.floor.1 {
            // The floor's own record is the oldest that can be read: any time before it asks for one below.
            return Err(Error::HistoryGone { asked: version.floor.0.prev(), floor: version.floor.0 });
        }
        let (lsn, ts) = version.lsn_at(time)?;
        Ok(View::new(Guard::into_inner(version), lsn, ts))
    }

    /// Where the file of a table stands. Pin it first ([`Tree::pinned_tables`]).
    #[must_use]
    pub fn table_path(&self, id: u128) -> PathBuf {
        self.tables_dir.join(table_name(id))
    }

    /// From here on no file is removed by who still holds a table of this tree: the directory may be given to another.
    /// Waits for a removal under way.
    pub(crate) fn end(&self) {
        self.life.end();
    }

    fn version(&self) -> Arc<Version> {
        self.published.version()
    }

    fn change_version(&self, change: impl FnOnce(&mut Version)) {
        self.published.change(self.env.clock.monotonic(), change);
        self.look_after_change();
    }

    /// Gives blocks, indexes and filters what memtables leave of the memory, and measures what writers are slowed by.
    fn look_after_change(&self) {
        let version = self.version();
        // At least two: what one leaves behind waits for the next. What readers hold of replaced versions is memory as
        // well.
        let memtables = version.memtables().count().max(2);
        self.cache.set_share(self.options.table_memory_bytes(memtables, self.held_memtable_bytes()));
        self.pressure.measure(&version, &self.options);
    }

    fn random_id(env: &Env) -> u128 {
        u128::from(env.rng.next_u64()) << 64 | u128::from(env.rng.next_u64())
    }

    /// Opens a table that is new, or whose file is and stands at `path`: of the lowest level if `bottom`.
    fn open_table(&self, placed: &Placed, path: &Path, bottom: bool) -> Result<Arc<Table>> {
        let id = placed.file.id;
        let table = Table::open(&self.env.fs, path, &self.cache)?.living(&self.life);
        let table = table.standing_at(placed.ingested);
        let version = self.version();
        let table = match version.all_tables().find(|t| t.id() == id) {
            Some(old) => table.in_place_of(old),
            None => table,
        };
        if bottom {
            table.mark_bottom();
        }
        Ok(Arc::new(table))
    }
}

fn open_tables(
    env: &Env,
    dir: &Path,
    cache: &Arc<BlockCache>,
    life: &Arc<Life>,
    state: &State,
    active: Memtable,
) -> Result<Version> {
    let deepest = state.tables.iter().map(|p| p.level).filter(|l| *l < HISTORY).max().unwrap_or_default();
    let mut tables = Vec::new();
    for Placed { level, file, ingested } in &state.tables {
        let path = dir.join(table_name(file.id));
        let table = Table::open(&env.fs, &path, cache)?.living(life);
        if table.id() != file.id || table.bytes() != file.bytes {
            return Err(Error::corruption(&path, 0, None, "the file is not the table that the manifest names"));
        }
        let bottom = *level > 0 && *level == deepest;
        let table = table.standing_at(*ingested);
        if bottom {
            table.mark_bottom();
        }
        tables.push((*level, Arc::new(table)));
    }
    let mut version = Version::new(active, state.flushed, state.floor, Arc::clone(cache));
    version.change_tables(&[], &tables);
    Ok(version)
}

fn remove_unnamed(env: &Env, dir: &Path, state: &State, kept: &BTreeSet<u128>) -> Result<()> {
    let names = env.fs.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let kept = |id: &u128| kept.contains(id) && !planted(Bug::TidyIngested);
    let unnamed = |id: &u128| !kept(id) && !state.tables.iter().any(|t: &Placed| t.file.id == *id);
    for id in names.iter().filter_map(|n| parse_table_name(n)).filter(unnamed) {
        let path = dir.join(table_name(id));
        env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    }
    Ok(())
}
