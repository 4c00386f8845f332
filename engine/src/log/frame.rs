//! The frame: a record's local envelope, with the facts that are this node's own \[I4\].
//!
//! Owns: the frame's bytes and their check. Never: what a record means, where frames are kept.
//!
//! ```text
//!  0  record_len  u32   bytes of the record; 0 = a mark, which carries evidence only
//!  4  salt        u32   that of the segment, so that frames of an older use of the file do not count
//!  8  durable     u64   highest LSN that this node knew to be durable here when it wrote the frame
//! 16  checksum    u64   xxh3-64 over bytes 0..16 and the record's own checksum (0 for a mark)
//! 24  record, then zeros to a multiple of 8
//! ```

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Cursor;
use crate::fault::{Bug, planted};
use crate::lsn::Lsn;
use crate::record::RECORD_BYTES_MAX;

/// Bytes in front of the record, and the whole of a mark.
pub(super) const HEADER_BYTES: usize = 24;

/// A frame whose own checksum fits. Its record is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) durable: Lsn,
    /// Empty for a mark.
    pub(super) record: &'a [u8],
    /// Bytes to the next frame.
    pub(super) len: usize,
}

/// Why there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoFrame {
    /// The bytes end before the frame does; this many are needed.
    Short(usize),
    /// These bytes are no frame of this segment.
    Bad,
}

/// Bytes that a frame for a record of `record_len` bytes takes.
pub(super) const fn frame_len(record_len: usize) -> usize {
    HEADER_BYTES + record_len.next_multiple_of(8)
}

fn checksum(record_len: u32, salt: u32, durable: Lsn, record_checksum: [u8; 8]) -> u64 {
    let mut input = [0; 24];
    input[..4].copy_from_slice(&record_len.to_le_bytes());
    input[4..8].copy_from_slice(&salt.to_le_bytes());
    input[8..16].copy_from_slice(&durable.0.to_le_bytes());
    input[16..].copy_from_slice(&record_checksum);
    xxh3_64(&input)
}

/// Fills in the header in front of the record that starts at `start + HEADER_BYTES` of `out` and
/// ends with it, and pads. With nothing behind the header it becomes a mark.
pub(super) fn seal(out: &mut Vec<u8>, start: usize, salt: u32, durable: Lsn) {
    let record_len = out.len() - start - HEADER_BYTES;
    out.resize(start + frame_len(record_len), 0);
    // The callers bound records to `RECORD_BYTES_MAX`, which fits.
    let len = record_len as u32;
    let mut own = [0; 8];
    if record_len >= 8 {
        own.copy_from_slice(&out[start + HEADER_BYTES..start + HEADER_BYTES + 8]);
    }
    let sum = checksum(len, salt, durable, own);
    let header = &mut out[start..start + HEADER_BYTES];
    header[..4].copy_from_slice(&len.to_le_bytes());
    header[4..8].copy_from_slice(&salt.to_le_bytes());
    header[8..16].copy_from_slice(&durable.0.to_le_bytes());
    header[16..].copy_from_slice(&sum.to_le_bytes());
}

/// Reads the frame at the front of `bytes`. With `salt` none, any salt will do: for looking into a
/// segment whose header is damaged.
pub(super) fn decode(bytes: &[u8], salt: Option<u32>) -> Result<Frame<'_>, NoFrame> {
    let mut c = Cursor::new(bytes);
    let short = |_| NoFrame::Short(HEADER_BYTES);
    let len = c.u32().map_err(short)?;
    let found = c.u32().map_err(short)?;
    let durable = Lsn(c.u64().map_err(short)?);
    let sum = c.u64().map_err(short)?;
    let record_len = len as usize;
    // A salt is never 0, so zeros are no frame.
    let other = salt.is_some_and(|s| s != found) && !planted(Bug::IgnoreSalt);
    if found == 0 || other || record_len > RECORD_BYTES_MAX || (1..8).contains(&record_len) {
        return Err(NoFrame::Bad);
    }
    let body = c.take_rest();
    let own = if record_len == 0 { [0; 8] } else { *body.first_chunk().ok_or(NoFrame::Short(HEADER_BYTES + 8))? };
    if sum != checksum(len, found, durable, own) {
        return Err(NoFrame::Bad);
    }
    let record = body.get(..record_len).ok_or(NoFrame::Short(HEADER_BYTES + record_len))?;
    Ok(Frame { durable, record, len: frame_len(record_len) })
}

/// What the frame at the front of `bytes` says was durable, even when its record is torn: the
/// frame's own check covers that.
pub(super) fn evidence(bytes: &[u8], salt: u32) -> Option<Lsn> {
    match decode(bytes, Some(salt)) {
        Ok(f) => Some(f.durable),
        // The check passed, only the record reaches over the end.
        Err(NoFrame::Short(need)) if need > HEADER_BYTES + 8 => {
            let mut c = Cursor::new(bytes.get(8..)?);
            Some(Lsn(c.u64().ok()?))
        }
        Err(_) => None,
    }
}

/// Where frames of this segment may start, whole or torn: the places that carry its salt. `bytes` begin where a
/// frame may.
pub(super) fn places(bytes: &[u8], salt: u32) -> impl Iterator<Item = usize> {
    let salt = salt.to_le_bytes();
    bytes.chunks_exact(8).enumerate().filter(move |(_, c)| c.ends_with(&salt)).map(|(i, _)| i * 8)
}

/// How far the frame at the front of `bytes` says it reaches, checked or not: at least a header.
pub(super) fn claimed_len(bytes: &[u8]) -> usize {
    let len = bytes.first_chunk().map_or(0, |len| u32::from_le_bytes(*len) as usize);
    frame_len(if len > RECORD_BYTES_MAX { 0 } else { len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_of_another_salt_does_not_count() {
        let mut out = vec![0; HEADER_BYTES];
        out.extend_from_slice(b"a record of some bytes");
        seal(&mut out, 0, 7, Lsn(5));
        let f = decode(&out, Some(7)).unwrap();
        assert_eq!((f.durable, f.record, f.len), (Lsn(5), &b"a record of some bytes"[..], out.len()));
        assert_eq!(decode(&out, Some(8)), Err(NoFrame::Bad));
        assert_eq!(decode(&out[..30], Some(7)), Err(NoFrame::Short(HEADER_BYTES + 8)));
        assert!(decode(&out, None).is_ok());
    }

    #[test]
    fn a_mark_has_no_record_and_zeros_are_nothing() {
        let mut out = vec![0; HEADER_BYTES];
        seal(&mut out, 0, 7, Lsn(5));
        assert_eq!(decode(&out, Some(7)), Ok(Frame { durable: Lsn(5), record: &[], len: HEADER_BYTES }));
        assert_eq!(decode(&[0; 64], None), Err(NoFrame::Bad));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(decode(&bytes, None).is_err());
        }
    }
}
