//! The planner: every hole is named, every time has one answer, forks and timelines are kept apart.

use std::sync::Arc;

use mainstay_engine::{CommitTs, Lsn, TimelineId};

use super::{archive_all, base, epoch};
use crate::Writer;
use crate::catalog::Catalog;
use crate::error::Error;
use crate::plan::{Answer, RestorePlan, Target, plan};
use crate::testing::{FaultStore, History, T1, WRITER, names, range_of, remove, repository, ts_of};

async fn ask(store: &Arc<FaultStore>, target: Target) -> crate::Result<RestorePlan> {
    plan(&repository(store), target, None).await
}

/// Base at LSN 10, archive 1..=60 in small objects.
async fn archived() -> (Arc<FaultStore>, History) {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30).epoch(2, 30);
    archive_all(&store, &history, epoch(2), 400).await;
    base(&store, history.position(10), WRITER).await;
    (store, history)
}

#[tokio::test]
async fn every_target_lands_where_it_says() {
    let (store, history) = archived().await;
    let p = ask(&store, Target::Latest).await.unwrap();
    assert_eq!((p.landing_lsn, p.landing_ts, p.answer, p.records), (Lsn(60), ts_of(60), Answer::EndOfArchive, 50));
    for lsn in 10..=60 {
        let p = ask(&store, Target::Lsn(Lsn(lsn))).await.unwrap();
        assert_eq!((p.landing_lsn, p.landing_ts, p.records), (Lsn(lsn), history.position(lsn).ts, lsn - 10));
        let t = ask(&store, Target::Time(ts_of(lsn))).await.unwrap();
        assert_eq!((t.landing_lsn, t.landing_ts, t.answer), (Lsn(lsn), ts_of(lsn), Answer::Exact), "time of {lsn}");
    }
    for lsn in 10..60 {
        let between = CommitTs(ts_of(lsn).0 + 3);
        let t = ask(&store, Target::Time(between)).await.unwrap();
        assert_eq!((t.landing_lsn, t.answer), (Lsn(lsn), Answer::Idle { next_ts: ts_of(lsn + 1) }), "after {lsn}");
    }
}

#[tokio::test]
async fn targets_outside_the_window_are_refused_with_the_window() {
    let (store, _) = archived().await;
    for target in [Target::Time(CommitTs(ts_of(60).0 + 1)), Target::Lsn(Lsn(61))] {
        let error = ask(&store, target).await.unwrap_err();
        assert!(matches!(error, Error::AfterArchive { .. }) && error.to_string().contains("LSN 60"), "{error}");
    }
    for target in [Target::Time(CommitTs(ts_of(10).0 - 1)), Target::Lsn(Lsn(9))] {
        let error = ask(&store, target).await.unwrap_err();
        assert!(matches!(error, Error::BeforeWindow { .. }) && error.to_string().contains("LSN 10"), "{error}");
    }
}

#[tokio::test]
async fn a_hole_anywhere_is_named_for_every_kind_of_target() {
    let (whole, _) = archived().await;
    let objects = names(&whole, "wal").await;
    for name in &objects {
        let (store, _) = archived().await;
        remove(&store, name).await;
        let (first, last) = (*range_of(name).start(), *range_of(name).end());
        let named = |r: crate::Result<RestorePlan>| match r {
            Err(Error::Gap { missing }) => {
                assert_eq!((missing[0].first.0, missing[0].last.0), (first.max(11), last), "{name}");
            }
            other => panic!("hole at {first}-{last}: {other:?}"),
        };
        let needed = last > 10;
        if last == 60 {
            // Nothing behind it tells of the hole: the archive ends earlier, and says so.
            let p = ask(&store, Target::Latest).await.unwrap();
            assert_eq!(p.landing_lsn, Lsn(first - 1));
            assert!(matches!(ask(&store, Target::Lsn(Lsn(60))).await, Err(Error::AfterArchive { .. })));
            continue;
        }
        if !needed {
            ask(&store, Target::Latest).await.unwrap();
            continue;
        }
        named(ask(&store, Target::Latest).await);
        named(ask(&store, Target::Lsn(Lsn(60))).await);
        named(ask(&store, Target::Time(ts_of(60))).await);
        // Between the hole's edge and the next record nobody knows what was last before that time.
        named(ask(&store, Target::Time(CommitTs(ts_of(last).0 + 3))).await);
        if first > 11 {
            let before = ask(&store, Target::Lsn(Lsn(first - 1))).await.unwrap();
            assert_eq!(before.landing_lsn, Lsn(first - 1));
            let before = ask(&store, Target::Time(ts_of(first - 1))).await.unwrap();
            assert_eq!(before.landing_lsn, Lsn(first - 1));
        }
    }
}

/// The archive ended, and a base was made afterwards: the log went on in between, and nobody has it.
#[tokio::test]
async fn a_time_between_the_end_of_the_log_and_a_later_base_is_refused() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 60);
    archive_all(&store, &history.cut(30), WRITER, 400).await;
    base(&store, history.position(10), WRITER).await;
    base(&store, history.position(45), WRITER).await;
    for ts in [CommitTs(ts_of(30).0 + 3), ts_of(31), ts_of(44), CommitTs(ts_of(44).0 + 3)] {
        match ask(&store, Target::Time(ts)).await {
            Err(Error::Gap { missing }) => assert_eq!((missing[0].first, missing[0].last), (Lsn(31), Lsn(44)), "{ts}"),
            other => panic!("{ts}: {other:?}"),
        }
    }
    for (ts, lsn) in [(ts_of(30), 30), (ts_of(29), 29), (ts_of(45), 45)] {
        let p = ask(&store, Target::Time(ts)).await.unwrap();
        assert_eq!((p.landing_lsn, p.answer), (Lsn(lsn), Answer::Exact), "{ts}");
    }
    // Right behind the log: the base tells which record was next.
    base(&store, history.position(31), WRITER).await;
    let p = ask(&store, Target::Time(CommitTs(ts_of(30).0 + 3))).await.unwrap();
    assert_eq!((p.landing_lsn, p.answer), (Lsn(30), Answer::Idle { next_ts: ts_of(31) }));
}

#[tokio::test]
async fn the_newest_base_before_the_target_is_taken_and_one_behind_a_hole_helps() {
    let (store, history) = archived().await;
    base(&store, history.position(40), epoch(2)).await;
    assert_eq!(ask(&store, Target::Lsn(Lsn(39))).await.unwrap().base.at.lsn, Lsn(10));
    assert_eq!(ask(&store, Target::Time(ts_of(40))).await.unwrap().base.at.lsn, Lsn(40));
    let hole = names(&store, "wal").await.into_iter().find(|n| range_of(n).contains(&25)).unwrap();
    remove(&store, &hole).await;
    assert_eq!(ask(&store, Target::Latest).await.unwrap().records, 20);
    let w = crate::plan::restore_window(&repository(&store), None).await.unwrap();
    assert_eq!((w.window.from, w.window.to), ((Lsn(10), ts_of(10)), (Lsn(60), ts_of(60))));
    assert_eq!((w.missing.len(), w.missing[0].last.0), (1, *range_of(&hole).end()));
    assert!(matches!(ask(&store, Target::Lsn(Lsn(35))).await, Err(Error::Gap { .. })));
}

#[tokio::test]
async fn a_base_of_a_deposed_primary_beyond_the_fence_is_no_base() {
    let (store, history) = archived().await;
    let zombie = history.cut(30).other(1, 8);
    base(&store, zombie.position(35), epoch(1)).await;
    assert_eq!(ask(&store, Target::Lsn(Lsn(38))).await.unwrap().base.at.lsn, Lsn(10));
}

const T2: TimelineId = TimelineId(0x72);
const T3: TimelineId = TimelineId(0x73);
const T4: TimelineId = TimelineId(0x74);
const JUMP: u64 = 1 << 32;

/// T1 1..=60; T2 forks at 40, T3 from T2, T4 from T1 at 20.
async fn four_timelines() -> (Arc<FaultStore>, Vec<(TimelineId, History)>) {
    let store = FaultStore::new(1);
    let t1 = History::new().epoch(1, 60);
    let t2 = t1.cut(40).timeline(2, T2, T1, 40 + JUMP).epoch(2, 20);
    let t3 = t2.cut(50 + JUMP).timeline(3, T3, T2, 50 + 2 * JUMP).epoch(3, 20);
    let t4 = t1.cut(20).timeline(4, T4, T1, 20 + JUMP).epoch(4, 20);
    base(&store, t1.position(5), WRITER).await;
    archive_all(&store, &t1, WRITER, 400).await;
    let logs = [(T2, &t2, 40, 2), (T3, &t3, 50 + JUMP, 3), (T4, &t4, 20, 4)];
    for (timeline, history, fork, e) in logs {
        archive_all(&store, &history.from(fork), Writer { timeline, ..epoch(e) }, 400).await;
    }
    (store, vec![(T1, t1), (T2, t2), (T3, t3), (T4, t4)])
}

/// LSNs that a new timeline leaves out are missing nowhere.
#[tokio::test]
async fn the_jump_to_a_new_timeline_is_no_gap_before_its_first_base() {
    let (store, histories) = four_timelines().await;
    let (timeline, t2) = &histories[1];
    let start = t2.position(40 + JUMP);
    base(&store, start, Writer { timeline: *timeline, ..epoch(2) }).await;
    for name in names(&store, &format!("wal/{timeline}")).await {
        remove(&store, &name).await;
    }
    let between = CommitTs(start.ts.0 - 1);
    assert!(between > t2.position(40).ts);
    let p = plan(&repository(&store), Target::Time(between), Some(*timeline)).await.unwrap();
    assert_eq!((p.landing_lsn, p.answer), (Lsn(40), Answer::Idle { next_ts: start.ts }));
}

#[tokio::test]
async fn each_leaf_of_four_timelines_restores_its_own_history() {
    let (store, histories) = four_timelines().await;
    for (timeline, history) in &histories {
        let p = plan(&repository(&store), Target::Latest, Some(*timeline)).await.unwrap();
        let lsns: Vec<u64> = p.pieces.iter().flat_map(|p| p.from.0..=p.to.0).collect();
        assert_eq!(lsns, history.lsns()[5..], "timeline {timeline}");
        assert_eq!((p.landing_timeline, p.next_epoch.0), (*timeline, 5));
    }
    // A target before the fork lies on the parent: the new timeline continues that one.
    let p = plan(&repository(&store), Target::Lsn(Lsn(15)), Some(T4)).await.unwrap();
    assert_eq!((p.timeline, p.landing_timeline), (T4, T1));
    // The default is the timeline begun last.
    let p = ask(&store, Target::Latest).await.unwrap();
    assert_eq!((p.timeline, p.newer_timeline), (T4, None));
    let p = plan(&repository(&store), Target::Latest, Some(T1)).await.unwrap();
    assert!(p.to_string().contains(&format!("timeline {T4} was begun later")), "{p}");
}

#[tokio::test]
async fn an_lsn_in_the_jump_or_of_an_unknown_timeline_is_refused() {
    let (store, _) = four_timelines().await;
    for lsn in [21, 60, 19 + JUMP] {
        let error = plan(&repository(&store), Target::Lsn(Lsn(lsn)), Some(T4)).await.unwrap_err();
        assert!(matches!(error, Error::InJump { fork: Lsn(20), .. }), "{lsn}: {error}");
    }
    let error = plan(&repository(&store), Target::Latest, Some(TimelineId(9))).await.unwrap_err();
    assert!(error.to_string().contains(&T3.to_string()), "{error}");
}

#[tokio::test]
async fn a_hole_before_a_fork_is_a_hole_of_the_child() {
    let (store, _) = four_timelines().await;
    let hole = names(&store, "wal")
        .await
        .into_iter()
        .find(|n| n.contains(&T1.to_string()) && range_of(n).contains(&20))
        .unwrap();
    remove(&store, &hole).await;
    for target in [Target::Latest, Target::Lsn(Lsn(25 + JUMP))] {
        let error = plan(&repository(&store), target, Some(T4)).await.unwrap_err();
        assert!(
            matches!(&error, Error::Gap { missing } if missing[0].timeline == T1 && missing[0].last == Lsn(20)),
            "{error}"
        );
    }
}

#[tokio::test]
async fn timelines_that_cannot_be_told_apart_are_refused() {
    let (store, _) = four_timelines().await;
    let mut catalog = Catalog::load(&repository(&store)).await.unwrap();
    catalog.timelines.values_mut().for_each(|d| d.created_us = 5);
    assert!(matches!(crate::plan::choose_timeline(&catalog, None), Err(Error::Ambiguous(_))));
    assert_eq!(crate::plan::choose_timeline(&catalog, Some(T2)).unwrap(), T2);
    catalog.timelines.remove(&T3);
    assert!(crate::plan::choose_timeline(&catalog, None).unwrap_err().to_string().contains(&T3.to_string()));
}

#[tokio::test]
async fn without_a_base_there_is_no_plan() {
    let store = FaultStore::new(1);
    archive_all(&store, &History::new().epoch(1, 5), WRITER, 400).await;
    assert!(matches!(ask(&store, Target::Latest).await, Err(Error::NoBase { .. })));
}

#[tokio::test]
async fn a_plan_survives_its_own_text_and_prints_without_hashes_or_paths() {
    let (store, _) = archived().await;
    let p = ask(&store, Target::Time(ts_of(33))).await.unwrap();
    let text = serde_json::to_string(&p).unwrap();
    assert_eq!(serde_json::from_str::<RestorePlan>(&text).unwrap(), p);
    assert!(p.to_string().contains("replay    23 records"), "{p}");
}
