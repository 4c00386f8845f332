//! A log object: a range of records of one epoch, self-describing, compressed, hashed.
//!
//! ```text
//!   0  magic       [8]   "MSTYWAL\0"
//!   8  format      u32   1
//!  12  codec       u32   1 = zstd
//!  16  cluster     u128
//!  32  timeline    u64        40  epoch        u64
//!  48  node        u64        56  incarnation  u64
//!  64  first LSN   u64        72  last LSN     u64
//!  80  prev LSN    u64   position before the first record (a timeline's first record jumps)
//!  88  prev chain  [16]      104  end chain    [16]
//! 120  min ts      u64       128  max ts       u64
//! 136  records     u64       144  raw bytes    u64      152  stored bytes  u64
//! 160  header sum  [32]  BLAKE3 of bytes 0..160: the header can be trusted when read alone
//! 192  body              zstd of the records, concatenated
//!   …  sum         [32]  BLAKE3 of all before
//! ```
//!
//! Owns: this format. Never: records of two epochs in one object; trusting a length before it was
//! compared with its bound \[I12\].

use bytes::Bytes;
use mainstay_engine::codec::{Cursor, Malformed};
use mainstay_engine::record::{Kind, RECORD_BYTES_MAX, Record};
use mainstay_engine::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};

use crate::repository::names::WalName;

/// Bytes of the header: what a ranged read needs to place the object and know its times.
pub const HEADER_BYTES: usize = 192;
/// Bound of the records in one object, uncompressed.
pub const RAW_BYTES_MAX: usize = 32 << 20;
/// Bound of an object as stored: incompressible records and zstd's own overhead.
pub const OBJECT_BYTES_MAX: usize = RAW_BYTES_MAX + RAW_BYTES_MAX / 128 + HEADER_BYTES + 1024;
const MAGIC: [u8; 8] = *b"MSTYWAL\0";
const FORMAT: u32 = 1;
const CODEC_ZSTD: u32 = 1;
const LEVEL: i32 = 1;
const SUMMED: usize = 160;
const SUM_BYTES: usize = 32;

const _: () = assert!(RECORD_BYTES_MAX <= RAW_BYTES_MAX);

/// Who writes into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Cluster of the log.
    pub cluster: ClusterId,
    /// Timeline of the log.
    pub timeline: TimelineId,
    /// The reign in which this writer was started.
    pub epoch: Epoch,
    /// The node.
    pub node: u64,
    /// Its incarnation.
    pub incarnation: u64,
}

/// What an object says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalHeader {
    /// Cluster.
    pub cluster: ClusterId,
    /// Timeline, epoch and LSN range; the same as in its name.
    pub name: WalName,
    /// Node that wrote it.
    pub node: u64,
    /// Incarnation of that node.
    pub incarnation: u64,
    /// LSN before the first record.
    pub prev_lsn: Lsn,
    /// Chain before the first record.
    pub prev_chain: Chain,
    /// Chain after the last record.
    pub end_chain: Chain,
    /// Commit timestamp of the first record.
    pub min_ts: CommitTs,
    /// Commit timestamp of the last record.
    pub max_ts: CommitTs,
    /// Number of records.
    pub records: u64,
    /// Bytes of the records.
    pub raw_bytes: u64,
    /// Bytes of the compressed body.
    pub stored_bytes: u64,
}

impl WalHeader {
    /// The position after the last record.
    #[must_use]
    pub const fn end(&self) -> Position {
        Position { epoch: self.name.epoch, lsn: self.name.last, chain: self.end_chain, ts: self.max_ts }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&CODEC_ZSTD.to_le_bytes());
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        let name = &self.name;
        for v in
            [name.timeline.0, name.epoch.0, self.node, self.incarnation, name.first.0, name.last.0, self.prev_lsn.0]
        {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.extend_from_slice(&self.prev_chain.0);
        out.extend_from_slice(&self.end_chain.0);
        for v in [self.min_ts.0, self.max_ts.0, self.records, self.raw_bytes, self.stored_bytes] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        let mut fixed = [0; HEADER_BYTES];
        fixed.copy_from_slice(&out);
        fixed
    }

    /// Reads the first [`HEADER_BYTES`] of an object.
    ///
    /// # Errors
    /// `Malformed` for anything but a whole header within its bounds.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let head = bytes.get(..HEADER_BYTES).ok_or(Malformed("log object ends in its header"))?;
        let (summed, sum) = head.split_at_checked(SUMMED).ok_or(Malformed("log object ends in its header"))?;
        let mut c = Cursor::new(head);
        if c.array()? != MAGIC {
            return Err(Malformed("not a log object"));
        }
        if c.u32()? != FORMAT || c.u32()? != CODEC_ZSTD {
            return Err(Malformed("log object of a newer format"));
        }
        if blake3::hash(summed)
            != *<&[u8; SUM_BYTES]>::try_from(sum).map_err(|_| Malformed("log object ends in its header"))?
        {
            return Err(Malformed("header of a log object does not match its sum"));
        }
        let cluster = ClusterId(c.u128()?);
        let (timeline, epoch, node, incarnation) = (TimelineId(c.u64()?), Epoch(c.u64()?), c.u64()?, c.u64()?);
        let name = WalName { timeline, epoch, first: Lsn(c.u64()?), last: Lsn(c.u64()?) };
        let header = Self {
            cluster,
            name,
            node,
            incarnation,
            prev_lsn: Lsn(c.u64()?),
            prev_chain: Chain(c.array()?),
            end_chain: Chain(c.array()?),
            min_ts: CommitTs(c.u64()?),
            max_ts: CommitTs(c.u64()?),
            records: c.u64()?,
            raw_bytes: c.u64()?,
            stored_bytes: c.u64()?,
        };
        let dense = name.last.0.checked_sub(name.first.0).and_then(|n| n.checked_add(1));
        if name.first == Lsn::ZERO
            || header.prev_lsn >= name.first
            || dense != Some(header.records)
            || header.min_ts > header.max_ts
        {
            return Err(Malformed("header of a log object contradicts itself"));
        }
        if header.raw_bytes > RAW_BYTES_MAX as u64 || header.stored_bytes > OBJECT_BYTES_MAX as u64 {
            return Err(Malformed("log object over its bound"));
        }
        Ok(header)
    }
}

/// Collects records of one epoch, in order, up to the bound of an object.
#[derive(Debug)]
pub struct Draft {
    prev: Position,
    end: Position,
    first: Lsn,
    min_ts: CommitTs,
    records: u64,
    raw: Vec<u8>,
    target_bytes: usize,
}

impl Draft {
    /// An empty draft after `prev`, that wants to stay within `target_bytes` of records.
    #[must_use]
    pub fn new(prev: Position, target_bytes: usize) -> Self {
        let target_bytes = target_bytes.clamp(1, RAW_BYTES_MAX);
        Self { prev, end: prev, first: Lsn::ZERO, min_ts: CommitTs(0), records: 0, raw: Vec::new(), target_bytes }
    }

    /// Whether nothing was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The position after the last record added.
    #[must_use]
    pub const fn end(&self) -> Position {
        self.end
    }

    /// The position before the first record.
    #[must_use]
    pub const fn prev(&self) -> Position {
        self.prev
    }

    /// LSN of the first record; zero when empty.
    #[must_use]
    pub const fn first(&self) -> Lsn {
        self.first
    }

    /// Commit timestamp of the first record.
    #[must_use]
    pub const fn min_ts(&self) -> CommitTs {
        self.min_ts
    }

    /// Adds the next record. `false`: it belongs into the next object (new epoch or timeline, or
    /// no room); a first record always fits.
    ///
    /// # Errors
    /// When the record does not continue the one before.
    pub fn push(&mut self, record: &Record<'_>) -> Result<bool, mainstay_engine::record::RecordError> {
        record.follows(&self.end)?;
        let new_run = record.header.epoch != self.end.epoch || record.header.kind == Kind::TimelineStart;
        if !self.is_empty() && (new_run || self.raw.len() + record.bytes.len() > self.target_bytes) {
            return Ok(false);
        }
        if self.is_empty() {
            self.first = record.header.lsn;
            self.min_ts = record.header.ts;
        }
        self.raw.extend_from_slice(record.bytes);
        self.records += 1;
        self.end = record.position();
        Ok(true)
    }

    /// The finished object and its header.
    ///
    /// # Errors
    /// When the draft is empty or the compressor fails.
    pub fn finish(self, writer: &Writer) -> Result<(WalHeader, Bytes), Malformed> {
        if self.is_empty() {
            return Err(Malformed("an empty log object"));
        }
        let body = zstd::bulk::compress(&self.raw, LEVEL).map_err(|_| Malformed("compression failed"))?;
        let header = WalHeader {
            cluster: writer.cluster,
            name: WalName { timeline: writer.timeline, epoch: self.end.epoch, first: self.first, last: self.end.lsn },
            node: writer.node,
            incarnation: writer.incarnation,
            prev_lsn: self.prev.lsn,
            prev_chain: self.prev.chain,
            end_chain: self.end.chain,
            min_ts: self.min_ts,
            max_ts: self.end.ts,
            records: self.records,
            raw_bytes: self.raw.len() as u64,
            stored_bytes: body.len() as u64,
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len() + SUM_BYTES);
        out.extend_from_slice(&header.encode());
        out.extend_from_slice(&body);
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        Ok((header, out.into()))
    }
}

/// A whole object, hashed and decompressed. Its records are not decoded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalObject {
    /// What it says about itself.
    pub header: WalHeader,
    /// The records, concatenated.
    pub raw: Vec<u8>,
}

impl WalObject {
    /// Reads an object: header, hash over everything, then the body into exactly the announced size.
    ///
    /// # Errors
    /// `Malformed` for anything that a [`Draft`] did not make.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let header = WalHeader::decode(bytes)?;
        let stored = usize::try_from(header.stored_bytes).map_err(|_| Malformed("log object over its bound"))?;
        let raw_len = usize::try_from(header.raw_bytes).map_err(|_| Malformed("log object over its bound"))?;
        let mut c = Cursor::new(bytes);
        c.bytes(HEADER_BYTES)?;
        let body = c.bytes(stored)?;
        let sum: [u8; SUM_BYTES] = c.array()?;
        c.finish()?;
        let all = bytes.get(..HEADER_BYTES + stored).ok_or(Malformed("log object ends early"))?;
        if blake3::hash(all) != sum {
            return Err(Malformed("log object does not match its hash"));
        }
        let mut raw = vec![0; raw_len];
        match zstd::bulk::decompress_to_buffer(body, &mut raw) {
            Ok(n) if n == raw_len => Ok(Self { header, raw }),
            _ => Err(Malformed("body of a log object does not decompress to its announced size")),
        }
    }

    /// Walks the records; each is checked against its own checksum.
    ///
    /// # Errors
    /// Of the first record that is not whole, or of `visit`.
    pub fn each<E: From<mainstay_engine::record::RecordError>>(
        &self,
        mut visit: impl FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = self.raw.as_slice();
        while !rest.is_empty() {
            let record = Record::decode(rest)?;
            visit(&record)?;
            rest = rest.get(record.bytes.len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether two objects hold the same history: everything but who wrote them and how well they
    /// are compressed.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        let (a, b) = (&self.header, &other.header);
        a.cluster == b.cluster
            && a.name == b.name
            && (a.prev_lsn, a.prev_chain, a.end_chain) == (b.prev_lsn, b.prev_chain, b.end_chain)
            && self.raw == other.raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, WRITER};
    use proptest::prelude::*;

    fn object() -> (WalHeader, Bytes) {
        let history = History::new().epoch(1, 12);
        let mut draft = Draft::new(Position::default(), 1 << 20);
        history.each_record(Lsn(1), Lsn(12), |r| assert!(draft.push(r).unwrap()));
        draft.finish(&WRITER).unwrap()
    }

    #[test]
    fn an_object_gives_back_its_records() {
        let (header, bytes) = object();
        let object = WalObject::decode(&bytes).unwrap();
        assert_eq!(object.header, header);
        assert_eq!(WalHeader::decode(&bytes[..HEADER_BYTES]).unwrap(), header);
        let mut lsns = Vec::new();
        object
            .each::<mainstay_engine::Error>(|r| {
                lsns.push(r.header.lsn.0);
                Ok(())
            })
            .unwrap();
        assert_eq!(lsns, (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn an_epoch_starts_a_new_object() {
        let history = History::new().epoch(1, 3).epoch(2, 3);
        let mut draft = Draft::new(Position::default(), 1 << 20);
        let mut taken = Vec::new();
        history.each_record(Lsn(1), Lsn(4), |r| taken.push(draft.push(r).unwrap()));
        assert_eq!(taken, [true, true, true, false]);
        assert_eq!(draft.end().lsn, Lsn(3));
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let (_, bytes) = object();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(WalObject::decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
        for cut in 0..bytes.len() {
            assert!(WalObject::decode(&bytes[..cut]).is_err(), "cut at {cut} went unnoticed");
        }
    }

    #[test]
    fn an_announced_size_over_the_bound_is_refused_before_it_is_allocated() {
        let (header, bytes) = object();
        let body = &bytes[HEADER_BYTES..bytes.len() - SUM_BYTES];
        for raw_bytes in [RAW_BYTES_MAX as u64 + 1, u64::MAX, header.raw_bytes + 1, header.raw_bytes - 1] {
            let mut bad = WalHeader { raw_bytes, ..header }.encode().to_vec();
            bad.extend_from_slice(body);
            let sum = blake3::hash(&bad);
            bad.extend_from_slice(sum.as_bytes());
            assert!(WalObject::decode(&bad).is_err(), "{raw_bytes}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(WalObject::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_behind_a_good_header_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let (header, bytes) = object();
            let stored = (tail.len() as u64).saturating_sub(SUM_BYTES as u64);
            let mut bad = WalHeader { stored_bytes: stored, ..header }.encode().to_vec();
            bad.extend_from_slice(&tail[..usize::try_from(stored).unwrap()]);
            let sum = blake3::hash(&bad);
            bad.extend_from_slice(sum.as_bytes());
            prop_assert!(WalObject::decode(&bad).is_err());
            prop_assert!(WalObject::decode(&bytes).is_ok());
        }
    }
}
