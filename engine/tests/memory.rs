//! The memory limit, held against what the operating system says of this process: so it is alone in its binary.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and asks the real system"
)]

use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, Env, Options, TimelineId};

const LIMIT: u64 = 64 << 20;
/// What the process may have beside the limit: its code, threads, and what its allocator cannot use.
const BESIDE: u64 = 64 << 20;
const KEYS: u64 = 300_000;

/// The most memory that this process has had, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn key(n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key
}

#[test]
fn a_store_that_is_filled_overwritten_and_read_keeps_to_its_limit() {
    let seed = 7;
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    let options = Options::with_memory_limit(LIMIT);
    let store = Arc::new(Store::create(Env::real(), dir.path(), &options, identity).unwrap());
    let workers = store.start_background().unwrap();
    let rng = SeededRng::new(seed);
    let (mut value, mut most) = ([0_u8; 300], 0);
    for n in 0..2 * KEYS {
        // First all keys, then any; a read beside every other write.
        let at = if n < KEYS { n } else { rng.next_u64() % KEYS };
        value[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        value[100..108].copy_from_slice(&rng.next_u64().to_le_bytes());
        let mut batch = Batch::new();
        batch.put(&key(at), &value).unwrap();
        store.write(&batch, &[], Durability::Buffered).unwrap();
        if n % 2 == 0 {
            let at = rng.next_u64() % n.clamp(1, KEYS);
            assert!(store.get(Keyspace::USER, &key(at)).unwrap().is_some());
        }
        if n % 1_000 == 0 {
            most = most.max(store.stats().memory_bytes());
        }
    }
    let stats = store.stats();
    assert!(stats.tree.flushes > 10 && stats.tree.compactions > 0, "too little happened: {stats:?}");
    assert!(most > LIMIT / 2, "{most} bytes: this tests nothing");
    assert!(most < LIMIT + LIMIT / 10, "{most} bytes accounted for, the limit is {LIMIT}: {stats:?}");
    let peak = peak();
    println!("{} MiB accounted for at most, {} MiB resident", most >> 20, peak >> 20);
    assert!(peak < LIMIT + BESIDE, "{peak} bytes resident, the limit is {LIMIT}: {stats:?}");
    drop(workers);
}
