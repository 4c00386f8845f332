//! The tables' decoders for fuzzing, see [`crate::decoders`].
//!
//! Owns: the list. Never: part of a build without feature `sim`.

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::block::Block;
use super::block_builder::BlockBuilder;
use super::builder::TableBuilder;
use super::cache::BlockCache;
use super::cursor::TableCursor;
use super::filter::{Filter, key_hash};
use super::format::{
    BlockKind, FOOTER_BYTES, Footer, Origin, Place, Properties, decode_ranges, encode_ranges, put_block, take_block,
    take_section,
};
use super::index::{Index, IndexBuilder};
use super::reader::{Caching, Table};
use super::superseded::Superseded;
use super::times::Times;
use super::{Asked, Bounds, EntryRef, RangeDelete, parse_table_name, table_name, verify_table};
use crate::codec::Cursor;
use crate::decoders::{Decoder, mend, twice};
use crate::fs::sim::SimFs;
use crate::fs::{Fs, OpenMode};
use crate::lsn::{CommitTs, Lsn};
use crate::value::Value;

const ID: u128 = 7;
const DIR: &str = "/tables";

/// Of this module.
pub(crate) fn decoders() -> Vec<Decoder> {
    vec![
        Decoder::new("table_file", file, file_seeds),
        Decoder::new("table_frame", block_frame, block_frame_seeds),
        Decoder::new("table_block", data_block, data_block_seeds),
        Decoder::new("table_index", index, index_seeds),
        Decoder::new("table_filter", filter, filter_seeds),
        Decoder::new("table_times", times, times_seeds),
        Decoder::new("table_ranges", ranges, ranges_seeds),
        Decoder::new("table_properties", properties, properties_seeds),
        Decoder::new("table_footer", footer, footer_seeds),
        Decoder::new("table_superseded", superseded, superseded_seeds),
        Decoder::new("table_file_name", file_name, || vec![table_name(ID).into_bytes()]),
    ]
}

/// Reads a file as a table in every way there is.
fn file(bytes: &[u8]) -> bool {
    let read = |bytes: &[u8]| {
        twice(|| {
            let (fs, path) = (SimFs::new(1), Path::new(DIR).join("a.table"));
            let written = fs.prepare_dir(Path::new(DIR)).and_then(|()| fs.open(&path, OpenMode::CreateNew));
            assert!(written.is_ok_and(|f| f.write_all_at(bytes, 0).is_ok()), "the simulated disk takes it");
            let fs: Arc<dyn Fs> = fs;
            read_all(&fs, &path);
            verify_table(&fs, &path).is_ok()
        })
    };
    let footer = bytes.len().saturating_sub(FOOTER_BYTES);
    read(&[bytes.get(..footer).unwrap_or_default(), &mend_footer(bytes.get(footer..).unwrap_or_default())].concat());
    read(bytes)
}

fn read_all(fs: &Arc<dyn Fs>, path: &Path) {
    let Ok(table) = Table::open(fs, path, &Arc::new(BlockCache::new(1 << 20, 256))).map(Arc::new) else { return };
    let p = table.properties();
    for key in [&p.min_key, &p.max_key] {
        for lsn in [p.min_lsn, p.max_lsn, Lsn::MAX] {
            let _ = table.get(key, key_hash(key), lsn, &mut Asked::default());
            let _ = table.get_superseded(key, key_hash(key), lsn, &mut Asked::default());
            let _ = table.time_at(lsn);
        }
    }
    let _ = table.lsn_at(p.max_ts);
    for (reverse, caching) in [(false, Caching::Keep), (true, Caching::Bypass)] {
        let mut cursor = TableCursor::new(Arc::clone(&table), Bounds::all(), reverse, caching);
        // An index may name the same small block again and again.
        for _ in 0..10_000 {
            if !matches!(cursor.advance(), Ok(true)) {
                break;
            }
            let _ = cursor.entry();
        }
    }
}

fn file_seeds() -> Vec<Vec<u8>> {
    [0, 1, 30].into_iter().flat_map(|keys| [Origin::Flush, Origin::History].map(|o| built(keys, o))).collect()
}

fn envelope(data: &[u8], expiry: Option<CommitTs>) -> Vec<u8> {
    let mut out = Vec::new();
    Value { expiry, metadata: &[], data }.encode(&mut out);
    out
}

/// The bytes of a table with two versions of each of so many keys.
fn built(keys: u64, origin: Origin) -> Vec<u8> {
    let fs = SimFs::new(1);
    let made = fs.prepare_dir(Path::new(DIR)).ok().and_then(|()| {
        let dynamic: Arc<dyn Fs> = Arc::<SimFs>::clone(&fs);
        let mut b = TableBuilder::create(&dynamic, Path::new(DIR), ID, 256, origin).ok()?;
        for k in 0..keys {
            let (key, value) = (format!("\u{1}key-{k:05}"), envelope(b"value", (k % 3 == 0).then_some(CommitTs(k))));
            for (lsn, value) in [(Lsn(2 * k + 2), Some(value.as_slice()).filter(|_| k % 5 > 0)), (Lsn(1), Some(&value))]
            {
                let entry = EntryRef { key: key.as_bytes(), lsn, value };
                let by = Lsn(lsn.0 + 1);
                if origin == Origin::History { b.add_superseded(entry, by) } else { b.add(entry) }.ok()?;
            }
        }
        let (ranges, times) =
            if origin == Origin::History { Default::default() } else { (some_ranges(), some_times()) };
        b.finish(&ranges, &times, CommitTs(4000)).ok()?;
        fs.read_all(&Path::new(DIR).join(table_name(ID))).ok()
    });
    made.unwrap_or_default()
}

fn block_frame(bytes: &[u8]) -> bool {
    twice(|| {
        let kinds = [BlockKind::Data, BlockKind::Ranges, BlockKind::Index];
        let _ = take_section(bytes, ID, 40, BlockKind::Index);
        kinds.iter().any(|kind| take_block(&mut Cursor::new(bytes), ID, 40, *kind).is_ok())
    })
}

fn block_frame_seeds() -> Vec<Vec<u8>> {
    let text = b"some words again and again ".repeat(8);
    let raws = [(BlockKind::Data, text.as_slice()), (BlockKind::Index, b"short"), (BlockKind::Ranges, b"")];
    raws.into_iter()
        .map(|(kind, raw)| {
            let mut out = Vec::new();
            put_block(&mut out, &mut Vec::new(), (ID, 40, kind), raw);
            out
        })
        .collect()
}

fn data_block(bytes: &[u8]) -> bool {
    let Ok(block) = Block::decode(bytes.to_vec()) else { return false };
    let (mut whole, mut key) = (true, Vec::new());
    for i in 0..block.len() {
        let Ok(entry) = block.entry(i) else {
            whole = false;
            continue;
        };
        key.clear();
        key.extend_from_slice(block.prefix());
        entry.put_tail(&mut key);
        let _ = entry.value.map(|at| block.value(&at).len());
        if let Ok((at, _)) = block.search(&key, entry.lsn) {
            assert!(at <= block.len());
        }
    }
    let _ = block.lower_bound(b"\x01key");
    whole
}

fn data_block_seeds() -> Vec<Vec<u8>> {
    [(0, 5), (1, 0), (12, 10), (2, 70_000)]
        .into_iter()
        .map(|(keys, value_len)| {
            let value = vec![b'v'; value_len];
            let (mut b, mut out) = (BlockBuilder::default(), Vec::new());
            for k in 0..keys {
                let key = format!("\u{1}a shared prefix {k:03} and more behind");
                // The long one is kept out of the corpus, for it is one byte again and again.
                let value = if k == 0 { value.as_slice() } else { b"short" };
                b.push(EntryRef { key: key.as_bytes(), lsn: Lsn(90 + k), value: Some(value).filter(|_| k % 4 < 3) });
            }
            b.write(&mut out);
            out
        })
        .collect()
}

fn index(bytes: &[u8]) -> bool {
    let Ok(index) = Index::decode(bytes) else { return false };
    for block in 0..index.len().min(1000) {
        let separator = index.separator(block);
        assert!(index.reaches(block, &separator) && index.find(&separator) <= block);
        assert!(index.place(block).is_some());
    }
    assert!(index.find(b"\x01key") <= index.len() && index.place(index.len()).is_none());
    true
}

fn index_seeds() -> Vec<Vec<u8>> {
    [0, 1, 20]
        .into_iter()
        .map(|blocks| {
            let mut b = IndexBuilder::default();
            for n in 0..blocks {
                b.next_starts(format!("\u{1}key-{:04}", 10 * n).as_bytes());
                b.finished(format!("\u{1}key-{:04} and its end", 10 * n + 5).as_bytes(), 200 + n);
            }
            b.finish()
        })
        .collect()
}

fn filter(bytes: &[u8]) -> bool {
    let Ok(filter) = Filter::decode(bytes) else { return false };
    let _ = (filter.may_contain(0), filter.may_contain(u64::MAX), filter.may_contain(key_hash(bytes)));
    assert_eq!(filter.encode(), bytes);
    true
}

fn filter_seeds() -> Vec<Vec<u8>> {
    [0u64, 1, 60]
        .map(|n| Filter::build(&(0..n).map(|k| key_hash(&k.to_le_bytes())).collect::<Vec<_>>()).encode())
        .into()
}

fn times(bytes: &[u8]) -> bool {
    let Ok(times) = Times::decode(bytes.to_vec()) else { return false };
    assert_eq!(times.iter().count() as u64, times.count());
    assert_eq!((times.iter().next(), times.iter().last()), (times.first(), times.last()));
    let _ = times.last_where(|lsn, _| lsn <= Lsn(100));
    true
}

fn some_times() -> Times {
    let mut out = Times::default();
    let pushed = (1..40).try_for_each(|n| out.push(Lsn(2 * n), CommitTs(1_000_000 + 70 * n)));
    assert!(pushed.is_ok(), "in order");
    out
}

fn times_seeds() -> Vec<Vec<u8>> {
    vec![Vec::new(), some_times().as_bytes().to_vec()]
}

fn ranges(bytes: &[u8]) -> bool {
    decode_ranges(bytes).map(|ranges| assert_eq!(encode_ranges(&ranges), bytes)).is_ok()
}

fn some_ranges() -> Vec<RangeDelete> {
    let range = |start: &[u8], end: &[u8], lsn| RangeDelete { start: start.to_vec(), end: end.to_vec(), lsn: Lsn(lsn) };
    vec![range(b"\x01a", b"\x01b", 77), range(b"\x01x", b"", 300)]
}

fn ranges_seeds() -> Vec<Vec<u8>> {
    vec![Vec::new(), encode_ranges(&some_ranges())]
}

fn properties(bytes: &[u8]) -> bool {
    Properties::decode(bytes).map(|p| assert_eq!(p.encode(), bytes)).is_ok()
}

fn properties_seeds() -> Vec<Vec<u8>> {
    let place = Place { offset: 4096, len: 99 };
    let full = Properties {
        origin: Origin::History,
        entries: 300,
        min_key: b"\x01a".to_vec(),
        max_key: b"\x01z".to_vec(),
        max_lsn: Lsn(u64::MAX),
        expiry: (5, 500),
        superseded: Lsn(9),
        index: place,
        ..Properties::default()
    };
    vec![Properties::default().encode(), full.encode()]
}

fn mend_footer(bytes: &[u8]) -> Vec<u8> {
    let version = bytes.get(36..).and_then(|b| b.first_chunk()).map_or(0, |v| u32::from_le_bytes(*v));
    mend(bytes, 28, |covered| xxh3_64_with_seed(covered, u64::from(version)))
}

fn footer(bytes: &[u8]) -> bool {
    let decode = |bytes: &[u8]| Footer::decode(bytes).map(|f| assert_eq!(f.encode(), bytes)).is_ok();
    decode(&mend_footer(bytes));
    decode(bytes)
}

fn footer_seeds() -> Vec<Vec<u8>> {
    vec![Footer { id: ID, properties: Place { offset: 4096, len: 99 } }.encode()]
}

fn superseded(bytes: &[u8]) -> bool {
    let Ok(s) = Superseded::decode(bytes) else { return false };
    let mut again = Vec::new();
    Superseded::encode(&mut again, s.by, bytes.get(s.envelope_at..).filter(|_| s.put));
    assert_eq!(again, bytes);
    true
}

fn superseded_seeds() -> Vec<Vec<u8>> {
    [None, Some(envelope(b"value", None))]
        .map(|value| {
            let mut out = Vec::new();
            Superseded::encode(&mut out, Lsn(700), value.as_deref());
            out
        })
        .into()
}

fn file_name(bytes: &[u8]) -> bool {
    let Some(name) = std::str::from_utf8(bytes).ok() else { return false };
    parse_table_name(name).map(|id| assert_eq!(table_name(id), name)).is_some()
}
