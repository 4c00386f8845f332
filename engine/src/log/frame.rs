//! The frame around a record in a log file: what only this node knows of it.
//!
//! ```text
//! 0  record_len  u32   0 = a mark: evidence without a record
//! 4  salt        u32   the segment's; a stale frame of a reused block has another
//! 8  durable     u64   LSN this node knew to be durable when it wrote the frame
//! 16 checksum    u64   xxh3-64 over the 16 bytes above and the record's own checksum
//! 24 record, padded with zeros to 8
//! ```
//!
//! Records are the same bytes on every node; durability is a fact about one disk, so it stands
//! outside of them \[I4\]. Owns: encode and decode of frames. Never: files.

use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Cursor;
use crate::lsn::Lsn;
use crate::record::{HEADER_BYTES, RECORD_BYTES_MAX, Record, RecordError};

/// Bytes in front of a record.
pub(super) const FRAME_BYTES: usize = 24;

/// Bytes a record of this length takes in a file.
pub(super) const fn frame_len(record_len: usize) -> usize {
    FRAME_BYTES + record_len.next_multiple_of(8)
}

fn checksum(head: &[u8], record: &[u8]) -> u64 {
    let mut input = [0u8; 24];
    let (a, b) = input.split_at_mut(16);
    a.copy_from_slice(head);
    if let Some(sum) = record.first_chunk::<8>() {
        b.copy_from_slice(sum);
    }
    xxh3_64(&input)
}

/// Closes a frame whose record was appended to `out` behind 24 reserved bytes at `start`.
pub(super) fn seal(out: &mut Vec<u8>, start: usize, salt: u32, durable: Lsn) {
    let len = out.len() - start - FRAME_BYTES;
    let mut head = [0u8; 16];
    head[..4].copy_from_slice(&(len as u32).to_le_bytes());
    head[4..8].copy_from_slice(&salt.to_le_bytes());
    head[8..].copy_from_slice(&durable.0.to_le_bytes());
    let sum = checksum(&head, &out[start + FRAME_BYTES..]);
    out[start..start + 16].copy_from_slice(&head);
    out[start + 16..start + FRAME_BYTES].copy_from_slice(&sum.to_le_bytes());
    out.resize(start + frame_len(len), 0);
}

/// A frame read back.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// What the node knew to be durable.
    pub(super) durable: Lsn,
    /// The record; none in a mark.
    pub(super) record: Option<Record<'a>>,
    /// Bytes taken in the file.
    pub(super) len: usize,
}

/// What stands where a frame was expected.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A whole frame.
    Frame(Frame<'a>),
    /// Zeros where the header would be.
    Nothing,
    /// Something else; why it is no frame.
    Bad(&'static str),
}

/// Reads what stands at the front of `bytes`.
pub(super) fn decode(bytes: &[u8], salt: u32) -> Found<'_> {
    let Some((head, rest)) = bytes.split_at_checked(FRAME_BYTES) else { return Found::Nothing };
    if head.iter().all(|b| *b == 0) {
        return Found::Nothing;
    }
    let mut c = Cursor::new(head);
    let (Ok(len), Ok(found_salt), Ok(durable), Ok(sum)) = (c.u32(), c.u32(), c.u64(), c.u64()) else {
        return Found::Bad("the frame ends early");
    };
    let len = len as usize;
    if found_salt != salt {
        return Found::Bad("the frame belongs to another segment");
    }
    if len > RECORD_BYTES_MAX || (len != 0 && len < HEADER_BYTES) {
        return Found::Bad("the frame's length is out of bounds");
    }
    let Some((record, _)) = rest.split_at_checked(len) else { return Found::Bad("the record ends early") };
    let (head16, _) = head.split_at(16);
    if sum != checksum(head16, record) && !crate::fault::planted(crate::fault::Bug::IgnoreChecksum) {
        return Found::Bad("the frame's checksum does not match");
    }
    if len == 0 {
        return Found::Frame(Frame { durable: Lsn(durable), record: None, len: FRAME_BYTES });
    }
    match Record::decode(record) {
        Ok(r) if r.bytes.len() == len => {
            Found::Frame(Frame { durable: Lsn(durable), record: Some(r), len: frame_len(len) })
        }
        Ok(_) => Found::Bad("frame and record disagree about their length"),
        Err(RecordError::Checksum) => Found::Bad("the record's checksum does not match"),
        Err(_) => Found::Bad("the record is malformed"),
    }
}
