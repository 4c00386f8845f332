//! A process that may open no more files: what waits, what is refused, that nothing is lost, and that everything goes on
//! by itself when files are closed or the limit is raised.

use mainstay_engine::batch::Batch;
use mainstay_engine::error::ErrorClass;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, OpClass};
use mainstay_engine::store::Durability;
use mainstay_engine::{Epoch, Error, Lsn};

use crate::full_disk::World;

/// With so many files more than are open a store gets some way further, and then refuses writes.
#[test]
fn a_store_that_may_open_no_more_files_refuses_writes_and_takes_them_again_when_it_may() {
    for spare in 0..6 {
        let what = format!("{spare} files to spare");
        let mut world = World::new(spare);
        world.fill_some(40);
        world.fs.set_open_files_max(world.fs.open_files() + spare);
        let mut waited = false;
        // With some to spare merges make room for as many tables as there are.
        for _ in 0..400 {
            world.maintain();
            if let Err(e) = world.write() {
                assert!(matches!(e, Error::TooManyFiles { .. }), "{what}: {e}");
                assert_eq!(e.class(), ErrorClass::NotExecuted, "{what}");
                let stats = world.store().stats().open_files;
                assert!(stats.writes_refused && stats.refusals > 0, "{what}: {stats:?}");
                assert!(stats.trouble().is_some_and(|t| t.contains("refused")), "{what}");
                waited = true;
            }
            world.check(&what);
        }
        assert!(waited || spare > 2, "{what}: nothing was refused");
        // Nothing of what was acknowledged is in danger meanwhile.
        world.fs.set_open_files_max(u64::MAX);
        world.write().unwrap_or_else(|e| panic!("{what}: it may open files again: {e}"));
        world.maintain();
        let stats = world.store().stats().open_files;
        assert_eq!(stats.trouble(), None, "{what}: {stats:?}");
        world.store().log().write_to(world.store().log().last().lsn).unwrap();
        world.reopen(&what);
        world.store().close().unwrap();
        world.store = None;
        world.fs.crash_losing_unsynced();
        world.reopen(&what);
    }
}

/// A node appends first and applies later: it must not take what it could not show.
#[test]
fn a_node_refuses_what_no_memtable_could_take_for_want_of_files() {
    let world = World::new(5);
    let store = world.store();
    let append = |n: u64| {
        let mut batch = Batch::new();
        batch.put(format!("key-{n}").as_bytes(), &[n as u8; 1000]).unwrap();
        let position = store.append(Epoch(0), &batch, &[])?;
        store.log().sync_to(position.lsn)?;
        store.set_committed(position.lsn);
        while store.apply_step()? == Progress::Worked {}
        Ok::<_, Error>(position.lsn)
    };
    world.maintain();
    world.fs.set_open_files_max(world.fs.open_files());
    let mut n = 0;
    let refused = loop {
        world.maintain();
        match append(n) {
            Ok(_) => n += 1,
            Err(e) => break e,
        }
        assert!(n < 200);
    };
    assert!(matches!(refused, Error::TooManyFiles { .. }), "{refused}");
    assert_eq!((store.applied().get(), store.log().last().lsn), (Lsn(n), Lsn(n)), "all that was taken is visible");
    if store.open_files().flush_waits {
        // As a replica, it does not even look at the records.
        assert!(matches!(store.append_replicated(b"records"), Err(Error::TooManyFiles { .. })));
    }
    world.fs.set_open_files_max(u64::MAX);
    world.maintain();
    append(n).unwrap();
    assert_eq!((store.applied().get(), store.open_files().trouble()), (Lsn(n + 1), None));
    assert_eq!(world.fatal.messages(), Vec::<String>::new());
}

/// A released segment that could not be opened waits for its use all the same.
#[test]
fn a_released_segment_that_cannot_be_opened_is_used_later() {
    let mut world = World::new(8);
    while world.store().log().stats().segments_recycled < 2 {
        world.write().unwrap();
        world.maintain();
    }
    let made = world.store().log().stats().segments_made;
    let mut refused = 0;
    for _ in 0..200 {
        world.write().unwrap();
        world.fs.fail_nth(OpClass::Open, 1, FaultKind::Refused);
        match world.store().log().prepare_step() {
            Ok(_) => {}
            Err(Error::TooManyFiles { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
        world.fs.clear_faults();
        world.maintain();
    }
    let stats = world.store().log().stats();
    assert!(refused > 4 && stats.segments_recycled > 4, "refused {refused} times, {stats:?}");
    assert_eq!(stats.segments_made, made, "{stats:?}");
    world.check("after all");
}

/// A sync that fails ends the store, however the operating system explains it \[I3\].
#[test]
fn a_failed_sync_is_final_although_files_are_refused_as_well() {
    let mut world = World::new(6);
    world.fill_some(10);
    world.fs.set_open_files_max(world.fs.open_files());
    world.fs.fail_next_sync();
    let mut batch = Batch::new();
    batch.put(b"k", b"v").unwrap();
    let write = || world.store().write(&batch, &[], Durability::Synced).unwrap_err();
    assert_eq!(write().class(), ErrorClass::Indeterminate);
    assert_eq!(world.fatal.messages().len(), 1);
    assert!(matches!(write(), Error::Stopped(_)));
}
