//! Ingest on a disk that fails, fills up, or lost a table: all or nothing, and what is damaged is named.

use std::path::Path;

use mainstay_engine::bulk::Place;
use mainstay_engine::error::ErrorClass;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, OpClass};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::store::Store;
use mainstay_engine::{Error, TimelineId};

use crate::ingest::{World, at_each_age, key, options};
use crate::world::DIR;

#[test]
fn a_disk_without_room_refuses_before_anything_is_in_the_store() {
    let (mut refused, mut done) = (0, 0);
    for spare in (0u64..160 << 10).step_by(3_001) {
        for place in [Place::Copy, Place::Link] {
            let mut world = World::new(spare);
            (0..60).for_each(|n| _ = world.put(&key(n), &[b'o'; 100]));
            let ready = world.tables(&"v".repeat(90), 30..400);
            world.fs.set_capacity(world.fs.allocated() + spare);
            let before = world.footprint();
            let what = format!("{spare} bytes to spare, {place:?}");
            match world.store().ingest(&ready, place) {
                Ok(_) => {
                    done += 1;
                    assert_eq!(world.state().len(), 400, "{what}");
                }
                Err(Error::DiskFull { .. }) => {
                    refused += 1;
                    assert_eq!(world.state(), before.1, "{what}");
                    let tables = |files: &[std::path::PathBuf]| files.iter().filter(|f| f.ends_with("table")).count();
                    assert_eq!(tables(&world.footprint().2), tables(&before.2), "{what}");
                    assert_eq!(world.store().log().last().lsn, before.0, "{what}");
                }
                Err(e) => panic!("{what}: {e}"),
            }
            assert_eq!(world.fatal.messages(), Vec::<String>::new(), "{what}");
            world.fs.set_capacity(u64::MAX);
            if world.state().len() < 400 {
                world.store().ingest(&ready, place).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            at_each_age(&mut world, &what, |world| assert_eq!(world.state().len(), 400));
        }
    }
    assert!(refused > 10 && done > 10, "refused {refused}, done {done}");
}

/// A failed sync is final, whatever was synced and whatever the disk says \[I3\].
#[test]
fn a_failed_sync_of_an_ingest_or_a_new_timeline_ends_the_store() {
    let mut syncs = Vec::new();
    for class in [OpClass::SyncData, OpClass::SyncDir] {
        for kind in [FaultKind::Eio, FaultKind::NoSpace] {
            for nth in 1.. {
                let world = World::new(nth);
                (0..20).for_each(|n| _ = world.put(&key(n), b"old"));
                world.settle();
                let ready = world.tables("new", 10..40);
                world.fs.fail_nth(class, nth, kind);
                let done = world.store().ingest(&ready, Place::Copy).map(|_| ());
                let done = done.and_then(|()| world.store().set_timeline(TimelineId(77)));
                if done.is_ok() {
                    syncs.push(nth - 1);
                    break;
                }
                let what = format!("{class:?} {nth}, {kind:?}: {done:?}");
                assert_eq!(world.fatal.messages().len(), 1, "{what}");
            }
        }
    }
    assert!(syncs.iter().all(|n| *n >= 3), "{syncs:?}");
}

/// Power loss, a failing call and a full disk at every call of an ingest and of what follows it: afterwards there is
/// all of it or nothing, all if it was acknowledged, and what was acknowledged before is there.
#[test]
fn an_ingest_that_is_cut_short_anywhere_is_there_whole_or_not_at_all() {
    let prepare = |seed| {
        let world = World::new(seed);
        (0..40).for_each(|n| _ = world.put(&key(n), b"old"));
        world.settle();
        (20..30).for_each(|n| _ = world.put(&key(n), b"in a memtable"));
        let ready = world.tables("new", 10..120);
        (world, ready)
    };
    for place in [Place::Link, Place::Copy] {
        for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter, FaultKind::Eio, FaultKind::NoSpace] {
            let (world, ready) = prepare(0);
            let first = world.fs.io_count();
            world.store().ingest(&ready, place).unwrap();
            let ingest = world.fs.io_count() - first;
            world.settle();
            let total = world.fs.io_count() - first;
            assert!(ingest > 20 && total > ingest + 10, "{ingest} calls, {total} with the flush");
            for k in 1..=total {
                let what = format!("{place:?}, {kind:?} at call {k} of {total}");
                let (mut world, ready) = prepare(k);
                let before = world.state();
                world.fs.fail_at_io(world.fs.io_count() + k, kind);
                let done = world.store().ingest(&ready, place).is_ok() && !world.fs.power_is_off();
                if done {
                    // What comes after may fail as well.
                    let _ = world.store().tree().flush_all();
                    while matches!(world.store().maintain_step(), Ok(Progress::Worked)) {}
                }
                world.store = None;
                world.fs.clear_faults();
                let _ = world.fatal.take();
                match k % 3 {
                    0 => world.fs.crash(),
                    1 => world.fs.crash_losing_unsynced(),
                    _ => world.fs.kill(),
                }
                world.reopen();
                let state = world.state();
                let new = state.values().filter(|(_, v)| v == b"new").count();
                assert!(new == 110 || (new == 0 && !done), "{what}: {new} keys, acknowledged: {done}");
                let old = before.iter().filter(|(k, _)| new == 0 || **k < key(10));
                assert!(old.into_iter().all(|(k, v)| state.get(k) == Some(v)), "{what}: what was there before");
                let named = world.store().tree().pinned_tables().tables.len();
                let there = world.fs.list(&Path::new(DIR).join("tables")).unwrap().len();
                let arriving = if new > 0 { ready.len() } else { 0 };
                assert!(there <= named + arriving, "{what}: {there} files, {named} named");
                if new == 0 {
                    world.store().ingest(&ready, place).unwrap_or_else(|e| panic!("{what}: {e}"));
                }
                world.settle();
                world.fs.crash_losing_unsynced();
                world.reopen();
                assert_eq!(world.state().len(), 120, "{what}");
                assert_eq!(world.state().values().filter(|(_, v)| v == b"new").count(), 110, "{what}");
            }
        }
    }
}

/// What the log names and the disk lost is damage by name, never less than was acknowledged.
#[test]
fn a_table_that_is_lost_between_record_and_flush_is_named_at_open() {
    let mut world = World::new(11);
    let ready = world.tables("v", 0..10);
    world.ingest(&ready).unwrap();
    let name = ready[0].file_name().unwrap();
    let file = Path::new(DIR).join("tables").join(name);
    world.store = None;
    let bytes = world.fs.read_all(&file).unwrap();
    world.fs.remove_file(&file).unwrap();
    let e = Store::open_embedded(world.env.clone(), Path::new(DIR), &options()).unwrap_err().to_string();
    assert!(e.contains(name.to_str().unwrap()) && e.contains("missing"), "{e}");
    // Another table under its name.
    let other = world.tables("v", 0..11);
    world.fs.hard_link(&other[0], &file).unwrap();
    let e = Store::open_embedded(world.env.clone(), Path::new(DIR), &options()).unwrap_err().to_string();
    assert!(e.contains(name.to_str().unwrap()), "{e}");
    world.fs.remove_file(&file).unwrap();
    world.fs.open(&file, OpenMode::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    world.reopen();
    assert_eq!(world.state().len(), 10);
}

/// Whether a node may run on the store that stands here.
fn opens_as_a_node(world: &mut World) -> bool {
    world.store = None;
    let opened = Store::open(world.env.clone(), Path::new(DIR), &options());
    match opened {
        Ok(_) => true,
        Err(Error::Directory { what, .. }) if what.contains("ingested") => false,
        Err(e) => panic!("{e}"),
    }
}

/// Leaves less room in the log's segment from step to step, until a small record needs the next one, which nobody makes
/// ahead.
fn fill_segment(world: &World, step: usize) {
    (0..9).for_each(|n| _ = world.put(&key(n), &[b'o'; 1150]));
    world.put(&key(9), &vec![b'o'; 50 * step]);
}

/// What `IDENTITY` says of a record that did not come is taken back: a node may run here as before.
#[test]
fn an_ingest_whose_record_the_log_did_not_take_leaves_no_mark() {
    let mut met = 0;
    for step in 0..24 {
        for nth in 1.. {
            let mut world = World::new(nth);
            fill_segment(&world, step);
            let ready = world.tables("new", 10..40);
            let before = (world.store().log().last().lsn, world.state());
            world.fs.fail_nth(OpClass::Name, nth, FaultKind::Refused);
            let done = world.store().ingest(&ready, Place::Link);
            world.fs.clear_faults();
            let what = format!("step {step}, {nth}: {done:?}");
            match done {
                Ok(_) => {
                    assert!(!opens_as_a_node(&mut world), "{what}");
                    if nth > 10 {
                        break;
                    }
                }
                Err(e @ Error::TooManyFiles { .. }) => {
                    met += u32::from(e.to_string().contains(".log"));
                    assert_eq!(e.class(), ErrorClass::NotExecuted, "{what}");
                    assert_eq!((world.store().log().last().lsn, world.state()), before, "{what}");
                    assert!(opens_as_a_node(&mut world), "{what}");
                    world.reopen();
                    world.ingest(&ready).unwrap();
                    assert!(!opens_as_a_node(&mut world), "{what}");
                }
                Err(e) => panic!("{what}: {e}"),
            }
            assert_eq!(world.fatal.messages(), Vec::<String>::new(), "{what}");
        }
    }
    assert!(met > 0, "no ingest needed the next segment");
}

/// One that an earlier ingest left stays, whatever becomes of a later one.
#[test]
fn a_mark_of_an_earlier_ingest_stays_when_a_later_one_fails() {
    let mut met = 0;
    for (step, nth) in (0..24).flat_map(|step| (1..10).map(move |nth| (step, nth))) {
        let mut world = World::new(nth);
        world.ingest(&world.tables("v", 0..10)).unwrap();
        world.store().tree().flush_all().unwrap();
        fill_segment(&world, step);
        let ready = world.tables("new", 10..40);
        world.fs.fail_nth(OpClass::Name, nth, FaultKind::Refused);
        let done = world.ingest(&ready);
        met += u32::from(done.is_err_and(|e| e.to_string().contains(".log")));
        world.fs.clear_faults();
        assert!(!opens_as_a_node(&mut world), "step {step}, {nth}");
    }
    assert!(met > 0, "no ingest needed the next segment");
}
