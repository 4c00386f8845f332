//! Damage to the last edit of the manifest, which looks like an edit that a crash tore: whatever that edit said, the
//! store refuses to open and changes nothing, or everything that was acknowledged is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine::batch::Batch;
use mainstay_engine::clock::SimClock;
use mainstay_engine::exec::Progress;
use mainstay_engine::fs::sim::{FaultKind, SimFs};
use mainstay_engine::fs::{Fs, OpenMode};
use mainstay_engine::inspect::{self, ManifestEdit};
use mainstay_engine::rng::{Rng, SeededRng};
use mainstay_engine::store::{Durability, Identity, Store};
use mainstay_engine::{ClusterId, CommitTs, Env, Error, Lsn, Options, TimelineId};

use super::reads::read;
use super::world::State;

const DIR: &str = "/data";
const STEPS: u64 = 60;

/// What the last edit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Did {
    Flush,
    Merge,
    Move,
    Forget,
}

fn did(edit: &ManifestEdit) -> Did {
    match (edit.flushed.is_some(), edit.added.is_empty()) {
        (true, _) => Did::Flush,
        (false, true) => Did::Forget,
        (false, false) if edit.added.iter().all(|t| edit.removed.contains(&t.file.id)) => Did::Move,
        (false, false) => Did::Merge,
    }
}

struct Stopped {
    fs: Arc<SimFs>,
    env: Env,
    state: State,
    manifest: PathBuf,
    /// The last edit, unless the manifest is one whole state.
    last: Option<ManifestEdit>,
}

fn options() -> Options {
    Options { segment_bytes: 8 << 10, ..Options::tiny() }
}

/// A store that did so much and whose process was killed then. With `held`, files that merges took stay, as where a view
/// was open.
fn stopped(seed: u64, steps: u64, held: bool) -> Stopped {
    let fs = SimFs::new(seed);
    fs.prepare_dir(Path::new(DIR)).unwrap();
    let clock = SimClock::new(CommitTs(1_000_000));
    let (env, _) = Env::sim(Arc::clone(&fs), Arc::clone(&clock), seed);
    let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
    let store = Store::create(env.clone(), Path::new(DIR), &options(), identity).unwrap();
    let slot = held.then(|| store.log().slot("kept", Lsn::ZERO));
    let (rng, mut views) = (SeededRng::new(seed), Vec::new());
    for _ in 0..steps {
        clock.advance(Duration::from_micros(rng.below(400)));
        match rng.below(8) {
            0 => store.tree().flush_all().unwrap(),
            1 if rng.below(4) == 0 => drop(store.tree().compact_all().unwrap()),
            1..=3 => drop(store.maintain_step().unwrap()),
            4 if rng.below(3) == 0 => {
                let mut batch = Batch::new();
                let n = rng.below(40);
                batch.delete_range(format!("{n:03}").as_bytes(), format!("{:03}", n + 9).as_bytes()).unwrap();
                store.write(&batch, &[], Durability::Synced).unwrap();
            }
            _ => write(&store, &rng),
        }
        views.extend(held.then(|| store.view()));
    }
    let state = read(&store.view()).unwrap();
    let dynamic: Arc<dyn Fs> = Arc::<SimFs>::clone(&fs);
    let manifest = inspect::current_manifest(&dynamic, &Path::new(DIR).join("manifest")).unwrap();
    // The process ends amid a call: what it has open it removes no more.
    fs.fail_at_io(fs.io_count() + 1, FaultKind::CrashBefore);
    fs.list(Path::new(DIR)).unwrap_err();
    drop((views, slot, store));
    fs.kill();
    let mut edits = Vec::new();
    inspect::read_manifest(&dynamic, &manifest, |e| edits.push(e)).unwrap();
    let last = edits.pop().filter(|_| !edits.is_empty());
    Stopped { fs, env, state, manifest, last }
}

fn write(store: &Store, rng: &dyn Rng) {
    for _ in 0..rng.below(12) {
        let (mut batch, n) = (Batch::new(), rng.below(50));
        batch.put(format!("{n:03}").as_bytes(), format!("{:016x}", rng.next_u64()).repeat(8).as_bytes()).unwrap();
        batch.delete(format!("{:03}", rng.below(50)).as_bytes()).unwrap();
        store.write(&batch, &[], Durability::Synced).unwrap();
    }
}

/// Damages the last edit at one place; `None`: cuts the file there.
fn damage(s: &Stopped, at: u64, bit: Option<u8>) {
    match bit {
        Some(bit) => s.fs.flip_bit(&s.manifest, at, bit).unwrap(),
        None => {
            s.fs.open(&s.manifest, OpenMode::Write).and_then(|f| f.set_len(at).and_then(|()| f.sync_data())).unwrap()
        }
    }
}

fn open(s: &Stopped) -> Result<Store, Error> {
    Store::open_embedded(s.env.clone(), Path::new(DIR), &options())
}

fn contents(s: &Stopped) -> Vec<(PathBuf, Vec<u8>)> {
    s.fs.files().into_iter().map(|p| (p.clone(), s.fs.read_all(&p).unwrap())).collect()
}

#[test]
fn damage_to_the_manifests_last_edit_loses_nothing_that_was_acknowledged() {
    let mut came_to: BTreeMap<(Did, bool), u32> = BTreeMap::new();
    for (seed, held) in (0..24).map(|n| (n / 2, n % 2 == 0)) {
        for steps in 2..STEPS {
            let s = stopped(seed, steps, held);
            let Some(last) = &s.last else { continue };
            let rng = SeededRng::new(seed * 1000 + steps);
            let at = last.offset + 1 + rng.below(last.bytes - 1);
            let bit = (rng.below(4) > 0).then(|| rng.below(8) as u8);
            let what = format!("seed {seed}, {steps} steps, held {held}: {:?} at {at}, bit {bit:?}", did(last));
            let whole = s.fs.read_all(&s.manifest).unwrap();
            damage(&s, at, bit);
            let before = contents(&s);
            match open(&s) {
                Ok(store) => {
                    *came_to.entry((did(last), true)).or_default() += 1;
                    assert_eq!(read(&store.view()).unwrap(), s.state, "{what}");
                    while store.maintain_step().unwrap() == Progress::Worked {}
                    store.tree().flush_all().unwrap();
                    store.tree().compact_all().unwrap();
                    assert_eq!(read(&store.view()).unwrap(), s.state, "{what}: later");
                }
                Err(e @ (Error::Corruption { .. } | Error::Directory { .. })) => {
                    *came_to.entry((did(last), false)).or_default() += 1;
                    let named =
                        format!("the manifest's last edit, at offset {} of {}", last.offset, s.manifest.display());
                    assert!(e.to_string().contains(&named), "{what}: {e}");
                    assert!(before == contents(&s), "{what}: the refusal changed something");
                    // Nothing but the edit is gone.
                    let file = s.fs.open(&s.manifest, OpenMode::Write).unwrap();
                    file.write_all_at(&whole, 0).unwrap();
                    assert_eq!(read(&open(&s).unwrap().view()).unwrap(), s.state, "{what}: repaired");
                }
                Err(e) => panic!("{what}: {e}"),
            }
        }
    }
    println!("{came_to:?}");
    for outcome in [
        (Did::Flush, true),
        (Did::Flush, false),
        (Did::Merge, true),
        (Did::Merge, false),
        (Did::Move, true),
        (Did::Forget, true),
        (Did::Forget, false),
    ] {
        assert!(came_to.contains_key(&outcome), "{outcome:?} never happened: {came_to:?}");
    }
}

/// What the last process left in the page cache alone is durable before anybody goes by it: log is released, and tables
/// are removed, by what the manifest says. Through edits and whole manifests that take another's place.
#[test]
fn what_an_open_store_goes_by_is_durable() {
    let options = Options { manifest_bytes: 1, ..options() };
    let flush = |store: &Store, n: u64| {
        let mut batch = Batch::new();
        batch.put(format!("{n:03}").as_bytes(), b"a value")?;
        store.write(&batch, &[], Durability::Synced)?;
        store.tree().flush_all()
    };
    let (mut killed, mut manifests) = (0, BTreeSet::new());
    for k in 1.. {
        let fs = SimFs::new(k);
        fs.prepare_dir(Path::new(DIR)).unwrap();
        let (env, _) = Env::sim(Arc::clone(&fs), SimClock::new(CommitTs(1_000_000)), k);
        let identity = Identity { cluster: ClusterId(7), timeline: TimelineId(9) };
        let store = Store::create(env.clone(), Path::new(DIR), &options, identity).unwrap();
        fs.fail_at_io(fs.io_count() + k, FaultKind::CrashBefore);
        let ended = (0..12).try_for_each(|n| flush(&store, n));
        drop(store);
        if ended.is_ok() {
            break;
        }
        let manifest = |fs: &SimFs| fs.read_all(&Path::new(DIR).join("manifest/CURRENT")).unwrap();
        // The machine lives, so all that was written is seen; then the power fails.
        fs.kill();
        let store = Store::open_embedded(env.clone(), Path::new(DIR), &options).unwrap();
        let (seen, current) = (store.tree().flushed(), manifest(&fs));
        drop(store);
        fs.crash_losing_unsynced();
        let store = Store::open_embedded(env, Path::new(DIR), &options).unwrap();
        assert_eq!((store.tree().flushed(), manifest(&fs)), (seen, current.clone()), "killed before I/O {k}");
        killed += 1;
        manifests.insert(current);
    }
    assert!(killed > 100 && manifests.len() > 1, "{killed} kills, {manifests:?}");
}
