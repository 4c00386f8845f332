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
    Record(usize, Lsn),
    /// Too much like frames to tell; looked into up to this offset.
    Unclear(usize),
}

/// Looks for a record above `above` in a segment without a header, whose frames have `salt` if that is known. Bytes of
/// an older use may be anything, values that look like frames included: only a salt that is known tells them apart.
pub(super) fn find_record(bytes: &[u8], above: Lsn, salt: Option<u32>) -> Headerless {
    let (mut at, mut false_frames) = (FRAMES_AT as usize, 0);
    while let Some(rest) = bytes.get(at..).filter(|r| !r.is_empty()) {
        let framed = frame::decode(rest, salt).ok();
        match framed.map(|f| (f.len, Record::decode(f.record))) {
            Some((_, Ok(record))) if record.header.lsn > above => return Headerless::Record(at, record.header.lsn),
            // What stands inside of a whole frame is no frame.
            Some((len, Ok(_))) => at += len,
            Some((_, Err(_))) if false_frames == FALSE_FRAMES_MAX => return Headerless::Unclear(at),
            Some((_, Err(_))) => {
                false_frames += 1;
                at += 8;
            }
            None => at += 8,
        }
    }
    Headerless::Unused
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
        assert_eq!(find_record(&segment(FALSE_FRAMES_MAX), Lsn(1), None), Headerless::Unused);
        let unclear = find_record(&segment(FALSE_FRAMES_MAX + 1), Lsn(1), None);
        assert_eq!(unclear, Headerless::Unclear(FRAMES_AT as usize + FALSE_FRAMES_MAX * frame.len()));
        // With another salt none of it is a frame.
        assert_eq!(find_record(&segment(FALSE_FRAMES_MAX + 1), Lsn(1), Some(8)), Headerless::Unused);
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
