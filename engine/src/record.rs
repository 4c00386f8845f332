//! The record: one atomic batch (or one log event) with the proof of everything before it \[I4\].
//!
//! Owns: the replicated bytes, identical on every node, in the archive and on the wire. Never:
//! local facts such as segment numbers or what this node's disk holds (those are in the log frame).
//!
//! ```text
//!  0  checksum   u64   xxh3-64 over (hash, chain); hash = xxh3-128 of bytes 24..
//!  8  chain      [16]  xxh3-128 over (previous record's chain, hash)
//! 24  body_len   u32
//! 28  version    u8    1
//! 29  kind       u8    see `Kind`
//! 30  flags      u16   0; others are refused
//! 32  epoch      u64
//! 40  lsn        u64
//! 48  commit_ts  u64   microseconds since the Unix epoch
//! 56  session    u64   reserved: exactly-once writes; 0 = none
//! 64  sequence   u64   reserved: number of the write within its session
//! 72  origin     u64   reserved: where the write was first accepted; 0 = here
//! 80  body
//! ```
//!
//! One flipped bit anywhere in a record changes the checksum's inputs or the checksum itself.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::codec::{Cursor, Malformed};
use crate::fault::{Bug, planted};
use crate::limits::{BATCH_BYTES_MAX, COMMIT_TS_MAX};
use crate::lsn::{Chain, ClusterId, CommitTs, Epoch, Lsn, Position, TimelineId};

/// Bytes in front of a record's body.
pub const HEADER_BYTES: usize = 80;
/// Largest record in bytes.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + BATCH_BYTES_MAX;
const VERSION: u8 = 1;

/// What a record means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The body is a [`crate::batch::Batch`].
    Batch,
    /// First record of an epoch; empty body. Older records commit only through it (Raft §5.4.2).
    EpochStart,
    /// First record of a timeline; body is [`TimelineStart`]. The only record whose LSN may be
    /// more than one above its predecessor's.
    TimelineStart,
    /// The body is an [`Ingest`](crate::ingest::Ingest): tables whose entries all have this record's LSN. Only in the
    /// log of an embedded store: no other node, archive or restore has the tables.
    Ingest,
}

impl Kind {
    const fn to_byte(self) -> u8 {
        match self {
            Kind::Batch => 1,
            Kind::EpochStart => 2,
            Kind::TimelineStart => 3,
            Kind::Ingest => 4,
        }
    }

    const fn from_byte(b: u8) -> Result<Self, Malformed> {
        match b {
            1 => Ok(Kind::Batch),
            2 => Ok(Kind::EpochStart),
            3 => Ok(Kind::TimelineStart),
            4 => Ok(Kind::Ingest),
            _ => Err(Malformed("record kind of a newer format")),
        }
    }
}

/// Body of the first record of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineStart {
    /// Cluster that the timeline belongs to.
    pub cluster: ClusterId,
    /// The new timeline.
    pub timeline: TimelineId,
    /// The timeline it continues; zero for the first one of a cluster.
    pub parent: TimelineId,
    /// Last LSN of the parent that belongs to the new history.
    pub fork: Lsn,
}

impl TimelineStart {
    /// The encoded body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(40);
        out.extend_from_slice(&self.cluster.0.to_le_bytes());
        out.extend_from_slice(&self.timeline.0.to_le_bytes());
        out.extend_from_slice(&self.parent.0.to_le_bytes());
        out.extend_from_slice(&self.fork.0.to_le_bytes());
        out
    }

    /// Reads a body.
    ///
    /// # Errors
    /// `Malformed` when the length is not exactly 40 bytes.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let mut c = Cursor::new(body);
        let out = Self {
            cluster: ClusterId(c.u128()?),
            timeline: TimelineId(c.u64()?),
            parent: TimelineId(c.u64()?),
            fork: Lsn(c.u64()?),
        };
        c.finish()?;
        Ok(out)
    }
}

/// The fields a writer chooses; checksum and chain follow from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the record means.
    pub kind: Kind,
    /// The reign that wrote it.
    pub epoch: Epoch,
    /// Its number.
    pub lsn: Lsn,
    /// When the primary ordered it.
    pub ts: CommitTs,
    /// Reserved for exactly-once sessions; 0 = none.
    pub session: u64,
    /// Reserved: number of the write within its session.
    pub sequence: u64,
}

/// Why bytes are not the record that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the record does.
    #[error("record ends early")]
    Short,
    /// A field is outside its bounds.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// The checksum does not fit the bytes.
    #[error("record checksum does not match its bytes")]
    Checksum,
    /// The record is whole but does not follow its predecessor.
    #[error("record (epoch {epoch}, LSN {lsn}) does not continue the log after LSN {after}")]
    Discontinuous {
        /// Epoch found.
        epoch: Epoch,
        /// LSN found.
        lsn: Lsn,
        /// The position it should follow.
        after: Lsn,
    },
}

/// A whole record, checked against its own checksum, borrowed from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Header fields.
    pub header: Header,
    /// Chain hash up to and including this record.
    pub chain: Chain,
    /// The body (see [`Kind`]).
    pub body: &'a [u8],
    /// All bytes: header and body, as replicated and archived.
    pub bytes: &'a [u8],
    hash: u128,
}

fn chain_after(prev: Chain, hash: u128) -> Chain {
    let mut input = [0u8; 32];
    input[..16].copy_from_slice(&prev.0);
    input[16..].copy_from_slice(&hash.to_le_bytes());
    Chain(xxh3_128(&input).to_le_bytes())
}

fn checksum(hash: u128, chain: Chain) -> u64 {
    let mut input = [0u8; 32];
    input[..16].copy_from_slice(&hash.to_le_bytes());
    input[16..].copy_from_slice(&chain.0);
    xxh3_64(&input)
}

/// Appends a record to `out`; returns its chain hash. `fill_body` appends the body.
///
/// The caller keeps bodies within [`BATCH_BYTES_MAX`]; a longer one would be refused by every decoder.
pub fn encode(out: &mut Vec<u8>, prev: Chain, header: &Header, fill_body: impl FnOnce(&mut Vec<u8>)) -> Chain {
    let start = out.len();
    out.extend_from_slice(&[0; 28]);
    out.extend_from_slice(&[VERSION, header.kind.to_byte(), 0, 0]);
    for v in [header.epoch.0, header.lsn.0, header.ts.0, header.session, header.sequence, 0] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    fill_body(out);
    let body_len = (out.len() - start - HEADER_BYTES) as u32;
    out[start + 24..start + 28].copy_from_slice(&body_len.to_le_bytes());
    let hash = xxh3_128(&out[start + 24..]);
    let chain = chain_after(prev, hash);
    out[start..start + 8].copy_from_slice(&checksum(hash, chain).to_le_bytes());
    out[start + 8..start + 24].copy_from_slice(&chain.0);
    chain
}

impl<'a> Record<'a> {
    /// Reads the record at the front of `bytes` and checks its checksum. Use `bytes.len()` of the
    /// result to step to the next one.
    ///
    /// # Errors
    /// See [`RecordError`]; never panics and never allocates.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut c = Cursor::new(bytes);
        let short = |_| RecordError::Short;
        let sum = c.u64().map_err(short)?;
        let chain = Chain(c.array().map_err(short)?);
        let body_len = c.u32().map_err(short)? as usize;
        let version = c.u8().map_err(short)?;
        let kind = c.u8().map_err(short)?;
        let flags = c.u16().map_err(short)?;
        let mut word = [0u64; 6];
        for w in &mut word {
            *w = c.u64().map_err(short)?;
        }
        if body_len > BATCH_BYTES_MAX {
            return Err(Malformed("record length over bound").into());
        }
        let body = c.bytes(body_len).map_err(short)?;
        let (bytes, _) = bytes.split_at_checked(HEADER_BYTES + body_len).ok_or(RecordError::Short)?;
        let hash = xxh3_128(bytes.get(24..).ok_or(RecordError::Short)?);
        if sum != checksum(hash, chain) && !planted(Bug::IgnoreChecksum) {
            return Err(RecordError::Checksum);
        }
        if version != VERSION || flags != 0 {
            return Err(Malformed("record of a newer format").into());
        }
        let [epoch, lsn, ts, session, sequence, _origin] = word;
        let header = Header {
            kind: Kind::from_byte(kind)?,
            epoch: Epoch(epoch),
            lsn: Lsn(lsn),
            ts: CommitTs(ts),
            session,
            sequence,
        };
        Ok(Self { header, chain, body, bytes, hash })
    }

    /// Checks that this record directly continues a log that ends at `prev`: LSN dense (or a
    /// timeline's jump), epoch and commit timestamp not going back, chain linked.
    ///
    /// # Errors
    /// `Discontinuous` naming both places.
    pub fn follows(&self, prev: &Position) -> Result<(), RecordError> {
        let h = &self.header;
        let dense = match h.kind {
            Kind::TimelineStart => {
                h.lsn > prev.lsn && TimelineStart::decode(self.body).is_ok_and(|t| t.fork == prev.lsn)
            }
            Kind::Batch | Kind::EpochStart | Kind::Ingest => h.lsn == prev.lsn.next(),
        };
        let later = h.ts > prev.ts && h.ts.0 <= COMMIT_TS_MAX;
        if dense && h.epoch >= prev.epoch && later && self.chain == chain_after(prev.chain, self.hash) {
            Ok(())
        } else {
            Err(RecordError::Discontinuous { epoch: h.epoch, lsn: h.lsn, after: prev.lsn })
        }
    }

    /// The position a log has after this record.
    #[must_use]
    pub const fn position(&self) -> Position {
        Position { epoch: self.header.epoch, lsn: self.header.lsn, chain: self.chain, ts: self.header.ts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(lsn: u64) -> Header {
        Header { kind: Kind::Batch, epoch: Epoch(3), lsn: Lsn(lsn), ts: CommitTs(lsn * 10), session: 0, sequence: 0 }
    }

    fn sample() -> (Position, Vec<u8>) {
        let prev = Position { epoch: Epoch(3), lsn: Lsn(6), chain: Chain([7; 16]), ts: CommitTs(60) };
        let mut out = Vec::new();
        encode(&mut out, prev.chain, &header(7), |b| b.extend_from_slice(b"some body"));
        (prev, out)
    }

    #[test]
    fn a_record_decodes_and_continues_its_log() {
        let (prev, out) = sample();
        let r = Record::decode(&out).unwrap();
        assert_eq!((r.header, r.body), (header(7), &b"some body"[..]));
        r.follows(&prev).unwrap();
        assert!(r.follows(&Position { chain: Chain([8; 16]), ..prev }).is_err());
        assert!(r.follows(&Position { lsn: Lsn(5), ..prev }).is_err());
        assert!(r.follows(&Position { epoch: Epoch(4), ..prev }).is_err());
        assert!(r.follows(&Position { ts: CommitTs(70), ..prev }).is_err());
    }

    #[test]
    fn only_a_timeline_start_may_jump_and_only_from_its_fork() {
        let prev = Position { epoch: Epoch(1), lsn: Lsn(9), chain: Chain::default(), ts: CommitTs(1) };
        let start =
            TimelineStart { cluster: ClusterId(1), timeline: TimelineId(2), parent: TimelineId(1), fork: Lsn(9) };
        let mut out = Vec::new();
        let h = Header { kind: Kind::TimelineStart, ..header(1 << 32) };
        encode(&mut out, prev.chain, &h, |b| b.extend_from_slice(&start.encode()));
        Record::decode(&out).unwrap().follows(&prev).unwrap();
        assert!(Record::decode(&out).unwrap().follows(&Position { lsn: Lsn(8), ..prev }).is_err());
        let mut out = Vec::new();
        encode(&mut out, prev.chain, &Header { kind: Kind::Batch, ..h }, |_| ());
        assert!(Record::decode(&out).unwrap().follows(&prev).is_err());
    }

    fn unnoticed_flips() -> usize {
        let (_, out) = sample();
        let flipped = (0..out.len() * 8).map(|bit| {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        });
        flipped.filter(|bad| Record::decode(bad).is_ok()).count()
    }

    #[test]
    fn any_flipped_bit_is_rejected() {
        assert_eq!(unnoticed_flips(), 0);
    }

    #[cfg(feature = "sim")]
    #[test]
    fn without_the_checksum_flipped_bits_go_unnoticed() {
        let _bug = crate::fault::plant(Bug::IgnoreChecksum);
        assert!(unnoticed_flips() > 0);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            prop_assert!(Record::decode(&bytes).is_err());
            let _ = TimelineStart::decode(&bytes);
        }
    }
}
