//! One trace that goes through log segments and uses them again, flushes, compacts, cuts and checkpoints, run again
//! and again: the k-th I/O fails, or the power goes at it, for every k.

use std::path::Path;

use mainstay_engine::batch::Keyspace;
use mainstay_engine::bulk::Place;
use mainstay_engine::error::ErrorClass;
use mainstay_engine::fs::sim::{FaultKind, OpClass};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, Error, Options, TimelineId};

use crate::world::{Act, DIR, SPACES, World};

fn trace(seed: u64) -> Vec<Act> {
    let rng = SeededRng::new(seed);
    let byte = || rng.next_u64() as u8;
    let word = || rng.next_u64() as u16;
    let space = |i: usize| if i.is_multiple_of(6) { SPACES[i / 6 % SPACES.len()] } else { Keyspace::USER };
    (0..170)
        .map(|i| match (i % 25, rng.below(10)) {
            (24, _) => Act::Maintain,
            (23, _) => Act::Freeze,
            (12, _) if i > 60 => Act::Checkpoint,
            (18, _) => Act::Cut((i % 3) as u8),
            (3, _) => Act::Write(Durability::Synced, vec![(byte(), word())], None),
            (7, _) => Act::Write(Durability::Written, vec![(byte(), word())], None),
            (10, _) => Act::Ingest(vec![(byte(), word()), (byte(), word())], Place::Link),
            (21, _) => Act::Ingest(vec![(byte(), word())], Place::Copy),
            (15, _) => Act::Write(Durability::Buffered, vec![(byte(), word())], None),
            (11, _) => Act::Submit(Durability::Synced, vec![(byte(), word())], None),
            (20, _) => Act::Submit(Durability::Buffered, vec![(byte(), word())], None),
            (_, 0) => Act::Sync,
            (_, 1) => Act::Commit,
            (_, 2) => Act::Apply,
            (_, 3) => Act::Delete(space(i), byte()),
            (_, 4) if i % 4 == 0 => Act::DeleteRange(space(i), byte(), byte()),
            _ => Act::Put(space(i), (0..1 + rng.below(6)).map(|_| (byte(), word())).collect()),
        })
        .collect()
}

/// Runs the trace until its first error.
fn run(world: &mut World, acts: &[Act]) -> bool {
    for act in acts {
        if world.act(act).is_err() {
            return false;
        }
    }
    true
}

/// What follows the failed call.
#[derive(Clone, Copy, Debug)]
enum Then {
    PowerLoss,
    /// The process starts again on what the page cache shows, works, and then the power fails with
    /// nothing kept that was not synced.
    LifeThenPowerLoss,
}

/// Small segments, so that the trace comes to use some again, with old records in them; a small manifest, so that it is
/// written anew.
fn options() -> Options {
    Options { segment_bytes: 12 << 10, manifest_bytes: 1 << 10, ..Options::tiny() }
}

/// Number and format version of the manifest in force.
fn manifest(world: &World) -> (u64, u32) {
    let dir = Path::new(DIR).join("manifest");
    let name = String::from_utf8(world.fs.read_all(&dir.join("CURRENT")).unwrap()).unwrap();
    let bytes = world.fs.read_all(&dir.join(name.trim_end())).unwrap();
    let number = u64::from_str_radix(name.split('.').next().unwrap(), 16).unwrap();
    (number, u32::from_le_bytes(*bytes[8..].first_chunk().unwrap()))
}

/// Runs the trace without a fault. How often a manifest took another's place because it had to speak of ingested tables,
/// and because the other had grown.
fn run_calmly(world: &mut World, acts: &[Act]) -> [u32; 2] {
    let (mut switched, mut before) = ([0; 2], manifest(world));
    for act in acts {
        world.act(act).unwrap_or_else(|e| panic!("the trace itself fails at {act:?}: {e}"));
        let now = manifest(world);
        // Which of the two it was is plain only where it was one.
        if now.0 == before.0 + 1 {
            switched[usize::from(now.1 <= before.1)] += 1;
        }
        before = now;
    }
    switched
}

fn every_io(kind: FaultKind, then: Then) {
    let seed = 11;
    let acts = trace(seed);
    let mut calm = World::with_options(seed, options());
    let first = calm.fs.io_count();
    let switched = run_calmly(&mut calm, &acts);
    let total = calm.fs.io_count() - first;
    assert!(switched.iter().all(|n| *n > 0), "manifests switched by version and by size: {switched:?}");
    assert!(total > 300, "the trace does too little: {total} calls");
    let stats = calm.store().tree().stats();
    assert!(stats.flushes > 2 && stats.compactions > 0, "{stats:?}");
    let log = calm.store().log().stats();
    assert!(log.segments_recycled >= 2, "{log:?}");
    let has = |part: &str| calm.fs.files().iter().any(|p| p.display().to_string().contains(part));
    assert!(has("/checkpoint-") && has("/diverged/"), "{:?}", calm.fs.files());
    for k in 1..=total {
        let mut world = World::with_options(seed, options());
        world.fs.fail_at_io(world.fs.io_count() + k, kind);
        let ended = run(&mut world, &acts);
        let what = format!("seed {seed}, {kind:?}, {then:?} at I/O {k} of {total}, trace ended: {ended}");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if matches!(then, Then::LifeThenPowerLoss) {
                world.store = None;
                world.fs.clear_faults();
                world.fs.kill();
                let _ = world.fatal.take();
                world.reopen();
                assert!(run(&mut world, &[Act::Maintain]));
                world.store = None;
                world.fs.crash_losing_unsynced();
                world.reopen();
            }
            world.recover_from(&what);
            // And it goes on working.
            assert!(run(&mut world, &[Act::Put(Keyspace::USER, vec![(1, 1)]), Act::Sync, Act::Commit, Act::Apply]));
            world.check_visible();
        }));
        if let Err(e) = outcome {
            println!("{what}");
            std::panic::resume_unwind(e);
        }
    }
}

#[test]
fn power_loss_before_any_io_recovers() {
    every_io(FaultKind::CrashBefore, Then::PowerLoss);
}

#[test]
fn power_loss_after_any_io_recovers() {
    every_io(FaultKind::CrashAfter, Then::PowerLoss);
}

#[test]
fn an_error_of_any_io_loses_nothing_durable() {
    every_io(FaultKind::Eio, Then::PowerLoss);
}

#[test]
fn an_error_of_any_io_and_a_later_power_loss_lose_nothing_durable() {
    every_io(FaultKind::Eio, Then::LifeThenPowerLoss);
}

#[test]
fn a_full_disk_at_any_io_loses_nothing_durable() {
    every_io(FaultKind::NoSpace, Then::PowerLoss);
}

/// The disk has no room for one call, and has room again: the store that met it goes on, and nothing is lost.
#[test]
fn after_a_full_disk_at_any_io_the_same_store_goes_on() {
    let (seed, kind) = (11, FaultKind::NoSpace);
    let acts = trace(seed);
    let mut calm = World::new(seed);
    let first = calm.fs.io_count();
    assert!(run(&mut calm, &acts));
    let total = calm.fs.io_count() - first;
    let (mut met, mut ended) = (0, 0);
    for k in 1..=total {
        let mut world = World::new(seed);
        world.fs.fail_at_io(world.fs.io_count() + k, kind);
        let what = format!("seed {seed}, no room at I/O {k} of {total}");
        let mut stopped = false;
        for act in &acts {
            match world.act(act) {
                Ok(()) => continue,
                Err(Error::DiskFull { .. }) => met += 1,
                Err(Error::Stopped(_) | Error::Indeterminate { .. }) => {}
                Err(e) => panic!("{what}: {e}"),
            }
            if !world.fatal.messages().is_empty() {
                // A sync that failed is final, for whatever reason.
                (stopped, ended) = (true, ended + 1);
                break;
            }
            // No sticky error: the same call succeeds.
            world.act(act).unwrap_or_else(|e| panic!("{what}: {act:?} fails again: {e}"));
        }
        if !stopped {
            assert_eq!(world.fatal.messages(), Vec::<String>::new(), "{what}");
            for act in [Act::Sync, Act::Commit, Act::Apply, Act::Maintain] {
                world.act(&act).unwrap();
            }
            world.check_visible();
            assert_eq!(world.store().view().lsn(), world.store().log().last().lsn, "{what}");
        }
        world.recover_from(&what);
    }
    assert!(met > 50 && ended > 10, "met {met}, ended {ended}");
}

/// One file too many, and then there are fewer: whatever it was for, the store that met it goes on, and nothing is lost.
#[test]
fn after_too_many_open_files_at_any_open_the_same_store_goes_on() {
    let seed = 11;
    let acts = trace(seed);
    let mut met = Vec::new();
    for class in [OpClass::Open, OpClass::Name] {
        let mut calm = World::with_options(seed, options());
        let before = calm.fs.class_count(class);
        assert!(run(&mut calm, &acts));
        let total = calm.fs.class_count(class) - before;
        met.push(0);
        for nth in 1..=total {
            let mut world = World::with_options(seed, options());
            world.fs.fail_nth(class, nth, FaultKind::Refused);
            let what = format!("seed {seed}, {class:?} {nth} of {total}");
            for act in &acts {
                match world.act(act) {
                    Ok(()) => continue,
                    Err(e @ Error::TooManyFiles { .. }) => {
                        assert_eq!(e.class(), ErrorClass::NotExecuted);
                        *met.last_mut().unwrap() += 1;
                    }
                    // A checkpoint that is looked at is there.
                    Err(Error::Io { action: "read", .. }) if matches!(act, Act::Checkpoint) => continue,
                    Err(e) => panic!("{what}: {act:?}: {e}"),
                }
                world.act(act).unwrap_or_else(|e| panic!("{what}: {act:?} fails again: {e}"));
            }
            for act in [Act::Sync, Act::Commit, Act::Apply, Act::Maintain] {
                world.act(&act).unwrap();
            }
            assert_eq!(world.fatal.messages(), Vec::<String>::new(), "{what}");
            assert!(world.store().open_files().trouble().is_none(), "{what}");
            world.check_visible();
            world.recover_from(&what);
        }
    }
    assert!(met.iter().all(|n| *n > 10), "met {met:?}");
}

#[test]
fn a_kill_at_any_io_and_a_later_power_loss_lose_nothing_durable() {
    every_io(FaultKind::CrashAfter, Then::LifeThenPowerLoss);
}

/// Power loss at every I/O of making a store: afterwards there is one, or making it again works.
#[test]
fn power_loss_while_a_store_is_made_leaves_one_or_none() {
    let seed = 5;
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let options = Options::tiny();
    for k in 1.. {
        let world = World::without_store(seed);
        world.fs.fail_at_io(world.fs.io_count() + k, FaultKind::CrashAfter);
        let made = Store::create(world.env.clone(), Path::new(DIR), &options, identity);
        if made.is_ok() && !world.fs.power_is_off() {
            return;
        }
        drop(made);
        world.fs.clear_faults();
        world.fs.crash();
        let there = Identity::read(&world.env, Path::new(DIR)).unwrap();
        let again = match there {
            Some(_) => Store::open(world.env.clone(), Path::new(DIR), &options),
            None => Store::create(world.env.clone(), Path::new(DIR), &options, identity),
        };
        assert!(again.is_ok(), "after power loss at I/O {k}: {again:?}");
    }
}
