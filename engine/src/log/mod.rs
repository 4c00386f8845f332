//! The write-ahead log: dense, chained records in segments, synced in groups, read by many.
//!
//! Owns: the files under `log/` and `diverged/`, the watermarks `appended` and `durable`. Never:
//! knows what is committed (callers say), never shows a record it has not checked.

mod frame;
mod reader;
mod recovery;
mod segment;
mod slots;
mod truncate;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use reader::{Chunk, Reader};
pub use recovery::Recovered;
pub use slots::{Slot, SlotStatus};
pub use truncate::CutTail;

use crate::env::Env;
use crate::error::{Error, Result};
use crate::limits::Options;
use crate::lsn::{Lsn, Position};
use crate::watermark::Watermark;
use segment::{Prepared, Segment};

/// A record in memory: its LSN, where its frame starts, its bytes.
#[derive(Debug)]
struct TailRecord {
    lsn: Lsn,
    bytes: Arc<[u8]>,
}

/// Bytes for one place in one file, in order.
#[derive(Debug)]
struct Job {
    file: Arc<dyn crate::fs::File>,
    path: PathBuf,
    offset: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct State {
    /// Oldest first; the last one is being written.
    segments: Vec<Segment>,
    prepared: Option<Prepared>,
    /// Where the next frame goes in the last segment.
    end: u64,
    /// Not handed to the file system yet: whole jobs of earlier segments, then the last one's bytes.
    jobs: Vec<Job>,
    buffer: Vec<u8>,
    buffered_bytes: usize,
    last: Position,
    /// Written to files up to here (not necessarily synced).
    written: Lsn,
    tail: VecDeque<TailRecord>,
    tail_bytes: usize,
    /// Highest durable LSN that a frame on disk bears witness of.
    evidenced: Lsn,
    stopped: Option<String>,
}

#[derive(Debug, Default)]
struct Group {
    leading: bool,
    /// Threads in `sync_to`, the leader included.
    waiting: usize,
    last_group: usize,
}

/// The log of one data directory. All methods take `&self`.
#[derive(Debug)]
pub struct Log {
    env: Env,
    dir: PathBuf,
    options: Options,
    state: Mutex<State>,
    /// Held by whoever writes to the files.
    writer: Mutex<()>,
    group: Mutex<Group>,
    group_changed: Condvar,
    appended: Watermark,
    durable: Watermark,
    slots: Arc<slots::Slots>,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, State> {
        // Changes under this lock are complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir_of(data: &Path) -> PathBuf {
        data.join("log")
    }

    /// Ends the log: data may be lost under it \[I3\].
    fn stop(&self, why: String) -> Error {
        let mut state = self.state();
        let first = state.stopped.is_none();
        let why = state.stopped.get_or_insert(why).clone();
        drop(state);
        if first {
            (self.env.fatal)(&why);
            self.appended.close();
            self.durable.close();
        }
        Error::Stopped(why)
    }

    /// End of the log in memory.
    #[must_use]
    pub const fn appended(&self) -> &Watermark {
        &self.appended
    }

    /// Synced to this disk.
    #[must_use]
    pub const fn durable(&self) -> &Watermark {
        &self.durable
    }

    /// The newest record appended.
    #[must_use]
    pub fn last(&self) -> Position {
        self.state().last
    }

    /// The position before the oldest record that can still be read.
    #[must_use]
    pub fn start(&self) -> Position {
        self.state().segments.first().map(|s| s.header.base).unwrap_or_default()
    }

    /// The oldest LSN that can still be read (one above the end when the log holds no record).
    #[must_use]
    pub fn oldest(&self) -> Lsn {
        self.start().lsn.next()
    }

    /// Bytes of all segment files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let state = self.state();
        state.segments.iter().map(|s| s.len).sum::<u64>() + state.prepared.as_ref().map_or(0, |p| p.len)
    }

    /// The position at `lsn`: of its record, or of the log's start; `None` when the log does not
    /// have it.
    ///
    /// # Errors
    /// Those of reading the log.
    pub fn position_at(self: &Arc<Self>, lsn: Lsn) -> Result<Option<Position>> {
        let (start, last) = (self.start(), self.last());
        if lsn == start.lsn {
            return Ok(Some(start));
        }
        if lsn < start.lsn || lsn > last.lsn {
            return Ok(None);
        }
        if lsn == last.lsn {
            return Ok(Some(last));
        }
        let Some(chunk) = self.reader(lsn)?.next(lsn, 1)? else { return Ok(None) };
        chunk.records().next().transpose().map(|r| r.map(|r| r.position()))
    }
}
