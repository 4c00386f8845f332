//! Tests of this module.

#![expect(clippy::disallowed_methods, reason = "tests damage real files")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builder::TableBuilder;
use super::cache::BlockCache;
use super::cursor::TableCursor;
use super::filter::key_hash;
use super::format::{FOOTER_BYTES, Origin};
use super::reader::{Caching, Table};
use super::testing::{Item, Stored, collect, owned};
use super::times::Times;
use super::{Asked, Bounds, EntryRef, Hit, RangeDelete, TableFile, table_name, verify_table};
use crate::error::Error;
use crate::fs::Fs;
use crate::fs::os::OsFs;
use crate::fs::sim::{FaultKind, OpClass, SimFs};
use crate::limits::Options;
use crate::lsn::{CommitTs, Lsn};
use crate::value::Value;

const ID: u128 = 0xfeed_0001;

fn os() -> Arc<dyn Fs> {
    Arc::new(OsFs::new())
}

fn put(value: &[u8]) -> Stored {
    let mut out = Vec::new();
    Value::plain(value).encode(&mut out);
    Stored::Put(out)
}

fn items(keys: u64) -> Vec<Item> {
    let mut out = Vec::new();
    for k in 0..keys {
        let key = format!("\u{1}key-{k:05}").into_bytes();
        for lsn in [k * 3 + 30, k + 2] {
            let op = if lsn % 5 == 0 { Stored::Delete } else { put(format!("value {k} at {lsn}").as_bytes()) };
            out.push(Item { key: key.clone(), lsn: Lsn(lsn), op });
        }
    }
    out
}

fn build(dir: &Path, items: &[Item]) -> (PathBuf, TableFile) {
    let mut b = TableBuilder::create(&os(), dir, ID, 256, Origin::Flush).unwrap();
    items.iter().for_each(|i| b.add(i.entry()).unwrap());
    let mut times = Times::default();
    (1..=400).for_each(|n| times.push(Lsn(n), CommitTs(n * 10)).unwrap());
    let ranges = [RangeDelete { start: b"\x01a".to_vec(), end: b"\x01b".to_vec(), lsn: Lsn(77) }];
    let file = b.finish(&ranges, &times, CommitTs(4000)).unwrap();
    (dir.join(table_name(ID)), file)
}

fn open(path: &Path) -> Result<Arc<Table>, Error> {
    Table::open(&os(), path, &Arc::new(BlockCache::new(1 << 20, 256))).map(Arc::new)
}

fn get(table: &Table, key: &[u8], lsn: Lsn) -> Result<Option<Hit>, Error> {
    table.get(key, key_hash(key), lsn, &mut Asked::default())
}

fn read_all(table: &Arc<Table>, low: &[u8], high: &[u8], reverse: bool) -> Result<Vec<Item>, Error> {
    [Caching::Keep, Caching::Bypass]
        .map(|caching| {
            collect(TableCursor::new(Arc::clone(table), Bounds::new(low.to_vec(), high.to_vec()), reverse, caching))
        })
        .into_iter()
        .reduce(|a, b| a.and_then(|a| b.map(|b| (assert_eq!(a, b), a).1)))
        .unwrap()
}

#[test]
fn a_table_whose_index_is_not_pinned_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(600);
    let (path, _) = build(dir.path(), &items);
    let pinned = open(&path).unwrap();
    // The first has no room for anything, the second for parts that come and go.
    for memory_limit in [0, 1 << 20] {
        let options = Options { memory_limit, tail_memory_bytes: 0, memtable_bytes: 0, ..Options::tiny() };
        let cache = Arc::new(BlockCache::of(&options));
        cache.set_share(memory_limit / 8);
        assert!(memory_limit == 0 || cache.parts().pin(options.pinned_bytes_most(), true), "no room for pins");
        let table = Table::open(&os(), &path, &cache).map(Arc::new).unwrap();
        let ends: Vec<Vec<u8>> = (0..items.len()).step_by(97).map(|n| items[n].key.clone()).collect();
        for low in std::iter::once(Vec::new()).chain(ends.clone()) {
            for high in std::iter::once(Vec::new()).chain(ends.clone()) {
                for reverse in [false, true] {
                    let read = |t: &Arc<Table>| read_all(t, &low, &high, reverse).unwrap();
                    assert_eq!(read(&table), read(&pinned), "{low:?}..{high:?}, reverse: {reverse}");
                }
            }
        }
        for item in items.iter().step_by(31) {
            let read = |t: &Table| owned(get(t, &item.key, item.lsn).unwrap());
            assert_eq!(read(&table), read(&pinned));
        }
        assert!(table.pinned_index().is_none() && pinned.pinned_index().is_some());
        assert_eq!(cache.lent_bytes() > 0, memory_limit > 0);
        drop(table);
        assert_eq!(cache.lent_bytes(), 0, "what is left of a table that nobody has open");
        assert_eq!(cache.pinned_bytes(), if memory_limit == 0 { 0 } else { options.pinned_bytes_most() });
    }
}

#[test]
fn entries_times_and_ranges_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(100);
    let (path, file) = build(dir.path(), &items);
    assert_eq!(verify_table(&os(), &path).unwrap(), file);
    assert_eq!(file.blake3, *blake3::hash(&std::fs::read(&path).unwrap()).as_bytes());
    let table = open(&path).unwrap();
    assert_eq!(read_all(&table, b"", b"", false).unwrap(), items);
    let mut backwards = read_all(&table, b"", b"", true).unwrap();
    backwards.reverse();
    assert_eq!(backwards, items);
    for lsn in [0, 2, 29, 30, 33, 101, 500] {
        for k in 0..101u64 {
            let key = format!("\u{1}key-{k:05}").into_bytes();
            let want = items.iter().find(|i| i.key == key && i.lsn <= Lsn(lsn)).map(|i| (i.lsn, i.op.clone()));
            assert_eq!(owned(get(&table, &key, Lsn(lsn)).unwrap()), want, "key {k} at {lsn}");
        }
    }
    assert_eq!(table.time_at(Lsn(123)).unwrap(), Some((Lsn(123), CommitTs(1230))));
    assert_eq!(table.lsn_at(CommitTs(1239)).unwrap(), Some((Lsn(123), CommitTs(1230))));
    assert_eq!(table.lsn_at(CommitTs(9)).unwrap(), None);
    assert_eq!(table.ranges().len(), 1);
}

#[test]
fn bounds_cut_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(40);
    let (path, _) = build(dir.path(), &items);
    let table = open(&path).unwrap();
    let bounds: Vec<Vec<u8>> = (0..42).map(|k| format!("\u{1}key-{k:05}").into_bytes()).collect();
    for low in &bounds {
        for high in bounds.iter().step_by(3).chain([&Vec::new(), &b"\x01key-000055".to_vec()]) {
            let mut want: Vec<Item> =
                items.iter().filter(|i| i.key >= *low && super::below_end(&i.key, high)).cloned().collect();
            assert_eq!(read_all(&table, low, high, false).unwrap(), want);
            want.reverse();
            assert_eq!(read_all(&table, low, high, true).unwrap(), want);
        }
    }
}

#[test]
fn any_flipped_bit_is_detected() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(12);
    let (path, _) = build(dir.path(), &items);
    let good = std::fs::read(&path).unwrap();
    let footer = good.len() - FOOTER_BYTES;
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bad).unwrap();
        assert!(verify_table(&os(), &path).is_err(), "byte {at} went unnoticed");
        // Reads either fail by name or, for parts they do not touch, give the right answer.
        let read = |t: Arc<Table>| {
            read_all(&t, b"", b"", false)?;
            get(&t, &items[0].key, Lsn::MAX)?;
            t.times()
        };
        match open(&path).and_then(read) {
            Ok(_) => panic!("byte {at} went unnoticed by reads of everything"),
            Err(Error::Corruption { path: p, offset, .. }) => {
                assert_eq!(p, path);
                assert!(offset <= at as u64 || at >= footer, "offset {offset} for byte {at}");
            }
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
}

/// The rule broken on purpose: a block in which a value was changed is then believed.
#[cfg(feature = "sim")]
#[test]
fn without_the_checksum_a_changed_block_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let items = items(12);
    let (path, _) = build(dir.path(), &items);
    let good = std::fs::read(&path).unwrap();
    let believed = || {
        (0..good.len() - FOOTER_BYTES).any(|at| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            open(&path).and_then(|t| read_all(&t, b"", b"", false)).is_ok_and(|all| all != items)
        })
    };
    assert!(!believed());
    let _bug = crate::fault::plant(crate::fault::Bug::IgnoreChecksum);
    assert!(believed());
}

#[test]
fn a_block_in_anothers_place_fails() {
    let dir = tempfile::tempdir().unwrap();
    let items: Vec<Item> = (0..64u64)
        .map(|k| Item { key: format!("\u{1}{k:04}").into_bytes(), lsn: Lsn(5), op: put(b"same length of value") })
        .collect();
    let (path, _) = build(dir.path(), &items);
    let table = open(&path).unwrap();
    let place = |n: usize| table.index().unwrap().place(n).unwrap();
    let same = (0..table.index().unwrap().len() - 1).find(|n| place(*n).len == place(n + 1).len).unwrap();
    let (a, b) = (place(same), place(same + 1));
    let key_in =
        |block| items.iter().map(|i| &i.key).find(|k| table.index().unwrap().find(k) == block).unwrap().clone();
    let mut bytes = std::fs::read(&path).unwrap();
    let (from, len) = (a.offset as usize, a.len as usize);
    bytes.copy_within(from..from + len, b.offset as usize);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(verify_table(&os(), &path), Err(Error::Corruption { offset, .. }) if offset == b.offset));
    let table = open(&path).unwrap();
    let key = &key_in(same + 1);
    assert!(matches!(get(&table, key, Lsn(9)), Err(Error::Corruption { offset, .. }) if offset == b.offset));
    let key = &key_in(same);
    assert!(get(&table, key, Lsn(9)).unwrap().is_some(), "undamaged blocks stay readable");
}

#[test]
fn a_table_under_another_name_or_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = build(dir.path(), &items(30));
    let other = dir.path().join(table_name(5));
    std::fs::copy(&path, &other).unwrap();
    assert!(matches!(verify_table(&os(), &other), Err(Error::Corruption { .. })));
    let bytes = std::fs::read(&path).unwrap();
    for len in (0..bytes.len()).step_by(7) {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(open(&path).is_err());
    }
}

#[test]
fn a_dropped_builder_leaves_no_file_and_disorder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut b = TableBuilder::create(&os(), dir.path(), ID, 256, Origin::Flush).unwrap();
    let delete = |key, lsn| EntryRef { key, lsn: Lsn(lsn), value: None };
    b.add(delete(b"\x01b", 4)).unwrap();
    assert!(b.add(delete(b"\x01b", 4)).is_err());
    assert!(b.add(delete(b"\x01a", 9)).is_err());
    drop(b);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_empty_table_opens_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = build(dir.path(), &[]);
    assert_eq!(verify_table(&os(), &path).unwrap(), file);
    let table = open(&path).unwrap();
    assert!(read_all(&table, b"", b"", true).unwrap().is_empty());
    assert!(get(&table, b"\x01k", Lsn::MAX).unwrap().is_none());
}

/// A table in a simulated file system, with a cache so small that nothing stays in it for long.
fn simulated(items: &[Item]) -> (Arc<SimFs>, Arc<Table>) {
    let sim = SimFs::new(5);
    let fs: Arc<dyn Fs> = Arc::<SimFs>::clone(&sim);
    let dir = Path::new("/tables");
    sim.prepare_dir(dir).unwrap();
    let mut b = TableBuilder::create(&fs, dir, ID, 256, Origin::Flush).unwrap();
    items.iter().for_each(|i| b.add(i.entry()).unwrap());
    b.finish(&[], &Times::default(), CommitTs(1)).unwrap();
    let cache = Arc::new(BlockCache::new(1 << 20, 256));
    (sim, Arc::new(Table::open(&fs, &dir.join(table_name(ID)), &cache).unwrap()))
}

#[test]
fn a_scan_that_misses_the_cache_reads_many_blocks_at_once_and_a_short_one_does_not() {
    let all = items(2000);
    let (sim, table) = simulated(&all);
    let blocks = table.index().unwrap().len() as u64;
    let reads = || sim.class_count(OpClass::Read);
    let cursor = |bounds| TableCursor::new(Arc::clone(&table), bounds, false, Caching::Keep);
    let before = reads();
    let mut short = cursor(Bounds::all());
    (0..4).for_each(|_| assert!(short.advance().unwrap()));
    assert_eq!(reads() - before, 1, "one block holds these");
    let before = reads();
    assert_eq!(collect(cursor(Bounds::all())).unwrap(), all);
    let took = reads() - before;
    assert!(blocks > 300 && took < 30, "{took} reads of {blocks} blocks");
    let before = reads();
    assert_eq!(collect(cursor(Bounds::all())).unwrap(), all);
    assert_eq!(reads(), before, "there was room in the cache");
}

#[test]
fn a_scan_reads_nothing_ahead_beyond_its_end() {
    let all = items(2000);
    let (_sim, table) = simulated(&all);
    let index = table.index().unwrap();
    let mut read_ahead = 0;
    for end in (100..1900).step_by(150) {
        let high = all[end].key.clone();
        let wanted = all.iter().filter(|i| i.key < high).count();
        let last = index.place(index.find(&high)).unwrap();
        let mut cursor = TableCursor::new(Arc::clone(&table), Bounds::new(Vec::new(), high), false, Caching::Keep);
        let (mut found, mut read_to) = (0, 0);
        while cursor.advance().unwrap() {
            found += 1;
            read_to = read_to.max(cursor.read_to());
        }
        assert_eq!(found, wanted);
        assert!(read_to <= last.offset + last.len, "until {end}: {read_to} of {last:?}");
        read_ahead += u32::from(read_to > 0);
    }
    assert!(read_ahead > 5, "this tests nothing");
}

#[test]
fn a_scan_fails_for_the_blocks_that_it_needs_and_not_for_those_it_reads_ahead() {
    let all = items(2000);
    let mut failed = 0;
    for nth in 1.. {
        let (sim, table) = simulated(&all);
        table.index().unwrap();
        sim.fail_nth(OpClass::Read, nth, FaultKind::Eio);
        let before = sim.class_count(OpClass::Read);
        let got = collect(TableCursor::new(table, Bounds::all(), false, Caching::Keep));
        match got {
            Ok(got) => assert_eq!(got, all, "read {nth}"),
            Err(e) => {
                assert!(e.to_string().contains(&table_name(ID)), "{e}");
                failed += 1;
            }
        }
        if sim.class_count(OpClass::Read) - before < nth {
            assert!(nth > 8, "this tests nothing");
            break;
        }
    }
    // The blocks that are read alone.
    assert_eq!(failed, 2);
}
