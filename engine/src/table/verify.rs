//! Proves a table file by reading all of it.
//!
//! Owns: the walk and the comparison of what it finds with what the file says of itself. Never:
//! repair, and never the shared block cache.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::fs::{Fs, OpenMode, read_exact_at};
use crate::lsn::Lsn;

use super::cache::BlockCache;
use super::filter::key_hash;
use super::format::{FOOTER_BYTES, Place};
use super::reader::{Caching, Table};
use super::{Item, Stored, TableFile, parse_table_name};

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
    let blocks = table.index.iter().map(|e| e.place);
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
struct Counts {
    entries: u64,
    deletes: u64,
    blocks: u64,
}

fn check_entries(table: &Table) -> Result<()> {
    let mut counts = Counts::default();
    let mut last: Option<(Vec<u8>, Lsn)> = None;
    for at in &table.index {
        let fail = |what: &'static str| Error::corruption(table.path(), at.place.offset, None, what);
        let block = table.block(at.place, Caching::Bypass)?;
        for i in 0..block.len() {
            let item = block.entry(i).map_err(|m| table.damaged(at.place.offset, m))?.to_item();
            if last
                .as_ref()
                .is_some_and(|(k, l)| (k, std::cmp::Reverse(l)) >= (&item.key, std::cmp::Reverse(&item.lsn)))
            {
                return Err(fail("entries out of order"));
            }
            check_entry(table, &item).map_err(fail)?;
            if (i == 0 && item.key != at.first) || (i + 1 == block.len() && item.key != at.last) {
                return Err(fail("the index does not fit the block"));
            }
            counts.entries += 1;
            counts.deletes += u64::from(item.op == Stored::Delete);
            last = Some((item.key, item.lsn));
        }
        counts.blocks += 1;
    }
    let p = &table.properties;
    let found = (counts.entries, counts.deletes, counts.blocks);
    if found != (p.entries, p.deletes, p.data_blocks) {
        let what = format!("{} entries found, {} expected", counts.entries, p.entries);
        return Err(Error::corruption(table.path(), table.properties_at.offset, None, what));
    }
    Ok(())
}

fn check_entry(table: &Table, item: &Item) -> std::result::Result<(), &'static str> {
    let p = &table.properties;
    if !table.filter.may_contain(key_hash(&item.key)) {
        return Err("the filter does not know the key");
    }
    if item.lsn < p.min_lsn || item.lsn > p.max_lsn {
        return Err("entry outside of the table's LSNs");
    }
    Ok(())
}

fn check_properties(table: &Table) -> Result<()> {
    let p = &table.properties;
    let times = table.times()?;
    let same = p.first_time == times.first().unwrap_or_default()
        && p.last_time == times.last().unwrap_or_default()
        && p.range_deletes == table.ranges().len() as u64
        && table.index.first().is_none_or(|e| e.first == p.min_key)
        && table.index.last().is_none_or(|e| e.last == p.max_key);
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
