//! Readers: whole records in order, from memory near the head and from files behind it.
//!
//! A segment that is released under a reader may be used again at once. What it reads there is an old frame, whole, or
//! none of this segment's, and then the log no longer reaches back to it.
//!
//! Owns: the reader's place and its checks. Never: blocking the writer, reading bytes that were
//! not written yet, waiting (watch a watermark for that).

use std::sync::Arc;

use super::segment::Segment;
use super::tail::Read;
use super::{Shared, frame, lock};
use crate::error::{Error, Result};
use crate::lsn::{Epoch, Lsn, Position};
use crate::record::{Record, RecordError};

/// Bytes read from a file at a time.
const READ_BYTES: usize = 256 << 10;

/// Consecutive whole records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// LSN of the first record.
    pub first: Lsn,
    /// LSN of the last record.
    pub last: Lsn,
    /// The records' bytes; step through them with [`Record::decode`].
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// The records in order, each checked against its checksum; ends after an error.
    pub fn records(&self) -> impl Iterator<Item = Result<Record<'_>>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let record = Record::decode(rest);
            rest = record.as_ref().map_or(&[][..], |r| rest.get(r.bytes.len()..).unwrap_or_default());
            Some(record.map_err(Error::from))
        })
    }
}

/// A place in the log that goes forward. Holds no lock; take a [`super::Slot`] to keep the log from
/// being released under it.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    /// The next record is the first one at or above this.
    next: Lsn,
    cuts_seen: usize,
    files: Option<Frames>,
}

impl Reader {
    pub(super) fn new(shared: &Arc<Shared>, from: Lsn) -> Result<Self> {
        let next = from.max(Lsn(1));
        let oldest = shared.oldest();
        if next < oldest {
            return Err(Error::LogGone { asked: from, oldest });
        }
        let cuts_seen = {
            let mut tail = lock(&shared.tail);
            tail.is_read();
            tail.cut_count()
        };
        Ok(Self { shared: Arc::clone(shared), next, cuts_seen, files: None })
    }

    /// Lowest LSN that the next record can have.
    #[must_use]
    pub const fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// The next records at or below `upto`, at most `max_bytes` of them but at least one; none when
    /// there is none yet. Records above [`super::Log::durable`] may still be cut.
    ///
    /// # Errors
    /// `LogGone` when they were released, `Record` when records that this reader returned were cut
    /// since (start again from a position both sides share), `Corruption`, `Io`.
    pub fn next(&mut self, upto: Lsn, max_bytes: usize) -> Result<Option<Chunk>> {
        loop {
            let found = {
                let tail = lock(&self.shared.tail);
                if tail.cut_count() != self.cuts_seen {
                    self.files = None;
                    if let Some(cut) = tail.lowest_cut_since(self.cuts_seen)
                        && cut.next() < self.next
                    {
                        let (epoch, after) = (Epoch::default(), self.next.prev());
                        return Err(RecordError::Discontinuous { epoch, lsn: cut.next(), after }.into());
                    }
                    self.cuts_seen = tail.cut_count();
                }
                tail.read(self.next, upto, max_bytes)
            };
            let chunk = match found {
                Read::Nothing => return Ok(None),
                Read::Found(pieces) => {
                    self.files = None;
                    Some(pieces.into_chunk())
                }
                Read::Elsewhere => match self.read_files(upto, max_bytes) {
                    // What looked damaged may have been cut meanwhile.
                    Err(_) if lock(&self.shared.tail).cut_count() != self.cuts_seen => continue,
                    // So may what was released meanwhile: its file is used again.
                    Err(_) if self.next < self.shared.oldest() => {
                        return Err(Error::LogGone { asked: self.next, oldest: self.shared.oldest() });
                    }
                    other => other?,
                },
            };
            if let Some(c) = &chunk {
                self.next = c.last.next();
            }
            return Ok(chunk);
        }
    }

    fn read_files(&mut self, upto: Lsn, max_bytes: usize) -> Result<Option<Chunk>> {
        let oldest = self.shared.oldest();
        if self.next < oldest {
            return Err(Error::LogGone { asked: self.next, oldest });
        }
        let upto = upto.min(self.shared.written());
        if self.next > upto {
            return Ok(None);
        }
        let frames = match self.files.take() {
            Some(f) => f,
            None => Frames::seek(&self.shared, self.next)?,
        };
        let frames = self.files.insert(frames);
        let mut chunk = Chunk { first: Lsn::ZERO, last: Lsn::ZERO, bytes: Vec::new() };
        // While the last record passed is below `upto`, the next one is in a file.
        while chunk.last < upto {
            let (lsn, record) = frames.peek()?;
            let full = !chunk.bytes.is_empty() && chunk.bytes.len() + record.len() > max_bytes;
            if lsn > upto || full {
                break;
            }
            if lsn >= self.next {
                if chunk.bytes.is_empty() {
                    chunk.first = lsn;
                }
                chunk.last = lsn;
                chunk.bytes.extend_from_slice(record);
            }
            frames.skip();
        }
        Ok((!chunk.bytes.is_empty()).then_some(chunk))
    }
}

/// A cursor over the frames in files.
#[derive(Debug)]
pub(super) struct Frames {
    shared: Arc<Shared>,
    segment: Arc<Segment>,
    /// Where `buf` starts in the file.
    buf_at: u64,
    buf: Vec<u8>,
    /// Where the next frame starts in `buf`.
    at: usize,
    /// LSN of the last record passed.
    passed: Lsn,
    peeked: Peeked,
}

/// The record last peeked at.
#[derive(Clone, Copy, Debug, Default)]
struct Peeked {
    lsn: Lsn,
    record_len: usize,
    frame_len: usize,
}

impl Frames {
    /// A cursor at or before the first record at or above `lsn`.
    pub(super) fn seek(shared: &Arc<Shared>, lsn: Lsn) -> Result<Self> {
        let gone = || Error::LogGone { asked: lsn, oldest: shared.oldest() };
        let segment = shared.segment_for(lsn).ok_or_else(gone)?;
        let offset = segment.seek(lsn);
        let passed = segment.base.lsn;
        let shared = Arc::clone(shared);
        Ok(Self { shared, segment, buf_at: offset, buf: Vec::new(), at: 0, passed, peeked: Peeked::default() })
    }

    /// Where the next frame starts in its segment.
    pub(super) const fn offset(&self) -> u64 {
        self.buf_at + self.at as u64
    }

    /// The next record's LSN and bytes. There must be one that was written before this call.
    pub(super) fn peek(&mut self) -> Result<(Lsn, &[u8])> {
        // The buffer may have been filled before the bytes were written, so what looks bad is read
        // once more, from its own start.
        let mut read_again = false;
        let found = loop {
            let bytes = self.buf.get(self.at..).unwrap_or_default();
            let what = match frame::decode(bytes, Some(self.segment.salt)) {
                Ok(f) if f.record.is_empty() => {
                    self.at += f.len;
                    continue;
                }
                Ok(f) => match Record::decode(f.record) {
                    Ok(r) => break Peeked { lsn: r.header.lsn, record_len: r.bytes.len(), frame_len: f.len },
                    Err(e) => e.to_string(),
                },
                Err(frame::NoFrame::Short(need)) => {
                    if self.refill(need)? {
                        continue;
                    }
                    "a frame reaches over the end of the segment".to_owned()
                }
                Err(frame::NoFrame::Bad) => "no frame where one was written".to_owned(),
            };
            if self.next_segment() {
                continue;
            }
            if read_again || !self.refill(frame::HEADER_BYTES)? {
                let at = self.buf_at + self.at as u64;
                return Err(Error::corruption(&self.segment.path, at, Some(self.passed.next()), what));
            }
            read_again = true;
        };
        self.peeked = found;
        let start = self.at + frame::HEADER_BYTES;
        Ok((found.lsn, self.buf.get(start..start + found.record_len).unwrap_or_default()))
    }

    /// Passes the record last peeked at.
    pub(super) fn skip(&mut self) {
        let peeked = std::mem::take(&mut self.peeked);
        self.passed = self.passed.max(peeked.lsn);
        self.at += peeked.frame_len;
    }

    /// Reads on, so that `need` bytes are there. False when the segment has no more.
    fn refill(&mut self, need: usize) -> Result<bool> {
        let from = self.buf_at + self.at as u64;
        let room = usize::try_from(self.segment.bytes.saturating_sub(from)).unwrap_or(usize::MAX);
        if need > room {
            return Ok(false);
        }
        // A length that a damaged frame gave was bounded by the frame's check and by `room`.
        let mut buf = vec![0; need.max(READ_BYTES).min(room)];
        let read = crate::fs::read_exact_at(&*self.segment.file, &mut buf, from);
        read.map_err(|e| Error::io("read", &self.segment.path, e))?;
        (self.buf, self.buf_at, self.at) = (buf, from, 0);
        Ok(true)
    }

    /// Goes to the segment that starts after the record last passed, if there is one.
    fn next_segment(&mut self) -> bool {
        let next = {
            let segments = lock(&self.shared.segments);
            segments.iter().find(|s| s.seq == self.segment.seq + 1).cloned()
        };
        let Some(next) = next.filter(|n| n.base.lsn == self.passed) else { return false };
        (self.buf_at, self.at) = (super::segment::FRAMES_AT, 0);
        self.buf.clear();
        self.segment = next;
        true
    }
}

impl Shared {
    pub(super) fn position_at(self: &Arc<Self>, lsn: Lsn) -> Result<Option<Position>> {
        self.check_stopped()?;
        let base = lock(&self.segments).front().map(|s| s.base);
        if let Some(base) = base
            && base.lsn == lsn
        {
            return Ok(Some(base));
        }
        if lsn == Lsn::ZERO {
            return Err(Error::LogGone { asked: lsn, oldest: self.oldest() });
        }
        let Some(chunk) = Reader::new(self, lsn)?.next(lsn, 1)? else { return Ok(None) };
        Ok(Some(Record::decode(&chunk.bytes)?.position()))
    }
}
