//! What one record does to keys.
//!
//! Owns: the rule that the last operation on a key within one record wins, and that a range delete
//! hides what its own record did before. Never: what other records did.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::batch::{Op, check, ops};
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
    /// A batch without range deletes: done in its own order, a later operation replaces the
    /// version that an earlier one made.
    InOrder(&'a [u8]),
    /// A batch with range deletes, settled: per key what is left of the record's operations.
    Settled(BTreeMap<Vec<u8>, Option<&'a [u8]>>, Vec<RangeDelete>),
}

impl<'a> Change<'a> {
    pub(crate) fn of(record: &Record<'a>) -> Result<Self, Malformed> {
        let h = &record.header;
        let mut out = Self { work: Work::Nothing, bytes: 0, event: None };
        match h.kind {
            Kind::Batch => {
                let (mut ranges, mut last) = (0, None);
                let (_, count) = check(record.body, |op| {
                    ranges += usize::from(matches!(op, Op::DeleteRange { .. }));
                    last = Some(op);
                })?;
                out.bytes = record.body.len() + count * OVERHEAD;
                out.work = match last {
                    _ if ranges > 0 => settle(record.body, h.lsn),
                    Some(op) if count == 1 => Work::One(op),
                    _ => Work::InOrder(record.body),
                };
            }
            Kind::EpochStart => out.event = Some(Event::Epoch(EpochStart { epoch: h.epoch, lsn: h.lsn, ts: h.ts })),
            Kind::TimelineStart => out.event = Some(Event::Timeline(TimelineStart::decode(record.body)?)),
        }
        Ok(out)
    }
}

fn settle(body: &[u8], lsn: Lsn) -> Work<'_> {
    let mut entries: BTreeMap<Vec<u8>, Option<&[u8]>> = BTreeMap::new();
    let mut ranges = Vec::new();
    // The body was checked just before: no operation is malformed.
    for op in ops(body).flatten() {
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
