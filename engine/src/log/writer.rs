//! Appending and the group commit: one write and one sync for all records that wait.
//!
//! The thread that waits does the work: whoever finds no leader leads. After a group was
//! acknowledged the next leader gathers for a moment, because its followers are about to come back
//! (measured on two cores: half as much again for sixteen writers). Owns: the order of
//! bytes in files. Never: reporting a record durable before its sync has returned \[I3\].

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::frame::{FRAME_BYTES, frame_len, seal};
use super::segment::{FIRST_FRAME, Prepared, Segment, SegmentHeader, prepare};
use super::{Job, Log, State, TailRecord};
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::fault::{Bug, planted};
use crate::lsn::{CommitTs, Epoch, Lsn, Position};
use crate::record::{self, HEADER_BYTES, Header, Kind, RECORD_BYTES_MAX, Record, TimelineStart};

/// Bytes waiting to be written at which an appender writes them itself \[I12\].
const BUFFER_MAX: usize = 32 << 20;
/// Longest gather before a group is written.
const GATHER: Duration = Duration::from_micros(40);

impl Log {
    /// Appends one record and gives it the next LSN; its commit timestamp is `wall`, or just above
    /// the previous one's. Returns before anything is durable.
    ///
    /// # Errors
    /// `DiskFull` when no segment can be made: nothing was appended and the log goes on when there
    /// is room. `Stopped` once a write or sync has failed.
    pub fn append(
        &self,
        kind: Kind,
        epoch: Epoch,
        wall: CommitTs,
        session: u64,
        sequence: u64,
        body: &[u8],
    ) -> Result<Position> {
        self.append_new(
            None,
            |last| Header {
                kind,
                epoch,
                lsn: last.lsn.next(),
                ts: CommitTs(wall.0.max(last.ts.0.saturating_add(1))),
                session,
                sequence,
            },
            body,
        )
    }

    /// Appends the first record of a timeline at `lsn`, which may jump.
    ///
    /// # Errors
    /// As [`Log::append`]; `Record` when the LSN does not go up or the fork is not this log's end.
    pub fn append_timeline(&self, epoch: Epoch, wall: CommitTs, start: TimelineStart, lsn: Lsn) -> Result<Position> {
        self.append_new(
            Some(start.fork),
            |last| Header {
                kind: Kind::TimelineStart,
                epoch,
                lsn,
                ts: CommitTs(wall.0.max(last.ts.0.saturating_add(1))),
                session: 0,
                sequence: 0,
            },
            &start.encode(),
        )
    }

    fn append_new(&self, fork: Option<Lsn>, header: impl FnOnce(&Position) -> Header, body: &[u8]) -> Result<Position> {
        self.relieve()?;
        let mut state = self.state();
        let header = header(&state.last);
        if header.lsn <= state.last.lsn || fork.is_some_and(|f| f != state.last.lsn) {
            let (epoch, lsn, after) = (header.epoch, header.lsn, state.last.lsn);
            return Err(record::RecordError::Discontinuous { epoch, lsn, after }.into());
        }
        let prev = state.last.chain;
        self.put(&mut state, HEADER_BYTES + body.len(), |out| {
            let chain = record::encode(out, prev, &header, |b| b.extend_from_slice(body));
            Position { epoch: header.epoch, lsn: header.lsn, chain, ts: header.ts }
        })
    }

    /// Appends a record as the primary or the archive has it, checked to continue this log.
    ///
    /// # Errors
    /// `Record` when it does not; otherwise as [`Log::append`].
    pub fn append_record(&self, record: &Record<'_>) -> Result<Position> {
        self.relieve()?;
        let mut state = self.state();
        if !planted(Bug::IgnoreChain) {
            record.follows(&state.last)?;
        }
        self.put(&mut state, record.bytes.len(), |out| {
            out.extend_from_slice(record.bytes);
            record.position()
        })
    }

    /// Bounded memory: whoever would go over the bound writes first.
    fn relieve(&self) -> Result<()> {
        let waiting = self.state().buffered_bytes;
        if waiting > BUFFER_MAX {
            self.lead_group(0)?;
        }
        Ok(())
    }

    fn put(&self, state: &mut State, len: usize, fill: impl FnOnce(&mut Vec<u8>) -> Position) -> Result<Position> {
        if let Some(why) = &state.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        let need = frame_len(len) as u64;
        if len > RECORD_BYTES_MAX || need > self.options.segment_bytes.saturating_sub(FIRST_FRAME) {
            return Err(crate::batch::LimitError::Bytes(len).into());
        }
        if state.segments.last().is_none_or(|s| state.end + need > s.len) {
            self.rotate(state)?;
        }
        let Some(segment) = state.segments.last_mut() else { return Err(Error::Stopped("no segment".into())) };
        let start = state.buffer.len();
        state.buffer.resize(start + FRAME_BYTES, 0);
        let position = fill(&mut state.buffer);
        let bytes: Arc<[u8]> = Arc::from(state.buffer.get(start + FRAME_BYTES..).unwrap_or_default());
        let durable = self.durable.get();
        seal(&mut state.buffer, start, segment.header.salt, durable);
        segment.note(position.lsn, state.end);
        state.end += need;
        state.buffered_bytes += state.buffer.len() - start;
        state.last = position;
        state.tail_bytes += bytes.len();
        state.tail.push_back(TailRecord { lsn: position.lsn, bytes });
        state.trim_tail(self.options.tail_memory_bytes);
        self.appended.raise(position.lsn);
        Ok(position)
    }

    /// Goes on in a new segment. What is buffered for the old one is written before it.
    fn rotate(&self, state: &mut State) -> Result<()> {
        let dir = Self::dir_of(&self.dir);
        let sequence = state.segments.last().map_or(1, |s| s.header.sequence + 1);
        let Prepared { path, file, sequence, len } = match state.prepared.take() {
            Some(p) => p,
            None => prepare(&self.env, &dir, sequence, self.options.segment_bytes)?,
        };
        let salt = (self.env.rng.next_u64() as u32).max(1);
        let header = SegmentHeader { salt, sequence, base: state.last };
        state.close_buffer();
        state.jobs.push(Job { file: Arc::clone(&file), path: path.clone(), offset: 0, bytes: header.encode() });
        state.segments.push(Segment { path, file, header, len, index: Vec::new() });
        state.end = FIRST_FRAME;
        Ok(())
    }

    /// The first segment of an empty log.
    pub(super) fn begin(&self, state: &mut State) -> Result<()> {
        self.rotate(state)?;
        // Its header is written before anything is appended, so that a reopened empty log is one.
        if let Err((action, path, e)) = write_jobs(&state.jobs) {
            return Err(Error::io(action, path, e));
        }
        state.jobs.clear();
        Ok(())
    }

    /// Makes the next segment ahead of its use: bounded background work.
    ///
    /// # Errors
    /// `DiskFull` and other errors of making a file; nothing is lost by them.
    pub fn prepare_step(&self) -> Result<Progress> {
        let state = self.state();
        let used = state.segments.last().map_or(0, |s| s.len);
        if state.prepared.is_some() || state.stopped.is_some() || state.end < used / 2 {
            return Ok(Progress::Idle);
        }
        let sequence = state.segments.last().map_or(1, |s| s.header.sequence + 1);
        drop(state);
        let dir = Self::dir_of(&self.dir);
        let made = match prepare(&self.env, &dir, sequence, self.options.segment_bytes) {
            Ok(made) => made,
            // An appender was faster and made it itself.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::AlreadyExists => {
                return Ok(Progress::Idle);
            }
            Err(e) => return Err(e),
        };
        let mut state = self.state();
        if state.prepared.is_none() && state.segments.last().is_some_and(|s| s.header.sequence + 1 == made.sequence) {
            state.prepared = Some(made);
        }
        Ok(Progress::Worked)
    }

    /// Writes and syncs everything appended so far, as one group, and publishes `durable`. `Idle`
    /// when there was nothing.
    ///
    /// # Errors
    /// `Stopped`: a write or sync failed, now or earlier.
    pub fn step(&self) -> Result<Progress> {
        let before = self.durable.get();
        if self.state().last.lsn <= before {
            return Ok(Progress::Idle);
        }
        self.lead_group(0)?;
        Ok(Progress::Worked)
    }

    fn lead_group(&self, gather_for: usize) -> Result<()> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if gather_for > 1 {
            self.gather(gather_for);
        }
        let mut state = self.state();
        if let Some(why) = &state.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        let target = state.last;
        state.close_buffer();
        let jobs = std::mem::take(&mut state.jobs);
        state.buffered_bytes = 0;
        drop(state);
        if planted(Bug::AckBeforeSync) {
            self.durable.raise(target.lsn);
        }
        if let Err((action, path, e)) = write_jobs(&jobs) {
            return Err(self.stop(format!("cannot {action} {}: {e}", path.display())));
        }
        let mut state = self.state();
        state.written = state.written.max(target.lsn);
        state.trim_tail(self.options.tail_memory_bytes);
        // The next buffer grows into the room this one had.
        if let Some(mut spare) = jobs.into_iter().next_back().map(|j| j.bytes)
            && state.buffer.capacity() == 0
            && spare.capacity() <= 4 << 20
        {
            spare.clear();
            state.buffer = spare;
        }
        drop(state);
        self.durable.raise(target.lsn);
        Ok(())
    }

    /// Lets the writers of the last group, who are just being woken, join this one.
    fn gather(&self, expected: usize) {
        let clock = &self.env.clock;
        let end = clock.monotonic() + GATHER;
        while self.group.lock().unwrap_or_else(PoisonError::into_inner).waiting < expected {
            std::thread::yield_now();
            if clock.monotonic() >= end {
                return;
            }
        }
    }

    /// Blocks until `lsn` is durable. The calling thread does the work if nobody else does.
    ///
    /// # Errors
    /// `Stopped`: a write or sync failed; the record may or may not be durable.
    pub fn sync_to(&self, lsn: Lsn) -> Result<()> {
        if self.durable.get() >= lsn {
            return Ok(());
        }
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        group.waiting += 1;
        let result = loop {
            if self.durable.get() >= lsn {
                break Ok(());
            }
            if !group.leading {
                group.leading = true;
                let expected = group.last_group;
                drop(group);
                let led = self.lead_group(expected);
                group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
                group.leading = false;
                group.last_group = group.waiting;
                self.group_changed.notify_all();
                if let Err(e) = led {
                    break Err(e);
                }
                continue;
            }
            group = self.group_changed.wait(group).unwrap_or_else(PoisonError::into_inner);
        };
        group.waiting -= 1;
        result
    }

    /// Leaves evidence of what is durable, for a log that is about to rest: afterwards damage to
    /// its very last record is told from a torn tail. Becomes durable with the next sync.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn mark(&self) -> Result<()> {
        let mut state = self.state();
        if let Some(why) = &state.stopped {
            return Err(Error::Stopped(why.clone()));
        }
        let durable = self.durable.get();
        let Some(segment) = state.segments.last() else { return Ok(()) };
        if durable <= state.evidenced || state.end + FRAME_BYTES as u64 > segment.len {
            return Ok(());
        }
        let salt = segment.header.salt;
        let start = state.buffer.len();
        state.buffer.resize(start + FRAME_BYTES, 0);
        seal(&mut state.buffer, start, salt, durable);
        state.end += FRAME_BYTES as u64;
        state.evidenced = durable;
        Ok(())
    }

    /// Syncs everything and leaves durable evidence of it.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn close(&self) -> Result<()> {
        self.sync_to(self.last().lsn)?;
        self.mark()?;
        self.lead_group(0)
    }
}

type Failed<'a> = (&'static str, &'a std::path::Path, std::io::Error);

/// Writes in order; a file is synced before the first byte goes to the next one, so that a segment's
/// header proves the segment before it.
fn write_jobs(jobs: &[Job]) -> std::result::Result<(), Failed<'_>> {
    let mut jobs = jobs.iter().filter(|j| !j.bytes.is_empty()).peekable();
    while let Some(job) = jobs.next() {
        job.file.write_all_at(&job.bytes, job.offset).map_err(|e| ("write", job.path.as_path(), e))?;
        if jobs.peek().is_none_or(|next| next.path != job.path) {
            job.file.sync_data().map_err(|e| ("sync", job.path.as_path(), e))?;
        }
    }
    Ok(())
}

impl State {
    /// Turns the buffer into a job for the last segment.
    fn close_buffer(&mut self) {
        let Some(segment) = self.segments.last() else { return };
        if self.buffer.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.buffer);
        let offset = self.end - bytes.len() as u64;
        self.jobs.push(Job { file: Arc::clone(&segment.file), path: segment.path.clone(), offset, bytes });
    }

    /// Forgets old records in memory, but none that is not in a file yet.
    fn trim_tail(&mut self, max: usize) {
        while self.tail_bytes > max && self.tail.front().is_some_and(|r| r.lsn <= self.written) {
            if let Some(r) = self.tail.pop_front() {
                self.tail_bytes -= r.bytes.len();
            }
        }
    }
}
