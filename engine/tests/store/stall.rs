//! A disk whose syncs hang: nothing is acknowledged or visible meanwhile, what was there is served,
//! and a power loss in the middle takes only what nobody was told.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::log::SyncLatency;
use mainstay_engine::store::{Durability, Identity, Store, SubmitStats};
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

#[test]
fn a_sync_counts_in_the_bucket_of_the_time_that_it_took() {
    let fs = SimFs::new(9);
    let dir = Path::new("/data");
    fs.prepare_dir(dir).unwrap();
    let clock = SimClock::new(CommitTs(1_000_000));
    let (env, _) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), 9);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let store = Arc::new(Store::create(env, dir, &Options::tiny(), identity).unwrap());
    assert_eq!(store.stats().log.sync_latency, SyncLatency::default());
    let mut wanted = SyncLatency::default();
    // Twice each, so that groups past the page cache are among them.
    let times = [0, 1, 2, 3, 4, 1_000, 1_023, 1_024, 70_000, 1 << 29, 1 << 30, u64::from(u32::MAX)];
    for (n, us) in times.into_iter().chain(times).enumerate() {
        let stall = fs.stall_syncs();
        let written = std::thread::scope(|s| {
            let writer = s.spawn(|| store.write(&put(&n.to_be_bytes()), &[], Durability::Synced));
            stall.wait_for(1);
            clock.advance(Duration::from_micros(us));
            drop(stall);
            writer.join().unwrap()
        });
        written.unwrap();
        let bucket = [(0, 2, 0), (2, 4, 1), (4, 8, 2), (512, 1_024, 9), (1_024, 2_048, 10), (65_536, 131_072, 16)];
        let bucket = bucket.into_iter().find(|(from, to, _)| (*from..*to).contains(&us)).map(|(.., bucket)| bucket);
        wanted.buckets[bucket.unwrap_or(if us < 1 << 30 { 29 } else { 30 })] += 1;
        wanted.total_us += us;
        wanted.max_us = wanted.max_us.max(us);
        let log = store.stats().log;
        assert_eq!((log.sync_latency, log.syncs, log.synced_records), (wanted, n as u64 + 1, n as u64 + 1), "{us} us");
        assert_eq!(log.sync_latency.buckets.iter().sum::<u64>(), log.syncs);
    }
    // A write that asks for no sync has none.
    store.write(&put(b"written"), &[], Durability::Written).unwrap();
    assert_eq!(store.stats().log.sync_latency, wanted);
}

#[test]
fn what_is_on_its_way_into_the_log_counts_as_memory() {
    const BYTES: usize = 20 << 10;
    let fs = SimFs::new(10);
    let dir = Path::new("/data");
    fs.prepare_dir(dir).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 10);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let options =
        Options { segment_bytes: 1 << 20, memtable_bytes: 1 << 20, memory_limit: 16 << 20, ..Options::tiny() };
    let store = Arc::new(Store::create(env, dir, &options, identity).unwrap());
    let mut large = Batch::new();
    large.put(b"large", &vec![b'v'; BYTES]).unwrap();
    // Beside what the tree and the log's tail have.
    let beside = || {
        let s = store.stats();
        let tree = s.tree.memtable_bytes + s.tree.held.memtable_bytes + s.tree.pinned_bytes + s.tree.lent_bytes;
        assert_eq!(
            s.memory_bytes() - tree - s.tree.cache_bytes - s.tree.missed_bytes - s.log.tail_bytes,
            s.log.buffer_bytes + s.submits.memory_bytes
        );
        (s.log.buffer_bytes as usize, s.submits)
    };
    assert!(beside().0 < BYTES / 2);
    // Nobody has handed it over yet.
    store.write(&large, &[], Durability::Buffered).unwrap();
    assert!(store.log().buffered_bytes() >= BYTES && (BYTES..4 * BYTES).contains(&beside().0), "{:?}", beside());
    // Neither has who waits for the sync of a group; and the next group is in memory, too.
    let stall = fs.stall_syncs();
    std::thread::scope(|s| {
        let writer = s.spawn(|| store.write(&large, &[], Durability::Synced));
        stall.wait_for(1);
        assert_eq!(store.log().buffered_bytes(), 0);
        assert!((2 * BYTES..8 * BYTES).contains(&beside().0), "{:?}", beside());
        store.write(&large, &[], Durability::Buffered).unwrap();
        assert!((3 * BYTES..12 * BYTES).contains(&beside().0), "{:?}", beside());
        drop(stall);
        writer.join().unwrap().unwrap();
    });
    // What was written leaves a buffer for the next ones, and for its last blocks, behind.
    store.log().step().unwrap();
    let kept = beside().0;
    assert!(kept < 8 * BYTES, "{kept}");
    let workers = store.start_background().unwrap();
    let stall = fs.stall_syncs();
    let submitted: Vec<_> =
        (0..100).map(|n: u32| store.submit(&put(&n.to_be_bytes()), &[], Durability::Synced)).collect();
    let SubmitStats { outstanding, batch_bytes, memory_bytes } = beside().1;
    assert_eq!((outstanding, batch_bytes), (100, 100 * put(&[0; 4]).encoded_len() as u64));
    assert!((100 * 100..100 * 1_000).contains(&memory_bytes), "{memory_bytes}");
    drop(stall);
    for completion in submitted {
        completion.unwrap().wait().unwrap();
    }
    assert_eq!(beside().1, SubmitStats::default());
    drop(workers);
}
