//! The newest records in memory, for readers close to the head.
//!
//! Owns: blocks of whole records, and which cuts readers must learn of. Invariant: whatever is not
//! yet in a file is in here. Never: I/O.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Chunk;
use crate::lsn::Lsn;

const BLOCK_BYTES: usize = 64 << 10;
/// Most memory until somebody reads: memory that stays in the processor's cache. A larger ring is cold, and a copy into
/// it a good part of what an embedded store's put costs.
const UNREAD_BYTES: usize = 4 * BLOCK_BYTES;

#[derive(Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// LSN and start of each record; LSNs rise but may jump.
    starts: Vec<(Lsn, u32)>,
}

impl Block {
    /// Memory in bytes.
    fn memory(&self) -> usize {
        self.bytes.capacity() + self.starts.capacity() * size_of::<(Lsn, u32)>()
    }

    fn last(&self) -> Lsn {
        self.starts.last().map_or(Lsn::ZERO, |(l, _)| *l)
    }

    /// The records in `from..=upto`, at most `max_bytes` but at least one: their bytes' range and
    /// first and last LSN.
    fn select(&self, from: Lsn, upto: Lsn, max_bytes: usize) -> Option<(Range<usize>, Lsn, Lsn)> {
        let i = self.starts.partition_point(|(l, _)| *l < from);
        let (first, start) = *self.starts.get(i)?;
        if first > upto {
            return None;
        }
        let start = start as usize;
        let end_of = |j: usize| self.starts.get(j + 1).map_or(self.bytes.len(), |(_, s)| *s as usize);
        let within = self.starts.partition_point(|(l, _)| *l <= upto);
        let fit = (i..within).take_while(|j| end_of(*j) - start <= max_bytes).count().max(1);
        let last = i + fit - 1;
        Some((start..end_of(last), first, self.starts.get(last)?.0))
    }
}

enum Piece {
    Shared(Arc<Block>, Range<usize>),
    Copied(Vec<u8>),
}

/// Answer to [`Tail::read`].
pub(super) enum Read {
    /// In a file, not here.
    Elsewhere,
    /// No record in the range.
    Nothing,
    /// Bytes to put together without the lock.
    Found(Pieces),
}

/// See [`Read::Found`].
pub(super) struct Pieces {
    first: Lsn,
    last: Lsn,
    pieces: Vec<Piece>,
}

impl Pieces {
    pub(super) fn into_chunk(self) -> Chunk {
        let mut bytes = Vec::new();
        for p in self.pieces {
            match p {
                Piece::Shared(block, range) => bytes.extend_from_slice(&block.bytes[range]),
                Piece::Copied(b) if bytes.is_empty() => bytes = b,
                Piece::Copied(b) => bytes.extend_from_slice(&b),
            }
        }
        Chunk { first: self.first, last: self.last, bytes }
    }
}

/// The tail. Kept under one short lock.
#[derive(Debug)]
pub(super) struct Tail {
    blocks: VecDeque<Arc<Block>>,
    open: Block,
    /// Memory of `blocks`.
    sealed_bytes: usize,
    bytes_max: usize,
    /// There is or was a reader.
    read: bool,
    /// Everything above this is in here.
    floor: Lsn,
    last: Lsn,
    /// Where the log was cut since it was opened, in order.
    cuts: Vec<Lsn>,
}

impl Tail {
    pub(super) fn new(last: Lsn, bytes_max: usize) -> Self {
        let (blocks, open) = Default::default();
        Self { blocks, open, sealed_bytes: 0, bytes_max, read: false, floor: last, last, cuts: Vec::new() }
    }

    /// From now on as much is kept as there is memory for.
    pub(super) fn is_read(&mut self) {
        self.read = true;
    }

    /// Adds a record, and drops the oldest blocks over the bound that are in files (`written`).
    pub(super) fn push(&mut self, lsn: Lsn, record: &[u8], written: Lsn) {
        if !self.open.bytes.is_empty() && self.open.bytes.len() + record.len() > BLOCK_BYTES {
            let mut sealed = std::mem::take(&mut self.open);
            // A large record leaves much of its block unused; of what it seldom is, a copy is dearer.
            if sealed.memory() > sealed.bytes.len() * 5 / 4 {
                sealed.bytes.shrink_to_fit();
                sealed.starts.shrink_to_fit();
            }
            self.sealed_bytes += sealed.memory();
            self.blocks.push_back(Arc::new(sealed));
            self.open.bytes.reserve(BLOCK_BYTES.min(self.bytes_max / 4));
        }
        // A record fits u32, and a block holds one record or at most `BLOCK_BYTES`.
        self.open.starts.push((lsn, self.open.bytes.len() as u32));
        self.open.bytes.extend_from_slice(record);
        self.last = lsn;
        let bytes_max = if self.read { self.bytes_max } else { self.bytes_max.min(UNREAD_BYTES) };
        while self.bytes() > bytes_max {
            match self.blocks.front() {
                Some(b) if b.last() <= written => {
                    self.floor = b.last();
                    self.sealed_bytes -= b.memory();
                    self.blocks.pop_front();
                }
                _ => return,
            }
        }
    }

    /// The records in `from..=upto`.
    pub(super) fn read(&self, from: Lsn, upto: Lsn, max_bytes: usize) -> Read {
        if from > upto || from > self.last {
            return Read::Nothing;
        }
        if from <= self.floor {
            return Read::Elsewhere;
        }
        let mut out = Pieces { first: Lsn::ZERO, last: Lsn::ZERO, pieces: Vec::new() };
        let mut room = max_bytes;
        let mut next = from;
        let skip = self.blocks.partition_point(|b| b.last() < from);
        let sealed = self.blocks.range(skip..).map(Some);
        for block in sealed.chain([None]) {
            let b = block.map_or(&self.open, |b| b);
            let Some((range, first, last)) = b.select(next, upto, room) else { continue };
            if out.pieces.is_empty() {
                out.first = first;
            } else if range.len() > room {
                break;
            }
            room = room.saturating_sub(range.len());
            out.last = last;
            next = last.next();
            let done = last < b.last();
            out.pieces.push(match block {
                Some(b) => Piece::Shared(Arc::clone(b), range),
                None => Piece::Copied(b.bytes[range].to_vec()),
            });
            if done || room == 0 {
                break;
            }
        }
        if out.pieces.is_empty() { Read::Nothing } else { Read::Found(out) }
    }

    /// Forgets everything: the log now ends at `last`, all of it in files.
    pub(super) fn cut(&mut self, last: Lsn) {
        self.blocks.clear();
        self.open = Block::default();
        self.sealed_bytes = 0;
        self.floor = last;
        self.last = last;
        self.cuts.push(last);
    }

    /// Memory of the records held and of what finds them, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.sealed_bytes + self.open.memory()
    }

    /// How many cuts there were.
    pub(super) fn cut_count(&self) -> usize {
        self.cuts.len()
    }

    /// The lowest cut since there were `seen`.
    pub(super) fn lowest_cut_since(&self, seen: usize) -> Option<Lsn> {
        self.cuts.get(seen..).and_then(|c| c.iter().min().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(t: &Tail, from: u64, upto: u64, max: usize) -> Option<(u64, u64, usize)> {
        match t.read(Lsn(from), Lsn(upto), max) {
            Read::Found(p) => {
                let c = p.into_chunk();
                Some((c.first.0, c.last.0, c.bytes.len()))
            }
            Read::Elsewhere => panic!("elsewhere"),
            Read::Nothing => None,
        }
    }

    #[test]
    fn what_is_not_written_stays_and_the_rest_goes_by_size() {
        let mut t = Tail::new(Lsn(0), 115 << 10);
        for n in 1..=10 {
            t.push(Lsn(n), &vec![n as u8; 40 << 10], Lsn(0));
        }
        assert_eq!(read(&t, 1, 10, usize::MAX), Some((1, 10, 400 << 10)));
        t.push(Lsn(1000), &[0; 10], Lsn(10));
        assert!(matches!(t.read(Lsn(8), Lsn(1000), 1), Read::Elsewhere));
        assert_eq!(read(&t, 10, 2000, usize::MAX), Some((10, 1000, (40 << 10) + 10)));
        assert_eq!(read(&t, 11, 1000, 1), Some((1000, 1000, 10)));
        assert_eq!(read(&t, 11, 999, 1), None);
        assert_eq!(read(&t, 1001, 2000, 1), None);
    }

    #[test]
    fn what_finds_small_records_counts_and_so_does_room_that_a_large_one_leaves() {
        for record in [1, 20, 40 << 10] {
            let mut t = Tail::new(Lsn(0), 1 << 20);
            t.is_read();
            let mut most = 0;
            for n in 1..=(4 << 20) / (record as u64 + 16) {
                t.push(Lsn(n), &vec![0; record], Lsn(n));
                let memory: usize = t.blocks.iter().map(|b| b.memory()).sum();
                assert_eq!(t.bytes(), memory + t.open.memory());
                most = most.max(t.bytes());
            }
            assert!(most <= (1 << 20) + 2 * BLOCK_BYTES && most > 1 << 19, "{most} bytes with records of {record}");
            assert!(t.blocks.iter().all(|b| b.memory() <= b.bytes.len() * 5 / 4 + b.starts.len() * 32));
        }
    }

    #[test]
    fn little_is_kept_until_somebody_reads_and_what_is_in_no_file_always() {
        let mut t = Tail::new(Lsn(0), 1 << 20);
        (1..=5000).for_each(|n| t.push(Lsn(n), &[0; 200], Lsn(n)));
        assert!(t.bytes() <= UNREAD_BYTES + 2 * BLOCK_BYTES, "{} bytes", t.bytes());
        t.is_read();
        (5001..=9000).for_each(|n| t.push(Lsn(n), &[0; 200], Lsn(n)));
        assert!(t.bytes() > 1 << 19, "{} bytes", t.bytes());
        let mut t = Tail::new(Lsn(0), 1 << 20);
        (1..=5000).for_each(|n| t.push(Lsn(n), &[0; 200], Lsn(0)));
        assert_eq!(read(&t, 1, 5000, 200), Some((1, 1, 200)));
    }

    #[test]
    fn a_chunk_keeps_its_bound_but_has_at_least_one_record() {
        let mut t = Tail::new(Lsn(0), 1 << 20);
        (1..=5000).for_each(|n| t.push(Lsn(n), &[0; 100], Lsn(0)));
        assert_eq!(read(&t, 1, 5000, 1), Some((1, 1, 100)));
        assert_eq!(read(&t, 1, 5000, 299), Some((1, 2, 200)));
        assert_eq!(read(&t, 600, 5000, 200_000), Some((600, 2599, 200_000)));
        assert_eq!(read(&t, 600, 700, 200_000), Some((600, 700, 10_100)));
    }
}
