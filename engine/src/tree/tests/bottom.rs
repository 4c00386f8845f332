//! Which tables are those of the bottom: their filters may be left out, and only theirs.

use super::*;
use crate::bulk::{Place, TableWriter};
use crate::clock::SimClock;
use crate::fs::sim::{FaultKind, OpClass, SimFs};
use crate::store::{Identity, Store};

fn store() -> (Arc<SimFs>, Env, Store) {
    let fs = SimFs::new(1);
    [Path::new("/data"), Path::new("/ready")].iter().for_each(|d| fs.prepare_dir(d).unwrap());
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    let store = Store::create(env.clone(), Path::new("/data"), &Options::tiny(), identity).unwrap();
    (fs, env, store)
}

/// For each level whether its tables count as those of the bottom, level by level.
fn bottoms(tree: &Tree) -> Vec<(usize, bool)> {
    let version = tree.version();
    let of =
        |(n, tables): (usize, &Arc<Vec<Arc<Table>>>)| tables.iter().map(|t| (n, t.is_bottom())).collect::<Vec<_>>();
    version.levels.iter().enumerate().flat_map(of).collect()
}

const LAST: usize = version::LAST_LEVEL as usize;

#[test]
fn a_moved_table_is_the_bottoms_once_the_manifest_says_so() {
    let (fs, _, store) = store();
    for key in ["a", "m"] {
        let mut batch = Batch::new();
        batch.put(key.as_bytes(), b"v").unwrap();
        store.write(&batch, &[], crate::store::Durability::Synced).unwrap();
        store.tree().flush_all().unwrap();
    }
    assert_eq!(bottoms(store.tree()), [(0, false), (0, false)]);
    fs.fail_nth(OpClass::Write, 1, FaultKind::NoSpace);
    let full = store.tree().compact_step().unwrap_err();
    assert!(matches!(full, Error::DiskFull { .. }), "{full}");
    assert_eq!(bottoms(store.tree()), [(0, false), (0, false)], "it is still of level 0");
    while store.tree().compact_step().unwrap() == Progress::Worked {}
    assert_eq!(store.stats().tree.moved_tables, 1);
    let after = bottoms(store.tree());
    assert_eq!(after, [(0, false), (LAST, true)]);
}

#[test]
fn an_ingested_table_that_is_placed_at_the_bottom_is_the_bottoms() {
    let (_, env, store) = store();
    let mut writer = TableWriter::new(env, Path::new("/ready"), &Options::tiny());
    writer.put(Keyspace::USER, b"k", &Value::plain(b"v")).unwrap();
    let tables: Vec<_> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
    store.ingest(&tables, Place::Link).unwrap();
    store.tree().flush_all().unwrap();
    assert_eq!(bottoms(store.tree()), [(LAST, true)]);
}
