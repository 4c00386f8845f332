//! The same seeded operations give the same answers whatever the options: sizes of blocks, memtables, tables and
//! levels, memory for filters and cache, background threads or none.

use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Condition, Expect, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store, Workers};
use mainstay_engine::tree::View;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
/// Versions younger than this must be readable under all options; how many older ones are is up to compaction.
const WINDOW_US: u64 = 80;
const STEPS: u64 = 300;

/// Options of all sizes, and whether background threads run.
fn random_options(seed: u64) -> (Options, bool) {
    let rng = SeededRng::new(seed);
    let among = |all: &[u64]| all[rng.below(all.len() as u64) as usize];
    let options = Options {
        segment_bytes: among(&[16 << 10, 64 << 10, 1 << 20]),
        tail_memory_bytes: among(&[0, 4 << 10, 1 << 20]) as usize,
        memtable_bytes: among(&[4 << 10, 16 << 10, 256 << 10, 64 << 20]) as usize,
        frozen_memtables_max: among(&[1, 2, 4]) as usize,
        block_bytes: among(&[64, 256, 4 << 10, 64 << 10]) as usize,
        table_bytes: among(&[1, 4 << 10, 64 << 10, 32 << 20]),
        level0_tables: among(&[1, 2, 4, 8]) as usize,
        level_base_bytes: among(&[2 << 10, 12 << 10, 1 << 20]),
        memory_limit: among(&[1 << 10, 96 << 10, 256 << 20]),
        compaction_bytes_per_second: among(&[0, 0, 1 << 30]),
        history_window_us: WINDOW_US,
        manifest_bytes: among(&[0, 1 << 10, 64 << 10]),
        gather_syncs: seed.is_multiple_of(2),
        ..Options::tiny()
    };
    (options, rng.below(2) == 0)
}

struct World {
    fs: Arc<SimFs>,
    env: Env,
    options: Options,
    threads: bool,
    store: Option<(Arc<Store>, Option<Workers>)>,
    /// What was seen, one line per step.
    seen: Vec<String>,
}

impl World {
    fn new(options: Options, threads: bool) -> Self {
        let fs = SimFs::new(1);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000)), 1);
        drop(Store::create(env.clone(), Path::new(DIR), &options, IDENTITY).unwrap());
        let mut world = Self { fs, env, options, threads, store: None, seen: Vec::new() };
        world.open();
        world
    }

    fn open(&mut self) {
        let store = Arc::new(Store::open_embedded(self.env.clone(), Path::new(DIR), &self.options).unwrap());
        let workers = self.threads.then(|| store.start_background().unwrap());
        self.store = Some((store, workers));
    }

    fn store(&self) -> &Arc<Store> {
        &self.store.as_ref().unwrap().0
    }

    fn see(&mut self, what: String) {
        self.seen.push(what);
    }

    fn look(&mut self, view: &View, rng: &dyn Rng) {
        let (start, end) = (key(rng), key(rng));
        let some: Vec<_> = (0..4).map(|_| view.get(Keyspace::USER, &key(rng)).unwrap()).collect();
        let part: Vec<_> = view.scan(Keyspace::USER, &start, &end, false).map(|e| e.unwrap()).collect();
        let back: Vec<_> = view.scan(Keyspace::USER, &start, &end, true).map(|e| e.unwrap()).collect();
        assert!(part.iter().eq(back.iter().rev()), "the two directions differ");
        let all = view.scan(Keyspace::USER, b"", b"", false).map(|e| e.unwrap());
        let all = all.fold(0, |hash, e| fnv(&e.envelope, fnv(&e.key, hash ^ e.lsn.0)));
        self.see(format!("at {} {}: {some:?} {part:?} {all:x}", view.lsn(), view.ts()));
    }

    fn step(&mut self, rng: &dyn Rng, held: &mut Vec<View>) {
        let mut batch = Batch::new();
        match rng.below(32) {
            0 => {
                batch.delete_range(&key(rng), &key(rng)).map(drop).unwrap_or_default();
                batch.put(&key(rng), b"beside a range").unwrap();
            }
            1..6 => drop(batch.delete(&key(rng)).unwrap().delete(&key(rng)).unwrap()),
            6..9 => {
                let at = self.store().log().last().ts.0 + rng.below(300);
                batch.put_expiring(&key(rng), b"expires", CommitTs(at)).unwrap();
            }
            9 => {
                let view = self.store().view();
                self.look(&view, rng);
                held.push(view);
                return;
            }
            10 if !held.is_empty() => {
                // A view that was held shows what it showed, whatever became of its tables.
                let view = held.swap_remove(rng.below(held.len() as u64) as usize);
                self.look(&view, rng);
                return;
            }
            11 | 12 => return self.look_back(rng),
            13 => return self.maintain(),
            14 => {
                held.clear();
                return self.reopen(rng);
            }
            15 => return self.checkpoint(rng),
            _ => (0..1 + rng.below(5)).for_each(|_| {
                let value = vec![rng.next_u64() as u8; rng.below(300) as usize];
                batch.put(&key(rng), &value).unwrap();
            }),
        }
        let durability = [Durability::Synced, Durability::Written, Durability::Buffered][rng.below(3) as usize];
        let conditions =
            if rng.below(4) == 0 { vec![condition(rng, self.store().log().last().lsn)] } else { Vec::new() };
        match self.store().write(&batch, &conditions, durability) {
            Ok(w) => self.see(format!("written {:?}", w.position)),
            Err(Error::ConditionFailed(c)) => self.see(format!("refused by {c:?}")),
            Err(e) => panic!("{e}"),
        }
    }

    /// Reads at an LSN or a time within the history window.
    fn look_back(&mut self, rng: &dyn Rng) {
        let last = self.store().log().last();
        if last.lsn.0 < WINDOW_US / 4 {
            return;
        }
        // Each record's commit time is at least one above the one before.
        let lsn = Lsn(last.lsn.0 - rng.below(WINDOW_US / 4));
        let time = CommitTs(last.ts.0 - rng.below(WINDOW_US / 4));
        let by_time = rng.below(2) == 0;
        let view = if by_time { self.store().view_at_time(time) } else { self.store().view_at(lsn) };
        match view {
            Ok(view) => self.look(&view, rng),
            // Commit times may lie further apart than records: then it is too old for some.
            Err(Error::HistoryGone { .. }) => self.see("gone".to_owned()),
            Err(e) => panic!("{e}"),
        }
    }

    fn reopen(&mut self, rng: &dyn Rng) {
        let (store, workers) = self.store.take().unwrap();
        drop(workers);
        if rng.below(2) == 0 {
            store.close().unwrap();
            drop(store);
        } else {
            store.log().sync_to(store.log().last().lsn).unwrap();
            drop(store);
            self.fs.kill();
        }
        self.open();
    }

    fn checkpoint(&mut self, rng: &dyn Rng) {
        let to = format!("/data/checkpoint-{}", self.seen.len());
        let made = self.store().checkpoint(Path::new(&to)).unwrap();
        let copy = mainstay_engine::tree::ReadOnly::open(self.env.clone(), Path::new(&to), &self.options).unwrap();
        assert_eq!(copy.position(), made.position);
        self.look(&copy.view(), rng);
    }

    fn maintain(&self) {
        if !self.threads {
            while self.store().maintain_step().unwrap() == Progress::Worked {}
        }
    }
}

fn key(rng: &dyn Rng) -> Vec<u8> {
    format!("{:0width$}", rng.below(90), width = 1 + rng.below(3) as usize).into_bytes()
}

fn condition(rng: &dyn Rng, last: Lsn) -> Condition {
    let expect = match rng.below(4) {
        0 => Expect::Exists,
        1 => Expect::Absent,
        2 => Expect::Version(Lsn(last.0.saturating_sub(rng.below(40)))),
        _ => Expect::Value(b"expires".to_vec()),
    };
    Condition { keyspace: Keyspace::USER, key: key(rng), expect }
}

/// FNV-1a: enough to tell two scans apart.
fn fnv(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
}

fn run(operations: u64, options: Options, threads: bool) -> (Vec<String>, Lsn) {
    let rng = SeededRng::new(operations);
    let mut world = World::new(options, threads);
    let mut held = Vec::new();
    for _ in 0..STEPS {
        world.step(&rng, &mut held);
    }
    world.maintain();
    let view = world.store().view();
    world.look(&view, &rng);
    let floor = world.store().tree().history_floor();
    (world.seen, floor)
}

#[test]
fn whatever_the_options_the_same_operations_give_the_same_answers() {
    let mut floors = std::collections::BTreeSet::new();
    for operations in 0..5 {
        let (want, _) = run(operations, Options { history_window_us: WINDOW_US, ..Options::default() }, false);
        let gone = want.iter().filter(|line| *line == "gone").count();
        assert_eq!(gone, 0, "operations {operations}: what is inside of the window must be there");
        for seed in 0..8 {
            let (options, threads) = random_options(operations * 100 + seed);
            let what = format!("operations {operations}, threads {threads}, {options:?}");
            let (seen, floor) = run(operations, options, threads);
            floors.insert(floor);
            for (n, (seen, want)) in seen.iter().zip(&want).enumerate() {
                assert_eq!(seen, want, "{what}: observation {n}");
            }
            assert_eq!(seen.len(), want.len(), "{what}");
        }
    }
    assert!(floors.len() > 10, "compaction must have dropped history at times of its own: {floors:?}");
}

/// Sizes that nobody would choose are no reason to fail.
#[test]
fn the_largest_sizes_are_no_bound_and_no_overflow() {
    type Change = fn(&mut Options);
    let changes: [(&str, Change); 10] = [
        ("tail_memory_bytes", |o| o.tail_memory_bytes = usize::MAX),
        ("retained_log_bytes", |o| o.retained_log_bytes = u64::MAX),
        ("memtable_bytes", |o| o.memtable_bytes = usize::MAX),
        ("frozen_memtables_max", |o| o.frozen_memtables_max = usize::MAX),
        ("table_bytes", |o| o.table_bytes = u64::MAX),
        ("level0_tables", |o| o.level0_tables = usize::MAX),
        ("level_base_bytes", |o| o.level_base_bytes = u64::MAX),
        ("manifest_bytes", |o| o.manifest_bytes = u64::MAX),
        ("memory_limit", |o| o.memory_limit = u64::MAX),
        ("history_window_us", |o| o.history_window_us = u64::MAX),
    ];
    let mut seen: Option<Vec<String>> = None;
    for (name, change) in changes {
        let mut options = Options { history_window_us: WINDOW_US, ..Options::tiny() };
        change(&mut options);
        println!("{name}");
        let mut world = World::new(options, false);
        let (rng, mut held) = (SeededRng::new(3), Vec::new());
        (0..STEPS).for_each(|_| world.step(&rng, &mut held));
        world.store().tree().flush_all().unwrap();
        while world.store().tree().compact_step().unwrap() == Progress::Worked {}
        drop(held);
        drop(world.store.take());
        world.open();
        let view = world.store().view();
        world.look(&view, &rng);
        if name == "history_window_us" {
            continue;
        }
        assert_eq!(*seen.get_or_insert_with(|| world.seen.clone()), world.seen, "with the largest {name}");
    }
}
