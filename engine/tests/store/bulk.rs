//! Bulk load: a new store on ready tables, whole or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::bulk::{Loaded, Place, ReadyTable, TableWriter, load};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, SimFs};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, Result, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const READY: &str = "/ready";
const KEYS: u32 = 600;

fn world(seed: u64) -> (Arc<SimFs>, Env) {
    let fs = SimFs::new(seed);
    [READY, "/other"].iter().for_each(|d| fs.prepare_dir(Path::new(d)).unwrap());
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
    (fs, env)
}

fn key(n: u32) -> Vec<u8> {
    format!("key-{n:06}").into_bytes()
}

fn write(env: &Env, dir: &str, keys: impl Iterator<Item = u32>) -> Vec<ReadyTable> {
    let mut writer = TableWriter::new(env.clone(), Path::new(dir), &Options::tiny());
    for n in keys {
        let value = n.to_be_bytes();
        let expiry = n.is_multiple_of(10).then_some(CommitTs(5_000_000));
        writer.put(Keyspace::USER, &key(n), &Value { expiry, metadata: &[], data: &value }).unwrap();
    }
    writer.finish().unwrap()
}

fn paths(tables: &[ReadyTable]) -> Vec<PathBuf> {
    tables.iter().map(|t| t.path.clone()).collect()
}

fn try_load(env: &Env, tables: &[PathBuf], place: Place) -> Result<Loaded> {
    load(env, Path::new(DIR), &Options::tiny(), IDENTITY, tables, place)
}

/// The store holds exactly what was loaded.
fn check(env: &Env, what: &str) -> Store {
    let store = Store::open_embedded(env.clone(), Path::new(DIR), &Options::tiny());
    let store = store.unwrap_or_else(|e| panic!("{what}: {e}"));
    let view = store.view();
    let all = view.scan(Keyspace::USER, b"", b"", false).map(|e| e.unwrap());
    let all: Vec<_> = all.map(|e| (e.key, Value::decode(&e.envelope).unwrap().data.to_vec(), e.lsn)).collect();
    let want: Vec<_> = (0..KEYS).map(|n| (key(n), n.to_be_bytes().to_vec(), Lsn(1))).collect();
    assert!(all == want, "{what}: {} keys", all.len());
    store
}

#[test]
fn a_loaded_store_is_a_store_like_any_other() {
    for place in [Place::Link, Place::Copy] {
        let (fs, env) = world(1);
        let ready = write(&env, READY, 0..KEYS);
        assert!(ready.len() > 2, "{} tables", ready.len());
        let mut shuffled = paths(&ready);
        shuffled.reverse();
        let loaded = try_load(&env, &shuffled, place).unwrap();
        let bytes = ready.iter().map(|t| t.file.bytes).sum();
        assert_eq!((loaded.tables, loaded.entries, loaded.bytes), (ready.len() as u64, u64::from(KEYS), bytes));
        // What it was loaded from may go.
        fs.remove_dir_all(Path::new(READY)).unwrap();
        fs.crash_losing_unsynced();
        let store = check(&env, "loaded");
        let mut batch = Batch::new();
        batch.put(&key(3), b"newer").unwrap().delete(&key(4)).unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
        store.tree().flush_all().unwrap();
        store.tree().compact_all().unwrap();
        while store.maintain_step().unwrap() == Progress::Worked {}
        drop(store);
        fs.crash_losing_unsynced();
        let store = Store::open_embedded(env.clone(), Path::new(DIR), &Options::tiny()).unwrap();
        assert_eq!(store.get(Keyspace::USER, &key(3)).unwrap().unwrap().lsn, Lsn(2));
        assert!(store.get(Keyspace::USER, &key(4)).unwrap().is_none());
        assert_eq!(store.view().scan(Keyspace::USER, b"", b"", false).count(), KEYS as usize - 1);
        drop(store);
        // Nothing is loaded over a store.
        assert!(matches!(try_load(&env, &[], place), Err(Error::Directory { .. })));
    }
}

/// Checks that nothing was made of `tables`, and says why.
fn refused(env: &Env, tables: &[PathBuf]) -> String {
    let e = try_load(env, tables, Place::Copy).unwrap_err().to_string();
    assert_eq!(Identity::read(env, Path::new(DIR)).unwrap(), None, "{e}");
    let e = format!("{e}; {}", try_load(env, tables, Place::Link).unwrap_err());
    assert_eq!(Identity::read(env, Path::new(DIR)).unwrap(), None, "{e}");
    e
}

#[test]
fn tables_that_may_not_be_in_a_store_are_refused_by_name() {
    let (fs, env) = world(2);
    let ready = write(&env, READY, 0..KEYS);
    let across = write(&env, "/other", [5, KEYS + 1].into_iter());
    let both = [paths(&ready), paths(&across)].concat();
    assert!(refused(&env, &both).contains("has keys between those of"));
    let twice = [&paths(&ready)[..], &paths(&ready)[..1]].concat();
    assert!(refused(&env, &twice).contains("is given twice"));
    assert!(refused(&env, &[Path::new(READY).join("none.table")]).contains("missing"));
    // A table of a living store.
    let dir = Path::new("/other/store");
    let store = Store::create(env.clone(), dir, &Options::tiny(), IDENTITY).unwrap();
    for n in 0..3 {
        let mut batch = Batch::new();
        batch.put(&key(n), b"v").unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
    }
    store.tree().flush_all().unwrap();
    let theirs = store.tree().table_path(store.tree().pinned_tables().tables[0].id);
    assert!(refused(&env, &[theirs]).contains("made by a store"));
    // The directory that is to become the store is emptied first: no table may be in it.
    let inside = Path::new(DIR).join("tables/x.table");
    assert!(refused(&env, &[inside]).contains("write tables elsewhere"));
    // Any flipped bit, and a file that ends early.
    let file = &ready[1].path;
    for at in (0..ready[1].file.bytes).step_by(61) {
        fs.flip_bit(file, at, (at % 8) as u8).unwrap();
        let why = refused(&env, &paths(&ready));
        assert!(why.contains("corruption") || why.contains("format"), "flip at {at}: {why}");
        fs.flip_bit(file, at, (at % 8) as u8).unwrap();
    }
    fs.open(file, OpenMode::Write).unwrap().set_len(ready[1].file.bytes - 1).unwrap();
    refused(&env, &paths(&ready));
    // After all that, the rest can be loaded, and it is as it was.
    let rest: Vec<_> = paths(&ready).into_iter().filter(|p| p != file).collect();
    try_load(&env, &rest, Place::Link).unwrap();
}

#[test]
fn a_writer_refuses_keys_out_of_order_and_goes_on() {
    let (_, env) = world(3);
    let mut writer = TableWriter::new(env.clone(), Path::new(READY), &Options::tiny());
    let mut put = |key: &[u8]| writer.put(Keyspace::USER, key, &Value::plain(b"v"));
    put(b"b").unwrap();
    assert!(matches!(put(b"b"), Err(Error::Malformed(_))));
    assert!(matches!(put(b"a"), Err(Error::Malformed(_))));
    assert!(matches!(put(&vec![b'x'; 65_536]), Err(Error::Limit(_))));
    put(b"c").unwrap();
    let ready = writer.finish().unwrap();
    assert_eq!(try_load(&env, &paths(&ready), Place::Copy).unwrap().entries, 2);
    let (_, env) = world(4);
    assert_eq!(try_load(&env, &[], Place::Copy).unwrap().tables, 0);
    assert_eq!(Store::open_embedded(env, Path::new(DIR), &Options::tiny()).unwrap().log().last().lsn, Lsn(1));
}

/// Power loss and a full disk at every call of a load: afterwards there is the whole store, or none and it can be
/// loaded.
#[test]
fn a_load_that_is_cut_short_anywhere_leaves_the_whole_store_or_none() {
    for place in [Place::Link, Place::Copy] {
        for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter, FaultKind::Eio, FaultKind::NoSpace] {
            let (fs, env) = world(0);
            let ready = paths(&write(&env, READY, 0..KEYS));
            let before = fs.io_count();
            try_load(&env, &ready, place).unwrap();
            let total = fs.io_count() - before;
            assert!(total > 40, "{total} calls");
            for k in 1..=total {
                let what = format!("{place:?}, {kind:?} at call {k} of {total}");
                let (fs, env) = world(k);
                let ready = paths(&write(&env, READY, 0..KEYS));
                fs.fail_at_io(fs.io_count() + k, kind);
                let done = try_load(&env, &ready, place);
                let struck = done.is_err() || fs.power_is_off();
                fs.clear_faults();
                if k % 2 == 0 {
                    fs.crash()
                } else {
                    fs.crash_losing_unsynced()
                }
                let there = Identity::read(&env, Path::new(DIR)).unwrap().is_some();
                assert!(there || struck, "{what}: it was done, and is gone");
                if !there {
                    try_load(&env, &ready, place).unwrap_or_else(|e| panic!("{what}: {e}"));
                }
                check(&env, &what);
            }
        }
    }
}

/// Two nodes that began with different data are of different histories although both begin at LSN 1; two that began with
/// the same tables are of one.
#[test]
fn the_chain_of_a_base_tells_its_content() {
    let (_, env) = world(5);
    let ready = paths(&write(&env, READY, 0..KEYS));
    let other = paths(&write(&env, "/other", 1..KEYS));
    let load = |dir: &str, tables: &[PathBuf]| {
        let loaded = load(&env, Path::new(dir), &Options::tiny(), IDENTITY, tables, Place::Copy).unwrap();
        let store = Store::open_embedded(env.clone(), Path::new(dir), &Options::tiny()).unwrap();
        assert_eq!(store.log().last(), loaded.position);
        store.log().last().chain
    };
    let mut shuffled = ready.clone();
    shuffled.reverse();
    let (a, b, c, none) = (load("/a", &ready), load("/b", &shuffled), load("/c", &other), load("/d", &[]));
    assert_eq!(a, b, "the same tables");
    assert!(a != c && a != none && c != none, "{a} {c} {none}");
}

/// What an earlier attempt left in the directory is removed: a table given from there under another spelling is not
/// among it.
#[test]
fn tables_in_the_directory_to_be_are_refused_under_any_spelling() {
    let scratch = tempfile::tempdir().unwrap();
    let (dir, tables) = (scratch.path().join("store"), scratch.path().join("store/tables"));
    std::fs::create_dir_all(&tables).unwrap();
    let env = Env::real();
    let mut writer = TableWriter::new(env.clone(), &tables, &Options::tiny());
    writer.put(Keyspace::USER, b"k", &Value::plain(b"v")).unwrap();
    let ready = writer.finish().unwrap();
    let name = ready[0].path.file_name().unwrap();
    let (by_dir, by_file, out) =
        (scratch.path().join("link"), scratch.path().join("x.table"), scratch.path().join("to"));
    std::os::unix::fs::symlink(&tables, &by_dir).unwrap();
    std::os::unix::fs::symlink(&ready[0].path, &by_file).unwrap();
    std::os::unix::fs::symlink(&dir, &out).unwrap();
    let spelled = scratch.path().join("store/../store/tables").join(name);
    for (to, given) in [
        (&dir, by_dir.join(name)),
        (&dir, by_file),
        (&dir, spelled),
        (&out, ready[0].path.clone()),
        (&scratch.path().join("link/.."), ready[0].path.clone()),
    ] {
        let refused = load(&env, to, &Options::tiny(), IDENTITY, std::slice::from_ref(&given), Place::Link);
        assert!(matches!(refused, Err(Error::Directory { .. })), "{}: {refused:?}", given.display());
        assert!(ready[0].path.exists(), "{} was removed", given.display());
    }
}
