//! What one record does to keys.
//!
//! Owns: the rule that the last operation on a key within one record wins, and that a range delete
//! hides what its own record did before. Never: what other records did.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::batch::{Batch, Op, check, raw_ops};
use crate::codec::Malformed;
use crate::lsn::Lsn;
use crate::record::{Kind, Record, TimelineStart};
use crate::table::{RangeDelete, internal_end, internal_key};
use crate::tree::manifest::{EpochStart, Event};

use super::arena::OVERHEAD;

/// What one record does to the tree, checked whole; puts and deletes are borrowed from the record.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    pub(super) work: Work<'a>,
    /// Bound of the memory that puts and deletes take.
    pub(super) bytes: usize,
    pub(crate) event: Option<Event>,
}

#[derive(Debug)]
pub(super) enum Work<'a> {
    Nothing,
    /// A batch of one put or delete.
    One(Op<'a>),
    /// The encoded operations of a batch without range deletes: done in their own order, a later operation replaces the
    /// version that an earlier one made.
    InOrder(&'a [u8]),
    /// A batch with range deletes, settled: per key what is left of the record's operations.
    Settled(BTreeMap<Vec<u8>, Option<&'a [u8]>>, Vec<RangeDelete>),
}

impl<'a> Change<'a> {
    pub(crate) fn of(record: &Record<'a>) -> Result<Self, Malformed> {
        let h = &record.header;
        let mut out = Self::nothing();
        match h.kind {
            Kind::Batch => {
                let (mut ranges, mut last) = (false, None);
                let (ops, count) = check(record.body, |op| {
                    ranges |= matches!(op, Op::DeleteRange { .. });
                    last = Some(op);
                })?;
                return Ok(Self::of_ops(ops, count, ranges, last, h.lsn));
            }
            Kind::EpochStart => out.event = Some(Event::Epoch(EpochStart { epoch: h.epoch, lsn: h.lsn, ts: h.ts })),
            Kind::TimelineStart => out.event = Some(Event::Timeline(TimelineStart::decode(record.body)?)),
            // What it brings is in tables: see `tree::ingest`.
            Kind::Ingest => {}
        }
        Ok(out)
    }

    /// A record that does nothing to keys in a memtable: its LSN and commit time are noted.
    pub(crate) const fn nothing() -> Self {
        Self { work: Work::Nothing, bytes: 0, event: None }
    }

    /// What a batch does, before or without being a record's body.
    pub(crate) fn of_batch(batch: &'a Batch, lsn: Lsn) -> Self {
        Self::of_ops(batch.raw(), batch.len(), batch.deletes_ranges(), batch.iter().next(), lsn)
    }

    /// `one` is the operation of a batch that has one.
    fn of_ops(ops: &'a [u8], count: usize, ranges: bool, one: Option<Op<'a>>, lsn: Lsn) -> Self {
        let work = match one {
            _ if ranges => settle(ops, lsn),
            Some(op) if count == 1 => Work::One(op),
            _ => Work::InOrder(ops),
        };
        Self { work, bytes: ops.len() + count * OVERHEAD, event: None }
    }
}

fn settle(raw: &[u8], lsn: Lsn) -> Work<'_> {
    let mut entries: BTreeMap<Vec<u8>, Option<&[u8]>> = BTreeMap::new();
    let mut ranges = Vec::new();
    for op in raw_ops(raw) {
        match op {
            Op::Put { keyspace, key, envelope } => {
                entries.insert(internal_key(keyspace, key), Some(envelope));
            }
            Op::Delete { keyspace, key } => {
                entries.insert(internal_key(keyspace, key), None);
            }
            Op::DeleteRange { keyspace, start, end } => {
                let range = RangeDelete { start: internal_key(keyspace, start), end: internal_end(keyspace, end), lsn };
                // The range delete hides lower LSNs only: what this record did before must go here.
                let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.as_slice()) };
                let hidden = entries.range::<[u8], _>((Bound::Included(range.start.as_slice()), end));
                let hidden: Vec<Vec<u8>> = hidden.map(|(key, _)| key.clone()).collect();
                for key in hidden {
                    entries.remove(&key);
                }
                ranges.push(range);
            }
        }
    }
    Work::Settled(entries, ranges)
}
