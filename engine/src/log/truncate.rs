//! Cutting an uncommitted tail: save it, write down the intent, then zero \[I8\].
//!
//! Owns: `<data>/diverged/` and the intent file. Never: deciding what is committed or diverged.
//!
//! Zeroing many places is not atomic, and frames left behind a half-made cut would say that the
//! missing ones were durable. So the intent is made durable first: from then on the log is cut, and
//! recovery finishes the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use super::reader::Frames;
use super::segment::{self, FRAMES_AT, Segment};
use super::writer::{Head, Leading, Prepare};
use super::{Shared, lock};
use crate::codec::{Cursor, Malformed};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::{File, OpenMode};
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};
use crate::record::{Record, RecordError};

pub(super) const DIVERGED: &str = "diverged";
const TAIL_TMP: &str = "tail.tmp";
pub(super) const INTENT: &str = "cut";
const INTENT_MAGIC: [u8; 8] = *b"maincut\n";
const INTENT_LEN: usize = 80;

/// A tail that was cut and where it was saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// LSN of the first record cut.
    pub from: Lsn,
    /// LSN of the last record cut.
    pub to: Lsn,
    /// Size of the records, in bytes.
    pub bytes: u64,
    /// The file with the records, one after the other, as [`Record::decode`] reads them.
    pub path: PathBuf,
}

/// A cut that was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Intent {
    /// Where the log ends after it.
    pub(super) end: Position,
    /// Chain of the first record cut: tells a cut still to be made from one long made, whose intent
    /// came back with a directory's lost update.
    pub(super) first_cut: Chain,
}

impl Intent {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(INTENT_LEN);
        out.extend_from_slice(&INTENT_MAGIC);
        for v in [self.end.epoch.0, self.end.lsn.0, self.end.ts.0] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.end.chain.0);
        out.extend_from_slice(&self.first_cut.0);
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> std::result::Result<Self, Malformed> {
        let (fields, sum) = bytes.split_last_chunk::<8>().ok_or(Malformed("intent ends early"))?;
        let mut c = Cursor::new(fields);
        if c.array()? != INTENT_MAGIC || u64::from_le_bytes(*sum) != xxh3_64(fields) {
            return Err(Malformed("intent to cut the log is damaged"));
        }
        let (epoch, lsn, ts) = (Epoch(c.u64()?), Lsn(c.u64()?), CommitTs(c.u64()?));
        let end = Position { epoch, lsn, chain: Chain(c.array()?), ts };
        let first_cut = Chain(c.array()?);
        if c.u64()? != 0 || !c.is_empty() {
            return Err(Malformed(
                "an intent to cut the log has reserved bytes that are not zero, or bytes behind them",
            ));
        }
        Ok(Self { end, first_cut })
    }
}

/// Not `Error::io`: a sync that failed for want of room is final as well.
fn unsynced(path: &Path, source: std::io::Error) -> Error {
    Error::Io { action: "sync", path: path.to_owned(), source }
}

/// The disk's part of a decided cut: `later` go (they are above the cut), `file` is zeroed in
/// `from..to`, and the intent is done with. May be repeated.
pub(super) fn finish(
    env: &Env,
    log_dir: &Path,
    later: impl DoubleEndedIterator<Item = PathBuf>,
    (file, path): (&dyn File, &Path),
    (from, to): (u64, u64),
) -> Result<()> {
    for p in later.rev() {
        if env.fs.exists(&p).map_err(|e| Error::io("look for", &p, e))? {
            env.fs.remove_file(&p).map_err(|e| Error::io("remove", &p, e))?;
        }
    }
    env.fs.sync_dir(log_dir).map_err(|e| unsynced(log_dir, e))?;
    if !planted(Bug::SkipZeroAfterCut) {
        segment::write_zeros(file, from, to).map_err(|e| Error::io("write", path, e))?;
    }
    file.sync_data().map_err(|e| unsynced(path, e))?;
    let intent = log_dir.join(INTENT);
    if env.fs.exists(&intent).map_err(|e| Error::io("look for", &intent, e))? {
        env.fs.remove_file(&intent).map_err(|e| Error::io("remove", &intent, e))?;
        env.fs.sync_dir(log_dir).map_err(|e| unsynced(log_dir, e))?;
    }
    Ok(())
}

/// Name of the file with the records `from..=to` that were cut, the last of which has this epoch.
pub(super) fn cut_tail_name(epoch: u64, from: u64, to: u64) -> String {
    format!("{epoch:016x}-{from:016x}-{to:016x}.records")
}

impl Shared {
    pub(super) fn truncate_above(self: &Arc<Self>, lsn: Lsn, committed: Lsn) -> Result<Option<CutTail>> {
        self.check_stopped()?;
        if lsn < committed && !planted(Bug::CutBelowCommit) {
            return Err(Error::BelowCommit { asked: lsn, committed });
        }
        let _leading = Leading::new(self, self.gate.acquire(&*self.env.clock));
        self.cut_alone(lsn)
    }

    fn cut_alone(self: &Arc<Self>, lsn: Lsn) -> Result<Option<CutTail>> {
        // All of the old log is on disk before any of it goes, so a crash finds the one or the other.
        let mut head = loop {
            self.write_group(true)?;
            let head = lock(&self.head);
            // Something may have been appended between the two lines above.
            if head.pending.is_empty() {
                break head;
            }
        };
        if lsn >= head.last.lsn {
            return Ok(None);
        }
        let (end, segment, offset) = self.find_cut(lsn)?;
        let (tail, first_cut) = self.save_tail(end.lsn, head.last).inspect_err(|_| {
            // Half a tail is of no use, and it may hold the room that is missing.
            let _ = self.env.fs.remove_file(&self.dir.join(DIVERGED).join(TAIL_TMP));
        })?;
        let intent = Intent { end, first_cut };
        let written = crate::fs::write_atomic(&*self.env.fs, &self.log_dir, INTENT, &intent.encode());
        if let Err(e) = written {
            let path = self.log_dir.join(INTENT);
            return Err(match Error::from(e) {
                // Once it has its name, a later start finishes the cut: there is no going on beside it.
                short if short.is_shortage() && matches!(self.env.fs.exists(&path), Ok(false)) => short,
                other => self.fatal(&other),
            });
        }
        self.apply_cut(&mut head, end, &segment, offset)?;
        Ok(Some(tail))
    }

    /// The last position at or below `lsn`, its segment, and where the next frame starts there.
    fn find_cut(self: &Arc<Self>, lsn: Lsn) -> Result<(Position, Arc<Segment>, u64)> {
        // At a border the newer segment is kept, empty: the older one may be released meanwhile.
        let segment = lock(&self.segments).iter().rev().find(|s| s.base.lsn <= lsn).cloned();
        let Some(segment) = segment else {
            return Err(Error::LogGone { asked: lsn, oldest: self.oldest() });
        };
        let mut end = segment.base;
        let mut offset = FRAMES_AT;
        if segment.base.lsn < lsn {
            let mut frames = Frames::seek(self, lsn)?;
            loop {
                let (found, bytes) = frames.peek()?;
                if found > lsn {
                    break;
                }
                end = Record::decode(bytes)?.position();
                frames.skip();
                offset = frames.offset();
            }
        }
        Ok((end, segment, offset))
    }

    /// Saves the records above `end` in a file of their own, synced. Returns also the first one's chain.
    fn save_tail(self: &Arc<Self>, end: Lsn, last: Position) -> Result<(CutTail, Chain)> {
        let fs = &*self.env.fs;
        let dir = self.dir.join(DIVERGED);
        fs.create_dir_all(&dir).map_err(|e| Error::io("create", &dir, e))?;
        let mut frames = Frames::seek(self, end.next())?;
        let tmp = dir.join(TAIL_TMP);
        if fs.exists(&tmp).map_err(|e| Error::io("look for", &tmp, e))? {
            fs.remove_file(&tmp).map_err(|e| Error::io("remove", &tmp, e))?;
        }
        let file = fs.open(&tmp, OpenMode::CreateNew).map_err(|e| Error::io("create", &tmp, e))?;
        let mut first: Option<Position> = None;
        let mut bytes = 0;
        loop {
            let (lsn, record) = frames.peek()?;
            if lsn > end {
                if first.is_none() {
                    first = Some(Record::decode(record)?.position());
                }
                file.write_all_at(record, bytes).map_err(|e| Error::io("write", &tmp, e))?;
                bytes += record.len() as u64;
            }
            frames.skip();
            if lsn >= last.lsn {
                break;
            }
        }
        let first = first.ok_or(RecordError::Short)?;
        let (epoch, from, to) = (last.epoch.0, first.lsn, last.lsn);
        let path = dir.join(cut_tail_name(epoch, from.0, to.0));
        file.sync_data().map_err(|e| self.save_failed("sync", &tmp, e))?;
        fs.rename(&tmp, &path).map_err(|e| Error::io("rename", &tmp, e))?;
        for d in [&dir, &self.dir] {
            fs.sync_dir(d).map_err(|e| self.save_failed("sync", d, e))?;
        }
        Ok((CutTail { from, to, bytes, path }, first.chain))
    }

    fn save_failed(&self, action: &'static str, path: &Path, e: std::io::Error) -> Error {
        self.fatal_io(action, path, e)
    }

    /// Takes what is above `end`, in the segment `seq` and later ones, from the readers' sight. Returns the later ones.
    pub(super) fn hide_above(&self, end: Lsn, seq: u64) -> Vec<Arc<Segment>> {
        let mut segments = lock(&self.segments);
        // Who misses a later segment, or reads on where bytes are to vanish, must learn that there was a cut.
        self.written.store(end.0, Ordering::Release);
        lock(&self.tail).cut(end);
        let keep = segments.partition_point(|s| s.seq <= seq);
        segments.split_off(keep).into_iter().collect()
    }

    fn apply_cut(&self, head: &mut Head, end: Position, segment: &Arc<Segment>, offset: u64) -> Result<()> {
        let mut prepare = lock(&self.prepare);
        // First: whoever sees another record in the place of one that is cut sees this.
        self.cuts.fetch_add(1, Ordering::SeqCst);
        // Readers must see the cut before bytes vanish under them.
        let gone = self.hide_above(end.lsn, segment.seq);
        lock(&self.sink).cut();
        self.appended.reset_after_truncation(end.lsn);
        self.durable.reset_after_truncation(end.lsn);
        segment.forget_above(end.lsn);
        let blank = prepare.blank.take();
        self.no_segment_is_made();
        let later: Vec<PathBuf> = gone.iter().map(|s| s.path.clone()).chain(blank.map(|b| b.path)).collect();
        *prepare = Prepare::new(segment.seq + 1, std::mem::take(&mut prepare.spares));
        *head = Head::new(end, Lsn::ZERO, Arc::clone(segment), offset);
        let place = (&*segment.file, segment.path.as_path());
        finish(&self.env, &self.log_dir, later.into_iter(), place, (offset, segment.bytes)).map_err(|e| self.fatal(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_round_trips_and_no_flipped_bit_passes() {
        let end = Position { epoch: Epoch(3), lsn: Lsn(9), chain: Chain([1; 16]), ts: CommitTs(8) };
        let intent = Intent { end, first_cut: Chain([2; 16]) };
        let bytes = intent.encode();
        assert_eq!((bytes.len(), Intent::decode(&bytes)), (INTENT_LEN, Ok(intent)));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Intent::decode(&bad).is_err(), "bit {bit}");
        }
        assert!(Intent::decode(&bytes[..40]).is_err());
    }

    #[test]
    fn reserved_bytes_and_bytes_behind_that_say_something_are_refused() {
        let end = Position { epoch: Epoch(3), lsn: Lsn(9), chain: Chain([1; 16]), ts: CommitTs(8) };
        let bytes = Intent { end, first_cut: Chain([2; 16]) }.encode();
        for at in 64..72 {
            let mut bad = bytes.clone();
            bad[at] = 1;
            let sum = xxh3_64(&bad[..72]);
            bad[72..].copy_from_slice(&sum.to_le_bytes());
            assert!(Intent::decode(&bad).is_err(), "byte {at}");
        }
        let mut longer = bytes[..72].to_vec();
        longer.extend_from_slice(&[0; 8]);
        longer.extend_from_slice(&xxh3_64(&longer).to_le_bytes());
        assert!(Intent::decode(&longer).is_err());
    }
}
