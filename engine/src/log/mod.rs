//! The write-ahead log: dense, hash-chained records on one disk, and the proof of what is durable
//! there \[I3, I4\].
//!
//! Owns: everything under `<data>/log/` and `<data>/diverged/`, the watermarks `appended` and
//! `durable`, retention slots. Never: what a batch means, what is committed (the caller says so),
//! retrying a failed write or sync.
//!
//! Files: `frame` and `segment` (formats), `tail` (newest records in memory), `gate` (who leads a
//! group commit), `signal` (how its threads wait), `writer` (append, write, sync), `sink` (how bytes get
//! into files), `ahead` (the window that it takes next), `reader`, `recovery` (with `files`), `truncate`, `slots`.
//!
//! Locks, in the order in which they may be taken: `releasing`, leadership of the gate, `head`, `prepare`,
//! `segments`, the table of slots or `tail`. None but the leadership is held across a commit's I/O; `head` is held while
//! a segment is made only if the one made ahead is not ready.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::env::Env;
use crate::error::{Error, Result};
use crate::exec::Wake;
use crate::limits::Options;
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::open_files::FileWait;
use crate::record::{Kind, Record, TimelineStart};
use crate::space::Space;
use crate::watermark::Watermark;

mod ahead;
#[cfg(feature = "sim")]
mod decoders;
mod files;
mod frame;
mod gate;
pub(crate) mod inspect;
mod reader;
mod recovery;
mod scrub;
mod segment;
mod signal;
mod sink;
mod slots;
mod stats;
mod tail;
mod truncate;
mod writer;

#[cfg(test)]
mod tests;

pub use crate::exec::Progress;
#[cfg(feature = "sim")]
pub(crate) use decoders::decoders;
pub use reader::{Chunk, Reader};
pub use recovery::{Recovered, TornTail};
pub(crate) use scrub::SegmentScrub;
pub use slots::{Slot, SlotInfo};
pub use stats::{LogStats, SyncLatency};
pub use truncate::CutTail;

use gate::Gate;
use segment::Segment;
use slots::Slots;
use tail::Tail;
use writer::{Head, Prepare};

/// The log of one node. All calls may be made from several threads.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    env: Env,
    dir: PathBuf,
    log_dir: PathBuf,
    segment_bytes: u64,
    retained_bytes: u64,
    /// Most released segments kept to be used again.
    spares_max: usize,
    /// See [`Log::is_long_behind`].
    long_bytes: u64,
    head: Mutex<Head>,
    prepare: Mutex<Prepare>,
    /// Oldest first; never empty. The last one takes the appends.
    segments: Mutex<VecDeque<Arc<Segment>>>,
    tail: Mutex<Tail>,
    gate: Gate,
    slots: Slots,
    releasing: Mutex<()>,
    appended: Watermark,
    durable: Watermark,
    /// Highest LSN whose frame is in its file, synced or not.
    written: AtomicU64,
    /// Bytes of frames in memory only.
    pending_bytes: AtomicUsize,
    /// Cuts made since the log was opened.
    cuts: AtomicU64,
    /// Held by whoever leads.
    sink: Mutex<sink::Sink>,
    ahead: Arc<ahead::Ahead>,
    counters: stats::Counters,
    /// Woken when the segment made ahead has been taken.
    taken: OnceLock<Wake>,
    space: OnceLock<Arc<Space>>,
    /// Of the next segment's file.
    segment_file: FileWait,
    stopped: OnceLock<String>,
}

/// Locks; a panic under one of these locks leaves nothing half-done that a later caller could see
/// as whole, and the process is about to end anyway.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Opens the log under `dir`, recovers it, and makes the result durable.
    ///
    /// `base` is where the store's tables end: the log must reach back to it and agree with it in
    /// every field, and an empty directory gets its first segment there. `known_durable` is the
    /// highest LSN that the caller can prove was durable here (`Lsn::ZERO` if none).
    ///
    /// # Errors
    /// `Corruption` when anything durable is damaged or missing, `Directory` when segments are
    /// missing or belong to another history, `Format`, `DiskFull`, `Io`; nothing is changed then
    /// that matters to a later attempt.
    pub fn open(
        env: &Env,
        dir: &Path,
        options: &Options,
        known_durable: Lsn,
        base: Position,
    ) -> Result<(Self, Recovered)> {
        recovery::open(env, dir, options, known_durable, base)
    }

    /// New segments are made only where `space` has room for them. Set once, at open.
    pub(crate) fn set_space(&self, space: Arc<Space>) {
        let _ = self.shared.space.set(space);
    }

    /// Appends a record as the next LSN, with commit timestamp `max(last + 1, wall)`. It is
    /// readable at once and durable after [`Log::sync_to`], or when [`Log::durable`] gets there.
    ///
    /// # Errors
    /// `Limit` for a body that fits no record or segment, `Malformed` for a timeline start (see
    /// [`Log::append_timeline`]), `Record` for an epoch older than the log's, `DiskFull` or `TooManyFiles`
    /// when a segment is needed and cannot be made; nothing was appended then. `Stopped`.
    pub fn append(
        &self,
        kind: Kind,
        epoch: Epoch,
        wall: CommitTs,
        session: u64,
        sequence: u64,
        body: &[u8],
    ) -> Result<Position> {
        self.append_with(kind, epoch, wall, session, sequence, |out| out.extend_from_slice(body))
    }

    /// [`Log::append`] with a body written in place. `fill_body` must only add to its argument; it
    /// runs under the log's lock.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn append_with(
        &self,
        kind: Kind,
        epoch: Epoch,
        wall: CommitTs,
        session: u64,
        sequence: u64,
        fill_body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Position> {
        self.shared.append(kind, epoch, wall, (session, sequence), fill_body)
    }

    /// Whether a record with a body of so many bytes can be appended.
    ///
    /// # Errors
    /// `Limit`.
    pub(crate) fn check_body(&self, body_len: usize) -> Result<()> {
        self.shared.check_len(crate::record::HEADER_BYTES + body_len)
    }

    /// Appends the first record of a timeline, at `new_lsn`.
    ///
    /// # Errors
    /// `Record` when `start.fork` is not the end of this log or `new_lsn` is not above it;
    /// otherwise as [`Log::append`].
    pub fn append_timeline(
        &self,
        epoch: Epoch,
        wall: CommitTs,
        start: &TimelineStart,
        new_lsn: Lsn,
    ) -> Result<Position> {
        self.shared.append_timeline(epoch, wall, start, new_lsn)
    }

    /// Appends a record made elsewhere, unchanged.
    ///
    /// # Errors
    /// `Record` when it does not follow the end of this log; otherwise as [`Log::append`].
    pub fn append_record(&self, record: &Record<'_>) -> Result<Position> {
        self.shared.append_record(record)
    }

    /// The log writer's piece of work: writes what was appended and syncs it once. Waits for a
    /// commit that another thread leads. `Idle` when there is nothing to write.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn step(&self) -> Result<Progress> {
        self.shared.step()
    }

    /// Whether the next segment waits because too many files are open.
    pub(crate) fn segment_file(&self) -> &FileWait {
        &self.shared.segment_file
    }

    /// Makes the next window on the present segment if one is wanted. Otherwise works on the segment after the present
    /// one, one piece (at most 1 MiB) a call: a released one is used again, otherwise a new file is filled with zeros.
    /// `Idle` when all is ready.
    ///
    /// # Errors
    /// `DiskFull`, `TooManyFiles`: the log stays usable, try again later. `Io` when the file cannot be created.
    /// `Stopped`.
    pub fn prepare_step(&self) -> Result<Progress> {
        self.shared.prepare_step()
    }

    /// From now on `wake` rouses who calls [`Log::prepare_step`] when a segment or window made ahead has been
    /// taken. The first call counts.
    pub(crate) fn rouse_preparer(&self, wake: &Wake) {
        let _ = self.shared.taken.set(wake.clone());
        self.shared.ahead.rouse(wake);
    }

    /// Returns when everything up to `lsn` is durable; the calling thread does the work, alone or
    /// for a group. `lsn` must have been appended.
    ///
    /// # Errors
    /// `Stopped`. `Record` when `lsn` is above the end of the log.
    pub fn sync_to(&self, lsn: Lsn) -> Result<()> {
        self.shared.sync_to(lsn, |_| ())
    }

    /// [`Log::sync_to`]; if this thread does the work for a group, it calls `synced` with the durable LSN before
    /// the others of the group go on. `synced` must not append, sync, or wait for a thread that does.
    ///
    /// # Errors
    /// As [`Log::sync_to`].
    pub(crate) fn sync_to_and(&self, lsn: Lsn, synced: impl FnOnce(Lsn)) -> Result<()> {
        self.shared.sync_to(lsn, synced)
    }

    /// Returns when everything up to `lsn` was handed to the operating system: it then survives the end of
    /// this process, not of the machine. `lsn` must have been appended.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn write_to(&self, lsn: Lsn) -> Result<()> {
        self.shared.write_to(lsn)
    }

    /// Bytes appended and not yet handed to the operating system.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.shared.buffered_bytes()
    }

    /// Appends a mark if the log does not say yet what is durable; with `sync`, makes it durable.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn mark(&self, sync: bool) -> Result<()> {
        self.shared.mark(sync)
    }

    /// Syncs everything, then writes and syncs a mark, so that later damage to the very last
    /// record is not taken for a torn tail.
    ///
    /// # Errors
    /// As [`Log::append`].
    pub fn close(&self) -> Result<()> {
        self.shared.sync_to(self.last().lsn, |_| ())?;
        self.shared.mark(true)
    }

    /// Cuts made since the log was opened. While this stays the same, so does what was appended.
    pub(crate) fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Whether the log still works.
    ///
    /// # Errors
    /// `Stopped`.
    pub(crate) fn check_stopped(&self) -> Result<()> {
        self.shared.check_stopped()
    }

    /// Highest LSN appended.
    #[must_use]
    pub fn appended(&self) -> &Watermark {
        &self.shared.appended
    }

    /// Highest LSN that is synced on this disk.
    #[must_use]
    pub fn durable(&self) -> &Watermark {
        &self.shared.durable
    }

    /// Where the log ends.
    #[must_use]
    pub fn last(&self) -> Position {
        lock(&self.shared.head).last
    }

    /// The position before the lowest LSN that can still be read.
    #[must_use]
    pub fn start(&self) -> Position {
        lock(&self.shared.segments).front().map(|s| s.base).unwrap_or_default()
    }

    /// The lowest LSN that can still be read.
    #[must_use]
    pub fn oldest(&self) -> Lsn {
        self.shared.oldest()
    }

    /// The position of record `lsn`, or of the one before [`Log::oldest`]; none above the end and
    /// inside a timeline's jump.
    ///
    /// # Errors
    /// `LogGone` below that; `Corruption`, `Io`, `Stopped`.
    pub fn position_at(&self, lsn: Lsn) -> Result<Option<Position>> {
        self.shared.position_at(lsn)
    }

    /// A reader whose first record is `from` (or, inside a timeline's jump, the next one).
    ///
    /// # Errors
    /// `LogGone` when `from` was released.
    pub fn reader(&self, from: Lsn) -> Result<Reader> {
        Reader::new(&self.shared, from)
    }

    /// Cuts every record above `lsn`, after saving them under `<data>/diverged/`. None when there
    /// are none. A crash leaves the old log or the cut one.
    ///
    /// # Errors
    /// `BelowCommit` when `lsn` is below `committed` \[I8\], `LogGone` when it is below the oldest
    /// record, `DiskFull` or `TooManyFiles` when the tail cannot be saved: nothing was changed. `Corruption`, `Stopped`.
    pub fn truncate_above(&self, lsn: Lsn, committed: Lsn) -> Result<Option<CutTail>> {
        self.shared.truncate_above(lsn, committed)
    }

    /// Keeps every record above `at` until the slot advances, is dropped, or lags by more than
    /// `retained_log_bytes`. Names are for status; they need not differ.
    #[must_use]
    pub fn slot(&self, name: &str, at: Lsn) -> Slot {
        self.shared.slots.add(name, at)
    }

    /// All slots.
    #[must_use]
    pub fn slots(&self) -> Vec<SlotInfo> {
        self.shared.slots.list()
    }

    /// By how many bytes a slot at `at` lags: of segments wholly above it, the part of the segment it is in left out.
    #[must_use]
    pub fn lag_bytes(&self, at: Lsn) -> u64 {
        self.shared.bytes_between(at, Lsn::MAX)
    }

    /// By how many bytes a slot may lag: `retained_log_bytes`.
    #[must_use]
    pub fn lag_bytes_max(&self) -> u64 {
        self.shared.retained_bytes
    }

    /// Lets segments go whose records are all at or below `flushed` and that no slot needs: a few become the
    /// next ones, the others are deleted. Returns how many.
    ///
    /// # Errors
    /// `Stopped` after a failed directory sync; `Io` when a file cannot be renamed or removed.
    pub fn release(&self, flushed: Lsn) -> Result<usize> {
        self.shared.release(flushed)
    }

    /// Deletes the released segments that were kept to be used again: their room is needed. Returns how many.
    ///
    /// # Errors
    /// `Io` when a file cannot be removed; `Stopped`.
    pub fn remove_spares(&self) -> Result<usize> {
        self.shared.remove_spares()
    }

    /// Bytes of the segments that [`Log::remove_spares`] would delete.
    pub(crate) fn spare_bytes(&self) -> u64 {
        lock(&self.shared.prepare).spares.len() as u64 * self.shared.segment_bytes
    }

    /// Whether so much log lies between the end of the tables at `flushed` and what they could take in at `applied`
    /// that a flush is due whatever the memtables hold: records without entries fill none of them.
    #[must_use]
    pub fn is_long_behind(&self, flushed: Lsn, applied: Lsn) -> bool {
        self.shared.bytes_between(flushed, applied) > self.shared.long_bytes
    }

    /// Whether [`Log::release`] could remove anything once all up to `flushed` is in tables, slots aside.
    pub(crate) fn would_release(&self, flushed: Lsn) -> bool {
        self.shared.would_release(flushed)
    }

    /// Counts since the log was opened.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        self.shared.counters.stats(lock(&self.shared.tail).bytes())
    }

    /// Bytes of log on disk and their number of segments; the one made ahead and those kept to be used again are not
    /// counted.
    #[must_use]
    pub fn disk_usage(&self) -> (u64, usize) {
        let segments = lock(&self.shared.segments);
        (segments.iter().map(|s| s.bytes).sum(), segments.len())
    }
}

impl Shared {
    fn check_stopped(&self) -> Result<()> {
        self.stopped.get().map_or(Ok(()), |why| Err(Error::Stopped(why.clone())))
    }

    /// Ends the log: data may have been lost under it \[I3\]. Every later call fails.
    fn fatal(&self, error: &Error) -> Error {
        self.stop(error.to_string())
    }

    /// [`Shared::fatal`] with the reason in words.
    fn stop(&self, why: String) -> Error {
        if self.stopped.set(why.clone()).is_ok() {
            (self.env.fatal)(&why);
            self.appended.close();
            self.durable.close();
            self.gate.wake_all();
        }
        Error::Stopped(self.stopped.get().cloned().unwrap_or(why))
    }

    fn fatal_io(&self, action: &'static str, path: &Path, source: std::io::Error) -> Error {
        self.fatal(&Error::Io { action, path: path.to_owned(), source })
    }

    fn written(&self) -> Lsn {
        Lsn(self.written.load(Ordering::Acquire))
    }

    fn oldest(&self) -> Lsn {
        lock(&self.segments).front().map_or(Lsn::MAX, |s| s.base.lsn.next())
    }

    /// The segment that holds the first record at or above `lsn`, if one can.
    fn segment_for(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        let segments = lock(&self.segments);
        let after = segments.partition_point(|s| s.base.lsn < lsn);
        after.checked_sub(1).and_then(|i| segments.get(i)).cloned()
    }
}
