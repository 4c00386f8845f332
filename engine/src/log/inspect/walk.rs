//! Whether the frames of a segment continue the log, in bounded steps, and what stands where they end.
//!
//! Owns: the same rules as recovery, without its repair. Never: guessing; a place that may be a write in
//! progress is read again before it counts.

use std::path::{Path, PathBuf};

use super::super::files::{expected_salt, find_record};
use super::super::frame;
use super::{SegmentHeader, SegmentReader, WINDOW_BYTES, Window};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::lsn::{Chain, Lsn, Position};
use crate::record::RECORD_BYTES_MAX;

/// Bytes behind the end of the log that are no whole frame: a write that a crash left unfinished, or one that is
/// being made. Recovery zeroes them; nothing in them was ever acknowledged as durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The segment.
    pub path: PathBuf,
    /// Where the log ends in it, in bytes.
    pub offset: u64,
    /// Bytes from there to the end of the last frame of this segment, or of what stands where its end should be.
    pub bytes: u64,
    /// The LSN that the record there would have.
    pub lsn: Lsn,
}

/// Where a segment's frames stop continuing the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Breach {
    pub(crate) offset: u64,
    /// What does not fit there; `None` when there is no frame at all.
    pub(crate) what: Option<String>,
}

/// A segment's frames on their way through the checks.
#[derive(Debug)]
pub(crate) struct SegmentWalk {
    reader: SegmentReader,
    pub(crate) header: SegmentHeader,
    /// Where the log stands after the frames passed.
    pub(crate) end: Position,
    pub(crate) records: u64,
    /// The highest LSN that a frame passed says was durable.
    pub(crate) evidence: Lsn,
    /// Looked for on the way: whether the log met this LSN, and as what.
    wanted: Lsn,
    pub(crate) met: Option<Position>,
    /// A cut that was decided: its end, and the first record it cuts.
    cut: Option<(Position, Chain)>,
    pub(crate) at_cut: bool,
    breach: Option<Breach>,
}

impl SegmentWalk {
    /// Begins at the first frame of a segment.
    pub(crate) fn open(
        fs: &dyn Fs,
        path: &Path,
        header: SegmentHeader,
        wanted: Lsn,
        cut: Option<(Position, Chain)>,
    ) -> Result<Self> {
        let reader = SegmentReader::open(fs, path, &header)?;
        let mut walk = Self {
            reader,
            header,
            end: header.base,
            records: 0,
            evidence: header.base.lsn,
            wanted,
            met: None,
            cut,
            at_cut: false,
            breach: None,
        };
        walk.meet();
        Ok(walk)
    }

    /// Follows about so many bytes of frames, at least one; how many it was, `None` where the log ends in here.
    pub(crate) fn step(&mut self, bytes: u64) -> Result<Option<u64>> {
        let from = self.reader.offset();
        while self.reader.offset() - from < bytes.max(1) {
            if !self.frame()? {
                return Ok(None);
            }
        }
        Ok(Some(self.reader.offset() - from))
    }

    /// Where the frames end, and why.
    pub(crate) fn breach(&self) -> Breach {
        self.breach.clone().unwrap_or(Breach { offset: self.reader.offset(), what: None })
    }

    /// Whether the walk goes on when what it ended at is read again.
    pub(crate) fn look_again(&mut self) -> Result<bool> {
        if self.at_cut {
            return Ok(false);
        }
        self.reader.look_again();
        self.breach = None;
        self.frame()
    }

    fn meet(&mut self) {
        if self.end.lsn == self.wanted {
            self.met = Some(self.end);
        }
    }

    /// Checks the next frame and passes it if it continues the log.
    fn frame(&mut self) -> Result<bool> {
        let offset = self.reader.offset();
        let after = match self.reader.next() {
            Err(Error::Corruption { what, .. }) => Err(Some(what)),
            Err(e) => return Err(e),
            Ok(None) => Err(None),
            Ok(Some(f)) => match f.record {
                None => Ok((f.durable, None)),
                Some(r) if self.cut.is_some_and(|(end, first)| end == self.end && first == r.chain) => {
                    self.at_cut = true;
                    Err(None)
                }
                Some(r) => match r.follows(&self.end) {
                    Ok(()) => Ok((f.durable, Some(r.position()))),
                    Err(e) => Err(Some(e.to_string())),
                },
            },
        };
        match after {
            Ok((durable, position)) => {
                self.evidence = self.evidence.max(durable);
                self.records += u64::from(position.is_some());
                self.end = position.unwrap_or(self.end);
                self.meet();
                Ok(true)
            }
            Err(what) => {
                self.reader.at = offset;
                self.breach = Some(Breach { offset, what });
                Ok(false)
            }
        }
    }
}

/// What stands behind `from`, where the log ends: the first frame of this salt whose own check holds and which says that
/// an LSN at or above `lsn` was durable, and how far frames of this salt reach, torn ones included. Bytes of an older
/// use of the file are none of it; but where the next frame would begin there must be zeros.
pub(crate) fn find_evidence(
    fs: &dyn Fs,
    path: &Path,
    salt: u32,
    from: u64,
    lsn: Lsn,
) -> Result<(Option<(u64, Lsn)>, u64)> {
    let mut window = Window::open(fs, path)?;
    let end = window.end;
    let first = window.from(from, frame::HEADER_BYTES)?;
    let first = first.get(..frame::HEADER_BYTES).unwrap_or(first);
    let no_end = if first.iter().any(|b| *b != 0) { first.len() as u64 } else { 0 };
    let (mut found, mut last) = (None, from + no_end);
    scan(fs, path, from, |at, bytes| {
        if bytes.get(4..8) != Some(&salt.to_le_bytes()) {
            return;
        }
        let said = bytes.first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
        last = last.max(at + frame::frame_len(said.min(RECORD_BYTES_MAX)) as u64);
        if found.is_none()
            && let Some(durable) = frame::evidence(bytes, salt).filter(|d| *d >= lsn)
        {
            found = Some((at, durable));
        }
    })?;
    Ok((found, last.min(end).saturating_sub(from)))
}

/// What is wrong with the segment `seq` without a header, behind a log that ends at `end`, by the rules of recovery.
/// `before`: number and salt of a segment before it.
pub(crate) fn headerless_damage(
    fs: &dyn Fs,
    path: &Path,
    seq: u64,
    end: Lsn,
    before: Option<(u64, u32)>,
) -> Result<Option<String>> {
    Ok(find_record(&mut Window::open(fs, path)?, end, expected_salt(before, seq))?.damage())
}

/// Bytes that a look at one place needs: a frame's header and the checksum of its record.
const LOOK_BYTES: usize = frame::HEADER_BYTES + 8;

/// Shows every place from `from` on at which a frame could stand, with at least [`LOOK_BYTES`] where the file has
/// them. Places in pages of zeros are left out.
fn scan(fs: &dyn Fs, path: &Path, from: u64, mut look: impl FnMut(u64, &[u8])) -> Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut window = Window::open(fs, path)?;
    let mut at = from;
    while at < window.end {
        let bytes = window.from(at, WINDOW_BYTES + LOOK_BYTES)?;
        let whole = bytes.len().min(WINDOW_BYTES);
        let mut next = 0;
        while next < whole {
            let rest = bytes.get(next..).unwrap_or_default();
            if rest.starts_with(&ZEROS) {
                next += ZEROS.len();
                continue;
            }
            look(at + next as u64, rest);
            next += 8;
        }
        at += whole.max(8) as u64;
    }
    Ok(())
}
