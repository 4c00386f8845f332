//! Which versions a merge keeps, and where.
//!
//! The newest version of a key stays in the main tables. One that a newer version or a range delete superseded
//! above the history floor goes into a history table, with the LSN from which on it is not seen; one superseded
//! at or below the floor is dropped: reads below the floor are refused. The newest version itself is dropped when
//! it is at or below the floor and nobody can see it: covered by a range delete at or below the floor; or a
//! delete, or expired by the floor's commit time, with no older version anywhere below that it has to hide.
//! Owns: these decisions. Never: files.

use std::sync::Arc;

use crate::error::Result;
use crate::fault::{Bug, planted};
use crate::lsn::{CommitTs, Lsn};
use crate::table::EntryRef;
use crate::tree::range_index::RangeIndex;
use crate::value::Value;

/// What becomes of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Keep,
    /// Reads at this LSN and above do not see it.
    Superseded(Lsn),
    Drop,
}

/// First and last key of tables of one level, ascending and apart.
pub(super) type KeySpans = Vec<(Vec<u8>, Vec<u8>)>;

/// Decides on the versions of each key as they come, from new to old.
#[derive(Debug)]
pub(crate) struct Rule {
    ranges: Arc<RangeIndex>,
    floor: (Lsn, CommitTs),
    /// Tables below the output, by level, and how far the merge has passed them.
    below: Vec<(KeySpans, usize)>,
    key: Vec<u8>,
    /// LSN of the version of `key` that came before.
    newer: Option<Lsn>,
}

impl Rule {
    /// `below`: tables that may hold older versions of the keys that come.
    pub(crate) fn new(ranges: Arc<RangeIndex>, floor: (Lsn, CommitTs), below: Vec<KeySpans>) -> Self {
        let below = below.into_iter().map(|spans| (spans, 0)).collect();
        // Keys start with a keyspace byte, so no key equals the empty one.
        Self { ranges, floor, below, key: Vec::new(), newer: None }
    }

    pub(crate) fn judge(&mut self, entry: EntryRef<'_>) -> Result<Fate> {
        if entry.key != self.key {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            self.newer = None;
        }
        let (floor, floor_ts) = self.floor;
        let Some(newer) = self.newer.replace(entry.lsn) else {
            let unseen = entry.lsn <= floor && self.unseen(entry, floor_ts)?;
            return Ok(if unseen { Fate::Drop } else { Fate::Keep });
        };
        let deleted = if self.ranges.is_empty() { None } else { self.ranges.first_above(entry.key, entry.lsn) };
        let by = deleted.map_or(newer, |d| d.min(newer));
        Ok(if by <= floor { Fate::Drop } else { Fate::Superseded(by) })
    }

    fn unseen(&mut self, entry: EntryRef<'_>, floor_ts: CommitTs) -> Result<bool> {
        if self.ranges.first_above(entry.key, entry.lsn).is_some_and(|l| l <= self.floor.0) {
            return Ok(true);
        }
        let gone = match entry.value {
            Some(envelope) => Value::decode(envelope)?.expired_at(floor_ts),
            None => true,
        };
        Ok(gone && (self.nothing_below(entry.key) || planted(Bug::DropHidingDeletes)))
    }

    /// Whether no table below may hold the key. Keys must come in order.
    fn nothing_below(&mut self, key: &[u8]) -> bool {
        self.below.iter_mut().all(|(spans, at)| {
            while spans.get(*at).is_some_and(|(_, last)| last.as_slice() < key) {
                *at += 1;
            }
            spans.get(*at).is_none_or(|(first, _)| key < first.as_slice())
        })
    }
}
