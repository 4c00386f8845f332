//! A real limit of open files, met by a store with its threads. The limit is the whole process's, so this is a binary of
//! its own with one test.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and works on real threads and files"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::error::ErrorClass;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, Env, Error, Options, TimelineId};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

fn options() -> Options {
    Options {
        segment_bytes: 256 << 10,
        memtable_bytes: 64 << 10,
        level0_tables: 2,
        ..Options::with_memory_limit(8 << 20)
    }
}

fn limit(current: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// Takes all handles that the process may have but for `spare`.
fn take_handles(spare: usize) -> Vec<File> {
    let mut taken = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        taken.push(file);
    }
    taken.truncate(taken.len().saturating_sub(spare));
    taken
}

type Model = BTreeMap<u64, Vec<u8>>;

fn write(store: &Store, model: &mut Model, n: u64) -> Result<(), Error> {
    let (key, value) = (n % 700, vec![n as u8; 900]);
    let mut batch = Batch::new();
    batch.put(&key.to_be_bytes(), &value).unwrap();
    // What is synced from several groups on goes past the page cache, through a handle of its own.
    let durability = if n.is_multiple_of(3) { Durability::Written } else { Durability::Synced };
    store.write(&batch, &[], durability)?;
    model.insert(key, value);
    Ok(())
}

fn check(store: &Store, model: &Model, what: &str) {
    let view = store.view();
    for (key, value) in model {
        let found = view.get(Keyspace::USER, &key.to_be_bytes()).unwrap();
        assert!(found.is_some_and(|f| f.envelope.ends_with(value)), "{what}: key {key}");
    }
    assert_eq!(view.scan(Keyspace::USER, b"", b"", false).count(), model.len(), "{what}");
}

#[test]
fn a_process_that_runs_out_of_open_files_goes_on_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    limit(400);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let (mut n, mut model, mut refused_in) = (0, Model::new(), 0);
    drop(Store::create(Env::real(), dir.path(), &options(), identity).unwrap());
    for spare in [0, 0, 1, 2, 3, 5] {
        let what = format!("{spare} to spare");
        // The real hook ends the process, and this test with it.
        let store = Arc::new(Store::open_embedded(Env::real(), dir.path(), &options()).unwrap());
        check(&store, &model, &what);
        let workers = store.start_background().unwrap();
        for _ in 0..200 {
            n += 1;
            write(&store, &mut model, n).unwrap();
        }
        let taken = take_handles(spare);
        let mut refused = 0;
        for _ in 0..2_000 {
            n += 1;
            if let Err(e) = write(&store, &mut model, n) {
                assert!(matches!(e, Error::TooManyFiles { .. }), "{what}: {e}");
                assert_eq!(e.class(), ErrorClass::NotExecuted, "{what}");
                refused += 1;
                if refused == 20 {
                    break;
                }
            }
        }
        let stats = store.stats().open_files;
        assert!(refused == 0 || stats.refusals > 0, "{what}: {stats:?}");
        refused_in += u32::from(refused > 0);
        check(&store, &model, &what);
        drop(taken);
        for _ in 0..600 {
            n += 1;
            write(&store, &mut model, n).unwrap_or_else(|e| panic!("{what}: it may open files again: {e}"));
        }
        let stats = store.stats().open_files;
        assert!(!stats.writes_refused && !stats.flush_waits && !stats.segment_waits, "{what}: {stats:?}");
        drop(workers);
        store.close().unwrap();
    }
    assert!(refused_in >= 2, "the limit was met {refused_in} times");
    let store = Store::open_embedded(Env::real(), dir.path(), &options()).unwrap();
    check(&store, &model, "at the end");
}
