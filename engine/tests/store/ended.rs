//! The end of a store whose readers are still there: what has its tables' names afterwards is not theirs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::tree::Scan;
use mainstay_engine::{ClusterId, CommitTs, Env, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const KEYS: usize = 200;

fn fill(store: &Store, value: &str) {
    for n in 0..KEYS {
        let mut batch = Batch::new();
        batch.put(format!("{n:06}").as_bytes(), value.as_bytes()).unwrap();
        store.write(&batch, &[], Durability::Written).unwrap();
    }
    store.tree().flush_all().unwrap();
    store.tree().compact_all().unwrap();
}

/// A store, a scan of it, and tables that were merged away and that only the scan still holds.
fn with_a_scan(fs: &Arc<SimFs>) -> (Store, Scan, Vec<PathBuf>) {
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(fs), SimClock::new(CommitTs(1_000_000)), 1);
    let options = Options { history_window_us: 0, ..Options::tiny() };
    let store = Store::create(env, Path::new(DIR), &options, IDENTITY).unwrap();
    fill(&store, "the first value");
    let tables = store.tree().pinned_tables().tables.iter().map(|t| store.tree().table_path(t.id)).collect();
    let scan = store.view().scan(Keyspace::USER, b"", b"", false);
    fill(&store, "the second value");
    (store, scan, tables)
}

/// The data is set aside, and files of the same names are put in its place, as a seed does.
fn replace(fs: &SimFs, tables: &[PathBuf]) {
    let dir = Path::new(DIR).join("tables");
    fs.rename(&dir, &Path::new(DIR).join("aside")).unwrap();
    fs.create_dir_all(&dir).unwrap();
    tables.iter().for_each(|t| drop(fs.open(t, OpenMode::CreateNew).unwrap()));
}

/// Whether all tables that the next life was given are there once the scan has gone.
fn next_life_is_whole(end: impl FnOnce(Store)) -> bool {
    let fs = SimFs::new(1);
    let (store, mut scan, tables) = with_a_scan(&fs);
    let still_named = store.tree().pinned_tables().tables;
    let old: Vec<_> =
        tables.into_iter().filter(|p| still_named.iter().all(|t| store.tree().table_path(t.id) != *p)).collect();
    assert!(!old.is_empty() && old.iter().all(|p| fs.exists(p).unwrap()), "the scan holds what was merged away");
    end(store);
    replace(&fs, &old);
    assert_eq!(scan.by_ref().map(Result::unwrap).count(), KEYS, "the scan reads on");
    drop(scan);
    old.iter().all(|p| fs.exists(p).unwrap())
}

#[test]
fn a_scan_that_outlives_its_closed_store_removes_nothing_of_the_next_life() {
    let mut kept = None;
    // Held on, as by a node that cannot wait for everybody.
    assert!(next_life_is_whole(|store| {
        store.close().unwrap();
        kept = Some(store);
    }));
}

#[test]
fn a_scan_that_outlives_a_dropped_store_removes_nothing_of_the_next_life() {
    assert!(next_life_is_whole(drop));
}

#[test]
fn removing_files_after_the_end_of_the_store_is_noticed() {
    let _bug = plant(Bug::RemoveAfterEnd);
    assert!(!next_life_is_whole(drop));
}

#[test]
fn while_a_store_lives_what_was_merged_away_goes_with_its_last_reader() {
    let fs = SimFs::new(1);
    let (store, scan, _) = with_a_scan(&fs);
    drop(scan);
    let files = fs.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "table")).count();
    assert_eq!(files, store.tree().pinned_tables().tables.len());
}
