//! Ingested tables and a merge of everything.

use std::time::Duration;

use super::*;
use crate::bulk::{Place, TableWriter};
use crate::clock::SimClock;
use crate::fs::sim::SimFs;
use crate::store::{Identity, Store};

#[test]
fn tables_that_arrive_do_not_wait_for_a_merge_of_everything() {
    let fs = SimFs::new(1);
    [Path::new("/data"), Path::new("/ready")].iter().for_each(|d| fs.prepare_dir(d).unwrap());
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    let store = Store::create(env.clone(), Path::new("/data"), &Options::tiny(), identity).unwrap();
    let mut writer = TableWriter::new(env, Path::new("/ready"), &Options::tiny());
    writer.put(Keyspace::USER, b"k", &Value { expiry: None, metadata: &[], data: b"v" }).unwrap();
    let tables: Vec<_> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
    store.ingest(&tables, Place::Link).unwrap();
    let merging = lock(&store.tree().compacting);
    let (done, flushed) = std::sync::mpsc::channel();
    std::thread::scope(|s| {
        s.spawn(|| done.send(store.tree().flush_all()).unwrap());
        let flushed = flushed.recv_timeout(Duration::from_secs(20));
        drop(merging);
        assert!(flushed.is_ok_and(|f| f.is_ok()), "the flush, and with it all writers, waited for the merge");
    });
    let levels: Vec<u64> = store.stats().tree.levels.iter().map(|l| l.tables).collect();
    assert!(levels.first().is_some_and(|l| *l > 0), "{levels:?}");
    assert!(store.view().get(Keyspace::USER, b"k").unwrap().is_some());
}
