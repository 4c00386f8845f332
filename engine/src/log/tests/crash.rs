//! The power fails at any call: what recovery finds is a prefix of what was appended, and holds all
//! that was called durable.

use super::*;
use crate::clock::SimClock;
use crate::env::SimFatal;
use crate::fault::{Bug, plant};
use crate::fs::sim::{FaultKind, OpClass, SimFs};

const DIR: &str = "/data";

struct World {
    fs: Arc<SimFs>,
    env: Env,
    fatal: SimFatal,
    seed: u64,
}

fn world(seed: u64) -> World {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, fatal) = Env::sim(fs.clone(), SimClock::new(CommitTs(1)), seed);
    World { fs, env, fatal, seed }
}

impl World {
    fn open(&self, known: Lsn) -> Result<(Log, Recovered)> {
        self.open_at(known, Position::default())
    }

    fn open_at(&self, known: Lsn, base: Position) -> Result<(Log, Recovered)> {
        Log::open(&self.env, Path::new(DIR), &Options::tiny(), known, base)
    }
}

/// What a test knows of a log: the records appended to it, and how many were called durable.
#[derive(Default)]
struct Model {
    records: Vec<Vec<u8>>,
    durable: usize,
    /// Where the tables end: log up to here may be released.
    base: Position,
    /// The records when a cut was asked for that may or may not have happened, and how many stay.
    cutting: Option<usize>,
}

impl Model {
    /// Some calls at random, until one fails.
    fn run(&mut self, log: &Log, rng: &SeededRng, calls: u64) -> Result<()> {
        for _ in 0..calls {
            match rng.below(20) {
                0..10 => {
                    let b: Vec<u8> = (0..rng.below(600)).map(|_| rng.next_u64() as u8).collect();
                    put(log, &b)?;
                    self.records.push(b);
                }
                10..14 => {
                    log.step()?;
                    self.durable = self.records.len();
                }
                14 | 15 => {
                    log.prepare_step()?;
                }
                16 if rng.below(2) == 0 => log.mark(rng.below(2) == 0)?,
                16 if self.durable > 0 => {
                    // A flush of what is durable; the segments it covers may be used again.
                    let flushed = Lsn(self.base.lsn.0 + rng.below(self.durable as u64 - self.base.lsn.0 + 1));
                    if flushed >= log.oldest() {
                        self.base = log.position_at(flushed)?.unwrap_or(self.base);
                    }
                    log.release(self.base.lsn)?;
                }
                17 if rng.below(4) == 0 => {
                    let base = self.base.lsn.0;
                    let keep = (base + rng.below(self.records.len() as u64 - base + 1)) as usize;
                    // Not yet known to be cut, nor to be whole: the cut is either done or not.
                    self.cutting = Some(keep);
                    log.truncate_above(Lsn(keep as u64), Lsn::ZERO)?;
                    self.cutting = None;
                    self.records.truncate(keep);
                    self.durable = keep;
                }
                _ => {
                    let lsn = rng.below(self.records.len() as u64 + 1);
                    log.sync_to(Lsn(lsn))?;
                    self.durable = self.durable.max(lsn as usize);
                }
            }
            assert!(log.durable().get().0 as usize >= self.durable);
            self.durable = log.durable().get().0 as usize;
        }
        Ok(())
    }

    /// Takes what recovery found for the truth, after checking that it may be.
    fn check(&mut self, log: &Log, what: &str) {
        let found = bodies(log);
        let (n, first) = (log.last().lsn.0 as usize, log.start().lsn.0 as usize);
        assert!(first <= self.base.lsn.0 as usize && found.len() == n - first, "{what}: {first} {n}");
        assert!(n <= self.records.len(), "{what}: {n} records found, {} appended", self.records.len());
        assert!(found == self.records[first..n], "{what}: not a prefix");
        let cut_done = self.cutting.take() == Some(n);
        assert!(n >= self.durable || cut_done, "{what}: {n} records found, {} were durable", self.durable);
        self.records.truncate(n);
        self.durable = n;
    }
}

/// A history of lives, each ended by a crash at a random call; the log is checked after each.
fn lives(seed: u64) {
    let w = world(seed);
    let rng = SeededRng::new(seed ^ 0xabcd);
    let mut model = Model::default();
    for life in 0..6 {
        w.fs.fail_at_io(w.fs.io_count() + 1 + rng.below(120), FaultKind::CrashBefore);
        // The crash may strike recovery too.
        if let Ok((log, _)) = w.open_at(Lsn(model.durable as u64), model.base) {
            assert_eq!(log.last().lsn.0 as usize, model.records.len(), "seed {seed} life {life}");
            let _ = model.run(&log, &rng, 400);
            // What those who watch were told, even if the call that told them failed afterwards.
            model.durable = log.durable().get().0 as usize;
        }
        w.fs.clear_faults();
        match rng.below(4) {
            0 => w.fs.kill(),
            1 => w.fs.crash_losing_unsynced(),
            _ => w.fs.crash(),
        }
        let known = if model.cutting.is_some() { 0 } else { model.durable as u64 };
        let opened = w.open_at(Lsn(known), model.base);
        let (log, _) = opened.unwrap_or_else(|e| panic!("seed {seed} life {life}: {e}"));
        model.check(&log, &format!("seed {seed} after life {life}"));
        drop(log);
        w.fs.crash();
    }
}

#[test]
fn after_any_crash_the_log_is_a_prefix_with_all_that_was_durable() {
    // 1914: a crash among the removals of a cut keeps a higher segment and loses a lower one.
    (0..400).chain([1914]).for_each(lives);
}

#[test]
fn a_crash_at_every_call_of_a_cut_leaves_the_old_log_or_the_cut_one() {
    let mut outcomes = std::collections::BTreeSet::new();
    for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter] {
        for call in 1.. {
            let w = world(call);
            let (log, _) = w.open(Lsn::ZERO).unwrap();
            let all = fill(&log, 250);
            log.close().unwrap();
            w.fs.fail_at_io(w.fs.io_count() + call, kind);
            let cut = log.truncate_above(Lsn(70), Lsn(70));
            if cut.is_ok() {
                break;
            }
            w.fs.crash();
            let (log, r) = w.open(Lsn(70)).unwrap_or_else(|e| panic!("call {call} {kind:?}: {e}"));
            let n = bodies(&log).len();
            assert!(n == 70 || n == 250, "call {call} {kind:?}: {n} records");
            assert_eq!(bodies(&log), all[..n]);
            outcomes.insert((n, r.finished_cut));
            if n == 70 {
                let saved: Vec<_> = w.fs.files().into_iter().filter(|p| p.starts_with("/data/diverged")).collect();
                assert!(saved.iter().any(|p| p.extension().is_some_and(|e| e == "records")), "call {call}: {saved:?}");
            }
            put(&log, b"new").unwrap();
            log.close().unwrap();
            let (log, _) = w.open(Lsn(n as u64 + 1)).unwrap();
            assert_eq!(bodies(&log).len(), n + 1);
        }
    }
    assert!(outcomes.contains(&(250, false)) && outcomes.contains(&(70, true)), "{outcomes:?}");
}

#[test]
fn a_crash_at_every_call_of_opening_loses_nothing() {
    for call in 1.. {
        let w = world(call);
        let (log, _) = w.open(Lsn::ZERO).unwrap();
        let all = fill(&log, 100);
        log.sync_to(Lsn(60)).unwrap();
        let more = fill(&log, 20);
        w.fs.fail_nth(OpClass::SyncData, 1, FaultKind::CrashBefore);
        log.sync_to(Lsn(120)).unwrap_err();
        w.fs.crash();
        w.fs.fail_at_io(w.fs.io_count() + call, FaultKind::CrashAfter);
        let opened = w.open(Lsn(100)).is_ok() && !w.fs.power_is_off();
        w.fs.clear_faults();
        w.fs.crash();
        let (log, _) = w.open(Lsn(100)).unwrap_or_else(|e| panic!("call {call}: {e}"));
        let now = bodies(&log);
        assert!(now.len() >= 100 && now == [all, more].concat()[..now.len()], "call {call}");
        if opened {
            break;
        }
    }
}

#[test]
fn a_failed_sync_or_write_is_final_and_told_once() {
    for class in [OpClass::SyncData, OpClass::Write] {
        let w = world(1);
        let (log, _) = w.open(Lsn::ZERO).unwrap();
        put(&log, b"a").unwrap();
        log.sync_to(Lsn(1)).unwrap();
        put(&log, b"b").unwrap();
        w.fs.fail_nth(class, 1, FaultKind::Eio);
        assert!(matches!(log.sync_to(Lsn(2)), Err(Error::Stopped(_))));
        let stopped = [
            put(&log, b"c").map(|_| ()),
            log.sync_to(Lsn(2)),
            log.sync_to(Lsn(1)),
            log.step().map(|_| ()),
            log.prepare_step().map(|_| ()),
            log.mark(true),
            log.close(),
            log.release(Lsn(1)).map(|_| ()),
            log.truncate_above(Lsn(1), Lsn(1)).map(|_| ()),
        ];
        assert!(stopped.iter().all(|r| matches!(r, Err(Error::Stopped(_)))), "{stopped:?}");
        assert_eq!(log.durable().get(), Lsn(1));
        assert!(log.durable().wait(Lsn(2), std::time::Duration::from_secs(60)).is_err());
        assert_eq!(w.fatal.take().len(), 1);
    }
}

#[test]
fn what_only_the_cache_held_after_a_failed_sync_is_made_durable_by_opening() {
    for seed in 0..100 {
        let w = world(seed);
        let (log, _) = w.open(Lsn::ZERO).unwrap();
        let all = fill(&log, 30);
        log.sync_to(Lsn(20)).unwrap();
        fill(&log, 3);
        w.fs.fail_next_sync();
        let _ = log.sync_to(Lsn(33));
        w.fs.kill();
        let (log, r) = w.open(Lsn(20)).unwrap();
        assert_eq!(log.durable().get(), r.end.lsn);
        w.fs.crash();
        let (log, _) = w.open(r.end.lsn).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(bodies(&log)[..30], all);
    }
}

#[test]
fn a_full_disk_refuses_appends_and_the_log_goes_on_when_there_is_room() {
    for room in (0..40).map(|n| n * 512) {
        let w = world(room);
        let (log, _) = w.open(Lsn::ZERO).unwrap();
        put(&log, b"first").unwrap();
        log.sync_to(Lsn(1)).unwrap();
        w.fs.set_capacity(w.fs.allocated() + room);
        let mut n = 1;
        let refused = loop {
            match put(&log, &[1; 500]) {
                Ok(_) => n += 1,
                Err(e) => break e,
            }
        };
        assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
        assert!(matches!(put(&log, &[1; 500]), Err(Error::DiskFull { .. })));
        log.sync_to(Lsn(n)).unwrap();
        w.fs.set_capacity(u64::MAX);
        put(&log, &[1; 500]).unwrap();
        log.close().unwrap();
        assert!(w.fatal.take().is_empty());
        let (log, _) = w.open(Lsn(n + 1)).unwrap();
        assert_eq!(bodies(&log).len() as u64, n + 1);
    }
}

/// Whether the histories of some seeds notice a planted bug.
fn noticed(bug: Bug) -> bool {
    (0..300).any(|seed| {
        std::panic::catch_unwind(|| {
            let _planted = plant(bug);
            lives(seed);
        })
        .is_err()
    })
}

#[test]
fn planted_bugs_are_noticed() {
    for bug in [Bug::AckBeforeSync, Bug::SkipDirectorySync, Bug::SkipZeroAfterCut, Bug::KeepOldHeader] {
        assert!(noticed(bug), "{bug:?}");
    }
    let w = world(0);
    let (log, _) = w.open(Lsn::ZERO).unwrap();
    fill(&log, 9);
    let _planted = plant(Bug::CutBelowCommit);
    assert!(log.truncate_above(Lsn(1), Lsn(9)).is_ok(), "the rule stands elsewhere too: seed {}", w.seed);
}

/// Groups that are synced, one that is only written, and one that is synced behind it; what of that a power loss leaves.
fn written_and_synced_in_turn() -> bool {
    let w = world(3);
    let (log, _) = w.open(Lsn::ZERO).unwrap();
    for n in 1..=40_u64 {
        // Larger than a block, or the next group would cover it.
        let p = put(&log, &vec![n as u8; if n % 9 == 0 { 5_000 } else { 300 }]).unwrap();
        if n % 9 == 0 { log.write_to(p.lsn).unwrap() } else { log.sync_to(p.lsn).unwrap() }
    }
    w.fs.crash_losing_unsynced();
    w.open(Lsn(40)).is_ok_and(|(log, _)| log.last().lsn == Lsn(40))
}

#[test]
fn a_synced_group_makes_what_was_only_written_before_it_durable_as_well() {
    assert!(written_and_synced_in_turn());
    let _planted = plant(Bug::DirectPastUnsynced);
    assert!(!written_and_synced_in_turn(), "leaving out what stands in the page cache is not noticed");
}

#[test]
fn a_crash_at_every_call_of_writing_through_segments_keeps_what_was_durable() {
    for seed in 0..6 {
        for call in 1.. {
            let w = world(seed * 1000 + call);
            let (log, _) = w.open(Lsn::ZERO).unwrap();
            w.fs.fail_at_io(w.fs.io_count() + call, FaultKind::CrashBefore);
            let mut all = Vec::new();
            let ended = (1..=80_u64).try_for_each(|n| {
                all.push(vec![n as u8; 600]);
                put(&log, &all[all.len() - 1])?;
                if n.is_multiple_of(4) { log.step().map(|_| ()) } else { Ok(()) }
            });
            let durable = log.durable().get();
            w.fs.crash();
            w.fs.clear_faults();
            let (log, _) = w.open(durable).unwrap_or_else(|e| panic!("seed {seed} call {call}: {e}"));
            let now = bodies(&log);
            assert!(now == all[..now.len()], "seed {seed} call {call}");
            if ended.is_ok() {
                break;
            }
        }
    }
}

#[test]
fn a_crash_at_every_call_of_a_release_leaves_no_hole() {
    for seed in 0..20 {
        for call in 1.. {
            let w = world(seed * 1000 + call);
            let (log, _) = w.open(Lsn::ZERO).unwrap();
            fill(&log, 400);
            log.sync_to(Lsn(400)).unwrap();
            let base = log.last();
            w.fs.fail_at_io(w.fs.io_count() + call, FaultKind::CrashAfter);
            let released = log.release(Lsn(400));
            w.fs.crash();
            w.fs.clear_faults();
            let opened = Log::open(&w.env, Path::new(DIR), &Options::tiny(), Lsn(400), base);
            let (log, _) = opened.unwrap_or_else(|e| panic!("seed {seed} call {call}: {e}"));
            assert_eq!(log.last(), base);
            if released.is_ok() {
                break;
            }
        }
    }
}
