//! A segment: one file of the log, written to its full length with zeros before its first use, so
//! that a commit never waits for the file system to allocate.
//!
//! ```text
//! 0    magic [8] | format u32 | salt u32 | sequence u64
//! 24   base: epoch u64 | lsn u64 | commit_ts u64 | chain [16]   the record before the first
//! 64   checksum u64 (xxh3-64 of all before)
//! 4096 frames
//! ```
//!
//! A header of zeros is a segment that is prepared but not in use. The header is written only after
//! everything before it is synced, so it proves the segment before it complete. Owns: that format.
//! Never: records.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::{Cursor, Malformed};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::{File, OpenMode};
use crate::lsn::{Chain, CommitTs, Epoch, Lsn, Position};

/// Offset of the first frame.
pub(super) const FIRST_FRAME: u64 = 4096;
const MAGIC: [u8; 8] = *b"mslog\0\0\x01";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 72;
/// Distance between entries of the sparse index, in bytes.
const INDEX_STEP: u64 = 64 << 10;
const ZEROS: usize = 1 << 20;

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) salt: u32,
    pub(super) sequence: u64,
    pub(super) base: Position,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        for word in [self.base.epoch.0, self.base.lsn.0, self.base.ts.0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.base.chain.0);
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a header; `None` for a block of zeros (a prepared segment) or a torn one.
    pub(super) fn decode(path: &Path, bytes: &[u8]) -> Result<Option<Self>> {
        Self::parse(bytes).map_or(Ok(None), |(format, header)| {
            if format == FORMAT {
                Ok(Some(header))
            } else {
                Err(Error::Format { path: path.to_owned(), found: format, known: FORMAT })
            }
        })
    }

    fn parse(bytes: &[u8]) -> std::result::Result<(u32, Self), Malformed> {
        let mut c = Cursor::new(bytes);
        let magic = c.array::<8>()?;
        let format = c.u32()?;
        let (salt, sequence) = (c.u32()?, c.u64()?);
        let (epoch, lsn, ts) = (Epoch(c.u64()?), Lsn(c.u64()?), CommitTs(c.u64()?));
        let chain = Chain(c.array()?);
        let sum = c.u64()?;
        let covered = bytes.get(..HEADER_BYTES - 8).ok_or(Malformed("header"))?;
        if magic != MAGIC || sum != xxh3_64(covered) {
            return Err(Malformed("segment header"));
        }
        Ok((format, Self { salt, sequence, base: Position { epoch, lsn, chain, ts } }))
    }
}

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) header: SegmentHeader,
    pub(super) len: u64,
    /// LSN and offset of a frame every 64 KiB, ascending.
    pub(super) index: Vec<(Lsn, u64)>,
}

impl Segment {
    /// Remembers a frame if it is far enough from the last remembered one.
    pub(super) fn note(&mut self, lsn: Lsn, offset: u64) {
        if self.index.last().is_none_or(|(_, at)| offset >= at + INDEX_STEP) {
            self.index.push((lsn, offset));
        }
    }

    /// An offset at or before the frame of `lsn`.
    pub(super) fn seek(&self, lsn: Lsn) -> u64 {
        let after = self.index.partition_point(|(l, _)| *l <= lsn);
        after.checked_sub(1).and_then(|i| self.index.get(i)).map_or(FIRST_FRAME, |(_, at)| *at)
    }
}

/// The path of a segment.
pub(super) fn path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:016x}.log"))
}

/// The sequence number in a file name, if it is a segment's.
pub(super) fn sequence(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".log").filter(|h| h.len() == 16)?;
    u64::from_str_radix(hex, 16).ok().filter(|n| format!("{n:016x}") == hex)
}

/// Fills `from..to` with zeros, in bounded pieces.
pub(super) fn zero(file: &dyn File, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0u8; ZEROS];
    let mut at = from;
    while at < to {
        let n = ZEROS.min(usize::try_from(to - at).unwrap_or(ZEROS));
        file.write_all_at(zeros.get(..n).unwrap_or_default(), at)?;
        at += n as u64;
    }
    Ok(())
}

/// A segment file full of zeros, synced, whose header is not written yet.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) sequence: u64,
    pub(super) len: u64,
}

/// Makes a file of zeros. A failure leaves no file, so that a full disk costs nothing.
pub(super) fn prepare(env: &Env, dir: &Path, sequence: u64, len: u64) -> Result<Prepared> {
    let path = path(dir, sequence);
    let file = env.fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))?;
    if let Err(e) = zero(&*file, 0, len) {
        let _ = env.fs.remove_file(&path);
        return Err(Error::io("write", &path, e));
    }
    let synced = file.sync_data().and_then(|()| {
        if crate::fault::planted(crate::fault::Bug::SkipDirectorySync) { Ok(()) } else { env.fs.sync_dir(dir) }
    });
    match synced {
        Ok(()) => Ok(Prepared { path, file, sequence, len }),
        Err(e) => {
            let _ = env.fs.remove_file(&path);
            // Nothing of value was in it: no record is lost by this failure.
            Err(Error::io("sync", &path, e))
        }
    }
}
