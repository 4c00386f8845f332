//! Views: reads at one LSN, stable while the tree goes on.
//!
//! A view pins the memtables and table files it was made with; files that compaction replaces stay
//! until the last view of them is dropped. Owns: which version of a key is visible. Never: writes.

use std::fmt;
use std::sync::Arc;

use crate::batch::Keyspace;
use crate::error::Result;
use crate::lsn::{CommitTs, Lsn};
use crate::table::{Item, RangeDelete, Stored, covering, internal_end, internal_key};
use crate::value::Value;

use super::merge::Merge;
use super::version::Version;

/// A consistent read position. Cheap to make and to clone; holding one for long keeps memory and
/// files that the tree no longer needs.
#[derive(Clone)]
pub struct View {
    version: Arc<Version>,
    lsn: Lsn,
    ts: CommitTs,
}

/// A value found under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The record that wrote it: the key's version.
    pub lsn: Lsn,
    /// The encoded [`Value`].
    pub envelope: Vec<u8>,
}

/// A key with its value, from a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key, without its keyspace.
    pub key: Vec<u8>,
    /// The record that wrote it: the key's version.
    pub lsn: Lsn,
    /// The encoded [`Value`].
    pub envelope: Vec<u8>,
}

impl View {
    pub(crate) const fn new(version: Arc<Version>, lsn: Lsn, ts: CommitTs) -> Self {
        Self { version, lsn, ts }
    }

    /// The LSN that is read at.
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Commit time of the newest record the view contains; expiry is judged by it.
    #[must_use]
    pub const fn ts(&self) -> CommitTs {
        self.ts
    }

    /// The value of a key; `None` when absent, deleted or expired.
    ///
    /// # Errors
    /// `Corruption` naming the damaged block, or `Io`. Other keys stay readable.
    pub fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Found>> {
        let found = self.version.get(&internal_key(keyspace, key), self.lsn)?;
        let Some((lsn, op)) = found else { return Ok(None) };
        Ok(visible(op, self.ts)?.map(|envelope| Found { lsn, envelope }))
    }

    /// The keys in `start..end` (`end` exclusive; an empty `end` means the end of the keyspace), in
    /// order, or from the last to the first with `reverse`.
    #[must_use]
    pub fn scan(&self, keyspace: Keyspace, start: &[u8], end: &[u8], reverse: bool) -> Scan {
        let (low, high) = (internal_key(keyspace, start), internal_end(keyspace, end));
        let merge = self.version.merge(&low, &high, reverse, self.lsn);
        let ranges = self.version.ranges(&low, &high, self.lsn);
        Scan { merge, ranges, pending: None, lsn: self.lsn, ts: self.ts, ended: false }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("lsn", &self.lsn).field("ts", &self.ts).finish_non_exhaustive()
    }
}

/// The envelope of a put that has not expired.
fn visible(op: Stored, ts: CommitTs) -> Result<Option<Vec<u8>>> {
    match op {
        Stored::Put(envelope) => Ok((!Value::decode(&envelope)?.expired_at(ts)).then_some(envelope)),
        Stored::Delete => Ok(None),
    }
}

/// An iterator over a view, see [`View::scan`]. Ends after an error.
#[derive(Debug)]
pub struct Scan {
    merge: Merge,
    ranges: Vec<RangeDelete>,
    /// The first version of the next key.
    pending: Option<Item>,
    lsn: Lsn,
    ts: CommitTs,
    ended: bool,
}

impl Scan {
    /// The next version at or below the view's LSN.
    fn pull(&mut self) -> Result<Option<Item>> {
        if let Some(item) = self.pending.take() {
            return Ok(Some(item));
        }
        loop {
            match self.merge.next().transpose()? {
                Some(item) if item.lsn > self.lsn => {}
                other => return Ok(other),
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Entry>> {
        while let Some(mut newest) = self.pull()? {
            while let Some(item) = self.pull()? {
                if item.key != newest.key {
                    self.pending = Some(item);
                    break;
                }
                // Versions come from new to old, or from old to new in reverse.
                if item.lsn > newest.lsn {
                    newest = item;
                }
            }
            if covering(&self.ranges, &newest.key, self.lsn) > newest.lsn {
                continue;
            }
            if let Some(envelope) = visible(newest.op, self.ts)? {
                let key = newest.key.get(1..).unwrap_or_default().to_vec();
                return Ok(Some(Entry { key, lsn: newest.lsn, envelope }));
            }
        }
        Ok(None)
    }
}

impl Iterator for Scan {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let out = self.advance().transpose();
        self.ended = !matches!(out, Some(Ok(_)));
        out
    }
}
