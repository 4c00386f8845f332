//! Executes a [`RestorePlan`]: fetch, verify, replay, new timeline, rename \[I11\].
//!
//! Everything happens in `<dir>.restoring`; renaming it to `<dir>` is the moment the restore
//! exists. Owns: the working directory, the checks against the plan. Never: deciding anything that
//! the plan has decided; writing into a directory that holds something; calling it done before
//! every hash, checksum and chain link was seen.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use mainstay_engine::fault::{Bug, planted};
use mainstay_engine::fs::{Fs, NotReplaced, write_atomic};
use mainstay_engine::limits::TIMELINE_LSN_JUMP;
use mainstay_engine::record::{Record, TimelineStart};
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Lsn, Position, TimelineId};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::base::{MANIFEST_BYTES_MAX, blocking, table_path};
use crate::catalog::Piece;
use crate::error::{Error, Result};
use crate::plan::{RestorePlan, fetch_object};
use crate::repository::Repository;
use crate::repository::access::Access;
use crate::repository::documents::{TableRef, number, text};
use crate::repository::names::{ContentHash, ObjectName};
use crate::table_copy;
use crate::wal_object::WalObject;

const PARALLEL_TABLES: usize = 4;
/// Log objects fetched ahead of the replay; each is at most 32 MiB, usually 4.
const PREFETCH: usize = 4;
const MARKER: &str = "restore-plan";

/// The store under construction. Calls may block.
pub trait ReplayTarget: Send {
    /// Applies the next record.
    ///
    /// # Errors
    /// When the record does not continue the store, or the engine's.
    fn replay(&mut self, record: &Record<'_>) -> mainstay_engine::Result<()>;

    /// The position after the last record.
    fn position(&self) -> Position;

    /// Flushes everything, writes the record that starts the new timeline, syncs. Returns its position.
    ///
    /// # Errors
    /// The engine's.
    fn finish(self: Box<Self>, start: TimelineStart, epoch: Epoch, wall: CommitTs)
    -> mainstay_engine::Result<Position>;
}

/// What a [`ReplayTarget`] is built from. The tables are in `dir/tables` already.
#[derive(Clone, Copy, Debug)]
pub struct ReplayBase<'a> {
    /// The working directory.
    pub dir: &'a Path,
    /// Cluster of the restored store.
    pub cluster: ClusterId,
    /// Timeline of the base.
    pub timeline: TimelineId,
    /// The base's cut.
    pub position: Position,
    /// The engine's manifest, verified.
    pub manifest: &'a [u8],
}

/// Makes the store under construction.
pub trait ReplayFactory: Send + 'static {
    /// Opens the base for replay.
    ///
    /// # Errors
    /// The engine's.
    fn create(self, env: &Env, base: ReplayBase<'_>) -> mainstay_engine::Result<Box<dyn ReplayTarget>>;
}

/// A phase of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Tables and manifest; in bytes.
    Fetch,
    /// Log objects; in records.
    Replay,
    /// Flush, new timeline, sync, rename; 0 or 1.
    Finish,
}

/// What the caller may choose.
#[derive(Clone)]
pub struct RestoreOptions {
    /// The cluster id of the result, when the old cluster may still live.
    pub new_cluster: Option<ClusterId>,
    /// Gets (phase, done, total).
    pub progress: Arc<dyn Fn(Phase, u64, u64) + Send + Sync>,
    /// How long finding and planning took; reported back as the first phase.
    pub locate: Duration,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { new_cluster: None, progress: Arc::new(|_, _, _| ()), locate: Duration::ZERO }
    }
}

impl fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreOptions").field("new_cluster", &self.new_cluster).finish_non_exhaustive()
    }
}

/// A verified restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Cluster of the result.
    #[serde(with = "text")]
    pub cluster: ClusterId,
    /// LSN it landed at.
    #[serde(with = "number")]
    pub lsn: Lsn,
    /// Commit timestamp there.
    #[serde(with = "number")]
    pub ts: CommitTs,
    /// Epoch there.
    #[serde(with = "number")]
    pub epoch: Epoch,
    /// The timeline it landed on.
    #[serde(with = "text")]
    pub parent: TimelineId,
    /// The timeline begun.
    #[serde(with = "text")]
    pub timeline: TimelineId,
    /// First LSN of the timeline begun.
    #[serde(with = "number")]
    pub first_lsn: Lsn,
    /// Records replayed.
    pub records: u64,
    /// Bytes fetched.
    pub bytes: u64,
    /// Planning.
    pub locate: Duration,
    /// Fetching tables and manifest.
    pub fetch: Duration,
    /// Fetching, verifying and replaying the log.
    pub replay: Duration,
    /// Flush, sync and the final check.
    pub finish: Duration,
}

/// Executes `plan` into `dir`, which must not exist or be empty.
///
/// # Errors
/// `Directory` when there is something in the way; `Damaged`, `Unverified` or `Gap`-like errors when
/// the repository is not what the plan says; the store's; the engine's. Only after `Ok` does `dir`
/// hold a store; a leftover `<dir>.restoring` of this plan is replaced by the next attempt.
pub async fn execute(
    repository: &Repository,
    plan: &RestorePlan,
    dir: &Path,
    factory: impl ReplayFactory,
    options: &RestoreOptions,
) -> Result<Restored> {
    let env = repository.env().clone();
    let repo = repository.check(Some(plan.cluster)).await?;
    let access = repository.access().await?;
    let started = env.clock.monotonic();
    let digest = plan.digest();
    let (fs, target) = (Arc::clone(&env.fs), dir.to_owned());
    // The lock is held to the end: two restores into one place must not mix.
    let (work, _lock) = blocking(move || prepare(&*fs, &target, digest)).await?;
    let manifest = fetch_base(&access, &env, plan, &work, options).await?;
    let fetched = env.clock.monotonic();
    let cluster = options.new_cluster.unwrap_or(repo.cluster);
    let (target, records) = replay(&access, &env, plan, &work, manifest, cluster, factory, options).await?;
    let replayed = env.clock.monotonic();
    let timeline = TimelineId(env.rng.next_u64() | 1);
    let start = TimelineStart { cluster, timeline, parent: plan.landing_timeline, fork: plan.landing_lsn };
    let (finish_env, to, epoch) = (env.clone(), dir.to_owned(), plan.next_epoch);
    let (landed, first) = blocking(move || {
        let landed = target.position();
        let first = target.finish(start, epoch, finish_env.clock.wall())?;
        check_start(&landed, &first)?;
        commit(&*finish_env.fs, &work, &to)?;
        Ok((landed, first))
    })
    .await?;
    (options.progress)(Phase::Finish, 1, 1);
    let finished = env.clock.monotonic();
    Ok(Restored {
        cluster,
        lsn: landed.lsn,
        ts: landed.ts,
        epoch: landed.epoch,
        parent: plan.landing_timeline,
        timeline,
        first_lsn: first.lsn,
        records,
        bytes: plan.fetch_bytes(),
        locate: options.locate,
        fetch: fetched.saturating_sub(started),
        replay: replayed.saturating_sub(fetched),
        finish: finished.saturating_sub(replayed),
    })
}

/// The new timeline must be out of reach of every reader of the old one.
fn check_start(landed: &Position, first: &Position) -> Result<()> {
    if first.lsn.0 < landed.lsn.0.saturating_add(TIMELINE_LSN_JUMP) {
        return Err(Error::Unverified(format!(
            "the new timeline starts at LSN {}, too close to {}",
            first.lsn, landed.lsn
        )));
    }
    Ok(())
}

fn working_dir(dir: &Path) -> PathBuf {
    let mut name = OsString::from(dir.as_os_str());
    name.push(".restoring");
    PathBuf::from(name)
}

fn refused(path: &Path, what: &str) -> Error {
    Error::Directory { path: path.display().to_string(), what: what.to_owned() }
}

/// An empty working directory, marked with the plan, and the lock on it.
fn prepare(fs: &dyn Fs, dir: &Path, digest: ContentHash) -> Result<(PathBuf, Box<dyn mainstay_engine::fs::LockGuard>)> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |e| Error::from(mainstay_engine::Error::io(action, &path, e))
    };
    if dir.file_name().is_none() {
        return Err(refused(dir, "is not the path of a directory that could be created"));
    }
    let there = match fs.list(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(refused(dir, "is not a directory; choose another one"));
        }
        names => names.map_err(io("list", dir))?,
    };
    if !there.is_empty() {
        return Err(refused(dir, "is not empty; a restore never writes into existing data, choose another directory"));
    }
    let work = working_dir(dir);
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs.create_dir_all(parent).map_err(io("create", parent))?;
    }
    let mut lock_name = OsString::from(work.as_os_str());
    lock_name.push(".lock");
    let lock_path = PathBuf::from(lock_name);
    let lock = fs.lock(&lock_path).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => {
            refused(&work, "another restore works here; wait for it or choose another directory")
        }
        _ => io("lock", &lock_path)(e),
    })?;
    if fs.exists(&work).map_err(io("look up", &work))? {
        let names = fs.list(&work).map_err(io("list", &work))?;
        let marker = mainstay_engine::fs::read_file(fs, &work.join(MARKER), 1 << 10).unwrap_or_default();
        if !names.is_empty() && marker.is_empty() {
            let what = "is in the way and no restore marked it as its own; move it away or choose another directory";
            return Err(refused(&work, what));
        }
        if !names.is_empty() && marker != digest.to_string().as_bytes() {
            return Err(Error::Leftover { path: work.display().to_string() });
        }
        fs.remove_dir_all(&work).map_err(io("remove", &work))?;
    }
    let tables = work.join("tables");
    fs.create_dir_all(&tables).map_err(io("create", &tables))?;
    write_atomic(fs, &work, MARKER, digest.to_string().as_bytes()).map_err(|e| match e {
        NotReplaced::Sync { path, source } => Error::not_synced(&path, source),
        e => mainstay_engine::Error::from(e).into(),
    })?;
    Ok((work, lock))
}

/// Puts the finished store in place.
fn commit(fs: &dyn Fs, work: &Path, dir: &Path) -> Result<()> {
    let io = |action, path: &Path, e| Error::from(mainstay_engine::Error::io(action, path, e));
    let marker = work.join(MARKER);
    fs.remove_file(&marker).map_err(|e| io("remove", &marker, e))?;
    fs.sync_dir(work).map_err(|e| Error::not_synced(work, e))?;
    fs.rename(work, dir).map_err(|e| io("rename to", dir, e))?;
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs.sync_dir(parent).map_err(|e| {
        // It must not be there by chance: a crash may take it away again. If it cannot be moved, the error still says so.
        let _ = fs.rename(dir, work);
        Error::not_synced(parent, e)
    })?;
    let mut lock_name = OsString::from(work.as_os_str());
    lock_name.push(".lock");
    // The restore is done; an empty file that stays is no reason to call it failed.
    let _ = fs.remove_file(Path::new(&lock_name));
    Ok(())
}

/// Tables and manifest, each checked against the size and hash that the plan gives.
async fn fetch_base(
    access: &Access,
    env: &Env,
    plan: &RestorePlan,
    work: &Path,
    options: &RestoreOptions,
) -> Result<Vec<u8>> {
    let tables = &plan.base.tables;
    let total = tables.iter().map(|t| t.bytes).fold(plan.base.manifest.bytes, u64::saturating_add);
    let done = AtomicU64::new(0);
    let advance =
        |bytes: u64| (options.progress)(Phase::Fetch, done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let fetch = |t: &TableRef| {
        let (fs, path, t, advance) = (Arc::clone(&env.fs), table_path(work, t.id.0), *t, &advance);
        async move { table_copy::fetch(access, fs, &path, t.blake3, t.bytes, advance).await }
    };
    let fetches: Vec<_> = tables.iter().map(fetch).collect();
    stream::iter(fetches).buffer_unordered(PARALLEL_TABLES).try_collect::<()>().await?;
    let manifest = plan.base.manifest;
    let name = ObjectName::Manifest(manifest.blake3);
    let bytes = access.get(&name, MANIFEST_BYTES_MAX).await?;
    if bytes.len() as u64 != manifest.bytes || ContentHash::of(&bytes) != manifest.blake3 {
        return Err(Error::damaged(name, "its bytes are not what the base names"));
    }
    advance(manifest.bytes);
    let (fs, dir) = (Arc::clone(&env.fs), work.join("tables"));
    blocking(move || fs.sync_dir(&dir).map_err(|e| Error::not_synced(&dir, e))).await?;
    Ok(bytes.to_vec())
}

/// Replays the pieces in order on one blocking thread, fed by a bounded prefetch.
#[expect(clippy::too_many_arguments, reason = "one private call; a struct would only rename them")]
async fn replay(
    access: &Access,
    env: &Env,
    plan: &RestorePlan,
    work: &Path,
    manifest: Vec<u8>,
    cluster: ClusterId,
    factory: impl ReplayFactory,
    options: &RestoreOptions,
) -> Result<(Box<dyn ReplayTarget>, u64)> {
    let (feed, queue) = mpsc::channel::<(Piece, WalObject)>(1);
    let (worker_env, worker_plan, worker_dir) = (env.clone(), plan.clone(), work.to_owned());
    let progress = Arc::clone(&options.progress);
    let last = if planted(Bug::RestoreStopsEarly) { plan.landing_lsn.prev() } else { plan.landing_lsn };
    let worker = tokio::task::spawn_blocking(move || {
        let position = worker_plan.base.at.into();
        let base = ReplayBase {
            dir: &worker_dir,
            cluster,
            timeline: worker_plan.base.timeline,
            position,
            manifest: &manifest,
        };
        let target = factory.create(&worker_env, base)?;
        Replayer { plan: &worker_plan, last, target, records: 0, progress: &*progress }.run(queue)
    });
    let mut objects = stream::iter(plan.pieces.iter().copied())
        .map(|piece| async move { Ok::<_, Error>((piece, fetch_object(access, &piece.name).await?)) })
        .buffered(PREFETCH);
    let mut failed = None;
    while let Some(next) = objects.next().await {
        match next {
            // A closed queue means that the worker has failed; its error is the one to report.
            Ok(item) => {
                if feed.send(item).await.is_err() {
                    break;
                }
            }
            Err(e) => {
                failed = Some(e);
                break;
            }
        }
    }
    drop(feed);
    let result = worker.await?;
    match failed {
        Some(e) => Err(e),
        None => result,
    }
}

struct Replayer<'a> {
    plan: &'a RestorePlan,
    last: Lsn,
    target: Box<dyn ReplayTarget>,
    records: u64,
    progress: &'a (dyn Fn(Phase, u64, u64) + Send + Sync),
}

impl Replayer<'_> {
    fn run(mut self, mut queue: mpsc::Receiver<(Piece, WalObject)>) -> Result<(Box<dyn ReplayTarget>, u64)> {
        let base = Position::from(self.plan.base.at);
        if self.target.position() != base {
            let found = self.target.position().lsn;
            return Err(Error::Unverified(format!("the base opens at LSN {found}, its document says {}", base.lsn)));
        }
        while let Some((piece, object)) = queue.blocking_recv() {
            self.piece(&piece, &object)?;
            (self.progress)(Phase::Replay, self.records, self.plan.records);
        }
        let at = self.target.position();
        if (at.lsn, at.ts, self.records) != (self.plan.landing_lsn, self.plan.landing_ts, self.plan.records) {
            return Err(Error::Unverified(format!(
                "it landed at LSN {} after {} records, the plan says LSN {} after {}",
                at.lsn, self.records, self.plan.landing_lsn, self.plan.records
            )));
        }
        Ok((self.target, self.records))
    }

    fn piece(&mut self, piece: &Piece, object: &WalObject) -> Result<()> {
        let name = ObjectName::Wal(piece.name);
        if object.header.cluster != self.plan.cluster {
            return Err(Error::damaged(name, "it belongs to another cluster"));
        }
        let (target, last) = (&mut self.target, self.last);
        let mut replayed = 0u64;
        object.each::<Error>(|record| {
            let (lsn, at) = (record.header.lsn, target.position());
            if lsn < piece.from {
                // Two objects may hold the same records; what was replayed must be the same history.
                if lsn == at.lsn && record.position() != at {
                    return Err(Error::damaged(
                        name,
                        format!("its record {lsn} differs from the same record in another object"),
                    ));
                }
                return Ok(());
            }
            if lsn > piece.to || lsn > last {
                return Ok(());
            }
            if record.header.epoch != piece.name.epoch {
                return Err(Error::damaged(name, format!("record {lsn} is of epoch {}", record.header.epoch)));
            }
            record.follows(&at).map_err(|e| Error::damaged(name, e))?;
            target.replay(record)?;
            replayed += 1;
            if target.position() != record.position() {
                return Err(Error::Unverified(format!(
                    "the engine stands at LSN {} after record {lsn}",
                    target.position().lsn
                )));
            }
            Ok(())
        })?;
        self.records += replayed;
        Ok(())
    }
}
