//! The store on its own, with all three durability words: what each promises is there after the end of the
//! process and of the machine, and what is lost is the end of the log and nothing else.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Options, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store and the state after each of its records.
struct World {
    fs: Arc<SimFs>,
    env: Env,
    store: Option<Store>,
    states: Vec<State>,
    /// Records that survive a kill, and a power loss.
    written: usize,
    synced: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
        let store = Some(Store::create(env.clone(), Path::new(DIR), &Options::tiny(), IDENTITY).unwrap());
        Self { fs, env, store, states: vec![State::new()], written: 0, synced: 0 }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn write(&mut self, key: u8, value: u64, durability: Durability) {
        let mut state = self.states.last().unwrap().clone();
        let mut batch = Batch::new();
        let (key, text) = (vec![b'k', key], format!("{value:0width$}", width = (value % 300) as usize).into_bytes());
        if value.is_multiple_of(7) {
            batch.delete(&key).unwrap();
            state.remove(&key);
        } else {
            batch.put(&key, &text).unwrap();
            state.insert(key, text);
        }
        let written = self.store().write(&batch, &[], durability).unwrap();
        self.states.push(state);
        assert_eq!(written.position.lsn.0 as usize, self.states.len() - 1);
        let now = self.states.len() - 1;
        if durability != Durability::Buffered {
            self.written = now;
        }
        if durability == Durability::Synced {
            self.synced = now;
        }
        self.check(now);
    }

    fn read(&self) -> State {
        let view = self.store().view();
        let all = view.scan(Keyspace::USER, b"", b"", false).map(|f| f.unwrap());
        all.map(|f| (f.key, Value::decode(&f.envelope).unwrap().data.to_vec())).collect()
    }

    fn check(&self, at: usize) {
        assert_eq!(self.read(), self.states[at], "the state is not that of record {at}");
    }

    fn reopen(&mut self, at_least: usize) {
        self.store = None;
        let store = Store::open_embedded(self.env.clone(), Path::new(DIR), &Options::tiny()).unwrap();
        let last = store.log().last().lsn.0 as usize;
        self.store = Some(store);
        assert!(last >= at_least, "recovered {last} records, {at_least} were promised");
        self.states.truncate(last + 1);
        (self.written, self.synced) = (last, last);
        self.check(last);
    }
}

fn trace(seed: u64) {
    let rng = SeededRng::new(seed);
    let mut world = World::new(seed);
    for _ in 0..200 {
        match rng.below(24) {
            0 => {
                world.fs.kill();
                let kept = world.written;
                world.reopen(kept);
            }
            1 => {
                world.fs.crash();
                let kept = world.synced;
                world.reopen(kept);
            }
            2 => {
                world.store().maintain_step().unwrap();
            }
            3 => {
                // A checkpoint makes what it holds durable first.
                let at = format!("/data/checkpoint-{}", world.fs.io_count());
                world.store().checkpoint(Path::new(&at)).unwrap();
                world.synced = world.states.len() - 1;
                world.written = world.synced;
            }
            n => {
                let durability = [Durability::Synced, Durability::Written, Durability::Buffered][n as usize % 3];
                world.write(rng.below(12) as u8, rng.below(10_000), durability);
            }
        }
    }
    let all = world.states.len() - 1;
    world.store().close().unwrap();
    world.fs.crash_losing_unsynced();
    world.reopen(all);
}

#[test]
fn every_durability_word_keeps_its_promise() {
    for seed in 0..150 {
        trace(seed);
    }
}

/// Threads that write with different words meet in one order: each sees its own write at once, and all are
/// there at the end.
#[test]
fn writers_of_all_words_meet_in_one_order() {
    let fs = SimFs::new(1);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 1);
    let store = Arc::new(Store::create(env, Path::new(DIR), &Options::tiny(), IDENTITY).unwrap());
    let workers = store.start_background().unwrap();
    std::thread::scope(|s| {
        for (t, durability) in
            [Durability::Synced, Durability::Written, Durability::Buffered, Durability::Synced].into_iter().enumerate()
        {
            let store = &store;
            s.spawn(move || {
                for i in 0..300u32 {
                    let key = format!("{t}-{i}").into_bytes();
                    let mut batch = Batch::new();
                    batch.put(&key, b"value").unwrap();
                    store.write(&batch, &[], durability).unwrap();
                    assert!(store.view().get(Keyspace::USER, &key).unwrap().is_some(), "{durability:?} {i}");
                }
            });
        }
    });
    assert_eq!(store.view().scan(Keyspace::USER, b"", b"", false).count(), 1200);
    drop(workers);
    store.close().unwrap();
}
