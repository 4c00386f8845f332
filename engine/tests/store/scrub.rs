//! The scrub: it finds what is damaged, calls nothing damaged that is not, and stands in nobody's way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::clock::SimClock;
use mainstay_engine::env::SimFatal;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::inspect::{LogFile, SegmentReader, TableView};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::table::parse_table_name;
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, TimelineId};

use super::ingest::World;
use super::reads::read;

pub(crate) const DIR: &str = "/data";

pub(crate) struct Home {
    pub(crate) fs: Arc<SimFs>,
    pub(crate) env: Env,
    pub(crate) fatal: SimFatal,
    pub(crate) store: Store,
}

pub(crate) fn options() -> Options {
    Options { segment_bytes: 8 << 10, ..Options::tiny() }
}

pub(crate) fn home(seed: u64) -> Home {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let store = Store::create(env.clone(), Path::new(DIR), &options(), identity).unwrap();
    Home { fs, env, fatal, store }
}

impl Home {
    pub(crate) fn put(&self, prefix: char, count: u64) {
        for n in 0..count {
            let mut batch = Batch::new();
            batch.put(format!("{prefix}{n:03}").as_bytes(), b"a value of some bytes").unwrap();
            self.store.write(&batch, &[], Durability::Synced).unwrap();
        }
    }

    pub(crate) fn get(&self, key: &str) -> Result<bool, Error> {
        self.store.get(Keyspace::USER, key.as_bytes()).map(|found| found.is_some())
    }

    pub(crate) fn settle(&self) {
        while self.store.maintain_step().unwrap() == Progress::Worked {}
    }

    pub(crate) fn files(&self, ending: &str) -> Vec<PathBuf> {
        let ours = |f: &PathBuf| f.starts_with(DIR) && f.extension().is_some_and(|e| e == ending);
        self.fs.files().into_iter().filter(ours).collect()
    }

    /// The table whose first key is this.
    pub(crate) fn table_from(&self, key: &str) -> PathBuf {
        let fs: Arc<dyn Fs> = Arc::clone(&self.fs) as Arc<dyn Fs>;
        let first = |f: &PathBuf| TableView::open(&fs, f).unwrap().properties().keys.map(|(low, _)| low.key);
        let all = self.files("table");
        all.into_iter().find(|f| first(f).is_some_and(|k| k == key.as_bytes())).unwrap()
    }

    /// A whole pass in steps of so many bytes; how many steps it took.
    pub(crate) fn pass(&self, bytes: u64) -> u64 {
        let mut steps = 0;
        while self.store.scrub_step(bytes) == Progress::Worked {
            steps += 1;
            assert!(steps < 100_000, "a pass without end");
        }
        steps
    }
}

#[test]
fn a_pass_reads_all_that_is_at_rest_in_small_steps_and_leaves_the_cache_alone() {
    let home = home(1);
    let _kept = home.store.log().slot("kept", Lsn::ZERO);
    for prefix in ['a', 'm', 'z'] {
        home.put(prefix, 60);
        home.store.tree().flush_all().unwrap();
        home.settle();
    }
    assert!(home.get("m030").unwrap());
    let before = home.store.stats().tree;
    let steps = home.pass(512);
    let (stats, tree) = (home.store.stats().scrub, home.store.stats().tree);
    let sealed = home.store.log().disk_usage().1 as u64 - 1;
    assert!(sealed > 1 && stats.files_total == sealed + tree.tables(), "{stats:?}");
    assert_eq!((stats.files_done, stats.bytes_done), (stats.files_total, stats.bytes_total));
    assert!(steps > stats.bytes_total / 2048, "{steps} steps for {} bytes", stats.bytes_total);
    assert_eq!((stats.passes, stats.running, stats.damaged_files), (1, false, 0));
    assert_eq!(stats.last_whole_lsn, Lsn(180));
    assert!((CommitTs(1_000_000)..home.env.clock.wall()).contains(&stats.last_whole_at));
    let of_cache = |t: &mainstay_engine::tree::TreeStats| (t.cache_bytes, t.cache_hits, t.cache_misses);
    assert_eq!(of_cache(&before), of_cache(&tree));
    assert_eq!(home.store.scrub_findings(), []);
}

#[test]
fn damage_in_a_table_and_in_a_sealed_segment_is_told_and_the_store_goes_on() {
    let home = home(2);
    let kept = home.store.log().slot("kept", Lsn::ZERO);
    home.put('a', 120);
    home.store.tree().flush_all().unwrap();
    home.settle();
    let table = &home.table_from("a000");
    let segment = &home.files("log")[0];
    home.fs.flip_bit(table, 40, 3).unwrap();
    home.fs.flip_bit(segment, 4096 + 50, 3).unwrap();
    home.pass(4096);
    let found = home.store.scrub_findings();
    let places: Vec<_> = found.iter().map(|f| (&f.path, f.offset)).collect();
    assert_eq!(places, [(segment, 4096), (table, 0)], "{found:?}");
    assert_eq!(found[0].lsn, Some(Lsn(1)));
    let damage = home.store.damage();
    assert!(damage.len() == 2 && damage[0].contains(table.to_str().unwrap()), "{damage:?}");
    assert!(damage[1].contains(segment.to_str().unwrap()), "{damage:?}");
    assert_eq!((home.store.stats().scrub.damaged_files, home.store.stats().tree.damaged_tables), (2, 1));
    // Reads of other blocks, writes, flushes and merges go on.
    assert!(matches!(home.get("a000"), Err(Error::Corruption { offset: 0, .. })));
    assert!(home.get("a119").unwrap());
    home.put('b', 60);
    home.store.tree().flush_all().unwrap();
    home.settle();
    assert!(home.get("b059").unwrap() && home.fatal.messages().is_empty());
    // What is whole again, and what is gone, is no longer told.
    home.fs.flip_bit(table, 40, 3).unwrap();
    drop(kept);
    home.settle();
    home.pass(4096);
    assert_eq!((home.store.scrub_findings(), home.store.damage()), (vec![], vec![]));
    assert!(home.get("a000").unwrap());
}

#[test]
fn a_file_that_cannot_be_read_is_damage_too() {
    let home = home(3);
    home.put('a', 60);
    home.store.tree().flush_all().unwrap();
    home.settle();
    let table = home.files("table")[0].clone();
    Fs::remove_file(&*home.fs, &table).unwrap();
    home.pass(4096);
    let found = home.store.scrub_findings();
    assert!(found.len() == 1 && found[0].path == table && found[0].what.contains("missing"), "{found:?}");
}

#[test]
fn damage_of_a_table_that_is_merged_away_is_no_longer_told() {
    let home = home(4);
    home.put('a', 60);
    home.store.tree().flush_all().unwrap();
    let table = home.table_from("a000");
    let fs: Arc<dyn Fs> = Arc::clone(&home.fs) as Arc<dyn Fs>;
    let sections = TableView::open(&fs, &table).unwrap().properties().sections;
    // A merge does not need the filter.
    let filter = sections.iter().find(|s| s.name == "filter").unwrap();
    home.fs.flip_bit(&table, filter.offset + 20, 3).unwrap();
    home.pass(4096);
    assert_eq!((home.store.damage().len(), home.store.stats().tree.damaged_tables), (1, 1));
    assert_eq!(home.store.tree().compact_all().unwrap(), Progress::Worked);
    assert_eq!((home.store.damage(), home.store.stats().tree.damaged_tables), (vec![], 0));
}

/// A call that the operating system refuses for want of handles or memory says nothing of the bytes.
#[test]
fn what_could_not_be_read_for_other_reasons_than_damage_is_read_later_and_not_called_damaged() {
    for class in [OpClass::Open, OpClass::Read] {
        for nth in 1.. {
            let home = home(5);
            let _kept = home.store.log().slot("kept", Lsn::ZERO);
            home.put('a', 60);
            home.store.tree().flush_all().unwrap();
            home.settle();
            home.fs.fail_nth(class, nth, FaultKind::Refused);
            home.pass(4096);
            let done = home.store.scrub_stats();
            assert_eq!((home.store.scrub_findings(), home.store.damage()), (vec![], vec![]), "{class:?} {nth}");
            assert_eq!(done.files_done, done.files_total, "{class:?} {nth}");
            if nth > 40 {
                break;
            }
        }
    }
}

/// The same for good: what cannot be read is told as such, and what was found before still stands.
#[test]
fn a_scrub_that_may_not_read_says_so_and_forgets_no_damage() {
    let home = home(6);
    home.put('a', 60);
    home.store.tree().flush_all().unwrap();
    home.settle();
    let table = home.table_from("a000");
    home.fs.flip_bit(&table, 40, 3).unwrap();
    home.pass(4096);
    let found = home.store.scrub_findings();
    assert_eq!(found.len(), 1);
    let whole = home.store.scrub_stats();
    assert!(home.store.last_scrub().unwrap().is_whole());
    home.put('b', 60);
    for nth in 1..=100 {
        home.fs.fail_nth(OpClass::Open, nth, FaultKind::Refused);
    }
    home.pass(4096);
    let (stats, told) = (home.store.scrub_stats(), home.store.scrub_unread());
    assert_eq!((stats.files_done, stats.unread_files), (0, stats.files_total), "{stats:?}");
    // It ended, and says of nothing that it is whole.
    assert_eq!((stats.passes, stats.last_whole_at, stats.last_whole_lsn), (2, whole.last_whole_at, Lsn(60)));
    assert!(!home.store.last_scrub().unwrap().is_whole());
    assert!(told.iter().all(|e| e.contains("Too many open files")), "{told:?}");
    assert_eq!((home.store.scrub_findings(), home.store.damage().len()), (found.clone(), 1));
    home.fs.clear_faults();
    home.pass(4096);
    let stats = home.store.scrub_stats();
    assert_eq!((stats.files_done, stats.unread_files), (stats.files_total, 0), "{stats:?}");
    assert!(stats.last_whole_at > whole.last_whole_at && stats.last_whole_lsn == Lsn(120), "{stats:?}");
    assert_eq!(home.store.scrub_findings(), found);
}

/// Each table, those of history too, and each sealed segment, to its last block and record.
#[test]
fn each_file_at_rest_is_read_to_its_end() {
    let home = home(11);
    let _kept = home.store.log().slot("kept", Lsn::ZERO);
    for _ in 0..2 {
        home.put('a', 120);
        home.store.tree().flush_all().unwrap();
    }
    home.put('m', 40);
    home.put('m', 40);
    home.store.tree().flush_all().unwrap();
    assert!(home.store.stats().tree.history.tables > 0 && home.store.stats().tree.levels[0].tables > 2);
    let fs: Arc<dyn Fs> = Arc::clone(&home.fs) as Arc<dyn Fs>;
    let tables = home.files("table");
    for table in &tables {
        let last = TableView::open(&fs, table).unwrap().blocks().unwrap().map(Result::unwrap).last().unwrap();
        home.fs.flip_bit(table, last.offset + last.bytes - 1, 3).unwrap();
    }
    let [sealed @ .., _] = &home.files("log")[..] else { panic!("no log") };
    for segment in sealed {
        let header = LogFile::read(&*fs, segment).unwrap().header().unwrap();
        let mut frames = SegmentReader::open(&*fs, segment, &header).unwrap();
        let mut last = 0;
        while let Some(f) = frames.next().unwrap() {
            last = f.offset;
        }
        home.fs.flip_bit(segment, last + 20, 3).unwrap();
    }
    home.pass(256);
    let found: Vec<_> = home.store.scrub_findings().into_iter().map(|f| f.path).collect();
    let damaged: Vec<_> = sealed.iter().chain(&tables).cloned().collect();
    assert!(sealed.len() > 1, "{sealed:?}");
    assert_eq!(found, damaged);
}

/// One file of many that cannot be read is enough: the others being whole says nothing of it.
#[test]
fn a_pass_that_leaves_one_file_unread_is_not_whole() {
    let home = home(8);
    let _kept = home.store.log().slot("kept", Lsn::ZERO);
    home.put('a', 60);
    home.store.tree().flush_all().unwrap();
    home.settle();
    home.pass(4096);
    let whole = home.store.scrub_stats();
    assert!(whole.files_total > 1);
    let others = whole.files_total - 1;
    // The last file of the pass, at each of its tries.
    (others + 1..=others + 3).for_each(|nth| home.fs.fail_nth(OpClass::Open, nth, FaultKind::Refused));
    home.pass(4096);
    let stats = home.store.scrub_stats();
    assert_eq!((stats.files_done, stats.files_gone, stats.unread_files), (others, 0, 1), "{stats:?}");
    assert_eq!((stats.passes, stats.last_whole_at), (2, whole.last_whole_at));
    assert!(!home.store.last_scrub().unwrap().is_whole() && home.store.scrub_findings().is_empty());
}

#[test]
fn a_pass_that_is_given_up_is_no_longer_on_its_way_and_does_not_count() {
    let home = home(9);
    for prefix in ['a', 'm', 'z'] {
        home.put(prefix, 60);
        home.store.tree().flush_all().unwrap();
    }
    for table in home.files("table") {
        home.fs.flip_bit(&table, 40, 3).unwrap();
    }
    let mut steps = 0;
    while home.store.scrub_findings().is_empty() {
        assert_eq!(home.store.scrub_step(256), Progress::Worked);
        steps += 1;
    }
    assert!(steps > 1 && home.store.scrub_stats().running);
    home.store.scrub_give_up();
    let stats = home.store.scrub_stats();
    assert!(!stats.running && stats.files_done < stats.files_total, "{stats:?}");
    assert_eq!((stats.passes, stats.last_whole_at, home.store.last_scrub()), (0, CommitTs::default(), None));
    // What it found is true all the same.
    assert_eq!((home.store.scrub_findings().len(), home.store.damage().len()), (1, 1));
    home.store.scrub_give_up();
    home.pass(256);
    let stats = home.store.scrub_stats();
    assert_eq!((stats.passes, stats.files_done, stats.running), (1, stats.files_total, false));
    assert_eq!(home.store.scrub_findings().len(), home.files("table").len());
}

/// A memtable may wait for its flush for long, where the disk is full: what it brought in is read all that time.
#[test]
fn ingested_tables_that_wait_for_their_level_are_read() {
    let mut world = World::new(8);
    for key in [b"before", b"beside"] {
        world.put(key, b"old");
        world.store().tree().flush_all().unwrap();
    }
    let ready = world.tables("v", 0..600);
    world.ingest(&ready).unwrap();
    let store = world.store();
    assert_eq!(store.stats().tree.arriving_tables, ready.len() as u64);
    let damaged = ready.get(1).and_then(|r| r.file_name()).unwrap();
    let path = Path::new(DIR).join("tables").join(damaged);
    let id = parse_table_name(damaged.to_str().unwrap()).unwrap();
    let good = Path::new("/other/good.table");
    let copy = world.fs.open(good, OpenMode::CreateNew).unwrap();
    copy.write_all_at(&world.fs.read_all(&path).unwrap(), 0).unwrap();
    let pass = |store: &Store| while store.scrub_step(1 << 20) == Progress::Worked {};
    pass(store);
    let stats = store.scrub_stats();
    let tables = stats.files_total;
    assert_eq!((stats.files_done, tables), (tables, store.stats().tree.tables() + ready.len() as u64));
    assert_eq!(store.scrub_findings(), vec![]);
    world.fs.flip_bit(&path, 40, 3).unwrap();
    pass(store);
    let told = |store: &Store| {
        let found: Vec<_> = store.scrub_findings().into_iter().map(|f| f.path).collect();
        let tables: Vec<_> =
            store.tree().damaged_tables().into_iter().map(|t| (t.file.id, t.level.is_some())).collect();
        (found, store.damage().len(), tables)
    };
    assert_eq!(told(store), (vec![path.clone()], 1, vec![(id, false)]));
    let refused = store.repair_table(id, good).unwrap_err();
    assert!(refused.to_string().contains("flush"), "{refused}");
    // Neither a merge nor its level changes anything about it.
    assert_eq!(store.tree().compact_step().unwrap(), Progress::Worked);
    assert_eq!((store.stats().tree.moved_tables, told(store)), (1, (vec![path.clone()], 1, vec![(id, false)])));
    store.tree().flush_all().unwrap();
    assert_eq!((store.stats().tree.arriving_tables, told(store)), (0, (vec![path.clone()], 1, vec![(id, true)])));
    pass(store);
    assert_eq!(told(store), (vec![path], 1, vec![(id, true)]));
    store.repair_table(id, good).unwrap();
    pass(store);
    assert_eq!(told(store), (vec![], 0, vec![]));
    world.reopen();
    assert_eq!(world.state().len(), 602);
}

/// Nobody has read what is merged away: it is not there any more, and is not told as read.
#[test]
fn what_goes_under_a_pass_is_told_apart_from_what_was_read() {
    let home = home(10);
    for prefix in ['a', 'm', 'z'] {
        home.put(prefix, 60);
        home.store.tree().flush_all().unwrap();
    }
    let tables = home.files("table").len() as u64;
    assert_eq!(home.store.scrub_step(1), Progress::Worked);
    home.store.tree().compact_all().unwrap();
    home.pass(4096);
    let stats = home.store.scrub_stats();
    assert!(tables > 2 && stats.files_gone == tables, "{stats:?}");
    assert_eq!((stats.files_done + stats.files_gone, stats.bytes_done), (stats.files_total, stats.bytes_total));
    // What stands in their place is the next pass's.
    home.pass(4096);
    let stats = home.store.scrub_stats();
    assert_eq!((stats.files_gone, stats.files_done), (0, stats.files_total), "{stats:?}");
}

/// A sector that a read could not have is told, also when nobody can look again; what is for want of something else is not.
#[test]
fn what_a_read_met_is_told_even_when_the_table_cannot_be_read_again() {
    let home = home(7);
    home.put('a', 60);
    home.store.tree().flush_all().unwrap();
    home.settle();
    let met = |kind, key| {
        home.fs.fail_nth(OpClass::Read, 1, kind);
        let e = home.get(key).unwrap_err();
        assert!(matches!(&e, Error::Io { path, .. } if home.files("table").contains(path)), "{e}");
        e
    };
    let refuse_opening = || (1..=100).for_each(|n| home.fs.fail_nth(OpClass::Open, n, FaultKind::Refused));
    let short_of_memory = met(FaultKind::Refused, "a000");
    assert_eq!((short_of_memory.damaged_file(), home.store.scrub_after(&short_of_memory)), (None, false));
    let bad_sector = met(FaultKind::Eio, "a000");
    let table = bad_sector.damaged_file().unwrap().to_owned();
    refuse_opening();
    assert!(!home.store.scrub_after(&short_of_memory));
    assert_eq!(home.store.damage(), Vec::<String>::new());
    assert!(home.store.scrub_after(&bad_sector));
    let damage = home.store.damage();
    assert!(damage.len() == 1 && damage[0].contains(table.to_str().unwrap()), "{damage:?}");
    assert_eq!(home.store.tree().damaged_tables().len(), 1);
    // The sector can be read after all.
    home.fs.clear_faults();
    assert!(!home.store.scrub_after(&bad_sector));
    assert_eq!(home.store.damage(), Vec::<String>::new());
    // What is not of a table of this store is nobody's.
    let other = Error::corruption(Path::new("/elsewhere"), 0, None, "damaged");
    assert!(!home.store.scrub_after(&other));
    assert!(home.get("a000").unwrap() && home.fatal.messages().is_empty());
}

/// Whatever goes on beside it, a scrub finds nothing where nothing is damaged, and no table file stays for its sake.
#[test]
fn what_changes_under_a_scrub_is_not_called_damage() {
    for seed in 0..25 {
        let home = home(seed);
        let rng = SeededRng::new(seed);
        let slot = home.store.log().slot("slow", Lsn::ZERO);
        for round in 0..120 {
            match rng.below(9) {
                0 => home.store.tree().flush_all().unwrap(),
                1 => drop(home.store.tree().compact_all().unwrap()),
                2 => home.settle(),
                3 => slot.advance(home.store.committed().get()),
                4 => uncommitted_and_cut(&home, rng.below(60)),
                _ => home.put((b'a' + rng.below(6) as u8) as char, 1 + rng.below(20)),
            }
            for _ in 0..rng.below(6) {
                let _ = home.store.scrub_step(1 + rng.below(2000));
            }
            assert_eq!(home.store.scrub_findings(), [], "seed {seed}, round {round}");
            let (files, named) = (home.files("table").len() as u64, home.store.stats().tree.tables());
            assert_eq!(files, named, "seed {seed}, round {round}: table files stay");
        }
        home.pass(700);
        assert!(home.store.scrub_stats().passes > 0);
        assert_eq!((home.store.scrub_findings(), home.fatal.messages()), (vec![], vec![]), "seed {seed}");
        read(&home.store.view()).unwrap();
    }
}

/// Appends records that fill segments, lets the scrub get to them, and cuts them.
fn uncommitted_and_cut(home: &Home, count: u64) {
    let (store, committed) = (&home.store, home.store.committed().get());
    for _ in 0..count {
        let mut batch = Batch::new();
        batch.put(b"x", &[7; 200]).unwrap();
        store.append(store.log().last().epoch, &batch, &[]).unwrap();
    }
    store.log().sync_to(store.log().last().lsn).unwrap();
    let _ = store.scrub_step(300);
    let _ = store.scrub_step(300);
    store.truncate_above(committed).unwrap();
}
