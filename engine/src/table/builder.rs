//! Writes a table file from entries that come in order.
//!
//! Owns: the file until `finish`; a builder that is dropped before removes it. Never: syncs of the
//! directory or the manifest, which make the table part of a tree.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::Malformed;
use crate::error::{Error, Result};
use crate::fs::{File, Fs, OpenMode};
use crate::lsn::{CommitTs, Lsn};
use crate::value::Value;

use super::block_builder::BlockBuilder;
use super::filter::{Filter, key_hash};
use super::format::{BlockKind, Footer, Origin, Place, Properties, encode_ranges, put_block, section_parts};
use super::index::IndexBuilder;
use super::superseded::Superseded;
use super::times::Times;
use super::{EntryRef, RangeDelete, TableFile, table_name};

/// Written to the file in pieces of about this many bytes.
const WRITE_BYTES: usize = 256 * 1024;
/// A block never gets larger than this before its last entry, whatever the option says.
const BLOCK_BYTES_CAP: usize = 1 << 20;

/// A failed write, or a failed sync, which is final for the caller.
#[derive(Debug)]
pub(crate) enum BuildError {
    /// Nothing of the table is left.
    Failed(Error),
    /// The file could not be synced \[I3\].
    Sync(PathBuf, std::io::Error),
}

impl From<Error> for BuildError {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct TableBuilder {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    file: Arc<dyn File>,
    id: u128,
    block_bytes: usize,
    block: BlockBuilder,
    raw: Vec<u8>,
    packed: Vec<u8>,
    scratch: Vec<u8>,
    index: IndexBuilder,
    hashes: Vec<u64>,
    last_key: Vec<u8>,
    last_lsn: Lsn,
    buffer: Vec<u8>,
    written: u64,
    hasher: blake3::Hasher,
    properties: Properties,
    finished: bool,
}

impl TableBuilder {
    /// Starts the file `dir/{id}.table`.
    pub(crate) fn create(fs: &Arc<dyn Fs>, dir: &Path, id: u128, block_bytes: usize, origin: Origin) -> Result<Self> {
        let path = dir.join(table_name(id));
        let file = fs.open(&path, OpenMode::CreateNew).map_err(|e| Error::io("create", &path, e))?;
        Ok(Self {
            fs: Arc::clone(fs),
            path,
            file,
            id,
            block_bytes: block_bytes.clamp(64, BLOCK_BYTES_CAP),
            block: BlockBuilder::default(),
            raw: Vec::new(),
            packed: Vec::new(),
            scratch: Vec::new(),
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            last_key: Vec::new(),
            last_lsn: Lsn::ZERO,
            buffer: Vec::new(),
            written: 0,
            hasher: blake3::Hasher::new(),
            properties: Properties { origin, ..Properties::default() },
            finished: false,
        })
    }

    /// File length so far, in bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.written + (self.buffer.len() + self.block.size()) as u64
    }

    /// Adds an entry that is above the last one in (key, LSN descending).
    pub(crate) fn add(&mut self, entry: EntryRef<'_>) -> Result<()> {
        // Keys start with a keyspace byte, so the empty one is below all.
        match entry.key.cmp(&self.last_key) {
            Ordering::Greater => {
                if self.properties.entries == 0 {
                    self.properties.min_key = entry.key.to_vec();
                }
                self.hashes.push(key_hash(entry.key));
            }
            Ordering::Equal if entry.lsn < self.last_lsn => {}
            _ => return Err(Error::corruption(&self.path, self.bytes(), Some(entry.lsn), "entries out of order")),
        }
        if !self.block.is_empty() && self.block.size() + BlockBuilder::size_of(entry) > self.block_bytes {
            self.finish_block()?;
        }
        if self.block.is_empty() {
            self.index.next_starts(entry.key);
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(entry.key);
        self.last_lsn = entry.lsn;
        self.count(entry);
        self.block.push(entry);
        Ok(())
    }

    /// Adds a version to a history table: reads at `by` and above do not see it.
    pub(crate) fn add_superseded(&mut self, entry: EntryRef<'_>, by: Lsn) -> Result<()> {
        let mut value = std::mem::take(&mut self.scratch);
        value.clear();
        Superseded::encode(&mut value, by, entry.value);
        let added = self.add(EntryRef { value: Some(&value), ..entry });
        self.scratch = value;
        added
    }

    /// The key added last.
    pub(crate) fn last_key(&self) -> &[u8] {
        &self.last_key
    }

    fn count(&mut self, entry: EntryRef<'_>) {
        let p = &mut self.properties;
        p.entries += 1;
        match entry.value {
            Some(bytes) if p.origin == Origin::History => {
                p.superseded = Superseded::decode(bytes).map_or(p.superseded, |s| p.superseded.max(s.by));
            }
            Some(envelope) => {
                if let Some(CommitTs(at)) = Value::decode(envelope).ok().and_then(|v| v.expiry) {
                    p.expiry = if p.expiring == 0 { (at, at) } else { (p.expiry.0.min(at), p.expiry.1.max(at)) };
                    p.expiring += 1;
                }
            }
            None => p.deletes += 1,
        }
        self.cover_lsn(entry.lsn);
    }

    fn cover_lsn(&mut self, lsn: Lsn) {
        let p = &mut self.properties;
        p.min_lsn = if p.max_lsn == Lsn::ZERO { lsn } else { p.min_lsn.min(lsn) };
        p.max_lsn = p.max_lsn.max(lsn);
    }

    fn finish_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut raw = std::mem::take(&mut self.raw);
        raw.clear();
        self.block.write(&mut raw);
        self.properties.raw_bytes += raw.len() as u64;
        self.properties.data_blocks += 1;
        let place = self.put(BlockKind::Data, &raw)?;
        self.raw = raw;
        self.index.finished(self.block.last_key(), place.len);
        self.block.clear();
        Ok(())
    }

    fn put(&mut self, kind: BlockKind, raw: &[u8]) -> Result<Place> {
        let offset = self.written + self.buffer.len() as u64;
        let before = self.buffer.len();
        put_block(&mut self.buffer, &mut self.packed, (self.id, offset, kind), raw);
        let len = (self.buffer.len() - before) as u64;
        if self.buffer.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(Place { offset, len })
    }

    fn put_section(&mut self, kind: BlockKind, payload: &[u8]) -> Result<Place> {
        let offset = self.written + self.buffer.len() as u64;
        let mut len = 0;
        for part in section_parts(payload) {
            len += self.put(kind, part)?.len;
        }
        Ok(Place { offset, len })
    }

    fn write_out(&mut self) -> Result<()> {
        self.file.write_all_at(&self.buffer, self.written).map_err(|e| Error::io("write", &self.path, e))?;
        self.hasher.update(&self.buffer);
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest and syncs the file. `max_ts` is the commit time of the newest record the
    /// entries stem from.
    pub(crate) fn finish(
        mut self,
        ranges: &[RangeDelete],
        times: &Times,
        max_ts: CommitTs,
    ) -> std::result::Result<TableFile, BuildError> {
        self.finish_block()?;
        ranges.iter().for_each(|r| self.cover_lsn(r.lsn));
        self.properties.range_deletes = ranges.len() as u64;
        self.properties.max_ts = max_ts;
        self.properties.first_time = times.first().unwrap_or_default();
        self.properties.last_time = times.last().unwrap_or_default();
        self.properties.max_key = std::mem::take(&mut self.last_key);
        self.properties.ranges = self.put_section(BlockKind::Ranges, &encode_ranges(ranges))?;
        self.properties.times = self.put_section(BlockKind::Times, times.as_bytes())?;
        let filter = Filter::build(&std::mem::take(&mut self.hashes));
        self.properties.filter = self.put_section(BlockKind::Filter, &filter.encode())?;
        let index = self.index.finish();
        self.properties.index = self.put_section(BlockKind::Index, &index)?;
        let properties = self.put(BlockKind::Properties, &self.properties.encode())?;
        self.buffer.extend_from_slice(&Footer { id: self.id, properties }.encode());
        self.write_out()?;
        self.file.sync_data().map_err(|e| BuildError::Sync(self.path.clone(), e))?;
        self.finished = true;
        Ok(TableFile {
            id: self.id,
            bytes: self.written,
            blake3: *self.hasher.finalize().as_bytes(),
            entries: self.properties.entries,
        })
    }
}

impl Drop for TableBuilder {
    fn drop(&mut self) {
        if !self.finished {
            // Gives a full disk its room back. A file that stays is no part of a tree: open removes it.
            let _ = self.fs.remove_file(&self.path);
        }
    }
}

impl From<Malformed> for BuildError {
    fn from(m: Malformed) -> Self {
        Self::Failed(m.into())
    }
}
