//! The log on the simulated disk: what was synced survives, damage is told from a torn tail.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::clock::SimClock;
use crate::fault::{Bug, plant};
use crate::fs::OpenMode;
use crate::fs::sim::{FaultKind, OpClass, SimFs};
use crate::lsn::{CommitTs, Epoch};
use crate::record::Kind;
use crate::rng::{Rng, SeededRng};

const DIR: &str = "/data";

struct Disk {
    fs: Arc<SimFs>,
    env: Env,
    fatal: crate::env::SimFatal,
    options: Options,
}

impl Disk {
    fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(5)), seed);
        Self { fs, env, fatal, options: Options::tiny() }
    }

    fn open_known(&self, known: Lsn) -> Result<(Arc<Log>, Recovered)> {
        let (log, found) = Log::open(self.env.clone(), Path::new(DIR), &self.options, known, Position::default())?;
        Ok((Arc::new(log), found))
    }

    fn open(&self) -> Result<(Arc<Log>, Recovered)> {
        self.open_known(Lsn::ZERO)
    }

    fn first_segment(&self) -> PathBuf {
        segment::path(&Log::dir_of(Path::new(DIR)), 1)
    }
}

fn body(i: u64) -> Vec<u8> {
    format!("body of record {i} ").repeat(1 + (i % 9) as usize).into_bytes()
}

fn add(log: &Log, n: u64) -> Position {
    let mut last = log.last();
    for _ in 0..n {
        let i = last.lsn.0 + 1;
        last = log.append(Kind::Batch, Epoch(1), CommitTs(i * 10), 0, 0, &body(i)).unwrap();
        assert_eq!(last.lsn, Lsn(i));
    }
    last
}

fn check(log: &Arc<Log>, from: u64, to: u64) {
    for max_bytes in if to - from < 60 { [1, 500, 1 << 20] } else { [4000, 9000, 1 << 20] } {
        let mut reader = log.reader(Lsn(from)).unwrap();
        let mut next = from;
        while let Some(chunk) = reader.next(Lsn(to), max_bytes).unwrap() {
            assert_eq!(chunk.first, Lsn(next));
            for r in chunk.records() {
                let r = r.unwrap();
                assert_eq!((r.header.lsn, r.body), (Lsn(next), body(next).as_slice()));
                next += 1;
            }
            assert_eq!(chunk.last, Lsn(next - 1));
        }
        assert_eq!(next, to + 1, "read from {from} by {max_bytes}");
    }
}

#[test]
fn records_are_read_from_memory_and_from_files_at_every_lsn() {
    let disk = Disk::new(1);
    let (log, found) = disk.open().unwrap();
    assert_eq!(found.records, 0);
    add(&log, 400);
    check(&log, 390, 400);
    log.sync_to(Lsn(400)).unwrap();
    assert!(log.state().segments.len() > 2 && log.state().tail.len() < 400);
    for from in (1..=400).step_by(7) {
        check(&log, from, 400);
    }
    assert_eq!(log.position_at(Lsn(400)).unwrap(), Some(log.last()));
    assert_eq!(log.position_at(Lsn(401)).unwrap(), None);
    let at = log.position_at(Lsn(17)).unwrap().unwrap();
    drop(log);
    let (log, found) = disk.open().unwrap();
    assert_eq!((found.records, found.torn_bytes), (400, 0));
    assert_eq!(log.position_at(Lsn(17)).unwrap(), Some(at));
    check(&log, 1, 400);
    add(&log, 50);
    check(&log, 1, 450);
}

/// Whatever the power loss keeps of unsynced sectors and names: a prefix, with all that was synced.
fn power_losses(seed: u64) {
    let disk = Disk::new(seed);
    let rng = SeededRng::new(seed);
    let (mut durable, mut appended) = (0, 0);
    for round in 0..12 {
        let (log, found) = disk.open().unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        let last = found.last.lsn.0;
        assert!((durable..=appended).contains(&last), "seed {seed}: {last} of {durable}..={appended}");
        if last > 0 {
            check(&log, log.oldest().0, last);
        }
        (durable, appended) = (last, last);
        for _ in 0..rng.below(12) {
            match rng.below(6) {
                0 => {
                    log.step().unwrap();
                    durable = log.durable().get().0;
                }
                1 => drop(log.prepare_step().unwrap()),
                2 => log.mark().unwrap(),
                _ => appended = add(&log, rng.below(20)).lsn.0.max(appended),
            }
        }
        drop(log);
        if rng.below(3) == 0 { disk.fs.kill() } else { disk.fs.crash() }
    }
}

#[test]
fn after_power_loss_the_log_is_a_prefix_with_all_that_was_synced() {
    (0..150).for_each(power_losses);
}

#[test]
fn acknowledging_before_the_sync_is_noticed() {
    let _bug = plant(Bug::AckBeforeSync);
    let noticed = (0..150).any(|seed| {
        let disk = Disk::new(seed);
        let (log, _) = disk.open().unwrap();
        add(&log, 20);
        disk.fs.fail_nth(OpClass::SyncData, 1, FaultKind::CrashBefore);
        let _ = log.step();
        let durable = log.durable().get();
        drop(log);
        disk.fs.clear_faults();
        disk.fs.crash();
        disk.open().is_ok_and(|(_, found)| found.last.lsn < durable)
    });
    assert!(noticed, "[I3]");
}

/// E2: each byte of a log whose records are known to be durable, flipped once.
#[test]
fn a_flipped_bit_below_the_durable_lsn_is_corruption_with_file_and_offset() {
    let disk = Disk::new(3);
    let (log, _) = disk.open().unwrap();
    add(&log, 10);
    log.close().unwrap();
    let end = log.state().end;
    drop(log);
    let file = disk.first_segment();
    for offset in segment::FIRST_FRAME..end {
        let bit = (offset % 8) as u8;
        disk.fs.flip_bit(&file, offset, bit).unwrap();
        let before = disk.fs.read_all(&file).unwrap();
        match disk.open() {
            Err(Error::Corruption { path, offset: at, .. }) => {
                assert_eq!(path, file);
                assert!(at <= offset && offset < at + 4096, "{at} named for {offset}");
            }
            // The mark itself, the only evidence for the last record, or padding.
            Ok((log, found)) => assert!(found.last.lsn >= Lsn(10) && log.last().lsn == Lsn(10), "offset {offset}"),
            Err(e) => panic!("offset {offset}: {e}"),
        }
        if disk.fs.read_all(&file).unwrap() == before {
            disk.fs.flip_bit(&file, offset, bit).unwrap();
        } else {
            // A damaged mark was cut; put it back.
            let (log, _) = disk.open().unwrap();
            log.close().unwrap();
        }
    }
}

#[test]
fn a_flipped_bit_above_the_durable_lsn_is_cut_and_reported() {
    for target in 6..=10u64 {
        let disk = Disk::new(4);
        let (log, _) = disk.open().unwrap();
        add(&log, 5);
        log.step().unwrap();
        add(&log, 5);
        // Synced, but no frame says so: the evidence ends at 5.
        log.step().unwrap();
        let mut at = log.state().segments[0].seek(Lsn(1));
        let bytes = disk.fs.read_all(&disk.first_segment()).unwrap();
        while let frame::Found::Frame(f) = frame::decode(&bytes[at as usize..], log.state().segments[0].header.salt) {
            if f.record.is_some_and(|r| r.header.lsn == Lsn(target)) {
                break;
            }
            at += f.len as u64;
        }
        drop(log);
        disk.fs.flip_bit(&disk.first_segment(), at + 40, 3).unwrap();
        assert!(matches!(disk.open_known(Lsn(target)), Err(Error::Corruption { .. })), "the caller knows better");
        let (log, found) = disk.open().unwrap();
        assert_eq!((found.last.lsn, found.torn_at.clone()), (Lsn(target - 1), Some((disk.first_segment(), at))));
        add(&log, 3);
        log.step().unwrap();
        drop(log);
        let (log, found) = disk.open().unwrap();
        assert_eq!(found.torn_bytes, 0);
        check(&log, 1, target + 2);
    }
}

/// E3: a frame of another segment, whole and with a valid checksum, at the end of this one.
#[test]
fn a_stale_frame_of_a_reused_block_is_not_a_record() {
    let disk = Disk::new(5);
    let (log, _) = disk.open().unwrap();
    add(&log, 3);
    log.close().unwrap();
    let end = log.state().end;
    let prev = log.last();
    drop(log);
    let mut stale = vec![0; frame::FRAME_BYTES];
    let header = crate::record::Header {
        kind: Kind::Batch,
        epoch: Epoch(1),
        lsn: Lsn(4),
        ts: CommitTs(9999),
        session: 0,
        sequence: 0,
    };
    crate::record::encode(&mut stale, prev.chain, &header, |b| b.extend_from_slice(b"old"));
    frame::seal(&mut stale, 0, 12345, Lsn(900));
    let file = disk.env.fs.open(&disk.first_segment(), OpenMode::Write).unwrap();
    file.write_all_at(&stale, end).unwrap();
    let (log, found) = disk.open().unwrap();
    assert_eq!(log.last().lsn, Lsn(3));
    assert!(found.torn_bytes > 0);
}

/// E5: the newest segment without a header is one that was only prepared.
#[test]
fn a_half_made_newest_segment_is_dropped() {
    let disk = Disk::new(6);
    let (log, _) = disk.open().unwrap();
    add(&log, 60);
    while log.prepare_step().unwrap() == crate::exec::Progress::Idle && log.state().prepared.is_none() {
        add(&log, 1);
    }
    log.close().unwrap();
    let last = log.last().lsn.0;
    assert!(log.state().prepared.is_some());
    drop(log);
    let (log, _) = disk.open().unwrap();
    check(&log, 1, last);
    assert_eq!(disk.env.fs.list(&Log::dir_of(Path::new(DIR))).unwrap().len(), log.state().segments.len());
}

#[test]
fn a_missing_segment_in_the_middle_is_corruption() {
    let disk = Disk::new(7);
    let (log, _) = disk.open().unwrap();
    add(&log, 300);
    log.close().unwrap();
    assert!(log.state().segments.len() >= 3);
    drop(log);
    disk.env.fs.remove_file(&segment::path(&Log::dir_of(Path::new(DIR)), 2)).unwrap();
    let Err(Error::Corruption { lsn, .. }) = disk.open() else { panic!("opened with a hole") };
    assert!(lsn.is_some());
}

/// E9: the first failed sync ends the log, for ever.
#[test]
fn a_failed_sync_is_final() {
    let disk = Disk::new(8);
    let (log, _) = disk.open().unwrap();
    add(&log, 3);
    disk.fs.fail_next_sync();
    assert!(matches!(log.sync_to(Lsn(3)), Err(Error::Stopped(_))));
    assert_eq!(disk.fatal.messages().len(), 1);
    assert_eq!(log.durable().get(), Lsn(0));
    assert!(matches!(log.sync_to(Lsn(3)), Err(Error::Stopped(_))));
    assert!(matches!(log.append(Kind::Batch, Epoch(1), CommitTs(1), 0, 0, b""), Err(Error::Stopped(_))));
    assert_eq!(disk.fatal.messages().len(), 1);
}

#[test]
fn a_full_disk_refuses_the_append_and_goes_on_when_there_is_room() {
    let disk = Disk::new(9);
    let (log, _) = disk.open().unwrap();
    disk.fs.set_capacity(disk.fs.allocated() + 2000);
    let mut n = 0;
    let refused = loop {
        match log.append(Kind::Batch, Epoch(1), CommitTs(1), 0, 0, &body(n + 1)) {
            Ok(p) => n = p.lsn.0,
            Err(e) => break e,
        }
    };
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    log.sync_to(Lsn(n)).unwrap();
    assert!(matches!(log.append(Kind::Batch, Epoch(1), CommitTs(1), 0, 0, &body(n + 1)), Err(Error::DiskFull { .. })));
    disk.fs.set_capacity(u64::MAX);
    add(&log, 100);
    log.close().unwrap();
    drop(log);
    let (log, _) = disk.open().unwrap();
    check(&log, 1, n + 100);
    assert!(disk.fatal.messages().is_empty());
}

#[test]
fn a_cut_removes_the_tail_keeps_a_copy_and_another_history_goes_on() {
    let disk = Disk::new(10);
    let (log, _) = disk.open().unwrap();
    add(&log, 200);
    assert!(matches!(log.truncate_above(Lsn(99), Lsn(100)), Err(Error::BelowCommit { .. })));
    let cut = log.truncate_above(Lsn(100), Lsn(100)).unwrap();
    assert_eq!((cut.from, cut.to), (Lsn(101), Lsn(200)));
    let kept = disk.fs.read_all(&cut.kept.unwrap()).unwrap();
    let chunk = Chunk { first: Lsn(101), last: Lsn(200), bytes: kept };
    assert_eq!(chunk.records().map(|r| r.unwrap().header.lsn.0).collect::<Vec<_>>(), (101..=200).collect::<Vec<_>>());
    assert_eq!((log.last().lsn, log.durable().get(), log.appended().get()), (Lsn(100), Lsn(100), Lsn(100)));
    check(&log, 1, 100);
    add(&log, 30);
    check(&log, 1, 130);
    log.close().unwrap();
    drop(log);
    let (log, _) = disk.open().unwrap();
    check(&log, 1, 130);
}

#[test]
fn a_cut_interrupted_at_any_io_is_finished_or_not_begun() {
    for k in 1.. {
        let disk = Disk::new(11);
        let (log, _) = disk.open().unwrap();
        add(&log, 200);
        log.sync_to(Lsn(200)).unwrap();
        disk.fs.fail_at_io(disk.fs.io_count() + k, FaultKind::CrashAfter);
        let cut = log.truncate_above(Lsn(60), Lsn(60));
        let done = !disk.fs.power_is_off();
        drop(log);
        disk.fs.clear_faults();
        disk.fs.crash();
        let (log, found) = disk.open().unwrap_or_else(|e| panic!("power loss at I/O {k} of the cut: {e}"));
        assert!(found.last.lsn == Lsn(60) || (cut.is_err() && found.last.lsn == Lsn(200)), "I/O {k}: {found:?}");
        check(&log, 1, found.last.lsn.0);
        if done {
            return;
        }
    }
}

#[test]
fn slots_hold_the_log_up_to_their_share() {
    let disk = Disk::new(12);
    let (log, _) = disk.open().unwrap();
    let slot = log.slot("replica-2", Lsn(1));
    add(&log, 150);
    log.sync_to(Lsn(150)).unwrap();
    log.release(Lsn(150)).unwrap();
    assert_eq!(log.oldest(), Lsn(1), "the slot holds all of it");
    slot.advance(Lsn(100));
    log.release(Lsn(150)).unwrap();
    let oldest = log.oldest();
    assert!(oldest > Lsn(1) && oldest <= Lsn(100));
    assert!(matches!(log.reader(Lsn(1)), Err(Error::LogGone { .. })));
    add(&log, 1000);
    log.sync_to(Lsn(1150)).unwrap();
    log.release(Lsn(1150)).unwrap();
    assert!(slot.is_lost() && log.oldest() > Lsn(100), "a lost slot holds nothing");
    drop(slot);
    assert!(log.slots().is_empty());
    let last = log.last();
    log.close().unwrap();
    drop(log);
    let known = Position { lsn: last.lsn, ..last };
    let (log, _) = Log::open(disk.env.clone(), Path::new(DIR), &disk.options, last.lsn, known).unwrap();
    assert_eq!(log.last(), last);
}

#[test]
fn a_log_that_starts_too_late_for_the_tree_is_refused() {
    let disk = Disk::new(13);
    let (log, _) = disk.open().unwrap();
    add(&log, 300);
    log.close().unwrap();
    log.release(Lsn(300)).unwrap();
    assert!(log.oldest() > Lsn(1));
    drop(log);
    assert!(matches!(disk.open(), Err(Error::Corruption { .. })));
}

#[test]
fn threads_share_syncs_and_all_that_is_acknowledged_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1 << 20, ..Options::default() };
    let (log, _) = Log::open(Env::real(), dir.path(), &options, Lsn::ZERO, Position::default()).unwrap();
    let log = Arc::new(log);
    let stop = AtomicBool::new(false);
    let groups = std::thread::scope(|s| {
        let watcher = s.spawn(|| {
            let (mut groups, mut seen) = (0u64, Lsn::ZERO);
            while !stop.load(Ordering::Relaxed) {
                if log.durable().wait(seen.next(), std::time::Duration::from_millis(5)) == Ok(true) {
                    seen = log.durable().get();
                    groups += 1;
                }
            }
            groups
        });
        let writers: Vec<_> = (0..8)
            .map(|_| {
                s.spawn(|| {
                    for _ in 0..200 {
                        let p = log.append(Kind::Batch, Epoch(1), CommitTs(1), 0, 0, &[7; 100]).unwrap();
                        log.sync_to(p.lsn).unwrap();
                        assert!(log.durable().get() >= p.lsn);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|w| w.join().unwrap());
        stop.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(groups < 1600, "{groups} groups for 1600 records");
    drop(log);
    let (_, found) = Log::open(Env::real(), dir.path(), &options, Lsn(1600), Position::default()).unwrap();
    assert_eq!(found.records, 1600);
}

#[test]
fn arbitrary_bytes_in_a_segment_never_panic() {
    for seed in 0..300 {
        let disk = Disk::new(seed);
        let rng = SeededRng::new(seed);
        let (log, _) = disk.open().unwrap();
        add(&log, 8);
        log.step().unwrap();
        drop(log);
        let file = disk.env.fs.open(&disk.first_segment(), OpenMode::Write).unwrap();
        for _ in 0..1 + rng.below(6) {
            let junk: Vec<u8> = (0..rng.below(64)).map(|_| rng.next_u64() as u8).collect();
            file.write_all_at(&junk, rng.below(8000)).unwrap();
        }
        let _ = disk.open();
    }
}
