//! The choice, on shapes made up: whatever it picks keeps the order of each key's versions.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::choose::{Plan, Rules, choose};
use super::shape::{Candidate, Shape};
use crate::lsn::{CommitTs, Lsn};
use crate::table::RangeDelete;
use crate::tree::version::{LAST_LEVEL, LEVELS};

fn rules() -> Rules {
    Rules {
        level0_tables: 2,
        base_bytes: 1000,
        floor: (Lsn(0), CommitTs(0)),
        idle: false,
        avoid: BTreeSet::new(),
        bytes_max: u64::MAX,
    }
}

fn table(id: u128, first: u8, last: u8, bytes: u64) -> Candidate {
    Candidate {
        id,
        bytes,
        keys: Some((vec![first], vec![last])),
        entries: 10,
        min_lsn: Lsn(1),
        max_lsn: Lsn(id as u64),
        ..Candidate::default()
    }
}

fn shape(level0: Vec<Candidate>, last: Vec<Candidate>) -> Shape {
    let mut out = Shape::default();
    out.levels[0] = level0;
    out.levels[LEVELS - 1] = last;
    out
}

#[test]
fn nothing_is_done_below_the_bounds() {
    assert_eq!(choose(&Shape::default(), &rules()), None);
    assert_eq!(choose(&shape(vec![table(1, 1, 9, 10)], vec![]), &rules()), None);
}

#[test]
fn tables_that_overlap_nothing_move_to_the_bottom_oldest_first() {
    let s = shape(vec![table(2, 5, 9, 10), table(1, 1, 4, 10)], vec![]);
    assert_eq!(choose(&s, &rules()), Some(Plan::Move(1, LAST_LEVEL)));
}

#[test]
fn level_0_joins_with_all_that_lies_between_its_keys() {
    let last = vec![table(11, 1, 2, 10), table(12, 4, 5, 10), table(13, 9, 12, 10), table(14, 20, 30, 10)];
    let s = shape(vec![table(2, 8, 10, 10), table(1, 2, 3, 10)], last);
    let Some(Plan::Merge(mut ids, to)) = choose(&s, &rules()) else { panic!() };
    ids.sort_unstable();
    assert_eq!((ids, to), (vec![1, 2, 11, 12, 13], LAST_LEVEL), "an output may go across the table between");
}

#[test]
fn a_damaged_table_holds_up_only_what_needs_it() {
    let last = vec![table(11, 1, 2, 10), table(12, 50, 60, 10)];
    let s = shape(vec![table(2, 51, 52, 10), table(1, 1, 1, 10)], last);
    let rules = Rules { avoid: BTreeSet::from([11]), ..rules() };
    assert_eq!(choose(&s, &rules), Some(Plan::Merge(vec![2, 1], 0)), "level 0 as a whole needs it");
    let s = shape(vec![table(3, 1, 1, 10), table(2, 51, 52, 10), table(1, 1, 1, 100)], s.levels[LEVELS - 1].clone());
    assert_eq!(choose(&s, &rules), Some(Plan::Merge(vec![3, 2], 0)), "what is large already stays");
    let s = shape(vec![table(2, 51, 52, 10), table(1, 51, 51, 10)], s.levels[LEVELS - 1].clone());
    assert!(matches!(choose(&s, &rules), Some(Plan::Merge(ids, _)) if !ids.contains(&11)));
}

#[test]
fn a_merge_that_is_too_large_leaves_its_turn_to_smaller_ones() {
    let last = vec![table(11, 1, 5, 400), table(12, 20, 25, 400), table(13, 40, 60, 5_000)];
    let s = shape(vec![table(3, 4, 50, 10), table(2, 22, 23, 10), table(1, 1, 2, 10)], last);
    let at = |bytes_max| choose(&s, &Rules { bytes_max, base_bytes: 10_000, ..rules() });
    assert_eq!(at(u64::MAX), Some(Plan::Merge(vec![1, 2, 3, 11, 12, 13], LAST_LEVEL)));
    assert_eq!(at(5_829), Some(Plan::Merge(vec![1, 2, 11, 12], LAST_LEVEL)), "not the newest of level 0");
    assert_eq!(at(819), Some(Plan::Merge(vec![1, 11], LAST_LEVEL)));
    assert_eq!(at(409), None, "no larger table of level 0, which would need more room");
    // In another level, and another table of the same one.
    let mut s = Shape::default();
    s.levels[5] = vec![table(1, 1, 4, 900), table(2, 6, 9, 300)];
    s.levels[6] = vec![table(11, 2, 3, 500), table(12, 7, 8, 900)];
    let at = |bytes_max| choose(&s, &Rules { bytes_max, ..rules() });
    assert_eq!(at(u64::MAX), Some(Plan::Merge(vec![1, 11], LAST_LEVEL)));
    assert_eq!(at(1_300), Some(Plan::Merge(vec![2, 12], LAST_LEVEL)));
}

#[test]
fn what_no_read_can_see_is_forgotten_unread() {
    let mut burier = table(3, 1, 1, 10);
    burier.ranges = vec![RangeDelete { start: vec![4], end: vec![8], lsn: Lsn(30) }];
    let mut s = shape(vec![burier], vec![table(1, 4, 7, 10), table(2, 4, 8, 10)]);
    s.history = vec![Candidate { superseded: Lsn(40), ..table(21, 1, 9, 10) }];
    let at = |floor| choose(&s, &Rules { floor: (Lsn(floor), CommitTs(floor)), ..rules() });
    assert_eq!(at(29), None);
    assert_eq!(at(30), Some(Plan::Forget(vec![1])), "the other table reaches beyond the range");
    assert_eq!(at(40), Some(Plan::Forget(vec![21, 1])));
}

#[test]
fn a_bottom_table_full_of_what_nobody_sees_is_written_anew() {
    let at =
        |t: Candidate, floor| choose(&shape(vec![], vec![t]), &Rules { floor: (Lsn(50), CommitTs(floor)), ..rules() });
    let full_of_deletes = Candidate { deletes: 3, ..table(9, 1, 9, 10) };
    assert_eq!(at(full_of_deletes.clone(), 1), Some(Plan::Merge(vec![9], LAST_LEVEL)));
    let young = Candidate { max_lsn: Lsn(51), ..full_of_deletes };
    assert_eq!(at(young, 1), Some(Plan::Merge(vec![9], LAST_LEVEL)), "deletes at the bottom hide nothing, ever");
    let expiring = Candidate { expiring: 10, expiry: (100, 199), ..table(9, 1, 9, 10) };
    assert_eq!(at(Candidate { max_lsn: Lsn(51), ..expiring.clone() }, 130), None, "older reads see them");
    assert_eq!(at(expiring.clone(), 110), None);
    assert_eq!(at(expiring, 130), Some(Plan::Merge(vec![9], LAST_LEVEL)));
}

#[test]
fn deletes_go_down_to_what_they_hide_or_are_dropped_where_they_hide_nothing() {
    let mut s = Shape::default();
    s.levels[5] = vec![Candidate { deletes: 5, ..table(1, 1, 4, 10) }, Candidate { deletes: 4, ..table(2, 6, 9, 10) }];
    s.levels[6] = vec![table(11, 2, 3, 9_000), table(12, 7, 8, 9_000)];
    assert_eq!(choose(&s, &rules()), Some(Plan::Merge(vec![1, 11], LAST_LEVEL)), "half of it is deletes");
    s.levels[5].remove(0);
    assert_eq!(choose(&s, &rules()), None);
    s.levels[5][0].crowded = true;
    assert_eq!(choose(&s, &rules()), Some(Plan::Merge(vec![2, 12], LAST_LEVEL)), "scans meet them");
    s.levels[6][1] = table(12, 20, 30, 9_000);
    assert_eq!(choose(&s, &rules()), Some(Plan::Merge(vec![2], LAST_LEVEL)), "written anew, not moved");
    let crowded = |deletes| Candidate { crowded: true, deletes, ..table(3, 2, 3, 10) };
    let level0 = |t: Candidate| choose(&shape(vec![t], vec![table(11, 2, 3, 900)]), &rules());
    assert_eq!(level0(crowded(1)), Some(Plan::Merge(vec![3, 11], LAST_LEVEL)));
    assert_eq!(level0(crowded(0)), None, "there is nothing to win");
    let bottom = |t: Candidate| choose(&shape(vec![], vec![t]), &rules());
    assert_eq!(bottom(crowded(1)), Some(Plan::Merge(vec![3], LAST_LEVEL)));
}

#[test]
fn deletes_that_damage_keeps_where_they_are_do_not_keep_others() {
    let mut s = Shape::default();
    s.levels[5] = vec![Candidate { deletes: 5, ..table(1, 1, 4, 10) }, Candidate { deletes: 5, ..table(2, 6, 9, 10) }];
    s.levels[6] = vec![table(11, 2, 3, 9_000), table(12, 7, 8, 9_000)];
    let rules = Rules { avoid: BTreeSet::from([11]), ..rules() };
    assert_eq!(choose(&s, &rules), Some(Plan::Merge(vec![2, 12], LAST_LEVEL)));
}

#[test]
fn expiries_from_the_first_to_the_last_microsecond_are_counted() {
    let at = |expiry, floor| {
        let t = Candidate { expiring: 10, expiry, ..table(9, 1, 9, 10) };
        choose(&shape(vec![], vec![t]), &Rules { floor: (Lsn(50), CommitTs(floor)), ..rules() })
    };
    let due = Some(Plan::Merge(vec![9], LAST_LEVEL));
    assert_eq!(at((0, u64::MAX), 1), None);
    assert_eq!(at((0, u64::MAX), u64::MAX / 2), due);
    assert_eq!(at((0, u64::MAX), u64::MAX), due);
    assert_eq!(at((u64::MAX, u64::MAX), u64::MAX), due);
}

#[test]
fn small_history_tables_become_one() {
    let history: Vec<_> = (0..16).map(|n| Candidate { superseded: Lsn(9), ..table(n, 1, 9, 10) }).collect();
    let s = Shape { history, ..Shape::default() };
    assert_eq!(choose(&s, &rules()), Some(Plan::MergeHistory((0..16).collect())));
}

#[test]
fn history_tables_of_nothing_but_commit_times_are_not_merged_again_and_again() {
    let choose = |count: u128, bytes: u64| {
        let times = |n| Candidate { entries: 0, keys: None, last_time: Lsn(9), ..table(n, 1, 9, bytes) };
        choose(&Shape { history: (0..count).map(times).collect(), ..Shape::default() }, &rules())
    };
    // A merge makes tables of 8 MiB of them, and a last one that is smaller.
    assert_eq!(choose(100, 1 << 20), None);
    // What flushes without entries leave is much smaller.
    assert!(matches!(choose(100, 4096), Some(Plan::MergeHistory(ids)) if ids.len() == 100));
    assert_eq!(choose(1, 4096), None);
}

#[test]
fn under_steady_writes_small_history_tables_do_not_pile_up_and_hold_the_levels_up_for_long() {
    let history = |count: u128| {
        (100..100 + count).map(|n| Candidate { superseded: Lsn(9), ..table(n, 1, 9, 10 << 20) }).collect()
    };
    let due = shape(vec![table(1, 1, 9, 10), table(2, 1, 9, 10)], vec![]);
    let few = choose(&Shape { history: history(63), ..due.clone() }, &rules());
    assert!(!matches!(few, Some(Plan::MergeHistory(_))), "level 0 is due: {few:?}");
    let many = choose(&Shape { history: history(64), ..due }, &rules());
    assert_eq!(many, Some(Plan::MergeHistory((100..113).collect())));
}

#[test]
fn a_tree_that_nobody_writes_to_settles() {
    let s = shape(vec![table(1, 3, 4, 300)], vec![table(11, 1, 9, 1000)]);
    assert_eq!(choose(&s, &rules()), None);
    let idle = Rules { idle: true, ..rules() };
    assert!(matches!(choose(&s, &idle), Some(Plan::Merge(ids, _)) if ids == [1, 11]));
    assert_eq!(choose(&shape(vec![table(1, 3, 4, 100)], vec![table(11, 1, 9, 1000)]), &idle), None, "little enough");
}

/// Tables of a sorted level: apart.
fn sorted(first_id: u128) -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec((0u8..6, 0u8..6, 1u64..800), 0..6).prop_map(move |steps| {
        let (mut at, mut out) = (0u8, Vec::new());
        for (n, (gap, len, bytes)) in steps.into_iter().enumerate() {
            let first = at + gap;
            out.push(table(first_id + n as u128, first, first + len, bytes));
            at = first + len + 1;
        }
        out
    })
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let level0 = proptest::collection::vec((0u8..50, 0u8..20, 1u64..300), 0..6).prop_map(|tables| {
        tables.into_iter().zip(1..).map(|((a, len, bytes), id)| table(id, a, a + len, bytes)).collect::<Vec<_>>()
    });
    (level0, sorted(100), sorted(200), sorted(300), sorted(400)).prop_map(|(l0, a, b, c, d)| {
        let mut s = Shape::default();
        (s.levels[0], s.levels[3], s.levels[4], s.levels[5], s.levels[6]) = (l0, a, b, c, d);
        s
    })
}

/// Level and age of a table: versions of one key must be found in ascending places from new to old.
fn places(s: &Shape) -> Vec<(usize, usize, &Candidate)> {
    let level = |l: usize| s.levels[l].iter().enumerate().map(move |(n, t)| (l, if l == 0 { n } else { 0 }, t));
    (0..LEVELS).flat_map(level).collect()
}

proptest! {
    #[test]
    fn newer_versions_never_end_up_below_older_ones(s in any_shape(), idle: bool, avoid in proptest::collection::btree_set(1u128..404, 0..3), bytes_max in prop_oneof![Just(u64::MAX), 1u64..2_000]) {
        let rules = Rules { idle, avoid: avoid.clone(), bytes_max, ..rules() };
        let Some(plan) = choose(&s, &rules) else { return Ok(()) };
        let is_move = matches!(plan, Plan::Move(..));
        let (ids, to) = match plan {
            Plan::Merge(ids, to) => (ids, usize::from(to)),
            Plan::Move(id, to) => (vec![id], usize::from(to)),
            Plan::Forget(_) | Plan::MergeHistory(_) => return Ok(()),
        };
        prop_assert!(ids.iter().all(|id| !avoid.contains(id)), "a damaged table is used");
        let merged: u64 = s.tables().filter(|t| ids.contains(&t.id)).map(|t| t.bytes).sum();
        prop_assert!(is_move || merged <= bytes_max, "{merged} bytes are merged where {bytes_max} are allowed");
        if to == 0 {
            let at = |id: &u128| s.levels[0].iter().position(|t| t.id == *id);
            let mut at: Vec<_> = ids.iter().map(|id| at(id).unwrap()).collect();
            at.sort_unstable();
            prop_assert!(at.windows(2).all(|w| w[0] + 1 == w[1]), "a table between is of an age between");
            return Ok(());
        }
        let all = places(&s);
        let inputs: Vec<_> = all.iter().filter(|(_, _, t)| ids.contains(&t.id)).collect();
        prop_assert_eq!(inputs.len(), ids.len());
        let first = inputs.iter().filter_map(|(_, _, t)| t.keys.as_ref().map(|k| k.0[0])).min().unwrap();
        let last = inputs.iter().filter_map(|(_, _, t)| t.keys.as_ref().map(|k| k.1[0])).max().unwrap();
        for (level, age, other) in all.iter().filter(|(_, _, t)| !ids.contains(&t.id)) {
            let hull = Candidate { keys: Some((vec![first], vec![last])), ..Candidate::default() };
            prop_assert!(*level != to || !other.overlaps(&hull), "output would overlap a table of its level");
            for (from, input_age, input) in inputs.iter().filter(|(_, _, t)| t.overlaps(other)) {
                let older = (*level, *age) > (*from, *input_age);
                let passed = older && *level <= to;
                prop_assert!(!passed, "table {} goes below {}, which is older", input.id, other.id);
            }
        }
    }

    #[test]
    fn it_comes_to_an_end(s in any_shape()) {
        // Merging as said, sizes added up, without dropping anything: a bound on the work.
        let (mut s, rules) = (s, Rules { idle: true, ..rules() });
        for round in 0.. {
            prop_assert!(round < 300, "it never settles: {s:?}");
            let Some(plan) = choose(&s, &rules) else { break };
            let (ids, to) = match plan {
                Plan::Merge(ids, to) => (ids, usize::from(to)),
                Plan::Move(id, to) => (vec![id], usize::from(to)),
                Plan::Forget(_) | Plan::MergeHistory(_) => unreachable!("nothing to forget"),
            };
            let mut taken = Vec::new();
            for level in &mut s.levels {
                taken.extend(level.iter().filter(|t| ids.contains(&t.id)).cloned());
                level.retain(|t| !ids.contains(&t.id));
            }
            let first = taken.iter().filter_map(|t| t.keys.as_ref().map(|k| k.0[0])).min().unwrap();
            let last = taken.iter().filter_map(|t| t.keys.as_ref().map(|k| k.1[0])).max().unwrap();
            let made = table(1000 + round as u128, first, last, taken.iter().map(|t| t.bytes).sum());
            if to == 0 {
                s.levels[0].insert(0, made);
                continue;
            }
            s.levels[to].push(made);
            s.levels[to].sort_by(|a, b| a.keys.cmp(&b.keys));
        }
    }
}
