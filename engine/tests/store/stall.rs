//! A disk whose syncs hang: nothing is acknowledged or visible meanwhile, what was there is served,
//! and a power loss in the middle takes only what nobody was told.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, CommitTs, Env, Lsn, Options, TimelineId};

fn put(key: &[u8]) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, b"value").unwrap();
    batch
}

#[test]
fn while_a_sync_hangs_nothing_is_acknowledged_and_the_rest_goes_on() {
    for power_loss in [false, true] {
        let fs = SimFs::new(7);
        let dir = Path::new("/data");
        fs.prepare_dir(dir).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 7);
        let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        let store = Arc::new(Store::create(env.clone(), dir, &Options::tiny(), identity).unwrap());
        store.write(&put(b"before"), &[], Durability::Synced).unwrap();
        let stall = fs.stall_syncs();
        let writer = {
            let store = Arc::clone(&store);
            std::thread::spawn(move || store.write(&put(b"during"), &[], Durability::Synced))
        };
        assert_eq!(store.appended().wait(Lsn(2), Duration::from_secs(60)), Ok(true));
        // It cannot end while the sync hangs, whatever the threads' order.
        assert!(!writer.is_finished());
        assert_eq!((store.durable().get(), store.applied().get()), (Lsn(1), Lsn(1)));
        assert!(store.view().get(Keyspace::USER, b"during").unwrap().is_none());
        assert!(store.view().get(Keyspace::USER, b"before").unwrap().is_some());
        if power_loss {
            fs.crash_losing_unsynced();
        }
        drop(stall);
        let written = writer.join().unwrap();
        assert_eq!(written.is_err(), power_loss, "{written:?}");
        if power_loss {
            drop(store);
            let store = Store::open(env, dir, &Options::tiny()).unwrap();
            assert_eq!(store.log().last().lsn, Lsn(1));
        } else {
            assert!(store.view().get(Keyspace::USER, b"during").unwrap().is_some());
        }
    }
}

#[test]
fn while_a_merge_hangs_the_store_says_how_it_is() {
    let fs = SimFs::new(8);
    let dir = Path::new("/data");
    fs.prepare_dir(dir).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 8);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let store = Arc::new(Store::create(env, dir, &Options::tiny(), identity).unwrap());
    for key in [b"one", b"two"] {
        store.write(&put(key), &[], Durability::Synced).unwrap();
        store.tree().flush_all().unwrap();
    }
    let stall = fs.stall_syncs();
    let merge = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || store.tree().compact_all().map(drop))
    };
    stall.wait_for(1);
    let (tell, told) = mpsc::channel();
    let asker = {
        let store = Arc::clone(&store);
        std::thread::spawn(move || tell.send((store.damage(), store.stats().tree.tables())))
    };
    // Only a failure waits for so long.
    let told = told.recv_timeout(Duration::from_secs(20));
    drop(stall);
    merge.join().unwrap().unwrap();
    asker.join().unwrap().unwrap();
    assert_eq!(told, Ok((vec![], 2)));
}
