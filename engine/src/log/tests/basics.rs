//! Append, sync, reopen, cut, slots, errors.

use super::*;
use crate::batch::LimitError;

#[test]
fn what_was_synced_is_there_after_reopening_through_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (env, _) = real();
    let (log, r) = open(&env, dir.path()).unwrap();
    assert!(r.created);
    let mut all = fill(&log, 300);
    log.sync_to(Lsn(300)).unwrap();
    assert_eq!((log.appended().get(), log.durable().get()), (Lsn(300), Lsn(300)));
    let last = log.last();
    drop(log);
    let (log, r) = open(&env, dir.path()).unwrap();
    assert_eq!((r.end, r.records, r.torn, r.created), (last, 300, None, false));
    assert!(log.disk_usage().1 > 3);
    all.extend(fill(&log, 50));
    assert_eq!(log.durable().get(), Lsn(300));
    log.close().unwrap();
    drop(log);
    let (log, r) = open(&env, dir.path()).unwrap();
    assert_eq!((r.end.lsn, r.torn), (Lsn(350), None));
    assert_eq!(bodies(&log), all);
}

#[test]
fn timestamps_rise_epochs_do_not_fall_and_timelines_jump() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    let at = |epoch, wall| log.append(Kind::Batch, Epoch(epoch), CommitTs(wall), 0, 0, b"x");
    assert_eq!(at(2, 100).unwrap().ts, CommitTs(100));
    assert_eq!(at(2, 50).unwrap().ts, CommitTs(101));
    assert!(matches!(at(1, 200), Err(Error::Record(_))));
    assert!(matches!(log.append_timeline(Epoch(2), CommitTs(0), &start(Lsn(1)), Lsn(900)), Err(Error::Record(_))));
    assert!(matches!(log.append(Kind::TimelineStart, Epoch(2), CommitTs(0), 0, 0, b""), Err(Error::Malformed(_))));
    let jump = log.append_timeline(Epoch(3), CommitTs(0), &start(Lsn(2)), Lsn(900)).unwrap();
    assert_eq!((jump.lsn, jump.ts), (Lsn(900), CommitTs(102)));
    assert_eq!(at(3, 0).unwrap().lsn, Lsn(901));
    assert_eq!(log.position_at(Lsn(900)).unwrap(), Some(jump));
    for none in [3, 899, 902] {
        assert_eq!(log.position_at(Lsn(none)).unwrap(), None);
    }
    assert_eq!(log.position_at(Lsn(0)).unwrap(), Some(Position::default()));
    log.close().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    assert_eq!(log.position_at(Lsn(900)).unwrap(), Some(jump));
    assert_eq!(read_all(&log, Lsn(500)).unwrap().len(), 2);
}

#[test]
fn a_replica_appends_the_same_bytes_and_nothing_that_does_not_follow() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, _) = open(&real().0, a.path()).unwrap();
    let (to, _) = open(&real().0, b.path()).unwrap();
    fill(&from, 100);
    let chunk = from.reader(Lsn(1)).unwrap().next(Lsn::MAX, usize::MAX).unwrap().unwrap();
    let mut rest = &chunk.bytes[..];
    while !rest.is_empty() {
        let r = Record::decode(rest).unwrap();
        to.append_record(&r).unwrap();
        assert!(matches!(to.append_record(&r), Err(Error::Record(_))));
        rest = &rest[r.bytes.len()..];
    }
    assert_eq!(to.last(), from.last());
    assert_eq!(to.reader(Lsn(1)).unwrap().next(Lsn::MAX, usize::MAX).unwrap().unwrap(), chunk);
}

#[test]
fn a_record_that_fits_no_segment_is_refused_and_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    put(&log, b"a").unwrap();
    let too_long = vec![1; 16 << 10];
    assert!(matches!(put(&log, &too_long), Err(Error::Limit(LimitError::Bytes(_)))));
    put(&log, b"b").unwrap();
    log.close().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    assert_eq!(bodies(&log), [b"a".to_vec(), b"b".to_vec()]);
}

#[test]
fn marks_are_written_once_and_never_lack_room() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    for n in 1..=200 {
        // Frames of 280 bytes: the segment's end is met at many distances.
        put(&log, &[7; 176]).unwrap();
        log.sync_to(Lsn(n)).unwrap();
        log.mark(true).unwrap();
        assert_eq!(log.step().unwrap(), Progress::Idle);
        log.mark(true).unwrap();
        assert_eq!(log.step().unwrap(), Progress::Idle);
    }
    drop(log);
    let (log, r) = open(&real().0, dir.path()).unwrap();
    assert_eq!((r.end.lsn, r.torn), (Lsn(200), None));
    assert_eq!(bodies(&log).len(), 200);
}

#[test]
fn cutting_saves_the_tail_and_refuses_below_the_commit_lsn() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    let all = fill(&log, 200);
    let saved = log.reader(Lsn(60)).unwrap().next(Lsn::MAX, usize::MAX).unwrap().unwrap();
    assert!(matches!(log.truncate_above(Lsn(59), Lsn(60)), Err(Error::BelowCommit { .. })));
    assert_eq!(log.truncate_above(Lsn(200), Lsn(60)).unwrap(), None);
    let at = log.position_at(Lsn(59)).unwrap().unwrap();
    let mut low = log.reader(Lsn(1)).unwrap();
    let mut high = log.reader(Lsn(1)).unwrap();
    low.next(Lsn(59), usize::MAX).unwrap();
    high.next(Lsn(60), usize::MAX).unwrap();
    let cut = log.truncate_above(Lsn(59), Lsn(59)).unwrap().unwrap();
    assert_eq!((cut.from, cut.to, cut.bytes), (Lsn(60), Lsn(200), saved.bytes.len() as u64));
    assert_eq!(std::fs::read(&cut.path).unwrap(), saved.bytes);
    assert_eq!((log.last(), log.appended().get(), log.durable().get()), (at, Lsn(59), Lsn(59)));
    assert_eq!(bodies(&log), all[..59]);
    put(&log, b"new").unwrap();
    assert!(matches!(high.next(Lsn::MAX, 1), Err(Error::Record(_))));
    assert_eq!(records(&low.next(Lsn::MAX, 1).unwrap().unwrap()), [(Lsn(60), b"new".to_vec())]);
    log.close().unwrap();
    let (log, r) = open(&real().0, dir.path()).unwrap();
    assert_eq!((r.end.lsn, r.torn, r.finished_cut), (Lsn(60), None, false));
    assert_eq!(bodies(&log)[..59], all[..59]);
}

#[test]
fn a_log_can_be_cut_at_every_lsn() {
    for lsn in 0..120 {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(&real().0, dir.path()).unwrap();
        let all = fill(&log, 120);
        log.truncate_above(Lsn(lsn), Lsn::ZERO).unwrap().unwrap();
        put(&log, b"new").unwrap();
        log.sync_to(Lsn(lsn + 1)).unwrap();
        let (log, _) = open(&real().0, dir.path()).unwrap();
        let now = bodies(&log);
        assert_eq!(now[..lsn as usize], all[..lsn as usize]);
        assert_eq!(now[lsn as usize..], [b"new".to_vec()], "cut at {lsn}");
    }
}

/// A cut takes its segments from the readers before their bytes go: whoever reads in between sees the cut, not damage.
#[test]
fn a_reader_in_the_middle_of_a_cut_reads_up_to_it_and_finds_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    fill(&log, 1000);
    log.sync_to(Lsn(1000)).unwrap();
    // Now memory lets go of what is written.
    fill(&log, 10);
    log.sync_to(Lsn(1010)).unwrap();
    let (mut low, mut high) = (log.reader(Lsn(1)).unwrap(), log.reader(Lsn(1)).unwrap());
    low.next(Lsn(20), usize::MAX).unwrap();
    while high.next_lsn() <= Lsn(60) {
        high.next(Lsn(200), 1000).unwrap();
    }
    let seq = log.shared.segment_for(Lsn(60)).unwrap().seq;
    let later = log.shared.hide_above(Lsn(59), seq);
    assert!(later.len() > 3, "{} segments", later.len());
    let mut read = Vec::new();
    while let Some(chunk) = low.next(Lsn::MAX, usize::MAX).unwrap() {
        read.extend(records(&chunk).into_iter().map(|(lsn, _)| lsn.0));
    }
    assert_eq!(read, (21..=59).collect::<Vec<_>>());
    assert!(matches!(high.next(Lsn::MAX, usize::MAX), Err(Error::Record(_))));
}

/// The work of a group is led by one of its threads: if that one panics, the log stops and nobody waits for ever.
#[test]
fn a_panic_while_leading_stops_the_log_and_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (env, fatal) = real();
    let (log, _) = open(&env, dir.path()).unwrap();
    let log = Arc::new(log);
    put(&log, b"a").unwrap();
    let writing = Arc::clone(&log);
    assert!(std::thread::spawn(move || writing.sync_to_and(Lsn(1), |_| panic!("on purpose"))).join().is_err());
    let (told, outcomes) = std::sync::mpsc::channel();
    for n in 0..3 {
        let (log, told) = (Arc::clone(&log), told.clone());
        std::thread::spawn(move || {
            let done = match n {
                0 => put(&log, b"b").and_then(|p| log.sync_to(p.lsn)),
                1 => put(&log, b"c").and_then(|p| log.write_to(p.lsn)),
                _ => log.truncate_above(Lsn::ZERO, Lsn::ZERO).map(|_| ()),
            };
            let _ = told.send(done);
        });
    }
    for _ in 0..3 {
        let done = outcomes.recv_timeout(std::time::Duration::from_secs(20)).expect("nobody waits for ever");
        assert!(matches!(done, Err(Error::Stopped(_))), "{done:?}");
    }
    assert_eq!(fatal.load(Ordering::SeqCst), 1);
}

#[test]
fn a_commit_time_without_room_above_it_does_not_follow_and_is_not_given() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [(one, _), (two, _)] = dirs.each_ref().map(|d| open(&real().0, d.path()).unwrap());
    for ts in [u64::MAX, u64::MAX - 1, u64::MAX / 2 + 1] {
        let mut bytes = Vec::new();
        let header = crate::record::Header {
            kind: Kind::Batch,
            epoch: Epoch(1),
            lsn: Lsn(1),
            ts: CommitTs(ts),
            session: 0,
            sequence: 0,
        };
        crate::record::encode(&mut bytes, Position::default().chain, &header, |_| ());
        let record = Record::decode(&bytes).unwrap();
        assert!(matches!(one.append_record(&record), Err(Error::Record(_))), "{ts}");
    }
    // A clock that is far off gives the latest time there is, and then none.
    let far = two.append(Kind::Batch, Epoch(1), CommitTs(u64::MAX), 0, 0, b"x").unwrap();
    assert_eq!(far.ts, CommitTs(u64::MAX / 2));
    assert!(matches!(put(&two, b"y"), Err(Error::Record(_))));
    assert_eq!(
        one.append_record(
            &Record::decode(&two.reader(Lsn(1)).unwrap().next(Lsn(1), 1).unwrap().unwrap().bytes).unwrap()
        )
        .unwrap(),
        far
    );
}

#[test]
fn slots_keep_the_log_until_they_lag_too_far() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    let slot = log.slot("replica 2", Lsn(0));
    fill(&log, 100);
    log.sync_to(Lsn(100)).unwrap();
    assert_eq!(log.release(Lsn(100)).unwrap(), 0);
    slot.advance(Lsn(90));
    slot.advance(Lsn(10));
    assert!(log.release(Lsn(100)).unwrap() > 0);
    assert!(log.oldest() <= Lsn(91) && log.oldest() > Lsn(1), "{}", log.oldest());
    assert_eq!(log.slots(), [SlotInfo { name: "replica 2".into(), at: Lsn(90), lost: false }]);
    assert!(matches!(log.reader(Lsn(1)), Err(Error::LogGone { .. })));
    fill(&log, 1000);
    log.sync_to(Lsn(1100)).unwrap();
    log.release(Lsn(1100)).unwrap();
    assert!(slot.lost() && log.oldest() > Lsn(91));
    assert!(log.disk_usage().1 <= 2);
    drop(slot);
    assert!(log.slots().is_empty());
    let base = log.position_at(log.oldest()).unwrap().unwrap();
    drop(log);
    let (log, r) = Log::open(&real().0, dir.path(), &Options::tiny(), Lsn(1100), base).unwrap();
    assert_eq!((r.end.lsn, log.oldest()), (Lsn(1100), base.lsn));
    drop(log);
    let err = open(&real().0, dir.path()).unwrap_err();
    assert!(matches!(err, Error::Directory { .. }), "{err}");
    let other = Position { chain: crate::lsn::Chain([9; 16]), ..base };
    let err = Log::open(&real().0, dir.path(), &Options::tiny(), Lsn(1100), other).unwrap_err();
    assert!(err.to_string().contains("different histories"), "{err}");
}

#[test]
fn a_missing_segment_and_a_log_that_ends_too_early_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    fill(&log, 200);
    log.close().unwrap();
    drop(log);
    let open_known = |known| Log::open(&real().0, dir.path(), &Options::tiny(), Lsn(known), Position::default());
    assert!(matches!(open_known(201), Err(Error::Corruption { lsn: Some(Lsn(201)), .. })));
    std::fs::rename(dir.path().join("log/0000000000000002.log"), dir.path().join("kept")).unwrap();
    let err = open_known(0).unwrap_err().to_string();
    assert!(err.contains("0000000000000002.log is missing"), "{err}");
    std::fs::rename(dir.path().join("kept"), dir.path().join("log/0000000000000002.log")).unwrap();
    assert_eq!(open_known(200).unwrap().1.end.lsn, Lsn(200));
}

#[test]
fn threads_share_syncs_and_every_acknowledged_record_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut env, _) = real();
    let counting = Arc::new(reading::CountingFs::default());
    env.fs = counting.clone();
    let options = Options { segment_bytes: 1 << 20, ..Options::tiny() };
    let (log, _) = Log::open(&env, dir.path(), &options, Lsn::ZERO, Position::default()).unwrap();
    let before = counting.syncs();
    std::thread::scope(|s| {
        for t in 0..8_u8 {
            let log = &log;
            s.spawn(move || {
                for n in 0..100_u8 {
                    let p = put(log, &[t, n]).unwrap();
                    log.sync_to(p.lsn).unwrap();
                    assert!(log.durable().get() >= p.lsn);
                }
            });
        }
    });
    let syncs = counting.syncs() - before;
    assert!(syncs < 800, "{syncs} syncs for 800 records");
    drop(log);
    let (log, _) = Log::open(&env, dir.path(), &options, Lsn(800), Position::default()).unwrap();
    let mut found = bodies(&log);
    found.sort_unstable();
    let expect: Vec<Vec<u8>> = (0..8).flat_map(|t| (0..100).map(move |n| vec![t, n])).collect();
    assert_eq!(found, expect);
}

#[test]
fn a_log_writer_and_waiting_threads_and_a_preparer_get_along() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(&real().0, dir.path()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let background = s.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                log.step().unwrap();
                log.prepare_step().unwrap();
                log.release(Lsn(log.durable().get().0.saturating_sub(500))).unwrap();
            }
        });
        let writers: Vec<_> = (0..4)
            .map(|t| {
                let log = &log;
                s.spawn(move || {
                    for n in 0..300 {
                        let p = put(log, &body(n)).unwrap();
                        match t % 2 {
                            0 => log.sync_to(p.lsn).unwrap(),
                            _ => assert!(log.durable().wait(p.lsn, std::time::Duration::from_secs(60)).unwrap()),
                        }
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|w| w.join().unwrap());
        done.store(true, Ordering::SeqCst);
        background.join().unwrap();
    });
    assert_eq!(log.durable().get(), Lsn(1200));
}
