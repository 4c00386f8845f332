//! The crash model held to its word: what must survive always does, what may be lost sometimes is.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fs::{read_exact_at, read_file, write_atomic};

const SEEDS: u64 = 200;

fn p(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn fresh(seed: u64) -> Arc<SimFs> {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new("/d")).unwrap();
    fs
}

fn create(fs: &SimFs, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let f = fs.open(&p(name), OpenMode::CreateNew).unwrap();
    f.write_all_at(bytes, 0).unwrap();
    f
}

/// A file whose bytes and name are durable.
fn durable(fs: &SimFs, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let f = create(fs, name, bytes);
    f.sync_data().unwrap();
    fs.sync_dir(Path::new("/d")).unwrap();
    f
}

/// The distinct outcomes of a scenario over all seeds.
fn outcomes<T: Ord>(scenario: impl Fn(&SimFs, u64) -> T) -> BTreeSet<T> {
    (0..SEEDS).map(|seed| scenario(&fresh(seed), seed)).collect()
}

#[test]
fn unsynced_sectors_survive_torn_and_out_of_order_and_synced_bytes_always() {
    let seen = outcomes(|fs, seed| {
        let f = durable(fs, "f", &[1; 2048]);
        f.write_all_at(&[2; 1024], 256).unwrap();
        f.write_all_at(&[3; 512], 1536).unwrap();
        fs.crash();
        let now = fs.read_all(&p("f")).unwrap();
        assert_eq!(now.len(), 2048, "seed {seed}");
        assert_eq!(now[..256], [1; 256], "seed {seed}");
        assert_eq!(now[1280..1536], [1; 256], "seed {seed}");
        for piece in [256..512, 512..1024, 1024..1280, 1536..2048] {
            assert!(now[piece.clone()].iter().all(|b| *b == now[piece.start]), "seed {seed}: a sector is atomic");
        }
        (now[256], now[512], now[1024], now[1536])
    });
    assert_eq!(seen.len(), 16, "every subset of the four pieces, not only {seen:?}");
}

#[test]
fn a_file_grows_with_without_or_with_junk_for_its_data() {
    let seen = outcomes(|fs, seed| {
        let f = durable(fs, "f", b"base");
        f.write_all_at(&[7; 1020], 4).unwrap();
        fs.crash();
        let now = fs.read_all(&p("f")).unwrap();
        assert_eq!(&now[..4], b"base", "seed {seed}");
        let tail = now.get(512..).unwrap_or_default();
        let what = match tail.first() {
            None => "short",
            Some(7) if tail.iter().all(|b| *b == 7) => "data",
            Some(0) if tail.iter().all(|b| *b == 0) => "zeros",
            Some(_) => "junk",
        };
        (now.len(), what)
    });
    let want = [(4, "short"), (512, "short"), (1024, "data"), (1024, "junk"), (1024, "zeros")];
    assert_eq!(seen, BTreeSet::from(want));
}

#[test]
fn a_gap_before_a_write_is_zeros_and_an_unsynced_cut_may_be_undone() {
    let lens = outcomes(|fs, seed| {
        let f = durable(fs, "f", &[1; 600]);
        f.set_len(100).unwrap();
        f.write_all_at(&[2; 10], 1000).unwrap();
        fs.crash();
        let now = fs.read_all(&p("f")).unwrap();
        assert_eq!(now[..100], [1; 100], "seed {seed}");
        if now.len() > 600 {
            let gap = &now[600..1000];
            assert!(gap.iter().all(|b| *b == 0), "seed {seed}");
        }
        (now.len(), now.get(100).copied())
    });
    let want = [(100, None), (600, Some(1)), (1010, Some(0)), (1010, Some(1))];
    assert_eq!(lens, BTreeSet::from(want));
}

#[test]
fn a_synced_file_without_a_synced_name_may_vanish_and_a_name_may_come_without_data() {
    let synced_data = outcomes(|fs, _| {
        create(fs, "f", b"data").sync_data().unwrap();
        fs.crash();
        fs.read_all(&p("f")).ok()
    });
    assert_eq!(synced_data, BTreeSet::from([None, Some(b"data".to_vec())]));
    let synced_name = outcomes(|fs, seed| {
        create(fs, "f", b"data");
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.crash();
        let now = fs.read_all(&p("f"));
        now.unwrap_or_else(|e| panic!("seed {seed}: {e}"))
    });
    assert!(synced_name.contains(&b"data"[..]) && synced_name.contains(&b""[..]) && synced_name.len() > 2);
    let both = outcomes(|fs, _| {
        durable(fs, "f", b"data");
        fs.crash();
        fs.read_all(&p("f")).ok()
    });
    assert_eq!(both, BTreeSet::from([Some(b"data".to_vec())]));
}

#[test]
fn a_directory_needs_its_own_name_synced_in_its_parent() {
    let seen = outcomes(|fs, _| {
        fs.create_dir_all(&p("sub")).unwrap();
        create(fs, "sub/f", b"x").sync_data().unwrap();
        fs.sync_dir(&p("sub")).unwrap();
        fs.crash();
        fs.exists(&p("sub/f")).unwrap()
    });
    assert_eq!(seen, BTreeSet::from([false, true]));
}

#[test]
fn removals_and_links_are_unsynced_too() {
    let seen = outcomes(|fs, _| {
        durable(fs, "a", b"a");
        fs.hard_link(&p("a"), &p("b")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.hard_link(&p("a"), &p("c")).unwrap();
        fs.remove_file(&p("b")).unwrap();
        fs.crash();
        ["a", "b", "c"].map(|n| fs.exists(&p(n)).unwrap())
    });
    assert_eq!(seen.len(), 4, "{seen:?}");
    assert!(seen.iter().all(|[a, _, _]| *a));
    let linked = outcomes(|fs, _| {
        durable(fs, "a", b"a");
        fs.hard_link(&p("a"), &p("b")).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        fs.open(&p("a"), OpenMode::Write).unwrap().write_all_at(b"x", 0).unwrap();
        fs.crash();
        assert_eq!(fs.read_all(&p("a")).unwrap(), fs.read_all(&p("b")).unwrap());
    });
    assert_eq!(linked.len(), 1);
}

#[test]
fn a_rename_shows_old_or_new_and_new_without_its_data_when_that_was_not_synced() {
    let replace = |sync_data: bool, sync_dir: bool| {
        outcomes(move |fs, seed| {
            durable(fs, "f", b"old");
            let tmp = create(fs, "tmp", b"new");
            if sync_data {
                tmp.sync_data().unwrap();
            }
            fs.rename(&p("tmp"), &p("f")).unwrap();
            if sync_dir {
                fs.sync_dir(Path::new("/d")).unwrap();
            }
            fs.crash();
            fs.read_all(&p("f")).unwrap_or_else(|e| panic!("seed {seed}: the name is gone: {e}"))
        })
    };
    let (old, new) = (b"old".to_vec(), b"new".to_vec());
    assert_eq!(replace(true, true), BTreeSet::from([new.clone()]));
    assert_eq!(replace(true, false), BTreeSet::from([new.clone(), old.clone()]));
    let careless = replace(false, true);
    assert!(careless.contains(&Vec::new()) && careless.contains(&new) && !careless.contains(&old));
    let atomic = outcomes(|fs, seed| {
        write_atomic(fs, Path::new("/d"), "f", b"old").unwrap();
        let before = fs.io_count();
        fs.fail_at_io(before + 1 + seed % 6, FaultKind::CrashBefore);
        let done = write_atomic(fs, Path::new("/d"), "f", b"new").is_ok();
        fs.crash();
        fs.clear_faults();
        (done, read_file(fs, &p("f"), 100).unwrap())
    });
    assert_eq!(atomic, BTreeSet::from([(false, old), (false, new.clone()), (true, new)]));
}

#[test]
fn a_rename_between_directories_never_loses_the_file_and_stays_when_both_are_synced() {
    // Which of the directories are synced, in order; whether the old and the new name can be seen.
    let moved = |synced: &'static [&'static str]| {
        outcomes(move |fs, _| {
            fs.prepare_dir(&p("x")).unwrap();
            fs.prepare_dir(&p("y")).unwrap();
            durable(fs, "x/f", b"f");
            fs.sync_dir(&p("x")).unwrap();
            fs.rename(&p("x/f"), &p("y/f")).unwrap();
            for dir in synced {
                fs.sync_dir(&p(dir)).unwrap();
            }
            fs.crash();
            (fs.exists(&p("x/f")).unwrap(), fs.exists(&p("y/f")).unwrap())
        })
    };
    let (old, new, both) = ((true, false), (false, true), (true, true));
    assert_eq!(moved(&[]), BTreeSet::from([old, new, both]));
    assert_eq!(moved(&["x"]), BTreeSet::from([old, new, both]));
    assert_eq!(moved(&["y"]), BTreeSet::from([new, both]));
    assert_eq!(moved(&["x", "y"]), BTreeSet::from([new]));
    assert_eq!(moved(&["y", "x"]), BTreeSet::from([new]));
}

#[test]
fn a_directory_never_has_two_names() {
    let seen = outcomes(|fs, seed| {
        fs.prepare_dir(&p("a")).unwrap();
        fs.prepare_dir(&p("other")).unwrap();
        durable(fs, "a/f", b"f");
        fs.sync_dir(&p("a")).unwrap();
        fs.rename(&p("a"), &p("b")).unwrap();
        fs.rename(&p("b"), &p("other/c")).unwrap();
        fs.crash();
        let files = fs.files();
        assert_eq!(files.len(), 1, "seed {seed}: {files:?}");
        files
    });
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn what_a_directory_sync_covered_is_not_undone_by_an_older_unsynced_change() {
    for seed in 0..SEEDS {
        let fs = fresh(seed);
        fs.prepare_dir(&p("y")).unwrap();
        durable(&fs, "f", b"old");
        fs.rename(&p("f"), &p("y/f")).unwrap();
        durable(&fs, "f", b"new");
        fs.crash();
        assert_eq!(fs.read_all(&p("f")).unwrap(), b"new", "seed {seed}");
        let fs = fresh(seed);
        fs.prepare_dir(&p("y")).unwrap();
        fs.create_dir_all(&p("made")).unwrap();
        fs.rename(&p("made"), &p("y/moved")).unwrap();
        fs.sync_dir(&p("y")).unwrap();
        fs.crash();
        assert!(fs.exists(&p("y/moved")).unwrap() && !fs.exists(&p("made")).unwrap(), "seed {seed}");
    }
}

#[test]
fn a_failed_sync_loses_the_data_for_good_and_the_next_one_reports_success() {
    let shown = outcomes(|fs, seed| {
        let f = durable(fs, "f", b"old");
        f.write_all_at(b"new", 0).unwrap();
        fs.fail_next_sync();
        assert_eq!(f.sync_data().unwrap_err().raw_os_error(), Some(5), "seed {seed}");
        f.sync_data().unwrap();
        let shown = fs.read_all(&p("f")).unwrap();
        fs.crash();
        assert_eq!(fs.read_all(&p("f")).unwrap(), b"old", "seed {seed}");
        shown
    });
    assert_eq!(shown, BTreeSet::from([b"new".to_vec(), b"old".to_vec()]));
    for seed in 0..SEEDS {
        let fs = fresh(seed);
        create(&fs, "f", b"x").sync_data().unwrap();
        fs.fail_nth(OpClass::SyncDir, 1, FaultKind::Eio);
        fs.sync_dir(Path::new("/d")).unwrap_err();
        fs.sync_dir(Path::new("/d")).unwrap();
        assert!(fs.exists(&p("f")).unwrap());
        fs.crash();
        assert!(!fs.exists(&p("f")).unwrap(), "seed {seed}");
    }
}

#[test]
fn a_killed_process_loses_its_handles_and_locks_but_no_data() {
    let fs = fresh(1);
    let f = create(&fs, "f", b"written");
    let lock = fs.lock(&p("lock")).unwrap();
    fs.kill();
    assert_eq!(fs.read_all(&p("f")).unwrap(), b"written");
    let again = fs.lock(&p("lock")).unwrap();
    drop(lock);
    assert_eq!(fs.lock(&p("lock")).unwrap_err().kind(), ErrorKind::WouldBlock, "a dead guard frees nothing");
    drop(again);
    assert!(is_simulated_crash(&f.write_all_at(b"late", 0).unwrap_err()));
    fs.crash_losing_unsynced();
    assert_eq!(fs.files(), Vec::<PathBuf>::new(), "a kill makes nothing durable");
}

#[test]
fn every_call_on_a_handle_from_before_a_crash_fails() {
    let fs = fresh(1);
    let f = durable(&fs, "f", b"kept");
    fs.crash();
    let calls = [
        f.read_at(&mut [0; 4], 0).map(|_| ()),
        f.write_all_at(b"late", 0),
        f.len().map(|_| ()),
        f.set_len(0),
        f.sync_data(),
    ];
    for (n, call) in calls.into_iter().enumerate() {
        assert!(is_simulated_crash(&call.unwrap_err()), "call {n}");
    }
    drop(f);
    assert_eq!(fs.read_all(&p("f")).unwrap(), b"kept");
}

#[test]
fn a_planned_crash_fails_all_later_calls_until_the_crash() {
    for (kind, took_effect) in [(FaultKind::CrashBefore, false), (FaultKind::CrashAfter, true)] {
        let fs = fresh(3);
        let f = durable(&fs, "f", b"old");
        f.write_all_at(b"new", 0).unwrap();
        fs.fail_at_io(fs.io_count() + 1, kind);
        assert!(is_simulated_crash(&f.sync_data().unwrap_err()));
        assert!(fs.power_is_off());
        let count = fs.io_count();
        assert!(is_simulated_crash(&f.len().unwrap_err()));
        assert!(is_simulated_crash(&fs.open(&p("f"), OpenMode::Read).unwrap_err()));
        assert!(is_simulated_crash(&fs.exists(&p("f")).unwrap_err()));
        assert!(is_simulated_crash(&fs.lock(&p("lock")).unwrap_err()));
        assert_eq!(fs.io_count(), count);
        fs.crash_losing_unsynced();
        let want: &[u8] = if took_effect { b"new" } else { b"old" };
        assert_eq!(read_file(&*fs, &p("f"), 100).unwrap(), want);
    }
}

#[test]
fn every_io_of_a_run_can_be_made_to_fail() {
    let run = |fs: &SimFs| -> io::Result<()> {
        write_atomic(fs, Path::new("/d"), "f", b"one")?;
        assert_eq!(read_file(fs, &p("f"), 100)?, b"one");
        fs.hard_link(&p("f"), &p("g"))?;
        fs.remove_file(&p("f"))?;
        let lock = fs.lock(&p("lock"))?;
        fs.create_dir_all(&p("sub"))?;
        drop(lock);
        fs.list(&p("sub"))?;
        fs.remove_dir_all(&p("sub"))?;
        fs.open(&p("g"), OpenMode::Write)?.set_len(1)
    };
    let clean = fresh(0);
    run(&clean).unwrap();
    assert_eq!(clean.io_count(), 15);
    for n in 1..=clean.io_count() {
        let fs = fresh(0);
        fs.fail_at_io(n, FaultKind::Eio);
        assert_eq!(run(&fs).unwrap_err().raw_os_error(), Some(5), "I/O {n}");
        assert_eq!(fs.io_count(), n);
        let fs = fresh(0);
        fs.fail_at_io(n, FaultKind::NoSpace);
        if let Err(e) = run(&fs) {
            assert_eq!(e.kind(), ErrorKind::StorageFull, "I/O {n}");
        }
    }
}

#[test]
fn opening_and_making_a_file_can_be_refused_and_names_that_open_nothing_cannot() {
    let fs = fresh(0);
    create(&fs, "f", b"one");
    for (class, refused) in [(OpClass::Open, "f"), (OpClass::Name, "new")] {
        fs.fail_nth(class, 1, FaultKind::Refused);
        let mode = if class == OpClass::Open { OpenMode::Read } else { OpenMode::CreateNew };
        assert_eq!(fs.open(&p(refused), mode).unwrap_err().raw_os_error(), Some(24), "{class:?}");
        assert!(fs.open(&p(refused), mode).is_ok(), "{class:?}");
    }
    (1..=3).for_each(|nth| fs.fail_nth(OpClass::Name, nth, FaultKind::Refused));
    fs.rename(&p("f"), &p("g")).unwrap();
    fs.hard_link(&p("g"), &p("h")).unwrap();
    fs.remove_file(&p("h")).unwrap();
    for class in [OpClass::Write, OpClass::SyncData, OpClass::SyncDir] {
        fs.fail_nth(class, 1, FaultKind::Refused);
    }
    let f = fs.open(&p("g"), OpenMode::Write).unwrap();
    f.write_all_at(b"two", 0).and_then(|()| f.sync_data()).and_then(|()| fs.sync_dir(Path::new("/d"))).unwrap();
}

#[test]
fn no_more_files_are_open_than_may_be_and_a_closed_one_makes_room() {
    let fs = fresh(0);
    let f = create(&fs, "f", b"one");
    let lock = fs.lock(&p("lock")).unwrap();
    fs.keep_dir(Path::new("/d")).unwrap();
    assert_eq!(fs.open_files(), 4, "a file, a lock, a directory, and one in reserve for another");
    fs.set_open_files_max(4);
    let refused = |e: io::Error| assert_eq!(e.raw_os_error(), Some(24));
    refused(fs.open(&p("f"), OpenMode::Read).unwrap_err());
    refused(fs.open(&p("new"), OpenMode::CreateNew).unwrap_err());
    refused(fs.open_direct(&p("f")).unwrap_err());
    refused(fs.lock(&p("other")).unwrap_err());
    refused(fs.list(Path::new("/d")).unwrap_err());
    assert!(!fs.exists(&p("new")).unwrap() && !fs.exists(&p("other")).unwrap());
    f.write_all_at(b"two", 0).unwrap();
    f.sync_data().unwrap();
    fs.sync_dir(Path::new("/d")).unwrap();
    drop(lock);
    assert_eq!(read_file(&*fs, &p("f"), 100).unwrap(), b"two");
    drop(f);
    let both = (fs.open(&p("f"), OpenMode::Read).unwrap(), fs.open(&p("f"), OpenMode::Write).unwrap());
    refused(fs.list(Path::new("/d")).unwrap_err());
    drop(both);
    assert_eq!(fs.open_files(), 2);
}

/// As the real one: directories stay open for their next sync, one handle is in reserve, and then a sync is refused.
#[test]
fn a_sync_of_a_directory_needs_a_handle_unless_it_was_kept() {
    let fs = SimFs::new(0);
    let dirs: Vec<_> = (0..20).map(|n| PathBuf::from(format!("/d{n}"))).collect();
    dirs.iter().for_each(|d| fs.create_dir_all(d).unwrap());
    fs.keep_dir(&dirs[0]).unwrap();
    assert_eq!(fs.open_files(), 2, "the directory, and the reserve");
    fs.set_open_files_max(2);
    fs.sync_dir(&dirs[0]).unwrap();
    fs.sync_dir(&dirs[1]).unwrap();
    assert_eq!(fs.sync_dir(&dirs[2]).unwrap_err().raw_os_error(), Some(24));
    (0..2).for_each(|n| fs.sync_dir(&dirs[n]).unwrap());
    assert_eq!(fs.keep_dir(&dirs[2]).unwrap_err().raw_os_error(), Some(24));
    fs.set_open_files_max(u64::MAX);
    dirs.iter().for_each(|d| fs.sync_dir(d).unwrap());
    assert_eq!(fs.open_files(), 17, "only so many stay open");
    fs.fail_nth(OpClass::Open, 1, FaultKind::Refused);
    assert!(fs.keep_dir(&dirs[0]).is_err() && fs.keep_dir(&dirs[0]).is_ok() && fs.keep_dir(&dirs[0]).is_ok());
    fs.kill();
    assert_eq!(fs.open_files(), 0);
}

#[test]
fn a_full_disk_refuses_growth_keeps_what_fits_and_gets_room_back() {
    let fs = fresh(1);
    fs.set_capacity(4 * 512);
    let f = create(&fs, "f", &[1; 1024]);
    let g = create(&fs, "g", &[2; 512]);
    assert_eq!((fs.allocated(), fs.free_bytes(&p("f")).unwrap()), (1536, 512));
    assert_eq!(f.write_all_at(&[3; 1024], 1000).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(f.len().unwrap(), 1536, "the part that fits is written");
    f.write_all_at(&[4; 1536], 0).unwrap();
    g.set_len(5000).unwrap();
    assert_eq!(g.write_all_at(b"x", 4000).unwrap_err().kind(), ErrorKind::StorageFull, "a hole has no room");
    fs.remove_file(&p("f")).unwrap();
    assert_eq!(fs.free_bytes(&p("g")).unwrap(), 0, "an open file keeps its room");
    drop(f);
    g.write_all_at(b"x", 4000).unwrap();
    g.write_all_at(&[5; 1024], 512).unwrap();
    assert_eq!(g.write_all_at(b"x", 3000).unwrap_err().kind(), ErrorKind::StorageFull);
    fs.set_capacity(5 * 512);
    g.write_all_at(b"x", 3000).unwrap();
    assert_eq!(fs.free_bytes(&p("g")).unwrap(), 0);
    g.set_len(0).unwrap();
    assert_eq!(fs.allocated(), 0);
}

#[test]
fn a_flipped_bit_is_on_the_medium_and_in_the_cache() {
    let fs = fresh(1);
    let f = durable(&fs, "f", &[0; 4]);
    f.write_all_at(&[0; 4], 2).unwrap();
    fs.flip_bit(&p("f"), 1, 7).unwrap();
    fs.flip_bit(&p("f"), 3, 0).unwrap();
    assert_eq!(fs.read_all(&p("f")).unwrap(), [0, 128, 0, 1, 0, 0]);
    f.sync_data().unwrap();
    fs.crash();
    assert_eq!(fs.read_all(&p("f")).unwrap(), [0, 128, 0, 1, 0, 0]);
    assert_eq!(fs.flip_bit(&p("f"), 6, 0).unwrap_err().kind(), ErrorKind::UnexpectedEof);
}

#[test]
fn reads_may_be_short_but_never_empty() {
    let seen = outcomes(|fs, _| {
        fs.set_short_reads(true);
        create(fs, "f", &[9; 4]).read_at(&mut [0; 4], 0).unwrap()
    });
    assert_eq!(seen, BTreeSet::from([1, 2, 3, 4]));
}

#[test]
fn reads_may_be_interrupted_and_come_through_when_made_again() {
    let seen = outcomes(|fs, _| {
        let f = create(fs, "f", &[9; 4]);
        fs.set_interruptions(true);
        let mut buf = [0; 4];
        read_exact_at(&*f, &mut buf, 0).unwrap();
        assert_eq!(buf, [9; 4]);
        f.read_at(&mut buf, 0).map_err(|e| e.kind())
    });
    assert_eq!(seen, BTreeSet::from([Ok(4), Err(ErrorKind::Interrupted)]));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Create(u8),
    Write(u8, u16, u16, u8),
    SetLen(u8, u16),
    Sync(u8),
    SyncDir,
    Rename(u8, u8),
    Link(u8, u8),
    Remove(u8),
    FailSync,
    Kill,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..5_u8;
    prop_oneof![
        3 => name.clone().prop_map(Step::Create),
        6 => (name.clone(), 0..3000_u16, 0..1500_u16, 1..255_u8).prop_map(|(f, at, n, b)| Step::Write(f, at, n, b)),
        1 => (name.clone(), 0..4000_u16).prop_map(|(f, n)| Step::SetLen(f, n)),
        3 => name.clone().prop_map(Step::Sync),
        2 => Just(Step::SyncDir),
        2 => (name.clone(), name.clone()).prop_map(|(a, b)| Step::Rename(a, b)),
        1 => (name.clone(), name.clone()).prop_map(|(a, b)| Step::Link(a, b)),
        1 => name.prop_map(Step::Remove),
        1 => Just(Step::FailSync),
        1 => Just(Step::Kill),
        1 => Just(Step::Crash),
    ]
}

/// Runs one step; errors such as a missing name are part of the run.
fn run(fs: &SimFs, step: Step) {
    let name = |n: u8| p(&n.to_string());
    let file = |n: u8| fs.open(&name(n), OpenMode::Write);
    let _ = match step {
        Step::Create(n) => fs.open(&name(n), OpenMode::CreateNew).map(|_| ()),
        Step::Write(n, at, len, b) => file(n).and_then(|f| f.write_all_at(&vec![b; len.into()], at.into())),
        Step::SetLen(n, len) => file(n).and_then(|f| f.set_len(len.into())),
        Step::Sync(n) => file(n).and_then(|f| f.sync_data()),
        Step::SyncDir => fs.sync_dir(Path::new("/d")),
        Step::Rename(a, b) => fs.rename(&name(a), &name(b)),
        Step::Link(a, b) => fs.hard_link(&name(a), &name(b)),
        Step::Remove(n) => fs.remove_file(&name(n)),
        Step::FailSync => {
            fs.fail_next_sync();
            Ok(())
        }
        Step::Kill => {
            fs.kill();
            Ok(())
        }
        Step::Crash => {
            fs.crash();
            Ok(())
        }
    };
}

fn state(fs: &SimFs) -> Vec<(PathBuf, Vec<u8>)> {
    fs.files().into_iter().map(|path| (path.clone(), fs.read_all(&path).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn same_seed_and_calls_give_the_same_state(seed: u64, steps in prop::collection::vec(step(), 0..60)) {
        let hashes = |seed| {
            let fs = fresh(seed);
            steps.iter().map(|s| { run(&fs, *s); fs.hash() }).collect::<Vec<_>>()
        };
        prop_assert_eq!(hashes(seed), hashes(seed));
    }

    #[test]
    fn after_everything_is_synced_a_crash_changes_nothing(seed: u64, steps in prop::collection::vec(step(), 0..60)) {
        let fs = fresh(seed);
        for s in &steps {
            // A failed sync has lost data already.
            if !matches!(s, Step::FailSync) {
                run(&fs, *s);
            }
        }
        for path in fs.files() {
            fs.open(&path, OpenMode::Read).unwrap().sync_data().unwrap();
        }
        fs.sync_dir(Path::new("/d")).unwrap();
        let before = state(&fs);
        fs.crash();
        prop_assert_eq!(&state(&fs), &before);
        fs.crash_losing_unsynced();
        prop_assert_eq!(&state(&fs), &before);
    }

    #[test]
    fn a_second_crash_and_a_kill_change_nothing(seed: u64, steps in prop::collection::vec(step(), 0..60)) {
        let fs = fresh(seed);
        steps.iter().for_each(|s| run(&fs, *s));
        let cached = state(&fs);
        fs.kill();
        prop_assert_eq!(state(&fs), cached);
        fs.crash();
        let after = state(&fs);
        fs.crash();
        prop_assert_eq!(state(&fs), after);
    }
}

#[test]
fn the_hash_covers_bytes_names_and_what_is_synced() {
    let fs = fresh(1);
    let mut seen = BTreeSet::from([fs.hash()]);
    let f = create(&fs, "f", b"x");
    assert!(seen.insert(fs.hash()));
    fs.flip_bit(&p("f"), 0, 0).unwrap();
    assert!(seen.insert(fs.hash()));
    fs.flip_bit(&p("f"), 0, 0).unwrap();
    assert!(!seen.insert(fs.hash()));
    f.sync_data().unwrap();
    assert!(seen.insert(fs.hash()));
}

#[test]
fn a_simulated_environment_records_what_is_fatal() {
    let clock = crate::clock::SimClock::new(crate::lsn::CommitTs(7));
    let (env, fatal) = crate::Env::sim(fresh(1), clock.clone(), 1);
    (env.fatal)("sync failed");
    assert_eq!(fatal.messages(), ["sync failed"]);
    assert_eq!(fatal.take(), ["sync failed"]);
    assert!(fatal.messages().is_empty());
    assert_eq!(env.clock.wall(), crate::lsn::CommitTs(7));
    assert_eq!(env.rng.next_u64(), crate::Env::sim(fresh(1), clock, 1).0.rng.next_u64());
}

#[test]
fn different_seeds_crash_differently() {
    let steps: Vec<_> = (0..4).flat_map(|n| [Step::Create(n), Step::Write(n, 0, 1400, 5)]).collect();
    let seen = outcomes(|fs, _| {
        steps.iter().for_each(|s| run(fs, *s));
        run(fs, Step::Crash);
        (state(fs), fs.hash())
    });
    assert!(seen.len() > 50, "{}", seen.len());
}
