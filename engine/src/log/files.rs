//! What recovery reads from disk before it judges: the files with the names of segments, and what stands in one
//! that is not part of the log.
//!
//! Owns: bounded reads, and telling this segment's frames from those of an older use. Never: the decision what was
//! durable (`recovery`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame;
use super::segment::{self, FRAMES_AT, Found, HEADER_LEN, Header};
use crate::env::Env;
use crate::error::{Error, Result};
use crate::fs::{File, OpenMode};
use crate::limits::SEGMENT_BYTES_MAX;
use crate::lsn::Lsn;
use crate::record::Record;

/// A file with the name of a segment.
pub(super) struct Candidate {
    pub(super) seq: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) bytes: u64,
    pub(super) header: Found,
}

/// All of them, in the order of their numbers, with their headers.
pub(super) fn find(env: &Env, log_dir: &Path, names: &[String]) -> Result<Vec<Candidate>> {
    let mut seqs: Vec<u64> = names.iter().filter_map(|n| segment::parse_name(n)).collect();
    seqs.sort_unstable();
    let candidate = |seq| {
        let path = segment::path(log_dir, seq);
        let file = env.fs.open(&path, OpenMode::Write).map_err(|e| Error::io("open", &path, e))?;
        let bytes = file.len().map_err(|e| Error::io("read", &path, e))?;
        if bytes > SEGMENT_BYTES_MAX {
            let what = format!("file of {bytes} bytes, over the bound of {SEGMENT_BYTES_MAX}");
            return Err(Error::corruption(&path, 0, None, what));
        }
        let header = Header::decode(&read_first(&*file, &path, bytes.min(HEADER_LEN as u64))?);
        Ok(Candidate { seq, path, file, bytes, header })
    };
    seqs.into_iter().map(candidate).collect()
}

/// The first `len` bytes of a segment, whose length was checked.
pub(super) fn read_first(file: &dyn File, path: &Path, len: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    crate::fs::read_exact_at(file, &mut bytes, 0).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// Bytes behind the end that must go: up to the end of the last frame of this segment, and at least what stands in
/// the place of the zeros behind the last group.
pub(super) fn torn_len(rest: &[u8], salt: u32) -> usize {
    let at_end = rest.get(..frame::HEADER_BYTES).unwrap_or(rest);
    let no_end = if at_end.iter().any(|b| *b != 0) { at_end.len() } else { 0 };
    let reach = |at: usize| at + rest.get(at..).map_or(0, frame::claimed_len);
    frame::places(rest, salt).map(reach).max().unwrap_or(0).max(no_end).min(rest.len())
}

/// Places that look like a frame and hold no whole record, each of which may claim to be as long as the longest one: more
/// are not looked into.
const FALSE_FRAMES_MAX: usize = 1024;

/// What stands in a segment without a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Headerless {
    /// No record that the log does not hold or held already.
    Unused,
    /// A record above that: offset and LSN.
    Record(u64, Lsn),
    /// Too much like frames to tell; looked into up to this offset.
    Unclear(u64),
}

impl Headerless {
    /// What is wrong with the segment, if anything is.
    pub(super) fn damage(self) -> Option<String> {
        match self {
            Headerless::Unused => None,
            Headerless::Record(offset, lsn) => {
                Some(format!("the header is damaged; a record of LSN {lsn} stands at offset {offset}"))
            }
            // Rather refused than given up in silence.
            Headerless::Unclear(offset) => Some(format!(
                "the header is damaged, and up to offset {offset} too much looks like frames to say that no record is lost"
            )),
        }
    }
}

/// The salt that the segment `seq` without a header has if it was in use, by number and salt of one before it: both go up
/// together.
pub(super) fn expected_salt(before: Option<(u64, u32)>, seq: u64) -> Option<u32> {
    // A number far ahead is none that the log gave.
    let (number, salt) = before.filter(|(number, _)| seq.saturating_sub(*number) <= 1 << 16)?;
    Some((number..seq).fold(salt, |s, _| segment::next_salt(s)))
}

/// A segment's bytes, all at once or a window at a time.
pub(super) trait Bytes {
    /// The bytes from `at` on: at least `need` unless the segment ends before.
    fn from(&mut self, at: u64, need: usize) -> Result<&[u8]>;
}

impl Bytes for &[u8] {
    fn from(&mut self, at: u64, _: usize) -> Result<&[u8]> {
        Ok(usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default())
    }
}

/// Looks for a record above `above` in a segment without a header, whose frames have the salt `expected` if that is known.
/// Bytes of an older use may be anything, values that look like frames included: only a salt that is known tells them
/// apart. A frame at the first place is of the present use whatever its salt, for a file gets its name with zeros there.
pub(super) fn find_record(bytes: &mut impl Bytes, above: Lsn, expected: Option<u32>) -> Result<Headerless> {
    let (mut at, mut false_frames) = (FRAMES_AT, 0);
    let salt = frame_at(bytes, at, None)?.map(|(_, salt)| salt).or(expected);
    loop {
        if bytes.from(at, 1)?.is_empty() {
            return Ok(Headerless::Unused);
        }
        let Some((len, _)) = frame_at(bytes, at, salt)? else {
            at += 8;
            continue;
        };
        let framed = frame::decode(bytes.from(at, len)?, salt).map(|f| Record::decode(f.record).map(|r| r.header.lsn));
        match framed {
            Ok(Ok(lsn)) if lsn > above => return Ok(Headerless::Record(at, lsn)),
            // What stands inside of a whole frame is no frame.
            Ok(Ok(_)) => at += len as u64,
            Ok(Err(_)) if false_frames == FALSE_FRAMES_MAX => return Ok(Headerless::Unclear(at)),
            Ok(Err(_)) => {
                false_frames += 1;
                at += 8;
            }
            Err(_) => at += 8,
        }
    }
}

/// Length and salt of the frame at `at` whose own check holds, all of which the segment has.
fn frame_at(bytes: &mut impl Bytes, at: u64, salt: Option<u32>) -> Result<Option<(usize, u32)>> {
    let mut need = frame::HEADER_BYTES + 8;
    loop {
        let found = bytes.from(at, need)?;
        match frame::decode(found, salt) {
            Ok(f) => {
                let salt = found.get(4..8).and_then(|s| s.first_chunk()).map_or(0, |s| u32::from_le_bytes(*s));
                return Ok(Some((f.len, salt)));
            }
            // Otherwise the segment ends before the frame does.
            Err(frame::NoFrame::Short(n)) if found.len() >= need => need = n,
            Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::frame;
    use super::{FALSE_FRAMES_MAX, FRAMES_AT, Headerless, find_record, torn_len};
    use crate::lsn::Lsn;

    #[test]
    fn too_much_that_looks_like_frames_is_not_called_unused() {
        // A whole frame around 40 bytes that are no record.
        let mut frame = vec![0; frame::HEADER_BYTES];
        frame.extend_from_slice(&[7; 40]);
        frame::seal(&mut frame, 0, 9, Lsn(3));
        let segment = |count: usize| [vec![0; FRAMES_AT as usize], frame.repeat(count), vec![0; 64]].concat();
        let find = |bytes: &[u8], salt| find_record(&mut &bytes[..], Lsn(1), salt).unwrap();
        assert_eq!(find(&segment(FALSE_FRAMES_MAX), None), Headerless::Unused);
        let unclear = FRAMES_AT + (FALSE_FRAMES_MAX * frame.len()) as u64;
        assert_eq!(find(&segment(FALSE_FRAMES_MAX + 1), None), Headerless::Unclear(unclear));
        // Behind zeros, where an older use has its frames, none of it is one with another salt.
        let behind = |count| [vec![0; 64], segment(count)].concat();
        assert_eq!(find(&behind(FALSE_FRAMES_MAX + 1), Some(9)), Headerless::Unclear(unclear + 64));
        assert_eq!(find(&behind(FALSE_FRAMES_MAX + 1), Some(8)), Headerless::Unused);
    }

    #[test]
    fn what_goes_behind_the_end_is_this_segments() {
        let mut frame = vec![0; frame::HEADER_BYTES];
        frame.extend_from_slice(&[7; 40]);
        frame::seal(&mut frame, 0, 9, Lsn(3));
        assert_eq!((torn_len(&[], 9), torn_len(&[0; 1000], 9)), (0, 0));
        // Old bytes behind the zeros of the last group stay.
        let mut rest = vec![0; 24];
        rest.extend_from_slice(&[0xab; 5000]);
        assert_eq!(torn_len(&rest, 9), 0);
        // A frame of this segment goes, and all before it; that of another use stays.
        rest[1024..1024 + frame.len()].copy_from_slice(&frame);
        assert_eq!((torn_len(&rest, 9), torn_len(&rest, 8)), (1024 + frame.len(), 0));
        // No zeros where the end should be.
        rest[23] = 1;
        assert_eq!(torn_len(&rest, 8), 24);
        assert_eq!(torn_len(&[1; 8], 8), 8);
        // A length out of a torn frame reaches no further than the segment.
        assert_eq!(torn_len(&rest[..1024 + 16], 9), 1024 + 16);
    }
}
