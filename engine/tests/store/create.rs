//! Making a store: it clears what an attempt left that was cut short, and nothing else.

use std::path::Path;
use std::sync::Arc;

use mainstay_engine::batch::{Batch, Keyspace};
use mainstay_engine::bulk::{Place, load};
use mainstay_engine::clock::SimClock;
use mainstay_engine::fault::{Bug, plant};
use mainstay_engine::fs::Fs;
use mainstay_engine::fs::sim::{FaultKind, OpClass, SimFs};
use mainstay_engine::restore::Builder;
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::tree::ReadOnly;
use mainstay_engine::{ClusterId, CommitTs, Env, Epoch, Error, Options, Result, TimelineId};

use crate::world::DIR;

const IDENTITY: Identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };

fn world(seed: u64) -> (Arc<SimFs>, Env) {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new("/other")).unwrap();
    let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), seed);
    (fs, env)
}

fn create(env: &Env, dir: &Path) -> Result<Store> {
    Store::create(env.clone(), dir, &Options::tiny(), IDENTITY)
}

fn with_a_key(env: &Env) -> Store {
    let store = create(env, Path::new(DIR)).unwrap();
    store.write(Batch::new().put(b"k", b"v").unwrap(), &[], Durability::Synced).unwrap();
    store
}

fn is_refused<T>(result: Result<T>) -> bool {
    matches!(result, Err(Error::Directory { what, .. }) if what.contains("no IDENTITY"))
}

#[test]
fn a_checkpoint_is_not_taken_for_an_attempt() {
    let (fs, env) = world(1);
    let checkpoint = Path::new("/other/checkpoint");
    with_a_key(&env).checkpoint(checkpoint).unwrap();
    let files = fs.files();
    assert!(is_refused(create(&env, checkpoint)));
    assert!(is_refused(load(&env, checkpoint, &Options::tiny(), IDENTITY, &[], Place::Copy)));
    let mut left = fs.files();
    left.retain(|f| !f.ends_with("LOCK") || files.contains(f));
    assert_eq!(left, files);
    ReadOnly::open(env.clone(), checkpoint, &Options::tiny()).unwrap();
    let _bug = plant(Bug::ClearAnything);
    assert!(create(&env, checkpoint).is_ok(), "without the rule it is gone");
}

#[test]
fn a_store_that_lost_its_identity_is_not_made_anew() {
    let (fs, env) = world(2);
    drop(with_a_key(&env));
    fs.remove_file(&Path::new(DIR).join("IDENTITY")).unwrap();
    assert!(is_refused(create(&env, Path::new(DIR))));
    IDENTITY.write(&env, Path::new(DIR)).unwrap();
    let store = Store::open_embedded(env, Path::new(DIR), &Options::tiny()).unwrap();
    assert!(store.view().get(Keyspace::USER, b"k").unwrap().is_some());
}

#[test]
fn an_attempt_that_is_cut_short_anywhere_can_be_made_again() {
    for kind in [FaultKind::CrashBefore, FaultKind::CrashAfter, FaultKind::Eio, FaultKind::NoSpace] {
        let (fs, env) = world(0);
        create(&env, Path::new(DIR)).unwrap();
        let total = fs.io_count();
        for k in 1..=total {
            let what = format!("{kind:?} at call {k} of {total}");
            let (fs, env) = world(k);
            fs.fail_at_io(k, kind);
            let struck = create(&env, Path::new(DIR)).is_err() || fs.power_is_off();
            fs.clear_faults();
            if k % 2 == 0 {
                fs.crash()
            } else {
                fs.crash_losing_unsynced()
            }
            let there = Identity::read(&env, Path::new(DIR)).unwrap().is_some();
            assert!(there || struck, "{what}: it was done, and is gone");
            let store = if there {
                Store::open_embedded(env.clone(), Path::new(DIR), &Options::tiny())
            } else {
                create(&env, Path::new(DIR))
            };
            drop(store.unwrap_or_else(|e| panic!("{what}: {e}")));
            assert!(!fs.exists(&Path::new(DIR).join("CREATING")).unwrap(), "{what}");
        }
    }
}

/// Whatever was synced, and whatever the disk says \[I3\]: the process is told to end, and nobody is told to try again.
#[test]
fn a_failed_sync_of_a_new_store_is_final() {
    type Make = fn(&Env) -> Result<()>;
    let dir = Path::new(DIR);
    let ways: [(&str, Make); 4] = [
        ("create", |env| create(env, Path::new(DIR)).map(drop)),
        ("load", |env| load(env, Path::new(DIR), &Options::tiny(), IDENTITY, &[], Place::Copy).map(drop)),
        ("restore", |env| {
            let builder = Builder::create(env.clone(), Path::new(DIR), &Options::tiny(), None)?;
            builder.finish(IDENTITY, TimelineId(3), Epoch(4)).map(drop)
        }),
        ("seed", |env| Builder::create(env.clone(), Path::new(DIR), &Options::tiny(), None)?.finish_seed(IDENTITY)),
    ];
    for (way, make) in ways {
        for class in [OpClass::SyncData, OpClass::SyncDir] {
            let mut syncs = 0;
            for (nth, kind) in (1..).flat_map(|nth| [(nth, FaultKind::Eio), (nth, FaultKind::NoSpace)]) {
                let fs = SimFs::new(nth);
                let (env, fatal) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), nth);
                fs.fail_nth(class, nth, kind);
                let made = make(&env);
                let (what, told) = (format!("{way}: {class:?} {nth}, {kind:?}: {made:?}"), fatal.messages());
                if fs.class_count(class) < nth {
                    assert!(made.is_ok() && told.is_empty(), "{what}");
                    break;
                }
                syncs += 1;
                if let Err(Error::DiskFull { path, .. }) = &made {
                    // The log's first segment, empty: the next attempt begins with another one.
                    assert!(kind == FaultKind::NoSpace && path.extension().is_some_and(|e| e == "log"), "{what}");
                    continue;
                }
                assert!(matches!(made, Err(Error::Stopped(_))), "{what}");
                assert!(told.len() == 1 && told[0].contains("sync"), "{what}: {told:?}");
                // What stands there is a store or an attempt, and is taken for it.
                fs.clear_faults();
                fs.crash_losing_unsynced();
                let there = fs.exists(dir).unwrap() && Identity::read(&env, dir).unwrap().is_some();
                assert!(!there || Store::open_embedded(env, dir, &Options::tiny()).is_ok(), "{what}");
            }
            assert!(syncs > 4, "{way}: {class:?} {syncs}");
        }
    }
}
