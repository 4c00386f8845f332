//! The segment: one file of the log, written to its full length before its first use and never growing, so that
//! a commit touches data blocks only.
//!
//! Owns: file names, the header block, making of blank segments (of zeros, or of a released segment), salts, the
//! sparse index. Never: frames' content, which segments exist.
//!
//! A segment becomes part of the log when its header is written. The writer does so only after all
//! records before it are synced, and syncs the header before the first frame: a readable header
//! proves everything up to its base, and a frame proves the header.
//!
//! A released segment may become the next blank one with its old frames in it. Their salt is what tells them from
//! new ones: salts count up along a log, so no two uses of one file have the same. Segments that a cut removed are
//! never used again, for the numbers and salts behind a cut are given anew.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Cursor;
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::{File, OpenMode};
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};

/// Bytes kept for the header; frames start here.
pub(super) const FRAMES_AT: u64 = 4096;
/// Zeros are written in pieces of this size, so that no commit waits behind a long write.
const PIECE: usize = 1 << 20;
/// Of a piece, so much is written at once. The page cache takes over a write's size as that of its units, and a
/// small write costs what its unit is large: filled 1 MiB at once, a put took twice as long.
const WRITE: usize = 16 << 10;
/// Zeros behind the header of a segment used again: the log ends there as long as it is empty.
const FIRST_ZEROS: u64 = 4096;
/// Distance of index entries in bytes: a reader starts at most this far before its record.
const INDEX_EVERY: u64 = 64 << 10;
const MAGIC: [u8; 8] = *b"mainstl\n";
const VERSION: u32 = 1;
pub(super) const HEADER_LEN: usize = 88;

/// The header block's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: u64,
    /// Size of the file, so that a file cut short by something else is noticed.
    pub(super) bytes: u64,
    pub(super) salt: u32,
    /// The record before the first one.
    pub(super) base: Position,
}

/// What stands where a header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Header(Header),
    /// Nothing readable: never used, half-made, or damaged.
    Nothing,
    /// A whole header of a newer format.
    Newer(u32),
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        for v in [self.seq, self.bytes, self.base.lsn.next().0] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for v in [self.base.epoch.0, self.base.lsn.0, self.base.ts.0] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.base.chain.0);
        out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
        out
    }

    pub(super) fn decode(block: &[u8]) -> Found {
        Self::read(block).unwrap_or(Found::Nothing)
    }

    fn read(block: &[u8]) -> Option<Found> {
        let head = block.get(..HEADER_LEN)?;
        let (fields, sum) = head.split_last_chunk::<8>()?;
        let mut c = Cursor::new(fields);
        if c.array().ok()? != MAGIC || u64::from_le_bytes(*sum) != xxh3_64(fields) {
            return None;
        }
        let version = c.u32().ok()?;
        if version != VERSION {
            return Some(Found::Newer(version));
        }
        let salt = c.u32().ok()?;
        let (seq, bytes, first) = (c.u64().ok()?, c.u64().ok()?, c.u64().ok()?);
        let base = Position {
            epoch: Epoch(c.u64().ok()?),
            lsn: Lsn(c.u64().ok()?),
            ts: CommitTs(c.u64().ok()?),
            chain: Chain(c.array().ok()?),
        };
        (first == base.lsn.next().0 && salt != 0).then_some(Found::Header(Header { seq, bytes, salt, base }))
    }
}

/// Name of a segment's file.
pub(super) fn path(log_dir: &Path, seq: u64) -> PathBuf {
    log_dir.join(format!("{seq:016x}.log"))
}

/// The sequence number that a file name carries, if it is that of a segment.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".log")?;
    let plain = hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if plain { u64::from_str_radix(hex, 16).ok() } else { None }
}

/// Name of a segment that was released and waits to be used again.
pub(super) fn spare_path(log_dir: &Path, seq: u64) -> PathBuf {
    log_dir.join(format!("{seq:016x}.spare"))
}

/// Whether a file name is that of such a segment.
pub(super) fn is_spare_name(name: &str) -> bool {
    name.strip_suffix(".spare").is_some_and(|number| parse_name(&format!("{number}.log")).is_some())
}

/// The salt of the segment behind one with this salt: never 0, and another one for 2^32 segments.
pub(super) const fn next_salt(before: u32) -> u32 {
    match before.wrapping_add(1) {
        0 => 1,
        salt => salt,
    }
}

/// Writes zeros to `from..to` in pieces.
pub(super) fn write_zeros(file: &dyn File, from: u64, to: u64) -> std::io::Result<()> {
    let mut at = from;
    let zeros = [0; WRITE];
    while at < to {
        let n = usize::try_from(to - at).unwrap_or(WRITE).min(WRITE);
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

fn sync_names(env: &Env, log_dir: &Path) -> Result<()> {
    if planted(Bug::SkipDirectorySync) {
        return Ok(());
    }
    // Not `Error::io`: a directory sync that failed for want of room is final as well.
    env.fs.sync_dir(log_dir).map_err(|source| Error::Io { action: "sync", path: log_dir.to_owned(), source })
}

/// A segment in the making or made ahead: no header yet, and no frames but those of an older use.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) seq: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) bytes: u64,
    work: Work,
}

/// What is still to be done to a blank segment.
#[derive(Debug)]
enum Work {
    /// Zeros from here on.
    Fill(u64),
    Sync,
    /// The released segment of this name takes the blank one's.
    Adopt(PathBuf),
    None,
}

impl Blank {
    /// Creates the file. Its name is durable only when [`Blank::fill`] says so.
    pub(super) fn create(env: &Env, log_dir: &Path, seq: u64, bytes: u64) -> Result<Self> {
        let path = path(log_dir, seq);
        let file = env.fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self { seq, path, file, bytes, work: Work::Fill(0) })
    }

    /// Makes the released segment `spare` the next blank one. None when it has another size.
    pub(super) fn of_spare(env: &Env, log_dir: &Path, seq: u64, bytes: u64, spare: PathBuf) -> Result<Option<Self>> {
        let io = |e| Error::io("open", &spare, e);
        let file = env.fs.open(&spare, OpenMode::Write).map_err(io)?;
        let fits = file.len().map_err(io)? == bytes;
        Ok(fits.then(|| Self { seq, path: path(log_dir, seq), file, bytes, work: Work::Adopt(spare) }))
    }

    /// The name that the file has now.
    pub(super) fn name(&self) -> &Path {
        if let Work::Adopt(spare) = &self.work { spare } else { &self.path }
    }

    /// Does one more piece of the work. True when the segment is ready for use.
    pub(super) fn fill(&mut self, env: &Env, log_dir: &Path) -> Result<bool> {
        match &self.work {
            Work::Fill(from) => {
                let to = (from + PIECE as u64).min(self.bytes);
                write_zeros(&*self.file, *from, to).map_err(|e| Error::io("write", &self.path, e))?;
                self.work = if to < self.bytes { Work::Fill(to) } else { Work::Sync };
            }
            Work::Sync => {
                self.file.sync_data().map_err(|e| Error::io("sync", &self.path, e))?;
                sync_names(env, log_dir)?;
                self.work = Work::None;
            }
            Work::Adopt(spare) => {
                // Under a name of the log it must not have the header of another segment, nor old bytes where the
                // end of an empty one is.
                if !planted(Bug::KeepOldHeader) {
                    let to = (FRAMES_AT + FIRST_ZEROS).min(self.bytes);
                    write_zeros(&*self.file, 0, to).map_err(|e| Error::io("write", spare, e))?;
                }
                self.file.sync_data().map_err(|e| Error::io("sync", spare, e))?;
                env.fs.rename(spare, &self.path).map_err(|e| Error::io("rename", spare, e))?;
                self.work = Work::Sync;
                sync_names(env, log_dir)?;
                self.work = Work::None;
            }
            Work::None => {}
        }
        Ok(matches!(self.work, Work::None))
    }

    /// Bytes still to be written.
    pub(super) const fn left(&self) -> u64 {
        if let Work::Fill(from) = self.work { self.bytes - from } else { 0 }
    }

    /// Gives the segment its place in the log.
    pub(super) fn into_segment(self, salt: u32, base: Position) -> Segment {
        Segment {
            seq: self.seq,
            path: self.path,
            file: self.file,
            bytes: self.bytes,
            salt,
            base,
            index: Mutex::default(),
            next_noted: AtomicU64::new(0),
            header_synced: AtomicBool::new(false),
        }
    }
}

/// A segment of the log.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) seq: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) bytes: u64,
    pub(super) salt: u32,
    /// The record before the first one in here.
    pub(super) base: Position,
    index: Mutex<Vec<(Lsn, u64)>>,
    /// Below this offset no frame gets an index entry: most of them are seen off without the lock.
    next_noted: AtomicU64,
    header_synced: AtomicBool,
}

impl Segment {
    /// A segment found at recovery.
    pub(super) fn recovered(path: PathBuf, file: Arc<dyn File>, h: &Header, index: Vec<(Lsn, u64)>) -> Self {
        Self {
            seq: h.seq,
            path,
            file,
            bytes: h.bytes,
            salt: h.salt,
            base: h.base,
            index: Mutex::new(index),
            next_noted: AtomicU64::new(0),
            header_synced: AtomicBool::new(true),
        }
    }

    pub(super) fn header(&self) -> Header {
        Header { seq: self.seq, bytes: self.bytes, salt: self.salt, base: self.base }
    }

    /// Whether the header is on disk, so that recovery can start with this segment.
    pub(super) fn header_synced(&self) -> bool {
        self.header_synced.load(Ordering::Acquire)
    }

    /// Writes the header and syncs it.
    pub(super) fn write_header(&self) -> std::io::Result<()> {
        self.file.write_all_at(&self.header().encode(), 0)?;
        self.file.sync_data()?;
        self.header_synced.store(true, Ordering::Release);
        Ok(())
    }

    /// Notes that the frame of record `lsn` starts at `offset`.
    pub(super) fn note(&self, lsn: Lsn, offset: u64) {
        if offset < self.next_noted.load(Ordering::Relaxed) {
            return;
        }
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let next = index_push(&mut index, lsn, offset);
        self.next_noted.store(next, Ordering::Relaxed);
    }

    /// An offset at which a frame starts, at or before that of the first record at or above `lsn`.
    pub(super) fn seek(&self, lsn: Lsn) -> u64 {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let after = index.partition_point(|(l, _)| *l <= lsn);
        after.checked_sub(1).and_then(|i| index.get(i)).map_or(FRAMES_AT, |(_, offset)| *offset)
    }

    /// Forgets what lies above `lsn`.
    pub(super) fn forget_above(&self, lsn: Lsn) {
        self.index.lock().unwrap_or_else(PoisonError::into_inner).retain(|(l, _)| *l <= lsn);
        self.next_noted.store(0, Ordering::Relaxed);
    }
}

/// Adds an index entry if the last one is far enough away; the offset from which on the next one will be.
pub(super) fn index_push(index: &mut Vec<(Lsn, u64)>, lsn: Lsn, offset: u64) -> u64 {
    let next = index.last().map_or(FRAMES_AT, |(_, o)| *o) + INDEX_EVERY;
    if offset < next {
        return next;
    }
    index.push((lsn, offset));
    offset + INDEX_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_of_a_header_is_noticed() {
        let base = Position { epoch: Epoch(2), lsn: Lsn(9), chain: Chain([3; 16]), ts: CommitTs(44) };
        let header = Header { seq: 5, bytes: 1 << 20, salt: 77, base };
        let block = header.encode();
        assert_eq!(block.len(), HEADER_LEN);
        assert_eq!(Header::decode(&block), Found::Header(header));
        for bit in 0..block.len() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad), Found::Nothing, "bit {bit}");
        }
        assert_eq!(Header::decode(&block[..50]), Found::Nothing);
    }

    #[test]
    fn names_round_trip_and_others_are_not_ours() {
        let p = path(Path::new("x"), 0x1f);
        assert_eq!(p, Path::new("x/000000000000001f.log"));
        assert_eq!(parse_name("000000000000001f.log"), Some(0x1f));
        for other in ["1f.log", "000000000000001F.log", "000000000000001f", "+00000000000001f.log", "cut"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
        let spare = spare_path(Path::new("x"), 0x1f);
        assert_eq!(spare, Path::new("x/000000000000001f.spare"));
        assert!(is_spare_name("000000000000001f.spare"));
        for other in ["1f.spare", "000000000000001f.log", ".spare", "000000000000001f.log.spare"] {
            assert!(!is_spare_name(other), "{other}");
        }
    }

    #[test]
    fn salts_are_never_zero_and_do_not_repeat() {
        assert_eq!([1, 7, u32::MAX - 1, u32::MAX].map(next_salt), [2, 8, u32::MAX, 1]);
    }
}
