//! Append, and the group commit: encode under the head's lock, write and sync without it.
//!
//! Owns: the end of the log, frames not yet written, segments made ahead, the order of writes and
//! syncs on which recovery relies. Never: reading, deciding what is committed.
//!
//! Order: everything in segment n is synced before the header of n+1 is written, and that header is
//! synced before the first frame behind it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::gate::{Gather, Lead};
use super::segment::{self, Blank, FRAMES_AT, Segment};
use super::sink::Piece;
use super::{Progress, Shared, frame, lock};
use crate::batch::LimitError;
use crate::codec::Malformed;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::limits::{BATCH_BYTES_MAX, COMMIT_TS_MAX};
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::record::{self, Header, Kind, Record, RecordError, TimelineStart};

/// Frames in memory at which an appender writes before it appends, in bytes.
const PENDING_BYTES_MAX: usize = 32 << 20;
/// A written buffer larger than this is freed instead of used again, in bytes.
const SPARE_BYTES_MAX: usize = 4 << 20;
/// Kept free at the end of each segment, so that one mark always finds room.
const MARK_BYTES: u64 = frame::HEADER_BYTES as u64;

/// Zeros behind the last frame of a group: where the log ends in a segment that was used before.
const END_BYTES: usize = frame::HEADER_BYTES;

/// Frames for one stretch of one segment, to be written in one piece.
#[derive(Debug)]
pub(super) struct Part {
    segment: Arc<Segment>,
    offset: u64,
    bytes: Vec<u8>,
    /// The segment's header is to be written first.
    opens: bool,
    /// Highest LSN in here or before.
    last: Lsn,
}

impl Part {
    /// Adds the zeros that end the log, as far as there is room for them.
    ///
    /// Returns the bytes that there were before.
    fn end(&mut self) -> usize {
        let len = self.bytes.len();
        let room = self.segment.bytes.saturating_sub(self.offset + self.bytes.len() as u64);
        let zeros = usize::try_from(room).unwrap_or(END_BYTES).min(END_BYTES);
        self.bytes.resize(len + zeros, 0);
        len
    }
}

/// The end of the log.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) last: Position,
    /// Highest durable LSN that a frame says, written or not.
    pub(super) evidence: Lsn,
    pub(super) segment: Arc<Segment>,
    /// Where the next frame goes.
    pub(super) offset: u64,
    pub(super) pending: VecDeque<Part>,
    spare: Vec<u8>,
}

impl Head {
    pub(super) fn new(last: Position, evidence: Lsn, segment: Arc<Segment>, offset: u64) -> Self {
        Self { last, evidence, segment, offset, pending: VecDeque::new(), spare: Vec::new() }
    }

    /// The part that takes the next frame, and its bytes so far.
    fn part(&mut self) -> &mut Part {
        if self.pending.back().is_none_or(|p| p.segment.seq != self.segment.seq) {
            let bytes = std::mem::take(&mut self.spare);
            self.push_part(bytes, false);
        }
        let last = self.pending.len() - 1;
        &mut self.pending[last]
    }

    fn push_part(&mut self, bytes: Vec<u8>, opens: bool) {
        let segment = Arc::clone(&self.segment);
        self.pending.push_back(Part { segment, offset: self.offset, bytes, opens, last: self.last.lsn });
    }

    /// Memory of what is not being written, in bytes.
    fn memory(&self) -> usize {
        memory(&self.pending) + self.spare.capacity()
    }

    fn drop_empty_part(&mut self) {
        if self.pending.back().is_some_and(|p| p.bytes.is_empty() && !p.opens)
            && let Some(part) = self.pending.pop_back()
        {
            self.spare = part.bytes;
        }
    }
}

/// Memory of parts, in bytes.
fn memory(parts: &VecDeque<Part>) -> usize {
    parts.iter().map(|p| p.bytes.capacity()).sum()
}

/// The segment after the present one.
#[derive(Debug)]
pub(super) struct Prepare {
    pub(super) next_seq: u64,
    pub(super) blank: Option<Blank>,
    pub(super) ready: bool,
    /// Released segments that wait to be used again, the one to take next first.
    pub(super) spares: VecDeque<PathBuf>,
}

impl Prepare {
    pub(super) const fn new(next_seq: u64, spares: VecDeque<PathBuf>) -> Self {
        Self { next_seq, blank: None, ready: false, spares }
    }
}

/// The leadership while work is done under it. Dropped, it ends; by a panic, the log stops first, for nobody knows what
/// was written, and the others would wait for ever.
pub(super) struct Leading<'a> {
    log: &'a Shared,
    lead: Lead,
    /// The work is part of an orderly end after a panic elsewhere.
    panicked_before: bool,
}

impl<'a> Leading<'a> {
    pub(super) fn new(log: &'a Shared, lead: Lead) -> Self {
        Self { log, lead, panicked_before: std::thread::panicking() }
    }
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        let Self { log, lead, panicked_before } = self;
        if std::thread::panicking() && !*panicked_before {
            log.stop("a thread panicked while it wrote the log for all".to_owned());
        }
        log.gate.end(lead, &*log.env.clock);
    }
}

impl Shared {
    pub(super) fn append(
        &self,
        kind: Kind,
        epoch: Epoch,
        wall: CommitTs,
        (session, sequence): (u64, u64),
        fill_body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Position> {
        if kind == Kind::TimelineStart {
            return Err(Malformed("a timeline start is not appended like a batch").into());
        }
        self.append_frame(|out, last| {
            let lsn = last.lsn.next();
            let header = Header { kind, epoch, lsn, ts: next_ts(last, wall), session, sequence };
            encode(out, last, &header, fill_body)
        })
    }

    pub(super) fn append_timeline(
        &self,
        epoch: Epoch,
        wall: CommitTs,
        start: &TimelineStart,
        new_lsn: Lsn,
    ) -> Result<Position> {
        let kind = Kind::TimelineStart;
        self.append_frame(|out, last| {
            if start.fork != last.lsn || new_lsn <= last.lsn {
                return Err(RecordError::Discontinuous { epoch, lsn: new_lsn, after: last.lsn }.into());
            }
            let ts = next_ts(last, wall);
            let header = Header { kind, epoch, lsn: new_lsn, ts, session: 0, sequence: 0 };
            encode(out, last, &header, |body| body.extend_from_slice(&start.encode()))
        })
    }

    pub(super) fn append_record(&self, record: &Record<'_>) -> Result<Position> {
        self.append_frame(|out, last| {
            record.follows(last)?;
            out.extend_from_slice(record.bytes);
            Ok(record.position())
        })
    }

    /// Appends what `fill` adds to the buffer, given the end of the log; an error leaves no trace.
    fn append_frame(&self, fill: impl FnOnce(&mut Vec<u8>, &Position) -> Result<Position>) -> Result<Position> {
        self.check_stopped()?;
        if self.pending_bytes.load(Ordering::Relaxed) > PENDING_BYTES_MAX {
            self.step()?;
        }
        let mut guard = lock(&self.head);
        let head = &mut *guard;
        self.check_stopped()?;
        let last = head.last;
        let part = head.part();
        let start = part.bytes.len();
        part.bytes.resize(start + frame::HEADER_BYTES, 0);
        let filled = fill(&mut part.bytes, &last);
        let record_len = part.bytes.len() - start - frame::HEADER_BYTES;
        let placed = filled.and_then(|p| self.place(head, start, record_len).map(|()| p));
        let position = match placed {
            Ok(position) => position,
            Err(e) => {
                // `place` fails before it moves anything.
                head.part().bytes.truncate(start);
                head.drop_empty_part();
                return Err(e);
            }
        };
        let offset = head.offset;
        self.seal(head, record_len);
        head.last = position;
        head.segment.note(position.lsn, offset);
        let part = head.part();
        part.last = position.lsn;
        let end = part.bytes.len() - (frame::frame_len(record_len) - frame::HEADER_BYTES - record_len);
        lock(&self.tail).push(position.lsn, &part.bytes[end - record_len..end], self.written());
        self.appended.raise(position.lsn);
        Ok(position)
    }

    /// Makes sure that the unsealed frame at `start` of the last part is in a segment with room for
    /// it, moving it to the next one if need be.
    fn place(&self, head: &mut Head, start: usize, record_len: usize) -> Result<()> {
        self.check_len(record_len)?;
        let frame_len = frame::frame_len(record_len) as u64;
        if head.offset + frame_len + MARK_BYTES <= head.segment.bytes {
            return Ok(());
        }
        let next = self.next_segment(head)?;
        let moved = head.part().bytes.split_off(start);
        head.drop_empty_part();
        self.open_segment(head, next, moved);
        Ok(())
    }

    /// Refuses a record that fits no segment.
    pub(super) fn check_len(&self, record_len: usize) -> Result<()> {
        let frame_len = frame::frame_len(record_len) as u64;
        if record_len > record::RECORD_BYTES_MAX || FRAMES_AT + frame_len + MARK_BYTES > self.segment_bytes {
            return Err(LimitError::Bytes(record_len.saturating_sub(record::HEADER_BYTES)).into());
        }
        Ok(())
    }

    fn open_segment(&self, head: &mut Head, next: Arc<Segment>, bytes: Vec<u8>) {
        head.segment = Arc::clone(&next);
        head.offset = FRAMES_AT;
        // The header will not be written before all up to its base is synced.
        head.evidence = head.last.lsn;
        head.push_part(bytes, true);
        lock(&self.segments).push_back(next);
    }

    /// Finishes the frame whose record of `record_len` bytes (0: a mark) ends the last part.
    fn seal(&self, head: &mut Head, record_len: usize) {
        let durable = self.durable.get();
        let salt = head.segment.salt;
        let part = head.part();
        let start = part.bytes.len() - record_len - frame::HEADER_BYTES;
        frame::seal(&mut part.bytes, start, salt, durable);
        let len = part.bytes.len() - start;
        head.offset += len as u64;
        head.evidence = head.evidence.max(durable);
        self.counters.buffers.head.store(head.memory(), Ordering::Relaxed);
        self.pending_bytes.fetch_add(len, Ordering::Relaxed);
    }

    pub(super) fn mark(&self, sync: bool) -> Result<()> {
        self.check_stopped()?;
        {
            let mut guard = lock(&self.head);
            let head = &mut *guard;
            if head.evidence < self.durable.get() {
                if head.offset + MARK_BYTES > head.segment.bytes {
                    // The next segment's header is evidence as good as a mark.
                    let next = self.next_segment(head)?;
                    self.open_segment(head, next, Vec::new());
                }
                let part = head.part();
                let start = part.bytes.len();
                part.bytes.resize(start + frame::HEADER_BYTES, 0);
                self.seal(head, 0);
            }
        }
        if sync { self.step().map(|_| ()) } else { Ok(()) }
    }

    pub(super) fn step(&self) -> Result<Progress> {
        self.check_stopped()?;
        if lock(&self.head).pending.is_empty() && self.durable.get() >= self.appended.get() {
            return Ok(Progress::Idle);
        }
        let leading = Leading::new(self, self.gate.acquire(&*self.env.clock));
        let done = self.write_group(true);
        drop(leading);
        done.map(|()| Progress::Worked)
    }

    /// Returns when everything up to `lsn` was handed to the operating system.
    pub(super) fn write_to(&self, lsn: Lsn) -> Result<()> {
        self.check_stopped()?;
        if self.written() >= lsn {
            return Ok(());
        }
        let done = || self.written() >= lsn || self.appended.get() < lsn || self.stopped.get().is_some();
        // Nothing to gather for: a write costs what two wake-ups cost.
        if let Some(lead) = self.gate.queue(&*self.env.clock, Gather::No, done) {
            let leading = Leading::new(self, lead);
            let written = self.write_group(false);
            drop(leading);
            written?;
        }
        self.check_stopped()
    }

    /// Bytes appended and not yet handed to the operating system.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Relaxed)
    }

    /// `synced` is called by the thread that synced for its group, before the others of the group wake: what it
    /// does for all of them they need not queue up to do each. It must not wait for the log.
    pub(super) fn sync_to(&self, lsn: Lsn, synced: impl FnOnce(Lsn)) -> Result<()> {
        self.check_stopped()?;
        if self.durable.get() >= lsn {
            return Ok(());
        }
        let last = lock(&self.head).last;
        if last.lsn < lsn {
            return Err(RecordError::Discontinuous { epoch: last.epoch, lsn, after: last.lsn }.into());
        }
        // A cut below `lsn` ends the wait too: the record is gone.
        let done = || self.durable.get() >= lsn || self.appended.get() < lsn || self.stopped.get().is_some();
        if let Some(lead) = self.gate.queue(&*self.env.clock, Gather::Yes, done) {
            let leading = Leading::new(self, lead);
            let written = self.write_group(true);
            if written.is_ok() {
                synced(self.durable.get());
            }
            drop(leading);
            written?;
        }
        self.check_stopped()?;
        if self.durable.get() >= lsn {
            Ok(())
        } else {
            let last = lock(&self.head).last;
            Err(RecordError::Discontinuous { epoch: last.epoch, lsn, after: last.lsn }.into())
        }
    }

    /// Writes, and with `sync` syncs, everything appended so far. The caller leads.
    pub(super) fn write_group(&self, sync: bool) -> Result<()> {
        self.check_stopped()?;
        let buffers = &self.counters.buffers;
        let (mut parts, group, last) = {
            let mut head = lock(&self.head);
            self.pending_bytes.store(0, Ordering::Relaxed);
            let parts = std::mem::take(&mut head.pending);
            buffers.head.store(head.memory(), Ordering::Relaxed);
            let group = buffers.group(memory(&parts));
            (parts, group, head.last.lsn)
        };
        if planted(Bug::AckBeforeSync) && sync {
            self.durable.raise(last);
        }
        // What earlier groups wrote and did not sync counts as this one's.
        let mut sink = lock(&self.sink);
        let start = if sync { self.env.clock.monotonic() } else { Duration::ZERO };
        let (mut synced, count) = (false, parts.len());
        for (n, part) in parts.iter_mut().enumerate() {
            let had = part.bytes.capacity();
            let len = part.end();
            group.grows(part.bytes.capacity() - had);
            let segment = &part.segment;
            if part.opens {
                if let Some(before) = sink.take_unsynced() {
                    before.file.sync_data().map_err(|e| self.fatal_io("sync", &before.path, e))?;
                }
                segment.write_header().map_err(|e| self.fatal_io("write the header of", &segment.path, e))?;
            }
            let piece = Piece { segment, bytes: &part.bytes, len, offset: part.offset };
            let write = sink.write(&self.env, &piece, sync && n + 1 == count);
            buffers.blocks.store(sink.memory(), Ordering::Relaxed);
            synced = write.map_err(|e| self.fatal_io("write", &segment.path, e))?;
            self.counters.wrote(part.bytes.len());
            self.written.store(part.last.0, Ordering::Release);
        }
        if sync {
            if let Some(segment) = sink.take_unsynced() {
                segment.file.sync_data().map_err(|e| self.fatal_io("sync", &segment.path, e))?;
                synced = true;
            }
            if synced {
                let took = self.env.clock.monotonic().saturating_sub(start);
                self.counters.synced(last.0.saturating_sub(self.durable.get().0), took);
            }
            self.durable.raise(last);
        }
        drop(sink);
        if let Some(part) = parts.pop_back()
            && part.bytes.capacity() <= SPARE_BYTES_MAX
        {
            let mut bytes = part.bytes;
            bytes.clear();
            let mut head = lock(&self.head);
            head.spare = bytes;
            buffers.head.store(head.memory(), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The segment after the present one, made now if need be.
    fn next_segment(&self, head: &Head) -> Result<Arc<Segment>> {
        let mut prepare = lock(&self.prepare);
        while !prepare.ready {
            self.prepare_piece(&mut prepare)?;
        }
        prepare.ready = false;
        let blank = prepare.blank.take().ok_or(Malformed("a segment is ready and is not there"))?;
        prepare.next_seq = blank.seq + 1;
        if let Some(wake) = self.taken.get() {
            wake.wake();
        }
        Ok(Arc::new(blank.into_segment(segment::next_salt(head.segment.salt), head.last)))
    }

    pub(super) fn prepare_step(&self) -> Result<Progress> {
        self.check_stopped()?;
        if self.ahead.make() {
            return Ok(Progress::Worked);
        }
        let mut prepare = lock(&self.prepare);
        if prepare.ready {
            return Ok(Progress::Idle);
        }
        self.prepare_piece(&mut prepare)?;
        Ok(Progress::Worked)
    }

    fn prepare_piece(&self, prepare: &mut Prepare) -> Result<()> {
        let mut blank = match prepare.blank.take() {
            Some(blank) => blank,
            None => {
                let created = self.create_blank(prepare);
                self.segment_file.note(&created);
                created?
            }
        };
        let filled = blank.fill(&self.env, &self.log_dir);
        if let Some(space) = self.space.get() {
            match &filled {
                Ok(_) => space.segment_left(blank.left()),
                Err(_) => space.segment_failed(self.segment_bytes),
            }
        }
        match filled {
            Ok(ready) => {
                prepare.ready = ready;
                prepare.blank = Some(blank);
                Ok(())
            }
            // Nothing of any record that is needed was in there: give the room back, and all is as before.
            Err(e @ Error::DiskFull { .. }) => {
                self.env.fs.remove_file(blank.name()).map_err(|e| Error::io("remove", blank.name(), e))?;
                Err(e)
            }
            Err(e) => Err(self.fatal(&e)),
        }
    }

    /// The next blank segment, of a released one if one waits.
    fn create_blank(&self, prepare: &mut Prepare) -> Result<Blank> {
        let (seq, bytes) = (prepare.next_seq, self.segment_bytes);
        let path = segment::path(&self.log_dir, seq);
        // Left when an earlier attempt could not take its file away.
        if self.env.fs.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
            self.env.fs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
        while let Some(spare) = prepare.spares.pop_front() {
            let opened = Blank::of_spare(&self.env, &self.log_dir, seq, bytes, spare.clone());
            if opened.is_err() {
                // It waits on.
                prepare.spares.push_front(spare.clone());
            }
            if let Some(blank) = opened? {
                self.counters.recycled_segment();
                return Ok(blank);
            }
            self.env.fs.remove_file(&spare).map_err(|e| Error::io("remove", &spare, e))?;
        }
        if let Some(space) = self.space.get() {
            space.for_segment(bytes)?;
        }
        let blank = Blank::create(&self.env, &self.log_dir, seq, bytes).inspect_err(|_| self.no_segment_is_made())?;
        self.counters.made_segment();
        Ok(blank)
    }
}

impl Shared {
    /// The segment in the making is none any more: what it claimed is free for others.
    pub(super) fn no_segment_is_made(&self) {
        if let Some(space) = self.space.get() {
            space.segment_left(0);
        }
    }
}

/// The first salt of a log.
pub(super) fn new_salt(env: &crate::env::Env) -> u32 {
    (env.rng.next_u64() as u32).max(1)
}

/// Later than all before, and the clock's time where that is.
fn next_ts(last: &Position, wall: CommitTs) -> CommitTs {
    CommitTs(wall.0.min(COMMIT_TS_MAX).max(last.ts.0.saturating_add(1)))
}

fn encode(
    out: &mut Vec<u8>,
    last: &Position,
    header: &Header,
    fill_body: impl FnOnce(&mut Vec<u8>),
) -> Result<Position> {
    if header.epoch < last.epoch || header.ts.0 > COMMIT_TS_MAX {
        let (epoch, lsn) = (header.epoch, header.lsn);
        return Err(RecordError::Discontinuous { epoch, lsn, after: last.lsn }.into());
    }
    let start = out.len();
    let chain = record::encode(out, last.chain, header, fill_body);
    let body = out.len() - start - record::HEADER_BYTES;
    if body > BATCH_BYTES_MAX {
        return Err(LimitError::Bytes(body).into());
    }
    Ok(Position { epoch: header.epoch, lsn: header.lsn, chain, ts: header.ts })
}
