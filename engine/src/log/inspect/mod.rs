//! The log's files as values: segments, frames, cut tails, an intent to cut.
//!
//! Owns: reading them from outside, a window at a time. Never: a lock, a write, or a verdict (`walk`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files::Bytes;
use super::frame::{self, NoFrame};
use super::segment::{self, FRAMES_AT, Found, Header};
use crate::error::{Error, Result};
use crate::fs::{File, Fs, OpenMode, read_exact_at};
use crate::lsn::{Lsn, Position};
use crate::record::Record;

mod tails;
mod walk;

#[cfg(feature = "sim")]
pub(super) use tails::parse_cut_tail_name;
pub use tails::{CutTailFile, RecordFile, cut_tails};
pub(crate) use tails::{Intended, read_cut_intent};
pub use walk::Unfinished;
pub(crate) use walk::{SegmentWalk, find_evidence, headerless_damage};

/// Read from a file at a time, in bytes.
pub(super) const WINDOW_BYTES: usize = 256 << 10;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment, also its name.
    pub sequence: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Marks the frames of this use of the file.
    pub salt: u32,
    /// The record before the first one in here.
    pub base: Position,
}

impl From<Header> for SegmentHeader {
    fn from(h: Header) -> Self {
        Self { sequence: h.seq, bytes: h.bytes, salt: h.salt, base: h.base }
    }
}

/// What stands where a segment's header should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// A header: the segment is part of the log.
    Used(SegmentHeader),
    /// None that can be read: made ahead and not used yet, or damaged.
    Blank,
    /// One of a newer format.
    Newer(u32),
}

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The file.
    pub path: PathBuf,
    /// The number that its name carries.
    pub sequence: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What its header says.
    pub state: SegmentState,
}

impl LogFile {
    /// Reads the header of a segment's file.
    ///
    /// # Errors
    /// `Directory` when the name is not that of a segment, `Io`.
    pub fn read(fs: &dyn Fs, path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let sequence = segment::parse_name(name).ok_or_else(|| Error::Directory {
            path: path.to_owned(),
            what: "is not named like a log segment ({sequence:016x}.log)".into(),
        })?;
        let io = |e| Error::io("read", path, e);
        let file = fs.open(path, OpenMode::Read).map_err(io)?;
        let bytes = file.len().map_err(io)?;
        let mut head = vec![0; usize::try_from(bytes.min(FRAMES_AT)).unwrap_or_default()];
        read_exact_at(&*file, &mut head, 0).map_err(io)?;
        let state = match Header::decode(&head) {
            Found::Header(h) => SegmentState::Used(h.into()),
            Found::Nothing => SegmentState::Blank,
            Found::Newer(v) => SegmentState::Newer(v),
        };
        Ok(Self { path: path.to_owned(), sequence, bytes, state })
    }

    /// Its header, if it has one of this format.
    #[must_use]
    pub const fn header(&self) -> Option<SegmentHeader> {
        match self.state {
            SegmentState::Used(h) => Some(h),
            SegmentState::Blank | SegmentState::Newer(_) => None,
        }
    }
}

/// The segments in a directory `log/`, in order. Files that vanish meanwhile are left out.
///
/// # Errors
/// `Io`.
pub fn log_files(fs: &dyn Fs, log_dir: &Path) -> Result<Vec<LogFile>> {
    let names = fs.list(log_dir).map_err(|e| Error::io("list", log_dir, e))?;
    let mut out = Vec::new();
    for name in names.iter().filter(|n| segment::parse_name(n).is_some()) {
        match LogFile::read(fs, &log_dir.join(name)) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => out.push(other?),
        }
    }
    out.sort_by_key(|f| f.sequence);
    Ok(out)
}

/// A file read through one window, so that memory is bounded by the largest piece asked for.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn File>,
    path: PathBuf,
    /// Where the file ends for this reader.
    pub(super) end: u64,
    buf: Vec<u8>,
    buf_at: u64,
}

impl Window {
    pub(super) fn open(fs: &dyn Fs, path: &Path) -> Result<Self> {
        let file = fs.open(path, OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
        let end = file.len().map_err(|e| Error::io("measure", path, e))?;
        Ok(Self { file, path: path.to_owned(), end, buf: Vec::new(), buf_at: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes from `at` on: at least `need` unless the file ends before, and what else the window holds.
    pub(super) fn from(&mut self, at: u64, need: usize) -> Result<&[u8]> {
        let left = usize::try_from(self.end.saturating_sub(at)).unwrap_or(usize::MAX);
        let need = need.min(left);
        let held = (self.buf_at + self.buf.len() as u64).checked_sub(at).filter(|_| at >= self.buf_at);
        if held.is_none_or(|held| held < need as u64) {
            self.buf.resize(need.max(WINDOW_BYTES).min(left), 0);
            self.buf_at = at;
            let read = read_exact_at(&*self.file, &mut self.buf, at);
            if let Err(e) = read {
                self.buf.clear();
                return Err(Error::io("read", &self.path, e));
            }
        }
        let start = usize::try_from(at - self.buf_at).unwrap_or(usize::MAX);
        Ok(self.buf.get(start..).unwrap_or_default())
    }

    /// What was read may have changed since.
    pub(super) fn forget(&mut self) {
        self.buf.clear();
    }
}

impl Bytes for Window {
    fn from(&mut self, at: u64, need: usize) -> Result<&[u8]> {
        Window::from(self, at, need)
    }
}

/// A frame, borrowed from the window it was read through.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    /// Where it begins in the file.
    pub offset: u64,
    /// Its length with padding.
    pub bytes: u64,
    /// The highest LSN that the node knew to be durable when it wrote the frame.
    pub durable: Lsn,
    /// The record, checked against its own checksum; `None` for a mark.
    pub record: Option<Record<'a>>,
}

/// Goes through the frames of one segment.
#[derive(Debug)]
pub struct SegmentReader {
    window: Window,
    salt: u32,
    at: u64,
}

impl SegmentReader {
    /// Stands before the first frame of a segment with this header.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(fs: &dyn Fs, path: &Path, header: &SegmentHeader) -> Result<Self> {
        Ok(Self { window: Window::open(fs, path)?, salt: header.salt, at: FRAMES_AT })
    }

    /// Where the next frame begins.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.at
    }

    /// The next frame; `None` where none stands: the end of what was written, or damage.
    ///
    /// # Errors
    /// `Corruption` for a frame whose record does not hold, `Io`.
    #[expect(clippy::should_implement_trait, reason = "it lends from its window")]
    pub fn next(&mut self) -> Result<Option<FrameView<'_>>> {
        let at = self.at;
        let Some(len) = self.frame_len()? else { return Ok(None) };
        let path = self.window.path().to_owned();
        let salt = self.salt;
        let bytes = self.window.from(at, len)?;
        let Ok(f) = frame::decode(bytes, Some(salt)) else { return Ok(None) };
        let record = match f.record {
            [] => None,
            bytes => {
                let record = Record::decode(bytes).map_err(|e| Error::corruption(&path, at, None, e.to_string()))?;
                if record.bytes.len() != bytes.len() {
                    return Err(Error::corruption(&path, at, None, "the record is shorter than its frame says"));
                }
                Some(record)
            }
        };
        self.at = at + f.len as u64;
        Ok(Some(FrameView { offset: at, bytes: f.len as u64, durable: f.durable, record }))
    }

    /// Bytes of the next frame, all of which the segment has.
    fn frame_len(&mut self) -> Result<Option<usize>> {
        let mut need = frame::HEADER_BYTES + 8;
        let room = self.window.end.saturating_sub(self.at);
        loop {
            let bytes = self.window.from(self.at, need)?;
            let have = bytes.len();
            match frame::decode(bytes, Some(self.salt)) {
                Ok(f) if f.len as u64 <= room => return Ok(Some(f.len)),
                Err(NoFrame::Short(n)) if n > have && n as u64 <= room => need = n,
                Ok(_) | Err(_) => return Ok(None),
            }
        }
    }

    /// Reads again what it stands before: somebody may have written it meanwhile.
    pub(super) fn look_again(&mut self) {
        self.window.forget();
    }
}
