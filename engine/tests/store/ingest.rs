//! Ready tables into an open store: one record, seen whole or not at all, whatever fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_engine::batch::{Batch, Condition, Expect, Keyspace};
use mainstay_engine::bulk::{Place, TableWriter};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::error::ErrorClass;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::Fs;
use mainstay_engine::fs::sim::SimFs;
use mainstay_engine::ingest::Ingest;
use mainstay_engine::inspect;
use mainstay_engine::record::{Kind, Record};
use mainstay_engine::restore::Builder;
use mainstay_engine::store::{Durability, Identity, Ingested, Store};
use mainstay_engine::tree::ReadOnly;
use mainstay_engine::value::Value;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, Result, TimelineId};

use crate::reads::read;
use crate::world::{DIR, State};

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
const READY: &str = "/ready";

pub(crate) struct World {
    pub(crate) fs: Arc<SimFs>,
    clock: Arc<SimClock>,
    pub(crate) env: Env,
    pub(crate) fatal: SimFatal,
    pub(crate) store: Option<Store>,
}

pub(crate) fn options() -> Options {
    Options::tiny()
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let fs = SimFs::new(seed);
        [DIR, READY, "/other"].iter().for_each(|d| fs.prepare_dir(Path::new(d)).unwrap());
        let clock = SimClock::new(CommitTs(1_000_000));
        let (env, fatal) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), seed);
        let store = Some(Store::create(env.clone(), Path::new(DIR), &options(), IDENTITY).unwrap());
        Self { fs, clock, env, fatal, store }
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    pub(crate) fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open_embedded(self.env.clone(), Path::new(DIR), &options()).unwrap());
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) -> Lsn {
        write(self.store(), |b| _ = b.put(key, value).unwrap())
    }

    pub(crate) fn settle(&self) {
        self.store().tree().flush_all().unwrap();
        while self.store().maintain_step().unwrap() == Progress::Worked {}
    }

    /// Tables of these keys of the user's keyspace, each with the value `value`.
    pub(crate) fn tables(&self, value: &str, keys: impl IntoIterator<Item = u32>) -> Vec<PathBuf> {
        tables(&self.env, value, keys)
    }

    pub(crate) fn ingest(&self, tables: &[PathBuf]) -> Result<Ingested> {
        self.store().ingest(tables, Place::Link)
    }

    pub(crate) fn state(&self) -> State {
        read(&self.store().view()).unwrap()
    }

    /// Everything that an ingest may change, but for bytes of the log that do not count.
    pub(crate) fn footprint(&self) -> (Lsn, State, Vec<PathBuf>) {
        let files = self.fs.files().into_iter().filter(|f| !f.starts_with(Path::new(DIR).join("log")));
        (self.store().log().last().lsn, self.state(), files.filter(|f| f.starts_with(DIR)).collect())
    }
}

fn write(store: &Store, fill: impl FnOnce(&mut Batch)) -> Lsn {
    let mut batch = Batch::new();
    fill(&mut batch);
    store.write(&batch, &[], Durability::Synced).unwrap().position.lsn
}

pub(crate) fn key(n: u32) -> Vec<u8> {
    format!("key-{n:04}").into_bytes()
}

fn tables(env: &Env, value: &str, keys: impl IntoIterator<Item = u32>) -> Vec<PathBuf> {
    let mut writer = TableWriter::new(env.clone(), Path::new(READY), &options());
    for n in keys {
        writer.put(Keyspace::USER, &key(n), &Value::plain(value.as_bytes())).unwrap();
    }
    writer.finish().unwrap().into_iter().map(|t| t.path).collect()
}

/// Reads must be the same right after the call, when its tables have their level, when they are merged, and after a
/// crash at each of these.
pub(crate) fn at_each_age(world: &mut World, what: &str, check: impl Fn(&World)) {
    for age in ["fresh", "fresh and reopened", "flushed", "merged", "merged and reopened"] {
        match age {
            "fresh" => {}
            "flushed" => world.settle(),
            "merged" => drop(world.store().tree().compact_all().unwrap()),
            _ => {
                world.store = None;
                world.fs.crash_losing_unsynced();
                world.reopen();
            }
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(world)));
        result.unwrap_or_else(|e| {
            println!("{what}, {age}");
            std::panic::resume_unwind(e)
        });
        assert_eq!(world.fatal.messages(), Vec::<String>::new());
    }
}

#[test]
fn ingested_keys_stand_above_all_that_was_and_below_all_that_comes() {
    let mut world = World::new(1);
    // Long enough for every read below.
    world.store = None;
    let long = Options { history_window_us: u64::MAX / 4, ..options() };
    let open = |w: &mut World| {
        w.store = None;
        w.store = Some(Store::open_embedded(w.env.clone(), Path::new(DIR), &long).unwrap());
    };
    open(&mut world);
    // Older versions in the deepest level, in level 0, in a memtable.
    for n in [1, 2, 3] {
        world.put(&key(n), b"deep");
    }
    world.store().tree().flush_all().unwrap();
    world.store().tree().compact_all().unwrap();
    let in_level0 = world.put(&key(2), b"level 0");
    world.store().tree().flush_all().unwrap();
    let before = world.put(&key(3), b"memtable");
    let (old_view, old) = (world.store().view(), world.state());
    let old_time = world.store().log().last().ts;
    let ready = world.tables("new", [1, 2, 3, 4, 5, 6]);
    let done = world.ingest(&ready).unwrap();
    assert_eq!((done.position.lsn, done.entries, done.tables), (before.next(), 6, ready.len() as u64));
    let at = done.position.lsn;
    let ingested: State = (1..7).map(|n| (key(n), (at, b"new".to_vec()))).collect();
    assert_eq!(world.state(), ingested, "all at once");
    assert_eq!(read(&old_view).unwrap(), old, "a view made before");
    // Above it.
    let later = world.put(&key(1), b"newer");
    write(world.store(), |b| _ = b.delete(&key(2)).unwrap());
    write(world.store(), |b| _ = b.delete_range(&key(4), &key(6)).unwrap());
    let newest: State = BTreeMap::from([
        (key(1), (later, b"newer".to_vec())),
        (key(3), ingested[&key(3)].clone()),
        (key(6), ingested[&key(6)].clone()),
    ]);
    let check = |world: &World| {
        assert_eq!(world.state(), newest);
        let at_lsn = |lsn| read(&world.store().view_at(lsn).unwrap()).unwrap();
        assert_eq!(at_lsn(at), ingested, "at the record");
        assert_eq!(at_lsn(before), old, "below it");
        assert_eq!(at_lsn(in_level0)[&key(3)].1, b"deep");
        let at_time = |time| read(&world.store().view_at_time(time).unwrap()).unwrap();
        assert_eq!((at_time(done.position.ts), at_time(old_time)), (ingested.clone(), old.clone()));
        assert_eq!(at_time(CommitTs(done.position.ts.0 - 1)), old, "just before it");
        assert_eq!(world.store().view_at(at).unwrap().ts(), done.position.ts);
    };
    check(&world);
    for step in 0..4 {
        match step {
            0 => world.settle(),
            1 => drop(world.store().tree().compact_all().unwrap()),
            _ => {
                world.fs.crash_losing_unsynced();
                open(&mut world);
            }
        }
        check(&world);
    }
    assert_eq!(read(&old_view).unwrap(), old, "a view made before, at the end");
}

#[test]
fn range_deletes_hide_what_was_ingested_before_and_not_what_comes_after() {
    let mut world = World::new(2);
    let first = world.tables("first", 0..20);
    world.ingest(&first).unwrap();
    write(world.store(), |b| _ = b.delete_range(&key(5), b"").unwrap());
    let second = world.tables("second", [4, 7, 30]);
    let second = world.ingest(&second).unwrap().position.lsn;
    at_each_age(&mut world, "after a range delete", |world| {
        let state = world.state();
        let found: Vec<_> = state.iter().map(|(k, (lsn, v))| (k.clone(), *lsn, v.as_slice())).collect();
        let mut want: Vec<_> = (0..4).map(|n| (key(n), Lsn(1), &b"first"[..])).collect();
        want.extend([4, 7, 30].map(|n| (key(n), second, &b"second"[..])));
        assert_eq!(found, want);
    });
    // A range delete in the very memtable that the next ingest freezes, and one that covers that whole.
    write(world.store(), |b| _ = b.delete_range(&key(0), &key(4)).unwrap());
    let third = world.tables("third", [1, 2]);
    world.ingest(&third).unwrap();
    at_each_age(&mut world, "over a range delete", |world| assert_eq!(world.state().len(), 5));
    write(world.store(), |b| _ = b.delete_range(b"", b"").unwrap());
    world.clock.advance(std::time::Duration::from_secs(10));
    world.put(&key(99), b"last");
    at_each_age(&mut world, "all covered", |world| assert_eq!(world.state().len(), 1));
}

#[test]
fn conditions_expiry_and_every_keyspace_go_by_the_record() {
    let mut world = World::new(3);
    world.put(&key(1), b"old");
    let soon = CommitTs(5_000_000);
    let mut writer = TableWriter::new(world.env.clone(), Path::new(READY), &options());
    let spaces = [Keyspace::SYSTEM, Keyspace::USER, Keyspace(9)];
    for space in spaces {
        writer.put(space, &key(1), &Value::plain(&[space.0])).unwrap();
        writer.put(space, &key(2), &Value { expiry: Some(soon), metadata: b"m", data: b"short-lived" }).unwrap();
    }
    let ready: Vec<_> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
    let at = world.ingest(&ready).unwrap().position.lsn;
    let condition = |expect| Condition { keyspace: Keyspace::USER, key: key(1), expect };
    let write_if = |world: &World, expect| {
        let mut batch = Batch::new();
        batch.put(&key(7), b"under a condition").unwrap();
        world.store().write(&batch, &[condition(expect)], Durability::Written)
    };
    at_each_age(&mut world, "conditions and expiry", |world| {
        for space in spaces {
            let found = world.store().get(space, &key(1)).unwrap().unwrap();
            assert_eq!((found.lsn, Value::decode(&found.envelope).unwrap().data), (at, &[space.0][..]));
            assert!(world.store().get(space, &key(2)).unwrap().is_some());
        }
        for wrong in [Lsn(1), at.next(), Lsn::ZERO] {
            assert!(matches!(write_if(world, Expect::Version(wrong)), Err(Error::ConditionFailed(_))), "{wrong}");
        }
        write_if(world, Expect::Version(at)).unwrap();
        write_if(world, Expect::Value(vec![Keyspace::USER.0])).unwrap();
    });
    world.clock.advance(std::time::Duration::from_secs(10));
    world.put(&key(8), b"time goes on");
    at_each_age(&mut world, "expired", |world| {
        assert!(spaces.iter().all(|s| world.store().get(*s, &key(2)).unwrap().is_none()));
        assert!(spaces.iter().all(|s| world.store().get(*s, &key(1)).unwrap().is_some()));
    });
}

#[test]
fn what_may_not_be_taken_in_is_refused_by_name_and_changes_nothing() {
    let world = World::new(4);
    (0..40).for_each(|n| _ = world.put(&key(n), b"mine"));
    world.settle();
    world.put(&key(3), b"in a memtable");
    let ready = world.tables("theirs", 0..600);
    assert!(ready.len() > 2);
    let before = world.footprint();
    let refused = |tables: &[PathBuf]| {
        let texts = [Place::Link, Place::Copy].map(|place| {
            let e = world.store().ingest(tables, place).unwrap_err();
            assert!(!matches!(e, Error::Stopped(_) | Error::Indeterminate { .. }), "{e}");
            assert_eq!(world.footprint(), before, "{e}");
            e.to_string()
        });
        texts.join("; ")
    };
    let across = world.tables("across", [5, 700]);
    assert!(refused(&[&ready[..], &across].concat()).contains("has keys between those of"));
    assert!(refused(&[&ready[..], &ready[..1]].concat()).contains("is given twice"));
    assert!(refused(&[Path::new(READY).join("none.table")]).contains("none.table"));
    assert!(refused(&[]).contains("give 1 to 4096"));
    assert!(refused(&vec![ready[0].clone(); 4097]).contains("give 1 to 4096"));
    let own = world.store().tree().table_path(world.store().tree().pinned_tables().tables[0].id);
    assert!(refused(&[own]).contains("in the store already"));
    let other = Store::create(world.env.clone(), Path::new("/other/store"), &options(), IDENTITY).unwrap();
    write(&other, |b| _ = b.put(b"k", b"v").unwrap());
    other.tree().flush_all().unwrap();
    let theirs = other.tree().table_path(other.tree().pinned_tables().tables[0].id);
    assert!(refused(&[theirs]).contains("was made by a store"));
    let bytes = world.fs.open(&ready[1], mainstay_engine::fs::OpenMode::Read).unwrap().len().unwrap();
    for at in (0..bytes).step_by(97) {
        world.fs.flip_bit(&ready[1], at, (at % 8) as u8).unwrap();
        let why = refused(&ready);
        let name = ready[1].file_name().unwrap().to_str().unwrap();
        assert!(why.contains("corruption") || why.contains("format") || why.contains("another table"), "{at}: {why}");
        assert!(why.contains(name), "flip at {at}: {why}");
        world.fs.flip_bit(&ready[1], at, (at % 8) as u8).unwrap();
    }
    // A record that fits no segment.
    let mut writer = TableWriter::new(world.env.clone(), Path::new(READY), &options());
    writer.put(Keyspace::USER, &vec![b'x'; 9_000], &Value::plain(b"v")).unwrap();
    let long: Vec<_> = writer.finish().unwrap().into_iter().map(|t| t.path).collect();
    assert!(refused(&long).contains("over the limit"));
    // What was refused forbids nothing later.
    drop(other);
    let mut world = world;
    world.store().close().unwrap();
    world.store = None;
    drop(Store::open(world.env.clone(), Path::new(DIR), &options()).unwrap());
    world.reopen();
    let at = world.ingest(&ready).unwrap().position.lsn;
    at_each_age(&mut world, "after all", |world| {
        assert_eq!(world.state().len(), 600);
        assert!(world.state().values().all(|(lsn, value)| *lsn == at && value == b"theirs"));
    });
    assert!(world.ingest(&world.tables("again", [1])).is_ok());
}

/// Nobody who has the log alone passes over the record.
#[test]
fn a_node_neither_ingests_nor_follows_nor_is_made_of_a_store_that_did() {
    let mut world = World::new(5);
    world.store = None;
    let ready = world.tables("v", 0..10);
    let node = Store::open(world.env.clone(), Path::new(DIR), &options()).unwrap();
    let e = node.ingest(&ready, Place::Link).unwrap_err().to_string();
    assert!(e.contains("a node takes no tables in") && e.contains("import"), "{e}");
    drop(node);
    world.reopen();
    let store = Arc::new(world.store.take().unwrap());
    drop(store.start_workers().unwrap());
    assert!(store.ingest(&ready, Place::Link).unwrap_err().to_string().contains("a node takes no tables in"));
    drop(store);
    world.reopen();
    let at = world.ingest(&ready).unwrap().position.lsn;
    assert_eq!(Identity::read(&world.env, Path::new(DIR)).unwrap(), Some(IDENTITY));
    let mut reader = world.store().log().reader(Lsn(1)).unwrap();
    let records = reader.next(at, usize::MAX).unwrap().unwrap().bytes;
    let record = Record::decode(&records).unwrap();
    assert_eq!((record.header.kind, record.header.lsn), (Kind::Ingest, at));
    assert_eq!(Ingest::decode(record.body).unwrap().tables.len(), ready.len());
    // A replica, and a restore.
    let replica = Store::create(world.env.clone(), Path::new("/other/replica"), &options(), IDENTITY).unwrap();
    let foreign = |e: Error| assert!(matches!(e, Error::ForeignIngest { lsn } if lsn == at), "{e}");
    foreign(replica.append_replicated(&records).unwrap_err());
    assert_eq!(replica.log().last().lsn, Lsn::ZERO);
    let mut restore = Builder::create(world.env.clone(), Path::new("/other/restored"), &options(), None).unwrap();
    foreign(restore.replay(&record).unwrap_err());
    // The store itself, now and whenever it has forgotten the record.
    let store = Arc::new(world.store.take().unwrap());
    let e = store.start_workers().unwrap_err().to_string();
    assert!(e.contains("open_embedded") && e.contains("checkpoint"), "{e}");
    drop(store);
    world.reopen();
    world.settle();
    world.store().tree().compact_all().unwrap();
    world.store().close().unwrap();
    world.store = None;
    let e = Store::open(world.env.clone(), Path::new(DIR), &options()).unwrap_err().to_string();
    assert!(e.contains("has ingested tables"), "{e}");
    // A base taken afresh may.
    world.reopen();
    let checkpoint = Path::new("/other/fresh");
    let made = world.store().checkpoint(checkpoint).unwrap();
    let all = world.state();
    let dir = Path::new("/other/node");
    world.fs.create_dir_all(&dir.join("tables")).unwrap();
    for t in &made.tables {
        let name = format!("{:032x}.table", t.id);
        world.fs.hard_link(&checkpoint.join("tables").join(&name), &dir.join("tables").join(&name)).unwrap();
    }
    let builder = Builder::create(world.env.clone(), dir, &options(), Some(&made.manifest)).unwrap();
    builder.finish_seed(IDENTITY).unwrap();
    let node = Store::open(world.env.clone(), dir, &options()).unwrap();
    assert_eq!(read(&node.view()).unwrap(), all);
}

#[test]
fn a_cut_never_takes_an_ingest_away() {
    let mut world = World::new(6);
    let before = world.put(&key(1), b"old");
    let ready = world.tables("v", 0..10);
    let at = world.ingest(&ready).unwrap().position.lsn;
    let mut batch = Batch::new();
    batch.put(b"never", b"committed").unwrap();
    world.store().append(world.store().log().last().epoch, &batch, &[]).unwrap();
    for below in [before, Lsn::ZERO] {
        assert!(matches!(world.store().truncate_above(below), Err(Error::BelowCommit { .. })));
    }
    let cut = world.store().truncate_above(at).unwrap().unwrap();
    assert_eq!((cut.from, cut.to), (at.next(), at.next()));
    at_each_age(&mut world, "after a cut", |world| {
        assert!(world.state().values().all(|(lsn, _)| *lsn == at) && world.state().len() == 10);
    });
}

#[test]
fn a_checkpoint_a_scrub_and_a_repair_know_ingested_tables() {
    let mut world = World::new(7);
    (0..30).for_each(|n| _ = world.put(&key(n), b"old"));
    world.settle();
    let ready = world.tables("v", 0..600);
    let at = world.ingest(&ready).unwrap().position.lsn;
    let checkpoint = Path::new("/other/checkpoint");
    // Not flushed before: the checkpoint does that.
    let made = world.store().checkpoint(checkpoint).unwrap();
    let tree = ReadOnly::open(world.env.clone(), checkpoint, &options()).unwrap();
    assert_eq!((tree.position().lsn, read(&tree.view()).unwrap()), (at, world.state()));
    drop(tree);
    let data = Path::new(DIR);
    let fs: Arc<dyn Fs> = Arc::clone(&world.fs) as _;
    let named = inspect::read_state(&fs, data).unwrap();
    assert_eq!(named.format, 4);
    let ingested: Vec<_> = named.state.tables.iter().filter(|t| t.ingested == Some(at)).map(|t| t.file.id).collect();
    assert_eq!(ingested.len(), ready.len());
    while world.store().scrub_step(1 << 20) == Progress::Worked {}
    assert_eq!((world.store().scrub_findings(), world.store().damage()), (vec![], Vec::<String>::new()));
    let checked = inspect::check_tables(&fs, data).unwrap();
    assert_eq!((checked.findings, checked.unnamed), (vec![], 0));
    // A flipped bit is found and repaired, and the good copy is read at the record's LSN as well.
    let id = ingested[1];
    let path = world.store().tree().table_path(id);
    // The links of checkpoint and source share the file: what is damaged is a file of its own.
    let bytes = world.fs.read_all(&path).unwrap();
    let good = Path::new("/other/good.table");
    world.fs.open(good, mainstay_engine::fs::OpenMode::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    world.fs.flip_bit(&path, 40, 3).unwrap();
    while world.store().scrub_step(1 << 20) == Progress::Worked {}
    assert!(world.store().damage().iter().any(|d| d.contains(&format!("{id:032x}"))));
    world.store().repair_table(id, good).unwrap();
    assert_eq!(world.store().damage(), Vec::<String>::new());
    at_each_age(&mut world, "repaired", |world| {
        let state = world.state();
        assert!(state.len() == 600 && state.values().all(|(lsn, value)| *lsn == at && value == b"v"));
    });
    // Merged, they are tables like others, and so is the next manifest.
    world.store().checkpoint(Path::new("/other/second")).unwrap();
    let second = inspect::read_state(&fs, Path::new("/other/second")).unwrap();
    assert_eq!(second.format, 3);
    assert!(made.tables.iter().all(|t| second.state.tables.iter().all(|s| s.file.id != t.id)));
}

#[test]
fn tables_stand_as_deep_as_they_can() {
    let world = World::new(8);
    let levels = |world: &World| world.store().tree().stats().levels.map(|l| l.tables);
    let low = world.tables("low", 0..300);
    world.ingest(&low).unwrap();
    world.store().tree().flush_all().unwrap();
    let n = low.len() as u64;
    // The memtable under them has nothing but the record's commit time, which is no table of level 0.
    assert_eq!(levels(&world), [0, 0, 0, 0, 0, 0, n]);
    let high = world.tables("high", 300..310);
    world.ingest(&high).unwrap();
    world.store().tree().flush_all().unwrap();
    assert_eq!(levels(&world), [0, 0, 0, 0, 0, 0, n + 1]);
    let over = world.tables("over", 5..9);
    world.ingest(&over).unwrap();
    world.store().tree().flush_all().unwrap();
    assert_eq!(levels(&world), [0, 0, 0, 0, 0, 1, n + 1]);
    // What the memtable before holds is older and in level 0.
    world.put(&key(7), b"older");
    let above = world.tables("above", [7]);
    let at = world.ingest(&above).unwrap().position.lsn;
    world.store().tree().flush_all().unwrap();
    assert_eq!(levels(&world), [2, 0, 0, 0, 0, 1, n + 1]);
    assert_eq!(world.state()[&key(7)], (at, b"above".to_vec()));
    world.settle();
    assert_eq!(world.state()[&key(7)], (at, b"above".to_vec()));
}

/// Moves rewrite nothing but the manifest's entry, which is all that says which LSN the entries have.
#[test]
fn a_table_that_is_moved_keeps_its_lsn() {
    let mut world = World::new(12);
    (0..20).for_each(|n| _ = world.put(&key(n), &[b'o'; 100]));
    world.store().tree().flush_all().unwrap();
    world.store().tree().compact_all().unwrap();
    write(world.store(), |b| _ = b.delete_range(b"", b"").unwrap());
    let ready = world.tables("v", 5..9);
    let at = world.ingest(&ready).unwrap().position.lsn;
    world.store().tree().flush_all().unwrap();
    let level = |world: &World| {
        let fs: Arc<dyn Fs> = Arc::clone(&world.fs) as _;
        let state = inspect::read_state(&fs, Path::new(DIR)).unwrap().state;
        state.tables.into_iter().find(|t| t.ingested == Some(at)).and_then(|t| t.level)
    };
    assert_eq!(level(&world), Some(5), "above the old keys");
    // The old keys go whole, and nothing is left below.
    world.clock.advance(std::time::Duration::from_secs(10));
    world.put(&key(99), b"later");
    world.settle();
    assert_eq!(level(&world), Some(6));
    assert!(world.store().tree().stats().moved_tables > 0);
    at_each_age(&mut world, "moved", |world| {
        let state = world.state();
        assert!(state.len() == 5 && (5..9).all(|n| state[&key(n)] == (at, b"v".to_vec())), "{state:?}");
    });
}

#[test]
fn many_in_a_row_keep_their_order_without_anybody_to_flush() {
    let mut world = World::new(9);
    let mut last = Lsn::ZERO;
    for n in 0..25u32 {
        let ready = world.tables(&format!("{n}"), [n, 500]);
        last = world.ingest(&ready).unwrap().position.lsn;
        let stats = world.store().tree().stats();
        assert!(stats.frozen_memtables <= 3 && stats.arriving_tables == ready.len() as u64, "{stats:?}");
    }
    assert_eq!(world.store().tree().stats().ingested_tables, 25);
    at_each_age(&mut world, "many", |world| {
        let state = world.state();
        assert_eq!(state.len(), 26);
        assert_eq!(state[&key(500)], (last, b"24".to_vec()));
    });
}

/// Readers beside writers and flushes see an ingest whole or not at all.
#[test]
fn readers_see_all_of_an_ingest_or_nothing() {
    let world = World::new(10);
    let store = Arc::new(world.store.unwrap());
    let workers = store.start_background().unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        for reverse in [false, true] {
            let (store, over) = (&store, &over);
            s.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let view = store.view();
                    let found = view.scan(Keyspace::USER, b"key", b"kez", reverse).map(|e| e.unwrap());
                    let found: Vec<_> = found.map(|e| (e.lsn, e.envelope)).collect();
                    assert!(found.windows(2).all(|w| w[0] == w[1]), "one version of all keys");
                    assert!([0, 300].contains(&found.len()), "{} keys", found.len());
                    let one = view.get(Keyspace::USER, &key(150)).unwrap().map(|f| f.lsn);
                    assert_eq!(one, found.first().map(|f| f.0));
                }
            });
        }
        let (store, over) = (&store, &over);
        s.spawn(move || {
            for n in 0..2_000u32 {
                write_buffered(store, format!("other-{}", n % 50).as_bytes());
            }
        });
        for round in 0..12 {
            let ready = tables(&world.env, &format!("round {round}"), 0..300);
            store.ingest(&ready, Place::Link).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    drop(workers);
    assert_eq!(store.view().scan(Keyspace::USER, b"key", b"kez", false).count(), 300);
}

fn write_buffered(store: &Store, key: &[u8]) {
    let mut batch = Batch::new();
    batch.put(key, &[b'v'; 40]).unwrap();
    store.write(&batch, &[], Durability::Buffered).unwrap();
}

#[test]
fn a_refused_ingest_says_that_nothing_was_done_and_that_it_is_not_to_be_repeated() {
    let world = World::new(22);
    let refused = world.store().ingest(&[], Place::Link).unwrap_err();
    assert!(matches!(refused, Error::Directory { .. }), "{refused}");
    assert_eq!(refused.class(), ErrorClass::NeverRetry);
    assert_eq!(world.store().log().last().lsn, Lsn::ZERO);
}

/// Nothing but the tables themselves: the memtable under them has no entries to be flushed.
#[test]
fn ingests_over_an_empty_memtable_leave_no_table_of_their_own_and_their_times_are_known() {
    let mut world = World::new(21);
    let mut ingested = Vec::new();
    for n in 0..30 {
        world.clock.advance(std::time::Duration::from_micros(10));
        let done = world.ingest(&world.tables("v", n * 10..n * 10 + 10)).unwrap();
        ingested.push(done.position);
        world.store().tree().flush_all().unwrap();
        let pinned = world.store().tree().stats();
        assert_eq!(pinned.levels[0].tables, 0, "after {} ingests: {pinned:?}", n + 1);
    }
    let check = |world: &World, what: &str| {
        for (n, at) in ingested.iter().enumerate() {
            let keys = |lsn: Lsn| read(&world.store().view_at(lsn).unwrap()).unwrap().len();
            assert_eq!((keys(at.lsn), keys(at.lsn.prev())), ((n + 1) * 10, n * 10), "{what}: {n}");
            let seen = |ts: u64| world.store().view_at_time(CommitTs(ts)).unwrap().lsn();
            assert_eq!((seen(at.ts.0), seen(at.ts.0 + 5)), (at.lsn, at.lsn), "{what}: {n}");
        }
    };
    check(&world, "flushed");
    world.settle();
    check(&world, "merged");
    let stats = world.store().tree().stats();
    assert!(stats.history.tables < 10, "{stats:?}");
    world.store = None;
    world.fs.crash_losing_unsynced();
    world.reopen();
    check(&world, "reopened");
    assert_eq!(world.fatal.messages(), Vec::<String>::new());
}
