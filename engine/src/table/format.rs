//! Frames, properties and footer of a table file; everything but the payload of data blocks.
//!
//! ```text
//! block frame   0 kind u8 | 1 codec u8 (0 raw, 1 LZ4 block) | 2 reserved u16 = 0 |
//!               4 stored length u32 | 8 raw length u32 | 12 checksum u64 | 20 stored bytes
//! footer        0 properties offset u64 | 8 properties length u32 | 12 table id u128 |
//!               28 checksum u64 | 36 format version u32 | 40 magic u64
//! ```
//! A block's checksum is xxh3-64 of the stored bytes, seeded with the hash of table id, file offset
//! and the frame's other fields: a block that is whole but in the wrong place fails. Owns: encode
//! and decode of these. Never: files.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{Cursor, Malformed, put_slice, put_varint};
use crate::fault::{Bug, planted};
use crate::limits::BATCH_BYTES_MAX;
use crate::lsn::{CommitTs, Lsn};

use super::RangeDelete;
use super::block::INTERNAL_KEY_MAX;
use super::spare;

/// Format version this program writes and the newest it reads.
pub(crate) const VERSION: u32 = 4;
const MAGIC: u64 = u64::from_le_bytes(*b"MSTABLE\x01");
/// Bytes in front of a block's stored bytes.
pub(super) const FRAME_BYTES: usize = 20;
/// Bytes at the end of the file.
pub(super) const FOOTER_BYTES: usize = 48;
/// Largest payload of any block: one maximal entry with its neighbours' slack.
pub(super) const RAW_BYTES_MAX: usize = BATCH_BYTES_MAX;
/// Payload size at which a section goes on in another block.
const SECTION_PART_BYTES: usize = 256 * 1024;
const CODEC_RAW: u8 = 0;
const CODEC_LZ4: u8 = 1;

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BlockKind {
    Data = 1,
    Ranges = 2,
    Times = 3,
    Filter = 4,
    Index = 5,
    Properties = 6,
}

fn seed(id: u128, offset: u64, frame: &[u8]) -> u64 {
    let mut input = [0u8; 36];
    for (to, from) in input.iter_mut().zip(id.to_le_bytes().iter().chain(&offset.to_le_bytes()).chain(frame)) {
        *to = *from;
    }
    xxh3_64(&input)
}

/// Appends `raw` as a block that will stand at `offset` of table `id`. `packed` is memory to work in.
pub(super) fn put_block(
    out: &mut Vec<u8>,
    packed: &mut Vec<u8>,
    (id, offset, kind): (u128, u64, BlockKind),
    raw: &[u8],
) {
    // The room is what the packer asks for: it has no other way to fail, and raw bytes serve as well.
    packed.resize(lz4::block::compress_bound(raw.len()).unwrap_or_default(), 0);
    let packed_len = lz4::block::compress_to_buffer(raw, None, false, packed).unwrap_or(raw.len());
    let packed = packed.get(..packed_len).filter(|p| p.len() < raw.len());
    let (codec, stored) = packed.map_or((CODEC_RAW, raw), |p| (CODEC_LZ4, p));
    let mut frame = [0u8; 12];
    frame[0] = kind as u8;
    frame[1] = codec;
    frame[4..8].copy_from_slice(&(stored.len() as u32).to_le_bytes());
    frame[8..12].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    let sum = xxh3_64_with_seed(stored, seed(id, offset, &frame));
    out.extend_from_slice(&frame);
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(stored);
}

/// Reads the block at the front of `c`, which stands at `offset` of table `id`; returns its payload.
pub(super) fn take_block(c: &mut Cursor<'_>, id: u128, offset: u64, kind: BlockKind) -> Result<Vec<u8>, Malformed> {
    let frame: [u8; 12] = c.array()?;
    let sum = c.u64()?;
    let mut f = Cursor::new(&frame);
    let (found_kind, codec, reserved) = (f.u8()?, f.u8()?, f.u16()?);
    let (stored_len, raw_len) = (f.u32()? as usize, f.u32()? as usize);
    let stored = c.bytes(stored_len)?;
    if sum != xxh3_64_with_seed(stored, seed(id, offset, &frame)) && !planted(Bug::IgnoreChecksum) {
        return Err(Malformed("block checksum does not match its bytes and place"));
    }
    if found_kind != kind as u8 || reserved != 0 {
        return Err(Malformed("block of another kind"));
    }
    match codec {
        CODEC_RAW if stored_len == raw_len => {
            let mut raw = spare::take(raw_len);
            raw.copy_from_slice(stored);
            Ok(raw)
        }
        CODEC_LZ4 => {
            // LZ4 packs at most 255 to 1: a larger claim is no reason to allocate. What it makes longer is stored raw,
            // so neither length is more than the packer's `int` holds.
            let possible =
                stored_len < raw_len && raw_len <= RAW_BYTES_MAX && raw_len <= stored_len.saturating_mul(255);
            let Some(wanted) = i32::try_from(raw_len).ok().filter(|_| possible) else {
                return Err(Malformed("uncompressed length over bound"));
            };
            let mut raw = spare::take(raw_len);
            match lz4::block::decompress_to_buffer(stored, Some(wanted), &mut raw) {
                Ok(n) if n == raw_len => Ok(raw),
                _ => Err(Malformed("block does not decompress to its length")),
            }
        }
        _ => Err(Malformed("block codec of a newer format")),
    }
}

/// Cuts a section's payload into blocks' payloads; nothing for an empty section.
pub(super) fn section_parts(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    payload.chunks(SECTION_PART_BYTES)
}

/// Joins the payloads of a section whose bytes stand at `offset`.
pub(super) fn take_section(bytes: &[u8], id: u128, offset: u64, kind: BlockKind) -> Result<Vec<u8>, Malformed> {
    let mut c = Cursor::new(bytes);
    let mut out = Vec::new();
    while !c.is_empty() {
        let at = offset + (bytes.len() - c.remaining()) as u64;
        out.append(&mut take_block(&mut c, id, at, kind)?);
    }
    Ok(out)
}

/// Where a section or block stands in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl Place {
    fn encode(self, out: &mut Vec<u8>) {
        put_varint(out, self.offset);
        put_varint(out, self.len);
    }

    fn decode(c: &mut Cursor<'_>) -> Result<Self, Malformed> {
        Ok(Self { offset: c.varint()?, len: c.varint()? })
    }

    pub(super) const fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// What made the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Origin {
    #[default]
    Flush = 1,
    Compaction = 2,
    /// Versions that newer ones superseded, by a flush or a compaction; see `superseded`.
    History = 3,
}

/// Facts about the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) origin: Origin,
    pub(crate) entries: u64,
    pub(crate) deletes: u64,
    pub(crate) expiring: u64,
    pub(crate) range_deletes: u64,
    pub(crate) data_blocks: u64,
    /// Payload of the data blocks before compression, in bytes.
    pub(crate) raw_bytes: u64,
    pub(crate) min_key: Vec<u8>,
    pub(crate) max_key: Vec<u8>,
    /// Of entries and range deletes; zero without any.
    pub(crate) min_lsn: Lsn,
    pub(crate) max_lsn: Lsn,
    /// Commit timestamp of the newest record the table stems from.
    pub(crate) max_ts: CommitTs,
    /// First and last LSN, and timestamps, of the times section; zero when it is empty.
    pub(crate) first_time: (Lsn, CommitTs),
    pub(crate) last_time: (Lsn, CommitTs),
    /// Earliest and latest expiry of the entries that have one, in microseconds of commit time; zero without.
    pub(crate) expiry: (u64, u64),
    /// Of a history table, the highest superseding LSN; zero otherwise.
    pub(crate) superseded: Lsn,
    pub(super) ranges: Place,
    pub(super) times: Place,
    pub(super) filter: Place,
    pub(super) index: Place,
}

impl Properties {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.origin as u8];
        let counts = [self.entries, self.deletes, self.expiring, self.range_deletes, self.data_blocks, self.raw_bytes];
        counts.into_iter().for_each(|n| put_varint(&mut out, n));
        put_slice(&mut out, &self.min_key);
        put_slice(&mut out, &self.max_key);
        for n in [self.min_lsn.0, self.max_lsn.0, self.max_ts.0] {
            put_varint(&mut out, n);
        }
        for (lsn, ts) in [self.first_time, self.last_time] {
            put_varint(&mut out, lsn.0);
            put_varint(&mut out, ts.0);
        }
        for n in [self.expiry.0, self.expiry.1, self.superseded.0] {
            put_varint(&mut out, n);
        }
        for place in [self.ranges, self.times, self.filter, self.index] {
            place.encode(&mut out);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(bytes);
        let origin = match c.u8()? {
            1 => Origin::Flush,
            2 => Origin::Compaction,
            3 => Origin::History,
            _ => return Err(Malformed("table origin of a newer format")),
        };
        let out = Self {
            origin,
            entries: c.varint()?,
            deletes: c.varint()?,
            expiring: c.varint()?,
            range_deletes: c.varint()?,
            data_blocks: c.varint()?,
            raw_bytes: c.varint()?,
            min_key: c.slice(INTERNAL_KEY_MAX)?.to_vec(),
            max_key: c.slice(INTERNAL_KEY_MAX)?.to_vec(),
            min_lsn: Lsn(c.varint()?),
            max_lsn: Lsn(c.varint()?),
            max_ts: CommitTs(c.varint()?),
            first_time: (Lsn(c.varint()?), CommitTs(c.varint()?)),
            last_time: (Lsn(c.varint()?), CommitTs(c.varint()?)),
            expiry: (c.varint()?, c.varint()?),
            superseded: Lsn(c.varint()?),
            ranges: Place::decode(&mut c)?,
            times: Place::decode(&mut c)?,
            filter: Place::decode(&mut c)?,
            index: Place::decode(&mut c)?,
        };
        c.finish()?;
        Ok(out)
    }
}

/// The last bytes of the file: who it is and where its properties stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) id: u128,
    pub(super) properties: Place,
}

/// Why a footer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FooterError {
    Malformed(Malformed),
    /// Whole, but of this newer version.
    Version(u32),
}

impl From<Malformed> for FooterError {
    fn from(m: Malformed) -> Self {
        Self::Malformed(m)
    }
}

impl Footer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(&self.properties.offset.to_le_bytes());
        out.extend_from_slice(&(self.properties.len as u32).to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        let sum = xxh3_64_with_seed(&out, u64::from(VERSION));
        out.extend_from_slice(&sum.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, FooterError> {
        let mut c = Cursor::new(bytes);
        let covered = c.bytes(28)?;
        let (sum, version, magic) = (c.u64()?, c.u32()?, c.u64()?);
        c.finish()?;
        if magic != MAGIC {
            return Err(Malformed("not a table file").into());
        }
        if sum != xxh3_64_with_seed(covered, u64::from(version)) {
            return Err(Malformed("footer checksum does not match its bytes").into());
        }
        if version != VERSION {
            return Err(FooterError::Version(version));
        }
        let mut c = Cursor::new(covered);
        let properties = Place { offset: c.u64()?, len: u64::from(c.u32()?) };
        Ok(Self { properties, id: c.u128()? })
    }
}

pub(super) fn encode_ranges(ranges: &[RangeDelete]) -> Vec<u8> {
    let mut out = Vec::new();
    for r in ranges {
        put_slice(&mut out, &r.start);
        put_slice(&mut out, &r.end);
        put_varint(&mut out, r.lsn.0);
    }
    out
}

pub(super) fn decode_ranges(bytes: &[u8]) -> Result<Vec<RangeDelete>, Malformed> {
    let mut c = Cursor::new(bytes);
    let mut out = Vec::new();
    while !c.is_empty() {
        let start = c.slice(INTERNAL_KEY_MAX)?.to_vec();
        let end = c.slice(INTERNAL_KEY_MAX)?.to_vec();
        out.push(RangeDelete { start, end, lsn: Lsn(c.varint()?) });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_is_bound_to_its_table_and_offset() {
        let raw = b"payload payload payload payload".repeat(10);
        let mut out = Vec::new();
        put_block(&mut out, &mut Vec::new(), (7, 40, BlockKind::Data), &raw);
        assert!(out.len() < raw.len());
        assert_eq!(take_block(&mut Cursor::new(&out), 7, 40, BlockKind::Data).as_deref(), Ok(&raw[..]));
        assert!(take_block(&mut Cursor::new(&out), 8, 40, BlockKind::Data).is_err());
        assert!(take_block(&mut Cursor::new(&out), 7, 41, BlockKind::Data).is_err());
        assert!(take_block(&mut Cursor::new(&out), 7, 40, BlockKind::Index).is_err());
    }

    #[test]
    fn a_newer_footer_is_named_and_a_damaged_one_is_damage() {
        let f = Footer { id: 3, properties: Place { offset: 5, len: 6 } };
        assert_eq!(Footer::decode(&f.encode()), Ok(f));
        let mut newer = f.encode();
        newer[36] = 9;
        assert!(matches!(Footer::decode(&newer), Err(FooterError::Malformed(_))));
        let sum = xxh3_64_with_seed(&newer[..28], 9);
        newer[28..36].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Footer::decode(&newer), Err(FooterError::Version(9)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = take_block(&mut Cursor::new(&bytes), 1, 2, BlockKind::Data);
            let _ = take_section(&bytes, 1, 2, BlockKind::Index);
            let _ = Properties::decode(&bytes);
            let _ = Footer::decode(&bytes);
            let _ = decode_ranges(&bytes);
        }

        #[test]
        fn arbitrary_stored_bytes_under_a_good_checksum_never_panic(stored: Vec<u8>, raw_len in 0u32..1000, codec in 0u8..3) {
            let mut frame = [0u8; 12];
            frame[0] = 1;
            frame[1] = codec;
            frame[4..8].copy_from_slice(&(stored.len() as u32).to_le_bytes());
            frame[8..12].copy_from_slice(&raw_len.to_le_bytes());
            let sum = xxh3_64_with_seed(&stored, seed(1, 2, &frame));
            let bytes = [&frame[..], &sum.to_le_bytes(), &stored].concat();
            let _ = take_block(&mut Cursor::new(&bytes), 1, 2, BlockKind::Data);
        }
    }
}
