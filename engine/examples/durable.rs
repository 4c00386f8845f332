//! How many writes a second the engine takes at each durability:
//! `cargo run --release --example durable -- DIRECTORY [SECONDS] [NAME]`; with a name only the cases that have it.
//!
//! Prints, per durability and number of threads, writes a second and records per sync; of threads that share their syncs
//! also without the moment for which a group waits (`Options::gather_syncs`). Owns: nothing the engine needs. Never: a
//! figure of another engine (see the benchmarks).

#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "a tool that ends on any error")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_engine::batch::Batch;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, Env, Options, TimelineId};

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| ".".to_owned());
    let seconds = args.next().map_or(2.0, |s| s.parse().unwrap());
    let wanted = args.next().unwrap_or_default();
    for (durability, threads, gather_syncs) in [
        (Durability::Synced, 1, true),
        (Durability::Synced, 4, true),
        (Durability::Synced, 4, false),
        (Durability::Synced, 16, true),
        (Durability::Synced, 16, false),
        (Durability::Synced, 64, true),
        (Durability::Synced, 64, false),
        (Durability::Written, 1, true),
        (Durability::Buffered, 1, true),
    ] {
        let name = format!("{durability:?}-{threads}{}", if gather_syncs { "" } else { "-ungathered" });
        if !name.contains(&wanted) {
            continue;
        }
        let scratch = tempfile::tempdir_in(Path::new(&dir)).unwrap();
        let options = Options { gather_syncs, ..Options::default() };
        let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
        let store = Arc::new(Store::create(Env::real(), scratch.path(), &options, identity).unwrap());
        let _threads = store.start_background().unwrap();
        let rate = run(&store, durability, threads, Duration::from_secs_f64(seconds));
        let log = store.log().stats();
        let (group, p50) = (log.synced_records as f64 / log.syncs.max(1) as f64, log.sync_latency.quantile_us(0.5));
        let mean = log.sync_latency.total_us / log.syncs.max(1);
        println!("{name:<20} {threads:>2} threads: {rate:>9.0} writes/s, {group:.1} a sync of {mean} us, p50 {p50} us");
    }
}

/// Writes for so long and returns writes a second.
fn run(store: &Store, durability: Durability, threads: u64, time: Duration) -> f64 {
    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|s| {
        for thread in 0..threads {
            let (over, written) = (&over, &written);
            s.spawn(move || {
                let (mut x, mut count) = (thread * 7919 + 1, 0);
                while !over.load(Ordering::Relaxed) {
                    x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let mut batch = Batch::new();
                    batch.put(format!("{:016}", (x >> 20) % 3_000_000).as_bytes(), &[x as u8; 100]).unwrap();
                    store.write(&batch, &[], durability).unwrap();
                    count += 1;
                }
                written.fetch_add(count, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
    });
    written.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}
