//! Proves a table file by reading all of it, in bounded steps.
//!
//! Owns: the walk and the comparison of what it finds with what the file says of itself. Never:
//! repair, and never the shared block cache: what is read here is kept nowhere.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::inspect::bytes_are_lost;
use crate::lsn::Lsn;
use crate::value::Value;

use super::block::Block;
use super::cache::BlockCache;
use super::filter::{Filter, key_hash};
use super::format::{FOOTER_BYTES, Origin, Place, Properties};
use super::reader::Table;
use super::superseded::Superseded;
use super::{TableFile, parse_table_name};

/// Read at once by a check that nobody waits for, in bytes.
const READ_BYTES: u64 = 1 << 20;
/// Of one table so many findings are told: a file that is damaged all over says nothing new.
const FINDINGS_MAX: usize = 16;

/// Reads a whole table file: every checksum, the order and number of entries, index and filter
/// against the entries, and that no byte stands outside of a checksum.
///
/// # Errors
/// `Corruption` naming file and offset, `Format` for a newer format, or `Io`.
pub fn verify_table(fs: &Arc<dyn Fs>, path: &Path) -> Result<TableFile> {
    let mut check = TableCheck::open(fs, path)?;
    while check.step(READ_BYTES).is_some() {}
    check.finish().map_err(|found| {
        let first = found.into_iter().next();
        first.unwrap_or_else(|| Error::corruption(path, 0, None, "the table does not verify"))
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Layout,
    /// The next data block, and bytes to read at once.
    Blocks(usize),
    /// What stands behind the data blocks.
    Rest,
    Done,
}

/// A check of one table file on its way. It has a handle of its own and reads past every cache.
#[derive(Debug)]
pub(crate) struct TableCheck {
    table: Table,
    stage: Stage,
    walk: Walk,
    hasher: blake3::Hasher,
    hashed: u64,
    found: Vec<Error>,
}

impl TableCheck {
    /// Opens the file and checks footer, properties and range deletes.
    pub(crate) fn open(fs: &Arc<dyn Fs>, path: &Path) -> Result<Self> {
        let cache = Arc::new(BlockCache::new(0, 4096));
        let table = Table::open(fs, path, &cache)?;
        let mut check = Self {
            table,
            stage: Stage::Layout,
            walk: Walk::default(),
            hasher: blake3::Hasher::new(),
            hashed: 0,
            found: Vec::new(),
        };
        let named = path.file_name().and_then(|n| n.to_str()).and_then(parse_table_name);
        if named.is_some_and(|id| id != check.table.id) {
            check.fail(0, "the file holds another table than its name says");
        }
        Ok(check)
    }

    /// Checks about `bytes` more, at least a block; how many it read, `None` when all is checked.
    pub(crate) fn step(&mut self, bytes: u64) -> Option<u64> {
        match self.stage {
            Stage::Layout => {
                let read = self.layout();
                self.stage = if self.found.is_empty() { Stage::Blocks(0) } else { Stage::Rest };
                Some(read)
            }
            Stage::Blocks(number) => Some(self.blocks(number, bytes)),
            Stage::Rest if self.hashed < self.table.bytes && self.found.is_empty() => Some(self.hash_rest(bytes)),
            Stage::Rest => {
                self.compare();
                self.stage = Stage::Done;
                None
            }
            Stage::Done => None,
        }
    }

    /// The table as its bytes say, or what was found, in the order of finding.
    pub(crate) fn finish(self) -> std::result::Result<TableFile, Vec<Error>> {
        if !self.found.is_empty() {
            return Err(self.found);
        }
        let (id, bytes, entries) = (self.table.id, self.table.bytes, self.table.properties.entries);
        Ok(TableFile { id, bytes, blake3: *self.hasher.finalize().as_bytes(), entries })
    }

    fn fail(&mut self, offset: u64, what: impl Into<String>) {
        self.note(Error::corruption(self.table.path(), offset, None, what));
    }

    fn note(&mut self, e: Error) {
        if self.found.len() < FINDINGS_MAX {
            self.found.push(e);
        }
    }

    /// Index, filter and commit times, and that sections follow each other without a gap.
    fn layout(&mut self) -> u64 {
        let p = &self.table.properties;
        let read = p.index.len + p.filter.len + p.times.len;
        let results = [
            self.table.index().map(drop),
            self.table.filter().map(drop),
            check_times(&self.table),
            check_places(&self.table),
        ];
        let index_holds = results[0].is_ok();
        for (n, result) in results.into_iter().enumerate() {
            match result {
                // Without an index there are no places: said already.
                Err(_) if n == 3 && !index_holds => {}
                Err(e) => self.note(e),
                Ok(()) => {}
            }
        }
        read
    }

    /// The blocks from `number` on that `bytes` hold, at least one.
    fn blocks(&mut self, number: usize, bytes: u64) -> u64 {
        let run = match self.table.read_run(number, bytes) {
            Ok(Some(run)) => run,
            Ok(None) => {
                self.stage = Stage::Rest;
                return 0;
            }
            // Which of the blocks it is shows when they are read alone.
            Err(_) if bytes > 1 => return self.blocks(number, 1),
            Err(e) => {
                let offset = self.place(number).map_or(0, |p| p.offset);
                self.walk.skipped = true;
                self.stage = Stage::Blocks(number + 1);
                match e {
                    Error::Io { source, .. } if bytes_are_lost(&source) => {
                        self.fail(offset, format!("cannot be read: {source}"));
                    }
                    Error::Corruption { .. } => self.note(e),
                    // It says nothing of the block, and the next one may fare no better.
                    e => {
                        self.note(e);
                        self.stage = Stage::Rest;
                    }
                }
                return 0;
            }
        };
        self.hasher.update(&run.0);
        self.hashed += run.0.len() as u64;
        let end = run.1 + run.0.len() as u64;
        let mut next = number;
        while let Some(place) = self.place(next).filter(|p| p.end().is_some_and(|e| e <= end)) {
            let checked = self.table.block_in(place, (&run.0, run.1)).and_then(|block| {
                let fail = |what: &'static str| Error::corruption(self.table.path(), place.offset, None, what);
                self.walk.block(&self.table, next, &block).map_err(fail)
            });
            if let Err(e) = checked {
                self.walk.skipped = true;
                self.note(e);
            }
            next += 1;
        }
        self.stage = Stage::Blocks(next);
        run.0.len() as u64
    }

    fn place(&self, number: usize) -> Option<Place> {
        self.table.index().ok().and_then(|i| i.place(number))
    }

    /// What is behind the data blocks was checked when the table was opened and at the beginning; here
    /// it is only hashed.
    fn hash_rest(&mut self, bytes: u64) -> u64 {
        let len = (self.table.bytes - self.hashed).min(bytes.max(1));
        match self.table.read_raw(Place { offset: self.hashed, len }) {
            Ok(read) => {
                self.hasher.update(&read);
                self.hashed += len;
            }
            Err(e) => self.note(e),
        }
        len
    }

    /// What was counted against what the file says.
    fn compare(&mut self) {
        let (p, walk) = (&self.table.properties, &self.walk);
        if walk.skipped || !self.found.is_empty() {
            return;
        }
        let found = (walk.entries, walk.deletes, walk.expiring, walk.superseded);
        let said = (p.entries, p.deletes, p.expiring, p.superseded);
        let last = walk.last.as_ref().map_or(&[][..], |(key, _)| key);
        let ends = walk.first.as_deref().unwrap_or_default() == p.min_key && last == p.max_key;
        if found != said || !ends || p.range_deletes != self.table.ranges().len() as u64 {
            let what = format!("{} entries found, {} expected, or other properties differ", walk.entries, p.entries);
            self.fail(self.table.properties_at.offset, what);
        }
    }
}

fn check_places(table: &Table) -> Result<()> {
    let p = &table.properties;
    let footer = table.bytes.saturating_sub(FOOTER_BYTES as u64);
    let index = table.index()?;
    let blocks = (0..index.len()).filter_map(|n| index.place(n));
    let rest = [p.ranges, p.times, p.filter, p.index, table.properties_at, Place { offset: footer, len: 0 }];
    let mut end = 0;
    for place in blocks.chain(rest) {
        if place.offset != end {
            return Err(Error::corruption(table.path(), end, None, "bytes that no checksum covers"));
        }
        end = place.end().unwrap_or(u64::MAX);
    }
    if index.len() as u64 == p.data_blocks {
        return Ok(());
    }
    Err(Error::corruption(table.path(), p.index.offset, None, "the index has another number of blocks than is said"))
}

fn check_times(table: &Table) -> Result<()> {
    let (p, times) = (&table.properties, table.times()?);
    let said = (p.first_time, p.last_time);
    if said == (times.first().unwrap_or_default(), times.last().unwrap_or_default()) {
        return Ok(());
    }
    Err(Error::corruption(table.path(), table.properties_at.offset, None, "properties do not fit the commit times"))
}

#[derive(Debug, Default)]
struct Walk {
    entries: u64,
    deletes: u64,
    expiring: u64,
    superseded: Lsn,
    first: Option<Vec<u8>>,
    last: Option<(Vec<u8>, Lsn)>,
    key: Vec<u8>,
    /// A block could not be looked into: counts and ends say nothing.
    skipped: bool,
}

impl Walk {
    /// Takes in a block; the error is what is wrong with it.
    fn block(&mut self, table: &Table, number: usize, block: &Block) -> std::result::Result<(), &'static str> {
        let index = table.index().map_err(|_| "the index cannot be read")?;
        let filter = table.filter().map_err(|_| "the filter cannot be read")?;
        if block.len() == 0 {
            return Err("a block without entries");
        }
        // A separator is at or above all keys before it, and below those behind it or equal.
        let before = number.checked_sub(1).map(|n| index.separator(n)).unwrap_or_default();
        for i in 0..block.len() {
            self.step(&table.properties, &filter, block, i)?;
            if self.key < before || !index.reaches(number, &self.key) {
                return Err("the index does not fit the block");
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        p: &Properties,
        filter: &Filter,
        block: &Block,
        index: usize,
    ) -> std::result::Result<(), &'static str> {
        let entry = block.entry(index).map_err(|m| m.0)?;
        self.key.clear();
        self.key.extend_from_slice(block.prefix());
        entry.put_tail(&mut self.key);
        if !filter.may_contain(key_hash(&self.key)) {
            return Err("the filter does not know the key");
        }
        if entry.lsn < p.min_lsn || entry.lsn > p.max_lsn {
            return Err("entry outside of the table's LSNs");
        }
        let place = (&self.key, std::cmp::Reverse(entry.lsn));
        if self.last.as_ref().is_some_and(|(k, l)| (k, std::cmp::Reverse(*l)) >= place) {
            return Err("entries out of order");
        }
        self.first.get_or_insert_with(|| self.key.clone());
        let (key, lsn) = self.last.get_or_insert_default();
        key.clone_from(&self.key);
        *lsn = entry.lsn;
        self.entries += 1;
        match &entry.value {
            None => self.deletes += 1,
            Some(at) if p.origin == Origin::History => {
                let by = Superseded::decode(block.value(at)).map_err(|m| m.0)?.by;
                self.superseded = self.superseded.max(by);
            }
            Some(at) => {
                let value = Value::decode(block.value(at)).map_err(|m| m.0)?;
                self.expiring += u64::from(value.expiry.is_some());
            }
        }
        Ok(())
    }
}
