//! The archiver of this node: runs while the node is primary and a repository is configured. In every role the node
//! keeps the log that is not archived yet.
//!
//! Owns: wiring log, commit watermark and repository together; base backups on request; going on behind a gap. Never: a
//! write path (when the bucket is away, writes go on and the backlog stays in the log); a gap that nobody accepted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mainstay_backup::archive::ArchiverState;
use mainstay_backup::{
    ArchiveStatus, Archiver, ArchiverHandle, ArchiverOptions, BaseSource, LogSource, Repository, Writer, create_base,
};
use mainstay_engine::limits::TIMELINE_LSN_JUMP;
use mainstay_engine::log::Slot;
use mainstay_engine::store::Store;
use mainstay_engine::watermark::Watermark;
use mainstay_engine::{Epoch, Lsn, Position, TimelineId};
use mainstay_proto::v1;
use mainstay_replication::driver::{Driver, RoleName, RoleView};
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::service::{Class, Code, Failure};

/// Pause between looks for a base backup that somebody else may have made.
const LOOK_FOR_A_BASE: Duration = Duration::from_secs(60);

/// Pause between looks at how far the archive of another node has got: each lists the timeline's objects.
const LOOK_AT_THE_ARCHIVE: Duration = Duration::from_secs(30);
/// A large archive is not listed all the time: the pause is so many times as long as a look takes, up to a bound that
/// leaves the log's byte cap to last until the next look.
const LOOKS_PART: u32 = 4;
const LOOK_AT_MOST: Duration = Duration::from_secs(180);

/// How long the archiver may take for its first object behind an accepted gap.
const GO_ON: Duration = Duration::from_secs(30);

/// The hold on log that is not archived yet.
#[derive(Debug)]
pub struct LogKept {
    advancing: tokio::task::JoinHandle<()>,
    archive: Archive,
}

impl Drop for LogKept {
    fn drop(&mut self) {
        self.advancing.abort();
        *lock(&self.archive.inner.slot) = None;
    }
}

/// A gap that the operator accepted in a reign: archiving goes on behind this position, below the cut of a new base.
#[derive(Clone, Copy, Debug)]
struct Accepted {
    epoch: Epoch,
    after: Position,
}

/// Plain values only, which a panic leaves whole.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This node's archive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    repository: Option<Repository>,
    options: ArchiverOptions,
    archived: Watermark,
    handle: Mutex<Option<ArchiverHandle>>,
    node: u64,
    /// The last reason why no archiver runs.
    ended: Mutex<Option<String>>,
    /// Keeps the log that is not archived.
    slot: Mutex<Option<Slot>>,
    accepted: watch::Sender<Option<Accepted>>,
    /// Whether the repository is known to hold no base backup: then nothing of it can be restored.
    no_base: AtomicBool,
}

impl Archive {
    /// The archive that `config` names, if it names one. Nothing is contacted yet.
    ///
    /// # Errors
    /// A URL that names no store.
    pub fn new(config: &Config) -> anyhow::Result<Self> {
        let repository = config.repository.as_deref().map(Repository::open).transpose()?;
        let options = ArchiverOptions {
            interval: Duration::from_millis(config.archive_interval_ms),
            object_bytes: usize::try_from(config.archive_object_bytes).unwrap_or(usize::MAX),
            ..ArchiverOptions::default()
        };
        let inner = Inner {
            repository,
            options,
            archived: Watermark::default(),
            handle: Mutex::default(),
            node: config.node_id,
            ended: Mutex::default(),
            slot: Mutex::default(),
            accepted: watch::Sender::default(),
            no_base: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether there is a repository.
    #[must_use]
    pub fn is_configured(&self) -> bool {
        self.inner.repository.is_some()
    }

    /// The repository, if there is one.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        self.inner.repository.as_ref()
    }

    /// Everything up to here is in the archive.
    #[must_use]
    pub fn archived(&self) -> &Watermark {
        &self.inner.archived
    }

    /// The repository's URL without credentials, and the archiver's status.
    #[must_use]
    pub fn status(&self) -> Option<(String, ArchiveStatus)> {
        let url = self.inner.repository.as_ref()?.url().to_owned();
        let handle = lock(&self.inner.handle).clone();
        let mut status = handle.map(|h| h.status()).unwrap_or_default();
        if status.last_error.is_none() {
            status.last_error.clone_from(&lock(&self.inner.ended));
        }
        Some((url, status))
    }

    /// Whether the repository is known to hold no base backup.
    #[must_use]
    pub fn has_no_base(&self) -> bool {
        self.inner.no_base.load(Ordering::Relaxed)
    }

    /// Finds out whether there is a base backup, again and again while there is none known.
    async fn look_for_a_base(self, repository: Repository) {
        loop {
            if let Ok(bases) = repository.bases().await {
                self.inner.no_base.store(bases.is_empty(), Ordering::Relaxed);
                if !bases.is_empty() {
                    return;
                }
            }
            tokio::time::sleep(LOOK_FOR_A_BASE).await;
        }
    }

    /// Keeps, from now on and in every role, the log that is not archived yet from being released, up to the log's byte
    /// cap: whoever becomes primary goes on archiving where the old one ended. Take it before the store's workers
    /// run. `None` without a repository; it ends when the answer is dropped.
    #[must_use]
    pub fn keep_log(&self, driver: &Arc<Driver>, store: &Arc<Store>) -> Option<LogKept> {
        let repository = self.inner.repository.clone()?;
        *lock(&self.inner.slot) = Some(store.log().slot("archiver", self.inner.archived.get()));
        let advancing = self.clone().advance(repository, Arc::downgrade(driver), Arc::downgrade(store));
        Some(LogKept { advancing: tokio::spawn(advancing), archive: self.clone() })
    }

    /// Advances the slot: by what this node archives, and else by what the repository says now and then.
    async fn advance(self, repository: Repository, driver: Weak<Driver>, store: Weak<Store>) {
        let mut at = self.inner.archived.get();
        let mut pause = Duration::ZERO;
        loop {
            let archived = tokio::time::timeout(
                std::mem::replace(&mut pause, LOOK_AT_THE_ARCHIVE),
                self.inner.archived.reached(at.next()),
            )
            .await;
            let (Some(driver), Some(store)) = (driver.upgrade(), store.upgrade()) else { return };
            match archived {
                Ok(Ok(now)) => at = now,
                Ok(Err(_)) => return,
                Err(_) if driver.role().borrow().role == RoleName::Primary => {}
                Err(_) => {
                    let identity = store.identity();
                    let clock = &store.env().clock;
                    let begun = clock.monotonic();
                    let found = mainstay_backup::archived_upto(&repository, identity.cluster, identity.timeline).await;
                    if found.is_ok() {
                        let took = clock.monotonic().saturating_sub(begun);
                        pause = (took * LOOKS_PART).clamp(LOOK_AT_THE_ARCHIVE, LOOK_AT_MOST);
                    }
                    match found {
                        Ok(found) => at = at.max(found.unwrap_or_default()),
                        Err(e) => tracing::debug!(error = %e, "cannot see how far the archive reaches"),
                    }
                }
            }
            let mut slot = lock(&self.inner.slot);
            match &*slot {
                Some(held) if !held.lost() => held.advance(at),
                // It stays lost; a new one holds again as soon as the archive is near.
                _ => *slot = Some(store.log().slot("archiver", at)),
            }
        }
    }

    /// Archives in every reign of this node, until `stop`.
    pub async fn supervise(self, driver: Arc<Driver>, mut stop: watch::Receiver<bool>) {
        let Some(repository) = self.inner.repository.clone() else { return };
        let mut role = driver.role();
        loop {
            let view = tokio::select! {
                r = role.wait_for(|r| r.role == RoleName::Primary) => match r {
                    Ok(r) => r.clone(),
                    Err(_) => return,
                },
                _ = stop.wait_for(|s| *s) => return,
            };
            let Some(store) = driver.store().cloned() else { return };
            let looking = tokio::spawn(self.clone().look_for_a_base(repository.clone()));
            self.archive_reign(&repository, &driver, &store, &view, &mut stop).await;
            looking.abort();
            if *stop.borrow() {
                return;
            }
        }
    }

    /// Runs an archiver in this reign, and another one behind each gap that is accepted, until the reign's end or `stop`.
    async fn archive_reign(
        &self,
        repository: &Repository,
        driver: &Driver,
        store: &Arc<Store>,
        view: &RoleView,
        stop: &mut watch::Receiver<bool>,
    ) {
        let (mut role, mut accepted) = (driver.role(), self.inner.accepted.subscribe());
        let mut behind: Option<Position> = None;
        loop {
            let (end_tx, end_rx) = watch::channel(false);
            let archiver = self.archiver(repository, driver, store, view, behind).await;
            *lock(&self.inner.handle) = Some(archiver.handle());
            *lock(&self.inner.ended) = None;
            let running = tokio::spawn(archiver.run(end_rx));
            let at = behind.map_or(Lsn::ZERO, |b| b.lsn);
            let next = tokio::select! {
                _ = role.wait_for(|r| r.role != RoleName::Primary || r.epoch != view.epoch) => None,
                _ = stop.wait_for(|s| *s) => None,
                a = accepted.wait_for(|a| a.is_some_and(|a| a.epoch == view.epoch && a.after.lsn > at)) => {
                    a.ok().and_then(|a| *a)
                }
            };
            let _ = end_tx.send(true);
            let why = match running.await {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(e) => Some(e.to_string()),
            };
            if let Some(why) = &why {
                tracing::error!(error = %why, "the archiver ended");
            }
            *lock(&self.inner.ended) = why;
            let Some(next) = next else { return };
            behind = Some(next.after);
        }
    }

    async fn archiver(
        &self,
        repository: &Repository,
        driver: &Driver,
        store: &Arc<Store>,
        view: &RoleView,
        accept_gap: Option<Position>,
    ) -> Archiver {
        let (from, before) = (Arc::clone(store), view.epoch_start.prev());
        // Where these stand in the log, the disk may have to say.
        let found = move || (origin(&from), from.log().position_at(before).ok().flatten());
        let (origin, epoch_start) = tokio::task::spawn_blocking(found).await.unwrap_or_default();
        let options = ArchiverOptions { origin, epoch_start, accept_gap, ..self.inner.options.clone() };
        Archiver::new(
            repository.clone(),
            self.writer(driver, store, view.epoch),
            Arc::new(LogSource::new(Arc::clone(store.log()))),
            store.committed().clone(),
            self.inner.archived.clone(),
            options,
        )
    }

    fn writer(&self, driver: &Driver, store: &Store, epoch: Epoch) -> Writer {
        let identity = store.identity();
        Writer {
            cluster: identity.cluster,
            timeline: identity.timeline,
            epoch,
            node: self.inner.node,
            incarnation: driver.incarnation(),
        }
    }

    /// Takes a base backup of everything applied; progress comes through the receiver, the result
    /// last. With `accept_gap` archiving, which has ended at a gap, goes on behind it, and the result comes when the
    /// first object is there.
    ///
    /// # Errors
    /// No repository; `accept_gap` at a node that is not primary, or whose archive has no gap.
    pub async fn create_base(
        &self,
        driver: &Arc<Driver>,
        store: Arc<Store>,
        accept_gap: bool,
    ) -> Result<mpsc::Receiver<Result<v1::CreateBackupProgress, Failure>>, Failure> {
        let Some(repository) = self.inner.repository.clone() else {
            let text = "no repository is configured; start the server with --repository URL";
            return Err(Failure::new(Code::NoRepository, Class::NeverRetry, text));
        };
        let behind = if accept_gap { Some(self.keep_behind_gap(driver, &store).await?) } else { None };
        let writer = self.writer(driver, &store, store.log().last().epoch);
        let (tx, rx) = mpsc::channel(16);
        let this = self.clone();
        tokio::spawn(async move {
            let result = run_base(&repository, &writer, store, &tx).await;
            if result.is_ok() {
                this.inner.no_base.store(false, Ordering::Relaxed);
            }
            let result = result.map_err(|e| Failure::new(Code::Archive, Class::NotExecuted, e.to_string()));
            let result = match (result, behind) {
                (Ok(made), Some(behind)) => this.go_on(behind, made).await,
                (result, _) => result,
            };
            let _ = tx.send(result).await;
        });
        Ok(rx)
    }

    /// Where archiving will go on behind its gap; from now on the log is kept from there on.
    async fn keep_behind_gap(&self, driver: &Driver, store: &Arc<Store>) -> Result<Accepted, Failure> {
        let role = driver.role().borrow().clone();
        if role.role != RoleName::Primary {
            let text = "a gap is accepted at the primary, which archives; this node is not primary";
            return Err(Failure::new(Code::NotPrimary, Class::NotExecuted, text));
        }
        if self.status().is_none_or(|(_, s)| s.state != ArchiverState::AtGap) {
            let text = "the archive has not ended at a gap, so there is none to accept; leave --accept-gap out";
            return Err(Failure::new(Code::BadRequest, Class::NeverRetry, text));
        }
        // Below the cut, so that an object follows at once: with that the gap is accepted by whoever becomes primary.
        let first = store.applied().get();
        *lock(&self.inner.slot) = Some(store.log().slot("archiver", first.prev()));
        let from = Arc::clone(store);
        let found = tokio::task::spawn_blocking(move || from.log().position_at(first.prev()).ok().flatten()).await;
        let Ok(Some(after)) = found else {
            let text = "the log holds no record that archiving could go on with; write one and repeat";
            return Err(Failure::new(Code::NotReady, Class::NotExecuted, text));
        };
        Ok(Accepted { epoch: role.epoch, after })
    }

    /// Has the archiver go on behind the gap, now that there is a base for what follows.
    async fn go_on(
        &self,
        behind: Accepted,
        made: v1::CreateBackupProgress,
    ) -> Result<v1::CreateBackupProgress, Failure> {
        self.inner.accepted.send_replace(Some(behind));
        let gone_on = self.inner.archived.reached(behind.after.lsn.next());
        let status = match tokio::time::timeout(GO_ON, gone_on).await {
            Ok(Ok(_)) => self.status().map(|(_, s)| s).unwrap_or_default(),
            _ => {
                let why = self.status().and_then(|(_, s)| s.last_error);
                let why = why.unwrap_or_else(|| "it takes long, `mainstay status` shows how far it is".to_owned());
                let text = format!("there is base {}, but archiving has not gone on yet: {why}", made.base_id);
                return Err(Failure::new(Code::Archive, Class::Indeterminate, text));
            }
        };
        let (first, last) = status.gap.unwrap_or_default();
        Ok(v1::CreateBackupProgress { gap_first: first.0, gap_last: last.0, ..made })
    }
}

fn origin(store: &Store) -> Option<mainstay_backup::timeline::Origin> {
    use mainstay_backup::timeline::{Cause, Origin};
    let t = store.tree().timeline()?;
    let first = t.parent == TimelineId(0);
    Some(Origin {
        parent: t.parent,
        fork_lsn: t.fork,
        fork_chain: store.log().position_at(t.fork).ok().flatten().map(|p| p.chain),
        start_lsn: if first { Lsn(1) } else { Lsn(t.fork.0.saturating_add(TIMELINE_LSN_JUMP)) },
        cause: if first { Cause::Created } else { Cause::Restore },
    })
}

async fn run_base(
    repository: &Repository,
    writer: &Writer,
    store: Arc<Store>,
    tx: &mpsc::Sender<Result<v1::CreateBackupProgress, Failure>>,
) -> anyhow::Result<v1::CreateBackupProgress> {
    let dir = store.dir().join("seeds").join(format!("base-{:016x}", store.env().rng.next_u64()));
    let (from, at) = (Arc::clone(&store), dir.clone());
    let checkpoint = tokio::task::spawn_blocking(move || {
        if let Some(parent) = at.parent() {
            from.env().fs.create_dir_all(parent)?;
        }
        anyhow::Ok(from.checkpoint(&at)?)
    })
    .await??;
    let source = BaseSource::new(&dir, checkpoint);
    let report = |done, total| {
        let progress = v1::CreateBackupProgress { bytes_done: done, bytes_total: total, ..Default::default() };
        // Progress is only told, never waited for.
        let _ = tx.try_send(Ok(progress));
    };
    let made = create_base(repository, &source, writer, report).await;
    let env = store.env().clone();
    let _ = tokio::task::spawn_blocking(move || env.fs.remove_dir_all(&dir)).await;
    let info = made?;
    Ok(v1::CreateBackupProgress {
        bytes_done: info.bytes,
        bytes_total: info.bytes,
        base_id: info.id.to_string(),
        lsn: info.lsn.0,
        commit_ts_us: info.ts.0,
        uploaded_bytes: info.uploaded_bytes,
        ..Default::default()
    })
}
