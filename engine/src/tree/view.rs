//! Views: reads at one LSN, stable while the tree goes on.
//!
//! A view pins the memtables and table files it was made with; files that compaction replaces stay
//! until the last view of them is dropped. Owns: which version of a key is visible. Never: writes.

use std::fmt;
use std::sync::Arc;

use crate::batch::Keyspace;
use crate::error::Result;
use crate::lsn::{CommitTs, Lsn};
use crate::table::{InternalKey, internal_end, internal_key, internal_prefix_end};
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
        self.get_with(keyspace, key, |lsn, envelope| Found { lsn, envelope: envelope.to_vec() })
    }

    /// [`View::get`] without a copy: `read` is called with version and envelope if there is a value.
    ///
    /// # Errors
    /// As [`View::get`].
    pub fn get_with<R>(&self, keyspace: Keyspace, key: &[u8], read: impl FnOnce(Lsn, &[u8]) -> R) -> Result<Option<R>> {
        look_up(&self.version, self.lsn, self.ts, keyspace, key, read)
    }

    /// The values of several keys, in their order.
    ///
    /// # Errors
    /// As [`View::get`], for the first key that cannot be read.
    pub fn multi_get<K: AsRef<[u8]>>(&self, keyspace: Keyspace, keys: &[K]) -> Result<Vec<Option<Found>>> {
        keys.iter().map(|key| self.get(keyspace, key.as_ref())).collect()
    }

    /// The keys in `start..end` (`end` exclusive; an empty `end` means the end of the keyspace), in
    /// order, or from the last to the first with `reverse`.
    #[must_use]
    pub fn scan(&self, keyspace: Keyspace, start: &[u8], end: &[u8], reverse: bool) -> Scan {
        self.scan_between(internal_key(keyspace, start), internal_end(keyspace, end), reverse)
    }

    /// The keys that start with `prefix` (with an empty one, all of the keyspace), in order, or from the last to the
    /// first with `reverse`.
    #[must_use]
    pub fn scan_prefix(&self, keyspace: Keyspace, prefix: &[u8], reverse: bool) -> Scan {
        self.scan_between(internal_key(keyspace, prefix), internal_prefix_end(keyspace, prefix), reverse)
    }

    fn scan_between(&self, low: Vec<u8>, high: Vec<u8>, reverse: bool) -> Scan {
        let merge = self.version.merge(low, high, reverse, self.lsn);
        let (version, ranged) = (Arc::clone(&self.version), self.version.has_ranges());
        let (key, held, passed) = (Vec::new(), Held::default(), Passed::default());
        Scan {
            merge,
            version,
            ranged,
            reverse,
            lsn: self.lsn,
            ts: self.ts,
            key,
            held,
            passed,
            ahead: false,
            ended: false,
        }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("lsn", &self.lsn).field("ts", &self.ts).finish_non_exhaustive()
    }
}

/// The value of a key in a version of the tree, read at an LSN whose commit time is `ts`.
pub(super) fn look_up<R>(
    version: &Version,
    lsn: Lsn,
    ts: CommitTs,
    keyspace: Keyspace,
    key: &[u8],
    read: impl FnOnce(Lsn, &[u8]) -> R,
) -> Result<Option<R>> {
    let Some(hit) = version.get(&InternalKey::new(keyspace, key), lsn)? else { return Ok(None) };
    let Some(envelope) = hit.value() else { return Ok(None) };
    Ok((!Value::decode(envelope)?.expired_at(ts)).then(|| read(hit.lsn, envelope)))
}

/// A key with its value, lent by a scan until its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEntry<'a> {
    /// The key, without its keyspace.
    pub key: &'a [u8],
    /// The record that wrote it: the key's version.
    pub lsn: Lsn,
    /// The encoded [`Value`].
    pub envelope: &'a [u8],
}

/// In reverse, the version of [`Scan::key`] to give: it is known only when the next key has come.
#[derive(Debug, Default)]
struct Held {
    lsn: Lsn,
    put: bool,
    envelope: Vec<u8>,
}

/// Entries in a row that a scan may pass over in tables, or in the active memtable, without showing one before
/// compaction, or the flush, is told.
const SKIP_BUDGET: u64 = 1024;

/// What a scan passed over: deletes, versions that are hidden, expired or too new.
#[derive(Debug, Default)]
struct Passed {
    all: u64,
    /// In tables and in the active memtable, since the last entry that was shown, or that somebody was told of. Frozen
    /// memtables are flushed anyhow.
    runs: [u64; 2],
}

impl Passed {
    fn one(&mut self, merge: &Merge, version: &Version) {
        self.all += 1;
        let [in_tables, in_active] = &mut self.runs;
        let run = match merge.memtable() {
            None => in_tables,
            Some(m) if std::ptr::eq(m, &*version.active) => in_active,
            Some(_) => return,
        };
        *run += 1;
        if *run >= SKIP_BUDGET && merge.mark_crowded() {
            *run = 0;
        }
    }
}

/// An iterator over a view, see [`View::scan`]. Ends after an error.
#[derive(Debug)]
pub struct Scan {
    merge: Merge,
    /// What is read, and held while it is.
    version: Arc<Version>,
    /// Whether range deletes have to be asked for.
    ranged: bool,
    reverse: bool,
    lsn: Lsn,
    ts: CommitTs,
    /// The key that was decided on last. Keys start with a keyspace byte, so none is empty.
    key: Vec<u8>,
    held: Held,
    passed: Passed,
    /// In reverse: the merge stands at an entry that is not looked at yet.
    ahead: bool,
    ended: bool,
}

impl Scan {
    /// Entries that the scan passed over so far because they cannot be shown. Where there are many in a row,
    /// compaction takes care of the tables that they are in.
    #[must_use]
    pub const fn passed_over(&self) -> u64 {
        self.passed.all
    }

    /// The next key with its value, without a copy where it can be. `None` at the end.
    ///
    /// # Errors
    /// `Corruption` naming the damaged block, or `Io`; the scan has ended then.
    pub fn next_entry(&mut self) -> Result<Option<ScanEntry<'_>>> {
        if self.ended {
            return Ok(None);
        }
        let moved = if self.reverse { self.backward() } else { self.forward() };
        self.ended = !matches!(moved, Ok(true));
        if !moved? {
            return Ok(None);
        }
        self.passed.runs = [0; 2];
        let key = self.key.get(1..).unwrap_or_default();
        if self.reverse {
            return Ok(Some(ScanEntry { key, lsn: self.held.lsn, envelope: &self.held.envelope }));
        }
        let entry = self.merge.entry();
        Ok(entry.and_then(|e| Some(ScanEntry { key, lsn: e.lsn, envelope: e.value? })))
    }

    /// Goes to the next visible version; the merge stands at it. Versions come from new to old.
    fn forward(&mut self) -> Result<bool> {
        while self.merge.advance()? {
            let Some(entry) = self.merge.entry() else { break };
            if entry.lsn > self.lsn || entry.key == self.key {
                self.passed.one(&self.merge, &self.version);
                continue;
            }
            self.key.clear();
            self.key.extend_from_slice(entry.key);
            if self.ranged && self.version.covering(entry.key, self.lsn) > entry.lsn {
                self.passed.one(&self.merge, &self.version);
                continue;
            }
            if let Some(envelope) = entry.value
                && !Value::decode(envelope)?.expired_at(self.ts)
            {
                return Ok(true);
            }
            self.passed.one(&self.merge, &self.version);
        }
        Ok(false)
    }

    /// Goes to the next visible version and holds it. Versions come from old to new.
    fn backward(&mut self) -> Result<bool> {
        loop {
            if !std::mem::take(&mut self.ahead) && !self.merge.advance()? {
                return Ok(false);
            }
            if !self.hold(true) {
                self.passed.one(&self.merge, &self.version);
                continue;
            }
            while self.merge.advance()? {
                if self.merge.entry().is_some_and(|e| e.key != self.key) {
                    self.ahead = true;
                    break;
                }
                self.passed.one(&self.merge, &self.version);
                self.hold(false);
            }
            let hidden = self.ranged && self.version.covering(&self.key, self.lsn) > self.held.lsn;
            if self.held.put && !hidden && !Value::decode(&self.held.envelope)?.expired_at(self.ts) {
                return Ok(true);
            }
            self.passed.one(&self.merge, &self.version);
        }
    }

    /// Takes the merge's entry over, with its key if it is the `first` of that, unless it is too new.
    fn hold(&mut self, first: bool) -> bool {
        let Some(entry) = self.merge.entry().filter(|e| e.lsn <= self.lsn) else { return false };
        if first {
            self.key.clear();
            self.key.extend_from_slice(entry.key);
        }
        self.held.lsn = entry.lsn;
        self.held.put = entry.value.is_some();
        self.held.envelope.clear();
        self.held.envelope.extend_from_slice(entry.value.unwrap_or_default());
        true
    }
}

impl Iterator for Scan {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let owned = |e: ScanEntry<'_>| Entry { key: e.key.to_vec(), lsn: e.lsn, envelope: e.envelope.to_vec() };
        self.next_entry().map(|entry| entry.map(owned)).transpose()
    }
}
