//! The memory limit, held against what the operating system says of this process: so it is alone in its binary.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking and asks the real system"
)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Completion, Durability, Identity, Store};
use mainstay_engine::{ClusterId, Env, Options, TimelineId};

const LIMIT: u64 = 64 << 20;
/// What the process may have beside the limit: its code, threads, and what its allocator cannot use.
const BESIDE: u64 = 64 << 20;
const ARENAS: &str = "MALLOC_ARENA_MAX";
const KEYS: u64 = 300_000;
/// Submitted while others read: enough for many flushes and merges.
const SUBMITS: u64 = 200_000;
/// Completions that are waited for when there are so many.
const OUTSTANDING: usize = 4_000;

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

fn batch(at: u64, rng: &SeededRng) -> Batch {
    let mut value = [0_u8; 300];
    value[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
    value[100..108].copy_from_slice(&rng.next_u64().to_le_bytes());
    let mut batch = Batch::new();
    batch.put(&key(at), &value).unwrap();
    batch
}

/// glibc's allocator gives threads arenas of their own and keeps in each what was freed there, twice the limit in all. What
/// an allocator keeps is its own matter; here it is about what the store has.
fn again_with_one_arena() {
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    let status = again.args(std::env::args_os().skip(1)).env(ARENAS, "1").status().unwrap();
    assert!(status.success(), "with one arena: {status}");
}

/// The most that the store itself counts, as far as it was asked.
#[derive(Default)]
struct Most {
    all: AtomicU64,
    buffers: AtomicU64,
    outstanding: AtomicU64,
}

impl Most {
    fn look(&self, store: &Store) {
        let stats = store.stats();
        self.all.fetch_max(stats.memory_bytes(), Ordering::Relaxed);
        self.buffers.fetch_max(stats.log.buffer_bytes, Ordering::Relaxed);
        self.outstanding.fetch_max(stats.submits.outstanding, Ordering::Relaxed);
    }
}

/// First all keys, then any; a read beside every other write.
fn fill_and_overwrite(store: &Store, rng: &SeededRng, most: &Most) {
    for n in 0..2 * KEYS {
        let at = if n < KEYS { n } else { rng.next_u64() % KEYS };
        store.write(&batch(at, rng), &[], Durability::Buffered).unwrap();
        if n % 2 == 0 {
            let at = rng.next_u64() % n.clamp(1, KEYS);
            assert!(store.get(Keyspace::USER, &key(at)).unwrap().is_some());
        }
        if n % 1_000 == 0 {
            most.look(store);
        }
    }
}

/// Submits overwrites without waiting for each, synced ones among them.
fn submit(store: &Store, rng: &SeededRng, most: &Most) {
    let mut outstanding: VecDeque<Completion> = VecDeque::new();
    for n in 0..SUBMITS {
        let durability = if n % 50 == 0 { Durability::Synced } else { Durability::Written };
        outstanding.push_back(store.submit(&batch(rng.below(KEYS), rng), &[], durability).unwrap());
        if n % 1_000 == 0 {
            most.look(store);
        }
        if outstanding.len() >= OUTSTANDING {
            outstanding.pop_front().unwrap().wait().unwrap();
        }
    }
    for completion in outstanding {
        completion.wait().unwrap();
    }
}

/// Goes through the keys in long and short pieces, in both directions; how many entries it saw.
fn scan(store: &Store, rng: &SeededRng, over: &AtomicBool) -> u64 {
    let mut seen = 0;
    while !over.load(Ordering::Relaxed) {
        let (from, reverse) = (rng.next_u64().to_be_bytes(), rng.below(2) == 0);
        let (start, end): (&[u8], &[u8]) = if reverse { (b"", &from) } else { (&from, b"") };
        let mut scan = store.view().scan(Keyspace::USER, start, end, reverse);
        for _ in 0..[100, 20_000][rng.below(2) as usize] {
            let Some(entry) = scan.next_entry().unwrap() else { break };
            assert!(entry.key.len() == 16 && entry.envelope.len() >= 300);
            seen += 1;
        }
    }
    seen
}

#[test]
fn a_store_that_is_filled_overwritten_scanned_and_read_by_many_keeps_to_its_limit() {
    if std::env::var_os(ARENAS).is_none() {
        return again_with_one_arena();
    }
    let seed = 7;
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity { cluster: ClusterId(1), timeline: TimelineId(1) };
    let options = Options::with_memory_limit(LIMIT);
    let store = Arc::new(Store::create(Env::real(), dir.path(), &options, identity).unwrap());
    let workers = store.start_background().unwrap();
    let (most, over) = (Most::default(), AtomicBool::new(false));
    fill_and_overwrite(&store, &SeededRng::new(seed), &most);
    let (alone, peak_alone) = (most.all.load(Ordering::Relaxed), peak());
    let scanned = std::thread::scope(|s| {
        let (store, most, over) = (&store, &most, &over);
        let submitters: Vec<_> =
            (1..=2).map(|n| s.spawn(move || submit(store, &SeededRng::new(seed + n), most))).collect();
        let scans: Vec<_> = (3..=4).map(|n| s.spawn(move || scan(store, &SeededRng::new(seed + n), over))).collect();
        s.spawn(move || {
            let rng = SeededRng::new(seed + 5);
            while !over.load(Ordering::Relaxed) {
                assert!(store.get(Keyspace::USER, &key(rng.below(KEYS))).unwrap().is_some());
            }
        });
        let ended: Vec<_> = submitters.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|e| e.unwrap());
        scans.into_iter().map(|s| s.join().unwrap()).sum::<u64>()
    });
    let stats = store.stats();
    let [all, buffers, outstanding] = [&most.all, &most.buffers, &most.outstanding].map(|m| m.load(Ordering::Relaxed));
    let mib = [all, alone, buffers].map(|b| b as f64 / f64::from(1 << 20));
    println!(
        "MiB accounted for at most, before submits, of these buffers: {mib:.1?}; {outstanding} outstanding; {scanned} scanned"
    );
    assert!(stats.tree.flushes > 10 && stats.tree.compactions > 0, "too little happened: {stats:?}");
    assert!(scanned > 10_000 && outstanding > 100 && buffers > 16 << 10, "too little happened: {stats:?}");
    assert!(alone > LIMIT / 2, "{alone} bytes: this tests nothing");
    assert!(all < LIMIT + LIMIT / 10, "{all} bytes accounted for, the limit is {LIMIT}: {stats:?}");
    let (peak, mib) = (peak(), f64::from(1 << 20));
    println!("{:.0} MiB resident at most, {:.0} before there were submits", peak as f64 / mib, peak_alone as f64 / mib);
    assert!(peak < LIMIT + BESIDE, "{peak} bytes resident, the limit is {LIMIT}: {stats:?}");
    drop(workers);
}
