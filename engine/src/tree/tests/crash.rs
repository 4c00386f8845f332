//! The tree on the simulated disk: a crash, a full disk or a failed sync at every single call.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Head, Model, apply, check_view, get, put, random_batch};
use crate::clock::SimClock;
use crate::env::{Env, SimFatal};
use crate::error::{Error, Result};
use crate::exec::Progress;
use crate::fs::OpenMode;
use crate::fs::sim::{FaultKind, OpClass, SimFs};
use crate::limits::Options;
use crate::lsn::{CommitTs, Lsn, Position};
use crate::record::Record;
use crate::rng::{Rng, SeededRng};
use crate::table::table_name;
use crate::tree::Tree;

const DATA: &str = "data";

fn options() -> Options {
    Options { memtable_bytes: 1 << 10, history_window_us: 300, ..Options::tiny() }
}

struct World {
    fs: Arc<SimFs>,
    env: Env,
    fatal: SimFatal,
}

impl World {
    fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        fs.prepare_dir(Path::new(DATA)).unwrap();
        fs.prepare_dir(Path::new("checkpoints")).unwrap();
        let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1)), seed);
        Self { fs, env, fatal }
    }

    fn open(&self) -> Result<Tree> {
        Tree::open(self.env.clone(), Path::new(DATA), &options())
    }
}

/// The records of the run and what they make.
struct Script {
    records: Vec<Vec<u8>>,
    model: Model,
}

impl Script {
    fn new(seed: u64) -> Self {
        let rng = SeededRng::new(seed);
        let (mut head, mut model) = (Head::default(), Model::default());
        let mut records = Vec::new();
        for _ in 0..40 {
            let bytes = head.batch(1 + rng.below(40), &random_batch(&rng, head.0.ts.0));
            model.apply(&bytes);
            records.push(bytes);
        }
        Self { records, model }
    }

    fn check(&self, tree: &Tree, what: &str) {
        let rng = SeededRng::new(5);
        let top = tree.applied().lsn.0;
        for lsn in [tree.history_floor().0, tree.history_floor().0.midpoint(top), top] {
            if lsn > 0 {
                check_view(&tree.view_at(Lsn(lsn)).unwrap(), &self.model, &rng, what);
            }
        }
    }
}

/// What had been promised when the run ended.
#[derive(Default)]
struct Promised {
    created: bool,
    flushed: Lsn,
    checkpoints: Vec<(PathBuf, Position)>,
}

fn retry<T>(what: &str, full: &mut u32, mut step: impl FnMut() -> Result<T>) -> Result<T> {
    match step() {
        Err(Error::DiskFull { .. }) => {
            *full += 1;
            let again = step();
            assert!(!matches!(again, Err(Error::DiskFull { .. })), "{what}: the disk has room again");
            again
        }
        other => other,
    }
}

/// Creates or opens, then applies all records with flushes, compactions and checkpoints on the way.
fn run(world: &World, script: &Script, promised: &mut Promised, full: &mut u32, what: &str) -> Result<Tree> {
    let (env, dir) = (&world.env, Path::new(DATA));
    let tree = retry(what, full, || {
        if Tree::exists(env, dir)? {
            return world.open();
        }
        Tree::create(env.clone(), dir, &options(), Position::default())
    })?;
    promised.created = true;
    for (n, bytes) in script.records.iter().enumerate().skip(tree.flushed().lsn.0 as usize) {
        apply(&tree, bytes);
        while retry(what, full, || tree.flush_step())? == Progress::Worked {
            promised.flushed = tree.flushed().lsn;
        }
        retry(what, full, || tree.compact_step())?;
        let to = PathBuf::from(format!("checkpoints/{n}"));
        if n % 15 == 14 && !env.fs.exists(&to).map_err(|e| Error::io("look for", &to, e))? {
            let made = retry(what, full, || tree.checkpoint(&to))?;
            promised.flushed = tree.flushed().lsn;
            promised.checkpoints.push((to, made.position));
        }
    }
    retry(what, full, || tree.compact_all())?;
    Ok(tree)
}

/// Recovers, checks the prefix rule, and runs to the end.
fn recover_and_finish(world: &World, script: &Script, promised: &Promised, what: &str) {
    if promised.created || Tree::exists(&world.env, Path::new(DATA)).unwrap() {
        let tree = world.open().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(tree.applied().lsn >= promised.flushed, "{what}: flushed records are gone");
        assert_eq!(tree.applied(), tree.flushed(), "{what}");
        script.check(&tree, what);
    }
    for (path, position) in &promised.checkpoints {
        let copy = Tree::open(world.env.clone(), path, &options()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(copy.applied(), *position, "{what}");
        script.check(&copy, what);
    }
    for n in [14, 29] {
        let path = PathBuf::from(format!("checkpoints/{n}"));
        let done = promised.checkpoints.iter().any(|(p, _)| *p == path);
        if !done && Tree::exists(&world.env, &path).unwrap_or(false) {
            // Not promised, but it opens: then it must be right.
            script.check(&Tree::open(world.env.clone(), &path, &options()).unwrap(), what);
        }
    }
    let tree = run(world, script, &mut Promised::default(), &mut 0, what).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(tree.applied().lsn.0 as usize, script.records.len(), "{what}");
    script.check(&tree, what);
}

fn io_count(script: &Script) -> u64 {
    let world = World::new(1);
    run(&world, script, &mut Promised::default(), &mut 0, "plain").unwrap();
    let stats = world.open().unwrap().stats();
    assert!(stats.levels[6].tables > 0, "the run must compact: {stats:?}");
    world.fs.io_count()
}

#[test]
fn a_crash_at_any_call_leaves_a_prefix_with_all_that_was_promised() {
    let script = Script::new(21);
    let count = io_count(&script);
    for n in 1..=count {
        for (kind, harsh) in
            [(FaultKind::CrashBefore, true), (FaultKind::CrashAfter, false), (FaultKind::CrashBefore, false)]
        {
            let what = format!("{kind:?} at call {n} of {count}, harsh {harsh}");
            let world = World::new(n * 2 + u64::from(harsh));
            world.fs.fail_at_io(n, kind);
            let mut promised = Promised::default();
            let _ = run(&world, &script, &mut promised, &mut 0, &what);
            world.fs.clear_faults();
            if harsh {
                world.fs.crash_losing_unsynced()
            } else {
                world.fs.crash()
            }
            let _ = world.fatal.take();
            recover_and_finish(&world, &script, &promised, &what);
            assert_eq!(world.fatal.messages(), Vec::<String>::new(), "{what}");
        }
    }
}

#[test]
fn a_full_disk_at_any_write_costs_nothing_but_a_retry() {
    let script = Script::new(22);
    let count = io_count(&script);
    let mut retried = 0;
    for n in 1..=count {
        let what = format!("no space at call {n} of {count}");
        let world = World::new(n);
        world.fs.fail_at_io(n, FaultKind::NoSpace);
        let (mut promised, mut full) = (Promised::default(), 0);
        match run(&world, &script, &mut promised, &mut full, &what) {
            Ok(tree) => {
                assert!(world.fatal.messages().is_empty(), "{what}");
                script.check(&tree, &what);
                retried += full;
                drop(tree);
                recover_and_finish(&world, &script, &promised, &what);
            }
            Err(Error::Stopped(_)) => assert_eq!(world.fatal.messages().len(), 1, "{what}: only a sync is final"),
            Err(e) => panic!("{what}: {e}"),
        }
    }
    assert!(retried > 20, "only {retried} calls met a full disk");
}

#[test]
fn a_failed_sync_stops_the_tree_for_good_and_a_restart_recovers() {
    let script = Script::new(23);
    for class in [OpClass::SyncData, OpClass::SyncDir] {
        for nth in 1.. {
            let what = format!("{class:?} {nth} fails");
            let world = World::new(nth);
            world.fs.fail_nth(class, nth, FaultKind::Eio);
            let mut promised = Promised::default();
            let ended = run(&world, &script, &mut promised, &mut 0, &what);
            if ended.is_ok() {
                assert!(nth > 5, "{what}: the run must sync");
                break;
            }
            assert!(matches!(ended, Err(Error::Stopped(_))), "{what}: {ended:?}");
            assert_eq!(world.fatal.take().len(), 1, "{what}");
            world.fs.crash();
            recover_and_finish(&world, &script, &promised, &what);
        }
    }
}

#[test]
fn a_stopped_tree_refuses_everything_that_writes() {
    let script = Script::new(24);
    let world = World::new(1);
    let tree = Tree::create(world.env.clone(), Path::new(DATA), &options(), Position::default()).unwrap();
    apply(&tree, &script.records[0]);
    tree.freeze();
    world.fs.fail_next_sync();
    assert!(matches!(tree.flush_step(), Err(Error::Stopped(_))));
    assert!(matches!(tree.flush_step(), Err(Error::Stopped(_))));
    assert!(matches!(tree.compact_step(), Err(Error::Stopped(_))));
    assert!(matches!(tree.checkpoint(Path::new("checkpoints/c")), Err(Error::Stopped(_))));
    assert!(matches!(tree.apply(&Record::decode(&script.records[1]).unwrap()), Err(Error::Stopped(_))));
    assert_eq!(world.fatal.messages().len(), 1);
}

#[test]
fn a_disk_that_stays_full_keeps_the_tree_readable_and_leaves_no_litter() {
    let script = Script::new(25);
    let world = World::new(1);
    let tree = Tree::create(world.env.clone(), Path::new(DATA), &options(), Position::default()).unwrap();
    script.records.iter().take(6).for_each(|r| apply(&tree, r));
    tree.freeze();
    let files = world.fs.files();
    world.fs.set_capacity(world.fs.allocated());
    for _ in 0..3 {
        assert!(matches!(tree.flush_step(), Err(Error::DiskFull { .. })));
        assert_eq!(world.fs.files(), files);
        script.check(&tree, "full");
    }
    world.fs.set_capacity(1 << 30);
    tree.flush_all().unwrap();
    script.check(&tree, "room again");
    drop(tree);
    world.fs.crash_losing_unsynced();
    script.check(&world.open().unwrap(), "after a crash");
}

#[test]
fn short_reads_change_nothing() {
    let script = Script::new(26);
    let world = World::new(1);
    world.fs.set_short_reads(true);
    let tree = run(&world, &script, &mut Promised::default(), &mut 0, "short reads").unwrap();
    script.check(&tree, "short reads");
    for file in tree.pinned_tables().tables {
        assert_eq!(crate::table::verify_table(&world.env.fs, &tree.table_path(file.id)).unwrap(), file);
    }
}

#[test]
fn a_sector_that_a_merge_cannot_read_is_damage_of_its_table_and_not_the_end() {
    let script = Script::new(27);
    let mut noted = 0;
    for nth in 1..30 {
        let world = World::new(nth);
        let tree = Tree::create(world.env.clone(), Path::new(DATA), &options(), Position::default()).unwrap();
        for record in &script.records {
            apply(&tree, record);
            tree.flush_all().unwrap();
        }
        world.fs.fail_nth(OpClass::Read, nth, FaultKind::Eio);
        let ended = loop {
            match tree.compact_step() {
                Ok(Progress::Worked) => {}
                other => break other,
            }
        };
        if let Err(e) = ended {
            // A disk that does not give back what was written just now is the end.
            let tables = tree.pinned_tables().tables;
            let of_the_tree = tables.iter().any(|t| e.to_string().contains(&table_name(t.id)));
            assert!(!of_the_tree, "read {nth} fails: {e}");
        }
        assert!(world.fatal.messages().is_empty(), "read {nth}");
        noted += tree.damage().len();
        world.fs.clear_faults();
        script.check(&tree, "the disk gives it again");
    }
    assert!(noted > 10, "{noted}");
}

/// What cannot be opened behind the rename would leave readers with the damaged file, and the caller with an error that says
/// that nothing was done.
#[test]
fn a_repair_that_may_open_no_more_files_does_nothing_and_one_that_may_is_whole() {
    let mut refused = 0;
    for nth in 1.. {
        let world = World::new(nth);
        let tree = Tree::create(world.env.clone(), Path::new(DATA), &Options::tiny(), Position::default()).unwrap();
        let mut head = Head::default();
        put(&mut head, &tree, "key", "value");
        tree.flush_all().unwrap();
        let id = tree.pinned_tables().tables[0].id;
        let (path, good) = (tree.table_path(id), Path::new(DATA).join("good"));
        let bytes = world.fs.read_all(&path).unwrap();
        world.env.fs.open(&good, OpenMode::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
        world.fs.flip_bit(&path, 30, 1).unwrap();
        world.fs.fail_nth(OpClass::Open, nth, FaultKind::Refused);
        let repaired = tree.repair_table(id, &good);
        world.fs.clear_faults();
        match repaired {
            Ok(()) => {
                assert_eq!(get(&tree.view(), "key").as_deref(), Some("value"), "open {nth} was refused");
                assert!(world.fs.read_all(&path).unwrap() == bytes);
                break;
            }
            Err(e) => {
                refused += 1;
                assert!(world.fs.read_all(&path).unwrap() != bytes, "open {nth}: {e}, and yet it was done");
                let names = world.env.fs.list(path.parent().unwrap()).unwrap();
                assert!(names.iter().all(|n| !n.ends_with(".tmp")), "{names:?}");
            }
        }
        assert!(world.fatal.messages().is_empty());
    }
    assert!(refused >= 3, "the source, the check of the copy and its handle: {refused}");
}
