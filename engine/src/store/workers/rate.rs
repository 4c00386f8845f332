//! The rate of merges, in simulated time.

use std::path::Path;

use super::*;
use crate::batch::Batch;
use crate::clock::{Clock, SimClock};
use crate::env::Env;
use crate::fs::sim::SimFs;
use crate::limits::Options;
use crate::lsn::{ClusterId, CommitTs, TimelineId};
use crate::rng::{Rng, SeededRng};
use crate::store::{Durability, Identity};

const RATE: u64 = 16 << 10;

/// What [`flush_some`] writes is one memtable.
fn one_flush_at_a_time() -> Options {
    Options { memtable_bytes: 16 << 10, memory_limit: 1 << 20, ..Options::tiny() }
}

fn store(options: &Options) -> (Arc<Store>, Arc<SimClock>) {
    let fs = SimFs::new(1);
    fs.prepare_dir(Path::new("/data")).unwrap();
    let clock = SimClock::new(CommitTs(1_000_000));
    let (env, _) = Env::sim(fs, Arc::clone(&clock), 1);
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    (Arc::new(Store::create(env, Path::new("/data"), options, identity).unwrap()), clock)
}

fn compaction(store: &Arc<Store>) -> Compaction {
    let now = store.env.clock.monotonic();
    Compaction { store: Arc::clone(store), flushes: 0, quiet_since: now, not_before: now, refused: Default::default() }
}

/// A table more in level 0: keys of 400, in any order.
fn flush_some(store: &Store, rng: &SeededRng) {
    for _ in 0..30 {
        let mut batch = Batch::new();
        batch.put(&rng.below(400).to_be_bytes(), &[rng.next_u64() as u8; 80]).unwrap();
        store.write(&batch, &[], Durability::Written).unwrap();
    }
    store.tree.flush_all().unwrap();
}

#[test]
fn merges_keep_their_rate_and_flushes_do_not_wait_for_it() {
    let options = Options { compaction_bytes_per_second: RATE, ..one_flush_at_a_time() };
    let (store, clock) = store(&options);
    let (rng, mut worker) = (SeededRng::new(1), compaction(&store));
    let mut helper = MergeHelper { store: Arc::clone(&store) };
    // When each step began that went through something, and through how much.
    let (mut merged, mut waited, mut helped) = (Vec::new(), 0, 0);
    for round in 1..=40 {
        flush_some(&store, &rng);
        assert_eq!(store.tree.flushes(), round, "a flush waits for nobody");
        assert_eq!(store.tree.slow(), None, "round {round}: writers wait, so that the rate does not count");
        loop {
            let (now, before) = (clock.monotonic(), store.tree.stepped_bytes());
            let progress = worker.step();
            let bytes = store.tree.stepped_bytes() - before;
            if bytes > 0 {
                merged.push((now, bytes));
            }
            if store.tree.merging() == (true, true) {
                helped += 1;
                assert_eq!(helper.step(), Progress::Idle, "with a rate there is no help");
                assert_eq!(store.tree.stepped_bytes(), before + bytes);
            }
            match progress {
                Progress::Sleep(pause) if now < worker.not_before => {
                    assert_eq!((pause, bytes), (worker.not_before - now, 0));
                    waited += 1;
                    // Those who wake it too early get nothing.
                    clock.advance(pause / 2);
                    assert!(matches!(worker.step(), Progress::Sleep(p) if p == pause - pause / 2));
                    clock.advance(pause - pause / 2);
                }
                Progress::Sleep(_) => break,
                _ => {}
            }
        }
    }
    let all: u64 = merged.iter().map(|(_, bytes)| bytes).sum();
    assert!(
        merged.len() > 30 && waited > 30 && helped > 0 && all > 100 << 10,
        "too little: {waited}, {helped}, {merged:?}"
    );
    for step in merged.windows(2) {
        let (time, least) = (step[1].0 - step[0].0, Duration::from_secs_f64(step[0].1 as f64 / RATE as f64));
        assert!(time >= least, "{} bytes had {time:?}", step[0].1);
    }
    // Nothing else took time: on the whole it is the rate, and no less.
    let (first, last) = (merged[0], merged[merged.len() - 1]);
    let (took, least) = ((last.0 - first.0).as_secs_f64(), (all - last.1) as f64 / RATE as f64);
    assert!(took < least * 1.01, "{all} bytes in {took} s, by the rate {least} s");
}

#[test]
fn where_writers_would_wait_for_a_merge_its_rate_does_not_count() {
    let options = Options { compaction_bytes_per_second: 1, ..one_flush_at_a_time() };
    let (store, clock) = store(&options);
    let (rng, mut worker) = (SeededRng::new(2), compaction(&store));
    for _ in 0..12 {
        flush_some(&store, &rng);
    }
    let mut steps = 0;
    while store.tree.slow().is_some() {
        assert_eq!(worker.step(), Progress::Worked);
        steps += 1;
    }
    assert!(steps > 1, "one step was enough: this tests nothing");
    flush_some(&store, &rng);
    flush_some(&store, &rng);
    // The first piece begins at once, and uses hours.
    assert_eq!(worker.step(), Progress::Worked);
    assert!(matches!(worker.step(), Progress::Sleep(p) if p > Duration::from_secs(1000)));
    // Until writers wait again.
    for _ in 0..12 {
        flush_some(&store, &rng);
    }
    assert_eq!((worker.step(), clock.monotonic()), (Progress::Worked, Duration::ZERO));
}
