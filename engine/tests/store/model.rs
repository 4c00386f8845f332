//! Random traces with power loss and kills, shrunk on failure.

use mainstay_engine::Lsn;
use proptest::prelude::*;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use crate::world::{Act, State, World, read};

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Do(Act),
    PowerLoss,
    Kill,
    /// Opens a view; it is read again at the next one and must not have changed.
    View,
}

pub(crate) fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => proptest::collection::vec((any::<u8>(), any::<u16>()), 1..5).prop_map(Act::Put),
        3 => any::<u8>().prop_map(Act::Delete),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Act::DeleteRange(a, b)),
        1 => (any::<u8>(), any::<u16>()).prop_map(|(k, v)| Act::Expiring(k, v)),
        4 => Just(Act::Sync),
        4 => Just(Act::Commit),
        4 => Just(Act::Apply),
        2 => Just(Act::Maintain),
        1 => Just(Act::Freeze),
        1 => (0u8..6).prop_map(Act::Cut),
        1 => Just(Act::Checkpoint),
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
            20 => act().prop_map(Step::Do),
            1 => Just(Step::PowerLoss),
            1 => Just(Step::Kill),
            2 => Just(Step::View),
        ]
        .boxed()
    }

    fn apply(state: u64, _: &Step) -> u64 {
        state
    }
}

struct OnDisk;

struct Sut {
    world: World,
    view: Option<(mainstay_engine::tree::View, State)>,
}

impl StateMachineTest for OnDisk {
    type SystemUnderTest = Sut;
    type Reference = Reference;

    fn init_test(seed: &u64) -> Sut {
        Sut { world: World::new(*seed), view: None }
    }

    fn apply(mut sut: Sut, _: &u64, step: Step) -> Sut {
        match step {
            Step::Do(act) => {
                sut.world.act(&act).unwrap();
                sut.world.check_visible();
            }
            Step::PowerLoss => {
                sut.view = None;
                sut.world.store = None;
                sut.world.fs.crash();
                sut.world.reopen();
            }
            Step::Kill => {
                sut.view = None;
                sut.world.store = None;
                sut.world.fs.kill();
                sut.world.reopen();
            }
            Step::View => {
                if let Some((view, then)) = &sut.view {
                    assert_eq!(&read(view).unwrap(), then, "a view changed under its reader");
                }
                let view = sut.world.store().view();
                let state = read(&view).unwrap();
                sut.view = Some((view, state));
            }
        }
        sut
    }

    fn check_invariants(sut: &Sut, _: &u64) {
        let store = sut.world.store();
        assert!(store.durable().get() <= store.appended().get());
        assert!(store.applied().get() <= store.committed().get().min(store.durable().get()));
        assert!(store.tree().flushed().lsn <= store.applied().get());
        assert_eq!(store.log().last().lsn, Lsn(sut.world.records.len() as u64));
        assert!(sut.world.fatal.messages().is_empty());
    }
}

prop_state_machine! {
    #![proptest_config(Config { cases: 96, max_shrink_iters: 2000, ..Config::default() })]

    #[test]
    fn any_trace_with_power_losses_and_kills_matches_the_model(sequential 1..120 => OnDisk);
}
