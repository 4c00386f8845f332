//! Which versions a merge keeps, and where.
//!
//! The newest version of a key stays in the main tables. One that a newer version or a range delete superseded
//! above the history floor goes into a history table, with the LSN from which on it is not seen; one superseded
//! at or below the floor is dropped: reads below the floor are refused. A delete with no older version anywhere
//! below that it has to hide is dropped whatever its age: the versions that it superseded are in history tables,
//! which say themselves from which LSN on they are not seen. Another newest version is dropped when it is at or
//! below the floor and nobody can see it: covered by a range delete at or below the floor, or expired by the
//! floor's commit time with nothing below to hide.
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
    Drop(Reason),
}

/// Why a version is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// By a newer version, at or below the floor.
    Superseded = 0,
    /// By a range delete, at or below the floor.
    RangeDeleted = 1,
    /// A delete that hides nothing.
    Delete = 2,
    Expired = 3,
    /// Of a history table: its time is over.
    History = 4,
}

/// Numbers of versions by [`Reason`].
pub(crate) type Dropped = [u64; 5];

/// First and last key of tables of one level, ascending and apart.
pub(crate) type KeySpans = Vec<(Vec<u8>, Vec<u8>)>;

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
        let Some(newer) = self.newer.replace(entry.lsn) else { return self.newest(entry) };
        let deleted = if self.ranges.is_empty() { None } else { self.ranges.first_above(entry.key, entry.lsn) };
        let by = deleted.map_or(newer, |d| d.min(newer));
        if by > self.floor.0 {
            return Ok(Fate::Superseded(by));
        }
        Ok(Fate::Drop(if by < newer { Reason::RangeDeleted } else { Reason::Superseded }))
    }

    fn newest(&mut self, entry: EntryRef<'_>) -> Result<Fate> {
        let (floor, floor_ts) = self.floor;
        let Some(envelope) = entry.value else {
            let useless = self.nothing_below(entry.key) || planted(Bug::DropHidingDeletes);
            return Ok(if useless { Fate::Drop(Reason::Delete) } else { Fate::Keep });
        };
        if entry.lsn > floor {
            return Ok(Fate::Keep);
        }
        if self.ranges.first_above(entry.key, entry.lsn).is_some_and(|l| l <= floor) {
            return Ok(Fate::Drop(Reason::RangeDeleted));
        }
        let gone = Value::decode(envelope)?.expired_at(floor_ts) && self.nothing_below(entry.key);
        Ok(if gone { Fate::Drop(Reason::Expired) } else { Fate::Keep })
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
