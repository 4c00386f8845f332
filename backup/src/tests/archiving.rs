//! The archiver: no gap, no fork, nothing above the commit LSN, whatever the store does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::{Lsn, TimelineId};

use super::{archive_all, drain, epoch, options, rig};
use crate::archive::{ArchiverOptions, ArchiverState, Step};
use crate::catalog::Catalog;
use crate::error::Error;
use crate::plan::Missing;
use crate::repository::documents::Cause;
use crate::testing::{FaultStore, Faults, History, MemoryLog, T1, WRITER, damage, names, range_of, repository};

/// Names alone prove that `1..=last` is there; returns the ranges.
async fn contiguous(store: &Arc<FaultStore>, last: u64) -> Vec<(u64, u64)> {
    let catalog = Catalog::load(&repository(store)).await.unwrap();
    let (pieces, missing) = catalog.archive(T1).cover(T1, Lsn(1), Lsn(last));
    assert_eq!(missing, []);
    pieces.iter().map(|p| (p.from.0, p.to.0)).collect()
}

/// The last LSN that a reader of names alone reaches without a hole.
async fn stored_through(store: &Arc<FaultStore>) -> u64 {
    let mut ranges: Vec<_> = names(store, "wal").await.iter().map(|n| range_of(n)).collect();
    ranges.sort_by_key(|r| *r.start());
    ranges.iter().fold(0, |at, r| if *r.start() <= at + 1 { at.max(*r.end()) } else { at })
}

#[tokio::test]
async fn objects_are_cut_by_size_and_by_epoch_and_hold_everything() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 10).epoch(2, 5).epoch(4, 3);
    archive_all(&store, &history, epoch(4), 500).await;
    let ranges = contiguous(&store, 18).await;
    assert!(ranges.iter().any(|r| r.1 == 10) && ranges.iter().any(|r| r.1 == 15) && ranges.len() == 4, "{ranges:?}");
    assert_eq!(names(&store, "fence").await.len(), 3);
}

#[tokio::test]
async fn no_fault_of_the_store_makes_a_gap_or_a_fork() {
    for seed in 0..40u64 {
        let store = FaultStore::new(seed);
        let dice = SeededRng::new(seed);
        // Few retries, so that faults reach the archiver and are met by its next step.
        store.retries.store(1, Ordering::Relaxed);
        let history = History::new().epoch(1, 40).epoch(2, 20);
        let log = MemoryLog::new(&history);
        let mut object_bytes = 400;
        let mut r = rig(&store, &log, epoch(2), Lsn(1), options(object_bytes));
        store.set(Faults { unavailable: 20, lost_reply: 20, phantom_conflict: 10, ..Faults::default() });
        let (mut before, mut failures) = (Lsn::ZERO, 0);
        for _ in 0..400 {
            r.committed.raise(Lsn((r.committed.get().0 + dice.below(4)).min(60)));
            let result = r.archiver.step().await;
            failures += u32::from(result.is_err());
            assert!(result.as_ref().err().is_none_or(Error::is_transient), "seed {seed}: {result:?}");
            let at = r.archived.get();
            assert!(at >= before && at <= r.committed.get(), "seed {seed}");
            assert!(stored_through(&store).await >= at.0, "seed {seed}: {at} is called archived before it is");
            before = at;
            // A restart in between: another cut size, and nothing remembered but the bucket.
            if dice.below(10) == 0 {
                object_bytes = 200 + dice.below(600) as usize;
                let committed = r.committed.get();
                r = rig(&store, &log, epoch(2), committed, options(object_bytes));
                before = Lsn::ZERO;
            }
        }
        assert!(failures > 10, "seed {seed}: only {failures} steps failed");
        store.set(Faults::default());
        r.committed.raise(Lsn(60));
        drain(&mut r.archiver).await.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(r.archived.get(), Lsn(60), "seed {seed}");
        contiguous(&store, 60).await;
    }
}

#[tokio::test]
async fn a_restart_continues_exactly_where_the_archive_ends() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30);
    archive_all(&store, &history.cut(17), WRITER, 1 << 20).await;
    let log = MemoryLog::new(&history);
    let mut r = rig(&store, &log, WRITER, Lsn(30), options(1 << 20));
    assert!(matches!(r.archiver.step().await.unwrap(), Step::Archived(h) if h.name.first == Lsn(18)));
    assert_eq!(contiguous(&store, 30).await, [(1, 17), (18, 30)]);
    let status = r.archiver.handle().status();
    assert_eq!((status.archived, status.objects, status.state), (Lsn(30), 1, ArchiverState::Running));
}

#[tokio::test]
async fn nothing_above_the_commit_lsn_is_archived() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30);
    let log = MemoryLog::new(&history);
    let mut r = rig(&store, &log, WRITER, Lsn(12), options(1 << 20));
    drain(&mut r.archiver).await.unwrap();
    assert_eq!(r.archived.get(), Lsn(12));
    // A log that gives more than it was asked for is caught, not believed.
    log.overshoot.store(true, Ordering::Relaxed);
    r.committed.raise(Lsn(13));
    let error = r.archiver.step().await.unwrap_err();
    assert!(matches!(error, Error::AboveCommit { lsn: Lsn(14), committed: Lsn(13) }), "{error}");
    assert!(names(&store, "wal").await.iter().all(|n| *range_of(n).end() <= 12));
}

/// An archive that passed over it would restore to less than was committed, without a word.
#[tokio::test]
async fn a_record_whose_tables_are_nowhere_else_stops_the_archiver() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 5).ingest().epoch(1, 4);
    let log = MemoryLog::new(&history);
    let mut r = rig(&store, &log, WRITER, Lsn(5), options(1 << 20));
    drain(&mut r.archiver).await.unwrap();
    r.committed.raise(Lsn(10));
    for _ in 0..3 {
        let error = r.archiver.step().await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("the record at LSN 6 takes in tables"), "{error}");
    }
    assert_eq!((r.archived.get(), contiguous(&store, 5).await), (Lsn(5), vec![(1, 5)]));
}

#[tokio::test]
async fn the_bound_of_the_commit_lsn_is_what_keeps_the_archive_below_it() {
    let store = FaultStore::new(1);
    let log = MemoryLog::new(&History::new().epoch(1, 30));
    let mut r = rig(&store, &log, WRITER, Lsn(12), options(1 << 20));
    let _bug = mainstay_engine::fault::plant(mainstay_engine::fault::Bug::ArchiveAboveCommit);
    drain(&mut r.archiver).await.unwrap();
    assert_eq!(r.archived.get(), Lsn(30), "the planted bug archives what is not committed");
}

#[tokio::test]
async fn a_zombie_stops_at_the_new_fence_and_readers_ignore_what_it_wrote() {
    let store = FaultStore::new(1);
    let common = History::new().epoch(1, 20);
    let zombie_log = MemoryLog::new(&common.clone().other(1, 10));
    let mut zombie = rig(&store, &zombie_log, epoch(1), Lsn(20), options(300));
    drain(&mut zombie.archiver).await.unwrap();
    // The new primary fences epoch 2 at LSN 21 and archives one record …
    let new = common.clone().epoch(2, 15);
    let new_log = MemoryLog::new(&new);
    let mut primary = rig(&store, &new_log, epoch(2), Lsn(21), options(300));
    drain(&mut primary.archiver).await.unwrap();
    // … the zombie notices at its next step.
    zombie.committed.raise(Lsn(30));
    let error = zombie.archiver.step().await.unwrap_err();
    assert!(matches!(error, Error::Fenced { .. }), "{error}");
    assert!(matches!(zombie.archiver.step().await, Err(Error::Fenced { .. })));
    primary.committed.raise(Lsn(35));
    drain(&mut primary.archiver).await.unwrap();
    contiguous(&store, 35).await;
}

#[tokio::test]
async fn what_a_zombie_archived_before_the_fence_is_clipped_by_the_new_primary() {
    let store = FaultStore::new(1);
    let common = History::new().epoch(1, 20);
    // The zombie archives 1..=30; of that, 21..=30 is a fork.
    archive_all(&store, &common.clone().other(1, 10), epoch(1), 1 << 20).await;
    let new = common.clone().epoch(2, 15);
    let log = MemoryLog::new(&new);
    let start = ArchiverOptions { epoch_start: Some(common.position(20)), ..options(1 << 20) };
    let mut primary = rig(&store, &log, epoch(2), Lsn(35), start);
    drain(&mut primary.archiver).await.unwrap();
    assert_eq!(contiguous(&store, 35).await, [(1, 20), (21, 35)]);
    let forks = Catalog::load(&repository(&store)).await.unwrap().forks();
    assert_eq!((forks.len(), forks[0].first, forks[0].last), (1, Lsn(21), Lsn(30)));
}

#[tokio::test]
async fn two_nodes_that_archive_the_same_records_agree_and_a_forged_object_stops_the_archiver() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 20);
    // Node 2 found the archive empty, node 1 fills it, then node 2 writes the same range.
    let log = MemoryLog::new(&history);
    let mut late = rig(&store, &log, WRITER, Lsn(1), options(1 << 20));
    late.archiver.step().await.unwrap();
    let other = crate::Writer { node: 9, incarnation: 4, ..WRITER };
    let mut first = rig(&store, &log, other, Lsn(20), options(1 << 20));
    drain(&mut first.archiver).await.unwrap();
    late.committed.raise(Lsn(20));
    drain(&mut late.archiver).await.unwrap();
    assert_eq!(late.archived.get(), Lsn(20));
    // Another history under the same name: both writers think they are alone.
    let store = FaultStore::new(1);
    let a = MemoryLog::new(&History::new().epoch(1, 5).other(1, 5));
    let b = MemoryLog::new(&History::new().epoch(1, 10));
    let mut first = rig(&store, &a, WRITER, Lsn(5), options(1 << 20));
    drain(&mut first.archiver).await.unwrap();
    let mut second = rig(&store, &b, other, Lsn(5), options(1 << 20));
    drain(&mut second.archiver).await.unwrap();
    first.committed.raise(Lsn(10));
    second.committed.raise(Lsn(10));
    drain(&mut first.archiver).await.unwrap();
    let error = drain(&mut second.archiver).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    assert!(second.archiver.handle().status().last_error.unwrap().contains("another writer"));
    assert_eq!(second.archived.get(), Lsn(5));
}

#[tokio::test]
async fn a_log_that_disagrees_with_the_archive_stops_the_archiver() {
    let store = FaultStore::new(1);
    archive_all(&store, &History::new().epoch(1, 10).other(1, 2), WRITER, 1 << 20).await;
    let log = MemoryLog::new(&History::new().epoch(1, 20));
    let mut r = rig(&store, &log, WRITER, Lsn(20), options(1 << 20));
    assert!(matches!(r.archiver.step().await, Err(Error::Diverged { after: Lsn(12), .. })));
}

#[tokio::test]
async fn a_log_that_no_longer_reaches_back_is_an_explicit_gap() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30);
    archive_all(&store, &history.cut(10), WRITER, 1 << 20).await;
    let log = MemoryLog::new(&history.from(15));
    let mut r = rig(&store, &log, WRITER, Lsn(30), options(1 << 20));
    let error = r.archiver.step().await.unwrap_err();
    assert!(error.to_string().contains("LSN 11-15 are in no archive"), "{error}");
    let status = r.archiver.handle().status();
    assert_eq!((status.gap, status.archived), (Some((Lsn(11), Lsn(15))), Lsn(10)));
    assert_eq!(status.state, ArchiverState::AtGap);
    // Accepted is what lies below the new base. When the log has let go of more, that is another gap.
    for (after, reaches) in [(14, false), (10, false), (20, true)] {
        let accepted = ArchiverOptions { accept_gap: Some(history.cut(after).end()), ..options(1 << 20) };
        let mut r = rig(&store, &log, WRITER, Lsn(30), accepted);
        let drained = drain(&mut r.archiver).await;
        let status = r.archiver.handle().status();
        if reaches {
            drained.unwrap();
            // The gap stays visible.
            assert_eq!((r.archived.get(), status.gap), (Lsn(30), Some((Lsn(11), Lsn(20)))));
        } else {
            assert!(matches!(drained, Err(Error::LogGap { archived: Lsn(10), oldest: Lsn(16), .. })), "{drained:?}");
            assert_eq!((r.archived.get(), status.state), (Lsn(10), ArchiverState::AtGap));
        }
    }
    let archive = Catalog::load(&repository(&store)).await.unwrap().archive(T1);
    assert_eq!(archive.cover(T1, Lsn(1), Lsn(30)).1, [Missing { timeline: T1, first: Lsn(11), last: Lsn(20) }]);
}

#[tokio::test]
async fn the_timeline_document_comes_from_the_log_and_is_not_written_on_a_guess() {
    let store = FaultStore::new(1);
    let t2 = TimelineId(0x72);
    let history = History::new().epoch(1, 9).timeline(2, t2, T1, 1 << 32).epoch(2, 3).from(9);
    let log = MemoryLog::new(&history);
    let mut r = rig(&store, &log, crate::Writer { timeline: t2, ..epoch(2) }, Lsn::ZERO, options(1 << 20));
    assert_eq!(r.archiver.step().await.unwrap(), Step::CaughtUp);
    assert!(names(&store, "timeline").await.is_empty());
    r.committed.raise(history.end().lsn);
    drain(&mut r.archiver).await.unwrap();
    let doc = Catalog::load(&repository(&store)).await.unwrap().timelines.remove(&t2).unwrap();
    assert_eq!((doc.parent, doc.fork_lsn, doc.start_lsn), (T1, Lsn(9), Lsn(1 << 32)));
    assert_eq!((doc.cause, doc.fork_chain), (Cause::Forked, Some(History::new().epoch(1, 9).end().chain)));
}

#[tokio::test]
async fn a_timeline_that_starts_in_the_middle_of_a_log_is_archived_from_its_start() {
    let store = FaultStore::new(1);
    archive_all(&store, &History::new().epoch(1, 9), WRITER, 300).await;
    let t2 = TimelineId(0x72);
    let history = History::new().epoch(1, 9).timeline(2, t2, T1, 1 << 32).epoch(2, 30);
    let log = MemoryLog::new(&history);
    let writer = crate::Writer { timeline: t2, ..epoch(2) };
    let mut r = rig(&store, &log, writer, history.end().lsn, options(300));
    assert!(matches!(r.archiver.step().await.unwrap(), Step::Archived(h) if h.name.first == Lsn(1 << 32)));
    // A restart in between finds its place, too.
    let mut r = rig(&store, &log, writer, history.end().lsn, options(300));
    drain(&mut r.archiver).await.unwrap();
    let catalog = Catalog::load(&repository(&store)).await.unwrap();
    let doc = &catalog.timelines[&t2];
    assert_eq!((doc.parent, doc.fork_lsn, doc.cause), (T1, Lsn(9), Cause::Forked));
    assert_eq!(catalog.archive(t2).cover(t2, Lsn(1 << 32), history.end().lsn).1, []);
    super::base(&store, history.position(4), WRITER).await;
    let plan = crate::plan(&repository(&store), crate::Target::Latest, None).await.unwrap();
    assert_eq!((plan.timeline, plan.records), (t2, 5 + 31));
}

#[tokio::test]
async fn records_of_a_newer_epoch_are_not_archived_by_an_older_writer() {
    let store = FaultStore::new(1);
    let log = MemoryLog::new(&History::new().epoch(1, 5).epoch(2, 5));
    let mut r = rig(&store, &log, epoch(1), Lsn(10), options(1 << 20));
    assert!(matches!(r.archiver.step().await, Err(Error::Fenced { .. })));
    assert!(names(&store, "wal").await.is_empty());
}

#[tokio::test]
async fn a_damaged_end_of_the_archive_is_not_built_upon() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30);
    archive_all(&store, &history.cut(10), WRITER, 1 << 20).await;
    let name = names(&store, "wal").await.remove(0);
    damage(&store, &name, 100).await;
    let log = MemoryLog::new(&history);
    let mut r = rig(&store, &log, WRITER, Lsn(30), options(1 << 20));
    assert!(matches!(r.archiver.step().await, Err(Error::Damaged { .. })));
}

#[tokio::test]
async fn running_follows_the_commit_lsn_and_an_orderly_stop_leaves_nothing_behind() {
    let store = FaultStore::new(1);
    let history = History::new().epoch(1, 30);
    let log = MemoryLog::new(&history.cut(10));
    let r = rig(&store, &log, WRITER, Lsn(10), options(1 << 20));
    let handle = r.archiver.handle();
    let (stop, shutdown) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(r.archiver.run(shutdown));
    assert_eq!(r.archived.reached(Lsn(10)).await, Ok(Lsn(10)));
    // While the store is down nothing is lost, and the reason is to be seen.
    store.set(Faults { unavailable: 100, ..Faults::default() });
    log.set(&history);
    r.committed.raise(Lsn(20));
    while handle.status().last_error.is_none() {
        tokio::task::yield_now().await;
    }
    assert!(handle.status().last_error.unwrap().contains("memory://test: Generic fault error: 503"));
    store.set(Faults::default());
    assert_eq!(r.archived.reached(Lsn(20)).await, Ok(Lsn(20)));
    // Credentials that are refused can be put right while it waits.
    while handle.status().last_error.is_some() {
        tokio::task::yield_now().await;
    }
    store.set(Faults { denied: true, ..Faults::default() });
    r.committed.raise(Lsn(25));
    while handle.status().last_error.is_none() {
        tokio::task::yield_now().await;
    }
    store.set(Faults::default());
    assert_eq!(r.archived.reached(Lsn(25)).await, Ok(Lsn(25)));
    r.committed.raise(Lsn(30));
    stop.send(true).unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(r.archived.get(), Lsn(30));
    assert_eq!(handle.status().state, ArchiverState::Stopped);
    contiguous(&store, 30).await;
}
