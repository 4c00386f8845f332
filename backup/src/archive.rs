//! The archiver: committed records of the log → log objects in the repository, without gap \[I9\].
//!
//! One object at a time, in order, so a hole cannot arise; the next object starts exactly where the
//! archive ends. Owns: the `archived` watermark and the archive's status. Never: a record above the
//! commit LSN; an object of an epoch before that epoch's fence; going on after a fence of a newer
//! epoch, a foreign object under its name, or a silent gap.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use mainstay_engine::fault::{Bug, planted};
use mainstay_engine::log::Chunk;
use mainstay_engine::record::{Kind, Record, TimelineStart};
use mainstay_engine::watermark::Watermark;
use mainstay_engine::{ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};
use tokio::sync::watch;

use crate::base::blocking;
use crate::catalog::TimelineArchive;
use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::access::{Access, Created};
use crate::repository::documents::{Cause, TimelineDoc};
use crate::repository::names::{Listing, ObjectName};
use crate::repository::read_document;
use crate::timeline::{Origin, ensure_fence, ensure_timeline};
use crate::wal_object::{Draft, HEADER_BYTES, WalHeader, WalObject, Writer};

/// Longest time an orderly stop spends on archiving what is committed.
const LAST_DRAIN: Duration = Duration::from_secs(10);
/// Read at once while looking for the start of a timeline.
const SCAN_BYTES: usize = 1 << 20;
/// Pauses after failures, from and to.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The log, as the archiver reads it. Calls may block; they are made off the async threads.
pub trait RecordSource: Send + Sync + 'static {
    /// The position before the oldest record that can still be read.
    ///
    /// # Errors
    /// The log's.
    fn start(&self) -> mainstay_engine::Result<Position>;

    /// The records from the first one at or after `from` up to `upto`, about `max_bytes` of them but
    /// at least one; `None` when there is none yet.
    ///
    /// # Errors
    /// `LogGone` when the log no longer reaches back to `from`, or the log's.
    fn read(&self, from: Lsn, upto: Lsn, max_bytes: usize) -> mainstay_engine::Result<Option<Chunk>>;
}

/// How an archiver works.
#[derive(Clone, Debug)]
pub struct ArchiverOptions {
    /// Shortest time between two rounds of uploads.
    pub interval: Duration,
    /// Size of records at which an object is cut, in bytes, uncompressed.
    pub object_bytes: usize,
    /// How often to look for fences of newer epochs.
    pub fence_check: Duration,
    /// How the timeline began, where the caller knows; else the log is asked.
    pub origin: Option<Origin>,
    /// The position before this reign's `EpochStart`; the fence is then written as soon as that
    /// record is committed, before older records are caught up with.
    pub epoch_start: Option<Position>,
    /// Go on behind this position when the log no longer reaches back to the archive's end. Only a base backup at or
    /// above it makes what follows worth anything; the log is not asked to reach back further.
    pub accept_gap: Option<Position>,
}

impl Default for ArchiverOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            object_bytes: 4 << 20,
            fence_check: Duration::from_secs(5),
            origin: None,
            epoch_start: None,
            accept_gap: None,
        }
    }
}

/// Whether an archiver is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ArchiverState {
    /// It has not found the end of the archive yet.
    #[default]
    Starting,
    /// It archives.
    Running,
    /// It has ended; `last_error` says why, if not by request.
    Stopped,
    /// It has ended at `gap`, which was not accepted.
    AtGap,
}

/// What there is to know about an archiver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveStatus {
    /// Whether it is at work.
    pub state: ArchiverState,
    /// End of the contiguous archive.
    pub archived: Lsn,
    /// Commit timestamp there, where known.
    pub archived_ts: Option<CommitTs>,
    /// Commit timestamp of the oldest committed record that is being archived; `None` when the last
    /// round left nothing. Records younger than one interval may not be counted yet.
    pub oldest_unarchived_ts: Option<CommitTs>,
    /// The last failure; cleared by the next success.
    pub last_error: Option<String>,
    /// LSNs that are in no archive because the log was gone, last such range, accepted or not.
    pub gap: Option<(Lsn, Lsn)>,
    /// Objects written since the start.
    pub objects: u64,
    /// Bytes written since the start, compressed.
    pub bytes: u64,
}

/// Reads the status of an archiver that runs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ArchiverHandle(Arc<Mutex<ArchiveStatus>>);

impl ArchiverHandle {
    /// The status now.
    #[must_use]
    pub fn status(&self) -> ArchiveStatus {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ArchiveStatus> {
        // Plain assignments only, so a poisoned status is still a status.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wrote an object.
    Archived(WalHeader),
    /// Everything committed is archived.
    CaughtUp,
}

struct Pending {
    header: WalHeader,
    bytes: Bytes,
    prev: Position,
}

struct Running {
    access: Access,
    cursor: Position,
    fenced: BTreeSet<Epoch>,
    next_fence_check: Duration,
    pending: Option<Pending>,
}

/// The archiver of one reign on one timeline.
pub struct Archiver {
    repository: Repository,
    writer: Writer,
    source: Arc<dyn RecordSource>,
    committed: Watermark,
    archived: Watermark,
    options: ArchiverOptions,
    handle: ArchiverHandle,
    running: Option<Running>,
}

impl std::fmt::Debug for Archiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archiver")
            .field("writer", &self.writer)
            .field("url", &self.repository.url())
            .finish_non_exhaustive()
    }
}

impl Archiver {
    /// An archiver that has done nothing yet. It alone raises `archived`.
    #[must_use]
    pub fn new(
        repository: Repository,
        writer: Writer,
        source: Arc<dyn RecordSource>,
        committed: Watermark,
        archived: Watermark,
        options: ArchiverOptions,
    ) -> Self {
        let handle = ArchiverHandle::default();
        Self { repository, writer, source, committed, archived, options, handle, running: None }
    }

    /// A handle to the status.
    #[must_use]
    pub fn handle(&self) -> ArchiverHandle {
        self.handle.clone()
    }

    /// Archives until `shutdown` becomes true (or its sender is dropped) or archiving must stop.
    /// A store that fails is tried again for ever; the log's slot bounds what piles up.
    ///
    /// # Errors
    /// The reason why no later attempt can help: `Fenced`, `Conflict`, `Diverged`, `LogGap`,
    /// `AboveCommit`, `Probe`, `ForeignCluster`, or the engine's.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> Result<()> {
        let mut pause = self.options.interval.max(PAUSE_MIN);
        let result = loop {
            let next = self.running.as_ref().map_or(Lsn(1), |r| r.cursor.lsn.next());
            // Dropping a drain half way is safe: what landed is found again, what did not is repeated.
            let round = tokio::select! {
                biased;
                () = stopped(&mut shutdown) => None,
                reached = self.committed.reached(next) => match reached {
                    Ok(_) => tokio::select! {
                        () = stopped(&mut shutdown) => None,
                        result = self.drain() => Some(result),
                    },
                    Err(_) => None,
                },
            };
            let wait = match round {
                None => break self.last_drain().await,
                Some(Ok(())) => {
                    pause = self.options.interval.max(PAUSE_MIN);
                    self.options.interval
                }
                // Whatever the store says, credentials and buckets can be put right while we wait.
                Some(Err(e @ Error::Store { .. })) => {
                    tracing::warn!(error = %e, "archiving is held up");
                    pause = (pause * 2).min(PAUSE_MAX);
                    pause
                }
                Some(Err(e)) => break Err(e),
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopped(&mut shutdown) => {}
            }
        };
        let mut status = self.handle.lock();
        if status.state != ArchiverState::AtGap {
            status.state = ArchiverState::Stopped;
        }
        drop(status);
        if let Err(e) = &result {
            tracing::error!(error = %e, "archiving has stopped");
        }
        result
    }

    async fn last_drain(&mut self) -> Result<()> {
        match tokio::time::timeout(LAST_DRAIN, self.drain()).await {
            // What is left waits in the log for the next start.
            Ok(Ok(()) | Err(Error::Store { .. })) | Err(_) => Ok(()),
            Ok(Err(e)) => Err(e),
        }
    }

    async fn drain(&mut self) -> Result<()> {
        while let Step::Archived(_) = self.step().await? {}
        Ok(())
    }

    /// One bounded piece of work: find the end of the archive (first), or write one object.
    ///
    /// # Errors
    /// See [`Archiver::run`]; and the store's, after which the same step may be tried again.
    pub async fn step(&mut self) -> Result<Step> {
        let result = self.try_step().await;
        let mut status = self.handle.lock();
        match &result {
            Ok(_) => {
                status.last_error = None;
                status.state = ArchiverState::Running;
            }
            Err(e) => status.last_error = Some(e.to_string()),
        }
        drop(status);
        result
    }

    async fn try_step(&mut self) -> Result<Step> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => match self.find_end().await? {
                Some(running) => running,
                None => return Ok(Step::CaughtUp),
            },
        };
        let result = self.write_next(&mut running).await;
        self.running = Some(running);
        result
    }

    async fn write_next(&self, running: &mut Running) -> Result<Step> {
        self.check_fences(running).await?;
        if running.pending.is_none() {
            running.pending = self.prepare(running).await?;
        }
        let Some(pending) = &running.pending else {
            self.handle.lock().oldest_unarchived_ts = None;
            return Ok(Step::CaughtUp);
        };
        let header = pending.header;
        self.handle.lock().oldest_unarchived_ts = Some(header.min_ts);
        if !running.fenced.contains(&header.name.epoch) {
            let now = self.repository.env().clock.wall();
            ensure_fence(&running.access, &self.writer, header.name.epoch, header.name.first, pending.prev, now)
                .await?;
            running.fenced.insert(header.name.epoch);
        }
        self.upload(&running.access, pending).await?;
        let written = pending.bytes.len() as u64;
        running.cursor = header.end();
        running.pending = None;
        self.publish(running.cursor);
        let mut status = self.handle.lock();
        status.objects += 1;
        status.bytes += written;
        drop(status);
        Ok(Step::Archived(header))
    }

    fn publish(&self, end: Position) {
        let mut status = self.handle.lock();
        status.archived = end.lsn;
        status.archived_ts = Some(end.ts);
        drop(status);
        self.archived.raise(end.lsn);
    }

    async fn upload(&self, access: &Access, pending: &Pending) -> Result<()> {
        let name = ObjectName::Wal(pending.header.name);
        let Created::Taken(found) = access.create(&name, pending.bytes.clone()).await? else { return Ok(()) };
        // Another node may have archived the same records before; anything else is a second writer.
        let ours = WalObject::decode(&pending.bytes).map_err(|e| Error::damaged(name, e))?;
        let theirs = WalObject::decode(&found).map_err(|e| Error::damaged(name, e))?;
        if ours.same_content(&theirs) {
            Ok(())
        } else {
            Err(Error::Conflict { object: name.to_string(), url: access.url().to_owned() })
        }
    }

    /// A fence of a newer epoch on this timeline means that this writer was deposed.
    async fn check_fences(&self, running: &mut Running) -> Result<()> {
        let now = self.repository.env().clock.monotonic();
        if now < running.next_fence_check {
            return Ok(());
        }
        let (listed, _) = running.access.list(Listing::FencesOf(self.writer.timeline)).await?;
        for l in listed {
            if let ObjectName::Fence(_, epoch) = l.name {
                self.refuse_if_newer(epoch)?;
                running.fenced.insert(epoch);
            }
        }
        running.next_fence_check = now.saturating_add(self.options.fence_check);
        Ok(())
    }

    fn refuse_if_newer(&self, epoch: Epoch) -> Result<()> {
        if epoch > self.writer.epoch {
            return Err(Error::Fenced { timeline: self.writer.timeline, own: self.writer.epoch, newer: epoch });
        }
        Ok(())
    }

    /// Reads the next records and makes an object of them. `None`: nothing committed is left.
    async fn prepare(&self, running: &mut Running) -> Result<Option<Pending>> {
        let committed = if planted(Bug::ArchiveAboveCommit) { Lsn::MAX } else { self.committed.get() };
        if committed <= running.cursor.lsn {
            return Ok(None);
        }
        match self.read_object(running.cursor, committed).await {
            Err(Error::LogGap { timeline, archived, oldest }) => match self.options.accept_gap {
                Some(after) if after.lsn > archived => self.go_on_behind(running, after, committed).await,
                _ => Err(self.at_gap(timeline, archived, oldest)),
            },
            other => other,
        }
    }

    /// The first records behind an accepted gap.
    async fn go_on_behind(&self, running: &mut Running, after: Position, committed: Lsn) -> Result<Option<Pending>> {
        let archived = running.cursor.lsn;
        match self.read_object(after, committed).await {
            // The log has let go of more meanwhile: of that nobody has accepted anything.
            Err(Error::LogGap { timeline, oldest, .. }) => Err(self.at_gap(timeline, archived, oldest)),
            Err(e) => Err(e),
            Ok(pending) => {
                tracing::warn!(%archived, after = %after.lsn, "records that were never archived are gone; archiving goes on behind them");
                self.handle.lock().gap = Some((archived.next(), after.lsn));
                running.cursor = after;
                Ok(pending)
            }
        }
    }

    fn at_gap(&self, timeline: TimelineId, archived: Lsn, oldest: Lsn) -> Error {
        let mut status = self.handle.lock();
        status.gap = Some((archived.next(), oldest.prev()));
        status.state = ArchiverState::AtGap;
        Error::LogGap { timeline, archived, oldest }
    }

    async fn read_object(&self, cursor: Position, committed: Lsn) -> Result<Option<Pending>> {
        let (source, writer, object_bytes) = (Arc::clone(&self.source), self.writer, self.options.object_bytes);
        blocking(move || {
            let chunk = match source.read(cursor.lsn.next(), committed, object_bytes) {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(mainstay_engine::Error::LogGone { oldest, .. }) => {
                    return Err(Error::LogGap { timeline: writer.timeline, archived: cursor.lsn, oldest });
                }
                Err(e) => return Err(e.into()),
            };
            let mut draft = Draft::new(cursor, object_bytes);
            fill(&mut draft, &chunk.bytes, &writer, committed)?;
            if draft.is_empty() {
                return Ok(None);
            }
            let (header, bytes) = draft.finish(&writer).map_err(|e| Error::Task(e.to_string()))?;
            Ok(Some(Pending { header, bytes, prev: cursor }))
        })
        .await
    }

    /// Takes the repository, writes the fence of this reign if it can, and finds where the archive
    /// of this timeline ends. `None`: nothing is committed yet that would tell.
    async fn find_end(&self) -> Result<Option<Running>> {
        self.repository.for_cluster(self.writer.cluster).await?;
        let access = self.repository.access().await?;
        let now = self.repository.env().clock.wall();
        let Some(timeline) = self.write_timeline(&access, now).await? else { return Ok(None) };
        if let Some(prev) = self.options.epoch_start
            && self.committed.get() > prev.lsn
        {
            // Only once committed: an `EpochStart` that is cut must not clip what stays.
            ensure_fence(&access, &self.writer, self.writer.epoch, prev.lsn.next(), prev, now).await?;
        }
        let archive = TimelineArchive::load(&access, self.writer.cluster, self.writer.timeline).await?;
        if let Some(&newest) = archive.fences.keys().next_back() {
            self.refuse_if_newer(newest)?;
        }
        let end = archive_end(&access, &archive).await?;
        let source = Arc::clone(&self.source);
        let start = blocking(move || Ok(source.start()?)).await?;
        let cursor = match (end, timeline.fork_chain) {
            (Some(end), _) => {
                self.publish(end);
                end
            }
            // The log holds records of the parent, too: begin behind them. Epoch and time of the fork
            // only bound what follows; the chain proves it.
            (None, Some(chain)) if start.lsn < timeline.fork_lsn => {
                Position { lsn: timeline.fork_lsn, chain, ..Position::default() }
            }
            (None, _) => start,
        };
        let fenced = archive.fences.keys().copied().collect();
        Ok(Some(Running { access, cursor, fenced, next_fence_check: Duration::ZERO, pending: None }))
    }

    async fn write_timeline(&self, access: &Access, now: CommitTs) -> Result<Option<TimelineDoc>> {
        let name = ObjectName::Timeline(self.writer.timeline);
        match read_document::<TimelineDoc>(access, &name).await {
            Ok(doc) if (doc.cluster, doc.timeline) == (self.writer.cluster, self.writer.timeline) => {
                return Ok(Some(doc));
            }
            Ok(_) => return Err(Error::damaged(name, "it names another cluster or timeline")),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let (source, writer, committed) = (Arc::clone(&self.source), self.writer, self.committed.get());
        let origin = match self.options.origin {
            Some(origin) => Some(origin),
            None => blocking(move || origin_from_log(&*source, &writer, committed)).await?,
        };
        let Some(origin) = origin else { return Ok(None) };
        ensure_timeline(access, &self.writer, &origin, now).await.map(Some)
    }
}

/// Where the archive of a timeline ends, for who does not archive itself; `None` when there is nothing of it. Lists the
/// timeline's objects.
///
/// # Errors
/// The store's, or damage.
pub async fn archived_upto(repository: &Repository, cluster: ClusterId, timeline: TimelineId) -> Result<Option<Lsn>> {
    let access = repository.access().await?;
    let archive = TimelineArchive::load(&access, cluster, timeline).await?;
    Ok(archive_end(&access, &archive).await?.map(|end| end.lsn))
}

/// Ends when the caller asks for the end, or is gone.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Adds the records of a chunk that belong into one object, each checked: at or below the commit
/// LSN, of no newer epoch, of this timeline, and continuing the one before.
fn fill(draft: &mut Draft, bytes: &[u8], writer: &Writer, committed: Lsn) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let record = Record::decode(rest).map_err(mainstay_engine::Error::from)?;
        mainstay_engine::ingest::refuse(&record)?;
        let lsn = record.header.lsn;
        if lsn > committed {
            return Err(Error::AboveCommit { lsn, committed });
        }
        if record.header.epoch > writer.epoch {
            return Err(Error::Fenced { timeline: writer.timeline, own: writer.epoch, newer: record.header.epoch });
        }
        let after = draft.end().lsn;
        let diverged = |what: String| Error::Diverged { timeline: writer.timeline, after, what };
        if record.header.kind == Kind::TimelineStart {
            let start = TimelineStart::decode(record.body).map_err(mainstay_engine::Error::from)?;
            if (start.cluster, start.timeline) != (writer.cluster, writer.timeline) {
                return Err(diverged(format!(
                    "timeline {} of cluster {} starts at LSN {lsn}",
                    start.timeline, start.cluster
                )));
            }
        } else if draft.is_empty() && lsn > draft.end().lsn.next() {
            return Err(Error::LogGap { timeline: writer.timeline, archived: draft.end().lsn, oldest: lsn });
        }
        match draft.push(&record) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(e) => return Err(diverged(e.to_string())),
        }
        rest = rest.get(record.bytes.len()..).unwrap_or_default();
    }
    Ok(())
}

/// What the log says about the timeline: the record that starts it, wherever it is, or that it is
/// gone. `None` while nothing is committed: the document is create-only, so it must not be written
/// on a guess. Reads the whole log when the record is not at its beginning; once per timeline.
fn origin_from_log(source: &dyn RecordSource, writer: &Writer, committed: Lsn) -> Result<Option<Origin>> {
    let begin = source.start()?;
    let mut prev = begin;
    while let Some(chunk) = source.read(prev.lsn.next(), committed, SCAN_BYTES)? {
        for record in chunk.records() {
            let record = record?;
            if record.header.kind == Kind::TimelineStart {
                let start = TimelineStart::decode(record.body).map_err(mainstay_engine::Error::from)?;
                if start.timeline == writer.timeline {
                    return Ok(Some(Origin {
                        parent: start.parent,
                        fork_lsn: start.fork,
                        fork_chain: (start.fork == prev.lsn).then_some(prev.chain),
                        start_lsn: record.header.lsn,
                        cause: if start.parent == TimelineId(0) { Cause::Created } else { Cause::Forked },
                    }));
                }
            }
            prev = record.position();
        }
    }
    let cause = if begin.lsn == Lsn::ZERO { Cause::Created } else { Cause::Attached };
    let attached =
        Origin { parent: TimelineId(0), fork_lsn: Lsn::ZERO, fork_chain: None, start_lsn: begin.lsn.next(), cause };
    Ok((prev != begin).then_some(attached))
}

/// The position where the usable archive of a timeline ends.
async fn archive_end(access: &Access, archive: &TimelineArchive) -> Result<Option<Position>> {
    let Some(last) = archive.last() else { return Ok(None) };
    if last.to < last.name.last {
        // Clipped: the fence that clips it knows the position before its own start.
        let fence = archive.fences.values().find(|f| f.epoch > last.name.epoch && f.start_lsn == last.to.next());
        if let Some(fence) = fence {
            return Ok(Some(fence.prev.into()));
        }
    }
    let name = ObjectName::Wal(last.name);
    let head = access.get_range(&name, 0..HEADER_BYTES as u64).await?;
    let header = WalHeader::decode(&head).map_err(|e| Error::damaged(name, e))?;
    if header.name != last.name {
        return Err(Error::damaged(name, "its header names another range"));
    }
    Ok(Some(header.end()))
}
