//! An open table: positional reads through the block cache, point look-ups and iteration.
//!
//! Index, filter and range deletes are checked and pinned at open; data blocks and commit times
//! are read when asked for. Owns: the handle; the file itself is removed when the last handle of a
//! table marked obsolete goes. Never: writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::codec::{Cursor, Malformed};
use crate::error::{Error, Result};
use crate::fs::{File, Fs, OpenMode, read_exact_at};
use crate::lsn::{CommitTs, Lsn};

use super::block::Block;
use super::cache::BlockCache;
use super::filter::Filter;
use super::format::{
    BlockKind, FOOTER_BYTES, FRAME_BYTES, Footer, FooterError, IndexEntry, Place, Properties, RAW_BYTES_MAX, VERSION,
    decode_index, decode_ranges, take_block, take_section,
};
use super::times::Times;
use super::{Item, RangeDelete, Stored};

/// Whether a read leaves its blocks in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// A reader's blocks stay.
    Keep,
    /// Compaction and verification read once and leave the cache alone.
    Bypass,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    file: Arc<dyn File>,
    cache: Arc<BlockCache>,
    number: u64,
    pub(super) id: u128,
    pub(super) bytes: u64,
    pub(super) properties_at: Place,
    pub(super) properties: Properties,
    pub(super) index: Vec<IndexEntry>,
    pub(super) filter: Filter,
    ranges: Vec<RangeDelete>,
    obsolete: AtomicBool,
}

impl Table {
    /// Opens a table and checks everything but its data blocks and commit times.
    pub(crate) fn open(fs: &Arc<dyn Fs>, path: &Path, cache: &Arc<BlockCache>) -> Result<Self> {
        let file = fs.open(path, OpenMode::Read).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::corruption(path, 0, None, "the table file is missing"),
            _ => Error::io("open", path, e),
        })?;
        let bytes = file.len().map_err(|e| Error::io("measure", path, e))?;
        let raw = RawTable { file: &*file, path, bytes };
        let footer = raw.footer()?;
        let properties_at = footer.properties;
        let (id, at) = (footer.id, properties_at.offset);
        let properties = raw
            .block(properties_at, id, BlockKind::Properties)
            .and_then(|b| Properties::decode(&b).map_err(|m| Error::corruption(path, at, None, m.0)))?;
        let p = &properties;
        let index = raw.section(p.index, id, BlockKind::Index, |b| decode_index(&b))?;
        let filter = raw.section(p.filter, id, BlockKind::Filter, |b| Filter::decode(&b))?;
        let ranges = raw.section(p.ranges, id, BlockKind::Ranges, |b| decode_ranges(&b))?;
        Ok(Self {
            fs: Arc::clone(fs),
            path: path.to_owned(),
            cache: Arc::clone(cache),
            number: cache.table_number(),
            id,
            bytes,
            properties_at,
            properties,
            index,
            filter,
            ranges,
            obsolete: AtomicBool::new(false),
            file,
        })
    }

    pub(crate) const fn id(&self) -> u128 {
        self.id
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) const fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(crate) fn ranges(&self) -> &[RangeDelete] {
        &self.ranges
    }

    /// The file goes when the last handle does.
    pub(crate) fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }

    pub(super) fn damaged(&self, offset: u64, m: Malformed) -> Error {
        Error::corruption(&self.path, offset, None, m.0)
    }

    fn raw(&self) -> RawTable<'_> {
        RawTable { file: &*self.file, path: &self.path, bytes: self.bytes }
    }

    /// The commit times of the records the table stems from.
    pub(crate) fn times(&self) -> Result<Times> {
        self.raw().section(self.properties.times, self.id, BlockKind::Times, Times::decode)
    }

    /// The newest pair of the times section that is at or below `lsn`.
    pub(crate) fn time_at(&self, lsn: Lsn) -> Result<Option<(Lsn, CommitTs)>> {
        let (first, last) = (self.properties.first_time, self.properties.last_time);
        if self.properties.times.len == 0 || lsn < first.0 {
            return Ok(None);
        }
        if lsn >= last.0 {
            return Ok(Some(last));
        }
        Ok(self.times()?.last_where(|l, _| l <= lsn))
    }

    /// The newest pair of the times section whose timestamp is at or below `ts`.
    pub(crate) fn lsn_at(&self, ts: CommitTs) -> Result<Option<(Lsn, CommitTs)>> {
        let (first, last) = (self.properties.first_time, self.properties.last_time);
        if self.properties.times.len == 0 || ts < first.1 {
            return Ok(None);
        }
        if ts >= last.1 {
            return Ok(Some(last));
        }
        Ok(self.times()?.last_where(|_, t| t <= ts))
    }

    pub(super) fn block(&self, at: Place, caching: Caching) -> Result<Arc<Block>> {
        if caching == Caching::Keep
            && let Some(block) = self.cache.get(self.number, at.offset)
        {
            return Ok(block);
        }
        let raw = self.raw().block(at, self.id, BlockKind::Data)?;
        let block = Arc::new(Block::decode(raw).map_err(|m| self.damaged(at.offset, m))?);
        if caching == Caching::Keep {
            self.cache.insert(self.number, at.offset, &block);
        }
        Ok(block)
    }

    /// The newest version of `key` at or below `lsn`.
    pub(crate) fn get(&self, key: &[u8], hash: u64, lsn: Lsn) -> Result<Option<(Lsn, Stored)>> {
        if !self.filter.may_contain(hash) {
            return Ok(None);
        }
        let from = self.index.partition_point(|e| e.last.as_slice() < key);
        for entry in self.index.iter().skip(from).take_while(|e| e.first.as_slice() <= key) {
            let block = self.block(entry.place, Caching::Keep)?;
            let damaged = |m| self.damaged(entry.place.offset, m);
            let at = block.seek(key, lsn).map_err(damaged)?;
            if at < block.len() {
                let found = block.entry(at).map_err(damaged)?;
                return Ok(found.cmp_key(key).is_eq().then(|| (found.lsn, found.op())));
            }
        }
        Ok(None)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            // The manifest no longer names it: should this fail, the next open removes it.
            let _ = self.fs.remove_file(&self.path);
        }
    }
}

/// Checked reads of a file that is a table, before or after its handle is complete.
struct RawTable<'a> {
    file: &'a dyn File,
    path: &'a Path,
    bytes: u64,
}

impl RawTable<'_> {
    fn read(&self, at: Place) -> Result<Vec<u8>> {
        let fits = at.end().is_some_and(|end| end <= self.bytes);
        let len = usize::try_from(at.len).ok().filter(|_| fits);
        let len = len.ok_or_else(|| Error::corruption(self.path, at.offset, None, "the file ends early"))?;
        let mut out = vec![0; len];
        read_exact_at(self.file, &mut out, at.offset).map_err(|e| Error::io("read", self.path, e))?;
        Ok(out)
    }

    fn footer(&self) -> Result<Footer> {
        let short = || Error::corruption(self.path, 0, None, "the file is too short for a table");
        let offset = self.bytes.checked_sub(FOOTER_BYTES as u64).ok_or_else(short)?;
        let bytes = self.read(Place { offset, len: FOOTER_BYTES as u64 })?;
        Footer::decode(&bytes).map_err(|e| match e {
            FooterError::Malformed(m) => Error::corruption(self.path, offset, None, m.0),
            FooterError::Version(found) => Error::Format { path: self.path.to_owned(), found, known: VERSION },
        })
    }

    fn block(&self, at: Place, id: u128, kind: BlockKind) -> Result<Vec<u8>> {
        let damaged = |m: Malformed| Error::corruption(self.path, at.offset, None, m.0);
        if at.len > (RAW_BYTES_MAX + FRAME_BYTES) as u64 {
            return Err(damaged(Malformed("block length over bound")));
        }
        let bytes = self.read(at)?;
        let mut c = Cursor::new(&bytes);
        let raw = take_block(&mut c, id, at.offset, kind).map_err(damaged)?;
        c.finish().map_err(damaged)?;
        Ok(raw)
    }

    fn section<T>(
        &self,
        at: Place,
        id: u128,
        kind: BlockKind,
        decode: impl FnOnce(Vec<u8>) -> std::result::Result<T, Malformed>,
    ) -> Result<T> {
        let bytes = self.read(at)?;
        take_section(&bytes, id, at.offset, kind)
            .and_then(decode)
            .map_err(|m| Error::corruption(self.path, at.offset, None, m.0))
    }
}

/// Iterates a table's entries with keys in `low..high` (empty `high`: no bound), in file order or
/// backwards. Ends after an error.
#[derive(Debug)]
pub(crate) struct TableIter {
    table: Arc<Table>,
    low: Vec<u8>,
    high: Vec<u8>,
    reverse: bool,
    caching: Caching,
    /// The next index entry to load.
    next_block: Option<usize>,
    block: Option<(Arc<Block>, u64)>,
    /// The next entry of `block`: `at..end` are left.
    at: usize,
    end: usize,
}

impl TableIter {
    pub(crate) fn new(table: Arc<Table>, low: Vec<u8>, high: Vec<u8>, reverse: bool, caching: Caching) -> Self {
        let next_block = if reverse {
            let above =
                if high.is_empty() { table.index.len() } else { table.index.partition_point(|e| e.first < high) };
            above.checked_sub(1)
        } else {
            Some(table.index.partition_point(|e| e.last < low))
        };
        Self { table, low, high, reverse, caching, next_block, block: None, at: 0, end: 0 }
    }

    /// Loads the next block that may hold wanted entries; false at the end.
    fn load(&mut self) -> Result<bool> {
        let wanted = self.next_block.and_then(|n| self.table.index.get(n));
        let wanted = wanted.filter(|e| e.last >= self.low && super::below_end(&e.first, &self.high));
        let Some(entry) = wanted else {
            self.block = None;
            return Ok(false);
        };
        let block = self.table.block(entry.place, self.caching)?;
        let damaged = |m| self.table.damaged(entry.place.offset, m);
        self.at = block.lower_bound(&self.low).map_err(damaged)?;
        self.end = if self.high.is_empty() { block.len() } else { block.lower_bound(&self.high).map_err(damaged)? };
        self.block = Some((block, entry.place.offset));
        self.next_block = self.next_block.and_then(|n| if self.reverse { n.checked_sub(1) } else { Some(n + 1) });
        Ok(true)
    }

    fn advance(&mut self) -> Result<Option<Item>> {
        while self.at >= self.end {
            if !self.load()? {
                return Ok(None);
            }
        }
        let Some((block, offset)) = &self.block else { return Ok(None) };
        let index = if self.reverse { self.end - 1 } else { self.at };
        let item = block.entry(index).map_err(|m| self.table.damaged(*offset, m))?.to_item();
        if self.reverse {
            self.end -= 1;
        } else {
            self.at += 1;
        }
        Ok(Some(item))
    }
}

impl Iterator for TableIter {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Self::Item> {
        let out = self.advance().transpose();
        if matches!(out, Some(Err(_))) {
            self.next_block = None;
            self.block = None;
            (self.at, self.end) = (0, 0);
        }
        out
    }
}
