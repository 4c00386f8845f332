//! Proves a table file by reading all of it.
//!
//! Owns: the walk and the comparison of what it finds with what the file says of itself. Never:
//! repair, and never the shared block cache.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{Fs, OpenMode, read_exact_at};
use crate::lsn::Lsn;

use super::block::Block;
use super::cache::BlockCache;
use super::filter::{Filter, key_hash};
use super::format::{FOOTER_BYTES, Place, Properties};
use super::reader::{Caching, Table};
use super::{TableFile, parse_table_name};

const HASH_BYTES: usize = 1 << 20;

/// Reads a whole table file: every checksum, the order and number of entries, index and filter
/// against the entries, and that no byte stands outside of a checksum.
///
/// # Errors
/// `Corruption` naming file and offset, `Format` for a newer format, or `Io`.
pub fn verify_table(fs: &Arc<dyn Fs>, path: &Path) -> Result<TableFile> {
    let cache = Arc::new(BlockCache::new(0, 4096));
    let table = Table::open(fs, path, &cache)?;
    let named = path.file_name().and_then(|n| n.to_str()).and_then(parse_table_name);
    if named.is_some_and(|id| id != table.id) {
        return Err(Error::corruption(path, 0, None, "the file holds another table than its name says"));
    }
    check_places(&table)?;
    check_entries(&table)?;
    check_properties(&table)?;
    let blake3 = hash_file(fs, path, table.bytes)?;
    Ok(TableFile { id: table.id, bytes: table.bytes, blake3, entries: table.properties.entries })
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
    Ok(())
}

#[derive(Default)]
struct Walk {
    entries: u64,
    deletes: u64,
    first: Option<Vec<u8>>,
    last: Option<(Vec<u8>, Lsn)>,
    key: Vec<u8>,
}

fn check_entries(table: &Table) -> Result<()> {
    let mut walk = Walk::default();
    let (index, filter) = (table.index()?, table.filter()?);
    for number in 0..index.len() {
        let Some(place) = index.place(number) else { break };
        let block = table.block(place, Caching::Bypass)?;
        let fail = |what: &'static str| Error::corruption(table.path(), place.offset, None, what);
        // A separator is at or above all keys before it, and below those behind it or equal.
        let before = number.checked_sub(1).map(|n| index.separator(n)).unwrap_or_default();
        for i in 0..block.len() {
            walk.step(&table.properties, filter, &block, i).map_err(fail)?;
            if walk.key < before || !index.reaches(number, &walk.key) {
                return Err(fail("the index does not fit the block"));
            }
        }
        if block.len() == 0 {
            return Err(fail("a block without entries"));
        }
    }
    let p = &table.properties;
    let found = (walk.entries, walk.deletes, index.len() as u64);
    let ends = (walk.first.unwrap_or_default(), walk.last.map(|(key, _)| key).unwrap_or_default());
    if found == (p.entries, p.deletes, p.data_blocks) && ends.0 == p.min_key && ends.1 == p.max_key {
        return Ok(());
    }
    let what = format!("{} entries found, {} expected", walk.entries, p.entries);
    Err(Error::corruption(table.path(), table.properties_at.offset, None, what))
}

impl Walk {
    /// Takes in an entry; the error is what is wrong with it.
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
        self.deletes += u64::from(entry.value.is_none());
        Ok(())
    }
}

fn check_properties(table: &Table) -> Result<()> {
    let p = &table.properties;
    let times = table.times()?;
    let same = p.first_time == times.first().unwrap_or_default()
        && p.last_time == times.last().unwrap_or_default()
        && p.range_deletes == table.ranges().len() as u64;
    if same {
        return Ok(());
    }
    Err(Error::corruption(table.path(), table.properties_at.offset, None, "properties do not fit the table"))
}

fn hash_file(fs: &Arc<dyn Fs>, path: &Path, bytes: u64) -> Result<[u8; 32]> {
    let io = |e| Error::io("read", path, e);
    let file = fs.open(path, OpenMode::Read).map_err(io)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_BYTES];
    let mut at = 0;
    while at < bytes {
        let n = usize::try_from(bytes - at).unwrap_or(HASH_BYTES).min(HASH_BYTES);
        let part = buffer.get_mut(..n).unwrap_or_default();
        read_exact_at(&*file, part, at).map_err(io)?;
        hasher.update(part);
        at += n as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}
