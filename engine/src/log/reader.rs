//! Reading the log from any LSN: from memory near the head, from files when behind.
//!
//! Owns: cursors and chunks. Never: blocks the writer for an I/O, never reads bytes that are not in
//! a file yet.

use std::sync::Arc;

use super::frame::{FRAME_BYTES, Found, decode};
use super::{Log, State};
use crate::error::{Error, Result};
use crate::fs::File;
use crate::lsn::Lsn;
use crate::record::{RECORD_BYTES_MAX, Record};

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;
const SMALL_READ_BYTES: usize = 8 << 10;

/// Whole records, one behind the other, as replicated and archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// LSN of the first record.
    pub first: Lsn,
    /// LSN of the last record.
    pub last: Lsn,
    /// The records' bytes.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// The records in order, each checked against its checksum.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'_>>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let record = Record::decode(rest);
            rest = match &record {
                Ok(r) => rest.get(r.bytes.len()..).unwrap_or_default(),
                Err(_) => &[],
            };
            Some(record.map_err(Error::from))
        })
    }
}

/// Where a reader is in a file.
#[derive(Debug)]
struct InFile {
    file: Arc<dyn File>,
    path: std::path::PathBuf,
    sequence: u64,
    salt: u32,
    offset: u64,
}

/// A cursor on a log. It does not keep log from being released: hold a [`super::Slot`] for that.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    next: Lsn,
    at: Option<InFile>,
}

impl Log {
    /// A cursor at `from`; a first LSN that the log does not have (within a timeline's jump) means
    /// the next one above it.
    ///
    /// # Errors
    /// `LogGone` when the log no longer reaches back to it.
    pub fn reader(self: &Arc<Self>, from: Lsn) -> Result<Reader> {
        let oldest = self.oldest();
        if from < oldest {
            return Err(Error::LogGone { asked: from, oldest });
        }
        Ok(Reader { log: Arc::clone(self), next: from, at: None })
    }
}

impl State {
    /// The records in memory from `next` on; `None` when memory does not reach back to it.
    fn from_memory(&self, next: Lsn, upto: Lsn, max_bytes: usize) -> Option<Chunk> {
        let front = self.tail.front()?.lsn;
        if front > next {
            return None;
        }
        let start = self.tail.partition_point(|r| r.lsn < next);
        let mut chunk = Chunk { first: Lsn::ZERO, last: Lsn::ZERO, bytes: Vec::new() };
        for record in self.tail.range(start..) {
            if record.lsn > upto || (!chunk.bytes.is_empty() && chunk.bytes.len() + record.bytes.len() > max_bytes) {
                break;
            }
            if chunk.bytes.is_empty() {
                chunk.first = record.lsn;
            }
            chunk.last = record.lsn;
            chunk.bytes.extend_from_slice(&record.bytes);
        }
        Some(chunk)
    }

    /// The place of `next` in the files.
    fn locate(&self, next: Lsn) -> Option<InFile> {
        let after = self.segments.partition_point(|s| s.header.base.lsn < next);
        let s = self.segments.get(after.checked_sub(1)?)?;
        Some(InFile {
            file: Arc::clone(&s.file),
            path: s.path.clone(),
            sequence: s.header.sequence,
            salt: s.header.salt,
            offset: s.seek(next),
        })
    }

    /// The segment after `sequence`, and where its records begin.
    fn after(&self, sequence: u64) -> Option<InFile> {
        let s = self.segments.iter().find(|s| s.header.sequence > sequence)?;
        self.locate(s.header.base.lsn.next())
    }
}

impl Reader {
    /// LSN of the next record this reader looks for.
    #[must_use]
    pub const fn position(&self) -> Lsn {
        self.next
    }

    /// The next records, up to `upto` and about `max_bytes` (at least one record); `None` when there
    /// is none yet.
    ///
    /// # Errors
    /// `LogGone` when the log was released or cut under the reader; `Corruption`; the operating
    /// system's.
    pub fn next(&mut self, upto: Lsn, max_bytes: usize) -> Result<Option<Chunk>> {
        if self.next > upto {
            return Ok(None);
        }
        let state = self.log.state();
        if state.last.lsn < self.next {
            return Ok(None);
        }
        let chunk = match state.from_memory(self.next, upto, max_bytes) {
            Some(chunk) => {
                drop(state);
                self.at = None;
                chunk
            }
            None => {
                let oldest = state.segments.first().map(|s| s.header.base.lsn.next()).unwrap_or_default();
                if self.next < oldest {
                    return Err(Error::LogGone { asked: self.next, oldest });
                }
                if self.at.is_none() {
                    self.at = state.locate(self.next);
                }
                let upto = upto.min(state.written);
                drop(state);
                self.from_files(upto, max_bytes)?
            }
        };
        if chunk.bytes.is_empty() {
            return Ok(None);
        }
        self.next = chunk.last.next();
        Ok(Some(chunk))
    }

    fn from_files(&mut self, upto: Lsn, max_bytes: usize) -> Result<Chunk> {
        let mut chunk = Chunk { first: Lsn::ZERO, last: Lsn::ZERO, bytes: Vec::new() };
        let mut window = Vec::new();
        // A caller that wants little is not made to read much.
        let first_window = max_bytes.clamp(SMALL_READ_BYTES, READ_BYTES);
        let mut want = first_window;
        'windows: while let Some(at) = &mut self.at {
            window.resize(want, 0);
            let got = read_some(&*at.file, &mut window, at.offset).map_err(|e| Error::io("read", &at.path, e))?;
            let read = window.get(..got).unwrap_or_default();
            let mut used = 0;
            loop {
                let rest = read.get(used..).unwrap_or_default();
                let frame = match decode(rest, at.salt) {
                    Found::Frame(f) => f,
                    Found::Nothing if used > 0 && rest.len() < FRAME_BYTES => break,
                    Found::Nothing => {
                        // The end of what was written here: the next segment, or the head.
                        self.at = self.log.state().after(at.sequence);
                        if self.at.is_none() {
                            break 'windows;
                        }
                        want = first_window;
                        continue 'windows;
                    }
                    Found::Bad(_) if got == want && want < 2 * RECORD_BYTES_MAX => break,
                    Found::Bad(what) => {
                        return Err(Error::corruption(&at.path, at.offset + used as u64, Some(self.next), what));
                    }
                };
                if let Some(record) = frame.record {
                    let lsn = record.header.lsn;
                    if lsn > upto || (!chunk.bytes.is_empty() && chunk.bytes.len() + record.bytes.len() > max_bytes) {
                        at.offset += used as u64;
                        break 'windows;
                    }
                    if lsn >= self.next {
                        if chunk.bytes.is_empty() {
                            chunk.first = lsn;
                        }
                        chunk.last = lsn;
                        chunk.bytes.extend_from_slice(record.bytes);
                    }
                }
                used += frame.len;
            }
            if used == 0 {
                // A record larger than the window.
                want = (want * 4).min(2 * RECORD_BYTES_MAX);
            }
            at.offset += used as u64;
        }
        Ok(chunk)
    }
}

/// Reads until the buffer is full or the file ends.
fn read_some(file: &dyn File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut got = 0;
    while let Some(rest) = buf.get_mut(got..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, offset + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}
