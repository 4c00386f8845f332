//! A damaged table gets a good copy: verified before the swap, and a crash leaves the one or the other.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mainstay_engine::exec::Progress;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::fs::sim::{FaultKind, SimFs};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::inspect::TableView;
use mainstay_engine::store::Store;
use mainstay_engine::table::parse_table_name;
use mainstay_engine::{Error, Lsn};

use super::reads::read;
use super::scrub::{DIR, Home, home, options};

const SPARE: &str = "/spare";

fn copy(fs: &SimFs, from: &Path, to: &Path) {
    let file = fs.open(to, OpenMode::CreateNew).unwrap();
    file.write_all_at(&fs.read_all(from).unwrap(), 0).unwrap();
    file.sync_data().unwrap();
    fs.sync_dir(to.parent().unwrap()).unwrap();
}

fn id(path: &Path) -> u128 {
    parse_table_name(path.file_name().unwrap().to_str().unwrap()).unwrap()
}

/// A store with a table whose first block is damaged, and a good copy of the table elsewhere.
fn damaged(seed: u64) -> (Home, PathBuf, PathBuf) {
    let home = home(seed);
    home.put('m', 60);
    home.store.tree().flush_all().unwrap();
    let table = home.table_from("m000");
    home.fs.prepare_dir(Path::new(SPARE)).unwrap();
    let good = Path::new(SPARE).join(table.file_name().unwrap());
    copy(&home.fs, &table, &good);
    home.fs.flip_bit(&table, 40, 3).unwrap();
    (home, table, good)
}

fn is_damaged(home: &Home) -> bool {
    matches!(home.get("m000"), Err(Error::Corruption { offset: 0, .. }))
}

#[test]
fn a_good_copy_brings_back_the_reads_and_the_merges() {
    let (home, table, good) = damaged(1);
    home.put('a', 40);
    home.store.tree().flush_all().unwrap();
    home.pass(4096);
    assert!(is_damaged(&home) && home.get("m059").unwrap() && home.store.damage().len() == 1);
    let before = home.store.view();
    home.store.repair_table(id(&table), &good).unwrap();
    assert!(home.get("m000").unwrap());
    assert_eq!((home.store.damage(), home.store.scrub_findings()), (vec![], vec![]));
    // A view that is older than the repair keeps the file it has.
    assert!(before.get(mainstay_engine::batch::Keyspace::USER, b"m000").is_err());
    drop(before);
    home.pass(4096);
    assert_eq!(home.store.scrub_findings(), []);
    // The table takes part in merges again, and goes by one.
    assert_eq!(home.store.tree().compact_all().unwrap(), Progress::Worked);
    assert!(!home.files("table").contains(&table));
    let all = read(&home.store.view()).unwrap();
    assert_eq!(all.len(), 100);
    home.store.close().unwrap();
    let Home { env, store, .. } = home;
    drop(store);
    let store = Store::open_embedded(env, Path::new(DIR), &options()).unwrap();
    assert_eq!(read(&store.view()).unwrap(), all);
}

/// A scrub that is amid the damaged file when it is replaced says nothing of it, although a view still reads from it.
#[test]
fn a_scrub_under_way_does_not_tell_of_what_was_repaired_meanwhile() {
    for steps in (0..150).step_by(3) {
        let (home, table, good) = damaged(steps);
        let _view = home.store.view();
        for _ in 0..steps {
            let _ = home.store.scrub_step(200);
        }
        home.store.repair_table(id(&table), &good).unwrap();
        assert_eq!((home.store.scrub_findings(), home.store.damage()), (vec![], vec![]), "after {steps} steps");
        home.pass(200);
        assert_eq!((home.store.scrub_findings(), home.store.damage()), (vec![], vec![]), "after {steps} steps");
    }
}

/// The pass that is amid the old file knows nothing of the new one.
#[test]
fn a_copy_that_is_damaged_in_its_place_stays_told_when_a_pass_is_done_with_the_file_before() {
    let (home, table, good) = damaged(7);
    let before = home.store.view();
    assert_eq!(home.store.scrub_step(200), Progress::Worked);
    home.store.repair_table(id(&table), &good).unwrap();
    home.fs.flip_bit(&table, 40, 3).unwrap();
    assert!(home.store.scrub_table(id(&table)));
    home.pass(200);
    assert_eq!(home.store.scrub_stats().files_gone, 1);
    assert_eq!((home.store.scrub_findings().len(), home.store.damage().len()), (1, 1));
    drop(before);
}

#[test]
fn one_table_is_read_on_request_and_a_damaged_one_is_described() {
    let (home, table, good) = damaged(6);
    home.put('q', 60);
    home.store.tree().flush_all().unwrap();
    let whole = home.table_from("q000");
    assert!(home.store.tree().damaged_tables().is_empty());
    assert!(!home.store.scrub_table(id(&whole)) && !home.store.scrub_table(77));
    assert!(home.store.scrub_table(id(&table)));
    let told = home.store.tree().damaged_tables();
    let [t] = told.as_slice() else { panic!("{told:?}") };
    let fs: Arc<dyn Fs> = Arc::clone(&home.fs) as Arc<dyn Fs>;
    let is = TableView::open(&fs, &good).unwrap().properties();
    assert_eq!((t.file.id, &t.path, t.level, t.lsns), (is.id, &table, Some(0), is.lsns));
    assert_eq!((&t.keys, t.file.bytes, t.file.entries), (&is.keys, is.bytes, is.entries));
    assert_eq!(t.file.blake3, *blake3::hash(&home.fs.read_all(&good).unwrap()).as_bytes());
    assert_eq!(t.keys.as_ref().unwrap().0.key, b"m000");
    assert!(t.what.contains(table.to_str().unwrap()), "{}", t.what);
    assert_eq!(home.store.scrub_findings().len(), 1);
    home.store.repair_table(id(&table), &good).unwrap();
    assert!(!home.store.scrub_table(id(&table)));
    assert!(home.store.tree().damaged_tables().is_empty() && home.store.scrub_findings().is_empty());
    // What was noted of a table that is merged away is told no longer.
    home.fs.flip_bit(&whole, 40, 3).unwrap();
    assert!(home.store.scrub_table(id(&whole)));
    home.fs.flip_bit(&whole, 40, 3).unwrap();
    home.pass(4096);
    home.store.tree().compact_all().unwrap();
    assert!(home.store.tree().damaged_tables().is_empty());
}

/// What is no whole copy of this very table never gets into its place.
fn refuses(with: impl Fn(&Home, &Path, &Path)) -> Result<(), Error> {
    let (home, table, good) = damaged(2);
    with(&home, &table, &good);
    let before = home.fs.read_all(&table).unwrap();
    let done = home.store.repair_table(id(&table), &good);
    if done.is_err() {
        assert_eq!(home.fs.read_all(&table).unwrap(), before, "changed by a repair that failed");
        assert!(home.fs.files().iter().all(|f| !f.to_str().unwrap().ends_with("tmp")), "{:?}", home.fs.files());
        assert!(is_damaged(&home) && home.fatal.messages().is_empty());
    }
    done
}

fn flip_source(home: &Home, _: &Path, good: &Path) {
    home.fs.flip_bit(good, 45, 1).unwrap();
}

#[test]
fn a_copy_that_is_damaged_or_of_another_table_is_refused_and_nothing_is_changed() {
    let other = |home: &Home, _: &Path, good: &Path| {
        home.put('q', 60);
        home.store.tree().flush_all().unwrap();
        let other = home.table_from("q000");
        home.fs.remove_file(good).unwrap();
        copy(&home.fs, &other, good);
    };
    let short = |home: &Home, _: &Path, good: &Path| {
        home.fs.open(good, OpenMode::Write).unwrap().set_len(900).unwrap();
    };
    for (name, with) in
        [("damaged", &flip_source as &dyn Fn(&Home, &Path, &Path)), ("another", &other), ("cut short", &short)]
    {
        match refuses(with) {
            Err(Error::Corruption { path, .. }) => assert!(path.starts_with(SPARE), "{name}: {path:?}"),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(matches!(refuses(|home, _, good| home.fs.remove_file(good).unwrap()), Err(Error::Io { .. })));
    let (home, _, good) = damaged(3);
    assert!(matches!(home.store.repair_table(77, &good), Err(Error::Directory { .. })));
}

/// The rule broken on purpose: a copy that nobody read is put in place.
#[test]
fn a_repair_without_verification_is_noticed() {
    let _bug = plant(Bug::RepairUnverified);
    assert!(refuses(flip_source).is_ok(), "a second check hides it");
}

#[test]
fn a_crash_at_any_call_of_a_repair_leaves_the_damaged_table_or_the_good_one() {
    let (mut repaired, mut not) = (0, 0);
    for n in 1.. {
        let kind = if n % 2 == 0 { FaultKind::CrashAfter } else { FaultKind::CrashBefore };
        let (home, table, good) = damaged(n);
        home.fs.fail_at_io(home.fs.io_count() + n.div_ceil(2), kind);
        let done = home.store.repair_table(id(&table), &good);
        if !home.fs.power_is_off() {
            assert!(done.is_ok());
            break;
        }
        let Home { fs, env, store, fatal } = home;
        drop(store);
        fs.crash();
        let store = Store::open_embedded(env.clone(), Path::new(DIR), &options()).unwrap();
        let home = Home { fs, env, fatal, store };
        let is = is_damaged(&home);
        assert!(!(is && done.is_ok()), "call {n}: done, and gone with the crash");
        assert!(is || home.get("m000").unwrap(), "call {n}");
        assert!(home.get("m059").unwrap(), "call {n}");
        assert!(home.fs.files().iter().all(|f| !f.to_str().unwrap().ends_with("repair.tmp")), "call {n}");
        if is {
            not += 1;
            home.store.repair_table(id(&table), &good).unwrap();
            assert!(home.get("m000").unwrap(), "call {n}");
        } else {
            repaired += 1;
        }
    }
    // Only the directory's sync follows the rename: a crash after that call is the one that surely leaves the good table.
    assert!(repaired >= 1 && not > 10, "{repaired} {not}");
}

#[test]
fn a_repair_that_finds_no_room_changes_nothing() {
    let room = |home: &Home, _: &Path, _: &Path| home.fs.set_capacity(home.fs.allocated());
    assert!(matches!(refuses(room), Err(Error::DiskFull { .. })));
}

#[test]
fn a_store_that_does_not_open_is_repaired_closed() {
    for missing in [false, true] {
        let (home, table, good) = damaged(5);
        assert!(matches!(Store::repair_closed(&home.env, Path::new(DIR), id(&table), &good), Err(Error::InUse(_))));
        let Home { fs, env, store, .. } = home;
        let last = store.committed().get();
        store.close().unwrap();
        drop(store);
        if missing {
            fs.remove_file(&table).unwrap();
        } else {
            let footer = fs.read_all(&table).unwrap().len() as u64 - 20;
            fs.flip_bit(&table, footer, 1).unwrap();
        }
        let refused = Store::open_embedded(env.clone(), Path::new(DIR), &options());
        assert!(matches!(refused, Err(Error::Corruption { path, .. }) if path == table));
        Store::repair_closed(&env, Path::new(DIR), id(&table), &good).unwrap();
        let store = Store::open_embedded(env, Path::new(DIR), &options()).unwrap();
        assert_eq!((read(&store.view()).unwrap().len(), store.committed().get()), (60, last));
        assert!(last > Lsn::ZERO);
    }
}

/// A pin from before the repair names the same file: a merge that takes the repaired table lets it go, and the file
/// stays for the pin.
#[test]
fn what_was_pinned_before_a_repair_stays_until_the_pin_goes() {
    let (home, table, good) = damaged(6);
    home.put('a', 40);
    home.store.tree().flush_all().unwrap();
    let pin = home.store.tree().pinned_tables();
    home.store.repair_table(id(&table), &good).unwrap();
    let other = home.store.tree().pinned_tables();
    assert_eq!(home.store.tree().compact_all().unwrap(), Progress::Worked);
    for pin in [other, pin] {
        for file in &pin.tables {
            let path = home.store.tree().table_path(file.id);
            assert!(home.fs.read_all(&path).is_ok(), "{} is pinned, and gone", path.display());
        }
    }
    assert_eq!(home.files("table").len() as u64, home.store.stats().tree.tables());
}

#[test]
fn two_repairs_of_a_table_at_once_both_succeed() {
    let (home, table, good) = damaged(7);
    let stall = home.fs.stall_syncs();
    std::thread::scope(|scope| {
        let repair = || home.store.repair_table(id(&table), &good);
        let both = [scope.spawn(repair), scope.spawn(repair)];
        // Both have written their copy.
        stall.wait_for(2);
        drop(stall);
        for one in both {
            one.join().unwrap().unwrap();
        }
    });
    assert!(home.get("m000").unwrap());
    assert!(home.fs.files().iter().all(|f| !f.to_str().unwrap().ends_with("tmp")), "{:?}", home.fs.files());
}
