//! An open table: positional reads through the block cache, point look-ups and iteration.
//!
//! Properties and range deletes are checked and pinned at open, index and filter when a read first needs
//! them, so that opening a large tree takes no longer than a small one, and only if there is room (`parts`);
//! data blocks and commit times are read when asked for. Owns: the handle; the file itself is removed when the
//! last handle of a table marked obsolete goes, be it one of before a repair, while its tree lives ([`Life`]). Never:
//! writes.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::codec::{Cursor, Malformed};
use crate::error::{Error, Result};
use crate::fault::{Bug, planted};
use crate::fs::{File, Fs, OpenMode, read_exact_at};
use crate::lsn::{CommitTs, Lsn};

use super::block::Block;
use super::cache::BlockCache;
use super::filter::{Filter, Probe};
use super::format::{
    BlockKind, FOOTER_BYTES, FRAME_BYTES, Footer, FooterError, Origin, Place, Properties, RAW_BYTES_MAX, VERSION,
    decode_ranges, take_block, take_section,
};
use super::index::Index;
use super::parts::{Lent, Part};
use super::run::Run;
use super::tally::{Asked, Event};
use super::times::Times;
use super::{Hit, RangeDelete};

/// Whether a read leaves its blocks in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// A reader's blocks stay.
    Keep,
    /// Compaction and verification read once and leave the cache alone.
    Bypass,
}

/// How long a tree's handles may remove files: after it, what has their names may be another tree's, which was put
/// where this one was.
#[derive(Debug, Default)]
pub(crate) struct Life {
    over: RwLock<bool>,
}

impl Life {
    /// Ends it. No handle is removing a file when this returns, and none does afterwards.
    pub(crate) fn end(&self) {
        *self.over.write().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// The name of a table's file, which all handles of the table have in common.
#[derive(Debug)]
struct Name {
    fs: Arc<dyn Fs>,
    path: PathBuf,
    obsolete: AtomicBool,
    /// Of the tree that has the table; without one the file is nobody's to remove.
    life: Option<Arc<Life>>,
}

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(life) = self.life.as_ref().filter(|_| self.obsolete.load(Ordering::Acquire)) {
            // Held across the removal: who ends the life waits for it.
            let over = life.over.read().unwrap_or_else(PoisonError::into_inner);
            if !*over || planted(Bug::RemoveAfterEnd) {
                // The manifest no longer names it: should this fail, the next open removes it.
                let _ = self.fs.remove_file(&self.path);
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    name: Arc<Name>,
    file: Arc<dyn File>,
    cache: Arc<BlockCache>,
    number: u64,
    pub(super) id: u128,
    pub(super) bytes: u64,
    pub(super) properties_at: Place,
    pub(super) properties: Properties,
    /// Index and filter, once they are pinned.
    index: OnceLock<Index>,
    filter: OnceLock<Filter>,
    bottom: AtomicBool,
    /// Of a table at the bottom, from when its filter was first needed: whether it is read without.
    unfiltered: OnceLock<bool>,
    /// See [`Table::standing_at`].
    ingested: Option<Lsn>,
    ranges: Vec<RangeDelete>,
    crowded: AtomicBool,
}

impl Table {
    /// Opens a table and checks its footer, properties and range deletes.
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
        let ranges = raw.section(properties.ranges, id, BlockKind::Ranges, |b| decode_ranges(&b))?;
        let name = Name { fs: Arc::clone(fs), path: path.to_owned(), obsolete: AtomicBool::new(false), life: None };
        Ok(Self {
            name: Arc::new(name),
            cache: Arc::clone(cache),
            number: cache.table_number(),
            id,
            bytes,
            properties_at,
            properties,
            index: OnceLock::new(),
            filter: OnceLock::new(),
            bottom: AtomicBool::new(false),
            unfiltered: OnceLock::new(),
            ingested: None,
            ranges,
            crowded: AtomicBool::new(false),
            file,
        })
    }

    /// A table of the tree with this life: its file may be removed until that ends.
    pub(crate) fn living(mut self, life: &Arc<Life>) -> Self {
        // Just opened: nobody else has the name.
        if let Some(name) = Arc::get_mut(&mut self.name) {
            name.life = Some(Arc::clone(life));
        }
        self
    }

    /// Its file was put in the place of another handle's, whose readers go on to hold the name: a pin holds files by it.
    pub(crate) fn in_place_of(mut self, old: &Self) -> Self {
        self.name = Arc::clone(&old.name);
        self
    }

    /// One of the many tables at the bottom: read without its filter if memory is short when that is first needed.
    pub(crate) fn mark_bottom(&self) {
        self.bottom.store(true, Ordering::Relaxed);
    }

    #[cfg(all(test, feature = "sim"))]
    pub(crate) fn is_bottom(&self) -> bool {
        self.bottom.load(Ordering::Relaxed)
    }

    /// From now on all its entries have this LSN: they were written before anybody knew it. There is one version of a
    /// key in such a table.
    pub(crate) fn standing_at(mut self, ingested: Option<Lsn>) -> Self {
        if let Some(lsn) = ingested.filter(|_| !planted(Bug::ForgetIngestLsn)) {
            (self.properties.min_lsn, self.properties.max_lsn) = (lsn, lsn);
            self.ingested = Some(lsn);
        }
        self
    }

    /// The LSN of an entry that carries this one.
    pub(super) fn lsn_of(&self, written: Lsn) -> Lsn {
        self.ingested.unwrap_or(written)
    }

    pub(super) fn index(&self) -> Result<Lent<'_, Index>> {
        self.index_for(Caching::Keep)
    }

    pub(super) fn index_for(&self, caching: Caching) -> Result<Lent<'_, Index>> {
        let at = self.properties.index;
        self.part(&self.index, caching, || self.raw().section(at, self.id, BlockKind::Index, |b| Index::decode(&b)))
    }

    pub(super) fn pinned_index(&self) -> Option<&Index> {
        self.index.get()
    }

    pub(super) fn filter(&self) -> Result<Lent<'_, Filter>> {
        let at = self.properties.filter;
        let load = || self.raw().section(at, self.id, BlockKind::Filter, |b| Filter::decode(&b));
        self.part(&self.filter, Caching::Keep, load)
    }

    /// What is pinned, or lent; else what `load` reads, which is pinned if there is room.
    fn part<'a, P: Part>(
        &'a self,
        pin: &'a OnceLock<P>,
        caching: Caching,
        load: impl FnOnce() -> Result<P>,
    ) -> Result<Lent<'a, P>> {
        if let Some(part) = pin.get() {
            return Ok(Lent::Pinned(part));
        }
        let parts = self.cache.parts();
        if let Some(part) = parts.get(self.number) {
            return Ok(Lent::Shared(part));
        }
        let part = load()?;
        self.cache.count(Event::PartLoaded);
        let bytes = part.memory();
        if parts.pin(bytes, self.properties.origin != Origin::History) {
            let mut first = false;
            let pinned = pin.get_or_init(|| {
                first = true;
                part
            });
            if !first {
                parts.unpin(bytes);
            }
            self.cache.divide_anew();
            return Ok(Lent::Pinned(pinned));
        }
        let part = Arc::new(part);
        if caching == Caching::Keep {
            parts.insert(self.number, &part);
            self.cache.divide_anew();
        }
        Ok(Lent::Shared(part))
    }

    pub(crate) const fn id(&self) -> u128 {
        self.id
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn path(&self) -> &Path {
        &self.name.path
    }

    pub(crate) const fn properties(&self) -> &Properties {
        &self.properties
    }

    pub(crate) fn ranges(&self) -> &[RangeDelete] {
        &self.ranges
    }

    /// The file goes when the last handle does, or, if that is after its tree's life, when the directory is next opened.
    pub(crate) fn mark_obsolete(&self) {
        self.name.obsolete.store(true, Ordering::Release);
    }

    /// A scan passed over a long run of entries here that it could not show.
    pub(crate) fn mark_crowded(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    pub(super) fn damaged(&self, offset: u64, m: Malformed) -> Error {
        Error::corruption(self.path(), offset, None, m.0)
    }

    fn raw(&self) -> RawTable<'_> {
        RawTable { file: &*self.file, path: self.path(), bytes: self.bytes }
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

    /// Blocks of a table that is gone would stay in the cache until those that are asked have pushed them out. Where
    /// the index is not in memory any more, they do.
    fn forget_blocks(&self) {
        if !self.name.obsolete.load(Ordering::Acquire) {
            return;
        }
        let lent;
        let index = match self.index.get() {
            Some(index) => index,
            None => {
                lent = self.cache.parts().get::<Index>(self.number);
                let Some(lent) = &lent else { return };
                lent
            }
        };
        let places = (0..index.len()).filter_map(|n| index.place(n));
        places.for_each(|place| self.cache.forget(self.number, place.offset));
    }

    pub(super) fn block(&self, at: Place, caching: Caching) -> Result<Arc<Block>> {
        if caching == Caching::Keep
            && let Some(block) = self.cache.get(self.number, at.offset)
        {
            return Ok(block);
        }
        let block = self.read_block(at)?;
        if caching == Caching::Keep {
            self.cache.offer(self.number, at.offset, &block);
        }
        Ok(block)
    }

    pub(super) fn read_block(&self, at: Place) -> Result<Arc<Block>> {
        let raw = self.raw().block(at, self.id, BlockKind::Data)?;
        Ok(Arc::new(Block::decode(raw).map_err(|m| self.damaged(at.offset, m))?))
    }

    /// The block if it is in the cache, for a reader.
    pub(super) fn cached(&self, at: Place) -> Option<Arc<Block>> {
        self.cache.get(self.number, at.offset)
    }

    pub(super) fn offer(&self, at: Place, block: &Arc<Block>) {
        self.cache.offer(self.number, at.offset, block);
    }

    pub(super) const fn cache(&self) -> &Arc<BlockCache> {
        &self.cache
    }

    /// [`Table::block`] for a get.
    fn block_asked(&self, at: Place, asked: &mut Asked) -> Result<Arc<Block>> {
        if let Some(block) = self.cache.get_uncounted(self.number, at.offset) {
            asked.hits += 1;
            return Ok(block);
        }
        asked.misses += 1;
        let block = self.read_block(at)?;
        self.cache.offer(self.number, at.offset, &block);
        Ok(block)
    }

    /// False if a filter that is pinned knows that the key is not here. Nothing is read or counted for the question.
    pub(crate) fn may_hold(&self, probe: &Probe) -> bool {
        self.filter.get().is_none_or(|filter| filter.passes(probe))
    }

    /// The newest version of `key`, whose filter hash is `hash`, at or below `lsn`. What that takes is added to `asked`.
    pub(crate) fn get(&self, key: &[u8], hash: u64, lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
        let passed = match self.filter.get() {
            Some(filter) => Some(filter.may_contain(hash)),
            None => self.ask_filter(hash)?,
        };
        if passed == Some(false) {
            asked.spared += 1;
            return Ok(None);
        }
        let lent;
        let index = match self.index.get() {
            Some(index) => index,
            None => {
                lent = self.index()?;
                &*lent
            }
        };
        let found = self.look_up(index, key, lsn, asked)?;
        if passed.is_some() && found.is_none() {
            asked.wrong += 1;
        }
        Ok(found)
    }

    /// Whether a filter that is not pinned, or not yet, lets the key pass; `None` if the table is read without one.
    #[cold]
    fn ask_filter(&self, hash: u64) -> Result<Option<bool>> {
        if self.bottom.load(Ordering::Relaxed) && *self.unfiltered.get_or_init(|| self.cache.parts().enough()) {
            return Ok(None);
        }
        Ok(Some(self.filter()?.may_contain(hash)))
    }

    fn look_up(&self, index: &Index, key: &[u8], lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
        if self.ingested.is_some_and(|at| lsn < at) {
            return Ok(None);
        }
        asked.tables += 1;
        let mut at = index.find(key);
        while let Some(place) = index.place(at) {
            let block = self.block_asked(place, asked)?;
            let damaged = |m| self.damaged(place.offset, m);
            let (slot, found) = block.search(key, lsn).map_err(damaged)?;
            if found {
                let entry = block.entry(slot).map_err(damaged)?;
                let (lsn, value) = (self.lsn_of(entry.lsn), entry.value);
                return Ok(Some(Hit::in_block(lsn, block, value)));
            }
            if slot < block.len() {
                return Ok(None);
            }
            // The key, or its older versions, may begin the next block.
            at += 1;
        }
        Ok(None)
    }

    /// Of a history table: the version of `key` that reads at `lsn` see, if it is in here.
    pub(crate) fn get_superseded(&self, key: &[u8], hash: u64, lsn: Lsn, asked: &mut Asked) -> Result<Option<Hit>> {
        let p = &self.properties;
        if p.min_lsn > lsn || p.superseded <= lsn || key < p.min_key.as_slice() || key > p.max_key.as_slice() {
            return Ok(None);
        }
        let Some(hit) = self.get(key, hash, lsn, asked)? else { return Ok(None) };
        hit.not_superseded(lsn).map_err(|m| self.damaged(0, m))
    }

    /// Reads up to `buffer_max` bytes of whole blocks from block `at` on, for somebody who reads in order:
    /// the bytes and where they start. `None` past the last block.
    pub(super) fn read_run(&self, at: usize, buffer_max: u64) -> Result<Option<(Vec<u8>, u64)>> {
        let index = self.index()?;
        let Some(first) = index.place(at) else { return Ok(None) };
        let next = (at + 1..index.len()).filter_map(|n| index.place(n));
        let bytes = self.raw().read(run_of(first, next, buffer_max))?;
        Ok(Some((bytes, first.offset)))
    }

    /// Reads a block, and those of the `next` ones that stand right behind it and make no more than `bytes` with it.
    pub(super) fn read_ahead(
        &self,
        run: &mut Run,
        first: Place,
        next: impl Iterator<Item = Place>,
        bytes: u64,
    ) -> Result<()> {
        let raw = self.raw();
        let place = run_of(first, next, bytes);
        let read = raw.len_of(place).and_then(|len| raw.read_into(run.memory(place.offset, len), place));
        read.inspect_err(|_| run.failed(place))
    }

    /// Bytes of the file, unchecked.
    pub(super) fn read_raw(&self, at: Place) -> Result<Vec<u8>> {
        self.raw().read(at)
    }

    /// A data block out of bytes that [`Table::read_run`] gave.
    pub(super) fn block_in(&self, place: Place, (run, run_at): (&[u8], u64)) -> Result<Block> {
        let damaged = |m: Malformed| self.damaged(place.offset, m);
        let early = || damaged(Malformed("the file ends early"));
        let from = usize::try_from(place.offset.saturating_sub(run_at)).unwrap_or(usize::MAX);
        let bytes = run.get(from..).and_then(|b| b.get(..usize::try_from(place.len).unwrap_or(usize::MAX)));
        let mut c = Cursor::new(bytes.ok_or_else(early)?);
        let raw = take_block(&mut c, self.id, place.offset, BlockKind::Data).map_err(damaged)?;
        c.finish().map_err(damaged)?;
        Block::decode(raw).map_err(damaged)
    }
}

/// A block with those of the `next` ones that make no more than `bytes` with it.
fn run_of(first: Place, next: impl Iterator<Item = Place>, bytes: u64) -> Place {
    let fits = |p: &Place| p.end().is_some_and(|end| end - first.offset <= bytes);
    let last = next.take_while(fits).last().unwrap_or(first);
    Place { offset: first.offset, len: last.offset + last.len - first.offset }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.forget_blocks();
        let parts = self.cache.parts();
        parts.unpin(self.index.get().map_or(0, Part::memory) + self.filter.get().map_or(0, Part::memory));
        parts.forget(self.number);
    }
}

/// A block that is no larger on disk is read into memory that the thread has already, in bytes: the allocator's lock is
/// what readers in many threads would meet at.
const SCRATCH_BYTES: usize = 16 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Checked reads of a file that is a table, before or after its handle is complete.
struct RawTable<'a> {
    file: &'a dyn File,
    path: &'a Path,
    bytes: u64,
}

impl RawTable<'_> {
    fn read(&self, at: Place) -> Result<Vec<u8>> {
        let mut out = vec![0; self.len_of(at)?];
        self.read_into(&mut out, at)?;
        Ok(out)
    }

    /// The length of what stands there, if it ends within the file.
    fn len_of(&self, at: Place) -> Result<usize> {
        let fits = at.end().is_some_and(|end| end <= self.bytes);
        let len = usize::try_from(at.len).ok().filter(|_| fits);
        len.ok_or_else(|| Error::corruption(self.path, at.offset, None, "the file ends early"))
    }

    fn read_into(&self, out: &mut [u8], at: Place) -> Result<()> {
        read_exact_at(self.file, out, at.offset).map_err(|e| Error::io("read", self.path, e))
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
        let len = self.len_of(at)?;
        let take = |bytes: &mut [u8]| {
            self.read_into(bytes, at)?;
            let mut c = Cursor::new(bytes);
            let raw = take_block(&mut c, id, at.offset, kind).map_err(damaged)?;
            c.finish().map_err(damaged)?;
            Ok(raw)
        };
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.resize(SCRATCH_BYTES, 0);
            match scratch.get_mut(..len) {
                Some(bytes) => take(bytes),
                None => take(&mut vec![0; len]),
            }
        })
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
