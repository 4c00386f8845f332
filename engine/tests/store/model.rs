//! Random traces of every operation with power loss and kills, shrunk on failure.

use std::collections::BTreeMap;
use std::sync::Mutex;

use mainstay_engine::batch::Keyspace;
use mainstay_engine::bulk::Place;
use mainstay_engine::store::Durability;
use mainstay_engine::{Lsn, Options};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::reads::Read;
use crate::tails::Upto;
use crate::world::{Act, If, SPACES, Want, World};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Do(Act),
    PowerLoss,
    Kill,
    Close,
}

fn pairs() -> impl Strategy<Value = Vec<(u8, u16)>> {
    proptest::collection::vec((any::<u8>(), any::<u16>()), 1..5)
}

fn space() -> impl Strategy<Value = Keyspace> {
    prop_oneof![4 => Just(Keyspace::USER), 2 => proptest::sample::select(&SPACES[..])]
}

fn condition() -> impl Strategy<Value = If> {
    let want = prop_oneof![Just(Want::Exists), Just(Want::Absent), Just(Want::Version), Just(Want::Value)];
    (want, space(), any::<u8>(), prop_oneof![3 => Just(true), 1 => Just(false)])
}

fn write() -> impl Strategy<Value = Act> {
    let durability = prop_oneof![Just(Durability::Synced), Just(Durability::Written), Just(Durability::Buffered)];
    let submitted = prop_oneof![2 => Just(false), 1 => Just(true)];
    let parts = (durability, pairs(), proptest::option::weighted(0.3, condition()), submitted);
    parts.prop_map(|(d, p, c, submitted)| if submitted { Act::Submit(d, p, c) } else { Act::Write(d, p, c) })
}

fn reading() -> impl Strategy<Value = Read> {
    prop_oneof![
        1 => (space(), any::<u8>()).prop_map(|(s, k)| Read::Get(s, k)),
        1 => (space(), proptest::collection::vec(any::<u8>(), 0..6)).prop_map(|(s, keys)| Read::MultiGet(s, keys)),
        1 => (space(), any::<u8>(), any::<u8>(), any::<bool>())
            .prop_map(|(space, from, to, reverse)| Read::Range { space, from, to, reverse }),
        1 => (space(), any::<u8>(), 0usize..8, any::<bool>())
            .prop_map(|(space, of, length, reverse)| Read::Prefix { space, of, length, reverse }),
        2 => any::<u16>().prop_map(Read::AtLsn),
        2 => any::<u16>().prop_map(Read::AtTime),
        2 => (space(), any::<bool>(), any::<u8>())
            .prop_map(|(space, reverse, taken)| Read::HoldScan { space, reverse, taken }),
        1 => Just(Read::FinishScan),
        1 => Just(Read::HoldView),
        1 => Just(Read::CheckView),
    ]
}

fn upto() -> impl Strategy<Value = Upto> {
    prop_oneof![1 => Just(Upto::Committed), 1 => Just(Upto::Durable), 2 => Just(Upto::Appended)]
}

pub(crate) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (space(), pairs()).prop_map(|(s, p)| Act::Put(s, p)),
        6 => write(),
        2 => (pairs(), prop_oneof![Just(Place::Link), Just(Place::Copy)]).prop_map(|(p, place)| Act::Ingest(p, place)),
        2 => (pairs(), condition()).prop_map(|(p, c)| Act::PutIf(p, c)),
        3 => (space(), any::<u8>()).prop_map(|(s, k)| Act::Delete(s, k)),
        1 => (space(), any::<u8>(), any::<u8>()).prop_map(|(s, a, b)| Act::DeleteRange(s, a, b)),
        1 => (any::<u8>(), any::<u16>()).prop_map(|(k, v)| Act::Expiring(k, v)),
        3 => Just(Act::Sync),
        3 => Just(Act::Commit),
        3 => Just(Act::Apply),
        1 => Just(Act::Maintain),
        4 => Just(Act::Step),
        1 => Just(Act::Freeze),
        1 => (0u8..6).prop_map(Act::Cut),
        1 => Just(Act::Checkpoint),
        // A history window is a thousand of them.
        3 => (0u16..900).prop_map(Act::Pass),
        8 => reading().prop_map(Act::Read),
        3 => any::<u16>().prop_map(Act::Slot),
        3 => (any::<u8>(), 0u8..4).prop_map(|(n, short)| Act::Advance(n, short)),
        12 => (any::<u8>(), upto(), 1usize..4_000).prop_map(|(n, upto, bytes)| Act::Tail(n, upto, bytes)),
        3 => proptest::option::weighted(0.8, 1u8..40).prop_map(Act::Scrub),
    ]
}

/// The model lives in [`World`]; the reference only makes transitions.
pub(crate) struct Reference;

impl ReferenceStateMachine for Reference {
    type State = u64;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<u64> {
        any::<u64>().boxed()
    }

    fn transitions(_: &u64) -> BoxedStrategy<Step> {
        prop_oneof![
            90 => act().prop_map(Step::Do),
            1 => Just(Step::PowerLoss),
            1 => Just(Step::Kill),
            1 => Just(Step::Close),
        ]
        .boxed()
    }

    fn apply(state: u64, _: &Step) -> u64 {
        state
    }
}

/// What all traces of the process did.
static DONE: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

struct OnDisk;

impl StateMachineTest for OnDisk {
    type SystemUnderTest = World;
    type Reference = Reference;

    fn init_test(seed: &u64) -> World {
        // Manifests are written anew, and slots are lost, now and then.
        let (segment_bytes, retained_log_bytes, manifest_bytes) = (8 << 10, 10 << 10, 1 << 10);
        let options = Options { segment_bytes, retained_log_bytes, manifest_bytes, ..Options::tiny() };
        let world = World::with_options(*seed, options);
        // Reads give less than was asked for, or are interrupted, in some traces.
        world.fs.set_short_reads(seed % 2 == 1);
        world.fs.set_interruptions(seed % 3 == 1);
        world
    }

    fn apply(mut world: World, _: &u64, step: Step) -> World {
        match step {
            Step::Do(act) => {
                world.act(&act).unwrap();
                world.check_visible();
            }
            Step::PowerLoss => {
                world.count("power loss");
                world.fs.crash();
                world.reopen();
            }
            Step::Kill => {
                world.count("kill");
                world.fs.kill();
                world.reopen_with(world.written);
            }
            Step::Close => {
                world.count("close");
                world.store().close().unwrap();
                world.fs.crash_losing_unsynced();
                world.reopen_with(world.records.len());
            }
        }
        world
    }

    fn check_invariants(world: &World, _: &u64) {
        let store = world.store();
        assert!(store.durable().get() <= store.appended().get());
        // Written and buffered records are visible before they are durable; tables never hold them.
        assert!(store.applied().get() <= store.committed().get());
        assert!(store.tree().flushed().lsn <= store.applied().get().min(store.durable().get()));
        assert_eq!(store.log().last().lsn, Lsn(world.records.len() as u64));
        assert!(store.durable().get() >= Lsn(world.durable as u64));
        world.check_slots();
        assert!(world.fatal.messages().is_empty());
    }

    fn teardown(world: World, _: u64) {
        let stats = world.store().tree().stats();
        let mut done = DONE.lock().unwrap();
        let own = [("flushes", stats.flushes), ("compactions", stats.compactions)];
        for (what, n) in world.counts.iter().map(|(w, n)| (*w, *n)).chain(own) {
            *done.entry(what).or_default() += n;
        }
    }
}

/// All that the traces must have come to, whatever the dice say.
const REACHED: [&str; 66] = [
    "put",
    "put elsewhere",
    "delete",
    "delete elsewhere",
    "delete range",
    "delete range elsewhere",
    "expiring",
    "sync",
    "commit",
    "apply",
    "maintain",
    "freeze",
    "cut",
    "checkpoint",
    "write synced",
    "write written",
    "write buffered",
    "submit synced",
    "submit written",
    "submit buffered",
    "put if",
    "ingest",
    "step",
    "pass",
    "get",
    "multi-get",
    "range",
    "range reverse",
    "prefix",
    "prefix reverse",
    "at LSN",
    "at time",
    "hold scan",
    "hold scan reverse",
    "finish scan",
    "hold view",
    "check view",
    "slot",
    "advance",
    "tail",
    "scrub",
    "advanced a slot",
    "a reader went on",
    "a reader came to the end",
    "a reader at the end",
    "a reader was cut",
    "a slot was lost",
    "the end of a scrub",
    "exists: held",
    "exists: refused",
    "absent: held",
    "absent: refused",
    "version: held",
    "version: refused",
    "value: held",
    "value: refused",
    "read at an older LSN",
    "read at an older time",
    "history gone",
    "finished a held scan",
    "checked a held view",
    "power loss",
    "kill",
    "close",
    "lost a tail",
    "compactions",
];

#[test]
fn any_trace_of_all_operations_with_power_losses_and_kills_matches_the_model() {
    let config = Config { cases: 96, max_shrink_iters: 2000, source_file: Some(file!()), ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config.clone(), rng);
    let outcome = runner.run(&Reference::sequential_strategy(1..260), |(seed, steps, seen)| {
        OnDisk::test_sequential(config.clone(), seed, steps, seen);
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{e}");
    }
    let done = DONE.lock().unwrap();
    println!("{done:?}");
    for what in REACHED {
        assert!(done.get(what).is_some_and(|n| *n >= 5), "the traces do not come to {what:?}: {done:?}");
    }
}
