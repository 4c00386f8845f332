//! The memory of indexes and filters: whatever is read, and however many tables there are, the limit holds, and every
//! answer is that of a store with memory for all of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::tree::View;
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Lsn, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const SEED: u64 = 11;
const BATCH: u64 = 50;

/// Small blocks and tables, so that few entries have many and large indexes.
fn options(memory_limit: u64, history_window_us: u64) -> Options {
    Options {
        segment_bytes: 1 << 20,
        tail_memory_bytes: 16 << 10,
        retained_log_bytes: 64 << 10,
        memtable_bytes: 32 << 10,
        block_bytes: 128,
        table_bytes: 64 << 10,
        level0_tables: 4,
        level_base_bytes: 512 << 10,
        memory_limit,
        history_window_us,
        ..Options::tiny()
    }
}

/// Every version of every key: the number of the write, which is its value, under its LSN.
#[derive(Default)]
struct Model(BTreeMap<u64, Vec<(Lsn, u64)>>);

impl Model {
    fn at(&self, key: u64, lsn: Lsn) -> Option<u64> {
        let versions = self.0.get(&key)?;
        versions.iter().rev().find(|(l, _)| *l <= lsn).map(|(_, n)| *n)
    }
}

struct World {
    env: Env,
    options: Options,
    store: Store,
    model: Model,
    rng: SeededRng,
    writes: u64,
    /// The most memory that counted.
    most: u64,
}

fn key(k: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&k.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    key[8..].copy_from_slice(&k.to_be_bytes());
    key
}

fn value_of(envelope: &[u8]) -> u64 {
    u64::from_le_bytes(Value::decode(envelope).unwrap().data.try_into().unwrap())
}

impl World {
    fn new(options: Options) -> Self {
        println!("seed {SEED}");
        let fs = SimFs::new(SEED);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), SEED);
        let store = Store::create(env.clone(), Path::new(DIR), &options, IDENTITY).unwrap();
        let rng = SeededRng::new(SEED);
        Self { env, options, store, model: Model::default(), rng, writes: 0, most: 0 }
    }

    fn write(&mut self, batches: u64, pick: impl Fn(&SeededRng, u64) -> u64) {
        for _ in 0..batches {
            let (mut batch, mut put) = (Batch::new(), BTreeMap::new());
            for _ in 0..BATCH {
                let k = pick(&self.rng, self.writes);
                batch.put(&key(k), &self.writes.to_le_bytes()).unwrap();
                put.insert(k, self.writes);
                self.writes += 1;
            }
            let lsn = self.store.write(&batch, &[], Durability::Buffered).unwrap().position.lsn;
            put.into_iter().for_each(|(k, n)| self.model.0.entry(k).or_default().push((lsn, n)));
            while self.store.maintain_step().unwrap() == Progress::Worked {}
            self.measure();
        }
    }

    fn measure(&mut self) {
        // At so small a limit the log's buffers are larger than the part of it that is theirs.
        let stats = self.store.stats();
        self.most = self.most.max(stats.memory_bytes() - stats.log.buffer_bytes);
    }

    fn check(&mut self, view: &View, k: u64, lsn: Lsn) {
        let found = view.get(Keyspace::USER, &key(k)).unwrap().map(|f| value_of(&f.envelope));
        assert_eq!(found, self.model.at(k, lsn), "key {k} at {lsn:?}");
        self.measure();
    }

    /// All keys, by a scan.
    fn check_scan(&mut self, view: &View, lsn: Lsn, reverse: bool) {
        let all = view.scan(Keyspace::USER, b"", b"", reverse).map(|e| e.unwrap());
        let mut found: Vec<_> = all.map(|e| (e.key, value_of(&e.envelope))).collect();
        let there = self.model.0.keys().filter_map(|k| Some((key(*k).to_vec(), self.model.at(*k, lsn)?)));
        let mut expected: Vec<_> = there.collect();
        expected.sort();
        if reverse {
            found.reverse();
        }
        assert_eq!(found, expected, "a scan at {lsn:?}, reverse: {reverse}");
        self.measure();
    }

    fn assert_within_limit(&self) {
        let (limit, stats) = (self.options.memory_limit, self.store.stats());
        assert!(self.most <= limit + limit / 10, "{} bytes counted, the limit is {limit}: {stats:?}", self.most);
    }
}

#[test]
fn reads_of_the_past_in_all_history_tables_keep_to_the_memory_limit() {
    const KEYS: u64 = 8_000;
    let mut world = World::new(options(512 << 10, 1 << 40));
    world.write(2_400, |rng, _| rng.next_u64() % KEYS);
    let newest = world.store.applied().get();
    let history = world.store.stats().tree.history;
    assert!(history.tables > 3 && history.entries > 80_000, "too little history: {history:?}");
    for part in 1..=40 {
        let lsn = Lsn(newest.0 * part / 40);
        let view = world.store.view_at(lsn).unwrap();
        for _ in 0..20 {
            let k = world.rng.next_u64() % KEYS;
            world.check(&view, k, lsn);
        }
        if part % 16 == 0 {
            world.check_scan(&view, lsn, part % 32 == 0);
        }
    }
    world.assert_within_limit();
    let tree = world.store.stats().tree;
    assert!(tree.lent_bytes > 0 && tree.parts_loaded > 2 * tree.tables(), "nothing was let go of: {tree:?}");
    // What nobody asks any more makes room for blocks; what was pinned stays.
    let pinned = tree.pinned_bytes;
    world.write(250, |rng, _| rng.next_u64() % KEYS);
    let tree = world.store.stats().tree;
    assert!(tree.lent_bytes == 0 && pinned > 0, "{pinned} bytes were pinned: {tree:?}");
    world.assert_within_limit();
}

/// They would take the room of blocks that are asked, until these have pushed them out.
#[test]
fn blocks_leave_the_cache_with_their_table() {
    const KEYS: u64 = 4_000;
    let mut world = World::new(options(8 << 20, 0));
    world.write(2 * KEYS / BATCH, |_, n| n % KEYS);
    let before = world.store.view();
    world.check_scan(&before, before.lsn(), false);
    let held = world.store.stats().tree.cache_bytes;
    world.store.tree().flush_all().unwrap();
    world.store.tree().compact_all().unwrap();
    let still = world.store.stats().tree.cache_bytes;
    world.check_scan(&before, before.lsn(), true);
    drop(before);
    let left = world.store.stats().tree.cache_bytes;
    assert!(held > 100 << 10 && still == held && left == 0, "{held}, {still} while a view reads them, {left}");
}

#[test]
fn more_tables_than_the_memory_has_room_for_indexes_are_read_within_the_limit() {
    const KEYS: u64 = 60_000;
    let mut world = World::new(options(256 << 10, 0));
    world.write(KEYS / BATCH, |_, n| n);
    let before = world.store.view();
    world.write(KEYS / BATCH, |_, n| n - KEYS);
    // A view holds the tables of before, and what was pinned of them.
    for _ in 0..3 {
        let now = world.store.view();
        for view in [&before, &now] {
            for _ in 0..500 {
                let k = world.rng.next_u64() % KEYS;
                world.check(view, k, view.lsn());
            }
        }
        world.check_scan(&before, before.lsn(), false);
        world.check_scan(&now, now.lsn(), true);
    }
    let tree = world.store.stats().tree;
    assert!(tree.tables() > 30, "too few tables: {tree:?}");
    assert!(tree.pinned_bytes > 0 && tree.lent_bytes > 0, "all fits: this tests nothing: {tree:?}");
    world.assert_within_limit();
    drop(before);
    let World { env, options, store, model, rng, writes, .. } = world;
    drop(store);
    let store = Store::open_embedded(env.clone(), Path::new(DIR), &options).unwrap();
    assert_eq!(store.stats().tree.pinned_bytes, 0, "opening reads no index");
    let mut world = World { env, options, store, model, rng, writes, most: 0 };
    let now = world.store.view();
    for k in 0..KEYS {
        if k % 7 == 0 {
            world.check(&now, k, now.lsn());
        }
    }
    world.assert_within_limit();
    drop(now);
    world.store.tree().compact_all().unwrap();
    let tree = world.store.stats().tree;
    assert_eq!((tree.pinned_bytes, tree.lent_bytes), (0, 0), "tables that are gone count: {tree:?}");
    world.check_scan(&world.store.view(), world.store.applied().get(), false);
    world.assert_within_limit();
}

/// The rule of admission, as reads see it: what is read once takes nobody's place, and what is missed again soon comes in.
#[test]
fn a_full_cache_takes_a_block_at_its_second_miss_and_what_is_read_once_pushes_nothing_out() {
    const KEYS: u64 = 60_000;
    let mut world = World::new(options(1_280 << 10, 0));
    world.write(KEYS / BATCH, |_, n| n);
    world.store.tree().flush_all().unwrap();
    world.store.tree().compact_all().unwrap();
    let mut keys: Vec<u64> = (0..KEYS).collect();
    keys.sort_by_key(|k| key(*k));
    // No block has two of these: each of them is a block.
    let mut blocks: Vec<u64> = keys.into_iter().step_by(10).collect();
    // All over the tables: their indexes are in memory before it comes to what is measured.
    blocks.sort_unstable();
    let view = world.store.view();
    let mut misses = |keys: &[u64]| {
        let before = world.store.stats().tree.cache_misses;
        keys.iter().for_each(|k| world.check(&view, *k, view.lsn()));
        (world.store.stats().tree.cache_misses - before) as usize
    };
    let (first, rest) = blocks.split_at(20);
    assert_eq!((misses(first), misses(first)), (first.len(), 0), "there is room");
    // Read until nothing more comes in.
    let (filling, rest) = rest.split_at(3_000);
    (0..4).for_each(|_| _ = misses(filling));
    // So few that they do not push each other out: what is new has a small part of the cache.
    let (kept, once) = rest.split_at(20);
    assert_eq!(misses(kept), kept.len());
    let second = misses(kept);
    assert!(second > kept.len() * 9 / 10, "{second} of {} were missed again: the rest was let in at once", kept.len());
    assert!(misses(once) > once.len() * 9 / 10 && once.len() > 2_000, "{} blocks are read once", once.len());
    let gone = misses(kept);
    assert!(gone < kept.len() / 10, "{gone} of {} that came in are gone, or never came", kept.len());
    let counted = world.store.stats();
    let remembered = 4 * 2 * (world.options.memory_limit / world.options.block_bytes as u64).next_power_of_two();
    assert_eq!(counted.tree.missed_bytes, remembered);
    let without = mainstay_engine::tree::TreeStats { missed_bytes: 0, ..counted.tree };
    let without = mainstay_engine::store::StoreStats { tree: without, ..counted };
    assert_eq!(counted.memory_bytes() - without.memory_bytes(), remembered);
    world.assert_within_limit();
}
