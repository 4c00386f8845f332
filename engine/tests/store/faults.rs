//! Single faults aimed at the seams between log, tree and disk, each with what must hold after it.

use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Condition, Expect, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::restore::Builder;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Error, Lsn, Options, TimelineId};

use crate::world::{Act, DIR, World};

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };

fn put(world: &mut World, n: u64) {
    for i in 0..n {
        world.act(&Act::Put(Keyspace::USER, vec![(i as u8, 190), (i as u8 + 7, 180)])).unwrap();
    }
}

/// Appends, syncs, commits, applies and freezes enough for a flush and a released segment.
fn filled(seed: u64) -> World {
    let mut world = World::new(seed);
    put(&mut world, 80);
    for act in [Act::Sync, Act::Commit, Act::Apply, Act::Freeze] {
        world.act(&act).unwrap();
    }
    world
}

/// The process dies between the write of a manifest edit and its sync. The next life reads the edit
/// from the page cache and releases log by it; then the power fails.
#[test]
fn an_edit_that_only_the_page_cache_holds_does_not_release_the_log() {
    for (nth, kind) in (1..=8).flat_map(|n| [(n, FaultKind::CrashBefore), (n, FaultKind::Eio)]) {
        let mut world = filled(3);
        world.fs.fail_nth(OpClass::SyncData, nth, kind);
        while let Ok(Progress::Worked) = world.store().maintain_step() {}
        world.store = None;
        world.fs.clear_faults();
        world.fs.kill();
        let _ = world.fatal.take();
        world.reopen();
        world.act(&Act::Maintain).unwrap();
        world.store = None;
        world.fs.crash_losing_unsynced();
        world.reopen();
    }
}

/// No room to sync the directory behind the name of a cut's intent: what was not cut, and is
/// acknowledged afterwards, must not be cut by the next recovery.
#[test]
fn a_cut_that_failed_does_not_happen_at_the_next_start() {
    for nth in 1..8 {
        let mut world = World::new(nth);
        put(&mut world, 10);
        world.act(&Act::Sync).unwrap();
        world.fs.fail_nth(OpClass::SyncDir, nth, FaultKind::NoSpace);
        let cut = world.store().truncate_above(Lsn(6));
        world.fs.clear_faults();
        match cut {
            Ok(_) => return,
            Err(Error::DiskFull { .. }) => {
                // "Nothing was changed": the records stay and the store goes on.
                put(&mut world, 5);
                world.act(&Act::Sync).unwrap();
                world.act(&Act::Commit).unwrap();
                world.store = None;
                world.fs.kill();
                world.reopen();
            }
            Err(Error::Stopped(_)) => assert!(!world.fatal.take().is_empty()),
            Err(e) => println!("nth {nth}: {e}"),
        }
    }
}

/// A sync of a cut fails and the process ends. The next one may see zeros that are not on the disk;
/// what it cut must not come back after a power loss.
#[test]
fn what_was_cut_stays_cut_although_a_sync_failed() {
    for (seed, nth) in (0..20).flat_map(|seed| (1..6).map(move |nth| (seed, nth))) {
        let mut world = World::new(seed);
        put(&mut world, 10);
        world.act(&Act::Sync).unwrap();
        world.fs.fail_nth(OpClass::SyncData, nth, FaultKind::Eio);
        let cut = world.act(&Act::Cut(4));
        world.store = None;
        world.fs.clear_faults();
        world.fs.kill();
        let _ = world.fatal.take();
        world.reopen();
        world.store = None;
        world.fs.crash_losing_unsynced();
        world.reopen();
        assert!(cut.is_err() || world.records.len() == 6);
    }
}

/// The directory of a new store is as durable as what is acknowledged in it.
#[test]
fn a_store_in_a_directory_of_its_own_making_survives_power_loss() {
    let fs = SimFs::new(1);
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 1);
    let dir = Path::new("/srv/mainstay/data");
    fs.prepare_dir(Path::new("/srv")).unwrap();
    let store = Store::create(env.clone(), dir, &Options::tiny(), IDENTITY).unwrap();
    let mut batch = Batch::new();
    batch.put(b"k", b"v").unwrap();
    store.write(&batch, &[], Durability::Synced).unwrap();
    drop(store);
    fs.crash_losing_unsynced();
    let store = Store::open(env, dir, &Options::tiny()).unwrap();
    assert_eq!(store.log().last().lsn, Lsn(1));
}

/// A segment that cannot be removed must not leave a hole when younger ones go.
#[test]
fn a_segment_that_cannot_be_removed_leaves_no_hole() {
    for kind in [FaultKind::NoSpace, FaultKind::Eio] {
        let mut world = World::new(4);
        let slot = world.store().log().slot("reader", Lsn(0));
        put(&mut world, 100);
        for act in [Act::Sync, Act::Commit, Act::Apply, Act::Freeze] {
            world.act(&act).unwrap();
        }
        while world.store().tree().flush_step().unwrap() == Progress::Worked {}
        drop(slot);
        let flushed = world.store().tree().flushed().lsn;
        world.fs.fail_nth(OpClass::Name, 1, kind);
        world.store().log().release(flushed).unwrap_err();
        world.store().log().release(flushed).unwrap();
        world.store = None;
        world.fs.crash();
        world.reopen();
    }
}

/// A full disk that the release of log would relieve is relieved.
#[test]
fn log_is_released_although_a_flush_finds_no_room() {
    let mut world = World::new(6);
    let slot = world.store().log().slot("reader", Lsn(0));
    put(&mut world, 60);
    for act in [Act::Sync, Act::Commit, Act::Apply, Act::Freeze, Act::Maintain] {
        world.act(&act).unwrap();
    }
    put(&mut world, 4);
    for act in [Act::Sync, Act::Commit, Act::Apply, Act::Freeze] {
        world.act(&act).unwrap();
    }
    world.fs.set_capacity(world.fs.allocated());
    assert!(matches!(world.act(&Act::Maintain), Err(Error::DiskFull { .. })));
    // The reader caught up: its log may go, and that is the room needed.
    slot.advance(Lsn(60));
    for _ in 0..3 {
        let _ = world.act(&Act::Maintain);
    }
    world.act(&Act::Maintain).unwrap();
}

/// An embedded write is visible on return, also when memtables waited for a flush before it.
#[test]
fn an_acknowledged_write_is_visible_after_a_flush_that_found_no_room() {
    let world = World::new(8);
    let store = world.store();
    let write = |n: u64| {
        let mut batch = Batch::new();
        batch.put(b"k", &vec![n as u8; 3000]).unwrap();
        store.write(&batch, &[], Durability::Synced)
    };
    for n in 0..40 {
        if n == 5 {
            world.fs.fail_nth(OpClass::Name, 1, FaultKind::NoSpace);
        }
        let before = store.log().last().lsn;
        match write(n) {
            Ok(w) => assert_eq!(store.view().lsn(), w.position.lsn, "write {n} is not visible"),
            Err(Error::DiskFull { .. }) => {
                assert_eq!(store.log().last().lsn, before, "write {n}: not executed, it says")
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Nothing is changed by an open that refuses: the tables it does not know stay.
#[test]
fn an_open_that_finds_the_log_short_removes_nothing() {
    let mut world = filled(9);
    while world.store().tree().has_frozen() {
        world.store().maintain_step().unwrap();
    }
    assert!(world.store().log().oldest() > Lsn(1), "nothing was released");
    world.store = None;
    world.fs.kill();
    // The last edit of the manifest, a flush, rots.
    let manifest = world.fs.files().into_iter().find(|p| p.extension().is_some_and(|e| e == "manifest")).unwrap();
    let len = world.fs.read_all(&manifest).unwrap().len() as u64;
    world.fs.flip_bit(&manifest, len - 1, 0).unwrap();
    let before: Vec<_> = world.fs.files().into_iter().map(|p| (world.fs.read_all(&p).unwrap(), p)).collect();
    let refused = Store::open(world.env.clone(), Path::new(DIR), &Options::tiny()).unwrap_err().to_string();
    assert!(refused.contains("the log starts after"), "{refused}");
    let after: Vec<_> = world.fs.files().into_iter().map(|p| (world.fs.read_all(&p).unwrap(), p)).collect();
    assert!(before == after, "{:?} became {:?}", names(&before), names(&after));
}

fn names(files: &[(Vec<u8>, std::path::PathBuf)]) -> Vec<String> {
    files.iter().map(|(b, p)| format!("{} {}", p.display(), b.len())).collect()
}

/// What an attempt that was cut short left is no evidence about the next.
#[test]
fn a_new_store_does_not_believe_the_evidence_of_an_earlier_one() {
    let mut world = filled(10);
    world.store().close().unwrap();
    world.store = None;
    world.fs.kill();
    world.fs.remove_file(&Path::new(DIR).join("IDENTITY")).unwrap();
    world.fs.open(&Path::new(DIR).join("CREATING"), OpenMode::CreateNew).unwrap();
    Store::create(world.env.clone(), Path::new(DIR), &Options::tiny(), IDENTITY).unwrap();
}

/// Nothing is built over a store, and nothing of it is touched.
#[test]
fn a_store_is_not_built_where_there_is_one() {
    let mut world = filled(15);
    let checkpoint = world.store().tree().pinned_tables();
    world.store().close().unwrap();
    world.store = None;
    world.fs.kill();
    let before: Vec<_> = world.fs.files().into_iter().map(|p| (world.fs.read_all(&p).unwrap(), p)).collect();
    for manifest in [None, Some(&checkpoint.manifest[..])] {
        let made = Builder::create(world.env.clone(), Path::new(DIR), &Options::tiny(), manifest);
        assert!(matches!(made, Err(Error::Directory { .. })), "{made:?}");
    }
    let after: Vec<_> = world.fs.files().into_iter().map(|p| (world.fs.read_all(&p).unwrap(), p)).collect();
    assert!(before == after, "{:?} became {:?}", names(&before), names(&after));
}

/// A cut that finds no room for the tail it must keep gives back what it took.
#[test]
fn a_cut_without_room_leaves_no_half_tail() {
    let mut world = World::new(11);
    put(&mut world, 10);
    world.act(&Act::Sync).unwrap();
    world.act(&Act::Maintain).unwrap();
    let before = world.fs.allocated();
    world.fs.set_capacity(before + 1024);
    assert!(matches!(world.store().log().truncate_above(Lsn(2), Lsn(0)), Err(Error::DiskFull { .. })));
    assert_eq!(world.fs.allocated(), before);
}

/// Every epoch is listed with its first record, whatever is applied meanwhile.
#[test]
fn the_epochs_are_whole_while_the_applier_runs() {
    let fs = SimFs::new(12);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 12);
    let store = Arc::new(Store::create(env, Path::new(DIR), &Options::default(), IDENTITY).unwrap());
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for e in 1..4000 {
                let p = store.append_epoch_start(Epoch(e)).unwrap();
                let mut batch = Batch::new();
                batch.put(b"k", b"v").unwrap();
                store.append(Epoch(e), &batch, &[]).unwrap();
                store.log().sync_to(p.lsn.next()).unwrap();
                store.set_committed(p.lsn.next());
                store.apply_committed().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            for (i, (epoch, lsn)) in store.epochs().unwrap().into_iter().enumerate() {
                let n = i as u64 + 1;
                assert_eq!((epoch, lsn), (Epoch(n), Lsn(2 * n - 1)));
            }
        }
    });
}

/// A timeline that could not be written down is not the store's.
#[test]
fn a_timeline_that_was_not_written_is_not_shown() {
    let world = World::new(13);
    world.fs.fail_nth(OpClass::Write, 1, FaultKind::NoSpace);
    world.store().set_timeline(TimelineId(99)).unwrap_err();
    assert_eq!(world.store().identity(), Identity::read(&world.env, Path::new(DIR)).unwrap().unwrap());
}

/// Writers, readers, checkpoints and all workers at once: what is acknowledged is visible, and no
/// reader ever sees half of a batch.
#[test]
fn writers_workers_and_checkpoints_get_along() {
    let fs = SimFs::new(14);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), 14);
    let store = Arc::new(Store::create(env.clone(), Path::new(DIR), &Options::tiny(), IDENTITY).unwrap());
    let workers = store.start_workers().unwrap();
    let pair = |view: &mainstay_engine::tree::View, t: u8| {
        let get = |side: &[u8]| view.get(Keyspace::USER, &[side, &[t]].concat()).unwrap().map(|f| f.envelope);
        let (a, b) = (get(b"a"), get(b"z"));
        assert_eq!(a, b, "half of a batch is visible");
        a
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let writers: Vec<_> = (0..4u8)
            .map(|t| {
                let (store, pair) = (&store, &pair);
                s.spawn(move || {
                    for n in 0..400u32 {
                        let mut batch = Batch::new();
                        let mut value = n.to_le_bytes().to_vec();
                        value.resize(150, t);
                        batch.put(&[b'a', t], &value).unwrap();
                        batch.put(&[b'z', t], &value).unwrap();
                        let w = store.write(&batch, &[], Durability::Synced).unwrap();
                        let view = store.view();
                        assert!(view.lsn() >= w.position.lsn, "acknowledged and not visible");
                        let seen = pair(&view, t).unwrap();
                        assert!(seen.ends_with(&value));
                    }
                })
            })
            .collect();
        s.spawn(|| {
            let mut n = 0;
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                n += 1;
                let to = Path::new(DIR).join(format!("checkpoint-{n}"));
                let made = store.checkpoint(&to).unwrap();
                let tree = mainstay_engine::tree::Tree::open(env.clone(), &to, &Options::tiny()).unwrap();
                assert_eq!(tree.applied().lsn, made.position.lsn);
                (0..4).for_each(|t| drop(pair(&tree.view(), t)));
                drop(tree);
                fs.remove_dir_all(&to).unwrap();
            }
        });
        s.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                (0..4).for_each(|t| drop(pair(&store.view(), t)));
                store.epochs().unwrap();
                let _slot = store.log().slot("tail", store.applied().get());
                let mut batch = Batch::new();
                batch.put(b"c", b"v").unwrap();
                let absent = Condition { keyspace: Keyspace::USER, key: b"never".to_vec(), expect: Expect::Exists };
                assert!(matches!(store.append(Epoch(0), &batch, &[absent]), Err(Error::ConditionFailed(_))));
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, std::sync::atomic::Ordering::Release);
        results.into_iter().for_each(|r| r.unwrap());
    });
    drop(workers);
    store.close().unwrap();
    assert!(fatal.messages().is_empty(), "{:?}", fatal.messages());
    drop(store);
    fs.crash();
    let store = Store::open(env, Path::new(DIR), &Options::tiny()).unwrap();
    assert_eq!(store.log().last().lsn, Lsn(1600));
    assert_eq!(store.view().lsn(), Lsn(1600));
}

/// An embedded store's own log commits: what a synced write acknowledged is visible after a crash, and
/// is not cut.
#[test]
fn an_embedded_store_shows_all_that_it_acknowledged_after_a_crash() {
    let (fs, dir) = (SimFs::new(5), Path::new(DIR));
    fs.prepare_dir(dir).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 5);
    let store = Store::create(env.clone(), dir, &Options::tiny(), IDENTITY).unwrap();
    let mut batch = Batch::new();
    batch.put(b"k", b"v").unwrap();
    store.write(&batch, &[], Durability::Synced).unwrap();
    drop(store);
    fs.crash_losing_unsynced();
    let store = Store::open_embedded(env, dir, &Options::tiny()).unwrap();
    assert!(store.view().get(Keyspace::USER, b"k").unwrap().is_some());
    assert!(matches!(store.truncate_above(Lsn(0)), Err(Error::BelowCommit { .. })));
}

/// A commit LSN above the end of the log commits nothing that comes to stand there later.
#[test]
fn what_is_not_in_the_log_cannot_be_committed() {
    let mut world = World::new(3);
    assert!(world.act(&Act::Put(Keyspace::USER, vec![(1, 1)])).is_ok());
    world.store().set_committed(Lsn(5));
    assert_eq!(world.store().committed().get(), Lsn(1));
}

/// A flipped bit in a table: who needs the block is told file and place, everything else goes on.
#[test]
fn a_damaged_table_stops_the_reads_that_need_it_and_nothing_else() {
    let fs = SimFs::new(11);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), 11);
    let store = Store::create(env, Path::new(DIR), &Options::tiny(), IDENTITY).unwrap();
    let write = |prefixes: &str| {
        for n in 0..40 {
            let mut batch = Batch::new();
            for prefix in prefixes.chars() {
                batch.put(format!("{prefix}{n:03}").as_bytes(), b"a value of some bytes").unwrap();
            }
            store.write(&batch, &[], Durability::Synced).unwrap();
        }
        store.tree().flush_all().unwrap();
    };
    let get = |key: &str| store.get(Keyspace::USER, key.as_bytes()).map(|found| found.is_some());
    write("m");
    let tables: Vec<_> = fs.files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "table")).collect();
    let [table] = &tables[..] else { panic!("one table expected: {tables:?}") };
    fs.flip_bit(table, 40, 3).unwrap();
    // Tables that go across the damaged one, and some beside it.
    for prefixes in ["az", "by", "az", "p", "q", "az", "by", "p"] {
        write(prefixes);
        while store.maintain_step().unwrap() == Progress::Worked {}
    }
    let stats = store.tree().stats();
    assert!(stats.levels[0].tables <= 4 && stats.damaged_tables == 1, "{stats:?}");
    assert_eq!(fatal.messages(), Vec::<String>::new());
    let damage = store.damage();
    assert!(damage.len() == 1 && damage[0].contains(table.file_name().unwrap().to_str().unwrap()), "{damage:?}");
    assert!(
        matches!(get("m000"), Err(Error::Corruption { path, offset: 0, .. }) if path == *table),
        "the read of a damaged block must say so"
    );
    for key in ["m039", "a000", "z039", "b020", "y039", "p000", "q039"] {
        assert!(get(key).unwrap(), "{key}");
    }
}

/// A failed sync is the end, also for writes that never asked for one: it was to make their table safe.
#[test]
fn a_failed_sync_ends_the_store_whatever_word_its_writes_had() {
    let words = [Durability::Synced, Durability::Written, Durability::Buffered];
    for (seed, word) in (0..30).map(|seed| (seed, words[seed as usize % 3])) {
        let mut world = World::new(seed);
        let write = |world: &mut World, word, k| world.act(&Act::Write(word, vec![(k, 150)], None));
        (0..10).for_each(|k| write(&mut world, Durability::Synced, k).unwrap());
        (10..20).for_each(|k| write(&mut world, word, k).unwrap());
        world.fs.fail_next_sync();
        let ended = match word {
            Durability::Synced => write(&mut world, word, 20),
            Durability::Written | Durability::Buffered => world.store().tree().flush_all(),
        };
        assert!(matches!(ended, Err(Error::Stopped(_))), "seed {seed}, {word:?}: {ended:?}");
        assert!(!world.fatal.take().is_empty(), "the process is not told to end");
        for again in words {
            let refused = write(&mut world, again, 21);
            assert!(matches!(refused, Err(Error::Stopped(_))), "seed {seed}, {again:?} goes on: {refused:?}");
        }
        // The cache may show what the disk has lost: it counts for nothing, now or after the power fails.
        for power in [false, true] {
            world.store = None;
            if power {
                world.fs.crash_losing_unsynced()
            } else {
                world.fs.kill()
            }
            let _ = world.fatal.take();
            world.reopen();
        }
    }
}

/// Damage in front of the manifest's last edit is never taken for a torn end: the open names file and place, and
/// changes nothing.
#[test]
fn damage_in_the_middle_of_the_manifest_is_refused_by_place() {
    let mut world = filled(16);
    for k in 0..6 {
        put(&mut world, 6);
        for act in [Act::Sync, Act::Commit, Act::Apply, Act::Freeze, Act::Maintain] {
            world.act(&act).unwrap_or_else(|e| panic!("round {k}: {e}"));
        }
    }
    world.store().close().unwrap();
    world.store = None;
    world.fs.kill();
    let manifest = world.fs.files().into_iter().find(|p| p.extension().is_some_and(|e| e == "manifest")).unwrap();
    let bytes = world.fs.read_all(&manifest).unwrap();
    let edits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"MSed")).collect();
    assert!(edits.len() > 3, "{edits:?}");
    let contents = |world: &World| -> Vec<_> {
        world.fs.files().into_iter().map(|p| (world.fs.read_all(&p).unwrap(), p)).collect()
    };
    let before = contents(&world);
    for at in (0..*edits.last().unwrap() as u64).step_by(3) {
        let bit = (at % 8) as u8;
        world.fs.flip_bit(&manifest, at, bit).unwrap();
        let opened = Store::open(world.env.clone(), Path::new(DIR), &Options::tiny());
        let begins = edits.iter().rev().find(|e| **e as u64 <= at).map_or(0, |e| *e as u64);
        let named = |path: &Path, offset: u64| path == manifest && (offset == begins || offset < at);
        assert!(
            matches!(&opened, Err(Error::Corruption { path, offset, .. }) if named(path, *offset)),
            "a flip at {at}: {opened:?}"
        );
        world.fs.flip_bit(&manifest, at, bit).unwrap();
        assert!(before == contents(&world), "the refusal of a flip at {at} changed something");
    }
    world.reopen();
}

/// Where the process outlives a log that failed: a weaker write behind it shows nothing that is not durable.
#[test]
fn a_weaker_write_after_the_log_failed_shows_nothing_that_is_not_durable() {
    for (seed, word) in [(1, Durability::Written), (2, Durability::Buffered)] {
        for submitted in [false, true] {
            let mut world = World::new(seed);
            world.act(&Act::Write(Durability::Synced, vec![(1, 10)], None)).unwrap();
            world.act(&Act::Put(Keyspace::USER, vec![(2, 10)])).unwrap();
            world.fs.fail_next_sync();
            assert!(matches!(world.store().log().sync_to(Lsn(2)), Err(Error::Stopped(_))));
            let mut batch = Batch::new();
            batch.put(b"k", b"v").unwrap();
            let refused = if submitted {
                world.store().submit(&batch, &[], word).map(drop)
            } else {
                world.store().write(&batch, &[], word).map(drop)
            };
            assert!(matches!(refused, Err(Error::Stopped(_))), "{refused:?}");
            assert_eq!((world.store().committed().get(), world.store().view().lsn()), (Lsn(1), Lsn(1)), "{word:?}");
        }
    }
}
